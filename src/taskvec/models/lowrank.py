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
        rule = {F.linear: _linear, torch.addmm: _addmm}.get(func)
        if rule is not None:
            try:
                return rule(*args, **kwargs)
            except TypeError as error:
                if error.__traceback__ is None or error.__traceback__.tb_next is not None:
                    raise
        name = getattr(getattr(func, "__self__", None), "__name__", "")
        if getattr(func, "__name__", "") == "__get__" and (name in ATTRIBUTES or name.startswith("is_")):
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args)
        return func(*tree_map(_whole, args), **tree_map(_whole, kwargs))


def _linear(input: Any, weight: Any, bias: Any = None) -> Any:
    if not isinstance(weight, _Displaced) or isinstance(input, _Displaced):
        return F.linear(_whole(input), _whole(weight), _whole(bias))
    added = _through(input, weight.delta.right.T, weight.delta.left.T, weight)
    return F.linear(input, weight.weight, bias) + added


def _addmm(input: Any, mat1: Any, mat2: Any) -> Any:
    if not isinstance(mat2, _Displaced) or isinstance(mat1, _Displaced):
        return torch.addmm(_whole(input), _whole(mat1), _whole(mat2))
    return torch.addmm(input, mat1, mat2.weight) + _through(mat1, mat2.delta.left, mat2.delta.right, mat2)


ATTRIBUTES = {"shape", "dtype", "device", "ndim", "layout", "requires_grad", "itemsize", "nbytes"}


def _through(x: torch.Tensor, first: torch.Tensor, second: torch.Tensor, displaced: _Displaced) -> torch.Tensor:
    return displaced.delta.scale * (x @ first @ second)


def _whole(x: Any) -> Any:
    return x.weight + x.delta.full() if isinstance(x, _Displaced) else x
