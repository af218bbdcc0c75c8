"""Fairness: does a model, edited or not, treat groups of people alike?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import CheckFailed, InputError, NonFinite, UnknownName, UsageError, missing_extra, nearest
from ..results import (
    MEASURES,
    Audit,
    Comparison,
    FairnessResult,
    FairnessRow,
    Gap,
    GapName,
    Group,
    Measure,
    Provenance,
    Score,
)
from .gaps import PARTS, area_under_roc, compared, gap_changes, measured_gaps, rate_changes, tallied, why_left_out
from .groups import Groups, binary, counted, membership


def group_metrics(
    labels: Any, predictions: Any, groups: Groups, *, scores: Any = None, positive: Any = None, min_n: int = 30, min_cases: int = 10,
    bootstrap: int = 1000, seed: int = 0, check: bool = False,
) -> Audit:  # fmt: skip
    r"""Rates of a binary classifier overall and by group, and the gaps between groups, all with 95 % intervals.

    With :math:`r_g` the share predicted positive in group g, parity is :math:`\max_g r_g - \min_g r_g` and its ratio
    :math:`\min_g r_g / \max_g r_g`; opportunity is the same difference of true positive rates; the odds are the larger difference
    (the smaller ratio) of true and of false positive rates; accuracy is the difference of accuracies.

    A group with fewer than `min_n` members, or than `min_cases` positives (for true positive rates) or negatives (for false ones), is
    left out of the gaps concerned and says so; its rates are given all the same. Groups may overlap; who is in none counts overall only.

    Rates have Wilson intervals. For a gap, people are drawn anew with replacement (`taskvec.protocols.groups`), which gives every
    difference :math:`r_g - r_h` a standard error :math:`s_{gh}` and :math:`c`, which all :math:`|(r_g - r_h)^* - (r_g - r_h)| / s_{gh}` together stay
    below in 95 % of the draws; the interval is :math:`\max_{gh} (|r_g - r_h| \mp c\, s_{gh})`, for ratios the same in logarithms. (The
    percentiles of the drawn gaps would be no interval: of several groups that are all alike the largest gap of a sample is never 0,
    that of a draw is larger still, and the interval leaves out the truth.)

    Args:
        labels: [n], 0 and 1, booleans, or values of which `positive` is one.
        predictions: [n], of the same kind.
        groups: name -> [n] of booleans: who is in the group. `groups_of` makes them of a column.
        scores: [n], higher for more positive: adds the area under the ROC curve of each group.
        positive: the label that counts as positive; all others are negative.
        min_n: least number of members for a group to be compared.
        min_cases: least number of positives for its true positive rate to be, and of negatives for its false one.
        bootstrap: how many draws.
        seed: of the draws.
        check: find the gaps through fairlearn too, where groups do not overlap, and fail where it finds others.
    Raises:
        UsageError: fewer than two groups; nonsense in the options.
        InputError: lengths differ, labels are not binary, values are missing, or a group is the label itself.
        MissingExtra, CheckFailed: with `check`, fairlearn is not installed or finds other gaps.
    Reference: arXiv:2505.24262 (the gaps, with groups that overlap).
    Example:
        >>> sex = np.array(["f", "m"] * 100)
        >>> audit = group_metrics(np.tile([1, 1, 0, 0], 50), np.tile([1, 1, 0, 1], 50), {"f": sex == "f", "m": sex == "m"})
        >>> gap = audit.gaps["parity"]
        >>> gap.value, gap.most, gap.least, audit.gaps["opportunity"].value
        (0.5, 'm', 'f', 0.0)
    """
    y, predicted, names, member = _checked(labels, {"predictions": predictions}, groups, positive)
    if min(min_n, min_cases) < 1 or bootstrap < 100:
        raise UsageError(
            f"min_n and min_cases must be at least 1 and bootstrap at least 100, got {min_n}, {min_cases} and {bootstrap}."
        )
    cells = counted(member, y, predicted)
    tallies = tallied(cells)
    ranks = None if scores is None else _finite(scores, y.size)
    members, positives = tallies["selection"][1], tallies["tpr"][1]
    told = [
        Group(
            name=name, n=int(members[i]), positives=int(positives[i]), **{m: _score(tallies[m], i) for m in MEASURES},
            auc=None if ranks is None else area_under_roc(y, ranks, member[:, i] if i < len(names) else None),
            left_out=why_left_out(tallies, i, min_n, min_cases) if i < len(names) else {},
        )
        for i, name in enumerate([*names, "overall"])
    ]  # fmt: skip
    able = compared(tallies, len(names), min_n, min_cases)
    gaps, unmeasured = measured_gaps(cells, names, able, bootstrap, seed)
    overlap = bool((member.sum(axis=1) > 1).any())
    checked = "" if not check or overlap else _check(y, predicted[:, 0], member, able, gaps)
    return Audit(
        n=y.size, missing=int((~member.any(axis=1)).sum()), overlap=overlap, overall=told[-1],
        groups=tuple(told[:-1]), gaps=gaps, unmeasured=unmeasured, min_n=min_n, min_cases=min_cases, draws=bootstrap, seed=seed,
        checked=checked,
    )  # fmt: skip


def compare_models(
    labels: Any, before: Any, after: Any, groups: Groups, *, names: tuple[str, str] = ("before", "after"), positive: Any = None,
    min_n: int = 30, min_cases: int = 10, bootstrap: int = 1000, seed: int = 0,
) -> Comparison:  # fmt: skip
    r"""What one model has more than another on the same people, with paired 95 % intervals.

    For a gap, :math:`\Delta = gap(after) - gap(before)`; the same people are drawn for both models. The interval reaches as far to both
    sides as :math:`|\Delta^* - \Delta|` does in 95 % of the draws, and at least from :math:`2\Delta - q_{97.5}(\Delta^*)` to
    :math:`2\Delta - q_{2.5}(\Delta^*)`, because gaps of draws are too large; it takes in 0 where neither model has a gap whose own
    interval leaves out 0 (1, for ratios). For the rate of a group, those who are hits of one model
    alone are counted, b and c, and :math:`(c - b) / n` has the interval of Agresti and Min (2005): Wald's with half a person
    added to each kind.

    Args:
        labels: as for `group_metrics`, as are `groups`, `positive`, `min_n`, `min_cases`, `bootstrap` and `seed`.
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
    if names[0] == names[1]:
        raise UsageError(f"the two models need different names, got {names[0]!r} twice.")
    y, predicted, known, member = _checked(labels, {names[0]: before, names[1]: after}, groups, positive)
    cells = counted(member, y, predicted)
    able = compared(tallied(cells), len(known), min_n, min_cases)
    gaps = gap_changes(cells, known, able, bootstrap, seed)
    rates = {name: rate_changes(cells, i) for i, name in enumerate([*known, "overall"])}
    overall = rates.pop("overall")["accuracy"]
    return Comparison(before=names[0], after=names[1], accuracy=overall, gaps=gaps, groups=rates)


def fairness(
    labels: Any, predictions: Mapping[str, Any], groups: Groups, *, grouping: str = "group", scores: Mapping[str, Any] | None = None,
    positive: Any = None, min_n: int = 30, min_cases: int = 10, bootstrap: int = 1000, seed: int = 0, check: bool = False, rows: Mapping[str, FairnessRow] | None = None,
    title: str = "Fairness", notes: Sequence[str] = (),
) -> FairnessResult:  # fmt: skip
    """Audit several models on the same test data, and compare each with the first.

    Args:
        labels: as for `group_metrics`, as are `groups`, `positive`, `min_n`, `min_cases`, `bootstrap`, `seed` and `check`.
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
    _checked(labels, predictions, groups, positive)  # errors name the model
    told = []
    for name, predicted in predictions.items():
        audit = group_metrics(
            labels, predicted, groups, scores=(scores or {}).get(name), positive=positive, min_n=min_n, min_cases=min_cases, bootstrap=bootstrap,
            seed=seed, check=check,
        )  # fmt: skip
        known = (rows or {}).get(name)
        told.append(
            known.model_copy(update={"name": name, "audit": audit}) if known else FairnessRow(name=name, audit=audit)
        )
    first, *others = predictions
    compared = tuple(
        compare_models(
            labels, predictions[first], predictions[name], groups, names=(first, name), positive=positive, min_n=min_n,
            min_cases=min_cases, bootstrap=bootstrap, seed=seed,
        )
        for name in others
    )  # fmt: skip
    return FairnessResult(
        title=title, provenance=Provenance.now(seed=seed, settings={"min_n": min_n, "min_cases": min_cases, "bootstrap": bootstrap}), grouping=grouping,
        positive="positive" if positive is None else str(positive), rows=tuple(told), comparisons=compared, notes=tuple(notes),
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


def _score(tally: tuple[np.ndarray, np.ndarray], i: int) -> Score | None:
    hits, trials = int(tally[0][i]), int(tally[1][i])
    return Score.share(hits, trials) if trials else None


def _check(
    labels: np.ndarray, predicted: np.ndarray, member: np.ndarray, able: Mapping[Measure, np.ndarray],
    gaps: Mapping[GapName, Gap | None],
) -> str:  # fmt: skip
    """Says that fairlearn finds the same gaps, of the same groups."""
    try:
        import fairlearn
        from fairlearn import metrics
    except ImportError as error:
        raise missing_extra("fairlearn", "fairness", "checking an audit with fairlearn") from error
    theirs = {
        "parity": metrics.demographic_parity_difference, "parity_ratio": metrics.demographic_parity_ratio,
        "odds": metrics.equalized_odds_difference, "odds_ratio": metrics.equalized_odds_ratio,
        "opportunity": metrics.equal_opportunity_difference, "accuracy": metrics.accuracy_score_difference,  # type: ignore[attr-defined]
    }  # fmt: skip
    for gap, (measures, _) in PARTS.items():
        ours, use = gaps[gap], np.logical_and.reduce([able[m] for m in measures])
        if ours is None or any((able[m] != use).any() for m in measures):
            continue  # fairlearn takes one set of groups for both rates
        kept = member[:, use].any(axis=1)
        found = theirs[gap](labels[kept], predicted[kept], sensitive_features=member[kept].argmax(axis=1))
        if not abs(found - ours.value) <= 1e-9:
            raise CheckFailed(
                f"the {gap} gap is {ours.value!r} by taskvec and {found!r} by fairlearn {fairlearn.__version__}. Please report it."
            )
    return f"fairlearn {fairlearn.__version__}"


def _finite(scores: Any, n: int) -> np.ndarray:
    given = np.asarray(scores, dtype=np.float64)
    if given.shape != (n,):
        raise InputError(f"scores have shape {given.shape}, but there are {n} labels.")
    if not np.isfinite(given).all():
        raise NonFinite(
            f"scores: {(~np.isfinite(given)).sum()} of {n} are NaN or infinite, the first in row {int((~np.isfinite(given)).argmax())}."
        )
    return given
