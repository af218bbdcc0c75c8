"""From a graph to the bytes of its output: one block at a time, rounded once, checked before it is written."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..errors import InputError, NonFinite
from . import graph
from .device import CPU
from .dtypes import DTYPES, all_finite, narrow, widen
from .execute import Block, Values, bytes_per_value, evaluate
from .fused import Fused, wanted
from .output import Output


def producer(output: Output, summaries: Values) -> Callable[[Block], np.ndarray]:
    """A function that gives any block of the output in its stored format, ready to be written; safe to call on threads.

    Args:
        output: what is computed, in which formats, and where.
        summaries: the values of all passes that its node needs (`summarise`).
    Raises (when called):
        NonFinite: the block, or an input of it, holds NaN or infinity.  InputError: a negative variance.
    """
    node, spec = output.node, output.spec
    formats = {n: s.dtype for n, s in spec.items() if s.is_float}
    cost = bytes_per_value([node])
    size = sum(cost.get(n, 0) * s.size for n, s in spec.items())
    fast = Fused([node], formats) if output.device is CPU and wanted(size) else None

    def produce(block: Block) -> np.ndarray:
        stored = spec[block.name]
        leaf = graph.untouched(node, block.name)
        if leaf is not None and stored.dtype == node.spec[block.name].dtype:
            out = leaf[0].read(leaf[1], block.start, block.stop)
            if stored.is_float and output.strict:
                _check(out, block, leaf[0].label)
            return out
        out = fast.run(block, summaries) if fast else None
        if out is None or out.dtype != DTYPES[stored.dtype]:
            values = out if out is not None else evaluate(node, block, summaries, device=output.device)
            if values is None:
                values = np.zeros(block.stop - block.start, np.float32)
            out = narrow(values, stored.dtype)
            _check(out, block, "the result", stored.dtype)
        if output.point and block.name.endswith("running_var") and (widen(out) < 0).any():
            raise InputError(
                f"the result's variance {block.name!r} (batch normalisation) is negative, and such a model computes "
                "NaN. Choose a smaller coefficient, or keep the base's statistics: restrict(vector, '~*running_*')."
            )
        return out

    return produce


def _check(values: np.ndarray, block: Block, label: str, dtype: str = "") -> None:
    if not all_finite(values):
        if dtype:
            hint = f" The values overflow {dtype}; choose a smaller coefficient or a wider --dtype."
        else:
            hint = " No edit touches it; if it is meant to be so (a mask, say), use --allow-nonfinite (on_nonfinite='allow')."
        raise NonFinite(f"{label}: tensor {block.name!r} holds non-finite values near entry {block.start:,}.{hint}")
