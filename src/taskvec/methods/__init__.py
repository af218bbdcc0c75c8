"""Merging methods: plain functions on task vectors, composed of steps. A new method is one function and one row here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..weights import Op, TaskVector
from . import curvature, elementwise, layered, linear, sparse_steps, spectral, threshold
from .curvature import fisher, mats, regmean
from .layered import lines, wudi
from .linear import expo, karcher, model_stock, multislerp, nuslerp, paint, weighted_average
from .named import average, dare, random_like, slerp, task_sum, ties
from .sparse import (
    breadcrumbs,
    consensus,
    della,
    emr,
    magmax,
    magnitude_drop,
    pcb,
    random_drop,
    sce,
    stitch,
    tall_mask,
)
from .spectral import iso_c, iso_cts, knots, low_rank, tsv_m
from .threshold import arcee_fusion, nearswap, ram


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
    "della": Method(della, identity={"density": 1.0}),
    "breadcrumbs": Method(breadcrumbs, permutes=True, identity={"density": 1.0}),
    "sce": Method(sce),
    "magmax": Method(magmax, permutes=True, identity={}),
    "pcb": Method(pcb, scales=False),
    "tall_mask": Method(tall_mask, identity={"task": 0}),
    "consensus": Method(consensus, permutes=True, identity={"agree": 1}),
    "emr": Method(emr, identity={"task": None}),
    "random_drop": Method(random_drop, vectors=(1, 1), identity={"density": 1.0}),
    "magnitude_drop": Method(magnitude_drop, vectors=(1, 1), identity={"density": 1.0}),
    "nearswap": Method(nearswap, vectors=(1, 1), scales=False, identity={"t": 1e9}),
    "arcee_fusion": Method(arcee_fusion, vectors=(1, 1), scales=False),
    "ram": Method(ram, permutes=True, scales=False, identity={"epsilon": 0.0}),
    "stitch": Method(stitch, statistics="masks"),
    "low_rank": Method(low_rank, vectors=(1, 1)),
    "tsv_m": Method(tsv_m, permutes=True),
    "iso_c": Method(iso_c, permutes=True),
    "iso_cts": Method(iso_cts, permutes=True),
    "knots": Method(knots, permutes=True),
    "lines": Method(lines, permutes=True, identity={"alpha": None, "beta": None}),
    "wudi": Method(wudi, permutes=True, scales=False),
    "fisher": Method(fisher, statistics="information"),
    "regmean": Method(regmean, statistics="grams"),
    "mats": Method(mats, statistics="grams"),
    "random": Method(random_like, vectors=(1, 1)),
}

STEPS: dict[str, Op] = {
    op.name: op
    for op in (
        *elementwise.STEPS,
        *linear.STEPS,
        *sparse_steps.STEPS,
        *spectral.STEPS,
        *layered.STEPS,
        *curvature.STEPS,
        *threshold.STEPS,
    )
}

__all__ = [
    "METHODS", "STEPS", "Method", "arcee_fusion", "average", "breadcrumbs", "consensus", "dare", "della", "emr",
    "expo", "fisher", "iso_c", "iso_cts", "karcher", "knots", "lines", "low_rank", "magmax", "magnitude_drop", "mats",
    "model_stock", "multislerp", "nearswap", "nuslerp", "paint", "pcb", "ram", "random_drop", "random_like",
    "regmean", "sce", "slerp", "stitch", "tall_mask", "task_sum", "ties", "tsv_m", "weighted_average", "wudi",
]  # fmt: skip
