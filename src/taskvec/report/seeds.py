"""Many results of a study: mean and spread over seeds, a line for each base and regime.

Results say where they belong in ``provenance.settings["study"]`` (base, regime, protocol, seed, perhaps target or distance).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..results import Row
from .tables import Cell, Table
from .words import NONE, clean

Where = Mapping[str, Any]
Key = tuple[str, str]  # base, regime
REGIMES = ("standard", "post-hoc", "tangent", "linear-only")  # as papers list them; others follow by name


def spread(values: Sequence[float], *, digits: int = 1, signed: bool = False) -> str:
    """Mean and standard deviation over seeds; the value itself for one seed.

    Example:
        >>> spread([80.0, 82.0]), spread([80.0]), spread([123456.0])
        ('81.0 ± 1.4', '80.0', '123,456.0')
    """
    if not values:
        return NONE
    sign = "+" if signed else ""
    mean = f"{statistics.mean(values):{sign},.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):,.{digits}f}" if len(values) > 1 else mean


def by_key(placed: Sequence[tuple[Where, Any]]) -> dict[Key, list[tuple[Where, Any]]]:
    """Results by base and regime: bases as they come, regimes as papers list them."""
    out: dict[Key, list[tuple[Where, Any]]] = {}
    for where, result in placed:
        out.setdefault((str(where["base"]), str(where["regime"])), []).append((where, result))
    bases = list(dict.fromkeys(base for base, _ in out))
    rank = {r: i for i, r in enumerate(REGIMES)}
    return {k: out[k] for k in sorted(out, key=lambda k: (bases.index(k[0]), rank.get(k[1], len(rank)), k[1]))}


def _seeds(found: Sequence[tuple[Where, Any]]) -> str:
    seeds = sorted({int(w["seed"]) for w, _ in found})
    return ", ".join(map(str, seeds))


def share(
    rows: Sequence[Row | None], measure: Callable[[Row], float | None] = lambda r: r.mean.value, scale: float = 100
) -> Cell:
    """A number of a row over seeds; with one seed, its interval."""
    there = [r for r in rows if r is not None]
    values = [v for r in there if (v := measure(r)) is not None]
    if not values:
        return Cell(NONE)
    text = spread([scale * v for v in values], digits=1 if scale == 100 else 3)
    if len(there) == 1 and scale == 100:
        m = there[0].mean
        return Cell(text, (f"[{100 * m.low:.1f}, {100 * m.high:.1f}]",))
    return Cell(text)


def row_of(result: Any, name: str) -> Row | None:
    """The row of a name, if the result has it."""
    return next((r for r in result.rows if r.name == name), None)


def score_of(name: str, results: Sequence[Any]) -> Cell:
    """The mean accuracy of the rows of one name over seeds."""
    return share([row_of(r, name) for r in results])


def over_seeds(
    caption: str, placed: Sequence[tuple[Where, Any]], columns: Mapping[str, Callable[[Sequence[Any]], Cell]]
) -> Table:
    """A line for each base and regime; columns that are empty everywhere are left out."""
    lines = []
    for (base, regime), found in by_key(placed).items():
        results = [r for _, r in found]
        lines.append(
            (Cell(clean(base)), Cell(clean(regime)), Cell(_seeds(found)), *(f(results) for f in columns.values()))
        )
    kept = [i for i in range(len(columns) + 3) if i < 3 or any(line[i].text != NONE for line in lines)]
    heads = ("base", "regime", "seeds", *columns)
    return Table(caption, tuple(heads[i] for i in kept), tuple(tuple(line[i] for i in kept) for line in lines))


def picked(lines: int) -> str:
    """What is to be said of a line that is told because its number is the best."""
    if lines == 1:
        return ""
    return f" That is the best of {lines} lines by these same test scores, so it flatters a little; to choose one, use validation data."


def highest(lines: int) -> str:
    """The same in few words, for a label."""
    return "" if lines == 1 else f"best of {lines} lines: "


def place(key: Key) -> str:
    """Base and regime, for a sentence."""
    return f"{clean(key[0])}, {clean(key[1])}"
