"""A process that ends at any moment: what is there is whole, and the same command goes on from what is safe on disk."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from harness import Content, beside, content, edit, finish, models, staging, start, taskvec

from taskvec.weights.staging import _check as seal

SHARDS = 60


class Slow:
    """An edit of many small shards: each is synced and noted in the journal, so that there is time to be killed in."""

    def __init__(self, place: Path):
        self.place = place
        self.inputs = models(place, tensors=SHARDS, values=20_000, shards=2)
        out = place / "clean" / "out"
        out.parent.mkdir()
        process = start(*self.command(out))
        self.wait(process, out)
        assert finish(process).clean().code == 0
        self.new: Content = content(out)
        assert isinstance(self.new, dict) and len(self.new) == SHARDS + 4

    def command(self, out: Path, *rest: object, coefficient: float = 0.5) -> list[object]:
        return edit(self.inputs, out, *rest, coefficient=coefficient, shard_size=80_000)

    def wait(self, process: subprocess.Popen[str], out: Path) -> None:
        """Until the process holds the lock, or has ended."""
        while process.poll() is None and text(staging(out) / "lock") != str(process.pid):
            time.sleep(0.001)

    def until(self, process: subprocess.Popen[str], out: Path, blocks: int) -> None:
        """Until so much is safe on disk, or it has ended."""
        while process.poll() is None and done(out) < blocks:
            time.sleep(0.001)

    def journalled(self, process: subprocess.Popen[str], out: Path, blocks: int = 1) -> None:
        self.until(process, out, blocks)
        assert process.poll() is None, "it ended too early"


def done(out: Path) -> int:
    """How many tensors the journal calls safe."""
    return json.loads(text(staging(out) / "journal.json") or '{"done": 0}')["done"]


def text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Slow:
    return Slow(tmp_path_factory.mktemp("slow"))


def kill_until_done(
    slow: Slow, out: Path, kills: int, chance: random.Random, *, old: Content = None
) -> tuple[int, int]:
    """Kill the same command again and again at random points; how often it was met, and how often the next went on."""
    rest = ["--overwrite"] if old is not None else []
    met = resumed = 0
    for _ in range(kills):
        process = start(*slow.command(out, *rest))
        slow.wait(process, out)
        if chance.random() < 0.8:  # else very early
            slow.until(process, out, min(SHARDS, done(out) + chance.randrange(SHARDS // 2)))
        time.sleep(chance.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        outcome = finish(process)
        assert outcome.code in (0, 137), outcome
        met += outcome.code == 137
        resumed += "continue" in outcome.err
        found = content(out)
        assert found in (old, slow.new), "neither absent nor old nor complete"
        assert not beside(out)
        if found == slow.new:  # on to the next output
            if outcome.code == 137:  # after the rename: whatever is left goes with the next run
                assert taskvec(*slow.command(out, "--overwrite")).clean().code == 0
            assert content(out) == slow.new and not staging(out).exists()
            shutil.rmtree(out)
            if isinstance(old, dict):
                out.mkdir()
                for name, data in old.items():
                    (out / name).write_bytes(data)
    assert taskvec(*slow.command(out, *rest)).clean().code == 0
    assert content(out) == slow.new, "other bytes than those of an uninterrupted run"
    assert not staging(out).exists() and not beside(out)
    return met, resumed


@pytest.mark.parametrize("replace", [False, True], ids=["new", "replaced"])
def test_kill_9_at_random_points(replace, slow, tmp_path):
    out, old = tmp_path / "out", None
    if replace:
        assert taskvec(*slow.command(out, coefficient=0.25)).clean().code == 0
        old = content(out)
    met, resumed = kill_until_done(slow, out, 12, random.Random(replace), old=old)
    assert met >= 6 and resumed >= 3, (met, resumed)


@pytest.mark.parametrize("method", ["({})", "ties([{}])", "dare([{}], density=0.5)"])
def test_one_large_file_is_continued_from_its_checkpoints(method, tmp_path):
    """As after every gigabyte, here after every tensor; other numbers of threads go on where one stopped."""
    often = "import taskvec.weights.write as w; w.CHECKPOINT = 50_000"
    inputs = models(tmp_path, tensors=SHARDS, values=20_000, shards=1)
    clean, out = tmp_path / "clean.safetensors", tmp_path / "out.safetensors"
    assert taskvec(*edit(inputs, clean, method=method)).clean().code == 0
    reached = 0
    for threads in (1, 2, 1, 2, 3):
        process = start(*edit(inputs, out, "--threads", threads, method=method), prelude=often)
        while process.poll() is None and done(out) < reached + 5:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        outcome = finish(process)
        assert outcome.code == 137 and content(out) is None
        assert ("continue" in outcome.err) == (reached > 0)
        assert done(out) >= reached + 5, "nothing that was safe is done again"
        reached = done(out)
    outcome = taskvec(*edit(inputs, out, method=method), prelude=often).clean()
    assert outcome.code == 0 and "continue" in outcome.err
    assert content(out) == content(clean) and not staging(out).exists()


def test_the_last_thing_to_be_lost_is_the_page_cache(slow, unfinished, run_cli):
    """After a power cut, what was not synced may be zeros: all beyond the journal's word is written again."""
    blocks = done(unfinished)
    shards = sorted((staging(unfinished) / "out").glob("*.safetensors"))
    assert len(shards) == SHARDS > blocks > 0
    for shard in shards[blocks:]:
        shard.write_bytes(bytes(shard.stat().st_size))
    assert run_cli(*slow.command(unfinished))[0] == 0
    assert content(unfinished) == slow.new


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kill_9_fifty_times(slow, tmp_path):
    met, resumed = kill_until_done(slow, tmp_path / "out", 50, random.Random(50))
    assert met >= 35 and resumed >= 20, (met, resumed)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_what_is_safe(number, code, slow, tmp_path):
    out = tmp_path / "out"
    process = start(*slow.command(out))
    slow.journalled(process, out)
    begun = time.monotonic()
    process.send_signal(number)
    outcome = finish(process)
    assert outcome.code == code and time.monotonic() - begun < 2
    assert "Traceback" not in outcome.err and content(out) is None
    assert staging(out).exists() and str(staging(out)) in outcome.err and "continue" in outcome.err, outcome.err
    again = taskvec(*slow.command(out)).clean()
    assert again.code == 0 and "continue" in again.err, again
    assert content(out) == slow.new and not staging(out).exists()


@pytest.mark.parametrize(
    "at",
    [
        "out",
        "lock",
    ],
)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_before_anything_is_safe_leaves_nothing(number, code, at, tmp_path):
    """One file below the size of a checkpoint: nothing to go on from."""
    inputs, out = models(tmp_path, tensors=8, values=1_000_000, shards=1), tmp_path / "out.safetensors"
    process = start(*edit(inputs, out))
    while process.poll() is None and not (staging(out) / at).exists():
        time.sleep(0.001)
    process.send_signal(number)
    outcome = finish(process)
    assert outcome.code == code, outcome
    assert "Traceback" not in outcome.err and not staging(out).exists() and content(out) is None
    assert taskvec(*edit(inputs, out)).clean().code == 0


# --- journals ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def killed(slow: Slow, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The staging folder of a run that was killed when a part was safe on disk."""
    out = tmp_path_factory.mktemp("killed") / "out"
    process = start(*slow.command(out))
    slow.journalled(process, out, SHARDS // 4)
    process.send_signal(signal.SIGKILL)
    assert finish(process).code == 137
    assert staging(out).exists() and content(out) is None
    return staging(out)


@pytest.fixture
def unfinished(killed: Path, tmp_path: Path) -> Path:
    """An output that is unfinished in this way, to be spoilt."""
    out = tmp_path / "out"
    shutil.copytree(killed, staging(out))
    journal = staging(out) / "journal.json"
    journal.write_bytes(changed(journal.read_bytes(), inode=(staging(out) / "out").stat().st_ino))
    return out


def test_what_is_unfinished_is_continued(slow, unfinished, run_cli):
    """As the copies of it that the tests below spoil must be, too."""
    code, _, err = run_cli(*slow.command(unfinished))
    assert code == 0 and "continue" in err
    assert content(unfinished) == slow.new and not staging(unfinished).exists()


def test_another_command_discards_what_is_unfinished(slow, unfinished, run_cli):
    code, _, err = run_cli(*slow.command(unfinished, coefficient=0.25))
    assert code == 0 and "continue" not in err
    other = unfinished.with_name("other")
    assert run_cli(*slow.command(other, coefficient=0.25))[0] == 0
    assert content(unfinished) == content(other) and not staging(unfinished).exists()


def test_changed_inputs_start_over(slow, unfinished, tmp_path, run_cli):
    _, tuned = slow.inputs
    moved = tmp_path / "in" / "tuned"
    shutil.copytree(tuned, moved)
    # The same sizes and another value in the first tensor, which was already written.
    file = sorted(moved.glob("*.safetensors"))[0]
    data = bytearray(file.read_bytes())
    start_of_data = 8 + int.from_bytes(data[:8], "little")
    data[start_of_data : start_of_data + 4] = b"\0\0\0\0"
    kept = tuned.with_name("kept")
    tuned.rename(kept)
    try:
        shutil.copytree(moved, tuned)
        (tuned / file.name).write_bytes(data)
        code, _, err = run_cli(*slow.command(unfinished))
        assert code == 0 and "continue" not in err
        fresh = tmp_path / "fresh"
        assert run_cli(*slow.command(fresh))[0] == 0
        assert content(unfinished) == content(fresh) != slow.new
    finally:
        shutil.rmtree(tuned)
        kept.rename(tuned)


def test_an_input_changed_under_the_same_size_and_time_is_not_mixed(slow, unfinished, tmp_path, run_cli):
    """Also where a tool has set the time of change back."""
    _, tuned = slow.inputs
    file = sorted(tuned.glob("*.safetensors"))[-1]
    before, times = file.read_bytes(), file.stat()
    try:
        file.write_bytes(before[:-4] + b"\0\0\0\0")
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert run_cli(*slow.command(unfinished))[0] == 0
        fresh = tmp_path / "fresh"
        assert run_cli(*slow.command(fresh))[0] == 0
        assert content(unfinished) == content(fresh) != slow.new
    finally:
        file.write_bytes(before)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


JOURNALS = {
    "empty": lambda said: b"",
    "torn": lambda said: said[: len(said) // 2],
    "not text": lambda said: b"\xff" + said,
    "a list": lambda said: b"[]",
    "deep": lambda said: b"[" * 100_000,
    "nothing done": lambda said: changed(said, done=0),
    "less done": lambda said: changed(said, done=1),
    "done is text": lambda said: changed(said, done="many"),
    "done is negative": lambda said: changed(said, done=-5),
    "done is more than there is": lambda said: changed(said, done=10**9),
    "done is huge": lambda said: changed(said, done=10**400),
    "another plan": lambda said: changed(said, plan="0" * 32),
    "no plan": lambda said: changed(said, plan=None),
    "another file": lambda said: changed(said, inode=1),
    "summaries are text": lambda said: changed(said, summaries="x"),
    "unknown fields": lambda said: changed(said, x=1),
}


def changed(said: bytes, **values: object) -> bytes:
    """Another journal, sealed as if it were genuine."""
    table = {**json.loads(said), **values}
    del table["check"]
    return json.dumps({**table, "check": seal(table)}).encode()


@pytest.mark.parametrize("case", JOURNALS)
def test_a_journal_that_lies(case, slow, unfinished, run_cli):
    """Whatever stands in it, the bytes are those of an uninterrupted run, or the run is refused."""
    journal = staging(unfinished) / "journal.json"
    journal.write_bytes(JOURNALS[case](journal.read_bytes()))
    code, _, err = run_cli(*slow.command(unfinished))
    assert code == 0, err
    assert content(unfinished) == slow.new
    assert not staging(unfinished).exists() and not beside(unfinished)


@pytest.mark.parametrize(
    "what",
    [
        "a shard is gone",
        "a shard is shorter",
        "out is gone",
        "lock is gone",
        "all is gone",
        "out is a file",
    ],
)
def test_a_staging_folder_that_was_meddled_with(what, slow, unfinished, run_cli):
    place = staging(unfinished)
    shard = sorted((place / "out").glob("*.safetensors"))[0]
    if what == "a shard is gone":
        shard.unlink()
    elif what == "a shard is shorter":
        os.truncate(shard, shard.stat().st_size - 100)
    elif what == "lock is gone":
        (place / "lock").unlink()
    elif what == "all is gone":
        shutil.rmtree(place)
    else:
        shutil.rmtree(place / "out")
        if what == "out is a file":
            (place / "out").write_bytes(b"x")
    assert run_cli(*slow.command(unfinished))[0] == 0
    assert content(unfinished) == slow.new and not place.exists()


@pytest.mark.parametrize("kind", ["file", "link out"])
def test_something_else_of_the_name_of_the_staging_folder(kind, slow, tmp_path, run_cli):
    """Nothing that is not ours is written through or removed."""
    out, other = tmp_path / "out", tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("three years")
    if kind == "file":
        staging(out).write_text("mine")
    else:
        staging(out).symlink_to(other)
    code, _, err = run_cli(*slow.command(out))
    assert (other / "thesis.txt").exists(), "removed"
    assert code == 4 and len(err.splitlines()) == 1 and content(out) is None
    assert (other / "thesis.txt").read_text() == "three years" and list(other.iterdir()) == [other / "thesis.txt"]
    assert kind != "file" or staging(out).read_text() == "mine"
