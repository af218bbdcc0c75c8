"""Pictures of a fairness result: rates by group, who gains, gaps along the coefficient, accuracy against the gap."""

from __future__ import annotations

import math
from typing import Any

from ..results import FairnessResult, FairnessRow, Measure
from .figures import DASHES, STAND_IN, literal, svg
from .gap_figures import along, look, pareto, trade
from .gaps import MEASURE_WORDS, signed
from .words import clean

SHOWN = 16  # groups in a picture


def fairness_figures(result: FairnessResult, key: str) -> list[tuple[str, str]]:
    """The drawings of a fairness result, each with its caption."""
    drawn = []
    for i, measure in enumerate(("selection", "tpr", "fpr", "accuracy")):
        caption = f"{MEASURE_WORDS[measure].capitalize()} by group. Whiskers: 95 % interval."
        drawn.append((_by_group(result, measure, f"{key}b{i}"), caption))
    if result.comparisons:
        drawn.append(
            (
                _gains(result, f"{key}w"),
                "Change of a group's accuracy, on the same people. Whiskers: paired 95 % interval.",
            )
        )
    for i, row in enumerate(result.rows):
        if row.curve:
            name = clean(row.name)
            drawn.append(
                (
                    along(row, f"{key}c{i}"),
                    f"{name}: accuracy and gaps on validation data. Bands: 95 % interval (of the gap that decided).",
                )
            )
            drawn.append(
                (
                    pareto(row, f"{key}p{i}"),
                    f"{name}: what accuracy costs in the gap, on validation data; each point a coefficient.",
                )
            )
    if len(result.rows) > 1:
        drawn.append(
            (
                trade(result.rows, f"{key}t"),
                "Accuracy against the parity difference on test data. Crosses: 95 % intervals.",
            )
        )
    return drawn  # fmt: skip


def _groups_shown(result: FairnessResult) -> tuple[list[str], str]:
    """The largest groups, in the order of the result, and a remark if there are more."""
    groups = result.rows[0].audit.groups
    if len(groups) <= SHOWN:
        return [g.name for g in groups], ""
    large = {g.name for g in sorted(groups, key=lambda g: -g.n)[:SHOWN]}
    return [g.name for g in groups if g.name in large], f"the {SHOWN} largest of {len(groups)} groups"


def _by_group(result: FairnessResult, measure: Measure, key: str) -> str:
    """One bar for each group and model, with whiskers; the line is everybody."""
    names, remark = _groups_shown(result)
    rows = result.rows
    thick = 0.8 / len(rows)

    def draw(figure: Any) -> None:
        from matplotlib.patches import Patch

        axes, far, models = figure.add_subplot(), 0.0, []
        for i, row in enumerate(rows):
            colour = STAND_IN[look(rows, row.name)[0]]
            models.append(Patch(color=colour, alpha=0.62, linewidth=0, label=clean(row.name, 34)))
            for at, name in enumerate(names):
                found = getattr(row.audit.group(name), measure)
                y = at + (i - (len(rows) - 1) / 2) * thick
                if found is None:
                    axes.text(1, y, "n/a", va="center", fontsize=7, color=STAND_IN["muted"])
                    continue
                faint = measure in row.audit.group(name).left_out
                far = max(far, 100 * found.high)
                axes.barh(y, 100 * found.value, 0.86 * thick, color=colour, alpha=0.22 if faint else 0.62, linewidth=0)
                axes.plot(
                    [100 * found.low, 100 * found.high],
                    [y, y],
                    color=STAND_IN["ink"],
                    linewidth=1.0,
                    alpha=0.45 if faint else 1,
                )
            if overall := getattr(row.audit.overall, measure):
                axes.axvline(100 * overall.value, color=colour, linewidth=1.0, linestyle=DASHES[i % len(DASHES)])
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlim(0, min(100, 1.05 * far) or 1)
        axes.set_yticks(range(len(names)), [_tick(rows[0], n, measure) for n in names], parse_math=False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(f"{MEASURE_WORDS[measure]}, %" + (f" ({remark})" if remark else ""))
        axes.grid(axis="x")
        literal(figure.legend(handles=models, loc="outside lower left", ncols=3))

    said = "; ".join(
        f"{clean(row.name)}: "
        + ", ".join(f"{clean(n)} {getattr(row.audit.group(n), measure) or 'nobody'}" for n in names)
        for row in rows
    )
    inches = (4.9, 1.0 + 0.17 * math.ceil(len(rows) / 3) + len(names) * max(0.26, 0.13 * len(rows)))
    return svg(draw, inches, f"{MEASURE_WORDS[measure].capitalize()} by group. {said}.", key)  # fmt: skip


def _tick(row: FairnessRow, name: str, measure: Measure) -> str:
    group = row.audit.group(name)
    of = {"tpr": group.positives, "fpr": group.negatives}.get(measure, group.n)
    return f"{clean(name, 24)}  (n {of})"


def _gains(result: FairnessResult, key: str) -> str:
    names, remark = _groups_shown(result)
    rows, changes = result.rows, result.comparisons
    step = 0.7 / len(changes)

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        axes.axvline(0, color=STAND_IN["ink"], linewidth=0.9)
        for i, change in enumerate(changes):
            colour, mark = look(rows, change.after)
            label: str | None = f"{clean(change.after, 20)} less {clean(change.before, 20)}"
            for at, name in enumerate(names):
                found = change.groups.get(name, {}).get("accuracy")
                if found is None:
                    continue
                y = at + (i - (len(changes) - 1) / 2) * step
                axes.plot(
                    [100 * found.low, 100 * found.high],
                    [y, y],
                    color=STAND_IN[colour],
                    linewidth=1.4,
                    solid_capstyle="butt",
                )
                fill = STAND_IN[colour if found.real else "paper"]
                style: dict[str, Any] = {
                    "color": STAND_IN[colour],
                    "markerfacecolor": fill,
                    "markersize": 6,
                    "linestyle": "none",
                }
                axes.plot(100 * found.value, y, mark, label=label, **style)
                label = None
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_yticks(range(len(names)), [_tick(rows[0], n, "accuracy") for n in names], parse_math=False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("change of accuracy, points; hollow: not shown" + (f" ({remark})" if remark else ""))
        axes.grid(axis="x")
        literal(figure.legend(loc="outside lower left", ncols=2))

    said = "; ".join(
        f"{clean(c.after)} less {clean(c.before)}: "
        + ", ".join(f"{clean(n)} {signed(e, points=True)}" for n in names if (e := c.groups.get(n, {}).get("accuracy")))
        for c in changes
    )
    inches = (4.9, 1.0 + 0.17 * math.ceil(len(changes) / 2) + len(names) * max(0.26, 0.14 * len(changes)))
    return svg(draw, inches, f"Change of accuracy by group. {said}.", key)  # fmt: skip
