"""Does adding modules help a property with few labels? Task addition and its rivals on the same labels and splits."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from ..errors import UnknownName, UsageError, nearest, some
from ..results import GateResult, GateRun, GateTarget, Provenance, RegressionError, Relative
from ..results.gate import GATE, SINGLE
from .baselines import BASELINES, fit_trunk, forest, predict_trunk, weight_addition
from .inputs import Embedding, fingerprints, inputs_for
from .losses import Losses
from .model import Shape, predict, routed
from .molecules import Molecules, few, labelled
from .molecules import split as split_molecules
from .train import GateSpec, add, pretrain

DRAWS = 1000  # of the bootstrap


def evaluate(
    molecules: Molecules,
    *,
    sources: Sequence[str],
    targets: Sequence[str],
    by: Literal["random", "scaffold"] = "random",
    labels: int = 200,
    folds: int = 5,
    fold: int = 0,
    shape: Shape | None = None,
    losses: Losses | None = None,
    spec: GateSpec | None = None,
    pretraining: GateSpec | None = None,
    methods: Sequence[str] = BASELINES,
    pool: bool = True,
    title: str = "Task addition by geometric alignment",
    progress: Callable[[str], None] | None = None,
) -> GateResult:
    """One run: pre-train on the sources, add each target with few labels, and train the rivals on the same labels.

    Test molecules of the fold train nothing, no source either. The test labels are read once for each method.

    Args:
        molecules: with all targets.
        sources: properties with all their labels, pre-trained together.
        targets: properties of which at most `labels` labels train and validate, added independently of one another.
        by, folds, fold: the split; see `taskvec.gate.split`.
        shape, losses, spec: sizes, factors, and how to learn; ``spec.seed`` is also that of the split.
        pretraining: how to learn where all sources' labels are used (stage 1, the shared trunk, the multi-task network), else as `spec`;
            its seed does not count.
        methods: rivals, of `BASELINES`; the single-task network is always among them.
        pool: let unlabelled training molecules align the frames too; see `taskvec.gate.add`.
        progress: called with what begins.
    Raises:
        UnknownName: no such property or method.
        UsageError: a property is both source and target, or there are none.
        InputError, UsageError: too few labels.
    """
    shape, losses, spec = shape or Shape(), losses or Losses(), spec or GateSpec()
    long = replace(pretraining or spec, seed=spec.seed)
    tell = progress or (lambda _: None)
    for name in methods:
        if name not in BASELINES:
            raise UnknownName(f"no method {name!r}; there are {', '.join(BASELINES)}.{nearest(name, BASELINES)}")
    if not sources or not targets or set(sources) & set(targets):
        both = sorted(set(sources) & set(targets))
        raise UsageError(f"name at least one source and one target, none of them twice; both: {some(both) or 'none'}.")
    wanted: dict[str, np.ndarray] = {n: molecules.target(n) for n in (*sources, *targets)}
    embedding: Embedding = shape.embedding
    inputs = inputs_for(embedding, molecules.smiles)
    split = split_molecules(molecules.smiles, by=by, folds=folds, fold=fold, seed=spec.seed)
    seconds: dict[str, float] = {}
    chosen: dict[str, float] = {}

    tell("pre-training on the sources")
    known = {n: wanted[n] for n in sources}
    stage1 = pretrain(inputs, known, split.train, split.validation, shape=shape, losses=losses, spec=long)
    seconds["pre-training"] = stage1.seconds
    notes = list(stage1.notes)
    source_rows = {n: labelled(wanted[n], split.test) for n in sources}
    before = predict(stage1.model, inputs.take(split.test), list(sources))

    parts = {n: few(wanted[n], split, labels, seed=spec.seed) for n in targets}
    model, said = stage1.model, {n: {} for n in targets}
    for n in targets:
        tell(f"adding {n}")
        part = parts[n]
        added = add(
            model, n, inputs, wanted[n], part.train, part.validation, pool=split.train if pool else None, losses=losses, spec=spec
        )  # fmt: skip
        model = added.model
        notes += added.notes
        seconds[f"adding {n}"] = added.seconds
    after = predict(model, inputs.take(split.test), list(sources))
    unchanged = all(before[n].tobytes() == after[n].tobytes() for n in sources)
    routes: dict[str, dict[str, float]] = {}
    for n in targets:
        held = inputs.take(parts[n].test)
        said[n][GATE] = predict(model, held, [n])[n]
        truth = wanted[n][parts[n].test]
        routes[n] = {s: _rmse(routed(model, held, n, s) - truth) for s in sources}

    for n in targets:
        tell(f"rivals for {n}")
        part = parts[n]
        held, one = inputs.take(part.test), {n: wanted[n]}
        trunk, ran = fit_trunk(inputs, one, part.train, part.validation, shape=shape, spec=spec)
        said[n][SINGLE] = predict_trunk(trunk, held, n)
        seconds[f"{SINGLE} {n}"] = ran.seconds
        if "random forest" in methods:
            began = time.process_time()
            prints = fingerprints([molecules.smiles[i] for i in (*part.train, *part.validation, *part.test)])
            m = len(part.train) + len(part.validation)
            y = wanted[n][np.concatenate([part.train, part.validation, part.test])]
            # It stops by no validation labels, so it may learn from them: as many labels as all others have.
            said[n]["random forest"] = forest(prints, y, np.arange(m), np.arange(m, len(y)), seed=spec.seed)
            seconds[f"random forest {n}"] = time.process_time() - began
    if "multi-task" in methods:
        tell("the multi-task network")
        every = dict(known)
        for n, part in parts.items():
            every[n] = np.full(len(molecules), np.nan)
            shown = np.concatenate([part.train, part.validation])
            every[n][shown] = wanted[n][shown]
        trunk, ran = fit_trunk(inputs, every, split.train, split.validation, shape=shape, spec=long, few=targets)
        seconds["multi-task"] = ran.seconds
        for n in targets:
            said[n]["multi-task"] = predict_trunk(trunk, inputs.take(parts[n].test), n)
    if {"fine-tuned", "weight addition"} & set(methods):
        tell("pre-training a shared trunk")
        base, ran = fit_trunk(inputs, known, split.train, split.validation, shape=shape, spec=long)
        seconds["pre-training the trunk"] = ran.seconds
        tuned = {}
        for n in targets:
            part = parts[n]
            tuned[n], ran = fit_trunk(
                inputs, {n: wanted[n]}, part.train, part.validation, shape=shape, spec=spec, start=base
            )
            seconds[f"fine-tuned {n}"] = ran.seconds
            if "fine-tuned" in methods:
                said[n]["fine-tuned"] = predict_trunk(tuned[n], inputs.take(part.test), n)
        if "weight addition" in methods:
            few_rows = {n: p.validation for n, p in parts.items()}
            summed = weight_addition(base, tuned, inputs, {n: wanted[n] for n in targets}, few_rows)
            chosen["weight addition: coefficient"] = summed.coefficient
            for n in targets:
                said[n]["weight addition"] = predict_trunk(summed.trunk, inputs.take(parts[n].test), n)

    order = [m for m in (GATE, *BASELINES) if m in said[targets[0]]]
    run = GateRun(
        seed=spec.seed, fold=fold, seconds=seconds, chosen=chosen, unchanged=unchanged, notes=tuple(notes),
        sources={
            n: error(before[n][np.isin(split.test, rows)] - wanted[n][rows], seed=spec.seed) for n, rows in source_rows.items() if len(rows)
        },
        targets=tuple(
            _target(n, molecules, wanted[n], parts[n], {m: said[n][m] for m in order}, routes[n], spec.seed) for n in targets
        ),
    )  # fmt: skip
    settings = {
        "folds": folds, "labels": labels, "pool": pool, "shape": vars(shape), "losses": vars(losses),
        "spec": {k: v for k, v in vars(spec).items() if k != "seed"},
        "pretraining": {k: v for k, v in vars(long).items() if k != "seed"},
    }  # fmt: skip
    return GateResult(
        title=title, provenance=Provenance.now(seed=spec.seed, settings=settings), split=by, embedding=embedding, methods=tuple(order),
        relative=_relative([run], order), runs=(run,), notes=tuple(molecules.counts.said()),
    )  # fmt: skip


def pooled(results: Sequence[GateResult]) -> GateResult:
    """Several runs (seeds, folds) of one experiment as one result: intervals are over molecules, each drawn with all its runs.

    Raises:
        UsageError: none, or results that differ in split, embedding, methods, properties or settings.
    """
    if not results:
        raise UsageError("no results to pool.")
    first = results[0]
    for other in results[1:]:
        for what in ("split", "embedding", "methods", "targets", "sources"):
            if getattr(other, what) != getattr(first, what):
                raise UsageError(
                    f"results of different experiments: {what} is {getattr(first, what)!r} and {getattr(other, what)!r}."
                )
        if other.provenance.settings != first.provenance.settings:
            raise UsageError("results of different experiments: their settings differ.")
    runs = tuple(r for found in results for r in found.runs)
    made = first.provenance.model_copy(update={"seed": None})
    return first.model_copy(update={"runs": runs, "relative": _relative(runs, first.methods), "provenance": made})


def error(residuals: np.ndarray, *, seed: int = 0) -> RegressionError:
    """RMSE with a bootstrap interval over molecules.

    Example:
        >>> error(np.array([3.0, -3.0])).rmse
        3.0
    """
    squares = np.square(residuals)
    means = _drawn(len(squares), seed) @ squares / len(squares)
    low, high = np.sqrt(np.quantile(means, [0.025, 0.975]))
    return RegressionError(rmse=_rmse(residuals), low=float(low), high=float(high), n=len(squares))


def _target(
    name: str, molecules: Molecules, values: np.ndarray, part: Any, said: Mapping[str, np.ndarray], routes: Mapping[str, float], seed: int
) -> GateTarget:  # fmt: skip
    truth = values[part.test]
    return GateTarget(
        name=name, train=len(part.train), validation=len(part.validation), truth=tuple(truth.tolist()), routes=routes,
        molecules=tuple(molecules.smiles[i] for i in part.test),
        predictions={m: tuple(float(f"{x:.8g}") for x in v) for m, v in said.items()},
        errors={m: error(v - truth, seed=seed) for m, v in said.items()},
    )  # fmt: skip


def _relative(runs: Sequence[GateRun], methods: Sequence[str]) -> dict[str, dict[str, Relative]]:
    r"""RMSE over all runs against that of the single task, with the interval of the pairs.

    Residuals of a run and target are divided by the RMSE of that run's single-task network first, so that every run counts alike.
    """
    out: dict[str, dict[str, Relative]] = {}
    for name in (t.name for t in runs[0].targets):
        found = [r.target(name) for r in runs]
        place = {s: i for i, s in enumerate(dict.fromkeys(s for t in found for s in t.molecules))}
        sums = {m: np.zeros(len(place)) for m in methods}
        for t in found:
            at = np.array([place[s] for s in t.molecules])
            own = np.mean(np.square(np.subtract(t.predictions[SINGLE], t.truth))) or 1.0
            for m in methods:
                sums[m][at] += np.square(np.subtract(t.predictions[m], t.truth)) / own / len(t.truth)
        drawn = _drawn(len(place), 0)
        below = drawn @ sums[SINGLE]
        out[name] = {}
        for m in methods:
            ratios = np.sqrt((drawn @ sums[m]) / np.where(below > 0, below, 1.0))
            low, high = np.quantile(ratios, [0.025, 0.975])
            ratio = float(np.sqrt(sums[m].sum() / (sums[SINGLE].sum() or 1.0)))
            out[name][m] = Relative(ratio=ratio, low=float(low), high=float(high), n=len(place), runs=len(runs))
    return out


def _drawn(n: int, seed: int) -> np.ndarray:
    """How often each of n is drawn, in each of the bootstrap's draws: ``[DRAWS, n]``."""
    return np.random.default_rng([seed, n]).multinomial(n, np.full(n, 1 / n), size=DRAWS).astype(np.float32)


def _rmse(residuals: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(residuals))))
