"""Choosing a coefficient by a limit on a gap between groups, and a floor under accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import InputError, UnknownName, UsageError, nearest
from ..results import Audit, FairnessCurve, GapName
from .gaps import PARTS

CLOSE = 1e-12  # shares that are equal on paper differ by this much at most


def choose_fair(
    coefficients: Sequence[float], audits: Sequence[Audit], *, constraint: GapName = "parity", at_most: float = 0.05,
    accuracy_at_least: float | None = None,
) -> FairnessCurve:  # fmt: skip
    """The coefficient of highest validation accuracy among those whose gap is at most `at_most`; of equals the smallest edit.

    Where no coefficient keeps to the limit, the one of least gap, and the curve says that it was not met. A point whose gap could not
    be measured keeps to no limit. What decides are the measured values, not their intervals.

    A model that selects everybody, or nobody, has no gap: a limit on the gap alone may choose it. With `accuracy_at_least` only points
    of that accuracy are looked at; where there is none, the most accurate one is taken, and the curve says that it was not met.

    Args:
        coefficients: the grid.
        audits: of validation data, one for each.
        constraint: which gap: parity, odds, opportunity or accuracy.
        at_most: its limit.
        accuracy_at_least: a share of people from 0 to 1; for a share of the base's, multiply the accuracy of its audit.
    Raises:
        UsageError: lengths differ, a ratio (which is no gap to keep small), or a floor that is no share.
        InputError: the gap could be measured nowhere.
    """
    if len(coefficients) != len(audits) or not audits:
        raise UsageError(f"{len(coefficients)} coefficients need as many audits, at least one; got {len(audits)}.")
    rule = Rule(constraint, at_most, accuracy_at_least)
    if all(math.isinf(gap_of(a, constraint)) for a in audits):
        raise InputError(
            f"{constraint} could be measured at no coefficient: {audits[0].unmeasured.get(constraint, '')}"
        )
    pick = max(range(len(audits)), key=lambda i: (*rule.rank(audits[i]), -abs(coefficients[i])))
    return FairnessCurve(
        coefficients=tuple(map(float, coefficients)), audits=tuple(audits), chosen=pick, met=rule.met(audits[pick]), constraint=constraint,
        at_most=at_most, accuracy_at_least=accuracy_at_least, objective=str(rule),
    )  # fmt: skip


@dataclass(frozen=True)
class Rule:
    """What is asked of a point, as `choose_fair` takes it."""

    constraint: GapName
    at_most: float
    accuracy_at_least: float | None = None

    def __post_init__(self) -> None:
        small = [g for g, (_, ratio) in PARTS.items() if not ratio]
        if self.constraint not in small:
            raise UnknownName(
                f"the constraint must be one of {', '.join(small)}, got {self.constraint!r}."
                f"{nearest(self.constraint, small)}"
            )
        if self.accuracy_at_least is not None and not 0 <= self.accuracy_at_least <= 1:
            raise UsageError(f"accuracy_at_least is a share from 0 to 1, got {self.accuracy_at_least}.")

    def rank(self, audit: Audit) -> tuple[int, float]:
        """Larger is better: first by how much of what is asked is kept, then by what is left to improve."""
        gap, right = gap_of(audit, self.constraint), audit.overall.accuracy
        accuracy = right.value if right else 0.0
        if self.accuracy_at_least is not None and accuracy < self.accuracy_at_least - CLOSE:
            return 0, accuracy
        return (2, accuracy) if gap <= self.at_most + CLOSE else (1, -gap)

    def met(self, audit: Audit) -> bool:
        """Whether all that is asked is kept."""
        return self.rank(audit)[0] == 2

    def __str__(self) -> str:
        limit = f"highest accuracy with a {self.constraint} gap of at most {self.at_most:g}"
        if self.accuracy_at_least is None:
            return f"{limit}, else the least gap"
        return f"{limit} and an accuracy of at least {self.accuracy_at_least:g}, else the least gap at that accuracy, else the highest accuracy"


def gap_of(audit: Audit, name: GapName) -> float:
    """The gap's value, infinite where it could not be measured."""
    found = audit.gap(name)
    return found.value if found else math.inf
