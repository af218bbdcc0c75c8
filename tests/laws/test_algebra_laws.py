"""Points and vectors form an affine space, to the bit where that is promised."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import (
    BF16,
    coefficients,
    equal_bits,
    equal_values,
    family,
    finite_values,
    flat,
    random_weights,
    seeds,
    shape_tables,
    ulp,
)

from taskvec.errors import BaseMismatch, KeyMismatch, NotLinear, UsageError
from taskvec.select import matching
from taskvec.weights import Checkpoint, TaskVector

FORMATS = [np.dtype(np.float32), BF16, np.dtype(np.float16), np.dtype(np.float64)]


def memory_vector(table: dict[str, np.ndarray], label: str, base: Checkpoint) -> TaskVector:
    """A vector that is a bare leaf (as one read from a file), so that nothing above it makes a private copy."""
    point = Checkpoint.of(table, label=label)
    return TaskVector(point.node, (base - base).base, label)


@given(seeds, shape_tables, st.integers(2, 5))
def test_any_association_and_order_of_a_sum_has_the_same_bits(seed, shapes, count):
    _, vs = family(seed, shapes, count)
    expected = sum(vs).arrays()
    equal_bits(sum(reversed(vs)).arrays(), expected)
    right = vs[-1]
    for v in vs[-2::-1]:
        right = v + right
    equal_bits(right.arrays(), expected)


@given(seeds, shape_tables)
def test_subtraction_associates_bit_for_bit(seed, shapes):
    _, (a, b, c) = family(seed, shapes, 3)
    equal_bits((a + b - c).arrays(), (a + (b - c)).arrays())
    equal_bits((a - b - c).arrays(), (a - (b + c)).arrays())
    equal_bits((a + b - b).arrays(), a.arrays())


def test_sums_commute_where_the_samples_of_a_tensor_are_equal():
    """Rows of an embedding that no training touched look alike at the beginning, the middle and the end."""
    rng = np.random.default_rng(0)
    base = Checkpoint.of({"rows": np.zeros(5000, np.float32), "w": np.zeros(3, np.float32)}, label="base")
    vs = []
    for i in range(4):
        rows = np.zeros(5000, np.float32)
        rows[100:2000] = rng.normal(size=1900)
        vs.append(memory_vector({"rows": rows, "w": rng.normal(size=3).astype(np.float32)}, f"v{i}", base))
    expected = sum(vs).arrays()
    for order in itertools.permutations(vs):
        equal_bits(sum(order).arrays(), expected)


@given(seeds, shape_tables)
def test_displacing_a_point_twice_is_displacing_it_by_the_sum(seed, shapes):
    base, (a, b, c) = family(seed, shapes, 3)
    expected = (base + (a + b + c)).arrays()
    for order in itertools.permutations([a, b, c]):
        point = base
        for v in order:
            point = point + v
        equal_bits(point.arrays(), expected)
    equal_bits((base + a + b - a).arrays(), (base + b).arrays())


@given(seeds, shape_tables, coefficients, coefficients)
def test_vector_space_laws(seed, shapes, c, d):
    _, (a, b) = family(seed, shapes, 2)
    equal_bits((c * (a + b)).arrays(), (c * a + c * b).arrays())
    equal_bits(((c + d) * a).arrays(), (c * a + d * a).arrays())
    equal_bits((c * (d * a)).arrays(), ((c * d) * a).arrays())
    equal_bits((a * c).arrays(), (c * a).arrays())
    equal_bits((-a).arrays(), (-1 * a).arrays())
    equal_bits((1.0 * a).arrays(), a.arrays())
    equal_bits((a / 4).arrays(), (0.25 * a).arrays())
    equal_bits((a - b).arrays(), (a + (-b)).arrays())
    assert (a - a).norm() == 0.0
    assert sorted((a - a).names) == sorted(a.names)


@given(st.data(), st.sampled_from(FORMATS))
def test_zero_times_a_vector_leaves_the_bytes_of_the_base(data, dtype):
    x = data.draw(finite_values(dtype))
    base = Checkpoint.of({"w": x, "n": np.array([1, 2], np.int64)}, label="base")
    tau = Checkpoint.of({"w": np.ones_like(x), "n": np.array([9, 9], np.int64)}, label="tuned") - base
    for point in (base + 0 * tau, base - 0.0 * tau, base + (tau - tau), base + tau - tau, base + 0.5 * (0 * tau)):
        assert point.array("w").tobytes() == x.tobytes()
    part = tau.restrict("n*" if "n" in tau.names else "w")
    assert (base + 0 * part).array("w").tobytes() == x.tobytes()


@given(st.data(), st.sampled_from(FORMATS[:3]))
def test_base_plus_its_difference_is_the_finetuned_to_one_rounding(data, dtype):
    limit = 2.0**13 if dtype == np.float16 else 2.0**99
    numbers = st.lists(st.floats(-limit, limit, width=32), min_size=1, max_size=8)
    x = np.array(data.draw(numbers), np.float32).astype(dtype)
    y = np.array(data.draw(st.lists(st.floats(-limit, limit, width=32), min_size=len(x), max_size=len(x))), np.float32)
    y = y.astype(dtype)
    base, tuned = Checkpoint.of({"w": x}, label="base"), Checkpoint.of({"w": y}, label="tuned")
    got = (base + 1.0 * (tuned - base)).array("w")
    assert got.dtype == dtype
    # tau itself is rounded to float32 once: an error of half a float32 unit of the larger operand.
    working = ulp(np.maximum(np.abs(x.astype(float)), np.abs(y.astype(float))), np.dtype(np.float32))
    assert np.all(np.abs(got.astype(float) - y.astype(float)) <= ulp(y.astype(float), dtype) / 2 + 2 * working)


@pytest.mark.parametrize("dtype", FORMATS[:3], ids=str)
def test_base_plus_its_difference_is_exact_where_no_rounding_happens(dtype):
    rng = np.random.default_rng(5)
    x = rng.integers(-64, 64, size=500).astype(np.float32) / 16
    y = x + rng.integers(-8, 8, size=500).astype(np.float32) / 16
    base = Checkpoint.of({"w": x.astype(dtype)}, label="base")
    tuned = Checkpoint.of({"w": y.astype(dtype)}, label="tuned")
    equal_values((base + (tuned - base)).arrays(), tuned.arrays())


@given(seeds, shape_tables)
def test_measures_agree_with_numpy_in_float64(seed, shapes):
    _, (a, b) = family(seed, shapes, 2)
    x, y = flat(a), flat(b)
    assert a.dot(b) == pytest.approx(x @ y, rel=1e-12, abs=1e-12 * (np.abs(x) @ np.abs(y) + 1e-300))
    assert a.norm() == pytest.approx(np.sqrt(x @ x), rel=1e-12)
    assert a.dot(b) == b.dot(a)
    if a.norm() and b.norm():
        assert a.cosine(b) == pytest.approx(x @ y / np.sqrt((x @ x) * (y @ y)), abs=1e-12)
        assert a.cosine(2 * a) == pytest.approx(1.0)
        assert a.cosine(-a) == pytest.approx(-1.0)
    assert a.cosine(a - a) == 0.0


@given(seeds)
def test_restricting_projects(seed):
    shapes = {"attn.q": (3, 4), "attn.b": (4,), "mlp.w": (2, 2), "s": ()}
    base, (a, b) = family(seed, shapes, 2)
    attention = matching("attn.*")
    p = a.restrict(attention)
    equal_bits(p.restrict(attention).arrays(), p.arrays())
    equal_bits({n: v for n, v in a.arrays().items() if n.startswith("attn")}, p.arrays())
    equal_values((a.restrict(attention) + a.restrict(~attention)).arrays(), a.arrays())
    equal_values((a + b).restrict(attention).arrays(), (a.restrict(attention) + b.restrict(attention)).arrays())
    assert p.dot(a.restrict(~attention)) == 0.0
    assert p.dot(b) == pytest.approx(p.dot(b.restrict(attention)), rel=1e-12)
    assert p.norm() ** 2 + a.restrict(~attention).norm() ** 2 == pytest.approx(a.norm() ** 2, rel=1e-12)
    point = (base + p).arrays()
    equal_bits({n: point[n] for n in ("mlp.w", "s")}, {n: base.array(n) for n in ("mlp.w", "s")})


@given(seeds)
def test_partial_vectors_add_over_the_union_of_their_names(seed):
    """The sum is zero-extended, in any order, and neither evaluation nor repetition changes an input."""
    shapes = dict.fromkeys("uvwx", (50,))
    base, _ = family(seed, shapes, 0)
    tables = [
        random_weights(seed + i, {n: shapes[n] for n in names}) for i, names in enumerate(("uv", "vw", "wx", "vx"))
    ]
    parts = [
        TaskVector(Checkpoint.of(t, label=f"p{i}").node, (base - base).base, f"p{i}", partial=True)
        for i, t in enumerate(tables)
    ]
    expected = {n: sum(t[n].astype(np.float64) for t in tables if n in t) for n in shapes}
    first = sum(parts).arrays()
    for order in itertools.permutations(parts):
        total = sum(order)
        assert sorted(total.names) == sorted(shapes)
        equal_bits(total.arrays(), first)
    for n in shapes:
        np.testing.assert_allclose(first[n], expected[n], rtol=1e-5, atol=1e-6)
    for part, table in zip(parts, tables, strict=True):
        equal_bits(part.arrays(), table)
    whole = memory_vector(random_weights(seed + 9, shapes), "whole", base)
    equal_bits((whole + parts[0] + parts[1]).arrays(), (parts[1] + (parts[0] + whole)).arrays())
    both = lambda v: (v + parts[1] + parts[3], parts[3])  # noqa: E731 - the same leaf twice in one graph
    from taskvec.methods import ties

    total, alone = both(parts[0])
    mixed = ties([total, alone], density=1.0).arrays()
    again = ties([total, alone], density=1.0).arrays()
    equal_bits(mixed, again)
    equal_bits(alone.arrays(), tables[3])


def test_mixed_precision_sums_commute_and_keep_float64():
    base = Checkpoint.of({"w": np.zeros(3, np.float64)}, label="base")
    a = memory_vector({"w": np.array([1.0, 2.0, 3.0], np.float32)}, "a", base)
    b = memory_vector({"w": np.array([1e-12, 2e-12, 3e-12], np.float64)}, "b", base)
    c = memory_vector({"w": np.array([1e-13, 1.0, 7.0], np.float64)}, "c", base)
    for first, second in itertools.permutations([2 * a, b], 2):
        equal_bits((first + second).arrays(), {"w": np.array([2, 4, 6], np.float64) + b.array("w")})
    results = [sum(order).arrays() for order in itertools.permutations([2 * a, b, 3 * c])]
    for r in results:
        equal_bits(r, results[0])


def test_integers_bools_scalars_and_empty_tensors(weights):
    start, end = weights(0), weights(1)
    end["counter"], end["mask"] = np.array([7, 7], np.int64), np.array([False, False, False])
    base, tuned = Checkpoint.of(start, label="base"), Checkpoint.of(end, label="tuned")
    tau = tuned - base
    assert set(tau.names) == {"a.weight", "a.bias", "scale", "empty"}
    point = (base + 0.5 * tau).arrays()
    equal_bits({n: point[n] for n in ("counter", "mask", "empty")}, {n: start[n] for n in ("counter", "mask", "empty")})
    assert point["scale"].shape == () and tau.array("scale").shape == ()
    assert point["scale"] == pytest.approx((start["scale"] + end["scale"]) / 2)


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_scalar_tensors_in_every_format(dtype):
    base = Checkpoint.of({"s": np.array(1.5, dtype)}, label="base")
    tuned = Checkpoint.of({"s": np.array(2.5, dtype)}, label="tuned")
    got = (base + 0.5 * (tuned - base)).array("s")
    assert got.shape == () and got.dtype == dtype and float(got) == 2.0


def test_what_has_no_meaning_is_refused():
    base, (a, b) = family(3, {"w": (4,)}, 2)
    for wrong in (
        lambda: base + base,
        lambda: 2 * base,
        lambda: base * 2,
        lambda: base / 2,
        lambda: -base,
        lambda: a * b,
        lambda: a - base,
    ):
        with pytest.raises(NotLinear):
            wrong()
    for wrong in (lambda: a / b, lambda: a + 1, lambda: 1 + a, lambda: a * True, lambda: base - 1, lambda: 1 / a):
        with pytest.raises(TypeError):
            wrong()
    for c in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(UsageError):
            c * a
        with pytest.raises(UsageError):
            a / c
    with pytest.raises(UsageError):
        a / 0
    with pytest.raises(KeyMismatch):
        a.restrict("nothing.*")


def test_lineage_is_checked():
    base, (a,) = family(3, {"w": (4,)}, 1)
    other, (b,) = family(4, {"w": (4,)}, 1)
    with pytest.raises(BaseMismatch):
        _ = a + b
    with pytest.raises(BaseMismatch):
        _ = other + a
    equal_bits((other + a.rebase(other)).arrays(), (a.rebase(other) + other).arrays())
    copy = Checkpoint.of({n: v.copy() for n, v in base.arrays().items()}, label="the same weights again")
    equal_bits((copy + a).arrays(), (base + a).arrays())
