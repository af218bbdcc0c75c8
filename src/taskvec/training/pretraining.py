"""Pre-training of small image models from nothing: supervised, masked, self-distilled or contrastive."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from ..errors import NonFinite, UnknownName, UsageError, nearest
from ..models.functional import bind, require_torch, tensors
from ..results import Score
from ..tasks.metrics import accuracy
from ..tasks.task import Split, Task
from ..tasks.vision import jitter
from ..weights import Checkpoint
from .loop import Batches, TrainSpec, rate_at
from .objectives import PRETRAININGS, Build
from .probe import probe

if TYPE_CHECKING:
    import torch

    from .loop import Augment


@dataclass(frozen=True, eq=False)
class Pretrained:
    """What pre-training made.

    Args:
        checkpoint: the encoder's weights; heads, decoders and teachers are not kept.
        losses: at each step, before the update.
    """

    checkpoint: Checkpoint
    losses: tuple[float, ...]


def pretrain(
    model: torch.nn.Module,
    inputs: torch.Tensor,
    *,
    how: str | Build = "supervised",
    labels: torch.Tensor | None = None,
    spec: TrainSpec | None = None,
    augment: Augment | None = None,
    label: str | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> Pretrained:
    """Pre-train an encoder from the weights that `model` has; `model` is not modified.

    AdamW with warm-up and cosine decay; tensors of one dimension (biases, norms) do not decay. The same arguments give the same
    bits on the same machine and library versions; global random state is neither read nor changed.

    Args:
        model: inputs -> features. "masked" needs one of `small_vit`.
        inputs: ``[n, ...]``, float32, on the CPU.
        how: ``"supervised"``, ``"masked"``, ``"self-distilled"`` or ``"contrastive"``; or a function of training/objectives.py
            with other settings: ``functools.partial(masked, share=0.5)``.
        labels: ``[n]``, int64 from 0; needed for supervised pre-training, not read otherwise.
        spec: steps, rate, batch, seed.
        augment: ``(inputs, generator) -> inputs``, applied to each batch. Self-distilled and contrastive pre-training need one.
        label: name of the resulting checkpoint.
        progress: called after each update with the number of updates so far and the loss before it.
    Raises:
        UnknownName: no such pre-training.
        UsageError: labels or an augmentation are missing, counts differ, or there are fewer samples than a batch.
        NonFinite: the loss became NaN or infinite.
    """
    torch = require_torch("Pre-training")
    spec = spec or TrainSpec()
    if isinstance(how, str) and how not in PRETRAININGS:
        raise UnknownName(f"no pre-training {how!r}; there are {', '.join(PRETRAININGS)}.{nearest(how, PRETRAININGS)}")
    build = PRETRAININGS[how] if isinstance(how, str) else how
    if spec.autocast:
        raise UsageError("pre-training computes in float32. Leave out autocast.")
    if len(inputs) < spec.batch:
        raise UsageError(
            f"pre-training has {len(inputs)} samples, fewer than a batch of {spec.batch}. Set TrainSpec(batch=...)."
        )
    if labels is not None and (labels.shape != (len(inputs),) or labels.dtype != torch.int64 or int(labels.min()) < 0):
        raise UsageError(
            f"labels must be int64 from 0, of shape [{len(inputs)}] as the inputs; got {labels.dtype}, {list(labels.shape)}."
        )
    generator = torch.Generator().manual_seed(spec.seed)
    encoder = copy.deepcopy(model).eval().requires_grad_(True)
    classes = 0 if labels is None else int(labels.max()) + 1
    objective = build(encoder, inputs[:1], classes, generator)
    if objective.views > 1 and augment is None:
        raise UsageError(
            "this pre-training compares views of one image and needs augment=..., for example taskvec.tasks.vision.jitter: without "
            "one all views are equal."
        )
    learned = [*encoder.parameters(), *objective.parts.parameters()]
    optimiser = torch.optim.AdamW(
        [
            {"params": [t for t in learned if t.dim() > 1], "weight_decay": spec.weight_decay},
            {"params": [t for t in learned if t.dim() <= 1], "weight_decay": 0.0},
        ],
        lr=spec.lr,
    )
    batches = Batches(len(inputs), spec.batch, generator, torch.empty(0, dtype=torch.long), 0)
    losses: list[float] = []
    for step in range(spec.steps):
        optimiser.zero_grad()
        total = 0.0
        for _ in range(spec.accumulate):
            rows = batches.draw()
            x = inputs[rows]
            views = [x if augment is None else augment(x, generator) for _ in range(objective.views)]
            loss = objective.loss(views, None if labels is None else labels[rows], generator) / spec.accumulate
            loss.backward()
            total += float(loss.detach())
        if not math.isfinite(total):
            raise NonFinite(
                f"pre-training failed at step {step + 1} of {spec.steps}: the loss is {total}. Lower the learning rate (now "
                f"{spec.lr:g}), or check the inputs for NaN."
            )
        losses.append(total)
        torch.nn.utils.clip_grad_norm_(learned, spec.clip)
        for group in optimiser.param_groups:
            group["lr"] = spec.lr * rate_at(step, spec.steps, spec.warmup)
        optimiser.step()
        objective.after((step + 1) / spec.steps)
        if progress:
            progress(step + 1, total)
    said = label or (how if isinstance(how, str) else "pre-trained")
    return Pretrained(Checkpoint.of(encoder.requires_grad_(False), label=said), tuple(losses))


def divided(task: Task, *, share: float = 0.5, seed: int = 0) -> tuple[Task, Task]:
    """Two tasks with disjoint training samples, a part to pre-train on and the rest to fine-tune on; validation and test are
    those of the task in both.

    Args:
        task: whose training samples are divided.
        share: of the samples, to the first task.
        seed: chooses the permutation; equal seeds and samples, equal parts.
    Raises:
        UsageError: a part would be empty.
    """
    torch = require_torch("Dividing a task")
    n = len(task.train)
    first = round(share * n) if 0 < share < 1 else 0
    if not 0 < first < n:
        raise UsageError(
            f"task {task.name!r}: a share of {share} of {n} training samples leaves a part empty; take one between 0 and 1."
        )
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    x, y = task.train.inputs, task.train.labels

    def part(rows: torch.Tensor) -> Task:  # inputs that are no tensor are made when they are used, and stay so
        return replace(task, train=Split(x[rows] if isinstance(x, torch.Tensor) else x.take(rows), y[rows]))

    return part(order[:first]), part(order[first:])


def jointly(tasks: Sequence[Task]) -> tuple[torch.Tensor, torch.Tensor, tuple[str, ...]]:
    """The training samples of several tasks as one set: inputs, labels one task after another, and the names of all classes.

    Raises:
        UsageError: no tasks, or inputs of different shapes.
    """
    torch = require_torch("Joining tasks")
    shapes = {tuple(t.train.inputs.shape[1:]) for t in tasks}
    if len(shapes) != 1:
        got = f"inputs of shapes {sorted(shapes)}" if tasks else "no tasks"
        raise UsageError(
            f"cannot pre-train jointly on {got}: it takes tasks prepared for one size and number of channels."
        )
    labels, begin = [], 0
    for t in tasks:
        t.check_labels(t.train)
        labels.append(t.train.labels + begin)
        begin += len(t.classes)
    names = tuple(f"{t.name}: {c}" for t in tasks for c in t.classes)
    return torch.cat([t.train.inputs[:] for t in tasks]), torch.cat(labels), names


@dataclass(frozen=True)
class Settings:
    """How a pre-training is run: `pretrain`'s arguments."""

    spec: TrainSpec
    augment: Augment


MILD = functools.partial(jitter, border="border", brightness=0.1, colour=0.1)
STRONG = functools.partial(
    jitter, border="border", shift=0.15, scale=0.3, contrast=0.4, noise=0.1, brightness=0.2, colour=0.2
)


# For small_vit at 32 pixels and inputs from -1 to 1, minutes each on one core; what they reach is in docs/pretraining.md.
RECIPES: Mapping[str, Settings] = MappingProxyType(
    {
        "supervised": Settings(TrainSpec(steps=600, lr=1e-3, batch=128, weight_decay=0.05), MILD),
        "masked": Settings(TrainSpec(steps=2000, lr=1.5e-3, batch=128, weight_decay=0.05), MILD),
        "self-distilled": Settings(TrainSpec(steps=1000, lr=1e-3, batch=64, weight_decay=0.05), STRONG),
        "contrastive": Settings(TrainSpec(steps=1000, lr=1e-3, batch=64, weight_decay=0.05), STRONG),
    }
)


def probe_scores(model: torch.nn.Module, base: Checkpoint, tasks: Sequence[Task]) -> dict[str, Score]:
    """Validation accuracy of a linear probe on the base's features, for each task; probes see the training part."""
    f, weights = bind(model), tensors(base, like=model)
    return {t.name: accuracy(f, weights, t.validation, probe(model, base, t)) for t in tasks}
