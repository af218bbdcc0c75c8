"""The statistics of the fairness protocol: gaps between the rates of groups, and how certain they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..results import GAPS, MEASURES, Z95, Estimate, Gap, GapName, Measure
from ..tasks.agreement import auc
from .groups import Cells

# Gap -> the measures that it is made of, and whether it is a ratio.
PARTS: Mapping[GapName, tuple[tuple[Measure, ...], bool]] = {
    "parity": (("selection",), False),
    "parity_ratio": (("selection",), True),
    "odds": (("tpr", "fpr"), False),
    "odds_ratio": (("tpr", "fpr"), True),
    "opportunity": (("tpr",), False),
    "accuracy": (("accuracy",), False),
}
Tallies = Mapping[Measure, tuple[np.ndarray, np.ndarray]]  # hits and trials by group
OF: Mapping[Measure, str] = {"tpr": "positives", "fpr": "negatives"}  # whom these are rates of


def tallied(cells: Cells, model: int = 0, counts: np.ndarray | None = None) -> Tallies:
    return {measure: cells.tally(measure, model, counts) for measure in MEASURES}


def compared(tallies: Tallies, groups: int, min_n: int, min_cases: int) -> dict[Measure, np.ndarray]:
    """By measure, which groups are compared."""
    out = [why_left_out(tallies, i, min_n, min_cases) for i in range(groups)]
    return {measure: np.array([measure not in found for found in out]) for measure in MEASURES}


def why_left_out(tallies: Tallies, i: int, min_n: int, min_cases: int) -> dict[Measure, str]:
    """Of which measures group i is left out, and why."""
    found: dict[Measure, str] = {}
    members = int(tallies["selection"][1][i])
    for measure in MEASURES:
        cases = int(tallies[measure][1][i])
        if members < max(1, min_n):
            found[measure] = f"{members} members, fewer than {min_n}"
        elif measure in OF and cases < max(1, min_cases):
            found[measure] = f"{cases} {OF[measure]}, fewer than {min_cases}" if cases else f"no {OF[measure]}"
    return found


def gap_values(tallies: Tallies, able: Mapping[Measure, np.ndarray]) -> dict[GapName, np.ndarray]:
    """Every gap, of tallies [..., groups + 1]; NaN where fewer than two groups have a rate, or for a ratio all rates are 0."""
    ends = {}
    for measure, (hits, trials) in tallies.items():
        hits, trials = hits[..., :-1][..., able[measure]], trials[..., :-1][..., able[measure]]
        some = trials > 0
        rate = hits / np.maximum(trials, 1)
        high = np.where(some, rate, -np.inf).max(axis=-1, initial=-np.inf)
        low = np.where(some, rate, np.inf).min(axis=-1, initial=np.inf)
        enough = some.sum(axis=-1) >= 2
        ends[measure] = np.where(enough, high, np.nan), np.where(enough, low, np.nan)
    found: dict[GapName, np.ndarray] = {}
    for gap, (measures, ratio) in PARTS.items():
        parts = [
            np.divide(low, high, out=np.full_like(high, np.nan), where=high > 0) if ratio else high - low
            for high, low in (ends[m] for m in measures)
        ]
        found[gap] = np.minimum.reduce(parts) if ratio else np.maximum.reduce(parts)
    return found


def measured_gaps(
    cells: Cells, names: Sequence[str], able: Mapping[Measure, np.ndarray], times: int, seed: int, model: int = 0
) -> tuple[dict[GapName, Gap | None], dict[GapName, str]]:
    """Every gap with its interval, and why those that are None could not be measured."""
    tallies = tallied(cells, model)
    values = gap_values(tallies, able)
    drawn: dict[tuple[Measure, bool], list[np.ndarray]] = {(m, log): [] for m in MEASURES for log in (False, True)}
    for counts in cells.draws(times, np.random.default_rng(seed)):
        for measure, tally in tallied(cells, model, counts).items():
            for log in (False, True):
                drawn[measure, log].append(_miss(tallies[measure], tally, able[measure], log))
    spread = {
        key: _spread(tallies[key[0]], able[key[0]], np.concatenate(blocks), key[1]) for key, blocks in drawn.items()
    }
    gaps: dict[GapName, Gap | None] = {}
    unmeasured: dict[GapName, str] = {}
    for gap, (measures, ratio) in PARTS.items():
        value = float(values[gap])
        if not np.isfinite(value):
            gaps[gap], unmeasured[gap] = None, _why_not(measures, ratio, able, tallies)
            continue
        found = [spread[m, ratio] for m in measures]
        reach = max(Z95, float(np.quantile(np.maximum.reduce([x.largest for x in found]), 0.95)))
        apart = max(float((x.apart + reach * x.error).max()) for x in found)
        near = max(0.0, *(float((x.apart - reach * x.error).max()) for x in found))
        low, high = (np.exp(-apart), np.exp(-near)) if ratio else (near, apart)
        part = max(measures, key=lambda m: _apart(tallies[m], able[m], ratio))
        rates = np.where(able[part], tallies[part][0][:-1] / np.maximum(tallies[part][1][:-1], 1), np.nan)
        gaps[gap] = Gap(
            value=value, low=min(value, float(low)), high=max(value, min(1.0, float(high))), most=names[int(np.nanargmax(rates))],
            least=names[int(np.nanargmin(rates))], groups=int(able[part].sum()),
        )  # fmt: skip
    return gaps, unmeasured


@dataclass(frozen=True)
class _Spread:
    """Of every pair of groups: how far apart the rates are, with what standard error; and of every draw the largest studentised miss."""

    apart: np.ndarray
    error: np.ndarray
    largest: np.ndarray


def _rate(hits: np.ndarray, trials: np.ndarray, log: bool) -> np.ndarray:
    """The rate, or its logarithm with half a hit and a whole trial more, which is finite."""
    return np.log((hits + 0.5) / (trials + 1)) if log else hits / np.maximum(trials, 1)


def _miss(
    tally: tuple[np.ndarray, np.ndarray], drawn: tuple[np.ndarray, np.ndarray], able: np.ndarray, log: bool
) -> np.ndarray:
    """How far the rates of draws miss those of the people themselves; 0 for a group of which a draw has nobody."""
    (hits, trials), (some, tried) = ((x[..., :-1][..., able] for x in t) for t in (tally, drawn))
    return np.where(tried > 0, _rate(some, tried, log) - _rate(hits, trials, log), 0.0)


def _spread(tally: tuple[np.ndarray, np.ndarray], able: np.ndarray, miss: np.ndarray, log: bool) -> _Spread:
    hits, trials = (x[:-1][able] for x in tally)
    rate, shrunk = _rate(hits, trials, log), (hits + 0.5) / (trials + 1)
    # A rate of 0 or 1 never moves in a draw, and is no more certain for that: it gets the variance of half a case more.
    extra = shrunk * (1 - shrunk) / np.maximum(trials, 1) / (shrunk**2 if log else 1.0)
    extra = np.where((hits == 0) | (hits == trials), extra, 0.0)
    apart, error, largest = [np.zeros(0)], [np.zeros(0)], np.zeros(len(miss))
    for g in range(len(rate) - 1):  # one group against the later ones, so that memory does not grow with pairs
        off = miss[:, g, None] - miss[:, g + 1 :]
        s = np.sqrt(off.var(axis=0) + extra[g] + extra[g + 1 :])
        largest = np.maximum(largest, (np.abs(off) / np.where(s > 0, s, 1.0)).max(axis=1))
        apart.append(np.abs(rate[g] - rate[g + 1 :]))
        error.append(s)
    return _Spread(np.concatenate(apart), np.concatenate(error), largest)


def _apart(tally: tuple[np.ndarray, np.ndarray], able: np.ndarray, ratio: bool) -> float:
    """How far apart the rates of the groups are; for a ratio, 1 less the ratio."""
    rate = _rate(tally[0][:-1][able], tally[1][:-1][able], False)
    return float(1 - rate.min() / rate.max() if ratio else rate.max() - rate.min())


def _why_not(
    measures: Sequence[Measure], ratio: bool, able: Mapping[Measure, np.ndarray], tallies: Tallies
) -> str:  # fmt: skip
    for measure in measures:
        left = int(able[measure].sum())
        if left < 2:
            return f"only {left} of {able[measure].size} groups could be compared by {measure}"
        if ratio and not tallies[measure][0][:-1][able[measure]].any():
            return f"{measure} is 0 in every group: a ratio of zeros means nothing"
    return "not measurable"


def gap_changes(
    cells: Cells, names: Sequence[str], able: Mapping[Measure, np.ndarray], times: int, seed: int
) -> dict[GapName, Estimate]:
    """What the gaps of the second model have more than those of the first, where both have one."""
    before, after = (measured_gaps(cells, names, able, times, seed, model)[0] for model in (0, 1))
    drawn: dict[GapName, list[np.ndarray]] = {gap: [] for gap in GAPS}
    for counts in cells.draws(times, np.random.default_rng(seed)):
        first, second = (gap_values(tallied(cells, model, counts), able) for model in (0, 1))
        for gap in GAPS:
            drawn[gap].append(second[gap] - first[gap])
    found: dict[GapName, Estimate] = {}
    for gap, (_, ratio) in PARTS.items():
        sides = [side for side in (before[gap], after[gap]) if side]
        if len(sides) == 2:
            shown = any(side.high < 1 if ratio else side.low > 0 for side in sides)
            found[gap] = _change(sides[1].value - sides[0].value, np.concatenate(drawn[gap]), shown)
    return found


def _change(value: float, draws: np.ndarray, shown: bool) -> Estimate:
    draws = draws[np.isfinite(draws)]
    reach = float(np.quantile(np.abs(draws - value), 0.95))
    first, last = np.quantile(draws, (0.025, 0.975))
    low, high = min(value - reach, 2 * value - last), max(value + reach, 2 * value - first)
    if not shown:
        low, high = min(low, 0.0), max(high, 0.0)
    return Estimate(value=value, low=float(max(-1.0, low)), high=float(min(1.0, high)))


def rate_changes(cells: Cells, i: int) -> dict[Measure, Estimate]:
    return {measure: found for measure in MEASURES if (found := _paired(cells, measure, i))}


def _paired(cells: Cells, measure: Measure, i: int) -> Estimate | None:
    """Change of the rate of group i from the first model to the second: Agresti and Min's interval. None of nobody."""
    hits = [cells.predicted[:, m] == cells.label if measure == "accuracy" else cells.predicted[:, m] for m in (0, 1)]
    among = cells.member[:, i] & {"tpr": cells.label, "fpr": ~cells.label}.get(measure, True)
    n = int(cells.count[among].sum())
    if not n:
        return None
    lost, won = (int(cells.count[among & hits[a] & ~hits[b]].sum()) for a, b in ((0, 1), (1, 0)))
    more, b, c = n + 2, lost + 0.5, won + 0.5
    half = Z95 * np.sqrt(max(0.0, (b + c) - (c - b) ** 2 / more)) / more
    value, centre = (won - lost) / n, (c - b) / more
    return Estimate(
        value=value, low=float(max(-1, min(value, centre - half))), high=float(min(1, max(value, centre + half)))
    )


def area_under_roc(labels: np.ndarray, scores: np.ndarray, member: np.ndarray | None) -> Estimate | None:
    """Area under the ROC curve with its interval (`taskvec.tasks.agreement.auc`); None without both classes."""
    if member is not None:
        labels, scores = labels[member], scores[member]
    if labels.all() or not labels.any():
        return None
    found = auc(scores, labels)
    return Estimate(value=found.value, low=found.low, high=found.high)
