"""How scorers agree with labels, and whether a text falls silent or repeats itself."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import numpy as np

from ..errors import UsageError
from ..results import Z95, Agreement, Score
from .passages import Passages
from .scorers import Scorer, mark_of

WORD = re.compile(r"\w+")


def measured(
    scorer: Scorer, texts: Sequence[str], labels: Sequence[int], *, groups: Sequence[str] = (), threshold: float = 0.5,
    data: str = "labelled texts",
) -> Agreement:  # fmt: skip
    """How a scorer agrees with labels (1 toxic, 0 not) of texts that it was not made from; also by group, where both kinds exist.

    Raises:
        UsageError: labels other than 0 and 1, only one of them, counts that differ, or a text that the scorer was trained on
            (`unseen` leaves these out).
    """
    if seen := sum(mark_of(t) in scorer.learnt for t in texts):
        raise UsageError(
            f"{data}: the scorer {scorer.name} was trained on {seen} of these {len(texts)} texts; measure it on others."
        )
    marks = np.asarray(labels)
    if len(marks) != len(texts) or len(groups) not in (0, len(texts)) or set(marks.tolist()) != {0, 1}:
        raise UsageError(
            f"{data}: a scorer is measured on texts with labels 0 and 1, one each; got {len(marks)} for {len(texts)}."
        )
    scores = scorer(texts)
    whole = agreement(scores, marks, threshold=threshold, data=data)
    parts = {}
    for group in sorted(set(groups) - {""}):
        rows = np.array([g == group for g in groups])
        if len(set(marks[rows].tolist())) == 2:
            parts[group] = agreement(scores[rows], marks[rows], threshold=threshold, data=group)
    return whole.model_copy(update={"groups": parts})


def unseen(scorer: Scorer, texts: Passages) -> Passages:
    """The texts that the scorer was not trained on, as far as it is known."""
    rows = [i for i, t in enumerate(texts.texts) if mark_of(t) not in scorer.learnt]
    return texts if len(rows) == len(texts) else texts.take(rows)


def agreement(scores: np.ndarray, labels: np.ndarray, *, threshold: float, data: str) -> Agreement:
    """Accuracy, AUC, and the shares of toxic and other texts that are called toxic."""
    toxic = labels == 1
    called = scores >= threshold
    return Agreement(
        data=data, threshold=threshold, accuracy=Score.share(int((called == toxic).sum()), len(labels)), auc=auc(scores, toxic),
        found=Score.share(int(called[toxic].sum()), int(toxic.sum())), alarms=Score.share(int(called[~toxic].sum()), int((~toxic).sum())),
    )  # fmt: skip


def auc(scores: np.ndarray, positive: np.ndarray) -> Score:
    r"""Area under the ROC curve, :math:`P(s^+ > s^-) + \tfrac12 P(s^+ = s^-)`, with DeLong's 95 % interval.

    Reference: DeLong, DeLong and Clarke-Pearson 1988, Biometrics 44.
    Example:
        >>> auc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])).value
        0.75
    """
    p, n = np.sort(scores[positive]), np.sort(scores[~positive])
    # Placement of each score among those of the other kind; equal ones count half.
    above = [
        (np.searchsorted(b, a, "left") + np.searchsorted(b, a, "right")) / (2 * len(b)) for a, b in ((p, n), (n, p))
    ]
    value = float(above[0].mean())
    if value in (
        0.0,
        1.0,
    ):  # no variance was seen: the interval of a share of as many trials as the rarer kind has texts
        few = Score.share(round(value * min(len(p), len(n))), min(len(p), len(n)))
        return Score(value=value, n=len(scores), low=few.low, high=few.high)
    spread = sum(float(v.var(ddof=1)) / len(v) if len(v) > 1 else 0.25 for v in above)
    half = Z95 * spread**0.5
    return Score(value=value, n=len(scores), low=max(0.0, value - half), high=min(1.0, value + half))


def empty(text: str) -> bool:
    """Whether a text has no word."""
    return WORD.search(text) is None


def repeating(text: str) -> bool:
    """Whether a text says the same over and over: of eight words or more, at most a third are different, or half of its trigrams
    are one; or 48 bytes or more that compress to less than 30 %.

    Example:
        >>> repeating("the cat sat on the mat and looked at us"), repeating("and so and so and so and so and so")
        (False, True)
    """
    words = [w.casefold() for w in WORD.findall(text)]
    if len(words) >= 8:
        trigrams = list(zip(words, words[1:], words[2:], strict=False))
        most = max(trigrams.count(t) for t in set(trigrams))
        if len(set(words)) <= len(words) / 3 or most >= len(trigrams) / 2:
            return True
    raw = text.encode()
    return len(raw) >= 48 and len(zlib.compress(raw, 9)) < 0.3 * len(raw)
