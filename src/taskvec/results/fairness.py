"""Results about groups of people: rates by group, the gaps between groups, and how models differ in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator

from ..errors import UnknownName, nearest
from .parts import BaseResult, Frozen, Score, one_named

Measure = Literal["accuracy", "selection", "tpr", "fpr"]
MEASURES: tuple[Measure, ...] = ("accuracy", "selection", "tpr", "fpr")
GapName = Literal["parity", "parity_ratio", "odds", "odds_ratio", "opportunity", "accuracy"]
GAPS: tuple[GapName, ...] = ("parity", "parity_ratio", "odds", "odds_ratio", "opportunity", "accuracy")


class Estimate(Frozen):
    """A number that is no share of trials, with its 95 % interval ``[low, high]``."""

    value: float
    low: float
    high: float

    @property
    def real(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0


class Gap(Estimate):
    """How far apart groups are, with its 95 % interval; between the group `most` of highest rate and `least` of lowest.

    `groups` were compared. In the odds the two groups are those of the larger of both differences (the smaller of both ratios).
    """

    most: str
    least: str
    groups: int = Field(ge=2)


class Group(Frozen):
    """Rates of one model on the members of one group; `selection` is the share predicted positive, `tpr` and `fpr` that share
    among the truly positive and truly negative. A rate of nobody is None.

    `left_out` says of which measures the group was left out when groups were compared, and why.
    """

    name: str
    n: int = Field(ge=0)
    positives: int = Field(ge=0)
    accuracy: Score | None
    selection: Score | None
    tpr: Score | None
    fpr: Score | None
    auc: Estimate | None = None
    left_out: Mapping[Measure, str] = Field(default_factory=dict)

    @property
    def negatives(self) -> int:
        return self.n - self.positives


class Audit(Frozen):
    """Rates of one model overall and by group, and the gaps between groups.

    Every row counts overall; `missing` of `n` belong to no group. With `overlap` somebody is in several groups. A gap that could
    not be measured is None, and `unmeasured` says why. `checked` says which other library found the same gaps, if one was asked.
    """

    n: int = Field(ge=1)
    missing: int = Field(ge=0)
    overlap: bool
    overall: Group
    groups: tuple[Group, ...]
    gaps: Mapping[GapName, Gap | None]
    unmeasured: Mapping[GapName, str] = Field(default_factory=dict)
    min_n: int
    min_cases: int
    draws: int
    seed: int
    checked: str = ""

    def group(self, name: str) -> Group:
        return one_named(self.groups, name, "group", "fairness")

    def gap(self, name: str) -> Gap | None:
        """The gap of this name; None if it could not be measured.

        Raises:
            UnknownName: no gap has this name.
        """
        for known, found in self.gaps.items():
            if known == name:
                return found
        raise UnknownName(f"no gap {name!r}; there are {', '.join(GAPS)}.{nearest(name, GAPS)}")

    @property
    def worst(self) -> Group | None:
        """The group of lowest accuracy, among those large enough to be compared."""
        able = [g for g in self.groups if g.accuracy is not None and "accuracy" not in g.left_out]
        return min(able, key=lambda g: g.accuracy.value if g.accuracy else 1.0, default=None)

    @property
    def flagged(self) -> tuple[Group, ...]:
        """Groups that were left out of some gap."""
        return tuple(g for g in self.groups if g.left_out)


class FairnessCurve(Frozen):
    """Audits on validation data along a grid of one coefficient, and the point that was chosen on them.

    ``audits[i]`` belongs to ``coefficients[i]``. `objective` says in words what was optimised; the gap `constraint` was to be at
    most `at_most`, and the accuracy at least `accuracy_at_least`. Where no point keeps to that, `met` is False, and the point of
    least gap was chosen (of those that are accurate enough, else the most accurate).
    """

    coefficients: tuple[float, ...]
    audits: tuple[Audit, ...]
    chosen: int
    objective: str
    constraint: GapName | None = None
    at_most: float | None = None
    accuracy_at_least: float | None = None
    met: bool = True
    split: Literal["validation"] = "validation"

    @model_validator(mode="after")
    def _fits(self) -> FairnessCurve:
        points = len(self.coefficients)
        if len(self.audits) != points:
            raise ValueError(f"{len(self.audits)} audits for {points} coefficients")
        if not 0 <= self.chosen < points:
            raise ValueError(f"chosen is {self.chosen}, but there are {points} coefficients")
        if (self.constraint is None) != (self.at_most is None):
            raise ValueError("a constraint needs a gap and its limit")
        return self

    @property
    def coefficient(self) -> float:
        return self.coefficients[self.chosen]


class FairnessRow(Frozen):
    """One model, audited once on the test split; `curve` shows how its coefficient was chosen on validation data."""

    name: str
    audit: Audit
    coefficient: float | None = None
    curve: FairnessCurve | None = None
    note: str = ""


class Comparison(Frozen):
    """Two models on the same people: what `after` has more than `before`, each with a paired 95 % interval.

    `gaps` holds what both audits measured; ``groups[name][measure]`` the change of a group's rate. A change is real where its
    interval leaves 0 out.
    """

    before: str
    after: str
    accuracy: Estimate
    gaps: Mapping[GapName, Estimate]
    groups: Mapping[str, Mapping[Measure, Estimate]]


class FairnessResult(BaseResult):
    """Several models, audited on the same test data for the same groups (arXiv:2505.24262).

    `grouping` names what the groups are (the column), `positive` what it means to be predicted positive. All rows have the same
    groups in the same order.
    """

    kind: Literal["fairness"] = "fairness"
    grouping: str
    positive: str = "positive"
    rows: tuple[FairnessRow, ...]
    comparisons: tuple[Comparison, ...] = ()
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> FairnessResult:
        if not self.rows:
            raise ValueError("a fairness result needs at least one row")
        names = [r.name for r in self.rows]
        if len(set(names)) != len(names):
            raise ValueError(f"two rows have one name: {names}")
        if any(c.before not in names or c.after not in names for c in self.comparisons):
            raise ValueError(f"a comparison names a model that is no row; rows are {names}")
        if len({tuple(g.name for g in r.audit.groups) for r in self.rows}) > 1:
            raise ValueError("the rows have different groups")
        return self

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(g.name for g in self.rows[0].audit.groups)

    def row(self, name: str) -> FairnessRow:
        return one_named(self.rows, name, "row", self.kind)
