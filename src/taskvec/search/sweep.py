"""Sweeping one coefficient in memory: base and vector become tensors once, the model is written in place."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import NonFinite, UsageError
from ..models.forward import Forward, plain
from ..models.functional import Bound, bind, device_of, tensors
from ..results import Score
from ..tasks.lazy import LazyInputs, batches, held
from ..tasks.metrics import correct, logits_at
from ..tasks.task import Head, Split
from ..weights import Checkpoint, TaskVector

if TYPE_CHECKING:
    import torch

# Bytes of inputs that are made once and kept while a grid is walked; the next ones are made before these go.
HELD = 2**29
BATCH = 512  # lazy inputs are cut at multiples of it, which are multiples of the batches of `correct`

T = TypeVar("T")


def grid(low: float, high: float, points: int) -> tuple[float, ...]:
    """Evenly spaced coefficients, both ends included.

    Raises:
        UsageError: fewer than two points, or an empty or infinite range.
    Example:
        >>> grid(0, 1, 5)
        (0.0, 0.25, 0.5, 0.75, 1.0)
    """
    if points < 2 or not low < high or not math.isfinite(high - low):
        raise UsageError(f"grid({low}, {high}, {points}): needs low < high, both finite, and at least 2 points.")
    # Rounded, so that tables and files say 0.15 and not 0.15000000000000002.
    return tuple(round(low + (high - low) * i / (points - 1), 10) for i in range(points))


def along(
    base: Checkpoint,
    vector: TaskVector,
    coefficients: Sequence[float],
    *,
    like: torch.nn.Module | None = None,
    device: Any = None,
) -> Iterator[dict[str, torch.Tensor]]:
    r"""The weights :math:`\theta_0 + \alpha\tau` for each coefficient :math:`\alpha`, written in place.

    Each point is computed from the base, so nothing drifts. It equals ``base + alpha * vector`` bit for bit where the vector is
    one term; a sum is scaled here after adding and there before, which differs in the last rounding.

    Args:
        base: :math:`\theta_0`.
        vector: :math:`\tau`, taken from `base`; names it lacks stay at the base.
        coefficients: the :math:`\alpha`.
        like: a module that the names must fit.
        device: where to compute.
    Yields:
        one dictionary per coefficient; **valid until the next is drawn** (the tensors are shared).
    Raises:
        BaseMismatch: the vector was taken from another base.
        KeyMismatch: names or shapes differ.
    """
    import torch

    _ = base + vector  # the algebra's own checks of lineage, names and shapes; computes nothing
    origin = tensors(base, like=like, device=device)
    move = tensors(vector, device=device)
    point = {n: t.clone() for n, t in origin.items()}
    for c in coefficients:
        for name, step in move.items():
            if c == 0:
                point[name].copy_(origin[name])
            else:  # two passes in place: a temporary of the size of a large tensor costs more than the sum
                torch.mul(step, c, out=point[name]).add_(origin[name])
        yield point


def curves(
    model: torch.nn.Module,
    base: Checkpoint,
    vector: TaskVector,
    data: Mapping[str, tuple[Split, Head]],
    *,
    coefficients: Sequence[float],
    forward: Forward = plain,
) -> dict[str, tuple[Score, ...]]:
    """Accuracy at ``base + c * vector`` on each of the given splits, for every coefficient.

    Args:
        model: inputs -> features.
        base, vector: as in `along`.
        data: name -> (split, head). Give validation splits: this function cannot know a test split when it sees one.
        coefficients: the grid.
        forward: through which function; an affine one is evaluated once, whatever the grid.
    """
    f: Bound = bind(model)
    if forward.split is not None:
        return {n: _affine_curve(f, model, base, vector, *d, coefficients, forward) for n, d in data.items()}
    hits: dict[str, list[int | None]] = {name: [0] * len(coefficients) for name in data}
    for pieces in _pieces({n: split for n, (split, _) in data.items()}, often=len(coefficients) > 1):
        for i, params in enumerate(along(base, vector, coefficients, like=model, device=device_of(model))):
            for name, piece in pieces:
                so_far = hits[name][i]
                if so_far is not None:
                    here = _hits(f, params, piece, data[name][1])
                    hits[name][i] = None if here is None else so_far + here
    return {n: tuple(Score.share(h or 0, data[n][0].counted) for h in found) for n, found in hits.items()}


def _pieces(splits: Mapping[str, Split], *, often: bool) -> Iterator[list[tuple[str, Split]]]:
    """All samples, in groups that hold at most `HELD` bytes of inputs made from lazy ones. A sweep goes along the whole grid
    with each group, so that images are decoded once and not for every coefficient."""
    group: list[tuple[str, Split]] = []
    room = HELD
    for name, split in splits.items():
        inputs = split.inputs
        if not often or not isinstance(inputs, LazyInputs):
            group.append((name, split))
            continue
        size = 4 * math.prod(inputs.item)
        at = 0
        while at < len(split):
            # Whole batches, so that every sample meets the same ones in its batch however the split is cut.
            n = min(len(split) - at, max(1, room // size // BATCH) * BATCH)
            if group and n * size > room:
                yield group
                group, room = [], HELD
                continue
            group.append((name, Split(inputs[at : at + n], split.labels[at : at + n])))
            room, at = room - n * size, at + n
    if group:
        yield group


def _hits(f: Bound, params: Mapping[str, torch.Tensor], split: Split, head: Head) -> int | None:
    """The number of right answers, None where outputs are not finite."""
    try:
        return correct(f, params, split, head)
    except NonFinite:
        return None


def _score(f: Bound, params: Mapping[str, torch.Tensor], split: Split, head: Head) -> Score:
    """Accuracy; a model whose outputs are not finite names no class and gets nothing right, so it is never chosen."""
    return Score.share(_hits(f, params, split, head) or 0, split.counted)


def _affine_curve(
    f: Bound, model: torch.nn.Module, base: Checkpoint, vector: TaskVector, split: Split, head: Head,
    coefficients: Sequence[float], forward: Forward,
) -> tuple[Score, ...]:  # fmt: skip
    origin, (step,) = affine_features(f, model, base, [vector], split, forward)
    head = head.to(origin.device)
    labels = split.labels.to(origin.device)
    hits = [int((head.within(head(origin + c * step), labels).argmax(dim=1) == labels).sum()) for c in coefficients]
    return tuple(Score.share(h, split.counted) for h in hits)


def affine_features(
    f: Bound, model: torch.nn.Module, base: Checkpoint, vectors: Sequence[TaskVector], split: Split, forward: Forward,
    *, batch: int = 256,
) -> tuple[torch.Tensor, list[torch.Tensor]]:  # fmt: skip
    r"""Features at the base and what each vector adds: those at any :math:`\theta_0 + \sum_t a_t\tau_t` are
    ``origin + sum(a * s for a, s in zip(coefficients, steps))``.

    Raises:
        NonFinite: a feature is NaN or infinite.
    """
    import torch

    assert forward.split is not None
    for vector in vectors:
        _ = base + vector  # the algebra's own checks of lineage, names and shapes; computes nothing
    device = device_of(model)
    start = tensors(base, like=model, device=device)
    batch = batch if split.labels.dim() == 1 else 16  # of sequences the features are logits of every position
    origin, steps = torch.empty(0), []
    for vector in vectors:
        delta = tensors(vector, device=device)
        parts = [forward.split(f, start, delta, x.to(device)) for x in batches(split.inputs, batch)]
        origin = torch.cat([value for value, _ in parts])
        steps.append(torch.cat([along for _, along in parts]))
    if not all(x.isfinite().all() for x in (origin, *steps)):
        raise NonFinite("cannot measure a linearised model: its outputs are not finite. The weights are damaged.")
    return origin, steps


def anywhere(
    model: torch.nn.Module, base: Checkpoint, vectors: Mapping[str, TaskVector], data: Mapping[str, tuple[Split, Head]],
    *, forward: Forward = plain,
) -> Callable[[Mapping[str, float]], dict[str, Score]]:  # fmt: skip
    r"""Accuracy at any :math:`\theta_0 + \sum_t \alpha_t\tau_t`, for searches over several coefficients.

    Args: as in `answers`.
    Returns:
        a function of the coefficients by vector (those left out are 0) that gives a score for each of `data`. Outputs that are not
        finite get nothing right.
    """
    return _anywhere(model, base, vectors, data, forward=forward, at_point=_score, of_logits=_right)


def answers(
    model: torch.nn.Module, base: Checkpoint, vectors: Mapping[str, TaskVector], data: Mapping[str, tuple[Split, Head]],
    *, forward: Forward = plain,
) -> Callable[[Mapping[str, float]], dict[str, torch.Tensor]]:  # fmt: skip
    r"""Logits at any :math:`\theta_0 + \sum_t \alpha_t\tau_t`, for measures that need more than how many are right.

    Base and vectors are held in memory. Through an affine forward each vector is evaluated once, here; a point then costs no
    evaluation of the model.

    Args:
        model, base, data, forward: as in `curves`.
        vectors: name -> :math:`\tau_t`.
    Returns:
        a function of the coefficients by vector (those left out are 0) that gives logits ``[n, classes]``, on the CPU, for each of
        `data`, whatever they are.
    """
    return _anywhere(
        model, base, vectors, data, forward=forward, at_point=logits_at, of_logits=lambda logits, *_: logits.cpu()
    )


def _right(logits: torch.Tensor, split: Split, head: Head) -> Score:
    labels = split.labels.to(logits.device)
    hits = int((head.within(logits, labels).argmax(dim=1) == labels).sum())
    return Score.share(hits if logits.isfinite().all() else 0, split.counted)


def _anywhere(
    model: torch.nn.Module, base: Checkpoint, vectors: Mapping[str, TaskVector], data: Mapping[str, tuple[Split, Head]], *,
    forward: Forward, at_point: Callable[[Bound, Mapping[str, torch.Tensor], Split, Head], T],
    of_logits: Callable[[torch.Tensor, Split, Head], T],
) -> Callable[[Mapping[str, float]], dict[str, T]]:  # fmt: skip
    """A measure at any point: `at_point` evaluates the model there; `of_logits` serves where an affine forward gives them."""
    import torch

    f: Bound = bind(model)
    if forward.split is not None:
        found = {
            n: affine_features(f, model, base, list(vectors.values()), split, forward) for n, (split, _) in data.items()
        }

        def affine(coefficients: Mapping[str, float]) -> dict[str, T]:
            out = {}
            for name, (split, head) in data.items():
                origin, steps = found[name]
                z = origin.clone()
                for vector, step in zip(vectors, steps, strict=True):
                    if coefficients.get(vector):
                        z += coefficients[vector] * step
                out[name] = of_logits(head.to(z.device)(z), split, head)
            return out

        return affine
    data = {
        n: (replace(split, inputs=held(split.inputs, memory=HELD // len(data))), h) for n, (split, h) in data.items()
    }
    device = device_of(model)
    origin = tensors(base, like=model, device=device)
    moves = {n: tensors(v, device=device) for n, v in vectors.items()}
    for vector in vectors.values():
        _ = base + vector  # the algebra's own checks of lineage, names and shapes; computes nothing
    point = {n: t.clone() for n, t in origin.items()}

    def at(coefficients: Mapping[str, float]) -> dict[str, T]:
        with torch.no_grad():
            for name, out in point.items():
                out.copy_(origin[name])
                for vector, move in moves.items():
                    if name in move and coefficients.get(vector):
                        out.add_(move[name] * coefficients[vector])
        return {name: at_point(f, point, split, head) for name, (split, head) in data.items()}

    return at
