"""Steering fairness over a study: every model's accuracy and gaps, mean and spread over seeds, for each set of people."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..results import GapName, Score, SteeringResult, SteeringRow
from .figures import STAND_IN, literal, svg
from .gap_figures import look
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
    groups, said, tables = _by_people(placed), [], []
    for key, results in groups.items():
        seeds = ", ".join(str(r.provenance.settings["study"]["seed"]) for r in results)
        where = f"{clean(key[0])}: {clean(key[1])}, {clean(key[2])}, {count(len(results[0].groups), 'group')}"
        n = ", ".join(sorted({f"{r.rows[0].audit.n:,}" for r in results}))
        caption = f"{where}; test n = {n}; seed{'s' if len(results) > 1 else ''} {seeds}"
        tables.append(Table(caption, ("model", "coefficient", "limit kept", *COLUMNS), tuple(_lines(results))))
        said += _sentences(clean(key[0]), results)
    first = next(iter(groups.values()))
    before, after = (_numbers(first, n, COLUMNS["parity difference, points"]) for n in ("base", ADDED))
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


def fairness_drawings(placed: Placed, key: str) -> list[tuple[str, str]]:
    """Accuracy against the parity difference, a mark for each model, for each set of people, base and regime."""
    drawn = []
    for i, (name, results) in enumerate(_by_people(placed).items()):
        caption = f"{', '.join(map(clean, name))}: accuracy against the parity difference, test data, mean over seeds. Up and left is better. Crosses: ± one standard deviation."
        drawn.append((_trade(results, ", ".join(map(clean, name)), f"{key}p{i}"), caption))
    return drawn


def _trade(results: Sequence[SteeringResult], name: str, key: str) -> str:
    parity, right = COLUMNS["parity difference, points"], COLUMNS["accuracy, %"]
    rows = [r for r in results[0].rows if r.audit.gap("parity")]
    points = [(_numbers(results, r.name, parity), _numbers(results, r.name, right)) for r in rows]

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        for row, both in zip(rows, points, strict=True):
            x, y = (statistics.mean(v) for v in both)
            dx, dy = (statistics.stdev(v) if len(v) > 1 else 0.0 for v in both)
            colour, mark = look(rows, row.name)
            ink = STAND_IN[colour]
            axes.plot([x - dx, x + dx], [y, y], color=ink, linewidth=1.2)
            axes.plot([x, x], [y - dy, y + dy], color=ink, linewidth=1.2)
            axes.plot(x, y, mark, color=ink, markersize=6.5, linestyle="none", label=clean(row.name, 34))
        axes.set_xlim(left=0)
        axes.set_xlabel("parity difference, points")
        axes.set_ylabel("test accuracy, %")
        axes.grid()
        literal(figure.legend(loc="outside lower left", ncols=3))

    said = "; ".join(
        f"{clean(r.name)} {spread(x)} points at {spread(y)} %" for r, (x, y) in zip(rows, points, strict=True)
    )
    return svg(draw, (4.9, 3.4), f"{name}: parity difference and accuracy on test data: {said}.", key)


def _by_people(placed: Placed) -> dict[tuple[str, str, str], list[SteeringResult]]:
    """Results by people, base and regime, in the order of their seeds."""
    out: dict[tuple[str, str, str], list[SteeringResult]] = {}
    for where, result in sorted(placed, key=lambda p: int(p[0]["seed"])):
        out.setdefault((str(where.get("target", result.task)), str(where["base"]), str(where["regime"])), []).append(
            result
        )
    return out


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
