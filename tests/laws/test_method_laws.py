"""Every row of METHODS is held to what it claims. A new row is tested by existing: nothing here names a method."""

from __future__ import annotations

import ast
import inspect
import re

import numpy as np
import pytest
from strategies import equal_bits, equal_values, family, random_weights

from method_rows import apply, call, example, statistic
from taskvec.errors import UsageError
from taskvec.methods import METHODS, Method
from taskvec.recipe import parse
from taskvec.weights import Checkpoint, TaskVector, execute
from taskvec.weights.graph import walk

SHAPES = {"w": (9, 11), "b.0": (100,), "b.1": (99,), "two": (2,), "one": (1,), "scalar": (), "none": (3, 0)}
every_method = pytest.mark.parametrize("name", METHODS)


def count_of(method: Method, wanted: int = 3) -> int:
    least, most = method.vectors
    return max(least, min(wanted, most if most is not None else wanted))


def looks_at_everything(vector: TaskVector) -> bool:
    """True if some number is taken over the whole model: then other tensors matter by design."""
    return any(n.op.gives == "summary" and n.per == "model" for n in walk(vector.node))


@every_method
def test_shapes_and_formats_are_kept_and_inputs_unchanged(name):
    _, vs = family(1, SHAPES, count_of(METHODS[name]))
    before = [v.arrays() for v in vs]
    result = apply(name, vs)
    got = result.arrays()
    assert {n: x.shape for n, x in got.items()} == SHAPES
    assert all(x.dtype == np.float32 for x in got.values())
    assert all(np.isfinite(x).all() for x in got.values())
    for v, table in zip(vs, before, strict=True):
        equal_bits(v.arrays(), table)
    equal_bits(result.arrays(), got)  # and a second reading gives the same


@every_method
def test_float64_stays_float64(name):
    _, vs = family(1, SHAPES, count_of(METHODS[name]), dtype=np.float64)
    assert all(x.dtype == np.float64 for x in apply(name, vs).arrays().values())


@every_method
@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-30, 1e30], ids=str)
def test_constant_inputs_stay_finite_and_zeros_stay_zero(name, value):
    base = Checkpoint.of({n: np.zeros(s, np.float32) for n, s in SHAPES.items()}, label="base")
    count = count_of(METHODS[name])
    vs = [
        Checkpoint.of({n: np.full(s, value, np.float32) for n, s in SHAPES.items()}, label=f"t{i}")
        for i in range(count)
    ]
    for x in apply(name, [v - base for v in vs]).arrays().values():
        assert np.isfinite(x).all()
        if value == 0.0:
            assert not x.any()


@every_method
def test_opposite_inputs_stay_finite(name):
    _, vs = family(4, SHAPES, 1)
    count = count_of(METHODS[name], 2)
    for x in apply(name, [vs[0], -vs[0]][:count]).arrays().values():
        assert np.isfinite(x).all()


@every_method
def test_order_of_vectors(name):
    if not METHODS[name].permutes:
        pytest.skip("does not claim that order means nothing")
    for count in (2, 3, 4, 5):
        _, vs = family(count, SHAPES, count)
        expected = apply(name, vs).arrays()
        rng = np.random.default_rng(count)
        for order in [vs[::-1], *([vs[i] for i in rng.permutation(count)] for _ in range(4))]:
            equal_bits(apply(name, order).arrays(), expected)
    # Sums among the vectors, written in either order, are the same vectors.
    equal_bits(
        apply(name, [vs[0] + vs[1], vs[2], vs[3] - vs[4]]).arrays(),
        apply(name, [vs[3] - vs[4], vs[2], vs[1] + vs[0]]).arrays(),
    )


@every_method
@pytest.mark.parametrize("factor", [2.0, 0.125, 2.0**20])
def test_scale(name, factor):
    if not METHODS[name].scales:
        pytest.skip("does not claim scale equivariance")
    # A power of two scales without rounding, and the vectors themselves are scaled, not their coefficients. The order in
    # which three or more are summed depends on what they are, so exactness is for two.
    _, vs = family(7, SHAPES, count_of(METHODS[name], 2))
    point = Checkpoint.of({n: np.zeros(s, np.float32) for n, s in SHAPES.items()}, label="zero")
    scaled = [
        Checkpoint.of({n: x * np.float32(factor) for n, x in v.arrays().items()}, label=v.label) - point for v in vs
    ]
    plain = [Checkpoint.of(v.arrays(), label=v.label) - point for v in vs]
    expected = {n: x * np.float32(factor) for n, x in apply(name, plain).arrays().items()}
    equal_values(apply(name, scaled).arrays(), expected)
    if METHODS[name].vectors[1] is None:
        plain, scaled = ([*v, v[0] + v[1]] for v in (plain, scaled))
        for n, x in apply(name, scaled).arrays().items():
            np.testing.assert_allclose(x, factor * apply(name, plain).array(n), rtol=1e-5, atol=1e-6 * factor)


@every_method
def test_identity(name):
    setting = METHODS[name].identity
    if setting is None:
        pytest.skip("claims no identity")
    _, (v,) = family(8, SHAPES, 1)
    equal_values(apply(name, [v], **setting).arrays(), v.arrays())


@every_method
@pytest.mark.parametrize("block", [1, 5, 64])
def test_whole_equals_blocked(name, block, tmp_path, monkeypatch):
    monkeypatch.setattr(execute, "BLOCK", block)
    _, vs = family(9, SHAPES, count_of(METHODS[name]))
    result = apply(name, vs)
    blocked = TaskVector.read(result.save(tmp_path / "v.safetensors"))
    equal_bits(blocked.arrays(), result.arrays())


@every_method
def test_order_of_names_means_nothing(name):
    tables = [random_weights(20 + i, SHAPES) for i in range(count_of(METHODS[name]) + 1)]

    def result(turn) -> dict[str, np.ndarray]:
        points = [Checkpoint.of(dict(turn(t.items())), label=f"m{i}") for i, t in enumerate(tables)]
        return apply(name, [p - points[0] for p in points[1:]]).arrays()

    equal_bits(result(list), result(lambda items: reversed(list(items))))


@every_method
def test_other_names_mean_nothing(name):
    _, vs = family(10, SHAPES, count_of(METHODS[name]))
    result = apply(name, vs)
    if looks_at_everything(result):
        pytest.skip("a cut over the whole model looks at every tensor by design")
    kept = ["b.0", "two", "scalar"]
    whole = result.arrays()
    equal_bits(apply(name, [v.restrict(kept) for v in vs]).arrays(), {n: whole[n] for n in kept})


@every_method
def test_partial_vectors_count_as_zero_where_they_have_nothing(name):
    base, vs = family(12, SHAPES, count_of(METHODS[name]))
    if len(vs) < 2:
        pytest.skip("takes one vector")
    part = vs[1].restrict("b.*")
    zeros = Checkpoint.of({**base.arrays(), **(base + part).arrays()}, label="t1") - base
    kind = METHODS[name].statistics
    given = {kind: [statistic(name, v) for v in vs]} if kind else {}
    result = apply(name, [vs[0], part, *vs[2:]], **given)
    assert sorted(result.names) == sorted(SHAPES) and not result.partial
    if not looks_at_everything(result):  # there the share of entries differs
        for n, x in apply(name, [vs[0], zeros, *vs[2:]], **given).arrays().items():
            np.testing.assert_allclose(result.array(n), x, rtol=1e-4, atol=1e-5)


@every_method
def test_documentation_is_complete_and_its_example_runs(name):
    method = METHODS[name].fn
    doc = inspect.getdoc(method) or ""
    first = doc.splitlines()[0]
    assert first.rstrip().endswith(".") or "\\" in first, "the first line is a sentence"
    assert "Args:" in doc and re.search(r"Reference: .+\d{4}", doc)
    parameters = inspect.signature(method).parameters.values()
    for p in parameters:
        assert re.search(rf"^\s*{p.name}: ", doc, re.M), f"Args must explain {p.name}"
        assert p.kind in ((p.POSITIONAL_OR_KEYWORD,) if p.name == "vectors" else (p.KEYWORD_ONLY,))
    base, vs = family(3, SHAPES, 3)
    names = {"base": base, **dict(zip(("cars", "dtd", "toxic"), vs, strict=True))}
    if METHODS[name].statistics is not None:  # in the example, the checkpoint for cars is called, say, cars_fisher
        (given,) = [k.value for k in call(name).keywords if k.arg == METHODS[name].statistics]
        assert isinstance(given, ast.List)
        called = [e.id for e in given.elts if isinstance(e, ast.Name)]
        names |= {n: statistic(name, names[n.split("_")[0]]) for n in called}
    result = parse(example(name), names)
    assert isinstance(result, Checkpoint) and result.names == base.names
    assert name in example(name)


@every_method
def test_arity(name):
    method = METHODS[name]
    least, most = method.vectors
    _, vs = family(5, {"w": (3,)}, 4)
    for n in {least, least + 1, most or 4}:
        if n <= 4 and (most is None or n <= most):
            assert apply(name, vs[:n]).names == ("w",)
    for n in {0, least - 1, (most or 0) + 1 if most else 0}:
        if n < least or (most is not None and n > most):
            with pytest.raises(UsageError, match=rf"^{name} (takes|needs) .*got {n}"):
                apply(name, vs[:n])
