"""Results of geometric alignment: errors of regression in the targets' own units, beside rivals trained in the same run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator

from .parts import BaseResult, Frozen, one_named

SINGLE, GATE = "single task", "task addition"


class Error(Frozen):
    """Root mean square error of `n` test molecules in the target's own units, with a 95 % bootstrap interval over molecules."""

    rmse: float = Field(ge=0)
    low: float
    high: float
    n: int = Field(ge=1)


class Relative(Frozen):
    """RMSE divided by that of the single-task network on the same molecules; the 95 % interval is of the pairs (bootstrap over
    molecules; a molecule that several runs tested is drawn with all its runs). Below 1 is better."""

    ratio: float = Field(ge=0)
    low: float
    high: float
    n: int = Field(ge=1)  # different molecules
    runs: int = Field(ge=1)

    def __str__(self) -> str:
        return f"{self.ratio:.3f} [{self.low:.3f}, {self.high:.3f}]"


class GateTarget(Frozen):
    """One target in one run: how many labels it had, and what each method predicts for the test molecules.

    `routes` holds the RMSE of the added network's predictions by the way through each source's latent.
    """

    name: str
    train: int
    validation: int
    molecules: tuple[str, ...]
    truth: tuple[float, ...]
    predictions: Mapping[str, tuple[float, ...]]
    errors: Mapping[str, Error]
    routes: Mapping[str, float] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fits(self) -> GateTarget:
        n = len(self.truth)
        for what, line in {"molecules": self.molecules, **self.predictions}.items():
            if len(line) != n:
                raise ValueError(f"target {self.name!r}: {what!r} has {len(line)} entries for {n} test labels")
        return self


class GateRun(Frozen):
    """One seed and fold: targets, the sources' own test errors, CPU seconds by stage, and what was chosen on validation molecules."""

    seed: int
    fold: int
    targets: tuple[GateTarget, ...]
    sources: Mapping[str, Error]
    seconds: Mapping[str, float] = Field(default_factory=dict)
    chosen: Mapping[str, float] = Field(default_factory=dict)
    unchanged: bool  # whether the sources' test predictions are the same bits after all additions
    notes: tuple[str, ...] = ()

    def target(self, name: str) -> GateTarget:
        return one_named(self.targets, name, "target", "gate")


class GateResult(BaseResult):
    """Task addition by geometric alignment beside its rivals (arXiv:2409.16645), over one or more runs.

    ``relative[target][method]`` is over all runs. All methods of a target saw the same labels and the same splits.
    """

    kind: Literal["gate"] = "gate"
    split: Literal["random", "scaffold"]
    embedding: str
    methods: tuple[str, ...]
    relative: Mapping[str, Mapping[str, Relative]]
    runs: tuple[GateRun, ...]
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> GateResult:
        names = {tuple(t.name for t in r.targets) for r in self.runs}
        if len(names) != 1 or SINGLE not in self.methods:
            raise ValueError(f"a gate result needs runs with the same targets and the method {SINGLE!r}")
        return self

    @property
    def targets(self) -> tuple[str, ...]:
        return tuple(t.name for t in self.runs[0].targets)

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(self.runs[0].sources)
