"""Skills: does a single-task model gain from the vector of another task?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..methods import random_like
from ..models.forward import Forward
from ..results import Curve, Provenance, Score, Skill, SkillsResult
from ..search import anywhere, grid
from ..tasks.task import Task
from ..weights import Checkpoint, TaskVector
from .rows import checked_grid, checked_tasks, chosen_forward, test_scores

if TYPE_CHECKING:
    import torch

RANDOM = "random vector"


def skills(
    model: torch.nn.Module,
    base: Checkpoint,
    vectors: Mapping[str, TaskVector],
    tasks: Sequence[Task],
    *,
    coefficients: Sequence[float] = grid(0, 1, 11),
    forward: Forward | str | None = None,
    seed: int = 0,
    title: str = "Adding skills",
) -> SkillsResult:
    r"""For every task score :math:`\theta_0 + \tau_t + \alpha\,\tau_j`, its own model with the vector of one other task.

    j and :math:`\alpha` maximise the accuracy on the validation split of t together; :math:`\alpha = 0`, the fine-tuned model as
    it is, is among them. A random vector of the norms of the chosen one, with its own :math:`\alpha`, shows what choosing alone
    gains. Of each of the four models the test split is read once.

    Args:
        model: inputs -> features.
        base: :math:`\theta_0`.
        vectors: task name -> its vector, and perhaps further ones by other names, which are candidates too.
        tasks: the tasks; each needs a vector of its name.
        coefficients: the grid; 0 is always tried.
        forward: through which function everything is evaluated, else the one the vectors were trained through.
        seed: chooses the random vectors.
        title: heading in reports.
    Raises:
        UsageError: a task without a vector, or fewer than two vectors.
        BaseMismatch: a vector was taken from another base.
    Reference: Ilharco et al. 2022, arXiv:2212.04089, section 4 (GLUE).
    """
    tasks, coefficients = checked_tasks(tasks), checked_grid(coefficients)
    without = [t.name for t in tasks if t.name not in vectors]
    if without or len(vectors) < 2:
        raise UsageError(
            f"skills: {f'no vector for {without[0]!r}' if without else 'one vector'}; every task needs its own, and another to add."
        )
    if RANDOM in vectors:
        raise UsageError(f"skills: a vector is called {RANDOM!r}, which is the baseline's name. Call it otherwise.")
    forward = chosen_forward(forward, vectors.values())
    found = []
    for task in tasks:
        own = vectors[task.name]
        others = {n: v for n, v in vectors.items() if n != task.name}

        def lines(
            candidates: Mapping[str, TaskVector], task: Task = task, own: TaskVector = own
        ) -> dict[str, tuple[Score, ...]]:
            """Validation accuracy along the grid, for each candidate."""
            score = anywhere(
                model,
                base,
                {task.name: own, **candidates},
                {task.name: (task.validation, task.needs_head())},
                forward=forward,
            )
            return {n: tuple(score({task.name: 1.0, n: c})[task.name] for c in coefficients) for n in candidates}

        curves = lines(others)
        other, at = best_of(curves, coefficients)
        noise = random_like(others[other], seed=seed)
        random_curve = lines({RANDOM: noise})
        _, at_random = best_of(random_curve, coefficients)

        def test(vector: TaskVector, c: float, task: Task = task) -> Score:
            return test_scores(model, base, vector, c, [task], forward)[task.name]

        objective = f"largest accuracy on {task.name} over the other vectors and the coefficient"
        found.append(
            Skill(
                task=task.name,
                other=other,
                curve=Curve(
                    coefficients=coefficients,
                    scores=curves | random_curve,
                    chosen=at,
                    objective=objective,
                ),
                random_coefficient=coefficients[at_random],
                base=test(own, 0.0),
                finetuned=test(own, 1.0),
                with_random=test(own + coefficients[at_random] * noise, 1.0),
                with_other=test(own + coefficients[at] * others[other], 1.0),
            )
        )
    return SkillsResult(
        title=title,
        skills=tuple(found),
        provenance=Provenance.now(
            seed=seed,
            inputs={"base": base.fingerprint()},
            settings={
                "forward": forward.name,
                "grid": [coefficients[0], coefficients[-1], len(coefficients)],
                "vectors": list(vectors),
            },
        ),
    )


def best_of(lines: Mapping[str, Sequence[Score]], coefficients: Sequence[float]) -> tuple[str, int]:
    """The candidate and the index of the coefficient with the largest score; of equals the smallest edit, then the first."""
    order = list(lines)
    return max(
        ((n, i) for n in order for i in range(len(coefficients))),
        key=lambda at: (lines[at[0]][at[1]].value, -abs(coefficients[at[1]]), -order.index(at[0])),
    )
