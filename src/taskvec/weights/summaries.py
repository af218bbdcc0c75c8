"""Summaries: small exact values reduced over all tensors in a streamed pass. Partials add up; `finish` turns the sum into the value.

Sums of squares and products run in float64. The k-th largest magnitude is exact and needs no sort and no copy of the
vector: two histograms over the bit patterns of ``|x|``, which order as the numbers do.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .entry import Count, Histogram, Total
from .graph import Op

LOW_BITS = 15  # a non-negative float32 has 31 significant bits: 16 in the first histogram, 15 in the second
HIGH_BINS, LOW_BINS = 1 << 16, 1 << LOW_BITS
RUN = 1 << 15  # products at a time
LANES = 256  # partial sums of a block: lane j adds up entries j, j + 256, ...; then the lanes are added in order


def add_lanes(lanes: np.ndarray) -> float:
    return float(np.add.accumulate(lanes)[-1])


def _dot(arrays: list[np.ndarray]) -> float:
    """In an order of our own: a linear algebra library's would depend on the processor and its threads."""
    a, b = arrays[0], arrays[-1]
    whole = a.size - a.size % LANES
    lanes = np.zeros(LANES)
    for start in range(0, whole, RUN):
        stop = min(whole, start + RUN)
        if a is b:
            products = a[start:stop].astype(np.float64)
            products *= products
        else:
            products = np.multiply(a[start:stop], b[start:stop], dtype=np.float64)
        products = products.reshape(-1, LANES)
        products[0] += lanes
        np.add.reduce(products, axis=0, out=lanes)
    lanes[: a.size - whole] += np.multiply(a[whole:], b[whole:], dtype=np.float64)
    return add_lanes(lanes)


def _sqrt(total: float) -> float:
    return math.sqrt(total)


def count_kept(n: int, density: float) -> int:
    """How many of n entries a density keeps: the smallest count that is at least ``density * n``, and at least one."""
    return max(1, math.ceil(density * n - 1e-9)) if n else 0


def _bits(array: np.ndarray) -> np.ndarray:
    return np.abs(array).astype(np.float32, copy=False).view(np.uint32)


def _high(arrays: list[np.ndarray], *, density: float) -> np.ndarray:
    return np.bincount(_bits(arrays[0]) >> LOW_BITS, minlength=HIGH_BINS)


def _high_any(arrays: list[np.ndarray], **_: Any) -> np.ndarray:
    return _high(arrays, density=1.0)


def _find_bin(counts: np.ndarray, *, density: float) -> tuple[int, int]:
    """The bin that holds the k-th largest, and its rank (from the top) inside that bin."""
    return _bin_of(counts, count_kept(int(counts.sum()), density))


def _bin_of(counts: np.ndarray, k: int) -> tuple[int, int]:
    if k == 0:
        return 0, 0
    above = np.cumsum(counts[::-1])
    place = int(np.searchsorted(above, k))
    return HIGH_BINS - 1 - place, k - (int(above[place - 1]) if place else 0)


def _low(arrays: list[np.ndarray], *, high: tuple[int, int]) -> np.ndarray:
    bits = _bits(arrays[0])
    inside = bits[np.flatnonzero(bits >> LOW_BITS == high[0])]  # much faster than by a mask
    return np.bincount(inside & (LOW_BINS - 1), minlength=LOW_BINS)


def _find_value(counts: np.ndarray, *, high: tuple[int, int]) -> float:
    bin_, rank = high
    if rank == 0:
        return 0.0
    above = np.cumsum(counts[::-1])
    low = LOW_BINS - 1 - int(np.searchsorted(above, rank))
    return float(np.array([(bin_ << LOW_BITS) | low], np.uint32).view(np.float32)[0])


def _find_counted(
    counts: np.ndarray, *, density: float, counting: str, skip: float = 0.0, above: bool = False
) -> tuple[int, int]:
    """As `_find_bin`; `counting` says how many entries a density means.

    "ceil": as `count_kept`. "floor": rounded down. "floor1": rounded down, at least one. "nonzero": of the entries that
    are not zero (nor below 1e-40), rounded down. "rest", "rest1": all but so many, rounded down (and one less).
    A share `skip` of the largest comes before them, as far as there are others; `above` asks for the last of these.
    """
    n = int(counts.sum())
    kept = {
        "ceil": count_kept(n, density),
        "floor": int(density * n),
        "floor1": max(min(n, 1), int(density * n)),
        "nonzero": int(density * (n - int(counts[0]))),
        "rest": n - int(n * density),
        "rest1": n - int(n * density - 1) if n else 0,
    }[counting]
    first = min(int(skip * n), n - kept)
    return _bin_of(counts, first if above else first + kept)


def _find_cut(counts: np.ndarray, *, high: tuple[int, int]) -> float:
    """As `_find_value`; where no entry is wanted, a cut above every entry."""
    return _find_value(counts, high=high) if high[1] else math.inf


def _lanes(values: np.ndarray) -> float:
    """A sum in float64, in an order of our own."""
    whole = values.size - values.size % LANES
    lanes = np.add.reduce(values[:whole].reshape(-1, LANES), axis=0, dtype=np.float64)
    lanes[: values.size - whole] += values[whole:]
    return add_lanes(lanes)


def _absolute(arrays: list[np.ndarray]) -> float:
    return _lanes(np.abs(arrays[0]))


def _gram(arrays: list[np.ndarray]) -> np.ndarray:
    n = len(arrays)
    out = np.zeros((n, n))
    for i in range(n):
        for j in range(i, n):
            out[i, j] = out[j, i] = _dot([arrays[i], arrays[j]])
    return out


def _squares(arrays: list[np.ndarray]) -> np.ndarray:
    return np.array([_dot([a]) for a in arrays])


def _shares(total: np.ndarray) -> tuple[float, ...]:
    """Each one's share of the sum; equal shares of nothing."""
    return tuple((total / total.sum() if total.sum() > 0 else np.full(len(total), 1 / len(total))).tolist())


def _signs(arrays: list[np.ndarray]) -> np.ndarray:
    a, b = arrays
    both = (a != 0) & (b != 0)
    agree = both & ((a > 0) == (b > 0))
    return np.array([np.count_nonzero(agree), np.count_nonzero(both)], np.int64)


def _changed(arrays: list[np.ndarray]) -> np.ndarray:
    return np.array([np.count_nonzero(arrays[0]), arrays[0].size], np.int64)


def _share(counts: np.ndarray) -> float:
    return float(counts[0] / counts[1]) if counts[1] else 0.0


def _product(values: Any) -> Any:
    return (Total(values[0].wide() * values[-1].wide()),)


def _sign_counts(values: Any) -> Any:
    a, b = values
    agree = ((a > 0.0) & (b > 0.0)) | ((a < 0.0) & (b < 0.0))
    return Count(agree), Count(a.nonzero() & b.nonzero())


def _high_count(values: Any) -> Any:
    return (Histogram(abs(values[0]).bits() >> LOW_BITS, HIGH_BINS),)


def _low_count(values: Any, *, bin: Any) -> Any:
    bits = abs(values[0]).bits()
    return (Histogram(bits & (LOW_BINS - 1), LOW_BINS, (bits >> LOW_BITS).equals(bin)),)


DOT = Op("dot", _dot, "summary", entry=_product)  # <a, b>
NORM = Op("norm", _dot, "summary", finish=_sqrt, entry=_product)  # ||a||_2
SIGN_AGREEMENT = Op(
    "sign_agreement", _signs, "summary", finish=_share, entry=_sign_counts
)  # among entries non-zero in both
CHANGED = Op(
    "changed", _changed, "summary", finish=_share, entry=lambda values: (Count(values[0].nonzero()), Count(None))
)  # share of non-zero entries
MAGNITUDE_BIN = Op(
    "magnitude_bin", _high, "summary", finish=_find_bin, entry=_high_count, prepare=lambda *, density: {}
)
KTH_MAGNITUDE = Op(  # needs high=MAGNITUDE_BIN of the same vector
    "kth_magnitude", _low, "summary", finish=_find_value, entry=_low_count, prepare=lambda *, high: {"bin": high[0]}
)
# Several cuts at once: without an entry form, because the compiled path counts for the whole model only.
COUNTED_BIN = Op("counted_bin", _high_any, "summary", finish=_find_counted)
COUNTED_CUT = Op("counted_cut", _low, "summary", finish=_find_cut)  # needs high=COUNTED_BIN of the same vector
ABSOLUTE = Op("absolute", _absolute, "summary")  # ||a||_1
GRAM = Op("gram", _gram, "summary")  # all <a_i, a_j>
GRAM_OF_SET = Op("gram_of_set", _gram, "summary", symmetric=True)  # in the order in which a symmetric step sees them
ENERGY = Op("energy", _squares, "summary", finish=_shares)  # shares of the squared norms
