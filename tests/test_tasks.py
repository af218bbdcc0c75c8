"""Splits, heads, scores, and the digits."""

import numpy as np
import pytest
import torch
from torch import nn

from taskvec.errors import InputError, KeyMismatch, NonFinite, UnknownName, UsageError
from taskvec.models import bind
from taskvec.tasks import Head, Split, Task, accuracy, joined
from taskvec.tasks.vision import DOMAINS, PARTS, digits, jitter
from taskvec.weights import Checkpoint

torch.set_num_threads(1)  # tensors this small only wait for each other on several threads

pytest.importorskip("sklearn", reason="scikit-learn is not installed (extra: eval)")


@pytest.fixture(scope="module")
def head():
    return Head.random(10, 4, generator=torch.Generator().manual_seed(0))


def rows(split: Split) -> list[bytes]:
    return [x.numpy().tobytes() for x in split.inputs]


def test_the_parts_of_the_digits_are_disjoint_and_whole(head):
    fine, pre = digits(head), digits(head, part="pretrain")
    parts = [pre.train, fine.train, fine.validation, fine.test]
    assert [len(p) for p in parts] == [*PARTS.values(), 347]
    # The 1,797 images are all different, so equal bytes would be the same image twice.
    assert len({r for p in parts for r in rows(p)}) == 1797
    assert rows(pre.test) == rows(fine.test)


def test_the_seed_chooses_the_parts(head):
    assert rows(digits(head, seed=1).test) == rows(digits(head, seed=1).test)
    assert set(rows(digits(head, seed=1).test)) != set(rows(digits(head, seed=2).test))


def test_domains_apply_from_left_to_right(head):
    plain, both = digits(head), digits(head, domain="mirrored+faint")
    assert torch.equal(both.test.inputs, 0.3 * plain.test.inputs.flip(3))
    assert all(d(plain.test.inputs).shape == plain.test.inputs.shape for d in DOMAINS.values())
    assert both.name == "mirrored+faint"


def test_kept_digits_keep_their_labels(head):
    task = digits(head, keep={3, 8})
    assert set(task.train.labels.tolist()) == {3, 8}
    assert len(task.classes) == 10


def test_digits_refuses_what_it_does_not_know(head):
    with pytest.raises(UnknownName, match="Did you mean 'rotated'"):
        digits(head, domain="rotatd")
    for keep in (set(), {10}):
        with pytest.raises(UsageError, match="digits from 0 to 9"):
            digits(head, keep=keep)
    with pytest.raises(UsageError, match="'pretrain' or 'train'"):
        digits(head, part="test")


def test_jitter_is_seeded_and_leaves_its_input(head):
    images = digits(head).train.inputs[:20]
    before = images.clone()
    a, b, c = (jitter(images, torch.Generator().manual_seed(s), domains=("rotated",), share=0.5) for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c) and torch.equal(images, before)


def test_a_split_needs_samples_and_labels():
    with pytest.raises(InputError, match="empty"):
        Split(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(InputError, match="3 inputs and 2 labels"):
        Split(torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64))


def test_a_head_comes_back_from_its_file(head, tmp_path):
    head.save(tmp_path / "head.safetensors")
    again = Head.read(tmp_path / "head.safetensors")
    assert torch.equal(again.weight, head.weight) and torch.equal(again.bias, head.bias)
    Checkpoint.of({"weight": np.zeros((2, 2), np.float32)}).save(tmp_path / "other.safetensors")
    with pytest.raises(KeyMismatch, match="not a head"):
        Head.read(tmp_path / "other.safetensors")


def test_a_task_says_when_its_head_does_not_fit_or_lacks(head):
    split = Split(torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(UsageError, match="2 classes but its head has 10 rows"):
        Task("t", split, split, split, head, ("a", "b"))
    with pytest.raises(UsageError, match="regime=PROBE"):
        Task("t", split, split, split, None, ("a", "b")).needs_head()


def test_joined_tasks_are_split_after_split(head):
    a, b = digits(head, keep={1}), digits(head, keep={2})
    both = joined("both", [a, b])
    assert len(both.train) == len(a.train) + len(b.train)
    assert both.test.labels.tolist() == a.test.labels.tolist() + b.test.labels.tolist()
    with pytest.raises(UsageError, match="all with one head"):
        joined("both", [a, digits(None)])


def test_accuracy_is_the_share_of_hits_whatever_the_batch():
    f = bind(nn.Linear(2, 2, bias=False))
    params = {"weight": torch.eye(2)}
    x = torch.tensor([[2.0, 1.0], [1.0, 2.0], [3.0, 0.0], [0.0, 1.0], [5.0, 1.0]])
    split = Split(x, torch.tensor([0, 1, 1, 1, 0]))
    head = Head(torch.eye(2), torch.zeros(2))
    scores = [accuracy(f, params, split, head, batch=b) for b in (1, 2, 5, 100)]
    assert {(s.value, s.n) for s in scores} == {(0.8, 5)}
    with pytest.raises(NonFinite, match="not finite"):
        accuracy(f, {"weight": torch.full((2, 2), torch.inf)}, split, head)
