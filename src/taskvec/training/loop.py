"""The training loop, written out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import NonFinite, UsageError, some
from ..models.forward import plain
from ..models.functional import Bound, aliases, bind, device_of, require_torch, tensors, under_first_names
from ..tasks.task import Head, Task
from ..weights import Checkpoint
from .regime import STANDARD, Regime

if TYPE_CHECKING:
    import torch

    Augment = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


@dataclass(frozen=True)
class TrainSpec:
    """How long and how fast: AdamW, linear warm-up, cosine to zero.

    Args:
        steps: number of updates.
        lr: learning rate at the end of the warm-up.
        batch: samples per update.
        weight_decay: AdamW's decoupled decay.
        warmup: share of the steps over which the rate rises.
        clip: largest norm of the gradient over all trained parameters.
        seed: chooses batches and augmentations.
    Raises:
        UsageError: a value that cannot mean anything.
    Reference: Ilharco et al. 2022, arXiv:2212.04089, appendix B (AdamW, warm-up, cosine, clipping at 1).
    """

    steps: int = 200
    lr: float = 3e-4
    batch: int = 64
    weight_decay: float = 0.01
    warmup: float = 0.1
    clip: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        wrong = [n for n in ("steps", "batch") if getattr(self, n) < 1]
        wrong += [n for n in ("lr", "clip") if not 0 < getattr(self, n) < math.inf]
        wrong += [n for n in ("weight_decay",) if not 0 <= getattr(self, n) < math.inf]
        wrong += ["warmup"] * (not 0 <= self.warmup <= 1)
        if wrong:
            shown = ", ".join(f"{n}={getattr(self, n)}" for n in wrong)
            raise UsageError(
                f"TrainSpec: {shown} out of range. steps and batch must be at least 1, lr and clip above 0, "
                "weight_decay at least 0, warmup between 0 and 1."
            )


@dataclass(frozen=True, eq=False)
class Fitted:
    """What training made: the weights, the head (the given one, unless the regime trains it), the loss at each step."""

    checkpoint: Checkpoint
    head: Head
    losses: tuple[float, ...]


def fit(
    model: torch.nn.Module,
    base: Checkpoint,
    task: Task,
    *,
    regime: Regime = STANDARD,
    spec: TrainSpec | None = None,
    augment: Augment | None = None,
    ascent: bool = False,
    label: str | None = None,
) -> Fitted:
    r"""Fine-tune: minimise the cross-entropy of :math:`W f(\theta_0 + \delta, x) + b` over :math:`\delta` on `task.train`.

    Reads the train split only. The same arguments give the same bits on the same machine and library versions; global
    random state is neither read nor changed. `model` is not modified.

    Args:
        model: inputs -> features; gives the structure and the device, its own weights do not matter.
        base: :math:`\theta_0`, where training starts.
        task: data and head.
        regime: what may change. A regime that trains the head makes one, from zero, if the task has none.
        spec: steps, rate, batch, seed.
        augment: ``(inputs, generator) -> inputs``, applied to each batch on the CPU.
        ascent: flip the sign of the loss: the gradient-ascent baseline of forgetting (arXiv:2212.04089, section 3).
        label: name of the resulting checkpoint, else the task's name.
    Raises:
        UsageError: the regime selects no parameter of this model, or the task has no head and none is to be made.
        KeyMismatch: `base` does not fit `model`.
        NonFinite: the loss became NaN or infinite; says at which step.
    """
    torch = require_torch("Fine-tuning")
    spec = spec or TrainSpec()
    device = device_of(model)
    f = bind(model)
    first = aliases(model)  # tied weights learn once, under their first name
    start = under_first_names(tensors(base, like=model, device=device), first)
    chosen = list(dict.fromkeys(c for n, c in first.items() if regime.select and regime.select(n)))
    if regime.select is not None and not chosen:
        raise UsageError(
            f"regime {regime.name!r} selects no parameter: {regime.select} matches none of {some(first)}. "
            "Correct the pattern, or set select=None to train a head alone."
        )
    learn_head = regime.head == "trained"
    given = task.needs_head() if task.head or not learn_head else _zero_head(f, start, task, device)
    head = Head(*(t.detach().clone().to(device).requires_grad_(learn_head) for t in (given.weight, given.bias)))
    # The parameters that AdamW holds are the weights themselves, so that weight decay acts on theta, as in the papers,
    # and not on the displacement; delta is read off them at each step.
    point = {n: start[n].clone().requires_grad_() for n in chosen}
    learned = [*point.values(), *((head.weight, head.bias) if learn_head else ())]
    optimiser = torch.optim.AdamW(learned, lr=spec.lr, weight_decay=spec.weight_decay)
    generator = torch.Generator().manual_seed(spec.seed)
    inputs, labels = task.train.inputs, task.train.labels
    losses: list[float] = []
    for step, rows in zip(range(spec.steps), _batches(len(labels), spec.batch, generator), strict=False):
        x = inputs[rows] if augment is None else augment(inputs[rows], generator)
        delta = {n: point[n] - start[n] for n in chosen}
        logits = head(plain(f, start, delta, x.to(device)))
        loss = torch.nn.functional.cross_entropy(logits, labels[rows].to(device))
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise NonFinite(
                f"training on {task.name!r} failed at step {step + 1} of {spec.steps}: the loss is {losses[-1]}. "
                f"Lower the learning rate (now {spec.lr:g}), or check the inputs for NaN."
            )
        optimiser.zero_grad()
        (-loss if ascent else loss).backward()
        torch.nn.utils.clip_grad_norm_(learned, spec.clip)
        for group in optimiser.param_groups:
            group["lr"] = spec.lr * _rate(step, spec.steps, spec.warmup)
        optimiser.step()
    for name, values in point.items():
        if not torch.isfinite(values).all():
            raise NonFinite(f"training on {task.name!r} left NaN or infinity in {name!r}. Lower the learning rate.")
    # Under the base's own names, both names of a tied tensor if it has both; what did not learn keeps the base's bytes.
    kept = base.arrays([n for n in base.names if first.get(n, n) not in point])
    learnt = {n: point[first.get(n, n)].detach().cpu().numpy() for n in base.names if n not in kept}
    checkpoint = Checkpoint.of({n: learnt[n] if n in learnt else kept[n] for n in base.names}, label=label or task.name)
    return Fitted(checkpoint, Head(head.weight.detach().cpu(), head.bias.detach().cpu()), tuple(losses))


def _zero_head(f: Bound, params: Mapping[str, torch.Tensor], task: Task, device: torch.device) -> Head:
    import torch

    with torch.no_grad():
        width = f(params, task.train.inputs[:1].to(device)).shape[-1]
    return Head(torch.zeros(len(task.classes), width), torch.zeros(len(task.classes)))


def _batches(n: int, batch: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Index batches, epoch after epoch, each epoch a new permutation; the incomplete last batch of an epoch is dropped."""
    import torch

    batch = min(batch, n)
    while True:
        order = torch.randperm(n, generator=generator)
        yield from order[: n - n % batch].split(batch)


def _rate(step: int, steps: int, warmup: float) -> float:
    """Linear from above 0 to 1 over the warm-up, then a half cosine to 0."""
    rise = warmup * steps
    if step < rise:
        return min(1.0, (step + 1) / rise)
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1.0, steps - rise)))
