r"""Low-rank displacements (LoRA): :math:`\delta = s\,U V` beside a weight, without forming the product where a layer is linear.

Imports torch: import this module inside functions only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_map


@dataclass(frozen=True, eq=False)
class LowRank:
    r"""The displacement :math:`\delta = s\,U V` of a matrix ``[rows, columns]``.

    Args:
        left: U, ``[rows, r]``.
        right: V, ``[r, columns]``.
        scale: s.
    """

    left: torch.Tensor
    right: torch.Tensor
    scale: float

    def full(self) -> torch.Tensor:
        return self.scale * (self.left @ self.right)

    def __radd__(self, weight: torch.Tensor) -> torch.Tensor:
        """``weight + delta``, as a tensor that linear layers use in two steps."""
        out = torch.Tensor._make_subclass(_Displaced, weight.detach())
        out.weight, out.delta = weight, self
        return out


def zero_product(
    weight: torch.Tensor, *, rank: int, alpha: float, by_columns: bool, generator: torch.Generator
) -> LowRank:
    """A displacement that is zero and can learn: one factor zero, the other, on the side of the layer's input, random.

    Args:
        weight: the matrix.
        rank: r, at most the smaller side of the matrix counts.
        alpha: the scale is ``alpha / rank``.
        by_columns: whether the layer's inputs meet the columns (`Linear`) or the rows (`Conv1D`).
        generator: draws on the CPU.
    Reference: Hu et al. 2021, arXiv:2106.09685, section 4.1.
    """
    rows, columns = weight.shape
    r = min(rank, rows, columns)
    inputs = columns if by_columns else rows
    drawn = (torch.rand((r, inputs), generator=generator) * 2 - 1) * math.sqrt(3 / inputs)  # variance 1 / inputs
    drawn = drawn.to(weight.device)
    if by_columns:
        return LowRank(torch.zeros(rows, r, device=weight.device), drawn, alpha / rank)
    return LowRank(drawn.T.contiguous(), torch.zeros(r, columns, device=weight.device), alpha / rank)


class _Displaced(torch.Tensor):
    weight: torch.Tensor
    delta: LowRank

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear and isinstance(args[1], _Displaced) and not isinstance(args[0], _Displaced):
            x, displaced, *bias = args
            bias = bias[0] if bias else kwargs.get("bias")
            return F.linear(x, displaced.weight, bias) + _through(
                x, displaced.delta.right.T, displaced.delta.left.T, displaced
            )
        if func is torch.addmm and isinstance(args[2], _Displaced) and not kwargs:
            bias, x, displaced = args
            added = _through(x, displaced.delta.left, displaced.delta.right, displaced)
            return torch.addmm(bias, x, displaced.weight) + added
        if getattr(func, "__name__", "") == "__get__":  # shape, dtype, device
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args)
        return func(*tree_map(_whole, args), **tree_map(_whole, kwargs))


def _through(x: torch.Tensor, first: torch.Tensor, second: torch.Tensor, displaced: _Displaced) -> torch.Tensor:
    return displaced.delta.scale * (x @ first @ second)


def _whole(x: Any) -> Any:
    return x.weight + x.delta.full() if isinstance(x, _Displaced) else x
