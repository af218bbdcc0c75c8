"""Pictures of gate results: relative error, parity, learning curves, routes through the sources, molecules with large errors."""

from __future__ import annotations

from typing import Any

from ..results import GateResult
from ..results.gate import GATE, SINGLE
from .drawn import worst_molecules
from .figures import SERIES, STAND_IN, literal, svg
from .heat import heat
from .words import clean

POINTS = 300  # of a parity plot
# The same method looks the same in every figure: colour, mark.
LOOKS = {
    GATE: ("c1", "D"),
    SINGLE: ("c0", "o"),
    "multi-task": ("c3", "^"),
    "fine-tuned": ("c4", "s"),
    "random forest": ("c5", "P"),
    "weight addition": ("c2", "v"),
}


def gate_figures(result: GateResult, key: str) -> list[tuple[str, str]]:
    """The drawings, each with its caption."""
    drawn = [
        (_ratios(result, f"{key}a"), "Test error relative to the single-task network (1). Whiskers: 95 % interval."),
        (
            _parity(result, f"{key}p"),
            f"Predicted against measured, test molecules of the first run (at most {POINTS} a target), in own units.",
        ),
    ]
    if result.curves:
        caption = "Test error by the number of labels, to train and validate together; logarithmic. Bands: 95 % interval over molecules."
        drawn.append((_curves(result, f"{key}l"), caption))
    if any(t.routes for t in result.runs[0].targets):
        caption = (
            "Error of the prediction that takes the way through a source’s latent, relative to the direct one, mean over runs: no colour is "
            "1 or less, the strongest orange is 2."
        )
        drawn.append((_routes(result, f"{key}t"), caption))
    if (molecules := worst_molecules(result, f"{key}m")) is not None:
        caption = "The test molecules that added modules predict worst; measured and predicted in own units, mean over the runs that tested them."
        drawn.append((molecules, caption))
    return drawn


def _ratios(result: GateResult, key: str) -> str:
    shown = [m for m in result.methods if m != SINGLE]
    step = len(shown) + 1.2

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        for i, m in enumerate(shown):
            colour, mark = LOOKS.get(m, (SERIES[i % len(SERIES)], "X"))
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


def _curves(result: GateResult, key: str) -> str:
    """A panel for each target, a line for each method."""
    names = list(result.curves)
    columns = min(2, len(names))
    rows = -(-len(names) // columns)

    def draw(figure: Any) -> None:
        for k, name in enumerate(names):
            axes = figure.add_subplot(rows, columns, k + 1)
            points = result.curves[name]
            there = [m for m in result.methods if all(m in p.errors for p in points)]
            at = [p.labels for p in points]
            for i, m in enumerate(there):
                colour, mark = LOOKS.get(m, (SERIES[i % len(SERIES)], "X"))
                ink, found = STAND_IN[colour], [p.errors[m] for p in points]
                axes.fill_between(
                    at, [e.rmse_low for e in found], [e.rmse_high for e in found], color=ink, alpha=0.1, linewidth=0
                )
                style: dict[str, Any] = {"color": ink, "marker": mark, "markersize": 4, "linewidth": 1.4}
                axes.plot(at, [e.rmse for e in found], label=m if k == 0 else None, **style)
            axes.set_xscale("log")
            axes.set_xticks(at, [str(n) for n in at])
            axes.minorticks_off()
            if k >= len(names) - columns:
                axes.set_xlabel("labels")
            axes.set_title(clean(name, 24), fontsize=9, color=STAND_IN["ink"], parse_math=False)
            axes.grid()
        figure.supylabel("test RMSE", fontsize=9)
        literal(figure.legend(loc="outside lower left", ncols=3))

    said = "; ".join(
        f"{clean(n)}: "
        + ", ".join(f"{p.labels} labels {p.errors[GATE].rmse:.4g} added, {p.errors[SINGLE].rmse:.4g} alone" for p in c)
        for n, c in result.curves.items()
    )
    return svg(draw, (0.6 + 2.6 * columns, 0.9 + 2.1 * rows), f"Test RMSE by number of labels. {said}.", key)


def _parity(result: GateResult, key: str) -> str:
    targets = result.runs[0].targets
    columns = 2 if len(targets) == 4 else min(3, len(targets))
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
            if k >= len(targets) - columns:
                axes.set_xlabel("measured")
            axes.set_title(clean(t.name, 24), fontsize=9, color=STAND_IN["ink"], parse_math=False)
            axes.grid()
        figure.supylabel("predicted", fontsize=9)
        literal(figure.legend(loc="outside lower left", ncols=2))

    said = ", ".join(f"{clean(t.name)} {t.errors[GATE].rmse:.4g} against {t.errors[SINGLE].rmse:.4g}" for t in targets)
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

    said = ", ".join(f"{clean(t)} through {clean(s)} {v:.2f}" for (t, s), v in value.items())
    return heat(
        [[value[t, s] for s in sources] for t in targets], targets, sources, strength=lambda v: max(0.0, v - 1),
        alt=f"Relative error by route: {said}.", key=key,
    )  # fmt: skip
