"""Results about weights and functions: geometry, disentanglement, locality."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator

from .parts import Z95, BaseResult, Frozen, Score


class Step(Frozen):
    """One whole step from the base, on the validation inputs of its task.

    `nonlinearity`: the part of its effect on the features that the first order does not explain; `accuracy` and `linearised`:
    of the finetuned model and of its linearisation at the base.
    """

    nonlinearity: float
    accuracy: Score | None = None
    linearised: Score | None = None
    classes: int = 0

    @property
    def advantage(self) -> float | None:
        """(accuracy - linearised) / (1 - 1/classes): what is lost by linearising after the fact."""
        if self.accuracy is None or self.linearised is None or self.classes < 2:
            return None
        return (self.accuracy.value - self.linearised.value) / (1 - 1 / self.classes)


class GeometryResult(BaseResult):
    """Norms of task vectors and the cosines between them; ``cosine[i][j]`` follows the order of `names`.

    `layers` and `parts` give the norms within each layer and kind of parameter. What follows is there where it was asked for:
    `steps`, one for each vector; `on_the_way`, name -> updates -> cosine with the final vector; `overlap` of the leading
    `subspace` singular directions, beside `subspace_chance`, that of unrelated ones.
    """

    kind: Literal["geometry"] = "geometry"
    names: tuple[str, ...]
    norms: tuple[float, ...]
    cosine: tuple[tuple[float, ...], ...]
    base_norm: float | None = None
    layers: Mapping[str, tuple[float, ...]] = Field(default_factory=dict)
    parts: Mapping[str, tuple[float, ...]] = Field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    on_the_way: Mapping[str, Mapping[int, float]] = Field(default_factory=dict)
    subspace: int = 0
    overlap: tuple[tuple[float, ...], ...] = ()
    subspace_chance: float = 0.0

    @model_validator(mode="after")
    def _fits(self) -> GeometryResult:
        n = len(self.names)
        lines = [self.norms, *self.cosine, *self.layers.values(), *self.parts.values(), *self.overlap]
        square = len(self.cosine) == n and len(self.overlap) in (0, n)
        if len(self.steps) not in (0, n) or not square or any(len(line) != n for line in lines):
            raise ValueError(f"{n} names need {n} norms and {n} x {n} cosines")
        return self


Table = tuple[tuple[float, ...], ...]


class Pair(Frozen):
    """Two tasks of a disentanglement result. ``parts[t][i][j]`` is the mean distance on the inputs of task t at the i-th
    coefficient of the first vector and the j-th of the second; `errors` are standard errors; `n` inputs each."""

    tasks: tuple[str, str]
    n: tuple[int, int]
    parts: tuple[Table, Table]
    errors: tuple[Table, Table]


class DisentanglementResult(BaseResult):
    """Disentanglement error of every pair of task vectors over a grid of coefficients (arXiv:2305.12827).

    xi is the sum over the two tasks, from 0 to 2. `box` is the range in which coefficients are searched.
    """

    kind: Literal["disentanglement"] = "disentanglement"
    tasks: tuple[str, ...]
    coefficients: tuple[float, ...]
    box: tuple[float, float]
    forward: str
    distance: Literal["prediction", "representation"]
    pairs: tuple[Pair, ...]

    @model_validator(mode="after")
    def _fits(self) -> DisentanglementResult:
        n = len(self.coefficients)
        tables = [t for pair in self.pairs for t in (*pair.parts, *pair.errors)]
        if any(len(t) != n or any(len(line) != n for line in t) for t in tables):
            raise ValueError(f"{n} coefficients need tables of {n} x {n}")
        return self

    def xi(self, pair: Pair) -> Table:
        """The error over the grid: rows for the first vector's coefficient, columns for the second's."""
        a, b = pair.parts
        return tuple(tuple(x + y for x, y in zip(p, q, strict=True)) for p, q in zip(a, b, strict=True))

    def at(self, pair: Pair, first: float, second: float) -> tuple[float, float, float]:
        """xi at two coefficients of the grid, with a 95 % interval (the two tasks' inputs are independent samples)."""
        i, j = self.coefficients.index(first), self.coefficients.index(second)
        value = sum(t[i][j] for t in pair.parts)
        half = Z95 * math.sqrt(sum(t[i][j] ** 2 for t in pair.errors))
        return value, max(0.0, value - half), min(2.0, value + half)

    def mean(self, pair: Pair) -> float:
        """The mean of xi over the points of the grid inside the box."""
        inside = [i for i, c in enumerate(self.coefficients) if self.box[0] <= c <= self.box[1]]
        table = self.xi(pair)
        return sum(table[i][j] for i in inside for j in inside) / len(inside) ** 2


class LocalityResult(BaseResult):
    """The tangent kernel of a base on the inputs of several tasks (arXiv:2305.12827).

    ``energy[i][j]``: mean local energy of task i's leading eigenfunctions on other inputs of task j, 1 where they were made;
    ``similarity[i][j]``: mean absolute cosine of the gradients of task i's and task j's inputs.
    """

    kind: Literal["locality"] = "locality"
    tasks: tuple[str, ...]
    samples: int
    eigenfunctions: int
    energy: Table
    similarity: Table

    @model_validator(mode="after")
    def _fits(self) -> LocalityResult:
        n = len(self.tasks)
        if any(len(t) != n or any(len(line) != n for line in t) for t in (self.energy, self.similarity)):
            raise ValueError(f"{n} tasks need tables of {n} x {n}")
        return self

    @property
    def across(self) -> float:
        """Mean energy on other tasks' inputs, relative to that on a task's own."""
        n = len(self.tasks)
        pairs = [self.energy[i][j] / self.energy[i][i] for i in range(n) for j in range(n) if i != j]
        return sum(pairs) / len(pairs)
