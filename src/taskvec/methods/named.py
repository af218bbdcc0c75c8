"""Published methods as compositions of steps. Coefficients stay outside: ``base + 0.7 * ties([a, b])``."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import UsageError
from ..weights import TaskVector, lift, named
from ..weights.summaries import DOT, KTH_MAGNITUDE, MAGNITUDE_BIN, NORM
from . import checks
from .elementwise import DROP, ELECT, INTERPOLATE, NOISE, RESCALE, TRIM


def task_sum(vectors: Sequence[TaskVector]) -> TaskVector:
    r"""Task arithmetic: the sum of the task vectors.

    :math:`\sum_t \tau_t`

    Args:
        vectors: one per task, of one base.
    Reference: Ilharco et al. 2022, arXiv:2212.04089, section 2.
    Example: ``base + 0.4 * sum([cars, dtd])``, the same as ``base + 0.4 * (cars + dtd)``.
    """
    checks.count("sum", vectors)
    total = vectors[0]
    for vector in vectors[1:]:
        total = total + vector
    return total


def average(vectors: Sequence[TaskVector]) -> TaskVector:
    r"""The mean of the task vectors; added to the base, the average of the models.

    :math:`\frac{1}{T}\sum_t \tau_t`

    Args:
        vectors: one per task, of one base.
    Reference: Wortsman et al. 2022, arXiv:2203.05482, section 2 (uniform soup).
    Example: ``base + average([cars, dtd])``
    """
    checks.count("average", vectors)
    return task_sum(vectors) / len(vectors)


def ties(vectors: Sequence[TaskVector], *, density: float = 0.2) -> TaskVector:
    r"""TIES: trim each vector to its largest entries, elect signs, average the entries that agree.

    The cut is exact and global, as in the authors' code: one magnitude for the whole vector, such that the share
    `density` of all its entries reaches it. Two extra passes over the files, no sort.

    Args:
        vectors: one per task, of one base.
        density: share of entries kept in each vector, in (0, 1]; entries equal to the cut are kept too.
    Raises:
        UsageError: density outside (0, 1], or no vectors.
    Reference: Yadav et al. 2023, arXiv:2306.01708, section 4.
    Example: ``base + 0.7 * ties([cars, dtd], density=0.2)``
    """
    checks.count("ties", vectors)
    checks.density("ties", density)
    trimmed = [lift(TRIM, [v], cut=_kth_magnitude(v, density)) for v in vectors] if density < 1 else list(vectors)
    return named("ties", vectors, lift(ELECT, trimmed), density=density)


def dare(vectors: Sequence[TaskVector], *, density: float, seed: int = 0) -> TaskVector:
    r"""DARE: drop entries at random, rescale the rest by 1/density, and add.

    :math:`\sum_t m_t \odot \tau_t / p` with :math:`m_t \sim Bernoulli(p)`, entry by entry. Masks are independent between vectors and depend only on the seed, the vector's place in the list, the parameter's
    name and the position: not on threads, shards, or which other parameters there are.

    Args:
        vectors: one per task, of one base.
        density: p, the probability of keeping an entry, in (0, 1]; the paper's drop rate is 1 - p.
        seed: chooses the masks.
    Raises:
        UsageError: density outside (0, 1], or no vectors.
    Reference: Yu et al. 2023, arXiv:2311.03099, section 3.
    Example: ``base + 0.5 * dare([cars, dtd], density=0.1, seed=0)``
    """
    checks.count("dare", vectors)
    checks.density("dare", density)
    dropped = [lift(DROP, [v], density=density, seed=f"dare {seed} {i}") for i, v in enumerate(vectors)]
    return named("dare", vectors, task_sum(dropped), density=density, seed=seed)


def slerp(vectors: Sequence[TaskVector], *, t: float = 0.5) -> TaskVector:
    r"""Spherical interpolation between two task vectors, tensor by tensor.

    :math:`\frac{\sin((1-t)\Omega)}{\sin\Omega}\tau_a + \frac{\sin(t\Omega)}{\sin\Omega}\tau_b` with :math:`\Omega` the
    angle between the two tensors.

    Args:
        vectors: exactly two, of one base.
        t: 0 gives the first vector, 1 the second.
    Raises:
        UsageError: not two vectors, or t outside [0, 1].
    Reference: Shoemake 1985, "Animating rotation with quaternion curves".
    Example: ``base + slerp([cars, dtd], t=0.5)``
    """
    checks.count("slerp", vectors, least=2, most=2)
    if not 0 <= t <= 1:
        raise UsageError(f"slerp: t is {t}; it must lie in [0, 1].")
    a, b = vectors
    dot = lift(DOT, [a, b], per="tensor")
    norms = [lift(NORM, [v], per="tensor") for v in checks.widened(vectors)]
    return named("slerp", vectors, lift(INTERPOLATE, [a, b], t=float(t), dot=dot, a=norms[0], b=norms[1]), t=float(t))


def random_like(vectors: Sequence[TaskVector] | TaskVector, *, seed: int = 0) -> TaskVector:
    r"""The random-vector baseline: Gaussian noise with the task vector's norm in every tensor.

    Args:
        vectors: the task vector to imitate (or a list that holds just it).
        seed: chooses the noise, together with parameter names and positions.
    Reference: Ilharco et al. 2022, arXiv:2212.04089, section 3 (random vector).
    Example: ``base - 0.5 * random([toxic], seed=1)``
    """
    vectors = [vectors] if isinstance(vectors, TaskVector) else vectors
    checks.count("random", vectors, most=1)
    (v,) = vectors
    draw = lift(NOISE, [v], seed=f"random {seed}")
    matched = lift(RESCALE, [draw], norm=lift(NORM, [v], per="tensor"), of=lift(NORM, [draw], per="tensor"))
    return named("random", vectors, matched, seed=seed)


def _kth_magnitude(vector: TaskVector, density: float):
    high = lift(MAGNITUDE_BIN, [vector], density=density)
    return lift(KTH_MAGNITUDE, [vector], high=high)
