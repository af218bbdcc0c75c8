"""What a study is about: its images, tasks, bases, texts, and how vectors are trained."""

from __future__ import annotations

import codecs
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from .fields import Count, Names, Rate, Strict


class ImageSpec(Strict):
    """How images are prepared for bases made here; bases that are read say it themselves."""

    size: Count = 32
    channels: Literal[1, 3] = 1


class TaskSpec(Strict):
    """A task: a data set, or a part of one.

    `data` is a known set of images, a folder of images, or one of the study's `texts`, whose marks are then the classes; the task's
    name unless told. `keep` takes only these classes (names, or numbers from 0); `limit`,
    `validation_limit` and `test_limit` are the most samples of each part; `invert` turns pixels over; tasks with one `head` share it.
    """

    data: str = ""
    keep: tuple[int | str, ...] = ()
    limit: Count | None = None
    validation_limit: Count | None = None
    test_limit: Count | None = None
    invert: bool = False
    head: str | None = None

    @field_validator("keep", mode="before")
    @classmethod
    def _quoted(cls, value: Any) -> Any:
        if isinstance(value, list | tuple) and any(isinstance(v, bool) for v in value):
            raise ValueError("YAML reads yes, no, on and off as true and false; write a class of such a name in quotes")
        return value


class GivenSpec(Strict):
    """A checkpoint that somebody else fine-tuned: a folder, a file, or, with `download`, a hub's id and perhaps its `revision`."""

    read: str
    download: bool = False
    revision: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"read": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _of_the_hub(self) -> GivenSpec:
        if self.revision is not None and not self.download:
            raise ValueError("revision goes with download")
        return self


class BaseSpec(Strict):
    """Where vectors are taken from: `read` a folder (or, with `download`, a hub's id and perhaps its `revision`), or make a
    vision transformer: pre-trained as `pretrain` says (with its recipe's steps, rate and batch unless told) on some `sets`, else
    on those of the study's tasks; or random. Or a `perceptron` of these hidden widths, for people in a table: it is pre-trained on a
    share of their training rows. Where tasks are of texts, `read` is a text encoder's folder or "minilm", its package;
    it reads at most `tokens` of a text, and its embeddings and `frozen` first layers stay as they are in every vector.

    With `finetuned`, task by task, its vectors are those checkpoints minus the base, and none is trained.
    """

    read: str | None = None
    download: bool = False
    revision: str | None = None
    finetuned: Mapping[str, GivenSpec] = {}
    pretrain: Literal["supervised", "masked", "self-distilled", "contrastive"] | None = None
    sets: tuple[str, ...] = ()
    steps: Count | None = None
    lr: Rate | None = None
    batch: Count | None = None
    patch: Count = 8
    width: Count = 128
    depth: Count = 4
    attention_heads: Count = 4
    perceptron: tuple[Count, ...] = ()
    tokens: Annotated[int, Field(ge=3)] | None = None
    frozen: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _one_way(self) -> BaseSpec:
        if self.read is not None and self.pretrain is not None:
            raise ValueError("a base is either read or pre-trained, not both")
        if self.download and self.read is None:
            raise ValueError("download goes with read")
        if self.perceptron and (self.read is not None or self.pretrain is not None or self.sets):
            raise ValueError("a perceptron is neither read nor pre-trained on sets of images")
        if (self.sets or self.steps or self.lr or self.batch) and self.pretrain is None and not self.perceptron:
            raise ValueError("sets, steps, lr and batch go with pretrain")
        if self.revision is not None and not self.download:
            raise ValueError("revision goes with download")
        if self.finetuned and self.read is None:
            raise ValueError("finetuned goes with read: the base from which those checkpoints were fine-tuned")
        if self.finetuned and self.frozen:
            raise ValueError(
                "checkpoints that others fine-tuned may differ in the layers that are frozen: leave frozen out"
            )
        return self


class FitSpec(Strict):
    """How vectors are trained. Of several rates the one with the best mean validation accuracy of the single-task models is
    taken, for each base, regime and seed. Tasks take 200 `steps` unless told; people as many as their epochs make, at most `steps`."""

    steps: Count | None = None
    batch: Count = 32
    lr: tuple[Rate, ...] = (3e-4,)
    accumulate: Count = 1
    weight_decay: Annotated[float, Field(ge=0, lt=math.inf)] = 0.01
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.1
    autocast: Literal["bfloat16"] | None = (
        None  # of regimes through the ordinary model; linearised ones stay in float32
    )

    @field_validator("lr", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return value if isinstance(value, list | tuple) else (value,)

    @field_validator("lr")
    @classmethod
    def _any(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        return _rates(value)

    @property
    def updates(self) -> int:
        """How many updates a task's vector takes."""
        return self.steps or 200


def _rates(value: tuple[float, ...]) -> tuple[float, ...]:
    if not value or len(set(value)) < len(value):
        raise ValueError("needs at least one learning rate, each once")
    return value


class RegimeSpec(Strict):
    """Changes to `fit` for one regime."""

    steps: Count | None = None
    lr: tuple[Rate, ...] | None = None

    _any = field_validator("lr")(lambda value: value if value is None else _rates(value))
    _several = field_validator("lr", mode="before")(
        lambda value: value if value is None or isinstance(value, list | tuple) else (value,)
    )


class LanguageSpec(Strict):
    """How vectors of language modelling on texts are trained; warm-up and decay are those of `fit`.

    An encoder fills in a share `masked` of each text's tokens, hidden in `copies` different ways, through a head over the vocabulary
    that is fitted first on the frozen base (`head_steps`, `head_lr`). A causal model tells each next token through its own head.
    """

    steps: Count = 200
    batch: Count = 32
    lr: Rate = 1e-4
    masked: Rate = 0.15
    copies: Count = 4
    head_steps: Count = 300
    head_lr: Rate = 1e-3


class TextSpec(Strict):
    """Texts: files below the root whose path matches `data` (the text's name unless told), or, with `download`, those of the hub's
    data set `data` that match `files`.

    `text`, `mark` and `group` are columns; files without a header have the `columns` that are said here, divided by `separator` (the
    text may hold it too). `keep` takes only these marks, `between` only numbers in this range; `join` puts
    neighbouring lines together into passages of so many words; `words` cuts each to its first so many; `limit` draws so many of them.
    """

    data: str = ""
    files: str = "*.parquet"
    download: bool = False
    revision: str | None = None
    text: str = "text"
    mark: str | None = None
    group: str | None = None
    quoting: bool = True
    columns: Names = ()
    separator: Annotated[str, Field(min_length=1)] = "\t"
    encoding: str = "utf-8"
    keep: Names = ()
    between: tuple[float, float] | None = None
    join: Count | None = None
    words: Count | None = None
    limit: Annotated[int, Field(ge=2)] | None = None

    @field_validator("keep", mode="before")
    @classmethod
    def _marks(cls, value: Any) -> Any:
        """Marks are compared as the file writes them: 1 and 1.0 are different ones."""
        return tuple(str(v) for v in value) if isinstance(value, list | tuple) else value

    @field_validator("encoding")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            codecs.lookup(value)
        except LookupError:
            raise ValueError(f"Python knows no encoding {value!r}; utf-8 and latin-1 are common") from None
        return value

    @model_validator(mode="after")
    def _marked(self) -> TextSpec:
        if (self.keep or self.between) and self.mark is None:
            raise ValueError("keep and between go with mark: the column that holds the marks")
        if self.revision is not None and not self.download:
            raise ValueError("revision goes with download")
        for name in (self.text, self.mark, self.group) if self.columns else ():
            if name is not None and name not in self.columns:
                raise ValueError(f"columns are {', '.join(self.columns)}; there is no {name!r} among them")
        if self.download and not self.data:
            raise ValueError("download goes with data: the id of a data set")
        return self
