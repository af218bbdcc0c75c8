"""Methods on singular values. Each matrix is decomposed whole, in float64, on the processor, by NumPy.

Before a decomposition a matrix is multiplied by a power of two, so that very small and very large vectors come out as well
as others. With another number of linear algebra threads, or on another processor, last bits may differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from ..errors import UsageError
from ..weights import Op, TaskVector, lift, named
from ..weights.summaries import count_kept
from . import checks
from .elementwise import Array, on_host


def low_rank(vectors: Sequence[TaskVector], *, rank: int | None = None, energy: float | None = None) -> TaskVector:
    r"""Low-rank truncation: the largest singular values of every matrix of one vector.

    :math:`\sum_{i \le r} \sigma_i u_i v_i^\top` of :math:`\tau = \sum_i \sigma_i u_i v_i^\top`

    Args:
        vectors: exactly one.
        rank: r, the same for all matrices; smaller ones stay as they are. Give this or `energy`.
        energy: the least r for which :math:`\sum_{i \le r}\sigma_i^2` is this share of :math:`\lVert\tau\rVert^2`, in (0, 1].
    Raises:
        UsageError: not one vector, or not exactly one of rank and energy.
    Reference: Eckart and Young 1936, "The approximation of one matrix by another of lower rank".
    Variants: tensors that are not matrices stay as they are.
    Example: ``base + low_rank([cars], rank=16)``
    """
    checks.count("low_rank", vectors, most=1)
    if (rank is None) == (energy is None):
        raise UsageError("low_rank needs either rank, for example rank=16, or energy, for example energy=0.95.")
    if rank is not None:
        checks.whole("low_rank", "rank", rank, 1)
    if energy is not None:
        checks.density("low_rank", energy, name="energy")
    result = lift(TRUNCATE, list(vectors), rank=rank, energy=energy)
    return named("low_rank", vectors, result, rank=rank, energy=energy)


def tsv_m(vectors: Sequence[TaskVector]) -> TaskVector:
    r"""TSV-Merge: the largest singular directions of every task, made orthogonal to each other.

    :math:`\hat U \Sigma \hat V^\top`: of each of T tasks the 1/T largest singular triplets, side by side in U,
    :math:`\Sigma`, V; :math:`\hat U = P Q^\top` for :math:`U = P S Q^\top`, the nearest matrix with orthonormal columns, and
    :math:`\hat V` likewise.

    Args:
        vectors: one per task, of one base.
    Reference: Gargiulo et al. 2024, arXiv:2412.00081.
    Variants: tensors that are not matrices are averaged. A matrix with fewer rows or columns than tasks keeps one triplet of
        each (the authors' code keeps none). The authors average CLIP's `text_projection` too; restrict to say so.
    Example: ``base + tsv_m([cars, dtd])``
    """
    checks.count("tsv_m", vectors)
    return named("tsv_m", vectors, lift(ORTHOGONAL, vectors))


def iso_c(vectors: Sequence[TaskVector]) -> TaskVector:
    r"""Iso-C: the summed vector with every matrix's singular values replaced by their mean.

    :math:`\bar\sigma U V^\top` of :math:`\sum_t\tau_t = U\Sigma V^\top`, :math:`\bar\sigma` the mean of all singular values.

    Args:
        vectors: one per task, of one base.
    Reference: Marczak et al. 2025, arXiv:2502.04959.
    Variants: tensors that are not matrices are averaged, as in the authors' code. Of a matrix without full rank, the
        directions of its null space are arbitrary and count too, as published.
    Example: ``base + 1.5 * iso_c([cars, dtd])``
    """
    checks.count("iso_c", vectors)
    return named("iso_c", vectors, lift(ISOTROPIC, vectors))


def iso_cts(vectors: Sequence[TaskVector], *, common: float = 0.8) -> TaskVector:
    r"""Iso-CTS: Iso-C on a common subspace, filled up with directions of the single tasks.

    Of :math:`\sum_t\tau_t` the largest left singular directions :math:`U_c`; of each
    :math:`(I - U_c U_c^\top)\tau_t` the largest triplets, as many for every task as fill the rank; all made orthonormal (see
    `tsv_m`), with the mean of all their singular values.

    Args:
        vectors: one per task, of one base.
        common: share of the singular directions that are common, in [0, 1]; adjusted so that the rest divides by the tasks.
    Raises:
        UsageError: a share outside [0, 1], or no vectors.
    Reference: Marczak et al. 2025, arXiv:2502.04959.
    Variants: tensors that are not matrices are averaged, as in the authors' code.
    Example: ``base + 1.5 * iso_cts([cars, dtd], common=0.8)``
    """
    checks.count("iso_cts", vectors)
    common = checks.within("iso_cts", "common", common, 0, 1)
    return named("iso_cts", vectors, lift(COMMON_AND_OWN, vectors, common=common), common=common)


def knots(
    vectors: Sequence[TaskVector], *, density: float = 0.2, merge: Literal["ties", "mean"] = "ties"
) -> TaskVector:
    r"""KnOTS: the tasks' updates in one common basis, where they are merged.

    :math:`U \Sigma\, m(V_1, ..., V_T)^\top` for :math:`[\tau_1 ... \tau_T] = U \Sigma [V_1^\top ... V_T^\top]`, side by side;
    m trims every :math:`V_t` to its largest entries, elects signs, and averages the entries that agree.

    Args:
        vectors: one per task, of one base: dense differences, or low-rank updates as task vectors (the product of LoRA
            factors), for which it was published.
        density: share of each :math:`V_t` that is kept, in (0, 1], rounded up, matrix by matrix.
        merge: m, "ties" or "mean" (which is the mean of the vectors).
    Raises:
        UsageError: density outside (0, 1], or no vectors.
    Reference: Stoica et al. 2024, arXiv:2410.19735; trimming each matrix by itself, and the default density, are from memory.
    Variants: tensors that are not matrices are averaged [inferred]. Directions with a singular value below float32's
        resolution of the largest are left out; entries of :math:`V_t` below it are zero. Of LoRA adapters (and sums of them)
        the factors are taken, so that a matrix of the size of their ranks is decomposed; the update itself is never rounded.
    Example: ``base + knots([cars, dtd], density=0.2)``
    """
    checks.count("knots", vectors)
    checks.density("knots", density)
    checks.choice("knots", "merge", merge, ("ties", "mean"))
    result = lift(TIED, vectors, density=density, merge=merge)
    return named("knots", vectors, result, density=density, merge=None if merge == "ties" else merge)


RESOLUTION = float(np.finfo(np.float32).eps)
Shape = Sequence[int]
Ranks = Sequence[int | None]
SVD = 20  # multiply-adds that a decomposition takes for each long side x short side squared: 1 to 3 ns measured, of 0.1 ns each

# --- steps ------------------------------------------------------------------------------------------------------------


def _svd(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """U, the singular values, V transposed; exactly equivariant under powers of two."""
    largest = float(np.abs(x).max(initial=0.0))
    exponent = int(np.frexp(largest)[1])
    u, s, v = np.linalg.svd(np.ldexp(x, -exponent), full_matrices=False)
    return u, np.ldexp(s, exponent), v


def _nearest(x: np.ndarray) -> np.ndarray:
    """The nearest matrix with orthonormal columns (or rows)."""
    u, _, v = np.linalg.svd(x, full_matrices=False)
    return u @ v


def _matrices(arrays: Sequence[Array]):
    """The arrays in float64, a function back, and whether there is a matrix to decompose."""
    host, back = on_host(arrays)
    wide = [h.astype(np.float64) for h in host]
    return wide, back, wide[0].ndim == 2 and wide[0].size > 0


def _mean(xs: Sequence[np.ndarray]) -> np.ndarray:
    total = xs[0]
    for x in xs[1:]:
        total = total + x
    return total / len(xs)


def truncate(arrays: Sequence[Array], *, rank: int | None, energy: float | None) -> Array:
    """See `low_rank`."""
    (x,), back, matrix = _matrices(arrays)
    if not matrix or (rank is not None and rank >= min(x.shape)):
        return arrays[0]
    u, s, v = _svd(x)
    if energy is not None:
        squares = np.cumsum((s / s[0]) ** 2) if s[0] else np.ones_like(s)
        rank = min(len(s), int(np.searchsorted(squares, energy * squares[-1] * (1 - 1e-12))) + 1)
    return back((u[:, :rank] * s[:rank]) @ v[:rank])


def orthogonal(arrays: Sequence[Array]) -> Array:
    """See `tsv_m`."""
    xs, back, matrix = _matrices(arrays)
    if not matrix:
        return back(_mean(xs))
    k = max(1, min(xs[0].shape) // len(xs))
    parts = [_svd(x) for x in xs]
    u = np.concatenate([p[0][:, :k] for p in parts], axis=1)
    s = np.concatenate([p[1][:k] for p in parts])
    v = np.concatenate([p[2][:k] for p in parts], axis=0)
    return back((_nearest(u) * s) @ _nearest(v))


def isotropic(arrays: Sequence[Array]) -> Array:
    """See `iso_c`."""
    xs, back, matrix = _matrices(arrays)
    if not matrix:
        return back(_mean(xs))
    u, s, v = _svd(_mean(xs) * len(xs))
    return back(s.mean() * (u @ v))


def common_and_own(arrays: Sequence[Array], *, common: float) -> Array:
    """See `iso_cts`."""
    xs, back, matrix = _matrices(arrays)
    if not matrix:
        return back(_mean(xs))
    r, n = min(xs[0].shape), len(xs)
    own = min(round((r - int(r * common)) / n), r // n)  # directions of each task
    u, s, v = _svd(_mean(xs) * n)
    c = r - own * n
    basis = u[:, :c]
    parts = [_svd(x - basis @ (basis.T @ x)) for x in xs]
    us = np.concatenate([*(p[0][:, :own] for p in parts), basis], axis=1)
    ss = np.concatenate([*(p[1][:own] for p in parts), s[:c]])
    vs = np.concatenate([*(p[2][:own] for p in parts), v[:c]], axis=0)
    return back(ss.mean() * (_nearest(us) @ _nearest(vs)))


def tied(arrays: Sequence[Array], *, density: float, merge: str) -> Array:
    """See `knots`."""
    xs, back, matrix = _matrices(arrays)
    if not matrix:
        return back(_mean(xs))
    if merge == "mean":
        return back(_mean(xs))
    u, s, v = _svd(np.concatenate(xs, axis=1))
    return back(_voted(u, s, np.split(v, len(xs), axis=1), density))


def tied_factors(pairs: Sequence[tuple[np.ndarray, np.ndarray]], *, density: float, merge: str) -> np.ndarray | None:
    """See `knots`, of low-rank updates: with R the sum of their ranks, the matrix decomposed is R x R."""
    lefts, rights = [p[0] for p in pairs], [p[1] for p in pairs]
    ranks = [len(r) for r in rights]
    if merge == "mean" or sum(ranks) >= min(len(lefts[0]), rights[0].shape[1]):
        return None
    if not sum(ranks):  # nothing moved
        return np.zeros((len(lefts[0]), rights[0].shape[1]), np.float32)
    basis, core = np.linalg.qr(np.concatenate(lefts, axis=1))
    own = [np.linalg.qr(r.T) for r in rights]
    cores = np.split(core, np.cumsum(ranks)[:-1], axis=1)
    u, s, v = _svd(np.concatenate([c @ r.T for c, (_, r) in zip(cores, own, strict=True)], axis=1))
    parts = np.split(v, np.cumsum(ranks)[:-1], axis=1)
    vs = [part @ q.T for part, (q, _) in zip(parts, own, strict=True)]
    return _voted(basis @ u, s, vs, density).astype(np.float32)


def _voted(u: np.ndarray, s: np.ndarray, parts: Sequence[np.ndarray], density: float) -> np.ndarray:
    """The tasks' parts of V transposed, trimmed and merged by TIES, between U and the singular values."""
    size = max(len(u), parts[0].shape[1])
    kept = s > s[0] * size * RESOLUTION if s[0] else np.zeros(len(s), bool)
    if not kept.any():
        return np.zeros((len(u), parts[0].shape[1]))
    vs = np.stack([part[kept] for part in parts])
    vs[np.abs(vs) < RESOLUTION] = 0.0  # what is left of exact zeros must not vote
    flat = np.abs(vs).reshape(len(vs), -1)
    n = flat.shape[1]
    cuts = np.partition(flat, n - count_kept(n, density), axis=1)[:, n - count_kept(n, density)]
    vs = np.where(np.abs(vs) >= cuts[:, None, None], vs, 0.0)
    sign = np.sign(vs.sum(0))
    agrees = (np.sign(vs) == sign) & (sign != 0)
    return (u[:, kept] * s[kept]) @ ((vs * agrees).sum(0) / np.maximum(1, agrees.sum(0)))


# --- what they cost, for estimates ------------------------------------------------------------------------------------


def _work(rows: int, columns: int) -> float:
    return SVD * max(rows, columns) * min(rows, columns) ** 2


def _of_each(shape: Shape, ranks: Ranks, **_: object) -> float:
    """A decomposition of every input, and two that make their directions orthogonal."""
    return (len(ranks) + 2) * _work(*shape) if len(shape) == 2 else 0


def _of_each_and_all(shape: Shape, ranks: Ranks, **_: object) -> float:
    return (len(ranks) + 3) * _work(*shape) if len(shape) == 2 else 0


def _of_one(shape: Shape, ranks: Ranks, **_: object) -> float:
    return _work(*shape) if len(shape) == 2 else 0


def _side_by_side(shape: Shape, ranks: Ranks, *, merge: str, **_: object) -> float:
    """See `tied` and `tied_factors`."""
    if len(shape) != 2 or merge == "mean":
        return 0
    known = [r for r in ranks if r is not None]
    total = sum(known)
    if len(known) == len(ranks) and total < min(shape):
        return _work(total, total) + (len(ranks) + 1) * shape[0] * shape[1] * total
    return _work(shape[0], shape[1] * len(ranks)) + shape[0] * shape[1] * min(shape)


TRUNCATE = Op("truncate", truncate, works_on="tensor", work=_of_one)
ORTHOGONAL = Op(
    "orthogonal", orthogonal, works_on="tensor", symmetric=True, work=_of_each, reference="arXiv:2412.00081"
)
ISOTROPIC = Op("isotropic", isotropic, works_on="tensor", symmetric=True, work=_of_one, reference="arXiv:2502.04959")
COMMON_AND_OWN = Op(
    "common_and_own", common_and_own, works_on="tensor", symmetric=True, work=_of_each_and_all, reference="arXiv:2502.04959"
)  # fmt: skip
TIED = Op(
    "tied", tied, works_on="tensor", symmetric=True, factored=tied_factors, work=_side_by_side,
    reference="arXiv:2410.19735",
)  # fmt: skip
STEPS = (TRUNCATE, ORTHOGONAL, ISOTROPIC, COMMON_AND_OWN, TIED)
