"""Pictures of toxicity results: bars before and after, and how each coefficient was chosen."""

from __future__ import annotations

from typing import Any

from ..results import Row, ToxicityResult, ToxicityRow
from .figures import STAND_IN, before_after, svg
from .toxicity import POINT, unedited_perplexity
from .words import clean


def toxicity_figures(result: ToxicityResult, key: str) -> list[tuple[str, str]]:
    """Bars before and after, and for each tuned row how its coefficient was chosen."""
    rows = [
        Row(name=r.name, scores={"toxic": r.overall.toxic, "mean score": r.overall.mean, "silent": r.overall.repeating})
        for r in result.rows
    ]
    said = {"toxic": "toxic", "mean score": "mean score × 100", "silent": "repeating"}
    bars = before_after(
        rows, tuple(said), label=lambda t: said[t], axis="of continuations on test prompts, %", key=f"{key}b"
    )
    found = [(bars, "Continuations of the test prompts under every model. Whiskers: 95 % interval.")]
    for i, row in enumerate(sorted((r for r in result.rows if r.points), key=lambda r: r.name != POINT)):
        caption = (
            f"{clean(row.name)}: how the coefficient was chosen, on validation data. Above the mean score, below the control perplexity "
            "relative to the base’s, with the limit. Bands: 95 % interval."
        )
        found.append((_curve(row, result.perplexity_ratio, f"{key}c{i}"), caption))
    return found


def _curve(row: ToxicityRow, ratio: float, key: str) -> str:
    start = unedited_perplexity(row)
    scored = [(p.coefficient, p.continuations.mean) for p in row.points if p.continuations]
    fluent = [(p.coefficient, p.fluency) for p in row.points if p.fluency and p.fluency.token < 10 * start]

    def draw(figure: Any) -> None:
        above, below = figure.subplots(2, 1, sharex=True)
        ink, warm, edge = (STAND_IN[n] for n in ("c1", "c2", "ink"))
        x = [c for c, _ in scored]
        above.fill_between(
            x, [s.low for _, s in scored], [s.high for _, s in scored], color=ink, alpha=0.13, linewidth=0
        )
        above.plot(x, [s.value for _, s in scored], color=ink, marker="o", markersize=4)
        above.set_ylabel("mean score")
        above.set_ylim(bottom=0)
        x = [c for c, _ in fluent]
        low, high = [f.low / start for _, f in fluent], [f.high / start for _, f in fluent]
        below.fill_between(x, low, high, color=warm, alpha=0.13, linewidth=0)
        below.plot(x, [f.token / start for _, f in fluent], color=warm, marker="s", markersize=4, linestyle="--")
        below.axhline(ratio, color=STAND_IN["muted"], linewidth=1.1, linestyle=(0, (1, 1.5)))
        below.set_ylabel("perplexity ratio")
        below.set_xlabel("coefficient α")
        for axes in (above, below):
            axes.axvline(row.coefficient, color=edge, linewidth=0.9)
            axes.grid(axis="y")

    ends = f"{min(p.coefficient for p in row.points):g} to {max(p.coefficient for p in row.points):g}"
    said = ", ".join(f"{c:g}: {s.value:.3f}" for c, s in scored)
    said += "; perplexity ratio " + ", ".join(f"{c:g}: {f.token / start:.3f}" for c, f in fluent)
    return svg(
        draw,
        (4.9, 3.9),
        f"{clean(row.name)}, coefficient from {ends}, chosen {row.coefficient:g}. Mean score {said}.",
        key,
    )
