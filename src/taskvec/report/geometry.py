"""Geometry of task vectors, told: one result, and all of a study."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from ..results import GeometryResult, Score
from .section import Section
from .seeds import Where, over_seeds, spread
from .tables import Cell, Table
from .words import NONE, clean, count, interval, percent, quoted


def geometry_section(result: GeometryResult) -> Section:
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
        tables.append(Table(f"On the way to {quoted(name)}", ("updates", "cosine with the final vector"), rows))
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


def geometry_overview(placed: Sequence[tuple[Where, Any]]) -> Section:
    def cosine(r: Any) -> float:
        n = len(r.names)
        return statistics.mean(abs(r.cosine[i][j]) for i in range(n) for j in range(i))

    def step(measure: Callable[[Any], float | None]) -> Callable[[Sequence[Any]], Cell]:
        def cell(results: Sequence[Any]) -> Cell:
            found = [[v for s in r.steps if (v := measure(s)) is not None] for r in results]
            return Cell(spread([statistics.mean(f) for f in found if f], digits=3))

        return cell

    columns = {
        "mean |cosine|": lambda results: Cell(spread([cosine(r) for r in results], digits=3)),
        "norm, of the base's": lambda results: Cell(
            spread([statistics.mean(r.norms) / r.base_norm for r in results if r.base_norm], digits=4)
        ),
        "not linear": step(lambda s: s.nonlinearity),
        "non-linear advantage": step(lambda s: s.advantage),
    }
    everywhere = [cosine(r) for _, r in placed]
    return Section(
        title="Geometry, over all regimes",
        question="How large are the task vectors, how do they lie to each other, and how far from linear are their steps?",
        equation="cosine = ⟨τᵢ, τⱼ⟩ / (‖τᵢ‖ ‖τⱼ‖)",
        figure=f"{statistics.mean(everywhere):.3f}",
        figure_label="mean |cosine| between task vectors",
        verdict="",
        sentences=("Means over tasks or pairs; ± is the standard deviation over seeds.",),
        tables=(over_seeds("Geometry", placed, columns),),
        notes=(),
    )
