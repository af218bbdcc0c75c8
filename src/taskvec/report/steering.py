"""A steering result, told: which models keep accuracy and close the gap, who gains and who loses, and what theory says."""

from __future__ import annotations

from typing import Any

from ..results import Bound, FairnessCurve, Injection, SteeringResult, SteeringRow
from .figures import STAND_IN, literal, svg
from .gap_figures import along, pareto, trade
from .gaps import GAP_WORDS, caveats, change_verdict, changed_cell, gap_cell, score_cell, signed, verdict, worst_cell
from .section import Section
from .tables import Cell, Table
from .words import NONE, clean, count, percent

MEANT = {"sum": "α = λ, balanced at the base plus the sum", "mean": "α = Gλ, balanced at the base plus the mean"}


def steering_section(result: SteeringResult) -> Section:
    """The story of a steering result."""
    first, added = result.rows[0], result.row("task addition")
    said = [
        f"{count(first.audit.n, 'test sample')}, {count(len(result.groups), 'group')}"
        + (" that overlap" if first.audit.overlap else "")
        + f". ‘Selected’ is being predicted {clean(result.positive)}. Vectors are summed."
    ]
    said += verdict(added)
    if (curve := added.curve) is not None:
        kept = "" if curve.met else _least(curve)
        said.append(f"Its coefficient {curve.coefficient:g} was chosen on validation data (n = {curve.audits[0].n}): {clean(curve.objective)}.{kept}")  # fmt: skip
    said += [s for c in result.comparisons if c.after == added.name for s in change_verdict(c)]
    said += [_injected(i) for i in result.injections]
    said += [_told(b) for b in result.bounds]
    before, after = first.audit.gap("parity"), added.audit.gap("parity")
    return Section(
        title=clean(result.title),
        question="Do sub-group task vectors trade accuracy for fairness, and better than what does not need them?",
        equation="θ = θ₀ + λ Σ δ_g;  parity = max P(ŷ=1 | g) − min P(ŷ=1 | g)",
        figure=f"{before.value:.3f} → {after.value:.3f}" if before and after else NONE,
        figure_label="parity difference: base → task addition",
        verdict="" if added.met is None or added.met else "limit not kept",
        sentences=tuple(said),
        tables=tuple(_tables(result)),
        notes=(*caveats(first.audit), *map(clean, result.notes), *(f"{clean(r.name)}: {clean(r.note)}" for r in result.rows if r.note)),
    )  # fmt: skip


def steering_figures(result: SteeringResult, key: str) -> list[tuple[str, str]]:
    """The drawings, each with its caption."""
    added, drawn = result.row("task addition"), []
    if added.curve:
        drawn.append((along(added, f"{key}a"), "Task addition: gaps and accuracy on validation data. Bands: 95 % interval."))  # fmt: skip
        drawn.append((pareto(added, f"{key}p"), "Task addition: what accuracy costs in the gap, on validation data."))
    drawn.append((trade(result.rows, f"{key}t"), "Accuracy against the parity difference on test data. Crosses: 95 % intervals."))  # fmt: skip
    for i, one in enumerate(result.bounds):
        caption = f"The bound with measured L beside the measured gap, vectors taken as their {one.convention} ({MEANT[one.convention]})."
        drawn.append((_bound(one, f"{key}b{i}"), caption))
    return drawn


def _tables(result: SteeringResult) -> list[Table]:
    def chosen(row: SteeringRow) -> Cell:
        if row.coefficients:
            return Cell("one each", tuple(f"{clean(g, 20)} {c:g}" for g, c in row.coefficients.items()))
        return Cell(NONE if row.coefficient is None else f"{row.coefficient:g}")

    gaps = ("parity", "odds", "opportunity")
    kept = {None: NONE, True: "yes", False: "no"}
    rows = tuple(
        (Cell(clean(r.name)), chosen(r), Cell(kept[r.met]), score_cell(r.audit.overall.accuracy), worst_cell(r), *(gap_cell(r.audit.gap(g)) for g in gaps))
        for r in result.rows
    )  # fmt: skip
    heads = (
        "model",
        "coefficient",
        "limit kept on validation",
        "accuracy",
        "worst group",
        *(GAP_WORDS[g] for g in gaps),
    )
    tables = [Table("Test accuracy and gaps, every model read once", heads, rows)]
    accuracy = tuple(
        (Cell(clean(g)), *(score_cell(r.audit.group(g).accuracy) for r in result.rows)) for g in result.groups
    )
    tables.append(Table("Accuracy by group", ("group", *(clean(r.name) for r in result.rows)), accuracy))
    if result.injections:
        lines = tuple(
            (
                Cell(clean(i.group) + (" (worst)" if i.worst else "")), Cell(f"{i.curve.coefficient:g}"), changed_cell(i.change.gaps.get("parity")),
                *(changed_cell(i.change.groups.get(g, {}).get("accuracy"), points=True) for g in result.groups),
            )
            for i in result.injections
        )  # fmt: skip
        heads = ("vector of", "coefficient", GAP_WORDS["parity"], *(f"accuracy of {clean(g)}" for g in result.groups))
        tables.append(Table("Full fine-tuning with one group's vector added: change, on the same people", heads, lines))
    for b in result.bounds:
        lines = tuple(
            (Cell(f"{p.coefficient:g}"), Cell(NONE if p.parity is None else f"{p.parity:.3f}"), Cell(f"{p.path:.3g}"),
             Cell(f"{p.bound_rates:.3f}"), Cell(f"{p.bound_scores:.3f}"))
            for p in b.points
        )  # fmt: skip
        heads = ("λ", "measured parity difference", "Σ |α − 1| ‖δ‖", "bound, L of rates", "bound, L of scores")
        tables.append(Table(f"The bound, vectors taken as their {b.convention}: {MEANT[b.convention]}", heads, lines))
    return tables


def _least(curve: FairnessCurve) -> str:
    """What was taken where no coefficient kept to what was asked."""
    floor, right = curve.accuracy_at_least, curve.audits[curve.chosen].overall.accuracy
    if floor is None:
        return " No coefficient kept to the limit, so the one of least gap was taken, whatever its accuracy."
    if right and right.value >= floor - 1e-12:
        return " No coefficient kept to both limits, so the one of least gap was taken among those that are accurate enough."
    return " No coefficient is accurate enough, so the most accurate one was taken, whatever its gap."


def _injected(one: Injection) -> str:
    gain = {g: c["accuracy"] for g, c in one.change.groups.items() if "accuracy" in c and c["accuracy"].real}
    up = [f"{clean(g)} {signed(e, points=True)}" for g, e in gain.items() if e.value > 0]
    down = [f"{clean(g)} {signed(e, points=True)}" for g, e in gain.items() if e.value < 0]
    who = clean(one.group) + (", the worst group," if one.worst else "")
    if not one.curve.coefficient:
        return f"Added to full fine-tuning, the vector of {who} was chosen with coefficient 0: it helped nothing on validation data."
    said = "; ".join(f"{w}: {', '.join(x)}" for w, x in (("gains", up), ("loses", down)) if x)
    return f"The vector of {who} at {one.curve.coefficient:g}, added to full fine-tuning: {said or 'no group changes beyond its interval'}."


def _told(b: Bound) -> str:
    held, of = b.holds()
    more, _ = b.holds(corrected=True)
    gap = "unknown" if b.parity_at_balance is None else f"{b.parity_at_balance:.3f}"
    return (
        f"The bound as published, vectors as their {b.convention}, holds at {held} of {of} coefficients with the measured L of selection "
        f"rates, {b.rates:.3g} (an estimate from {b.people[0]} people, the gap from {b.people[1]} others), and is below 1 at "
        f"{b.says_something()}. It takes the gap at the balanced point for 0; measured it is {gap}, with which it holds at {more}."
    )


def _bound(b: Bound, key: str) -> str:
    x = [p.coefficient for p in b.points]
    lines = {
        "measured gap": ([p.parity for p in b.points], "c1", "-"),
        "bound, L of selection rates": ([p.bound_rates for p in b.points], "c2", "--"),
        "the same plus the gap at balance": (
            [p.bound_rates + (b.parity_at_balance or 0) for p in b.points],
            "c3",
            "-.",
        ),
        "bound, L of scores": ([p.bound_scores for p in b.points], "c4", ":"),
    }

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        for name, (y, colour, dash) in lines.items():
            seen = [(c, v) for c, v in zip(x, y, strict=True) if v is not None]
            if seen:
                axes.plot(*zip(*seen, strict=True), color=STAND_IN[colour], linestyle=dash, linewidth=1.6, label=name)
        axes.axhline(1, color=STAND_IN["muted"], linewidth=0.9)
        axes.set_ylim(0, 1.6)
        axes.set_xlabel("coefficient λ")
        axes.set_ylabel("parity difference")
        axes.grid(axis="y")
        literal(figure.legend(loc="outside lower left", ncols=2))

    held, of = b.holds()
    alt = f"Bound and measured parity difference from {min(x):g} to {max(x):g}: the bound holds at {held} of {of}; {percent(b.parity_at_balance or 0)} at balance."
    return svg(draw, (4.9, 3.3), alt, key)
