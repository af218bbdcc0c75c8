"""Merging methods: plain functions on task vectors, composed of steps. A new method is one function and one row here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..weights import Op, TaskVector
from . import elementwise
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
    """

    fn: Callable[..., TaskVector]
    vectors: tuple[int, int | None] = (1, None)
    permutes: bool = False
    scales: bool = True
    identity: dict[str, float] | None = None


METHODS: dict[str, Method] = {
    "sum": Method(task_sum, permutes=True, identity={}),
    "average": Method(average, permutes=True, identity={}),
    "ties": Method(ties, permutes=True, identity={"density": 1.0}),
    "dare": Method(dare, identity={"density": 1.0}),
    "slerp": Method(slerp, vectors=(2, 2)),
    "random": Method(random_like, vectors=(1, 1)),
}

STEPS: dict[str, Op] = {op.name: op for op in elementwise.STEPS}

__all__ = ["METHODS", "STEPS", "Method", "average", "dare", "random_like", "slerp", "task_sum", "ties"]
