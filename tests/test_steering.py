"""Steering by sub-group vectors: models whose answers are known, choices on validation data, one reading of test."""

import re
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from taskvec.errors import UnknownName, UsageError
from taskvec.models import linearised
from taskvec.protocols import choose_fair, steering
from taskvec.protocols.fair_rivals import one_group
from taskvec.protocols.steering_bound import bound
from taskvec.report import write
from taskvec.report.story import section
from taskvec.results import read_result
from taskvec.search import answers, anywhere
from taskvec.tasks import Head, Split, Task
from taskvec.tasks.group_sets import group_task
from taskvec.training import LORA, PRETRAIN, Rank, Regime, TrainSpec, fit
from taskvec.training.subgroups import subgroup_vectors
from taskvec.weights import Checkpoint, TaskVector

torch.set_num_threads(1)

# Inputs are (signal, in A, in B), with the signal +1 for positive people and -1 for others. The base answers
# signal - 1.5 for members of B, so it selects none of them. B's vector adds 1.5 there; A's vector adds 3 for members of A, which
# selects all of them from a coefficient of 1/3 on.

MODEL = nn.Linear(3, 2, bias=False)
BASE = Checkpoint.of({"weight": np.array([[0, 0, 0], [1, 0, -1.5]], np.float32)}, label="base")
HEAD = Head(torch.eye(2), torch.zeros(2))


def vector(a=0.0, b=0.0, label="v"):
    return TaskVector.of({"weight": np.array([[0, 0, 0], [0, a, b]], np.float32)}, BASE, label=label)


def split(n=120, *, overlap=0):
    """Half of everyone is positive; A, B and no group of n each, and `overlap` people more who are in both A and B."""
    a = torch.tensor([1] * n + [0] * 2 * n + [1] * overlap, dtype=torch.bool)
    b = torch.tensor([0] * n + [1] * n + [0] * n + [1] * overlap, dtype=torch.bool)
    labels = torch.arange(len(a)) % 2
    inputs = torch.stack([2.0 * labels - 1, a.float(), b.float()], 1)
    return Split(inputs, labels, {"A": a, "B": b})


def task(**parts):
    return replace(Task("toy", split(), split(), split(), HEAD, ("no", "yes")), **parts)


GOOD = {"A": vector(label="A"), "B": vector(b=1.5, label="B")}
MIXED = {"A": vector(a=3.0, label="A"), "B": vector(b=1.5, label="B")}
POINTS = tuple(i / 10 for i in range(11))


def test_a_biased_base_is_repaired_by_the_vector_of_the_group_it_wrongs():
    found = steering(MODEL, BASE, GOOD, task(), full=vector(b=0.3, label="full"), coefficients=POINTS, bootstrap=200)
    base, added = found.row("base"), found.row("task addition")
    assert base.audit.gap("parity").value == pytest.approx(0.5) and base.audit.group("B").tpr.value == 0
    assert base.audit.worst.name == "B" and base.coefficient is None and base.met is None
    assert added.coefficient == 0.4 and added.met  # from 1/3 on all is right: the smallest edit
    assert added.audit.gap("parity").value == 0 and added.audit.overall.accuracy.value == 1
    assert added.curve.constraint == "parity" and added.curve.at_most == 0.05 and added.curve.split == "validation"
    full = found.row("full fine-tuning")
    assert full.coefficient is None and full.audit.gap("parity").value == pytest.approx(0.5)
    scaled = found.row("full fine-tuning, scaled")
    assert (
        scaled.coefficient == 0 and scaled.met is False
    )  # nothing along it keeps to the limit: the least gap, the least edit
    change = next(c for c in found.comparisons if c.after == "task addition")
    assert change.before == "full fine-tuning" and change.groups["B"]["tpr"].value == 1 and change.gaps["parity"].real
    assert found.positive == "yes" and found.groups == ("A", "B")


def test_a_coefficient_for_each_group_where_one_for_all_must_fail():
    found = steering(MODEL, BASE, MIXED, task(), coefficients=POINTS, each=(0.0, 0.5, 1.0), bootstrap=200)
    shared, own = found.row("task addition"), found.row("one coefficient each")
    assert shared.audit.overall.accuracy.value < 1
    assert own.coefficients["A"] == 0 and own.coefficients["B"] >= 0.4 and own.met
    assert own.audit.overall.accuracy.value == 1 and own.audit.gap("odds").value == 0
    assert own.validation.overall.accuracy.value == 1


def test_injection_says_who_gains_and_who_loses():
    full = vector(a=0.9, label="full")  # right for A, wrong for B
    found = steering(MODEL, BASE, MIXED, task(), full=full, coefficients=POINTS, injections=(0.0, 0.5, 1.0), inject="worst", bootstrap=200)  # fmt: skip
    (one,) = found.injections
    assert one.group == "B" and one.worst and one.curve.coefficient == 0.5 and one.curve.met
    assert one.change.groups["B"]["accuracy"].value == 0.5 and one.change.groups["A"]["accuracy"].value == 0
    assert one.audit.overall.accuracy.value == 1 and set(found.worst) == {"A", "B"}
    both = steering(MODEL, BASE, MIXED, task(), full=full, coefficients=POINTS, injections=(0.0, 1.0), inject=["A", "B"], bootstrap=200)  # fmt: skip
    a, b = both.injections
    assert (a.group, a.worst, b.group, b.worst) == ("A", False, "B", True)
    assert a.curve.audits[1].group("A").fpr.value == 1  # its own vector harms A
    assert a.curve.coefficient == 0 and not a.curve.met
    assert steering(MODEL, BASE, GOOD, task(), full=full, coefficients=POINTS, inject="none", bootstrap=200).injections == ()  # fmt: skip


def test_overlapping_groups_and_a_group_without_positives():
    everyone = split(60, overlap=60)
    c = everyone.labels == 0
    c[:60] = False
    groups = {**everyone.groups, "C": c}
    people = replace(everyone, groups=groups)
    found = steering(
        MODEL, BASE, GOOD, task(validation=people, test=people), full=vector(b=1.5, label="full"), coefficients=POINTS, bootstrap=200
    )  # fmt: skip
    audit = found.row("task addition").audit
    assert audit.overlap and audit.group("C").positives == 0 and audit.group("C").tpr is None
    assert "no positives" in audit.group("C").left_out["tpr"]
    assert audit.gap("opportunity").groups == 2 and audit.gap("parity").groups == 3
    curve = found.row("task addition").curve
    gaps = [a.gap("parity").value for a in curve.audits]
    assert (
        not curve.met and gaps[curve.chosen] == min(gaps) > 0.05
    )  # nobody of C is ever selected: no coefficient closes this
    assert (
        curve.audits[-1].overall.accuracy.value == 1 and curve.coefficient == 0
    )  # what is asked for is not what is right


class Counted(Split):
    """A split that counts how often its inputs are read."""

    def __post_init__(self):
        object.__setattr__(self, "reads", 0)

    def __getattribute__(self, name):
        if name == "inputs":
            object.__setattr__(self, "reads", object.__getattribute__(self, "reads") + 1)
        return super().__getattribute__(name)


def test_the_test_split_is_read_once_for_each_row_and_chooses_nothing():
    plain = split()
    test = Counted(plain.inputs, plain.labels, plain.groups)
    asked = {"full": vector(b=0.3), "coefficients": POINTS, "each": (0.0, 0.5), "inject": ["A", "B"], "bootstrap": 200}
    found = steering(MODEL, BASE, MIXED, task(test=test), **asked)
    assert test.reads == len(found.rows) + len(found.injections) == 7
    other = Split(plain.inputs, 1 - plain.labels, plain.groups)
    again = steering(MODEL, BASE, MIXED, task(test=other), **asked)
    assert [r.coefficient for r in again.rows] == [r.coefficient for r in found.rows]
    assert again.row("one coefficient each").coefficients == found.row("one coefficient each").coefficients
    assert [i.curve.coefficient for i in again.injections] == [i.curve.coefficient for i in found.injections]
    assert again.row("base").audit != found.row("base").audit


def test_a_floor_under_accuracy_holds_for_every_choice_and_is_recorded():
    """The vectors refuse everybody in the end: no gap, and wrong for half."""
    refuse = TaskVector.of({"weight": np.array([[2, 0, 0], [0, 0, 0]], np.float32)}, BASE, label="A")
    asked = {"coefficients": POINTS, "constraint": "parity", "at_most": 0.05, "each": (0.0, 0.5, 1.0), "bootstrap": 200}
    vectors = {"A": refuse, "B": refuse}
    loose = steering(MODEL, BASE, vectors, task(), **asked)
    added = loose.row("task addition")
    assert added.met and added.audit.gap("parity").value == 0 and added.audit.overall.accuracy.value <= 0.5
    found = steering(MODEL, BASE, vectors, task(), accuracy_at_least=0.7, **asked)
    for name in ("task addition", "one coefficient each"):
        row = found.row(name)
        assert row.met is False and row.validation.overall.accuracy.value >= 0.7
    curve = found.row("task addition").curve
    assert curve.accuracy_at_least == 0.7 and curve == choose_fair(POINTS, curve.audits, accuracy_at_least=0.7)
    assert found.provenance.settings["accuracy_at_least"] == 0.7
    assert "among those that are accurate enough" in " ".join(section(found).sentences)
    never = steering(MODEL, BASE, vectors, task(), accuracy_at_least=1, **asked)
    assert "the most accurate one was taken" in " ".join(section(never).sentences)


def test_the_sweep_is_that_of_choose_fair_and_of_merging():
    found = steering(MODEL, BASE, MIXED, task(), coefficients=POINTS, bootstrap=200)
    curve = found.row("task addition").curve
    assert curve == choose_fair(POINTS, curve.audits)
    people = task().validation
    for c, audit in zip(curve.coefficients, curve.audits, strict=True):
        merged = (BASE + c * (MIXED["A"] + MIXED["B"])).arrays()["weight"]
        logits = people.inputs @ torch.from_numpy(merged).T
        right = float((logits.argmax(1) == people.labels).float().mean())
        assert audit.overall.accuracy.value == pytest.approx(right)
    assert found.provenance.settings["merging"] == "sum"


def test_logits_anywhere_are_those_of_the_merged_weights_through_either_forward():
    people = split(20)
    at = answers(MODEL, BASE, MIXED, {"x": (people, HEAD)})
    lin = answers(MODEL, BASE, MIXED, {"x": (people, HEAD)}, forward=linearised)
    scores = anywhere(MODEL, BASE, MIXED, {"x": (people, HEAD)})
    for point in ({}, {"A": 0.3}, {"A": 0.3, "B": -1.5}):
        weight = BASE.arrays()["weight"] + sum(c * MIXED[n].arrays()["weight"] for n, c in point.items())
        expected = people.inputs @ torch.from_numpy(np.asarray(weight, np.float32)).T
        assert torch.allclose(at(point)["x"], expected, atol=1e-6) and torch.allclose(lin(point)["x"], expected, atol=1e-6)  # fmt: skip
        assert scores(point)["x"].value == pytest.approx(float((expected.argmax(1) == people.labels).float().mean()))
    broken = answers(MODEL, BASE, {"v": vector(a=1e38) * 10}, {"x": (people, HEAD)})
    assert not broken({"v": 1.0})["x"].isfinite().all()
    assert anywhere(MODEL, BASE, {"v": vector(a=1e38) * 10}, {"x": (people, HEAD)})({"v": 1.0})["x"].value == 0


def test_coefficients_whose_outputs_are_not_finite_are_left_out():
    wild = {"A": vector(a=1e38), "B": vector(b=1.5)}
    found = steering(MODEL, BASE, wild, task(), coefficients=(0.0, 1.0, 10.0), bootstrap=200)
    assert found.row("task addition").curve.coefficients == (0.0, 1.0)


# ---- the bound --------------------------------------------------------------------------------------------------------------


def test_the_bound_of_a_hand_made_sweep():
    people = split(100)  # 300 people: halves of 150
    vectors = {"A": vector(a=3.0), "B": vector(b=4.0)}  # norms 3 and 4, of the sum 5
    low, high = np.full(300, 0.2), np.full(300, 0.2)
    high[100:200] = 0.6  # all of B is selected from the second point on
    scores = np.stack([low, high, high])
    found = bound(scores, (0.0, 0.5, 1.0), vectors, people, convention="sum")
    assert found.norms == {"A": pytest.approx(3), "B": pytest.approx(4)} and found.people == (150, 150)
    assert found.rates == pytest.approx(1 / 2.5) and found.scores == pytest.approx(0.4 / 2.5)  # over a step of 0.5 * 5
    assert [p.parity for p in found.points] == [0.0, 1.0, 1.0] and found.parity_at_balance == 1
    assert [p.path for p in found.points] == pytest.approx([7, 3.5, 0])
    assert found.points[1].bound_rates == pytest.approx(2 * 0.4 * 3.5)
    assert found.holds("rates") == (2, 3)  # it is 0 at the balanced point, where the gap is not
    assert found.holds("rates", corrected=True) == (3, 3) and found.holds("scores") == (2, 3)
    assert found.says_something("rates") == 1
    mean = bound(scores, (0.0, 0.5, 1.0), vectors, people, convention="mean")
    assert mean.balance == 0.5 and [p.path for p in mean.points] == pytest.approx([7, 0, 7])
    assert bound(scores, (0.0, 0.5, 1.0), vectors, people, convention="sum", min_n=10**6).points[0].parity is None


def test_larger_vectors_move_the_gap_more():
    gaps = []
    for size in (0.0, 0.7, 1.6, 3.0):  # rank correlation of norm and movement
        noisy = split(200)
        noisy = replace(noisy, inputs=noisy.inputs + torch.randn(noisy.inputs.shape, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.8, 0, 0]))  # fmt: skip
        found = steering(MODEL, BASE, {"A": vector(a=size)}, task(validation=noisy), coefficients=(0.0, 1.0), bootstrap=200)  # fmt: skip
        first, last = found.row("task addition").curve.audits
        gaps.append(abs(last.gap("parity").value - first.gap("parity").value))
    assert gaps == sorted(gaps) and gaps[0] == 0 and gaps[-1] > 0.2


# ---- training ---------------------------------------------------------------------------------------------------------------


def noisy_task(n=200):
    generator = torch.Generator().manual_seed(0)

    def part():
        s = split(n)
        return replace(s, inputs=s.inputs + 0.3 * torch.randn(s.inputs.shape, generator=generator))

    return task(train=part(), validation=part(), test=part())


def test_vectors_share_one_head_and_one_base_and_serve_their_group():
    toy = noisy_task()
    made = subgroup_vectors(MODEL, BASE, toy, epochs=4, spec=TrainSpec(lr=0.05, batch=32), low_rank=replace(LORA, select=lambda n: True, low_rank=Rank(rank=1)))  # fmt: skip
    assert list(made.vectors) == ["A", "B"] and list(made.rivals) == ["balanced", "LoRA"]
    everyone = [*made.vectors.values(), made.full, *made.rivals.values()]
    assert all((BASE + v).names == BASE.names for v in everyone)  # one base, no head in any
    found = steering(MODEL, BASE, made.vectors, toy, full=made.full, rivals=made.rivals, coefficients=POINTS, inject=["B"], bootstrap=200)  # fmt: skip
    assert [r.name for r in found.rows] == [
        "base", "full fine-tuning", "balanced", "LoRA", "full fine-tuning, scaled", "balanced, scaled", "LoRA, scaled", "task addition",
    ]  # fmt: skip
    base = found.row("base").audit
    alone = steering(MODEL, BASE, {"B": made.vectors["B"]}, toy, coefficients=(0.0, 1.0), bootstrap=200)
    own = alone.row("task addition").curve.audits[1]
    assert own.group("B").accuracy.value > base.group("B").accuracy.value + 0.3
    assert found.row("task addition").audit.gap("parity").value < base.gap("parity").value - 0.3


def test_a_head_for_each_group_is_refused():
    with pytest.raises(UsageError, match="trains the head, which sub-group vectors must share"):
        subgroup_vectors(MODEL, BASE, task(), regime=PRETRAIN)
    with pytest.raises(UsageError, match="has no head"):
        subgroup_vectors(MODEL, BASE, task(head=None))
    with pytest.raises(UsageError, match="has no groups"):
        subgroup_vectors(MODEL, BASE, task(train=replace(split(), groups={})))


def test_what_cannot_be_asked_is_refused():
    with pytest.raises(UnknownName, match="no group 'AA'"):
        steering(MODEL, BASE, {"AA": vector()}, task())
    with pytest.raises(UsageError, match="needs a vector"):
        steering(MODEL, BASE, {}, task())
    with pytest.raises(UsageError, match="two classes"):
        three = Task("t", split(), split(), split(), Head(torch.zeros(3, 2), torch.zeros(3)), ("a", "b", "c"))
        steering(MODEL, BASE, GOOD, three)
    with pytest.raises(UsageError, match="rows named 'base'"):
        steering(MODEL, BASE, GOOD, task(), rivals={"base": vector()})
    with pytest.raises(UsageError, match="give its vector as full"):
        steering(MODEL, BASE, GOOD, task(), inject=["A"])
    with pytest.raises(UsageError, match="comparing takes two"):
        steering(MODEL, BASE, GOOD, task(test=replace(split(), groups={})))


def test_fairlearn_decides_for_one_group_each():
    everyone = split(10, overlap=4)
    assert one_group(everyone, {"A": 14, "B": 3}).tolist() == ["A"] * 10 + ["B"] * 10 + ["none"] * 10 + ["B"] * 4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("fairlearn.reductions", reason="fairlearn is not installed (extra: fairness)")
    toy = noisy_task()
    found = steering(MODEL, BASE, GOOD, toy, coefficients=(0.0, 1.0), frozen_features=True, bootstrap=200)
    names = [r.name for r in found.rows[-3:]]
    assert names == ["logistic regression", "threshold optimiser", "exponentiated gradient"]
    assert found.row("threshold optimiser").audit.gap("parity").value < 0.15
    assert found.row("threshold optimiser").audit.overall.accuracy.value > 0.9 and found.rows[-1].curve is None


def test_a_result_survives_a_file(tmp_path):
    found = steering(
        MODEL, BASE, MIXED, task(), full=vector(b=0.3), coefficients=POINTS, each=(0.0, 1.0), bootstrap=200
    )
    assert read_result(found.write(tmp_path / "s.json")) == found


def test_a_report_tells_it(tmp_path):
    found = steering(MODEL, BASE, MIXED, task(), full=vector(a=0.9), coefficients=POINTS, each=(0.0, 0.5, 1.0), injections=(0.0, 0.5), bootstrap=200)  # fmt: skip
    told = section(found)
    said = " ".join(told.sentences)
    assert "The vector of B, the worst group, at 0.5, added to full fine-tuning: gains: B +50.0 points" in said
    assert "No coefficient kept to the limit" in said and told.verdict == "limit not kept"
    assert "holds at" in said and "below 1 at" in said
    captions = [t.caption for t in told.tables]
    assert captions[0] == "Test accuracy and gaps, every model read once" and len(captions) == 5
    page = tmp_path / "page.html"
    write([found], page)
    assert page.read_text().count("<svg") == 5
    with pytest.raises(UsageError, match="takes a list"):
        write(found, page)


def test_the_page_about_it_runs(tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[1] / "docs" / "fairness-steering.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "fairness-steering.md", "exec"), {})
    assert "share of 'granted'" in capsys.readouterr().out and (tmp_path / "steering.html").stat().st_size > 10_000


def test_real_people_by_sex_and_age():
    root = Path(__file__).parents[2] / "shared" / "data" / "fair_tabular"
    if not root.is_dir():
        pytest.skip("the Adult data is not here (../shared/data)")
    adult = group_task("adult", root=root)
    adult = replace(adult, train=adult.train.take(torch.arange(4000)))
    model = nn.Sequential(nn.Linear(adult.train.inputs.shape[1], 16), nn.ReLU())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.1 * torch.randn(p.shape, generator=generator))
    head = Head.random(2, 16, generator=generator)
    made = fit(model, Checkpoint.of(model), adult.with_head(head), regime=PRETRAIN, spec=TrainSpec(steps=100, lr=1e-2))
    ready = adult.with_head(made.head)
    own = subgroup_vectors(model, made.checkpoint, ready, epochs=1, spec=TrainSpec(lr=1e-3))
    found = steering(
        model, made.checkpoint, own.vectors, ready, full=own.full, coefficients=(0.0, 0.5, 1.0), bootstrap=200
    )
    assert len(found.groups) == 6 and found.row("base").audit.n == len(adult.test)
    assert all(r.audit.overall.accuracy.value > 0.78 for r in found.rows)  # 0.76 for "no" to all
    assert found.row("base").audit.gap("parity").value > 0.2  # men over 30 and the young are far apart
    assert sum(one.worst for one in found.injections) == 1


def test_in_the_tangent_space_the_sweep_costs_no_evaluation():
    own = {n: TaskVector.of(v.arrays(), BASE, label=n, forward="linearised") for n, v in MIXED.items()}
    through = steering(MODEL, BASE, own, task(), coefficients=POINTS, bootstrap=200)
    plain = steering(MODEL, BASE, MIXED, task(), coefficients=POINTS, bootstrap=200)
    assert through.row("task addition").coefficient == plain.row("task addition").coefficient
    assert through.provenance.settings["forward"] == "linearised"
    assert isinstance(Regime("x").forward, type(linearised))
