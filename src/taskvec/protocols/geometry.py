"""Geometry: how long task vectors are, how they lie to each other, and how far from linear their steps are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UsageError
from ..models.forward import plain, value_and_tangent
from ..models.functional import bind, device_of, tensors
from ..models.parts import kinds
from ..results import GeometryResult, Provenance, Score, Step
from ..tasks.task import Head, Task
from ..weights import Checkpoint, TaskVector, compare

if TYPE_CHECKING:
    import torch


def geometry(
    vectors: Mapping[str, TaskVector],
    *,
    base: Checkpoint | None = None,
    model: torch.nn.Module | None = None,
    tasks: Sequence[Task] = (),
    on_the_way: Mapping[str, Mapping[int, TaskVector]] | None = None,
    subspace: int = 0,
    title: str = "Geometry",
) -> GeometryResult:
    r"""Norms :math:`\lVert\tau_i\rVert` and cosines :math:`\langle\tau_i,\tau_j\rangle/(\lVert\tau_i\rVert\lVert\tau_j\rVert)`.

    Args:
        vectors: name -> task vector.
        base: if given, its norm over the vectors' parameters is shown for scale.
        model: if given, norms are told by part (attention, MLP, ...) as well as by layer.
        tasks: if given (with `model` and `base`), also how far from linear the step of each vector is, on the validation split
            of the task of its name. `nonlinearity`: :math:`\lVert f(\theta_0+\tau) - f_{lin}(\theta_0+\tau)\rVert /
            \lVert f(\theta_0+\tau) - f(\theta_0)\rVert` over all features, 0 if the step is linear, about 1 if the first order
            explains nothing. And, for tasks with a head, the accuracies of both and the non-linear advantage
            :math:`(a - a_{lin}) / (1 - 1/C)` with C classes: what is lost by linearising after the fact.
        on_the_way: name -> updates -> vector (`Fitted.kept`): their cosines with the vector of that name.
        subspace: k, to compare the leading k singular directions of every matrix: for each pair, the mean over matrices of
            :math:`(\lVert U_i^\top U_j\rVert_F^2 + \lVert V_i^\top V_j\rVert_F^2) / 2k`, 1 for equal spaces. For chance see
            `subspace_chance`. 0 leaves it out: it takes a singular value decomposition of every matrix.
        title: heading in reports.
    Raises:
        UsageError: no vectors, tasks without model and base or not one for each vector, or vectors on the way to none of them.
    Reference: Ilharco et al. 2022, arXiv:2212.04089 (cosines between task vectors, vectors on the way); Ortiz-Jimenez et al.
        2023, arXiv:2305.12827 (is fine-tuning linear?).
    """
    if not vectors:
        raise UsageError("geometry needs at least one task vector.")
    names, way = tuple(vectors), on_the_way or {}
    if not set(way) <= set(names):
        raise UsageError(f"on_the_way is for {list(way)}, but the vectors are {list(names)}. Use the same names.")
    if subspace < 0:
        raise UsageError(f"subspace is {subspace}; it is a number of singular directions, or 0 for none.")
    steps: tuple[Step, ...] = ()
    if tasks:
        found = {t.name: t for t in tasks}
        if model is None or base is None or not set(names) <= set(found):
            raise UsageError(
                f"to say how linear the vectors are, geometry needs the model, the base and a task for each of {list(names)}; "
                f"got tasks {list(found)}."
            )
        steps = tuple(_step(model, base, vectors[n], found[n]) for n in names)
    groups = compare(list(vectors.values()), base=base, by="layer").groups
    overlap, chance = _subspaces(list(vectors.values()), subspace) if subspace else ((), 0.0)
    return GeometryResult(
        title=title,
        names=names,
        norms=groups[0].norms,
        cosine=groups[0].cosine,
        base_norm=groups[0].base_norm,
        layers={g.name: g.norms for g in groups[1:]},
        parts={} if model is None else _parts(model, vectors),
        steps=steps,
        on_the_way={n: {s: v.cosine(vectors[n]) for s, v in kept.items()} for n, kept in way.items()},
        subspace=subspace,
        overlap=overlap,
        subspace_chance=chance,
        provenance=Provenance.now(inputs={} if base is None else {"base": base.fingerprint()}),
    )


def _step(model: torch.nn.Module, base: Checkpoint, vector: TaskVector, task: Task) -> Step:
    """What one whole step does to the features of validation inputs, exactly and to first order."""
    import torch

    f, device = bind(model), device_of(model)
    start, delta = tensors(base, like=model, device=device), tensors(vector, device=device)
    head = None if task.head is None else task.head.to(device)
    split, rest, change, hits = task.validation, 0.0, 0.0, [0, 0]
    with torch.no_grad():
        for i in range(0, len(split), 256):
            x, labels = split.inputs[i : i + 256].to(device), split.labels[i : i + 256].to(device)
            value, along = value_and_tangent(f, start, delta, x)
            moved = plain(f, start, delta, x)
            rest += float(((moved - value - along) ** 2).sum())
            change += float(((moved - value) ** 2).sum())
            if head is not None:
                hits = [h + _hits(head, z, labels) for h, z in zip(hits, (moved, value + along), strict=True)]
    bent = math.sqrt(rest / change) if change else 0.0
    if head is None:
        return Step(nonlinearity=bent)
    exact, linear = (Score.share(h, len(split)) for h in hits)
    return Step(nonlinearity=bent, accuracy=exact, linearised=linear, classes=len(task.classes))


def _hits(head: Head, features: torch.Tensor, labels: torch.Tensor) -> int:
    return int((head(features).argmax(dim=1) == labels).sum())


def _parts(model: torch.nn.Module, vectors: Mapping[str, TaskVector]) -> dict[str, tuple[float, ...]]:
    """Norms by kind of parameter."""
    what = kinds(model)
    squares: dict[str, list[float]] = {}
    for i, v in enumerate(vectors.values()):
        for name in v.names:
            line = squares.setdefault(what.get(name, "other"), [0.0] * len(vectors))
            line[i] += float(np.square(v.array(name), dtype=np.float64).sum())
    return {kind: tuple(math.sqrt(s) for s in line) for kind, line in sorted(squares.items())}


def _subspaces(vectors: Sequence[TaskVector], k: int) -> tuple[tuple[tuple[float, ...], ...], float]:
    """Overlap of leading singular spaces for every pair, and what unrelated spaces would have."""
    n = len(vectors)
    total, chance, matrices = np.zeros((n, n)), 0.0, 0
    shared = [m for m, s in vectors[0].spec.items() if len(s.shape) == 2 and all(m in v.spec for v in vectors)]
    for name in shared:
        shape = vectors[0].spec[name].shape
        if min(shape) < 2 * k:  # k directions would be most of the space, and equal whatever the vectors
            continue
        spaces = [np.linalg.svd(v.array(name), full_matrices=False) for v in vectors]
        if any(values[k - 1] <= 1e-6 * values[0] or not values[0] for _, values, _ in spaces):
            continue  # of lower rank (a LoRA, or not trained): the other directions would be anybody's
        for i in range(n):
            for j in range(i, n):
                left = np.square(spaces[i][0][:, :k].T @ spaces[j][0][:, :k]).sum()
                right = np.square(spaces[i][2][:k] @ spaces[j][2][:k].T).sum()
                total[i, j] += (left + right) / (2 * k)
        chance += (k / shape[0] + k / shape[1]) / 2
        matrices += 1
    if not matrices:
        raise UsageError(
            f"subspace={k} needs matrices of rank {k} or more, with at least {2 * k} rows and columns, in all vectors; there are none. Take "
            "a smaller number of directions."
        )
    total = np.triu(total) + np.triu(total, 1).T
    return tuple(tuple(float(x / matrices) for x in line) for line in total), chance / matrices
