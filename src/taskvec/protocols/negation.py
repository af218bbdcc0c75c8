"""Negation: does subtracting a task vector remove one ability and leave the others?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..methods import random_like
from ..models.forward import Forward
from ..results import NegationResult, Provenance, Score
from ..search import grid
from ..tasks.task import Task
from ..weights import Checkpoint, TaskVector
from .rows import checked_grid, checked_tasks, chosen_forward, fixed_row, tuned_row, validation_curves

if TYPE_CHECKING:
    import torch

SLACK = 1e-12  # so that a control of exactly 95 % is not lost to rounding of the product


def negation(
    model: torch.nn.Module,
    base: Checkpoint,
    vector: TaskVector,
    *,
    target: Task,
    control: Task,
    ascent: TaskVector | None = None,
    coefficients: Sequence[float] = grid(0, 1, 21),
    forward: Forward | str | None = None,
    control_share: float = 0.95,
    seed: int = 0,
    title: str = "Negation",
) -> NegationResult:
    r"""Score :math:`\theta_0 - \alpha\tau` on what is to be forgotten and on what is to be kept.

    :math:`\alpha` gives the lowest target accuracy among the coefficients whose control accuracy is at least
    `control_share` of the base's, all on validation; 0 if none is. The test split is read once.
    Rows: "base", "fine-tuned", "random vector", "gradient ascent" (if given), "task arithmetic"; all but the first two tuned
    by this one rule.

    Args:
        model: inputs -> features.
        base: :math:`\theta_0`.
        vector: :math:`\tau`, fine-tuned on the target minus base.
        target: what is to be forgotten.
        control: what is to be kept.
        ascent: the vector of a model trained on the target with the sign of the loss flipped; it is added, not subtracted.
        coefficients: the grid; 0 is always tried.
        forward: through which function everything is evaluated, else the one the vectors were trained through. `linearised`
            with vectors that were trained through `plain` is post-hoc linearisation.
        control_share: share of the base's control accuracy that must remain.
        seed: chooses the random vector.
        title: heading in reports.
    Raises:
        UsageError: target and control have one name, or the share is outside [0, 1].
        BaseMismatch: a vector was taken from another base.
    Reference: Ilharco et al. 2022, arXiv:2212.04089, section 3 and appendix B.
    """
    tasks, coefficients = checked_tasks([target, control]), checked_grid(coefficients)
    forward = chosen_forward(forward, [vector])
    if not 0 <= control_share <= 1:
        raise UsageError(f"negation: control_share is {control_share}; it must lie between 0 and 1.")
    base_control = validation_curves(model, base, vector, [control], (0.0,), forward)[control.name][0].value
    floor = control_share * base_control

    def choose(scores: Mapping[str, tuple[Score, ...]]) -> int:
        t, c = ([s.value for s in scores[task.name]] for task in (target, control))
        return constrained_minimum(t, c, floor=floor, coefficients=coefficients)

    candidates = {"random vector": random_like(vector, seed=seed)}
    if ascent is not None:
        candidates["gradient ascent"] = ascent
    candidates["task arithmetic"] = -vector
    rows = [
        fixed_row("base", model, base, vector, tasks, coefficient=0.0, forward=forward),
        fixed_row(
            "fine-tuned",
            model,
            base,
            vector,
            tasks,
            coefficient=1.0,
            forward=forward,
            note=f"fine-tuned on {target.name}",
        ),
    ]
    for name, candidate in candidates.items():
        objective = f"lowest {target.name} with {control.name} at {100 * control_share:g} % of the base's or more"
        row = tuned_row(
            name,
            model,
            base,
            candidate,
            tasks,
            coefficients=coefficients,
            choose=choose,
            objective=objective,
            forward=forward,
        )
        kept = row.curve.scores[control.name] if row.curve else ()
        if row.coefficient == 0 and not any(
            s.value >= floor - SLACK for s, c in zip(kept, coefficients, strict=True) if c
        ):
            row = row.model_copy(update={"note": "no coefficient of the grid keeps the control"})
        rows.append(row)
    return NegationResult(
        title=title,
        target=target.name,
        control=control.name,
        control_share=control_share,
        rows=tuple(rows),
        provenance=Provenance.now(
            seed=seed,
            inputs={"base": base.fingerprint()},
            settings={
                "forward": forward.name,
                "grid": [coefficients[0], coefficients[-1], len(coefficients)],
                "control_share": control_share,
            },
        ),
    )


def constrained_minimum(
    target: Sequence[float], control: Sequence[float], *, floor: float, coefficients: Sequence[float]
) -> int:
    """Index of the lowest target among those with control of at least `floor`; the smallest coefficient of equals.

    Where nothing satisfies the constraint, the index of coefficient 0: leave the base as it is.

    Example:
        >>> constrained_minimum([0.9, 0.4, 0.0], [0.9, 0.88, 0.3], floor=0.85, coefficients=(0.0, 0.5, 1.0))
        1
    """
    allowed = [i for i, c in enumerate(control) if c >= floor - SLACK]
    if not allowed:
        return list(coefficients).index(0.0)
    return min(allowed, key=lambda i: (target[i], abs(coefficients[i])))
