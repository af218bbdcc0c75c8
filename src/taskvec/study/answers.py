"""What each kind of question is answered with: one function each, which gives a result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .. import protocols
from ..models.encoders import Encoder
from ..models.forward import plain
from ..protocols.analogy import best_source
from ..search import grid
from ..training import TrainSpec
from ..training.regime import REGIMES
from .cells import Cell

if TYPE_CHECKING:
    from .work import Bench


def _points(options: Mapping[str, Any]) -> tuple[float, ...]:
    said = options["coefficients"]
    return grid(said["low"], said["high"], said["points"])


def _addition(bench: Bench, cell: Cell, encoded: Encoder) -> Any:
    options = cell.facts["options"]
    vectors, tasks = bench.vectors(cell, encoded.prepare)
    joint = cell.needs.get("joint")
    return protocols.addition(
        encoded.module, encoded.base, vectors, list(tasks.values()), coefficients=_points(options), forward=cell.facts["forward"],
        joint=None if joint is None else bench.vector(joint, "joint"), ensemble="ensemble" in options["baselines"],
        per_task=options["per_task"], subsets=options["subsets"], seed=cell.facts["where"]["seed"],
    )  # fmt: skip


def _negation(bench: Bench, cell: Cell, encoded: Encoder) -> Any:
    options, ascent = cell.facts["options"], cell.needs.get("ascent")
    target, control = (f["name"] for f in cell.facts["tasks"])
    vectors, tasks = bench.vectors(cell, encoded.prepare)
    return protocols.negation(
        encoded.module, encoded.base, vectors[target], target=tasks[target], control=tasks[control],
        ascent=None if ascent is None else bench.vector(ascent, "gradient ascent"), coefficients=_points(options),
        forward=cell.facts["forward"], control_share=options["control_share"], seed=cell.facts["where"]["seed"],
    )  # fmt: skip


def _analogy(bench: Bench, cell: Cell, encoded: Encoder) -> Any:
    options = cell.facts["options"]
    vectors, tasks = bench.vectors(cell, encoded.prepare)
    vectors |= bench.modelled(cell)
    cells = options["cells"]
    a, b, c, d = (vectors[cells[x]] for x in "ABCD")
    return protocols.analogy(
        encoded.module, encoded.base, a=a, b=b, c=c, task=tasks[cells["D"]], cells=cells, target_tuned=d,
        sources={cells[x]: vectors[cells[x]] for x in "ABC"}, coefficients=_points(options), forward=cell.facts["forward"],
        ratios=options.get("ratios", (1.0,)), seed=cell.facts["where"]["seed"],
    )  # fmt: skip


def _skills(bench: Bench, cell: Cell, encoded: Encoder) -> Any:
    vectors, tasks = bench.vectors(cell, encoded.prepare)
    return protocols.skills(
        encoded.module, encoded.base, vectors | bench.modelled(cell), list(tasks.values()),
        coefficients=_points(cell.facts["options"]), forward=cell.facts["forward"], seed=cell.facts["where"]["seed"],
    )  # fmt: skip


def _disentanglement(bench: Bench, cell: Cell, encoded: Encoder) -> Any:
    vectors, tasks = bench.vectors(cell, encoded.prepare)
    return protocols.disentanglement(
        encoded.module, encoded.base, vectors, list(tasks.values()), coefficients=_points(cell.facts["options"]),
        forward=cell.facts["forward"], distance=cell.facts["where"]["distance"],
    )  # fmt: skip


def _geometry(bench: Bench, cell: Cell, encoded: Encoder) -> Any:
    options = cell.facts["options"]
    vectors, tasks = bench.vectors(cell, encoded.prepare)
    return protocols.geometry(
        vectors, base=encoded.base, model=encoded.module, tasks=list(tasks.values()) if options["steps"] else (),
        subspace=options["subspace"],
    )  # fmt: skip


def _locality(bench: Bench, cell: Cell, encoded: Encoder) -> Any:
    tasks = [bench.task(f, encoded.prepare, cell.needs["base"]) for f in cell.facts["tasks"]]
    samples = cell.facts["options"]["samples"]
    return protocols.locality(
        encoded.module,
        encoded.base,
        tasks,
        samples=samples,
        eigenfunctions=min(8, samples),
        seed=cell.facts["where"]["seed"],
    )


HEADS = {
    "shared": "The frozen head was fitted on the base to labelled training samples of other tasks, which have the same classes. All starts share it.",
    "probed": "The frozen head was fitted on the base to all labelled training samples of its task; those labels are not counted here. All starts share it.",
    "zero-shot": "The frozen head was made from the names of the classes; it needed no labels.",
}


def _few_shot(bench: Bench, cell: Cell, encoded: Encoder) -> Any:
    options, where = cell.facts["options"], cell.facts["where"]
    vectors, tasks = bench.vectors(cell, encoded.prepare)
    vectors |= bench.modelled(cell)
    cells, model, base = options["cells"], encoded.module, encoded.base
    head = cell.needs[f"head {cells['D']}"]
    how = options["heads"]
    if how == "probed" and cells["D"] not in [t["name"] for t in head.facts["tasks"]]:
        how = "shared"
    target, own = tasks[cells["D"]], {cells[x]: vectors[cells[x]] for x in "ABC"}
    a, b, c = (vectors[cells[x]] for x in "ABC")
    source = best_source(model, base, own, target, coefficients=_points(options), forward=plain)
    return protocols.few_shot(
        model, base, {"source": own[source], "analogy": c + (b - a)}, task=target, shots=options["shots"],
        regime=REGIMES[where["regime"]], spec=TrainSpec(**options["spec"], seed=where["seed"]), coefficients=_points(options),
        seed=where["seed"], notes=(f"The source was trained on {source}: the best on validation of {len(own)}.", HEADS[how]),
    )  # fmt: skip


ANSWERS: Mapping[str, Callable[[Bench, Cell, Encoder], Any]] = {
    "addition": _addition, "negation": _negation, "analogy": _analogy, "skills": _skills, "disentanglement": _disentanglement,
    "geometry": _geometry, "locality": _locality, "few-shot": _few_shot,
}  # fmt: skip
