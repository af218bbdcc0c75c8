"""Pictures of gaps: along the coefficient, and against accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..results import Estimate, FairnessRow, GapName, Score
from .figures import DASHES, KNOWN, MARKS, SERIES, STAND_IN, literal, svg
from .gaps import DIFFERENCES, GAP_WORDS
from .words import clean

FLOOR: dict[str, Any] = {
    "color": STAND_IN["muted"],
    "linewidth": 1.1,
    "linestyle": (0, (4, 2)),
    "label": "least accuracy",
}


def look(rows: Sequence[FairnessRow], name: str) -> tuple[str, str]:
    """Colour and mark of a model, the same in every picture."""
    if name in KNOWN:
        return KNOWN[name]
    others = [r.name for r in rows if r.name not in KNOWN]
    free = [c for c in SERIES if c not in {KNOWN[r.name][0] for r in rows if r.name in KNOWN}]
    at = others.index(name)
    return free[at % len(free)], MARKS[at % len(MARKS)]


def along(row: FairnessRow, key: str) -> str:
    """Above accuracy, below the gaps, against the coefficient."""
    curve = row.curve
    assert curve is not None
    x, audits = curve.coefficients, curve.audits

    def draw(figure: Any) -> None:
        top, low = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.5))
        worst = [a.worst.accuracy if a.worst else None for a in audits]
        _line(top, x, [a.overall.accuracy for a in audits], STAND_IN["ink"], "-", "accuracy, everybody")
        _line(top, x, worst, STAND_IN["muted"], "--", "accuracy, worst group")
        for i, gap in enumerate(DIFFERENCES):
            found, look = [a.gaps.get(gap) for a in audits], (STAND_IN[SERIES[i]], DASHES[i % len(DASHES)])
            # Four bands would hide each other.
            _line(low, x, found, *look, GAP_WORDS[gap], band=gap == (curve.constraint or "parity"))
        if curve.at_most is not None and curve.constraint:
            label = f"limit of the {GAP_WORDS[curve.constraint]}: {curve.at_most:g}"
            low.axhline(
                100 * curve.at_most, color=STAND_IN["muted"], linewidth=1.1, linestyle=(0, (1, 1.5)), label=label
            )
        if curve.accuracy_at_least is not None:
            top.axhline(100 * curve.accuracy_at_least, **FLOOR)
        for axes in (top, low):
            axes.axvline(
                curve.coefficient,
                color=STAND_IN["ink"],
                linewidth=0.9,
                label=f"chosen: {curve.coefficient:g}" if axes is low else None,
            )
            axes.grid(axis="y")
        low.set_ylim(bottom=0)
        low.set_xlabel("coefficient α")
        top.set_ylabel("accuracy, %")
        low.set_ylabel("gap, points")
        literal(figure.legend(loc="outside lower left", ncols=2))

    at = audits[curve.chosen]
    said = ", ".join(f"{GAP_WORDS[g]} {found.value:.3f}" for g in DIFFERENCES if (found := at.gaps.get(g)))
    alt = f"Gaps of {clean(row.name)} on validation data from {min(x):g} to {max(x):g}; at the chosen {curve.coefficient:g}: {said}."
    return svg(draw, (4.9, 4.9), alt, key)  # fmt: skip


def _line(
    axes: Any, x: Sequence[float], line: Sequence[Score | Estimate | None], colour: str, dash: str, label: str, band: bool = True
) -> None:  # fmt: skip
    points = [(c, 100 * f.value, 100 * f.low, 100 * f.high) for c, f in zip(x, line, strict=True) if f]
    if not points:
        return
    at, value, low, high = zip(*points, strict=True)
    if band:
        axes.fill_between(at, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.plot(at, value, color=colour, linestyle=dash, linewidth=1.6, label=label)


def pareto(row: FairnessRow, key: str) -> str:
    """Accuracy against the gap of the constraint, joined in the order of coefficients; the front and the choice stand out."""
    curve = row.curve
    assert curve is not None
    gap: GapName = curve.constraint or "parity"
    points = [
        (c, 100 * g.value, 100 * a.overall.accuracy.value)
        for c, a in zip(curve.coefficients, curve.audits, strict=True)
        if (g := a.gaps.get(gap)) and a.overall.accuracy
    ]
    front = [p for p in points if not any(q[1] <= p[1] and q[2] >= p[2] and q[1:] != p[1:] for q in points)]

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        axes.plot([p[1] for p in points], [p[2] for p in points], color=STAND_IN["grid"], linewidth=1.2)
        style: dict[str, Any] = {"linestyle": "none", "markersize": 5.5, "color": STAND_IN["c1"]}
        axes.plot(
            [p[1] for p in points],
            [p[2] for p in points],
            "o",
            markerfacecolor=STAND_IN["paper"],
            label="coefficients tried",
            **style,
        )
        axes.plot([p[1] for p in front], [p[2] for p in front], "o", label="none is better in both", **style)
        ends = {min(points)[0], max(points)[0]} if points else set()
        for c, x, y in points:
            if c == curve.coefficient:
                axes.plot(
                    x,
                    y,
                    "D",
                    color=STAND_IN["c2"],
                    markersize=9,
                    markerfacecolor="none",
                    linestyle="none",
                    label=f"chosen: {c:g}",
                )
            if c in ends or c == curve.coefficient:
                axes.annotate(
                    f"{c:g}", (x, y), xytext=(6, 5), textcoords="offset points", fontsize=8, color=STAND_IN["ink"]
                )
        if curve.at_most is not None:
            axes.axvline(
                100 * curve.at_most,
                color=STAND_IN["muted"],
                linewidth=1.1,
                linestyle=(0, (1, 1.5)),
                label=f"limit {curve.at_most:g}",
            )
        if curve.accuracy_at_least is not None:
            axes.axhline(100 * curve.accuracy_at_least, **FLOOR)
        axes.set_xlim(left=0)
        axes.set_xlabel(f"{GAP_WORDS[gap]}, points")
        axes.set_ylabel("accuracy, %")
        axes.grid()
        literal(figure.legend(loc="outside lower left", ncols=2))

    said = ", ".join(f"{c:g}: {x:.1f} and {y:.1f} %" for c, x, y in points)
    alt = f"{GAP_WORDS[gap].capitalize()} in points and accuracy of {clean(row.name)} by coefficient. {said}."
    return svg(draw, (4.9, 3.6), alt, key)  # fmt: skip


def trade(rows: Sequence[FairnessRow], key: str) -> str:
    """Accuracy against the parity difference on test data, one cross for each model."""
    known = [r for r in rows if r.audit.gaps.get("parity") and r.audit.overall.accuracy]

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        for row in known:
            gap, right = row.audit.gaps["parity"], row.audit.overall.accuracy
            assert gap and right
            colour, mark = look(rows, row.name)
            ink = STAND_IN[colour]
            axes.plot([100 * gap.low, 100 * gap.high], [100 * right.value] * 2, color=ink, linewidth=1.2)
            axes.plot([100 * gap.value] * 2, [100 * right.low, 100 * right.high], color=ink, linewidth=1.2)
            axes.plot(
                100 * gap.value,
                100 * right.value,
                mark,
                color=ink,
                markersize=6.5,
                linestyle="none",
                label=clean(row.name, 34),
            )
        axes.set_xlim(left=0)
        axes.set_xlabel("parity difference, points")
        axes.set_ylabel("test accuracy, %")
        axes.grid()
        literal(figure.legend(loc="outside lower left", ncols=3))

    said = ", ".join(
        f"{clean(r.name)} {g.value:.3f} and {r.audit.overall.accuracy}" for r in known if (g := r.audit.gaps["parity"])
    )
    return svg(draw, (4.9, 3.4), f"Parity difference and accuracy on test data: {said}.", key)  # fmt: skip
