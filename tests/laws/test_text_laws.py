"""Text to graph to text: an expression prints as it is understood, and reads back as what it was."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import equal_bits, family

from taskvec.methods import dare, ties
from taskvec.recipe import parse
from taskvec.weights import Checkpoint, TaskVector
from taskvec.weights.text import expression, number

BASE, VECTORS = family(1, {"attn.w": (3, 4), "mlp.w": (5,), "s": ()}, 3)
NAMES = {"base": BASE, **{f"t{i}": BASE + v for i, v in enumerate(VECTORS)}}

atoms = st.sampled_from(["(t0 - base)", "(t1 - base)", "(t2 - base)", "restrict(t0 - base, '*attn*')"])
numbers = st.sampled_from(["0.5", "2", "1", "0.1", "1e-3", "0.30000000000000004", "3"])


def bigger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    pair = st.tuples(inner, inner)
    return st.one_of(
        pair.map(lambda p: f"({p[0]} + {p[1]})"),
        pair.map(lambda p: f"({p[0]} - {p[1]})"),
        st.tuples(numbers, inner).map(lambda p: f"{p[0]} * {p[1]}"),
        inner.map(lambda v: f"-{v}"),
        inner.map(lambda v: f"({v}) / 3"),
        pair.map(lambda p: f"ties([{p[0]}, {p[1]}], density=0.4)"),
        pair.map(lambda p: f"dare([{p[0]}, {p[1]}], density=0.5, seed=9)"),
        pair.map(lambda p: f"slerp([{p[0]}, {p[1]}], t=0.25)"),
        inner.map(lambda v: f"random([{v}], seed=3)"),
        inner.map(lambda v: f"average([{v}])"),
        inner.map(lambda v: f"restrict({v}, '*.w')"),
    )


vectors = st.recursive(atoms, bigger, max_leaves=5)
points = st.one_of(vectors.map(lambda v: f"base + {v}"), vectors.map(lambda v: f"base + 0.4 * {v} - {v}"))


def leaves(names: dict[str, Checkpoint]) -> dict[str, Checkpoint]:
    """Plain leaves, so that the text can only speak of what it was given."""
    return {n: Checkpoint.of(p.arrays(), label=n) for n, p in names.items()}


LEAVES = leaves(NAMES)


@given(st.one_of(vectors, points))
def test_expression_is_a_fixed_point_with_equal_values(text):
    value = parse(text, LEAVES)
    said = expression(value.node)
    again = parse(said, LEAVES)
    assert expression(again.node) == said
    assert type(again) is type(value)
    if sorted(again.names) == sorted(value.names):
        equal_bits(again.arrays(), value.arrays())
    else:  # a term that vanished took its names along; what is left out was zero
        assert isinstance(value, TaskVector)
        table = value.arrays()
        equal_bits(again.arrays(), {n: table[n] for n in again.names})
        assert not any(table[n].any() for n in table if n not in again.spec)


@pytest.mark.parametrize(
    "text",
    [
        "base + 0.4 * (t0 - base)",
        "t0 - base",
        "-(t0 - base) + 2 * (t1 - base)",
        "base - 0.6 * (t0 - base) + 0.1 * (t1 - base)",
        "base + 0.7 * ties([t0 - base, -0.5 * (t1 - base)], density=0.2)",
        "restrict(-(t0 - base) + (t1 - base), '*.w')",
        "base + restrict(t0 - base, '*.w')",
        "t0 + (t1 - base)",
    ],
)
def test_text_in_normal_form_prints_as_written(text):
    names = LEAVES
    if text.startswith("t0 + "):
        names = {**LEAVES, "t0": LEAVES["base"]}
        assert expression(parse(text, names).node) == "base + (t1 - base)"
        return
    assert expression(parse(text, names).node) == text


def test_a_sum_without_terms_reads_back_as_zero():
    value = parse("ties([0 * (t0 - base), t1 - base], density=0.5)", LEAVES)
    equal_bits(parse(expression(value.node), LEAVES).arrays(), value.arrays())


def test_whole_numbers_beyond_float64_are_kept():
    seed = 2**53 + 1
    v = [LEAVES["t0"] - LEAVES["base"]]
    said = expression(dare(v, density=0.5, seed=seed).node)
    assert str(seed) in said
    equal_bits(parse(said, LEAVES).arrays(), dare(v, density=0.5, seed=seed).arrays())


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_read_back(x):
    assert float(number(x)) == x


def test_a_method_prints_as_itself_and_expands_into_its_steps():
    vs = [LEAVES["t0"] - LEAVES["base"], LEAVES["t1"] - LEAVES["base"]]
    facts = (LEAVES["base"] + 0.7 * ties(vs, density=0.2)).explain()
    assert facts.expression == "base + 0.7 * ties([t0 - base, t1 - base], density=0.2)"
    assert "elect(trim(" in facts.expansion and facts.passes == 3
