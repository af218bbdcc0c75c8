"""Methods that ask of every entry whether it moved far enough, or too far: NearSwap, Arcee Fusion, RAM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from array_api_compat import array_namespace

from ..weights import Checkpoint, Op, TaskVector, lift, named
from . import checks
from .elementwise import Array, on_host, some_rows
from .sparse_steps import CLIP


def nearswap(vectors: Sequence[TaskVector], *, t: float) -> TaskVector:
    r"""NearSwap: takes over what lies near the base, and goes a fixed step towards what lies farther.

    :math:`\min(1, t / |\tau|) \odot \tau`: entries up to t as they are, all others :math:`\pm t`.

    Args:
        vectors: exactly one.
        t: in units of the weights, at least 0.
    Raises:
        UsageError: not one vector, or a negative t.
    Reference: alchemonaut 2024, the model QuartetAnemoi-70B-t0.0001; mergekit 0.1.5, `nearswap`.
    Variants: mergekit takes differences below 1e-6 for 1e-6, which matters only where t is smaller than that.
    Example: ``base + nearswap([cars], t=0.0001)``
    """
    checks.count("nearswap", vectors, most=1)
    t = checks.within("nearswap", "t", t, 0)
    return named("nearswap", vectors, lift(CLIP, list(vectors), low=0.0, high=t), t=t)


def arcee_fusion(vectors: Sequence[TaskVector], *, base: Checkpoint | None = None) -> TaskVector:
    r"""Arcee Fusion: the entries of one model whose importance stands out among those of their tensor.

    :math:`1(s \ge q_{1/2} + 1.5\,(q_{3/4} - q_{1/4})) \odot \tau` with importance
    :math:`s = |\tau| \odot \mathrm{KL}(\operatorname{softmax}(\theta_0 + \tau) \,\|\, \operatorname{softmax}(\theta_0))`, a softmax over
    the last axis (one KL divergence a row), and :math:`q` the quantiles of s over the tensor.

    Args:
        vectors: exactly one.
        base: :math:`\theta_0`, for a vector from a file.
    Raises:
        UsageError: not one vector, or no base to be had.  BaseMismatch: another base.
    Reference: mergekit 0.1.5 (2026), `arcee_fusion`, of which there is no paper.
    Variants: quantiles are exact; mergekit draws a million entries of larger tensors at random. Computed in float64, so that rows
        that hardly differ have a divergence near zero and no noise. A one-dimensional tensor is one row.
    Example: ``base + arcee_fusion([cars])``
    """
    checks.count("arcee_fusion", vectors, most=1)
    origin = checks.base_of("arcee_fusion", vectors, base)
    return named("arcee_fusion", vectors, lift(IMPORTANT, list(vectors), beside=[origin]), base=base)


def ram(
    vectors: Sequence[TaskVector], *, epsilon: float = 1e-5, r: float = 0.0, alpha: float = 0.2,
    per: Literal["model", "tensor"] = "model",
) -> TaskVector:  # fmt: skip
    r"""RAM, reinforced agent merging: what one task alone moved is kept whole, what several moved is averaged among them.

    :math:`\sum_t \lambda_t m_t \odot \tau_t` where :math:`c = \sum_t m_t` is 1, and :math:`\sum_t m_t \odot \tau_t / c` where it is more,
    :math:`m_t = 1(|\tau_t| > \epsilon)`. :math:`\lambda_t = 1 + r \min(\alpha, \rho_t)`, :math:`\rho_t` the number of entries that the
    task shares with others over the number of its own.

    Args:
        vectors: one per task, of one base.
        epsilon: :math:`\epsilon`, in units of the weights: up to it an entry has not moved.
        r: how much a task's own entries are enlarged; 0 is RAM, above it RAM+ (0.1 in mergekit).
        alpha: :math:`\alpha`, the largest share that counts.
        per: what :math:`\rho` is counted over.
    Raises:
        UsageError: numbers out of range, or no vectors.
    Reference: arXiv:2601.13572 (2026), as mergekit 0.1.5 has it (`ram`, `ramplus_tl`).
    Variants: per="tensor" is mergekit's `ramplus_tl`; counting over the model is [inferred] from that name. A task without entries
        of its own has nothing to enlarge.
    Example: ``base + ram([cars, dtd])``
    """
    checks.count("ram", vectors)
    epsilon = checks.within("ram", "epsilon", epsilon, 0)
    r, alpha = checks.within("ram", "r", r, 0), checks.within("ram", "alpha", alpha, 0)
    checks.choice("ram", "per", per, ("model", "tensor"))
    merged = lift(REINFORCED, vectors, epsilon=epsilon)
    if r:  # of an entry that one task alone moved there is one term, so that their order means nothing here either
        counts = lift(OWN_AND_SHARED, vectors, per=per, epsilon=epsilon)
        merged = merged + lift(ENLARGED, vectors, epsilon=epsilon, r=r, alpha=alpha, counts=counts)
    return named(
        "ram", vectors, merged, epsilon=None if epsilon == 1e-5 else epsilon, r=r or None,
        alpha=None if alpha == 0.2 else alpha, per=None if per == "model" else per,
    )  # fmt: skip


def important(arrays: Sequence[Array]) -> Array:
    """See `arcee_fusion`: the vector, then the base. Some rows at a time, but for the scores, which are held twice over."""
    host, back = on_host(arrays)
    if not host[0].size:
        return arrays[0]
    x, start = (h.reshape(-1, h.shape[-1] if h.ndim else 1) for h in host)
    divergences = np.empty((len(x), 1))
    score = np.empty(x.shape)
    for rows in some_rows(x):
        wide, from_ = x[rows].astype(np.float64), start[rows].astype(np.float64)
        p, q = _softmax(from_ + wide) + 1e-8, _softmax(from_) + 1e-8
        divergences[rows] = (p * np.log(p / q)).sum(axis=-1, keepdims=True)
        score[rows] = np.abs(wide) * divergences[rows]
    places = [int(np.float32(share) * (x.size - 1)) for share in (0.25, 0.5, 0.75)]
    flat = score.reshape(-1)
    flat.partition(places)  # in place: the scores are computed again below, from their rows' divergences
    low, middle, high = flat[places]
    cut = middle + 1.5 * (high - low)
    out = np.zeros_like(x)
    for rows in some_rows(x):
        reached = np.abs(x[rows].astype(np.float64)) * divergences[rows] >= cut
        out[rows] = np.where(reached, x[rows], 0)
    return back(out)


def _softmax(x: np.ndarray) -> np.ndarray:
    """Along the last axis."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def reinforced(arrays: Sequence[Array], *, epsilon: float) -> Array:
    """See `ram`, with r = 0: the mean of those that moved."""
    xp = array_namespace(arrays[0])
    total = count = xp.zeros_like(arrays[0])
    for x in arrays:
        moved = xp.astype(xp.abs(x) > epsilon, x.dtype)
        total, count = total + x * moved, count + moved
    return total / xp.where(count > 1, count, xp.ones_like(count))


def enlarged(arrays: Sequence[Array], *, epsilon: float, r: float, alpha: float, counts: np.ndarray) -> Array:
    """See `ram`: what is added to a task's own entries."""
    xp = array_namespace(arrays[0])
    moved = [xp.astype(xp.abs(x) > epsilon, x.dtype) for x in arrays]
    count = moved[0]
    for m in moved[1:]:
        count = count + m
    alone = xp.astype(count == 1, count.dtype)
    total = xp.zeros_like(count)
    for x, m, (own, shared) in zip(arrays, moved, counts, strict=True):
        factor = r * min(alpha, float(shared) / float(own)) if own else 0.0
        total = total + x * m * alone * factor
    return total


def own_and_shared(arrays: Sequence[Array], *, epsilon: float) -> np.ndarray:
    """For each vector, how many entries it alone moved, and how many it moved as others did."""
    moved = np.stack([np.abs(x) > epsilon for x in arrays]).reshape(len(arrays), -1)
    count = moved.sum(axis=0)
    return np.stack([(moved & (count == 1)).sum(axis=1), (moved & (count > 1)).sum(axis=1)], axis=1)


IMPORTANT = Op("important", important, works_on="tensor", reference="mergekit 0.1.5, arcee_fusion")
REINFORCED = Op("reinforced", reinforced, symmetric=True, reference="arXiv:2601.13572")
ENLARGED = Op("enlarged", enlarged, reference="arXiv:2601.13572")
OWN_AND_SHARED = Op("own_and_shared", own_and_shared, "summary", reference="arXiv:2601.13572")
STEPS = (IMPORTANT, REINFORCED, ENLARGED)
