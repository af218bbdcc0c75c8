"""Does adding modules help a property with few labels? Task addition and its rivals on the same labels and splits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from ..errors import UnknownName, UsageError, nearest, some
from ..results import GateResult, GateRun, GateTarget, Provenance
from ..results.gate import GATE, SINGLE
from .baselines import BASELINES
from .chemprop import CHEMPROP, find
from .inputs import Embedding, inputs_for
from .losses import Losses
from .model import Shape, predict
from .molecules import Molecules, labelled
from .molecules import split as split_molecules
from .rounds import Ground, Methods, add_without_losses, begin, with_labels
from .scores import error, over_runs
from .train import GateSpec

CURVE = (GATE, SINGLE, "multi-task", "fine-tuned", "random forest", CHEMPROP)  # what a learning curve is drawn of


def evaluate(
    molecules: Molecules,
    *,
    sources: Sequence[str],
    targets: Sequence[str],
    by: Literal["random", "scaffold"] = "random",
    labels: int = 200,
    sizes: Sequence[int | None] = (),
    ablate: bool = False,
    folds: int = 5,
    fold: int = 0,
    shape: Shape | None = None,
    losses: Losses | None = None,
    spec: GateSpec | None = None,
    pretraining: GateSpec | None = None,
    methods: Sequence[str] = BASELINES,
    chemprop: str | Path | None = None,
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
        sizes: further numbers of labels, for a learning curve of `CURVE`; None is all labels.
        ablate: add every target again without each of the losses, and with the supervised one alone. The sources stay as they were
            pre-trained, with all of them.
        shape, losses, spec: sizes, factors, and how to learn; ``spec.seed`` is also that of the split.
        pretraining: how to learn where all sources' labels are used (stage 1, the shared trunk, the multi-task network), else as `spec`;
            its seed does not count.
        methods: rivals, of `BASELINES`; the single-task network is always among them.
        chemprop: the command of an installed chemprop 2, which then is one more rival, with its default network for each target; it
            may be that of another environment.
        pool: let unlabelled training molecules align the frames too; see `taskvec.gate.add`.
        progress: called with what begins.
    Raises:
        UnknownName: no such property or method.
        UsageError: a property is both source and target, or there are none; chemprop is not there.
        InputError, UsageError: too few labels; chemprop failed.
    """
    for name in methods:
        if name not in BASELINES:
            raise UnknownName(f"no method {name!r}; there are {', '.join(BASELINES)}.{nearest(name, BASELINES)}")
    if not sources or not targets or set(sources) & set(targets):
        both = sorted(set(sources) & set(targets))
        raise UsageError(f"name at least one source and one target, none of them twice; both: {some(both) or 'none'}.")
    if any(s is not None and s < 4 for s in sizes):
        raise UsageError(f"a learning curve begins at 4 labels, to train and validate; got sizes {tuple(sizes)}.")
    shape, spec = shape or Shape(), spec or GateSpec()
    program = None if chemprop is None else find(chemprop)
    embedding: Embedding = shape.embedding
    known, wanted = ({n: molecules.target(n) for n in names} for names in (sources, targets))
    ground = Ground(
        molecules, inputs_for(embedding, molecules.smiles),
        split_molecules(molecules.smiles, by=by, folds=folds, fold=fold, seed=spec.seed), known, wanted, shape, losses or Losses(), spec,
        replace(pretraining or spec, seed=spec.seed), pool, progress or (lambda _: None), program,
    )  # fmt: skip
    began = begin(ground, methods)
    main = with_labels(ground, began, wanted, labels, methods)
    curve: list[GateTarget] = []
    for size, names in _sizes(ground, labels, sizes):
        some_targets = {n: wanted[n] for n in names}
        curve += _told(with_labels(ground, began, some_targets, size, [m for m in methods if m in CURVE]), ground, size)
    if ablate:
        add_without_losses(ground, began, main)

    order = [m for m in (GATE, *BASELINES, CHEMPROP) if m in main.said[targets[0]]]
    test = ground.split.test
    rows = {n: labelled(v, test) for n, v in known.items()}
    before, after = (predict(m, ground.inputs.take(test), list(sources)) for m in (began.model, main.model))
    run = GateRun(
        seed=spec.seed, fold=fold, seconds=began.seconds | main.seconds, chosen=main.chosen, notes=(*began.notes, *main.notes),
        unchanged=all(before[n].tobytes() == after[n].tobytes() for n in sources),
        sources={n: error(before[n][np.isin(test, at)] - known[n][at], seed=spec.seed) for n, at in rows.items() if len(at)},
        targets=tuple(_told(main, ground, labels)), curve=tuple(curve),
    )  # fmt: skip
    settings = {
        "folds": folds, "labels": labels, "pool": pool, "shape": vars(shape), "losses": vars(ground.losses),
        "spec": {k: v for k, v in vars(spec).items() if k != "seed"},
        "pretraining": {k: v for k, v in vars(ground.long).items() if k != "seed"},
        **({} if program is None else {CHEMPROP: program.version}),
    }  # fmt: skip
    return GateResult(
        title=title, provenance=Provenance.now(seed=spec.seed, settings=settings), split=by, embedding=embedding, methods=tuple(order),
        runs=(run,), notes=tuple(molecules.counts.said()), **over_runs([run], order),
    )  # fmt: skip


def _sizes(g: Ground, labels: int, sizes: Sequence[int | None]) -> list[tuple[int, list[str]]]:
    """Each further size and the targets that it says something new of: beyond all their labels one size is like another."""
    every = len(g.molecules)
    known = np.concatenate([g.split.train, g.split.validation])
    there = {n: len(labelled(v, known)) for n, v in g.targets.items()}
    out, taken = [], {n: {min(labels, k)} for n, k in there.items()}
    for size in sorted({every if s is None else s for s in sizes} - {labels}):
        new = [n for n, k in there.items() if min(size, k) not in taken[n]]
        for n in new:
            taken[n].add(min(size, there[n]))
        if new:
            out.append((size, new))
    return out


def _told(done: Methods, g: Ground, most: int) -> list[GateTarget]:
    out = []
    for n, said in done.said.items():
        part, truth = done.parts[n], g.targets[n][done.parts[n].test]
        out.append(
            GateTarget(
                name=n, train=len(part.train), validation=len(part.validation), most=most, truth=tuple(truth.tolist()),
                routes=done.routes[n], molecules=tuple(g.molecules.smiles[i] for i in part.test),
                predictions={m: tuple(float(f"{x:.8g}") for x in v) for m, v in said.items()},
                errors={m: error(v - truth, seed=g.spec.seed) for m, v in said.items()},
            )
        )  # fmt: skip
    return out
