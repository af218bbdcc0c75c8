"""What is trained and asked in one run of a comparison, on ground that all methods share."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..results.gate import GATE, SINGLE
from .baselines import Trunk, fit_trunk, forest, predict_trunk, weight_addition
from .chemprop import CHEMPROP, Chemprop, predictions
from .inputs import Inputs, fingerprints
from .losses import TERMS, Losses
from .model import Gate, Shape, predict, routed
from .molecules import Molecules, Split, few
from .scores import ALONE, rmse
from .train import GateSpec, Learned, add, pretrain


@dataclass(frozen=True, eq=False)
class Ground:
    """What all methods of one run share; `long` is how to learn where all labels of the sources are used."""

    molecules: Molecules
    inputs: Inputs
    split: Split
    sources: Mapping[str, np.ndarray]
    targets: Mapping[str, np.ndarray]
    shape: Shape
    losses: Losses
    spec: GateSpec
    long: GateSpec
    pool: bool
    tell: Callable[[str], None]
    chemprop: Chemprop | None = None


@dataclass(frozen=True, eq=False)
class Began:
    """What is learnt from the sources alone: the network of stage 1, and a shared trunk for the rivals that need one."""

    model: Gate
    trunk: Trunk | None
    notes: tuple[str, ...]
    seconds: dict[str, float]


@dataclass(frozen=True, eq=False)
class Methods:
    """What every method predicts (by target, by method) for the test molecules, from so many labels."""

    parts: Mapping[str, Split]
    model: Gate
    said: dict[str, dict[str, np.ndarray]]
    routes: dict[str, dict[str, float]] = field(default_factory=dict)
    chosen: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


def begin(g: Ground, methods: Sequence[str]) -> Began:
    g.tell("pre-training on the sources")
    rows = g.split.train, g.split.validation
    made = pretrain(g.inputs, g.sources, *rows, shape=g.shape, losses=g.losses, spec=g.long)
    seconds = {"pre-training": made.seconds}
    trunk = None
    if {"fine-tuned", "weight addition"} & set(methods):
        g.tell("pre-training a shared trunk")
        trunk, ran = fit_trunk(g.inputs, g.sources, *rows, shape=g.shape, spec=g.long)
        seconds["pre-training the trunk"] = ran.seconds
    return Began(made.model, trunk, made.notes, seconds)


def with_labels(
    g: Ground, began: Began, targets: Mapping[str, np.ndarray], most: int, methods: Sequence[str]
) -> Methods:
    """Task addition and rivals, all from the same labels of these targets."""
    parts = {n: few(v, g.split, most, seed=g.spec.seed) for n, v in targets.items()}
    said = f"{most} labels" if most < len(g.molecules) else "all labels"
    model, done = began.model, Methods(parts, began.model, {n: {} for n in targets})
    for n, values in targets.items():
        g.tell(f"{said}: adding {n}")
        made = _added(g, model, n, values, parts[n], g.losses)
        model = made.model
        done.notes.extend(made.notes)
        done.seconds[f"adding {n}"] = made.seconds
        held = g.inputs.take(parts[n].test)
        done.said[n][GATE] = predict(model, held, [n])[n]
        done.routes[n] = {s: rmse(routed(model, held, n, s) - values[parts[n].test]) for s in g.sources}
    for n, values in targets.items():
        g.tell(f"{said}: rivals for {n}")
        part = parts[n]
        trunk, ran = fit_trunk(g.inputs, {n: values}, part.train, part.validation, shape=g.shape, spec=g.spec)
        done.said[n][SINGLE] = predict_trunk(trunk, g.inputs.take(part.test), n)
        done.seconds[f"{SINGLE} {n}"] = ran.seconds
        if "random forest" in methods:
            done.said[n]["random forest"], done.seconds[f"random forest {n}"] = _forest(g, values, part)
        if g.chemprop is not None:
            done.said[n][CHEMPROP], done.seconds[f"{CHEMPROP} {n}"] = predictions(
                g.chemprop, g.molecules.smiles, values, part, updates=g.spec.steps, seed=g.spec.seed
            )
    if "multi-task" in methods:
        g.tell(f"{said}: the multi-task network")
        _multi_task(g, targets, done)
    if began.trunk is not None and {"fine-tuned", "weight addition"} & set(methods):
        g.tell(f"{said}: fine-tuning the shared trunk")
        _from_trunk(g, began.trunk, targets, done, methods)
    return replace(done, model=model)


def _added(g: Ground, model: Gate, name: str, values: np.ndarray, part: Split, losses: Losses) -> Learned:
    pool = g.split.train if g.pool else None
    return add(model, name, g.inputs, values, part.train, part.validation, pool=pool, losses=losses, spec=g.spec)


def _forest(g: Ground, values: np.ndarray, part: Split) -> tuple[np.ndarray, float]:
    """It stops by no validation labels, so it learns from them: as many labels as all others have."""
    began = time.process_time()
    rows = np.concatenate([part.train, part.validation, part.test])
    known = np.arange(len(rows) - len(part.test))
    prints = fingerprints([g.molecules.smiles[i] for i in rows])
    found = forest(prints, values[rows], known, np.arange(len(known), len(rows)), seed=g.spec.seed)
    return found, time.process_time() - began


def _multi_task(g: Ground, targets: Mapping[str, np.ndarray], done: Methods) -> None:
    """One network for all sources and all targets."""
    every = dict(g.sources)
    for n, part in done.parts.items():
        shown = np.concatenate([part.train, part.validation])
        every[n] = np.full(len(g.molecules), np.nan)
        every[n][shown] = targets[n][shown]
    trunk, ran = fit_trunk(
        g.inputs, every, g.split.train, g.split.validation, shape=g.shape, spec=g.long, few=list(targets)
    )
    done.seconds["multi-task"] = ran.seconds
    for n in targets:
        done.said[n]["multi-task"] = predict_trunk(trunk, g.inputs.take(done.parts[n].test), n)


def _from_trunk(
    g: Ground, base: Trunk, targets: Mapping[str, np.ndarray], done: Methods, methods: Sequence[str]
) -> None:
    tuned = {}
    for n, values in targets.items():
        part = done.parts[n]
        tuned[n], ran = fit_trunk(
            g.inputs, {n: values}, part.train, part.validation, shape=g.shape, spec=g.spec, start=base
        )
        done.seconds[f"fine-tuned {n}"] = ran.seconds
        if "fine-tuned" in methods:
            done.said[n]["fine-tuned"] = predict_trunk(tuned[n], g.inputs.take(part.test), n)
    if "weight addition" in methods:
        summed = weight_addition(base, tuned, g.inputs, targets, {n: p.validation for n, p in done.parts.items()})
        done.chosen["weight addition: coefficient"] = summed.coefficient
        for n in targets:
            done.said[n]["weight addition"] = predict_trunk(summed.trunk, g.inputs.take(done.parts[n].test), n)


def add_without_losses(g: Ground, began: Began, main: Methods) -> None:
    """Every target once more without each loss that has a factor, and with the supervised one alone."""
    settings = {f"without {term}": replace(g.losses, **{term: 0.0}) for term in TERMS if getattr(g.losses, term)}
    settings[ALONE] = replace(g.losses, **dict.fromkeys(TERMS[1:], 0.0))
    for n, part in main.parts.items():
        for what, losses in settings.items():
            g.tell(f"adding {n}: {what}")
            made = _added(g, began.model, n, g.targets[n], part, losses)
            main.said[n][what] = predict(made.model, g.inputs.take(part.test), [n])[n]
