"""A fairness result, told: rates by group, gaps, what an edit changed for whom, and what the numbers do not show."""

from __future__ import annotations

from collections.abc import Sequence

from ..results import GAPS, MEASURES, Comparison, Estimate, FairnessResult, FairnessRow, Gap, GapName, Measure, Score
from .section import Section
from .tables import Cell, Table
from .words import NONE, clean, count, interval, percent, quoted

GAP_WORDS: dict[GapName, str] = {
    "parity": "parity difference", "parity_ratio": "parity ratio", "odds": "odds difference", "odds_ratio": "odds ratio",
    "opportunity": "opportunity difference", "accuracy": "accuracy difference",
}  # fmt: skip
MEASURE_WORDS: dict[Measure, str] = {
    "accuracy": "accuracy", "selection": "selection rate", "tpr": "true positive rate", "fpr": "false positive rate",
}  # fmt: skip
DIFFERENCES: tuple[GapName, ...] = ("parity", "odds", "opportunity", "accuracy")
SMALL = "change within the interval"


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
        notes=(*caveats(result), *map(clean, result.notes), *(f"{clean(r.name)}: {clean(r.note)}" for r in result.rows if r.note)),
    )  # fmt: skip


def audit_verdict(result: FairnessResult) -> list[str]:
    """All that the numbers say and do not say, in sentences."""
    said = [s for row in result.rows for s in verdict(row)]
    return said + [s for c in result.comparisons for s in change_verdict(c)] + caveats(result)


# ---- sentences ------------------------------------------------------------------------------------------------------


def verdict(row: FairnessRow) -> list[str]:
    """What one audit says, in plain words."""
    audit, name = row.audit, clean(row.name)
    parts = []
    if right := audit.overall.accuracy:
        worst = audit.worst
        least = (
            f", least for {quoted(worst.name)} with {percent(worst.accuracy.value)} {interval(worst.accuracy)}"
            if worst and worst.accuracy
            else ""
        )
        parts.append(f"right for {percent(right.value)} {interval(right)} of all{least}")
    if parity := audit.gaps.get("parity"):
        rates = {g.name: g.selection for g in audit.groups}
        most, least_rate = rates[parity.most], rates[parity.least]
        if most and least_rate:
            parts.append(
                f"selects {percent(most.value)} of {quoted(parity.most)} and {percent(least_rate.value)} of {quoted(parity.least)}, a parity "
                f"difference of {_estimate(parity)}{_shown(parity)}"
            )
    if odds := audit.gaps.get("odds"):
        parts.append(
            f"among people of the same label its rates differ by up to {_estimate(odds)}, {quoted(odds.most)} above "
            f"{quoted(odds.least)}{_shown(odds)}"
        )
    for gap in ("parity", "odds"):
        if audit.gaps.get(gap) is None:
            parts.append(f"the {GAP_WORDS[gap]} could not be measured ({audit.unmeasured.get(gap, 'unknown why')})")
    return [f"{name}: {'; '.join(parts)}."]


def _shown(gap: Gap) -> str:
    return "" if gap.low > 0 else " (not shown to be more than chance)"


def change_verdict(change: Comparison) -> list[str]:
    """What one comparison says: the gaps, then who gains and who loses."""
    before, after = clean(change.before), clean(change.after)
    moved: list[str] = []
    still: list[str] = []
    for gap in DIFFERENCES:
        if found := change.gaps.get(gap):
            word = GAP_WORDS[gap]
            if found.real:
                moved.append(f"a {'larger' if found.value > 0 else 'smaller'} {word} ({signed(found)})")
            else:
                still.append(f"{word} ({signed(found)})")
    said = []
    if moved:
        said.append(f"{after} has {_list(moved)} than {before}, beyond the interval.")
    if still:
        said.append(f"No change from {before} to {after} is shown in {_list(still)}.")
    right = change.accuracy
    said.append(
        f"Overall accuracy of {after} less {before}: {signed(right, points=True)}"
        + (", beyond the interval." if right.real else f": {SMALL}.")
    )
    winners, losers = (
        [n for n, c in change.groups.items() if (e := c.get("accuracy")) and e.real and (e.value > 0) is up]
        for up in (True, False)
    )
    for names, word in ((winners, "gains"), (losers, "loses")):
        if names:
            shown = ", ".join(f"{quoted(n)} {signed(change.groups[n]['accuracy'], points=True)}" for n in names[:6])
            more = f" and {len(names) - 6} more" if len(names) > 6 else ""
            said.append(f"Who {word} accuracy from {before} to {after}: {shown}{more}.")
    if not winners and not losers:
        said.append(f"No group's accuracy changes beyond its interval from {before} to {after}.")
    return said  # fmt: skip


def _choice(row: FairnessRow) -> str:
    """How a coefficient was chosen; '' without one."""
    if row.coefficient is None:
        return ""
    start = f"{clean(row.name)} is at coefficient {row.coefficient:g}"
    if row.curve is None:
        return f"{start}, which was not tuned here."
    met = "" if row.curve.met else " No coefficient kept to that."
    return f"{start}, chosen on validation data (n = {row.curve.audits[0].n}): {clean(row.curve.objective)}.{met}"


def caveats(result: FairnessResult) -> list[str]:
    """What the numbers do not show; and who was left out."""
    audit = result.rows[0].audit
    found = []
    if audit.missing:
        found.append(f"{audit.missing} of {audit.n} people belong to no group: they count overall and in no gap.")
    small = [
        f"{quoted(g.name)} ({next(iter(g.left_out.values()))})" for g in audit.flagged if "selection" in g.left_out
    ]
    if small:
        found.append(
            f"Left out of every gap: {_list(small)}. Nothing is said about these groups; collect more of them."
        )
    for measure in ("tpr", "fpr"):
        part = [g for g in audit.flagged if measure in g.left_out and "selection" not in g.left_out]
        if part:
            found.append(
                f"Left out of gaps in {MEASURE_WORDS[measure]}: {_list([f'{quoted(g.name)} ({g.left_out[measure]})' for g in part])}."
            )
    thin = [g for g in audit.groups if "tpr" not in g.left_out and g.positives < audit.min_n]
    if thin:
        said = _list([f"{quoted(g.name)} ({count(g.positives, 'positive')})" for g in thin])
        found.append(f"True positive rates of {said} rest on fewer than {audit.min_n} people.")
    found.append(
        "Where the interval of a difference leaves out 0, it is more than the chance of who is in the sample; where it reaches 0, the data "
        "show neither a difference nor that there is none."
    )
    found.append(
        "Gaps are between the most and the least favoured group of this sample, with an interval that holds for all pairs of groups "
        f"together (bootstrap of people, {audit.draws} draws). With many or small groups a gap of a sample is larger than that of the "
        "population: look at the interval, not at the number alone. Changes of gaps are judged one by one, not all together."
    )
    found.append(
        "One data set and one reading of it: nothing here says how the model treats people of another place or time, whether the labels "
        "are fair themselves, or why groups differ. The gaps cannot all be 0 at once where groups differ in the label, and a small gap "
        "is no proof of fairness."
    )
    return found  # fmt: skip


# ---- tables ---------------------------------------------------------------------------------------------------------


def _tables(result: FairnessResult) -> list[Table]:
    rows = result.rows
    gaps = Table(
        "Gaps between groups, 95 % interval (difference: 0 is alike; ratio: 1 is alike)",
        ("model", "coefficient", "accuracy", "worst group", *(GAP_WORDS[g] for g in GAPS)),
        tuple(
            (
                Cell(clean(r.name)), Cell(NONE if r.coefficient is None else f"{r.coefficient:g}"), _score(r.audit.overall.accuracy),
                _worst(r), *(_gap(r.audit.gaps.get(g)) for g in GAPS),
            )
            for r in rows
        ),
    )  # fmt: skip
    tables = [gaps]
    for row in rows:
        scored = any(g.auc for g in row.audit.groups)
        lines = [
            (
                Cell(clean(g.name)), Cell(str(g.n)), Cell(str(g.positives)), *(_score(getattr(g, m)) for m in MEASURES),
                *((_plain(g.auc),) if scored else ()),
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
            (Cell(_pair(c)), *(_changed(c.gaps.get(g)) for g in GAPS), _changed(c.accuracy, points=True))
            for c in result.comparisons
        )
        head = ("models", *(GAP_WORDS[g] for g in GAPS), "accuracy, points")
        tables.append(Table("Change of gaps, on the same people", head, lines))
    for c in result.comparisons:
        lines = tuple(
            (Cell(clean(n)), *(_changed(changes.get(m), points=True) for m in ("accuracy", "tpr", "fpr", "selection")))
            for n, changes in c.groups.items()
        )
        head = ("group", *(MEASURE_WORDS[m] for m in ("accuracy", "tpr", "fpr", "selection")))
        tables.append(Table(f"Who gains, who loses: {_pair(c)}, in points, on the same people", head, lines))
    return tables


def _pair(change: Comparison) -> str:
    return f"{clean(change.after)} less {clean(change.before)}"


def _score(score: Score | None) -> Cell:
    return Cell(NONE) if score is None else Cell(percent(score.value), (interval(score), f"n\u00a0{score.n}"))


def _worst(row: FairnessRow) -> Cell:
    worst = row.audit.worst
    if worst is None or worst.accuracy is None:
        return Cell(NONE)
    return Cell(percent(worst.accuracy.value), (clean(worst.name, 24), interval(worst.accuracy)))


def _gap(gap: Gap | None) -> Cell:
    if gap is None:
        return Cell(NONE)
    return Cell(
        f"{gap.value:.3f}", (f"[{gap.low:.3f},\u00a0{gap.high:.3f}]", f"{clean(gap.most, 16)} – {clean(gap.least, 16)}")
    )


def _plain(found: Estimate | None) -> Cell:
    return Cell(NONE) if found is None else Cell(f"{found.value:.3f}", (f"[{found.low:.3f},\u00a0{found.high:.3f}]",))


def _changed(found: Estimate | None, points: bool = False) -> Cell:
    if found is None:
        return Cell(NONE)
    scale, digits = (100, 1) if points else (1, 3)
    low, high = (f"{scale * x:+.{digits}f}" for x in (found.low, found.high))
    word = ("more" if found.value > 0 else "less") if found.real else "not shown"
    return Cell(f"{scale * found.value:+.{digits}f}", (f"[{low},\u00a0{high}]", word))


# ---- words ----------------------------------------------------------------------------------------------------------


def _estimate(found: Estimate) -> str:
    return f"{found.value:.3f} [{found.low:.3f},\u00a0{found.high:.3f}]"


def signed(found: Estimate, points: bool = False) -> str:
    if points:
        return f"{100 * found.value:+.1f} points [{100 * found.low:+.1f},\u00a0{100 * found.high:+.1f}]"
    return f"{found.value:+.3f} [{found.low:+.3f},\u00a0{found.high:+.3f}]"


def _word(change: Estimate) -> str:
    return ("higher" if change.value > 0 else "lower") if change.real else SMALL


def _list(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
