"""The rows of an aligned tensor, block by block: copied from where they are, averaged, or zero."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .graph import Node

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
    padding = np.flatnonzero(rows.which[first:last] == -3)
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
        _copy(
            out, np.flatnonzero(which == i), old, lambda a, b, n=node.inputs[i]: _read(n, name, a, b, width, evaluate)
        )
    for at in np.flatnonzero(which == -2).tolist():
        having = rows.means[first + at]
        total = sum(_read(node.inputs[i], name, r, r + 1, width, evaluate)[0].astype(np.float64) for i, r in having)
        out[at] = total / len(having)
    return out


def _copy(out: np.ndarray, places: np.ndarray, old: np.ndarray, read: Callable[[int, int], np.ndarray]) -> None:
    """Rows `old[places]` to `places`, by as few calls as there are stretches of rows that lie close together."""
    places = places[np.argsort(old[places], kind="stable")]
    for part in np.split(places, np.flatnonzero(np.diff(old[places]) > GAP) + 1):
        low, high = int(old[part[0]]), int(old[part[-1]]) + 1
        out[part] = read(low, high)[old[part] - low]


def _read(node: Node, name: str, first: int, last: int, width: int, evaluate: Evaluate) -> np.ndarray:
    values: Any = evaluate(node, Block(name, first * width, last * width))
    return values.reshape(last - first, width)


def _mean_of_all(node: Node, name: str, evaluate: Evaluate) -> np.ndarray:
    """The mean over the rows of all tokens, in float64; kept, because every block of padding needs it."""
    rows, width = node.params["rows"], _width(node, name)
    if name not in rows.padding:
        total, count = np.zeros(width), int((rows.which != -3).sum())
        step = max(1, SPAN // width)
        for start in range(0, len(rows.which), step):
            total += _rows(node, name, start, min(len(rows.which), start + step), evaluate).sum(
                axis=0, dtype=np.float64
            )
        rows.padding[name] = total / max(1, count)
    return rows.padding[name]
