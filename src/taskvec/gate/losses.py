r"""The five losses of geometric alignment, and what they weigh.

Every property t has a latent :math:`z_t`, a point :math:`z'_t = T_t(z_t)` in one locally flat frame that all properties share, an inverse
transfer :math:`T_t^{-1}` and a head :math:`h_t`. What the losses are called is in the abstracts and reviews of
arXiv:2310.06369, arXiv:2405.01974 and arXiv:2409.16645; the formulas are recalled and reconstructed, not copied from the papers, and the
factors before them were not found. Each function below says its formula.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..errors import UsageError

Tensors = Mapping[str, torch.Tensor]
TERMS = ("regression", "autoencoding", "consistency", "mapping", "displacement")


@dataclass(frozen=True)
class Losses:
    r"""Factors of the five terms, :math:`l = l_{reg} + \alpha l_{auto} + \beta l_{cons} + \gamma l_{map} + \delta l_{dis}`; 0 leaves a term out.

    The form of the sum is recalled; the values the paper used were not found, so these are ours.

    Args:
        regression: of the supervised term; 1 in the paper's sum.
        autoencoding: alpha.
        consistency: beta.
        mapping: gamma.
        displacement: delta.
        perturbations: M, perturbed copies of each molecule for the displacement term.
        radius: of the perturbation, in standard deviations of each entry of the shared embedding.
        routes: other properties, drawn anew for every update, through which the mapping term of a property goes in pre-training (all if
            there are no more): the term of all pairs in the mean, without their quadratic cost.
    Raises:
        UsageError: a factor that is negative or not finite, or fewer than one perturbation or route.
    """

    regression: float = 1.0
    autoencoding: float = 0.3
    consistency: float = 0.3
    mapping: float = 0.3
    displacement: float = 0.3
    perturbations: int = 2
    radius: float = 0.1
    routes: int = 3

    def __post_init__(self) -> None:
        for name in (*TERMS, "radius"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise UsageError(f"the factor {name} is {value}; expected a number from 0 up.")
        for name in ("perturbations", "routes"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; expected at least 1.")


def regression(predicted: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    r""":math:`l_{reg} = \mathrm{MSE}(y_t, h_t(z_t))` over the labels that are there; 0 without any. [recalled]

    Args:
        predicted: ``[n]``, in standard deviations of the target; or ``[k, n]`` for k properties: the mean of theirs.
        labels: alike; NaN is missing.
    Example:
        >>> regression(torch.tensor([1.0, 5.0]), torch.tensor([3.0, torch.nan])).item()
        4.0
    """
    there = torch.isfinite(labels)
    squares = torch.where(there, predicted - torch.where(there, labels, 0.0), 0.0).square()
    return (squares.sum(-1) / there.sum(-1).clamp(min=1)).mean()


def among(values: torch.Tensor) -> torch.Tensor:
    r"""Mean squared difference over all pairs along the first axis: :math:`\frac{2}{k(k-1)}\sum_{i<j}(v_i - v_j)^2 = 2\,\mathrm{Var}(v)`.

    So consistency and displacement of all pairs of k properties cost what k properties cost, not their square.

    Example:
        >>> among(torch.tensor([[0.0], [1.0], [3.0]])).item()  # (1 + 9 + 4) / 3
        4.666666507720947
    """
    return 2 * values.var(0).mean()


def autoencoding(latent: torch.Tensor, restored: torch.Tensor) -> torch.Tensor:
    r""":math:`l_{auto} = \mathrm{MSE}(z_t, T_t^{-1}(T_t(z_t)))`: the transfer is a change of coordinates. [recalled]"""
    return (latent - restored).square().mean()


def consistency(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    r""":math:`l_{cons} = \mathrm{MSE}(z'_s, z'_t)` of the same molecules: two properties put them in the same place. [recalled]"""
    return (source - target).square().mean()


def mapping(routed: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    r""":math:`l_{map} = \mathrm{MSE}(y_t, h_t(T_t^{-1}(z'_s)))`: the prediction of t survives the way through s's latent. [recalled]"""
    return regression(routed, labels)


def displacement(
    source: torch.Tensor, source_near: torch.Tensor, target: torch.Tensor, target_near: torch.Tensor
) -> torch.Tensor:
    r""":math:`l_{dis} = \frac1M \sum_i \mathrm{MSE}(\lVert z'_s(x) - z'_s(x + \epsilon_i)\rVert, \lVert z'_t(x) - z'_t(x + \epsilon_i)\rVert)`.

    Small distances agree across properties, so the frame is locally Euclidean and the same for all. [recalled; that the
    perturbation is of the shared embedding, alike]

    Args:
        source, target: ``[n, width]``, molecules in the frame.
        source_near, target_near: ``[m, n, width]``, their perturbed copies.
    Example:
        >>> x, moved = torch.zeros(1, 2), torch.tensor([[[3.0, 4.0]]])
        >>> displacement(x, moved, x + 7, x + 7 + moved.flip(-1)).item()  # a turn and a shift keep distances
        0.0
    """
    return (distance(source, source_near) - distance(target, target_near)).square().mean()


def distance(pivot: torch.Tensor, near: torch.Tensor) -> torch.Tensor:
    # The root of zero has no derivative; a copy that has not moved at all must not make NaN.
    return ((pivot - near).square().sum(-1) + 1e-12).sqrt()
