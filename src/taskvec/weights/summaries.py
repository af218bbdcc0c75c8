"""Summaries: small exact values reduced over all tensors in a streamed pass. Partials add up; `finish` turns the sum into the value.

Sums of squares and products run in float64. The k-th largest magnitude is exact and needs no sort and no copy of the
vector: two histograms over the bit patterns of ``|x|``, which order as the numbers do.
"""

from __future__ import annotations

import math

import numpy as np

from .graph import Op

LOW_BITS = 15  # a non-negative float32 has 31 significant bits: 16 in the first histogram, 15 in the second
# Values in one call of dot: fewer than make BLAS split the sum among its threads, which would change the last bits.
RUN = 8192
HIGH_BINS, LOW_BINS = 1 << 16, 1 << LOW_BITS


def _dot(arrays: list[np.ndarray]) -> float:
    a, b = (x.astype(np.float64) for x in (arrays[0], arrays[-1]))
    return float(sum(np.dot(a[i : i + RUN], b[i : i + RUN]) for i in range(0, a.size, RUN)))


def _sqrt(total: float) -> float:
    return math.sqrt(total)


def count_kept(n: int, density: float) -> int:
    """How many of n entries a density keeps: the smallest count that is at least ``density * n``, and at least one."""
    return max(1, math.ceil(density * n - 1e-9)) if n else 0


def _bits(array: np.ndarray) -> np.ndarray:
    return np.abs(array).astype(np.float32, copy=False).view(np.uint32)


def _high(arrays: list[np.ndarray], *, density: float) -> np.ndarray:
    return np.bincount(_bits(arrays[0]) >> LOW_BITS, minlength=HIGH_BINS)


def _find_bin(counts: np.ndarray, *, density: float) -> tuple[int, int]:
    """The bin that holds the k-th largest, and its rank (from the top) inside that bin."""
    k = count_kept(int(counts.sum()), density)
    if k == 0:
        return 0, 0
    above = np.cumsum(counts[::-1])
    place = int(np.searchsorted(above, k))
    return HIGH_BINS - 1 - place, k - (int(above[place - 1]) if place else 0)


def _low(arrays: list[np.ndarray], *, high: tuple[int, int]) -> np.ndarray:
    bits = _bits(arrays[0])
    inside = bits[(bits >> LOW_BITS) == high[0]]
    return np.bincount(inside & (LOW_BINS - 1), minlength=LOW_BINS)


def _find_value(counts: np.ndarray, *, high: tuple[int, int]) -> float:
    bin_, rank = high
    if rank == 0:
        return 0.0
    above = np.cumsum(counts[::-1])
    low = LOW_BINS - 1 - int(np.searchsorted(above, rank))
    return float(np.array([(bin_ << LOW_BITS) | low], np.uint32).view(np.float32)[0])


def _signs(arrays: list[np.ndarray]) -> np.ndarray:
    a, b = arrays
    both = (a != 0) & (b != 0)
    agree = both & ((a > 0) == (b > 0))
    return np.array([np.count_nonzero(agree), np.count_nonzero(both)], np.int64)


def _changed(arrays: list[np.ndarray]) -> np.ndarray:
    return np.array([np.count_nonzero(arrays[0]), arrays[0].size], np.int64)


def _share(counts: np.ndarray) -> float:
    return float(counts[0] / counts[1]) if counts[1] else 0.0


DOT = Op("dot", _dot, "summary")  # <a, b>
NORM = Op("norm", _dot, "summary", finish=_sqrt)  # ||a||_2
SIGN_AGREEMENT = Op("sign_agreement", _signs, "summary", finish=_share)  # among entries non-zero in both
CHANGED = Op("changed", _changed, "summary", finish=_share)  # share of non-zero entries
MAGNITUDE_BIN = Op("magnitude_bin", _high, "summary", finish=_find_bin)
KTH_MAGNITUDE = Op("kth_magnitude", _low, "summary", finish=_find_value)  # needs high=MAGNITUDE_BIN of the same vector
