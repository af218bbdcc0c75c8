"""From a study to its cells: what has to be computed, described so that equal work is shared between studies."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError, UsageError, plain
from ..models.hub import packaged
from ..training.pretraining import RECIPES
from ..training.regime import REGIMES
from .cells import Cell
from .fairness import fairness_cell, fairness_label, groups_of
from .people import FairnessSpec, base_of
from .questions import AdditionSpec, AnalogySpec, LocalitySpec, NegationSpec, SkillsSpec, ToxicitySpec
from .spec import GIVEN, POST_HOC, Study
from .subjects import BaseSpec, GivenSpec, RegimeSpec

Facts = dict[str, Any]
TOKENS = 64  # of a text, unless a base says otherwise
LATER = {"columns": [], "separator": "\t", "encoding": "utf-8"}


def plan(study: Study, root: Path | None = None, only: Sequence[str] = ()) -> list[Cell]:
    """The result cells, in the order of the study: base by base, protocol by protocol, regime by regime, seed by seed.

    Args:
        study: what is asked.
        root: folder of the data, in which a study of fairness looks who the groups are.
        only: parts of labels; people that none of them speaks of may then be missing.
    """
    if study.protocols.fairness:
        return _fairness(study, study.protocols.fairness, root, only)
    out = []
    for base, told in study.bases.items():
        regimes = tuple(study.regimes)
        if told.finetuned:
            regimes = (GIVEN, *(r for r in regimes if r == POST_HOC))
        for protocol, said in study.protocols:
            if said is None:
                continue
            for regime in ("",) if protocol == "locality" else regimes:
                for seed in study.seeds:
                    out += _results(study, base, protocol, said, regime, seed)
    return out


def task_facts(study: Study, name: str) -> Facts:
    """What decides a task's samples."""
    said = study.tasks[name].model_dump(exclude={"head"})
    said["data"] = said["data"] or name
    text = study.of_text(name)
    return said | {"name": name, "share": _share(study)} | ({"text": text_facts(study, text)} if text else {})


def _share(study: Study) -> float:
    """Part of the training samples that is kept for pre-training: the same for all bases, so that they learn from the same."""
    return study.pretraining_share if any(b.pretrain for b in study.bases.values()) else 0.0


def used(study: Study) -> list[str]:
    """Tasks that need vectors. The control of a negation needs none, unless another protocol adds it."""
    names: dict[str, None] = {}
    for _, said in study.protocols:
        if isinstance(said, NegationSpec):
            names |= dict.fromkeys(said.targets or [t for t in study.tasks if t != said.control])
        elif isinstance(said, AnalogySpec):
            names |= dict.fromkeys(said.named("CD" if study.domains else "ABCD"))
        elif said is not None and not isinstance(said, LocalitySpec):
            names |= dict.fromkeys(said.tasks or study.tasks)
    return [t for t in study.tasks if t in names]


def base_cell(study: Study, name: str, seed: int) -> Cell:
    said = study.bases[name]
    facts: Facts
    if said.read is not None:
        facts = _where(said)
        if study.reads:
            facts |= {"tokens": said.tokens or TOKENS, "frozen": said.frozen}
        return Cell("base", f"base {name}", facts)
    sizes = {n: getattr(said, n) for n in ("patch", "width", "depth", "attention_heads")}
    facts = {**sizes, "image": study.image.model_dump(), "seed": seed, "pretrain": said.pretrain}
    if said.pretrain:
        recipe = RECIPES[said.pretrain].spec
        own = {n: getattr(said, n) or getattr(recipe, n) for n in ("steps", "lr", "batch")}
        on = set(said.sets) or {spec.data or name for name, spec in study.tasks.items()}
        facts |= {"on": sorted(on), "share": _share(study), "weight_decay": recipe.weight_decay, **own}
    return Cell("base", f"base {name}, seed {seed}", facts)


def _where(said: BaseSpec | GivenSpec) -> Facts:
    """Where a checkpoint is read, and what tells one state of it from another."""
    assert said.read is not None
    facts: Facts = {"read": said.read, "download": said.download}
    if said.download:
        return facts | {"revision": said.revision or ""}  # all that is known before it is fetched
    from ..weights import Checkpoint

    place = packaged(said.read)
    if not place.exists():
        raise UsageError(
            f"there is no checkpoint {plain(said.read)}. Name a folder, or an id of the Hugging Face hub with `download: true`."
        )
    if place.suffix == ".gguf":
        facts["revision"] = hashlib.sha256(place.read_bytes()).hexdigest()
        return facts
    facts["revision"] = Checkpoint.read(place).fingerprint()
    if place.is_dir():  # how the model is built and images or texts become its inputs
        beside = sorted(p for p in place.iterdir() if p.suffix in (".json", ".txt", ".model") and p.is_file())
        facts["beside"] = hashlib.sha256(b"\0".join(p.name.encode() + p.read_bytes() for p in beside)).hexdigest()[:16]
    return facts


def given_cell(study: Study, base: str, task: str, seed: int) -> Cell:
    """The vector of a checkpoint that somebody else fine-tuned."""
    said = study.bases[base].finetuned.get(task)
    if said is None:
        have = ", ".join(study.bases[base].finetuned)
        raise UsageError(
            f"study {study.name!r}: bases.{base}.finetuned has no checkpoint for {task!r}, which a protocol needs; it has {have}. "
            "Add it, or name the tasks in the protocol."
        )
    return Cell("given", f"vector of {task} on {base}, given", _where(said), {"base": base_cell(study, base, seed)})


def head_cell(study: Study, base: str, task: str, seed: int) -> Cell:
    """The head of a task, or of all tasks that share one but for an analogy's fourth cell, of which no label is to be known."""
    group, analogy = study.tasks[task].head, study.protocols.analogy
    members = [task] if group is None else [t for t in study.tasks if study.tasks[t].head == group]
    if analogy is not None:
        members = [t for t in members if t != analogy.cells["D"]] or members
    facts: Facts = {"how": study.heads, "tasks": [task_facts(study, t) for t in members], "seed": seed}
    if study.heads == "probed":
        facts["ridge"] = study.ridge
    return Cell("head", f"head {group or task} of {base}, seed {seed}", facts, {"base": base_cell(study, base, seed)})


def fit_cell(
    study: Study, base: str, tasks: Sequence[str], regime: str, seed: int, *, lr: float | None = None, ascent: bool = False,
    rate: Cell | None = None,
) -> Cell:  # fmt: skip
    """A vector: of one task, or of several trained together. Without `lr` it takes the rate that `rate` chose."""
    changed = study.regimes.get(regime) or RegimeSpec()
    facts = study.fit.model_dump(exclude={"autocast"}) | {
        "steps": (changed.steps or study.fit.updates) * len(tasks), "lr": lr, "tasks": [task_facts(study, t) for t in tasks],
        "regime": regime, "seed": seed, "ascent": ascent, "head": study.heads, **study.precision(regime),
    }  # fmt: skip
    needs = {"base": base_cell(study, base, seed)}
    needs |= {f"head {t}": head_cell(study, base, t, seed) for t in tasks}
    if rate is not None:
        needs["rate"] = rate
    said = " and ".join(tasks) if len(tasks) < 3 else f"{len(tasks)} tasks"
    how = f"{regime}{' ascent' if ascent else ''}, lr {'as chosen' if lr is None else format(lr, 'g')}"
    return Cell("fit", f"fit {said} on {base}, {how}, seed {seed}", facts, needs)


def rate_cell(study: Study, base: str, regime: str, seed: int) -> Cell:
    """Which learning rate: the best mean validation accuracy of the single-task models, without that of an analogy's fourth cell,
    which is not to be known."""
    rates = (study.regimes.get(regime) or RegimeSpec()).lr or study.fit.lr
    needs = {f"{t} {lr:g}": fit_cell(study, base, [t], regime, seed, lr=lr) for t in used(study) for lr in rates}
    analogy = study.protocols.analogy
    unknown = analogy.cells["D"] if analogy is not None else None
    facts = {"rates": list(rates), "tasks": [t for t in used(study) if t != unknown]}
    return Cell("rate", f"learning rate on {base}, {regime}, seed {seed}", facts, needs)


def words_cell(study: Study, base: str) -> Cell:
    """The head over the vocabulary, through which a base's encoder fills in masked tokens of the study's texts: one for all seeds."""
    said = study.language
    facts = {
        "texts": [text_facts(study, t) for t in study.modelled], "masked": said.masked, "copies": said.copies,
        "steps": said.head_steps, "lr": said.head_lr,
    }  # fmt: skip
    return Cell("words", f"head over the vocabulary of {base}", facts, {"base": base_cell(study, base, 0)})


def modelled_cell(study: Study, base: str, text: str, regime: str, seed: int) -> Cell:
    """The vector of language modelling on a text, whose labels are not used."""
    facts = study.language.model_dump(exclude={"head_steps", "head_lr"}) | {
        "text": text_facts(study, text), "regime": regime, "seed": seed, "weight_decay": study.fit.weight_decay, "warmup": study.fit.warmup,
        **study.precision(regime),
    }  # fmt: skip
    needs = {"base": base_cell(study, base, seed), "words": words_cell(study, base)}
    return Cell("modelled", f"language modelling of {base} on {text}, {regime}, seed {seed}", facts, needs)


def _results(study: Study, base: str, protocol: str, said: Any, regime: str, seed: int) -> Iterable[Cell]:
    """The result cells of one question about one base in one regime."""
    trained = "standard" if regime == POST_HOC else regime
    forward = "linearised" if regime == POST_HOC else None
    where: Facts = {"base": base, "regime": regime or "base alone", "protocol": protocol, "seed": seed}
    if study.tryout:
        where["tryout"] = True
    if isinstance(said, ToxicitySpec):
        yield _toxicity(study, base, said, where, seed)
        return
    if protocol == "locality":
        names = said.tasks or tuple(study.tasks)
        needs = {"base": base_cell(study, base, seed)}
        yield _result(study, protocol, said, where, names, forward, needs)
        return
    given = bool(study.bases[base].finetuned)
    trains = not given and regime != POST_HOC  # what only training can make: baselines of a negation and an addition
    rate = None if given else rate_cell(study, base, trained, seed)

    def needs_of(names: Iterable[str], heads: Iterable[str] = ()) -> dict[str, Cell]:
        found: dict[str, Cell] = {"base": base_cell(study, base, seed)} | ({} if rate is None else {"rate": rate})
        found |= {f"head {t}": head_cell(study, base, t, seed) for t in (*names, *heads)}
        if rate is None:
            return found | {f"given {t}": given_cell(study, base, t, seed) for t in names}
        return found | {role: cell for role, cell in rate.needs.items() if role.rpartition(" ")[0] in set(names)}

    def texts_of(names: Iterable[str]) -> dict[str, Cell]:
        return {f"text {t}": modelled_cell(study, base, t, trained, seed) for t in names}

    if isinstance(said, NegationSpec):
        for target in said.targets or [t for t in study.tasks if t != said.control]:
            needs = needs_of([target], [said.control])
            if said.ascent and trains:
                needs["ascent"] = fit_cell(study, base, [target], trained, seed, ascent=True, rate=rate)
            yield _result(study, protocol, said, where | {"target": target}, (target, said.control), forward, needs)
        return
    if isinstance(said, AnalogySpec):
        names = said.named("CD" if study.domains else "ABCD")
        needs = needs_of(names) | texts_of(said.named("AB") if study.domains else ())
        yield _result(study, protocol, said, where, names, forward, needs)
        if said.shots and regime != POST_HOC and REGIMES[regime].forward.split is None:
            cell = _result(study, "few-shot", said, where | {"protocol": "few-shot"}, names, forward, needs)
            own = (
                said.few_shot.model_dump()
                | {n: getattr(study.fit, n) for n in ("weight_decay", "warmup")}
                | study.precision(regime)
            )
            options = {**cell.facts["options"], "shots": list(said.shots), "spec": own, "heads": study.heads}
            yield Cell(cell.kind, cell.label, {**cell.facts, "options": options}, cell.needs)
        return
    names = said.tasks or tuple(study.tasks)
    if isinstance(said, SkillsSpec):
        if len(names) + len(said.texts) < 2:
            raise UsageError(f"study {study.name!r}: skills need a vector to borrow beside that of {names[0]!r}.")
        yield _result(study, protocol, said, where, names, forward, needs_of(names) | texts_of(said.texts))
        return
    if len(names) < 2:
        raise UsageError(f"study {study.name!r}: {protocol} needs at least two tasks, got {list(names)}.")
    needs = needs_of(names)
    if isinstance(said, AdditionSpec) and "joint" in said.baselines and trains:
        needs["joint"] = fit_cell(study, base, names, trained, seed, rate=rate)
    for distance in getattr(said, "distances", ("",)):
        yield _result(
            study, protocol, said, where | ({"distance": distance} if distance else {}), names, forward, needs
        )


def _fairness(study: Study, said: FairnessSpec, root: Path | None, only: Sequence[str]) -> list[Cell]:
    """People by people, regime by regime, seed by seed."""
    out = []
    for name in said.people or study.people:
        base = base_of(study, name)
        places: list[Facts] = [
            {"base": base, "regime": regime, "protocol": "fairness", "seed": seed, "target": name}
            for regime in study.regimes
            for seed in study.seeds
        ]
        try:
            groups = groups_of(study, name, root)
        except InputError:
            if not only or any(text in fairness_label(where) for where in places for text in only):
                raise
            groups = ()  # nobody asks for them now
        model = _where(study.bases[base]) if study.bases[base].read is not None and groups else {}
        tryout = {"tryout": True} if study.tryout else {}
        out += [fairness_cell(study, groups, where=where | tryout, model=model) for where in places]
    return out


def text_facts(study: Study, name: str) -> Facts:
    """What decides a text's passages."""
    said = study.texts[name].model_dump(mode="json")
    # Fields that older studies did not have: as they were, their cells are what they were.
    said = {n: v for n, v in said.items() if n not in ("columns", "separator", "encoding") or v != LATER[n]}
    return said | {"data": said["data"] or name, "name": name}


def language_cell(study: Study, name: str) -> Cell:
    """A language model that is read: the same for all seeds."""
    return Cell("language", f"base {name}", _where(study.bases[name]))


def tune_cell(study: Study, base: str, text: str, regime: str, seed: int, *, window: int, ascent: bool = False) -> Cell:
    """The vector of a language model trained on a text, or, with `ascent`, away from it."""
    changed = study.regimes.get(regime) or RegimeSpec()
    facts = study.fit.model_dump(exclude={"autocast", "lr"}) | {
        "steps": changed.steps or study.fit.updates, "lr": (changed.lr or study.fit.lr)[0], "text": text_facts(study, text),
        "regime": regime, "seed": seed, "ascent": ascent, "window": window, **study.precision(regime),
    }  # fmt: skip
    how = f"{regime}{' ascent' if ascent else ''}"
    return Cell("tune", f"train {base} on {text}, {how}, seed {seed}", facts, {"base": language_cell(study, base)})


def _toxicity(study: Study, base: str, said: ToxicitySpec, where: Facts, seed: int) -> Cell:
    regime = where["regime"]

    def tuned(text: str, ascent: bool = False) -> Cell:
        return tune_cell(study, base, text, regime, seed, window=said.window, ascent=ascent)

    needs = {"base": language_cell(study, base), "toxic": tuned(said.toxic)}
    needs |= {"ascent": tuned(said.toxic, ascent=True)} if said.ascent else {}
    needs |= {"clean": tuned(said.clean)} if said.clean else {}
    facts = {
        "options": said.model_dump(exclude={"ascent", "window", *said.texts}), "where": where,
        "texts": {role: text_facts(study, name) for role, name in said.texts.items()},
    }  # fmt: skip
    if said.clean:
        facts["rows"] = ["contrast vector"]  # results of earlier versions do not have it
    label = f"toxicity of {base}, {regime}, seed {seed}" + (", try-out" if "tryout" in where else "")
    return Cell("toxicity", label, facts, needs)


def _unsaid(said: Any, protocol: str) -> set[str]:
    """Settings that are kept elsewhere in a cell, or that a cell without them never had."""
    kept = {"subsets"} if protocol == "addition" else set[str]()
    usual = {"ratios"} if getattr(said, "ratios", None) == (1.0,) else set[str]()
    return ({"tasks", "texts", "targets", "distances", "subsets", "shots", "few_shot"} - kept) | usual


def _result(
    study: Study,
    protocol: str,
    said: Any,
    where: Facts,
    names: Sequence[str],
    forward: str | None,
    needs: Mapping[str, Cell],
) -> Cell:
    facts = {
        "options": said.model_dump(exclude=_unsaid(said, protocol)),
        "where": where, "tasks": [task_facts(study, t) for t in names], "forward": forward,
    }  # fmt: skip
    said_where = ", ".join(str(where[k]) for k in ("target", "distance") if k in where)
    label = f"{protocol}{' of ' + said_where if said_where else ''} on {where['base']}, {where['regime']}, seed {where['seed']}"
    if "tryout" in where:  # results of both may lie in one folder
        label += ", try-out"
    return Cell(protocol, label, facts, needs)
