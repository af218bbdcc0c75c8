"""Addition: does one model, edited by a sum of task vectors, do all the tasks?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..methods import random_like, task_sum
from ..models.forward import Forward
from ..results import AdditionResult, Provenance, Row, Score
from ..search import grid
from ..tasks.task import Task
from ..weights import Checkpoint, TaskVector
from .rows import best, checked_grid, checked_tasks, chosen_forward, fixed_row, tuned_row, validation_curves

if TYPE_CHECKING:
    import torch


def addition(
    model: torch.nn.Module,
    base: Checkpoint,
    vectors: Mapping[str, TaskVector],
    tasks: Sequence[Task],
    *,
    methods: Mapping[str, TaskVector] | None = None,
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
    reserved = {"base", "fine-tuned", "random vector", "task arithmetic"} & set(methods or {})
    if reserved:
        raise UsageError(f"addition has rows named {sorted(reserved)} itself; give the further methods other names.")
    total = task_sum([vectors[t.name] for t in tasks])
    noise = random_like(total, seed=seed)

    own_validation = {
        t.name: validation_curves(model, base, vectors[t.name], [t], (1.0,), forward)[t.name][0].value for t in tasks
    }

    def choose(scores: Mapping[str, tuple[Score, ...]]) -> int:
        means = [
            sum(_ratio(scores[t.name][i].value, own_validation[t.name]) for t in tasks) / len(tasks)
            for i in range(len(coefficients))
        ]
        return best(means, coefficients)

    own = {}
    for t in tasks:
        own |= fixed_row("fine-tuned", model, base, vectors[t.name], [t], coefficient=1.0, forward=forward).scores
    rows = [
        fixed_row("base", model, base, total, tasks, coefficient=0.0, forward=forward),
        Row(name="fine-tuned", scores=own, note="each task by the model fine-tuned on it alone"),
    ]
    for name, vector in {"random vector": noise, "task arithmetic": total, **(methods or {})}.items():
        objective = "largest mean normalised accuracy"
        row = tuned_row(
            name,
            model,
            base,
            vector,
            tasks,
            coefficients=coefficients,
            choose=choose,
            objective=objective,
            forward=forward,
        )
        rows.append(row)
    return AdditionResult(
        title=title,
        tasks=tuple(t.name for t in tasks),
        rows=tuple(_normalised(row, own) for row in rows),
        provenance=Provenance.now(
            seed=seed,
            inputs={"base": base.fingerprint()},
            settings={"forward": forward.name, "grid": [coefficients[0], coefficients[-1], len(coefficients)]},
        ),
    )


def _normalised(row: Row, own: Mapping[str, Score]) -> Row:
    shares = {n: _ratio(s.value, own[n].value) for n, s in row.scores.items()}
    return row.model_copy(update={"normalised": shares})


def _ratio(accuracy: float, own: float) -> float:
    """Normalised accuracy; 0 where the fine-tuned model gets nothing right, so that nothing is normalised to infinity."""
    return accuracy / own if own else 0.0
