"""What methods ask of their arguments, in one wording."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..errors import BaseMismatch, KeyMismatch, UsageError, nearest, some
from ..weights import Checkpoint, TaskVector, lift
from ..weights.graph import Op
from ..weights.lineage import Base


def count(method: str, vectors: Sequence[TaskVector], *, least: int = 1, most: int | None = None) -> None:
    n = len(vectors)
    if n < least or (most is not None and n > most):
        want = f"exactly {least}" if most == least else f"at least {least}" if most is None else f"{least} to {most}"
        raise UsageError(f"{method} takes {want} task vector{'s' if (most or least) > 1 else ''}, got {n}.")


def density(method: str, value: float, *, name: str = "density") -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise UsageError(
            f"{method}: {name} is {value!r}; it is the share of entries kept and must lie in (0, 1]. "
            "For a percentage p, write p / 100."
        )


def within(method: str, name: str, value: float, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UsageError(f"{method}: {name} is {value!r}; it must be a finite number.")
    if not low <= value <= high:
        said = (
            f"at least {low:g}"
            if math.isinf(high)
            else f"at most {high:g}"
            if math.isinf(low)
            else f"in [{low:g}, {high:g}]"
        )
        raise UsageError(f"{method}: {name} is {value:g}; it must be {said}.")
    return float(value)


def whole(method: str, name: str, value: int, least: int, most: int | None = None) -> int:
    """A whole number from least to most."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        said = f"from {least} to {most}" if most is not None else f"of at least {least}"
        raise UsageError(f"{method}: {name} is {value!r}; it must be a whole number {said}.")
    return value


def choice(method: str, name: str, value: str, options: Sequence[str]) -> str:
    if value not in options:
        raise UsageError(
            f"{method}: {name} is {value!r}; choose one of {', '.join(options)}.{nearest(str(value), options)}"
        )
    return value


def coefficients(method: str, vectors: Sequence[TaskVector], given: Sequence[float] | None) -> tuple[float, ...]:
    """One finite number for each vector; ones if none are given."""
    if given is None:
        return (1.0,) * len(vectors)
    if isinstance(given, (str, int, float)) or len(given) != len(vectors):
        got = given if isinstance(given, (str, int, float)) else f"{len(given)} of them"
        raise UsageError(
            f"{method}: coefficients must be a list of {len(vectors)} numbers, one for each vector, got {got}."
        )
    return tuple(within(method, "a coefficient", c) for c in given)


def task(method: str, vectors: Sequence[TaskVector], value: int) -> int:
    """A place in the list of vectors, counted from 0."""
    return whole(method, "task", value, 0, len(vectors) - 1)


def statistics(
    method: str, word: str, vectors: Sequence[TaskVector], given: Sequence[Checkpoint], *, shapes: bool = True
) -> list[Checkpoint]:
    """One checkpoint a vector, under the vectors' names (and, unless told, shapes).

    Raises:
        UsageError: not one a vector.  KeyMismatch: of another model.
    """
    if isinstance(given, Checkpoint) or len(given) != len(vectors):
        got = "one checkpoint" if isinstance(given, Checkpoint) else str(len(given))
        raise UsageError(
            f"{method}: {word} must be a list of {len(vectors)} checkpoints, one for each vector, got {got}."
        )
    known = {n: spec.shape for v in vectors for n, spec in v.spec.items()}
    known |= {n: x.shape for v in vectors if v.base.node is not None for n, x in v.base.node.spec.items()}
    for v, s in zip(vectors, given, strict=True):
        if not isinstance(s, Checkpoint):
            raise UsageError(f"{method}: {word} must be checkpoints, got {type(s).__name__}.")
        strange = [n for n in s.spec if n not in known]
        wrong = [n for n in s.spec if n in known and shapes and s.spec[n].shape != known[n]]
        if strange or wrong:
            what = (
                f"{len(strange)} of its names are not in {v.label} ({some(strange)})" if strange
                else f"{len(wrong)} of its tensors have another shape ({some(wrong)})"
            )  # fmt: skip
            raise KeyMismatch(f"{method}: {word} {s.label} is of another model than {v.label}: {what}.")
    return list(given)


def widened(vectors: Sequence[TaskVector]) -> list[TaskVector]:
    """The vectors over the union of their names, so that every tensor has a value in each."""
    zero = 0.0 * vectors[0]
    for v in vectors[1:]:
        zero = zero + 0.0 * v
    return [v + zero for v in vectors]


def base_of(method: str, vectors: Sequence[TaskVector], base: Checkpoint | None) -> Checkpoint:
    """The checkpoint the vectors were taken from: the one given, or the one they know.

    Raises:
        UsageError: a file's vector knows only the fingerprint.  BaseMismatch: the one given is another.
    """
    if base is None:
        known = next((v.base for v in vectors if v.base.node is not None), None)
        if known is None or known.node is None:
            raise UsageError(
                f"{method}: for whole models the base's weights are needed, and the vectors know only its fingerprint. "
                "Pass base=, for example base=base."
            )
        return Checkpoint(known.node, known.label)
    for v in vectors:
        if v.base.same(Base(base.label, node=base.node)) is False:
            raise BaseMismatch(f"{method}: {v.label} was taken from {v.base.label}, not from {base.label}.")
    return base


PLUS = Op("plus", lambda arrays: arrays[0] + arrays[1])
MINUS = Op("minus", lambda arrays: arrays[0] - arrays[1])


def models(vectors: Sequence[TaskVector], base: Checkpoint) -> list[TaskVector]:
    """The fine-tuned models' own values, as inputs of steps."""
    return [lift(PLUS, [v], beside=[base]) for v in widened(vectors)]


def displaced(model: TaskVector, base: Checkpoint) -> TaskVector:
    """A model's values as a displacement again."""
    return lift(MINUS, [model], beside=[base])
