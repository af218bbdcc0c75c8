"""A multi-layer perceptron for rows of a table."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from ..errors import UsageError

HIDDEN = (64, 32)


class Perceptron(nn.Module):
    """Made by `perceptron`: inputs ``[n, width]`` -> features ``[n, hidden[-1]]``."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x


def perceptron(width: int, *, hidden: Sequence[int] = HIDDEN, generator: torch.Generator) -> Perceptron:
    r"""Layers with rectified outputs, :math:`x \leftarrow \max(W x + b, 0)`; there is no head.

    Weights are normal with variance 2 / inputs, from `generator` alone, biases zero.

    Args:
        width: of the inputs.
        hidden: widths of the layers; the last one is that of the features.
        generator: draws on the CPU.
    Raises:
        UsageError: no layer, or a width below 1.
    Reference: initial weights after He et al. 2015, arXiv:1502.01852.
    Example:
        >>> perceptron(3, generator=torch.Generator().manual_seed(0))(torch.zeros(5, 3)).shape
        torch.Size([5, 32])
    """
    if not hidden or min(width, *hidden) < 1:
        raise UsageError(f"perceptron: widths must be at least 1, and one layer is needed; got {width} and {list(hidden)}.")  # fmt: skip
    with torch.device("meta"):  # building there draws nothing from the global generator
        model = Perceptron([width, *hidden])
    model.to_empty(device="cpu")
    with torch.no_grad():
        for layer in model.layers:
            assert isinstance(layer, nn.Linear)
            drawn = torch.randn(layer.weight.shape, generator=generator)
            layer.weight.copy_(drawn * (2 / layer.in_features) ** 0.5)
            layer.bias.zero_()
    return model
