"""What edits of checkpoints cost: taskvec against the floor and against a peer, whole processes in turn.

    python benchmarks/edit.py [--part edit|scaling|accuracy|startup] [--peer-python PATH] [--rounds 3]

Each part writes benchmarks/results/PART.json, row by row: a part that was cut short goes on with `--resume`, and
`--rows TEXT` measures only the rows whose name has TEXT. `python benchmarks/table.py` prints the results as tables.
The floor reads every input once and writes the output once and does nothing else. The peer is mergekit, if
`--peer-python` names an interpreter that has it; it runs once a row, with its fastest flags. `fast` runs where llvmlite
is installed. Inputs lie in the page cache, and taskvec knows their hashes, but for the row "first edit of new inputs".
Checkpoints are made in a folder under --work (up to 30 GB there at a time) and removed afterwards.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cases import ROWS, Row, expression, peer_config
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
    warm_peer,
)

PARTS = ("edit", "scaling", "accuracy", "startup")
GB = 1e9


def kinds(row: Row, folder: Path, outputs: Path, cache: Path, peer_python: str | None) -> dict[str, Kind]:
    letters = list("abcdefgh"[: row.vectors])
    base, others = folder / "base", [folder / x for x in letters]
    if row.method == "diff":
        command = ["diff", str(base), str(others[0]), "-o", str(outputs / "vector.safetensors")]
    elif row.method == "compare":
        command = ["compare", *map(str, others), "--base", str(base)]
    else:
        lets = [x for p in (base, *others) for x in ("--let", f"{p.name}={p}")]
        command = ["edit", expression(row.method, letters), *lets, "-o", str(outputs / "out")]
    times = {"diff": 2, "compare": 0}.get(row.method, 1)
    found = {"floor": floor([p / "model.safetensors" for p in (base, *others)], outputs / "floor", times)}
    for threads in row.threads:
        for speed, switch in speeds().items():
            environment = {"TASKVEC_FAST": switch, "XDG_CACHE_HOME": str(cache)}
            more = [*row.options, *([] if threads is None else ["--threads", str(threads)])]
            name = speed if threads is None else f"{speed}, {threads} thread{'s'[: threads > 1]}"
            # What is forgotten are the hashes of inputs; kernels compiled by `fast` stay, as after an installation.
            forget = cache / "taskvec" / "sha256" if row.forget else None
            found[name] = Kind([*taskvec(), *command, *more], environment, forget=forget)
    if peer_python and row.peer:
        found["peer"] = peer(
            peer_python,
            outputs / "peer",
            peer_config(row.method, base, others),
            rounds=3 if row.gigabytes < 0.1 else 1,
        )
    return found


def say(name: str, result: dict, targets: dict[str, float]) -> None:
    for pair, target in targets.items():
        what, _, subject = pair.rpartition(" ")
        if pair.endswith(" MB"):
            got = result["kinds"].get(pair[:-3], {}).get("memory_mb")
        elif "/" in subject:
            got = result["ratios"].get(f"{what or 'cpu'} {subject}")
        else:
            got = result["kinds"].get(subject, {}).get(f"{what}_s")
        if got is not None:
            print(f"  {name}: {pair} {got:.2f} (target {'at least' if 'peer' in pair else 'at most'} {target:g})")


class Results:
    """results/PART.json, written after every row."""

    def __init__(self, part: str, options: argparse.Namespace) -> None:
        self.path = options.results / f"{part}.json"
        command = f"python benchmarks/edit.py --part {part} --rounds {options.rounds}"
        command += f" --scale {options.scale:g}" if options.scale != 1 else ""
        command += " --peer-python PYTHON" if options.peer_python else ""
        self.facts = {"command": command, **machine(options.peer_python)}
        self.rows: dict[str, dict] = {}
        if (options.resume or options.rows) and self.path.exists():
            old = json.loads(self.path.read_text())
            for fact, value in self.facts.items():
                if old["facts"].get(fact) != value:
                    sys.exit(
                        f"{self.path} was measured with {fact} {old['facts'].get(fact)}, now it is {value}: measure it anew"
                    )
            self.rows = old["rows"]
        self.skip = set(self.rows) if options.resume else set()

    def add(self, name: str, result: dict) -> None:
        self.rows[name] = {"when": moment()} | result
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps({"facts": self.facts, "rows": self.rows}, indent=1) + "\n")


def warm(found: dict[str, Kind], outputs: Path) -> dict[str, bool]:
    """Fill the caches: pages, hashes, byte-code, kernels. Drop `fast` kinds if they compile nothing: they are `plain`."""
    run(found["floor"])
    clear(outputs)
    fast = [k for k in found if k.startswith("fast")]
    if not fast:
        run(found[next(k for k in found if k.startswith("plain"))])
    used = bool(fast) and imports(found[fast[-1]], "llvmlite")
    if not used:
        for kind in fast:
            del found[kind]
    clear(outputs)
    return {"fast_is_plain": bool(fast) and not used}


def measured(part: str, options: argparse.Namespace, work: Path) -> bool:
    """The parts `edit` and `scaling`."""
    results, outputs, well = Results(part, options), work / "outputs", True
    rows = [r for r in ROWS[part] if options.rows in r.name and r.name not in results.skip]
    for gigabytes in sorted({r.gigabytes for r in rows}):
        alike = [r for r in rows if r.gigabytes == gigabytes]
        count = 1 + max(3, *(r.vectors for r in alike))
        with models(work, gigabytes * options.scale * GB, count, keep=options.keep) as folder:
            for row in alike:
                begin = time.perf_counter()
                print(f"  {part}: {row.name}", flush=True)
                found = kinds(row, folder, outputs, work / "cache", options.peer_python)
                try:
                    note = warm(found, outputs)
                    result = rounds(found, outputs, count=row.rounds or options.rounds)
                except RunFailed as failure:
                    print(f"  {row.name} FAILED: {failure}", flush=True)
                    clear(outputs)
                    well = False
                    continue
                about = {"method": row.method, "gigabytes": row.gigabytes * options.scale, "vectors": row.vectors}
                results.add(row.name, about | note | {"targets": row.targets} | result)
                say(row.name, result, row.targets)
                print(f"  {time.perf_counter() - begin:.0f} s", flush=True)
    return well


def accuracy(options: argparse.Namespace, work: Path) -> bool:
    results, outputs = Results("accuracy", options), work / "outputs"
    cases = ("task arithmetic", "average of three", "negation")
    with models(work, 0.25 * GB * options.scale, 4, keep=options.keep) as folder:
        for case in (c for c in cases if options.rows in c and c not in results.skip):
            row = Row(case, case, vectors=1 if case == "negation" else 3)
            found = kinds(row, folder, outputs, work / "cache", options.peer_python)
            del found["floor"]
            paths = {}
            for name, kind in found.items():
                if name == "fast" and not imports(kind, "llvmlite"):
                    clear(outputs)
                    continue
                if name != "fast":
                    run(kind)
                paths[name] = outputs / name
                made = outputs / ("peer" if name == "peer" else "out")
                made.rename(paths[name])
            command = [sys.executable, str(HERE / "accuracy.py"), case, str(folder), *map(str, paths.values())]
            said = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            results.add(
                case, {"kinds": {k: said[str(p)] for k, p in paths.items()}, "targets": {"within_one_ulp": 1.0}}
            )
            clear(outputs)
            for name, path in paths.items():
                print(f"  {case}, {name}: {said[str(path)]}", flush=True)
    return True


def startup(options: argparse.Namespace, work: Path) -> bool:
    results, outputs = Results("startup", options), work / "outputs"
    with models(work, 0, 2, keep=options.keep, shards=200, layers=126) as folder:
        lets = [x for n in ("base", "a") for x in ("--let", f"{n}={folder / n}")]
        bare = [sys.executable, "-c"]
        cases = {
            "python alone": (Kind([*bare, "pass"]), {}),
            "import numpy": (Kind([*bare, "import numpy"]), {}),
            "import taskvec": (Kind([*bare, "import taskvec"]), {}),
            "taskvec --help": (Kind([*taskvec(), "--help"]), {"cpu": 0.1}),
            "taskvec explain, 200 shards": (
                Kind([*taskvec(), "explain", "base + 0.4 * (a - base)", *lets]),
                {"cpu": 0.3},
            ),
        }
        for kind, _ in cases.values():
            run(kind)
        result = rounds({k: kind for k, (kind, _) in cases.items()}, outputs, count=9)
        for name, figures in result["kinds"].items():  # type: ignore[union-attr]
            results.add(name, {"kinds": {"plain": figures}, "targets": cases[name][1]})
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=(*PARTS, "all"), default="all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", default="", metavar="TEXT", help="only rows whose name has this")
    parser.add_argument("--resume", action="store_true", help="skip rows that the results file has")
    parser.add_argument("--peer-python", metavar="PATH", help="an interpreter whose environment has mergekit 0.1.5")
    parser.add_argument("--scale", type=float, default=1.0, help="make every checkpoint this many times as large")
    parser.add_argument("--work", type=Path, help="where checkpoints are made (default: a temporary folder)")
    parser.add_argument("--keep", action="store_true", help="leave the checkpoints in --work for another time")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    options = parser.parse_args()
    if options.keep and not options.work:
        parser.error("--keep needs --work")
    if options.peer_python:
        options.peer_python = os.path.abspath(options.peer_python)  # noqa: PTH100, resolve() would leave the environment
    run_part = {"accuracy": accuracy, "startup": startup}
    well = True
    if options.work:
        options.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="taskvec-bench-", dir=options.work) as temporary:
        work = options.work.absolute() if options.keep else Path(temporary)
        (work / "outputs").mkdir(exist_ok=True)
        (work / "cache").mkdir(exist_ok=True)
        for part in PARTS if options.part == "all" else (options.part,):
            begin = time.perf_counter()
            print(f"part {part}", flush=True)
            if options.peer_python and part != "startup":
                warm_peer(options.peer_python)
            try:
                well &= run_part[part](options, work) if part in run_part else measured(part, options, work)
            except RunFailed as failure:
                print(f"  FAILED: {failure}", flush=True)
                well = False
            print(f"part {part}: {time.perf_counter() - begin:.0f} s", flush=True)
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
