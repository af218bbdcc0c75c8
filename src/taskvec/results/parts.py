"""What results are made of: scores, curves, rows, provenance, and the base of every kind."""

from __future__ import annotations

import math
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..errors import UnknownName, nearest
from ..files import replace_text

SCHEMA_VERSION = 1
Z95 = 1.959963984540054  # two-sided 95 % point of the normal distribution


class Frozen(BaseModel):
    # Inf and NaN become strings: JSON has no other place for them, and null would not be read back.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


Share = Annotated[float, Field(ge=0, le=1)]


class Score(Frozen):
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


class Curve(Frozen):
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


class Row(Frozen):
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


class Provenance(Frozen):
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
        from .. import __version__

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


class BaseResult(Frozen):
    schema_version: Literal[1] = SCHEMA_VERSION
    title: str
    provenance: Provenance

    def write(self, path: str | Path) -> Path:
        """Write the result as one JSON document; the folder is made if it is missing."""
        return replace_text(path, self.model_dump_json(indent=1) + "\n", what="the result")


def row_named(result: Any, name: str) -> Row:
    return one_named(result.rows, name, "row", result.kind)


def one_named(found: Sequence[Any], name: str, what: str, kind: str) -> Any:
    for one in found:
        if one.name == name:
            return one
    known = [r.name for r in found]
    raise UnknownName(f"no {what} {name!r} in this {kind} result; it has {', '.join(known)}.{nearest(name, known)}")
