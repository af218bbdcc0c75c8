"""Fairness: does a model, edited or not, treat groups of people alike?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import InputError, NonFinite, UnknownName, UsageError, nearest
from ..results import (
    GAPS,
    MEASURES,
    Z95,
    Audit,
    Comparison,
    Estimate,
    FairnessCurve,
    FairnessResult,
    FairnessRow,
    Gap,
    GapName,
    Group,
    Measure,
    Provenance,
    Score,
)
from .groups import Cells, Groups, binary, counted, membership

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
OF = {"accuracy": "members", "selection": "members", "tpr": "positives", "fpr": "negatives"}


def group_metrics(
    labels: Any, predictions: Any, groups: Groups, *, scores: Any = None, positive: Any = None, min_n: int = 30,
    bootstrap: int = 1000, seed: int = 0,
) -> Audit:  # fmt: skip
    r"""Rates of a binary classifier overall and by group, and the gaps between groups, all with 95 % intervals.

    With :math:`r_g` the share predicted positive in group g, parity is :math:`\max_g r_g - \min_g r_g` and its ratio
    :math:`\min_g r_g / \max_g r_g`; opportunity is the same difference of true positive rates; the odds are the larger difference
    (the smaller ratio) of true and of false positive rates; accuracy is the difference of accuracies.

    A group with fewer than `min_n` members, or without positives (for true positive rates) or negatives (for false ones), is left
    out of the gaps concerned and says so; its rates are given all the same. Groups may overlap; who is in none counts overall only.

    Rates have Wilson intervals. For a gap, people are drawn anew with replacement (`taskvec.protocols.groups`): the rates of the draw miss
    those of the sample by :math:`e_g`, and since :math:`|gap(r + e) - gap(r)| \le \max_g e_g - \min_g e_g`, the interval reaches as
    far to both sides as the right-hand side does in 95 % of the draws. (The percentiles of the drawn gaps themselves would be
    no interval: gaps of samples are larger than the gap they come from, and never 0.)

    Args:
        labels: [n], 0 and 1, booleans, or values of which `positive` is one.
        predictions: [n], of the same kind.
        groups: name -> [n] of booleans: who is in the group. `groups_of` makes them of a column.
        scores: [n], higher for more positive: adds the area under the ROC curve of each group.
        positive: the label that counts as positive; all others are negative.
        min_n: least number of members for a group to be compared.
        bootstrap: how many draws.
        seed: of the draws.
    Raises:
        UsageError: fewer than two groups; nonsense in the options.
        InputError: lengths differ, labels are not binary, values are missing, or a group is the label itself.
    Reference: arXiv:2505.24262 (the gaps, with groups that overlap).
    Example:
        >>> sex = np.array(["f", "m"] * 100)
        >>> audit = group_metrics(np.tile([1, 1, 0, 0], 50), np.tile([1, 1, 0, 1], 50), {"f": sex == "f", "m": sex == "m"})
        >>> gap = audit.gaps["parity"]
        >>> gap.value, gap.most, gap.least, audit.gaps["opportunity"].value
        (0.5, 'm', 'f', 0.0)
    """
    y, predicted, names, member = _checked(labels, {"predictions": predictions}, groups, positive)
    if min_n < 1 or bootstrap < 100:
        raise UsageError(f"min_n must be at least 1 and bootstrap at least 100, got {min_n} and {bootstrap}.")
    cells = counted(member, y, predicted)
    tallies = _tallies(cells)
    ranks = None if scores is None else _finite(scores, y.size)
    members, positives = tallies["selection"][1], tallies["tpr"][1]
    told = [
        Group(
            name=name, n=int(members[i]), positives=int(positives[i]), **{m: _score(tallies[m], i) for m in MEASURES},
            auc=None if ranks is None else _auc(y, ranks, member[:, i] if i < len(names) else None),
            left_out=_left_out(tallies, i, min_n) if i < len(names) else {},
        )
        for i, name in enumerate([*names, "overall"])
    ]  # fmt: skip
    able = _able(tallies, len(names), min_n)
    gaps, unmeasured = _gaps(cells, names, able, bootstrap, np.random.default_rng(seed))
    return Audit(
        n=y.size, missing=int((~member.any(axis=1)).sum()), overlap=bool((member.sum(axis=1) > 1).any()), overall=told[-1],
        groups=tuple(told[:-1]), gaps=gaps, unmeasured=unmeasured, min_n=min_n, draws=bootstrap, seed=seed,
    )  # fmt: skip


def compare_models(
    labels: Any, before: Any, after: Any, groups: Groups, *, names: tuple[str, str] = ("before", "after"), positive: Any = None,
    min_n: int = 30, bootstrap: int = 1000, seed: int = 0,
) -> Comparison:  # fmt: skip
    r"""What one model has more than another on the same people, with paired 95 % intervals.

    For a gap, :math:`\Delta = gap(after) - gap(before)`; the same people are drawn for both models, and the interval reaches as far to
    both sides as :math:`|\Delta^* - \Delta|` does in 95 % of the draws. For the rate of a group, those who are hits of one model
    alone are counted, b and c, and :math:`(c - b) / n` has the interval of Agresti and Min (2005): Wald's with half a person
    added to each kind.

    Args:
        labels: as for `group_metrics`, as are `groups`, `positive`, `min_n`, `bootstrap` and `seed`.
        before: predictions of one model.
        after: predictions of the other.
        names: what the two are called.
    Raises:
        UsageError, InputError: as for `group_metrics`.
    Example:
        >>> sex, labels = np.array(["f", "m"] * 100), np.tile([1, 1, 0, 0], 50)
        >>> groups = {"f": sex == "f", "m": sex == "m"}
        >>> found = compare_models(labels, np.tile([1, 1, 0, 1], 50), labels, groups)
        >>> found.gaps["parity"].value, found.gaps["parity"].real, found.groups["m"]["fpr"].value
        (-0.5, True, -1.0)
    """
    y, predicted, known, member = _checked(labels, {names[0]: before, names[1]: after}, groups, positive)
    cells = counted(member, y, predicted)
    tallies = [_tallies(cells, model) for model in (0, 1)]
    able = _able(tallies[0], len(known), min_n)
    point = [_values(t, able) for t in tallies]
    drawn: dict[GapName, list[np.ndarray]] = {gap: [] for gap in GAPS}
    for counts in cells.draws(bootstrap, np.random.default_rng(seed)):
        sides = [_values(_tallies(cells, model, counts), able) for model in (0, 1)]
        for gap in GAPS:
            drawn[gap].append(sides[1][gap] - sides[0][gap])
    changes: dict[GapName, Estimate] = {}
    for gap in GAPS:
        value, draws = float(point[1][gap] - point[0][gap]), np.concatenate(drawn[gap])
        if np.isfinite(value) and np.isfinite(draws).any():
            reach = _reach(np.abs(draws - value))
            changes[gap] = Estimate(value=value, low=max(-1.0, value - reach), high=min(1.0, value + reach))
    rates = {name: _changes(cells, i) for i, name in enumerate([*known, "overall"])}
    overall = rates.pop("overall")["accuracy"]
    return Comparison(before=names[0], after=names[1], accuracy=overall, gaps=changes, groups=rates)


def fairness(
    labels: Any, predictions: Mapping[str, Any], groups: Groups, *, grouping: str = "group", scores: Mapping[str, Any] | None = None,
    positive: Any = None, min_n: int = 30, bootstrap: int = 1000, seed: int = 0, rows: Mapping[str, FairnessRow] | None = None,
    title: str = "Fairness", notes: Sequence[str] = (),
) -> FairnessResult:  # fmt: skip
    """Audit several models on the same test data, and compare each with the first.

    Args:
        labels: as for `group_metrics`, as are `groups`, `positive`, `min_n`, `bootstrap` and `seed`.
        predictions: model -> [n]; the first is what the others are compared with (the base, say).
        grouping: what the groups are: the name of the column.
        scores: model -> [n], for some or all of the models.
        rows: for models whose coefficient was chosen: a row that says which and how; its audit is made anew.
        title: heading in reports.
        notes: sentences for the report.
    Raises:
        UsageError: no predictions, or scores or rows of a model that is not among them.
        InputError: as for `group_metrics`.
    """
    if not predictions:
        raise UsageError("no predictions to audit: pass at least one model's, for example {'base': predictions}.")
    for given, what in ((scores, "scores"), (rows, "rows")):
        for name in given or {}:
            if name not in predictions:
                raise UnknownName(
                    f"{what} of {name!r}, which has no predictions; there are {', '.join(predictions)}."
                    f"{nearest(name, predictions)}"
                )
    told = []
    for name, predicted in predictions.items():
        audit = group_metrics(
            labels, predicted, groups, scores=(scores or {}).get(name), positive=positive, min_n=min_n, bootstrap=bootstrap,
            seed=seed,
        )  # fmt: skip
        known = (rows or {}).get(name)
        told.append(
            known.model_copy(update={"name": name, "audit": audit}) if known else FairnessRow(name=name, audit=audit)
        )
    first, *others = predictions
    compared = tuple(
        compare_models(
            labels, predictions[first], predictions[name], groups, names=(first, name), positive=positive, min_n=min_n,
            bootstrap=bootstrap, seed=seed,
        )
        for name in others
    )  # fmt: skip
    return FairnessResult(
        title=title, provenance=Provenance.now(seed=seed, settings={"min_n": min_n, "bootstrap": bootstrap}), grouping=grouping,
        positive="positive" if positive is None else str(positive), rows=tuple(told), comparisons=compared, notes=tuple(notes),
    )  # fmt: skip


def choose_fair(
    coefficients: Sequence[float], audits: Sequence[Audit], *, constraint: GapName = "parity", at_most: float = 0.05
) -> FairnessCurve:
    """The coefficient of highest validation accuracy among those whose gap is at most `at_most`; of equals the smallest edit.

    Where no coefficient keeps to the limit, the one of least gap, and the curve says that it was not met. A point whose gap could not
    be measured keeps to no limit. What decides are the measured values, not their intervals.

    Args:
        coefficients: the grid.
        audits: of validation data, one for each.
        constraint: which gap: parity, odds, opportunity or accuracy.
        at_most: its limit.
    Raises:
        UsageError: lengths differ, or a ratio (which is no gap to keep small).
        InputError: the gap could be measured nowhere.
    """
    if len(coefficients) != len(audits) or not audits:
        raise UsageError(f"{len(coefficients)} coefficients need as many audits, at least one; got {len(audits)}.")
    small = [g for g, (_, ratio) in PARTS.items() if not ratio]
    if constraint not in small:
        raise UnknownName(
            f"the constraint must be one of {', '.join(small)}, got {constraint!r}.{nearest(constraint, small)}"
        )
    gaps = [found.value if (found := a.gap(constraint)) else np.inf for a in audits]
    if not np.isfinite(gaps).any():
        raise InputError(
            f"{constraint} could be measured at no coefficient: {audits[0].unmeasured.get(constraint, '')}"
        )
    right = [a.overall.accuracy.value if a.overall.accuracy else 0.0 for a in audits]
    allowed = [i for i, gap in enumerate(gaps) if gap <= at_most + 1e-12]
    pick = (
        max(allowed, key=lambda i: (right[i], -abs(coefficients[i])))
        if allowed
        else min(range(len(gaps)), key=lambda i: (gaps[i], abs(coefficients[i])))
    )
    return FairnessCurve(
        coefficients=tuple(map(float, coefficients)), audits=tuple(audits), chosen=pick, met=bool(allowed), constraint=constraint,
        at_most=at_most, objective=f"highest accuracy with a {constraint} gap of at most {at_most:g}, else the least gap",
    )  # fmt: skip


# ---- inside ---------------------------------------------------------------------------------------------------------


def _checked(
    labels: Any, predictions: Mapping[str, Any], groups: Groups, positive: Any
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...], np.ndarray]:
    y = binary(labels, positive=positive)
    given = np.asarray(labels)
    known = () if given.dtype.kind == "b" else sorted(set(given.tolist()), key=str)
    columns = []
    for name, values in predictions.items():
        what = name if name == "predictions" else f"predictions of {name!r}"
        column = binary(values, positive=positive, what=what, known=known)
        if column.size != y.size:
            raise InputError(f"{what}: {column.size} rows, but there are {y.size} labels.")
        columns.append(column)
    names, member = membership(groups, y)
    return y, np.column_stack(columns), names, member


def _tallies(cells: Cells, model: int = 0, counts: np.ndarray | None = None) -> Tallies:
    return {measure: cells.tally(measure, model, counts) for measure in MEASURES}


def _able(tallies: Tallies, groups: int, min_n: int) -> dict[Measure, np.ndarray]:
    """By measure, which groups are compared."""
    out = [_left_out(tallies, i, min_n) for i in range(groups)]
    return {measure: np.array([measure not in found for found in out]) for measure in MEASURES}


def _score(tally: tuple[np.ndarray, np.ndarray], i: int) -> Score | None:
    hits, trials = int(tally[0][i]), int(tally[1][i])
    return Score.share(hits, trials) if trials else None


def _left_out(tallies: Tallies, i: int, min_n: int) -> dict[Measure, str]:
    """Of which measures group i is left out, and why."""
    found: dict[Measure, str] = {}
    members = int(tallies["selection"][1][i])
    for measure in MEASURES:
        if members < min_n:
            found[measure] = f"{members} members, fewer than {min_n}"
        elif not tallies[measure][1][i]:
            found[measure] = f"no {OF[measure]}"
    return found


def _values(tallies: Tallies, able: Mapping[Measure, np.ndarray]) -> dict[GapName, np.ndarray]:
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


def _gaps(
    cells: Cells, names: Sequence[str], able: Mapping[Measure, np.ndarray], times: int, rng: np.random.Generator
) -> tuple[dict[GapName, Gap | None], dict[GapName, str]]:
    tallies = _tallies(cells)
    values = _values(tallies, able)
    # How far the rates of a draw miss those of the sample, from end to end: of the rates, and of their logarithms.
    spans: dict[tuple[Measure, bool], list[np.ndarray]] = {(m, r): [] for m in MEASURES for r in (False, True)}
    for counts in cells.draws(times, rng):
        for measure in MEASURES:
            use = np.append(able[measure], False)
            (hits, trials), drawn = tallies[measure], cells.tally(measure, counts=counts)
            for ratio in (False, True):
                off = _rate(drawn[0][:, use], drawn[1][:, use], ratio) - _rate(hits[use], trials[use], ratio)
                some = drawn[1][:, use] > 0
                top = np.where(some, off, -np.inf).max(axis=1, initial=-np.inf)
                spans[measure, ratio].append(top - np.where(some, off, np.inf).min(axis=1, initial=np.inf))
    gaps: dict[GapName, Gap | None] = {}
    unmeasured: dict[GapName, str] = {}
    for gap, (measures, ratio) in PARTS.items():
        value = float(values[gap])
        if not np.isfinite(value):
            gaps[gap], unmeasured[gap] = None, _why_not(measures, ratio, able, tallies)
            continue
        reach = _reach(np.maximum.reduce([np.concatenate(spans[m, ratio]) for m in measures]))
        part = max(measures, key=lambda m: _apart(tallies[m], able[m], ratio))
        rates = np.where(able[part], tallies[part][0][:-1] / np.maximum(tallies[part][1][:-1], 1), np.nan)
        low, high = (value - reach, value + reach) if not ratio else (value * np.exp(-reach), value * np.exp(reach))
        if ratio and value == 0:  # no logarithm: the ratio of the rates with half a hit more
            high = float(np.exp(reach - _apart(tallies[part], able[part], True, log=True)))
        gaps[gap] = Gap(
            value=value, low=max(0.0, low), high=min(1.0, high), most=names[int(np.nanargmax(rates))],
            least=names[int(np.nanargmin(rates))], groups=int(able[part].sum()),
        )  # fmt: skip
    return gaps, unmeasured


def _rate(hits: np.ndarray, trials: np.ndarray, log: bool) -> np.ndarray:
    """The rate, or its logarithm with half a hit and a trial more, which is finite."""
    return np.log((hits + 0.5) / (trials + 1)) if log else hits / np.maximum(trials, 1)


def _apart(tally: tuple[np.ndarray, np.ndarray], able: np.ndarray, ratio: bool, log: bool = False) -> float:
    """How far apart the rates of the groups are; for a ratio, 1 less the ratio; with `log`, the range of logarithms."""
    rate = _rate(tally[0][:-1][able], tally[1][:-1][able], log)
    if log or not ratio:
        return float(rate.max() - rate.min())
    return float(1 - rate.min() / rate.max()) if rate.max() > 0 else -1.0


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


def _reach(misses: np.ndarray) -> float:
    return float(np.quantile(misses[np.isfinite(misses)], 0.95))


def _changes(cells: Cells, i: int) -> dict[Measure, Estimate]:
    return {measure: found for measure in MEASURES if (found := _paired(cells, measure, i))}


def _paired(cells: Cells, measure: Measure, i: int) -> Estimate | None:
    """Change of the rate of group i from the first model to the second: Agresti and Min's interval."""
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


def _finite(scores: Any, n: int) -> np.ndarray:
    given = np.asarray(scores, dtype=np.float64)
    if given.shape != (n,):
        raise InputError(f"scores have shape {given.shape}, but there are {n} labels.")
    if not np.isfinite(given).all():
        raise NonFinite(
            f"scores: {(~np.isfinite(given)).sum()} of {n} are NaN or infinite, the first in row {int((~np.isfinite(given)).argmax())}."
        )
    return given


def _auc(labels: np.ndarray, scores: np.ndarray, member: np.ndarray | None) -> Estimate | None:
    """Area under the ROC curve with DeLong's interval; None without both classes."""
    if member is not None:
        labels, scores = labels[member], scores[member]
    up, down = np.sort(scores[labels]), np.sort(scores[~labels])
    if not up.size or not down.size:
        return None

    def below(values: np.ndarray, others: np.ndarray) -> np.ndarray:
        """For each value, the share of others below it; equal ones count half."""
        return (np.searchsorted(others, values, "left") + np.searchsorted(others, values, "right")) / 2 / others.size

    a, b = below(up, down), 1 - below(down, up)
    value = float(a.mean())
    variance = sum(x.var(ddof=1) / x.size for x in (a, b) if x.size > 1)
    half = Z95 * float(np.sqrt(variance))
    return Estimate(value=value, low=max(0.0, value - half), high=min(1.0, value + half))
