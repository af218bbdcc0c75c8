"""Several processes that train one vector: each takes a part of every batch, gradients are added up.

Start them with ``torchrun --nproc-per-node N script.py`` and call ``torch.distributed.init_process_group`` before `fit`; nothing
else changes. Import ``torch.distributed.nn.functional`` before that, or a process may abort at its end (`launched` says why). All
processes draw the same batches, so N of them give the vector of one, up to the rounding of sums. `taskvec fit` does all this
by itself.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import StorageError, UsageError
from ..weights.device import device as check_device

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


LAUNCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")  # numbers that a launcher sets, beside MASTER_ADDR


@contextlib.contextmanager
def launched(device: str | None) -> Iterator[tuple[Team, str | None]]:
    """Join the processes that ``torchrun`` or ``accelerate launch`` started, and leave them at the end.

    Args:
        device: where to compute, as the user says it; with several processes ``"cuda"`` is a GPU for each.
    Yields:
        this process among them, and its own device. Without a launcher, or with one process, nothing is done.
    Raises:
        UsageError: one GPU is named for several processes, or there are too few.
        StorageError: another process ended while this one waited for it.
    """
    numbers = {n: os.environ.get(n, "") for n in LAUNCH}
    if not all(n.isdecimal() for n in numbers.values()) or numbers["WORLD_SIZE"] == "1":
        yield Team(), device
        return
    import torch
    import torch.distributed as dist

    if device is not None and device.startswith("cuda:"):
        raise UsageError(
            f"{numbers['WORLD_SIZE']} processes cannot share {device}. Write --device cuda: each process takes a GPU of its own."
        )
    own = f"cuda:{numbers['LOCAL_RANK']}" if device == "cuda" else device
    check_device(own)
    if device == "cuda":
        torch.cuda.set_device(own)
    # Its functions have the group of the moment of their import as a default. Imported later (by torch's optimisers), they keep the
    # group's threads alive, and one that ends after the interpreter aborts the process.
    import torch.distributed.nn.functional

    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield team(), own
    except RuntimeError as error:
        if "gloo" in str(error) or isinstance(error, dist.DistError):
            raise StorageError(
                f"another process of the group ended or cannot be reached; its own message says why ({str(error).splitlines()[0]})."
            ) from error
        raise
    finally:
        dist.destroy_process_group()
