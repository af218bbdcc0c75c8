"""The training loop, written out."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import NonFinite, StorageError, UsageError, some
from ..models.forward import Forward, plain
from ..models.functional import (
    Bound,
    aliases,
    bind,
    device_of,
    out_of_memory,
    require_torch,
    tensors,
    under_first_names,
)
from ..tasks.metrics import at_a_time, cross_entropy
from ..tasks.task import IGNORED, Head, Task
from ..weights import Checkpoint, TaskVector
from .coordinates import Coordinates, coordinates
from .parallel import team
from .penalties import Penalty
from .regime import STANDARD, Regime
from .state import Saved, load_state, save_state

if TYPE_CHECKING:
    import torch

    Augment = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


@dataclass(frozen=True)
class TrainSpec:
    """How long and how fast: AdamW, linear warm-up, cosine to zero.

    Args:
        steps: number of updates.
        lr: learning rate at the end of the warm-up.
        batch: samples at a time.
        accumulate: batches per update; their gradients are averaged, so memory is that of one batch.
        weight_decay: AdamW's decoupled decay.
        warmup: share of the steps over which the rate rises.
        clip: largest norm of the gradient over all trained parameters.
        seed: chooses batches and augmentations.
        check: updates between two looks at the validation split, the last update included; 0 for none. What was learnt at the
            look with the least loss is returned.
        patience: looks without a lesser loss after which training stops; 0 to go on to the last update.
        autocast: ``"bfloat16"`` to compute the network in that format (`torch.autocast`), which is faster on devices made for it;
            weights, gradients and the vector stay float32. For regimes through the ordinary model.
    Raises:
        UsageError: a value that cannot mean anything.
    Reference: Ilharco et al. 2022, arXiv:2212.04089, appendix B (AdamW, warm-up, cosine, clipping at 1).
    """

    steps: int = 200
    lr: float = 3e-4
    batch: int = 64
    accumulate: int = 1
    weight_decay: float = 0.01
    warmup: float = 0.1
    clip: float = 1.0
    seed: int = 0
    check: int = 0
    patience: int = 0
    autocast: str | None = None

    def __post_init__(self) -> None:
        wrong = [n for n in ("steps", "batch", "accumulate") if not getattr(self, n) >= 1 or getattr(self, n) % 1]
        wrong += [n for n in ("check", "patience") if not getattr(self, n) >= 0 or getattr(self, n) % 1]
        wrong += [n for n in ("lr", "clip") if not 0 < getattr(self, n) < math.inf]
        wrong += [n for n in ("weight_decay",) if not 0 <= getattr(self, n) < math.inf]
        wrong += ["warmup"] * (not 0 <= self.warmup <= 1)
        if wrong:
            shown = ", ".join(f"{n}={getattr(self, n)}" for n in wrong)
            raise UsageError(
                f"TrainSpec: {shown} out of range. steps, batch and accumulate must be at least 1, lr and clip above 0, "
                "weight_decay, check and patience at least 0, warmup between 0 and 1."
            )
        if self.autocast not in (None, "bfloat16"):
            raise UsageError(f"TrainSpec: autocast={self.autocast!r}; expected None or 'bfloat16'.")
        if self.patience and not self.check:
            raise UsageError(
                f"TrainSpec: patience={self.patience} counts looks at the validation split, and there are none. Set check, "
                "the number of updates between two looks."
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
        kept: vectors on the way, by the number of updates.
        step: the number of updates after which the vector is returned: all, or those until the best look at validation.
        looks: mean loss on the validation split, by the number of updates.
    """

    checkpoint: Checkpoint
    vector: TaskVector
    head: Head
    losses: tuple[float, ...]
    forward: Forward
    kept: Mapping[int, TaskVector]
    step: int = 0
    looks: Mapping[int, float] = field(default_factory=dict)


def fit(
    model: torch.nn.Module,
    base: Checkpoint,
    task: Task,
    *,
    regime: Regime = STANDARD,
    spec: TrainSpec | None = None,
    augment: Augment | None = None,
    ascent: bool = False,
    penalties: Sequence[Penalty] = (),
    label: str | None = None,
    progress: Callable[[int, float], None] | None = None,
    state: str | Path | None = None,
    every: int = 100,
    keep: Collection[int] = (),
) -> Fitted:
    r"""Fine-tune: minimise the cross-entropy of :math:`W f(\theta_0 + \delta, x) + b` over :math:`\delta` on `task.train`,
    where f is the ordinary model or, as the regime says, its linearisation at :math:`\theta_0`.

    Processes of an initialised torch.distributed train one vector together (see parallel.py). Reads the train split, and the
    validation split where `spec.check` asks for it. The same arguments give the same bits on the same machine and library
    versions; global random state is neither read nor changed. `model` is not modified.

    Args:
        model: inputs -> features; gives the structure and the device, its own weights do not matter.
        base: :math:`\theta_0`, where training starts.
        task: data and head.
        regime: what may change. A regime that trains the head makes one, from zero, if the task has none.
        spec: steps, rate, batch, seed.
        augment: ``(inputs, generator) -> inputs``, applied to each batch on the CPU.
        ascent: flip the sign of the loss: the gradient-ascent baseline of forgetting (arXiv:2212.04089, section 3).
        penalties: terms added to the loss at each update, for example ``[tau_jp(others, weight=0.1)]``.
        label: name of the resulting checkpoint, else the task's name.
        progress: called after each update with the number of updates so far and the loss before it.
        state: a .safetensors file in which the run is kept; if it is there, the run goes on from it, bit for bit as if it
            had never stopped. It stays when the run is over.
        every: updates between two states.
        keep: numbers of updates after which the vector is kept too (`Fitted.kept`).
    Raises:
        UsageError: the regime selects no parameter of this model, the task has no head and none is to be made, labels lie
            outside the classes, there are fewer samples than a batch, or `state` is of another run.
        KeyMismatch: `base` does not fit `model`.
        NonFinite: the loss became NaN or infinite; says at which step.
        StorageError: memory ran out; says with which batch, and which smaller one makes the same updates.
    """
    torch = require_torch("Fine-tuning")
    spec = spec or TrainSpec()
    state = None if state is None else Path(state)
    processes = team()
    check(base, task, regime, spec, processes.size, ascent)
    device = device_of(model)
    f = bind(model)
    first = aliases(model)  # tied weights learn once, under their first name
    start = under_first_names(tensors(base, like=model, device=device), first)
    learn_head = regime.head == "trained"
    given = task.needs_head() if task.head or not learn_head else _zero_head(f, start, task, device)
    head = replace(given, **{n: getattr(given, n).detach().clone().to(device) for n in ("weight", "bias")})
    for t in (head.weight, head.bias):
        t.requires_grad_(learn_head)
    point = coordinates(model, regime, start, spec.seed)
    decaying = dict(point.factors)
    if learn_head:
        decaying |= {"head.weight": head.weight, "head.bias": head.bias}
    learned = {**point.free, **decaying}
    groups = [
        {"params": list(point.free.values()), "weight_decay": 0.0},  # which `point.decay` does
        {"params": list(decaying.values()), "weight_decay": spec.weight_decay},
    ]
    optimiser = torch.optim.AdamW([g for g in groups if g["params"]], lr=spec.lr)
    generator = torch.Generator().manual_seed(spec.seed)
    inputs, labels = task.train.inputs, task.train.labels
    run = {
        "task": task.name, "samples": len(labels), "regime": regime.name, "ascent": ascent, **asdict(spec),
        "penalties": [[p.name, p.weight] for p in penalties], "keep": sorted(keep),
        "base": base.fingerprint() if state else "",
    }  # fmt: skip
    saved = Saved(0, (), torch.empty(0, dtype=torch.long), 0)
    if state is not None and state.exists():
        saved = load_state(state, run, learned, optimiser, generator)
    losses, kept, looks, best = list(saved.losses), dict(saved.kept), dict(saved.looks), saved.best
    batches = Batches(len(labels), spec.batch, generator, saved.order, saved.position)

    def backward(rows: torch.Tensor) -> float:
        """One batch's part of the loss; adds its gradient."""
        x = inputs[rows] if augment is None else augment(inputs[rows], generator)  # all rows, so that all draw alike
        delta = point.delta(formed=regime.forward.split is not None)
        with _fewer_bits(spec, device):
            features = regime.forward(f, start, delta, processes.mine(x).to(device))
        logits = head(features.to(torch.float32) if spec.autocast else features)
        wanted = processes.mine(labels[rows]).to(device)
        logits = head.within(logits, wanted)
        part = cross_entropy(logits, wanted) * (counted(wanted) / counted(labels[rows])) / spec.accumulate
        if part.requires_grad:
            (-part if ascent else part).backward()
        return float(part.detach())

    def snapshot() -> dict[str, torch.Tensor]:
        now = dict(point.delta(formed=True)) | (
            {"head.weight": head.weight, "head.bias": head.bias} if learn_head else {}
        )
        return {n: t.detach().cpu().clone() for n, t in now.items()}

    with _interruptible(lambda: saved.step, state), _within_memory(task, spec, device):
        for step in range(saved.step, spec.steps):
            if spec.patience and sum(s > min(looks, key=looks.__getitem__) for s in looks) >= spec.patience:
                break
            optimiser.zero_grad()
            loss = sum(backward(batches.draw()) for _ in range(spec.accumulate))
            for penalty in penalties:
                weight = penalty.weight / processes.size  # every process computes all of it
                term = torch.as_tensor(weight * penalty.term(f, start, point.delta(formed=True), generator))
                if term.requires_grad:
                    term.backward()
                loss += float(term.detach())
            if processes.size > 1:
                total = torch.tensor(loss, dtype=torch.float64, device=device)
                processes.add_up([total, *(t.grad for t in learned.values())])
                loss = float(total)
            losses.append(loss)
            update(step, loss, task, spec, point, learned, optimiser, torch.nn.utils.clip_grad_norm_)
            if step + 1 in keep:
                kept[step + 1] = {n: d.detach().cpu().clone() for n, d in point.delta(formed=True).items()}
            if spec.check and ((step + 1) % spec.check == 0 or step + 1 == spec.steps):
                loss_there = _validation_loss(f, start, point.delta(formed=True), head, task, regime.forward, device)
                if loss_there < min(looks.values(), default=math.inf):
                    best = snapshot()
                looks[step + 1] = loss_there
            if state is not None and (step + 1) % every == 0:
                saved = Saved(step + 1, tuple(losses), batches.order, batches.position, dict(kept), dict(looks), best)
            if saved.step == step + 1 and state is not None and processes.rank == 0:
                save_state(state, run, saved, learned, optimiser, generator)
            if progress:
                progress(step + 1, loss)
    learnt = dict(best or snapshot())
    trained = replace(given, **({n: learnt.pop(f"head.{n}") for n in ("weight", "bias")} if learn_head else {}))
    made = fitted(base, task, start, first, learnt, trained, tuple(losses), regime.forward, label or task.name)
    names = {n: first.get(n, n) for n in made.vector.names}
    on_the_way = {
        s: TaskVector.of(
            {n: d[m].numpy() for n, m in names.items()},
            base,
            label=f"{made.vector.label} {s}",
            forward=made.forward.name,
        )
        for s, d in sorted(kept.items())
    }
    at = min(looks, key=looks.__getitem__) if best else len(losses)
    return replace(made, kept=on_the_way, step=at, looks=looks)


def validation_loss(
    model: torch.nn.Module, base: Checkpoint, vector: TaskVector | None, task: Task, *, forward: Forward = plain
) -> float:  # fmt: skip
    """Mean cross-entropy on the validation split, of sequences per position, at the base or at base + vector.

    Its exponential is the perplexity of a language model on the windows of its task.
    """
    device = device_of(model)
    start = tensors(base, like=model, device=device)
    delta = {} if vector is None else tensors(vector, device=device)
    return _validation_loss(bind(model), start, delta, task.needs_head().to(device), task, forward, device)


def counted(labels: torch.Tensor) -> int:
    """How many labels count."""
    return len(labels) if labels.dim() == 1 else int((labels != IGNORED).sum())


def _validation_loss(
    f: Bound, start: Mapping[str, torch.Tensor], delta: Mapping[str, torch.Tensor], head: Head, task: Task,
    forward: Forward, device: torch.device,
) -> float:  # fmt: skip
    """Mean cross-entropy on the validation split; infinite where it is no number, so that it is never the best."""
    import torch

    total, split = 0.0, task.validation
    with torch.no_grad():
        batch = at_a_time(split, head, 256)
        for i in range(0, len(split), batch):
            logits = head(forward(f, start, delta, split.inputs[i : i + batch].to(device)))
            labels = split.labels[i : i + batch].to(device)
            total += float(cross_entropy(head.within(logits, labels), labels, reduction="sum"))
    return total / split.counted if math.isfinite(total) else math.inf


def update(
    step: int, loss: float, task: Task, spec: TrainSpec, point: Coordinates, learned: Mapping[str, torch.Tensor],
    optimiser: torch.optim.Optimizer, clip: Callable[[Collection[torch.Tensor], float], object],
) -> None:  # fmt: skip
    """One update from the gradients that are there: clip them, decay theta, step at the rate of the schedule.

    Raises:
        NonFinite: the loss is; says at which step.
        UsageError: the first loss does not depend on what learns.
    """
    if not math.isfinite(loss):
        raise NonFinite(
            f"training on {task.name!r} failed at step {step + 1} of {spec.steps}: the loss is {loss}. "
            f"Lower the learning rate (now {spec.lr:g}), or check the inputs for NaN."
        )
    if step == 0 and all(t.grad is None for t in learned.values()):
        raise UsageError(
            f"nothing can be learnt: the loss does not depend on any of {some(learned)}. Does the model detach its outputs, or "
            "run under no_grad?"
        )
    clip(learned.values(), spec.clip)
    rate = spec.lr * rate_at(step, spec.steps, spec.warmup)
    for group in optimiser.param_groups:
        group["lr"] = rate
    point.decay(rate * spec.weight_decay)
    optimiser.step()


@dataclass
class Batches:
    """Index batches, epoch after epoch, each epoch a new permutation; the incomplete last batch of an epoch is dropped."""

    n: int
    size: int
    generator: torch.Generator
    order: torch.Tensor
    position: int

    def draw(self) -> torch.Tensor:
        import torch

        if self.position + self.size > len(self.order):
            self.order, self.position = torch.randperm(self.n, generator=self.generator), 0
        self.position += self.size
        return self.order[self.position - self.size : self.position]


@contextlib.contextmanager
def _interruptible(safe: Callable[[], int], state: Path | None) -> Iterator[None]:
    """Whatever ends the run says what of it is kept."""
    try:
        yield
    except BaseException as error:
        if state is not None and safe():
            error.add_note(f"The state after step {safe()} is kept in {state}: the same call goes on from there.")
        raise


@contextlib.contextmanager
def _within_memory(task: Task, spec: TrainSpec, device: torch.device) -> Iterator[None]:
    """What torch raises where memory runs out, wherever in the step it is, as an error that says what to change."""
    try:
        yield
    except Exception as error:
        if not out_of_memory(error):
            raise
        if spec.batch > 1:
            remedy = (
                f"Set batch={spec.batch // 2} and accumulate={2 * spec.accumulate}: updates from as many samples, half of them at "
                "a time."
            )
        else:
            remedy = "That is the least batch; take a smaller model, a regime that trains fewer parameters, or a larger device."
        raise StorageError(
            f"out of memory on {device} while training on {task.name!r} with a batch of {spec.batch}. {remedy}"
        ) from error


def _fewer_bits(spec: TrainSpec, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """The context in which the network is computed."""
    import torch

    return torch.autocast(device.type, dtype=torch.bfloat16) if spec.autocast else contextlib.nullcontext()


def check(base: Checkpoint, task: Task, regime: Regime, spec: TrainSpec, processes: int, ascent: bool = False) -> None:
    """Refuse, before any work, what cannot be trained."""
    if not isinstance(regime, Regime) or not isinstance(base, Checkpoint):
        raise UsageError(
            f"fit takes a Checkpoint as base and a Regime, got {type(base).__name__} and {type(regime).__name__}. "
            "Write Checkpoint.of(module) and, for example, taskvec.training.TANGENT."
        )
    if spec.batch < processes:
        raise UsageError(
            f"a batch of {spec.batch} cannot be shared by {processes} processes. Set TrainSpec(batch=...) to more."
        )
    task.check_labels(task.train)
    if spec.check:
        task.check_labels(task.validation)
    if spec.autocast and regime.forward.split is not None:
        raise UsageError(
            f"autocast does not go with regime {regime.name!r}: its derivatives are computed in float32. Leave it out."
        )
    if spec.check and ascent:
        raise UsageError("gradient ascent raises the loss, so there is no best look at it. Leave out check.")
    if len(task.train) < spec.batch:
        n = len(task.train)
        raise UsageError(
            f"task {task.name!r} has {n} training samples, fewer than a batch of {spec.batch}. "
            f"Set TrainSpec(batch={n}) or less."
        )


def fitted(
    base: Checkpoint, task: Task, start: Mapping[str, torch.Tensor], first: Mapping[str, str],
    learnt: Mapping[str, torch.Tensor], head: Head, losses: tuple[float, ...], forward: Forward, label: str,
) -> Fitted:  # fmt: skip
    """The vector and the weights under the base's own names, both names of a tied tensor if it has both; what did not learn
    keeps the base's bytes."""
    for name, values in learnt.items():
        if not values.isfinite().all():
            raise NonFinite(f"training on {task.name!r} left NaN or infinity in {name!r}. Lower the learning rate.")
    own = {n: first.get(n, n) for n in base.names if first.get(n, n) in learnt}
    deltas = {n: learnt[m].cpu().numpy() for n, m in own.items()}
    vector = TaskVector.of(deltas, base, label=label, forward=forward.name)
    kept = base.arrays([n for n in base.names if n not in own])
    tuned = kept | {n: (start[m].cpu() + learnt[m]).numpy() for n, m in own.items()}
    checkpoint = Checkpoint.of({n: tuned[n] for n in base.names}, label=label)
    return Fitted(checkpoint, vector, head, losses, forward, {})


def _zero_head(f: Bound, params: Mapping[str, torch.Tensor], task: Task, device: torch.device) -> Head:
    import torch

    with torch.no_grad():
        width = f(params, task.train.inputs[:1].to(device)).shape[-1]
    return Head(torch.zeros(len(task.classes), width), torch.zeros(len(task.classes)))


def rate_at(step: int, steps: int, warmup: float) -> float:
    """Linear from above 0 to 1 over the warm-up, then a half cosine to 0."""
    rise = warmup * steps
    if step < rise:
        return min(1.0, (step + 1) / rise)
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1.0, steps - rise)))
