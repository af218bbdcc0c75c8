"""Results about what language models write: toxicity of continuations beside fluency.

None of them holds text: generations may be offensive, and are kept, if at all, in files of their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field, model_validator

from .parts import Z95, BaseResult, Frozen, Score, row_named


def mean_score(values: Sequence[float], *, n: int | None = None) -> Score:
    """The mean of independent values in [0, 1], with Student's 95 % interval; `n` is their number unless told.

    Of one or two values, and where all are equal, the interval is that of a share of as many trials.

    Example:
        >>> s = mean_score([0.3, 0.5, 0.6, 0.4])
        >>> round(s.value, 2), s.n, round(s.low, 2), round(s.high, 2)
        (0.45, 4, 0.25, 0.65)
    """
    m = len(values)
    if m == 0:
        raise ValueError("a mean needs at least one value")
    mean = min(1.0, max(0.0, math.fsum(values) / m))
    spread = math.fsum((v - mean) ** 2 for v in values) / (m - 1) if m > 1 else 0.0
    if spread <= 1e-18 or m < 3:
        return _wilson(mean, m, n or m)
    half = _student(m - 1) * math.sqrt(spread / m)
    return Score(value=mean, n=n or m, low=max(0.0, mean - half), high=min(1.0, mean + half))


def _student(freedom: int) -> float:
    """The 97.5 % point of Student's t, by the expansion around the normal's: 4.17 for 2 degrees of freedom, where it is 4.30."""
    z, v = Z95, freedom
    return (
        z + (z**3 + z) / (4 * v) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )  # fmt: skip


def clustered_share(hits: Sequence[int], size: int) -> Score:
    """The share of hits among clusters of `size` trials each, with a Wilson interval for as many independent trials as these
    are worth: continuations of one prompt resemble each other.

    Their worth is ``p (1 - p) / v``, with v the variance of the mean over clusters, at least the number of clusters and at most
    that of trials. `n` of the score counts trials.

    Example:
        >>> s = clustered_share([2, 0, 2, 0], size=2)  # worth no more than 4 trials
        >>> s.value, s.n, s.low == Score.share(2, 4).low
        (0.5, 8, True)
    """
    m = len(hits)
    if m == 0 or size < 1 or not all(0 <= h <= size for h in hits):
        raise ValueError(f"shares need clusters with 0 to {size} hits each, got {m} clusters")
    p, worth = sum(hits) / (m * size), float(m)
    if m > 1 and 0 < p < 1:
        variance = math.fsum((h / size - p) ** 2 for h in hits) / (m - 1) / m
        worth = min(m * size, max(m, p * (1 - p) / variance)) if variance > 0 else m * size
    return _wilson(p, worth, m * size)


def _wilson(p: float, worth: float, n: int) -> Score:
    z2 = Z95 * Z95
    centre = (p + z2 / (2 * worth)) / (1 + z2 / worth)
    half = Z95 * math.sqrt(p * (1 - p) / worth + z2 / (4 * worth * worth)) / (1 + z2 / worth)
    return Score(value=p, n=n, low=max(0.0, min(p, centre - half)), high=min(1.0, max(p, centre + half)))


class Fluency(Frozen):
    """Perplexity on a control corpus: per token of the model's vocabulary with its 95 % interval, per word, bits per byte."""

    token: float
    low: float
    high: float
    word: float
    bits_per_byte: float
    tokens: int = Field(ge=1)
    words: int = Field(ge=0)


class Continuations(Frozen):
    """What was measured of `samples` continuations of each of `prompts` prompts.

    `toxic`: share of continuations that the scorer gives at least its threshold; `ever`: share of prompts with at least one such;
    `mean`: mean score; `worst`: the highest score of a prompt's samples, averaged over prompts; `empty`: share without a word;
    `repeating`: share that says the same over and over. A model that falls silent is not toxic either.
    """

    prompts: int = Field(ge=1)
    samples: int = Field(ge=1)
    toxic: Score
    ever: Score
    mean: Score
    worst: Score
    empty: Score
    repeating: Score


class Agreement(Frozen):
    """How a scorer agrees with labels that it has not seen.

    `accuracy` at `threshold`; `auc`: the chance that it scores a toxic text above another (DeLong's interval); `found`: share of
    toxic texts that it finds; `alarms`: share of the others that it calls toxic. `groups`: the same by the group that a text is about,
    where both kinds exist.
    """

    data: str
    threshold: float
    accuracy: Score
    auc: Score
    found: Score
    alarms: Score
    groups: Mapping[str, Agreement] = Field(default_factory=dict)


class ScoredBy(Frozen):
    """Who judged: a scorer's name, version and hash, from which score on it calls a text toxic, and how it agrees with labels."""

    name: str
    version: str
    sha256: str
    threshold: float
    agreement: Agreement | None = None


class Point(Frozen):
    """One coefficient on validation prompts; `continuations` is None where the model's outputs are not finite."""

    coefficient: float
    fluency: Fluency | None
    continuations: Continuations | None


class ToxicityRow(Frozen):
    """One model, read once on the test prompts.

    `coefficient` is None where nothing is chosen; else `points` show the choice on validation prompts.
    """

    name: str
    overall: Continuations
    groups: Mapping[str, Continuations] = Field(default_factory=dict)
    fluency: Fluency
    coefficient: float | None = None
    points: tuple[Point, ...] = ()
    note: str = ""


class ToxicityResult(BaseResult):
    """A vector of toxic text subtracted from a language model (arXiv:2212.04089, section 3).

    Every chosen coefficient gives the least mean toxicity on validation prompts among those whose control perplexity is at most
    `perplexity_ratio` times the base's.
    """

    kind: Literal["toxicity"] = "toxicity"
    toxic: str
    prompts: str
    control: str
    perplexity_ratio: float
    scorer: ScoredBy
    rows: tuple[ToxicityRow, ...]

    @model_validator(mode="after")
    def _fits(self) -> ToxicityResult:
        if not self.rows or any(set(r.groups) != set(self.rows[0].groups) for r in self.rows):
            raise ValueError("needs at least one row, all with the same groups")
        return self

    def row(self, name: str) -> ToxicityRow:
        return row_named(self, name)  # type: ignore[return-value]
