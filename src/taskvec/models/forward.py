r"""Forward rules: how base weights and a displacement become outputs, ``(f, base, delta, x) -> outputs``.

A rule is what training and evaluation share, so that a vector is measured through the same function it was trained
through. `plain` is the ordinary model; `linearised` its first-order expansion at the base.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import KeyMismatch, UsageError, some
from .functional import Bound

if TYPE_CHECKING:
    import torch

    Weights = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Forward:
    """A forward rule: call it with ``(f, base, delta, x)``.

    Args:
        name: as tables call it.
        run: the rule itself.
        split: for a rule whose outputs are affine in delta: the outputs at the base and what delta adds to them. A whole grid
            of coefficients then costs one evaluation for each vector.
    """

    name: str
    run: Callable[[Bound, Weights, Weights, torch.Tensor], torch.Tensor]
    split: Callable[[Bound, Weights, Weights, torch.Tensor], tuple[torch.Tensor, torch.Tensor]] | None = None

    def __call__(self, f: Bound, base: Weights, delta: Weights, x: torch.Tensor) -> torch.Tensor:
        return self.run(f, base, delta, x)


def _plain(f: Bound, base: Weights, delta: Weights, x: torch.Tensor) -> torch.Tensor:
    r"""The ordinary model at the displaced point: :math:`f(\theta_0 + \delta, x)`.

    Args:
        f: the bound model.
        base: :math:`\theta_0`, every parameter.
        delta: :math:`\delta`; names that it lacks stay at the base.
        x: a batch of inputs.
    """
    return f({n: t + delta[n] if n in delta else t for n, t in base.items()}, x)


def _linearised(f: Bound, base: Weights, delta: Weights, x: torch.Tensor) -> torch.Tensor:
    r"""The first-order model: :math:`f_{lin}(\theta_0 + \delta, x) = f(\theta_0, x) + J_\theta f(\theta_0, x)\,\delta`.

    Exact at delta = 0 and affine in delta. Differentiable with respect to delta alone: the gradient of a loss is
    :math:`J^\top g` with g its gradient at the linearised outputs, an ordinary reverse pass of the network at theta_0;
    nothing is differentiated through the forward derivative.

    Args:
        f: the bound model, outputs one tensor.
        base: :math:`\theta_0`, every parameter; receives no gradient.
        delta: :math:`\delta`; names that it lacks are not displaced, and cost nothing. Buffers (batch-norm statistics) are no
            parameters: they stay at the base.
        x: a batch of inputs.
    Raises:
        UsageError: an operation of the model has no forward-mode derivative; says which, and in which module.
    Reference: Ortiz-Jimenez et al. 2023, arXiv:2305.12827.
    """
    import torch

    value, along = value_and_tangent(f, base, delta, x)
    return torch.add(value, along)


def value_and_tangent(f: Bound, base: Weights, delta: Weights, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    r""":math:`f(\theta_0, x)` and :math:`J\delta`. Both without a graph, or, where delta requires gradients, a value that
    carries the gradient of their sum."""
    import torch

    from .tangents import AtBase, carried

    unknown = [n for n in delta if n not in base]
    if unknown:
        raise KeyMismatch(f"the displacement has {len(unknown)} names that the base lacks: {some(unknown)}.")
    if x.requires_grad and torch.is_grad_enabled():
        raise UsageError("the linearised model gives no gradient of its inputs; detach them.")
    fixed = getattr(f, "buffers", frozenset())  # statistics stay as they are at the base
    names = [n for n in delta if n not in fixed]
    moved = [delta[n] for n in names]
    if torch.is_grad_enabled() and any(d.requires_grad for d in moved):
        return AtBase.apply(f, base, names, x, *moved)  # type: ignore[return-value]
    with torch.no_grad():
        return carried(f, base, names, moved, x)


plain = Forward("plain", _plain)
linearised = Forward("linearised", _linearised, split=value_and_tangent)


def named(name: str) -> Forward:
    """A forward rule by its name.

    Raises:
        UsageError: neither ``plain`` nor ``linearised``.
    """
    for rule in (plain, linearised):
        if rule.name == name:
            return rule
    raise UsageError(f"unknown forward rule {name!r}; expected 'plain' or 'linearised'.")
