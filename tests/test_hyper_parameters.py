"""Hyper-parameters of methods in expressions: words, lists, truth values, whole numbers, checkpoints; and printed again."""

from __future__ import annotations

import numpy as np
import pytest

from taskvec.errors import UsageError
from taskvec.recipe import parse
from taskvec.weights import Checkpoint
from taskvec.weights.text import expression, source_names

SHAPES = {"layer.0.w": (6, 5), "layer.1.w": (6, 5), "b": (7,)}


@pytest.fixture
def names():
    rng = np.random.default_rng(0)

    def point(label: str) -> Checkpoint:
        return Checkpoint.of({n: rng.normal(size=s).astype(np.float32) for n, s in SHAPES.items()}, label=label)

    base = point("base")
    found = {"base": base, **{n: point(n) for n in ("a", "b", "c")}}
    found |= {f"f_{n}": Checkpoint.of({k: x**2 for k, x in point(n).arrays().items()}, label=f"f_{n}") for n in "ab"}
    gram = {"layer.0.w": np.eye(5, dtype=np.float32), "layer.1.w": np.diag(np.arange(1, 6)).astype(np.float32)}
    return found | {f"g_{n}": Checkpoint.of(gram, label=f"g_{n}") for n in "ab"}


@pytest.mark.parametrize(
    "call",
    [
        "ties([a - base, b - base], density=0.4, variant='mergekit', coefficients=[0.5, 0.3])",
        "ties([a - base, b - base], density=0.4, votes='count')",
        "dare([a - base, b - base], density=0.5, seed=3, consensus='ties', variant='mergekit')",
        "karcher([a - base, b - base, c - base], of='models')",
        "karcher([a - base, b - base], base=base, of='models')",
        "nuslerp([a - base, b - base], t=0.3, per='row')",
        "emr([a - base, b - base, c - base], task=2)",
        "emr([a - base, b - base])",
        "consensus([a - base, b - base, c - base], threshold=0.3, agree=1)",
        "random_drop([a - base], density=0.5, seed=0, rescale=False)",
        "low_rank([a - base], rank=2)",
        "lines([a - base, b - base], alpha=0.5, beta=-0.25)",
        "fisher([a - base, b - base], information=[f_a, f_b], coefficients=[1, 2])",
        "regmean([a - base, b - base], grams=[g_a, g_b], shrink=0.5)",
        "wudi([a - base, b - base], steps=5, rate=0.001)",
    ],
)
def test_what_is_read_prints_as_it_was_written_and_reads_back_the_same(call, names):
    value = parse(f"base + 0.5 * {call}", names)
    called = source_names(value.node)
    text = expression(value.node, called)
    assert text == f"base + 0.5 * {call}"
    again = parse(text, names)
    assert again.node.key == value.node.key
    for n, x in value.arrays().items():
        np.testing.assert_array_equal(again.array(n), x)
    assert value.explain().passes >= 1 and expression(value.node, called, expand=True)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("ties([a - base], variant=paper)", "variant must be a word in quotes"),
        ("ties([a - base], variant='papr')", "choose one of paper, mergekit, peft.*Did you mean 'paper'"),
        ("ties([a - base], density='0.2')", "density must be a number"),
        ("ties([a - base], coefficients=0.3)", "list in brackets"),
        ("ties([a - base], coefficients=['x'])", "coefficients must be a number"),
        ("random_drop([a - base], density=0.5, rescale=1)", "True or False"),
        ("emr([a - base], task=0.5)", "whole number"),
        ("karcher([a - base], base=a - base)", "no checkpoint"),
        ("fisher([a - base, b - base], information=f_a)", "list in brackets"),
        ("fisher([a - base, b - base], information=[f_a, nothing])", "unknown name 'nothing'"),
        ("fisher([a - base, b - base])", "needs information"),
        ("iso_cts([a - base], comon=0.5)", "Did you mean 'common'"),
    ],
)
def test_what_is_wrong_is_said(call, said, names):
    with pytest.raises(UsageError, match=said):
        parse(f"base + {call}", names)
