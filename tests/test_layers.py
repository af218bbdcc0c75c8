"""Coefficients that differ between layers, weights as vectors, stacks of layers: in Python, as text, and on disk."""

import numpy as np
import pytest

from taskvec.errors import KeyMismatch, NotLinear, UsageError
from taskvec.recipe import parse
from taskvec.weights import Checkpoint, TaskVector, as_vector, scale_by, stack
from taskvec.weights.layers import patterns
from taskvec.weights.text import expression


@pytest.fixture
def names():
    rng = np.random.default_rng(0)

    def make(label, layers=3):
        table = {
            f"m.layers.{i}.{k}.w": rng.normal(size=(3, 2)).astype(np.float32)
            for i in range(layers)
            for k in ("a", "mlp")
        }
        table |= {"m.embed.w": rng.normal(size=4).astype(np.float32), "m.norm.w": rng.normal(size=4).astype(np.float32)}
        return Checkpoint.of(table, label=label)

    return {n: make(n) for n in ("base", "x", "y")}


def coefficients(vector, like):
    """Of each tensor, 0 where the vector has none."""
    held = {n: (vector.array(n) / like.array(n)).ravel()[0] for n in vector.names}
    return {n: round(float(held.get(n, 0)), 6) for n in like.names}


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (0.5, "0.5"),
        ([1, 0.5, 0], "[1, 0.5, 0]"),
        ({"*.mlp.*": [0, 1], "*.0.*": 3, "m.norm.w": 2}, "{'*.mlp.*': [0, 1], '*.0.*': 3, 'm.norm.w': 2}"),
    ],
)
def test_one_way_of_saying_coefficients(names, given, text):
    tau = names["x"] - names["base"]
    scaled = scale_by(tau, given)
    written = parse(f"scale_by(x - base, {text})", names)
    again = parse(expression(scaled.node), names)
    assert scaled.node.key == written.node.key == again.node.key
    found = coefficients(scaled, tau)
    if isinstance(given, dict):
        assert found["m.layers.0.mlp.w"] == 0 and found["m.layers.1.mlp.w"] == 0.5 and found["m.layers.2.mlp.w"] == 1
        assert found["m.layers.0.a.w"] == 3 and found["m.norm.w"] == 2 and found["m.embed.w"] == 1
    elif isinstance(given, list):
        assert [found[f"m.layers.{i}.a.w"] for i in range(3)] == given and found["m.norm.w"] == 1
    else:
        assert set(found.values()) == {0.5}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("scale_by(x - base, {'*.mlq.*': 1})", "matches none"),
        ("scale_by(x - base, {'m.norm.w': [0, 1]})", "no numbered blocks"),
        ("scale_by(x - base, {})", "empty"),
        ("scale_by(x - base, 'x')", "a number, a list over layers, or a table"),
        ("scale_by(x - base, {'a': {'b': 1}})", "a number, a list over layers, or a table"),
        ("scale_by(x, 1)", "no task vector"),
        ("as_vector(x - base, base)", "takes a checkpoint and a checkpoint"),
        ("stack([x, 0, 4])", "blocks 0 to 2"),
        ("stack([x, 2, 2])", "is no range"),
        ("stack(x, 0, 1)", "stack takes"),
        ("stack([x, 0.5, 1])", "stack takes"),
        ("stack()", "needs pieces"),
    ],
)
def test_what_is_wrong_is_said(names, text, said):
    with pytest.raises(UsageError, match=said) as caught:
        parse(text, names)
    assert isinstance(caught.value, NotLinear) or "x" not in text.split("(")[0]


def test_weights_as_a_vector_are_weights(names):
    base, x, y = names.values()
    mixed = base + 0.25 * as_vector(x, base) + 2 * as_vector(y, base) - as_vector(base, base)
    for n in base.names:
        np.testing.assert_allclose(mixed.array(n), 0.25 * x.array(n) + 2 * y.array(n), atol=1e-6)
    assert parse(expression(mixed.node), names).node.key == mixed.node.key


def test_a_stack_copies_bytes_and_numbers_anew(names, tmp_path, run_cli):
    _, x, y = names.values()
    tall = stack((x, 1, 3), (y, 0, 1), (x, 2, 3))
    for new, (point, old) in {0: (x, 1), 1: (x, 2), 2: (y, 0), 3: (x, 2)}.items():
        np.testing.assert_array_equal(tall.array(f"m.layers.{new}.a.w"), point.array(f"m.layers.{old}.a.w"))
    np.testing.assert_array_equal(tall.array("m.embed.w"), x.array("m.embed.w"))
    np.testing.assert_array_equal(stack((x, 0, 1), (y, 1, 2)).array("m.norm.w"), y.array("m.norm.w"))
    assert parse(expression(tall.node), names).node.key == tall.node.key
    for name, point in names.items():
        point.save(tmp_path / name)
    lets = [a for n in names for a in ("--let", f"{n}={tmp_path / n}")]
    # Stacks meet like any other points: their blocks correspond by their new numbers.
    text = "stack([x, 0, 2], [x, 1, 3]) + 0.5 * (stack([y, 1, 3], [y, 0, 2]) - stack([x, 0, 2], [x, 1, 3]))"
    assert run_cli("edit", text, *lets, "-o", tmp_path / "out")[0] == 0
    assert run_cli("verify", tmp_path / "out")[0] == 0
    out = Checkpoint.read(tmp_path / "out")
    want = x.array("m.layers.2.a.w") + 0.5 * (y.array("m.layers.1.a.w") - x.array("m.layers.2.a.w"))
    np.testing.assert_array_equal(out.array("m.layers.3.a.w"), want)


def test_a_stack_computed_by_the_compiled_loop_has_the_same_bits(names, monkeypatch, tmp_path):
    pytest.importorskip("llvmlite")
    _, x, y = names.values()
    low, high = stack((x, 0, 2), (y, 0, 1)), stack((y, 0, 2), (x, 1, 2))
    edited = low + scale_by(high - low, [0.1, 0.9]) + 0.5 * as_vector(x, low).restrict("m.layers.0.*")
    for switch in ("0", "1"):
        monkeypatch.setenv("TASKVEC_FAST", switch)
        edited.save(tmp_path / f"{switch}.safetensors")
    a, b = (Checkpoint.read(tmp_path / f"{s}.safetensors").arrays() for s in "01")
    assert all((a[n] == b[n]).all() for n in a)


def test_stacks_of_differently_named_blocks_are_refused(names):
    other = Checkpoint.of({"h.0.w": np.zeros(2, np.float32)}, label="other")
    with pytest.raises(KeyMismatch, match="must have one name"):
        stack((names["x"], 0, 1), (other, 0, 1))
    with pytest.raises(KeyMismatch, match="has none"):
        stack((Checkpoint.of({"w": np.zeros(2)}, label="flat"), 0, 1))


def test_patterns_choose_exactly_the_names():
    universe = [f"m.{i}.{k}.w" for i in range(3) for k in "ab"] + ["m.10.a.w", "n[0].w", "n0.w", "w"]
    from taskvec.select import matching

    for chosen in (universe[:2], universe[1:4], ["n[0].w"], ["w"], universe):
        found = patterns(chosen, universe)
        assert [n for n in universe if matching(*found)(n)] == list(chosen)
    assert patterns(universe, universe) == ["*"]


def test_a_long_sum_is_no_deep_recursion(names):
    text = "base" + " + 0.001 * (x - base)" * 2_000
    found = parse(text, names)
    assert isinstance(found, Checkpoint)
    tau = TaskVector(found.node.inputs[1], (names["x"] - names["base"]).base, "tau")
    assert coefficients(tau, names["x"] - names["base"])["m.embed.w"] == pytest.approx(2.0, rel=1e-4)


def test_an_edit_of_an_edit_does_not_multiply(tmp_path, run_cli):
    """Forty layers with a coefficient of their own, twice; the text reads back and the numbers are the same."""
    rng = np.random.default_rng(0)
    for name in ("base", "x", "y"):
        table = {f"m.{i}.{k}.w": rng.normal(size=2).astype(np.float32) for i in range(40) for k in "ab"}
        Checkpoint.of(table).save(tmp_path / name)
    base, x, y = (Checkpoint.read(tmp_path / n, label=n) for n in ("base", "x", "y"))
    first = base + scale_by(x - base, [0, 1])
    for i in range(40):
        first = first + 0.001 * i * ((y - base).restrict(f"m.{i}.b.*"))
    tau = first - x
    total = base
    for i in range(40):
        total = total + 0.01 * i * tau.rebase(base).restrict(f"m.{i}.*")
    for i in (0, 7, 39):
        name = f"m.{i}.b.w"
        b, u, v = (p.array(name).astype(float) for p in (base, x, y))
        once = b + i / 39 * (u - b) + 0.001 * i * (v - b)
        np.testing.assert_allclose(total.array(name), b + 0.01 * i * (once - u), atol=1e-5)
    assert total.node.written < 3_000
    total.save(tmp_path / "out")
    assert run_cli("verify", tmp_path / "out")[0] == 0
