"""Results: frozen data that protocols return, JSON holds, and reports are drawn from.

Every number that was measured is a `Score` (with n and an interval). Every coefficient says on which data it was
chosen. A result knows nothing of models, files or plots.
"""

from __future__ import annotations

import json
import math
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from .errors import InputError
from .files import replace_text

SCHEMA_VERSION = 1
Z95 = 1.959963984540054  # two-sided 95 % point of the normal distribution


class _Frozen(BaseModel):
    # Inf and NaN become strings: JSON has no other place for them, and null would not be read back.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


Share = Annotated[float, Field(ge=0, le=1)]


class Score(_Frozen):
    """A share of `n` trials (here: top-1 accuracy) with a 95 % Wilson interval ``[low, high]``.

    Example:
        >>> s = Score.share(90, 100)
        >>> round(s.value, 2), round(s.low, 3), round(s.high, 3)
        (0.9, 0.826, 0.945)
    """

    value: Share
    n: int = Field(ge=1)
    low: Share
    high: Share

    @classmethod
    def share(cls, hits: int, n: int) -> Score:
        """``hits / n`` with the Wilson score interval at 95 %.

        Raises:
            ValueError: `n` is zero, or `hits` is outside 0..n.
        """
        if n <= 0 or not 0 <= hits <= n:
            raise ValueError(f"a share needs 0 <= hits <= n and n > 0, got hits={hits}, n={n}")
        p, z2 = hits / n, Z95 * Z95
        centre = (p + z2 / (2 * n)) / (1 + z2 / n)
        half = Z95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
        # At 0 and n hits the end is the share itself, which rounding would miss by an ulp.
        return cls(value=p, n=n, low=max(0.0, min(p, centre - half)), high=min(1.0, max(p, centre + half)))

    @classmethod
    def mean(cls, scores: Sequence[Score]) -> Score:
        """Unweighted mean of independent scores; the half-widths add in squares. `n` is the total.

        Example:
            >>> s = Score.mean([Score.share(90, 100), Score.share(70, 100)])
            >>> round(s.value, 2), s.n, round(s.low, 3), round(s.high, 3)
            (0.8, 200, 0.747, 0.853)
        """
        if len(scores) == 1:
            return scores[0]
        value = sum(s.value for s in scores) / len(scores)
        half = math.sqrt(sum(((s.high - s.low) / 2) ** 2 for s in scores)) / len(scores)
        return cls(value=value, n=sum(s.n for s in scores), low=max(0.0, value - half), high=min(1.0, value + half))

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} %"


class Curve(_Frozen):
    """Validation scores along a grid of one coefficient, and the point that was chosen on them.

    ``scores[task][i]`` belongs to ``coefficients[i]``. `objective` is what was optimised, in words; `chosen` is an
    index into `coefficients`.
    """

    coefficients: tuple[float, ...]
    scores: Mapping[str, tuple[Score, ...]]
    chosen: int
    objective: str
    split: Literal["validation"] = "validation"

    @model_validator(mode="after")
    def _fits(self) -> Curve:
        points = len(self.coefficients)
        if not 0 <= self.chosen < points:
            raise ValueError(f"chosen is {self.chosen}, but there are {points} coefficients")
        for task, line in self.scores.items():
            if len(line) != points:
                raise ValueError(f"{task!r} has {len(line)} scores for {points} coefficients")
        return self

    @property
    def coefficient(self) -> float:
        return self.coefficients[self.chosen]


class Row(_Frozen):
    """One model, scored once on the test split of every task.

    `coefficient` is None for models that have none (base, individually fine-tuned); otherwise it was chosen on
    validation data and `curve` shows how. `normalised` divides each task's accuracy by the accuracy of the
    model fine-tuned on that task alone with the same regime; it is empty where no such model exists.
    """

    name: str
    scores: Mapping[str, Score]
    coefficient: float | None = None
    curve: Curve | None = None
    normalised: Mapping[str, float] = Field(default_factory=dict)
    note: str = ""

    @property
    def mean(self) -> Score:
        """Unweighted mean of the test scores over the tasks, with its interval."""
        return Score.mean(tuple(self.scores.values()))

    @property
    def mean_normalised(self) -> float | None:
        if not self.normalised:
            return None
        return sum(self.normalised.values()) / len(self.normalised)


class Provenance(_Frozen):
    """What would be needed to make the result again; no absolute paths, no host names."""

    taskvec: str
    python: str
    platform: str
    seed: int | None = None
    libraries: Mapping[str, str] = Field(default_factory=dict)
    inputs: Mapping[str, str] = Field(default_factory=dict)  # name -> fingerprint of the weights
    settings: Mapping[str, Any] = Field(default_factory=dict)

    @classmethod
    def now(
        cls,
        *,
        seed: int | None = None,
        inputs: Mapping[str, str] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> Provenance:
        """Versions of what is running: libraries are listed only if they are already imported."""
        from . import __version__

        shown = ("numpy", "torch", "transformers", "sklearn")
        libraries = {m: str(getattr(sys.modules[m], "__version__", "?")) for m in shown if m in sys.modules}
        return cls(
            taskvec=__version__,
            python=platform.python_version(),
            platform=f"{platform.system()} {platform.machine()}",
            seed=seed,
            libraries=libraries,
            inputs=dict(inputs or {}),
            settings=dict(settings or {}),
        )


class _Result(_Frozen):
    schema_version: Literal[1] = SCHEMA_VERSION
    title: str
    provenance: Provenance

    def write(self, path: str | Path) -> Path:
        """Write the result as one JSON document; the folder is made if it is missing."""
        return replace_text(path, self.model_dump_json(indent=1) + "\n", what="the result")


class AdditionResult(_Result):
    """Several task vectors added to one base (arXiv:2212.04089 section 4, arXiv:2305.12827 section 4).

    Rows in this order: base, individually fine-tuned (each task scored by its own model), random vectors, the sum,
    and any further methods. `tasks` fixes the order of the columns. `subsets`: sums of some of the tasks, each with its own
    coefficient, scored on those tasks alone.
    """

    kind: Literal["addition"] = "addition"
    tasks: tuple[str, ...]
    rows: tuple[Row, ...]
    subsets: tuple[Row, ...] = ()

    def row(self, name: str) -> Row:
        return _row(self, name)


class NegationResult(_Result):
    """One task vector subtracted from the base (arXiv:2212.04089 section 3).

    `target` is to be forgotten, `control` is to be kept: among the coefficients whose validation control accuracy is at
    least `control_share` of the base's, the one with the lowest validation target accuracy is chosen.
    """

    kind: Literal["negation"] = "negation"
    target: str
    control: str
    control_share: float
    rows: tuple[Row, ...]

    def row(self, name: str) -> Row:
        return _row(self, name)


class AnalogyResult(_Result):
    """A fourth cell built from three: tau_D = tau_C + (tau_B - tau_A) (arXiv:2212.04089 section 5).

    `cells` maps "A", "B", "C", "D" to what they are; the score of every row is on cell D's test split. A is to B as C
    is to D. Row "source" is the best that is possible without data of D and without arithmetic.
    """

    kind: Literal["analogy"] = "analogy"
    task: str
    cells: Mapping[str, str]
    rows: tuple[Row, ...]

    def row(self, name: str) -> Row:
        return _row(self, name)


class Step(_Frozen):
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


class GeometryResult(_Result):
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


class Pair(_Frozen):
    """Two tasks of a disentanglement result. ``parts[t][i][j]`` is the mean distance on the inputs of task t at the i-th
    coefficient of the first vector and the j-th of the second; `errors` are standard errors; `n` inputs each."""

    tasks: tuple[str, str]
    n: tuple[int, int]
    parts: tuple[Table, Table]
    errors: tuple[Table, Table]


class DisentanglementResult(_Result):
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


class LocalityResult(_Result):
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


class Start(_Frozen):
    """One start of fine-tuning on few labels: ``scores[i]`` belongs to the i-th number of shots of the result."""

    name: str
    scores: tuple[Score, ...]
    coefficient: float | None = None
    curve: Curve | None = None
    note: str = ""


class FewShotResult(_Result):
    """Fine-tuning on few labelled samples of one task, from several starts (arXiv:2212.04089).

    ``labels[i]`` is the number of labelled samples at ``shots[i]`` of each class. The first start is the base. Every score is a
    reading of the test split.
    """

    kind: Literal["few-shot"] = "few-shot"
    task: str
    shots: tuple[int, ...]
    labels: tuple[int, ...]
    starts: tuple[Start, ...]
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> FewShotResult:
        n = len(self.shots)
        if not n or not self.starts or len(self.labels) != n or any(len(s.scores) != n for s in self.starts):
            raise ValueError(f"{n} numbers of shots need at least one start, and {n} numbers of labels and scores")
        if sorted(set(self.labels)) != list(self.labels):
            raise ValueError("numbers of labels must rise")
        return self

    def start(self, name: str) -> Start:
        return _named(self.starts, name, "start", "few-shot")

    def labels_needed(self, name: str, than: str = "base") -> tuple[int | None, ...]:
        """For each number of shots of `than`: the least number of labels with which `name` has at least its test accuracy, None
        if it has it nowhere. Only numbers that were tried count: nothing is interpolated, and intervals are not looked at."""
        mine = self.start(name).scores
        return tuple(
            next((n for n, s in zip(self.labels, mine, strict=True) if s.value >= other.value), None)
            for other in self.start(than).scores
        )

    @property
    def labels_saved(self) -> dict[str, tuple[int | None, ...]]:
        """By start, for each number of shots of the base: its labels less those that the start needs for as much (`labels_needed`)."""
        return {
            s.name: tuple(
                None if need is None else had - need
                for had, need in zip(self.labels, self.labels_needed(s.name, self.starts[0].name), strict=True)
            )
            for s in self.starts[1:]
        }


Result = Annotated[
    AdditionResult
    | NegationResult
    | AnalogyResult
    | GeometryResult
    | DisentanglementResult
    | LocalityResult
    | FewShotResult,
    Field(discriminator="kind"),
]
_ADAPTER: TypeAdapter[Any] = TypeAdapter(Result)


def _row(result: Any, name: str) -> Row:
    return _named(result.rows, name, "row", result.kind)


def _named(found: Sequence[Any], name: str, what: str, kind: str) -> Any:
    from .errors import UnknownName, nearest

    for one in found:
        if one.name == name:
            return one
    known = [r.name for r in found]
    raise UnknownName(f"no {what} {name!r} in this {kind} result; it has {', '.join(known)}.{nearest(name, known)}")


def read_result(path: str | Path) -> Any:
    """Read one result file.

    Raises:
        InputError: not a file of this schema; says which fields are wrong.
    """
    path = Path(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the result {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a result file: not JSON ({error}).") from error
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{path} is not a result of this version: schema_version is {version!r}, expected {SCHEMA_VERSION}. "
            "Make it again with this version of taskvec."
        )
    try:
        return _ADAPTER.validate_python(document)
    except ValidationError as error:
        fields = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5])
        raise InputError(f"{path} is not a valid result: {fields}.") from error


def read_results(folder: str | Path) -> list[Any]:
    """All ``*.json`` results of a folder (or one file), in the order of their file names; of the folder in which studies were run,
    those of all studies."""
    folder = Path(folder)
    if (folder / "results").is_dir():
        folder = folder / "results"
    files: Sequence[Path] = [folder] if folder.is_file() else sorted([*folder.glob("*.json"), *folder.glob("*/*.json")])
    if not files:
        raise InputError(f"no results in {folder}: expected *.json files written by a protocol or by `taskvec demo`.")
    return [read_result(f) for f in files]
