"""The story and pictures of a gate result: error relative to the single task, parity, and routes through the sources."""

from __future__ import annotations

from typing import Any

from ..results import GateResult, Relative
from ..results.gate import GATE, SINGLE
from .figures import SERIES, STAND_IN, literal, svg
from .story import Section
from .tables import Cell, Table
from .words import NONE, WITHIN, clean, count

POINTS = 300  # of a parity plot
RIVALS = ("s", "^", "v", "P", "X")
LOOKS = {GATE: ("c1", "D"), SINGLE: ("c0", "o")}


def gate_section(result: GateResult) -> Section:
    """The section of one result."""
    targets, runs = result.targets, result.runs
    own = [result.relative[t][GATE] for t in targets]
    better = [clean(t) for t, r in zip(targets, own, strict=True) if r.high < 1]
    worse = [clean(t) for t, r in zip(targets, own, strict=True) if r.low > 1]
    mean = sum(r.ratio for r in own) / len(own)
    labels = sorted({t.train + t.validation for r in runs for t in r.targets})
    many = f"{labels[0]} to {labels[-1]}" if len(labels) > 1 else f"{labels[0]}"
    parts = [f"lower for {', '.join(better)}"] if better else []
    parts += [f"higher for {', '.join(worse)}"] if worse else []
    rest = len(targets) - len(better) - len(worse)
    parts += [f"within the interval for {count(rest, 'target')}"] if rest else []
    said = [
        f"With {many} labels a target, on a {result.split} split, added modules have {mean:.3f} times the error of single-task networks "
        f"(mean over {count(len(targets), 'target')}, {count(len(runs), 'run')}): {'; '.join(parts)}.",
        *_against(result),
        "Adding targets changed no prediction of the sources: the same bits."
        if all(r.unchanged for r in runs)
        else "Predictions of the sources changed when targets were added, which must not be.",
    ]
    rows = []
    for t in targets:
        cells = [Cell(clean(t), (f"n\u00a0{result.relative[t][SINGLE].n}",))]
        cells += [_cell(result, t, m) for m in result.methods]
        rows.append(tuple(cells))
    verdict = "lower" if own and all(r.high < 1 for r in own) else "higher" if all(r.low > 1 for r in own) else WITHIN
    source_rows = tuple(
        (
            Cell(clean(s)),
            Cell(
                _number(sum(r.sources[s].rmse for r in runs) / len(runs)),
                (f"n\u00a0{min(r.sources[s].n for r in runs)}",),
            ),
        )
        for s in result.sources
    )
    tables = (
        Table("Error relative to the single-task network (below: RMSE in own units, mean over runs)", ("target", *result.methods), tuple(rows)),
        Table("The sources themselves: test RMSE in own units", ("source", "RMSE"), source_rows),
    )  # fmt: skip
    notes = [
        "Ratios of root mean square errors; 95 % intervals by the bootstrap over test molecules, pairs kept. They do not cover what "
        "another draw of training labels or of sources would change.",
        "Formulas and factors of the alignment losses are reconstructed: the paper's own were not available.",
        *(clean(n) for n in result.notes),
        *(clean(f"seed {r.seed}, fold {r.fold}: {n}") for r in runs for n in r.notes),
        *(clean(f"seed {r.seed}: {k} {v:g}") for r in runs for k, v in r.chosen.items()),
    ]
    return Section(
        title=clean(result.title),
        question="Does a property with few labels gain from frozen properties with many, through a common flat frame?",
        equation="l = l(regression) + α l(auto-encoding) + β l(consistency) + γ l(mapping) + δ l(displacement)",
        figure=f"{mean:.3f}",
        figure_label=f"times the error of the single task, mean of {count(len(targets), 'target')}",
        verdict=verdict,
        sentences=tuple(said),
        tables=tables,
        notes=tuple(notes),
    )


def gate_figures(result: GateResult, key: str) -> list[tuple[str, str]]:
    """The drawings, each with its caption."""
    drawn = [
        (_ratios(result, f"{key}a"), "Test error relative to the single-task network (1). Whiskers: 95 % interval."),
        (
            _parity(result, f"{key}p"),
            f"Predicted against measured, test molecules of the first run (at most {POINTS} a target), in own units.",
        ),
    ]
    if any(t.routes for t in result.runs[0].targets):
        caption = (
            "Error of the prediction that takes the way through a source’s latent, relative to the direct one, mean over runs: white is "
            "1 or less, the strongest orange is 2."
        )
        drawn.append((_routes(result, f"{key}t"), caption))
    return drawn


def _against(result: GateResult) -> list[str]:
    rivals = [m for m in result.methods if m not in (GATE, SINGLE)]
    means = {m: sum(result.relative[t][m].ratio for t in result.targets) / len(result.targets) for m in rivals}
    if not means:
        return []
    listed = ", ".join(f"{m} {v:.3f}" for m, v in sorted(means.items(), key=lambda x: x[1]))
    return [f"The rivals, alike: {listed}."]


def _cell(result: GateResult, target: str, method: str) -> Cell:
    r: Relative | None = result.relative[target].get(method)
    if r is None:
        return Cell(NONE)
    rmse = sum(x.target(target).errors[method].rmse for x in result.runs) / len(result.runs)
    span = () if method == SINGLE else (f"[{r.low:.3f},\u00a0{r.high:.3f}]",)
    return Cell(f"{r.ratio:.3f}", (*span, _number(rmse)))


def _number(value: float) -> str:
    return f"{value:.4g}"


def _ratios(result: GateResult, key: str) -> str:
    shown = [m for m in result.methods if m != SINGLE]
    step = len(shown) + 1.2

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        for i, m in enumerate(shown):
            colour, mark = LOOKS.get(m, (SERIES[1 + i % (len(SERIES) - 1)], RIVALS[i % len(RIVALS)]))
            for k, t in enumerate(result.targets):
                r, y = result.relative[t][m], k * step + i
                axes.plot([r.low, r.high], [y, y], color=STAND_IN[colour], linewidth=1.4)
                label = clean(m, 34) if k == 0 else None
                axes.plot(r.ratio, y, mark, color=STAND_IN[colour], markersize=6, linestyle="none", label=label)
        axes.axvline(1, color=STAND_IN["ink"], linewidth=0.9)
        middle = (len(shown) - 1) / 2
        names = [clean(t, 22) for t in result.targets]
        axes.set_yticks([k * step + middle for k in range(len(names))], names, parse_math=False)
        axes.set_ylim(len(names) * step - 0.6, -0.9)
        axes.set_xlabel("RMSE / RMSE of the single task")
        axes.grid(axis="x")
        literal(figure.legend(loc="outside lower left", ncols=3))

    said = "; ".join(
        f"{clean(t)}: " + ", ".join(f"{clean(m)} {result.relative[t][m].ratio:.3f}" for m in shown)
        for t in result.targets
    )
    return svg(draw, (4.9, 1.2 + 0.16 * step * len(result.targets)), f"Relative error. {said}.", key)


def _parity(result: GateResult, key: str) -> str:
    targets = result.runs[0].targets
    columns = min(3, len(targets))
    rows = -(-len(targets) // columns)

    def draw(figure: Any) -> None:
        for k, t in enumerate(targets):
            axes = figure.add_subplot(rows, columns, k + 1)
            every = range(0, len(t.truth), max(1, -(-len(t.truth) // POINTS)))
            truth = [t.truth[i] for i in every]
            for m in (SINGLE, GATE):
                colour, mark = LOOKS[m]
                style: dict[str, Any] = {
                    "color": STAND_IN[colour],
                    "markersize": 2.5,
                    "linestyle": "none",
                    "alpha": 0.6,
                }
                axes.plot(truth, [t.predictions[m][i] for i in every], mark, label=m if k == 0 else None, **style)
            ends = [min(truth), max(truth)]
            axes.plot(ends, ends, color=STAND_IN["ink"], linewidth=0.8)
            axes.set_title(clean(t.name, 24), fontsize=9, color=STAND_IN["ink"], parse_math=False)
            axes.grid()
        figure.supxlabel("measured", fontsize=9)
        figure.supylabel("predicted", fontsize=9)
        literal(figure.legend(loc="outside lower left", ncols=2))

    said = ", ".join(
        f"{clean(t.name)} {_number(t.errors[GATE].rmse)} against {_number(t.errors[SINGLE].rmse)}" for t in targets
    )
    return svg(
        draw, (0.6 + 2.1 * columns, 0.7 + 2.0 * rows), f"Predicted against measured; RMSE added, single: {said}.", key
    )


def _routes(result: GateResult, key: str) -> str:
    """Rows are targets, columns sources."""
    targets, sources = result.targets, result.sources
    value: dict[tuple[str, str], float] = {}
    for t in targets:
        for s in sources:
            ratios = [
                x.target(t).routes[s] / x.target(t).errors[GATE].rmse
                for x in result.runs
                if s in x.target(t).routes and x.target(t).errors[GATE].rmse > 0
            ]
            value[t, s] = sum(ratios) / len(ratios) if ratios else float("nan")

    def draw(figure: Any) -> None:
        from matplotlib.patches import Rectangle

        axes = figure.add_subplot()
        for i, t in enumerate(targets):
            for j, s in enumerate(sources):
                v = value[t, s]
                strength = min(1.0, max(0.0, v - 1)) if v == v else 0.0
                axes.add_patch(
                    Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor=STAND_IN["cold"], alpha=strength, linewidth=0)
                )
                axes.text(j, i, f"{v:.2f}" if v == v else "n/a", ha="center", va="center", fontsize=8)
        axes.set_xlim(-0.5, len(sources) - 0.5)
        axes.set_ylim(len(targets) - 0.5, -0.5)
        turned: dict[str, Any] = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
        axes.set_xticks(range(len(sources)), [clean(s, 20) for s in sources], parse_math=False, **turned)
        axes.set_yticks(range(len(targets)), [clean(t, 20) for t in targets], parse_math=False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)

    said = ", ".join(f"{clean(t)} through {clean(s)} {v:.2f}" for (t, s), v in value.items())
    return svg(draw, (1.8 + 0.55 * len(sources), 1.2 + 0.4 * len(targets)), f"Relative error by route: {said}.", key)
