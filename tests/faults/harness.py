"""Faults for edits that run as their own processes: the n-th system call fails or kills, and what must hold afterwards.

What is promised, and where it is tested:

==========================================================  ==============================================================
a system call fails (full disk, I/O error), the n-th, any n   test_system_calls.py
a process dies at the n-th system call, any n                 test_system_calls.py
an input cannot be read                                       test_system_calls.py
files reach the disk before the name does                     test_system_calls.py (order of fsync and rename)
kill -9 at random points, then resume: the same bytes         test_kills.py
Ctrl-C and SIGTERM keep what is safe, in time                 test_kills.py
a journal that lies, is torn, or belongs to another edit      test_kills.py
an input that changed between two runs                        test_kills.py
a disk that is really full; a limit on file size              test_disks.py
folders that cannot be written; odd and long names; modes     test_disks.py
a memory limit; a tensor larger than memory                   test_disks.py
an input cut short or replaced while it is read               test_processes.py
two processes with one target; a closed pipe                  test_processes.py
a bit flipped in an output or an input                        test_verify.py
lies in headers, indexes, expressions, recipes                tests/hostile (fuzzed in test_fuzz.py)
==========================================================  ==============================================================

The default suite runs a share of the loops (every n-th call, a dozen kills); ``pytest -m slow tests/faults`` the rest.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from taskvec.weights import Checkpoint

STRACE = shutil.which("strace")
# On one processor an edit computes in one thread, and names of temporary files count up where calls are traced, so that
# the n-th call is the same one in every run.
BOOT = """
import os, resource, signal, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
PRELUDE
sys.argv[0] = "taskvec"
from taskvec.cli import main
main()
"""
COUNTED = """
import itertools, secrets
secrets.token_hex = lambda n=32, count=itertools.count(): f"{next(count):0{2 * n}x}"
"""
Content = bytes | dict[str, bytes] | None


def _may_trace() -> bool:
    if STRACE is None or not hasattr(os, "sched_setaffinity"):
        return False
    return subprocess.run([STRACE, "-qq", "-o", os.devnull, "true"], capture_output=True).returncode == 0


needs_strace = pytest.mark.skipif(not _may_trace(), reason="needs strace, and the permission to trace")
needs_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
not_root = pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may do everything")


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """Lines of stderr that are no notes."""
        return [line for line in self.err.splitlines() if line and not line.startswith("note: ")]

    def clean(self) -> Outcome:
        """Itself, if nothing in it looks like an accident: one line of error at most, no traceback."""
        assert "Traceback" not in self.err and "bug in taskvec" not in self.err, self.err
        assert len(self.errors) == (self.code != 0), (self.code, self.err)
        return self


def start(*arguments: object, prelude: str = "", tracer: Sequence[str] = ()) -> subprocess.Popen[str]:
    """The command line as a process of its own; `prelude` is Python that runs first, `tracer` what it runs under."""
    environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "OPENBLAS_NUM_THREADS": "1"}
    prelude += COUNTED if tracer else ""
    command = [sys.executable, "-c", BOOT.replace("PRELUDE", prelude), *map(str, arguments)]
    return subprocess.Popen(
        [*tracer, *command], env=environment, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], *, timeout: float = 60) -> Outcome:
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    code = process.returncode
    return Outcome(128 - code if code < 0 else code, out, err)


def taskvec(*arguments: object, prelude: str = "", tracer: Sequence[str] = ()) -> Outcome:
    return finish(start(*arguments, prelude=prelude, tracer=tracer))


# --- models and what becomes of them -------------------------------------------------------------------------------------


def models(place: Path, *, tensors: int = 5, values: int = 64, shards: int = 3) -> tuple[Path, Path]:
    """A base and a fine-tuned model of a few shards, with the files a model folder has."""
    rng = np.random.default_rng(0)
    base = {f"layer.{i}.weight": rng.normal(size=values).astype(np.float32) for i in range(tensors)}
    tuned = {n: x + rng.normal(size=values).astype(np.float32) / 10 for n, x in base.items()}
    for name, table in (("base", base), ("tuned", tuned)):
        Checkpoint.of(table, label=name).save(place / name, shard_size=-(-tensors // shards) * values * 4)
        (place / name / "config.json").write_text('{"model_type": "none"}\n')
    return place / "base", place / "tuned"


def edit(
    inputs: tuple[Path, Path],
    out: Path,
    *rest: object,
    coefficient: float = 0.5,
    shard_size: int = 512,
    method: str = "({})",
) -> list[object]:
    """The arguments of an edit: ``base + c * (tuned - base)``, or another text in place of the brackets."""
    base, tuned = inputs
    size = () if out.suffix == ".safetensors" else ("--shard-size", str(shard_size))
    lets = ("--let", f"base={base}", "--let", f"tuned={tuned}")
    return ["edit", f"base + {coefficient} * {method.format('tuned - base')}", *lets, "-o", out, *size, *rest]


def content(path: Path) -> Content:
    """The bytes of a file, or of all files of a folder by name; None where there is nothing."""
    if path.is_dir():
        return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}
    return path.read_bytes() if path.exists() else None


def staging(out: Path) -> Path:
    return out.parent / f".{out.name}.taskvec"


def beside(out: Path) -> set[str]:
    """Names in the folder of the output that are neither it nor its staging folder."""
    return {p.name for p in out.parent.iterdir()} - {out.name, staging(out).name} if out.parent.exists() else set()


# --- system calls --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """One system call of a traced run: the n-th of its name on its path in its thread."""

    name: str
    number: int
    path: str
    text: str


def trace(log: Path, names: str) -> list[str]:
    """strace with decoded file descriptors, writing to `log`; the filter makes everything else run at full speed."""
    assert STRACE is not None
    return [STRACE, "-f", "--seccomp-bpf", "-qq", "-y", "-s", "16", "-o", str(log), "-e", f"trace={names}"]


def inject(log: Path, call: Call, fault: str, *, old: Path, new: Path) -> list[str]:
    """strace that lets this call fail (``error=EIO``) or kills at it (``signal=KILL``), in `new` what was `old`."""
    assert STRACE is not None
    # Behind a filter, strace 6.1 loses the signal.
    quick = [] if "signal" in fault else ["--seccomp-bpf"]
    only = ["-P", str(new) + call.path.removeprefix(str(old))]
    rule = f"inject={call.name}:{fault}:when={call.number}"
    return [
        STRACE,
        "-f",
        *quick,
        "-qq",
        "-y",
        "-s",
        "16",
        *only,
        "-o",
        str(log),
        "-e",
        f"trace={call.name}",
        "-e",
        rule,
    ]


def calls(log: Path, within: Path) -> list[Call]:
    """The traced calls that speak of paths below a folder, in order."""
    seen: Counter[tuple[str, ...]] = Counter()
    found: list[Call] = []
    for line in log.read_text(errors="replace").splitlines():
        match = re.match(r"(\d+) +(\w+)\((.*)", line)
        if not match:  # the second half of an unfinished call, or a signal
            continue
        thread, name, text = match.groups()
        paths = [p for p in re.findall(r'[<"](/[^">]*)', text) if p.startswith(str(within))]
        seen.update((thread, name, p) for p in set(paths))
        if paths:
            found.append(Call(name, seen[thread, name, paths[0]], paths[0], text))
    return found
