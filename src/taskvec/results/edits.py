"""Results of editing: addition, negation, analogy, and fine-tuning on few labels from there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import model_validator

from .parts import BaseResult, Curve, Frozen, Row, Score, one_named, row_named


class AdditionResult(BaseResult):
    """Several task vectors added to one base (arXiv:2212.04089 section 4, arXiv:2305.12827 section 4).

    Rows in this order: base, individually fine-tuned (each task scored by its own model), random vectors, the sum,
    and any further methods. `tasks` fixes the order of the columns. `subsets`: sums of some of the tasks, each with its own
    coefficient, scored on those tasks alone.
    """

    kind: Literal["addition"] = "addition"
    tasks: tuple[str, ...]
    rows: tuple[Row, ...]
    subsets: tuple[Row, ...] = ()

    def row(self, name: str) -> Row:
        return row_named(self, name)


class NegationResult(BaseResult):
    """One task vector subtracted from the base (arXiv:2212.04089 section 3).

    `target` is to be forgotten, `control` is to be kept: among the coefficients whose validation control accuracy is at
    least `control_share` of the base's, the one with the lowest validation target accuracy is chosen.
    """

    kind: Literal["negation"] = "negation"
    target: str
    control: str
    control_share: float
    rows: tuple[Row, ...]

    def row(self, name: str) -> Row:
        return row_named(self, name)


class AnalogyResult(BaseResult):
    """A fourth cell built from three: tau_D = tau_C + (tau_B - tau_A) (arXiv:2212.04089 section 5).

    `cells` maps "A", "B", "C", "D" to what they are; the score of every row is on cell D's test split. A is to B as C
    is to D. Row "source" is the best that is possible without data of D and without arithmetic. `ratio`: where two coefficients
    were chosen, the second, of tau_B - tau_A, as a multiple of the first.
    """

    kind: Literal["analogy"] = "analogy"
    task: str
    cells: Mapping[str, str]
    rows: tuple[Row, ...]
    ratio: float | None = None

    def row(self, name: str) -> Row:
        return row_named(self, name)


class Skill(Frozen):
    """One task's own model with the vector of one other task added: theta_0 + tau_t + alpha tau_j.

    `curve` has the validation accuracy along the coefficient for every other vector, and for a random one; `other` and its
    `chosen` coefficient are the best of all. Scores are readings of the test split.
    """

    task: str
    other: str
    curve: Curve
    random_coefficient: float
    base: Score
    finetuned: Score
    with_random: Score
    with_other: Score


class SkillsResult(BaseResult):
    """Single-task models, each improved by the vector of another task (arXiv:2212.04089, section 4)."""

    kind: Literal["skills"] = "skills"
    skills: tuple[Skill, ...]

    @model_validator(mode="after")
    def _fits(self) -> SkillsResult:
        if not self.skills:
            raise ValueError("needs at least one task")
        return self

    def skill(self, task: str) -> Skill:
        return next(s for s in self.skills if s.task == task)


class Start(Frozen):
    """One start of fine-tuning on few labels: ``scores[i]`` belongs to the i-th number of shots of the result."""

    name: str
    scores: tuple[Score, ...]
    coefficient: float | None = None
    curve: Curve | None = None
    note: str = ""


class FewShotResult(BaseResult):
    """Fine-tuning on few labelled samples of one task, from several starts (arXiv:2212.04089).

    ``labels[i]`` is the number of labelled samples at ``shots[i]`` of each class. The first start is the base. Every score is a
    reading of the test split.
    """

    kind: Literal["few-shot"] = "few-shot"
    task: str
    shots: tuple[int, ...]
    labels: tuple[int, ...]
    starts: tuple[Start, ...]
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> FewShotResult:
        n = len(self.shots)
        if not n or not self.starts or len(self.labels) != n or any(len(s.scores) != n for s in self.starts):
            raise ValueError(f"{n} numbers of shots need at least one start, and {n} numbers of labels and scores")
        if sorted(set(self.labels)) != list(self.labels):
            raise ValueError("numbers of labels must rise")
        return self

    def start(self, name: str) -> Start:
        return one_named(self.starts, name, "start", "few-shot")

    def labels_needed(self, name: str, than: str = "base") -> tuple[int | None, ...]:
        """For each number of shots of `than`: the least number of labels with which `name` has at least its test accuracy, None
        if it has it nowhere. Only numbers that were tried count: nothing is interpolated, and intervals are not looked at."""
        mine = self.start(name).scores
        return tuple(
            next((n for n, s in zip(self.labels, mine, strict=True) if s.value >= other.value), None)
            for other in self.start(than).scores
        )

    @property
    def labels_saved(self) -> dict[str, tuple[int | None, ...]]:
        """By start, for each number of shots of the base: its labels less those that the start needs for as much (`labels_needed`)."""
        return {
            s.name: tuple(
                None if need is None else had - need
                for had, need in zip(self.labels, self.labels_needed(s.name, self.starts[0].name), strict=True)
            )
            for s in self.starts[1:]
        }
