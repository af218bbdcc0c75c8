"""Negation, told: one result, and all of a study."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from ..results import NegationResult
from .section import Section
from .seeds import Where, by_key, highest, over_seeds, picked, place, row_of, spread
from .tables import Cell, Table, choices, notes, scores
from .words import (
    NONE,
    at_coefficient,
    beside,
    clean,
    compare,
    count,
    edited,
    find,
    interval,
    percent,
    quoted,
    set_against,
    the_model,
)


def negation_section(result: NegationResult) -> Section:
    rows, target, control = result.rows, result.target, result.control
    base, row = find(rows, "base"), edited(rows, "task arithmetic")
    said: list[str] = []
    figure, verdict = NONE, ""
    if row and target in row.scores:
        after = row.scores[target]
        figure = percent(after.value)
        said.append(
            f"To be forgotten, {quoted(target)}: {the_model(row)}{at_coefficient(row)} leaves a test accuracy of "
            f"{percent(after.value)} {interval(after)}."
        )
        if base and target in base.scores:
            before = base.scores[target]
            figure, verdict = f"{percent(before.value)} → {percent(after.value)}", compare(after, before)
            said.append(beside("The base", before, row, verdict))
        if base and control in row.scores and control in base.scores and base.scores[control].value > 0:
            kept, had = row.scores[control], base.scores[control]
            share = kept.value / had.value
            word = "holds" if share >= result.control_share else "does not hold"
            said.append(
                f"To be kept, {quoted(control)}: {percent(kept.value)} {interval(kept)} against {percent(had.value)} "
                f"{interval(had)} of the base, a share of {share:.3f}. The rule asked for {result.control_share:g} on "
                f"validation data; on test data it {word}."
            )
        for other in rows:
            if other.coefficient is not None and other is not row and target in other.scores:
                score = other.scores[target]
                keeps = f", {percent(other.scores[control].value)} on the control" if control in other.scores else ""
                said.append(
                    f"For comparison, {the_model(other)}{at_coefficient(other)} leaves {percent(score.value)} {interval(score)} on "
                    f"the target{keeps}. On the target: {set_against(compare(score, after), row)}."
                )
    return Section(
        title=clean(result.title),
        question=f"Can the model forget {quoted(target)} and keep {quoted(control)}?",
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


def negation_overview(placed: Sequence[tuple[Where, Any]]) -> Section:
    def column(name: str, role: str) -> Callable[[Sequence[Any]], Cell]:
        def cell(results: Sequence[Any]) -> Cell:
            by_seed: dict[int, list[float]] = {}
            for r in results:
                if row := row_of(r, name):
                    by_seed.setdefault(int(r.provenance.settings["study"]["seed"]), []).append(
                        row.scores[getattr(r, role)].value
                    )
            return Cell(spread([100 * statistics.mean(v) for v in by_seed.values()]))

        return cell

    columns = {
        f"{name}: {role}": column(name, role)
        for name in ("base", "fine-tuned", "task arithmetic", "gradient ascent", "random vector")
        for role in ("target", "control")
    }
    targets = list(dict.fromkeys(str(w.get("target", "")) for w, _ in placed))
    first = by_key(placed)
    best = min(
        first.items(), key=lambda kv: statistics.mean(r.row("task arithmetic").scores[r.target].value for _, r in kv[1])
    )
    before, after = ([100 * r.row(n).scores[r.target].value for _, r in best[1]] for n in ("base", "task arithmetic"))
    rows = []
    for target in targets:
        for (base, regime), found in by_key([(w, r) for w, r in placed if w.get("target") == target]).items():
            edited = [r.row("task arithmetic") for _, r in found]
            start = [r.row("base") for _, r in found]
            control = found[0][1].control
            rows.append((
                Cell(clean(target)), Cell(clean(base)), Cell(clean(regime)),
                *(Cell(spread([100 * row.scores[t].value for row in which])) for t in (target, control) for which in (start, edited)),
                Cell(spread([row.coefficient for row in edited], digits=2)),
            ))  # fmt: skip
    heads = (
        "target",
        "base",
        "regime",
        "target before",
        "target after",
        "control before",
        "control after",
        "coefficient",
    )
    return Section(
        title="Negation, over all targets and regimes",
        question="Does subtracting a task vector make the model forget that task and nothing else?",
        equation="θ = θ₀ − α τ",
        figure=f"{statistics.mean(after):.1f}",
        figure_label=f"% mean test accuracy on the targets after, {highest(len(first))}{place(best[0])}",
        verdict="",
        sentences=(
            f"Over {count(len(targets), 'target')}, the target "
            + (f"falls furthest in {place(best[0])}: from" if statistics.mean(after) < statistics.mean(before) else "falls nowhere:")
            + f" {statistics.mean(before):.1f} % to {statistics.mean(after):.1f} % on the mean, with the control kept at "
            f"{100 * placed[0][1].control_share:g} % of the base's on "
            f"validation data.{picked(len(first))} Mean over targets; ± is the standard deviation over seeds.",
        ),
        tables=(
            over_seeds("Mean test accuracy over targets, %", placed, columns),
            Table("By target, %", heads, tuple(rows)),
        ),
        notes=(
            "Beside it, CLIP ViT-B/32 over eight targets with ImageNet as control (arXiv:2212.04089): base 48.3 / 63.4, negative task "
            "vector 24.0 / 60.9, gradient ascent 2.7 / 0.3, random vector 45.7 / 61.5.",
        ),
    )  # fmt: skip
