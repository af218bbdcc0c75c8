"""A matrix as a heat map: the same drawing for every question that has rows, columns and one number for each two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .figures import STAND_IN, svg
from .words import clean

NUMBERED = 16  # rows or columns up to which the numbers are written into the cells
LEVELS = 40  # of strength: cells of one level are one shape, so that a hundred properties make no page of megabytes

Value = float | None


def heat(
    values: Sequence[Sequence[Value]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    strength: Callable[[float], float],
    alt: str,
    key: str,
    across: str = "",
    down: str = "",
    digits: int = 2,
) -> str:
    """Cells in orange, or in blue where the strength is negative; no colour at 0, full colour at 1 and -1, and `n/a` where there is no number.

    Args:
        strength: of a value.
        across, down: what columns and rows are.
        digits: of the numbers in the cells.
    """
    large = max(len(rows), len(columns))
    numbered = large <= NUMBERED
    cell = (0.55, 0.4) if numbered else (0.2, 0.2) if large <= 50 else (0.1, 0.1)
    font = 8 if numbered else 72 * cell[0] * 0.55
    levels: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for i, line in enumerate(values):
        for j, v in enumerate(line):
            size = 0.0 if v is None or v != v else max(-1.0, min(1.0, strength(v)))
            if level := round(LEVELS * abs(size)):
                levels.setdefault(("cold" if size > 0 else "hot", level), []).append((i, j))

    def draw(figure: Any) -> None:
        from matplotlib.patches import PathPatch
        from matplotlib.path import Path

        axes = figure.add_subplot()
        for (colour, level), cells in sorted(levels.items()):
            shapes = [Path.unit_rectangle().transformed(_moved(j, i)) for i, j in cells]
            style: dict[str, Any] = {"facecolor": STAND_IN[colour], "alpha": level / LEVELS, "linewidth": 0}
            axes.add_patch(PathPatch(Path.make_compound_path(*shapes), **style))
        for i, line in enumerate(values if numbered else ()):
            for j, v in enumerate(line):
                text = f"{v:.{digits}f}" if v is not None and v == v else "n/a"
                axes.text(j, i, text, ha="center", va="center", fontsize=font)
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        turned: dict[str, Any] = (
            {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if numbered else {"rotation": 90}
        )
        style = {"parse_math": False, "fontsize": min(9.0, 1.4 * font)}
        axes.set_xticks(range(len(columns)), [clean(c, 20) for c in columns], **style, **turned)
        axes.set_yticks(range(len(rows)), [clean(r, 20) for r in rows], **style)
        axes.set_xlabel(across)
        axes.set_ylabel(down)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(not numbered)

    inches = (1.8 + cell[0] * len(columns), 1.2 + cell[1] * len(rows))
    return svg(draw, (inches[0] + 0.25 * bool(down), inches[1] + 0.25 * bool(across)), alt, key)


def _moved(x: int, y: int) -> Any:
    from matplotlib.transforms import Affine2D

    return Affine2D().translate(x - 0.5, y - 0.5)
