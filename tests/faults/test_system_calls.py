"""The n-th system call of an edit fails, or kills the process: absent, old or complete and equal, and the next run is whole."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from harness import (
    Call,
    Content,
    Outcome,
    beside,
    calls,
    content,
    edit,
    inject,
    models,
    needs_strace,
    staging,
    taskvec,
    trace,
)

pytestmark = needs_strace
NAMES = (
    "openat,write,pwrite64,fsync,fdatasync,fallocate,ftruncate,rename,renameat,renameat2,mkdir,unlink,unlinkat,rmdir,flock,"
    "copy_file_range,sync_file_range,close"
)
OUTPUTS = ("out", "out.safetensors")
EIO, ENOSPC = f"error={errno.errorcode[errno.EIO]}", f"error={errno.errorcode[errno.ENOSPC]}"
KILL = "signal=KILL"
REMOVAL = ("unlink", "unlinkat", "rmdir", "openat", "close")
# A full disk shows where something is made or grows.
FULL = ("openat", "write", "pwrite64", "fsync", "fallocate", "ftruncate", "mkdir", "rename", "renameat", "renameat2")


class Job:
    """An edit whose every call is known: inputs, the old output and the new one, to be run again and again."""

    def __init__(self, place: Path, name: str, *, replace: bool):
        self.place, self.name, self.replace = place, name, replace
        self.inputs = models(place)
        assert taskvec(*edit(self.inputs, place / "new" / name)).clean().code == 0
        self.new = content(place / "new" / name)
        self.old: Content = None
        if replace:
            assert taskvec(*edit(self.inputs, place / "old" / name, coefficient=0.25)).clean().code == 0
            self.old = content(place / "old" / name)
            assert self.old != self.new
        out, log = self.fresh("clean"), place / "clean.log"
        self.clean = out.parent
        assert taskvec(*self.command(out), tracer=trace(log, NAMES)).clean().code == 0
        assert content(out) == self.new
        self.calls = calls(log, out.parent)

    def fresh(self, name: str) -> Path:
        """A folder of its own with, if one is to be replaced, the old output."""
        out = self.place / "runs" / name / self.name
        out.parent.mkdir(parents=True)
        if isinstance(self.old, bytes):
            out.write_bytes(self.old)
        elif self.old is not None:
            for file, data in self.old.items():
                (out / file).parent.mkdir(parents=True, exist_ok=True)
                (out / file).write_bytes(data)
        return out

    def command(self, out: Path) -> list[object]:
        return edit(self.inputs, out, *(["--overwrite"] if self.replace else []))


@pytest.fixture(
    scope="module",
    params=[(n, r) for n in OUTPUTS for r in (False, True)],
    ids=lambda p: f"{p[0]}-{'replaced' if p[1] else 'new'}",
)
def job(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    name, replace = request.param
    yield Job(tmp_path_factory.mktemp("job"), name, replace=replace)


def spared(call: Call) -> bool:
    """Calls that need not be tried: reading what lies there, notes to the terminal."""
    return call.name == "openat" and "O_CREAT" not in call.text and "O_DIRECTORY" in call.text


def at_the_edges(call: Call, out: str) -> bool:
    """Calls before the staging folder is in use, and after the rename."""
    early = call.path.endswith(".taskvec/lock") and call.name in ("openat", "flock")
    early |= call.name == "mkdir" and call.path.endswith(".taskvec/out") and "EEXIST" not in call.text
    late = call.path == out and call.name in ("openat", "fsync", "close")
    late |= call.name == "close" and call.path.endswith("lock") and "(deleted)" in call.text
    return early or late


def struck(log: Path, outcome: Outcome) -> bool:
    return "INJECTED" in log.read_text(errors="replace") or outcome.code == 137


def run(job: Job, label: str, chosen: list[tuple[Call, str]]) -> list[str]:
    """Run the edit once for each fault, two at a time, then hold each ending to the promise. Returns what broke it."""

    def broken(number: int) -> tuple[Path, Outcome, Path]:
        call, fault = chosen[number]
        for name in (
            f"{label}-{number}",
            f"{label}-{number}-again",
        ):  # threads take turns: a call may not come on a busy machine
            out, log = job.fresh(name), job.place / f"{name}.log"
            outcome = taskvec(*job.command(out), tracer=inject(log, call, fault, old=job.clean, new=out.parent))
            if struck(log, outcome):
                break
        return out, outcome, log

    with ThreadPoolExecutor(2) as pool:
        endings = list(pool.map(broken, range(len(chosen))))
    hit, wrong, missed = 0, [], []
    for (call, fault), (out, outcome, log) in zip(chosen, endings, strict=True):
        met = struck(log, outcome)
        hit += met
        missed += [] if met else [(fault, call)]
        try:
            held(job, call, fault, out, outcome, met)
        except AssertionError as error:
            wrong.append(f"{fault} at {call.name} {call.number} ({call.text[:150]}): {error}")
    assert hit >= 0.9 * len(chosen), f"only {hit} of {len(chosen)} faults were met; not: {missed}"
    return wrong


def held(job: Job, call: Call, fault: str, out: Path, outcome: Outcome, struck: bool) -> None:
    """The promise, for one ending."""
    found = content(out)
    assert found in (None, job.old, job.new), "the target is neither absent nor old nor complete"
    assert not (job.old is not None and found is None), "the old output is gone"
    assert not beside(out), f"left beside the target: {beside(out)}"
    if fault == KILL:
        assert outcome.code in ((137,) if struck else (0,)), outcome
    else:
        outcome.clean()
        # Success only with the result; a failed fsync is never a success, nor is a failed write to the output.
        must_fail = struck and call.name in ("fsync", "pwrite64") and "lock" not in call.text
        assert outcome.code in ((4,) if must_fail else (0, 4)), outcome
        if outcome.code == 0:
            assert found == job.new, "success without the result"
            # What cannot be removed stays until the next run.
            assert not staging(out).exists() or call.name in REMOVAL, "success that leaves something"
        else:
            said = outcome.err
            assert (str(out) in said or str(staging(out)) in said) and len(said) < 1500, said
            if found == job.new:
                assert "not changed" not in said.lower() and "nothing was changed" not in said.lower(), said
            # Without the lock the folder may be another run's: its (empty) lock file stays.
            if staging(out).exists() and call.name != "flock":
                assert "continue" in said and str(staging(out)) in said, (
                    f"left {staging(out)} without saying so: {said}"
                )
    again = taskvec(*job.command(out)).clean()
    if found == job.new and not job.replace:  # in place already
        assert again.code == 4 and "exists" in again.err, again
        again = taskvec(*job.command(out), "--overwrite").clean()
    assert again.code == 0, again
    assert content(out) == job.new, "the next run gives other bytes"
    assert not staging(out).exists() and not beside(out), "the next run leaves something behind"


def every(job: Job, step: int, faults: tuple[str, ...]) -> list[tuple[Call, str]]:
    """All calls with one of the faults each in turn (`step` > 1: a share of them; 0: all faults for all calls)."""
    pairs = [(c, f) for c in job.calls if not spared(c) for f in faults if f != ENOSPC or c.name in FULL]
    pairs = [(c, f) for c, f in pairs if c.name != "close" or f == EIO]
    return pairs[:: step or 1]


SHARE = 41  # prime, so that all kinds of calls and faults get their turn


def test_a_share_of_the_calls_fails(job):
    wrong = run(job, "share", every(job, SHARE, (KILL, EIO, ENOSPC)))
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("fault", [KILL, EIO, ENOSPC])
def test_every_call_fails(fault, job):
    wrong = run(job, fault, every(job, 0, (fault,)))
    assert not wrong, f"{len(wrong)} of {len(every(job, 0, (fault,)))}:\n" + "\n".join(wrong)


def test_the_first_and_the_last_calls_fail(job):
    wrong = run(job, "edges", [(c, EIO) for c in job.calls if at_the_edges(c, str(job.clean))][::3])
    assert not wrong, "\n".join(wrong)


def test_the_order_in_which_things_reach_the_disk(job):
    """file fsync < folder fsync < rename < fsync of the parent; and the reserved file is written before it is synced."""
    parent = str(job.place / "runs" / "clean")
    out = f"{parent}/.{job.name}.taskvec/out"
    text = [(c.name, re.sub(r"\d+<", "<", c.text)) for c in job.calls]

    def places(name: str, *parts: str) -> list[int]:
        return [i for i, (n, t) in enumerate(text) if re.fullmatch(name, n) and all(p in t for p in parts)]

    renames = places("rename(at2?)?", f'"{out}"')
    assert len(renames) == 1, "the output takes its place in one step"
    (put,) = renames
    assert [i for i in places("fsync", f"<{parent}>") if i > put], "the parent is synced after the rename"
    assert max(places("pwrite64|write|fallocate|ftruncate|copy_file_range", f"<{out}")) < put, (
        "nothing is written after it"
    )
    if job.name == "out":
        files = {str(p) for p in (Path(parent) / "out").rglob("*") if p.is_file()}
        files = {f.replace(f"{parent}/out", out) for f in files}
        assert len(files) > 4
        (folder,) = [max(p for p in places("fsync", f"<{out}>") if p < put)]
    else:
        files, folder = {out}, put
    for file in files:
        synced = [i for i in places("fsync|fdatasync", f"<{file}>") if i < put]
        assert synced, f"{file} is synced before it is renamed"
        wrote = places("pwrite64|write|ftruncate|copy_file_range", f"<{file}>")
        assert wrote and max(wrote) < max(synced) < max(folder, max(synced) + 1), (
            f"{file} is synced after its last write"
        )
        assert max(synced) <= folder, "files before the folder that names them"
    assert Path(parent, job.name).exists()


READS = "openat,read,pread64,preadv,preadv2,lseek,getdents64,newfstatat"


def test_an_input_cannot_be_read(tmp_path):
    """An I/O error at some call that looks at an input: an error that names it, and no output; or it did not matter."""
    inputs, out, log = models(tmp_path), tmp_path / "outs" / "out", tmp_path / "log"
    clean = tmp_path / "clean"
    assert taskvec(*edit(inputs, clean), tracer=trace(log, READS)).clean().code == 0
    found = calls(log, tmp_path / "tuned")
    assert {"openat", "pread64", "newfstatat"} <= {c.name for c in found} and len(found) > 20
    for call in found[:: len(found) // 10]:
        outcome = taskvec(*edit(inputs, out), tracer=inject(log, call, EIO, old=tmp_path, new=tmp_path)).clean()
        assert outcome.code in (0, 3, 4), (call, outcome)
        if outcome.code:
            assert "tuned" in outcome.err and not out.parent.exists(), (call, outcome)
        else:
            assert content(out) == content(clean), call
            shutil.rmtree(out.parent)
