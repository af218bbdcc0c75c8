"""How a report says numbers and names: no HTML, no plots, so that every form of report says the same.

A difference is called one only when the two 95 % intervals do not overlap; everything else is `WITHIN`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

from ..results import Curve, NegationResult, Row, Score

WITHIN = "difference within the intervals"
NONE = "–"  # an empty cell


def clean(text: str, limit: int | None = None) -> str:
    """`text` on one line, with control, format and surrogate characters shown as U+FFFD; cut at `limit`.

    Example:
        >>> clean("red\\x1b[31m\\nsquare")
        'red�[31m square'
    """
    text = "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cf", "Cs") else c for c in " ".join(text.split()))
    return text if limit is None or len(text) <= limit else text[: limit - 1] + "…"


def percent(value: float) -> str:
    return f"{100 * value:.1f}\u00a0%"  # no line break between number and sign


def legible(value: float, small: str = ".4g") -> str:
    """A number of any size, such as a perplexity by word: as `small` says, from 10,000 on whole, from a million on as a power of ten.

    Example:
        >>> legible(12.3456), legible(98765.4), legible(84512345.6)
        ('12.35', '98,765', '8.451e+07')
    """
    if not value >= 9999.5:
        return f"{value:{small}}"
    return f"{value:,.0f}" if value < 999999.5 else f"{value:.4g}"


def interval(score: Score) -> str:
    return f"[{100 * score.low:.1f},\u00a0{100 * score.high:.1f}]"


def mean_of(row: Row) -> Score | None:
    return row.mean if row.scores else None


def compare(a: Score, b: Score) -> str:
    """`higher` or `lower` if the intervals of `a` and `b` do not overlap, else the words for "no difference shown".

    Example:
        >>> compare(Score.share(90, 100), Score.share(50, 100)), compare(Score.share(52, 100), Score.share(50, 100))
        ('higher', 'difference within the intervals')
    """
    if a.low > b.high:
        return "higher"
    if a.high < b.low:
        return "lower"
    return WITHIN


def find(rows: Iterable[Row], name: str) -> Row | None:
    return next((r for r in rows if r.name == name), None)


def edited(rows: Sequence[Row], *names: str) -> Row | None:
    """The row that is the point of the result: the first of `names`, else the first tuned row that is no baseline."""
    for name in names:
        if row := find(rows, name):
            return row
    return next(
        (r for r in rows if r.coefficient is not None and r.name not in ("random vector", "gradient ascent")), None
    )


def control_floor(result: NegationResult, curve: Curve) -> float | None:
    """The validation control accuracy to be kept: `control_share` of the base's (the curve at coefficient 0)."""
    if 0.0 not in curve.coefficients or result.control not in curve.scores:
        return None
    return result.control_share * curve.scores[result.control][curve.coefficients.index(0.0)].value


def count(n: int, what: str) -> str:
    return f"{n} {what}" + ("" if n == 1 else "s")


def quoted(name: str) -> str:
    return f"‘{clean(name)}’"


def the_model(row: Row) -> str:
    """A row’s name in the middle of a sentence."""
    name = clean(row.name)
    return f"a {name}" if name == "random vector" else f"the {name}" if name in ("base", "analogy") else name


def at_coefficient(row: Row) -> str:
    """The coefficient and, because a number that was not tuned is no fair rival, whether it was chosen here."""
    if row.coefficient is None:
        return ""
    return f" at coefficient {row.coefficient:g}" + ("" if row.curve else " (not tuned here)")


def beside(what: str, before: Score, row: Row, found: str) -> str:
    """How the edited model compares with `what`; `found` is from the edited model's side."""
    start = f"{what} has {percent(before.value)} {interval(before)}"
    if found == WITHIN:
        return f"{start}: {found}."
    name = the_model(row)
    return f"{start}. {name[0].upper()}{name[1:]} is {found}, beyond the intervals."


def for_comparison(other: Row, score: Score, after: Score, row: Row) -> str:
    """What another tuned row reaches, beside the edited model's score `after`."""
    return (
        f"For comparison, {the_model(other)}{at_coefficient(other)} reaches {percent(score.value)} {interval(score)}: "
        f"{set_against(compare(score, after), row)}."
    )


def set_against(found: str, row: Row) -> str:
    """What was found of another model, said of it beside the edited one."""
    return found if found == WITHIN else f"{found} than {the_model(row)}"


def beyond(found: str) -> str:
    return found if found == WITHIN else f"{found}, beyond the intervals"
