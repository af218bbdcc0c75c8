"""Analogies with two coefficients, and skills borrowed from other tasks, where the answer is known."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra: train)")

from taskvec import report  # noqa: E402
from taskvec.errors import UsageError  # noqa: E402
from taskvec.protocols import analogy, skills  # noqa: E402
from taskvec.results import read_result  # noqa: E402
from taskvec.search import grid  # noqa: E402
from taskvec.tasks import Head, Split, Task  # noqa: E402
from taskvec.weights import Checkpoint  # noqa: E402

torch.set_num_threads(1)
MODEL = torch.nn.Linear(4, 4, bias=False)  # the class of an input e_k is the row with the largest entry in column k
BASE = Checkpoint.of({"weight": np.zeros((4, 4), np.float32)}, label="base")


def vector(*entries: tuple[int, int, float]):
    w = np.zeros((4, 4), np.float32)
    for row, column, value in entries:
        w[row, column] = value
    return Checkpoint.of({"weight": w}, label=str(entries)) - BASE


def known(name: str, *inputs: int, test: tuple[int, ...] = ()) -> Task:
    def split(which: tuple[int, ...], n: int) -> Split:
        return Split(torch.eye(4)[list(which)].repeat(n, 1), torch.tensor(list(which)).repeat(n))

    return Task(
        name,
        split(inputs, 2),
        split(inputs, 3),
        split(test or inputs, 5),
        Head(torch.eye(4), torch.zeros(4)),
        tuple("0123"),
    )


def test_two_coefficients_find_what_one_cannot():
    # C knows input 2 and confuses 3 with 1; B - A repairs 3 from a ratio of 0.5 on, and from 2/3 on makes 2 look like 0.
    c = vector((2, 2, 1.0), (1, 3, 0.5))
    b = vector((3, 3, 1.0), (0, 2, 1.5))
    cells = {"A": "writing in a", "B": "writing in b", "C": "judging a", "D": "judging b"}
    more = {"a": vector(), "b": b, "c": c, "task": known("d", 2, 3), "cells": cells, "sources": {"judging a": c}}
    one = analogy(MODEL, BASE, **more)
    two = analogy(MODEL, BASE, **more, ratios=(0.0, 0.3, 0.6, 1.0))
    assert one.row("analogy").mean.value == 0.5 and one.ratio is None
    assert two.row("analogy").mean.value == 1.0 and two.ratio == 0.6
    assert two.row("source").mean.value == 0.5 and "0.6" in two.row("analogy").note
    assert "0.6 (τ(B) − τ(A))" in report.markdown([two])
    assert two.provenance.settings["ratios"] == [0.0, 0.3, 0.6, 1.0] and "ratios" not in one.provenance.settings
    with pytest.raises(UsageError, match="no ratios"):
        analogy(MODEL, BASE, **more, ratios=())


def test_ratios_are_chosen_on_validation():
    b = vector((3, 3, 1.0), (0, 2, 1.5))
    more = {"a": vector(), "b": b, "c": vector((2, 2, 1.0)), "cells": {}, "ratios": (0.0, 1.0)}
    usual = analogy(MODEL, BASE, task=known("d", 3), **more)
    swapped = analogy(MODEL, BASE, task=known("d", 3, test=(2,)), **more)
    assert usual.ratio == swapped.ratio == 1.0
    assert (usual.row("analogy").mean.value, swapped.row("analogy").mean.value) == (1.0, 0.0)


def test_a_skill_is_borrowed_where_one_is_missing(tmp_path):
    vectors = {
        "one": vector((1, 1, 1.0)), "two": vector((2, 2, 1.0), (3, 3, 1.0)), "harm": vector((0, 1, 5.0), (0, 2, 5.0), (0, 3, 5.0)),
    }  # fmt: skip
    found = skills(MODEL, BASE, vectors, [known("one", 1, 2), known("two", 2, 3)], coefficients=grid(0, 1, 3))
    one, two = found.skill("one"), found.skill("two")
    assert (one.other, one.curve.coefficient) == ("two", 0.5)
    assert (one.base.value, one.finetuned.value, one.with_other.value) == (0.0, 0.5, 1.0)
    assert two.curve.coefficient == 0 and two.with_other == two.finetuned and two.finetuned.value == 1.0
    assert {s.value for s in one.curve.scores["harm"][1:]} == {0.0}
    assert set(one.curve.scores) == {"two", "harm", "random vector"}
    assert read_result(found.write(tmp_path / "r.json")) == found
    told = report.markdown([found])
    assert "75.0" in told and "no other vector helped" in told


def test_skills_choose_on_validation_and_refuse_what_cannot_be():
    vectors = {"one": vector((1, 1, 1.0)), "two": vector((2, 2, 1.0))}
    usual = skills(MODEL, BASE, vectors, [known("one", 1, 2)])
    swapped = skills(MODEL, BASE, vectors, [known("one", 1, 2, test=(3,))])
    assert usual.skill("one").curve == swapped.skill("one").curve
    assert swapped.skill("one").with_other.value == 0.0
    with pytest.raises(UsageError, match="no vector for 'three'"):
        skills(MODEL, BASE, vectors, [known("three", 1)])
    with pytest.raises(UsageError, match="one vector"):
        skills(MODEL, BASE, {"one": vectors["one"]}, [known("one", 1)])
    with pytest.raises(UsageError, match="baseline"):
        skills(MODEL, BASE, {**vectors, "random vector": vectors["one"]}, [known("one", 1)])
