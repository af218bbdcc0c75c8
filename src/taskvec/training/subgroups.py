"""Sub-group task vectors: one base, one head, one vector for each group of people, and the rivals that see everybody."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..tasks.groups import balanced, members
from ..tasks.task import Task
from ..weights import Checkpoint, TaskVector
from .loop import TrainSpec, fit
from .regime import STANDARD, Regime

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class Subgroups:
    r"""What `subgroup_vectors` makes, all from one base and under one frozen head.

    Args:
        vectors: group -> :math:`\delta_g`, fine-tuned on the group's training samples alone.
        full: fine-tuned on all training samples.
        rivals: other vectors fine-tuned on all of them: "LoRA", and "balanced", whose samples are drawn so that groups and classes
            count alike.
    """

    vectors: Mapping[str, TaskVector]
    full: TaskVector
    rivals: Mapping[str, TaskVector] = field(default_factory=dict)


def in_epochs(spec: TrainSpec, samples: int, epochs: float, *, most: int | None = None) -> TrainSpec:
    """The spec with as many updates as show each of so many samples `epochs` times, at least one and at most `most`.

    A batch larger than the samples is cut to them.

    Example:
        >>> in_epochs(TrainSpec(batch=64), 1000, 2).steps
        32
    """
    batch = min(spec.batch, samples)
    steps = max(1, math.ceil(epochs * samples / (batch * spec.accumulate)))
    return replace(spec, steps=min(steps, most or steps), batch=batch)


def subgroup_vectors(
    model: torch.nn.Module, base: Checkpoint, task: Task, *, regime: Regime = STANDARD, epochs: float = 2.0, spec: TrainSpec | None = None,
    low_rank: Regime | None = None, low_rank_lr: float | None = None, groups: Sequence[str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Subgroups:  # fmt: skip
    r"""Fine-tune :math:`\delta_g = \theta_g - \theta_0` for every group, and on everybody.

    All share the head of `task`, which stays frozen: the models differ in their encoders only, so that their vectors can be added.
    (Code published with the paper gives each group a new random head, whose noise is then added up with the vectors.)

    Args:
        model: inputs -> features.
        base: :math:`\theta_0`.
        task: with its head, and with groups in its splits.
        regime: what learns, for groups and for everybody; the head frozen.
        epochs: how often each sees its samples; the updates follow from it, at least one.
        spec: rate, batch, seed and the rest; its `steps` are not used. A batch larger than a group is cut to it.
        low_rank: regime of the rival "LoRA", for example `LORA`; None leaves it out.
        low_rank_lr: its rate, else ten times that of `spec`: factors need larger steps than weights.
        groups: some of the groups, else all that the training split has.
        progress: called with the name of each before it is trained.
    Raises:
        UsageError: no groups, or a regime that trains the head.
        UnknownName, InputError: a group that is not there.
    Reference: arXiv:2505.24262.
    """
    task.needs_head()
    spec = spec or TrainSpec()
    names = list(task.train.groups) if groups is None else list(groups)
    if not names:
        raise UsageError(f"task {task.name!r} has no groups: its splits need them, see taskvec.tasks.groups.")
    for one in (regime, *([low_rank] if low_rank else [])):
        if one.head == "trained":
            raise UsageError(
                f"regime {one.name!r} trains the head, which sub-group vectors must share: a head of its own for each group is noise "
                "when vectors are added. Probe one head for all, and use a regime that keeps it frozen."
            )

    def trained(name: str, own: Task, by: Regime, lr: float) -> TaskVector:
        if progress:
            progress(name)
        by_epochs = in_epochs(replace(spec, lr=lr), len(own.train), epochs)
        return fit(model, base, own, regime=by, spec=by_epochs, label=name).vector

    vectors = {g: trained(g, members(task, g), regime, spec.lr) for g in names}
    full = trained("all groups", task, regime, spec.lr)
    rivals = {"balanced": trained("balanced", balanced(task, seed=spec.seed), regime, spec.lr)}
    if low_rank is not None:
        rivals["LoRA"] = trained("LoRA", task, low_rank, low_rank_lr or 10 * spec.lr)
    return Subgroups(vectors, full, rivals)
