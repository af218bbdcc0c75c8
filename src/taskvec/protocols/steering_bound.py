"""The theory of sub-group vectors, held against what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from ..methods import task_sum
from ..results import Bound, BoundPoint
from ..tasks.task import Split
from ..weights import TaskVector


def bound(
    scores: np.ndarray, coefficients: Sequence[float], vectors: Mapping[str, TaskVector], split: Split, *,
    convention: Literal["sum", "mean"], positive: int = 1, min_n: int = 30, seed: int = 0,
) -> Bound:  # fmt: skip
    r"""The bound :math:`2 L \sum_g |\alpha_g - 1|\,\lVert\delta_g\rVert` along :math:`\theta_0 + \lambda\sum_g\delta_g`.

    With "sum", :math:`\alpha_g = \lambda`: displaced from :math:`\theta_0 + \sum_g \delta_g`. With "mean", :math:`\alpha_g = G\lambda`:
    displaced from :math:`\theta_0 + \frac{1}{G}\sum_g \delta_g`, as the paper states it; the displacement itself is then G times
    shorter than the bound counts. L is estimated (`Bound`), from a random half of the people; the gap is measured on the other half.

    Args:
        scores: probability of the positive class, ``[points, n]``.
        coefficients: the :math:`\lambda`, rising.
        vectors: group -> :math:`\delta_g`.
        split: the n people.
        min_n: least number of members, in the half, for a group to be compared.
        seed: cuts the halves.
    Reference: arXiv:2505.24262.
    """
    n, count = scores.shape[1], len(vectors)
    order = np.random.default_rng(seed).permutation(n)
    here, there = order[: n // 2], order[n // 2 :]
    member = np.stack([m.numpy() for m in split.groups.values()]).astype(np.float64)  # [groups, n]
    total = task_sum(list(vectors.values())).norm()
    gap = np.diff(coefficients) * total  # how far neighbouring points lie apart

    def rates(rows: np.ndarray) -> np.ndarray:
        """Selection rates [points, groups] of the groups large enough."""
        own = member[:, rows]
        able = own.sum(1) >= min_n
        return (scores[:, rows] > 0.5) @ own[able].T / own[able].sum(1)

    def steepest(values: np.ndarray) -> float:
        if not values.size or len(values) < 2 or not total:
            return 0.0
        return float((np.abs(np.diff(values, axis=0)).max(1) / gap).max())

    by_rates, by_scores = steepest(rates(here)), steepest(scores[:, here])
    seen = rates(there)
    parity = seen.max(1) - seen.min(1) if seen.shape[1] > 1 else np.full(len(scores), np.nan)
    share = 1.0 if convention == "sum" else 1.0 / count
    norms = {g: v.norm() for g, v in vectors.items()}
    points = []
    for c, found in zip(coefficients, parity, strict=True):
        path = abs(c / share - 1) * sum(norms.values())
        points.append(
            BoundPoint(
                coefficient=c, parity=None if np.isnan(found) else float(found), path=path, bound_rates=2 * by_rates * path,
                bound_scores=2 * by_scores * path,
            )
        )  # fmt: skip
    at = int(np.argmin(np.abs(np.asarray(coefficients) - share)))
    return Bound(
        convention=convention, balance=share, rates=by_rates, scores=by_scores, parity_at_balance=points[at].parity, norms=norms,
        points=tuple(points), people=(len(here), len(there)),
    )  # fmt: skip
