"""Cells of a study of fairness: a base with one head for all groups, a vector for each group and for everybody, the answer."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import protocols
from ..errors import InputError, UnknownName, nearest
from ..models.encoders import encoder
from ..models.functional import device_of
from ..models.hub import fetched
from ..search import grid
from ..tasks import Head
from ..tasks.groups import Grouped, balanced, chosen_groups, members
from ..tasks.people import at_most_each, read_people
from ..training import TrainSpec, fit
from ..training.people import (
    FIRST,
    Setting,
    confined,
    image_setting,
    low_rank_rival,
    prepared,
    row_setting,
    text_setting,
)
from ..training.regime import REGIMES
from ..training.subgroups import in_epochs
from ..weights import Checkpoint, TaskVector
from .cells import STATE, Cell
from .data import fingerprint
from .people import FairnessSpec, base_of, known_and_kind

if TYPE_CHECKING:
    from .spec import Study
    from .work import Bench

Facts = dict[str, Any]
HEAD, BASE, VECTOR = "head.safetensors", "base.safetensors", "vector.safetensors"
EVERYBODY = ("all groups", "balanced")  # vectors beside those of groups
TRAINING = {"epochs", "steps", "lr", "batch", "only", "lora", "base", "ridge", "positive"}  # what decides no sample


# ---- which cells ------------------------------------------------------------------------------------------------------


def people_facts(study: Study, name: str) -> Facts:
    """What decides the samples."""
    people = study.people[name]
    known, kind = known_and_kind(name, people, bool(study.bases[base_of(study, name)].perceptron))
    return people.model_dump(exclude=TRAINING) | {"data": people.data or name, "known": known, "kind": kind}


def groups_of(study: Study, name: str, root: Path | None) -> tuple[str, ...]:
    """The groups that have a vector: those that the study names, else those of the people, who are read."""
    found = study.people[name].groups or tuple(_read(people_facts(study, name), root).groups)
    if not found:
        raise InputError(f"people.{name}: nobody is in any group. Name columns that say who is in which.")
    if taken := set(found) & {"start", "LoRA", *EVERYBODY}:
        raise InputError(
            f"people.{name}: a group is called {min(taken)!r}, as something else in the study is. Rename it in the data."
        )
    return found


def fairness_label(where: Facts) -> str:
    """What people call a result."""
    tryout = ", try-out" if "tryout" in where else ""
    return f"fairness of {where['target']} on {where['base']}, {where['regime']}, seed {where['seed']}{tryout}"


def fairness_cell(study: Study, groups: Sequence[str], *, where: Facts, model: Facts) -> Cell:
    """The result for some people, in one regime, with all that it needs: a start, a vector for each group and of everybody."""
    name, regime, seed = where["target"], where["regime"], where["seed"]
    said: FairnessSpec | None = study.protocols.fairness
    people, base = study.people[name], study.bases[base_of(study, name)]
    assert said is not None
    facts = people_facts(study, name)
    if base.perceptron:
        own = {n: getattr(base, n) or getattr(FIRST, n) for n in ("steps", "lr", "batch")}
        model = {"perceptron": list(base.perceptron), "share": study.pretraining_share, **own}
    start = Cell(
        "start", f"base and head for {name}, seed {seed}", {"people": facts, "model": model, "ridge": people.ridge, "seed": seed}
    )  # fmt: skip
    changed = study.regimes[regime]
    lr = people.lr or (changed.lr or study.fit.lr)[0]
    how = {
        "regime": regime, "only": list(people.only), "epochs": people.epochs, "most": people.steps or changed.steps or study.fit.steps,
        "lr": lr, "batch": people.batch or study.fit.batch, "seed": seed,
        **{n: getattr(study.fit, n) for n in ("accumulate", "weight_decay", "warmup")}, **study.precision(regime),
    }  # fmt: skip

    def vector(who: str, more: Facts) -> Cell:
        return Cell(
            "subgroup", f"fit {who} of {name}, {regime}, seed {seed}", how | {"who": who} | more, {"start": start}
        )

    needs = {"start": start} | {who: vector(who, {"group": who not in EVERYBODY}) for who in (*groups, *EVERYBODY)}
    if people.lora:
        lora = people.lora.model_dump() | {"lr": people.lora.lr or 10 * lr}
        needs["LoRA"] = vector(
            "LoRA", {"group": False, "lr": lora.pop("lr"), "lora": lora, "regime": "lora", "only": []}
        )
    options = said.model_dump(exclude={"people"}) | {"positive": people.positive}
    return Cell("fairness", fairness_label(where), {"options": options, "where": where, "groups": list(groups)}, needs)


# ---- what they compute ------------------------------------------------------------------------------------------------


def start(bench: Bench, cell: Cell, place: Path) -> Mapping[str, Any]:
    """Probe a head on a base that is read; pre-train a perceptron with its head."""
    facts = cell.facts
    setting = _setting(bench, cell)
    model = facts["model"]
    spec = TrainSpec(**{n: model[n] for n in ("steps", "lr", "batch")}, seed=facts["seed"]) if setting.early else FIRST
    made = prepared(setting, ridge=facts["ridge"], spec=spec)
    made.task.needs_head().save(place / HEAD, overwrite=True)
    if setting.early:
        made.base.save(place / BASE, overwrite=True)
    return {
        "fingerprint": made.base.fingerprint(), "data": _fingerprint(made), "samples": len(made.task.train),
        "groups": {n: int(m.sum()) for n, m in made.task.train.groups.items()},
    }  # fmt: skip


def subgroup(bench: Bench, cell: Cell, place: Path, steps: Callable[[int], Any]) -> Mapping[str, Any]:
    """Train one vector: of a group, of everybody, of everybody balanced, or LoRA."""
    facts, who = cell.facts, cell.facts["who"]
    made = _ready(bench, cell.needs["start"])
    task = members(made.task, who) if facts["group"] else made.task
    task = balanced(task, seed=facts["seed"]) if who == "balanced" else task
    own = ("lr", "batch", "accumulate", "weight_decay", "warmup", "seed", "autocast")
    spec = TrainSpec(**{n: facts[n] for n in own if n in facts})
    spec = in_epochs(spec, len(task.train), facts["epochs"], most=facts["most"])
    regime = low_rank_rival(made, **facts["lora"]) if "lora" in facts else regime_of(facts, made)
    tuned = fit(
        made.model, made.base, task, regime=regime, spec=spec, label=who, state=place / STATE, every=200, progress=steps(spec.steps)
    )  # fmt: skip
    tuned.vector.save(place / VECTOR, overwrite=True)
    (place / STATE).unlink(missing_ok=True)
    return {"loss": [tuned.losses[0], tuned.losses[-1]], "samples": len(task.train), "steps": spec.steps}


def regime_of(facts: Mapping[str, Any], made: Setting) -> Any:
    """The regime, confined to what the study lets learn; its head frozen, as that of all that it names."""
    from ..select import matching

    select = made.select & matching(*facts["only"]) if facts["only"] else made.select
    return confined(REGIMES[facts["regime"]], select)


def fairness(bench: Bench, cell: Cell) -> tuple[Any, Facts]:
    """The answer of `protocols.steering`, and how its vectors were trained."""
    facts, needs = cell.facts, cell.needs
    options = dict(facts["options"])
    made = _ready(bench, needs["start"])
    vectors = {
        who: TaskVector.read(bench.store.place(c) / VECTOR, label=who) for who, c in needs.items() if who != "start"
    }
    full = vectors.pop("all groups")
    rivals = {n: vectors.pop(n) for n in ("balanced", "LoRA") if n in vectors}
    own = {g: vectors[g] for g in facts["groups"]}
    positive, classes = options.pop("positive"), made.task.classes
    if positive is not None and positive not in classes:
        raise UnknownName(f"no class {positive!r}; there are {', '.join(classes)}.{nearest(positive, classes)}")
    inject = options.pop("inject")
    said = needs["all groups"].facts
    found = protocols.steering(
        made.model, made.base, own, made.task, full=full, rivals=rivals, coefficients=_points(options.pop("coefficients")),
        injections=_points(options.pop("injections")), each=_points(e) if (e := options.pop("each")) else None,
        frozen_features=options.pop("fairlearn"), inject=list(own) if inject == "all" else inject,
        positive=1 if positive is None else classes.index(positive), seed=facts["where"]["seed"],
        notes=[f"{regime_of(said, made).said(made.model)}; {said['epochs']:g} epochs at rate {said['lr']:g}", *made.task.notes], **options,
    )  # fmt: skip
    trained = {n: said[n] for n in ("epochs", "most", "lr", "batch", "autocast") if n in said}
    return found, trained


def _points(said: Mapping[str, Any]) -> tuple[float, ...]:
    return grid(said["low"], said["high"], said["points"])


# ---- what they read ---------------------------------------------------------------------------------------------------


def _read(facts: Mapping[str, Any], root: Path | None) -> Grouped:
    """The people that `facts` describe, with the groups that are asked for."""
    place, known = root or Path(), facts["known"]
    names = (
        "kind",
        "text",
        "file",
        "label",
        "group",
        "members",
        "key",
        "threshold",
        "drop",
        "group_as_input",
        "grouping",
    )
    data, images = place if known else place / facts["data"], facts["images"]
    found = read_people(
        data, known=known, images=None if images is None else place / images, terms=facts["terms"] or None,
        **{n: facts[n] for n in names},
    )  # fmt: skip
    return chosen_groups(found, facts["groups"]) if facts["groups"] else found


def _setting(bench: Bench, cell: Cell) -> Setting:
    """The model and the task of a start cell, before a head is there. One is held at a time: inputs may be large."""
    if cell.key not in bench.settings:
        facts, model = cell.facts["people"], cell.facts["model"]
        people, seed = _read(facts, bench.root), cell.facts["seed"]
        if facts["most"]:
            people = at_most_each(people, facts["most"], seed=seed)
        how: dict[str, Any] = {"parts": tuple(facts["parts"]), "seed": seed}
        if facts["kind"] == "rows":
            found = row_setting(people, share=model["share"], hidden=model["perceptron"], **how)
        elif facts["kind"] == "text":
            found = text_setting(
                people, _folder(model), max_tokens=facts["max_tokens"], frozen_layers=facts["frozen_layers"], device=bench.device, **how
            )  # fmt: skip
        else:
            seen = encoder(_folder(model))
            found = image_setting(people, seen.module, seen.base, seen.prepare, memory=bench.memory, **how)
        if bench.device:
            found = replace(found, model=found.model.to(bench.device))
        bench.settings.clear()
        bench.settings[cell.key] = found
    return bench.settings[cell.key]


def _ready(bench: Bench, cell: Cell) -> Setting:
    """The setting of a finished start cell, with its base and head; its data must be what they were made from."""
    setting, place = _setting(bench, cell), bench.store.place(cell)
    if _fingerprint(setting) != bench.store.outcome(cell)["data"]:
        raise InputError(
            f"the people are not those that the {cell.label} was made from: the files have changed. Put them back, or keep the "
            "results of the new ones in another folder."
        )
    base = Checkpoint.read(place / BASE, label="base") if setting.early else setting.base
    return replace(setting, base=base, task=setting.task.with_head(Head.read(place / HEAD)), early=None)


def _folder(model: Mapping[str, Any]) -> Path:
    revision = model["revision"] if model["download"] and model["revision"] else None
    return fetched(Path(model["read"]), download=model["download"], revision=revision)


def _fingerprint(setting: Setting) -> str:
    """Hash of labels, groups and some inputs."""
    found = hashlib.sha256(fingerprint(setting.task).encode())
    for split in (setting.task.train, setting.task.validation, setting.task.test):
        for name, inside in split.groups.items():
            found.update(name.encode() + inside.numpy().tobytes())
    return found.hexdigest()[:16]


# ---- how long they take -----------------------------------------------------------------------------------------------


def expected(bench: Bench, cell: Cell) -> float:
    """Seconds of a cell; opens its people, so that missing ones are found now."""
    made = cell if cell.kind == "start" else cell.needs["start"]
    if made.facts["model"].get("download"):
        return 60.0  # it may not be here yet
    setting = _setting(bench, made)
    ahead, step = bench.timed.get(made.key) or bench.timed.setdefault(made.key, _timed(setting))
    train, validation, test = (len(s) for s in (setting.task.train, setting.task.validation, setting.task.test))
    if cell.kind == "start":
        model = made.facts["model"]
        return 1 + (model["steps"] * model["batch"] * step if setting.early else train * ahead)
    if cell.kind == "subgroup":
        n = int(setting.task.train.groups[cell.facts["who"]].sum()) if cell.facts["group"] else train
        spec = in_epochs(TrainSpec(batch=cell.facts["batch"], accumulate=cell.facts["accumulate"]), n, cell.facts["epochs"], most=cell.facts["most"])  # fmt: skip
        return spec.steps * spec.batch * spec.accumulate * step + spec.steps * 1e-3
    options, groups = cell.facts["options"], len(cell.facts["groups"])
    rivals = len(cell.needs) - groups - 1
    points = options["coefficients"]["points"] * (rivals + 1)
    points += options["injections"]["points"] * {"none": 0, "worst": 1, "all": groups}[options["inject"]]
    points += 2 * groups * options["each"]["points"] if options["each"] else 0
    return points * (validation * ahead + 0.03) + (2 * rivals + 4) * (test * ahead + 0.1)


def _timed(setting: Setting) -> tuple[float, float]:
    """Seconds for one sample: forward, and a training step."""
    import torch

    x = setting.task.train.inputs[:32].to(device_of(setting.model))
    trained = [p.requires_grad_() for p in setting.model.parameters() if p.is_floating_point()]

    def once(grad: bool) -> float:
        began, count = time.perf_counter(), 0
        while count < 3 or time.perf_counter() - began < 0.2:
            with torch.set_grad_enabled(grad):
                out = setting.model(x)
                if grad:
                    torch.autograd.grad(out.square().sum(), trained, allow_unused=True)
            count += 1
        return (time.perf_counter() - began) / count / len(x)

    return once(False), once(True)
