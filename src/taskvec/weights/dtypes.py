"""Number formats: safetensors names, NumPy types, and the two conversions (to working precision, to storage)."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np

from ..errors import UsageError, nearest

FLOATS: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
OTHERS: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    **{f"{kind}{bits}": np.dtype(f"{kind.lower()}{bits // 8}") for kind in "IU" for bits in (8, 16, 32, 64)},
    # Not computed in, only copied, as integers are.
    "C64": np.dtype(np.complex64),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
}
DTYPES: dict[str, np.dtype[Any]] = {**FLOATS, **OTHERS}
NAMES: dict[np.dtype[Any], str] = {v: k for k, v in DTYPES.items()}
LONG_NAMES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip


@dataclass(frozen=True)
class TensorSpec:
    """What a header says of one tensor: number format (safetensors name) and shape.

    Example:
        >>> TensorSpec("BF16", (2, 3)).nbytes
        12
    """

    dtype: str
    shape: tuple[int, ...]

    @cached_property
    def size(self) -> int:
        return math.prod(self.shape)

    @cached_property
    def nbytes(self) -> int:
        return self.size * DTYPES[self.dtype].itemsize

    @property
    def is_float(self) -> bool:
        return self.dtype in FLOATS

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


def wider(a: TensorSpec, b: TensorSpec) -> TensorSpec:
    """The spec of a vector made of both: float64 if either is, else the first (all others compute in float32)."""
    return b if b.dtype == "F64" else a


def parse_dtype(text: str) -> str:
    """A floating-point format by its safetensors or NumPy name: ``bfloat16`` and ``BF16`` are the same.

    Raises:
        UsageError: not a floating-point format.
    """
    name = LONG_NAMES.get(text.lower(), text.upper())
    if name not in FLOATS:
        known = [*LONG_NAMES, *FLOATS]
        raise UsageError(f"unknown number format {text!r}; expected one of {', '.join(known)}.{nearest(text, known)}")
    return name


def widen(stored: np.ndarray) -> np.ndarray:
    """Stored values in working precision: float32, or float64 where the file holds float64."""
    if stored.dtype in (np.float32, np.float64):
        return stored
    if stored.dtype in LOOKED_UP:
        return np.take(_float32_of(stored.dtype), stored.view(f"u{stored.dtype.itemsize}"), mode="wrap")
    return stored.astype(np.float32)


# The bits of infinity; F8_E4M3 has none, and one NaN.
INFINITY = {
    "F64": 0x7FF << 52, "F32": 0x7F80 << 16, "F16": 0x7C00, "BF16": 0x7F80, "F8_E5M2": 0x7C, "F8_E4M3": 0x7F,
}  # fmt: skip
LOOKED_UP = (FLOATS["F16"], FLOATS["F8_E4M3"], FLOATS["F8_E5M2"])  # whose astype takes two to three times as long


@functools.cache
def _float32_of(dtype: np.dtype[Any]) -> np.ndarray:
    """The float32 of every bit pattern."""
    return np.arange(1 << 8 * dtype.itemsize, dtype=f"u{dtype.itemsize}").view(dtype).astype(np.float32)


def narrow(values: np.ndarray, dtype: str) -> np.ndarray:
    """Working values rounded once (to nearest, ties to even) to the stored format `dtype`."""
    if values.dtype == np.float64 and dtype in ("BF16", "F8_E4M3", "F8_E5M2"):
        values = _to_odd(values)  # ml_dtypes converts through float32, which would round twice
    if dtype in ("F8_E4M3", "F8_E5M2"):
        halves = np.ascontiguousarray(values, np.float32).reshape(-1).view(np.uint16).reshape(-1, 2)
        odd = halves[:, 1] | (halves[:, 0] != 0)  # a bfloat16 rounded to odd, as in _to_odd: enough for one rounding
        return np.take(_float8_of(FLOATS[dtype]), odd, mode="wrap").reshape(values.shape)
    # An overflow becomes inf here, and is reported with its tensor's name; a NaN stays one, signalling or not.
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(FLOATS[dtype], copy=False)


@functools.cache
def _float8_of(dtype: np.dtype[Any]) -> np.ndarray:
    """The float8 nearest to every bfloat16, by its bits."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.arange(1 << 16, dtype=np.uint16).view(FLOATS["BF16"]).astype(np.float32).astype(dtype)


def _to_odd(values: np.ndarray) -> np.ndarray:
    """float64 as float32, cut off, with the last bit set where something was lost.

    Rounding that to a format with far fewer bits gives what one rounding of the float64 gives.
    """
    with np.errstate(over="ignore"):
        near = values.reshape(-1).astype(np.float32)
    back = near.astype(np.float64)
    bits = near.view(np.uint32)
    bits -= np.abs(back) > np.abs(values.reshape(-1))
    bits |= back != values.reshape(-1)
    return bits.view(np.float32).reshape(values.shape)


def all_finite(values: np.ndarray) -> bool:
    """True if no value, stored or widened, is NaN or infinite."""
    if values.size == 0:
        return True
    # As integers, the finite values below zero end at -infinity's bits, the others at infinity's.
    width, infinity = 8 * values.dtype.itemsize, INFINITY[NAMES[values.dtype]]
    bits = values.reshape(-1)
    return bool(
        bits.view(f"i{width // 8}").max() < infinity and bits.view(f"u{width // 8}").max() < infinity | 1 << (width - 1)
    )
