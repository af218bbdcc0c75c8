"""Running whole processes in turn and comparing them. Only the standard library: a child's peak memory counts what
its parent held when it was started."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent
# Reads every input once and writes `times` its bytes (1 for an edit, 2 for a float32 vector, 0 for a comparison).
FLOOR = """
import mmap, os, sys
times, output, *inputs = sys.argv[1:]
block, times, size = 1 << 19, int(times), os.path.getsize(inputs[0])
fds = [os.open(p, os.O_RDONLY) for p in inputs]
buffer = memoryview(mmap.mmap(-1, block * max(1, times)))
if times:
    out = os.open(output, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.posix_fallocate(out, 0, times * size)
for at in range(0, size, block):
    for fd in fds:
        n = os.preadv(fd, [buffer[:block]], at)
    if times:
        os.pwrite(out, buffer[: times * n], times * at)
if times:
    os.fsync(out)
"""
PEER = "from mergekit.scripts.run_yaml import main; main()"
# The fastest it has; the last three spare it work that is not merging.
PEER_FLAGS = ["--allow-crimes", "--async-write", "--write-threads", "2", "-j", "2", "--out-shard-size", "300M"]
PEER_FLAGS += ["--no-copy-tokenizer", "--no-write-model-card", "--quiet"]


class RunFailed(Exception):
    """A measured process ended with an error."""


@dataclass(frozen=True)
class Kind:
    """One of the processes that a row compares."""

    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    rounds: int | None = None  # None: every round
    forget: Path | None = None  # removed before each run


def taskvec() -> list[str]:
    script = Path(sys.executable).with_name("taskvec")
    return [str(script)] if script.exists() else [sys.executable, "-m", "taskvec.cli"]


def floor(inputs: list[Path], output: Path, times: int) -> Kind:
    return Kind([sys.executable, "-c", FLOOR, str(times), str(output), *map(str, inputs)])


def peer(python: str, output: Path, config: dict[str, object], *, rounds: int) -> Kind:
    path = output.with_suffix(".yml")
    path.write_text(json.dumps(config))  # JSON is YAML
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    return Kind([python, "-c", PEER, str(path), str(output), *PEER_FLAGS], offline, rounds=rounds)


def warm_peer(python: str) -> None:
    """Import everything once: a first run also compiles byte-code and reads libraries from the disk."""
    run(Kind([python, "-c", "import mergekit.scripts.run_yaml"]))


def speeds() -> dict[str, str]:
    """Ways to run taskvec here: kind -> TASKVEC_FAST."""
    return {"plain": "0"} | ({"fast": "1"} if find_spec("llvmlite") else {})


def run(kind: Kind) -> dict[str, float]:
    """Wall and CPU seconds (its own and its children's) and peak memory of one process."""
    return _run(kind)[0]


def imports(kind: Kind, module: str) -> bool:
    """Run it, unmeasured: does the process import the module?"""
    kind = dataclasses.replace(kind, environment=kind.environment | {"PYTHONPROFILEIMPORTTIME": "1"})
    return any(x.split("|")[-1].strip() == module for x in _run(kind)[1].splitlines())


def _run(kind: Kind) -> tuple[dict[str, float], str]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | kind.environment
    begin = time.perf_counter()
    process = subprocess.Popen(
        kind.command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    said = process.stderr.read().decode(errors="replace")
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if status:
        errors = "\n".join(x for x in said.splitlines() if "|" not in x)  # less the table of imports
        raise RunFailed(f"{' '.join(kind.command)[:200]} ...\n{errors[-1000:]}")
    cpu = usage.ru_utime + usage.ru_stime
    return {"cpu_s": cpu, "wall_s": wall, "memory_mb": usage.ru_maxrss * 1024 / 1e6}, said


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def clear(outputs: Path) -> None:
    for left in outputs.iterdir():
        if left.suffix != ".yml":
            remove(left)
    os.sync()  # a process that does not wait for the disk must not leave the waiting to the next one


def rounds(kinds: dict[str, Kind], outputs: Path, *, count: int) -> dict[str, object]:
    """Run the kinds in turn, `count` times, and empty the folder `outputs` after each run.

    Returns medians for each kind, and for each pair the median of the ratios taken within a round, beside the ratio
    of the least CPU seconds. A kind that runs
    fewer times than others does so in the first rounds.
    """
    runs: dict[str, list[dict[str, float]]] = {k: [] for k in kinds}
    for i in range(count):
        for name, kind in kinds.items():
            if kind.rounds is not None and i >= kind.rounds:
                continue
            if kind.forget and kind.forget.exists():
                remove(kind.forget)
            runs[name].append(run(kind))
            clear(outputs)
            if count <= 5:
                said = "".join(f"  {k} {v:8.2f}" for k, v in runs[name][-1].items())
                print(f"    round {i + 1} {name:16}{said}", flush=True)
    figures = {
        k: {f: statistics.median(r[f] for r in rs) for f in rs[0]}
        | {"runs": len(rs), "cpu_s_each": [round(r["cpu_s"], 3) for r in rs]}
        for k, rs in runs.items()
    }
    pairs = [(k, "floor") for k in kinds if k != "floor"] if "floor" in kinds else []
    pairs += [("peer", k) for k in kinds if k not in ("floor", "peer")] if "peer" in kinds else []
    ratios = {
        f"{figure} {above}/{below}": statistics.median(
            a[f"{figure}_s"] / b[f"{figure}_s"] for a, b in zip(runs[above], runs[below], strict=False)
        )
        for above, below in pairs
        for figure in ("cpu", "wall")
    }
    # On a virtual machine new pages may cost a second per gigabyte, or nothing, run by run: whatever is written pays.
    least = {k: min(r["cpu_s"] for r in rs) for k, rs in runs.items()}
    ratios |= {f"least {above}/{below}": least[above] / least[below] for above, below in pairs}
    return {"kinds": figures, "ratios": ratios}


@contextlib.contextmanager
def models(work: Path, size: float, count: int, *, keep: bool, shards: int = 1, layers: int = 0) -> Iterator[Path]:
    """A folder with `base` and `count - 1` fine-tuned models of `size` bytes, made if absent, removed afterwards."""
    folder = work / f"models-{round(size / 1e6)}MB-{count}-{shards}"
    done = folder / "done"
    if not done.exists():
        need, free = size * (count + 1.5), shutil.disk_usage(work).free
        if need > free:
            raise RunFailed(f"{count} models of {size / 1e6:.0f} MB and their edits need {need / 1e9:.0f} GB in {work}")
        print(f"  making {count} models of {size / 1e6:.0f} MB", flush=True)
        command = [sys.executable, str(HERE / "checkpoints.py"), str(folder), f"--bytes={size}", f"--models={count}"]
        subprocess.run([*command, f"--shards={shards}", f"--layers={layers}"], check=True)
        os.sync()
        time.sleep(2.5)  # taskvec remembers no hash of a file that was written a moment ago
        done.touch()
    try:
        yield folder
    finally:
        if not keep:
            shutil.rmtree(folder)


def moment() -> dict[str, object]:
    """When a row was measured, and of which state of the code."""
    said = subprocess.run(["git", "-C", str(HERE), "describe", "--always", "--dirty"], capture_output=True, text=True)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes")
    return {"date": now, "load": round(os.getloadavg()[0], 2), "commit": said.stdout.strip() or None}


def machine(peer_python: str | None) -> dict[str, object]:
    """What the figures were taken on and with."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), cpu)
    facts: dict[str, object] = {
        "cpu": cpu, "cores": os.cpu_count(), "system": f"{platform.system()} {platform.release()}",
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "python": platform.python_version(), "numpy": version("numpy"), "taskvec": version("taskvec"),
        "fast": version("llvmlite") if "fast" in speeds() else None,
    }  # fmt: skip
    if peer_python:
        script = "from importlib.metadata import version as v; print(v('mergekit'), v('torch'))"
        said = subprocess.run([peer_python, "-c", script], capture_output=True, text=True, check=True).stdout.split()
        facts |= {"mergekit": said[0], "mergekit_torch": said[1], "mergekit_flags": " ".join(PEER_FLAGS)}
    return facts
