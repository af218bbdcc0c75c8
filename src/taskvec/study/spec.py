"""A study, whole: a small strict YAML file, whose parts fit together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ..errors import nearest
from .fields import Seed, Strict
from .people import PeopleSpec, refuse
from .questions import AnalogySpec, NegationSpec, ProtocolSpecs, ToxicitySpec
from .subjects import BaseSpec, FitSpec, ImageSpec, LanguageSpec, RegimeSpec, TaskSpec, TextSpec


class Study(Strict):
    """A study: what is asked (protocols), of which tasks, from which bases, in which regimes, how often (seeds)."""

    study: Literal[1]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]
    about: str = ""
    root: str | None = None
    seeds: tuple[Seed, ...] = (0,)
    image: ImageSpec = ImageSpec()
    tasks: Mapping[str, TaskSpec] = {}
    texts: Mapping[str, TextSpec] = {}
    people: Mapping[str, PeopleSpec] = {}
    bases: Mapping[str, BaseSpec]
    heads: Literal["probed", "zero-shot", "joint"] = "probed"
    ridge: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0  # of probed heads
    pretraining_share: Annotated[float, Field(ge=0, lt=1)] = 0.5
    regimes: Mapping[str, RegimeSpec] = {}
    fit: FitSpec = FitSpec()
    language: LanguageSpec = LanguageSpec()
    protocols: ProtocolSpecs
    tryout: bool = False  # set by `tried`: results say that they are no measurement

    @field_validator("tasks", "texts", "people", "bases", "regimes", mode="before")
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
        if not (self.tasks or self.protocols.toxicity or self.protocols.fairness) or not self.bases:
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
                named = said.named("CD" if self.domains else "ABCD")
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
        self._texts_fit()
        if self.protocols.toxicity:
            self._language_fits(self.protocols.toxicity)
        if self.protocols.fairness:
            refuse(self)
        elif mine := [n for n, b in self.bases.items() if b.perceptron]:
            raise ValueError(f"bases.{mine[0]}: a perceptron decides about people in a table; ask protocols.fairness")
        return self

    def precision(self, regime: str) -> dict[str, str]:
        """What a cell is told of `fit.autocast`: nothing where it is not asked for, or where a regime is linearised and stays in float32."""
        from ..training.regime import REGIMES

        wanted = self.fit.autocast is not None and REGIMES[regime].forward.split is None
        return {"autocast": str(self.fit.autocast)} if wanted else {}

    def of_text(self, task: str) -> str | None:
        """The text that a task is made of, by its name; None for images."""
        data = self.tasks[task].data or task
        return data if data in self.texts else None

    @property
    def reads(self) -> bool:
        """Whether its tasks are of texts."""
        return any(self.of_text(t) for t in self.tasks)

    @property
    def domains(self) -> bool:
        """Whether the analogy is one between domains: A and B are texts, of which no label is used."""
        asked = self.protocols.analogy
        if asked is None:
            return False
        return all(name in self.texts and name not in self.tasks for name in (asked.cells["A"], asked.cells["B"]))

    @property
    def modelled(self) -> tuple[str, ...]:
        """Texts on which language modelling makes vectors: those that an analogy or skills name."""
        analogy, skills = self.protocols.analogy, self.protocols.skills
        names = analogy.named("AB") if analogy and self.domains else ()
        return tuple(dict.fromkeys([*names, *(skills.texts if skills else ())]))

    def _texts_fit(self) -> None:
        """Refuse tasks of texts and of images in one study, and what only one of both has."""
        read = {t: name for t in self.tasks if (name := self.of_text(t))}
        if not read:
            for name, base in self.bases.items():
                if (base.tokens or base.frozen) and not self.protocols.toxicity:
                    raise ValueError(
                        f"bases.{name}: tokens and frozen are for tasks of texts, whose data are names of the study's `texts`"
                    )
            if self.protocols.skills and self.protocols.skills.texts:
                raise ValueError("protocols.skills.texts: its tasks are images, whose models read no texts")
            if self.domains:
                raise ValueError(
                    "protocols.analogy: A and B are texts, and its tasks are images, whose models read no texts"
                )
            return
        for name in (t for t in self.tasks if t not in read):
            data = self.tasks[name].data or name
            raise ValueError(
                f"tasks.{name}: {data!r} is none of the study's texts, and other tasks are; make two studies.{nearest(data, self.texts)}"
            )
        for name, text in read.items():
            if self.texts[text].mark is None:
                raise ValueError(f"texts.{text}: the task {name!r} needs a mark: the column that holds the classes")
            if self.tasks[name].invert:
                raise ValueError(f"tasks.{name}.invert: turns pixels over, and this task is of texts")
        for name, base in self.bases.items():
            if base.read is None:
                raise ValueError(f"bases.{name}: tasks of texts need a text encoder that is read, or read: minilm")
            if base.finetuned and self.modelled:
                raise ValueError(
                    f"bases.{name}.finetuned: vectors of language modelling are trained here; make two studies"
                )
        if self.heads == "zero-shot":
            raise ValueError("heads: zero-shot heads are for images; tasks of texts have probed or joint ones")
        for name in self.protocols.skills.texts if self.protocols.skills else ():
            if name not in self.texts:
                raise ValueError(f"protocols.skills.texts: no text {name!r}.{nearest(name, self.texts)}")
            if name in self.tasks:
                raise ValueError(f"protocols.skills.texts: {name!r} is also a task's name; call one of them otherwise")
        files = {n: t.data or n for n, t in self.texts.items()}
        for name in self.modelled:
            for task, text in read.items():
                if text != name and files.get(text) == files.get(name):
                    raise ValueError(
                        f"texts.{name} has the files of {text!r}, which task {task!r} is made of, but is divided by itself: language modelling would "
                        f"train on that task's test texts. Name {text!r} instead"
                    )

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
        """Whether two tasks have samples in common, as far as their files and classes tell."""
        one, two = self.tasks[a], self.tasks[b]
        kept, also = self._classes(a), self._classes(b)
        same = self._files(a) == self._files(b) and one.invert == two.invert
        return same and (not kept or not also or bool(kept & also))

    def _files(self, task: str) -> str:
        text = self.of_text(task)
        return self.texts[text].data or text if text else self.tasks[task].data or task

    def _classes(self, task: str) -> set[str]:
        """The classes that a task keeps; empty for all."""
        text, own = self.of_text(task), {str(k) for k in self.tasks[task].keep}
        return own or (set(self.texts[text].keep) if text else own)

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
        teaching = {*(cells[x] for x in "ABC" if cells[x] in self.tasks), *(sharing if self.heads == "probed" else ())}
        for name in sorted(n for n in teaching if self._overlap(n, fourth)):
            raise ValueError(
                f"protocols.analogy: {name!r} has samples of {fourth!r}, of which neither the head nor the other three vectors "
                "are to know any; `keep` other classes in each"
            )


GIVEN = "given"  # in place of a regime: vectors of checkpoints that others fine-tuned
POST_HOC = "post-hoc"  # standard vectors, evaluated through the linearised model
