"""Few shots, told: one result, and all of a study."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..results import FewShotResult, Row
from .section import Section
from .seeds import Where, over_seeds, spread
from .tables import Cell, Table, choices, notes
from .words import NONE, beyond, clean, compare, count, interval, percent, quoted


def few_shot_section(result: FewShotResult) -> Section:
    base, labels = result.starts[0], result.labels
    main = next((s for s in result.starts if s.name == "analogy"), result.starts[-1])
    first, last = main.scores[0], base.scores[-1]
    said = [
        f"With {_labels(labels[0])} of {quoted(result.task)}, {_from(s.name)} has a test accuracy of {percent(s.scores[0].value)} "
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
                f"{percent(other.value)} {interval(other)} against {percent(first.value)} ({beyond(compare(other, first))})."
            )
        if main.curve:
            seen = max(x.n for line in main.curve.scores.values() for x in line)
            said.append(
                f"Coefficients were chosen on {count(seen, 'labelled validation sample')} of {quoted(result.task)}, which are not "
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
        question=f"How many labels of {quoted(result.task)} does a start spare that never saw one?",
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
                cells.append(Cell(_labels(need), (f"{percent(found.value)}: {beyond(compare(found, score))}",)))
        lines.append(tuple(cells))
    heads = (f"from {_from(base.name)}", *(f"from {_from(s.name)}, at least as accurate with" for s in others))
    return Table("Labels needed for what the base has", heads, tuple(lines), prose=True)


def _from(start: str) -> str:
    return f"the {clean(start)}" if start in ("base", "analogy", "source") else clean(start)


def _labels(n: int) -> str:
    return count(n, "label") if n else "no label"


def few_shot_overview(placed: Sequence[tuple[Where, Any]]) -> Section:
    labels = placed[0][1].labels
    alike = [(w, r) for w, r in placed if r.labels == labels]
    starts = [s.name for s in placed[0][1].starts]

    def column(start: str, i: int) -> Callable[[Sequence[Any]], Cell]:
        return lambda results: Cell(spread([100 * r.start(start).scores[i].value for r in results]))

    columns = {f"{n}: {count(k, 'label')}": column(n, i) for n in starts for i, k in enumerate(labels)}
    main = "analogy" if "analogy" in starts else starts[-1]
    gaps = [100 * (r.start(main).scores[0].value - r.start("base").scores[0].value) for _, r in alike]
    worth = [r.labels_needed("base", main)[0] for _, r in alike]
    reached = sorted(n for n in worth if n is not None)
    said = f"In {len(worth) - len(reached)} of {len(worth)} runs none of the numbers that were tried is enough for it" + (
        f"; in the others the base first has it with {count(reached[0], 'label')}"
        + (f" to {reached[-1]}" if reached[-1] > reached[0] else "") + "." if reached else "."
    )  # fmt: skip
    return Section(
        title="Few shots, over all regimes",
        question=f"How many labels of {clean(placed[0][1].task)} does a start spare that never saw one?",
        equation="θ = fine-tuned on k labels of each class, from θ₀ + α τ",
        figure=spread(gaps, signed=True),
        figure_label=f"points of test accuracy: {clean(main)} over base, with {count(labels[0], 'label')}",
        verdict="",
        sentences=(
            f"How many labels does the base need for what the start ‘{clean(main)}’ has with {count(labels[0], 'label')}? {said}",
            "Nothing is interpolated between the numbers of labels that were tried. Coefficients were chosen on labelled validation samples, "
            "which are not counted. ± is the standard deviation over seeds.",
        ),
        tables=(over_seeds(f"Test accuracy on {clean(placed[0][1].task)}, %", alike, columns),),
        notes=tuple(dict.fromkeys(n for _, r in alike for n in r.notes if not n.startswith("The source"))),
    )  # fmt: skip
