"""Heads by task in one file."""

from dataclasses import replace

import pytest
import torch

from taskvec.errors import KeyMismatch, StorageError, UnknownName, UsageError
from taskvec.tasks import Head, Split, Task, read_heads, save_heads, with_heads
from taskvec.weights import Checkpoint


def task(name: str, classes: tuple[str, ...], seed: int) -> Task:
    split = Split(torch.zeros(4, 3), torch.tensor([0, 1, 0, 1]))
    head = Head.random(len(classes), 5, generator=torch.Generator().manual_seed(seed))
    return Task(name, split, split, split, replace(head, normalise=seed == 1), classes)


@pytest.fixture
def tasks():
    return [task("cars", ("audi", "bmw"), 0), task("pets", ("cat", "dog", "fish"), 1)]


def test_heads_come_back_with_their_classes(tasks, tmp_path):
    path = save_heads(tmp_path / "heads.safetensors", tasks)
    kept = read_heads(path)
    assert {n: c for n, (_, c) in kept.items()} == {"cars": ("audi", "bmw"), "pets": ("cat", "dog", "fish")}
    bare = [replace(t, head=None) for t in reversed(tasks)]
    for got, wanted in zip(with_heads(bare, path), reversed(tasks), strict=True):
        assert torch.equal(got.needs_head().weight, wanted.needs_head().weight)
        assert torch.equal(got.needs_head().bias, wanted.needs_head().bias)
        assert got.needs_head().normalise == wanted.needs_head().normalise
    with pytest.raises(StorageError, match="overwrite"):
        save_heads(path, tasks)
    assert list(read_heads(save_heads(path, tasks[:1], overwrite=True))) == ["cars"]


def test_a_head_of_other_classes_is_refused(tasks, tmp_path):
    path = save_heads(tmp_path / "heads.safetensors", tasks)
    with pytest.raises(UnknownName, match=r"no head for 'car'.*Did you mean 'cars'"):
        with_heads([replace(tasks[0], name="car")], path)
    with pytest.raises(KeyMismatch, match="only in the task 'vw', only in the head 'bmw'"):
        with_heads([replace(tasks[0], classes=("audi", "vw"))], path)
    with pytest.raises(KeyMismatch, match="the order differs"):
        with_heads([replace(tasks[0], classes=("bmw", "audi"))], path)


def test_what_is_no_file_of_heads_is_refused(tasks, tmp_path):
    with pytest.raises(UsageError, match="must differ"):
        save_heads(tmp_path / "h.safetensors", [tasks[0], tasks[0]])
    with pytest.raises(UsageError, match="has no head"):
        save_heads(tmp_path / "h.safetensors", [replace(tasks[0], head=None)])
    with pytest.raises(KeyMismatch, match=r"Head\.read"):
        read_heads(tasks[0].needs_head().save(tmp_path / "one.safetensors"))
    odd = Checkpoint.of({"heads": torch.tensor([123, 125, 125], dtype=torch.uint8)}).save(tmp_path / "odd.safetensors")
    with pytest.raises(KeyMismatch, match="does not hold heads"):
        read_heads(odd)
