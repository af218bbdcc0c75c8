"""What the protocols share: sweep on validation, choose, and read the test split once.

`test_scores` and `test_answers`, and, which choose nothing, addition's ensemble of logits and the rivals on frozen features in
`fair_rivals`, are the only places where a protocol reads the inputs of `task.test`. The sweep is given validation splits, not tasks, so it cannot choose on anything else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..models.forward import Forward, named
from ..models.functional import bind, device_of
from ..results import Curve, Row, Score
from ..search import along, answers, curves
from ..tasks.metrics import accuracy
from ..tasks.task import Task
from ..weights import Checkpoint, TaskVector

if TYPE_CHECKING:
    import torch

# Scores by task, each along the grid -> index of the chosen coefficient.
Choose = Callable[[Mapping[str, tuple[Score, ...]]], int]


def test_scores(
    model: torch.nn.Module, base: Checkpoint, vector: TaskVector, coefficient: float, tasks: Sequence[Task],
    forward: Forward,
) -> dict[str, Score]:  # fmt: skip
    """Test accuracy at ``base + coefficient * vector`` on each task: one reading of each test split."""
    if forward.split is not None:
        data = {t.name: (t.test, t.needs_head()) for t in tasks}
        found = curves(model, base, vector, data, coefficients=(coefficient,), forward=forward)
        return {name: scores[0] for name, scores in found.items()}
    f = bind(model)
    (params,) = along(base, vector, (coefficient,), like=model, device=device_of(model))
    return {t.name: accuracy(f, params, t.test, t.needs_head()) for t in tasks}


def test_answers(
    model: torch.nn.Module, base: Checkpoint, vector: TaskVector, coefficient: float, task: Task, forward: Forward
) -> torch.Tensor:
    """Test logits ``[n, classes]`` at ``base + coefficient * vector``: one reading of the test split."""
    at = answers(model, base, {"v": vector}, {"test": (task.test, task.needs_head())}, forward=forward)
    return at({"v": coefficient})["test"]


def validation_curves(
    model: torch.nn.Module, base: Checkpoint, vector: TaskVector, tasks: Sequence[Task], coefficients: Sequence[float],
    forward: Forward,
) -> dict[str, tuple[Score, ...]]:  # fmt: skip
    """Validation accuracy at ``base + c * vector`` on each task, for each coefficient."""
    data = {t.name: (t.validation, t.needs_head()) for t in tasks}
    return curves(model, base, vector, data, coefficients=coefficients, forward=forward)


def fixed_row(
    name: str,
    model: torch.nn.Module,
    base: Checkpoint,
    vector: TaskVector,
    tasks: Sequence[Task],
    *,
    coefficient: float,
    forward: Forward,
    note: str = "",
) -> Row:
    """A row without a choice: the base (coefficient 0) or a fine-tuned model (coefficient 1)."""
    return Row(name=name, scores=test_scores(model, base, vector, coefficient, tasks, forward), note=note)


def tuned_row(
    name: str,
    model: torch.nn.Module,
    base: Checkpoint,
    vector: TaskVector,
    tasks: Sequence[Task],
    *,
    coefficients: Sequence[float],
    choose: Choose,
    objective: str,
    forward: Forward,
    note: str = "",
) -> Row:
    """A row whose coefficient is chosen on validation, then scored once on test."""
    scores = validation_curves(model, base, vector, tasks, coefficients, forward)
    curve = Curve(coefficients=tuple(coefficients), scores=scores, chosen=choose(scores), objective=objective)
    test = test_scores(model, base, vector, curve.coefficient, tasks, forward)
    return Row(name=name, scores=test, coefficient=curve.coefficient, curve=curve, note=note)


def best(values: Sequence[float], coefficients: Sequence[float]) -> int:
    """Index of the largest value; of equals the smallest edit.

    Example:
        >>> best([0.9, 0.9, 0.8], (-1.0, 0.0, 1.0))
        1
    """
    return max(range(len(values)), key=lambda i: (values[i], -abs(coefficients[i])))


def checked_grid(coefficients: Sequence[float]) -> tuple[float, ...]:
    """The grid in rising order, with 0 (leave the base as it is) added where it lacks.

    Raises:
        UsageError: no coefficients.
    """
    if not coefficients:
        raise UsageError("no coefficients to choose from. Give a grid, for example grid(0, 1, 21).")
    if not all(math.isfinite(c) for c in coefficients):
        raise UsageError(f"the coefficients {list(coefficients)} hold one that is not finite.")
    return tuple(sorted({0.0, *map(float, coefficients)}))


def chosen_forward(forward: Forward | str | None, vectors: Iterable[TaskVector]) -> Forward:
    """The forward rule asked for, else that of the vectors.

    Raises:
        UsageError: none is asked for, and the vectors were trained through different ones.
    """
    if isinstance(forward, str):
        return named(forward)
    if forward is not None:
        return forward
    names = sorted({v.forward for v in vectors})
    if len(names) > 1 or names == ["mixed"]:
        raise UsageError(
            f"the vectors were trained through different functions ({', '.join(names)}); say through which all are to be "
            "evaluated: forward=plain or forward=linearised."
        )
    return named(names[0])


def checked_tasks(tasks: Sequence[Task]) -> tuple[Task, ...]:
    """The tasks, with names that tell them apart.

    Raises:
        UsageError: none, or two of one name.
    """
    names = [t.name for t in tasks]
    if not names or len(set(names)) != len(names):
        raise UsageError(f"a protocol needs at least one task, each with a name of its own; got {names}.")
    return tuple(tasks)
