"""Orderings that papers found, and whether a study shows them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..results import Row
from .section import Section
from .seeds import Key, Where, spread
from .tables import Cell, Table
from .words import clean, count

Numbers = dict[Key, dict[int, dict[str, float]]]  # key -> seed -> measure -> value


@dataclass(frozen=True)
class Claim:
    """An ordering that a paper found.

    Args:
        said: in words.
        source: where it was found, with its numbers.
        measure: which number is compared.
        high, low: regimes, the first expected above the second; for `across`, bases.
        across: compare bases within each regime instead.
        equal: whether equal values agree with it.
    """

    said: str
    source: str
    measure: str
    high: str
    low: str
    across: bool = False
    equal: bool = False


# Numbers of the papers that are quoted from memory in later work, not checked in the paper itself, are marked ~.
CLAIMS = (
    Claim("single tasks: tangent at or below standard", "arXiv:2305.12827", "single", "standard", "tangent", equal=True),
    Claim("sum: tangent above standard", "arXiv:2305.12827, CLIP ViT-B/32: ~76.5 against ~71.4", "sum", "tangent", "standard"),
    Claim("sum: linear-only at or above tangent", "arXiv:2407.07089", "sum", "linear-only", "tangent", equal=True),
    Claim("normalised: post-hoc above standard", "arXiv:2305.12827, CLIP ViT-B/32: ~81.9 against ~76.5", "normalised", "post-hoc", "standard"),
    Claim("sum: post-hoc below standard", "arXiv:2305.12827, CLIP ViT-B/32: ~57.1 against ~71.4", "sum", "standard", "post-hoc"),
    Claim("ξ: tangent below standard", "arXiv:2305.12827", "xi", "standard", "tangent"),
    Claim("ξ: linear-only below standard", "arXiv:2407.07089", "xi", "standard", "linear-only"),
    Claim("ξ: pre-trained below random", "arXiv:2305.12827", "xi", "random", "", across=True),
    Claim("negation, target: tangent below standard", "arXiv:2305.12827, CLIP ViT-B/32: ~10.9 against 24.0", "target", "standard", "tangent"),
)  # fmt: skip


def measured(placed: Iterable[tuple[Where, Any]]) -> Numbers:
    """The numbers that claims compare."""
    out: Numbers = {}
    negations: dict[tuple[Key, int], list[Row]] = {}
    for where, result in placed:
        key, seed = (str(where["base"]), str(where["regime"])), int(where["seed"])
        here = out.setdefault(key, {}).setdefault(seed, {})
        if result.kind == "addition":
            here["base"] = result.row("base").mean.value
            here["single"] = result.row("fine-tuned").mean.value
            here["sum"] = result.row("task arithmetic").mean.value
            here["normalised"] = result.row("task arithmetic").mean_normalised
        elif result.kind == "disentanglement" and result.distance == "prediction":
            here["xi"] = statistics.mean(result.mean(p) for p in result.pairs)
        elif result.kind == "negation":
            rows = negations.setdefault((key, seed), [])
            rows.append(result.row("task arithmetic"))
            here["target"] = statistics.mean(r.scores[t].value for r in rows for t in list(r.scores)[:1])
    return out


def claims(numbers: Numbers) -> Section | None:
    """Does each ordering of the papers hold here? Differences seed by seed."""
    rows = []
    for claim in CLAIMS:
        for name, pairs in _pairs(claim, numbers):
            gaps = [a - b for a, b in pairs]
            held = sum(g > 0 or (claim.equal and g == 0) for g in gaps)
            scale = 1 if claim.measure in ("xi", "normalised") else 100
            rows.append(
                (
                    Cell(clean(claim.said), (claim.source,)),
                    Cell(clean(name)),
                    Cell(spread([scale * g for g in gaps], digits=3 if scale == 1 else 1, signed=True)),
                    Cell(f"{held} of {len(gaps)}"),
                    Cell("yes" if held == len(gaps) else "no" if held == 0 else "in part"),
                )
            )
    if not rows:
        return None
    held = sum(r[-1].text == "yes" for r in rows)
    return Section(
        title="Do the papers’ orderings hold here?",
        question="Which findings of the papers does this study show, seed by seed?",
        equation="difference = larger expected − smaller expected",
        figure=f"{held} of {len(rows)}",
        figure_label="orderings that hold in every seed",
        verdict="",
        sentences=(
            f"Of {count(len(rows), 'ordering')} {held} hold in every seed of this study.",
            "A difference that holds in every one of a few seeds may still be chance: with three seeds an ordering without any effect "
            "holds in all of them one time in eight.",
        ),
        tables=(Table("Orderings", ("finding", "where", "difference", "seeds in which it holds", "holds"), tuple(rows)),),
        notes=(
            "The papers fine-tune CLIP models on eight image tasks; with other models and data than these an ordering may differ for that "
            "alone. Where a paper’s numbers are marked ~ they were taken from later work.",
        ),
    )  # fmt: skip


def _pairs(claim: Claim, numbers: Numbers) -> list[tuple[str, list[tuple[float, float]]]]:
    """(where, values of the two sides in the seeds that have both)."""
    found = []
    bases, regimes = (list(dict.fromkeys(k[i] for k in numbers)) for i in (0, 1))
    sides: list[tuple[str, Key, Key]] = []
    if claim.across:
        others = [b for b in bases if b != claim.high]
        sides = [(f"{b}, {r}", (claim.high, r), (b, r)) for b in others for r in regimes]
    else:
        sides = [(b, (b, claim.high), (b, claim.low)) for b in bases]
    for name, high, low in sides:
        a, b = numbers.get(high, {}), numbers.get(low, {})
        pairs = [
            (a[s][claim.measure], b[s][claim.measure])
            for s in sorted(set(a) & set(b))
            if claim.measure in a[s] and claim.measure in b[s]
        ]
        if pairs:
            found.append((name, pairs))
    return found
