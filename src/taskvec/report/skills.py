"""Skills, told: single-task models with another task's vector, one result and all of a study."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..results import Score, SkillsResult
from .section import Section
from .seeds import Where, by_key, over_seeds, spread
from .tables import Cell, Table
from .words import WITHIN, clean, compare, count, interval, percent


def skills_section(result: SkillsResult) -> Section:
    """The story of a skills result."""
    found = result.skills
    own, gained, noise = (
        Score.mean([getattr(s, n) for s in found]) for n in ("finetuned", "with_other", "with_random")
    )
    sorted_by: dict[str, list[str]] = {"higher": [], "lower": [], WITHIN: []}
    for s in found:
        sorted_by[compare(s.with_other, s.finetuned)].append(clean(s.task))
    parts = [f"{word} for {', '.join(sorted_by[word])}" for word in ("higher", "lower") if sorted_by[word]]
    parts += [f"{WITHIN} for {', '.join(sorted_by[WITHIN])}"] if sorted_by[WITHIN] else []
    unmoved = [clean(s.task) for s in found if s.curve.coefficient == 0]
    said = [
        f"With the vector of one other task added, the {count(len(found), 'single-task model')} go from a mean test accuracy of {percent(own.value)} "
        f"{interval(own)} to {percent(gained.value)} {interval(gained)}; with a random vector in its place to {percent(noise.value)} {interval(noise)}.",
        f"Task by task: {'; '.join(parts)}.",
    ]
    if unmoved:
        said.append(f"For {', '.join(unmoved)} no other vector helped on validation data, so the model stays as it is.")
    rows = tuple(
        (
            Cell(clean(s.task)), Cell(clean(s.other)), Cell(f"{s.curve.coefficient:g}"), _cell(s.base), _cell(s.finetuned),
            Cell(percent(s.with_random.value), (interval(s.with_random), f"at {s.random_coefficient:g}")), _cell(s.with_other),
            Cell(f"{100 * (s.with_other.value - s.finetuned.value):+.1f}"),
        )
        for s in found
    )  # fmt: skip
    heads = (
        "task",
        "vector added",
        "coefficient",
        "base",
        "fine-tuned",
        "with a random vector",
        "with the vector",
        "difference",
    )
    curve = found[0].curve
    tried = f"{min(curve.coefficients):g} to {max(curve.coefficients):g}, {count(len(curve.coefficients), 'point')}"
    return Section(
        title=clean(result.title),
        question="Does a model fine-tuned on one task gain from the vector of another?",
        equation="θ = θ₀ + τ(task) + α τ(other)",
        figure=f"{percent(own.value)} → {percent(gained.value)}",
        figure_label=f"mean test accuracy of {count(len(found), 'task')}",
        verdict=compare(gained, own),
        sentences=tuple(said),
        tables=(Table("Test accuracy, one reading of the test split for each model", heads, rows),),
        notes=(
            f"The vector and its coefficient ({tried}) were chosen together on validation data, so the best of many is shown; the "
            "random vector, with a coefficient chosen alike, had one candidate only.",
        ),
    )


def _cell(score: Score) -> Cell:
    return Cell(percent(score.value), (interval(score), f"n\u00a0{score.n}"))


def skills_overview(placed: Sequence[tuple[Where, Any]]) -> Section:
    """All of a study, over seeds."""

    def mean(name: str, result: Any) -> float:
        return 100 * statistics.mean(getattr(s, name).value for s in result.skills)

    def column(name: str):
        return lambda results: Cell(spread([mean(name, r) for r in results]))

    gaps = [mean("with_other", r) - mean("finetuned", r) for _, r in placed]
    noise = [mean("with_random", r) - mean("finetuned", r) for _, r in placed]
    columns = {"base": column("base"), "fine-tuned": column("finetuned"), "with a random vector": column("with_random"),
               "with another's vector": column("with_other")}  # fmt: skip
    rows = []
    for (base, regime), found in by_key(placed).items():
        for task in dict.fromkeys(s.task for _, r in found for s in r.skills):
            mine = [r.skill(task) for _, r in found]
            chosen = Counter(clean(s.other) if s.curve.coefficient else "none" for s in mine)
            gained = [100 * (s.with_other.value - s.finetuned.value) for s in mine]
            rows.append(
                (
                    Cell(clean(base)),
                    Cell(clean(regime)),
                    Cell(clean(task)),
                    Cell(", ".join(n if k == 1 else f"{n} ({k})" for n, k in chosen.most_common())),
                    Cell(spread([100 * s.finetuned.value for s in mine])),
                    Cell(spread([100 * s.with_other.value for s in mine])),
                    Cell(spread(gained, signed=True)),
                )
            )
    heads = ("base", "regime", "task", "vector added (seeds)", "fine-tuned", "with the vector", "difference")
    return Section(
        title="Adding skills, over all regimes",
        question="Does a model fine-tuned on one task gain from the vector of another?",
        equation="θ = θ₀ + τ(task) + α τ(other)",
        figure=spread(gaps, signed=True),
        figure_label="points of test accuracy over the fine-tuned model, mean of the tasks",
        verdict="",
        sentences=(
            f"The mean over tasks rises in {sum(g > 0 for g in gaps)} of {len(gaps)} runs; the difference is {spread(gaps, signed=True)} points, with a "
            f"random vector in its place {spread(noise, signed=True)} (± is the standard deviation over all of these runs). The vector and its "
            "coefficient are chosen together on validation data, so its row had more to choose from than the random vector's.",
        ),
        tables=(
            over_seeds("Mean test accuracy of the tasks, %", placed, columns),
            Table("Task by task, test accuracy, %", heads, tuple(rows)),
        ),
        notes=(),
    )
