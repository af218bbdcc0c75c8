"""What adding a property costs against training all of them jointly, and molecules per second in prediction.

    python benchmarks/gate.py --data FOLDER [--rounds 3] [--steps 40] [--peer-python PYTHON] [--part training|prediction]

`--data` holds aqsoldb/aqsoldb.csv.gz: its molecules and their computed descriptors serve as properties of equal kind; only costs are
measured, not errors. One torch thread.

Training: four sources, then a k-th target of 200 labels for k = 1 ... 6. `add` is an update of the addition, `joint` one of a network of
the four and all k that is learnt together (with one route drawn for each property; `pairs` with all, as the sum over pairs is written).
CPU milliseconds of an update are the median over the updates of a call after the first five; the kinds take turns in one process, ratios
are medians over the rounds. `fixed` is what an addition spends before its first update: every molecule passes the embedding once.

Prediction: whole processes from a CSV of SMILES to a CSV of predictions, in turn: `taskvec gate predict`, a pipeline of rdkit
fingerprints and scikit-learn's random forest of 100 trees, and, with --peer-python (an environment that has it), `chemprop predict`. Each
predicts one property with a trained model of default size, for few and for many molecules; the difference gives the rate beyond start-up.
Writes benchmarks/results/gate.json.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SOURCES = ("MolLogP", "MolMR", "TPSA", "NumHDonors")
TARGETS = ("Solubility", "NumHAcceptors", "NumAromaticRings", "NumRotatableBonds", "RingCount", "BalabanJ")
FEW, MANY = 1000, 5000
FOREST = """
import csv, sys
import joblib, numpy as np
from rdkit import Chem
from rdkit.Chem import rdFingerprintGenerator
make = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=1024)
smiles = [r["smiles"] for r in csv.DictReader(open(sys.argv[1]))]
x = np.stack([make.GetCountFingerprintAsNumPy(Chem.MolFromSmiles(s)) for s in smiles])
if sys.argv[2] == "fit":
    from sklearn.ensemble import RandomForestRegressor
    y = np.array([float(r["y"]) for r in csv.DictReader(open(sys.argv[1]))])
    joblib.dump(RandomForestRegressor(100, max_features=1 / 3, n_jobs=1, random_state=0).fit(x, y), sys.argv[3])
else:
    y = joblib.load(sys.argv[3]).predict(x)
    with open(sys.argv[2], "w", newline="") as file:
        csv.writer(file).writerows([["smiles", "y"], *zip(smiles, y)])
"""


def marks(call: Callable[[Callable[..., None]], Any]) -> tuple[float, float]:
    """CPU seconds before the end of the first update, and CPU milliseconds of a later one."""
    seen = [time.process_time()]
    call(lambda *_: seen.append(time.process_time()))
    return seen[1] - seen[0], 1000 * statistics.median(b - a for a, b in list(pairwise(seen))[6:])


def training(data: Path, count: int, steps: int) -> dict[str, Any]:
    import numpy as np
    import torch

    from taskvec.gate import GateSpec, Losses, add, inputs_for, pretrain, read_molecules

    torch.set_num_threads(1)
    found = read_molecules(data, targets=[*SOURCES, *TARGETS])
    rows = np.sort(np.random.default_rng(0).permutation(len(found))[:2000])
    inputs = inputs_for("graph", [found.smiles[i] for i in rows])
    labels = {n: found.target(n)[rows] for n in (*SOURCES, *TARGETS)}
    order = np.random.default_rng(1).permutation(2000)
    few = {n: labels[n].copy() for n in TARGETS}
    for values in few.values():
        values[order[200:]] = np.nan
    train, validation = np.sort(order[25:]), np.sort(order[:25])
    spec, losses = GateSpec(steps=steps, check=steps), Losses(routes=1)

    def joint(k: int, drawn: Losses) -> tuple[float, float]:
        wanted = {n: labels[n] for n in SOURCES} | {n: few[n] for n in TARGETS[:k]}
        return marks(lambda bar: pretrain(inputs, wanted, train, validation, losses=drawn, spec=spec, progress=bar))

    def addition(model: Any, name: str, against: int) -> tuple[float, float]:
        return marks(
            lambda bar: add(
                model, "new", inputs, few[name], train, validation, against=model.names[:against], pool=train, losses=losses,
                spec=spec, progress=bar,
            )
        )  # fmt: skip

    brief = GateSpec(steps=2, check=2)
    every = pretrain(inputs, labels, train, validation, losses=losses, spec=brief).model
    grown = [pretrain(inputs, {n: labels[n] for n in SOURCES}, train, validation, losses=losses, spec=brief).model]
    for n in TARGETS[:-1]:
        grown.append(add(grown[-1], n, inputs, few[n], train, validation, losses=losses, spec=brief).model)
    times: dict[str, list[tuple[float, float]]] = {}
    for turn in range(count):
        times.setdefault("joint 0", []).append(joint(0, losses))
        for k in range(1, len(TARGETS) + 1):
            times.setdefault(f"add {k}", []).append(addition(grown[k - 1], TARGETS[k - 1], len(SOURCES)))
            times.setdefault(f"joint {k}", []).append(joint(k, losses))
            times.setdefault(f"pairs {k}", []).append(joint(k, Losses(routes=1000)))
        for m in (1, 2, 4, 8):
            times.setdefault(f"add against {m}", []).append(addition(every, TARGETS[0], m))
        print(f"round {turn + 1}: " + "  ".join(f"{k} {v[-1][1]:.1f}" for k, v in times.items()), flush=True)
    out: dict[str, Any] = {
        k: {"update_ms": statistics.median(ms for _, ms in v), "each": [round(ms, 2) for _, ms in v], "fixed_s": statistics.median(s for s, _ in v)}
        for k, v in times.items()
    }  # fmt: skip
    for k in range(1, len(TARGETS) + 1):
        for kind in ("joint", "pairs"):
            pair = zip(times[f"{kind} {k}"], times[f"add {k}"], strict=True)
            out[f"{kind} {k}"]["to_add"] = statistics.median(a[1] / b[1] for a, b in pair)
    return {"molecules": 2000, "sources": len(SOURCES), "labels": 200, "steps": steps, "rows": out}


def prediction(data: Path, count: int, peer: str | None, work: Path) -> dict[str, Any]:
    from measure import Kind, rounds, run, taskvec

    from taskvec.gate.molecules import canonical

    with gzip.open(data, "rt", newline="") as file:
        rows = [(r["SMILES"], r["Solubility"]) for r in csv.DictReader(file)]
    # All programs get the same clean molecules; what differs is what they do with them.
    clean = [(c[0], y) for s, y in rows if (c := canonical(s)) and len(c[0]) > 4]
    for name, some in (("few", clean[:FEW]), ("many", clean[:MANY]), ("train", clean[:600])):
        with (work / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("smiles", "y"), *some])
    quiet: dict[str, Any] = {"check": True, "capture_output": True}
    net, forest = work / "net", work / "forest.joblib"
    subprocess.run(
        [*taskvec(), "gate", "pretrain", work / "train.csv", "--target", "y", "-o", net, "--steps", "20"], **quiet
    )
    subprocess.run([sys.executable, "-c", FOREST, work / "train.csv", "fit", forest], **quiet)
    outputs = work / "out"
    outputs.mkdir()
    one = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    chemprop = [peer, "-c", "from chemprop.cli.main import main; main()"]
    common = ["--smiles-columns", "smiles", "--accelerator", "cpu", "--num-workers", "0"]
    facts, best = {}, None
    if peer:
        told = ["train", "-i", str(work / "train.csv"), "-o", str(work / "peer"), "--target-columns", "y"]
        subprocess.run([*chemprop, *told, *common, "--epochs", "3"], **quiet)
        said = "from importlib.metadata import version as v; print(v('chemprop'), v('torch'), v('rdkit'))"
        found = subprocess.run([peer, "-c", said], text=True, **quiet).stdout.split()
        facts = dict(zip(("chemprop", "torch", "rdkit"), found, strict=True))
        best = next((work / "peer").rglob("best.pt"))
    kinds = {}
    for size in ("few", "many"):
        table, out = str(work / f"{size}.csv"), str(outputs / "p.csv")
        kinds[f"taskvec {size}"] = Kind([*taskvec(), "gate", "predict", str(net), table, "-o", out], one)
        kinds[f"forest {size}"] = Kind([sys.executable, "-c", FOREST, table, out, str(forest)], one)
        if peer:
            told = ["predict", "-i", table, "-o", out, "--model-paths", str(best), *common]
            kinds[f"chemprop {size}"] = Kind([*chemprop, *told], one)
    for kind in [k for name, k in kinds.items() if name.endswith("few")]:  # a first run also compiles byte-code
        run(kind)
        for left in outputs.iterdir():
            left.unlink()
    made: dict[str, Any] = rounds(kinds, outputs, count=count)["kinds"]  # type: ignore[assignment]
    names = ["taskvec", "forest", *(["chemprop"] if peer else [])]
    cpu = {n: {s: made[f"{n} {s}"]["cpu_s"] for s in ("few", "many")} for n in names}
    each = {n: {s: made[f"{n} {s}"]["cpu_s_each"] for s in ("few", "many")} for n in names}
    rates = {
        n: {"whole": MANY / v["many"], "beyond_start": (MANY - FEW) / (v["many"] - v["few"]), "start_s": v["few"]}
        for n, v in cpu.items()
    }  # fmt: skip
    ratios = {
        f"{n}/taskvec": statistics.median(a / b for a, b in zip(each[n]["many"], each["taskvec"]["many"], strict=True))
        for n in names[1:]
    }
    return {"few": FEW, "many": MANY, "peer": facts, "kinds": made, "molecules_per_cpu_s": rates, "cpu_ratios": ratios}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--steps", type=int, default=40)
    p.add_argument("--peer-python")
    p.add_argument("--part", choices=("training", "prediction"))
    a = p.parse_args()
    from measure import machine, moment

    path, to = a.data / "aqsoldb" / "aqsoldb.csv.gz", HERE / "results" / "gate.json"
    table = json.loads(to.read_text()) if to.exists() else {}
    table["machine"] = machine(None)
    if a.part != "prediction":
        table["training"] = {"when": moment()} | training(path, a.rounds, a.steps)
        for kind, row in table["training"]["rows"].items():
            ratio = f"  {row['to_add']:.1f} times an addition" if "to_add" in row else ""
            print(f"{kind:14} {row['update_ms']:7.1f} ms an update{ratio}")
    if a.part != "training":
        with tempfile.TemporaryDirectory() as work:
            table["prediction"] = {"when": moment()} | prediction(path, a.rounds, a.peer_python, Path(work))
        for name, row in table["prediction"]["molecules_per_cpu_s"].items():
            print(f"{name:9} {row['whole']:7.0f} molecules a CPU second, {row['beyond_start']:7.0f} beyond start-up")
    to.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
