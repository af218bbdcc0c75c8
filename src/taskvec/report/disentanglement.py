"""Weight disentanglement, told: one result, and all of a study."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from ..results import DisentanglementResult
from .section import Section
from .seeds import Where, by_key, over_seeds, place, spread
from .tables import Cell, Table
from .words import clean, count, quoted


def disentanglement_section(result: DisentanglementResult) -> Section:
    means = [result.mean(p) for p in result.pairs]
    overall = sum(means) / len(means)
    inside = [c for c in result.coefficients if result.box[0] <= c <= result.box[1]]
    what = "the predicted class differs" if result.distance == "prediction" else "representations differ"
    said = [
        f"ξ adds, for the two tasks of a pair, how much {what} between the model with the task's own vector and the model "
        "with both, on that task's inputs: 0 if the other vector changes nothing, 2 at most.",
        f"Over {count(len(means), 'pair')} the mean in the box [{result.box[0]:g}, {result.box[1]:g}] is {overall:.3f}, "
        f"through the {clean(result.forward)} model.",
    ]
    if len(means) > 1:
        worst = max(result.pairs, key=result.mean)
        first, second = (quoted(t) for t in worst.tasks)
        said.append(f"The largest is {result.mean(worst):.3f}, between {first} and {second}.")
    one = max(inside)
    rows = []
    for pair, mean in zip(result.pairs, means, strict=True):
        value, low, high = result.at(pair, one, one)
        name = f"{clean(pair.tasks[0])} + {clean(pair.tasks[1])}"
        cells = (Cell(name), Cell(f"{mean:.3f}"), Cell(f"{value:.3f}", (f"[{low:.3f},\u00a0{high:.3f}]",)))
        rows.append((*cells, Cell(f"{pair.n[0]} + {pair.n[1]}")))
    head = ("pair", "mean ξ in the box", f"ξ at ({one:g}, {one:g})", "validation inputs")
    return Section(
        title=clean(result.title),
        question="Does adding one task vector leave alone what the model does on the other task's inputs?",
        equation="ξ(α₁, α₂) = Σₜ E[ d( f(x; θ₀ + αₜτₜ), f(x; θ₀ + α₁τ₁ + α₂τ₂) ) ]",
        figure=f"{overall:.3f}",
        figure_label="mean disentanglement error in the box",
        verdict="",
        sentences=tuple(said),
        tables=(Table("Disentanglement error", head, tuple(rows)),),
        notes=(),
    )


def disentanglement_overview(placed: Sequence[tuple[Where, Any]]) -> Section:
    def column(distance: str) -> Callable[[Sequence[Any]], Cell]:
        return lambda results: Cell(
            spread([statistics.mean(r.mean(p) for p in r.pairs) for r in results if r.distance == distance], digits=3)
        )

    def worst(results: Sequence[Any]) -> Cell:
        return Cell(spread([max(r.mean(p) for p in r.pairs) for r in results if r.distance == "prediction"], digits=3))

    columns = {
        "mean ξ, predictions": column("prediction"),
        "largest of the pairs": worst,
        "mean ξ, before the head": column("representation"),
    }
    lowest = min(
        (kv for kv in by_key([p for p in placed if p[1].distance == placed[0][1].distance]).items()),
        key=lambda kv: statistics.mean(r.mean(p) for _, r in kv[1] for p in r.pairs),
    )
    values = [statistics.mean(r.mean(p) for p in r.pairs) for _, r in lowest[1]]
    low, high = placed[0][1].box
    return Section(
        title="Weight disentanglement, over all regimes",
        question="Does a second task vector leave the first task's predictions alone?",
        equation="ξ(α₁, α₂) = Σₜ Eₓ d(f(x; θ₀ + αₜτₜ), f(x; θ₀ + α₁τ₁ + α₂τ₂))",
        figure=spread(values, digits=3),
        figure_label=f"least mean ξ ({'predictions' if placed[0][1].distance == 'prediction' else 'before the head'}), {place(lowest[0])}",
        verdict="",
        sentences=(
            f"ξ is a sum over the two tasks of a pair, 0 to 2; shown is its mean over the box [{low:g}, {high:g}]², over all pairs. ± is the "
            "standard deviation over seeds. Predictions: the share of validation inputs whose class changes; before the head: the "
            "normalised distance of features.",
        ),
        tables=(over_seeds("Disentanglement error", placed, columns),),
        notes=(),
    )  # fmt: skip
