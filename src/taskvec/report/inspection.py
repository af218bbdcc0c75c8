"""The story of what lies in a network of geometric alignment: latents, how the frames agree, what goes through which latent."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from ..results import GateInspection, Relative
from .section import Section
from .tables import Cell, Table
from .words import NONE, clean, count

WHOLE = 12  # properties up to which matrices are shown whole
SHOWN = 5  # best and worst pairs of larger ones
FLATTERY = (
    "Molecules that the network has learnt from flatter errors and alignment, and distort the transfer: the direct way profits most, so "
    "that a ratio to it can even be too large. Take others."
)


def inspection_section(result: GateInspection) -> Section:
    """The section of one result."""
    ratios = [r.ratio for _, _, r in _ways(result)]
    aligned = [v for _, _, v in _pairs(result, result.alignment)]
    if ratios:
        figure, label = f"{_mean(ratios):.3f}", "times the direct error through another latent, mean over ways"
    else:
        figure, label = (f"{_mean(aligned):.3f}" if aligned else NONE), "mean alignment error between properties"
    return Section(
        title=clean(result.title),
        question="Do the properties share one frame, and which can be read through the latent of which?",
        equation="A(s,t) = E‖z′ₛ − z′ₜ‖² / (tr Var z′ₛ + tr Var z′ₜ);  transfer(t, s) = RMSE hₜ(Tₜ⁻¹(z′ₛ)) / RMSE hₜ(zₜ)",
        figure=figure,
        figure_label=label,
        verdict="",
        sentences=tuple(inspection_sentences(result)),
        tables=tuple(inspection_tables(result)),
        notes=(
            FLATTERY,
            "That t is read well through s says that the latent of s holds what t needs; it does not say that learning s has helped t. "
            "The way of t through itself is what its own transfer and inverse lose, without any other property.",
            *(("Ratios of root mean square errors; 95 % intervals by the bootstrap over molecules, pairs kept.",) if ratios else ()),
            *(clean(n) for n in result.notes),
        ),
    )  # fmt: skip


def inspection_sentences(result: GateInspection) -> Iterator[str]:
    """What there is to say, from the numbers."""
    for what, matrix, meaning in (
        ("alignment", result.alignment, "0 is one place for each molecule, 1 as far apart as two different molecules"),
        ("displacement", result.displacement, "0 is equal lengths of small steps, 1 that one frame stands still"),
    ):
        found = sorted(_pairs(result, matrix), key=lambda x: x[2])
        if found:
            (a, b, low), (c, d, high) = found[0], found[-1]
            ends = f"from {low:.3f} ({a} and {b}) to {high:.3f} ({c} and {d}); " if len(found) > 1 else ""
            mean = _mean([v for _, _, v in found])
            yield f"The {what} error over {count(len(found), 'pair')} is {mean:.3f} on the mean, {ends}{meaning}."
    ways = list(_ways(result))
    if ways:
        yield (
            f"Through the latent of another property, the error is {_mean([r.ratio for _, _, r in ways]):.3f} times that of the direct "
            f"way (mean over {count(len(ways), 'way')} of {_labelled(len(result.transfer))})."
        )
        better = [f"{t} through {s} {r}" for t, s, r in sorted(ways, key=lambda x: x[2].ratio) if r.high < 1]
        yield (
            f"Better than the direct way, beyond the interval: {'; '.join(better[:SHOWN])}{_more(better)}."
            if better
            else "No way through another latent is better than the direct one, beyond the interval."
        )
        kept = sum(r.low <= 1 for _, _, r in ways)
        yield f"Not shown to be worse than the direct way: {kept} of {len(ways)}."
        if len(ways) >= 40:
            yield f"Were all {len(ways)} ways as good as the direct ones, chance alone would put about {len(ways) / 40:.0f} beyond the interval on either side."
        rank = _ranked([(t, s, r.ratio) for t, s, r in ways])
    else:
        disagree = _off(result)
        yield (
            f"Without labels: predictions through another latent differ from the direct ones by {_mean([v for _, _, v in disagree]):.3f} "
            "standard deviations of the label, on the mean over ways."
        )
        rank = _ranked(disagree)
    if len(result.names) > 2 and len(rank) > 1:
        what = "error" if ways else "disagreement"
        (first, best), (last, worst) = rank[0], rank[-1]
        one = ways and len(result.transfer) == 1
        who = f"{clean(next(iter(result.transfer)))} is" if one else "The others are"
        over = "it" if one else "each"
        yield (
            f"{who} read best through {first} ({'' if one else 'on the mean over them '}{best:.3f} times the {what} that {over} has over all "
            f"other latents), worst through {last} ({worst:.3f})."
        )


def inspection_tables(result: GateInspection, *, whole: int = WHOLE) -> Iterator[Table]:
    """Properties; then the matrices, or of more than `whole` properties the best and worst pairs."""
    yield _properties(result)
    symmetric = {"Alignment error": result.alignment, "Displacement error": result.displacement}
    names = [clean(n) for n in result.names]
    for caption, matrix in symmetric.items():
        if len(names) <= whole:
            rows = [(Cell(n), *map(_number, line)) for n, line in zip(names, matrix, strict=True)]
            yield Table(caption, ("", *names), tuple(rows))
        else:
            found = [((a, b), v, Cell(f"{v:.3f}")) for a, b, v in _pairs(result, matrix)]
            yield _ends(caption, ("one", "other"), found)
    caption = "Transfer: error of a property (row) through the latent of another (column), relative to its direct way"
    if len(names) <= whole and result.transfer:
        rows = [
            (Cell(clean(t), (f"n\u00a0{line[t].n}",)), *(_ratio(line[s]) for s in result.names))
            for t, line in result.transfer.items()
        ]
        yield Table(caption, ("", *names), tuple(rows))
    elif result.transfer:
        found = [((t, s), r.ratio, _ratio(r)) for t, s, r in _ways(result)]
        yield _ends("Transfer: error relative to the direct way", ("property", "through"), found)
    caption = "Disagreement of the way and the direct prediction, standard deviations of the label"
    if len(names) <= whole:
        rows = [(Cell(n), *map(_number, line)) for n, line in zip(names, result.disagreement, strict=True)]
        yield Table(caption, ("", *names), tuple(rows))
    else:
        yield _ends(caption, ("property", "through"), [((t, s), v, Cell(f"{v:.3f}")) for t, s, v in _off(result)])


def _properties(result: GateInspection) -> Table:
    errors = any(p.error for p in result.properties)
    rows = []
    for p in result.properties:
        cells = [Cell(clean(p.name), ("source" if p.source else "added",)), _number(p.latent, 1), _number(p.frame, 1)]
        cells += [_number(p.autoencoding), Cell(f"{p.spread:.3g}")]
        if p.error is not None:
            cells.append(
                Cell(f"{p.error.rmse:.4g}", (f"[{p.error.low:.4g},\u00a0{p.error.high:.4g}]", f"n\u00a0{p.error.n}"))
            )
        elif errors:
            cells.append(Cell(NONE))
        rows.append(tuple(cells))
    heads = (
        "property", f"latent, effective of {result.latent}", f"frame, of {result.frame}",
        "auto-encoding error", "spread", *(("direct RMSE",) if errors else ()),
    )  # fmt: skip
    return Table(
        f"Latent spaces, on {count(result.molecules, 'molecule')}: effective dimensions, what the way to the frame and back loses, variance there",
        heads,
        tuple(rows),
    )


def _ends(caption: str, heads: tuple[str, str], found: Sequence[tuple[tuple[str, str], float, Cell]]) -> Table:
    """The least and the largest of many."""
    ranked = sorted(found, key=lambda x: x[1])
    shown = ranked if len(ranked) <= 2 * SHOWN else ranked[:SHOWN] + ranked[-SHOWN:]
    rows = tuple((Cell(a), Cell(b), cell) for (a, b), _, cell in shown)
    said = f"the {SHOWN} least and the {SHOWN} largest of {len(ranked)}" if len(shown) < len(ranked) else "by size"
    return Table(f"{caption}: {said}", (*heads, ""), rows)


def _pairs(result: GateInspection, matrix: Sequence[Sequence[float | None]]) -> Iterator[tuple[str, str, float]]:
    """Every two properties once, where there is a number."""
    names = [clean(n) for n in result.names]
    for i, line in enumerate(matrix):
        for j in range(i):
            if (v := line[j]) is not None:
                yield names[j], names[i], v


def _ways(result: GateInspection) -> Iterator[tuple[str, str, Relative]]:
    """Property, latent of another, ratio."""
    for t, line in result.transfer.items():
        yield from ((clean(t), clean(s), line[s]) for s in result.names if s != t)


def _off(result: GateInspection) -> list[tuple[str, str, float]]:
    names = [clean(n) for n in result.names]
    lines = enumerate(result.disagreement)
    return [(names[i], names[j], v) for i, line in lines for j, v in enumerate(line) if i != j]


def _ranked(found: Sequence[tuple[str, str, float]]) -> list[tuple[str, float]]:
    """Latents by how well the others are read through them: each way over the mean of the property's ways, since one that is hard to
    read anywhere is no fault of a latent, and is missing in its own column."""
    rows: dict[str, list[float]] = {}
    for t, _, v in found:
        rows.setdefault(t, []).append(v)
    by: dict[str, list[float]] = {}
    for t, s, v in found:
        if typical := _mean(rows[t]):
            by.setdefault(s, []).append(v / typical)
    return sorted(((n, _mean(v)) for n, v in by.items()), key=lambda x: x[1])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _labelled(n: int) -> str:
    return "one property with labels" if n == 1 else f"{n} properties with labels"


def _more(found: Sequence[str]) -> str:
    return f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""


def _number(value: float | None, digits: int = 3) -> Cell:
    return Cell(NONE if value is None else f"{value:.{digits}f}")


def _ratio(r: Relative) -> Cell:
    return Cell(f"{r.ratio:.3f}", (f"[{r.low:.3f},\u00a0{r.high:.3f}]",))


def inspection_figures(result: GateInspection, key: str) -> list[tuple[str, str]]:
    """The drawings, each with its caption: alignment, displacement, transfer (where there are labels) and disagreement."""
    from .heat import heat

    names = result.names

    def told(found: Sequence[tuple[str, str, float]], between: str) -> str:
        ranked = sorted(found, key=lambda x: x[2])
        shown = ranked if len(ranked) <= 60 else ranked[:SHOWN] + ranked[-SHOWN:]
        return ", ".join(f"{a} {between} {b} {v:.3f}" for a, b, v in shown) or "no numbers"

    drawn = []
    for what, matrix in (("Alignment", result.alignment), ("Displacement", result.displacement)):
        said = f"{what} error: {told(list(_pairs(result, matrix)), 'and')}."
        meaning = "two different molecules" if what == "Alignment" else "a frame that stands still"
        caption = f"{what} error between properties in the common frame: no colour is 0, full orange 1 ({meaning}) or more; the colour follows the root, which is a distance."
        drawn.append(
            (heat(matrix, names, names, strength=math.sqrt, alt=said, key=f"{key}{what[0].lower()}", digits=3), caption)
        )
    across, down = "through the latent of", "prediction of"
    if result.transfer:
        values = [[line[s].ratio for s in names] for line in result.transfer.values()]
        said = f"Transfer: {told([(t, s, r.ratio) for t, s, r in _ways(result)], 'through')}."
        caption = (
            "Error of a property (row) by the way through a latent (column), relative to its direct way: no colour is 1, full orange 2 or "
            "more, blue less than 1."
        )
        svg = heat(
            values, list(result.transfer), names, strength=lambda v: v - 1, alt=said, key=f"{key}t", across=across, down=down
        )  # fmt: skip
        drawn.append((svg, caption))
    said = f"Disagreement: {told(_off(result), 'through')}."
    caption = "Difference between that way and the direct prediction, in standard deviations of the label: no colour is 0, full orange 1 or more."
    svg = heat(result.disagreement, names, names, strength=float, alt=said, key=f"{key}x", across=across, down=down)
    return [*drawn, (svg, caption)]
