"""Locality of the tangent kernel, told: one result, and all of a study."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..results import LocalityResult
from .section import Section
from .seeds import Where, over_seeds, spread
from .tables import Cell, Table
from .words import clean


def locality_section(result: LocalityResult) -> Section:
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


def locality_overview(placed: Sequence[tuple[Where, Any]]) -> Section:
    columns = {"energy across, relative": lambda results: Cell(spread([r.across for r in results], digits=3))}
    return Section(
        title="Locality of the tangent kernel, over all bases",
        question="Do the leading eigenfunctions of one task's kernel have their energy on its own inputs?",
        equation="E(x) = Σ_ρ φ_ρ(x)²",
        figure=spread([r.across for _, r in placed], digits=2),
        figure_label="mean energy on other tasks' inputs over all bases and seeds, own inputs are 1",
        verdict="",
        sentences=(
            "Below 1 means local; 1 means that a task's eigenfunctions live on other tasks' inputs as much as on its own.",
        ),
        tables=(over_seeds("Locality", placed, columns),),
        notes=(),
    )
