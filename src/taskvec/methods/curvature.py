"""Methods that weigh by statistics: files of one model and its data, which `taskvec.training` makes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from ..errors import KeyMismatch
from ..weights import Checkpoint, Op, TaskVector, lift, named
from . import checks
from .elementwise import Array, on_host


def fisher(
    vectors: Sequence[TaskVector], *, information: Sequence[Checkpoint], coefficients: Sequence[float] | None = None
) -> TaskVector:
    r"""Fisher merging: the mean of the vectors, every entry weighted by its diagonal Fisher information.

    :math:`\sum_t \alpha_t F_t \odot \tau_t / \sum_t \alpha_t F_t`, entry by entry; the same as averaging the models so.

    Args:
        vectors: one per task, of one base.
        information: the :math:`F_t`, one a vector, non-negative: checkpoints of the vectors' names and shapes, from
            `taskvec.training.fisher` of the fine-tuned models.
        coefficients: :math:`\alpha_t`, one a vector; equal unless given.
    Raises:
        UsageError: not one a vector.  KeyMismatch: information of another model.
    Reference: Matena and Raffel 2021, arXiv:2111.09832.
    Variants: where no task has information (parameters without any, buffers) the entries are averaged.
    Example: ``base + fisher([cars, dtd], information=[cars_fisher, dtd_fisher])``
    """
    checks.count("fisher", vectors)
    given = checks.statistics("fisher", "information", vectors, information)
    a = checks.coefficients("fisher", vectors, coefficients)
    merged = lift(BY_INFORMATION, checks.widened(vectors), beside=given, coefficients=a)
    return named("fisher", vectors, merged, information=given, coefficients=None if coefficients is None else a)


def regmean(
    vectors: Sequence[TaskVector], *, grams: Sequence[Checkpoint], shrink: float = 0.9,
    inputs: Literal["last", "first"] = "last",
) -> TaskVector:  # fmt: skip
    r"""RegMean: for every linear layer, the weights whose outputs come closest to each model's on its own inputs.

    :math:`\left(\sum_t \tau_t G_t\right)\left(\sum_t G_t\right)^{+}` with :math:`G_t = \tilde\alpha X_t^\top X_t` off and
    :math:`X_t^\top X_t` on the diagonal, for weights ``[outputs, inputs]``; the same as merging the models so.

    Args:
        vectors: one per task, of one base.
        grams: the :math:`X_t^\top X_t`, one a vector: checkpoints of ``[inputs, inputs]`` under the names of weights, from
            `taskvec.training.gram` of the fine-tuned models.
        shrink: :math:`\tilde\alpha`, what off-diagonal entries are multiplied by, in [0, 1] (the default is from memory).
        inputs: which axis of a weight runs over the layer's inputs: the "last", or the "first" (GPT-2's `Conv1D`).
    Raises:
        UsageError: not one a vector, or shrink outside [0, 1].  KeyMismatch: matrices that do not fit the weights.
    Reference: Jin et al. 2022, arXiv:2212.09849.
    Variants: tensors without a Gram matrix are averaged. Input directions that no task has keep the base's weights (the least
        solution).
    Example: ``base + regmean([cars, dtd], grams=[cars_gram, dtd_gram], shrink=0.9)``
    """
    checks.count("regmean", vectors)
    shrink = checks.within("regmean", "shrink", shrink, 0, 1)
    checks.choice("regmean", "inputs", inputs, ("last", "first"))
    given = checks.statistics("regmean", "grams", vectors, grams, shapes=False)
    axis = -1 if inputs == "last" else 0
    _fitting("regmean", vectors, given, axis)
    merged = lift(BY_INPUTS, checks.widened(vectors), beside=given, shrink=shrink, axis=axis)
    said = None if inputs == "last" else inputs
    return named("regmean", vectors, merged, grams=given, shrink=shrink, inputs=said)


def mats(
    vectors: Sequence[TaskVector], *, grams: Sequence[Checkpoint], gradients: Sequence[Checkpoint] | None = None,
    iterations: int = 100, inputs: Literal["last", "first"] = "last",
) -> TaskVector:  # fmt: skip
    r"""MaTS: for every linear layer, the weights that match all models in the subspaces that matter to them, by conjugate gradients.

    :math:`\sum_t B_t m A_t = \sum_t B_t \tau_t A_t` for weights ``[outputs, inputs]``: :math:`B_t \otimes A_t` is the layer's block of task
    t's Fisher information as K-FAC has it, with :math:`A_t` the second moments of its inputs and :math:`B_t` those of the
    log-likelihood's gradients at its outputs.

    Args:
        vectors: one per task, of one base.
        grams: the :math:`A_t`, one a vector, from `taskvec.training.gram` of the fine-tuned models.
        gradients: the :math:`B_t`, one a vector: ``[outputs, outputs]`` under the names of weights, from
            `taskvec.training.gradient_gram`. Without them :math:`B_t = I`, and in the limit the result is that of `regmean` with shrink=1.
        iterations: of conjugate gradients, from the mean of the vectors; few of them stay near it. At most so many: it stops
            where the residual is 1e-10 of the right side.
        inputs: which axis of a weight runs over the layer's inputs: the "last", or the "first" (GPT-2's `Conv1D`).
    Raises:
        UsageError: not one a vector, or a number out of range.  KeyMismatch: matrices that do not fit the weights.
    Reference: Tam et al. 2023, arXiv:2312.04339; beginning at the mean and the default of iterations are from memory.
    Variants: tensors without a Gram matrix are averaged.
    Example: ``base + mats([cars, dtd], grams=[cars_gram, dtd_gram])``
    """
    checks.count("mats", vectors)
    checks.whole("mats", "iterations", iterations, 0)
    checks.choice("mats", "inputs", inputs, ("last", "first"))
    axis = -1 if inputs == "last" else 0
    given = checks.statistics("mats", "grams", vectors, grams, shapes=False)
    _fitting("mats", vectors, given, axis)
    more = [] if gradients is None else checks.statistics("mats", "gradients", vectors, gradients, shapes=False)
    if more:
        _fitting("mats", vectors, more, -1 - axis)
    merged = lift(
        BY_MATCHING,
        checks.widened(vectors),
        beside=[*given, *more],
        tasks=len(vectors),
        iterations=iterations,
        axis=axis,
    )
    return named(
        "mats", vectors, merged, grams=given, gradients=more or None, iterations=iterations,
        inputs=None if inputs == "last" else inputs,
    )  # fmt: skip


def _fitting(method: str, vectors: Sequence[TaskVector], given: Sequence[Checkpoint], axis: int) -> None:
    """Raise KeyMismatch unless every matrix is square over that axis of its weight."""
    for v, g in zip(vectors, given, strict=True):
        for n in (n for n in g.spec if n in v.spec):
            shape = v.spec[n].shape
            if len(shape) != 2 or g.spec[n].shape != (shape[axis],) * 2:
                where = "first" if axis in (0, -2) else "last"
                hint = " For GPT-2's Conv1D say inputs='first'." if len(shape) == 2 and where == "last" else ""
                raise KeyMismatch(
                    f"{method}: {n!r} is {list(g.spec[n].shape)} in {g.label}, which does not fit the {where} axis of "
                    f"{v.label}'s {list(shape)}.{hint}"
                )


def by_information(arrays: Sequence[Array], *, coefficients: tuple[float, ...]) -> Array:
    """See `fisher`: the vectors, then their information."""
    host, back = on_host(arrays)
    n = len(host) // 2
    xs = [x.astype(np.float64) for x in host[:n]]
    ws = [w.astype(np.float64) * c for w, c in zip(host[n:], coefficients, strict=True)]
    below = sum(ws[1:], ws[0])
    top = sum((x * w for x, w in zip(xs[1:], ws[1:], strict=True)), xs[0] * ws[0])
    mean = sum(xs[1:], xs[0]) / n
    return back(np.divide(top, below, out=np.array(mean), where=below > 0))


def by_inputs(arrays: Sequence[Array], *, shrink: float, axis: int) -> Array:
    """See `regmean`: the vectors, then their Gram matrices (something else, all zero, where there is none)."""
    host, back = on_host(arrays)
    n = len(host) // 2
    xs = [x.astype(np.float64) for x in host[:n]]
    width = xs[0].shape[axis] if xs[0].ndim == 2 else -1
    grams = [g.astype(np.float64) if g.shape == (width, width) else np.zeros((max(width, 0),) * 2) for g in host[n:]]
    total = sum(grams[1:], grams[0])
    if width < 0 or not total.any():
        return back(sum(xs[1:], xs[0]) / n)
    grams = [g * shrink + np.diag(np.diagonal(g)) * (1 - shrink) for g in grams]
    top = sum(
        ((x if axis else x.T) @ g for x, g in zip(xs, grams, strict=True)), np.zeros_like(xs[0] if axis else xs[0].T)
    )
    result = top @ np.linalg.pinv(sum(grams[1:], grams[0]), hermitian=True)
    return back(result if axis else np.ascontiguousarray(result.T))


def by_matching(arrays: Sequence[Array], *, tasks: int, iterations: int, axis: int) -> Array:
    """See `mats`: the vectors, their Gram matrices, and perhaps those of the gradients."""
    host, back = on_host(arrays)
    xs = [x.astype(np.float64) for x in host[:tasks]]
    mean = sum(xs[1:], xs[0]) / tasks
    if mean.ndim != 2:
        return back(mean)
    if axis == 0:
        xs, mean = [x.T for x in xs], mean.T
    inner, outer = (
        [g.astype(np.float64) if g.shape == (side, side) else np.zeros((side, side)) for g in held]
        for held, side in ((host[tasks : 2 * tasks], mean.shape[1]), (host[2 * tasks :], mean.shape[0]))
    )
    if any(g.any() for g in inner):
        mean = _matched(xs, mean, inner, outer if any(g.any() for g in outer) else [], iterations)
    return back(mean if axis else np.ascontiguousarray(mean.T))


def _matched(
    xs: Sequence[np.ndarray],
    start: np.ndarray,
    inner: Sequence[np.ndarray],
    outer: Sequence[np.ndarray],
    iterations: int,
) -> np.ndarray:
    """Conjugate gradients for the sum of outer m inner = the sum of outer x inner; outer is the identity if empty."""

    def total(ms: Sequence[np.ndarray]) -> np.ndarray:
        parts = [m @ g for m, g in zip(ms, inner, strict=True)]
        parts = [b @ p for b, p in zip(outer, parts, strict=True)] if outer else parts
        return sum(parts[1:], parts[0])

    wanted = total(xs)
    m, left = start, wanted - total([start] * len(xs))
    step, square = left, float((left * left).sum())
    least = 1e-20 * float((wanted * wanted).sum())
    for _ in range(iterations):
        if square <= least:
            break
        image = total([step] * len(xs))
        curve = float((step * image).sum())
        if curve <= 0:  # a direction that no task's data have
            break
        m, left = m + square / curve * step, left - square / curve * image
        before, square = square, float((left * left).sum())
        step = left + square / before * step
    return m


BY_INFORMATION = Op("by_information", by_information, reference="arXiv:2111.09832")
PSEUDO_INVERSE = 11  # multiply-adds for each side cubed, of a symmetric matrix: 1.1 ns measured, of 0.1 ns each


def _work(shape: Sequence[int], ranks: Sequence[int | None], *, axis: int, **_: object) -> float:
    if len(shape) != 2:
        return 0
    width = shape[axis]
    return PSEUDO_INVERSE * width**3 + (len(ranks) // 2 + 1) * shape[0] * shape[1] * width


BY_INPUTS = Op("by_inputs", by_inputs, works_on="tensor", work=_work, reference="arXiv:2212.09849")


def _iterated(shape: Sequence[int], ranks: Sequence[int | None], *, tasks: int, iterations: int, **_: object) -> float:
    if len(shape) != 2:
        return 0
    sides = sum(shape) if len(ranks) == 3 * tasks else max(shape)
    return (iterations + 2) * tasks * shape[0] * shape[1] * sides


BY_MATCHING = Op("by_matching", by_matching, works_on="tensor", work=_iterated, reference="arXiv:2312.04339")
STEPS = (BY_INFORMATION, BY_INPUTS, BY_MATCHING)
