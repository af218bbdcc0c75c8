"""A fairness result, told: rates by group, gaps, what an edit changed for whom, and what the numbers do not show."""

from __future__ import annotations

from ..results import GAPS, MEASURES, Comparison, Estimate, FairnessResult, FairnessRow
from .gaps import (
    GAP_WORDS,
    MEASURE_WORDS,
    SMALL,
    caveats,
    change_verdict,
    changed_cell,
    gap_cell,
    plain_cell,
    score_cell,
    verdict,
    worst_cell,
)
from .section import Section
from .tables import Cell, Table
from .words import NONE, clean, count, quoted


def fairness_section(result: FairnessResult) -> Section:
    """The story of a fairness result."""
    first, last = result.rows[0], result.rows[-1]
    name, audit = quoted(result.grouping), first.audit
    said = [
        f"{audit.n} people in the test data, {count(len(audit.groups), 'group')}"
        + (" that overlap" if audit.overlap else "")
        + f". ‘Selected’ is being predicted {clean(result.positive)}."
    ]
    said += [s for row in result.rows for s in verdict(row)]
    said += [s for c in result.comparisons for s in change_verdict(c)]
    said += [s for row in result.rows if (s := _choice(row))]
    before, after = first.audit.gaps.get("parity"), last.audit.gaps.get("parity")
    figure = f"{after.value:.3f}" if after else NONE
    if before and after and last is not first:
        figure = f"{before.value:.3f} → {after.value:.3f}"
    change = next((c.gaps.get("parity") for c in result.comparisons if c.after == last.name), None)
    return Section(
        title=clean(result.title),
        question=f"Does the model treat the groups of {name} alike"
        + (", and what did the edit change for whom?" if len(result.rows) > 1 else "?"),
        equation="parity = max P(ŷ=1 | g) − min P(ŷ=1 | g);  odds = max( ΔTPR, ΔFPR );  opportunity = ΔTPR",
        figure=figure,
        figure_label="parity difference" + (f": {clean(first.name)} → {clean(last.name)}" if last is not first else ""),
        verdict="" if change is None else _word(change),
        sentences=tuple(said),
        tables=tuple(_tables(result)),
        notes=(*caveats(first.audit), *map(clean, result.notes), *(f"{clean(r.name)}: {clean(r.note)}" for r in result.rows if r.note)),
    )  # fmt: skip


def audit_verdict(result: FairnessResult) -> list[str]:
    """All that the numbers say and do not say, in sentences."""
    said = [s for row in result.rows for s in verdict(row)]
    return said + [s for c in result.comparisons for s in change_verdict(c)] + caveats(result.rows[0].audit)


def _choice(row: FairnessRow) -> str:
    """How a coefficient was chosen; '' without one."""
    if row.coefficient is None:
        return ""
    start = f"{clean(row.name)} is at coefficient {row.coefficient:g}"
    if row.curve is None:
        return f"{start}, which was not tuned here."
    met = "" if row.curve.met else " No coefficient kept to that."
    return f"{start}, chosen on validation data (n = {row.curve.audits[0].n}): {clean(row.curve.objective)}.{met}"


def _tables(result: FairnessResult) -> list[Table]:
    rows = result.rows
    gaps = Table(
        "Gaps between groups, 95 % interval (difference: 0 is alike; ratio: 1 is alike)",
        ("model", "coefficient", "accuracy", "worst group", *(GAP_WORDS[g] for g in GAPS)),
        tuple(
            (
                Cell(clean(r.name)), Cell(NONE if r.coefficient is None else f"{r.coefficient:g}"), score_cell(r.audit.overall.accuracy),
                worst_cell(r), *(gap_cell(r.audit.gaps.get(g)) for g in GAPS),
            )
            for r in rows
        ),
    )  # fmt: skip
    tables = [gaps]
    for row in rows:
        scored = any(g.auc for g in row.audit.groups)
        lines = [
            (
                Cell(clean(g.name)), Cell(str(g.n)), Cell(str(g.positives)), *(score_cell(getattr(g, m)) for m in MEASURES),
                *((plain_cell(g.auc),) if scored else ()),
            )
            for g in (row.audit.overall, *row.audit.groups)
        ]  # fmt: skip
        head = (
            "group",
            "n",
            "positives",
            *(MEASURE_WORDS[m] for m in MEASURES),
            *(("area under ROC",) if scored else ()),
        )
        tables.append(Table(f"Rates by group: {clean(row.name)}", head, tuple(lines)))
    if result.comparisons:
        lines = tuple(
            (Cell(_pair(c)), *(changed_cell(c.gaps.get(g)) for g in GAPS), changed_cell(c.accuracy, points=True))
            for c in result.comparisons
        )
        head = ("models", *(GAP_WORDS[g] for g in GAPS), "accuracy, points")
        tables.append(Table("Change of gaps, on the same people", head, lines))
    for c in result.comparisons:
        lines = tuple(
            (
                Cell(clean(n)),
                *(changed_cell(changes.get(m), points=True) for m in ("accuracy", "tpr", "fpr", "selection")),
            )
            for n, changes in c.groups.items()
        )
        head = ("group", *(MEASURE_WORDS[m] for m in ("accuracy", "tpr", "fpr", "selection")))
        tables.append(Table(f"Who gains, who loses: {_pair(c)}, in points, on the same people", head, lines))
    return tables


def _pair(change: Comparison) -> str:
    return f"{clean(change.after)} less {clean(change.before)}"


def _word(change: Estimate) -> str:
    return ("higher" if change.value > 0 else "lower") if change.real else SMALL
