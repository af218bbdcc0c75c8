"""Merging methods: plain functions on task vectors, composed of steps. A new method is one function and one row here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..weights import Op, TaskVector
from . import elementwise, linear
from .linear import expo, karcher, model_stock, multislerp, nuslerp, paint, weighted_average
from .named import average, dare, random_like, slerp, task_sum, ties


@dataclass(frozen=True)
class Method:
    """One row: the function and the laws it claims, which the test suite holds it to.

    Args:
        fn: ``(vectors, *, hyper-parameters) -> TaskVector``.
        vectors: least and greatest number of vectors (None: any).
        permutes: the order of the vectors means nothing, bit for bit.
        scales: multiplying all vectors by c multiplies the result by c.
        identity: hyper-parameters with which one vector alone comes back unchanged, if there are such.
        statistics: the hyper-parameter that takes one checkpoint of statistics a vector, if there is one.
    """

    fn: Callable[..., TaskVector]
    vectors: tuple[int, int | None] = (1, None)
    permutes: bool = False
    scales: bool = True
    identity: dict[str, Any] | None = None
    statistics: str | None = None


METHODS: dict[str, Method] = {
    "sum": Method(task_sum, permutes=True, identity={}),
    "average": Method(average, permutes=True, identity={}),
    "ties": Method(ties, permutes=True, identity={"density": 1.0}),
    "dare": Method(dare, identity={"density": 1.0}),
    "slerp": Method(slerp, vectors=(2, 2)),
    "weighted_average": Method(weighted_average, identity={}),
    "paint": Method(paint, vectors=(1, 1), identity={"t": 1.0}),
    "expo": Method(expo, vectors=(1, 1), identity={"alpha": 0.0}),
    "nuslerp": Method(nuslerp, vectors=(2, 2)),
    "multislerp": Method(multislerp, identity={}),
    "karcher": Method(karcher, permutes=True, identity={}),
    "model_stock": Method(model_stock, vectors=(2, None), permutes=True),
    "random": Method(random_like, vectors=(1, 1)),
}

STEPS: dict[str, Op] = {op.name: op for op in (*elementwise.STEPS, *linear.STEPS)}

__all__ = [
    "METHODS", "STEPS", "Method", "average", "dare", "expo", "karcher", "model_stock", "multislerp", "nuslerp", "paint",
    "random_like", "slerp", "task_sum", "ties", "weighted_average",
]  # fmt: skip
