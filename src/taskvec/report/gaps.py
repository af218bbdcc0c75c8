"""What reports say of an audit or a comparison: verdicts, what the numbers do not show, cells of tables."""

from __future__ import annotations

from collections.abc import Sequence

from ..results import Audit, Comparison, Estimate, FairnessRow, Gap, GapName, Measure, Score
from .tables import Cell
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
        said.append(f"{after} has {listed(moved)} than {before}, beyond the interval.")
    if still:
        said.append(f"No change from {before} to {after} is shown in {listed(still)}.")
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


def caveats(audit: Audit) -> list[str]:
    """What the numbers do not show; and who was left out."""
    found = []
    if audit.missing:
        found.append(f"{audit.missing} of {audit.n} people belong to no group: they count overall and in no gap.")
    small = [
        f"{quoted(g.name)} ({next(iter(g.left_out.values()))})" for g in audit.flagged if "selection" in g.left_out
    ]
    if small:
        found.append(
            f"Left out of every gap: {listed(small)}. Nothing is said about these groups; collect more of them."
        )
    for measure in ("tpr", "fpr"):
        part = [g for g in audit.flagged if measure in g.left_out and "selection" not in g.left_out]
        if part:
            found.append(
                f"Left out of gaps in {MEASURE_WORDS[measure]}: {listed([f'{quoted(g.name)} ({g.left_out[measure]})' for g in part])}."
            )
    thin = [g for g in audit.groups if "tpr" not in g.left_out and g.positives < audit.min_n]
    if thin:
        said = listed([f"{quoted(g.name)} ({count(g.positives, 'positive')})" for g in thin])
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


def score_cell(score: Score | None) -> Cell:
    """A rate with its interval."""
    return Cell(NONE) if score is None else Cell(percent(score.value), (interval(score), f"n\u00a0{score.n}"))


def worst_cell(row: FairnessRow) -> Cell:
    worst = row.audit.worst
    if worst is None or worst.accuracy is None:
        return Cell(NONE)
    return Cell(percent(worst.accuracy.value), (clean(worst.name, 24), interval(worst.accuracy)))


def gap_cell(gap: Gap | None) -> Cell:
    if gap is None:
        return Cell(NONE)
    return Cell(
        f"{gap.value:.3f}", (f"[{gap.low:.3f},\u00a0{gap.high:.3f}]", f"{clean(gap.most, 16)} – {clean(gap.least, 16)}")
    )


def plain_cell(found: Estimate | None) -> Cell:
    """A number with its interval."""
    return Cell(NONE) if found is None else Cell(f"{found.value:.3f}", (f"[{found.low:.3f},\u00a0{found.high:.3f}]",))


def changed_cell(found: Estimate | None, points: bool = False) -> Cell:
    if found is None:
        return Cell(NONE)
    scale, digits = (100, 1) if points else (1, 3)
    low, high = (f"{scale * x:+.{digits}f}" for x in (found.low, found.high))
    word = ("more" if found.value > 0 else "less") if found.real else "not shown"
    return Cell(f"{scale * found.value:+.{digits}f}", (f"[{low},\u00a0{high}]", word))


def _estimate(found: Estimate) -> str:
    return f"{found.value:.3f} [{found.low:.3f},\u00a0{found.high:.3f}]"


def signed(found: Estimate, points: bool = False) -> str:
    if points:
        return f"{100 * found.value:+.1f} points [{100 * found.low:+.1f},\u00a0{100 * found.high:+.1f}]"
    return f"{found.value:+.3f} [{found.low:+.3f},\u00a0{found.high:+.3f}]"


def listed(parts: Sequence[str]) -> str:
    """Parts as a sentence lists them."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
