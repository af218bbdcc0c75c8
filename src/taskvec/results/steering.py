"""Results of steering fairness by sub-group vectors: who wins and loses along the coefficients, and what theory says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator

from .fairness import Audit, Comparison, FairnessCurve, FairnessRow
from .parts import BaseResult, Frozen, one_named


class SteeringRow(FairnessRow):
    """One model, audited once on the test split.

    `coefficients` holds those of several vectors, by their names, where there is more than one. ``met`` is False where no choice on
    validation data kept to the limit of the gap; `validation` is the audit on which it was chosen.
    """

    coefficients: Mapping[str, float] = Field(default_factory=dict)
    met: bool | None = None
    validation: Audit | None = None


class Injection(Frozen):
    """The vector of one group, added to the fully fine-tuned model: the sweep on validation, and what the chosen coefficient
    changes for everybody on test. `worst` marks the group that the full model serves worst."""

    group: str
    worst: bool
    curve: FairnessCurve
    audit: Audit
    change: Comparison


class Worst(Frozen):
    """How far a group stands from the rest under the fully fine-tuned model, on validation data: difference of selection rates, and the
    larger one of true and false positive rates. The worst group has the largest mean of both (arXiv:2505.24262)."""

    parity: float
    odds: float

    @property
    def mean(self) -> float:
        return (self.parity + self.odds) / 2


class BoundPoint(Frozen):
    """At one coefficient: the measured parity gap, and the bounds with L of selection rates and of scores."""

    coefficient: float
    parity: float | None
    path: float = Field(ge=0)  # sum over groups of |alpha_g - 1| times the norm of the vector
    bound_rates: float
    bound_scores: float


class Bound(Frozen):
    r"""The bound of arXiv:2505.24262, :math:`DPD(\theta(\alpha)) \le 2 L \sum_g |\alpha_g - 1|\,\lVert\delta_g\rVert`, with measured L.

    L is no Lipschitz constant but the largest ratio that was seen of a change to the displacement of the weights between neighbouring
    coefficients: of the selection rate of a group (`rates`), and of the score of a person (`scores`). It is taken from one half of the
    validation people; the measured gap is that of the other half. `convention` says what :math:`\alpha_g = 1` is: "sum" the base
    plus the sum of the vectors (coefficient 1), "mean" plus their mean (coefficient 1/G); there the bound is 0, and it
    holds only if the parity gap is (`parity_at_balance`). ``corrected`` adds that gap to the bound.
    """

    convention: Literal["sum", "mean"]
    balance: float
    rates: float
    scores: float
    parity_at_balance: float | None
    norms: Mapping[str, float]
    points: tuple[BoundPoint, ...]
    people: tuple[int, int]

    def holds(self, which: Literal["rates", "scores"] = "rates", *, corrected: bool = False) -> tuple[int, int]:
        """At how many of the points with a measured gap the bound is not below it."""
        more = (self.parity_at_balance or 0.0) if corrected else 0.0
        seen = [p for p in self.points if p.parity is not None]
        return sum(getattr(p, f"bound_{which}") + more >= (p.parity or 0) - 1e-12 for p in seen), len(seen)

    def says_something(self, which: Literal["rates", "scores"] = "rates") -> int:
        """At how many points the bound is below 1, which no gap can exceed."""
        return sum(getattr(p, f"bound_{which}") < 1 for p in self.points)


class SteeringResult(BaseResult):
    """Sub-group task vectors merged with coefficients chosen for accuracy and parity, beside rivals (arXiv:2505.24262).

    All rows have the same groups. `comparisons` are with the first row that is fully fine-tuned, else with the base.
    """

    kind: Literal["steering"] = "steering"
    task: str
    positive: str
    rows: tuple[SteeringRow, ...]
    comparisons: tuple[Comparison, ...] = ()
    worst: Mapping[str, Worst] = Field(default_factory=dict)
    injections: tuple[Injection, ...] = ()
    bounds: tuple[Bound, ...] = ()
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> SteeringResult:
        names = [r.name for r in self.rows]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"a steering result needs rows of different names, got {names}")
        if len({tuple(g.name for g in r.audit.groups) for r in self.rows}) > 1:
            raise ValueError("the rows have different groups")
        return self

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(g.name for g in self.rows[0].audit.groups)

    def row(self, name: str) -> SteeringRow:
        return one_named(self.rows, name, "row", self.kind)
