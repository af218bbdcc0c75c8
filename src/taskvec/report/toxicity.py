"""The story of a toxicity result. It has numbers only: no result holds what a model wrote."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..results import Agreement, Continuations, Fluency, Score, ToxicityResult, ToxicityRow
from .section import Section
from .seeds import Where, by_key, spread
from .tables import Cell, Table
from .words import NONE, WITHIN, beyond, clean, compare, count, interval, legible, percent

POINT = "task arithmetic"  # the row that the result is about
QUESTION = "Does subtracting a vector of toxic text make a language model less toxic, and leave it as fluent?"
EQUATION = "θ = θ₀ − α τ(toxic text)"


def toxicity_section(result: ToxicityResult) -> Section:
    """The story of a toxicity result."""
    base, row = result.row("base"), result.row(POINT)
    verdict = compare(row.overall.toxic, base.overall.toxic)
    return Section(
        title=clean(result.title),
        question=QUESTION,
        equation=EQUATION,
        figure=f"{percent(base.overall.toxic.value)} → {percent(row.overall.toxic.value)}",
        figure_label=f"toxic continuations by the scorer ‘{clean(result.scorer.name)}’, which are to become fewer",
        verdict=verdict,
        sentences=(
            *_fall(result, base, row, verdict),
            _fluency(result, base, row),
            _silence(base, row),
            *_groups(base, row),
            *_others(result, row),
            *_scorer(result),
        ),
        tables=tuple(
            t for t in (_rows(result), _by_group(result), _agreement(result.scorer.agreement), _choices(result)) if t
        ),
        notes=_notes(result),
    )


def _fall(result: ToxicityResult, base: ToxicityRow, row: ToxicityRow, verdict: str) -> list[str]:
    now, had = row.overall, base.overall
    each = (
        f"{count(now.samples, 'continuation')} of each of {now.prompts} prompts"
        if now.samples > 1
        else f"a continuation of each of {now.prompts} prompts"
    )
    said = [
        f"Of {each}, {percent(now.toxic.value)} {interval(now.toxic)} score {result.scorer.threshold:g} or more with {POINT} at coefficient "
        f"{row.coefficient:g}; of the base’s {percent(had.toxic.value)} {interval(had.toxic)}: {beyond(verdict)}.",
        f"The mean score goes from {_number(had.mean)} to {_number(now.mean)} ({beyond(compare(now.mean, had.mean))}).",
    ]  # fmt: skip
    if now.samples > 1:
        said.append(
            f"The worst of a prompt’s {now.samples} continuations scores {_number(now.worst)} on the mean over prompts, the base’s "
            f"{_number(had.worst)} ({beyond(compare(now.worst, had.worst))})."
        )
    return said


def _fluency(result: ToxicityResult, base: ToxicityRow, row: ToxicityRow) -> str:
    ratio = row.fluency.token / base.fluency.token
    word = "holds" if ratio <= result.perplexity_ratio else "does not hold"
    return (
        f"Perplexity on ‘{clean(result.control)}’ goes from {_perplexity(base.fluency)} to {_perplexity(row.fluency)}, by a factor of {ratio:.3f}. "
        f"The rule asked for at most {result.perplexity_ratio:g} on validation data; on test data it {word}."
    )


def _silence(base: ToxicityRow, row: ToxicityRow) -> str:
    parts, more = [], False
    for name, what in (("empty", "are empty"), ("repeating", "repeat themselves")):
        now, had = getattr(row.overall, name), getattr(base.overall, name)
        parts.append(f"{percent(now.value)} {interval(now)} {what}, of the base’s {percent(had.value)} {interval(had)}")
        more = more or compare(now, had) == "higher"
    end = (
        "part of a fall in toxicity may be that the model says less"
        if more
        else "no more than the base’s, as far as the intervals tell"
    )
    return f"Of its continuations {'; '.join(parts)}: {end}."


def _groups(base: ToxicityRow, row: ToxicityRow) -> list[str]:
    if not row.groups:
        return []
    found: dict[str, list[str]] = {"lower": [], "higher": [], WITHIN: []}
    for group, now in row.groups.items():
        found[compare(now.mean, base.groups[group].mean)].append(clean(group))
    parts = [f"{word} than the base’s for {', '.join(found[word])}" for word in ("lower", "higher") if found[word]]
    some = (
        f"Group by group the mean score is {' and '.join(parts)}"
        if parts
        else "No group’s mean score differs beyond the intervals"
    )
    rest = f"; for {', '.join(found[WITHIN])} the difference is within the intervals" if parts and found[WITHIN] else ""
    return [f"{some}{rest}."]


def _others(result: ToxicityResult, row: ToxicityRow) -> list[str]:
    said = []
    for other in result.rows:
        if other.name in ("base", POINT):
            continue
        at = "" if other.coefficient is None else f" at coefficient {other.coefficient:g}"
        found = compare(other.overall.mean, row.overall.mean)
        than = found if found == WITHIN else f"{found} than {POINT}, beyond the intervals"
        said.append(
            f"For comparison, {clean(other.name)}{at}: {percent(other.overall.toxic.value)} toxic, mean score {_number(other.overall.mean)} ({than}), "
            f"perplexity {_perplexity(other.fluency)}."
        )
    return said


def _scorer(result: ToxicityResult) -> list[str]:
    judge = result.scorer
    name = f"the scorer ‘{clean(judge.name)}’ ({clean(judge.version)}; sha256 {clean(judge.sha256[:12])})"
    if judge.agreement is None:
        return [
            f"What is toxic is the opinion of {name}, which was not held against labels here: it may be wrong in any way."
        ]
    a = judge.agreement
    chance = " That is no better than chance." if a.auc.low <= 0.5 <= a.auc.high else ""
    chance = " That is worse than chance: its opinion is of little use on such text." if a.auc.high < 0.5 else chance
    return [
        f"What is toxic is the opinion of {name}. On {a.accuracy.n} labelled texts of ‘{clean(a.data)}’ its AUC is {_number(a.auc)} (0.5 is "
        f"chance) and its accuracy {percent(a.accuracy.value)} {interval(a.accuracy)}: it finds {percent(a.found.value)} {interval(a.found)} of "
        f"the toxic ones and calls {percent(a.alarms.value)} {interval(a.alarms)} of the others toxic.{chance}"
    ]  # fmt: skip


# ---- tables -----------------------------------------------------------------------------------------------------------


def _rows(result: ToxicityResult) -> Table:
    one = result.rows[0].overall
    columns: dict[str, Callable[[Continuations], Score]] = {
        f"toxic, {result.scorer.threshold:g} or more (n = {one.toxic.n})": lambda c: c.toxic
    }
    if one.samples > 1:
        columns[f"prompts with one that is (n = {one.prompts})"] = lambda c: c.ever
    shares = {"empty": lambda c: c.empty, "repeating": lambda c: c.repeating}
    lines = []
    for row in result.rows:
        cells = [Cell(clean(row.name)), Cell(NONE if row.coefficient is None else f"{row.coefficient:g}")]
        cells += [_share(f(row.overall)) for f in columns.values()]
        cells += [_mean(row.overall.mean)] + ([_mean(row.overall.worst)] if one.samples > 1 else [])
        cells += [_share(f(row.overall)) for f in shares.values()]
        f = row.fluency
        cells += [
            Cell(legible(f.token), (f"[{legible(f.low)},\u00a0{legible(f.high)}]",)),
            Cell(legible(f.word)),
            Cell(f"{f.bits_per_byte:.4g}"),
        ]
        lines.append(tuple(cells))
    tokens = result.rows[0].fluency.tokens
    heads = (
        "model",
        "coefficient",
        *columns,
        "mean score",
        *(("worst of a prompt",) if one.samples > 1 else ()),
        *shares,
    )
    caption = (
        f"Continuations of {clean(result.prompts)} and perplexity on {clean(result.control)}, test parts, read once"
    )
    return Table(caption, (*heads, f"perplexity (n = {tokens} tokens)", "per word", "bits per byte"), tuple(lines))


def _by_group(result: ToxicityResult) -> Table | None:
    groups = result.rows[0].groups
    if not groups:
        return None
    heads = ("group", "prompts", *(clean(r.name) for r in result.rows))
    lines = tuple(
        (Cell(clean(g)), Cell(str(groups[g].prompts)), *(Cell(_plain(r.groups[g].mean), (_bounds(r.groups[g].mean), f"{percent(r.groups[g].toxic.value)} toxic")) for r in result.rows))
        for g in groups
    )  # fmt: skip
    return Table("Mean score by group of prompts, and share of toxic continuations", heads, lines)


def _agreement(found: Agreement | None) -> Table | None:
    if found is None:
        return None
    lines = []
    for name, a in (("all", found), *found.groups.items()):
        cells = (
            Cell(clean(name)),
            Cell(str(a.accuracy.n)),
            _share(a.accuracy),
            _mean(a.auc),
            _share(a.found),
            _share(a.alarms),
        )
        lines.append(cells)
    heads = ("group", "n", f"accuracy at {found.threshold:g}", "AUC", "toxic texts it finds", "others it calls toxic")
    return Table(f"The scorer against the labels of {clean(found.data)}", heads, tuple(lines))


def _choices(result: ToxicityResult) -> Table:
    lines = []
    for row in result.rows:
        if row.coefficient is None:
            continue
        tried = [p.coefficient for p in row.points]
        seen = next((p.continuations for p in row.points if p.continuations), None)
        n = f"{seen.prompts} prompts, {count(seen.samples, 'continuation')} each" if seen else NONE
        kept = sum(
            1 for p in row.points if p.fluency and p.fluency.token <= result.perplexity_ratio * unedited_perplexity(row)
        )
        lines.append(
            (
                Cell(clean(row.name)),
                Cell(f"{row.coefficient:g}"),
                Cell(f"{min(tried):g} to {max(tried):g}, {count(len(tried), 'point')}, {kept} allowed"),
                Cell(f"least mean score with perplexity at most {result.perplexity_ratio:g} times the base’s"),
                Cell(f"validation ({n})"),
            )
        )
    columns = ("model", "chosen coefficient", "coefficients tried", "rule", "chosen on")
    return Table("How the coefficients were chosen", columns, tuple(lines), prose=True)


def unedited_perplexity(row: ToxicityRow) -> float:
    """The base's perplexity on validation data."""
    return next(p.fluency.token for p in row.points if p.coefficient == 0 and p.fluency)


def _notes(result: ToxicityResult) -> tuple[str, ...]:
    found = [f"{clean(r.name)}: {clean(r.note)}" for r in result.rows if r.note]
    for row in result.rows:
        if row.coefficient and row.points and row.coefficient == max(p.coefficient for p in row.points):
            found.append(
                f"{clean(row.name)}: the chosen coefficient is the largest that was tried; a larger one may do better."
            )
    found.append(
        "Intervals are of 95 %; continuations of one prompt count together, those of perplexity are by bootstrap. The scorer’s own mistakes are not in "
        "them."
    )
    return tuple(found)


def _number(score: Score) -> str:
    return f"{_plain(score)} {_bounds(score)}"


def _plain(score: Score) -> str:
    return f"{score.value:.3f}"


def _bounds(score: Score) -> str:
    return f"[{score.low:.3f},\u00a0{score.high:.3f}]"


def _share(score: Score) -> Cell:
    return Cell(percent(score.value), (interval(score),))


def _mean(score: Score) -> Cell:
    return Cell(_plain(score), (_bounds(score),))


def _perplexity(f: Fluency) -> str:
    return f"{legible(f.token)} [{legible(f.low)},\u00a0{legible(f.high)}]"


# ---- over a study -----------------------------------------------------------------------------------------------------


def toxicity_overview(placed: Sequence[tuple[Where, Any]]) -> Section:
    """Every base and regime of a study, mean and spread over seeds."""
    names = list(dict.fromkeys(r.name for _, result in placed for r in result.rows))

    def table(caption: str, measure: Callable[[ToxicityRow], float | None], digits: int) -> Table:
        lines = []
        for (base, regime), found in by_key(placed).items():
            cells = [Cell(clean(base)), Cell(clean(regime)), Cell(", ".join(str(w["seed"]) for w, _ in found))]
            for name in names:
                rows: list[ToxicityRow] = [r for _, result in found for r in result.rows if r.name == name]
                cells.append(Cell(spread([v for r in rows if (v := measure(r)) is not None], digits=digits)))
            lines.append(tuple(cells))
        return Table(caption, ("base", "regime", "seeds", *map(clean, names)), tuple(lines))

    measures: Mapping[str, tuple[Callable[[ToxicityRow], float | None], int]] = {
        "Toxic continuations, %": (lambda r: 100 * r.overall.toxic.value, 1),
        "Mean score": (lambda r: r.overall.mean.value, 3),
        "Worst of a prompt, mean over prompts": (lambda r: r.overall.worst.value, 3),
        "Control perplexity": (lambda r: r.fluency.token, 2),
        "Empty or repeating continuations, %": (lambda r: 100 * (r.overall.empty.value + r.overall.repeating.value), 1),
        "Chosen coefficient": (lambda r: r.coefficient, 2),
    }
    (base, regime), first = next(iter(by_key(placed).items()))
    before, after = ([100 * r.row(n).overall.toxic.value for _, r in first] for n in ("base", POINT))
    fluent = statistics.mean(r.row(POINT).fluency.token / r.row("base").fluency.token for _, r in first)
    one: ToxicityResult = placed[0][1]
    return Section(
        title="Toxicity, over all bases",
        question=QUESTION,
        equation=EQUATION,
        figure=f"{spread(before)} → {spread(after)}",
        figure_label=f"% toxic continuations by the scorer ‘{clean(one.scorer.name)}’: {clean(base)}, {clean(regime)}",
        verdict="",
        sentences=(
            f"In {clean(base)}, {clean(regime)}, {spread(before)} % of the base’s continuations are toxic and {spread(after)} % of the edited "
            f"model’s, whose control perplexity is {fluent:.3f} times the base’s. ± is the standard deviation over seeds.",
            *_scorer(one),
        ),
        tables=(
            *(table(caption, f, digits) for caption, (f, digits) in measures.items()),
            *(t for t in (_agreement(one.scorer.agreement),) if t),
        ),
        notes=(),
    )  # fmt: skip
