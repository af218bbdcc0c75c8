"""Steering fairness over a study: every model's accuracy and gaps, mean and spread over seeds, for each set of people."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..results import GapName, Score, SteeringResult, SteeringRow
from .section import Section
from .seeds import Where, spread
from .tables import Cell, Table
from .words import NONE, clean, count

Placed = Sequence[tuple[Where, SteeringResult]]
Value = Callable[[SteeringRow], Any]  # something with a value and an interval, or None
ADDED = "task addition"
COLUMNS: Mapping[str, Value] = {
    "accuracy, %": lambda r: r.audit.overall.accuracy,
    "parity difference, points": lambda r: r.audit.gap("parity"),
    "odds difference, points": lambda r: r.audit.gap("odds"),
    "accuracy of the worst group, %": lambda r: r.audit.worst.accuracy if r.audit.worst else None,
    "selected, %": lambda r: r.audit.overall.selection,
}


def fairness_overview(placed: Placed) -> Section:
    """A table for each set of people, base and regime: a line for each model."""
    groups: dict[tuple[str, str, str], list[tuple[Where, SteeringResult]]] = {}
    for where, result in placed:
        key = (str(where.get("target", result.task)), str(where["base"]), str(where["regime"]))
        groups.setdefault(key, []).append((where, result))
    said, tables = [], []
    for key, found in groups.items():
        results = [r for _, r in sorted(found, key=lambda f: int(f[0]["seed"]))]
        seeds = ", ".join(str(s) for s in sorted(int(w["seed"]) for w, _ in found))
        where = f"{clean(key[0])}: {clean(key[1])}, {clean(key[2])}, {count(len(results[0].groups), 'group')}"
        n = ", ".join(sorted({f"{r.rows[0].audit.n:,}" for r in results}))
        caption = f"{where}; test n = {n}; seed{'s' if len(results) > 1 else ''} {seeds}"
        tables.append(Table(caption, ("model", "coefficient", "limit kept", *COLUMNS), tuple(_lines(results))))
        said += _sentences(clean(key[0]), results)
    first = next(iter(groups.values()))
    before, after = (_numbers([r for _, r in first], n, COLUMNS["parity difference, points"]) for n in ("base", ADDED))
    return Section(
        title="Fairness, over all people",
        question="Do sub-group task vectors trade accuracy for fairness, and better than what does not need them?",
        equation="θ = θ₀ + λ Σ δ_g;  parity = max P(ŷ=1 | g) − min P(ŷ=1 | g)",
        figure=f"{spread(before)} → {spread(after)}",
        figure_label=f"parity difference in points, base → task addition: {clean(next(iter(groups))[0])}",
        verdict="",
        sentences=(*said, "± is the standard deviation over seeds; in brackets, of one seed, the 95 % interval."),
        tables=tuple(tables),
        notes=("Coefficients are chosen on validation data; the test part is read once for each row.",),
    )


def _lines(results: Sequence[SteeringResult]) -> list[tuple[Cell, ...]]:
    lines = []
    for name in dict.fromkeys(r.name for result in results for r in result.rows):
        rows = _rows(results, name)
        chosen = [r.coefficient for r in rows if r.coefficient is not None]
        kept = [r.met for r in rows if r.met is not None]
        cells = [
            Cell(clean(name)),
            Cell(spread(chosen, digits=2)),
            Cell(f"{sum(kept)} of {len(kept)}" if kept else NONE),
        ]
        lines.append((*cells, *(_cell(rows, f) for f in COLUMNS.values())))
    return lines


def _sentences(people: str, results: Sequence[SteeringResult]) -> list[str]:
    """Task addition beside full fine-tuning, and in how many seeds the changes are beyond their intervals."""
    found = [c for r in results for c in r.comparisons if c.after == ADDED]
    if not found:
        return []
    names: tuple[GapName, ...] = ("parity", "odds")
    seen = {g: [c.gaps[g] for c in found if g in c.gaps] for g in names}
    parts = [
        f"{n} difference {spread([100 * e.value for e in changes], signed=True)} points (beyond the interval in {sum(e.real for e in changes)} of "
        f"{count(len(changes), 'seed')})"
        for n, changes in seen.items()
        if changes
    ]
    right = [100 * c.accuracy.value for c in found]
    said = f"{people}: task addition less {clean(found[0].before)}: accuracy {spread(right, signed=True)} points; {'; '.join(parts)}."
    rows = _rows(results, ADDED)
    kept = [r.met for r in rows if r.met is not None]
    if kept and not all(kept):
        said += f" In {count(len(kept) - sum(kept), 'seed')} of {len(kept)} no coefficient kept the limit on validation data, and the least gap was taken."
    return [said]


def _rows(results: Sequence[SteeringResult], name: str) -> list[SteeringRow]:
    return [r for result in results for r in result.rows if r.name == name]


def _numbers(results: Sequence[SteeringResult], name: str, measure: Value) -> list[float]:
    return [100 * found.value for r in _rows(results, name) if (found := measure(r)) is not None]


def _cell(rows: Sequence[SteeringRow], measure: Value) -> Cell:
    found: list[Score] = [s for r in rows if (s := measure(r)) is not None]
    text = spread([100 * s.value for s in found])
    if len(found) != 1:
        return Cell(text)
    return Cell(text, (f"[{100 * found[0].low:.1f},\u00a0{100 * found[0].high:.1f}]",))
