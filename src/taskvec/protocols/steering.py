"""Steering: do sub-group task vectors trade accuracy for fairness, and better than what does not need them?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from ..errors import NonFinite, UnknownName, UsageError, nearest, some
from ..methods import task_sum
from ..models.forward import Forward
from ..results import (
    Audit,
    Comparison,
    FairnessCurve,
    GapName,
    Injection,
    Provenance,
    SteeringResult,
    SteeringRow,
    Worst,
)
from ..search import answers, grid
from ..tasks.task import Split, Task
from ..weights import Checkpoint, TaskVector
from .fair_choice import Rule, choose_fair
from .fair_rivals import fair_rivals
from .fairness import compare_models, group_metrics
from .rows import checked_grid, chosen_forward, test_answers
from .steering_bound import bound

if TYPE_CHECKING:
    import torch

OWN_ROWS = {"base", "full fine-tuning", "full fine-tuning, scaled", "task addition", "one coefficient each"}
SEARCH_DRAWS = 100  # of the bootstrap while searching, where intervals are not looked at


def steering(
    model: torch.nn.Module,
    base: Checkpoint,
    vectors: Mapping[str, TaskVector],
    task: Task,
    *,
    full: TaskVector | None = None,
    rivals: Mapping[str, TaskVector] | None = None,
    coefficients: Sequence[float] = grid(0, 1, 11),
    constraint: GapName = "parity",
    at_most: float = 0.05,
    accuracy_at_least: float | None = None,
    each: Sequence[float] | None = None,
    inject: Sequence[str] | Literal["worst", "none"] = "worst",
    injections: Sequence[float] = grid(0, 1, 6),
    frozen_features: bool = False,
    positive: int = 1,
    forward: Forward | str | None = None,
    min_n: int = 30,
    min_cases: int = 10,
    bootstrap: int = 1000,
    seed: int = 0,
    notes: Sequence[str] = (),
    title: str = "Steering fairness",
) -> SteeringResult:
    r"""Merge :math:`\theta_0 + \lambda \sum_g \delta_g` and choose :math:`\lambda` for accuracy and fairness together.

    Vectors are **summed**, not averaged. On validation data the coefficient of highest accuracy is taken among those whose gap is at
    most `at_most` and whose accuracy is at least `accuracy_at_least`; where none is, the one of least gap (of those that are accurate
    enough), and the row says so (``met`` False). A model that predicts one class for everybody has no gap: set the floor, or read
    gap and accuracy together. The test split is read once for each row.

    Rows: "base"; "full fine-tuning" (coefficient 1, nothing chosen) and each of `rivals` likewise; "full fine-tuning, scaled" and so
    on, :math:`\theta_0 + \lambda\,\delta_{all}` with :math:`\lambda` chosen like that of the sum: a tuned method is to be read beside
    tuned ones; "task addition"; then those asked for.

    Args:
        model: inputs -> features.
        base: :math:`\theta_0`.
        vectors: group -> :math:`\delta_g`, for groups of the task's splits, all trained under its one head (`subgroup_vectors`).
        task: two classes, with head and groups.
        full: the vector fine-tuned on everybody.
        rivals: further vectors by name, for example those of `Subgroups.rivals`.
        coefficients: the grid of :math:`\lambda`; 0 is always tried.
        constraint, at_most: the gap to keep small, and its limit (`choose_fair`).
        accuracy_at_least: the least accuracy on validation data, as a share of people; no floor unless told.
        each: a grid for the row "one coefficient each", :math:`\theta_0 + \sum_g \lambda_g \delta_g`, chosen by turns from the shared one,
            two rounds at most; None leaves the row out.
        inject: whose vector is added to the fully fine-tuned model, :math:`\theta_{full} + \lambda\,\delta_g`: of the group that this
            model serves worst, of the groups named, or of none.
        injections: the grid for them; 0 is always tried.
        frozen_features: rows with fairlearn's ThresholdOptimizer and ExponentiatedGradient on the base's features.
        positive: the class that is "selected".
        forward: as in `addition`.
        min_n, min_cases, bootstrap, seed: as for `group_metrics`.
        notes: what a reader must know of data and training.
        title: heading in reports.
    Raises:
        UsageError: no vectors, a task of other than two classes or without head or groups, or a rival with the name of a row.
        UnknownName: a vector or injection of a group that the task has not.
        InputError: the gap can be measured nowhere.
    Reference: arXiv:2505.24262.
    """
    rivals = dict(rivals or {})
    _check(task, vectors, full, rivals, inject, positive)
    coefficients, injections = checked_grid(coefficients), checked_grid(injections)
    forward = chosen_forward(forward, [*vectors.values(), *([full] if full else []), *rivals.values()])
    rule = Rule(constraint, at_most, accuracy_at_least)
    room = _Room(model, base, task, forward, positive, rule, min_n, min_cases, bootstrap, seed)
    total = task_sum(list(vectors.values()))
    rows: list[SteeringRow] = []
    predicted: dict[str, np.ndarray] = {}

    def add(name: str, vector: TaskVector, coefficient: float, *, curve: FairnessCurve | None = None, note: str = "",
            each: Mapping[str, float] | None = None, validation: Audit | None = None) -> None:  # fmt: skip
        logits = test_answers(model, base, vector, coefficient, task, forward)
        predicted[name] = room.scores(logits, name) > 0.5
        if curve:
            validation = curve.audits[curve.chosen]
        rows.append(
            SteeringRow(
                name=name, audit=room.audit(task.test, predicted[name]), coefficient=curve.coefficient if curve else None, curve=curve,
                coefficients=each or {}, validation=validation, note=note,
                met=rule.met(validation) if validation else None,
            )
        )  # fmt: skip

    def tuned(name: str, vector: TaskVector, note: str) -> tuple[FairnessCurve, np.ndarray]:
        curve, scores = room.swept({name: vector}, [{name: c} for c in coefficients], coefficients)
        add(name, vector, curve.coefficient, curve=curve, note=note)
        return curve, scores

    add("base", total, 0.0)
    alone = {**({"full fine-tuning": full} if full else {}), **rivals}
    for name, vector in alone.items():
        add(name, vector, 1.0, note="trained on all groups together, nothing chosen")
    for name, vector in alone.items():
        tuned(f"{name}, scaled", vector, "the same vector, its coefficient chosen as that of task addition")
    shared, scores = tuned("task addition", total, f"one coefficient for the sum of {len(vectors)} vectors")
    if each is not None:
        found, audit = room.by_turns(vectors, checked_grid(each), shared.coefficient)
        merged = task_sum([found[g] * v for g, v in vectors.items()])
        add(
            "one coefficient each", merged, 1.0, each=found, validation=audit, note="chosen by turns on validation data"
        )
    if frozen_features:
        for name, answer, note in fair_rivals(
            model, base, task, forward, positive=positive, at_most=at_most, seed=seed
        ):
            predicted[name] = answer
            rows.append(SteeringRow(name=name, audit=room.audit(task.test, answer), note=note))
    worst = room.worst(full, vectors) if full else {}
    lowest = max(worst, key=lambda g: worst[g].mean, default="")
    chosen = ([lowest] if inject == "worst" and lowest else []) if isinstance(inject, str) else list(inject)
    first = "full fine-tuning" if full else "base"
    return SteeringResult(
        title=title, task=task.name, positive=task.classes[positive], rows=tuple(rows),
        comparisons=tuple(room.compared(first, predicted[first], n, p) for n, p in predicted.items() if n != first),
        worst=worst,
        injections=tuple(
            room.injected(full, g, vectors[g], injections, predicted[first], worst=g == lowest) for g in chosen if full
        ),
        bounds=tuple(
            bound(scores, shared.coefficients, vectors, task.validation, convention=c, positive=positive, min_n=min_n, seed=seed)
            for c in ("sum", "mean")
        ),
        notes=tuple(notes),
        provenance=Provenance.now(
            seed=seed, inputs={"base": base.fingerprint()},
            settings={
                "forward": forward.name, "grid": [coefficients[0], coefficients[-1], len(coefficients)], "merging": "sum",
                "objective": shared.objective, "accuracy_at_least": accuracy_at_least, "min_n": min_n, "min_cases": min_cases, "bootstrap": bootstrap,
            },
        ),
    )  # fmt: skip


@dataclass(frozen=True)
class _Room:
    """What every row is measured with."""

    model: torch.nn.Module
    base: Checkpoint
    task: Task
    forward: Forward
    positive: int
    rule: Rule
    min_n: int
    min_cases: int
    bootstrap: int
    seed: int

    def scores(self, logits: torch.Tensor, what: str) -> np.ndarray:
        """The probability of the positive class, [n]."""
        if not logits.isfinite().all():
            raise NonFinite(f"cannot measure {what}: the model's outputs are not finite. The edit is too large.")
        return logits.double().softmax(1)[:, self.positive].numpy()

    def audit(self, split: Split, decided: np.ndarray, *, draws: int = 0) -> Audit:
        labels, groups = people(split, self.positive)
        return group_metrics(
            labels, decided, groups, min_n=self.min_n, min_cases=self.min_cases, bootstrap=draws or self.bootstrap, seed=self.seed
        )  # fmt: skip

    def swept(
        self, vectors: Mapping[str, TaskVector], points: Sequence[Mapping[str, float]], coefficients: Sequence[float]
    ) -> tuple[FairnessCurve, np.ndarray]:
        """The choice on validation data along some points, and the scores there, [points, n]. Points whose outputs are not finite are
        left out."""
        at = self.on_validation(vectors)
        found = [(c, at(p)) for c, p in zip(coefficients, points, strict=True)]
        found = [(c, x) for c, x in found if x is not None]
        if not found:
            raise NonFinite(f"cannot measure {', '.join(vectors)}: outputs are finite at no coefficient.")
        scores = np.stack([x for _, x in found])
        audits = [self.audit(self.task.validation, x > 0.5) for x in scores]
        kept = [c for c, _ in found]
        rule = self.rule
        curve = choose_fair(
            kept, audits, constraint=rule.constraint, at_most=rule.at_most, accuracy_at_least=rule.accuracy_at_least
        )
        return curve, scores

    def on_validation(self, vectors: Mapping[str, TaskVector]) -> Callable[[Mapping[str, float]], np.ndarray | None]:
        split, head = self.task.validation, self.task.needs_head()
        at = answers(self.model, self.base, vectors, {"validation": (split, head)}, forward=self.forward)

        def scores(point: Mapping[str, float]) -> np.ndarray | None:
            logits = at(point)["validation"]
            return self.scores(logits, "a point") if logits.isfinite().all() else None

        return scores

    def by_turns(
        self, vectors: Mapping[str, TaskVector], coefficients: Sequence[float], start: float, rounds: int = 2
    ) -> tuple[dict[str, float], Audit]:
        """One coefficient for each vector: the others stay as they are while one is chosen, by the rule of `choose_fair`."""
        at, known = self.on_validation(vectors), dict.fromkeys(vectors, start)

        def look(point: Mapping[str, float]) -> tuple[tuple[int, float], Audit | None]:
            found = at(point)
            if found is None:
                return (-1, 0.0), None
            audit = self.audit(self.task.validation, found > 0.5, draws=SEARCH_DRAWS)
            return self.rule.rank(audit), audit

        best, audit = look(known)
        for _ in range(rounds):
            before = dict(known)
            for name in vectors:
                for c in coefficients:
                    if c == known[name]:
                        continue
                    value, new = look(known | {name: c})
                    if value > best:  # equals do not move it, so that rounds end
                        best, audit, known = value, new, known | {name: c}
            if known == before:
                break
        assert audit is not None  # the start is a point of a sweep
        return known, audit

    def worst(self, full: TaskVector, vectors: Mapping[str, TaskVector]) -> dict[str, Worst]:
        """How far each group stands from everybody else under the full model, on validation data; groups too small are left out."""
        found = self.on_validation({"full": full})({"full": 1.0})
        if found is None:
            raise NonFinite("cannot measure full fine-tuning: the model's outputs are not finite.")
        labels, groups = people(self.task.validation, self.positive)
        out = {}
        for g in vectors:
            own = group_metrics(
                labels, found > 0.5, {g: groups[g], "the rest": ~groups[g]}, min_n=self.min_n, min_cases=self.min_cases, bootstrap=SEARCH_DRAWS, seed=self.seed
            )  # fmt: skip
            parity, odds = own.gap("parity"), own.gap("odds")
            if parity and odds:
                out[g] = Worst(parity=parity.value, odds=odds.value)
        return out

    def injected(
        self, full: TaskVector, group: str, vector: TaskVector, coefficients: Sequence[float], before: np.ndarray, *, worst: bool
    ) -> Injection:  # fmt: skip
        curve, _ = self.swept(
            {"full": full, group: vector}, [{"full": 1.0, group: c} for c in coefficients], coefficients
        )
        c = curve.coefficient
        logits = test_answers(
            self.model, self.base, full + c * vector if c else full, 1.0, self.task, self.forward
        )  # fmt: skip
        name = f"full fine-tuning + {c:g} x {group}"
        after = self.scores(logits, name) > 0.5
        change = self.compared("full fine-tuning", before, name, after)
        return Injection(group=group, worst=worst, curve=curve, change=change, audit=self.audit(self.task.test, after))

    def compared(self, first: str, before: np.ndarray, name: str, after: np.ndarray) -> Comparison:
        labels, groups = people(self.task.test, self.positive)
        return compare_models(
            labels,
            before,
            after,
            groups,
            names=(first, name),
            min_n=self.min_n,
            min_cases=self.min_cases,
            bootstrap=self.bootstrap,
            seed=self.seed,
        )


def people(split: Split, positive: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Who is truly positive, and who is in which group."""
    return (split.labels == positive).numpy(), {n: m.numpy() for n, m in split.groups.items()}


def _check(
    task: Task, vectors: Mapping[str, TaskVector], full: TaskVector | None, rivals: Mapping[str, TaskVector],
    inject: Sequence[str] | str, positive: int,
) -> None:  # fmt: skip
    task.needs_head()
    if len(task.classes) != 2 or positive not in (0, 1):
        raise UsageError(f"steering takes a task of two classes, one of them (0 or 1) positive; {task.name!r} has {len(task.classes)}, and positive is {positive}.")  # fmt: skip
    for which in ("validation", "test"):
        if len(getattr(task, which).groups) < 2:
            raise UsageError(f"the {which} split of task {task.name!r} has {len(getattr(task, which).groups)} groups; comparing takes two. See taskvec.tasks.groups.")  # fmt: skip
    if not vectors:
        raise UsageError("steering needs a vector for each of some groups; got none. Make them with subgroup_vectors.")
    known = task.validation.groups
    for name in (*vectors, *(() if isinstance(inject, str) else inject)):
        if name not in known:
            raise UnknownName(f"task {task.name!r} has no group {name!r}; it has {', '.join(known)}.{nearest(name, known)}")  # fmt: skip
    if isinstance(inject, str) and inject not in ("worst", "none"):
        raise UsageError(f"inject is {inject!r}; expected 'worst', 'none', or a list of groups.")
    if not isinstance(inject, str) and (lacking := [g for g in inject if g not in vectors]):
        raise UsageError(f"no vector of {some(lacking)} to inject.")
    if not isinstance(inject, str) and inject and full is None:
        raise UsageError("injection adds to the fully fine-tuned model: give its vector as full.")
    if taken := set(rivals) & OWN_ROWS:
        raise UsageError(f"steering has rows named {some(sorted(taken))} itself; give these rivals other names.")
