"""Heads by task in one file."""

from dataclasses import replace

import pytest
import torch

from taskvec.errors import KeyMismatch, StorageError, UnknownName, UsageError
from taskvec.models import bind, tensors
from taskvec.models.forward import linearised
from taskvec.search import anywhere, curves
from taskvec.tasks import Head, Split, Task, accuracy, read_heads, save_heads, side_by_side, with_heads
from taskvec.training import TrainSpec, fit
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


class TestSideBySide:
    def test_a_sample_competes_within_its_own_task(self):
        cars, pets = task("cars", ("audi", "bmw"), 0), task("pets", ("cat", "dog", "fish"), 2)
        both = side_by_side("both", [cars, pets])
        assert both.classes == ("cars: audi", "cars: bmw", "pets: cat", "pets: dog", "pets: fish")
        assert both.train.labels.tolist() == [0, 1, 0, 1, 2, 3, 2, 3]
        features = torch.randn(8, 5, generator=torch.Generator().manual_seed(3))
        logits = both.needs_head()(features)
        loss = torch.nn.functional.cross_entropy
        whole = loss(both.needs_head().within(logits, both.train.labels), both.train.labels, reduction="sum")
        apart = [
            loss(t.needs_head()(z), t.train.labels, reduction="sum")
            for t, z in zip((cars, pets), features.split(4), strict=True)
        ]
        torch.testing.assert_close(whole, sum(apart))
        lone = cars.needs_head()
        assert lone.within(logits, both.train.labels) is logits

    def test_groups_and_notes_stay(self):
        from dataclasses import replace

        cars, pets = task("cars", ("audi", "bmw"), 0), task("pets", ("cat", "dog", "fish"), 2)
        who = torch.tensor([True, False, False, True])
        cars = replace(cars, train=replace(cars.train, groups={"old": who}), notes=("limited",))
        both = side_by_side("both", [cars, pets])
        assert both.train.groups["old"].tolist() == [*who.tolist(), *[False] * 4]
        assert both.notes == ("cars: limited",) and not both.test.groups

    def test_one_model_learns_both(self):
        """Joint training of a linear model lowers both losses; its accuracy is the mean of the tasks'."""
        g = torch.Generator().manual_seed(0)

        def learnable(name, classes, seed):
            x = torch.randn(40, 3, generator=g)
            y = torch.randint(len(classes), (40,), generator=g)
            x[torch.arange(40), y % 3] += 4
            head = Head.random(len(classes), 5, generator=torch.Generator().manual_seed(seed))
            return Task(name, *[Split(x, y)] * 3, head, classes)

        tasks = [learnable("cars", ("audi", "bmw"), 0), learnable("pets", ("cat", "dog", "fish"), 1)]
        model = torch.nn.Linear(3, 5)
        base = Checkpoint.of(model, label="base")
        both = side_by_side("both", tasks)
        made = fit(model, base, both, spec=TrainSpec(steps=150, lr=0.05, batch=16))
        f, point = bind(model), tensors(made.checkpoint)
        scores = [accuracy(f, point, t.test, t.needs_head()).value for t in tasks]
        assert min(scores) > 0.85
        together = accuracy(f, point, both.test, both.needs_head())
        assert together.value == pytest.approx(sum(scores) / 2)
        # This model is linear, so through its linearisation everything is the same.
        data = {"both": (both.test, both.needs_head())}
        along = curves(model, base, made.vector, data, coefficients=(1.0,), forward=linearised)["both"]
        at = anywhere(model, base, {"v": made.vector}, data, forward=linearised)
        assert along[0] == at({"v": 1.0})["both"] == together

    def test_a_file_keeps_whose_classes_are_whose(self, tmp_path):
        both = side_by_side("both", [task("cars", ("audi", "bmw"), 0), task("pets", ("cat", "dog", "fish"), 2)])
        assert Head.read(both.needs_head().save(tmp_path / "h.safetensors")).vocabularies == (2, 3)

    def test_heads_that_differ_in_kind_are_refused(self):
        with pytest.raises(UsageError, match="all normalise"):
            side_by_side("both", [task("cars", ("audi", "bmw"), 0), task("pets", ("cat", "dog", "fish"), 1)])
