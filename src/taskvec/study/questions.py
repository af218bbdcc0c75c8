"""What a study asks: the settings of each protocol."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from .fields import Count, GridSpec, Names, Rate, Strict, each_once
from .people import FairnessSpec


class AdditionSpec(Strict):
    """The tasks (all unless named) added up; `subsets` of them too; `per_task` coefficients; `baselines` beside the sum."""

    tasks: Names = ()
    coefficients: GridSpec = GridSpec()
    subsets: Literal["none", "pairs", "all"] = "none"
    per_task: bool = False
    baselines: tuple[Literal["joint", "ensemble"], ...] = ()


class NegationSpec(Strict):
    """Every target forgotten in turn (all tasks but the control unless named)."""

    control: str
    targets: Names = ()
    coefficients: GridSpec = GridSpec()
    control_share: Annotated[float, Field(ge=0, le=1)] = 0.95
    ascent: bool = True


class FewShotSpec(Strict):
    """Fine-tuning on few labels, alike from every start; decay and warm-up are those of `fit`."""

    steps: Count = 60
    lr: Rate = 3e-4
    batch: Count = 32


class AnalogySpec(Strict):
    """A is to B as C is to D. A and B may be texts: their vectors are then those of language modelling on them. With several `ratios` B - A
    has a coefficient of its own, one of them times that of C. With `shots` also fine-tuning on so many labelled samples of each of D's classes, from the base, the
    best source and the analogy; in regimes through the ordinary model."""

    cells: Mapping[Literal["A", "B", "C", "D"], str]
    coefficients: GridSpec = GridSpec()
    ratios: Annotated[
        tuple[Annotated[float, Field(allow_inf_nan=False)], ...], AfterValidator(each_once), Field(min_length=1)
    ] = (1.0,)
    shots: tuple[Annotated[int, Field(ge=0)], ...] = ()
    few_shot: FewShotSpec = FewShotSpec()

    @model_validator(mode="after")
    def _four(self) -> AnalogySpec:
        if set(self.cells) != set("ABCD"):
            raise ValueError("an analogy has the cells A, B, C and D")
        if sorted(set(self.shots)) != list(self.shots):
            raise ValueError("shots must rise")
        if len(set(self.cells.values())) < 4:
            raise ValueError("the cells of an analogy are four different tasks")
        return self

    def named(self, letters: str) -> tuple[str, ...]:
        """The names in these cells."""
        cells: Mapping[Any, str] = self.cells
        return tuple(cells[x] for x in letters)


class SkillsSpec(Strict):
    """Each of the tasks (all unless named) helped by the vector of one other task, or of language modelling on one of the `texts`."""

    tasks: Names = ()
    texts: Names = ()
    coefficients: GridSpec = GridSpec(points=11)


class DisentanglementSpec(Strict):
    tasks: Names = ()
    coefficients: GridSpec = GridSpec(points=5)
    distances: Annotated[
        tuple[Literal["prediction", "representation"], ...], AfterValidator(each_once), Field(min_length=1)
    ] = ("prediction",)


class GeometrySpec(Strict):
    tasks: Names = ()
    steps: bool = True
    subspace: Annotated[int, Field(ge=0)] = 0


class LocalitySpec(Strict):
    tasks: Names = ()
    samples: Count = 24


class ToxicitySpec(Strict):
    """A vector of `toxic` text is subtracted from a language model, which then continues `prompts` (or, `unprompted`, begins so many
    texts by itself: for choosing, and for the result). `control` is the ordinary text whose perplexity is to stay. Prompts and control
    are cut into halves: one to choose the coefficient on, one to report.

    `labelled` texts measure the scorer: toxic are those with the marks `labels`, or with numbers of at least `toxic_from`. `clean` text trains a baseline; so many of the
    words that tell toxic text from it are `banned` in another.
    """

    toxic: str
    prompts: str | None = None
    unprompted: tuple[Count, Count] | None = None
    control: str
    clean: str | None = None
    labelled: str | None = None
    labels: Names = ()
    toxic_from: Annotated[float, Field(allow_inf_nan=False)] | None = None
    scorer: str
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.5
    coefficients: GridSpec = GridSpec(points=11)
    perplexity_ratio: Annotated[float, Field(ge=1, lt=math.inf)] = 1.05
    samples: Count = 1
    validation_samples: Count = 1
    tokens: Count = 32
    temperature: Annotated[float, Field(ge=0, lt=math.inf)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    window: Annotated[int, Field(ge=2)] = 128  # tokens of a sample in training
    banned: Annotated[int, Field(ge=0)] = 0
    ascent: bool = True
    keep_texts: bool = False  # the continuations, in a file beside the result's cell

    @model_validator(mode="after")
    def _asked(self) -> ToxicitySpec:
        if (self.prompts is None) == (self.unprompted is None):
            raise ValueError("name prompts, or give unprompted: [for choosing, for the result]")
        if self.banned and self.clean is None:
            raise ValueError("banned goes with clean: the text that toxic words are told from")
        if bool(self.labels) + (self.toxic_from is not None) != bool(self.labelled):
            raise ValueError(
                "labelled goes with one of labels (marks that mean toxic) and toxic_from (the least number that does)"
            )
        return self

    @field_validator("labels", mode="before")
    @classmethod
    def _marks(cls, value: Any) -> Any:
        return tuple(str(v) for v in value) if isinstance(value, list | tuple) else value

    @property
    def texts(self) -> dict[str, str]:
        """The texts that it needs, by role."""
        roles = ("toxic", "clean", "prompts", "control", "labelled")
        return {r: name for r in roles if (name := getattr(self, r)) is not None}


class ProtocolSpecs(Strict):
    addition: AdditionSpec | None = None
    negation: NegationSpec | None = None
    analogy: AnalogySpec | None = None
    skills: SkillsSpec | None = None
    disentanglement: DisentanglementSpec | None = None
    geometry: GeometrySpec | None = None
    locality: LocalitySpec | None = None
    toxicity: ToxicitySpec | None = None
    fairness: FairnessSpec | None = None

    @model_validator(mode="before")
    @classmethod
    def _asked(cls, value: Any) -> Any:
        """A name without settings asks the question as it is, as elsewhere in the file."""
        return {k: {} if v is None else v for k, v in value.items()} if isinstance(value, dict) else value
