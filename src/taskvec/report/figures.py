"""Pictures of results as inline SVG: coefficient curves, before and after, cosines.

Text stays text and colours become CSS variables of the page, so one drawing serves screen and print, light and dark.
Shape and line style repeat what colour says. Equal results give equal bytes.
"""

from __future__ import annotations

import io
import itertools
import math
import re
import warnings
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from ..errors import missing_extra
from ..results import Curve, DisentanglementResult, GeometryResult, Row, Score
from .words import clean, mean_of

# Matplotlib draws with these stand-ins; `svg` turns each into var(--name), which the page's style sheet defines.
STAND_IN = {
    name: f"#0a0b{10 + i:02x}"
    for i, name in enumerate(("ink", "muted", "grid", "paper", "c0", "c1", "c2", "c3", "c4", "c5", "c6", "hot", "cold"))
}
SERIES = ("c1", "c2", "c3", "c4", "c5", "c6")
MARKS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":")
KNOWN = {  # the same model looks the same in every figure: colour, mark
    "base": ("c0", "o"),
    "fine-tuned": ("c4", "s"),
    "target-tuned": ("c4", "s"),
    "random vector": ("c5", "X"),
    "gradient ascent": ("c2", "v"),
    "source": ("c3", "P"),
    "task arithmetic": ("c1", "D"),
    "analogy": ("c1", "D"),
}


def curve(
    row: Row,
    found: Curve,
    tasks: Sequence[str],
    *,
    label: Callable[[str], str],
    floor: tuple[float, str] | None = None,
    key: str = "",
) -> str:
    """Validation accuracy against the coefficient, one line and 95 % band per task; the chosen point is marked.

    `floor` draws a horizontal line (accuracy, its meaning), the constraint of a negation.
    """

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        x = found.coefficients
        for i, task in enumerate(tasks):
            colour = STAND_IN[SERIES[i % len(SERIES)]]
            line = found.scores[task]
            low, high = [100 * s.low for s in line], [100 * s.high for s in line]
            axes.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)
            dash = DASHES[(i // len(SERIES) + i) % len(DASHES)]
            style: dict[str, Any] = {"color": colour, "linestyle": dash, "linewidth": 1.6, "markersize": 6}
            axes.plot(x, [100 * s.value for s in line], label=label(task)[:34], **style)
            axes.plot(
                found.coefficient, 100 * line[found.chosen].value, MARKS[i % len(MARKS)], color=colour, markersize=6
            )
        axes.axvline(found.coefficient, color=STAND_IN["ink"], linewidth=0.9, label=f"chosen: {found.coefficient:g}")
        if floor:
            axes.axhline(
                100 * floor[0], color=STAND_IN["muted"], linewidth=1.1, linestyle=(0, (1, 1.5)), label=floor[1]
            )
        axes.set_ylim(-3, 103)
        axes.set_xlabel("coefficient α")
        axes.set_ylabel("validation accuracy, %")
        axes.grid(axis="y")
        literal(figure.legend(loc="outside lower left", ncols=2))

    chosen = ", ".join(f"{label(t)} {found.scores[t][found.chosen]}" for t in tasks)
    alt = (
        f"Validation accuracy of {clean(row.name)} against the coefficient from {min(found.coefficients):g} to "
        f"{max(found.coefficients):g}. At the chosen {found.coefficient:g}: {chosen}."
    )
    rows = math.ceil((len(tasks) + 1 + bool(floor)) / 2)
    return svg(draw, (4.9, 2.9 + 0.17 * rows), alt, key)


def by_labels(labels: Sequence[int], lines: Sequence[tuple[str, Sequence[Score]]], *, key: str = "") -> str:
    """Accuracy against the number of labels that were tried, evenly spaced: one line and band for each start."""
    at = range(len(labels))

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        for i, (name, scores) in enumerate(lines):
            colour, mark = KNOWN.get(name, (SERIES[i % len(SERIES)], MARKS[i % len(MARKS)]))
            ink = STAND_IN[colour]
            axes.fill_between(
                at, [100 * s.low for s in scores], [100 * s.high for s in scores], color=ink, alpha=0.13, linewidth=0
            )
            axes.plot(
                at, [100 * s.value for s in scores], color=ink, linestyle=DASHES[i % len(DASHES)], linewidth=1.6, marker=mark,
                markersize=6, label=clean(name, 34),
            )  # fmt: skip
        axes.set_ylim(-3, 103)
        axes.set_xticks(at, [str(n) for n in labels])
        axes.set_xlabel("labels of the target")
        axes.set_ylabel("test accuracy, %")
        axes.grid(axis="y")
        literal(figure.legend(loc="outside lower left", ncols=3))

    said = "; ".join(
        f"{clean(name)}: " + ", ".join(f"{n} labels {s}" for n, s in zip(labels, scores, strict=True))
        for name, scores in lines
    )
    return svg(draw, (4.9, 2.9 + 0.17 * math.ceil(len(lines) / 3)), f"Test accuracy by number of labels. {said}.", key)


def before_after(
    rows: Sequence[Row],
    tasks: Sequence[str],
    *,
    label: Callable[[str], str],
    mean: bool = False,
    axis: str = "test accuracy, %",
    key: str = "",
) -> str:
    """Test accuracy (or what `axis` says) of every model, grouped by task, with 95 % whiskers; in a single group the models name
    the lines."""
    groups: list[tuple[str, list[tuple[int, Score]]]] = [
        (label(t), [(i, r.scores[t]) for i, r in enumerate(rows) if t in r.scores]) for t in tasks
    ]
    if mean:
        groups.append(("mean", [(i, m) for i, r in enumerate(rows) if (m := mean_of(r))]))
    single = len(groups) == 1
    step, gap = (1.0, 0.0) if single else (1.0, 1.1)
    places: list[tuple[float, int, Score]] = []
    ticks: list[tuple[float, str]] = []
    borders: list[float] = []
    y = 0.0
    for name, entries in groups:
        top = y
        for i, score in entries:
            places.append((y, i, score))
            if single:
                ticks.append((y, clean(rows[i].name, 26)))
            y += step
        if not single:
            ticks.append(((top + y - step) / 2, clean(name, 26)))
        borders.append(y - step / 2 + gap / 2)
        y += gap

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        named: set[int] = set()
        for at, i, score in places:
            colour, mark = _look(rows, i)
            low, high = 100 * score.low, 100 * score.high
            axes.plot([low, high], [at, at], color=STAND_IN[colour], linewidth=1.4, solid_capstyle="butt")
            fill = STAND_IN["paper" if rows[i].name == "base" else colour]
            text = None if i in named or single else clean(rows[i].name, 34)
            axes.plot(
                100 * score.value,
                at,
                mark,
                color=STAND_IN[colour],
                markerfacecolor=fill,
                markersize=6.5,
                label=text,
                linestyle="none",
            )
            named.add(i)
        for border in borders[:-1]:
            axes.axhline(border, color=STAND_IN["grid"], linewidth=0.8)
        axes.set_ylim(y - gap - 0.2, -0.8)
        axes.set_xlim(-2, 102)
        axes.set_yticks([t for t, _ in ticks], [n for _, n in ticks], parse_math=False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(axis)
        axes.grid(axis="x")
        if not single:
            literal(figure.legend(loc="outside lower left", ncols=3))

    said = "; ".join(
        f"{name}: " + ", ".join(f"{clean(rows[i].name)} {s}" for i, s in entries) for name, entries in groups
    )
    legend = 0 if single else 0.17 * math.ceil(len(rows) / 3)
    return svg(
        draw,
        (4.9, 0.75 + legend + 0.155 * y * (1.5 if single else 1.0)),
        f"{axis[0].upper()}{axis[1:].removesuffix(', %')}. {said}.",
        key,
    )


def cosines(result: GeometryResult, *, key: str = "") -> str:
    """The matrix of cosines: blue above zero, orange below, the number in every cell."""
    names = [clean(n, 20) for n in result.names]
    size = len(names)

    def draw(figure: Any) -> None:
        from matplotlib.patches import Rectangle

        axes = figure.add_subplot()
        for i in range(size):
            for j in range(size):
                value = result.cosine[i][j]
                shown = min(abs(value), 1.0) if math.isfinite(value) else 0.0
                colour = STAND_IN["grid"] if i == j else STAND_IN["hot" if value >= 0 else "cold"]
                axes.add_patch(
                    Rectangle(
                        (j - 0.5, i - 0.5),
                        1,
                        1,
                        facecolor=colour,
                        alpha=1.0 if i == j else shown,
                        linewidth=0,
                    )
                )
                text = f"{value:.2f}" if math.isfinite(value) else "n/a"
                axes.text(j, i, text, ha="center", va="center", fontsize=9 if size <= 10 else 6)
        axes.set_xlim(-0.5, size - 0.5)
        axes.set_ylim(size - 0.5, -0.5)
        turned: dict[str, Any] = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if size > 3 else {}
        axes.set_xticks(range(size), names, parse_math=False, **turned)
        axes.set_yticks(range(size), names, parse_math=False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)

    pairs = ", ".join(f"{names[i]} and {names[j]} {result.cosine[i][j]:.2f}" for i in range(size) for j in range(i))
    side = 1.3 + 0.52 * size
    return svg(draw, (side + 0.5, side), f"Cosines between task vectors: {pairs}.", key)


def disentanglement(result: DisentanglementResult, *, key: str = "") -> str:
    """One map for each pair: the error over both coefficients, darker is larger; a frame marks the box of the search."""
    pairs, points = result.pairs, result.coefficients
    columns = min(3, len(pairs))
    rows = math.ceil(len(pairs) / columns)
    half = (points[-1] - points[0]) / max(1, len(points) - 1) / 2 or 0.5
    edges = [points[0] - half, *((a + b) / 2 for a, b in itertools.pairwise(points)), points[-1] + half]

    def draw(figure: Any) -> None:
        from matplotlib.patches import Rectangle

        for k, pair in enumerate(pairs):
            axes = figure.add_subplot(rows, columns, k + 1)
            for i, line in enumerate(result.xi(pair)):
                for j, value in enumerate(line):
                    corner = (edges[i], edges[j])
                    size = (edges[i + 1] - edges[i], edges[j + 1] - edges[j])
                    axes.add_patch(
                        Rectangle(corner, *size, facecolor=STAND_IN["cold"], alpha=min(1.0, value / 2), linewidth=0)
                    )
            low, high = (min(max(c, edges[0]), edges[-1]) for c in result.box)
            frame: dict[str, Any] = {"fill": False, "edgecolor": STAND_IN["ink"], "linewidth": 1.2}
            axes.add_patch(Rectangle((low, low), high - low, high - low, **frame))
            axes.set_xlim(edges[0], edges[-1])
            axes.set_ylim(edges[0], edges[-1])
            axes.set_aspect("equal")
            axes.set_xlabel(f"α of {clean(pair.tasks[0], 18)}", parse_math=False)
            axes.set_ylabel(f"α of {clean(pair.tasks[1], 18)}", parse_math=False)
            axes.set_title(f"mean ξ in the box {result.mean(pair):.3f}", fontsize=9, color=STAND_IN["ink"])

    said = ", ".join(f"{clean(p.tasks[0])} and {clean(p.tasks[1])} {result.mean(p):.3f}" for p in pairs)
    inches = (0.3 + 2.4 * columns, 0.3 + 2.6 * rows)
    return svg(draw, inches, f"Disentanglement error, mean in the box of the search: {said}.", key)


def _look(rows: Sequence[Row], i: int) -> tuple[str, str]:
    if rows[i].name in KNOWN:
        return KNOWN[rows[i].name]
    other = [r.name for r in rows if r.name not in KNOWN].index(rows[i].name)
    return ("c3", "c6", "c2")[other % 3], ("^", "<", ">", "p", "h")[other % 5]


def literal(legend: Any) -> None:
    """A `$` in a label is a dollar sign, not mathematics."""
    for text in legend.get_texts():
        text.set_parse_math(False)


def _settings() -> dict[str, Any]:
    ink, muted = STAND_IN["ink"], STAND_IN["muted"]
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": "taskvec",
        "font.size": 9,
        "text.color": ink,
        "text.parse_math": False,
        "axes.edgecolor": muted,
        "axes.labelcolor": muted,
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "figure.facecolor": "none",
        "figure.constrained_layout.use": True,
        "grid.color": STAND_IN["grid"],
        "grid.linewidth": 0.8,
        "xtick.color": muted,
        "ytick.color": muted,
        "xtick.labelcolor": ink,
        "ytick.labelcolor": ink,
        "legend.frameon": False,
        "legend.fontsize": 8.5,
        "legend.handlelength": 2.2,
        "legend.columnspacing": 1.4,
        "legend.labelspacing": 0.3,
    }


def svg(draw: Callable[[Any], None], inches: tuple[float, float], alt: str, key: str) -> str:
    """Draw with default settings whatever the user's matplotlibrc says, and make the SVG fit for a page."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_extra("matplotlib", "report", "drawing the figures of a report") from error

    out = io.StringIO()
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # glyphs that Matplotlib's font lacks are drawn by the reader's browser
        matplotlib.rcdefaults()
        for name, value in _settings().items():
            matplotlib.rcParams[name] = value  # type: ignore[index]
        figure = Figure(figsize=inches)
        draw(figure)
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _inline(out.getvalue(), alt, key, inches)


def _inline(svg: str, alt: str, key: str, inches: tuple[float, float]) -> str:
    """Strip what only a file needs, give ids the prefix `key`, name colours and fonts by CSS variables."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    body = svg[svg.index(">") + 1 :]
    body = body.replace("xlink:href=", "href=")
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', body))
    body = re.sub(r' id="([^"]*)"', lambda m: f' id="{key}{m[1]}"' if m[1] in used else "", body)
    body = re.sub(r'(href="|url\()#', rf"\g<1>#{key}", body)
    names = {code: f"var(--{name})" for name, code in STAND_IN.items()}

    def style(match: re.Match[str]) -> str:
        text = re.sub(r"#[0-9a-f]{6}", lambda m: names.get(m[0], m[0]), match[0])
        return re.sub(r"(font: [^;\"]*?[\d.]+px) [^;\"]*", r"\1 var(--sans)", text)

    body = re.sub(r'style="[^"]*"', style, body)
    width, height = (72 * side for side in inches)
    head = f'<svg role="img" aria-label="{escape(alt)}" viewBox="0 0 {width:g} {height:g}" style="--w: {width:g}">'
    return head + body
