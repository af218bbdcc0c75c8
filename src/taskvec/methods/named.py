"""Published methods as compositions of steps. Coefficients stay outside: ``base + 0.7 * ties([a, b])``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from ..errors import UsageError
from ..weights import TaskVector, lift, named
from ..weights.summaries import ABSOLUTE, COUNTED_BIN, COUNTED_CUT, DOT, KTH_MAGNITUDE, MAGNITUDE_BIN, NORM
from . import checks
from .checks import count as _count
from .elementwise import AGREE, DROP, ELECT, INTERPOLATE, NOISE, RESCALE, TRIM


def task_sum(vectors: Sequence[TaskVector]) -> TaskVector:
    r"""Task arithmetic: the sum of the task vectors.

    :math:`\sum_t \tau_t`

    Args:
        vectors: one per task, of one base.
    Reference: Ilharco et al. 2022, arXiv:2212.04089, section 2.
    Example: ``base + 0.4 * sum([cars, dtd])``, the same as ``base + 0.4 * (cars + dtd)``.
    """
    _count("sum", vectors)
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
    _count("average", vectors)
    return task_sum(vectors) / len(vectors)


def ties(
    vectors: Sequence[TaskVector], *, density: float = 0.2, variant: Literal["paper", "mergekit", "peft"] = "paper",
    votes: Literal["mass", "count"] = "mass", rescale: bool = False, coefficients: Sequence[float] | None = None,
) -> TaskVector:  # fmt: skip
    r"""TIES: trim each vector to its largest entries, elect signs, average the entries that agree.

    :math:`\frac{1}{|A|}\sum_{t \in A}\tau_t` with :math:`A = \{t: \operatorname{sign}\tau_t = \operatorname{sign}\sum_s\tau_s\}`,
    entry by entry, on trimmed vectors.

    The cut is exact and global, as in the authors' code: one magnitude for the whole vector, such that the share
    `density` of all its entries reaches it. Two extra passes over the files, no sort.

    Args:
        vectors: one per task, of one base.
        density: share of entries kept in each vector, in (0, 1]; entries equal to the cut are kept too.
        variant: whose reading, see below.
        votes: "mass" adds up the entries for the vote, "count" their signs.
        rescale: whether every trimmed tensor is multiplied so that its sum of magnitudes is as before (mergekit's `rescale`).
        coefficients: :math:`\alpha_t`, one a vector: its trimmed entries are multiplied by it. Ones unless given.
    Raises:
        UsageError: density outside (0, 1], no vectors, an unknown variant, or not one coefficient a vector.
    Reference: Yadav et al. 2023, arXiv:2306.01708, section 4.
    Variants: "paper" trims over the whole vector (a share rounded up), votes on :math:`\alpha_t\tau_t`, divides by the number
        that agree; a vote of exactly zero gives zero. "mergekit" (0.1.5, `ties`) trims each tensor (rounded down, at least
        one entry), votes on :math:`\alpha_t\tau_t`, divides by the sum of the :math:`\alpha_t` that agree; a vote of zero
        counts as plus. "peft" (0.21, `ties`) trims each tensor (rounded down, perhaps to nothing), votes on :math:`\tau_t`,
        multiplies by :math:`\alpha_t`, divides by the number that agree; a vote of zero counts as plus. Both keep one of
        several entries equal to the cut; here all are kept.
    Example: ``base + 0.7 * ties([cars, dtd], density=0.2)``
    """
    _count("ties", vectors)
    checks.density("ties", density)
    checks.choice("ties", "variant", variant, ("paper", "mergekit", "peft"))
    checks.choice("ties", "votes", votes, ("mass", "count"))
    given = checks.coefficients("ties", vectors, coefficients)
    trimmed = list(vectors)
    if density < 1:
        counting = {"mergekit": "floor1", "peft": "floor"}.get(variant, "")
        cuts = [tensor_cut(v, density, counting) if counting else _kth_magnitude(v, density) for v in vectors]
        trimmed = [lift(TRIM, [v], cut=cut) for v, cut in zip(vectors, cuts, strict=True)]
        trimmed = [as_heavy(d, v) for d, v in zip(trimmed, vectors, strict=True)] if rescale else trimmed
    if variant == "paper" and votes == "mass":
        scaled = trimmed if coefficients is None else [c * v for c, v in zip(given, trimmed, strict=True)]
        merged = lift(ELECT, scaled)
    else:
        rule = {
            "weigh": variant != "peft",
            "divide": "coefficients" if variant == "mergekit" else "count",
            "plus": variant != "paper",
        }
        merged = lift(AGREE, trimmed, coefficients=given, votes=votes, **rule)
    return named(
        "ties", vectors, merged, density=density, variant=None if variant == "paper" else variant,
        votes=None if votes == "mass" else votes, rescale=rescale or None,
        coefficients=None if coefficients is None else given,
    )  # fmt: skip


def dare(
    vectors: Sequence[TaskVector], *, density: float, seed: int = 0, consensus: Literal["sum", "ties"] = "sum",
    variant: Literal["paper", "mergekit"] = "paper", coefficients: Sequence[float] | None = None,
) -> TaskVector:  # fmt: skip
    r"""DARE: drop entries at random, rescale the rest by 1/density, and add.

    :math:`\sum_t m_t \odot \tau_t / p` with :math:`m_t \sim Bernoulli(p)`, entry by entry. Masks are independent between
    vectors and depend only on the seed, the vector's place in the list, the parameter's name and the position: not on
    threads, shards, or which other parameters there are.

    Args:
        vectors: one per task, of one base.
        density: p, the probability of keeping an entry, in (0, 1]; the paper's drop rate is 1 - p.
        seed: chooses the masks.
        consensus: "sum" adds what is left; "ties" elects signs and averages the entries that agree.
        variant: whose reading, see below.
        coefficients: one a vector, which its entries are multiplied by. Ones unless given.
    Raises:
        UsageError: density outside (0, 1], no vectors, an unknown choice, or not one coefficient a vector.
    Reference: Yu et al. 2023, arXiv:2311.03099, section 3.
    Variants: "mergekit" (0.1.5, `dare_linear` and `dare_ties`) rescales each tensor to the sum of magnitudes it had, not by
        1/p, and after electing signs adds the entries that agree (its `normalize` is off), a vote of zero counting as plus.
        Its masks come from one stream for the whole model, so theirs and ours differ.
    Example: ``base + 0.5 * dare([cars, dtd], density=0.1, seed=0)``
    """
    _count("dare", vectors)
    checks.density("dare", density)
    given = checks.coefficients("dare", vectors, coefficients)
    dropped = [lift(DROP, [v], density=density, seed=f"dare {seed} {i}") for i, v in enumerate(vectors)]
    if variant == "mergekit" and density < 1:
        dropped = [as_heavy(d, v) for d, v in zip(dropped, vectors, strict=True)]
    merged = merge("dare", dropped, consensus=consensus, variant=variant, coefficients=given)
    return named(
        "dare", vectors, merged, density=density, seed=seed, consensus=None if consensus == "sum" else consensus,
        variant=None if variant == "paper" else variant, coefficients=None if coefficients is None else given,
    )  # fmt: skip


def merge(
    method: str, vectors: Sequence[TaskVector], *, consensus: str, variant: str, coefficients: Sequence[float]
) -> TaskVector:
    """What the methods that thin vectors out do afterwards: add, or elect signs."""
    checks.choice(method, "consensus", consensus, ("sum", "ties"))
    checks.choice(method, "variant", variant, ("paper", "mergekit"))
    if consensus == "ties" and variant == "mergekit":
        divide = "coefficients" if method == "della" else "nothing"  # the defaults of its `normalize`
        return lift(
            AGREE, vectors, coefficients=tuple(coefficients), votes="mass", weigh=True, divide=divide, plus=True
        )
    scaled = [v if c == 1.0 else c * v for v, c in zip(vectors, coefficients, strict=True)]
    return lift(ELECT, scaled) if consensus == "ties" else task_sum(scaled)


def as_heavy(thin: TaskVector, full: TaskVector) -> TaskVector:
    """Each tensor multiplied so that its sum of magnitudes is that of the full one."""
    norm, of = (lift(ABSOLUTE, [v], per="tensor") for v in (full, thin))
    return lift(RESCALE, [thin], norm=norm, of=of)


def tensor_cut(
    vector: TaskVector, density: float, counting: str, per: Literal["model", "tensor"] = "tensor", **more: Any
):
    """The magnitude that the share `density` reaches, tensor by tensor; `counting` as `COUNTED_BIN` has it."""
    high = lift(COUNTED_BIN, [vector], per=per, density=density, counting=counting, **more)
    return lift(COUNTED_CUT, [vector], per=per, high=high)


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
    _count("slerp", vectors, least=2, most=2)
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
    _count("random", vectors, most=1)
    (v,) = vectors
    draw = lift(NOISE, [v], seed=f"random {seed}")
    matched = lift(RESCALE, [draw], norm=lift(NORM, [v], per="tensor"), of=lift(NORM, [draw], per="tensor"))
    return named("random", vectors, matched, seed=seed)


def _kth_magnitude(vector: TaskVector, density: float):
    high = lift(MAGNITUDE_BIN, [vector], density=density)
    return lift(KTH_MAGNITUDE, [vector], high=high)
