"""LiNeS, which scales by depth, and WUDI, which solves for every matrix: neither needs data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..weights import Op, TaskVector, lift, named
from ..weights.graph import combine, restrict
from . import checks
from .elementwise import Array, on_host
from .named import task_sum


def lines(
    vectors: Sequence[TaskVector], *, alpha: float | None = None, beta: float | None = None, layers: int | None = None
) -> TaskVector:
    r"""LiNeS: the summed vector, scaled from alpha in the first layer to alpha + beta in the last.

    :math:`\left(\alpha + \beta \frac{l}{L - 1}\right) \sum_t\tau_t` in layer l = 0 ... L - 1, and :math:`\alpha\sum_t\tau_t`
    outside of layers (embeddings, final norm, head).

    Args:
        vectors: one per task, of one base; or one vector, merged in any way.
        alpha: :math:`\alpha`; 1 over the number of vectors unless given, as the authors have it for a sum. (For a vector m
            merged otherwise from T they take :math:`\lVert\sum\tau\rVert_1 / (T \lVert m\rVert_1)`.)
        beta: :math:`\beta`; 1 - alpha unless given, as the authors have it for one task; for several they choose it on
            validation data.
        layers: L; unless given, one more than the largest number in the names of that stack.
    Raises:
        UsageError: a number that is not finite, or fewer layers than there are.
    Reference: Wang et al. 2024, arXiv:2410.17146; alpha as in the authors' published code.
    Variants: a parameter's layer is the first number in its name (`encoder.layer.3.mlp.weight`: layer 3 of the stack
        `encoder.layer`); each stack has its own L.
    Example: ``base + lines([cars, dtd], alpha=0.5, beta=0.5)``
    """
    checks.count("lines", vectors)
    alpha = checks.within("lines", "alpha", 1 / len(vectors) if alpha is None else alpha)
    beta = checks.within("lines", "beta", 1 - alpha if beta is None else beta)
    total = task_sum(vectors)
    place = {n: layer_number(n) for n in total.spec}
    last: dict[str, int] = {}
    for stack, i in (p for p in place.values() if p is not None):
        last[stack] = max(last.get(stack, 0), i)
    if layers is not None:
        checks.whole("lines", "layers", layers, 1 + max(last.values(), default=0))
        last = dict.fromkeys(last, layers - 1)
    scaled: dict[float, set[str]] = {}
    for n, p in place.items():
        c = alpha if p is None or last[p[0]] == 0 else alpha + beta * p[1] / last[p[0]]
        scaled.setdefault(c, set()).add(n)
    node = combine([(restrict(total.node, names), c) for c, names in scaled.items()], total.spec)
    result = TaskVector(node, total.base, total.label, total.partial)
    return named("lines", vectors, result, alpha=alpha, beta=beta, layers=layers)


def layer_number(name: str) -> tuple[str, int] | None:
    """The stack and the number of the layer a parameter belongs to; None outside of layers.

    Example:
        >>> layer_number("encoder.layer.3.mlp.weight"), layer_number("embed.weight")
        (('encoder.layer', 3), None)
    """
    parts = name.split(".")
    place = next((i for i, p in enumerate(parts) if p.isdecimal()), None)
    return None if place is None else (".".join(parts[:place]), int(parts[place]))


def wudi(vectors: Sequence[TaskVector], *, steps: int = 300, rate: float = 1e-5) -> TaskVector:
    r"""WUDI-Merging: for every matrix, the vector whose difference to each task is orthogonal to that task's own update.

    :math:`\min_m \sum_t \lVert (m - \tau_t)\tau_t^\top \rVert_F^2 / \lVert\tau_t\rVert_F^2` by Adam, from :math:`m = \sum_t\tau_t`.

    Args:
        vectors: one per task, of one base.
        steps: of Adam (betas 0.9 and 0.999, epsilon 1e-8); each costs one product of matrices.
        rate: Adam's learning rate: about the largest change of an entry in one step, so in units of the weights.
    Raises:
        UsageError: numbers out of range, or no vectors.
    Reference: Cheng et al. 2025, arXiv:2503.08099.
    Variants: tensors that are not matrices are averaged. Computed in float64.
    Example: ``base + wudi([cars, dtd], steps=300, rate=1e-5)``
    """
    checks.count("wudi", vectors)
    checks.whole("wudi", "steps", steps, 0)
    rate = checks.within("wudi", "rate", rate, 0)
    return named("wudi", vectors, lift(DISENTANGLE, vectors, steps=steps, rate=rate), steps=steps, rate=rate)


def disentangle(arrays: Sequence[Array], *, steps: int, rate: float) -> Array:
    """See `wudi`. The gradient is m C - D with C and D summed over the tasks once."""
    host, back = on_host(arrays)
    xs = [h.astype(np.float64) for h in host]
    total = xs[0]
    for x in xs[1:]:
        total = total + x
    if total.ndim != 2 or total.size == 0:
        return back(total / len(xs))
    square, mixed = np.zeros((total.shape[1],) * 2), np.zeros_like(total)
    for x in xs:
        size = float((x * x).sum())
        if size > 0:
            own = 2 / size * (x.T @ x)
            square += own
            mixed += x @ own
    m, first, second = total, np.zeros_like(total), np.zeros_like(total)
    for i in range(1, steps + 1):
        slope = m @ square - mixed
        first = 0.9 * first + 0.1 * slope
        second = 0.999 * second + 0.001 * slope * slope
        m = m - rate * (first / (1 - 0.9**i)) / (np.sqrt(second / (1 - 0.999**i)) + 1e-8)
    return back(m)


def _work(shape: Sequence[int], ranks: Sequence[int | None], *, steps: int, **_: object) -> float:
    """Products of matrices, and for each step about as much as 100 multiply-adds an entry for Adam."""
    if len(shape) != 2:
        return 0
    return shape[0] * shape[1] * ((2 * len(ranks) + steps) * shape[1] + 100 * steps)


DISENTANGLE = Op(
    "disentangle", disentangle, works_on="tensor", symmetric=True, work=_work, reference="arXiv:2503.08099"
)
STEPS = (DISENTANGLE,)
