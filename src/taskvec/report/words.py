"""What a result says, in plain words and tables: no HTML, no plots, so that every form of report says the same.

A difference is called one only when the two 95 % intervals do not overlap; everything else is `WITHIN`.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError
from ..results import AdditionResult, AnalogyResult, Curve, GeometryResult, NegationResult, Row, Score

WITHIN = "difference within the intervals"
NONE = "–"  # an empty cell


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


@dataclass(frozen=True)
class Section:
    """One result, told: the question, the formula, the answer as figure and as sentences, the tables, the notes."""

    title: str
    question: str
    equation: str
    figure: str
    figure_label: str
    verdict: str
    sentences: tuple[str, ...]
    tables: tuple[Table, ...]
    notes: tuple[str, ...]


def section(result: Any) -> Section:
    """The story of one result.

    Raises:
        UsageError: not a result that a report knows.
    """
    match result:
        case AdditionResult():
            return _addition(result)
        case NegationResult():
            return _negation(result)
        case AnalogyResult():
            return _analogy(result)
        case GeometryResult():
            return _geometry(result)
    raise UsageError(
        f"cannot report on a {type(result).__name__}: expected an AdditionResult, NegationResult, AnalogyResult or "
        "GeometryResult. Read files with taskvec.results.read_result(s) first."
    )


def clean(text: str, limit: int | None = None) -> str:
    """`text` on one line, with control, format and surrogate characters shown as U+FFFD; cut at `limit`.

    Example:
        >>> clean("red\\x1b[31m\\nsquare")
        'red�[31m square'
    """
    text = "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cf", "Cs") else c for c in " ".join(text.split()))
    return text if limit is None or len(text) <= limit else text[: limit - 1] + "…"


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def interval(score: Score) -> str:
    return f"[{100 * score.low:.1f}, {100 * score.high:.1f}]"


def mean_of(row: Row) -> Score | None:
    return row.mean if row.scores else None


def compare(a: Score, b: Score) -> str:
    """`higher` or `lower` if the intervals of `a` and `b` do not overlap, else the words for "no difference shown".

    Example:
        >>> compare(Score.share(90, 100), Score.share(50, 100)), compare(Score.share(52, 100), Score.share(50, 100))
        ('higher', 'difference within the intervals')
    """
    if a.low > b.high:
        return "higher"
    if a.high < b.low:
        return "lower"
    return WITHIN


def find(rows: Iterable[Row], name: str) -> Row | None:
    return next((r for r in rows if r.name == name), None)


def edited(rows: Sequence[Row], *names: str) -> Row | None:
    """The row that is the point of the result: the first of `names`, else the first tuned row that is no baseline."""
    for name in names:
        if row := find(rows, name):
            return row
    return next(
        (r for r in rows if r.coefficient is not None and r.name not in ("random vector", "gradient ascent")), None
    )


def denominator(row: Row, task: str, finetuned: Row | None) -> float | None:
    """What the normalised accuracy of `row` on `task` was divided by."""
    if task not in row.normalised or task not in row.scores:
        return None
    if row.normalised[task] > 0 and row.scores[task].value > 0:
        return row.scores[task].value / row.normalised[task]
    return finetuned.scores[task].value if finetuned and task in finetuned.scores else None


def control_floor(result: NegationResult, curve: Curve) -> float | None:
    """The validation control accuracy to be kept: `control_share` of the base's, which is the curve at coefficient 0."""
    if 0.0 not in curve.coefficients or result.control not in curve.scores:
        return None
    return result.control_share * curve.scores[result.control][curve.coefficients.index(0.0)].value


# ---- the four kinds -------------------------------------------------------------------------------------------------


def _addition(result: AdditionResult) -> Section:
    rows, tasks = result.rows, result.tasks
    base, tuned, row = find(rows, "base"), find(rows, "fine-tuned"), edited(rows, "task arithmetic")
    said: list[str] = []
    figure, label, verdict = NONE, f"mean accuracy over {_count(len(tasks), 'task')}", ""
    if row and (after := mean_of(row)):
        figure = percent(after.value)
        said.append(
            f"One model for {_count(len(tasks), 'task')}: {_named(row)}{_at(row)} has a mean test accuracy of "
            f"{percent(after.value)} {interval(after)}."
        )
        if base and (before := mean_of(base)):
            figure, verdict = f"{percent(before.value)} → {percent(after.value)}", compare(after, before)
            said.append(f"The base has {percent(before.value)} {interval(before)}: {_verdict(verdict)}.")
            said.append(_per_task(row, base, tasks))
        if row.mean_normalised is not None:
            against = f", whose mean is {percent(m.value)}" if tuned and (m := mean_of(tuned)) else ""
            said.append(
                f"Mean normalised accuracy is {row.mean_normalised:.3f}: the share of the accuracy of the models fine-tuned "
                f"on one task each{against}."
            )
        for other in rows:
            if other.coefficient is not None and other is not row and (m := mean_of(other)):
                said.append(
                    f"For comparison, {_named(other)}{_at(other)} reaches {percent(m.value)} {interval(m)}: "
                    f"{_against(compare(m, after), row)}."
                )
    return Section(
        title=clean(result.title),
        question=f"Does one model do {_count(len(tasks), 'task')} at once if the task vectors are added to the base?",
        equation="θ = θ₀ + α (" + " + ".join(f"τ({clean(t, 24)})" for t in tasks) + ")",
        figure=figure,
        figure_label=label,
        verdict=verdict,
        sentences=tuple(filter(None, said)),
        tables=(_scores("Test accuracy, one reading of the test split", rows, tasks, mean=True), *_choices(rows)),
        notes=_notes(rows),
    )


def _negation(result: NegationResult) -> Section:
    rows, target, control = result.rows, result.target, result.control
    base, row = find(rows, "base"), edited(rows, "task arithmetic")
    said: list[str] = []
    figure, verdict = NONE, ""
    if row and target in row.scores:
        after = row.scores[target]
        figure = percent(after.value)
        said.append(
            f"To be forgotten, {_quoted(target)}: {_named(row)}{_at(row)} leaves a test accuracy of {percent(after.value)} "
            f"{interval(after)}."
        )
        if base and target in base.scores:
            before = base.scores[target]
            figure, verdict = f"{percent(before.value)} → {percent(after.value)}", compare(after, before)
            said.append(f"The base has {percent(before.value)} {interval(before)}: {_verdict(verdict)}.")
        if base and control in row.scores and control in base.scores and base.scores[control].value > 0:
            kept, had = row.scores[control], base.scores[control]
            share = kept.value / had.value
            word = "holds" if share >= result.control_share else "does not hold"
            said.append(
                f"To be kept, {_quoted(control)}: {percent(kept.value)} {interval(kept)} against {percent(had.value)} "
                f"{interval(had)} of the base, a share of {share:.3f}. The rule asked for {result.control_share:g} on "
                f"validation data; on test data it {word}."
            )
        for other in rows:
            if other.coefficient is not None and other is not row and target in other.scores:
                score = other.scores[target]
                keeps = f", {percent(other.scores[control].value)} on the control" if control in other.scores else ""
                said.append(
                    f"For comparison, {_named(other)}{_at(other)} leaves {percent(score.value)} {interval(score)} on the "
                    f"target{keeps}: target {_against(compare(score, after), row)}."
                )
    return Section(
        title=clean(result.title),
        question=f"Can the model forget {_quoted(target)} and keep {_quoted(control)}?",
        equation=f"θ = θ₀ − α τ({clean(target, 40)})",
        figure=figure,
        figure_label="accuracy on the target, which is to fall",
        verdict=verdict,
        sentences=tuple(filter(None, said)),
        tables=(
            _scores(
                "Test accuracy, one reading of the test split",
                rows,
                (target, control),
                heads={target: f"target: {clean(target)}", control: f"control: {clean(control)}"},
            ),
            *_choices(rows),
        ),
        notes=_notes(rows),
    )


def _analogy(result: AnalogyResult) -> Section:
    rows, task = result.rows, result.task
    row = edited(rows, "analogy")
    cell = _quoted(result.cells.get("D", task))
    said: list[str] = []
    figure, verdict = NONE, ""
    if row and (after := _only(row, task)):
        figure = percent(after.value)
        said.append(
            f"Without training on {cell}, {_named(row)}{_at(row)} has a test accuracy of {percent(after.value)} "
            f"{interval(after)}."
        )
        for name in ("source", "base"):
            if (other := find(rows, name)) and (before := _only(other, task)):
                found = compare(after, before)
                if name == "source" or not verdict:
                    figure, verdict = f"{percent(before.value)} → {percent(after.value)}", found
                what = "The best without arithmetic and without data of D" if name == "source" else "The base"
                said.append(f"{what} has {percent(before.value)} {interval(before)}: {_verdict(found)}.")
        if (best := find(rows, "target-tuned")) and (top := _only(best, task)):
            said.append(f"Training on D itself gives {percent(top.value)} {interval(top)}.")
        for other in rows:
            if other.coefficient is not None and other is not row and (score := _only(other, task)):
                said.append(
                    f"For comparison, {_named(other)}{_at(other)} reaches {percent(score.value)} {interval(score)}: "
                    f"{_against(compare(score, after), row)}."
                )
        if row.curve:
            said.append("The coefficient was chosen on labelled validation examples of D, and on nothing else of D.")
    a, b, c, d = (clean(result.cells.get(k, k)) for k in "ABCD")
    return Section(
        title=clean(result.title),
        question=f"Can {cell} be learnt from three other cells alone? ‘{a}’ is to ‘{b}’ as ‘{c}’ is to ‘{d}’.",
        equation="θ = θ₀ + α (τ(C) + τ(B) − τ(A))",
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
            _scores("Test accuracy on D, one reading of the test split", rows, _tasks(rows)),
            *_choices(rows),
        ),
        notes=_notes(rows),
    )


def _geometry(result: GeometryResult) -> Section:
    names = [clean(n) for n in result.names]
    pairs = [(result.cosine[i][j], names[i], names[j]) for i in range(len(names)) for j in range(i)]
    finite = [p for p in pairs if math.isfinite(p[0])]
    said: list[str] = []
    figure = NONE
    if finite:
        typical = sum(abs(c) for c, _, _ in finite) / len(finite)
        figure = f"{typical:.3f}"
        top = max(finite, key=lambda p: abs(p[0]))
        said.append(
            f"Over {_count(len(finite), 'pair')} of task vectors the mean absolute cosine is {typical:.3f}; the largest is "
            f"{top[0]:.3f}, between ‘{top[2]}’ and ‘{top[1]}’."
        )
        said.append(
            "A cosine near 0 means that two edits point in unrelated directions of weight space, which is usual where adding "
            "works; it is no proof that they do not disturb each other. Cosines are computed, not sampled: no interval."
        )
    if result.base_norm and result.norms:
        low, high = (v / result.base_norm for v in (min(result.norms), max(result.norms)))
        said.append(f"Their norms are {low:.3f} to {high:.3f} of the norm of the base.")
    norms = tuple(
        (Cell(n), Cell(f"{v:.4g}"), *((Cell(f"{v / result.base_norm:.4f}"),) if result.base_norm else ()))
        for n, v in zip(names, result.norms, strict=True)
    )
    return Section(
        title=clean(result.title),
        question="How large are the task vectors, and do they point in related directions?",
        equation="τ = θ(finetuned) − θ₀;  cosine = ⟨τᵢ, τⱼ⟩ / (‖τᵢ‖ ‖τⱼ‖)",
        figure=figure,
        figure_label="mean absolute cosine between task vectors",
        verdict="",
        sentences=tuple(filter(None, said)),
        tables=(
            Table("Norms", ("task vector", "norm", *(("share of the base's",) if result.base_norm else ())), norms),
            Table(
                "Cosines",
                ("", *names),
                tuple(
                    (Cell(n), *(Cell(f"{c:.3f}") for c in line)) for n, line in zip(names, result.cosine, strict=True)
                ),
            ),
        ),
        notes=(),
    )


# ---- tables ---------------------------------------------------------------------------------------------------------


def _scores(
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
    columns += [f"mean of {_count(len(tasks), 'task')}"] if mean else []
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


def _choices(rows: Sequence[Row]) -> tuple[Table, ...]:
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
            seen = ", ".join(f"{n}" for n in sizes)
            rest = (
                f"{min(grid):g} to {max(grid):g}, {_count(len(grid), 'point')}",
                clean(curve.objective),
                f"{curve.split} (n = {seen} per task)"
                if len(sizes) < 4
                else f"{curve.split} (n = {sizes[0]} to {sizes[-1]} per task)",
            )
        lines.append(tuple(Cell(t) for t in (clean(row.name), f"{row.coefficient:g}", *rest)))
    columns = ("model", "chosen coefficient", "coefficients tried", "rule", "chosen on")
    return (Table("How the coefficients were chosen", columns, tuple(lines), prose=True),) if lines else ()


def _notes(rows: Sequence[Row]) -> tuple[str, ...]:
    notes = [f"{clean(r.name)}: {clean(r.note)}" for r in rows if r.note]
    for row in rows:
        grid = row.curve.coefficients if row.curve else ()
        if row.coefficient == 0 and len(grid) > 1:
            notes.append(
                f"{clean(row.name)}: the chosen coefficient is 0, so nothing that was tried beat the base unchanged under the rule."
            )
        elif len(grid) > 1 and row.coefficient == max(grid):
            notes.append(
                f"{clean(row.name)}: the chosen coefficient is the largest that was tried; a larger one may do better."
            )
    return tuple(notes)


# ---- words ----------------------------------------------------------------------------------------------------------


def _count(n: int, what: str) -> str:
    return f"{n} {what}" + ("" if n == 1 else "s")


def _quoted(name: str) -> str:
    return f"‘{clean(name)}’"


def _named(row: Row) -> str:
    name = clean(row.name)
    return f"a {name}" if name == "random vector" else f"the {name}" if name in ("base", "analogy") else name


def _at(row: Row) -> str:
    if row.coefficient is None:
        return ""
    return f" at coefficient {row.coefficient:g}" + (f" (chosen on {row.curve.split} data)" if row.curve else "")


def _verdict(found: str) -> str:
    return found if found == WITHIN else f"{found}, and the intervals do not overlap"


def _against(found: str, row: Row) -> str:
    return found if found == WITHIN else f"{found} than {_named(row)}"


def _per_task(row: Row, base: Row, tasks: Sequence[str]) -> str:
    found: dict[str, list[str]] = {"higher": [], "lower": [], WITHIN: []}
    for task in tasks:
        if task in row.scores and task in base.scores:
            found[compare(row.scores[task], base.scores[task])].append(clean(task))
    parts = [f"{word} than the base on {', '.join(found[word])}" for word in ("higher", "lower") if found[word]]
    parts += [f"{WITHIN} on {', '.join(found[WITHIN])}"] if found[WITHIN] else []
    return f"Task by task: {'; '.join(parts)}." if parts else ""


def _tasks(rows: Sequence[Row]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(t for row in rows for t in row.scores))


def _only(row: Row, task: str) -> Score | None:
    """The score on `task`; for a row with one score, that one."""
    if task in row.scores:
        return row.scores[task]
    return next(iter(row.scores.values())) if len(row.scores) == 1 else None
