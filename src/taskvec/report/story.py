"""The story of a result: the question, the formula, the answer in sentences computed from the numbers, the tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError
from ..results import (
    AdditionResult,
    AnalogyResult,
    DisentanglementResult,
    FairnessResult,
    FewShotResult,
    GateResult,
    GeometryResult,
    LocalityResult,
    NegationResult,
    Row,
    Score,
    SkillsResult,
    SteeringResult,
    ToxicityResult,
)
from .tables import Cell, Table, choices, notes, scores
from .words import NONE, WITHIN, clean, compare, count, edited, find, interval, mean_of, percent


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
        case DisentanglementResult():
            return _disentanglement(result)
        case LocalityResult():
            return _locality(result)
        case FewShotResult():
            return _few_shot(result)
        case FairnessResult():
            from .fairness import fairness_section

            return fairness_section(result)
        case SteeringResult():
            from .steering import steering_section

            return steering_section(result)
        case ToxicityResult():
            from .toxicity import story

            return story(result)
        case SkillsResult():
            from .skills import story as skills_story

            return skills_story(result)
        case GateResult():
            from .gate import gate_section

            return gate_section(result)
    raise UsageError(
        f"cannot report on a {type(result).__name__}: expected a result of a protocol. Read files with taskvec.results.read_result(s) first."
    )


# ---- the kinds ------------------------------------------------------------------------------------------------------


def _addition(result: AdditionResult) -> Section:
    rows, tasks = result.rows, result.tasks
    base, tuned, row = find(rows, "base"), find(rows, "fine-tuned"), edited(rows, "task arithmetic")
    said: list[str] = []
    figure, label, verdict = NONE, f"mean accuracy over {count(len(tasks), 'task')}", ""
    if row and (after := mean_of(row)):
        figure = percent(after.value)
        said.append(
            f"One model for {count(len(tasks), 'task')}: {_named(row)}{_at(row)} has a mean test accuracy of "
            f"{percent(after.value)} {interval(after)}."
        )
        if base and (before := mean_of(base)):
            figure, verdict = f"{percent(before.value)} → {percent(after.value)}", compare(after, before)
            said.append(_beside("The base", before, row, verdict))
            said.append(_per_task(row, base, tasks))
        if row.mean_normalised is not None:
            against = f", whose mean is {percent(m.value)}" if tuned and (m := mean_of(tuned)) else ""
            said.append(
                f"Its mean normalised accuracy is {row.mean_normalised:.3f}: the share that it reaches of the models "
                f"fine-tuned on one task each{against}."
            )
        for other in rows:
            if other.coefficient is not None and other is not row and (m := mean_of(other)):
                said.append(
                    f"For comparison, {_named(other)}{_at(other)} reaches {percent(m.value)} {interval(m)}: "
                    f"{_against(compare(m, after), row)}."
                )
    return Section(
        title=clean(result.title),
        question=f"Does one model do {count(len(tasks), 'task')} at once if the task vectors are added to the base?",
        equation="θ = θ₀ + α (" + " + ".join(f"τ({clean(t, 24)})" for t in tasks) + ")",
        figure=figure,
        figure_label=label,
        verdict=verdict,
        sentences=tuple(filter(None, said)),
        tables=(scores("Test accuracy, one reading of the test split", rows, tasks, mean=True), *choices(rows)),
        notes=notes(rows),
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
            f"To be forgotten, {_quoted(target)}: {_named(row)}{_at(row)} leaves a test accuracy of "
            f"{percent(after.value)} {interval(after)}."
        )
        if base and target in base.scores:
            before = base.scores[target]
            figure, verdict = f"{percent(before.value)} → {percent(after.value)}", compare(after, before)
            said.append(_beside("The base", before, row, verdict))
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
                    f"For comparison, {_named(other)}{_at(other)} leaves {percent(score.value)} {interval(score)} on "
                    f"the target{keeps}. On the target: {_against(compare(score, after), row)}."
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
            scores(
                "Test accuracy, one reading of the test split",
                rows,
                (target, control),
                heads={target: f"target: {clean(target)}", control: f"control: {clean(control)}"},
            ),
            *choices(rows),
        ),
        notes=notes(rows),
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
                said.append(_beside(what, before, row, found))
        if (best := find(rows, "target-tuned")) and (top := _only(best, task)):
            said.append(f"Training on D itself gives {percent(top.value)} {interval(top)}.")
        for other in rows:
            if other.name in ("source", "base", "target-tuned") or other is row:
                continue  # told above
            if other.coefficient is not None and (score := _only(other, task)):
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
        equation=f"θ = θ₀ + α (τ(C) + {result.ratio:g} (τ(B) − τ(A)))"
        if result.ratio is not None
        else "θ = θ₀ + α (τ(C) + τ(B) − τ(A))",
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
            scores("Test accuracy on D, one reading of the test split", rows, _tasks(rows)),
            *choices(rows),
        ),
        notes=notes(rows),
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
            f"Over {count(len(finite), 'pair')} of task vectors the mean absolute cosine is {typical:.3f}; the largest "
            f"is {top[0]:.3f}, between ‘{top[2]}’ and ‘{top[1]}’."
        )
        said.append(
            "A cosine near 0 means that two edits point in unrelated directions of weight space, which is usual where "
            "adding works; it is no proof that they do not disturb each other. Cosines are computed, not sampled, and "
            "have no interval."
        )
    if result.base_norm and result.norms:
        low, high = (v / result.base_norm for v in (min(result.norms), max(result.norms)))
        said.append(f"Their norms are {low:.3f} to {high:.3f} of the norm of the base.")
    bent = [s.nonlinearity for s in result.steps]
    if bent:
        said.append(
            f"Of what the steps do to the features, the first order leaves {100 * min(bent):.0f} to {100 * max(bent):.0f} % unexplained: "
            "0 would be a linear step, 100 one that the base's gradient says nothing of."
        )
    if result.overlap:
        square = [result.overlap[i][j] for i in range(len(names)) for j in range(i)]
        typical_overlap = (
            f"{sum(square) / len(square):.3f} on the mean over pairs" if square else "shown for one vector only"
        )
        said.append(
            f"The leading {result.subspace} singular directions of the matrices overlap by {typical_overlap}; unrelated directions would "
            f"by {result.subspace_chance:.3f}, equal ones by 1."
        )
    tables = [_norms(result, names)]
    tables += [
        Table(caption, ("", *names), _lines(names, numbers))
        for caption, numbers in (("Cosines", result.cosine), ("Overlap of leading singular directions", result.overlap))
        if numbers
    ]
    if result.steps:
        tables.append(_steps(result, names))
    for caption, groups in (("Norms by part", result.parts), ("Norms by layer", result.layers)):
        if len(groups) > 1:
            tables.append(
                Table(caption, ("", *names), _lines([clean(g) for g in groups], list(groups.values()), digits=4))
            )
    for name, kept in result.on_the_way.items():
        rows = tuple((Cell(str(step)), Cell(f"{c:.3f}")) for step, c in sorted(kept.items()))
        tables.append(Table(f"On the way to {_quoted(name)}", ("updates", "cosine with the final vector"), rows))
    return Section(
        title=clean(result.title),
        question="How large are the task vectors, and do they point in related directions?",
        equation="τ = θ(finetuned) − θ₀;  cosine = ⟨τᵢ, τⱼ⟩ / (‖τᵢ‖ ‖τⱼ‖)",
        figure=figure,
        figure_label="mean absolute cosine between task vectors",
        verdict="",
        sentences=tuple(filter(None, said)),
        tables=tuple(tables),
        notes=(),
    )


def _norms(result: GeometryResult, names: Sequence[str]) -> Table:
    scale = result.base_norm
    rows = tuple(
        (Cell(n), Cell(f"{v:.4g}"), *((Cell(f"{v / scale:.4f}"),) if scale else ()))
        for n, v in zip(names, result.norms, strict=True)
    )
    return Table("Norms", ("task vector", "norm", *(("share of the base’s",) if scale else ())), rows)


def _lines(names: Sequence[str], numbers: Sequence[Sequence[float]], digits: int = 3) -> tuple[tuple[Cell, ...], ...]:
    return tuple((Cell(n), *(Cell(f"{x:.{digits}f}") for x in line)) for n, line in zip(names, numbers, strict=True))


def _steps(result: GeometryResult, names: Sequence[str]) -> Table:
    """How far from linear each whole step is, and what linearising it after the fact costs."""

    def cells(score: Score | None) -> Cell:
        return Cell("") if score is None else Cell(percent(score.value), (interval(score), f"n\u00a0{score.n}"))

    rows = tuple(
        (
            Cell(n),
            Cell(f"{s.nonlinearity:.3f}"),
            cells(s.accuracy),
            cells(s.linearised),
            Cell("" if s.advantage is None else f"{s.advantage:+.3f}"),
        )
        for n, s in zip(names, result.steps, strict=True)
    )
    heads = ("task vector", "not linear", "validation accuracy", "linearised after the fact", "non-linear advantage")
    return Table("How linear the steps are", heads, rows)


def _disentanglement(result: DisentanglementResult) -> Section:
    means = [result.mean(p) for p in result.pairs]
    overall = sum(means) / len(means)
    inside = [c for c in result.coefficients if result.box[0] <= c <= result.box[1]]
    what = "the predicted class differs" if result.distance == "prediction" else "representations differ"
    said = [
        f"ξ adds, for the two tasks of a pair, how much {what} between the model with the task's own vector and the model "
        "with both, on that task's inputs: 0 if the other vector changes nothing, 2 at most.",
        f"Over {count(len(means), 'pair')} the mean in the box [{result.box[0]:g}, {result.box[1]:g}] is {overall:.3f}, "
        f"through the {clean(result.forward)} model.",
    ]
    if len(means) > 1:
        worst = max(result.pairs, key=result.mean)
        first, second = (_quoted(t) for t in worst.tasks)
        said.append(f"The largest is {result.mean(worst):.3f}, between {first} and {second}.")
    one = max(inside)
    rows = []
    for pair, mean in zip(result.pairs, means, strict=True):
        value, low, high = result.at(pair, one, one)
        name = f"{clean(pair.tasks[0])} + {clean(pair.tasks[1])}"
        cells = (Cell(name), Cell(f"{mean:.3f}"), Cell(f"{value:.3f}", (f"[{low:.3f},\u00a0{high:.3f}]",)))
        rows.append((*cells, Cell(f"{pair.n[0]} + {pair.n[1]}")))
    head = ("pair", "mean ξ in the box", f"ξ at ({one:g}, {one:g})", "validation inputs")
    return Section(
        title=clean(result.title),
        question="Does adding one task vector leave alone what the model does on the other task's inputs?",
        equation="ξ(α₁, α₂) = Σₜ E[ d( f(x; θ₀ + αₜτₜ), f(x; θ₀ + α₁τ₁ + α₂τ₂) ) ]",
        figure=f"{overall:.3f}",
        figure_label="mean disentanglement error in the box",
        verdict="",
        sentences=tuple(said),
        tables=(Table("Disentanglement error", head, tuple(rows)),),
        notes=(),
    )


def _locality(result: LocalityResult) -> Section:
    names = tuple(clean(t) for t in result.tasks)

    def table(caption: str, numbers: Sequence[Sequence[float]]) -> Table:
        rows = tuple((Cell(n), *(Cell(f"{v:.3f}") for v in line)) for n, line in zip(names, numbers, strict=True))
        return Table(caption, ("", *names), rows)

    return Section(
        title=clean(result.title),
        question="Do the directions that the base learns a task with live on that task's inputs alone?",
        equation="k(x, x′) = ⟨∇f(x), ∇f(x′)⟩;  E(x) = Σ φ(x)²",
        figure=f"{result.across:.2f}",
        figure_label="local energy on other tasks' inputs, relative to a task's own",
        verdict="",
        sentences=(
            f"For each task {result.eigenfunctions} leading eigenfunctions of the tangent kernel were taken on {result.samples} of its inputs. On other "
            f"tasks' inputs they have {result.across:.2f} times the energy that they have on further inputs of their own task: 0 "
            "would be perfectly local, 1 or more not local at all.",
            "Locality of this kind makes task vectors of the linearised model add up; it is not by itself a proof that they do.",
        ),
        tables=(
            table("Local energy: eigenfunctions of the row's task on inputs of the column's", result.energy),
            table("Mean absolute cosine between gradients of inputs", result.similarity),
        ),
        notes=(),
    )


def _few_shot(result: FewShotResult) -> Section:
    base, labels = result.starts[0], result.labels
    main = next((s for s in result.starts if s.name == "analogy"), result.starts[-1])
    first, last = main.scores[0], base.scores[-1]
    said = [
        f"With {_labels(labels[0])} of {_quoted(result.task)}, {_from(s.name)} has a test accuracy of {percent(s.scores[0].value)} "
        f"{interval(s.scores[0])}, with {_labels(labels[-1])} {percent(s.scores[-1].value)} {interval(s.scores[-1])}."
        for s in result.starts
    ]
    verdict = ""
    if main is not base:
        verdict = compare(main.scores[0], base.scores[0])
        worth = result.labels_needed(base.name, main.name)[0]
        if worth is None:
            said.append(
                f"What {_from(main.name)} has with {_labels(labels[0])}, the base has with none of the numbers that were tried."
            )
        else:
            other = base.scores[labels.index(worth)]
            said.append(
                f"What {_from(main.name)} has with {_labels(labels[0])}, the base first has with {_labels(worth)}: "
                f"{percent(other.value)} {interval(other)} against {percent(first.value)} ({_beyond(compare(other, first))})."
            )
        if main.curve:
            seen = max(x.n for line in main.curve.scores.values() for x in line)
            said.append(
                f"Coefficients were chosen on {count(seen, 'labelled validation sample')} of {_quoted(result.task)}, which are not "
                "counted as labels; the base needed none."
            )
        said.append(
            "Only the numbers of labels in the table were tried, and nothing is interpolated between them. ‘At least as accurate’ is said "
            "of the measured shares; where intervals overlap it may be chance."
        )  # fmt: skip
    heads = (
        "start",
        "coefficient",
        *(f"{k} of each class: {_labels(n)}" for k, n in zip(result.shots, labels, strict=True)),
    )
    lines = tuple(
        (Cell(clean(s.name)), Cell(NONE if s.coefficient is None else f"{s.coefficient:g}"), *(Cell(percent(x.value), (interval(x),)) for x in s.scores))
        for s in result.starts
    )  # fmt: skip
    tables = [Table(f"Test accuracy on {clean(result.task)} (n = {last.n}), every model read once", heads, lines)]
    if main is not base:
        tables.append(_needed(result))
    rows = [Row(name=s.name, scores={}, coefficient=s.coefficient, curve=s.curve) for s in result.starts]
    tuning = result.provenance.settings.get("fine-tuning", {})
    how = f"All starts are trained alike: {tuning['steps']} updates at rate {tuning['lr']:g}." if tuning else ""
    return Section(
        title=clean(result.title),
        question=f"How many labels of {_quoted(result.task)} does a start spare that never saw one?",
        equation="θ = fine-tuned on k labels of each class, from θ₀ + α τ",
        figure=f"{percent(base.scores[0].value)} → {percent(first.value)}" if main is not base else percent(first.value),
        figure_label=f"accuracy with {_labels(labels[0])}: the base → {_from(main.name)}" if main is not base else "accuracy",
        verdict=verdict,
        sentences=tuple(said),
        tables=(*tables, *choices(rows)),
        notes=tuple(filter(None, (how, *map(clean, result.notes), *notes(rows)))),
    )  # fmt: skip


def _needed(result: FewShotResult) -> Table:
    """For each number of labels of the base: with how many the other starts are at least as accurate."""
    base, others = result.starts[0], result.starts[1:]
    lines = []
    for i, (had, score) in enumerate(zip(result.labels, base.scores, strict=True)):
        cells = [Cell(f"{_labels(had)}: {percent(score.value)}")]
        for start in others:
            need = result.labels_needed(start.name, base.name)[i]
            if need is None:
                cells.append(Cell("with none that was tried"))
            else:
                found = start.scores[result.labels.index(need)]
                cells.append(Cell(_labels(need), (f"{percent(found.value)}: {_beyond(compare(found, score))}",)))
        lines.append(tuple(cells))
    heads = (f"from {_from(base.name)}", *(f"from {_from(s.name)}, at least as accurate with" for s in others))
    return Table("Labels needed for what the base has", heads, tuple(lines), prose=True)


# ---- words ----------------------------------------------------------------------------------------------------------


def _quoted(name: str) -> str:
    return f"‘{clean(name)}’"


def _named(row: Row) -> str:
    name = clean(row.name)
    return f"a {name}" if name == "random vector" else f"the {name}" if name in ("base", "analogy") else name


def _at(row: Row) -> str:
    """The coefficient and, because a number that was not tuned is no fair rival, whether it was chosen here."""
    if row.coefficient is None:
        return ""
    return f" at coefficient {row.coefficient:g}" + ("" if row.curve else " (not tuned here)")


def _beside(what: str, before: Score, row: Row, found: str) -> str:
    """How the edited model compares with `what`; `found` is from the edited model's side."""
    start = f"{what} has {percent(before.value)} {interval(before)}"
    if found == WITHIN:
        return f"{start}: {found}."
    name = _named(row)
    return f"{start}. {name[0].upper()}{name[1:]} is {found}, beyond the intervals."


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


def _from(start: str) -> str:
    return f"the {clean(start)}" if start in ("base", "analogy", "source") else clean(start)


def _labels(n: int) -> str:
    return count(n, "label") if n else "no label"


def _beyond(found: str) -> str:
    return found if found == WITHIN else f"{found}, beyond the intervals"


def _tasks(rows: Sequence[Row]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(t for row in rows for t in row.scores))


def _only(row: Row, task: str) -> Score | None:
    """The score on `task`; for a row with one score, that one."""
    if task in row.scores:
        return row.scores[task]
    return next(iter(row.scores.values())) if len(row.scores) == 1 else None
