"""Sweeps equal merges; coefficients come from validation; the test split is read once per row."""

import numpy as np
import pytest
import torch
from torch import nn

from taskvec.errors import BaseMismatch, KeyMismatch, UsageError
from taskvec.models import linearised, plain
from taskvec.models.vit import small_vit
from taskvec.protocols import addition, analogy, few_shot, geometry, negation
from taskvec.protocols.few_shot import shot_rows
from taskvec.protocols.negation import constrained_minimum
from taskvec.results import read_result
from taskvec.search import along, anywhere, curves, grid
from taskvec.tasks import Head, Split, Task
from taskvec.tasks.lazy import LazyInputs
from taskvec.training import TANGENT, TrainSpec
from taskvec.weights import Checkpoint

torch.set_num_threads(1)  # tensors this small only wait for each other on several threads

# ---- sweep ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def point():
    model = small_vit(width=16, depth=2, generator=torch.Generator().manual_seed(0))
    base = Checkpoint.of(model, label="base")
    noise = np.random.default_rng(0)
    tuned = {n: (a + noise.standard_normal(a.shape).astype(np.float32)) for n, a in base.arrays().items()}
    return model, base, Checkpoint.of(tuned, label="tuned") - base


def test_a_sweep_equals_merging_bit_for_bit(point):
    model, base, vector = point
    coefficients = (0.3, 0.0, 1.0, -0.7, 1 / 3)  # in no order, so that drift would show
    for c, params in zip(coefficients, along(base, vector, coefficients, like=model), strict=True):
        merged = (base + c * vector).arrays()
        assert set(merged) == set(params)
        for name, array in merged.items():
            assert params[name].numpy().tobytes() == array.tobytes(), (c, name)


def test_coefficient_zero_gives_the_bytes_of_the_base(point):
    model, base, vector = point
    *_, params = along(base, vector, (5.0, 0.0), like=model)
    assert all(params[n].numpy().tobytes() == a.tobytes() for n, a in base.arrays().items())


def test_a_partial_vector_moves_its_names_only(point):
    model, base, vector = point
    (params,) = along(base, vector.restrict("*.attn.*"), (1.0,), like=model)
    moved = {n for n, a in base.arrays().items() if params[n].numpy().tobytes() != a.tobytes()}
    assert moved == {n for n in base.names if ".attn." in n}


def test_a_sweep_refuses_foreign_vectors_and_models(point):
    _, base, vector = point
    other = Checkpoint.of({n: a + 1 for n, a in base.arrays().items()}, label="other")
    with pytest.raises(BaseMismatch):
        next(along(other, vector, (1.0,)))
    wide = small_vit(width=32, depth=2, generator=torch.Generator().manual_seed(0))
    with pytest.raises(KeyMismatch):
        next(along(base, vector, (1.0,), like=wide))


def test_grid():
    assert grid(0, 1, 21)[3] == 0.15 and len(grid(0, 1, 21)) == 21 and grid(0, 1, 21)[-1] == 1.0
    for wrong in ((0, 1, 1), (1, 0, 5), (0, float("inf"), 5)):
        with pytest.raises(UsageError):
            grid(*wrong)


# ---- choosing ---------------------------------------------------------------------------------------------------------


def test_the_constrained_minimum_of_a_hand_made_curve():
    target = [0.9, 0.6, 0.3, 0.3, 0.0]
    control = [0.8, 0.79, 0.76, 0.77, 0.2]
    coefficients = (0.0, 0.5, 1.0, 1.5, 2.0)
    assert constrained_minimum(target, control, floor=0.76, coefficients=coefficients) == 2  # smallest of equals
    assert constrained_minimum(target, control, floor=0.95 * 0.8, coefficients=coefficients) == 2  # exactly 95 %
    assert constrained_minimum(target, control, floor=0.78, coefficients=coefficients) == 1
    assert constrained_minimum(target, control, floor=0.0, coefficients=coefficients) == 4
    assert constrained_minimum(target, control, floor=0.9, coefficients=coefficients) == 0  # none: leave the base
    assert constrained_minimum([0.1, 0.9], [0.1, 0.1], floor=0.9, coefficients=(-1.0, 0.0)) == 1


# ---- protocols on a model whose answers are known -----------------------------------------------------------------------
#
# Features are W x with W = 0 at the base; the head is the identity, so class 0 wins at the base (ties go to the first).
# Input e_k has label k. The vector of task k has a single one at [label, k]: it teaches input k its label and nothing else.


class Counted(Split):
    """A split that counts how often its inputs are read."""

    def __post_init__(self):
        object.__setattr__(self, "reads", 0)

    def __getattribute__(self, name):
        if name == "inputs":
            object.__setattr__(self, "reads", object.__getattribute__(self, "reads") + 1)
        return super().__getattribute__(name)


MODEL = nn.Linear(4, 4, bias=False)
BASE = Checkpoint.of({"weight": np.zeros((4, 4), np.float32)}, label="base")


def teach(*cells):
    w = np.zeros((4, 4), np.float32)
    for k in cells:
        w[k, k] = 1.0
    return Checkpoint.of({"weight": w}, label="+".join(map(str, cells))) - BASE


def known(name, *cells, test=None):
    def split(cells, n, kind):
        return kind(torch.eye(4)[list(cells)].repeat(n, 1), torch.tensor(list(cells)).repeat(n))

    classes = ("0", "1", "2", "3")
    head = Head(torch.eye(4), torch.zeros(4))
    hidden = split(test or cells, 5, Counted)
    return Task(name, split(cells, 3, Split), split(cells, 3, Counted), hidden, head, classes)


def test_addition_of_tasks_that_do_not_meet_is_exact():
    tasks = [known("one", 1), known("two", 2)]
    vectors = {"one": teach(1), "two": teach(2)}
    found = addition(MODEL, BASE, vectors, tasks, methods={"nothing": 0.0 * teach(1)}, coefficients=grid(0, 1, 5))
    assert [r.name for r in found.rows] == ["base", "fine-tuned", "random vector", "task arithmetic", "nothing"]
    assert found.row("base").mean.value == 0 and found.row("base").mean_normalised == 0
    assert found.row("fine-tuned").normalised == {"one": 1.0, "two": 1.0}
    added = found.row("task arithmetic")
    assert added.mean.value == 1.0 and added.mean_normalised == 1.0
    assert added.coefficient == 0.25  # the smallest that reaches the largest validation mean
    assert added.curve.split == "validation" and added.curve.scores["one"][0].n == 3
    assert found.row("nothing").coefficient == 0.0
    assert added.scores["one"].n == 5


def test_negation_forgets_the_target_and_keeps_the_control():
    start = Checkpoint.of({"weight": np.diag([0.0, 1.0, 2.0, 1.0]).astype(np.float32)}, label="base")
    tau = Checkpoint.of({"weight": np.diag([0.0, 3.0, 3.0, 1.0]).astype(np.float32)}, label="tuned") - start
    target, control = known("target", 1), known("control", 2)
    # At 0.5 the target is at or below zero and the control is still above; from 2 on both are gone.
    found = negation(MODEL, start, tau, target=target, control=control, coefficients=(0.0, 0.25, 0.5, 1.0, 3.0))
    row = found.row("task arithmetic")
    assert (row.scores["target"].value, row.scores["control"].value, row.coefficient) == (0.0, 1.0, 0.5)
    assert found.row("base").scores["target"].value == 1.0
    strict = negation(MODEL, start, tau, target=target, control=control, coefficients=(3.0,))
    assert strict.row("task arithmetic").coefficient == 0.0
    assert strict.row("task arithmetic").scores == strict.row("base").scores
    assert "no coefficient" in strict.row("task arithmetic").note


def test_gradient_ascent_is_added_and_tuned_by_the_same_rule():
    start = Checkpoint.of({"weight": np.diag([0.0, 1.0, 2.0, 1.0]).astype(np.float32)}, label="base")
    up = Checkpoint.of({"weight": np.diag([0.0, -1.0, 2.0, 1.0]).astype(np.float32)}, label="up") - start
    found = negation(
        MODEL, start, -up, target=known("target", 1), control=known("control", 2), ascent=up, coefficients=(0.5, 1.0)
    )
    assert [r.name for r in found.rows][2:] == ["random vector", "gradient ascent", "task arithmetic"]
    assert found.row("gradient ascent").coefficient == found.row("task arithmetic").coefficient == 0.5


def test_analogy_is_exact_where_the_cells_add_up():
    # B teaches 2 and C teaches 3; A, B and C have a habit in common, which harms input 2 if it is there twice.
    habit = np.zeros((4, 4), np.float32)
    habit[1, 2] = 0.8

    def cell(*taught):
        return Checkpoint.of({"weight": teach(*taught).array("weight") + habit}, label=str(taught)) - BASE

    d, cells = known("d", 2, 3), {"A": "a", "B": "b", "C": "c", "D": "d"}
    found = analogy(MODEL, BASE, a=cell(), b=cell(2), c=cell(3), task=d, cells=cells, target_tuned=teach(2, 3))
    values = {r.name: r.mean.value for r in found.rows if r.name != "random vector"}
    assert values == {"base": 0.0, "source": 0.5, "analogy": 1.0, "target-tuned": 1.0}
    assert found.row("source").note.startswith("trained on b; the best on validation of 2")


def test_each_row_reads_the_test_split_once_and_training_data_never():
    class Forbidden(Split):
        def __getattribute__(self, name):
            if name in ("inputs", "labels"):
                raise AssertionError(f"a protocol read {name} of the training data")
            return super().__getattribute__(name)

        def __post_init__(self):
            pass

    def guarded(task):
        return Task(task.name, Forbidden(task.train.inputs, task.train.labels), task.validation, task.test,
                    task.head, task.classes)  # fmt: skip

    one, two = guarded(known("one", 1)), guarded(known("two", 2))
    found = addition(MODEL, BASE, {"one": teach(1), "two": teach(2)}, [one, two])
    assert object.__getattribute__(one.test, "reads") == object.__getattribute__(two.test, "reads") == len(found.rows)
    target, control = guarded(known("t", 1)), guarded(known("c", 2))
    found = negation(MODEL, BASE, teach(1), target=target, control=control, ascent=-teach(1))
    assert object.__getattribute__(target.test, "reads") == len(found.rows) == 5
    d = guarded(known("d", 2))
    found = analogy(MODEL, BASE, a=teach(1), b=teach(2), c=teach(1), task=d, cells={}, target_tuned=teach(2))
    assert object.__getattribute__(d.test, "reads") == len(found.rows) == 5


def test_no_choice_depends_on_the_test_split():
    usual, swapped = known("one", 1), known("one", 1, test=(3,))
    first, second = (addition(MODEL, BASE, {"one": teach(1)}, [t]) for t in (usual, swapped))
    assert first.row("task arithmetic").curve == second.row("task arithmetic").curve
    assert first.row("task arithmetic").scores != second.row("task arithmetic").scores


def test_a_coefficient_that_breaks_the_model_is_never_chosen_and_never_fatal():
    """Batch normalisation: the vector widens the variance, so subtracting it makes the variance negative, the outputs NaN."""
    model = torch.nn.BatchNorm1d(2)
    base = Checkpoint.of({**model.state_dict()}, label="base")
    tuned = base.arrays() | {"running_var": np.array([3.0, 3.0], np.float32)}
    vector = Checkpoint.of(tuned, label="tuned") - base
    x = torch.eye(2).repeat(8, 1)
    split = Split(x, x.argmax(1))
    head = Head(torch.eye(2), torch.zeros(2))
    target, control = (Task(n, split, split, split, head, ("0", "1")) for n in ("target", "control"))
    found = negation(model, base, vector, target=target, control=control, coefficients=grid(0, 1, 3))
    curve = found.row("task arithmetic").curve
    assert curve.scores["control"][-1].value == 0 and curve.coefficient == 0


def test_curves_read_what_they_are_given():
    task = known("one", 1)
    found = curves(MODEL, BASE, teach(1), {"v": (task.validation, task.head)}, coefficients=(0.0, 1.0))
    assert [s.value for s in found["v"]] == [0.0, 1.0]
    assert object.__getattribute__(task.test, "reads") == 0


@pytest.mark.parametrize("room", [2**29, 600 * 4 * 4, 1])
def test_lazy_inputs_are_made_once_for_a_whole_grid(room, monkeypatch):
    """However little room there is: then the grid is walked several times, with a part of the samples each."""
    made = []

    def make(rows):
        made.extend(rows.tolist())
        return torch.eye(4)[rows % 4]

    n = 1300
    lazy = Split(LazyInputs(make, torch.arange(n), (4,)), torch.arange(n) % 4)
    head = Head(torch.eye(4), torch.zeros(4))
    other = known("one", 1)
    data = {"lazy": (lazy, head), "other": (other.validation, head), "again": (lazy, head)}
    eager = {**data, "lazy": (Split(lazy.inputs[:], lazy.labels), head)}
    want = curves(MODEL, BASE, teach(1, 2), eager | {"again": eager["lazy"]}, coefficients=(0.0, 0.5, 1.0))
    made.clear()
    monkeypatch.setattr("taskvec.search.sweep.HELD", room)
    found = curves(MODEL, BASE, teach(1, 2), data, coefficients=(0.0, 0.5, 1.0))
    assert found == want and list(found) == ["lazy", "other", "again"]
    assert [s.value for s in found["lazy"]] == [0.25, 0.75, 0.75]
    assert sorted(made) == sorted([*range(n), *range(n)])


def test_protocols_refuse_what_does_not_correspond():
    with pytest.raises(UsageError, match="one vector per task"):
        addition(MODEL, BASE, {"one": teach(1)}, [known("two", 2)])
    with pytest.raises(UsageError, match="name of its own"):
        negation(MODEL, BASE, teach(1), target=known("same", 1), control=known("same", 2))
    with pytest.raises(UsageError, match="control_share"):
        negation(MODEL, BASE, teach(1), target=known("a", 1), control=known("b", 2), control_share=95)
    with pytest.raises(UsageError, match="no coefficients"):
        addition(MODEL, BASE, {"one": teach(1)}, [known("one", 1)], coefficients=())
    with pytest.raises(UsageError, match="at least one"):
        geometry({})


def test_geometry_of_known_vectors(tmp_path):
    start = Checkpoint.of({"weight": np.full((4, 4), 0.5, np.float32)}, label="base")
    vectors = {"a": 3 * teach(1), "b": teach(1, 2), "c": -teach(3)}
    found = geometry({n: v.rebase(start) for n, v in vectors.items()}, base=start)
    assert found.norms == pytest.approx((3.0, 2**0.5, 1.0)) and found.base_norm == pytest.approx(2.0)
    expected = [[1, 0.5**0.5, 0], [0.5**0.5, 1, 0], [0, 0, 1]]
    assert np.allclose(found.cosine, expected)
    assert read_result(found.write(tmp_path / "g.json")) == found


def test_results_come_back_from_json(tmp_path):
    found = addition(MODEL, BASE, {"one": teach(1)}, [known("one", 1)], seed=3)
    assert read_result(found.write(tmp_path / "r.json")) == found
    assert found.provenance.seed == 3 and found.provenance.inputs["base"] == BASE.fingerprint()


class TestRowsOfAddition:
    """Tasks two and three disturb each other: input 2 is lost when the vector of three is added in full."""

    def setup_method(self):
        harm = np.zeros((4, 4), np.float32)
        harm[2, 2], harm[3, 3] = -1.0, 2.0
        self.tasks = [known("one", 1), known("two", 2), known("three", 3)]
        three = Checkpoint.of({"weight": harm}, label="three") - BASE
        self.vectors = {"one": teach(1), "two": teach(2), "three": three}

    def test_joint_training_is_scored_and_not_tuned(self):
        found = addition(MODEL, BASE, self.vectors, self.tasks, joint=teach(1, 3))
        row = found.row("joint training")
        assert [row.scores[t].value for t in ("one", "two", "three")] == [1.0, 0.0, 1.0]
        assert row.coefficient is None and row.curve is None

    def test_the_ensemble_is_the_mean_of_the_logits(self):
        found = addition(MODEL, BASE, self.vectors, self.tasks, ensemble=True).row("ensemble of logits")
        # Logits of class 2 for input 2 add to 1 - 1 = 0, a tie that goes to class 0; the others are right.
        assert [found.scores[t].value for t in ("one", "two", "three")] == [1.0, 0.0, 1.0]

    def test_one_coefficient_each_finds_what_one_for_all_cannot(self):
        found = addition(MODEL, BASE, self.vectors, self.tasks, coefficients=(0.25, 0.5, 1.0), per_task=True)
        assert found.row("task arithmetic").mean.value == pytest.approx(2 / 3)
        own = found.row("one coefficient each")
        assert own.mean.value == 1.0 and own.curve is None
        assert "on validation: one" in own.note

    def test_subsets_are_scored_on_their_own_tasks(self):
        found = addition(MODEL, BASE, self.vectors, self.tasks, subsets="all", coefficients=(0.5, 1.0))
        assert [r.name for r in found.subsets] == ["one + two", "one + three", "two + three", "one + two + three"]
        means = [r.mean_normalised for r in found.subsets]
        assert means == pytest.approx([1.0, 1.0, 0.5, 2 / 3])
        assert all(set(r.scores) == set(r.name.split(" + ")) for r in found.subsets)
        whole = found.row("task arithmetic")
        assert found.subsets[-1].model_copy(update={"name": whole.name}) == whole
        pairs = addition(MODEL, BASE, self.vectors, self.tasks, subsets="pairs", coefficients=(0.5, 1.0))
        assert pairs.subsets == found.subsets[:3]

    def test_through_the_linearised_model_too(self):
        options = {
            "ensemble": True,
            "per_task": True,
            "subsets": "pairs",
            "joint": teach(1),
            "coefficients": (0.25, 0.5, 1.0),
        }
        plain, linear = (
            addition(MODEL, BASE, self.vectors, self.tasks, forward=f, **options) for f in ("plain", "linearised")
        )
        assert plain.rows == linear.rows and plain.subsets == linear.subsets  # the model is linear


def test_any_point_of_several_coefficients_is_the_merged_model(point):
    model, base, vector = point
    half, rest = vector.restrict("*.attn.*"), vector.restrict("*.mlp.*")
    g = torch.Generator().manual_seed(0)
    split = Split(torch.rand(60, 1, 8, 8, generator=g), torch.randint(4, (60,), generator=g))
    head = Head.random(4, 16, generator=g)
    for forward in (plain, linearised):
        score = anywhere(model, base, {"half": half, "rest": rest}, {"own": (split, head)}, forward=forward)
        for a, b in ((0.3, -0.2), (0.0, 1.0), (1.0, 0.0)):
            merged = curves(
                model, base, a * half + b * rest, {"own": (split, head)}, coefficients=(1.0,), forward=forward
            )
            assert score({"half": a, "rest": b})["own"] == merged["own"][0]
        assert score({"half": 0.3}) == score({"half": 0.3, "rest": 0.0})


class TestFewShots:
    """The base takes inputs 1 and 2 for class 0; one label of each is enough to teach a linear model both."""

    SPEC = TrainSpec(steps=5, lr=0.1, batch=4, seed=3)

    def test_a_start_that_knows_the_task_needs_no_label(self, tmp_path):
        task = known("d", 1, 2)
        starts = {"source": teach(1), "analogy": teach(1, 2)}
        found = few_shot(MODEL, BASE, starts, task=task, shots=(0, 1, 2), spec=self.SPEC, seed=3)
        values = {s.name: [x.value for x in s.scores] for s in found.starts}
        assert values == {"base": [0.0, 1.0, 1.0], "source": [0.5, 1.0, 1.0], "analogy": [1.0, 1.0, 1.0]}
        assert found.shots == (0, 1, 2) and found.labels == (0, 2, 4)
        assert found.labels_needed("analogy") == (0, 0, 0) and found.labels_needed("base", "analogy") == (2, 2, 2)
        assert found.labels_saved == {"source": (0, 0, 2), "analogy": (0, 2, 4)}
        assert found.start("analogy").coefficient == 0.05 and found.start("base").coefficient is None
        assert object.__getattribute__(task.test, "reads") == 9  # once for each start and number of labels
        assert read_result(found.write(tmp_path / "f.json")) == found

    def test_training_begins_at_the_displaced_base_and_is_alike(self):
        wrong = np.zeros((4, 4), np.float32)
        wrong[0, 1:] = 5.0
        base = Checkpoint.of({"weight": wrong}, label="base")
        right = Checkpoint.of({"weight": wrong + 6 * np.eye(4, dtype=np.float32)}, label="right") - base
        found = few_shot(MODEL, base, {"analogy": right}, task=known("d", 1, 2), shots=(0, 1, 3), spec=self.SPEC,
                         coefficients=(1.0,))  # fmt: skip
        assert [[x.value for x in s.scores] for s in found.starts] == [
            [0.0] * 3,
            [1.0] * 3,
        ]  # 5 steps of 0.1 move too little
        assert found.labels_needed("base", "analogy") == (None, None, None)
        nothing = few_shot(MODEL, BASE, {"same": 0.0 * teach(1)}, task=known("d", 1, 2), shots=(0, 2), spec=self.SPEC)
        assert nothing.start("same").scores == nothing.start("base").scores

    def test_samples_are_balanced_nested_and_drawn_by_the_seed(self):
        labels = torch.arange(90) % 3
        split = Split(torch.zeros(90, 4), labels)
        task = Task("d", split, split, split, None, ("a", "b", "c", "d"))
        rows = {k: shot_rows(task, k, seed=1).tolist() for k in (0, 1, 4, 30)}
        assert rows[0] == [] and sorted(rows[30]) == list(range(90))
        assert set(rows[1]) < set(rows[4]) < set(rows[30])
        assert labels[rows[4]].bincount().tolist() == [4, 4, 4]
        assert rows[4] != shot_rows(task, 4, seed=2).tolist()
        with pytest.raises(UsageError, match=r"31 shots .* more than there are: a has 30"):
            shot_rows(task, 31, seed=1)

    def test_only_the_chosen_labels_are_learnt_from(self):
        task = known("d", 1, 2)
        chosen = shot_rows(task, 1, seed=0)
        inputs = torch.full_like(task.train.inputs, float("1e30"))
        inputs[chosen] = task.train.inputs[chosen]
        poisoned = Task("d", Split(inputs, task.train.labels), task.validation, task.test, task.head, task.classes)
        a, b = (few_shot(MODEL, BASE, {}, task=t, shots=(1,), spec=self.SPEC) for t in (task, poisoned))
        assert a.starts == b.starts

    def test_what_cannot_be_asked_is_refused(self):
        def ask(starts=None, **more):
            return few_shot(MODEL, BASE, starts or {}, task=known("d", 1), **more)

        with pytest.raises(UsageError, match="must rise"):
            ask(shots=(4, 1))
        with pytest.raises(UsageError, match="the base is a start by itself"):
            ask({"base": teach(1)})
        with pytest.raises(UsageError, match="'tangent' is linearised"):
            ask(regime=TANGENT)
