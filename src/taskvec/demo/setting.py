"""What a demo is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..search import grid
from ..tasks.task import Task
from ..weights import Checkpoint

if TYPE_CHECKING:
    import torch

Train = Callable[[Task, bool], Checkpoint]  # (task, ascent) -> fine-tuned weights


@dataclass(frozen=True, eq=False)
class Setting:
    """What a demo is made of: a pre-trained base, and a task for each part of the three questions.

    Args:
        title: heading of the report.
        told: sentences that say what the model and the data are.
        model: inputs -> features.
        base: the pre-trained weights.
        target, control: what is to be forgotten, and what is to be kept.
        add: the tasks to be learnt together.
        cells: "A", "B", "C", "D": tasks such that A is to B as C is to D.
        train: fine-tunes the base on a task (of `target`, `add` and `cells`), or ascends its loss.
        near: grid for adding and for the analogy.
        wide: grid for forgetting; it reaches beyond 1 so that weak vectors get every chance.
        keep_finetuned: also write the fine-tuned checkpoints; base and vectors give them back.
    """

    title: str
    told: tuple[str, ...]
    model: torch.nn.Module
    base: Checkpoint
    target: Task
    control: Task
    add: tuple[Task, ...]
    cells: Mapping[str, Task]
    train: Train
    near: tuple[float, ...] = grid(0, 1, 21)
    wide: tuple[float, ...] = grid(0, 2, 41)
    keep_finetuned: bool = True
