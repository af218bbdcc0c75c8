"""Few shots: of what use is a start when only few labels of the target are there?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..models.forward import plain
from ..results import Curve, FewShotResult, Provenance, Score, Start
from ..search import grid
from ..tasks.task import Split, Task
from ..training import STANDARD, Regime, TrainSpec, fit
from ..weights import Checkpoint, TaskVector
from .rows import best, checked_grid, chosen_forward, test_scores, validation_curves

if TYPE_CHECKING:
    import torch


def few_shot(
    model: torch.nn.Module,
    base: Checkpoint,
    starts: Mapping[str, TaskVector],
    *,
    task: Task,
    shots: Sequence[int] = (0, 1, 4, 16),
    regime: Regime = STANDARD,
    spec: TrainSpec | None = None,
    coefficients: Sequence[float] = grid(0, 1, 21),
    seed: int = 0,
    notes: Sequence[str] = (),
    title: str = "Few shots",
) -> FewShotResult:
    r"""Fine-tune on few labelled samples of `task`, from :math:`\theta_0` and from every :math:`\theta_0 + \alpha\tau`.

    One :math:`\alpha` for each start maximises the validation accuracy before any fine-tuning; validation is used for nothing
    else. All starts are trained alike: the same samples, rate, number of steps and order of batches. The samples of fewer
    shots are among those of more. Of every model the test split is read once.

    Args:
        model: inputs -> features.
        base: :math:`\theta_0`; the first start, named "base".
        starts: further starts, name -> :math:`\tau`, for example "source" and "analogy".
        task: the target, with its head. Labels that went into a frozen head are not counted; say so in `notes`.
        shots: labelled samples of each class that has any, rising; 0 is the start as it is.
        regime: what learns; through the ordinary model, and with the head frozen.
        spec: how; a batch has all labels where there are fewer than `spec.batch`. 60 steps unless given.
        coefficients: the grid of :math:`\alpha`; 0 is always tried.
        seed: chooses the labelled samples.
        notes: what a reader must know of head and data.
        title: heading in reports.
    Raises:
        UsageError: a start named "base", shots that do not rise, a class with fewer samples than shots, or vectors or a regime
            through another function than the ordinary model.
        BaseMismatch: a vector was taken from another base.
    Reference: Ilharco et al. 2022, arXiv:2212.04089, where an analogy as a start is worth about 100 labelled samples.
    """
    coefficients, spec = checked_grid(coefficients), spec or TrainSpec(steps=60, batch=32)
    forward = chosen_forward(None, starts.values()) if starts else plain
    if forward is not plain or regime.forward is not plain:
        raise UsageError(
            f"few_shot trains on from a displaced base, through the ordinary model: the vectors are {forward.name}, the regime "
            f"{regime.name!r} is {regime.forward.name}. Use a regime through the plain model, such as STANDARD."
        )
    if regime.head == "trained" or "base" in starts:
        wrong = "the base is a start by itself" if "base" in starts else f"regime {regime.name!r} trains the head"
        raise UsageError(f"few_shot: {wrong}. Leave out the start 'base', and keep the head frozen.")
    if not shots or min(shots) < 0 or sorted(set(shots)) != list(shots):
        raise UsageError(f"few_shot: shots must rise from 0 or more, got {list(shots)}.")
    rows = {k: shot_rows(task, k, seed=seed) for k in shots}
    found = [Start(name="base", scores=_scores(model, base, None, 0.0, task, rows, regime, spec))]
    for name, vector in starts.items():
        scores = validation_curves(model, base, vector, [task], coefficients, plain)
        chosen = best([s.value for s in scores[task.name]], coefficients)
        objective = f"largest accuracy on {task.name}, before fine-tuning"
        curve = Curve(coefficients=coefficients, scores=scores, chosen=chosen, objective=objective)
        after = _scores(model, base, vector, curve.coefficient, task, rows, regime, spec)
        found.append(Start(name=name, scores=after, coefficient=curve.coefficient, curve=curve))
    return FewShotResult(
        title=title,
        task=task.name,
        shots=tuple(shots),
        labels=tuple(len(r) for r in rows.values()),
        starts=tuple(found),
        notes=tuple(notes),
        provenance=Provenance.now(
            seed=seed,
            inputs={"base": base.fingerprint()},
            settings={
                "regime": regime.name,
                "grid": [coefficients[0], coefficients[-1], len(coefficients)],
                "fine-tuning": {n: v for n, v in asdict(spec).items() if n not in ("check", "patience")},
            },
        ),
    )


def shot_rows(task: Task, shots: int, *, seed: int) -> torch.Tensor:
    """Rows of the training split: `shots` of each class that has samples, the first ones in an order that `seed` draws.

    Raises:
        UsageError: a class has fewer.
    """
    import torch

    labels = task.train.labels
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    by_class = {int(c): order[labels[order] == c] for c in labels.unique()}
    short = {task.classes[c]: len(r) for c, r in by_class.items() if len(r) < shots}
    if short:
        few = ", ".join(f"{name} has {n}" for name, n in list(short.items())[:4])
        raise UsageError(f"{task.name}: {shots} shots of each class are more than there are: {few}. Ask for fewer.")
    return torch.cat([r[:shots] for r in by_class.values()])


def _scores(
    model: torch.nn.Module, base: Checkpoint, vector: TaskVector | None, coefficient: float, task: Task,
    rows: Mapping[int, torch.Tensor], regime: Regime, spec: TrainSpec,
) -> tuple[Score, ...]:  # fmt: skip
    """Test accuracy from one start after each number of shots."""
    start = base if vector is None or coefficient == 0 else base + coefficient * vector
    start = Checkpoint.of(start.arrays(), label=start.label)  # computed once, for all numbers of shots
    still = start - start
    out = []
    for chosen in rows.values():
        learnt = still
        if len(chosen):
            train = Split(task.train.inputs[chosen], task.train.labels[chosen])
            own = replace(spec, batch=min(spec.batch, len(chosen)))
            learnt = fit(model, start, replace(task, train=train), regime=regime, spec=own).vector
        out.append(test_scores(model, start, learnt, 1.0, [task], plain)[task.name])
    return tuple(out)
