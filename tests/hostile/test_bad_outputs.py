"""Outputs that cannot or must not be written, numbers that must not be: the target stays as it was, nothing is left over."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from hostile import sound
from taskvec.errors import NonFinite, StorageError, UsageError
from taskvec.methods import ties
from taskvec.weights import Checkpoint, TaskVector, execute, output, staging

BIG = 100_000


@pytest.fixture
def pair(tmp_path):
    """base.safetensors, tuned.safetensors and tau.safetensors in tmp_path/in."""
    place = tmp_path / "in"
    place.mkdir()
    base = Checkpoint.read(sound(place / "base.safetensors"))
    tuned = Checkpoint.read(sound(place / "tuned.safetensors", seed=1))
    (tuned - base).save(place / "tau.safetensors")
    return place


def edit(pair, *rest, expression="base + 0.5 * tau"):
    lets = ("--let", f"base={pair / 'base.safetensors'}", "--let", f"tau={pair / 'tau.safetensors'}")
    return ("edit", expression, *lets, *rest)


@pytest.mark.parametrize("way", ["file", "same name", "hard link", "symbolic link", "folder", "into the folder"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_an_input_is_never_the_output(way, overwrite, pair, tmp_path, run_cli, untouched):
    base, out = pair / "base.safetensors", pair / "base.safetensors"
    if way == "same name":
        out = pair / ".." / "in" / "base.safetensors"
    elif way == "hard link":
        out = tmp_path / "hard.safetensors"
        out.hardlink_to(base)
    elif way == "symbolic link":
        out = tmp_path / "soft.safetensors"
        out.symlink_to(base)
    elif way in ("folder", "into the folder"):
        out = tmp_path / "m"
        Checkpoint.read(base).save(out)
        base = out
        if way == "into the folder":
            out = out / "edited.safetensors"  # a second file would make the input ambiguous
    check = untouched(tmp_path)
    arguments = ["--let", f"base={base}", "--let", f"tau={pair / 'tau.safetensors'}", "-o", out]
    code, _, err = run_cli("edit", "base + 0.5 * tau", *arguments, *(["--overwrite"] if overwrite else []))
    assert code == 2 and "input" in err
    check()


def test_existing_outputs(pair, tmp_path, run_cli, untouched):
    file, folder, other = tmp_path / "out.safetensors", tmp_path / "out", tmp_path / "other"
    assert run_cli(*edit(pair, "-o", file))[0] == 0
    assert run_cli(*edit(pair, "-o", folder))[0] == 0
    other.mkdir()
    (other / "thesis.txt").write_text("three years")
    check = untouched(tmp_path)
    for out in (file, folder, other):
        code, _, err = run_cli(*edit(pair, "-o", out))
        assert code == 4 and "exists" in err
    code, _, err = run_cli(*edit(pair, "-o", other, "--overwrite"))
    assert code == 4 and "was not written by taskvec" in err
    check()
    for out in (file, folder):
        assert run_cli(*edit(pair, "-o", out, "--overwrite", expression="base - 0.5 * tau"))[0] == 0
    assert Checkpoint.read(file).fingerprint() == Checkpoint.read(folder).fingerprint()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "other", "out", "out.safetensors"]
    (tmp_path / "hollow").mkdir()
    assert run_cli(*edit(pair, "-o", tmp_path / "hollow"))[0] == 0
    (tmp_path / "odd.safetensors").mkdir()
    assert run_cli(*edit(pair, "-o", tmp_path / "odd.safetensors"))[0] == 4
    assert run_cli(*edit(pair, "-o", file / "below"))[0] == 4
    assert run_cli(*edit(pair, "-o", tmp_path / "model.pt"))[0] == 2


@pytest.mark.parametrize("exchange", ["fails", "unknown here"])
def test_the_old_output_survives_a_failure_at_the_last_step(exchange, pair, tmp_path, run_cli, untouched, monkeypatch):
    folder = tmp_path / "out"
    assert run_cli(*edit(pair, "-o", folder))[0] == 0
    check = untouched(tmp_path)
    real = Path.rename

    def rename(self, target):
        if Path(target) == folder and self.name == "out":
            raise OSError(errno.EIO, "Input/output error")
        return real(self, target)

    def renameat2(*_):
        if exchange == "fails":
            raise OSError(errno.EIO, "Input/output error")
        return False

    monkeypatch.setattr(staging, "_renameat2", renameat2)
    monkeypatch.setattr(Path, "rename", rename)
    code, _, err = run_cli(*edit(pair, "-o", folder, "--overwrite", expression="base - tau"))
    assert code == 4 and "Input/output error" in err
    check()


def test_an_old_output_is_replaced_without_the_exchange_of_names_too(pair, tmp_path, run_cli, monkeypatch):
    folder = tmp_path / "out"
    assert run_cli(*edit(pair, "-o", folder))[0] == 0
    before = (folder / "model.safetensors").read_bytes()
    monkeypatch.setattr(staging, "_renameat2", lambda *_: False)
    assert run_cli(*edit(pair, "-o", folder, "--overwrite", expression="base - tau"))[0] == 0
    assert (folder / "model.safetensors").read_bytes() != before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out"]


@pytest.mark.parametrize("where", ["free space", "reserving", "writing", "syncing"])
@pytest.mark.parametrize("out", ["out.safetensors", "out", "new/deep/out.safetensors"])
def test_a_full_disk(where, out, pair, tmp_path, run_cli, untouched, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    if where == "free space":
        real = output.shutil.disk_usage
        monkeypatch.setattr(output.shutil, "disk_usage", lambda p: real(p)._replace(free=10))
    else:
        monkeypatch.setattr(os, {"reserving": "posix_fallocate", "writing": "pwrite", "syncing": "fsync"}[where], full)
    check = untouched(tmp_path)
    code, _, err = run_cli(*edit(pair, "-o", tmp_path / out))
    assert code == 4 and out in err and ("free" in err or "No space left" in err)
    check()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting needs root")
def test_a_disk_that_is_really_full(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], capture_output=True).returncode:
        pytest.skip("cannot mount here")
    try:
        point = Checkpoint.of({"w": np.ones(400_000, np.float32)}, label="m")
        with pytest.raises(StorageError, match="needs"):
            point.save(disk / "out.safetensors")
        assert not list(disk.iterdir())
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_read_only_folder(pair, tmp_path, run_cli, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    code, _, err = run_cli(*edit(pair, "-o", tmp_path / "out.safetensors"))
    assert code == 4 and "written" in err


@pytest.mark.parametrize(
    "name", ["ünï ⚙.safetensors", "new\nline.safetensors", "a" * 243 + ".safetensors", "-o.safetensors"]
)
def test_odd_names_of_outputs(name, pair, tmp_path, run_cli):
    code, _, err = run_cli(*edit(pair, "-o", f"{tmp_path}/{name}"))
    out = tmp_path / name
    assert (code == 0 and out.exists()) or (code == 4 and len(err.splitlines()) <= 2 and not out.exists()), err
    assert sorted(p.name for p in tmp_path.iterdir()) in (["in"], sorted(["in", name]))


def test_a_name_that_is_too_long_and_one_that_is_not_text(pair, tmp_path, run_cli):
    code, _, err = run_cli(*edit(pair, "-o", tmp_path / ("a" * 300 + ".safetensors")))
    assert code in (2, 4) and "long" in err
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.safetensors")
    (pair / "base.safetensors").rename(odd)
    code, _, err = run_cli("diff", odd, pair / "tuned.safetensors", "-o", tmp_path / "out.safetensors")
    assert code == 0, err
    assert TaskVector.read(tmp_path / "out.safetensors").norm() > 0


def test_mode_follows_the_umask(pair, tmp_path, run_cli):
    for mask in (0o022, 0o077):
        old = os.umask(mask)
        try:
            out = tmp_path / f"{mask}.safetensors"
            assert run_cli(*edit(pair, "-o", out))[0] == 0
            assert run_cli(*edit(pair, "-o", tmp_path / f"folder{mask}"))[0] == 0
        finally:
            os.umask(old)
        assert stat.S_IMODE(out.stat().st_mode) == 0o666 & ~mask
        assert stat.S_IMODE((tmp_path / f"folder{mask}" / "model.safetensors").stat().st_mode) == 0o666 & ~mask
        assert stat.S_IMODE((tmp_path / f"folder{mask}").stat().st_mode) == 0o777 & ~mask


# --- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64], ids=str)
def test_a_number_that_is_none(value, dtype, tmp_path, run_cli, untouched):
    x = np.linspace(-1, 1, 100).astype(dtype)
    y = x.copy()
    y[37] = value
    sound(tmp_path / "base.safetensors", {"w": x, "v": x})
    sound(tmp_path / "tuned.safetensors", {"w": x, "v": x})
    bad = tmp_path / "bad.safetensors"
    # Ours would not write it, so another writer does.
    data = (tmp_path / "tuned.safetensors").read_bytes()
    bad.write_bytes(data[: -y.nbytes] + y.tobytes())
    check = untouched(tmp_path)
    out = tmp_path / "out.safetensors"
    for arguments in (
        ("diff", tmp_path / "base.safetensors", bad, "-o", out),
        ("diff", bad, tmp_path / "base.safetensors", "-o", out),
        ("compare", tmp_path / "base.safetensors", bad),
        ("edit", "b + (t - b)", "--let", f"t={tmp_path / 'base.safetensors'}", "--let", f"b={bad}", "-o", out),
        (
            "edit",
            "b + restrict(t - b, 'w')",
            "--let",
            f"t={tmp_path / 'base.safetensors'}",
            "--let",
            f"b={bad}",
            "-o",
            out,
        ),
    ):
        code, _, err = run_cli(*arguments)
        assert code == 3, err
        assert "'v'" in err and ("bad: tensor" in err or "b: tensor" in err), err
        check()


@pytest.mark.parametrize("dtype", ["float16", "float8_e4m3fn", "float32", "bfloat16"])
def test_a_result_that_overflows(dtype, tmp_path, run_cli, untouched):
    kind = np.dtype(getattr(ml_dtypes, dtype, None) or dtype)
    sound(tmp_path / "base.safetensors", {"w": np.ones(10).astype(kind)})
    sound(tmp_path / "tuned.safetensors", {"w": np.full(10, 2.0).astype(kind)})
    check = untouched(tmp_path)
    lets = [f"--let={n}={tmp_path / n}.safetensors" for n in ("base", "tuned")]
    for c in ("1e39", "1e30 * 1e30"):
        out = tmp_path / "out.safetensors"
        code, _, err = run_cli("edit", f"base + {c} * (tuned - base)", *lets, "-o", out)
        assert code == 3 and "'w'" in err and "smaller coefficient" in err
        check()


def test_a_narrower_format_that_overflows(tmp_path, run_cli):
    sound(tmp_path / "m.safetensors", {"w": np.full(10, 1e6, np.float32)})
    code, _, err = run_cli(
        "edit", "m", f"--let=m={tmp_path / 'm.safetensors'}", "--dtype", "float16", "-o", tmp_path / "out.safetensors"
    )
    assert code == 3 and "F16" in err and not (tmp_path / "out.safetensors").exists()


def test_a_summary_of_nothing_finite_is_an_error():
    base = Checkpoint.of({"w": np.zeros(4, np.float32)}, label="base")
    bad = Checkpoint.of({"w": np.array([1, 2, np.nan, 4], np.float32)}, label="bad")
    for reading in (lambda v: v.norm(), lambda v: v.array("w"), lambda v: ties([v]).array("w"), lambda v: v.cosine(v)):
        with pytest.raises(NonFinite, match="bad"):
            reading(bad - base)


def test_weights_that_sum_to_zero_are_just_zero(pair, tmp_path, run_cli):
    out = tmp_path / "out.safetensors"
    assert run_cli(*edit(pair, "-o", out, expression="base + 0.5 * tau - 0.5 * tau"))[0] == 0
    assert Checkpoint.read(out).fingerprint() == Checkpoint.read(pair / "base.safetensors").fingerprint()


def test_wrong_options(pair, tmp_path, run_cli):
    out = tmp_path / "out.safetensors"
    for extra, said in (
        (("--dtype", "flaot16"), "Did you mean 'float16'"),
        (("--dtype", "int8"), "unknown number format"),
        (("--shard-size", "many"), "not a size"),
        (("--let", "base"), "NAME=PATH"),
        (("--let", "base=x"), "twice"),
        (("--let", "my-base=x"), "my_base"),
        (("--let", "ties=x"), "choose another"),
        (("--nonsense",), "nonsense"),
    ):
        code, _, err = run_cli(*edit(pair, "-o", out, *extra))
        assert code == 2 and said in err, err
        assert not out.exists()
    assert run_cli("edti", "x")[0] == 2
    assert run_cli(*edit(pair))[0] == 2  # no output named
    with pytest.raises(UsageError):
        Checkpoint.of({"w": np.ones(2, np.float32)}).save(tmp_path / "m", shard_size=-1)


# --- interruption ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", ["out.safetensors", "out"])
def test_ctrl_c_while_writing_leaves_nothing(out, tmp_path, untouched, monkeypatch):
    monkeypatch.setattr(execute, "BLOCK", 100)
    monkeypatch.setattr(execute, "default_threads", lambda: 4)
    base = Checkpoint.of({"w": np.ones(BIG, np.float32)}, label="base")
    point = base + 0.5 * (Checkpoint.of({"w": np.full(BIG, 2, np.float32)}, label="tuned") - base)
    check = untouched(tmp_path)
    seen = 0

    def interrupt(_: int) -> None:
        nonlocal seen
        seen += 1
        if seen == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        point.save(tmp_path / out, progress=interrupt)
    check()


def test_no_thread_writes_after_an_interruption(tmp_path, monkeypatch):
    """The files are closed only when no thread can write any more: their numbers may be in use for others by then."""
    monkeypatch.setattr(execute, "BLOCK", 100)
    monkeypatch.setattr(execute, "default_threads", lambda: 4)
    closed: set[int] = set()
    late: list[int] = []
    pwrite, close, open_ = os.pwrite, os.close, os.open

    def slow(fd, data, at):
        time.sleep(0.002)
        if fd in closed:
            late.append(fd)
            return len(data)
        return pwrite(fd, data, at)

    monkeypatch.setattr(os, "pwrite", slow)
    monkeypatch.setattr(os, "close", lambda fd: (closed.add(fd), close(fd))[1])

    def opened(*a, **k):
        fd = open_(*a, **k)
        closed.discard(fd)
        return fd

    monkeypatch.setattr(os, "open", opened)

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    base = Checkpoint.of({"w": np.ones(BIG, np.float32)}, label="base")
    point = base + 0.5 * (Checkpoint.of({"w": np.full(BIG, 2, np.float32)}, label="tuned") - base)
    try:
        point.save(tmp_path / "out.safetensors", progress=interrupt)
    except KeyboardInterrupt as error:  # the traceback is alive here, as it is where a caller handles it
        time.sleep(0.05)
        assert error.__traceback__ is not None
    assert not late


SLOW = """
import sys, time
from taskvec.weights import execute
execute.BLOCK = 1000
real = execute.evaluate
def slow(*a, **k):
    time.sleep(0.02)
    return real(*a, **k)
import taskvec.weights.produce as produce
produce.evaluate = slow
print("ready", flush=True)
sys.argv[0] = "taskvec"
from taskvec.cli import main
main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals(number, code, tmp_path):
    for i, name in enumerate(("base", "tuned")):
        sound(tmp_path / f"{name}.safetensors", {"w": np.full(500_000, float(i + 1), np.float32)})
    before = sorted(p.name for p in tmp_path.iterdir())
    run = subprocess.Popen(
        [sys.executable, "-c", SLOW, "edit", "base + 0.5 * (tuned - base)", "-o", str(tmp_path / "out"),
         "--let", f"base={tmp_path / 'base.safetensors'}", "--let", f"tuned={tmp_path / 'tuned.safetensors'}"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not any(p.name == ".out.taskvec" for p in tmp_path.iterdir()):
        time.sleep(0.02)
    time.sleep(0.1)
    start = time.monotonic()
    run.send_signal(number)
    _, err = run.communicate(timeout=20)
    assert time.monotonic() - start < 2
    assert run.returncode == code, err
    assert "Traceback" not in err and len(err.splitlines()) <= 3, err  # a note, a line break after ^C, the error
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_a_closed_pipe(pair):
    run = subprocess.run(
        f"{sys.executable} -m taskvec.cli explain {pair / 'base.safetensors'} --json | head -n 1; exit ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", capture_output=True, text=True,
    )  # fmt: skip
    # 1 where the pipe closes before everything is written (click's way), 0 where only the last flush fails.
    assert run.returncode in (0, 1) and run.stdout == "{\n" and run.stderr == ""
