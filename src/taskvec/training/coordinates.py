"""What learns: the displacement itself, tensor by tensor, or the factors of one of low rank.

The displacement and not the weights, so that it is exact however large the weights are, and is the task vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .regime import Regime

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class Coordinates:
    """The displaced parameters of one training run.

    Args:
        start: the base's tensors that are displaced, by name.
        moved: their displacements: tensors that learn, or `LowRank` products whose factors do.
    """

    start: Mapping[str, torch.Tensor]
    moved: Mapping[str, Any]

    @property
    def free(self) -> dict[str, torch.Tensor]:
        """Displacements that learn entry by entry."""
        return {n: m for n, m in self.moved.items() if not hasattr(m, "full")}

    @property
    def factors(self) -> dict[str, torch.Tensor]:
        """Factors that learn, by the parameter's name and their side."""
        found = {f"{n}:{side}": getattr(m, side) for n, m in self.moved.items() if hasattr(m, "full") for side in SIDES}
        return {n: x for n, x in found.items() if x.requires_grad}

    def delta(self, *, formed: bool) -> dict[str, Any]:
        """What a forward rule is given; products `formed` for a rule that knows tensors only."""
        return {n: m.full() if formed and hasattr(m, "full") else m for n, m in self.moved.items()}

    def decay(self, rate: float) -> None:
        """Weight decay on theta, as in the papers: theta (1 - r) is theta_0 + tau (1 - r) - r theta_0."""
        import torch

        with torch.no_grad():
            for name, t in self.free.items():
                if t.grad is not None:  # what the loss does not depend on stays, as with AdamW
                    t.mul_(1 - rate).add_(self.start[name], alpha=-rate)


SIDES = ("left", "right")


def coordinates(
    model: torch.nn.Module, regime: Regime, start: Mapping[str, torch.Tensor], seed: int
) -> Coordinates:  # fmt: skip
    """Coordinates at zero displacement of the parameters that the regime selects."""
    import torch

    from ..models.lowrank import zero_product

    chosen = {n: start[n] for n in regime.names(model)}
    if regime.low_rank is None:
        return Coordinates(chosen, {n: torch.zeros_like(t).requires_grad_() for n, t in chosen.items()})
    generator = torch.Generator().manual_seed(seed)
    rank, moved = regime.low_rank, {}
    for name, weight in chosen.items():
        owner = model.get_submodule(name.rpartition(".")[0])
        by_columns = type(owner).__name__ != "Conv1D"  # GPT-2's layer, whose inputs meet the rows
        made = zero_product(weight, rank=rank.rank, alpha=rank.alpha, by_columns=by_columns, generator=generator)
        for side in SIDES:
            factor = getattr(made, side)
            factor.requires_grad_(rank.both or not factor.any())
        moved[name] = made
    return Coordinates(chosen, moved)
