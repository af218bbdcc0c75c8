"""Weight disentanglement: does adding one task vector leave alone what the model does on the other task's inputs?"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from ..errors import NonFinite, UsageError
from ..models.forward import Forward
from ..models.functional import bind, device_of, tensors
from ..results import DisentanglementResult, Pair, Provenance
from ..search import affine_features, grid
from ..tasks.lazy import batches, held
from ..tasks.task import Task
from ..weights import Checkpoint, TaskVector
from .rows import checked_grid, checked_tasks, chosen_forward

if TYPE_CHECKING:
    import torch

    # Outputs of every batch of one task's inputs at a pair of coefficients.
    At = Callable[[float, float], torch.Tensor]


def disentanglement(
    model: torch.nn.Module,
    base: Checkpoint,
    vectors: Mapping[str, TaskVector],
    tasks: Sequence[Task],
    *,
    coefficients: Sequence[float] = grid(-1, 2, 13),
    box: tuple[float, float] = (0.0, 1.0),
    forward: Forward | str | None = None,
    distance: Literal["prediction", "representation"] = "prediction",
    title: str = "Weight disentanglement",
) -> DisentanglementResult:
    r"""The disentanglement error of every pair of task vectors, over a grid of both coefficients.

    :math:`\xi(a_1, a_2) = \sum_{t=1}^{2} E_{x\sim\mu_t}\,d\big(f(x;\theta_0 + a_t\tau_t),\ f(x;\theta_0 + a_1\tau_1 +
    a_2\tau_2)\big)`: a **sum** over the two tasks, between 0 (adding the other vector changes nothing) and 2. Each term is
    taken on the validation inputs of its task, with that task's head; labels are not used and the test split is not read.

    Args:
        model: inputs -> features.
        base: :math:`\theta_0`.
        vectors: task name -> :math:`\tau_t`, one for each of `tasks`.
        tasks: at least two, each with its head.
        coefficients: of the first and of the second vector of a pair; 0 is always among them.
        box: the range in which coefficients are searched in practice; the error is averaged over it.
        forward: through which function, else the one the vectors were trained through. With an affine one a grid of any size
            costs one evaluation for each vector.
        distance: d: "prediction", whether the predicted class differs (0 or 1), or "representation", before the head,
            :math:`\lVert z - z'\rVert / (\lVert z\rVert + \lVert z'\rVert)`.
        title: heading in reports.
    Raises:
        UsageError: vectors and tasks do not correspond, fewer than two, or a box without a point of the grid.
        BaseMismatch: a vector was taken from another base.
    Reference: Ortiz-Jimenez et al. 2023, arXiv:2305.12827; on representations
        arXiv:2407.07089.
    """
    tasks, coefficients = checked_tasks(tasks), checked_grid(coefficients)
    forward = chosen_forward(forward, vectors.values())
    if set(vectors) != {t.name for t in tasks} or len(tasks) < 2:
        raise UsageError(
            f"disentanglement needs at least two tasks and one vector for each: vectors {sorted(vectors)}, "
            f"tasks {[t.name for t in tasks]}."
        )
    if distance not in ("prediction", "representation"):
        raise UsageError(f"distance is {distance!r}; choose 'prediction' or 'representation'.")
    inside = [c for c in coefficients if box[0] <= c <= box[1]]
    if not inside:
        raise UsageError(f"no coefficient of the grid lies in the box {box}; widen one of them.")
    measure = _predictions if distance == "prediction" else _representations
    pairs = tuple(
        _pair(model, base, vectors, (a, b), coefficients, forward, measure) for a, b in itertools.combinations(tasks, 2)
    )
    return DisentanglementResult(
        title=title,
        tasks=tuple(t.name for t in tasks),
        coefficients=coefficients,
        box=box,
        forward=forward.name,
        distance=distance,
        pairs=pairs,
        provenance=Provenance.now(
            inputs={"base": base.fingerprint()},
            settings={
                "forward": forward.name,
                "grid": [coefficients[0], coefficients[-1], len(coefficients)],
                "split": "validation",
            },
        ),
    )


def _pair(
    model: torch.nn.Module, base: Checkpoint, vectors: Mapping[str, TaskVector], tasks: tuple[Task, Task],
    coefficients: tuple[float, ...], forward: Forward, measure: Callable[..., tuple[float, float]],
) -> Pair:  # fmt: skip
    n = len(coefficients)
    found = [[[(math.nan, math.nan)] * n for _ in range(n)] for _ in tasks]
    both = [vectors[t.name] for t in tasks]
    for vector in both:
        _ = base + vector  # the algebra's own checks of lineage, names and shapes; computes nothing
    walk = _affine if forward.split is not None else _joint
    alone: list[dict[int, torch.Tensor]] = [{}, {}]
    zero = coefficients.index(0.0)
    for i, j, k, out in walk(model, base, both, tasks, coefficients, forward):
        own, other = (i, j) if k == 0 else (j, i)
        if other == zero:  # comes before all points that need it
            alone[k][own] = out
            found[k][i][j] = (0.0, 0.0)
        else:
            found[k][i][j] = measure(alone[k][own], out, tasks[k])
    return Pair(
        tasks=(tasks[0].name, tasks[1].name),
        n=(len(tasks[0].validation), len(tasks[1].validation)),
        parts=tuple(tuple(tuple(v for v, _ in line) for line in table) for table in found),  # type: ignore[arg-type]
        errors=tuple(tuple(tuple(e for _, e in line) for line in table) for table in found),  # type: ignore[arg-type]
    )


def _order(coefficients: Sequence[float]) -> list[int]:
    """Indices with that of 0 first, so that single-task outputs are there when they are needed."""
    zero = list(coefficients).index(0.0)
    return [zero, *(i for i in range(len(coefficients)) if i != zero)]


def _joint(
    model: torch.nn.Module, base: Checkpoint, vectors: Sequence[TaskVector], tasks: Sequence[Task],
    coefficients: Sequence[float], forward: Forward,
) -> Iterator[tuple[int, int, int, torch.Tensor]]:  # fmt: skip
    """(i, j, task, features) at every point. Weights are written in place, the second vector on top of a row's base."""
    import torch

    f, device = bind(model), device_of(model)
    origin = tensors(base, like=model, device=device)
    first, second = (tensors(v, device=device) for v in vectors)
    inputs = [held(t.validation.inputs) for t in tasks]  # gone through at every point
    row, point = ({n: t.clone() for n, t in origin.items()} for _ in range(2))
    for i in _order(coefficients):
        for name, step in first.items():
            torch.add(origin[name], step, alpha=coefficients[i], out=row[name])
            point[name].copy_(row[name])
        for j in _order(coefficients):
            for name, step in second.items():
                torch.add(row[name], step, alpha=coefficients[j], out=point[name])
            for k, samples in enumerate(inputs):
                with torch.inference_mode():
                    out = torch.cat([f(point, x.to(device)) for x in batches(samples, 256)])
                yield i, j, k, out


def _affine(
    model: torch.nn.Module, base: Checkpoint, vectors: Sequence[TaskVector], tasks: Sequence[Task],
    coefficients: Sequence[float], forward: Forward,
) -> Iterator[tuple[int, int, int, torch.Tensor]]:  # fmt: skip
    """The same for an affine function: one evaluation for each vector, then sums of features."""
    f = bind(model)
    for k, task in enumerate(tasks):
        start, (first, second) = affine_features(f, model, base, vectors, task.validation, forward)
        for i in _order(coefficients):
            for j in _order(coefficients):
                yield i, j, k, start + coefficients[i] * first + coefficients[j] * second


def _predictions(alone: torch.Tensor, joint: torch.Tensor, task: Task) -> tuple[float, float]:
    """Share of inputs whose predicted class differs, and its standard error."""
    head = task.needs_head().to(alone.device)
    logits = head(alone), head(joint)
    _check(*logits)
    p = float((logits[0].argmax(1) != logits[1].argmax(1)).float().mean())
    return p, math.sqrt(p * (1 - p) / len(alone))


def _representations(alone: torch.Tensor, joint: torch.Tensor, task: Task) -> tuple[float, float]:
    _check(alone, joint)
    apart = (alone - joint).norm(dim=1) / (alone.norm(dim=1) + joint.norm(dim=1)).clamp(min=1e-30)
    return float(apart.mean()), float(apart.std(correction=0)) / math.sqrt(len(apart))


def _check(*outputs: torch.Tensor) -> None:
    if not all(x.isfinite().all() for x in outputs):
        raise NonFinite("cannot measure disentanglement: outputs are not finite. Use a smaller grid of coefficients.")
