"""Addition, told: one result, and all of a study."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from ..results import AdditionResult, Row
from .section import Section
from .seeds import Where, by_key, highest, over_seeds, picked, place, row_of, share, spread
from .tables import Cell, choices, notes, scores
from .words import (
    NONE,
    WITHIN,
    at_coefficient,
    beside,
    clean,
    compare,
    count,
    edited,
    find,
    for_comparison,
    interval,
    mean_of,
    percent,
    the_model,
)


def addition_section(result: AdditionResult) -> Section:
    rows, tasks = result.rows, result.tasks
    base, tuned, row = find(rows, "base"), find(rows, "fine-tuned"), edited(rows, "task arithmetic")
    said: list[str] = []
    figure, label, verdict = NONE, f"mean accuracy over {count(len(tasks), 'task')}", ""
    if row and (after := mean_of(row)):
        figure = percent(after.value)
        said.append(
            f"One model for {count(len(tasks), 'task')}: {the_model(row)}{at_coefficient(row)} has a mean test accuracy of "
            f"{percent(after.value)} {interval(after)}."
        )
        if base and (before := mean_of(base)):
            figure, verdict = f"{percent(before.value)} → {percent(after.value)}", compare(after, before)
            said.append(beside("The base", before, row, verdict))
            said.append(_per_task(row, base, tasks))
        if row.mean_normalised is not None:
            against = f", whose mean is {percent(m.value)}" if tuned and (m := mean_of(tuned)) else ""
            said.append(
                f"Its mean normalised accuracy is {row.mean_normalised:.3f}: the share that it reaches of the models "
                f"fine-tuned on one task each{against}."
            )
        for other in rows:
            if other.coefficient is not None and other is not row and (m := mean_of(other)):
                said.append(for_comparison(other, m, after, row))
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


def _per_task(row: Row, base: Row, tasks: Sequence[str]) -> str:
    found: dict[str, list[str]] = {"higher": [], "lower": [], WITHIN: []}
    for task in tasks:
        if task in row.scores and task in base.scores:
            found[compare(row.scores[task], base.scores[task])].append(clean(task))
    parts = [f"{word} than the base on {', '.join(found[word])}" for word in ("higher", "lower") if found[word]]
    parts += [f"{WITHIN} on {', '.join(found[WITHIN])}"] if found[WITHIN] else []
    return f"Task by task: {'; '.join(parts)}." if parts else ""


def _rates(results: Sequence[Any]) -> Cell:
    rates = sorted({float(r.provenance.settings["lr"]) for r in results if "lr" in r.provenance.settings})
    return Cell(", ".join(f"{x:g}" for x in rates) or NONE)


def addition_overview(placed: Sequence[tuple[Where, Any]]) -> Section:
    tasks = placed[0][1].tasks

    def column(
        name: str, measure: Callable[[Row], float | None] = lambda r: r.mean.value, scale: float = 100
    ) -> Callable[[Sequence[Any]], Cell]:
        return lambda results: share([row_of(r, name) for r in results], measure, scale)

    columns = {
        "base": column("base"),
        "single tasks": column("fine-tuned"),
        "sum": column("task arithmetic"),
        "sum, normalised": column("task arithmetic", lambda r: r.mean_normalised, 1),
        "coefficient": column("task arithmetic", lambda r: r.coefficient, 1),
        "one coefficient each": column("one coefficient each"),
        "random vector": column("random vector"),
        "joint training": column("joint training"),
        "ensemble of logits": column("ensemble of logits"),
        "rate": _rates,
    }
    tables = [over_seeds(f"Mean test accuracy over {count(len(tasks), 'task')}, %", placed, columns)]
    tables.append(
        over_seeds(
            "Test accuracy of the sum by task, %, and of the model of that task alone",
            placed,
            {clean(t): functools.partial(_by_task, t) for t in tasks},
        )
    )
    sizes = sorted({len(row.scores) for _, r in placed for row in r.subsets})
    if sizes:
        by_size = {f"{n} tasks": functools.partial(_subsets, n) for n in sizes}
        tables.append(over_seeds("Sums of some of the tasks: mean normalised accuracy", placed, by_size))
    best = max(
        by_key(placed).items(), key=lambda kv: statistics.mean(r.row("task arithmetic").mean.value for _, r in kv[1])
    )
    said = [
        f"The sum of {len(tasks)} task vectors scores highest in {place(best[0])}: "
        f"{spread([100 * r.row('task arithmetic').mean.value for _, r in best[1]])} % on the mean over tasks, where the base has "
        f"{spread([100 * r.row('base').mean.value for _, r in best[1]])} % and each task's own model "
        f"{spread([100 * r.row('fine-tuned').mean.value for _, r in best[1]])} %.{picked(len(by_key(placed)))}",
        f"{HEADS.get(str(placed[0][0].get('heads')), HEADS['probed'])} ± is the standard deviation over seeds.",
    ]
    return Section(
        title="Addition, over all regimes",
        question="Does one model, edited by a sum of task vectors, do all the tasks?",
        equation="θ = θ₀ + α Σₜ τₜ",
        figure=spread([100 * r.row("task arithmetic").mean.value for _, r in best[1]]),
        figure_label=f"% mean test accuracy of the sum, {highest(len(by_key(placed)))}{place(best[0])}",
        verdict="",
        sentences=tuple(said),
        tables=tuple(tables),
        notes=(),
    )


HEADS = {
    "probed": "Heads are probed on the base and frozen: the column ‘base’ is the linear probe.",
    "zero-shot": "Heads are made of class names and frozen: the column ‘base’ is zero-shot.",
    "joint": "Heads were trained with their task’s model: the column ‘base’ has the base’s features under these heads.",
}


def _by_task(task: str, results: Sequence[Any]) -> Cell:
    summed, alone = ([100 * r.row(n).scores[task].value for r in results] for n in ("task arithmetic", "fine-tuned"))
    return Cell(spread(summed), (f"alone {spread(alone)}",))


def _subsets(size: int, results: Sequence[Any]) -> Cell:
    """Over seeds: the mean over the subsets of one size."""
    means = []
    for r in results:
        found = [
            row.mean_normalised for row in r.subsets if len(row.scores) == size and row.mean_normalised is not None
        ]
        means += [statistics.mean(found)] if found else []
    return Cell(spread(means, digits=3))
