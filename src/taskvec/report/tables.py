"""The tables of a report: absolute and normalised scores with their denominators, and where coefficients come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..results import Row, Score
from .words import NONE, clean, count, find, interval, mean_of, percent


@dataclass(frozen=True)
class Cell:
    """One table cell: the number, and the small print under it."""

    text: str
    detail: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """A caption, column heads and rows of cells; the first cell of a row names it."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    prose: bool = False  # words rather than numbers: set flush left


def scores(
    caption: str,
    rows: Sequence[Row],
    tasks: Sequence[str],
    *,
    mean: bool = False,
    heads: Mapping[str, str] | None = None,
) -> Table:
    """One row per model: absolute with interval, and normalised with its denominator, in the same cell."""
    finetuned = find(rows, "fine-tuned")
    shared = {t: {r.scores[t].n for r in rows if t in r.scores} for t in tasks}
    head = {t: (heads or {}).get(t, clean(t)) for t in tasks}
    columns = ["model", "coefficient"]
    columns += [f"{head[t]} (n = {min(shared[t])})" if len(shared[t]) == 1 else head[t] for t in tasks]
    if mean:
        totals = {m.n for row in rows if (m := mean_of(row))}
        columns.append(f"mean of {count(len(tasks), 'task')}" + (f" (n = {min(totals)})" if len(totals) == 1 else ""))
    lines = []
    for row in rows:
        cells = [Cell(clean(row.name)), Cell(NONE if row.coefficient is None else f"{row.coefficient:g}")]
        for task in tasks:
            score = row.scores.get(task)
            detail = [] if score is None or len(shared[task]) == 1 else [f"n = {score.n}"]
            if (below := denominator(row, task, finetuned)) is not None:
                detail.append(f"{row.normalised[task]:.3f} of {percent(below)}")
            cells.append(_cell(score, detail))
        if mean:
            share = row.mean_normalised
            cells.append(_cell(mean_of(row), [] if share is None else [f"{share:.3f} normalised"]))
        lines.append(tuple(cells))
    return Table(caption, tuple(columns), tuple(lines))


def _cell(score: Score | None, detail: Sequence[str]) -> Cell:
    return Cell(NONE) if score is None else Cell(percent(score.value), (interval(score), *detail))


def choices(rows: Sequence[Row]) -> tuple[Table, ...]:
    """Where every coefficient comes from: grid, rule and data."""
    lines = []
    for row in rows:
        if row.coefficient is None:
            continue
        curve = row.curve
        if curve is None:
            rest = (NONE, NONE, "not recorded: do not compare with tuned rows")
        else:
            grid = curve.coefficients
            sizes = sorted({s.n for line in curve.scores.values() for s in line})
            seen = (
                f"{sizes[0]} to {sizes[-1]} by task" if len(sizes) > 1 else f"{sizes[0]} per task" if sizes else "none"
            )
            rest = (
                f"{min(grid):g} to {max(grid):g}, {count(len(grid), 'point')}",
                clean(curve.objective),
                f"{curve.split} (n = {seen})",
            )
        lines.append(tuple(Cell(t) for t in (clean(row.name), f"{row.coefficient:g}", *rest)))
    columns = ("model", "chosen coefficient", "coefficients tried", "rule", "chosen on")
    return (Table("How the coefficients were chosen", columns, tuple(lines), prose=True),) if lines else ()


def notes(rows: Sequence[Row]) -> tuple[str, ...]:
    notes = [f"{clean(r.name)}: {clean(r.note)}" for r in rows if r.note]
    for row in rows:
        grid = row.curve.coefficients if row.curve else ()
        if row.coefficient == 0 and len(grid) > 1 and not row.note:
            notes.append(
                f"{clean(row.name)}: the chosen coefficient is 0: under the rule nothing that was tried beat the base unchanged."
            )
        elif len(grid) > 1 and row.coefficient == max(grid):
            notes.append(
                f"{clean(row.name)}: the chosen coefficient is the largest that was tried; a larger one may do better."
            )
    return tuple(notes)


def denominator(row: Row, task: str, finetuned: Row | None) -> float | None:
    """What the normalised accuracy of `row` on `task` was divided by."""
    if task not in row.normalised or task not in row.scores:
        return None
    if row.normalised[task] > 0 and row.scores[task].value > 0:
        return row.scores[task].value / row.normalised[task]
    return finetuned.scores[task].value if finetuned and task in finetuned.scores else None
