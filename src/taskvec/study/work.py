"""What each kind of cell computes. Each function reads the cells it needs from the store and gives the outcome as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import InputError, NonFinite, UsageError
from ..models.encoders import Encoder, displacement, encoder
from ..models.hub import fetched, packaged
from ..models.language import LanguageModel
from ..models.modelling import causal
from ..models.preprocess import Preprocess
from ..models.small import save_small_vit
from ..models.texts import TextBase, Tokens, text_base
from ..results import Score
from ..search import curves
from ..tasks import Head, Task, joined, side_by_side, zero_shot
from ..tasks.image_sets import SETS
from ..tasks.images import HELD
from ..training import TrainSpec, fit, pretrain, probe
from ..training.people import Setting
from ..training.pretraining import RECIPES, divided, jointly
from ..training.regime import REGIMES, Regime, within
from ..weights import Checkpoint, TaskVector
from . import fairness
from .answers import ANSWERS
from .cells import STATE, Cell, Store
from .data import SEED, fingerprint, part, unmarked, whole, whole_text
from .language import language_base, passages, toxicity, tuned
from .modelling import fitted_head, taught

VECTOR, HEAD, RESULT, BASE = "vector.safetensors", "head.safetensors", "result.json", "base"
WORDS = "words.safetensors"  # a head over a vocabulary
EVERY = 200  # updates between two states of a training run


@dataclass
class Bench:
    """Where cells are computed: the store, the data, and what is open already.

    Args:
        store: finished cells.
        root: folder of the data sets.
        download: whether data sets that are not there may be fetched.
        device: where models run.
        memory: bytes of decoded pixels to hold of each data set.
        progress: called with the number of updates, of how many, and the loss.
    """

    store: Store
    root: Path | None = None
    download: bool = False
    device: str | None = None
    memory: int = HELD
    progress: Callable[[int, int, float], None] | None = None
    settings: dict[str, Setting] = field(default_factory=dict)
    timed: dict[str, tuple[float, float]] = field(default_factory=dict)
    _bases: dict[str, Encoder] = field(default_factory=dict)
    _languages: dict[str, LanguageModel] = field(default_factory=dict)
    _texts: dict[str, TextBase] = field(default_factory=dict)
    _sets: dict[tuple[str, Preprocess | Tokens], Task] = field(default_factory=dict)

    def compute(self, cell: Cell, place: Path) -> Mapping[str, Any]:
        """The outcome of a cell whose needs are done."""
        kinds: dict[str, Callable[[Cell, Path], Mapping[str, Any]]] = {
            "base": self._base, "head": self._head, "fit": self._fit, "rate": self._rate, "given": self._given,
            "language": self._language, "tune": self._tune, "toxicity": self._toxicity, "words": self._words, "modelled": self._modelled,
            "start": lambda c, p: fairness.start(self, c, p),
            "subgroup": lambda c, p: fairness.subgroup(self, c, p, self._steps), "fairness": self._fairness,
        }  # fmt: skip
        return kinds.get(cell.kind, self._protocol)(cell, place)

    # What is read.

    def base(self, cell: Cell) -> Encoder:
        """The base of a finished base cell."""
        if "tokens" in cell.facts:
            found = self.reader(cell)
            return Encoder(found.module, found.base, found.prepare, None)
        if cell.key not in self._bases:
            found = encoder(_folder(cell) if cell.facts.get("read") else self.store.place(cell) / BASE)
            if self.device:
                found = found._replace(module=found.module.to(self.device))
            self._bases.clear()  # one at a time: bases may be large
            self._bases[cell.key] = found
        return self._bases[cell.key]

    def reader(self, cell: Cell) -> TextBase:
        """The text encoder of a finished base cell."""
        if cell.key not in self._texts:
            found = text_base(_folder(cell), tokens=cell.facts["tokens"], frozen=cell.facts["frozen"])
            if self.device:
                found.module.to(self.device)
            self._texts.clear()
            self._texts[cell.key] = found
        return self._texts[cell.key]

    def regime(self, name: str, base: Cell) -> Regime:
        """A regime, above what the base keeps as it is."""
        found = REGIMES[name]
        learns = self.reader(base).learns if "tokens" in base.facts else None
        return found if learns is None else within(found, learns)

    def language(self, cell: Cell) -> LanguageModel:
        """The language model of a finished cell."""
        if cell.key not in self._languages:
            found = language_base(_folder(cell), self.device)
            self._languages.clear()
            self._languages[cell.key] = found
        return self._languages[cell.key]

    def task(self, facts: Mapping[str, Any], prepare: Preprocess | Tokens, *earlier: Cell) -> Task:
        """The task that `facts` describe; its data must be what `earlier` cells were made from, those of them that used it."""
        whole_set = self._whole(facts["data"], prepare, facts.get("text"))
        task = part(whole_set, facts, prepare)
        for cell in earlier:
            pretrained = cell.kind == "base"
            names = cell.facts.get("on", ()) if pretrained else [t["name"] for t in cell.facts["tasks"]]
            seen = dict(zip(names, self.store.outcome(cell).get("data", ()), strict=False))
            name = facts["data"] if pretrained else facts["name"]
            if name in seen and seen[name] != fingerprint(whole_set if pretrained else task):
                raise InputError(
                    f"the data of {name} is not what the {cell.label} was made from: the files have changed. Put them back, or keep "
                    "the results of the new data in another folder."
                )
        return task

    def _whole(self, data: str, prepare: Preprocess | Tokens, text: Mapping[str, Any] | None = None) -> Task:
        if isinstance(prepare, Tokens):
            assert text is not None
            key = json.dumps(text, sort_keys=True)
            if (key, prepare) not in self._sets:
                self._sets[key, prepare] = whole_text(text, self.root, prepare)
            return self._sets[key, prepare]
        if (data, prepare) not in self._sets:
            self._sets[data, prepare] = whole(data, self.root, prepare, download=self.download, memory=self.memory)
        return self._sets[data, prepare]

    def _kept_head(self, cell: Cell) -> Head:
        return Head.read(self.store.place(cell) / HEAD)

    # What is computed.

    def _base(self, cell: Cell, place: Path) -> Mapping[str, Any]:
        facts = cell.facts
        if facts.get("read"):
            return {"fingerprint": self.base(cell).base.fingerprint()}
        import torch

        from ..models.vit import small_vit

        image = facts["image"]
        model = small_vit(
            image=image["size"], channels=image["channels"], patch=facts["patch"], width=facts["width"], depth=facts["depth"],
            heads=facts["attention_heads"], generator=torch.Generator().manual_seed(facts["seed"]),
        )  # fmt: skip
        start = Checkpoint.of(model, label="random")
        told: dict[str, Any] = {"how": facts["pretrain"] or "random"}
        seen: dict[str, Any] = {}
        if facts["pretrain"]:
            prepare = Preprocess(image["size"], image["channels"])
            recipe = RECIPES[facts["pretrain"]]
            sets = [self._whole(d, prepare) for d in facts["on"]]
            inputs, labels, _ = jointly([divided(s, share=facts["share"], seed=SEED)[0] for s in sets])
            seen["data"] = [fingerprint(s) for s in sets]
            own = {n: facts[n] for n in ("steps", "lr", "batch", "weight_decay", "seed")}
            spec = replace(recipe.spec, **own)
            made = pretrain(
                model, inputs, how=facts["pretrain"], labels=labels, spec=spec, augment=recipe.augment,
                progress=self._steps(spec.steps), label=facts["pretrain"],
            )  # fmt: skip
            start = made.checkpoint
            told |= {"samples": len(inputs), "sets": facts["on"], **own, "loss": list(made.losses[-1:])}
        save_small_vit(
            place / BASE, model, start, mean=[0.5] * image["channels"], std=[0.5] * image["channels"], pretraining=told
        )
        return {"fingerprint": start.fingerprint(), **told, **seen}

    def _head(self, cell: Cell, place: Path) -> Mapping[str, Any]:
        import torch

        model, base, prepare, text = self.base(cell.needs["base"])
        tasks = [self.task(f, prepare, cell.needs["base"]) for f in cell.facts["tasks"]]
        classes = tasks[0].classes
        if any(t.classes != classes for t in tasks):
            raise UsageError("tasks that share a head must have the same classes, in one order.")
        task = joined("together", tasks) if len(tasks) > 1 else tasks[0]
        if cell.facts["how"] == "zero-shot":
            if text is None:
                raise UsageError("the base has no text encoder for zero-shot heads. Set `heads: probed`.")
            row = SETS.get(cell.facts["tasks"][0]["data"])
            head = zero_shot(text, classes, templates=row.templates if row else ("a photo of a {}.",))
        elif cell.facts["how"] == "joint":
            with torch.no_grad():
                width = model(task.train.inputs[:1].to(next(model.parameters()).device)).shape[-1]
            head = Head.random(len(classes), width, generator=torch.Generator().manual_seed(cell.facts["seed"]))
        else:
            head = probe(model, base, task, ridge=cell.facts["ridge"])
        head.save(place / HEAD, overwrite=True)
        return {"classes": len(classes), "samples": len(task.train), "data": [fingerprint(t) for t in tasks]}

    def _fit(self, cell: Cell, place: Path) -> Mapping[str, Any]:
        facts = cell.facts
        model, base, prepare, _ = self.base(cell.needs["base"])
        parts = []
        for f in facts["tasks"]:
            head = cell.needs[f"head {f['name']}"]
            parts.append(self.task(f, prepare, cell.needs["base"], head).with_head(self._kept_head(head)))
        task = parts[0] if len(parts) == 1 else side_by_side("joint", parts)
        lr = facts["lr"] or self.store.outcome(cell.needs["rate"])["lr"]
        regime = self.regime(facts["regime"], cell.needs["base"])
        if facts["head"] == "joint":
            regime = replace(regime, head="trained")
        spec = TrainSpec(
            steps=facts["steps"], lr=lr, batch=facts["batch"], accumulate=facts["accumulate"],
            weight_decay=facts["weight_decay"], warmup=facts["warmup"], seed=facts["seed"], autocast=facts.get("autocast"),
        )  # fmt: skip
        try:
            made = fit(
                model, base, task, regime=regime, spec=spec, ascent=facts["ascent"], label=task.name, state=place / STATE,
                every=EVERY, progress=self._steps(spec.steps),
            )  # fmt: skip
        except NonFinite as error:
            if not facts["lr"]:  # the chosen rate
                raise
            (place / STATE).unlink(missing_ok=True)
            return {"lr": lr, "diverged": str(error)}  # a rate among others: it is not chosen
        made.vector.save(place / VECTOR, overwrite=True)
        if facts["head"] == "joint":
            made.head.save(place / HEAD, overwrite=True)
        (place / STATE).unlink(missing_ok=True)
        out: dict[str, Any] = {
            "lr": lr,
            "loss": [made.losses[0], made.losses[-1]],
            "data": [fingerprint(t) for t in parts],
        }
        if len(parts) == 1:
            found = curves(
                model,
                base,
                made.vector,
                {"own": (task.validation, made.head)},
                coefficients=(0.0, 1.0),
                forward=made.forward,
            )["own"]
            out |= {"base": found[0].model_dump(), "validation": found[1].model_dump()}
        return out

    def _given(self, cell: Cell, place: Path) -> Mapping[str, Any]:
        read = cell.facts["read"]
        vector, left = displacement(_folder(cell), self.base(cell.needs["base"]).base, label=read)
        vector.save(place / VECTOR, overwrite=True)
        return {"tensors": len(vector.names) - len(left), "left": list(left)}

    def _rate(self, cell: Cell, place: Path) -> Mapping[str, Any]:
        means, diverged = {}, []
        for lr in cell.facts["rates"]:
            found = [self.store.outcome(cell.needs[f"{t} {lr:g}"]) for t in cell.facts["tasks"]]
            diverged += [f"{o['lr']:g}: {o['diverged']}" for o in found if "diverged" in o]
            if not any("diverged" in o for o in found):
                means[lr] = sum(Score(**o["validation"]).value for o in found) / len(found)
        if not means:
            raise NonFinite(f"{cell.label}: training went wrong at every rate of the study. At {diverged[0]}")
        return {
            "lr": max(means, key=lambda lr: (means[lr], -lr)),
            "validation": {f"{lr:g}": m for lr, m in means.items()},
            **({"diverged": diverged} if diverged else {}),
        }

    def _protocol(self, cell: Cell, place: Path) -> Mapping[str, Any]:
        facts, needs = cell.facts, cell.needs
        encoded = self.base(needs["base"])
        result = ANSWERS[cell.kind](self, cell, encoded)
        where = facts["where"]
        rate = self.store.outcome(needs["rate"]) if "rate" in needs else {}
        settings = {
            **result.provenance.settings,
            "study": where,
            **{k: rate[k] for k in ("lr", "diverged") if k in rate},
        }
        noted = {f["name"]: self.task(f, encoded.prepare, needs["base"]).notes for f in facts["tasks"]}
        settings |= (
            {"data": {name: list(notes) for name, notes in noted.items() if notes}} if any(noted.values()) else {}
        )
        return self._published(cell, place, result, settings)

    def _published(self, cell: Cell, place: Path, result: Any, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """Write the result under a title that says where in the study it stands."""
        where = cell.facts["where"]
        title = f"{cell.kind.capitalize()}{' of ' + where['target'] if 'target' in where else ''}: {where['base']}, {where['regime']}"
        tryout = ", try-out" if where.get("tryout") else ""
        result = result.model_copy(
            update={
                "title": f"{title}, seed {where['seed']}{tryout}",
                "provenance": result.provenance.model_copy(update={"settings": settings, "seed": where["seed"]}),
            }
        )
        result.write(place / RESULT)
        return {"file": RESULT}

    # Language models.

    def _language(self, cell: Cell, place: Path) -> Mapping[str, Any]:
        return {"fingerprint": self.language(cell).base.fingerprint()}

    def _tune(self, cell: Cell, place: Path) -> Mapping[str, Any]:
        model = self.language(cell.needs["base"])
        texts = passages(cell.facts["text"], self.root)
        made = tuned(
            model, texts, cell.facts, state=place / STATE, every=EVERY, progress=self._steps(cell.facts["steps"])
        )
        made.vector.save(place / VECTOR, overwrite=True)
        (place / STATE).unlink(missing_ok=True)
        return {"loss": [made.losses[0], made.losses[-1]], "texts": len(texts), "data": texts.sha256()}

    def _toxicity(self, cell: Cell, place: Path) -> Mapping[str, Any]:
        needs = cell.needs
        for role in ("toxic", "clean"):
            if role in needs:
                self._unchanged(needs[role])
        model = self.language(needs["base"])
        vectors = {role: self.vector(needs[role], role) for role in ("toxic", "ascent", "clean") if role in needs}
        result = toxicity(
            model, vectors, cell.facts, root=self.root, download=self.download, device=self.device, place=place
        )
        trained = {
            n: needs["toxic"].facts[n]
            for n in ("steps", "lr", "batch", "window", "autocast")
            if n in needs["toxic"].facts
        }
        settings = {**result.provenance.settings, "study": cell.facts["where"], "training": trained}
        return self._published(cell, place, result, settings)

    def _fairness(self, cell: Cell, place: Path) -> Mapping[str, Any]:
        result, trained = fairness.fairness(self, cell)
        settings = {**result.provenance.settings, "study": cell.facts["where"], "training": trained}
        return self._published(cell, place, result, settings)

    # Text encoders that model language.

    def _words(self, cell: Cell, place: Path) -> Mapping[str, Any]:
        opened = self.reader(cell.needs["base"])
        if causal(opened):
            return {"how": "the model's own"}
        parts = [unmarked(f, self.root) for f in cell.facts["texts"]]
        head, found = fitted_head(
            opened, [[t for p in parts for t in p[i]] for i in range(3)], cell.facts,
            progress=self._steps(cell.facts["steps"]),
        )  # fmt: skip
        head.save(place / WORDS, overwrite=True)
        return found | {"data": [passages(f, self.root).sha256() for f in cell.facts["texts"]]}

    def _modelled(self, cell: Cell, place: Path) -> Mapping[str, Any]:
        facts, needs = cell.facts, cell.needs
        self._unchanged(needs["words"])
        made, found = taught(
            self.reader(needs["base"]), self.store.place(needs["words"]) / WORDS, unmarked(facts["text"], self.root), facts,
            regime=self.regime(facts["regime"], needs["base"]), state=place / STATE, every=EVERY, progress=self._steps(facts["steps"]),
        )  # fmt: skip
        made.vector.save(place / VECTOR, overwrite=True)
        (place / STATE).unlink(missing_ok=True)
        return found | {"data": passages(facts["text"], self.root).sha256()}

    def modelled(self, cell: Cell) -> dict[str, TaskVector]:
        """The vectors of language modelling that a protocol needs, by text."""
        found = {r.removeprefix("text "): c for r, c in cell.needs.items() if r.startswith("text ")}
        for c in found.values():
            self._unchanged(c)
        return {name: self.vector(c, name) for name, c in found.items()}

    def _unchanged(self, cell: Cell) -> None:
        """Refuse to go on where a vector or a head was trained on texts that are no longer what they were."""
        texts = cell.facts["texts"] if cell.kind == "words" else [cell.facts["text"]]
        seen = self.store.outcome(cell).get("data", ())  # a decoder's own head is of no text
        for text, data in zip(texts, [seen] if isinstance(seen, str) else seen, strict=False):
            if passages(text, self.root).sha256() != data:
                raise InputError(
                    f"the texts {text['name']} are not what the {cell.label} was made from: the files have changed. Put them "
                    "back, or keep the results of the new ones in another folder."
                )

    def _steps(self, total: int) -> Callable[[int, float], None] | None:
        told = self.progress
        return None if told is None else lambda step, loss: told(step, total, loss)

    # What protocols are given.

    def vectors(self, cell: Cell, prepare: Preprocess | Tokens) -> tuple[dict[str, TaskVector], dict[str, Task]]:
        """The vectors at the chosen rate, or those that were given, and their tasks with heads."""
        lr = self.store.outcome(cell.needs["rate"])["lr"] if "rate" in cell.needs else None
        vectors, tasks = {}, {}
        for f in cell.facts["tasks"]:
            name = f["name"]
            role = f"given {name}" if lr is None else f"{name} {lr:g}"
            own, probed = cell.needs.get(role), cell.needs[f"head {name}"]
            also = [cell.needs[r] for r in ("joint", "ascent") if r in cell.needs]
            trained = [] if own is None or lr is None else [own]
            task = self.task(f, prepare, *trained, *also, probed, cell.needs["base"])
            head = self._kept_head(probed)
            if own is not None:
                vectors[name] = TaskVector.read(self.store.place(own) / VECTOR, label=name)
                if own.facts.get("head") == "joint":
                    head = Head.read(self.store.place(own) / HEAD)
            tasks[name] = task.with_head(head)
        return vectors, tasks

    def vector(self, cell: Cell, label: str) -> TaskVector:
        return TaskVector.read(self.store.place(cell) / VECTOR, label=label)


def _folder(cell: Cell) -> Path:
    """Where a base or a fine-tuned checkpoint lies that is read."""
    facts = cell.facts
    path = packaged(facts["read"])
    if path.is_file():
        return path
    return fetched(
        path,
        download=facts["download"],
        revision=facts["revision"] if facts["download"] and facts["revision"] else None,
    )
