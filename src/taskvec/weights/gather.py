"""The rows of an aligned tensor, block by block: copied from where they are, averaged, or zero."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .dtypes import DTYPES, all_finite, widen
from .graph import READ, Node

ZERO, MEAN, PADDING = -1, -2, -3  # rows that come from no single row
GAP = 4  # rows that are read and not used, where that saves a call
SPAN = 1 << 18  # values looked at together for the mean of all rows


@dataclass(frozen=True)
class Block:
    """A range of one tensor's flat values."""

    name: str
    start: int
    stop: int


Evaluate = Callable[[Node, Block], np.ndarray | None]


def gather(node: Node, block: Block, evaluate: Evaluate) -> np.ndarray:
    """The values of a block of an aligned tensor, flat; `evaluate` gives those of the node's inputs."""
    rows, width = node.params["rows"], _width(node, block.name)
    first, last = block.start // width, -(-block.stop // width)
    values = _rows(node, block.name, first, last, evaluate)
    padding = np.flatnonzero(rows.which[first:last] == PADDING)
    if len(padding):
        values[padding] = _mean_of_all(node, block.name, evaluate)
    return values.reshape(-1)[block.start - first * width : block.stop - first * width]


def _width(node: Node, name: str) -> int:
    return max(1, node.spec[name].size // max(1, len(node.params["rows"].which)))


def _rows(node: Node, name: str, first: int, last: int, evaluate: Evaluate) -> np.ndarray:
    """Rows `first` to `last`, those of padding zero."""
    rows, width = node.params["rows"], _width(node, name)
    wide = any(n.spec[name].dtype == "F64" for n in node.inputs if name in n.spec)
    out = np.zeros((last - first, width), np.float64 if wide else np.float32)
    which, old = rows.which[first:last], rows.old[first:last]
    for i in np.unique(which[which >= 0]).tolist():
        places = np.flatnonzero(which == i)
        out[places] = _picked(node.inputs[i], name, old[places], width, evaluate)
    for at in np.flatnonzero(which == MEAN).tolist():
        having = rows.means[first + at]
        total = sum(
            _picked(node.inputs[i], name, np.array([r]), width, evaluate)[0].astype(np.float64) for i, r in having
        )
        out[at] = total / len(having)
    return out


def _picked(node: Node, name: str, old: np.ndarray, width: int, evaluate: Evaluate) -> np.ndarray:
    """Rows of an input, by as few calls as there are stretches of rows that lie close together."""
    order = np.argsort(old, kind="stable")
    stretches = np.split(order, np.flatnonzero(np.diff(old[order]) > GAP) + 1)
    if node.op is READ and node.spec[name].is_float:  # a file's rows are widened and checked together
        out = np.empty((len(old), width), DTYPES[node.spec[name].dtype])
        read: Any = node.source.read  # type: ignore[union-attr]
        _fill(out, stretches, old, lambda low, high: read(name, low * width, high * width).reshape(-1, width))
        if all_finite(out.reshape(-1)):
            return widen(out.reshape(-1)).reshape(out.shape)  # else `evaluate` says where
    out = np.empty((len(old), width), np.float64 if node.spec[name].dtype == "F64" else np.float32)

    def values(low: int, high: int) -> np.ndarray:
        found = evaluate(node, Block(name, low * width, high * width))
        assert found is not None
        return found.reshape(-1, width)

    _fill(out, stretches, old, values)
    return out


def _fill(
    out: np.ndarray, stretches: list[np.ndarray], old: np.ndarray, read: Callable[[int, int], np.ndarray]
) -> None:
    for part in stretches:
        low, high = int(old[part[0]]), int(old[part[-1]]) + 1
        out[part] = read(low, high)[old[part] - low]


def _mean_of_all(node: Node, name: str, evaluate: Evaluate) -> np.ndarray:
    """The mean over the rows of all tokens, in float64; kept, because every block of padding needs it."""
    rows, width = node.params["rows"], _width(node, name)
    if name not in rows.padding:
        total, count = np.zeros(width), int((rows.which != PADDING).sum())
        step = max(1, SPAN // width)
        for start in range(0, len(rows.which), step):
            total += _rows(node, name, start, min(len(rows.which), start + step), evaluate).sum(
                axis=0, dtype=np.float64
            )
        rows.padding[name] = total / max(1, count)
    return rows.padding[name]
