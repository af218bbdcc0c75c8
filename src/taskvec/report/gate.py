"""The story of a gate result: error relative to the single task and in own units, learning curves, ablation."""

from __future__ import annotations

from collections.abc import Mapping

from ..results import GateResult, OwnUnits, Relative
from ..results.gate import GATE, SINGLE
from .section import Section
from .tables import Cell, Table
from .words import NONE, WITHIN, clean, count

MULTI = "multi-task"


def gate_section(result: GateResult) -> Section:
    """The section of one result."""
    targets, runs = result.targets, result.runs
    own = {t: result.relative[t][GATE] for t in targets}
    mean = sum(r.ratio for r in own.values()) / len(own)
    labels = sorted({t.train + t.validation for r in runs for t in r.targets})
    many = f"{labels[0]} to {labels[-1]}" if len(labels) > 1 else f"{labels[0]}"
    said = [
        f"With {many} labels a target, on a {result.split} split, added modules have {mean:.3f} times the error of single-task networks "
        f"(mean over {count(len(targets), 'target')}, {count(len(runs), 'run')}): {_where(own)}.",
        *_rivals(result),
        *_multi_task(result),
        *_cost(result),
        "Adding targets changed no prediction of the sources: the same bits."
        if all(r.unchanged for r in runs)
        else "Predictions of the sources changed when targets were added, which must not be.",
    ]
    above, below = (all(x) for x in zip(*((r.low > 1, r.high < 1) for r in own.values()), strict=True))
    notes = [
        "Ratios of root mean square errors; 95 % intervals by the bootstrap over test molecules, pairs kept. They do not cover what "
        "another draw of training labels or of sources would change.",
        "Formulas and factors of the alignment losses are reconstructed: the paper's own were not available.",
        *(clean(n) for n in result.notes),
        *(clean(f"seed {r.seed}, fold {r.fold}: {n}") for r in runs for n in r.notes),
        *(clean(f"seed {r.seed}, fold {r.fold}: {k} {v:g}") for r in runs for k, v in r.chosen.items()),
    ]
    return Section(
        title=clean(result.title),
        question="Does a property with few labels gain from frozen properties with many, through a common flat frame?",
        equation="l = l(regression) + α l(auto-encoding) + β l(consistency) + γ l(mapping) + δ l(displacement)",
        figure=f"{mean:.3f}",
        figure_label=f"times the error of the single task, mean of {count(len(targets), 'target')}",
        verdict="lower" if below else "higher" if above else WITHIN,
        sentences=tuple(said),
        tables=tuple(
            t for t in (_relative(result), _own(result), _curves(result), _ablation(result), _sources(result)) if t
        ),
        notes=tuple(notes),
    )


def _where(found: Mapping[str, Relative]) -> str:
    """For which targets the ratio lies beyond 1, and for how many it does not."""
    better = [clean(t) for t, r in found.items() if r.high < 1]
    worse = [clean(t) for t, r in found.items() if r.low > 1]
    rest = len(found) - len(better) - len(worse)
    parts = [f"lower for {', '.join(better)}"] if better else []
    parts += [f"higher for {', '.join(worse)}"] if worse else []
    parts += [f"within the interval for {count(rest, 'target')}"] if rest else []
    return "; ".join(parts)


def _rivals(result: GateResult) -> list[str]:
    rivals = [m for m in result.methods if m not in (GATE, SINGLE)]
    means = {m: sum(result.relative[t][m].ratio for t in result.targets) / len(result.targets) for m in rivals}
    if not means:
        return []
    listed = ", ".join(f"{m} {v:.3f}" for m, v in sorted(means.items(), key=lambda x: x[1]))
    return [f"The rivals, alike: {listed}."]


def _multi_task(result: GateResult) -> list[str]:
    """The paper's claim: better than conventional multi-task learning."""
    found = {t: row[MULTI] for t, row in result.against.items() if MULTI in row}
    if not found:
        return []
    mean = sum(r.ratio for r in found.values()) / len(found)
    return [f"Against the multi-task network, added modules have {mean:.3f} times its error: {_where(found)}."]


def _cost(result: GateResult) -> list[str]:
    def total(begins: str) -> float:
        return sum(v for r in result.runs for k, v in r.seconds.items() if k.startswith(begins)) / len(result.runs)

    added, once = total("adding "), total("pre-training") - total("pre-training the trunk")
    if not added or not once:
        return []
    each = added / len(result.targets)
    rest = f" One multi-task network took {total(MULTI):.0f} s." if total(MULTI) else ""
    rest += f" chemprop took {total('chemprop ') / len(result.targets):.0f} s for each." if total("chemprop ") else ""
    return [
        f"CPU time of a run: {once:.0f} s to pre-train the sources once, {each:.1f} s for each target that is added.{rest}"
    ]


def _relative(result: GateResult) -> Table:
    rows = []
    for t in result.targets:
        cells = [Cell(clean(t), (f"n\u00a0{result.relative[t][SINGLE].n}",))]
        for m in result.methods:
            r = result.relative[t].get(m)
            span = () if r is None or m == SINGLE else (f"[{r.low:.3f},\u00a0{r.high:.3f}]",)
            cells.append(Cell(NONE) if r is None else Cell(f"{r.ratio:.3f}", span))
        rows.append(tuple(cells))
    return Table("Error relative to the single-task network", ("target", *result.methods), tuple(rows))


def _own(result: GateResult) -> Table | None:
    rows = []
    for t, found in result.errors.items():
        for what in ("rmse", "mae"):
            cells = [Cell(clean(t), (what.upper(),))]
            cells += [_number(found[m], what) if m in found else Cell(NONE) for m in result.methods]
            rows.append(tuple(cells))
    if not rows:
        return None
    return Table("Root mean square and mean absolute error in own units", ("target", *result.methods), tuple(rows))


def _curves(result: GateResult) -> Table | None:
    methods = [m for m in result.methods if any(m in p.errors for c in result.curves.values() for p in c[:1])]
    rows = []
    for t, curve in result.curves.items():
        for p in curve:
            cells = [Cell(clean(t), (count(p.labels, "label"),))]
            cells += [_number(p.errors[m], "rmse") if m in p.errors else Cell(NONE) for m in methods]
            rows.append(tuple(cells))
    if not rows:
        return None
    runs = next(e.runs for curve in result.curves.values() for e in curve[0].errors.values())
    return Table(f"RMSE in own units by the number of labels ({count(runs, 'run')})", ("target", *methods), tuple(rows))


def _ablation(result: GateResult) -> Table | None:
    if not result.ablation:
        return None
    left_out = list(dict.fromkeys(a for row in result.ablation.values() for a in row))
    rows = []
    for t, row in result.ablation.items():
        found = [row.get(a) for a in left_out]
        cells = [
            Cell(NONE) if r is None else Cell(f"{r.ratio:.3f}", (f"[{r.low:.3f},\u00a0{r.high:.3f}]",)) for r in found
        ]
        rows.append((Cell(clean(t)), *cells))
    runs = next(r.runs for row in result.ablation.values() for r in row.values())
    caption = f"Additions without a loss: error relative to that with all (sources pre-trained with all; {count(runs, 'run')})"
    return Table(caption, ("target", *left_out), tuple(rows))


def _sources(result: GateResult) -> Table:
    rows = []
    for s in result.sources:
        found = [r.sources[s] for r in result.runs if s in r.sources]
        cell = Cell(f"{sum(e.rmse for e in found) / len(found):.4g}", (f"n\u00a0{min(e.n for e in found)}",))
        rows.append((Cell(clean(s)), cell))
    return Table("The sources themselves: test RMSE in own units", ("source", "RMSE"), tuple(rows))


def _number(found: OwnUnits, what: str) -> Cell:
    value, low, high = (getattr(found, what + end) for end in ("", "_low", "_high"))
    return Cell(f"{value:.4g}", (f"[{low:.4g},\u00a0{high:.4g}]",))
