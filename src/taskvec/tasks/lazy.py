"""Inputs that become floats when they are indexed, for data that does not fit into memory as float tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from ..errors import UsageError

if TYPE_CHECKING:
    import torch

Inputs: TypeAlias = "torch.Tensor | LazyInputs"


@dataclass(frozen=True, eq=False)
class LazyInputs:
    """Stands where a tensor ``[n, *item]`` would: it has a length and a shape, and indexing gives float32 tensors.

    Args:
        make: positions in the source, int64 ``[k]`` -> tensor ``[k, *item]``, the same each time.
        rows: the positions that are samples here, int64 ``[n]``.
        item: shape of one sample.
    Example:
        >>> import torch
        >>> x = LazyInputs(lambda rows: rows[:, None].float() / 2, torch.tensor([4, 6, 8]), (1,))
        >>> len(x), x.shape, x[1:]
        (3, (3, 1), tensor([[3.],
                [4.]]))
    """

    make: Callable[[torch.Tensor], torch.Tensor]
    rows: torch.Tensor
    item: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.rows), *self.item)

    def __getitem__(self, key: Any) -> torch.Tensor:
        """Samples as a tensor, by a number, a slice, positions or a mask, as torch indexes; ``inputs[:]`` is all of them."""
        rows = self.rows[key]
        return self.make(rows) if rows.dim() else self.make(rows[None])[0]

    def take(self, key: Any) -> LazyInputs:
        """Some of the samples, still lazy."""
        return replace(self, rows=self.rows[key])


def held(inputs: Inputs, *, memory: int = 2**30) -> Inputs:
    """The inputs as a tensor if it takes no more than `memory` bytes, else as they are: for what is gone through many times."""
    return inputs[:] if isinstance(inputs, LazyInputs) and 4 * math.prod(inputs.shape) <= memory else inputs


def batches(inputs: Inputs, size: int) -> Iterator[torch.Tensor]:
    """Tensors of `size` samples, in order, the last one shorter: what ``inputs.split(size)`` gives for a tensor."""
    for i in range(0, len(inputs), size):
        yield inputs[i : i + size]


def chained(parts: Sequence[Inputs]) -> Inputs:
    """Inputs one after the other: a tensor if all are tensors, else lazy.

    Raises:
        UsageError: samples of different shapes.
    """
    import torch

    if not any(isinstance(p, LazyInputs) for p in parts):
        return torch.cat([p for p in parts if isinstance(p, torch.Tensor)])
    items = {tuple(p.shape[1:]) for p in parts}
    if len(items) > 1:
        raise UsageError(f"cannot join inputs of shapes {sorted(items)}. Prepare all of them for one size.")
    ends = torch.tensor([len(p) for p in parts]).cumsum(0)

    def make(rows: torch.Tensor) -> torch.Tensor:
        which = torch.searchsorted(ends, rows, right=True)
        out = torch.empty(0)
        for k in which.unique().tolist():
            here = which == k
            found = parts[k][rows[here] - (int(ends[k - 1]) if k else 0)]
            out = out if out.ndim > 1 else found.new_empty(len(rows), *found.shape[1:])
            out[here] = found
        return out

    return LazyInputs(make, torch.arange(int(ends[-1])), items.pop())
