"""Methods that keep some entries and drop others: by magnitude, at random, by agreement, by masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ..errors import UsageError
from ..weights import Checkpoint, TaskVector, lift, named
from ..weights.summaries import ABSOLUTE, ENERGY
from . import checks
from .elementwise import AGREE, DROP, RESCALE, TRIM
from .named import as_heavy, merge, task_sum, tensor_cut
from .sparse_steps import (
    ALONG,
    BAND,
    CLIP,
    LARGEST,
    RANKED_DROP,
    RELEVANT,
    SCORE,
    SHARED,
    SPREAD,
    STITCH,
    STRETCH,
    UNIFIED,
    WEIGHTED,
    WHERE,
    WHERE_LARGE,
)


def della(
    vectors: Sequence[TaskVector], *, density: float = 0.5, epsilon: float = 0.1, seed: int = 0,
    rescale: bool = True, consensus: Literal["ties", "sum"] = "ties", variant: Literal["paper", "mergekit"] = "paper",
    coefficients: Sequence[float] | None = None,
) -> TaskVector:  # fmt: skip
    r"""DELLA: drop entries at random, small ones of a row more often; rescale, elect signs, average what agrees.

    :math:`m_t \odot \tau_t / p_t` with :math:`m_t \sim Bernoulli(p_t)` and :math:`p_t = d - \epsilon + 2\epsilon r / (n - 1)`,
    r = 0 ... n - 1 the rank of the entry's magnitude in its row of n (equal ones in order of position).

    Args:
        vectors: one per task, of one base.
        density: d, the mean probability of keeping an entry, in (0, 1]; 1 keeps all.
        epsilon: :math:`\epsilon`, how far the probabilities reach to either side; d - epsilon and d + epsilon must lie in (0, 1).
        seed: chooses the masks, together with the vector's place in the list, names and positions.
        rescale: whether what is kept is enlarged (divided by :math:`p_t`), or stays as it is.
        consensus: "ties" elects signs and averages the entries that agree; "sum" adds.
        variant: whose reading, see below.
        coefficients: one a vector, which its entries are multiplied by. Ones unless given.
    Raises:
        UsageError: numbers out of range, an unknown choice, or not one coefficient a vector.
    Reference: Deep et al. 2024, arXiv:2406.11617; the range of probabilities and the mean after electing are from memory.
    Variants: "mergekit" (0.1.5, `della` and `della_linear`) rescales each tensor to the sum of magnitudes it had, and after
        electing signs divides the sum of what agrees by its coefficients; a vote of zero counts as plus. A row of one entry (where mergekit fails) has probability d; a one-dimensional tensor is one
        row; with more than two dimensions, a row is what shares the first index [inferred].
    Example: ``base + 0.7 * della([cars, dtd], density=0.5, epsilon=0.1)``
    """
    checks.count("della", vectors)
    checks.density("della", density)
    epsilon = checks.within("della", "epsilon", epsilon, 0)
    if density < 1 and not (density - epsilon > 0 and density + epsilon < 1):
        raise UsageError(
            f"della: density {density:g} and epsilon {epsilon:g} give probabilities from {density - epsilon:g} to "
            f"{density + epsilon:g}; both must lie in (0, 1)."
        )
    given = checks.coefficients("della", vectors, coefficients)
    thin = list(vectors)
    if density < 1:
        by_chance = rescale and variant != "mergekit"
        thin = [
            lift(RANKED_DROP, [v], density=density, epsilon=epsilon, rescale=by_chance, seed=f"della {seed} {i}")
            for i, v in enumerate(vectors)
        ]
        if rescale and not by_chance:
            thin = [as_heavy(d, v) for d, v in zip(thin, vectors, strict=True)]
    merged = merge("della", thin, consensus=consensus, variant=variant, coefficients=given)
    return named(
        "della", vectors, merged, density=density, epsilon=epsilon, seed=seed, rescale=None if rescale else False,
        consensus=None if consensus == "ties" else consensus, variant=None if variant == "paper" else variant,
        coefficients=None if coefficients is None else given,
    )  # fmt: skip


def breadcrumbs(
    vectors: Sequence[TaskVector], *, density: float = 0.1, gamma: float = 0.01, rescale: bool = False,
    consensus: Literal["sum", "ties"] = "sum", variant: Literal["paper", "mergekit"] = "paper",
    coefficients: Sequence[float] | None = None,
) -> TaskVector:  # fmt: skip
    r"""Model Breadcrumbs: drop the largest and the smallest entries of every tensor, and add.

    :math:`\sum_t 1(l_t \le |\tau_t| < h_t) \odot \tau_t`: above :math:`h_t` lies the share gamma of a tensor's entries,
    between the cuts the share density.

    Args:
        vectors: one per task, of one base.
        density: share of entries kept in each tensor, in (0, 1].
        gamma: share of the largest entries dropped first, in [0, 1); fewer where density leaves no room for it.
        rescale: whether what is kept of a tensor is multiplied so that its sum of magnitudes is as before.
        consensus: "sum" adds; "ties" elects signs and averages the entries that agree.
        variant: whose reading, see below.
        coefficients: one a vector, which its entries are multiplied by. Ones unless given.
    Raises:
        UsageError: numbers out of range, an unknown choice, or not one coefficient a vector.
    Reference: Davari and Belilovsky 2023, arXiv:2312.06795; the default density is from memory.
    Variants: "paper" rounds density up, so that a tensor keeps at least one entry; "mergekit" (0.1.5, `breadcrumbs` and
        `breadcrumbs_ties`) rounds it down and after electing signs adds. Of entries equal to a cut, all are kept at the lower
        one and dropped at the upper one.
    Example: ``base + 0.4 * breadcrumbs([cars, dtd], density=0.1, gamma=0.01)``
    """
    checks.count("breadcrumbs", vectors)
    checks.density("breadcrumbs", density)
    gamma = checks.within("breadcrumbs", "gamma", gamma, 0, 1)
    given = checks.coefficients("breadcrumbs", vectors, coefficients)
    thin = list(vectors)
    if density < 1:
        counting = "floor" if variant == "mergekit" else "ceil"
        thin = []
        for v in vectors:
            low = tensor_cut(v, density, counting, skip=gamma)
            high = tensor_cut(v, density, counting, skip=gamma, above=True)
            kept = lift(BAND, [v], low=low, high=high)
            thin.append(as_heavy(kept, v) if rescale else kept)
    merged = merge("breadcrumbs", thin, consensus=consensus, variant=variant, coefficients=given)
    return named(
        "breadcrumbs", vectors, merged, density=density, gamma=gamma, rescale=rescale or None,
        consensus=None if consensus == "sum" else consensus, variant=None if variant == "paper" else variant, coefficients=None if coefficients is None else given,
    )  # fmt: skip


def sce(vectors: Sequence[TaskVector], *, density: float = 1.0) -> TaskVector:
    r"""SCE: select entries that differ most between tasks, weigh vectors by their energy, erase minority signs.

    :math:`\sum_{t \in A} c_t\tau_t / \sum_{t \in A} c_t`, A the tasks whose sign is that of :math:`\sum_t\tau_t`,
    :math:`c_t = \lVert\tau_t\rVert^2 / \sum_s \lVert\tau_s\rVert^2`, tensor by tensor, on the selected entries.

    Args:
        vectors: one per task, of one base.
        density: share kept of a tensor's entries with any variance between the vectors, in (0, 1], rounded down, those of
            the largest variance; 1 keeps all.
    Raises:
        UsageError: density outside (0, 1], or no vectors.
    Reference: Wan et al. 2024, arXiv:2408.07990.
    Variants: mergekit (0.1.5, `sce`; density is its select_topk) takes equal :math:`c_t` where the mean squares add up to
        less than 1e-6, so for most fine-tuned tensors; here only where they are zero.
    Example: ``base + sce([cars, dtd], density=0.5)``
    """
    checks.count("sce", vectors)
    checks.density("sce", density)
    chosen = list(vectors)
    if density < 1:
        spread = lift(SPREAD, vectors)
        cut = tensor_cut(spread, density, "nonzero")
        chosen = [lift(WHERE_LARGE, [v, spread], cut=cut) for v in checks.widened(vectors)]
    shares = lift(ENERGY, chosen, per="tensor")
    rule = {"votes": "mass", "weigh": False, "divide": "coefficients", "plus": False}
    return named("sce", vectors, lift(AGREE, chosen, coefficients=shares, **rule), density=density)


def magmax(vectors: Sequence[TaskVector]) -> TaskVector:
    r"""MagMax: in every entry, the vector of largest magnitude.

    :math:`\tau_{t^*}` with :math:`t^* = \arg\max_t |\tau_t|`, entry by entry; of opposite ones the positive.

    Args:
        vectors: one per task, of one base.
    Reference: Marczak et al. 2024, arXiv:2407.06322.
    Example: ``base + 0.5 * magmax([cars, dtd])``
    """
    checks.count("magmax", vectors)
    return named("magmax", vectors, lift(LARGEST, vectors))


def pcb(vectors: Sequence[TaskVector], *, density: float = 0.1, clip: float = 0.0001) -> TaskVector:
    r"""PCB-Merging: weigh every entry by its size in its task and its agreement with the others; drop the weakest.

    :math:`\sum_t s_t \hat\tau_t / \sum_t s_t`, with scores
    :math:`b_t = e^{T n(|\hat\tau_t|)^2} \tanh(\tau_t \textstyle\sum_s\tau_s)`, :math:`n(x) = (x - \min) / (\max - \min)`
    over the vector, and :math:`s_t = n(\max(b_t, l_t))` with :math:`l_t` the score that the share density reaches.

    Args:
        vectors: T of them, of one base.
        density: share of each vector's entries that count, in (0, 1].
        clip: share at either end of a vector's magnitudes that is clipped, giving :math:`\hat\tau`; in [0, 0.5).
    Raises:
        UsageError: numbers out of range, or no vectors.
    Reference: Du et al. 2024, arXiv:2410.02396 (number from memory), as its authors' published code computes it.
    Variants: entries whose score is negative, which point against the sum, never count (in the authors' code they may where
        density is larger than the share of the others).
    Example: ``base + 1.2 * pcb([cars, dtd], density=0.1)``
    """
    checks.count("pcb", vectors)
    checks.density("pcb", density)
    clip = checks.within("pcb", "clip", clip, 0, 0.499)
    vectors_, total = checks.widened(vectors), task_sum(vectors)
    clipped, shares = [], []
    for v in vectors_:
        low = tensor_cut(v, clip, "rest", per="model")
        high = tensor_cut(v, 1 - clip, "rest1", per="model")
        score = lift(SCORE, [v, total], low=low, high=high, tasks=len(vectors))
        least = tensor_cut(score, 1 - density, "rest", per="model")
        most = tensor_cut(score, 0.0, "floor1", per="model")
        clipped.append(lift(CLIP, [v], low=low, high=high))
        shares.append(lift(STRETCH, [score], low=least, high=most))
    merged = lift(WEIGHTED, [*clipped, *shares], empty="zero")
    return named("pcb", vectors, merged, density=density, clip=None if clip == 0.0001 else clip)


def tall_mask(vectors: Sequence[TaskVector], *, task: int, threshold: float = 0.4) -> TaskVector:
    r"""TALL mask: of the summed vector, the entries that matter to one task.

    :math:`m_t \odot \tau` with :math:`\tau = \sum_s\tau_s` and :math:`m_t = 1(|\tau_t| > \lambda|\tau - \tau_t|)`

    Args:
        vectors: one per task, of one base.
        task: t, the place of the task in the list, from 0.
        threshold: :math:`\lambda`; the authors choose it for each task on validation data from 0.2, 0.3, ... 0.6 (the default
            is ours).
    Raises:
        UsageError: no such task, or a negative threshold.
    Reference: Wang et al. 2024, arXiv:2405.07813.
    Example: ``base + tall_mask([cars, dtd], task=0, threshold=0.4)``
    """
    checks.count("tall_mask", vectors)
    task = checks.task("tall_mask", vectors, task)
    threshold = checks.within("tall_mask", "threshold", threshold, 0)
    masked = lift(RELEVANT, [checks.widened(vectors)[task], task_sum(vectors)], threshold=threshold)
    return named("tall_mask", vectors, masked, task=task, threshold=threshold)


def consensus(vectors: Sequence[TaskVector], *, threshold: float = 0.4, agree: int = 2) -> TaskVector:
    r"""Consensus task arithmetic: of the summed vector, the entries that matter to several tasks.

    :math:`1\left(\sum_t m_t \ge k\right) \odot \tau` with the TALL masks :math:`m_t = 1(|\tau_t| > \lambda|\tau - \tau_t|)`
    and :math:`\tau = \sum_t\tau_t`

    Args:
        vectors: one per task, of one base.
        threshold: :math:`\lambda`, for all tasks; the authors choose one for each (the default is ours).
        agree: k, at how many tasks an entry is kept; 0 keeps all.
    Raises:
        UsageError: numbers out of range, or no vectors.
    Reference: Wang et al. 2024, arXiv:2405.07813.
    Example: ``base + 0.3 * consensus([cars, dtd], threshold=0.4, agree=2)``
    """
    checks.count("consensus", vectors)
    threshold = checks.within("consensus", "threshold", threshold, 0)
    agree = checks.whole("consensus", "agree", agree, 0)
    merged = lift(SHARED, vectors, threshold=threshold, agree=agree)
    return named("consensus", vectors, merged, threshold=threshold, agree=agree)


def emr(vectors: Sequence[TaskVector], *, task: int | None = None) -> TaskVector:
    r"""EMR-Merging: one vector of elected signs and largest magnitudes; for a task, masked and rescaled.

    :math:`\tau = \gamma \odot \max_{t: \operatorname{sign}\tau_t = \gamma} |\tau_t|` with :math:`\gamma = \operatorname{sign}\sum_t\tau_t`;
    for task t :math:`\lambda_t m_t \odot \tau` with :math:`m_t = 1(\tau_t \odot \tau > 0)` and
    :math:`\lambda_t = \lVert\tau_t\rVert_1 / \lVert m_t \odot \tau\rVert_1`.

    Args:
        vectors: one per task, of one base.
        task: None gives the unified vector; a place in the list, from 0, what the model of that task adds to the base.
    Raises:
        UsageError: no vectors, or no such task.
    Reference: Huang et al. 2024, arXiv:2405.17461 (number from memory).
    Variants: where the sum is exactly zero the result is zero (the authors take minus).
    Example: ``base + emr([cars, dtd], task=0)``
    """
    checks.count("emr", vectors)
    unified = lift(UNIFIED, vectors)
    if task is not None:
        (own,) = [v for i, v in enumerate(checks.widened(vectors)) if i == checks.task("emr", vectors, task)]
        masked = lift(ALONG, [unified, own])
        unified = lift(RESCALE, [masked], norm=lift(ABSOLUTE, [own]), of=lift(ABSOLUTE, [masked]))
    return named("emr", vectors, unified, task=task)


def random_drop(vectors: Sequence[TaskVector], *, density: float, seed: int = 0, rescale: bool = True) -> TaskVector:
    r"""Random drop: keep entries of one vector at random.

    :math:`m \odot \tau / p` with :math:`m \sim Bernoulli(p)`; without rescaling :math:`m \odot \tau`.

    Args:
        vectors: exactly one.
        density: p, the probability of keeping an entry, in (0, 1].
        seed: chooses the mask, together with names and positions.
        rescale: whether to divide by p.
    Raises:
        UsageError: not one vector, or density outside (0, 1].
    Reference: Yu et al. 2023, arXiv:2311.03099, section 3.
    Example: ``base + random_drop([cars], density=0.1)``
    """
    checks.count("random_drop", vectors, most=1)
    checks.density("random_drop", density)
    thin = lift(DROP, list(vectors), density=density, seed=f"random_drop {seed}")
    result = thin if rescale or density == 1 else lift(WHERE, [*vectors, thin])
    return named("random_drop", vectors, result, density=density, seed=seed, rescale=None if rescale else rescale)


def magnitude_drop(
    vectors: Sequence[TaskVector], *, density: float, per: Literal["model", "tensor"] = "model"
) -> TaskVector:
    r"""Magnitude drop: keep the largest entries of one vector.

    :math:`1(|\tau| \ge c) \odot \tau`, c such that the share density reaches it.

    Args:
        vectors: exactly one.
        density: share of entries kept, in (0, 1], rounded up; entries equal to the cut are kept too.
        per: whether the share is of the whole vector or of each tensor.
    Raises:
        UsageError: not one vector, density outside (0, 1], or an unknown choice.
    Reference: Yadav et al. 2023, arXiv:2306.01708, section 4 ("trim").
    Example: ``base + magnitude_drop([cars], density=0.1)``
    """
    checks.count("magnitude_drop", vectors, most=1)
    checks.density("magnitude_drop", density)
    checks.choice("magnitude_drop", "per", per, ("model", "tensor"))
    (v,) = vectors
    result = v if density == 1 else lift(TRIM, [v], cut=tensor_cut(v, density, "ceil", per=per))
    return named("magnitude_drop", vectors, result, density=density, per=None if per == "model" else per)


def stitch(vectors: Sequence[TaskVector], *, masks: Sequence[Checkpoint]) -> TaskVector:
    r"""Localise-and-Stitch, given the regions: each vector inside its mask, averaged where masks overlap.

    :math:`\sum_t m_t \odot \tau_t / \max(1, \sum_t m_t)`

    Args:
        vectors: one per task, of one base.
        masks: the :math:`m_t`, one a vector: checkpoints of the vectors' names and shapes, where zero means outside; a tensor
            that is missing is outside.
    Raises:
        UsageError: not one mask a vector.  KeyMismatch: a mask of another model.
    Reference: He et al. 2024, arXiv:2408.13656 (stitching; finding the regions needs data and is not here).
    Example: ``base + stitch([cars, dtd], masks=[cars_mask, dtd_mask])``
    """
    checks.count("stitch", vectors)
    given = checks.statistics("stitch", "masks", vectors, masks)
    merged = lift(STITCH, checks.widened(vectors), beside=given)
    return named("stitch", vectors, merged, masks=given)
