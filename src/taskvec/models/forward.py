r"""Forward rules: how base weights and a displacement become outputs, ``(f, base, delta, x) -> outputs``.

A rule is what training and evaluation share, so that a vector is measured through the same function it was trained
through. `plain` is the ordinary model; a linearised model is another function of the same form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from .functional import Bound

if TYPE_CHECKING:
    import torch

    Forward = Callable[
        [Bound, Mapping[str, torch.Tensor], Mapping[str, torch.Tensor], torch.Tensor],
        torch.Tensor,
    ]
else:
    Forward = Callable


def plain(
    f: Bound, base: Mapping[str, torch.Tensor], delta: Mapping[str, torch.Tensor], x: torch.Tensor
) -> torch.Tensor:
    r"""The ordinary model at the displaced point: :math:`f(\theta_0 + \delta, x)`.

    Args:
        f: the bound model.
        base: :math:`\theta_0`, every parameter.
        delta: :math:`\delta`; names that it lacks stay at the base.
        x: a batch of inputs.
    """
    return f({n: t + delta[n] if n in delta else t for n, t in base.items()}, x)
