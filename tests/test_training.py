"""The loop: what changes, what stays, and what is refused."""

import numpy as np
import pytest
import torch
from torch import nn

from taskvec.errors import InputError, KeyMismatch, NonFinite, TaskvecError, UsageError
from taskvec.models import bind, tensors
from taskvec.models.vit import small_vit
from taskvec.select import matching
from taskvec.tasks import Head, Split, Task, accuracy
from taskvec.training import LORA, PRETRAIN, PROBE, STANDARD, TANGENT, Regime, TrainSpec, fit
from taskvec.weights import Checkpoint

torch.set_num_threads(1)  # tensors this small only wait for each other on several threads

QUICK = TrainSpec(steps=4, lr=1e-2, batch=8)


class Untouchable(Split):
    """A split that fails when it is read."""

    def __post_init__(self):
        pass

    def __getattribute__(self, name):
        if name in ("inputs", "labels"):
            raise AssertionError(f"read {name} of a split that training must not see")
        return super().__getattribute__(name)


@pytest.fixture(scope="module")
def model():
    return small_vit(width=8, depth=1, heads=2, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def base(model):
    return Checkpoint.of(model, label="base")


@pytest.fixture(scope="module")
def task():
    g = torch.Generator().manual_seed(1)
    labels = torch.randint(3, (40,), generator=g)
    inputs = torch.rand(40, 1, 8, 8, generator=g)
    for k in range(3):  # class k is bright in row k
        inputs[labels == k, :, k] += 2.0
    hidden = Untouchable(inputs, labels)
    return Task("rows", Split(inputs, labels), hidden, hidden, Head.random(3, 8, generator=g), ("0", "1", "2"))


def same(a: Checkpoint, b: Checkpoint) -> set[str]:
    x, y = a.arrays(), b.arrays()
    assert set(x) == set(y)
    return {n for n in x if x[n].tobytes() == y[n].tobytes()}


def test_standard_trains_every_weight_and_not_the_head(model, base, task):
    module = {n: t.clone() for n, t in model.state_dict().items()}
    made = fit(model, base, task, spec=QUICK)
    assert same(made.checkpoint, base) == set()
    assert torch.equal(made.head.weight, task.head.weight)
    assert all(torch.equal(t, module[n]) for n, t in model.state_dict().items())
    assert made.checkpoint.names == base.names and made.checkpoint.label == "rows"


def test_the_seed_decides_every_bit_and_global_randomness_stays_out(model, base, task):
    state = torch.get_rng_state()
    first = fit(model, base, task, spec=QUICK)
    torch.rand(3)
    second = fit(model, base, task, spec=QUICK)
    other = fit(model, base, task, spec=TrainSpec(steps=4, lr=1e-2, batch=8, seed=1))
    torch.set_rng_state(state)
    assert first.losses == second.losses and same(first.checkpoint, second.checkpoint) == set(base.names)
    assert first.losses != other.losses
    fit(model, base, task, spec=QUICK)
    assert torch.equal(torch.get_rng_state(), state)


def test_training_learns(model, base, task):
    made = fit(model, base, task, spec=TrainSpec(steps=60, lr=1e-2, batch=16))
    f = bind(model)
    before, after = (accuracy(f, tensors(c), task.train, task.head) for c in (base, made.checkpoint))
    assert after.value > max(0.9, before.value)
    assert np.mean(made.losses[-5:]) < 0.5 * made.losses[0]


def test_ascent_raises_the_loss_that_descent_lowers(model, base, task):
    down, up = (fit(model, base, task, spec=TrainSpec(steps=10, lr=1e-2, batch=40), ascent=a) for a in (False, True))
    assert down.losses[0] == up.losses[0]
    assert down.losses[-1] < down.losses[0] < up.losses[-1]


def test_probe_trains_the_head_alone_and_keeps_the_bytes(model, base, task):
    made = fit(model, base, task, regime=PROBE, spec=QUICK)
    assert same(made.checkpoint, base) == set(base.names)
    assert not torch.equal(made.head.weight, task.head.weight)
    assert (made.checkpoint - base).norm() == 0


def test_probe_makes_a_head_where_there_is_none(model, base, task):
    bare = Task("bare", task.train, task.validation, task.test, None, task.classes)
    made = fit(model, base, bare, regime=PROBE, spec=TrainSpec(steps=60, lr=5e-2, batch=40))
    assert made.head.weight.shape == (3, 8)
    assert made.losses[0] == pytest.approx(np.log(3)) and made.losses[-1] < made.losses[0]
    with pytest.raises(UsageError, match="has no head"):
        fit(model, base, bare, regime=STANDARD, spec=QUICK)


def test_pretraining_moves_both(model, base, task):
    made = fit(model, base, task, regime=PRETRAIN, spec=QUICK)
    assert same(made.checkpoint, base) == set() and not torch.equal(made.head.weight, task.head.weight)


def test_a_regime_trains_what_it_selects(model, base, task):
    attention = Regime("attention", matching("*.attn.*.weight"))
    made = fit(model, base, task, regime=attention, spec=QUICK)
    moved = set(base.names) - same(made.checkpoint, base)
    assert moved == {"blocks.0.attn.qkv.weight", "blocks.0.attn.proj.weight"}


def test_an_empty_selection_is_refused(model, base, task):
    with pytest.raises(UsageError, match="selects no parameter"):
        fit(model, base, task, regime=Regime("typo", matching("*.atn.*")), spec=QUICK)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.b.weight = self.a.weight
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x):
        return self.norm(self.b(self.a(x)))


def test_tied_weights_stay_tied_and_buffers_stay():
    model = Tied()
    base = Checkpoint.of(model)
    split = Split(torch.rand(8, 4, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 2)
    task = Task("t", split, split, split, Head(torch.rand(2, 4), torch.zeros(2)), ("0", "1"))
    made = fit(model, base, task, spec=QUICK).checkpoint
    # Tied weights are one tensor, under its first name, before and after.
    assert base.array("b.weight").tobytes() == base.array("a.weight").tobytes() != made.array("a.weight").tobytes()
    assert set(made.names) == set(base.names) and "b.weight" not in base.names
    model.load_state_dict(tensors(made), strict=False)
    assert (
        model.b.weight is model.a.weight
        and model.a.weight.detach().numpy().tobytes() == made.array("a.weight").tobytes()
    )
    kept = {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    assert same(made, base) == kept


@pytest.mark.parametrize("names", [("a.weight",), ("b.weight",), ("a.weight", "b.weight")])
def test_a_base_may_hold_a_tied_tensor_under_any_of_its_names(names):
    model = Tied()
    table = {n: t.numpy().copy() for n, t in model.state_dict().items() if n not in ("a.weight", "b.weight")}
    doubled = 2 * model.a.weight.detach().numpy()
    base = Checkpoint.of({**table, **dict.fromkeys(names, doubled)}, label="base")
    x = torch.ones(1, 4)
    moved = Tied()
    moved.load_state_dict(model.state_dict())
    with torch.no_grad():
        moved.a.weight.copy_(torch.from_numpy(doubled))
    assert torch.equal(bind(model)(tensors(base), x), moved.eval()(x))
    split = Split(torch.rand(8, 4, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 2)
    task = Task("t", split, split, split, Head(torch.rand(2, 4), torch.zeros(2)), ("0", "1"))
    made = fit(model, base, task, spec=QUICK, regime=Regime("b", select=matching("b.*"))).checkpoint
    vector = made - base  # the names of the base, all of them
    assert all(np.any(vector.array(n)) for n in names)
    assert len({made.array(n).tobytes() for n in names}) == 1


def test_inputs_that_are_not_finite_are_named():
    inputs = torch.zeros(8, 1, 8, 8)
    inputs[5, 0, 2, 2] = torch.nan
    with pytest.raises(InputError, match="1 of 8 inputs hold NaN or infinity, the first is sample 5"):
        Split(inputs, torch.zeros(8, dtype=torch.int64))


def test_a_model_that_does_not_fit_the_inputs_says_so(model, base, task):
    wide = Split(torch.zeros(8, 3, 8, 8), torch.zeros(8, dtype=torch.int64))
    with pytest.raises(UsageError, match=r"cannot be applied to inputs of torch.float32, shape \[8, 3, 8, 8\]"):
        fit(model, base, Task("wide", wide, wide, wide, task.head, task.classes), spec=QUICK)
    narrow = task.with_head(Head(torch.zeros(3, 5), torch.zeros(3)))
    with pytest.raises(KeyMismatch, match=r"features of shape \[8, 8\], the head takes \[n, 5\]"):
        fit(model, base, narrow, spec=QUICK)
    with pytest.raises(UsageError, match="Checkpoint as base and a Regime, got Checkpoint and str"):
        fit(model, base, task, regime="tangent", spec=QUICK)


def test_a_loss_that_depends_on_nothing_is_refused(task):
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(64, 8)

        def forward(self, x):
            return self.inner(x.flatten(1)).detach()

    model = Cut()
    for regime in (STANDARD, TANGENT):
        with pytest.raises(UsageError, match="nothing can be learnt"):
            fit(model, Checkpoint.of(model), task, regime=regime, spec=QUICK)


def test_a_base_of_another_shape_is_refused(model, task):
    other = small_vit(width=16, depth=1, heads=2, generator=torch.Generator().manual_seed(0))
    with pytest.raises(KeyMismatch, match="of another shape"):
        fit(model, Checkpoint.of(other), task, spec=QUICK)


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"batch": 0}, {"accumulate": 0}, {"lr": 0.0}, {"lr": float("nan")}, {"warmup": 1.5}]
)
def test_a_spec_that_means_nothing_is_refused(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        TrainSpec(**wrong)


def test_the_augmentation_sees_each_batch(model, base, task):
    seen = []

    def blank(x, generator):
        seen.append(len(x))
        return torch.zeros_like(x)

    fit(model, base, task, spec=QUICK, augment=blank)
    assert seen == [8, 8, 8, 8]


class Stopped(Exception):
    pass


def stop_after(steps):
    def progress(step, loss):
        if step == steps:
            raise Stopped

    return progress


@pytest.mark.parametrize("regime", [STANDARD, TANGENT, LORA, PRETRAIN], ids=lambda r: r.name)
def test_a_run_goes_on_bit_for_bit(regime, model, base, task, tmp_path):
    """Stopped between two states, with epochs, augmentation and accumulation under way: the same weights, head and losses."""

    def noisy(x, generator):
        return x + 0.1 * torch.randn(x.shape, generator=generator)

    spec = TrainSpec(steps=11, lr=1e-2, batch=12, accumulate=2, weight_decay=0.1)
    options = {"regime": regime, "spec": spec, "augment": noisy}
    whole = fit(model, base, task, **options)
    state = tmp_path / "run.safetensors"
    with pytest.raises(Stopped):
        fit(model, base, task, **options, state=state, every=3, progress=stop_after(8))
    begun = []
    again = fit(model, base, task, **options, state=state, every=3, progress=lambda step, _: begun.append(step))
    assert begun == [7, 8, 9, 10, 11]
    assert again.losses == whole.losses and same(again.checkpoint, whole.checkpoint) == set(base.names)
    assert torch.equal(again.head.weight, whole.head.weight)
    once_more = fit(model, base, task, **options, state=state, every=3)
    assert once_more.losses == whole.losses


def test_another_run_is_not_continued(model, base, task, tmp_path):
    state = tmp_path / "run.safetensors"
    fit(model, base, task, spec=QUICK, state=state, every=2)
    with pytest.raises(UsageError, match=r"steps was 4, now 6; lr was 0.01, now 0.02"):
        fit(model, base, task, spec=TrainSpec(steps=6, lr=2e-2, batch=8), state=state)
    other = Checkpoint.of({n: a + 1 for n, a in base.arrays().items()})
    with pytest.raises(UsageError, match="base was"):
        fit(model, other, task, spec=QUICK, state=state)
    base.save(tmp_path / "base.safetensors")
    with pytest.raises(UsageError, match="not the state of a training run"):
        fit(model, base, task, spec=QUICK, state=tmp_path / "base.safetensors")


def test_a_failed_run_names_the_last_good_state(model, base, task, tmp_path):
    state = tmp_path / "run.safetensors"

    def poison(x, generator, seen=[0]):  # noqa: B006
        seen[0] += 1
        return x * (torch.nan if seen[0] == 4 else 1)

    with pytest.raises(NonFinite, match="step 4 of 9") as error:
        fit(model, base, task, spec=TrainSpec(steps=9, batch=8), state=state, every=2, augment=poison)
    (note,) = error.value.__notes__
    assert "state after step 2 is kept in" in note and "run.safetensors" in note


def test_accumulated_batches_are_one_large_batch(model, base, task):
    whole = fit(model, base, task, spec=TrainSpec(steps=3, lr=1e-2, batch=40))
    parts = fit(model, base, task, spec=TrainSpec(steps=3, lr=1e-2, batch=10, accumulate=4))
    for n in base.names:
        if whole.vector.array(n).ndim > 1:
            np.testing.assert_allclose(parts.vector.array(n), whole.vector.array(n), atol=1e-4)


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (torch.full((40,), 3), "labels go up to 3; with 3 classes"),
        (torch.full((40,), -1), "the least -1"),
        (torch.rand(40), "must be classes from 0, int64"),
        (torch.zeros(40, dtype=torch.int32), "got torch.int32"),
        (torch.zeros(40, 2, dtype=torch.long), "shape"),
        (np.zeros(40), "type ndarray"),
        (torch.zeros(5, dtype=torch.long), "5 training samples, fewer than a batch of 8"),
    ],
)
def test_labels_that_cannot_be_meant(labels, says, model, base, task):
    with pytest.raises(TaskvecError, match=says):
        split = Split(task.train.inputs[: len(labels)], labels)
        fit(model, base, Task("odd", split, split, split, task.head, task.classes), spec=QUICK)


def test_a_label_beyond_the_classes_is_not_scored(model, base, task):
    split = Split(task.train.inputs, torch.full((40,), 7))
    with pytest.raises(UsageError, match="labels go up to 7; the head has 3 classes"):
        accuracy(bind(model), tensors(base), split, task.head)


def test_vectors_on_the_way_are_kept_also_over_an_interruption(model, base, task, tmp_path):
    spec, state = TrainSpec(steps=6, lr=1e-2, batch=8), tmp_path / "run.safetensors"
    short = fit(model, base, task, spec=spec, keep=(2, 5, 6))
    assert list(short.kept) == [2, 5, 6]
    assert all(short.kept[6].array(n).tobytes() == a.tobytes() for n, a in short.vector.arrays().items())
    assert 0 < short.kept[2].norm() < short.vector.norm() and 0 < short.kept[2].cosine(short.vector) < 1
    with pytest.raises(Stopped):
        fit(model, base, task, spec=spec, keep=(2, 5, 6), state=state, every=3, progress=stop_after(4))
    again = fit(model, base, task, spec=spec, keep=(2, 5, 6), state=state, every=3)
    for step, vector in short.kept.items():
        assert all(again.kept[step].array(n).tobytes() == a.tobytes() for n, a in vector.arrays().items())


class TestEarlyStop:
    @pytest.fixture
    def seen(self, task):
        """The task with a validation split that may be read, on which labels of the last class are wrong."""
        wrong = task.train.labels.clone()
        wrong[wrong == 2] = 0
        return Task("seen", task.train, Split(task.train.inputs, wrong), task.test, task.head, task.classes)

    def loss(self, model, base, made, task):
        logits = task.head(bind(model)(tensors(made.checkpoint), task.validation.inputs))
        return float(nn.functional.cross_entropy(logits, task.validation.labels))

    SPEC = TrainSpec(steps=60, lr=3e-2, batch=8, check=4)

    def test_the_best_look_is_returned(self, model, base, seen):
        made = fit(model, base, seen, spec=self.SPEC)
        assert list(made.looks) == [*range(4, 61, 4)]
        assert made.step == min(made.looks, key=made.looks.__getitem__) < 60, made.looks
        assert self.loss(model, base, made, seen) == pytest.approx(min(made.looks.values()), rel=1e-4)
        assert len(made.losses) == 60
        there = fit(model, base, seen, spec=self.SPEC, keep=[made.step]).kept[made.step]
        for name, values in made.vector.arrays().items():
            np.testing.assert_array_equal(values, there.arrays()[name])

    def test_patience_ends_the_run(self, model, base, seen):
        whole = fit(model, base, seen, spec=self.SPEC)
        made = fit(model, base, seen, spec=TrainSpec(steps=60, lr=3e-2, batch=8, check=4, patience=2))
        assert len(made.losses) < 60
        assert made.losses == whole.losses[: len(made.losses)]
        assert len([s for s in made.looks if s > made.step]) == 2

    def test_a_trained_head_is_the_one_of_the_best_look(self, model, base, seen):
        made = fit(model, base, seen, regime=PROBE, spec=TrainSpec(steps=200, lr=0.3, batch=8, check=4))
        assert made.step < 200
        got = self.loss(model, base, made, seen.with_head(made.head))
        assert got == pytest.approx(min(made.looks.values()), rel=1e-4)

    def test_it_goes_on_where_it_was_cut(self, model, base, seen, tmp_path):
        spec = TrainSpec(steps=60, lr=3e-2, batch=8, check=4, patience=4)
        whole = fit(model, base, seen, spec=spec)

        def stop(step, loss):
            if step == whole.step + 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fit(model, base, seen, spec=spec, progress=stop, state=tmp_path / "s.safetensors", every=1)
        made = fit(model, base, seen, spec=spec, state=tmp_path / "s.safetensors", every=1)
        assert (made.step, made.looks, made.losses) == (whole.step, whole.looks, whole.losses)
        assert same(made.checkpoint, whole.checkpoint) == set(base.names)

    def test_what_makes_no_sense_is_refused(self, model, base, seen):
        with pytest.raises(UsageError, match="Set check"):
            TrainSpec(patience=3)
        with pytest.raises(UsageError, match="check=-1"):
            TrainSpec(check=-1)
        with pytest.raises(UsageError, match="Leave out check"):
            fit(model, base, seen, ascent=True, spec=self.SPEC)
