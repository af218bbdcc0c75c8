"""Disks that are full, folders that cannot be written, limits on files and memory: one line, exit code 4, nothing spoilt."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from harness import beside, content, edit, finish, models, needs_root, staging, start, taskvec

# What a plain user may not, root may not either.
PLAIN = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--"] if os.geteuid() == 0 else []
needs_plain = pytest.mark.skipif(bool(PLAIN) and shutil.which("setpriv") is None, reason="as root, needs setpriv")
# Everything is imported before the limit holds: what is measured is the work.
LIMIT = """
import numpy, yaml, click, taskvec.cli.commands, taskvec.weights, taskvec.weights.write, taskvec.recipe
now = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
resource.setrlimit(resource.RLIMIT_AS, (now + {more},) * 2)
"""
PEAK = """
import atexit
def say_peak():  # not getrusage, which begins with what the parent used
    os.write(2, b"note: peak " + open("/proc/self/status", "rb").read().split(b"VmHWM:")[1].split()[0] + b"\\n")
atexit.register(say_peak)
"""
MB = 1 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 6 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "none", disk], capture_output=True).returncode:
        pytest.skip("cannot mount here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@needs_root
@pytest.mark.parametrize("name", ["out", "out.safetensors"])
def test_a_disk_that_is_too_small(name, small_disk, tmp_path):
    inputs, out = models(tmp_path, tensors=4, values=500_000), small_disk / name
    outcome = taskvec(*edit(inputs, out, shard_size=2_000_000)).clean()
    assert outcome.code == 4 and "free" in outcome.err and str(out) in outcome.err
    assert not list(small_disk.iterdir())


@needs_root
@pytest.mark.parametrize("name", ["out", "out.safetensors"])
def test_a_disk_that_fills_up_meanwhile(name, small_disk, tmp_path):
    """Enough room when the run looked, none when it wrote; with room again, the same command finishes."""
    inputs, out = models(tmp_path, tensors=4, values=250_000), small_disk / name
    fill = f"""
import shutil
from taskvec.weights import staging
def begin(*a, real=staging._begin, **k):
    with open({str(small_disk / "filler")!r}, "wb") as f:
        f.write(bytes(5 << 20))
    return real(*a, **k)
staging._begin = begin
"""
    outcome = taskvec(*edit(inputs, out, shard_size=1_000_000), prelude=fill).clean()
    assert outcome.code == 4 and "No space" in outcome.err, outcome
    assert content(out) is None and not staging(out).exists(), "nothing was finished, nothing stays"
    (small_disk / "filler").unlink()
    assert taskvec(*edit(inputs, out, shard_size=1_000_000)).clean().code == 0
    again = tmp_path / name
    assert taskvec(*edit(inputs, again, shard_size=1_000_000)).clean().code == 0
    assert content(out) == content(again) and not beside(out)


@needs_root
def test_replacing_needs_room_for_both(small_disk, tmp_path):
    """The old output survives a disk that cannot hold it and the new one together."""
    inputs, out = models(tmp_path, tensors=4, values=250_000), small_disk / "out"
    assert taskvec(*edit(inputs, out, shard_size=1_000_000)).clean().code == 0
    old = content(out)
    outcome = taskvec(*edit(inputs, out, "--overwrite", coefficient=0.25, shard_size=1_000_000)).clean()
    assert outcome.code == 4 and "free" in outcome.err
    assert content(out) == old and not beside(out) and not staging(out).exists()


@pytest.mark.parametrize("name", ["out", "out.safetensors"])
def test_a_limit_on_the_size_of_files(name, tmp_path):
    inputs, out = models(tmp_path, tensors=4, values=50_000), tmp_path / "outs" / name
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
    outcome = taskvec(*edit(inputs, out, shard_size=300_000), prelude=limit).clean()
    assert outcome.code == 4 and "large" in outcome.err.lower(), outcome
    assert not out.parent.exists(), "not even the folder"


def test_more_shards_than_a_process_may_open(tmp_path):
    inputs, out = models(tmp_path, tensors=60), tmp_path / "out"
    limit = "resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))"
    assert taskvec(*edit(inputs, out, shard_size=256), prelude=limit).clean().code == 0
    assert len(list(out.glob("*.safetensors"))) == 60


def test_more_shards_to_read_than_a_process_may_open(tmp_path):
    inputs, out = models(tmp_path, tensors=60, shards=60), tmp_path / "out"
    limit = "resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))"
    outcome = taskvec(*edit(inputs, out), prelude=limit).clean()
    assert outcome.code in (0, 3, 4), outcome
    assert (content(out) is not None) == (outcome.code == 0) and not staging(out).exists()


# --- folders and names -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def mode(path: Path, bits: int) -> Iterator[None]:
    before = stat.S_IMODE(path.stat().st_mode)
    path.chmod(bits)
    try:
        yield
    finally:
        path.chmod(before)


@needs_plain
@pytest.mark.parametrize("replace", [False, True], ids=["new", "replaced"])
def test_a_folder_that_may_not_be_written(replace, tmp_path):
    inputs, out = models(tmp_path), tmp_path / "outs" / "out"
    out.parent.mkdir()
    if replace:
        assert taskvec(*edit(inputs, out, coefficient=0.25)).clean().code == 0
    old = content(out)
    with mode(out.parent, 0o555):
        outcome = taskvec(*edit(inputs, out, *(["--overwrite"] if replace else [])), tracer=PLAIN).clean()
        assert outcome.code == 4 and str(out) in outcome.err, outcome
        assert content(out) == old and not beside(out) and not staging(out).exists()


@needs_plain
def test_inputs_that_may_not_be_read(tmp_path):
    inputs, out = models(tmp_path), tmp_path / "outs" / "out"
    shard = sorted(inputs[1].glob("*.safetensors"))[1]
    for path in (shard, inputs[1] / "model.safetensors.index.json", inputs[1]):
        with mode(path, 0):
            outcome = taskvec(*edit(inputs, out), tracer=PLAIN).clean()
            assert outcome.code in (3, 4) and "tuned" in outcome.err, outcome
            assert not out.parent.exists()


@needs_plain
def test_inputs_that_may_only_be_read(tmp_path):
    """Nothing is written beside an input: a shared, read-only folder of models will do."""
    inputs, out = models(tmp_path), tmp_path / "outs" / "out"
    before = {p: (p.stat().st_mtime_ns, content(p)) for p in inputs}
    with mode(inputs[0], 0o555), mode(inputs[1], 0o555):
        assert taskvec(*edit(inputs, out), tracer=PLAIN).clean().code == 0
    assert {p: (p.stat().st_mtime_ns, content(p)) for p in inputs} == before


@needs_plain
def test_a_cache_that_may_not_be_written(tmp_path):
    inputs, out = models(tmp_path), tmp_path / "out"
    cache = tmp_path / "cache"
    cache.mkdir()
    with mode(cache, 0o555):
        tracer = [*PLAIN, "env", f"XDG_CACHE_HOME={cache}"]
        assert taskvec(*edit(inputs, out), tracer=tracer).clean().code == 0
    assert content(out) is not None and not list(cache.iterdir())


@pytest.mark.parametrize("length", [240, 246, 247, 255, 256, 4096])
@pytest.mark.parametrize("suffix", ["", ".safetensors"])
def test_long_names(length, suffix, tmp_path, run_cli):
    inputs, place = models(tmp_path), tmp_path / "outs"
    out = place / ("a" * (length - len(suffix)) + suffix)
    code, _, err = run_cli(*edit(inputs, out))
    assert code in ((0,) if length <= 240 else (0, 2, 4)), err
    if code:
        assert "long" in err and len(err.splitlines()) == 1 and not place.exists()
    else:
        assert [p.name for p in place.iterdir()] == [out.name]


@pytest.mark.parametrize(
    "name", ["new\nline", "tab\t\x1b[31m", "ünï ⚙", "-o", "~", "a b", "$HOME", "%s{0}", "..x", "x.taskvec"]
)
def test_odd_names(name, tmp_path, run_cli):
    inputs, out = models(tmp_path), tmp_path / "outs" / name
    code, said, err = run_cli(*edit(inputs, out))
    assert code == 0 and "\x1b" not in said, (said, err)
    code, _, err = run_cli(*edit(inputs, out))
    assert code == 4 and "exists" in err and len(err.splitlines()) == 1 and "\x1b" not in err, err
    assert [p.name for p in out.parent.iterdir()] == [name]


def test_modes_follow_the_umask_also_where_an_output_is_replaced(tmp_path):
    inputs = models(tmp_path)
    for out in (tmp_path / "outs" / "out", tmp_path / "outs" / "out.safetensors"):
        for rest in ([], ["--overwrite"]):
            assert taskvec(*edit(inputs, out, *rest), prelude="os.umask(0o027)").clean().code == 0
        for path in (out, *(out.rglob("*") if out.is_dir() else [])):
            assert stat.S_IMODE(path.stat().st_mode) == (0o750 if path.is_dir() else 0o640), path


# --- memory ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [
        1,
        8,
        24,
        40,
        300,
    ],
)
def test_a_limit_on_memory(more, tmp_path):
    """The whole result, or one line that says what is short; the tensors are larger than what is allowed."""
    inputs, out = models(tmp_path, tensors=2, values=5 * MB, shards=1), tmp_path / "outs" / "out.safetensors"
    outcome = taskvec(*edit(inputs, out), prelude=LIMIT.format(more=more * MB)).clean()
    assert outcome.code in ((0,) if more >= 300 else (0, 4)), outcome
    if outcome.code:
        assert "memory" in outcome.err and not out.parent.exists() and not staging(out).exists()
    else:
        assert out.stat().st_size > 40 * MB


def sparse(path: Path, gigabytes: int) -> Path:
    """A checkpoint of one huge tensor of zeros that takes no room, and a small one."""
    size = gigabytes << 30
    header = (
        f'{{"huge":{{"dtype":"F32","shape":[{size // 4}],"data_offsets":[0,{size}]}},'
        f'"small":{{"dtype":"F32","shape":[4],"data_offsets":[{size},{size + 16}]}}}}'
    ).encode()
    try:
        with path.open("wb") as f:
            f.write(struct.pack("<Q", len(header)) + header)
            f.truncate(8 + len(header) + size)
            f.seek(0, os.SEEK_END)
            f.write(np.ones(4, np.float32).tobytes())
    except OSError:
        pytest.skip("no files of this size here")
    if path.stat().st_blocks * 512 > 10 * MB:
        path.unlink()
        pytest.skip("no sparse files here")
    return path


def peak(outcome) -> int:
    """Peak resident memory in MB."""
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("note: peak")]
    return int(line.split()[2]) // 1024


def test_a_tensor_larger_than_memory_is_explained(tmp_path):
    base, tuned = (sparse(tmp_path / f"{n}.safetensors", 40) for n in ("base", "tuned"))
    outcome = taskvec(
        "explain", "base + 0.5 * (tuned - base)", f"--let=base={base}", f"--let=tuned={tuned}", prelude=PEAK
    ).clean()
    assert outcome.code == 0 and peak(outcome) < 150, outcome


def test_an_output_larger_than_the_disk_is_refused_at_once(tmp_path):
    size = 8 << 10  # 8 TB
    if shutil.disk_usage(tmp_path).free >> 30 > size:
        pytest.skip("a very large disk")
    base, tuned = (sparse(tmp_path / f"{n}.safetensors", size) for n in ("base", "tuned"))
    outcome = taskvec(*edit((base, tuned), tmp_path / "out.safetensors"), prelude=PEAK).clean()
    assert outcome.code == 4 and "free" in outcome.err and peak(outcome) < 150, outcome
    assert not staging(tmp_path / "out.safetensors").exists()


def test_one_tensor_of_the_huge_files_is_read(tmp_path):
    """Only what is asked for is read, wherever it lies in the file."""
    from taskvec.weights import Checkpoint

    base = Checkpoint.read(sparse(tmp_path / "base.safetensors", 40))
    assert base.array("small").tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("gigabytes", [1, pytest.param(40, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_a_tensor_larger_than_memory_is_streamed(gigabytes, tmp_path):
    base, tuned = (sparse(tmp_path / f"{n}.safetensors", gigabytes) for n in ("base", "tuned"))
    process = start("compare", base, tuned, prelude=PEAK + LIMIT.format(more=300 * MB))
    outcome = finish(process, timeout=1500).clean()
    assert outcome.code == 0 and peak(outcome) < 300, outcome
