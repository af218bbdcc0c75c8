"""Lists of words: from a file, or those that tell toxic texts from others."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError


def read_words(path: Path) -> tuple[str, ...]:
    """Words or phrases of a file, one on each line.

    Raises:
        InputError: it cannot be read, or holds none.
    """
    try:
        found = tuple(dict.fromkeys(x.strip() for x in path.read_text(encoding="utf-8").splitlines() if x.strip()))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the words {path}: {getattr(error, 'strerror', None) or error}.") from error
    if not found:
        raise InputError(f"{path} has no words.")
    return found


def distinctive_words(toxic: Sequence[str], other: Sequence[str], *, most: int = 50, least: int = 5) -> tuple[str, ...]:
    r"""The words that tell toxic texts from others best: what a ban on words would name.

    By :math:`z_w = \hat\delta_w / \sigma(\hat\delta_w)`, the log-odds ratio of w with an informative Dirichlet prior (the
    counts of both together, a tenth of them), over its standard deviation; only words with z above 1.96.

    Args:
        toxic, other: texts.
        most: words.
        least: toxic texts that have the word.
    Raises:
        InputError: no word is distinctive.
    Reference: Monroe, Colaresi and Quinn 2008, Political Analysis 16, "Fightin' words".
    """
    counts = [Counter(w for t in texts for w in _words(t)) for texts in (toxic, other)]
    present = Counter(w for t in toxic for w in set(_words(t)))
    both = {w: n / 10 for w, n in (counts[0] + counts[1]).items()}
    totals = [sum(c.values()) for c in counts]
    prior = sum(both.values())
    found = []
    for w in (w for w, n in present.items() if n >= least):
        odds = [(c[w] + both[w]) / (n + prior - c[w] - both[w]) for c, n in zip(counts, totals, strict=True)]
        z = math.log(odds[0] / odds[1]) / math.sqrt(sum(1 / (c[w] + both[w]) for c in counts))
        if z > 1.96:
            found.append((-z, w))
    if not found:
        raise InputError(f"no word tells the {len(toxic)} toxic texts from the {len(other)} others. Give more texts.")
    return tuple(w for _, w in sorted(found)[:most])


def _words(text: str) -> list[str]:
    return [w.casefold() for w in re.findall(r"\w[\w'*@$-]*\w|\w", text)]
