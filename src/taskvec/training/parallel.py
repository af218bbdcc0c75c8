"""Several processes that train one vector: each takes a part of every batch, gradients are added up.

Start them with ``torchrun --nproc-per-node N script.py`` and call ``torch.distributed.init_process_group`` before `fit`; nothing
else changes. All processes draw the same batches, so N of them give the vector of one, up to the rounding of sums.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Team:
    """This process among those that train together."""

    rank: int = 0
    size: int = 1

    def mine(self, rows: torch.Tensor) -> torch.Tensor:
        """This process's part of a batch."""
        return rows[self.rank :: self.size]

    def add_up(self, tensors: Iterable[torch.Tensor | None]) -> None:
        """Replace each tensor by its sum over the processes."""
        if self.size > 1:
            import torch.distributed as dist

            for t in tensors:
                if t is not None:
                    dist.all_reduce(t)


def team() -> Team:
    """The processes of torch.distributed, or this one alone."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        return Team(dist.get_rank(), dist.get_world_size())
    return Team()
