"""Steps on same-named tensors, entry by entry. Each is a plain function of arrays, wrapped as an operation below it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from ..weights import Op
from ..weights.entry import Words

Array = Any  # NumPy array or any other of the array API standard
ROWS = 1 << 17  # entries that are worked on at a time where whole rows are needed
PHILOX_WORDS = 4  # 64-bit words per counter value of numpy.random.Philox


def on_host(arrays: Sequence[Array]) -> tuple[list[np.ndarray], Any]:
    """The arrays in NumPy, and a function that brings a result to where they were, in the widest of their formats."""
    host = [np.asarray(a.cpu()) if hasattr(a, "cpu") else a for a in arrays]
    kind = np.result_type(*(h.dtype for h in host if h.dtype.kind == "f"))

    def back(result: np.ndarray) -> Array:
        with np.errstate(over="ignore", under="ignore"):
            result = np.ascontiguousarray(result.reshape(host[0].shape), kind)
        if not hasattr(arrays[0], "cpu"):
            return result
        return array_namespace(arrays[0]).asarray(result, device=arrays[0].device)

    return host, back


def some_rows(matrix: np.ndarray) -> Iterator[slice]:
    """A matrix's rows, as many at a time as stay in cache and at least one: what is computed of them stays small."""
    step = max(1, ROWS // max(1, matrix.shape[1]))
    for i in range(0, len(matrix), step):
        yield slice(i, i + step)


def trim(arrays: Sequence[Array], *, cut: float) -> Array:
    r"""Keep the entries whose magnitude reaches the cut: :math:`\tau \cdot 1(|\tau| \ge c)`.

    Entries equal to the cut are kept, so at least the wanted share stays (bfloat16 vectors have many equal magnitudes).

    Args:
        arrays: one tensor.
        cut: c, a magnitude; 0 keeps everything.
    Reference: Yadav et al. 2023, arXiv:2306.01708, section 4 ("trim").
    Example:
        >>> trim([np.array([3.0, -1.0, 2.0], np.float32)], cut=2.0).tolist()
        [3.0, -0.0, 2.0]
    """
    (x,) = arrays
    xp = array_namespace(x)
    # In float32, in which the cut was found; a float64 entry at the cut may lie a rounding below it.
    return x * xp.astype(xp.astype(xp.abs(x), xp.float32, copy=False) >= cut, x.dtype)


def elect(arrays: Sequence[Array]) -> Array:
    r"""Elect a sign per entry, then average the entries that carry it.

    With :math:`\gamma = \operatorname{sign}(\sum_t \tau_t)`, the mean of :math:`\tau_t` over the tasks with
    :math:`\operatorname{sign}(\tau_t) = \gamma`. Zeros do not vote; where the sum is exactly zero the result is zero.

    Args:
        arrays: one tensor per task, same shape; not modified.
    Reference: Yadav et al. 2023, arXiv:2306.01708, section 4 ("elect" and "disjoint merge").
    Example:
        >>> elect([np.array([3.0, -1.0], np.float32), np.array([1.0, 2.0], np.float32)]).tolist()
        [2.0, 2.0]
    """
    xp = array_namespace(arrays[0])
    votes = arrays[0]
    for x in arrays[1:]:
        votes = votes + x
    plus, minus = votes > 0, votes < 0
    total = xp.zeros_like(votes)
    count = xp.zeros_like(votes)
    for x in arrays:
        # By comparing signs: x * votes could underflow to zero.
        agrees = xp.astype(((x > 0) & plus) | ((x < 0) & minus), x.dtype)
        count += agrees
        agrees *= x
        total += agrees
    total /= xp.maximum(count, xp.ones_like(count))
    return total


def agree(
    arrays: Sequence[Array], *, coefficients: Sequence[float], votes: str, weigh: bool, divide: str, plus: bool
) -> Array:
    r"""Elect a sign per entry, then combine the entries that carry it: :math:`\sum_{t \in A} \alpha_t\tau_t / d`.

    Args:
        arrays: one tensor per task.
        coefficients: the :math:`\alpha_t`.
        votes: "mass" adds entries up, "count" their signs.
        weigh: whether :math:`\alpha_t\tau_t` votes, or :math:`\tau_t`.
        divide: d is the "count" of those that agree, the sum of their "coefficients", or "nothing".
        plus: a vote of exactly zero elects plus, else nothing.
    Reference: Yadav et al. 2023, arXiv:2306.01708, section 4, and what packages made of it.
    """
    xp = array_namespace(arrays[0])
    scaled = [x * c for x, c in zip(arrays, coefficients, strict=True)]
    voting = scaled if weigh else list(arrays)
    signs = [xp.sign(x) if votes == "count" else x for x in voting]
    total = signs[0]
    for x in signs[1:]:
        total = total + x
    positive, negative = (total >= 0 if plus else total > 0), total < 0
    result = xp.zeros_like(scaled[0])
    below = xp.zeros_like(scaled[0])
    for x, vote, c in zip(scaled, voting, coefficients, strict=True):
        agrees = xp.astype(((vote > 0) & positive) | ((vote < 0) & negative), x.dtype)
        result = result + agrees * x
        below = below + agrees * (c if divide == "coefficients" else 1.0)
    if divide == "nothing":
        return result
    return result / xp.where(below == 0, xp.ones_like(below), below)


def drop(arrays: Sequence[Array], *, density: float, seed: str, at: tuple[str, int]) -> Array:
    r"""Keep each entry with probability `density` and divide by it: :math:`m \odot \tau / p`, :math:`m \sim Bernoulli(p)`.

    The mask depends on the seed, the parameter's name and the entry's position only.

    Args:
        arrays: one tensor.
        density: p in (0, 1], the probability of keeping an entry (DARE's drop rate is 1 - p).
        seed: any text; different vectors take different ones.
        at: name of the parameter and position of the first entry.
    Reference: Yu et al. 2023, arXiv:2311.03099, section 3.
    """
    (x,) = arrays
    if density == 1.0:
        return x
    xp = array_namespace(x)
    words = _random_words(seed, at, (x.shape[0] + 1) // 2 + 1).view(np.uint32)
    keep = words[at[1] % 2 :][: x.shape[0]] < round(density * 2**32)
    return x * (xp.astype(xp.asarray(keep, device=device(x)), x.dtype) / density)


def noise(arrays: Sequence[Array], *, seed: str, at: tuple[str, int]) -> Array:
    """Standard normal values in the shape of the tensor (Box-Muller on counter-based words, one 64-bit word an entry)."""
    (x,) = arrays
    words = _random_words(seed, (at[0], 2 * at[1]), x.shape[0])[: x.shape[0]].view(np.uint32).reshape(-1, 2)
    radius = np.sqrt(-2.0 * np.log((words[:, 0] + 1.0) / 2**32))
    xp = array_namespace(x)
    return xp.astype(xp.asarray(radius * np.cos(2 * math.pi / 2**32 * words[:, 1]), device=device(x)), x.dtype)


def rescale(arrays: Sequence[Array], *, norm: float, of: float) -> Array:
    """Multiply a tensor of norm `of` so that its norm is `norm`; a zero tensor stays zero."""
    (x,) = arrays
    return x * (norm / of if of else 0.0)


def interpolate(
    arrays: Sequence[Array], *, t: float, dot: float, a: float, b: float, parallel: float = 0.9995
) -> Array:
    r"""Spherical interpolation: :math:`\frac{\sin((1-t)\Omega)}{\sin\Omega}\tau_a + \frac{\sin(t\Omega)}{\sin\Omega}\tau_b`.

    :math:`\Omega` is the angle between the tensors. Nearly parallel, opposite or zero tensors are interpolated linearly.

    Args:
        arrays: two tensors.
        t: 0 gives the first, 1 the second.
        dot, a, b: their inner product and their norms.
        parallel: the cosine beyond which interpolation is linear; at 1, from an angle of 1e-8 on.
    Reference: Shoemake 1985, "Animating rotation with quaternion curves".
    """
    x, y = arrays
    parts = _between(t=t, dot=dot, a=a, b=b, parallel=parallel)
    return x * parts["p"] + y * parts["q"]


def _between(*, t: float, dot: float, a: float, b: float, parallel: float = 0.9995) -> dict[str, float]:
    """The coefficients p and q of the two tensors."""
    cosine = dot / (a * b) if a and b else 1.0
    if abs(cosine) > parallel or 1 - cosine * cosine <= 1e-16:
        return {"p": 1 - t, "q": float(t)}
    angle = math.acos(cosine)
    return {"p": math.sin((1 - t) * angle) / math.sin(angle), "q": math.sin(t * angle) / math.sin(angle)}


def _key(seed: str, name: str) -> np.ndarray:
    """The 128-bit key of a parameter's random words."""
    return np.frombuffer(hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=16).digest(), np.uint64)


def _random_words(seed: str, at: tuple[str, int], count: int) -> np.ndarray:
    """64-bit words of a counter-based generator, from the word that holds 32-bit position ``at[1]`` on.

    The counter is the position, so any cut into blocks gives the same words.
    """
    first = at[1] // 2
    generator = np.random.Philox(key=_key(seed, at[0]), counter=first // PHILOX_WORDS)
    skip = first % PHILOX_WORDS
    return generator.random_raw(skip + count)[skip:]


# The same on one entry, for the compiled path; operation by operation as above, so that the bits are equal.


def _trim_entry(values: Sequence[Any], *, cut: Any) -> Any:
    (x,) = values
    return x * (abs(x) >= cut).where(1.0, 0.0)


def _elect_entry(values: Sequence[Any]) -> Any:
    votes = values[0]
    for x in values[1:]:
        votes = votes + x
    total: Any = 0.0
    count: Any = 0.0
    for x in values:
        agrees = (((x > 0.0) & (votes > 0.0)) | ((x < 0.0) & (votes < 0.0))).where(1.0, 0.0)
        total = total + x * agrees
        count = count + agrees
    return total / (count > 0.0).where(count, 1.0)


def _drop_entry(values: Sequence[Any], *, words: Any = None, limit: Any = None, factor: Any = None) -> Any:
    (x,) = values
    return x if words is None else x * (words < limit).where(factor, 0.0)


def _drop_prepared(*, density: float, seed: str, at: tuple[str, int]) -> dict[str, Any] | None:
    limit = round(density * 2**32)
    if density == 1.0:
        return {}
    if limit == 2**32:
        return None
    key = [int(word) for word in _key(seed, at[0])]
    return {
        "words": Words((key[0], key[1]), at[1]),
        "limit": limit,
        "factor": float(np.float32(1) / np.float32(density)),
    }


def _interpolate_entry(values: Sequence[Any], *, p: Any, q: Any) -> Any:
    return values[0] * p + values[1] * q


TRIM = Op("trim", trim, entry=_trim_entry, reference="arXiv:2306.01708, section 4")
ELECT = Op("elect", elect, symmetric=True, entry=_elect_entry, reference="arXiv:2306.01708, section 4")
AGREE = Op("agree", agree, reference="arXiv:2306.01708, section 4")
DROP = Op("drop", drop, random=True, entry=_drop_entry, prepare=_drop_prepared, reference="arXiv:2311.03099, section 3")
NOISE = Op("noise", noise, random=True)
RESCALE = Op("rescale", rescale)
INTERPOLATE = Op("interpolate", interpolate, entry=_interpolate_entry, prepare=_between, reference="Shoemake 1985")
STEPS = (TRIM, ELECT, AGREE, DROP, NOISE, RESCALE, INTERPOLATE)
