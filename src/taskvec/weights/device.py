"""Where blocks are computed: in memory with NumPy, or on an accelerator through torch.

An operation is a function of arrays and does not see the difference. Sums over all tensors (norms, cuts) stay with
NumPy, so that an edit has the same cuts wherever it is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UsageError, missing_extra
from .dtypes import FLOATS, widen

LARGE_BLOCK = 1 << 23  # values, for an accelerator, where each operation costs a launch


@dataclass(frozen=True)
class Device:
    """Where and how one block is computed.

    Args:
        name: as the user says it.
        block: values a block; None for as many as suit the processor's cache.
        up: stored values as an array there, in working precision.
        down: such an array as a NumPy array in working precision.
    """

    name: str
    block: int | None
    up: Callable[[np.ndarray], Any]
    down: Callable[[Any], np.ndarray]


CPU = Device("cpu", None, widen, lambda array: array)


def device(name: str | None) -> Device:
    """A device by its name: ``cpu`` (or None), ``cuda``, ``cuda:1``.

    Raises:
        UsageError: no such device here.  MissingExtra: it needs torch, which is not installed.
    """
    if name in (None, "cpu"):
        return CPU
    kind, _, number = name.partition(":")
    if kind != "cuda" or (number and not number.isdecimal()):
        raise UsageError(f"unknown device {name!r}; expected cpu, cuda, or cuda:N for one of several.")
    try:
        import torch
    except ImportError:
        raise missing_extra("torch", "train", f"computing on {name!r}") from None
    count = torch.cuda.device_count()
    if int(number or 0) >= count:
        raise UsageError(
            f"there is no device {name!r} here: torch {torch.__version__} finds {count} CUDA devices. Use --device cpu."
        )
    return through_torch(name)


def through_torch(name: str) -> Device:
    """A device that torch can compute on."""
    import torch

    place = torch.device(name)
    halves = {FLOATS["F16"]: torch.float16, FLOATS["BF16"]: torch.bfloat16}

    def up(stored: np.ndarray) -> Any:
        kind = halves.get(stored.dtype)
        bits = stored.view(np.int16) if kind else widen(stored)  # half the bytes travel
        there = torch.from_numpy(np.require(bits, requirements="W")).to(place)
        return there.view(kind).to(torch.float32) if kind else there

    def down(array: Any) -> np.ndarray:
        return array.cpu().numpy() if isinstance(array, torch.Tensor) else array

    return Device(name, LARGE_BLOCK, up, down)
