"""Analogy: can a vector for a task without data be built from three others?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..methods import random_like
from ..models.forward import Forward
from ..results import AnalogyResult, Provenance, Score
from ..search import grid
from ..tasks.task import Task
from ..weights import Checkpoint, TaskVector
from .rows import best, checked_grid, checked_tasks, chosen_forward, fixed_row, tuned_row, validation_curves

if TYPE_CHECKING:
    import torch


def analogy(
    model: torch.nn.Module,
    base: Checkpoint,
    *,
    a: TaskVector,
    b: TaskVector,
    c: TaskVector,
    task: Task,
    cells: Mapping[str, str],
    sources: Mapping[str, TaskVector] | None = None,
    target_tuned: TaskVector | None = None,
    coefficients: Sequence[float] = grid(0, 1, 21),
    ratios: Sequence[float] = (1.0,),
    forward: Forward | str | None = None,
    seed: int = 0,
    title: str = "Analogy",
) -> AnalogyResult:
    r"""Score :math:`\theta_0 + \alpha\,(\tau_C + (\tau_B - \tau_A))` on cell D: A is to B as C is to D.

    No vector but `target_tuned` has seen a sample of D. Every coefficient maximises accuracy on D's validation split: the
    paper's protocol, which needs some labelled samples of D to tune with, for all rows alike. The test split is read once.
    Rows: "base", "source" (of `sources`, the best on validation), "random vector", "analogy", "target-tuned" (if given; an
    upper bound).

    Args:
        model: inputs -> features.
        base: :math:`\theta_0`.
        a, b, c: :math:`\tau_A, \tau_B, \tau_C`.
        task: cell D.
        cells: what "A", "B", "C" and "D" are, in words.
        sources: what one would do without arithmetic: vectors trained on cells A, B, C, by name; else `b` and `c`.
        target_tuned: the vector trained on D itself.
        coefficients: the grid; 0 is always tried.
        ratios: for two coefficients, :math:`\theta_0 + \alpha\,(\tau_C + \rho\,(\tau_B - \tau_A))` with :math:`\rho` of these chosen
            together with :math:`\alpha`: the paper's analogy between domains, where A and B are language modelling on two domains
            and C is a task on A's.
        forward: through which function everything is evaluated, else the one the vectors were trained through. `linearised`
            with vectors that were trained through `plain` is post-hoc linearisation.
        seed: chooses the random vector.
        title: heading in reports.
    Raises:
        UsageError: no ratios.
        BaseMismatch: a vector was taken from another base.
    Reference: Ilharco et al. 2022, arXiv:2212.04089, section 5.
    """
    tasks, coefficients = checked_tasks([task]), checked_grid(coefficients)
    forward = chosen_forward(forward, [a, b, c])
    if not ratios:
        raise UsageError("analogy: no ratios to choose from; leave them out for one coefficient.")
    ratio = ratios[0]
    if len(ratios) > 1:

        def peak(rho: float) -> tuple[float, float]:
            found = validation_curves(model, base, c + rho * (b - a), tasks, coefficients, forward)
            return max(s.value for s in found[task.name]), -abs(rho)

        ratio = max(ratios, key=peak)
    built = c + ratio * (b - a) if ratio != 1 else c + (b - a)

    def choose(scores: Mapping[str, tuple[Score, ...]]) -> int:
        return best([s.value for s in scores[task.name]], coefficients)

    def tuned(name: str, vector: TaskVector, note: str = ""):
        objective = f"largest accuracy on {task.name}"
        return tuned_row(
            name,
            model,
            base,
            vector,
            tasks,
            coefficients=coefficients,
            choose=choose,
            objective=objective,
            forward=forward,
            note=note,
        )

    sources = sources or {cells.get("B", "B"): b, cells.get("C", "C"): c}
    # Only the winner on validation is read on test, so the choice among sources cannot use the test split.
    chosen = best_source(model, base, sources, task, coefficients=coefficients, forward=forward)
    rows = [
        fixed_row("base", model, base, built, tasks, coefficient=0.0, forward=forward),
        tuned("source", sources[chosen], f"trained on {chosen}; the best on validation of {len(sources)}"),
        tuned("random vector", random_like(built, seed=seed)),
        tuned(
            "analogy",
            built,
            f"second coefficient {ratio:g} times the first, of {len(ratios)} tried" if len(ratios) > 1 else "",
        ),
    ]
    if target_tuned is not None:
        rows.append(tuned("target-tuned", target_tuned, f"trained on {task.name} itself"))
    return AnalogyResult(
        title=title,
        task=task.name,
        cells=dict(cells),
        rows=tuple(rows),
        ratio=ratio if tuple(ratios) != (1.0,) else None,
        provenance=Provenance.now(
            seed=seed,
            inputs={"base": base.fingerprint()},
            settings={
                "forward": forward.name,
                "grid": [coefficients[0], coefficients[-1], len(coefficients)],
                "sources": list(sources),
                **({} if tuple(ratios) == (1.0,) else {"ratios": list(ratios)}),
            },
        ),
    )


def best_source(
    model: torch.nn.Module, base: Checkpoint, sources: Mapping[str, TaskVector], task: Task, *, coefficients: Sequence[float],
    forward: Forward,
) -> str:  # fmt: skip
    """Of vectors by name the one that, at its best coefficient, has the largest validation accuracy on `task`."""

    def peak(name: str) -> float:
        found = validation_curves(model, base, sources[name], [task], coefficients, forward)
        return max(s.value for s in found[task.name])

    return max(sources, key=peak)
