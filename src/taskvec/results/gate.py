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
    """RMSE divided by that of the single-task network (or what is said to be the reference) on the same molecules; the 95 % interval is of the pairs (bootstrap over
    molecules; a molecule that several runs tested is drawn with all its runs). Below 1 is better."""

    ratio: float = Field(ge=0)
    low: float
    high: float
    n: int = Field(ge=1)  # different molecules
    runs: int = Field(ge=1)

    def __str__(self) -> str:
        return f"{self.ratio:.3f} [{self.low:.3f}, {self.high:.3f}]"


class OwnUnits(Frozen):
    """Root mean square and mean absolute error over all runs in the target's own units, with 95 % intervals of the bootstrap over
    molecules; runs count alike, and a molecule that several runs tested is drawn with all its runs."""

    rmse: float = Field(ge=0)
    rmse_low: float
    rmse_high: float
    mae: float = Field(ge=0)
    mae_low: float
    mae_high: float
    n: int = Field(ge=1)  # different molecules
    runs: int = Field(ge=1)

    def __str__(self) -> str:
        return f"{self.rmse:.4g} [{self.rmse_low:.4g}, {self.rmse_high:.4g}]"


class CurvePoint(Frozen):
    """One target with so many labels, to train and validate (mean over runs): errors of each method, and relative to the single task
    that had the same labels."""

    labels: int = Field(ge=1)
    errors: Mapping[str, OwnUnits]
    relative: Mapping[str, Relative]


class GateTarget(Frozen):
    """One target in one run: how many labels it had, and what each method predicts for the test molecules.

    `routes` holds the RMSE of the added network's predictions by the way through each source's latent; `most` how many labels were
    asked for.
    """

    name: str
    train: int
    validation: int
    most: int = 0
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
    """One seed and fold: targets, the sources' own test errors, CPU seconds by stage, and what was chosen on validation molecules.

    `curve` holds the targets again with other numbers of labels.
    """

    seed: int
    fold: int
    targets: tuple[GateTarget, ...]
    curve: tuple[GateTarget, ...] = ()
    sources: Mapping[str, Error]
    seconds: Mapping[str, float] = Field(default_factory=dict)
    chosen: Mapping[str, float] = Field(default_factory=dict)
    unchanged: bool  # whether the sources' test predictions are the same bits after all additions
    notes: tuple[str, ...] = ()

    def target(self, name: str) -> GateTarget:
        return one_named(self.targets, name, "target", "gate")


class GateResult(BaseResult):
    """Task addition by geometric alignment beside its rivals (arXiv:2409.16645), over one or more runs.

    ``relative[target][method]`` is over all runs, and so are ``errors[target][method]``, the learning curves ``curves[target]``,
    ``against[target][method]``: the error of task addition relative to that of a rival, and ``ablation[target][what]``: the error of an
    addition without a loss, relative to that with all of them. All methods of a target saw the same labels and the same splits.
    """

    kind: Literal["gate"] = "gate"
    split: Literal["random", "scaffold"]
    embedding: str
    methods: tuple[str, ...]
    relative: Mapping[str, Mapping[str, Relative]]
    errors: Mapping[str, Mapping[str, OwnUnits]] = Field(default_factory=dict)
    curves: Mapping[str, tuple[CurvePoint, ...]] = Field(default_factory=dict)
    against: Mapping[str, Mapping[str, Relative]] = Field(default_factory=dict)
    ablation: Mapping[str, Mapping[str, Relative]] = Field(default_factory=dict)
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
