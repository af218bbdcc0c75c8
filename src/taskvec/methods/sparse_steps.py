"""Steps of the sparse family: masks, scores, and means over what masks leave."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from array_api_compat import array_namespace

from ..weights import Op
from .elementwise import Array, _random_words, on_host, some_rows


def _masked(x: Array, mask: Array) -> Array:
    return x * array_namespace(x).astype(mask, x.dtype)


def band(arrays: Sequence[Array], *, low: float, high: float) -> Array:
    """Keep magnitudes in [low, high); in float32, in which the cuts were found."""
    (x,) = arrays
    xp = array_namespace(x)
    size = xp.astype(xp.abs(x), xp.float32, copy=False)
    return _masked(x, (size >= low) & (size < high))


def spread(arrays: Sequence[Array]) -> Array:
    """The standard deviation of each entry over the vectors; exactly zero where all are equal."""
    host, back = on_host(arrays)
    wide = np.stack([h.astype(np.float64) for h in host])
    return back(np.where(wide.max(0) == wide.min(0), 0.0, wide.std(0)))


def where_large(arrays: Sequence[Array], *, cut: float) -> Array:
    """The first where the second reaches the cut."""
    x, by = arrays
    xp = array_namespace(x)
    return _masked(x, xp.astype(by, xp.float32, copy=False) >= cut)


def largest(arrays: Sequence[Array]) -> Array:
    """See `magmax`."""
    xp = array_namespace(arrays[0])
    high = low = arrays[0]
    for x in arrays[1:]:
        high, low = xp.maximum(high, x), xp.minimum(low, x)
    return xp.where(high >= -low, high, low)


def ranked_drop(
    arrays: Sequence[Array], *, density: float, epsilon: float, rescale: bool, seed: str, at: tuple[str, int]
) -> Array:
    """See `della`: keep entries of a row with a probability that rises with the rank of their magnitude."""
    host, back = on_host(arrays)
    x = host[0]
    matrix = x.reshape(x.shape[0], math.prod(x.shape[1:])) if x.ndim > 1 else x.reshape(1, x.size)
    n = matrix.shape[1]
    chance = density - epsilon + 2 * epsilon * np.arange(n) / (n - 1) if n > 1 else np.full(n, density)  # by rank
    out = np.empty_like(matrix)
    for rows in some_rows(matrix):
        part, first = matrix[rows], at[1] + rows.start * n
        words = _random_words(seed, (at[0], first), part.size // 2 + 2).view(np.uint32)[first % 2 :][: part.size]
        keep = np.empty(part.shape)
        np.put_along_axis(keep, _by_magnitude(part), chance[None, :], axis=1)
        kept = part * (words.reshape(part.shape) < np.round(keep * 2**32))
        out[rows] = kept / keep if rescale else kept
    return back(out)


def _by_magnitude(rows: np.ndarray) -> np.ndarray:
    """Each row's places in order of magnitude, equal ones in order of place."""
    size, n = np.abs(rows), rows.shape[1]
    if size.dtype != np.float32:
        return np.argsort(size, axis=1, kind="stable")
    # The bits of positive numbers rise with them. With the place behind them no two are equal, and any fast sort will do.
    keys = size.view(np.uint32).astype(np.uint64) << 32 | np.arange(n, dtype=np.uint64)
    keys.sort(axis=1)
    return (keys & 0xFFFFFFFF).astype(np.int64)


def score(arrays: Sequence[Array], *, low: float, high: float, tasks: int) -> Array:
    """See `pcb`; divided by e^T, which changes nothing, and zero where negative."""
    host, back = on_host(arrays)
    x, total = (h.astype(np.float64) for h in host)
    size = (np.clip(np.abs(x), low, high) - low) / (high - low) if high > low else np.zeros_like(x)
    return back(np.maximum(0.0, np.exp(tasks * (size**2 - 1)) * np.tanh(x * total)))


def clip_magnitude(arrays: Sequence[Array], *, low: float, high: float) -> Array:
    """Magnitudes brought into [low, high]; zeros stay."""
    (x,) = arrays
    xp = array_namespace(x)
    size = xp.abs(x)
    size = xp.where(size < low, xp.full_like(size, low), size)
    return xp.sign(x) * xp.where(size > high, xp.full_like(size, high), size)


def stretch(arrays: Sequence[Array], *, low: float, high: float) -> Array:
    """[low, high] to [0, 1], and 0 below."""
    (x,) = arrays
    xp = array_namespace(x)
    if not high > low:  # all that count are equal, or nothing counts
        return xp.astype((x >= low) & (x > 0), x.dtype)
    return xp.where(x > low, (x - low) / (high - low), xp.zeros_like(x))


def weighted(arrays: Sequence[Array], *, empty: str) -> Array:
    """Sum of w x over sum of w: the xs come first, then the ws. Where no w counts: "zero", or the "mean" of the xs."""
    xp = array_namespace(arrays[0])
    n = len(arrays) // 2
    xs, ws = arrays[:n], arrays[n:]
    top, below, plain = xs[0] * ws[0], ws[0], xs[0]
    for x, w in zip(xs[1:], ws[1:], strict=True):
        top, below, plain = top + x * w, below + w, plain + x
    nothing = below < 1e-12 if empty == "zero" else below == 0
    otherwise = xp.zeros_like(top) if empty == "zero" else plain / float(n)
    return xp.where(nothing, otherwise, top / xp.where(nothing, xp.ones_like(below), below))


def stitched(arrays: Sequence[Array]) -> Array:
    """See `stitch`: the vectors, then their masks."""
    n = len(arrays) // 2
    xp = array_namespace(arrays[0])
    return weighted(
        [*arrays[:n], *(xp.astype(m != 0, x.dtype) for x, m in zip(arrays[:n], arrays[n:], strict=True))], empty="zero"
    )


def relevant(arrays: Sequence[Array], *, threshold: float) -> Array:
    """See `tall_mask`: a task's tensor and the sum's."""
    x, total = arrays
    xp = array_namespace(x)
    return _masked(total, xp.abs(x) > threshold * xp.abs(total - x))


def shared(arrays: Sequence[Array], *, threshold: float, agree: int) -> Array:
    """See `consensus`."""
    xp = array_namespace(arrays[0])
    total = arrays[0]
    for x in arrays[1:]:
        total = total + x
    count = xp.zeros_like(total)
    for x in arrays:
        count = count + xp.astype(xp.abs(x) > threshold * xp.abs(total - x), total.dtype)
    return _masked(total, count >= agree)


def unified(arrays: Sequence[Array]) -> Array:
    """See `emr`."""
    xp = array_namespace(arrays[0])
    votes, high, low = arrays[0], arrays[0], arrays[0]
    for x in arrays[1:]:
        votes, high, low = votes + x, xp.maximum(high, x), xp.minimum(low, x)
    nothing = xp.zeros_like(votes)
    return xp.where(votes > 0, xp.where(high > 0, high, nothing), xp.where((votes < 0) & (low < 0), low, nothing))


def along(arrays: Sequence[Array]) -> Array:
    """The first where both have one sign."""
    x, y = arrays
    return _masked(x, ((x > 0) & (y > 0)) | ((x < 0) & (y < 0)))


def where(arrays: Sequence[Array]) -> Array:
    """The first where the second is not zero."""
    return _masked(arrays[0], arrays[1] != 0)


BAND = Op("band", band, reference="arXiv:2312.06795")
SPREAD = Op("spread", spread, symmetric=True, reference="arXiv:2408.07990")
WHERE_LARGE = Op("where_large", where_large)
LARGEST = Op("largest", largest, symmetric=True, reference="arXiv:2407.06322")
RANKED_DROP = Op("ranked_drop", ranked_drop, works_on="tensor", random=True, reference="arXiv:2406.11617")
SCORE = Op("score", score, reference="arXiv:2410.02396")
CLIP = Op("clip", clip_magnitude, reference="arXiv:2410.02396")
STRETCH = Op("stretch", stretch, reference="arXiv:2410.02396")
WEIGHTED = Op("weighted", weighted)
STITCH = Op("stitched", stitched, reference="arXiv:2408.13656")
RELEVANT = Op("relevant", relevant, reference="arXiv:2405.07813")
SHARED = Op("shared_by", shared, symmetric=True, reference="arXiv:2405.07813")
UNIFIED = Op("unified", unified, symmetric=True, reference="arXiv:2405.17461")
ALONG = Op("along", along, reference="arXiv:2405.17461")
WHERE = Op("where", where)
STEPS = (
    BAND, SPREAD, WHERE_LARGE, LARGEST, RANKED_DROP, SCORE, CLIP, STRETCH, WEIGHTED, STITCH, RELEVANT, SHARED, UNIFIED,
    ALONG, WHERE,
)  # fmt: skip
