"""Learning in two stages: all sources together, then any number of further properties, each by itself against frozen sources."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ..errors import InputError, NonFinite, UsageError, plain
from . import losses as terms
from .inputs import Inputs
from .losses import TERMS, Losses
from .model import Gate, Property, Shape, embed, embedding_of, seeded
from .molecules import labelled

COLLAPSED = 1e-4  # variance in the frame, mean over axes, below which all molecules are at one point


@dataclass(frozen=True)
class GateSpec:
    """How long and how fast a network learns.

    Args:
        steps: updates at most.
        lr: of Adam, falling to zero by half a cosine.
        batch: molecules for each update.
        weight_decay: decoupled, on all weights that learn.
        check: updates between two looks at the validation molecules; what was learnt at the best look is kept.
        patience: looks without improvement after which learning ends.
        seed: of initial weights, batches and perturbations.
    """

    steps: int = 2000
    lr: float = 1e-3
    batch: int = 64
    weight_decay: float = 1e-4
    check: int = 25
    patience: int = 12
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.check, self.patience) < 1 or not self.lr > 0 or self.weight_decay < 0:
            raise UsageError(f"steps, batch, check, patience and lr are above 0, weight_decay at least 0; got {self}.")


@dataclass(frozen=True, eq=False)
class Learned:
    """A network after a stage.

    `step` is the best look's, `looks` the validation RMSE in standard deviations (mean over properties) by step, `terms` the mean of each
    loss over the last tenth of the updates, `spread` by property the variance of its points in the frame, mean over axes: near zero
    means that the frame has collapsed. `seconds` is the process's CPU time.
    """

    model: Gate
    step: int
    looks: Mapping[int, float]
    terms: Mapping[str, float]
    spread: Mapping[str, float]
    seconds: float
    notes: tuple[str, ...] = field(default=())


def pretrain(
    inputs: Inputs,
    targets: Mapping[str, np.ndarray],
    train: np.ndarray,
    validation: np.ndarray,
    *,
    shape: Shape | None = None,
    losses: Losses | None = None,
    spec: GateSpec | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> Learned:
    r"""Stage 1: learn the shared embedding and the modules of all sources together.

    Minimises :math:`l_{tot}` (see `Losses`): the supervised and auto-encoding terms as means over properties, the other three as means
    over pairs, of any molecules in the batch (mapping: of those with a label). That the alignment terms are also used here, and
    weigh as in stage 2, is inferred: the abstract says supervised multi-task pre-training. Means of squares over all pairs are
    variances (`losses.among`), and the mapping term goes through `Losses.routes` others drawn for each update: an update is linear
    in the number of sources.

    Args:
        inputs: what the embedding reads.
        targets: by name, float64 ``[len(inputs)]`` in own units; NaN is missing.
        train: rows to learn from; labels are standardised by their mean and deviation.
        validation: rows that choose when to stop.
        shape, losses, spec: sizes, factors, and how to learn.
        progress: called with the step, their number and the loss.
    Raises:
        UsageError: no targets.
        InputError: a target that has too few labels or does not vary in `train`, or none in `validation`.
        NonFinite: the loss is no longer a number.
    Reference: arXiv:2409.16645 (stage 1); formulas reconstructed, see `taskvec.gate.losses`.
    """
    shape, losses, spec = shape or Shape(), losses or Losses(), spec or GateSpec()
    if not targets:
        raise UsageError("pre-training needs at least one target.")
    scales = {n: scale(n, v, train, validation) for n, v in targets.items()}

    def build() -> Gate:
        modules = {n: Property(shape, *s) for n, s in scales.items()}
        return Gate(shape, embedding_of(shape), modules, tuple(targets))

    model = seeded(spec.seed, build)
    properties = list(model.properties.values())
    labels = {n: p.standardised(targets[n]) for n, p in model.properties.items()}
    some = np.any(np.isfinite(np.stack(list(targets.values()))), axis=0)
    noise = torch.Generator().manual_seed(spec.seed + 1)

    own = torch.stack(list(labels.values()))
    order = torch.Generator().manual_seed(spec.seed + 3)
    k = len(properties)

    def loss(rows: torch.Tensor) -> dict[str, torch.Tensor]:
        shared = model.embedding(inputs.take(rows))
        latents = [p.encoder(shared) for p in properties]
        said = torch.stack([p.head(z)[:, 0] for p, z in zip(properties, latents, strict=True)])
        found = {"regression": terms.regression(said, own[:, rows])}
        if not _aligned(losses):
            return found
        frames = torch.stack([p.transfer(z) for p, z in zip(properties, latents, strict=True)])
        if losses.autoencoding:
            restored = torch.stack([p.inverse(f) for p, f in zip(properties, frames, strict=True)])
            found["autoencoding"] = terms.autoencoding(torch.stack(latents), restored)
        if losses.consistency and k > 1:
            found["consistency"] = terms.among(frames)
        if losses.mapping and k > 1:
            # A turn of all properties by each of a few distances: every route is as likely as any other.
            turns = torch.randperm(k - 1, generator=order)[: losses.routes] + 1
            routed = []
            for i, p in enumerate(properties):
                through = frames[(i + turns) % k].flatten(0, 1)
                routed.append(p.head(p.inverse(through))[:, 0])
            found["mapping"] = terms.mapping(torch.stack(routed), own[:, rows].repeat(1, len(turns)))
        if losses.displacement and k > 1:
            near = perturbed(shared, losses, noise)
            moved = torch.stack([p.transfer(p.encoder(near)) for p in properties])
            found["displacement"] = terms.among(terms.distance(frames[:, None], moved))
        return found

    held = inputs.take(validation)

    def look() -> float:
        shared = embed(model.embedding, held)
        with torch.inference_mode():
            return float(
                np.mean(
                    [rmse(p.head(p.encoder(shared))[:, 0], labels[n][validation]) for n, p in model.properties.items()]
                )
            )

    ran = learn(list(model.parameters()), loss, look, train[some[train]], losses=losses, spec=spec, progress=progress)
    return _learned(model, ran, embed(model.embedding, inputs.take(train)), list(model.names))


def add(
    model: Gate,
    name: str,
    inputs: Inputs,
    labels: np.ndarray,
    train: np.ndarray,
    validation: np.ndarray,
    *,
    against: Sequence[str] | None = None,
    pool: np.ndarray | None = None,
    losses: Losses | None = None,
    spec: GateSpec | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> Learned:
    r"""Stage 2, task addition: learn the modules of one more property; all else is frozen.

    The new modules minimise :math:`l_{tot}` (see `Losses`) against each source, the pair terms as means over the sources. Source
    modules and the embedding give no gradient, so outputs of what was there are the same bits as before, and properties that are
    added against the sources do not depend on one another or on their order. An update costs one pass of perturbed molecules
    through the encoder and transfer of each source (linear; inferred of the paper).

    Args:
        model: a network with sources; it is not changed.
        name: of the new property.
        inputs: what the embedding reads.
        labels: float64 ``[len(inputs)]`` in own units; NaN is missing.
        train: rows with labels to learn from; their mean and deviation standardise.
        validation: rows that choose when to stop.
        against: properties to align with, else the network's sources.
        pool: rows for the terms that need no labels (auto-encoding, consistency, displacement), beside `train`: never test rows.
            That unlabelled molecules may serve is inferred from the formulas.
        losses, spec: factors, and how to learn.
        progress: called with the step, their number and the loss.
    Returns:
        A network that shares all modules with `model` and has one property more.
    Raises:
        UsageError: the name is taken, or `against` names nothing.
        UnknownName: `against` names a property that is not there.
        InputError: too few labels, or all equal.
        NonFinite: the loss is no longer a number.
    Reference: arXiv:2409.16645 (stage 2); formulas reconstructed, see `taskvec.gate.losses`.
    """
    losses, spec = losses or Losses(), spec or GateSpec()
    if name in model.names:
        raise UsageError(f"the network has a property {plain(name)!r} already. Give the new one another name.")
    sources = [model.of(n) for n in (model.sources if against is None else against)]
    if not sources:
        raise UsageError("task addition aligns with at least one property; `against` names none.")
    mean_, std = scale(name, labels, train, validation)
    new = seeded(spec.seed, lambda: Property(model.shape, mean_, std))
    scaled = new.standardised(labels)
    noise = torch.Generator().manual_seed(spec.seed + 1)
    fit_rows = labelled(labels, train)
    others = np.unique(np.concatenate([fit_rows, pool])) if pool is not None else fit_rows
    drawn = Shuffled(others, spec.batch, torch.Generator().manual_seed(spec.seed + 2)) if pool is not None else None
    shared = torch.zeros(len(inputs), model.shape.width)  # the embedding is frozen: each molecule passes it once
    needed = np.unique(np.concatenate([others, validation]))
    shared[torch.from_numpy(needed)] = embed(model.embedding, inputs.take(needed))

    def frozen(points: torch.Tensor) -> list[torch.Tensor]:
        with torch.no_grad():
            return [s.transfer(s.encoder(points)) for s in sources]

    fixed = torch.stack(frozen(shared))  # where the sources put every molecule: this never changes

    def loss(rows: torch.Tensor) -> dict[str, torch.Tensor]:
        x, y = shared[rows], scaled[rows]
        found = {"regression": terms.regression(new.head(new.encoder(x))[:, 0], y)}
        if not _aligned(losses):
            return found
        if losses.mapping:
            found["mapping"] = terms.mapping(new.head(new.inverse(fixed[:, rows]))[..., 0], y.expand(len(fixed), -1))
        if drawn is not None:
            rows = torch.cat([rows, drawn.next()])
            x = shared[rows]
        latent = new.encoder(x)
        frame = new.transfer(latent)
        if losses.autoencoding:
            found["autoencoding"] = terms.autoencoding(latent, new.inverse(frame))
        if losses.consistency:
            found["consistency"] = terms.consistency(fixed[:, rows], frame.expand(len(fixed), -1, -1))
        if losses.displacement:
            near = perturbed(x, losses, noise)
            moved = new.transfer(new.encoder(near))
            theirs = terms.distance(fixed[:, None, rows], torch.stack(frozen(near)))
            found["displacement"] = (theirs - terms.distance(frame, moved)).square().mean()
        return found

    def look() -> float:
        with torch.inference_mode():
            return rmse(new.head(new.encoder(shared[validation]))[:, 0], scaled[validation])

    ran = learn(list(new.parameters()), loss, look, fit_rows, losses=losses, spec=spec, progress=progress)
    return _learned(model.with_property(name, new), ran, shared[torch.from_numpy(fit_rows)], [name])


# ---- what both stages and the baselines share -----------------------------------------------------------------------


@dataclass(frozen=True)
class Ran:
    step: int
    looks: dict[int, float]
    terms: dict[str, float]
    seconds: float


class Shuffled:
    """Batches of rows, epoch after epoch in a new order; a batch never holds a row twice."""

    def __init__(self, rows: np.ndarray, batch: int, generator: torch.Generator) -> None:
        self.rows, self.batch, self.generator = torch.from_numpy(rows), min(batch, len(rows)), generator
        self.order, self.at = torch.empty(0, dtype=torch.long), 0

    def next(self) -> torch.Tensor:
        if self.at + self.batch > len(self.order):
            self.order, self.at = torch.randperm(len(self.rows), generator=self.generator), 0
        self.at += self.batch
        return self.rows[self.order[self.at - self.batch : self.at]]


def learn(
    parameters: Sequence[torch.nn.Parameter],
    loss: Callable[[torch.Tensor], dict[str, torch.Tensor]],
    look: Callable[[], float],
    rows: np.ndarray,
    *,
    losses: Losses,
    spec: GateSpec,
    progress: Callable[[int, int, float], None] | None = None,
) -> Ran:
    """Adam on the sum of the terms, each times its factor; the parameters end at the best look."""
    began = time.process_time()
    optimiser = torch.optim.AdamW(parameters, lr=spec.lr, weight_decay=spec.weight_decay, fused=True)
    batches = Shuffled(rows, spec.batch, torch.Generator().manual_seed(spec.seed))
    looks: dict[int, float] = {}
    best, kept, chosen = math.inf, [p.detach().clone() for p in parameters], 0
    said: dict[str, list[float]] = {}
    for step in range(1, spec.steps + 1):
        for group in optimiser.param_groups:
            group["lr"] = spec.lr * (0.5 + 0.5 * math.cos(math.pi * (step - 1) / spec.steps))
        found = loss(batches.next())
        total = torch.stack([getattr(losses, n) * value for n, value in found.items()]).sum()
        if not torch.isfinite(total):
            raise NonFinite(
                f"the loss is not a number after {step} updates ({', '.join(f'{n} {v.item():g}' for n, v in found.items())}). "
                "Take a smaller rate."
            )
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 5.0)
        optimiser.step()
        for n, value in found.items():
            said.setdefault(n, []).append(value.item())
        if progress is not None:
            progress(step, spec.steps, total.item())
        if step % spec.check == 0 or step == spec.steps:
            looks[step] = look()
            if looks[step] < best:
                best, chosen = looks[step], step
                kept = [p.detach().clone() for p in parameters]
            elif sum(s > chosen for s in looks) >= spec.patience:
                break
    with torch.no_grad():
        for p, value in zip(parameters, kept, strict=True):
            p.copy_(value)
            p.grad = None  # what is frozen later shows that it got none
    last = {n: float(np.mean(v[-max(1, len(v) // 10) :])) for n, v in said.items()}
    return Ran(chosen, looks, last, time.process_time() - began)


def scale(name: str, labels: np.ndarray, train: np.ndarray, validation: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of the training labels.

    Raises:
        InputError: fewer than two training labels, all of them equal, or none to validate.
    """
    own = labels[labelled(labels, train)]
    if len(own) < 2 or not len(labelled(labels, validation)):
        raise InputError(
            f"{plain(name)!r} has {len(own)} labels to train and {len(labelled(labels, validation))} to validate; at least 2 and 1 are needed."
        )
    std = float(np.std(own))
    if not std > 1e-12 * max(1.0, float(np.abs(own).max())):
        raise InputError(f"{plain(name)!r} is {own[0]:g} for all {len(own)} training molecules: nothing to learn.")
    return float(np.mean(own)), std


def perturbed(shared: torch.Tensor, losses: Losses, generator: torch.Generator) -> torch.Tensor:
    """M copies of the shared embedding with Gaussian noise of `radius` standard deviations: ``[m, n, width]``."""
    size = losses.radius * shared.detach().std(0, correction=0)
    drawn = torch.randn((losses.perturbations, *shared.shape), generator=generator)
    return shared + drawn * size


def rmse(predicted: torch.Tensor, labels: torch.Tensor) -> float:
    """Root mean square error where there are labels; 0 without any."""
    return math.sqrt(terms.regression(predicted, labels).item())


def _aligned(losses: Losses) -> bool:
    return any(getattr(losses, n) for n in TERMS[1:])


def _learned(model: Gate, ran: Ran, shared: torch.Tensor, names: Sequence[str]) -> Learned:
    with torch.inference_mode():
        points = {n: model.of(n) for n in names}
        spread = {n: float(p.transfer(p.encoder(shared)).var(0, correction=0).mean()) for n, p in points.items()}
    notes = tuple(
        f"{plain(n)}: all molecules are nearly at one point of the frame (variance {v:.1e}); raise the auto-encoding or mapping factor"
        for n, v in spread.items()
        if v < COLLAPSED
    )
    return Learned(model, ran.step, ran.looks, ran.terms, spread, ran.seconds, notes)
