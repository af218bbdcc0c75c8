"""The rows of METHODS as tests call them: hyper-parameters from the docstring's example, statistics made to fit."""

from __future__ import annotations

import ast
import inspect
import re
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from taskvec.methods import METHODS
from taskvec.weights import Checkpoint, TaskVector


def example(name: str) -> str:
    """The expression in the docstring's Example section."""
    doc = inspect.getdoc(METHODS[name].fn) or ""
    found = re.search(r"Example:\s*``([^`]+)``", doc)
    assert found, f"{name}: the docstring needs an Example section with an expression in double backticks"
    return found[1]


def call(name: str) -> ast.Call:
    """The method's call in its example."""
    calls = [n for n in ast.walk(ast.parse(example(name), mode="eval")) if isinstance(n, ast.Call)]
    (found,) = [n for n in calls if isinstance(n.func, ast.Name) and n.func.id == name]
    return found


def statistic(name: str, vector: TaskVector, *, seed: str = "") -> Checkpoint:
    """A file of statistics for a vector, which depends on the vector and its tensors' names only."""
    kind = METHODS[name].statistics
    assert kind is not None
    tables = {}
    for n, spec in vector.spec.items():
        rng = np.random.default_rng(zlib.crc32(f"{vector.label} {n} {seed}".encode()))
        if kind == "grams":
            if len(spec.shape) == 2 and spec.size:
                x = rng.normal(size=(2 * spec.shape[1], spec.shape[1]))
                tables[n] = x.T @ x / len(x)
        elif kind == "masks":
            tables[n] = np.asarray(rng.random(spec.shape) < 0.5).astype(np.float32)
        else:
            tables[n] = np.asarray(rng.random(spec.shape) ** 4)
    tables = {n: x.astype(np.float32) for n, x in tables.items()}
    return Checkpoint.of(tables, label=f"{kind} {vector.label}")


def apply(name: str, vectors: Sequence[TaskVector], **changes: Any) -> TaskVector:
    """The method with its example's hyper-parameters; lists in it are made as long as the vectors are many."""
    row = METHODS[name]
    given: dict[str, Any] = {}
    for word in call(name).keywords:
        assert word.arg
        if word.arg == row.statistics:
            given[word.arg] = [statistic(name, v) for v in vectors]
        else:
            value = ast.literal_eval(word.value)
            n = len(vectors)
            given[word.arg] = (value * max(1, n))[:n] if isinstance(value, list) else value
    return row.fn(list(vectors), **{**given, **changes})
