"""Rates by group and the gaps between them: against fairlearn, against counting by hand, and where the truth is known."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from taskvec.errors import CheckFailed, InputError, NonFinite, UnknownName, UsageError
from taskvec.protocols import choose_fair, compare_models, fairness, group_metrics, groups_of, intersections
from taskvec.protocols.groups import counted
from taskvec.results import GAPS, MEASURES, FairnessResult, FairnessRow, read_result

ALL = {"min_n": 1, "min_cases": 1, "bootstrap": 100}


@st.composite
def people(draw, overlap: bool):
    """Labels, predictions and groups of 8 to 60 people."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n, k = draw(st.integers(8, 60)), draw(st.integers(2, 4))
    y, p = rng.random(n) < draw(st.floats(0.2, 0.8)), rng.random(n) < draw(st.floats(0.05, 0.95))
    if overlap:
        return y, p, {f"g{i}": rng.random(n) < 0.4 for i in range(k)}
    column = rng.integers(0, k, n)
    return y, p, {f"g{i}": column == i for i in range(k)}


def rate(hits: np.ndarray, among: np.ndarray) -> float | None:
    return None if not among.any() else float(hits[among].sum() / among.sum())


def by_hand(y, p, groups) -> dict[str, float | None]:
    """The gaps of arXiv:2505.24262, written out; a rate of nobody is left out rather than 0."""
    right, everybody = y == p, np.ones_like(y)
    wanted = {"selection": (p, everybody), "tpr": (p, y), "fpr": (p, ~y), "accuracy": (right, everybody)}
    found = {
        m: [r for mask in groups.values() if (r := rate(hits, among & mask)) is not None]
        for m, (hits, among) in wanted.items()
    }

    def far(m: str) -> float | None:
        return max(found[m]) - min(found[m]) if len(found[m]) > 1 else None

    def share(m: str) -> float | None:
        return min(found[m]) / max(found[m]) if len(found[m]) > 1 and max(found[m]) > 0 else None

    def both(a, b, pick):
        return None if a is None or b is None else pick(a, b)

    return {
        "parity": far("selection"), "parity_ratio": share("selection"), "opportunity": far("tpr"), "accuracy": far("accuracy"),
        "odds": both(far("tpr"), far("fpr"), max), "odds_ratio": both(share("tpr"), share("fpr"), min),
    }  # fmt: skip


@given(people(overlap=True))
def test_gaps_of_groups_that_overlap_are_those_counted_by_hand(case):
    y, p, groups = case
    assume(all(m.any() and not (m == y).all() and not (m == ~y).all() for m in groups.values()))
    audit = group_metrics(y, p, groups, **ALL)
    for gap, expected in by_hand(y, p, groups).items():
        found = audit.gap(gap)
        assert (found is None) == (expected is None), gap
        if found and expected is not None:
            assert found.value == pytest.approx(expected, abs=1e-15)
            assert 0 <= found.low <= found.value <= found.high <= 1
        else:
            assert audit.unmeasured[gap]
    for group in audit.groups:
        mask = groups[group.name]
        assert (group.n, group.positives) == (mask.sum(), (mask & y).sum())
        expected = {
            "accuracy": rate(y == p, mask), "selection": rate(p, mask), "tpr": rate(p, mask & y), "fpr": rate(p, mask & ~y),
        }  # fmt: skip
        for m in MEASURES:
            found = getattr(group, m)
            assert (None if found is None else found.value) == expected[m]
    assert audit.missing == (~np.any(list(groups.values()), axis=0)).sum()
    assert audit.overlap == bool((np.sum(list(groups.values()), axis=0) > 1).any())


@settings(max_examples=8)
@given(people(overlap=False))
def test_gaps_of_disjoint_groups_are_fairlearns(case):
    metrics = pytest.importorskip("fairlearn.metrics", reason="fairlearn is not installed (extra: fairness)")
    y, p, groups = case
    column = np.argmax(list(groups.values()), axis=0)
    for mask in groups.values():  # fairlearn counts a rate of nobody as 0, which is no rate
        assume((mask & y).any() and (mask & ~y).any() and not (mask == y).all() and not (mask == ~y).all())
    audit = group_metrics(y, p, groups, **ALL)
    theirs = {
        "parity": metrics.demographic_parity_difference, "parity_ratio": metrics.demographic_parity_ratio,
        "odds": metrics.equalized_odds_difference, "odds_ratio": metrics.equalized_odds_ratio,
        "opportunity": metrics.equal_opportunity_difference,
    }  # fmt: skip
    for gap, function in theirs.items():
        if found := audit.gap(gap):
            assert found.value == pytest.approx(function(y, p, sensitive_features=column), abs=1e-15), gap
        else:
            assert gap.endswith("ratio")  # of zeros


def test_the_check_with_fairlearn_can_fail(monkeypatch):
    metrics = pytest.importorskip("fairlearn.metrics", reason="fairlearn is not installed (extra: fairness)")
    y, p, groups = population(400)
    assert group_metrics(y, p, groups, check=True).checked.startswith("fairlearn ")
    overlapping = {**groups, "all": np.ones(400, bool)}
    assert group_metrics(y, p, overlapping, check=True).checked == ""  # fairlearn cannot say
    monkeypatch.setattr(metrics, "equal_opportunity_difference", lambda *_, **__: 0.123)
    with pytest.raises(CheckFailed, match=r"opportunity gap is .* by taskvec and 0.123 by fairlearn"):
        group_metrics(y, p, groups, check=True)


def population(n: int, rates=(0.3, 0.3), *, seed: int = 0, sizes=None):
    """People of equal base rate 0.4; the groups are predicted positive at these rates, whatever the label."""
    rng = np.random.default_rng(seed)
    column = rng.choice(len(rates), n, p=sizes)
    y, p = rng.random(n) < 0.4, rng.random(n) < np.array(rates)[column]
    return y, p, {f"g{i}": column == i for i in range(len(rates))}


# ---- how certain ----------------------------------------------------------------------------------------------------


def test_drawing_cells_is_drawing_people():
    y, p, groups = population(300, (0.2, 0.6, 0.4))
    member = np.column_stack([*groups.values()])
    cells, rng = counted(member, y, p[:, None]), np.random.default_rng(0)
    counts = np.concatenate(list(cells.draws(4000, rng)))
    assert (counts.sum(axis=1) == 300).all()
    drawn = [np.divide(*cells.tally(m, 0, counts))[:, :-1] for m in MEASURES]
    rows = rng.integers(0, 300, (4000, 300))
    explicit = []
    for m in MEASURES:
        among = {"tpr": y, "fpr": ~y}.get(m, np.ones_like(y))[rows][..., None] & member[rows]
        hit = (y == p if m == "accuracy" else p)[rows][..., None]
        explicit.append((among & hit).sum(1) / among.sum(1))
    for ours, theirs in zip(drawn, explicit, strict=True):
        np.testing.assert_allclose(ours.mean(0), theirs.mean(0), atol=0.006)
        np.testing.assert_allclose(ours.std(0), theirs.std(0), rtol=0.08)
        np.testing.assert_allclose(np.quantile(ours, 0.975, 0), np.quantile(theirs, 0.975, 0), atol=0.02)


def held(rates, *, n, sizes=None, times=60):
    """How often the interval of the parity difference holds the truth, and how often it leaves out 0."""
    truth, hits, shown = max(rates) - min(rates), 0, 0
    for seed in range(times):
        gap = group_metrics(*population(n, rates, seed=seed, sizes=sizes), bootstrap=200).gaps["parity"]
        hits += gap.low <= truth <= gap.high
        shown += gap.low > 0
    return hits / times, shown / times


@pytest.mark.parametrize(("rates", "sizes"), [
    ((0.3, 0.3), None), ((0.3,) * 6, None), ((0.3,) * 5, (0.6, 0.2, 0.1, 0.05, 0.05)), ((0.1, 0.3, 0.5), None),
    ((0.3, 0.3, 0.5), (0.8, 0.1, 0.1)),
])  # fmt: skip
def test_intervals_hold_the_gap_of_the_population(rates, sizes):
    """Of groups that are all alike too, where the percentiles of drawn gaps hold it never."""
    covered, shown = held(rates, n=1500, sizes=sizes)
    assert covered >= 0.88
    if len(set(rates)) == 1:
        assert shown <= 0.12
    else:
        assert shown >= 0.75


def test_a_rate_of_zero_is_not_certain():
    y = np.tile([True, False], 100)
    groups = {"a": np.arange(200) < 100, "b": np.arange(200) >= 100}
    gap = group_metrics(y, y, groups).gaps["accuracy"]
    assert (gap.value, gap.low) == (0, 0)
    assert 0.005 < gap.high < 0.05


def test_the_same_people_and_seed_give_the_same_numbers():
    y, p, groups = population(500)
    assert group_metrics(y, p, groups) == group_metrics(y, p, groups)
    assert group_metrics(y, p, groups) != group_metrics(y, p, groups, seed=1)
    order = np.random.default_rng(0).permutation(500)
    mixed = group_metrics(y[order], p[order], {n: m[order] for n, m in groups.items()})
    assert mixed == group_metrics(y, p, groups)


# ---- two models -----------------------------------------------------------------------------------------------------


def test_a_model_compared_with_itself_changes_nothing():
    y, p, groups = population(400, (0.2, 0.6))
    found = compare_models(y, p, p, groups)
    assert {(c.value, c.real) for c in found.gaps.values()} == {(0.0, False)}
    assert {c.real for changes in found.groups.values() for c in changes.values()} == {False}
    assert found.groups["g0"]["accuracy"].high > 0  # nobody of 200 changed, which is not certain for all others


def test_a_change_is_that_of_both_audits_and_real_where_it_should_be():
    y, p, groups = population(3000, (0.2, 0.6, 0.4))
    q = np.where(np.random.default_rng(1).random(3000) < 0.9, y, ~y)  # right for 90 % of every group
    found = compare_models(y, p, q, groups, names=("old", "new"))
    before, after = (group_metrics(y, x, groups) for x in (p, q))
    for gap in GAPS:
        assert found.gaps[gap].value == after.gaps[gap].value - before.gaps[gap].value
    assert found.gaps["parity"].real
    assert found.gaps["parity"].value < -0.2
    assert found.accuracy.value == pytest.approx(after.overall.accuracy.value - before.overall.accuracy.value)
    for name in groups:
        for m in MEASURES:
            change = getattr(after.group(name), m).value - getattr(before.group(name), m).value
            assert found.groups[name][m].value == pytest.approx(change)
    assert all(found.groups[n]["accuracy"].real for n in groups)


def test_noise_alone_is_no_change_of_gaps():
    """Neither model has a gap, but the second is noisier, which makes the gaps of samples larger."""
    real = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        column = rng.integers(0, 8, 1600)
        y, p, q = rng.random(1600) < 0.4, rng.random(1600) < 0.03, rng.random(1600) < 0.5
        found = compare_models(y, p, q, {f"g{i}": column == i for i in range(8)}, bootstrap=200)
        real += found.gaps["parity"].real
    assert real <= 5


def test_the_paired_interval_of_a_rate_is_agrestis_and_mins():
    """100 people, 8 lost and 20 won: (20 - 8) / 100, and Wald's interval of 102 with 8.5 and 20.5."""
    y = np.ones(200, bool)
    y[100:] = np.arange(100) % 2 == 0
    before, after = y.copy(), y.copy()
    after[:8] = False
    before[8:28] = False
    found = compare_models(y, before, after, {"a": np.arange(200) < 100, "b": np.arange(200) >= 100})
    change = found.groups["a"]["accuracy"]
    half = 1.959963984540054 * np.sqrt(29 - 12**2 / 102) / 102
    assert (change.value, change.low, change.high) == pytest.approx((0.12, 12 / 102 - half, 12 / 102 + half))


def test_area_under_roc_is_sklearns_and_its_interval_that_of_drawing_people():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    y = rng.random(600) < 0.4
    scores = np.round(rng.normal(size=600) + y, 1)  # with ties
    groups = {"a": np.arange(600) < 200, "b": np.arange(600) >= 200}
    audit = group_metrics(y, scores > 0.5, groups, scores=scores)
    a = audit.group("a").auc
    assert a.value == pytest.approx(roc_auc_score(y[:200], scores[:200]))
    draws = [roc_auc_score(y[i], scores[i]) for i in rng.integers(0, 200, (400, 200))]
    assert (a.high - a.low) / 2 == pytest.approx(1.96 * np.std(draws), rel=0.15)
    assert audit.overall.auc.value == pytest.approx(roc_auc_score(y, scores))
    apart = group_metrics(y, y, groups, scores=y + 0.0).group("a").auc
    assert apart.value == apart.high == 1 and 0.8 < apart.low < 1  # no variance was seen, which is no certainty


# ---- who is compared ------------------------------------------------------------------------------------------------


def test_small_groups_are_said_and_left_out_never_counted_as_zero():
    y, p, groups = population(600, (0.5, 0.5, 0.5))
    tiny = np.zeros(600, bool)
    tiny[:12] = True
    poor = np.zeros(600, bool)
    poor[np.flatnonzero(~y)[20:70]] = True
    p[poor], p[tiny] = True, False
    audit = group_metrics(y, p, {**groups, "tiny": tiny, "poor": poor})
    assert audit.group("tiny").left_out["accuracy"] == "12 members, fewer than 30"
    assert set(audit.group("tiny").left_out) == set(MEASURES)
    assert audit.group("poor").left_out == {"tpr": "no positives"}
    assert audit.group("poor").tpr is None
    assert [g.name for g in audit.flagged] == ["tiny", "poor"]
    assert audit.gaps["parity"].groups == 4
    assert audit.gaps["opportunity"].groups == 3
    assert audit.gaps["parity"].least != "tiny"
    assert audit.gaps["parity"].most == "poor"
    assert group_metrics(y, p, {**groups, "tiny": tiny}, min_n=12, min_cases=1).gaps["parity"].least == "tiny"
    assert audit.worst.name == "poor"  # all of them wrong


def test_what_cannot_be_measured_says_why():
    y, p, groups = population(200)
    audit = group_metrics(y, p, {"a": groups["g0"], "b": groups["g1"] & (np.arange(200) < 20)})
    assert audit.gaps["parity"] is None
    assert "only 1 of 2 groups could be compared" in audit.unmeasured["parity"]
    assert (
        group_metrics(y, np.zeros(200, bool), groups).unmeasured["parity_ratio"].startswith("selection is 0 in every")
    )
    one_class = group_metrics(np.zeros(200, bool), p, groups)
    assert one_class.gaps["opportunity"] is None
    assert one_class.gaps["parity"] is not None
    with pytest.raises(UnknownName, match="Did you mean 'parity'"):
        audit.gap("partiy")


def test_people_without_a_group_count_overall_only():
    y, p, _ = population(400)
    column = np.array(["f", "m", None, ""], dtype=object)[np.arange(400) % 4]
    audit = group_metrics(y, p, groups_of(column))
    assert (audit.n, audit.missing, audit.overall.n, [g.n for g in audit.groups]) == (400, 200, 400, [100, 100])
    assert groups_of([1.0, float("nan"), 2.0])["1.0"].tolist() == [True, False, False]
    pandas = pytest.importorskip("pandas", reason="pandas is not installed (extra: fairness)")
    column = pandas.Series(["a", None, "b"], dtype="string")
    assert {k: m.tolist() for k, m in groups_of(column).items()} == {
        "a": [True, False, False],
        "b": [False, False, True],
    }
    assert groups_of(column.astype("category")).keys() == {"a", "b"}
    with pytest.raises(InputError, match="labels: 1 of 3 values are missing"):
        group_metrics(column, column, {}, positive="a")


def test_intersections_are_those_with_somebody():
    both = intersections(groups_of("abab"), groups_of("xxyx"))
    assert {k: m.tolist() for k, m in both.items()} == {
        "a & x": [True, False, False, False], "a & y": [False, False, True, False], "b & x": [False, True, False, True],
    }  # fmt: skip


@pytest.mark.parametrize(("change", "error", "said"), [
    (lambda y, p, g: (y, p[:-1], g), InputError, "predictions: 59 rows, but there are 60 labels"),
    (lambda y, p, g: (y, p, {"a": g["g0"]}), UsageError, "one group, 'a', expected at least two"),
    (lambda y, p, g: (y, p, {}), UsageError, "no group, expected at least two"),
    (lambda y, p, g: (y, p, {"a": y, "b": ~y}), InputError, "group 'a' is the label itself"),
    (lambda y, p, g: (y, p, {"a": g["g0"], "b": ~y}), InputError, "group 'b' is the label itself"),
    (lambda y, p, g: (y, p, {"a": g["g0"], "b": g["g1"][:9]}), InputError, r"group 'b' has shape \(9,\)"),
    (lambda y, p, g: (y, p, {"a": g["g0"], "b": np.full(60, 0.5)}), InputError, "must say True or False"),
    (lambda y, p, g: (np.where(np.arange(60) == 7, np.nan, y), p, g), NonFinite, "labels: 1 of 60 values are missing .* row 7"),
    (lambda y, p, g: (y, ["", *p[1:].astype(int)], g), InputError, "predictions: 1 of 60 values are missing"),
    (lambda y, p, g: (np.arange(60) % 3, p, g), InputError, "labels are not binary: .* got 3 values, .* positive=2"),
    (lambda y, p, g: (y, np.linspace(0, 1, 60), g), InputError, "look like scores: threshold them first"),
    (lambda y, p, g: (np.zeros((60, 2)), p, g), InputError, r"shape \(60, 2\)"),
    (lambda y, p, g: ([], [], g), InputError, "labels: expected one value for each row"),
])  # fmt: skip
def test_bad_input_is_refused_in_words(change, error, said):
    y, p, groups = change(*population(60))
    with pytest.raises(error, match=said):
        group_metrics(y, p, groups)


def test_positive_binarises():
    y, p, groups = population(300)
    words = np.where(y, ">50K", "<=50K")
    plain = group_metrics(y, p, groups)
    assert group_metrics(words, np.where(p, ">50K", "<=50K"), groups, positive=">50K") == plain
    assert group_metrics(words, p, groups, positive=">50K") == plain
    assert group_metrics(y.astype(int), p.astype(float), groups) == plain
    assert group_metrics(1 + y, 1 + p, groups, positive=2) == plain
    three = np.where(np.arange(300) % 10 == 0, "unsure", words)
    assert group_metrics(three, p, groups, positive=">50K").overall.positives == (three == ">50K").sum()
    with pytest.raises(UnknownName, match=r"labels are never '>50'.*Did you mean '>50K'"):
        group_metrics(words, p, groups, positive=">50")
    with pytest.raises(InputError, match="predictions have values that the labels do not have: 'yes'"):
        group_metrics(words, np.where(p, "yes", "<=50K"), groups, positive=">50K")
    with pytest.raises(InputError, match=r"labels are not binary: expected 0 and 1, got 2 values, .*positive='>50K'"):
        group_metrics(words, p, groups)


@pytest.mark.parametrize("options", [{"min_n": 0}, {"min_cases": 0}, {"bootstrap": 10}])
def test_nonsense_options_are_refused(options):
    with pytest.raises(UsageError):
        group_metrics(*population(60), **options)


def test_scores_are_checked():
    y, p, groups = population(60)
    with pytest.raises(NonFinite, match="scores: 1 of 60"):
        group_metrics(y, p, groups, scores=np.where(np.arange(60) == 3, np.inf, 0.0))
    with pytest.raises(InputError, match=r"scores have shape \(3,\)"):
        group_metrics(y, p, groups, scores=[1, 2, 3])


# ---- results --------------------------------------------------------------------------------------------------------


def sweep():
    """Audits in which the gap falls and accuracy peaks as the coefficient rises."""
    y, p, groups = population(4000, (0.2, 0.6))
    noise = np.random.default_rng(2).random(4000)
    grid = (0.0, 0.25, 0.5, 0.75, 1.0)
    models = [np.where(noise < c, y if c < 0.6 else y ^ (noise < 0.3), p) for c in grid]
    return y, groups, grid, models


def test_the_best_coefficient_within_the_limit_is_chosen():
    y, groups, grid, models = sweep()
    audits = [group_metrics(y, m, groups, bootstrap=100) for m in models]
    right = [a.overall.accuracy.value for a in audits]
    gaps = [a.gaps["parity"].value for a in audits]
    for limit in (1.0, 0.25, 0.12):
        curve = choose_fair(grid, audits, at_most=limit)
        allowed = [i for i in range(5) if gaps[i] <= limit]
        assert curve.chosen == max(allowed, key=lambda i: right[i])
        assert curve.met
    never = choose_fair(grid, audits, at_most=0.0)
    assert not never.met
    assert gaps[never.chosen] == min(gaps)
    assert choose_fair((0.0, -1.0, 1.0), [audits[0]] * 3, at_most=1).coefficient == 0.0
    with pytest.raises(UnknownName, match="must be one of parity, odds, opportunity, accuracy"):
        choose_fair(grid, audits, constraint="parity_ratio")
    with pytest.raises(UsageError, match="5 coefficients need as many audits"):
        choose_fair(grid, audits[:2])


def test_a_floor_under_accuracy_keeps_out_a_model_that_selects_nobody():
    y, groups, grid, models = sweep()
    grid, models = (*grid, 1.25), [*models, np.zeros_like(y)]
    audits = [group_metrics(y, m, groups, bootstrap=100) for m in models]
    right = [a.overall.accuracy.value for a in audits]
    gaps = [a.gaps["parity"].value for a in audits]
    assert gaps[5] == 0 and right[5] < 0.65
    closed = choose_fair(grid, audits, at_most=0.01)
    assert (
        closed.chosen == 5 and closed.met and closed.accuracy_at_least is None
    )  # what a limit on the gap alone chooses
    floor = 0.65
    kept = choose_fair(grid, audits, at_most=0.01, accuracy_at_least=floor)
    assert kept.chosen == min((i for i in range(6) if right[i] >= floor), key=lambda i: gaps[i]) != 5
    assert not kept.met and kept.accuracy_at_least == floor and f"at least {floor:g}" in kept.objective
    assert choose_fair(grid, audits, at_most=1, accuracy_at_least=floor).met
    never = choose_fair(grid, audits, at_most=1, accuracy_at_least=1)
    assert right[never.chosen] == max(right) < 1 and not never.met
    assert choose_fair(grid, audits, at_most=0.01, accuracy_at_least=0).chosen == 5
    with pytest.raises(UsageError, match="a share from 0 to 1, got 80"):
        choose_fair(grid, audits, accuracy_at_least=80)


def told() -> FairnessResult:
    y, groups, grid, models = sweep()
    curve = choose_fair(grid, [group_metrics(y, m, groups, bootstrap=100) for m in models], at_most=0.2)
    tiny = {**groups, "Ω <b>tiny</b>": np.arange(4000) < 7}
    row = FairnessRow(name="x", audit=curve.audits[0], coefficient=curve.coefficient, curve=curve, note="made up")
    predictions = {"base": models[0], "LoRA": models[2], "task addition": models[curve.chosen]}
    return fairness(
        y, predictions, tiny, grouping="sex", rows={"task addition": row}, bootstrap=200, title="Edited fairly?", notes=["A note."]
    )  # fmt: skip


def test_a_result_is_read_back_and_checks_itself(tmp_path):
    result = told()
    assert read_result(result.write(tmp_path / "fair.json")) == result
    assert result.groups == ("g0", "g1", "Ω <b>tiny</b>")
    assert [(c.before, c.after) for c in result.comparisons] == [("base", "LoRA"), ("base", "task addition")]
    assert result.row("task addition").note == "made up"
    with pytest.raises(UnknownName, match=r"no row 'bas'.*Did you mean 'base'"):
        result.row("bas")
    with pytest.raises(ValueError, match="two rows have one name"):
        FairnessResult(**{**result.model_dump(), "rows": [result.rows[0]] * 2})
    with pytest.raises(ValueError, match="names a model that is no row"):
        FairnessResult(**{**result.model_dump(), "rows": result.rows[:2]})
    with pytest.raises(UnknownName, match=r"scores of 'bse'.*Did you mean 'base'"):
        fairness(
            [0, 1] * 50, {"base": [0, 1] * 50}, {"a": [1] * 50 + [0] * 50, "b": [0] * 50 + [1] * 50}, scores={"bse": []}
        )


def test_the_report_tells_and_draws_it(tmp_path):
    from taskvec import report

    result = told()
    text = report.markdown([result])
    for words in (
        "a parity difference of 0.399", "task addition has a smaller parity difference", "Who gains accuracy from base to",
        "Left out of every gap: ‘Ω &lt;b&gt;tiny&lt;/b&gt;’ (7 members, fewer than 30)", "a small gap is no proof of fairness",
        "highest accuracy with a parity gap of at most 0.2", "A note.", "made up", "Who gains, who loses: LoRA less base",
    ):  # fmt: skip
        assert words in text, words
    page = report.write([result], tmp_path / "r.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 8
    assert "<b>tiny</b>" not in page
    assert page == report.write([told()], tmp_path / "again.html").read_text(encoding="utf-8")


def test_the_report_of_one_model_that_nothing_could_be_measured_of(tmp_path):
    from taskvec import report

    y, p, groups = population(80, (0.5,) * 20)
    result = fairness(y, {"base": p}, groups)
    assert "the parity difference could not be measured (only 0 of 20 groups" in report.markdown([result])
    assert "the 16 largest of 20 groups" in report.write([result], tmp_path / "r.html").read_text(encoding="utf-8")


def test_an_audit_needs_neither_torch_nor_pandas():
    code = (
        "import sys, numpy as np; from taskvec.protocols import group_metrics; y = np.arange(200) % 2;"
        "group_metrics(y, y, {'a': np.arange(200) < 99, 'b': np.arange(200) > 98});"
        "import taskvec.cli.fairness; print([m for m in ('torch', 'pandas', 'sklearn', 'fairlearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
