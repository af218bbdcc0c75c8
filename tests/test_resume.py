"""An output that was interrupted is continued, and ends as if it had never been."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from taskvec.errors import StorageError
from taskvec.methods import ties
from taskvec.weights import Checkpoint, execute, staging, write

N = 40


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execute, "BLOCK", 500)
    monkeypatch.setattr(write, "CHECKPOINT", 8000)


@pytest.fixture
def edited(tmp_path: Path) -> Callable[[], Checkpoint]:
    for seed, name in enumerate(("base", "a", "b")):
        rng = np.random.default_rng(seed)
        Checkpoint.of({f"w{i}": rng.normal(size=(30, 40)).astype(np.float32) for i in range(N)}).save(tmp_path / name)

    def build(coefficient: float = 0.5) -> Checkpoint:
        base, a, b = (Checkpoint.read(tmp_path / n) for n in ("base", "a", "b"))
        return base + coefficient * ties([a - base, b - base])

    return build


def interrupt_after(calls: int, what: type[BaseException] = KeyboardInterrupt) -> Callable[[int], None]:
    left = [calls]

    def progress(_: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise what

    return progress


def passes(point: Checkpoint) -> int:
    """Blocks of the two passes that a TIES cut takes, before the first block of the output."""
    return 2 * N * 3


def contents(place: Path) -> dict[str, bytes]:
    files = sorted(place.rglob("*")) if place.is_dir() else [place]
    return {p.name: p.read_bytes() for p in files}


@pytest.mark.parametrize(("out", "shard_size"), [("out", None), ("out", 20_000), ("out.safetensors", None)])
@pytest.mark.parametrize("at", [1, 60, 110])
def test_continues(at, out, shard_size, edited, tmp_path, caplog):
    options = {} if shard_size is None else {"shard_size": shard_size}
    whole = edited().save(tmp_path / "whole" / out, **options)
    point, target, place = edited(), tmp_path / out, tmp_path / f".{out}.taskvec"
    with pytest.raises(KeyboardInterrupt) as error:
        point.save(target, progress=interrupt_after(passes(point) + at), threads=1, **options)
    assert not target.exists() and str(place) in error.value.__notes__[0]
    done = json.loads((place / "journal.json").read_text())["done"]
    assert done <= at and (at < 60 or done > 0)
    blocks: list[int] = []
    caplog.set_level(logging.INFO, "taskvec")
    edited().save(target, progress=blocks.append, threads=1, **options)
    assert "continues" in caplog.text
    assert len(blocks) == N * 3  # no pass is repeated; blocks that were finished are counted at once
    got, want = contents(target), contents(whole)
    if target.is_dir():  # in a file by itself the recipe's "read" differs, and stands in the header
        del got["taskvec.json"], want["taskvec.json"]
        assert got == want
    a, b = Checkpoint.read(target), Checkpoint.read(whole)
    assert all(a.array(n).tobytes() == b.array(n).tobytes() for n in b.names)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["base", "a", "b", "whole", out])


def test_finished_blocks_are_not_computed_again(edited, tmp_path, monkeypatch):
    from taskvec.weights import produce

    target = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        edited().save(target, progress=interrupt_after(passes(edited()) + 110), threads=1, shard_size=20_000)
    done = json.loads((tmp_path / ".out.taskvec" / "journal.json").read_text())["done"]
    seen = []
    real = produce.producer

    def counting(*a, **k):
        made = real(*a, **k)
        return lambda block: (seen.append(block), made(block))[1]

    monkeypatch.setattr(write, "producer", counting)
    edited().save(target, threads=1, shard_size=20_000)
    assert done > 50 and len(seen) == N * 3 - done


def test_before_the_first_checkpoint_nothing_stays(edited, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        edited().save(tmp_path / "out", progress=interrupt_after(3))
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize("change", ["another edit", "an input", "another layout", "the journal", "a file"])
def test_what_no_longer_fits_is_not_continued(change, edited, tmp_path, caplog):
    target, place = tmp_path / "out", tmp_path / ".out.taskvec"
    with pytest.raises(KeyboardInterrupt):
        edited().save(target, progress=interrupt_after(passes(edited()) + 100), threads=1)
    options, coefficient = {}, 0.5
    if change == "another edit":
        coefficient = 0.6
    elif change == "an input":
        os.utime(tmp_path / "a" / "model.safetensors", ns=(1, 1))
    elif change == "another layout":
        options = {"shard_size": 20_000}
    elif change == "the journal":
        (place / "journal.json").write_text((place / "journal.json").read_text()[:-5])
    else:
        (place / "out" / "model.safetensors").unlink()
    caplog.set_level(logging.INFO, "taskvec")
    edited(coefficient).save(target, **options)
    want = edited(coefficient)
    got = Checkpoint.read(target)
    assert all(got.array(n).tobytes() == want.array(n).tobytes() for n in want.names[:3])
    assert ("continues" in caplog.text) == (change == "a file")  # its passes still stand
    assert not place.exists()


def test_a_bad_input_leaves_nothing_to_continue(edited, tmp_path):
    from taskvec.errors import NonFinite

    table = {f"w{i}": np.full((30, 40), np.nan if i == N - 1 else 1, np.float32) for i in range(N)}
    Checkpoint.of(table).save(tmp_path / "nan", on_nonfinite="allow")
    base = Checkpoint.read(tmp_path / "base")
    with pytest.raises(NonFinite):
        (base + 0.5 * (Checkpoint.read(tmp_path / "nan") - base)).save(tmp_path / "out")
    assert not list(tmp_path.glob(".out*")) and not (tmp_path / "out").exists()


def test_two_runs_to_one_target(edited, tmp_path):
    def second(_: int) -> None:
        with pytest.raises(StorageError, match=f"in use by another run .process {os.getpid()}"):
            edited(0.7).save(tmp_path / "out")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        edited().save(tmp_path / "out", progress=second)
    edited().save(tmp_path / "out")


def test_killed_between_the_exchange_and_the_cleaning(edited, tmp_path, monkeypatch):
    """The old output then lies where the new one was built, and must not be taken for it."""
    target = edited().save(tmp_path / "out")
    old = contents(target)

    class Killed(BaseException):
        pass

    def killed(place: Path) -> None:
        if (place / "out").exists():
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(staging, "_clear", killed)
        with pytest.raises(Killed):
            edited(0.6).save(target, overwrite=True)
    assert contents(target) != old and contents(tmp_path / ".out.taskvec" / "out") == old
    new = contents(target)
    edited(0.6).save(target, overwrite=True)
    assert contents(target) == new
    assert not (tmp_path / ".out.taskvec").exists()


def test_arrays_in_memory_are_not_continued(tmp_path):
    table = {f"w{i}": np.ones(2000, np.float32) for i in range(N)}
    base = Checkpoint.of(table, label="base")
    point = base + 0.5 * (Checkpoint.of({n: x * 2 for n, x in table.items()}, label="tuned") - base)
    with pytest.raises(KeyboardInterrupt):
        point.save(tmp_path / "out", progress=interrupt_after(100))
    assert not list(tmp_path.iterdir())


def test_what_files_left_is_not_continued_from_arrays(edited, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        edited().save(tmp_path / "out", progress=interrupt_after(passes(edited()) + 100))
    table = {f"w{i}": np.full((30, 40), i, np.float32) for i in range(N)}
    Checkpoint.of(table).save(tmp_path / "out")
    assert Checkpoint.read(tmp_path / "out").array("w7").tolist() == table["w7"].tolist()


def test_a_link_to_an_output_stays_a_link(edited, tmp_path):
    edited().save(tmp_path / "out")
    (tmp_path / "link").symlink_to("out")
    edited(0.6).save(tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink() and "0.6" in (tmp_path / "out" / "taskvec.json").read_text()


def test_an_input_that_changes_while_it_is_read(edited, tmp_path):
    from taskvec.errors import InputError

    def touch(_: int) -> None:
        os.utime(tmp_path / "a" / "model.safetensors", ns=(1, 1))

    with pytest.raises(InputError, match="changed while"):
        edited().save(tmp_path / "out", progress=touch)
    assert not list(tmp_path.glob(".out*")) and not (tmp_path / "out").exists()
