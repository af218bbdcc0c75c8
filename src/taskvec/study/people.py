"""What a study of fairness is about: people, the model that decides about them, how vectors are trained; and what it asks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from .fields import Count, GridSpec, Names, Rate, Strict

Share = Annotated[float, Field(ge=0, le=1)]


class LoraSpec(Strict):
    """LoRA on everybody, as a rival: `alpha` is the rank unless told, `only` patterns of parameters, `lr` ten times that of vectors."""

    rank: Count
    alpha: Annotated[float, Field(gt=0, lt=math.inf)] | None = None
    only: Names = ()
    lr: Rate | None = None


class PeopleSpec(Strict):
    """People with labels and groups: a known set (`data`, the name unless told), or a table below the root.

    Of a table, `label` is the column of the labels (from `threshold` on positive, if they are numbers); groups come by the columns
    `group`, by `members`, or, of texts, by `terms`. Its samples are texts in the column `text`; the files of `images` in the column
    `file`; or, with a perceptron as `base`, rows, whose other columns but those to `drop` are the inputs. `grouping` chooses the
    attribute of a known set, `groups` keeps some groups only, `most` draws at most so many samples of each group and of none, `parts`
    are the shares of training, validation and test.

    `base` is one of the study's bases (not needed if there is but one). Vectors learn in `epochs`, of at most `steps` updates (this,
    `lr` and `batch` are those of the regime or of `fit` unless told), `only` parameters of these patterns; of a BERT the first
    `frozen_layers` are computed once and never learn. `ridge` is that of the probe.
    """

    data: str = ""
    images: str | None = None
    file: str = "file"
    text: str = "text"
    label: str = "label"
    group: Names = ()
    members: Names = ()
    terms: Mapping[str, tuple[str, ...]] = {}
    key: str | None = None
    drop: Names = ()
    group_as_input: bool = False
    threshold: Annotated[float, Field(allow_inf_nan=False)] | None = None
    positive: str | None = None
    grouping: str | None = None
    groups: Names = ()
    most: Count | None = None
    parts: tuple[float, float, float] = (0.6, 0.2, 0.2)
    base: str = ""
    max_tokens: Annotated[int, Field(ge=3)] = 64
    frozen_layers: Annotated[int, Field(ge=0)] = 0
    ridge: Annotated[float, Field(gt=0, lt=math.inf)] = 1.0
    epochs: Annotated[float, Field(gt=0, lt=math.inf)] = 2.0
    steps: Count | None = None
    lr: Rate | None = None
    batch: Count | None = None
    only: Names = ()
    lora: LoraSpec | None = None

    @field_validator("group", "members", "drop", "only", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("positive", mode="before")
    @classmethod
    def _said(cls, value: Any) -> Any:
        """Classes are compared as the file writes them."""
        if isinstance(value, bool):
            raise ValueError("YAML reads yes, no, on and off as true and false; write a class of such a name in quotes")
        return str(value) if isinstance(value, int | float) else value

    @model_validator(mode="after")
    def _fits(self) -> PeopleSpec:
        if min(self.parts) <= 0 or abs(sum(self.parts) - 1) > 1e-9:
            raise ValueError(f"parts must be three positive shares that sum to 1, got {list(self.parts)}")
        return self


class FairnessSpec(Strict):
    """A vector for each group of `people` (all unless named), merged with one coefficient, or `each` with its own: that of highest
    accuracy on validation data whose gap (`constraint`) is `at_most` so large. The vectors of some groups are added to full
    fine-tuning (`inject`); with `fairlearn` beside its methods on frozen features. Gaps are among groups of `min_n` people, with
    `min_cases` of each label."""

    people: Names = ()
    coefficients: GridSpec = GridSpec(points=11)
    each: GridSpec | None = None
    constraint: Literal["parity", "odds", "opportunity", "accuracy"] = "parity"
    at_most: Share = 0.05
    accuracy_at_least: Share | None = None
    inject: Literal["worst", "all", "none"] = "worst"
    injections: GridSpec = GridSpec(points=6)
    fairlearn: bool = False
    min_n: Count = 30
    min_cases: Count = 10
    bootstrap: Annotated[int, Field(ge=100)] = 1000


def refuse(study: Any) -> None:
    """Refuse, of a study of fairness, what does not fit together.

    Raises:
        ValueError: says what.
    """
    from ..errors import nearest
    from ..training.regime import REGIMES

    said: FairnessSpec = study.protocols.fairness
    others = [name for name, asked in study.protocols if asked is not None and name != "fairness"]
    if others:
        raise ValueError(f"protocols.{others[0]}: fairness is asked of people, this of tasks; make two studies")
    if not study.people:
        raise ValueError("protocols.fairness: name the people: a set or a table with groups")
    for name in said.people:
        if name not in study.people:
            raise ValueError(f"protocols.fairness.people: no {name!r}; there are {', '.join(study.people)}.{nearest(name, study.people)}")  # fmt: skip
    for name, people in study.people.items():
        base = people.base or (next(iter(study.bases)) if len(study.bases) == 1 else "")
        if base not in study.bases:
            raise ValueError(f"people.{name}.base: name one of {', '.join(study.bases)}.{nearest(base, study.bases)}")
        model = study.bases[base]
        if model.finetuned or (model.read is None and not model.perceptron):
            raise ValueError(f"bases.{base}: fairness needs an encoder that is read, or a perceptron, and trains its own vectors")  # fmt: skip
        kind = known_and_kind(name, people, bool(model.perceptron))[1]
        if people.frozen_layers and kind != "text":
            raise ValueError(f"people.{name}.frozen_layers is for text encoders, and these are {kind}")
    for name in study.regimes:
        if name == "post-hoc":
            raise ValueError(
                "regimes.post-hoc: fairness is measured through the function in which vectors were trained"
            )
    if any(p.lora for p in study.people.values()):
        linear = [name for name in study.regimes if name in REGIMES and REGIMES[name].forward.split is not None]
        if linear:
            raise ValueError(
                f"regimes.{linear[0]}: LoRA is trained through the ordinary model, so that it cannot stand beside; leave out `lora`"
            )
    if len(study.fit.lr) > 1 or any(len(r.lr or ()) > 1 for r in study.regimes.values()):
        raise ValueError("fit.lr: fairness takes one learning rate, which there is no single accuracy to choose by")


def base_of(study: Any, name: str) -> str:
    """The base on which people are decided about."""
    return study.people[name].base or next(iter(study.bases))


def known_and_kind(name: str, people: PeopleSpec, perceptron: bool) -> tuple[str | None, str]:
    """The known set that the people are, if they are one, and what the samples are. A table is one whose groups are named."""
    from ..tasks.people import kind_of

    known = None if people.group or people.members or people.terms else people.data or name
    return known, kind_of(known, perceptron=perceptron, images=people.images is not None)
