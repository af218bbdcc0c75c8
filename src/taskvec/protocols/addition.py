"""Addition: does one model, edited by a sum of task vectors, do all the tasks?"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from ..errors import UsageError
from ..methods import random_like, task_sum
from ..models.forward import Forward
from ..models.functional import bind, device_of, tensors
from ..results import AdditionResult, Provenance, Row, Score
from ..search import anywhere, grid
from ..tasks.task import Task
from ..weights import Checkpoint, TaskVector
from .rows import best, checked_grid, checked_tasks, chosen_forward, fixed_row, tuned_row, validation_curves

if TYPE_CHECKING:
    import torch

OBJECTIVE = "largest mean normalised accuracy"
OWN_ROWS = {
    "base", "fine-tuned", "joint training", "ensemble of logits", "random vector", "task arithmetic", "one coefficient each",
}  # fmt: skip


def addition(
    model: torch.nn.Module,
    base: Checkpoint,
    vectors: Mapping[str, TaskVector],
    tasks: Sequence[Task],
    *,
    methods: Mapping[str, TaskVector] | None = None,
    joint: TaskVector | None = None,
    ensemble: bool = False,
    per_task: bool = False,
    subsets: Literal["none", "pairs", "all"] = "none",
    coefficients: Sequence[float] = grid(0, 1, 21),
    forward: Forward | str | None = None,
    seed: int = 0,
    title: str = "Addition",
) -> AdditionResult:
    r"""Score :math:`\theta_0 + \alpha \sum_t \tau_t` on every task, with one coefficient for the sum.

    :math:`\alpha` maximises the mean normalised accuracy on the validation splits: accuracy divided by that of
    :math:`\theta_0 + \tau_t`, the model fine-tuned on task t alone, on the same split. The test split is read once.
    Rows: "base", "fine-tuned" (each task by its own model), "random vector" (Gaussian, the norm of each tensor matched to the
    sum's, tuned in the same way), "task arithmetic", then `methods`.

    Args:
        model: inputs -> features.
        base: :math:`\theta_0`.
        vectors: task name -> :math:`\tau_t`, one for each of `tasks`.
        tasks: what is scored, in the order of the columns; each with its head.
        methods: further combined vectors by row name, for example ``{"TIES": ties(list(vectors.values()))}``; each is tuned
            in the same way.
        joint: the vector of one model trained on all tasks together; a row "joint training", nothing to choose.
        ensemble: a row "ensemble of logits": the mean of the single-task models' logits, each task under its own head.
        per_task: a row with one coefficient for each task, chosen in turn, from the shared one, until none changes, three
            rounds at most.
        subsets: also every pair, or every subset of two tasks or more, with a coefficient of its own, scored on its own tasks.
        coefficients: the grid; 0 is always tried.
        forward: through which function everything is evaluated, else the one the vectors were trained through. `linearised`
            with vectors that were trained through `plain` is post-hoc linearisation.
        seed: chooses the random vector.
        title: heading in reports.
    Raises:
        UsageError: vectors and tasks do not correspond, or there are none.
        BaseMismatch: a vector was taken from another base.
    Reference: Ilharco et al. 2022, arXiv:2212.04089, section 4 and appendix B.
    """
    tasks, coefficients = checked_tasks(tasks), checked_grid(coefficients)
    forward = chosen_forward(forward, vectors.values())
    if set(vectors) != {t.name for t in tasks}:
        raise UsageError(
            f"addition needs one vector per task: vectors {sorted(vectors)}, tasks {[t.name for t in tasks]}."
        )
    reserved = OWN_ROWS & set(methods or {})
    if reserved:
        raise UsageError(f"addition has rows named {sorted(reserved)} itself; give the further methods other names.")
    total = task_sum([vectors[t.name] for t in tasks])
    noise = random_like(total, seed=seed)

    own_validation = {
        t.name: validation_curves(model, base, vectors[t.name], [t], (1.0,), forward)[t.name][0].value for t in tasks
    }

    own = {}
    for t in tasks:
        own |= fixed_row("fine-tuned", model, base, vectors[t.name], [t], coefficient=1.0, forward=forward).scores
    rows = [
        fixed_row("base", model, base, total, tasks, coefficient=0.0, forward=forward),
        Row(name="fine-tuned", scores=own, note="each task by the model fine-tuned on it alone"),
    ]
    if joint is not None:
        note = "one model fine-tuned on all tasks together"
        rows.append(fixed_row("joint training", model, base, joint, tasks, coefficient=1.0, forward=forward, note=note))
    if ensemble:
        rows.append(_ensemble(model, base, [vectors[t.name] for t in tasks], tasks, forward))

    def tuned(name: str, vector: TaskVector, which: Sequence[Task] = tasks) -> Row:
        def choose(scores: Mapping[str, tuple[Score, ...]]) -> int:
            means = [
                _mean_ratio({t.name: scores[t.name][i] for t in which}, own_validation)
                for i in range(len(coefficients))
            ]
            return best(means, coefficients)

        return tuned_row(
            name,
            model,
            base,
            vector,
            which,
            coefficients=coefficients,
            choose=choose,
            objective=OBJECTIVE,
            forward=forward,
        )

    for name, vector in {"random vector": noise, "task arithmetic": total, **(methods or {})}.items():
        rows.append(tuned(name, vector))
    if per_task:
        shared = rows[[r.name for r in rows].index("task arithmetic")].coefficient
        assert shared is not None
        score = anywhere(model, base, vectors, {t.name: (t.validation, t.needs_head()) for t in tasks}, forward=forward)
        chosen = _each_its_own(score, [t.name for t in tasks], coefficients, own_validation, shared)
        total_own = task_sum([chosen[t.name] * vectors[t.name] for t in tasks])
        said = ", ".join(f"{n} {c:g}" for n, c in chosen.items())
        note = f"one coefficient for each task, chosen on validation: {said}"
        rows.append(
            fixed_row(
                "one coefficient each", model, base, total_own, tasks, coefficient=1.0, forward=forward, note=note
            )
        )
    sizes = {"none": (), "pairs": (2,), "all": range(2, len(tasks) + 1)}[subsets]
    found = [
        _normalised(tuned(" + ".join(t.name for t in some), task_sum([vectors[t.name] for t in some]), some), own)
        for size in sizes
        for some in itertools.combinations(tasks, size)
    ]
    return AdditionResult(
        title=title,
        tasks=tuple(t.name for t in tasks),
        rows=tuple(_normalised(row, own) for row in rows),
        subsets=tuple(found),
        provenance=Provenance.now(
            seed=seed,
            inputs={"base": base.fingerprint()},
            settings={"forward": forward.name, "grid": [coefficients[0], coefficients[-1], len(coefficients)]},
        ),
    )


def _ensemble(
    model: torch.nn.Module, base: Checkpoint, vectors: Sequence[TaskVector], tasks: Sequence[Task], forward: Forward
) -> Row:
    """Many models instead of one: what adding weights is an approximation of."""
    import torch

    f, device = bind(model), device_of(model)
    start = tensors(base, like=model, device=device)
    totals: dict[str, torch.Tensor] = {}
    with torch.inference_mode():
        for vector in vectors:  # one in memory at a time
            delta = tensors(vector, device=device)
            for t in tasks:
                head, inputs = t.needs_head().to(device), t.test.inputs
                logits = [
                    head(forward(f, start, delta, inputs[i : i + 256].to(device))) for i in range(0, len(inputs), 256)
                ]
                found = torch.cat(logits).cpu()
                totals[t.name] = totals[t.name] + found if t.name in totals else found
    hits = {t.name: int((totals[t.name].argmax(1) == t.test.labels).sum()) for t in tasks}
    scores = {t.name: Score.share(hits[t.name], len(t.test)) for t in tasks}
    return Row(name="ensemble of logits", scores=scores, note=f"{len(vectors)} models, nothing is merged")


def _each_its_own(
    score: Callable[[Mapping[str, float]], Mapping[str, Score]], names: Sequence[str], coefficients: Sequence[float],
    own: Mapping[str, float], start: float, rounds: int = 3,
) -> dict[str, float]:  # fmt: skip
    """One coefficient for each vector, by turns: the others stay as they are while one is chosen on validation."""
    chosen = dict.fromkeys(names, start)
    for _ in range(rounds):
        before = dict(chosen)
        for name in names:
            means = [_mean_ratio(score(chosen | {name: c}), own) for c in coefficients]
            top = best(means, coefficients)
            if means[top] > means[coefficients.index(chosen[name])]:  # equals do not move it, so that rounds end
                chosen[name] = coefficients[top]
        if chosen == before:
            break
    return chosen


def _mean_ratio(scores: Mapping[str, Score], own: Mapping[str, float]) -> float:
    """Mean normalised accuracy."""
    return sum(_ratio(s.value, own[n]) for n, s in scores.items()) / len(scores)


def _normalised(row: Row, own: Mapping[str, Score]) -> Row:
    shares = {n: _ratio(s.value, own[n].value) for n, s in row.scores.items()}
    return row.model_copy(update={"normalised": shares})


def _ratio(accuracy: float, own: float) -> float:
    """Normalised accuracy; 0 where the fine-tuned model gets nothing right, so that nothing is normalised to infinity."""
    return accuracy / own if own else 0.0
