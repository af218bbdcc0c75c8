"""Analogy, told: one result, and all of a study."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from ..results import AnalogyResult, Row, Score
from .section import Section
from .seeds import Where, over_seeds, score_of, spread
from .tables import Cell, Table, choices, notes, scores
from .words import (
    NONE,
    at_coefficient,
    beside,
    clean,
    compare,
    edited,
    find,
    for_comparison,
    interval,
    percent,
    quoted,
    the_model,
)


def analogy_section(result: AnalogyResult) -> Section:
    rows, task = result.rows, result.task
    row = edited(rows, "analogy")
    cell = quoted(result.cells.get("D", task))
    said: list[str] = []
    figure, verdict = NONE, ""
    if row and (after := _only(row, task)):
        figure = percent(after.value)
        said.append(
            f"Without training on {cell}, {the_model(row)}{at_coefficient(row)} has a test accuracy of {percent(after.value)} "
            f"{interval(after)}."
        )
        for name in ("source", "base"):
            if (other := find(rows, name)) and (before := _only(other, task)):
                found = compare(after, before)
                if name == "source" or not verdict:
                    figure, verdict = f"{percent(before.value)} → {percent(after.value)}", found
                what = "The best without arithmetic and without data of D" if name == "source" else "The base"
                said.append(beside(what, before, row, found))
        if (best := find(rows, "target-tuned")) and (top := _only(best, task)):
            said.append(f"Training on D itself gives {percent(top.value)} {interval(top)}.")
        for other in rows:
            if other.name in ("source", "base", "target-tuned") or other is row:
                continue  # told above
            if other.coefficient is not None and (score := _only(other, task)):
                said.append(for_comparison(other, score, after, row))
        if row.curve:
            said.append("The coefficient was chosen on labelled validation examples of D, and on nothing else of D.")
    a, b, c, d = (clean(result.cells.get(k, k)) for k in "ABCD")
    return Section(
        title=clean(result.title),
        question=f"Can {cell} be learnt from three other cells alone? ‘{a}’ is to ‘{b}’ as ‘{c}’ is to ‘{d}’.",
        equation=f"θ = θ₀ + α (τ(C) + {result.ratio:g} (τ(B) − τ(A)))"
        if result.ratio is not None
        else "θ = θ₀ + α (τ(C) + τ(B) − τ(A))",
        figure=figure,
        figure_label="accuracy on D: without arithmetic → by analogy",
        verdict=verdict,
        sentences=tuple(filter(None, said)),
        tables=(
            Table(
                "The four cells",
                ("cell", "what it is"),
                tuple((Cell(k), Cell(clean(v))) for k, v in sorted(result.cells.items())),
                prose=True,
            ),
            scores("Test accuracy on D, one reading of the test split", rows, _tasks(rows)),
            *choices(rows),
        ),
        notes=notes(rows),
    )


def _tasks(rows: Sequence[Row]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(t for row in rows for t in row.scores))


def _only(row: Row, task: str) -> Score | None:
    """The score on `task`; for a row with one score, that one."""
    if task in row.scores:
        return row.scores[task]
    return next(iter(row.scores.values())) if len(row.scores) == 1 else None


def analogy_overview(placed: Sequence[tuple[Where, Any]]) -> Section:
    names = ("base", "source", "random vector", "analogy", "target-tuned")
    columns: dict[str, Callable[[Sequence[Any]], Cell]] = {n: functools.partial(score_of, n) for n in names}
    two = any(r.ratio is not None for _, r in placed)
    if two:
        columns |= {"α": _chosen(lambda r: r.row("analogy").coefficient), "ρ": _chosen(lambda r: r.ratio)}
    cells = placed[0][1].cells
    gaps = [100 * (r.row("analogy").mean.value - r.row("source").mean.value) for _, r in placed]
    held = sum(g > 0 for g in gaps)
    return Section(
        title="Analogy, over all regimes",
        question=f"{cells['A']} is to {cells['B']} as {cells['C']} is to {cells['D']}: is the fourth built from three?",
        equation="θ = θ₀ + α (τ_C + ρ (τ_B − τ_A))" if two else "θ = θ₀ + α (τ_C + (τ_B − τ_A))",
        figure=spread(gaps, signed=True),
        figure_label="points of test accuracy over the best source",
        verdict="",
        sentences=(
            f"The analogy is above the best source in {held} of {len(gaps)} runs; the difference is {spread(gaps, signed=True)} points "
            "(± is the standard deviation over all of these runs; in the table, over seeds). The source is chosen on validation data, as are all "
            "coefficients.",
        ),
        tables=(over_seeds("Test accuracy on D, %" + (", and the coefficients of the analogy, seed by seed" if two else ""), placed, columns),),
        notes=TWO if two else (),
    )  # fmt: skip


TWO = (
    "With two coefficients the analogy has more to choose from on validation data than the other rows; at a ratio ρ of 0 it is the vector of C.",
    "Beside it, sentiment about Yelp from that about Amazon and language modelling on both, T5 small, base, large (arXiv:2212.04089): trained on Amazon "
    "88.6, 92.3, 95.0; analogy 89.9, 93.0, 95.1; trained on Yelp 91.1, 93.4, 95.5.",
)  # fmt: skip


def _chosen(number: Callable[[Any], float | None]) -> Callable[[Sequence[Any]], Cell]:
    """What was chosen, seed by seed."""
    return lambda results: Cell(", ".join(f"{c:g}" for r in results if (c := number(r)) is not None) or NONE)
