"""What each merging method costs: taskvec, the floor and the package it is known from, whole processes in turn.

    python benchmarks/methods.py [--peer-python PATH] [--fusion-python PATH] [--fusion-path FOLDER] [--rounds 1]

Three fine-tuned models of 1 GB in bfloat16; methods that decompose matrices get 0.03 GB. The floor reads every input once
and writes the output once. `--peer-python` has mergekit 0.1.5, `--fusion-python` fusion_bench (with its folder of packages,
if it lies apart, in `--fusion-path`). Results go to benchmarks/results/methods.json, row by row (`--resume`, `--rows TEXT`);
`python benchmarks/methods.py --table` prints them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import (
    HERE,
    Kind,
    RunFailed,
    clear,
    floor,
    imports,
    machine,
    models,
    moment,
    peer,
    rounds,
    run,
    speeds,
    taskvec,
)
from table import number, table

GB = 1e9
LETTERS = "abc"
# In expressions: LIST, the three vectors; ONE, TWO, the first and the first two of them; FILES, one file of statistics each.
WORDS = {
    "LIST": "[a - base, b - base, c - base]",
    "ONE": "[a - base]",
    "TWO": "[a - base, b - base]",
    "FILES": "[fa, fb, fc]",
}


@dataclass(frozen=True)
class Row:
    """A method: its expression, what it is measured on, and what the peer calls it."""

    expression: str
    gigabytes: float = 1.0
    vectors: int = 3
    peer: tuple[str, dict[str, Any], dict[str, Any]] | None = None  # merge_method, of every model, of the whole
    fusion: str = ""  # an expression over `tables`, state dicts of the vectors
    statistics: str = ""  # "information", "masks" or "grams"


W = {"weight": 0.4}
ROWS = {
    "sum": Row("base + 0.4 * sum(LIST)", peer=("task_arithmetic", W, {})),
    "average": Row("base + average(LIST)", peer=("linear", {"weight": 1.0}, {})),
    "weighted_average": Row("base + weighted_average(LIST, coefficients=[0.5, 0.3, 0.2])", peer=("linear", W, {})),
    "paint": Row("base + paint(ONE, t=0.6)", vectors=1),
    "expo": Row("base + expo(ONE, alpha=0.3)", vectors=1),
    "slerp": Row("base + slerp(TWO, t=0.5)", vectors=2, peer=("slerp", {}, {"t": 0.5})),
    "nuslerp": Row("base + nuslerp(TWO, t=0.4)", vectors=2, peer=("nuslerp", {"weight": 0.5}, {})),
    "multislerp": Row("base + multislerp(LIST, coefficients=[0.4, 0.3, 0.3])", peer=("multislerp", W, {})),
    "karcher": Row("base + karcher(LIST)", peer=("karcher", {}, {})),
    "model_stock": Row("base + model_stock(LIST)", peer=("model_stock", {}, {})),
    "ties": Row("base + 0.7 * ties(LIST, density=0.2)", peer=("ties", {"weight": 1.0, "density": 0.2}, {})),
    "dare": Row("base + 0.4 * dare(LIST, density=0.1)", peer=("dare_linear", {**W, "density": 0.1}, {})),
    "della": Row("base + 0.7 * della(LIST, density=0.5, epsilon=0.1)", peer=("della", {**W, "density": 0.5, "epsilon": 0.1}, {})),
    "breadcrumbs": Row(
        "base + 0.4 * breadcrumbs(LIST, density=0.1, gamma=0.01)",
        peer=("breadcrumbs", {**W, "density": 0.1, "gamma": 0.01}, {}),
    ),
    "sce": Row("base + sce(LIST, density=0.5)", peer=("sce", {}, {"select_topk": 0.5})),
    "nearswap": Row("base + nearswap(ONE, t=0.001)", vectors=1, peer=("nearswap", {}, {"t": 0.001})),
    "arcee_fusion": Row("base + arcee_fusion(ONE)", vectors=1, peer=("arcee_fusion", {}, {})),
    "ram": Row("base + ram(LIST)", peer=("ram", {}, {})),
    "magmax": Row("base + 0.5 * magmax(LIST)"),
    "pcb": Row("base + 1.2 * pcb(LIST, density=0.1)"),
    "tall_mask": Row("base + tall_mask(LIST, task=0, threshold=0.4)"),
    "consensus": Row("base + 0.3 * consensus(LIST, threshold=0.4, agree=2)"),
    "emr": Row("base + emr(LIST)", fusion="emr.emr_merge(tables)[0]"),
    "random_drop": Row("base + random_drop(ONE, density=0.1)", vectors=1),
    "magnitude_drop": Row("base + magnitude_drop(ONE, density=0.1)", vectors=1),
    "stitch": Row("base + stitch(LIST, masks=FILES)", statistics="masks"),
    "lines": Row("base + lines(LIST, alpha=0.5, beta=0.5)"),
    "random": Row("base - 0.5 * random(ONE, seed=1)", vectors=1),
    "fisher": Row("base + fisher(LIST, information=FILES)", statistics="information"),
    "low_rank": Row("base + low_rank(ONE, rank=16)", 0.03, 1),
    "tsv_m": Row("base + tsv_m(LIST)", 0.03, fusion='tsv.compute_and_sum_svd_mem_reduction(tables, accelerator="cpu")'),
    "iso_c": Row("base + 1.5 * iso_c(LIST)", 0.03, fusion='iso.iso_c(tables, accelerator="cpu")'),
    "iso_cts": Row("base + 1.5 * iso_cts(LIST, common=0.8)", 0.03, fusion='iso.iso_cts(tables, 0.8, accelerator="cpu")'),
    "knots": Row("base + knots(LIST, density=0.2)", 0.03),
    "wudi": Row("base + wudi(LIST, steps=300, rate=1e-5)", 0.03, fusion='wudi.wudi_merging(tables, accelerator="cpu")'),
    "mats": Row("base + mats(LIST, grams=FILES)", 0.03, statistics="grams"),
    "regmean": Row("base + regmean(LIST, grams=FILES, shrink=0.9)", 0.03, statistics="grams"),
}  # fmt: skip

FUSION = """
import sys
sys.path[:0] = [p for p in sys.argv[1:2] if p]
import torch
from safetensors.torch import load_file, save_file
torch.set_num_threads(2)
output, base, *others = sys.argv[2:]
base = load_file(base)
tables = [{n: x.float() - base[n].float() for n, x in load_file(p).items()} for p in others]
merged = MERGED
save_file({n: (x.float() + merged[n].detach().float()).bfloat16() for n, x in base.items() if n in merged}, output)
"""
MODULES = {
    "iso": "fusion_bench.method.isotropic_merging.iso_utils",
    "tsv": "fusion_bench.method.task_singular_vector.utils.TSVM_utils",
    "emr": "fusion_bench.method.emr_merging.utils",
    "wudi": "fusion_bench.method.wudi.wudi",
}

# Files of statistics for the models of a folder: positive numbers, masks, or positive definite matrices.
STATISTICS = """
import json, sys
from pathlib import Path
import numpy as np
from taskvec.weights import Checkpoint
folder, kind = Path(sys.argv[1]), sys.argv[2]
for i, letter in enumerate("abc"):
    draw = np.random.default_rng(i)
    model = Checkpoint.read(folder / letter)
    tables = {}
    for name, spec in model.spec.items():
        if kind == "grams":
            if len(spec.shape) == 2 and "embed" not in name:
                x = draw.standard_normal((64, spec.shape[1]), np.float32)
                tables[name] = x.T @ x / 64 + np.eye(spec.shape[1], dtype=np.float32) / 10
        else:
            x = draw.integers(0, 256, spec.shape, dtype=np.uint8)
            tables[name] = (x > 127).astype(np.float16) if kind == "masks" else (x / np.float32(256)).astype(np.float16)
    Checkpoint.of(tables).save(folder / f"{kind}-{letter}.safetensors")
"""


def kinds(row: Row, folder: Path, work: Path, options: argparse.Namespace) -> dict[str, Kind]:
    outputs, letters = work / "outputs", LETTERS[: row.vectors]
    files = {"base": folder / "base"} | {x: folder / x for x in letters}
    read = [p / "model.safetensors" for p in files.values()]
    if row.statistics:
        made = {f"f{x}": folder / f"{row.statistics}-{x}.safetensors" for x in letters}
        if not all(p.exists() for p in made.values()):
            subprocess.run([sys.executable, "-c", STATISTICS, str(folder), row.statistics], check=True)
        files, read = files | made, [*read, *made.values()]
    expression = row.expression
    for word, meaning in WORDS.items():
        expression = expression.replace(word, meaning)
    command = [*taskvec(), "edit", expression, *(x for n, p in files.items() for x in ("--let", f"{n}={p}"))]
    command += ["-o", str(outputs / "out")]
    found = {"floor": floor(read, outputs / "floor", 1)}
    for speed, switch in speeds().items():
        found[speed] = Kind(command, {"TASKVEC_FAST": switch, "XDG_CACHE_HOME": str(work / "cache")})
    if row.peer and options.peer_python:
        name, own, shared = row.peer
        own_of = [{"model": str(files[x])} | ({"parameters": own} if own else {}) for x in letters]
        config: dict[str, Any] = {"merge_method": name, "models": own_of, "dtype": "bfloat16"}
        config |= {"parameters": shared} if shared else {}
        if name == "slerp":
            config["base_model"] = str(files["a"])
        elif name not in ("linear", "karcher"):
            config["base_model"] = str(files["base"])
        found["peer"] = peer(options.peer_python, outputs / "peer", config, rounds=1)
    if row.fusion and options.fusion_python:
        module = row.fusion.split(".", 1)[0]
        script = FUSION.replace("merged = MERGED", f"import {MODULES[module]} as {module}\nmerged = {row.fusion}")
        paths = [
            str(outputs / "fusion.safetensors"),
            *(str(files[x] / "model.safetensors") for x in ("base", *letters)),
        ]
        found["peer"] = Kind([options.fusion_python, "-c", script, options.fusion_path, *paths], rounds=1)
    return found


def draw(path: Path) -> str:
    read = json.loads(path.read_text())
    rows = []
    for name, r in read["rows"].items():
        k = r["kinds"]
        peer_name = "" if "peer" not in k else "fusion_bench" if ROWS[name].fusion else "mergekit"
        cells = [
            name,
            f"{r['gigabytes']:g}",
            *(number(k.get(x, {}).get("cpu_s"), 1) for x in ("floor", "plain", "fast")),
        ]
        cells += [*(number(k.get(x, {}).get("memory_mb"), 0) for x in ("plain", "fast"))]
        cells += [peer_name, number(k.get("peer", {}).get("cpu_s"), 1), number(k.get("peer", {}).get("memory_mb"), 0)]
        cells.append(number(r["ratios"].get("cpu peer/plain"), 1))
        rows.append(cells)
    head = [
        "method",
        "GB",
        "floor, CPU s",
        "plain, CPU s",
        "`fast`, CPU s",
        "plain, MB",
        "`fast`, MB",
        "peer",
        "peer, CPU s",
    ]
    return table([*head, "peer, MB", "peer / plain, CPU"], rows) + f"\n\n`{read['facts']['command']}`"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", metavar="PATH", help="an interpreter whose environment has mergekit 0.1.5")
    parser.add_argument(
        "--fusion-python", metavar="PATH", help="an interpreter with fusion_bench, torch and safetensors"
    )
    parser.add_argument("--fusion-path", default="", metavar="FOLDER", help="where fusion_bench lies, if not in there")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--rows", default="", metavar="TEXT", help="only methods whose name has this")
    parser.add_argument("--resume", action="store_true", help="skip rows that the results file has")
    parser.add_argument("--scale", type=float, default=1.0, help="make every checkpoint this many times as large")
    parser.add_argument("--work", type=Path, help="where checkpoints are made (default: a temporary folder)")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--table", action="store_true", help="print the results as a table and end")
    options = parser.parse_args()
    path = options.results / "methods.json"
    if options.table:
        print(draw(path))
        return
    for name in ("peer_python", "fusion_python"):
        if getattr(options, name):
            setattr(options, name, os.path.abspath(getattr(options, name)))  # noqa: PTH100, see edit.py
    command = f"python benchmarks/methods.py --rounds {options.rounds}" + (
        f" --scale {options.scale:g}" if options.scale != 1 else ""
    )
    command += " --peer-python PYTHON" * bool(options.peer_python) + " --fusion-python PYTHON" * bool(
        options.fusion_python
    )
    facts = {"command": command, **machine(options.peer_python)}
    done = json.loads(path.read_text())["rows"] if (options.resume or options.rows) and path.exists() else {}
    if options.work:
        options.work.mkdir(parents=True, exist_ok=True)
    well = True
    with tempfile.TemporaryDirectory(prefix="taskvec-bench-", dir=options.work) as temporary:
        work = Path(temporary)
        for folder in ("outputs", "cache"):
            (work / folder).mkdir()
        wanted = {n: r for n, r in ROWS.items() if options.rows in n and not (options.resume and n in done)}
        for size in sorted({r.gigabytes for r in wanted.values()}):
            with models(work, size * options.scale * GB, 4, keep=False) as folder:
                for name, row in wanted.items():
                    if row.gigabytes != size:
                        continue
                    print(f"  {name}", flush=True)
                    try:
                        found = kinds(row, folder, work, options)
                        run(found["floor"])
                        clear(work / "outputs")
                        if "fast" in found and not imports(found["fast"], "llvmlite"):
                            del found["fast"]
                        clear(work / "outputs")
                        result = rounds(found, work / "outputs", count=options.rounds)
                    except RunFailed as failure:
                        print(f"  {name} FAILED: {failure}", flush=True)
                        clear(work / "outputs")
                        well = False
                        continue
                    done[name] = {"when": moment(), "gigabytes": size * options.scale, "vectors": row.vectors} | result
                    ordered = {n: done[n] for n in [*ROWS, *done] if n in done}
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(json.dumps({"facts": facts, "rows": ordered}, indent=1) + "\n")
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
