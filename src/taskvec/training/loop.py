"""The training loop, written out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import NonFinite, UsageError
from ..models.forward import Forward
from ..models.functional import Bound, aliases, bind, device_of, require_torch, tensors, under_first_names
from ..tasks.task import Head, Task
from ..weights import Checkpoint, TaskVector
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
    """What training made.

    Args:
        checkpoint: the weights, float32 where they learned.
        vector: what was learned, as it was learned: zero outside the trained names, no rounding through the weights.
        head: the given one, unless the regime trains it.
        losses: at each step, before the update.
        forward: the function through which it was trained, and is to be evaluated.
    """

    checkpoint: Checkpoint
    vector: TaskVector
    head: Head
    losses: tuple[float, ...]
    forward: Forward


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
    progress: Callable[[int, float], None] | None = None,
) -> Fitted:
    r"""Fine-tune: minimise the cross-entropy of :math:`W f(\theta_0 + \delta, x) + b` over :math:`\delta` on `task.train`,
    where f is the ordinary model or, as the regime says, its linearisation at :math:`\theta_0`.

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
        progress: called after each update with the number of updates so far and the loss before it.
    Raises:
        UsageError: the regime selects no parameter of this model, or the task has no head and none is to be made.
        KeyMismatch: `base` does not fit `model`.
        NonFinite: the loss became NaN or infinite; says at which step.
    """
    torch = require_torch("Fine-tuning")
    from ..models.lowrank import LowRank

    spec = spec or TrainSpec()
    device = device_of(model)
    f = bind(model)
    first = aliases(model)  # tied weights learn once, under their first name
    start = under_first_names(tensors(base, like=model, device=device), first)
    chosen = regime.names(model)
    learn_head = regime.head == "trained"
    given = task.needs_head() if task.head or not learn_head else _zero_head(f, start, task, device)
    head = Head(*(t.detach().clone().to(device).requires_grad_(learn_head) for t in (given.weight, given.bias)))
    # What learns is the displacement itself, so that it is exact however large the weights are, and is the task vector.
    moved = _coordinates(model, regime, {n: start[n] for n in chosen}, spec.seed)
    free = [m for m in moved.values() if isinstance(m, torch.Tensor)]
    fixed = [start[n] for n, m in moved.items() if isinstance(m, torch.Tensor)]
    factors = [x for m in moved.values() if isinstance(m, LowRank) for x in (m.left, m.right) if x.requires_grad]
    decaying = [*factors, *((head.weight, head.bias) if learn_head else ())]
    learned = [*free, *decaying]
    groups = [{"params": free, "weight_decay": 0.0}, {"params": decaying, "weight_decay": spec.weight_decay}]
    optimiser = torch.optim.AdamW([g for g in groups if g["params"]], lr=spec.lr)
    generator = torch.Generator().manual_seed(spec.seed)
    inputs, labels = task.train.inputs, task.train.labels
    losses: list[float] = []
    for step, rows in zip(range(spec.steps), _batches(len(labels), spec.batch, generator), strict=False):
        x = inputs[rows] if augment is None else augment(inputs[rows], generator)
        delta = {n: m.full() if regime.forward.split and isinstance(m, LowRank) else m for n, m in moved.items()}
        logits = head(regime.forward(f, start, delta, x.to(device)))
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
        rate = spec.lr * _rate(step, spec.steps, spec.warmup)
        for group in optimiser.param_groups:
            group["lr"] = rate
        if free and spec.weight_decay:
            # Weight decay acts on theta, as in the papers: theta (1 - r) is theta_0 + tau (1 - r) - r theta_0.
            with torch.no_grad():
                torch._foreach_mul_(free, 1 - rate * spec.weight_decay)
                torch._foreach_add_(free, fixed, alpha=-rate * spec.weight_decay)
        optimiser.step()
        if progress:
            progress(step + 1, losses[-1])
    learnt = {n: (m if isinstance(m, torch.Tensor) else m.full()).detach() for n, m in moved.items()}
    for name, values in learnt.items():
        if not torch.isfinite(values).all():
            raise NonFinite(f"training on {task.name!r} left NaN or infinity in {name!r}. Lower the learning rate.")
    # Under the base's own names, both names of a tied tensor if it has both; what did not learn keeps the base's bytes.
    label = label or task.name
    names = [n for n in base.names if first.get(n, n) in learnt]
    vector = TaskVector.of(
        {n: learnt[first.get(n, n)].cpu().numpy() for n in names}, base, label=label, forward=regime.forward.name
    )
    kept = base.arrays([n for n in base.names if n not in names])
    tuned = {n: (start[first.get(n, n)] + learnt[first.get(n, n)]).cpu().numpy() for n in names}
    checkpoint = Checkpoint.of({n: tuned[n] if n in tuned else kept[n] for n in base.names}, label=label)
    return Fitted(
        checkpoint, vector, Head(head.weight.detach().cpu(), head.bias.detach().cpu()), tuple(losses), regime.forward
    )


def _coordinates(
    model: torch.nn.Module, regime: Regime, start: Mapping[str, torch.Tensor], seed: int
) -> dict[str, Any]:
    """What learns, at zero displacement: a tensor for each name, or the factors of one."""
    import torch

    from ..models.lowrank import zero_product

    if regime.low_rank is None:
        return {n: torch.zeros_like(t).requires_grad_() for n, t in start.items()}
    generator = torch.Generator().manual_seed(seed)
    moved: dict[str, Any] = {}
    for name, weight in start.items():
        owner = model.get_submodule(name.rpartition(".")[0])
        by_columns = type(owner).__name__ != "Conv1D"  # GPT-2's layer, whose inputs meet the rows
        rank = regime.low_rank
        made = zero_product(weight, rank=rank.rank, alpha=rank.alpha, by_columns=by_columns, generator=generator)
        for factor in (made.left, made.right):
            factor.requires_grad_(rank.both or not factor.any())
        moved[name] = made
    return moved


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
