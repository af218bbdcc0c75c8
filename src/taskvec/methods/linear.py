"""Linear and spherical means: each tensor of the result is a combination of the vectors' tensors.

The combination's coefficients follow from the inner products between the vectors, so one pass for these and one to
combine are enough, block by block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from array_api_compat import array_namespace

from ..errors import UsageError
from ..weights import Checkpoint, Op, TaskVector, lift, named
from ..weights.algebra import combined
from ..weights.summaries import DOT, GRAM, GRAM_OF_SET, NORM
from . import checks
from .elementwise import INTERPOLATE, Array, on_host

NULL = 1e-12  # a unit vector's cancellation below this is a zero sum


def weighted_average(vectors: Sequence[TaskVector], *, coefficients: Sequence[float] | None = None) -> TaskVector:
    r"""The weighted mean of the task vectors; added to the base, the weighted average of the models.

    :math:`\sum_t \alpha_t \tau_t / \sum_t \alpha_t`

    Args:
        vectors: one per task, of one base.
        coefficients: the :math:`\alpha_t`, one a vector; equal unless given. Only their proportions count.
    Raises:
        UsageError: not one coefficient a vector, or a sum of zero.
    Reference: Wortsman et al. 2022, arXiv:2203.05482 (soups); mergekit's `linear` with `normalize` is the same.
    Example: ``base + weighted_average([cars, dtd], coefficients=[0.7, 0.3])``
    """
    checks.count("weighted_average", vectors)
    given = checks.coefficients("weighted_average", vectors, coefficients)
    total = math.fsum(given)
    if total == 0:
        raise UsageError("weighted_average: the coefficients add up to zero. For a plain sum write a + b - c.")
    mean = combined([(v, c / total) for v, c in zip(vectors, given, strict=True)])
    return named("weighted_average", vectors, mean, coefficients=None if coefficients is None else given)


def paint(vectors: Sequence[TaskVector], *, t: float = 0.5) -> TaskVector:
    r"""PAINT: the point at share t of the way from the base to the fine-tuned model.

    :math:`(1 - t)\theta_0 + t\theta_{ft} - \theta_0 = t\tau`

    Args:
        vectors: exactly one.
        t: 0 gives the base, 1 the fine-tuned model; to be chosen on validation data of both.
    Raises:
        UsageError: not one vector, or t outside [0, 1].
    Reference: Ilharco et al. 2022, arXiv:2208.05592.
    Example: ``base + paint([cars], t=0.6)``, the same as ``base + 0.6 * cars``.
    """
    checks.count("paint", vectors, most=1)
    t = checks.within("paint", "t", t, 0, 1)
    return named("paint", vectors, combined([(vectors[0], t)]), t=t)


def expo(vectors: Sequence[TaskVector], *, alpha: float = 0.3) -> TaskVector:
    r"""ExPO: extrapolation beyond the fine-tuned model.

    :math:`\theta_{ft} + \alpha(\theta_{ft} - \theta_0) - \theta_0 = (1 + \alpha)\tau`

    Args:
        vectors: exactly one, usually from a model before to a model after alignment.
        alpha: how far beyond, in lengths of the vector; at least 0. To be chosen on validation data (the default is ours).
    Raises:
        UsageError: not one vector, or a negative alpha.
    Reference: Zheng et al. 2024, arXiv:2404.16792 (number and formula from memory).
    Example: ``base + expo([cars], alpha=0.3)``, the same as ``base + 1.3 * cars``.
    """
    checks.count("expo", vectors, most=1)
    alpha = checks.within("expo", "alpha", alpha, 0)
    return named("expo", vectors, combined([(vectors[0], 1 + alpha)]), alpha=alpha)


def nuslerp(
    vectors: Sequence[TaskVector], *, t: float = 0.5, of: Literal["vectors", "models"] = "vectors",
    per: Literal["tensor", "row", "column"] = "tensor", base: Checkpoint | None = None,
) -> TaskVector:  # fmt: skip
    r"""NuSLERP: spherical interpolation of two task vectors or of two models, by tensor, row or column.

    :math:`\frac{\sin((1-t)\Omega)}{\sin\Omega}x_a + \frac{\sin(t\Omega)}{\sin\Omega}x_b` with :math:`\Omega` the angle
    between :math:`x_a` and :math:`x_b`; linear where they are parallel or opposite to 1e-8.

    Args:
        vectors: exactly two, of one base.
        t: 0 gives the first, 1 the second.
        of: "vectors" interpolates :math:`\tau`; "models" interpolates :math:`\theta_0 + \tau` and takes off the base.
        per: what an angle is measured over.
        base: the base's checkpoint, for "models" with vectors from files.
    Raises:
        UsageError: not two vectors, t outside [0, 1], an unknown choice, or no base to be had.
    Reference: Shoemake 1985, "Animating rotation with quaternion curves"; mergekit 0.1.5, `nuslerp`.
    Variants: mergekit's t is the second weight over the sum of both; with a base_model it is of="vectors", without one
        of="models". Its nuslerp_flatten is per="tensor"; without it, nuslerp_row_wise false is per="row" (the last axis)
        and true is per="column" (the first axis). `slerp` here turns linear already at a cosine of 0.9995.
    Example: ``base + nuslerp([cars, dtd], t=0.4)``
    """
    checks.count("nuslerp", vectors, least=2, most=2)
    t = checks.within("nuslerp", "t", t, 0, 1)
    checks.choice("nuslerp", "of", of, ("vectors", "models"))
    checks.choice("nuslerp", "per", per, ("tensor", "row", "column"))
    origin = checks.base_of("nuslerp", vectors, base) if of == "models" else None
    x, y = checks.models(vectors, origin) if origin else checks.widened(vectors)
    if per == "tensor":
        dot = lift(DOT, [x, y], per="tensor")
        a, b = (lift(NORM, [v], per="tensor") for v in (x, y))
        result = lift(INTERPOLATE, [x, y], t=t, dot=dot, a=a, b=b, parallel=1.0)
    else:
        result = lift(ARCS, [x, y], t=t, axis=-1 if per == "row" else 0)
    result = checks.displaced(result, origin) if origin else result
    return named("nuslerp", vectors, result, **_said(t=t, of=of, base=base, per=None if per == "tensor" else per))


def multislerp(
    vectors: Sequence[TaskVector], *, coefficients: Sequence[float] | None = None, of: Literal["vectors", "models"] = "vectors",
    base: Checkpoint | None = None,
) -> TaskVector:  # fmt: skip
    r"""Multi-SLERP: the weighted mean direction of the vectors, at their weighted mean length, tensor by tensor.

    :math:`\left(\sum_t a_t \lVert x_t\rVert\right) \frac{\sum_t a_t u_t}{\lVert\sum_t a_t u_t\rVert}` with
    :math:`u_t = x_t / \lVert x_t\rVert`, :math:`a_t = \alpha_t / \sum \alpha`. (The published form goes through the tangent
    space at that mean, where the weighted sum is exactly zero, so nothing is left of that step.)

    Args:
        vectors: one per task, of one base.
        coefficients: the :math:`\alpha_t`, one a vector; equal unless given.
        of: "vectors" means :math:`x = \tau`; "models" means :math:`x = \theta_0 + \tau`.
        base: the base's checkpoint, for "models" with vectors from files.
    Raises:
        UsageError: not one coefficient a vector, a sum of zero, or no base to be had.
    Reference: mergekit 0.1.5 (2026), `multislerp`.
    Variants: where directions cancel out, the result is the weighted mean; mergekit does so for two and fails for more.
    Example: ``base + multislerp([cars, dtd], coefficients=[0.6, 0.4])``
    """
    checks.count("multislerp", vectors)
    checks.choice("multislerp", "of", of, ("vectors", "models"))
    given = checks.coefficients("multislerp", vectors, coefficients)
    if math.fsum(given) == 0:
        raise UsageError("multislerp: the coefficients add up to zero.")
    shares = tuple(c / math.fsum(given) for c in given)
    origin = checks.base_of("multislerp", vectors, base) if of == "models" else None
    xs = checks.models(vectors, origin) if origin else checks.widened(vectors)
    result = lift(MEAN_DIRECTION, xs, gram=lift(GRAM, xs, per="tensor"), shares=shares)
    result = checks.displaced(result, origin) if origin else result
    said = _said(coefficients=None if coefficients is None else given, of=of, base=base)
    return named("multislerp", vectors, result, **said)


def karcher(
    vectors: Sequence[TaskVector], *, iterations: int = 10, tolerance: float = 1e-5, of: Literal["vectors", "models"] = "vectors",
    base: Checkpoint | None = None,
) -> TaskVector:  # fmt: skip
    r"""Karcher mean: the direction with the least squared angles to all vectors, at their mean length, tensor by tensor.

    :math:`\frac{1}{T}\sum_t \lVert x_t\rVert \cdot \arg\min_{\lVert m\rVert = 1} \sum_t \arccos(m \cdot u_t)^2`, found by
    repeating :math:`m \leftarrow \exp_m(\frac{1}{T}\sum_t \log_m u_t)` from the mean direction.

    Args:
        vectors: one per task, of one base.
        iterations: at most so many steps.
        tolerance: radians; stops when a step is shorter.
        of: "vectors" means :math:`x = \tau`; "models" means :math:`x = \theta_0 + \tau`.
        base: the base's checkpoint, for "models" with vectors from files.
    Raises:
        UsageError: a number out of range, or no base to be had.
    Reference: arXiv:2603.04972 (2026); mergekit 0.1.5, `karcher`, which is of="models".
    Variants: zero tensors have no direction and are left out of it (mergekit leaves out norms up to 1e-5). Where
        the directions cancel out, no direction is nearest, and the result is the mean (mergekit begins at the first).
    Example: ``base + karcher([cars, dtd])``
    """
    checks.count("karcher", vectors)
    checks.whole("karcher", "iterations", iterations, 0)
    tolerance = checks.within("karcher", "tolerance", tolerance, 0)
    checks.choice("karcher", "of", of, ("vectors", "models"))
    origin = checks.base_of("karcher", vectors, base) if of == "models" else None
    xs = checks.models(vectors, origin) if origin else checks.widened(vectors)
    gram = lift(GRAM_OF_SET, xs, per="tensor")
    result = lift(KARCHER, xs, gram=gram, iterations=iterations, tolerance=tolerance)
    result = checks.displaced(result, origin) if origin else result
    said = _said(of=of, base=base, iterations=None if iterations == 10 else iterations)
    return named("karcher", vectors, result, **said, tolerance=None if tolerance == 1e-5 else tolerance)


def model_stock(vectors: Sequence[TaskVector], *, per: Literal["tensor", "row"] = "tensor") -> TaskVector:
    r"""Model Stock: the mean, drawn to the base by how much the vectors disagree, tensor by tensor.

    :math:`t \cdot \frac{1}{N}\sum_i \tau_i` with :math:`t = \frac{N\cos\theta}{1 + (N-1)\cos\theta}` and
    :math:`\cos\theta` the mean cosine of all pairs.

    Args:
        vectors: at least two, of one base: runs of one task that differ in seed or hyper-parameters.
        per: what an angle is measured over: a tensor, or each row (the last axis; a one-dimensional tensor is one row).
    Raises:
        UsageError: fewer than two vectors.
    Reference: Jang et al. 2024, arXiv:2403.19522.
    Variants: per="row" is mergekit's filter_wise. Where the denominator is zero, the base stays; zero tensors have cosine 0.
        Cosines below zero are taken as they are, and t may then be large.
    Example: ``base + model_stock([cars, dtd])``
    """
    checks.count("model_stock", vectors, least=2)
    checks.choice("model_stock", "per", per, ("tensor", "row"))
    if per == "tensor":
        result = lift(STOCK, vectors, gram=lift(GRAM_OF_SET, vectors, per="tensor"))
    else:
        result = lift(STOCK_ROWS, vectors)
    return named("model_stock", vectors, result, per=None if per == "tensor" else per)


def _said(*, of: str, **params: Any) -> dict[str, Any]:
    """Hyper-parameters as they are printed; the usual ones are not."""
    return {**params, "of": None if of == "vectors" else of}


# --- steps ------------------------------------------------------------------------------------------------------------


def _blend(arrays: Sequence[Array], k: Sequence[float]) -> Array:
    total = arrays[0] * k[0]
    for x, c in zip(arrays[1:], k[1:], strict=True):
        total = total + x * c
    return total


def _units(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Norms, and the inner products of the unit vectors (zero for a zero vector)."""
    norms = np.sqrt(np.diagonal(gram))
    inverse = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
    return norms, gram * inverse[:, None] * inverse[None, :]


def _scaled(m: np.ndarray, norms: np.ndarray, length: float) -> list[float]:
    """Coefficients of the vectors for a combination `m` of their unit vectors, at a length."""
    return [float(c / n * length) if n > 0 else 0.0 for c, n in zip(m, norms, strict=True)]


def mean_direction(arrays: Sequence[Array], *, gram: np.ndarray, shares: tuple[float, ...]) -> Array:
    """See `multislerp`."""
    norms, units = _units(gram)
    a = np.array(shares)
    square = float(a @ units @ a)
    if square <= NULL**2 * len(a):
        return _blend(arrays, shares)
    return _blend(arrays, _scaled(a / math.sqrt(square), norms, float(norms @ a)))


def karcher_mean(arrays: Sequence[Array], *, gram: np.ndarray, iterations: int, tolerance: float) -> Array:
    """See `karcher`. Everything happens in the span of the vectors, so on their coefficients."""
    norms, units = _units(gram)
    some = norms > 0
    if not some.any():
        return _blend(arrays, [0.0] * len(arrays))
    a = some / some.sum()
    length = math.sqrt(max(0.0, float(a @ units @ a)))
    if length < max(tolerance, NULL):
        return _blend(arrays, [1 / len(arrays)] * len(arrays))
    m = a / length
    for _ in range(iterations):
        cosines = np.clip(units @ m, -1.0, 1.0)
        angles = np.arccos(cosines)
        step = np.zeros_like(m)
        for i in np.flatnonzero(some & (angles >= tolerance) & (np.pi - angles > 1e-7)):  # opposite: no one direction
            direction = np.eye(len(a))[i] - cosines[i] * m
            step += a[i] * angles[i] / math.sin(angles[i]) * direction
        size = math.sqrt(max(0.0, float(step @ units @ step)))
        if size < max(tolerance, 1e-15):
            break
        m = math.cos(size) * m + math.sin(size) / size * step
        m /= math.sqrt(float(m @ units @ m))
    return _blend(arrays, _scaled(m, norms, float(norms.mean())))


def _pull(cosine: Any, n: int) -> Any:
    """t of `model_stock`."""
    below = 1 + (n - 1) * cosine
    zero = np.abs(below) < 1e-6
    return np.where(zero, 0.0, n * cosine / np.where(zero, 1.0, below))


def stock(arrays: Sequence[Array], *, gram: np.ndarray) -> Array:
    """See `model_stock`."""
    n = len(arrays)
    cosine = np.clip(_units(gram)[1][np.triu_indices(n, 1)], -1, 1).mean()
    return _blend(arrays, [float(_pull(cosine, n)) / n] * n)


def _wide(x: Array) -> Array:
    xp = array_namespace(x)
    return xp.astype(x, xp.float64, copy=False)


def _rows(x: Array, y: Array, axis: int) -> Array:
    """Inner products along an axis, in float64, keeping it."""
    return array_namespace(x).sum(_wide(x) * _wide(y), axis=axis, keepdims=True)


def _shaped(x: Array) -> Array:
    return x.reshape(1) if x.ndim == 0 else x


def stock_rows(arrays: Sequence[Array]) -> Array:
    """See `model_stock`, by row."""
    host, back = on_host(arrays)
    xs, n = [_shaped(x) for x in host], len(arrays)
    norms = [np.sqrt(_rows(x, x, -1)) for x in xs]
    cosines = []
    for i in range(n):
        for j in range(i + 1, n):
            size = norms[i] * norms[j]
            dot = _rows(xs[i], xs[j], -1)
            cosines.append(np.clip(np.divide(dot, size, out=np.zeros_like(dot), where=size > 0), -1, 1))
    t = _pull(np.mean(cosines, axis=0), n) / n
    total = xs[0].astype(np.float64)
    for x in xs[1:]:
        total = total + x
    return back(total * t)


def arcs(arrays: Sequence[Array], *, t: float, axis: int) -> Array:
    """See `nuslerp`, along an axis."""
    host, back = on_host(arrays)
    x, y = (_shaped(v).astype(np.float64) for v in host)
    size = np.sqrt(_rows(x, x, axis) * _rows(y, y, axis))
    cosine = np.clip(np.divide(_rows(x, y, axis), size, out=np.ones_like(size), where=size > 0), -1, 1)
    straight = 1 - cosine * cosine <= 1e-16
    angle = np.where(straight, 1.0, np.arccos(cosine))
    p = np.where(straight, 1 - t, np.sin((1 - t) * angle) / np.sin(angle))
    q = np.where(straight, t, np.sin(t * angle) / np.sin(angle))
    return back(x * p + y * q)


MEAN_DIRECTION = Op("mean_direction", mean_direction, reference="mergekit 0.1.5, multislerp")
KARCHER = Op("karcher_mean", karcher_mean, symmetric=True, reference="arXiv:2603.04972")
STOCK = Op("stock", stock, symmetric=True, reference="arXiv:2403.19522")
STOCK_ROWS = Op("stock_rows", stock_rows, works_on="tensor", symmetric=True, reference="arXiv:2403.19522")
ARCS = Op("arcs", arcs, works_on="tensor", reference="Shoemake 1985")
STEPS = (MEAN_DIRECTION, KARCHER, STOCK, STOCK_ROWS, ARCS, checks.PLUS, checks.MINUS)
