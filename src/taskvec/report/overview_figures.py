"""Pictures of a whole study: means over seeds, one look for each regime in all of them."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import Any

from .fairness_overview import fairness_drawings
from .figures import DASHES, KNOWN, MARKS, SERIES, STAND_IN, literal, svg
from .seeds import Key, Where, by_key
from .words import clean

Placed = Sequence[tuple[Where, Any]]


def drawings(kind: str, placed: Placed, key: str) -> list[tuple[str, str]]:
    """The drawings of one question, each with its caption."""
    if kind == "addition":
        return [
            (bars(placed, f"{key}b"), "Mean test accuracy: base, single-task models, and their sum. Whiskers: ± one standard deviation over seeds."),
            (curves(placed, f"{key}c"), "Mean validation accuracy along the coefficient, mean over seeds; the mark is the mean chosen coefficient."),
            *([(radar(placed, f"{key}r"), "Test accuracy of the sum by task, relative to the model of that task alone (outer ring: 100 %).")]
              if len(placed[0][1].tasks) > 2 else []),
        ]  # fmt: skip
    if kind == "fairness":
        return fairness_drawings(placed, key)
    if kind == "negation":
        return [
            (
                scatter(placed, f"{key}s"),
                "Target against control, test accuracy: every target and seed. Left and up is better. Hollow: the base.",
            )
        ]
    if kind == "disentanglement":
        return [
            (
                maps(placed, f"{key}m"),
                "Mean disentanglement error ξ over pairs and seeds: no colour is 0, the strongest orange is 2. The frame is the range in which coefficients are searched.",
            )
        ]
    if kind == "geometry":
        return [
            (
                cosines(placed, f"{key}g"),
                "Cosine between every two task vectors, mean over seeds: blue above zero, orange below.",
            )
        ]
    if kind == "few-shot":
        many = len(by_key(placed)) > 1
        return [
            (
                few_shots(k, [r for _, r in results], f"{key}f{i}"),
                f"{_name(k, placed) + ': test' if many else 'Test'} accuracy against the number of labels, mean over seeds. "
                "Bands: ± one standard deviation over seeds.",
            )
            for i, (k, results) in enumerate(by_key(placed).items())
        ]
    return []


def few_shots(name: Key, results: Sequence[Any], key: str) -> str:
    """Accuracy against labels for each start: mean and spread over seeds."""
    labels = results[0].labels
    results = [r for r in results if r.labels == labels]
    at = range(len(labels))
    lines = {s.name: [[100 * r.start(s.name).scores[i].value for r in results] for i in at] for s in results[0].starts}

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        for i, (start, values) in enumerate(lines.items()):
            colour, mark = KNOWN.get(start, (SERIES[i % len(SERIES)], MARKS[i % len(MARKS)]))
            ink, mean = STAND_IN[colour], [statistics.mean(v) for v in values]
            low, high = ([m + sign * _spread(v) for m, v in zip(mean, values, strict=True)] for sign in (-1, 1))
            axes.fill_between(at, low, high, color=ink, alpha=0.13, linewidth=0)
            axes.plot(
                at, mean, color=ink, linestyle=DASHES[i % len(DASHES)], linewidth=1.6, marker=mark, markersize=6, label=clean(start, 34)
            )  # fmt: skip
        axes.set_ylim(-3, 103)
        axes.set_xticks(at, [str(n) for n in labels])
        axes.set_xlabel("labels of the target")
        axes.set_ylabel("test accuracy, %")
        axes.grid(axis="y")
        literal(figure.legend(loc="outside lower left", ncols=3))

    said = "; ".join(
        f"{clean(start)}: " + ", ".join(f"{n} labels {statistics.mean(v):.1f}" for n, v in zip(labels, values, strict=True))
        for start, values in lines.items()
    )  # fmt: skip
    return svg(
        draw,
        (4.9, 2.9 + 0.17 * math.ceil(len(lines) / 3)),
        f"Test accuracy in per cent, {clean(name[0])}, {clean(name[1])}. {said}.",
        key,
    )


def _looks(placed: Placed) -> dict[Key, tuple[str, str, str]]:
    """Colour, mark and dash of each base and regime."""
    keys = list(by_key(placed))
    return {
        k: (STAND_IN[SERIES[i % len(SERIES)]], MARKS[i % len(MARKS)], DASHES[(i // len(SERIES) + i) % len(DASHES)])
        for i, k in enumerate(keys)
    }


def _name(key: Key, placed: Placed) -> str:
    """Regime alone where there is one base only."""
    bases = {k[0] for k in by_key(placed)}
    return clean(key[1] if len(bases) == 1 else f"{key[0]}, {key[1]}", 34)


def _spread(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def bars(placed: Placed, key: str) -> str:
    """Base, single tasks, sum: one line for each base and regime."""
    groups = by_key(placed)
    what = (
        ("base", "base", "c0", "o"),
        ("fine-tuned", "single tasks", "c4", "s"),
        ("task arithmetic", "sum", "c1", "D"),
    )
    found = {
        k: {row: [100 * r.row(row).mean.value for _, r in results] for row, *_ in what} for k, results in groups.items()
    }

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        for y, rows in enumerate(found.values()):
            for row, label, colour, mark in what:
                mean, half = statistics.mean(rows[row]), _spread(rows[row])
                axes.plot(
                    [mean - half, mean + half], [y, y], color=STAND_IN[colour], linewidth=1.4, solid_capstyle="butt"
                )
                axes.plot(
                    mean, y, mark, color=STAND_IN[colour], markerfacecolor=STAND_IN["paper" if row == "base" else colour],
                    markersize=7, linestyle="none", label=label if y == 0 else None,
                )  # fmt: skip
        axes.set_yticks(range(len(found)), [_name(k, placed) for k in found], parse_math=False)
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("mean test accuracy, %")
        axes.grid(axis="x")
        literal(figure.legend(loc="outside lower left", ncols=3))

    said = "; ".join(
        f"{_name(k, placed)}: " + ", ".join(f"{label} {statistics.mean(rows[row]):.1f}" for row, label, *_ in what)
        for k, rows in found.items()
    )
    return svg(draw, (4.9, 0.95 + 0.3 * len(found)), f"Mean test accuracy in per cent. {said}.", key)


def curves(placed: Placed, key: str) -> str:
    """Mean validation accuracy of the sum along the coefficient."""
    looks, lines = _looks(placed), {}
    for k, results in by_key(placed).items():
        rows = [r.row("task arithmetic") for _, r in results]
        grid = rows[0].curve.coefficients
        if any(row.curve.coefficients != grid for row in rows):
            continue
        mean = [
            statistics.mean(100 * s[i].value for row in rows for s in row.curve.scores.values())
            for i in range(len(grid))
        ]
        lines[k] = (grid, mean, statistics.mean(row.coefficient for row in rows))

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        for k, (grid, mean, chosen) in lines.items():
            colour, mark, dash = looks[k]
            axes.plot(grid, mean, color=colour, linestyle=dash, linewidth=1.6)
            near = min(range(len(grid)), key=lambda i: abs(grid[i] - chosen))
            axes.plot(chosen, mean[near], mark, color=colour, markersize=7, linestyle="none", label=_name(k, placed))
        axes.set_ylim(-3, 103)
        axes.set_xlabel("coefficient α")
        axes.set_ylabel("mean validation accuracy, %")
        axes.grid(axis="y")
        literal(figure.legend(loc="outside lower left", ncols=2))

    said = ", ".join(f"{_name(k, placed)} {chosen:.2f}" for k, (_, _, chosen) in lines.items())
    return svg(
        draw,
        (4.9, 2.9 + 0.17 * math.ceil(len(lines) / 2)),
        f"Validation accuracy along the coefficient. Chosen: {said}.",
        key,
    )


def radar(placed: Placed, key: str) -> str:
    """The sum's accuracy on every task, as a share of the single-task model's."""
    looks = _looks(placed)
    tasks = list(placed[0][1].tasks)
    shares = {
        k: [statistics.mean(r.row("task arithmetic").normalised[t] for _, r in results) for t in tasks]
        for k, results in by_key(placed).items()
    }
    angles = [2 * math.pi * i / len(tasks) for i in range(len(tasks))]

    def draw(figure: Any) -> None:
        axes = figure.add_subplot(projection="polar")
        for k, line in shares.items():
            colour, mark, dash = looks[k]
            axes.plot(
                [*angles, angles[0]], [*line, line[0]], color=colour, linestyle=dash, marker=mark, markersize=4, linewidth=1.4,
                label=_name(k, placed),
            )  # fmt: skip
        axes.set_xticks(angles, [clean(t, 16) for t in tasks], parse_math=False)
        axes.set_ylim(0, max(1.0, *(x for line in shares.values() for x in line)))
        axes.set_yticks([0.25, 0.5, 0.75, 1.0], ["25", "50", "75", "100 %"])
        axes.grid(True)
        literal(figure.legend(loc="outside lower left", ncols=2))

    said = "; ".join(
        f"{_name(k, placed)}: " + ", ".join(f"{clean(t)} {100 * x:.0f}" for t, x in zip(tasks, line, strict=True))
        for k, line in shares.items()
    )
    return svg(
        draw,
        (4.9, 4.2 + 0.17 * math.ceil(len(shares) / 2)),
        f"Share of the single-task accuracy in per cent. {said}.",
        key,
    )


def scatter(placed: Placed, key: str) -> str:
    """Each negation as a point: what is left of the target, what is left of the control."""
    looks, groups = _looks(placed), by_key(placed)

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        for k, results in groups.items():
            colour, mark, _ = looks[k]
            for name, fill in (("base", STAND_IN["paper"]), ("task arithmetic", colour)):
                points = [
                    (100 * r.row(name).scores[r.target].value, 100 * r.row(name).scores[r.control].value)
                    for _, r in results
                ]
                axes.plot(
                    [p[0] for p in points], [p[1] for p in points], mark, color=colour, markerfacecolor=fill, markersize=6,
                    linestyle="none", label=_name(k, placed) if name != "base" else None,
                )  # fmt: skip
        axes.set_xlabel("target, test accuracy in %")
        axes.set_ylabel("control, test accuracy in %")
        axes.set_xlim(-3, 103)
        axes.grid(True)
        literal(figure.legend(loc="outside lower left", ncols=2))

    said = "; ".join(
        f"{_name(k, placed)}: target {statistics.mean(100 * r.row('task arithmetic').scores[r.target].value for _, r in results):.1f}, "
        f"control {statistics.mean(100 * r.row('task arithmetic').scores[r.control].value for _, r in results):.1f}"
        for k, results in groups.items()
    )
    return svg(
        draw,
        (4.9, 3.6 + 0.17 * math.ceil(len(groups) / 2)),
        f"Mean test accuracy after negation, in per cent. {said}.",
        key,
    )


def maps(placed: Placed, key: str) -> str:
    """A map of the mean disentanglement error for each base and regime."""
    groups = by_key([p for p in placed if p[1].distance == placed[0][1].distance])
    tables: dict[Key, list[list[float]]] = {}
    for k, results in groups.items():
        found = [r.xi(p) for _, r in results for p in r.pairs]
        n = len(found[0])
        tables[k] = [[statistics.mean(t[i][j] for t in found) for j in range(n)] for i in range(n)]
    points, box = placed[0][1].coefficients, placed[0][1].box
    columns = min(3, len(tables))
    lines = math.ceil(len(tables) / columns)
    half = (points[-1] - points[0]) / max(1, len(points) - 1) / 2 or 0.5
    edges = [points[0] - half, *((a + b) / 2 for a, b in itertools.pairwise(points)), points[-1] + half]

    def draw(figure: Any) -> None:
        from matplotlib.patches import Rectangle

        for at, (k, table) in enumerate(tables.items(), 1):
            axes = figure.add_subplot(lines, columns, at)
            for i, line in enumerate(table):
                for j, value in enumerate(line):
                    size = (edges[i + 1] - edges[i], edges[j + 1] - edges[j])
                    axes.add_patch(
                        Rectangle(
                            (edges[i], edges[j]),
                            *size,
                            facecolor=STAND_IN["cold"],
                            alpha=min(1.0, value / 2),
                            linewidth=0,
                        )
                    )
            low, high = (min(max(c, edges[0]), edges[-1]) for c in box)
            axes.add_patch(
                Rectangle((low, low), high - low, high - low, fill=False, edgecolor=STAND_IN["ink"], linewidth=1.2)
            )
            axes.set_xlim(edges[0], edges[-1])
            axes.set_ylim(edges[0], edges[-1])
            axes.set_aspect("equal")
            axes.set_title(_name(k, placed), fontsize=9, color=STAND_IN["ink"], parse_math=False)

    said = ", ".join(f"{_name(k, placed)} {max(map(max, t)):.2f}" for k, t in tables.items())
    return svg(draw, (0.3 + 2.1 * columns, 0.3 + 2.2 * lines), f"Mean disentanglement error; the largest: {said}.", key)


def cosines(placed: Placed, key: str) -> str:
    """A matrix of mean cosines for each base and regime."""
    groups = {k: r for k, r in by_key(placed).items() if "post-hoc" not in k[1]}  # the standard vectors once more
    names = [clean(n, 12) for n in placed[0][1].names]
    size = len(names)
    tables = {
        k: [[statistics.mean(r.cosine[i][j] for _, r in results) for j in range(size)] for i in range(size)]
        for k, results in groups.items()
    }
    columns = min(2, len(tables))
    lines = math.ceil(len(tables) / columns)

    def draw(figure: Any) -> None:
        from matplotlib.patches import Rectangle

        for at, (k, table) in enumerate(tables.items(), 1):
            axes = figure.add_subplot(lines, columns, at)
            for i in range(size):
                for j in range(size):
                    value = table[i][j]
                    colour = STAND_IN["grid"] if i == j else STAND_IN["hot" if value >= 0 else "cold"]
                    axes.add_patch(
                        Rectangle(
                            (j - 0.5, i - 0.5),
                            1,
                            1,
                            facecolor=colour,
                            alpha=1.0 if i == j else min(1.0, abs(value)),
                            linewidth=0,
                        )
                    )
                    axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8 if size < 6 else 5)
            axes.set_xlim(-0.5, size - 0.5)
            axes.set_ylim(size - 0.5, -0.5)
            axes.set_xticks(
                range(size), names, parse_math=False, rotation=35, ha="right", rotation_mode="anchor", fontsize=7
            )
            axes.set_yticks(range(size), names, parse_math=False, fontsize=7)
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
            axes.set_title(_name(k, placed), fontsize=9, color=STAND_IN["ink"], parse_math=False)

    said = "; ".join(
        f"{_name(k, placed)} {statistics.mean(abs(t[i][j]) for i in range(size) for j in range(i)):.3f}"
        for k, t in tables.items()
        if size > 1
    )
    return svg(draw, (0.6 + 2.7 * columns, 0.4 + 2.7 * lines), f"Mean absolute cosines: {said}.", key)
