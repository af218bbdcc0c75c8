"""The text of a study: a small strict YAML file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..errors import InputError, UsageError, nearest

Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _each_once(value: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(value)) < len(value):
        raise ValueError("a name stands there twice")
    return value


Names = Annotated[tuple[str, ...], AfterValidator(_each_once)]


class ImageSpec(_Strict):
    """How images are prepared for bases made here; bases that are read say it themselves."""

    size: Count = 32
    channels: Literal[1, 3] = 1


class TaskSpec(_Strict):
    """A task: a data set, or a part of one.

    `data` is a known set, else the task's name; `keep` takes only these classes (names, or numbers from 0); `limit`,
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


class GivenSpec(_Strict):
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


class BaseSpec(_Strict):
    """Where vectors are taken from: `read` a folder (or, with `download`, a hub's id and perhaps its `revision`), or make a
    vision transformer: pre-trained as `pretrain` says (with its recipe's steps, rate and batch unless told) on some `sets`, else
    on those of the study's tasks; or random.

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

    @model_validator(mode="after")
    def _one_way(self) -> BaseSpec:
        if self.read is not None and self.pretrain is not None:
            raise ValueError("a base is either read or pre-trained, not both")
        if self.download and self.read is None:
            raise ValueError("download goes with read")
        if (self.sets or self.steps or self.lr or self.batch) and self.pretrain is None:
            raise ValueError("sets, steps, lr and batch go with pretrain")
        if self.revision is not None and not self.download:
            raise ValueError("revision goes with download")
        if self.finetuned and self.read is None:
            raise ValueError("finetuned goes with read: the base from which those checkpoints were fine-tuned")
        return self


class FitSpec(_Strict):
    """How vectors are trained. Of several rates the one with the best mean validation accuracy of the single-task models is
    taken, for each base, regime and seed."""

    steps: Count = 200
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


def _rates(value: tuple[float, ...]) -> tuple[float, ...]:
    if not value or len(set(value)) < len(value):
        raise ValueError("needs at least one learning rate, each once")
    return value


class RegimeSpec(_Strict):
    """Changes to `fit` for one regime."""

    steps: Count | None = None
    lr: tuple[Rate, ...] | None = None

    _any = field_validator("lr")(lambda value: value if value is None else _rates(value))
    _several = field_validator("lr", mode="before")(
        lambda value: value if value is None or isinstance(value, list | tuple) else (value,)
    )


class GridSpec(_Strict):
    """Evenly spaced coefficients; ``[low, high, points]`` for short."""

    low: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    high: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    points: Annotated[int, Field(ge=2, le=1001)] = 21

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if isinstance(value, list | tuple) and len(value) == 3:
            return dict(zip(("low", "high", "points"), value, strict=True))
        return value

    @model_validator(mode="after")
    def _rises(self) -> GridSpec:
        if not self.low < self.high:
            raise ValueError("low must be below high")
        return self


class AdditionSpec(_Strict):
    """The tasks (all unless named) added up; `subsets` of them too; `per_task` coefficients; `baselines` beside the sum."""

    tasks: Names = ()
    coefficients: GridSpec = GridSpec()
    subsets: Literal["none", "pairs", "all"] = "none"
    per_task: bool = False
    baselines: tuple[Literal["joint", "ensemble"], ...] = ()


class NegationSpec(_Strict):
    """Every target forgotten in turn (all tasks but the control unless named)."""

    control: str
    targets: Names = ()
    coefficients: GridSpec = GridSpec()
    control_share: Annotated[float, Field(ge=0, le=1)] = 0.95
    ascent: bool = True


class FewShotSpec(_Strict):
    """Fine-tuning on few labels, alike from every start; decay and warm-up are those of `fit`."""

    steps: Count = 60
    lr: Rate = 3e-4
    batch: Count = 32


class AnalogySpec(_Strict):
    """A is to B as C is to D. With `shots` also fine-tuning on so many labelled samples of each of D's classes, from the base, the
    best source and the analogy; in regimes through the ordinary model."""

    cells: Mapping[Literal["A", "B", "C", "D"], str]
    coefficients: GridSpec = GridSpec()
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


class DisentanglementSpec(_Strict):
    tasks: Names = ()
    coefficients: GridSpec = GridSpec(points=5)
    distances: Annotated[
        tuple[Literal["prediction", "representation"], ...], AfterValidator(_each_once), Field(min_length=1)
    ] = ("prediction",)


class GeometrySpec(_Strict):
    tasks: Names = ()
    steps: bool = True
    subspace: Annotated[int, Field(ge=0)] = 0


class LocalitySpec(_Strict):
    tasks: Names = ()
    samples: Count = 24


class TextSpec(_Strict):
    """Texts: files below the root whose path matches `data` (the text's name unless told), or, with `download`, those of the hub's
    data set `data` that match `files`.

    `text`, `mark` and `group` are columns; `keep` takes only these marks, `between` only numbers in this range; `join` puts
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

    @model_validator(mode="after")
    def _marked(self) -> TextSpec:
        if (self.keep or self.between) and self.mark is None:
            raise ValueError("keep and between go with mark: the column that holds the marks")
        if self.revision is not None and not self.download:
            raise ValueError("revision goes with download")
        if self.download and not self.data:
            raise ValueError("download goes with data: the id of a data set")
        return self


class ToxicitySpec(_Strict):
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


class ProtocolSpecs(_Strict):
    addition: AdditionSpec | None = None
    negation: NegationSpec | None = None
    analogy: AnalogySpec | None = None
    disentanglement: DisentanglementSpec | None = None
    geometry: GeometrySpec | None = None
    locality: LocalitySpec | None = None
    toxicity: ToxicitySpec | None = None

    @model_validator(mode="before")
    @classmethod
    def _asked(cls, value: Any) -> Any:
        """A name without settings asks the question as it is, as elsewhere in the file."""
        return {k: {} if v is None else v for k, v in value.items()} if isinstance(value, dict) else value


class Study(_Strict):
    """A study: what is asked (protocols), of which tasks, from which bases, in which regimes, how often (seeds)."""

    study: Literal[1]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]
    about: str = ""
    root: str | None = None
    seeds: tuple[Seed, ...] = (0,)
    image: ImageSpec = ImageSpec()
    tasks: Mapping[str, TaskSpec] = {}
    texts: Mapping[str, TextSpec] = {}
    bases: Mapping[str, BaseSpec]
    heads: Literal["probed", "zero-shot", "joint"] = "probed"
    pretraining_share: Annotated[float, Field(ge=0, lt=1)] = 0.5
    regimes: Mapping[str, RegimeSpec] = {}
    fit: FitSpec = FitSpec()
    protocols: ProtocolSpecs
    tryout: bool = False  # set by `tried`: results say that they are no measurement

    @field_validator("tasks", "texts", "bases", "regimes", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        """A list of names stands for a table without settings."""
        if isinstance(value, list):
            if len({str(v) for v in value}) < len(value):
                raise ValueError("a name stands there twice")
            return {str(name): {} for name in value}
        if isinstance(value, dict):
            return {str(name): {} if said is None else said for name, said in value.items()}
        return value

    @model_validator(mode="after")
    def _fits(self) -> Study:
        from ..training.regime import REGIMES

        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: needs at least one seed, each once")
        if not (self.tasks or self.protocols.toxicity) or not self.bases:
            raise ValueError("a study needs tasks and bases")
        for name in self.regimes:
            if name not in REGIMES and name != POST_HOC:
                known = [*REGIMES, POST_HOC]
                raise ValueError(
                    f"regimes: unknown regime {name!r}; expected some of {', '.join(known)}.{nearest(name, known)}"
                )
        for protocol, said in self.protocols:
            named = () if said is None else getattr(said, "tasks", ())
            if isinstance(said, NegationSpec):
                named = (said.control, *said.targets)
                if said.control in said.targets:
                    raise ValueError(f"protocols.negation: {said.control!r} is control and target")
                if not said.targets and not set(self.tasks) - {said.control}:
                    raise ValueError("protocols.negation: there is no task but the control")
            if isinstance(said, AnalogySpec):
                named = tuple(said.cells.values())
            for task in named:
                if task not in self.tasks:
                    raise ValueError(
                        f"protocols.{protocol}: no task {task!r}; there are {', '.join(self.tasks)}.{nearest(task, self.tasks)}"
                    )
        if self.protocols.analogy and self.protocols.analogy.shots:
            if self.heads == "joint":
                raise ValueError("protocols.analogy.shots: a joint head learnt from all labels of D; set other `heads`")
            if not any(r in REGIMES and REGIMES[r].forward.split is None for r in self.regimes):
                raise ValueError("protocols.analogy.shots: needs a regime through the ordinary model, such as standard")
        if not any(said for _, said in self.protocols):
            raise ValueError("protocols: ask at least one question")
        if (changed := self.regimes.get(POST_HOC)) and (changed.steps or changed.lr):
            raise ValueError(f"regimes.{POST_HOC} trains nothing: it has the vectors of standard, whose settings count")
        trained = [n for n, b in self.bases.items() if not b.finetuned]
        if not self.regimes and trained and any(said for p, said in self.protocols if p != "locality"):
            raise ValueError("regimes: name at least one")
        for name, base in self.bases.items():
            for task in base.finetuned:
                if task not in self.tasks:
                    raise ValueError(f"bases.{name}.finetuned: no task {task!r}.{nearest(task, self.tasks)}")
            if base.finetuned and self.heads == "joint":
                raise ValueError(
                    f"bases.{name}.finetuned: such checkpoints come without heads; set heads to probed or zero-shot"
                )
        self._heads_fit()
        if self.protocols.toxicity:
            self._language_fits(self.protocols.toxicity)
        return self

    def _language_fits(self, said: ToxicitySpec) -> None:
        """Refuse what only image encoders can be asked, and what language models cannot."""
        from ..training.regime import REGIMES

        others = [name for name, asked in self.protocols if asked is not None and name != "toxicity"]
        if others:
            raise ValueError(
                f"protocols.{others[0]}: toxicity is asked of language models, this of image encoders; make two studies"
            )
        for role, name in said.texts.items():
            if name not in self.texts:
                raise ValueError(
                    f"protocols.toxicity.{role}: no text {name!r}; there are {', '.join(self.texts)}.{nearest(name, self.texts)}"
                )
        for name, base in self.bases.items():
            if base.read is None or base.finetuned:
                raise ValueError(
                    f"bases.{name}: toxicity needs a language model that is read, and trains its own vectors"
                )
        for name in self.regimes:
            if name == POST_HOC or REGIMES[name].forward.split is not None:
                raise ValueError(
                    f"regimes.{name}: language models write through the ordinary model; take another regime"
                )
        if len(self.fit.lr) > 1 or any(len(r.lr or ()) > 1 for r in self.regimes.values()):
            raise ValueError(
                "fit.lr: toxicity takes one learning rate, there is no accuracy to choose among several by"
            )

    def _overlap(self, a: str, b: str) -> bool:
        """Whether two tasks have samples in common, as far as their classes tell."""
        one, two = self.tasks[a], self.tasks[b]
        kept, also = ({str(k) for k in t.keep} for t in (one, two))
        return (
            (one.data or a) == (two.data or b)
            and one.invert == two.invert
            and (not kept or not also or bool(kept & also))
        )

    def _heads_fit(self) -> None:
        """Refuse questions whose answers would be those of heads that know too much or nothing."""
        asked = self.protocols
        if self.heads == "joint":
            if asked.negation or asked.analogy:
                which = "negation" if asked.negation else "analogy"
                raise ValueError(
                    f"protocols.{which}: with `heads: joint` a head belongs to the model it was trained with, and the control of a "
                    "negation or the fourth cell of an analogy needs one of its own; set heads to probed or zero-shot"
                )
            if asked.addition and "joint" in asked.addition.baselines:
                raise ValueError(
                    "protocols.addition.baselines: with `heads: joint` the jointly trained model would be scored under the heads of "
                    "the single-task models; leave joint out, or set heads to probed or zero-shot"
                )
        if self.heads == "zero-shot" and (made := [n for n, b in self.bases.items() if b.read is None]):
            raise ValueError(
                f"bases.{made[0]}: a base made here has no text encoder for zero-shot heads; set heads to probed"
            )
        if asked.analogy:
            self._fourth_is_unseen(asked.analogy.cells)

    def _fourth_is_unseen(self, cells: Mapping[Any, str]) -> None:
        """Refuse analogies whose head, or the vectors it is built from, know samples of the fourth cell."""
        fourth = cells["D"]
        group = self.tasks[fourth].head
        sharing = {n for n, t in self.tasks.items() if group is not None and t.head == group} - {fourth}
        if self.heads == "probed" and not sharing:
            raise ValueError(
                f"protocols.analogy: the head of {fourth!r} would be probed on its own labels, which an analogy is not to know; "
                "let it share a `head` with A, B or C"
            )
        teaching = {*(cells[x] for x in "ABC"), *(sharing if self.heads == "probed" else ())}
        for name in sorted(n for n in teaching if self._overlap(n, fourth)):
            raise ValueError(
                f"protocols.analogy: {name!r} has samples of {fourth!r}, of which neither the head nor the other three vectors "
                "are to know any; `keep` other classes in each"
            )


GIVEN = "given"  # in place of a regime: vectors of checkpoints that others fine-tuned
POST_HOC = "post-hoc"  # standard vectors, evaluated through the linearised model


def load(path: str | Path) -> Study:
    """Read a study file.

    Raises:
        InputError: it cannot be read.
        UsageError: it is no study; says every field that is wrong.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the study {path}: {getattr(error, 'strerror', None) or error}.") from error
    try:
        if twice := _twice(yaml.compose(text, yaml.SafeLoader)):
            raise UsageError(
                f"{path}: {twice} stands there twice in one table; YAML would take the last without a word."
            )
        table = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UsageError(f"{path} is not YAML: {str(error).replace(chr(10), ' ')}") from error
    if not isinstance(table, dict):
        raise UsageError(
            f"{path} is no study: expected a table that begins with `study: 1`, got {type(table).__name__}."
        )
    try:
        return Study.model_validate(table)
    except ValidationError as error:
        raise UsageError(f"{path} is no study that can be run: {_told(error)}") from error


def _twice(node: Any) -> str:
    """The first name that a table of the file has two of, with its line; empty if there is none."""
    todo = [] if node is None else [node]
    for node in todo:  # grows as it is read; aliases lead to nodes that were read, so it ends
        found = node.value if isinstance(node, yaml.MappingNode) else []
        seen: set[str] = set()
        for key, _ in found:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                return f"{key.value!r} (line {key.start_mark.line + 1})"
            seen.add(str(key.value))
        inner = [v for _, v in found] if found else node.value if isinstance(node, yaml.SequenceNode) else []
        todo += [n for n in inner if not any(n is t for t in todo)]
    return ""


def tried(study: Study, *, steps: int | None = None, limit: int | None = None) -> Study:
    """The same study made small, to see whether all of it runs: results are marked as a try-out and measure nothing.

    Args:
        steps: updates of every vector and every pre-training, at most.
        limit: samples of every part, of a batch and of a pre-training's batch, at most; grids then have three points, and
            subsets of tasks are pairs at most.
    """
    table: dict[str, Any] = study.model_dump()
    table["tryout"] = True
    table["protocols"] = {name: said for name, said in table["protocols"].items() if said is not None}
    changed = [table["fit"], *table["bases"].values(), *table["regimes"].values()]
    if steps is not None:
        for said in changed:
            if said is table["fit"] or said["steps"] or said.get("pretrain"):
                said["steps"] = min(steps, said["steps"] or steps)
    if limit is not None:
        for said in changed:
            if said is table["fit"] or said.get("batch") or said.get("pretrain"):
                said["batch"] = min(limit, said["batch"] or limit)
        for said in table["tasks"].values():
            for part in ("limit", "validation_limit", "test_limit"):
                said[part] = min(limit, said[part] or limit)
        for said in table["protocols"].values():
            if "coefficients" in said:
                said["coefficients"]["points"] = min(3, said["coefficients"]["points"])
            if said.get("subsets") == "all":
                said["subsets"] = "pairs"
            if "samples" in said:
                said["samples"] = max(1, min(said["samples"], limit // 2))
            if "perplexity_ratio" in said:
                said |= {"tokens": min(8, said["tokens"]), "window": min(8, said["window"])}
                said["unprompted"] = said["unprompted"] and tuple(min(limit, n) for n in said["unprompted"])
        for name, said in table["texts"].items():
            asked = study.protocols.toxicity
            # Enough for a window of each part in training, for telling words apart, and for both kinds of labels.
            few = 300 if asked and name in (asked.toxic, asked.clean, asked.labelled) else limit
            said["limit"] = min(max(few, limit), said["limit"] or few)
    return Study.model_validate(table)


def _told(error: ValidationError) -> str:
    """Every mistake with its place; the nearest known field for an unknown one."""
    said = []
    for e in error.errors():
        place = ".".join(str(p) for p in e["loc"])
        if e["type"] == "extra_forbidden":
            known = _fields(e["loc"][:-1])
            said.append(f"unknown field {place}.{nearest(str(e['loc'][-1]), known)}")
        else:
            text = e["msg"].removeprefix("Value error, ")
            got = (
                f", got {e['input']!r}"
                if e["type"] not in ("value_error", "missing") and len(repr(e["input"])) < 60
                else ""
            )
            said.append(f"{place}: {text}{got}" if place else text)
    return "; ".join(said) + ("" if said[-1].endswith((".", "?")) else ".")


def _fields(place: tuple[int | str, ...]) -> list[str]:
    """The fields that exist at a place of the file."""
    model: Any = Study
    tables: dict[Any, Any] = {"tasks": TaskSpec, "texts": TextSpec, "bases": BaseSpec, "regimes": RegimeSpec}
    for i, part in enumerate(place):
        if model is Study and part in tables:
            if len(place) > i + 2 and place[i + 2] == "finetuned":
                return list(GivenSpec.model_fields) if len(place) > i + 3 else []
            return list(tables[part].model_fields) if len(place) > i + 1 else []
        inner = model.model_fields.get(str(part))
        kinds = [inner.annotation, *getattr(inner.annotation, "__args__", ())] if inner else []
        model = next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)
        if model is None:
            return []
    return list(model.model_fields)
