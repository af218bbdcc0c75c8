"""Texts without labels as a task: filling in masked tokens for encoders, telling the next one for decoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..errors import InputError, UsageError
from ..models.functional import require_torch
from .task import IGNORED, Head, Split, Task

if TYPE_CHECKING:
    import torch

HIDDEN, OTHER = 0.8, 0.1  # of the chosen tokens: masked, replaced by any other; the rest stays as it is


def masked_task(
    name: str, parts: Sequence[Sequence[str]], *, tokenise: Callable[[Sequence[str]], torch.Tensor], mask: int, special: Sequence[int],
    vocabulary: Sequence[str], share: float = 0.15, copies: int = 4, seed: int = 0,
) -> Task:  # fmt: skip
    """Texts, some of whose tokens are hidden and are to be told: for the modules of `taskvec.models.modelling`.

    Of each text a share of the tokens, one at least, is chosen; eight in ten of these become the mask, one in ten another token, one
    stays. Inputs are ``[n, length + k]``: ids and the chosen positions; labels ``[n, k]`` the tokens that were there.

    Args:
        parts: texts for training, validation and test.
        tokenise: texts -> ids ``[n, length]``, padded on the right.
        mask: the id that hides a token.
        special: ids that are never chosen: padding, beginning and end.
        vocabulary: the tokens by id.
        share: of the tokens, chosen.
        copies: of the training texts, each with other tokens hidden.
        seed: chooses them.
    Raises:
        InputError: a part without a text that has an ordinary token.
    Reference: Devlin et al. 2018, arXiv:1810.04805.
    """
    torch = require_torch("Filling in masked tokens")
    if not 0 < share < 1 or copies < 1:
        raise UsageError(
            f"share is {share} and copies {copies}; expected a share between 0 and 1 and at least one copy."
        )
    generator = torch.Generator().manual_seed(seed)
    others = torch.tensor(sorted(set(range(len(vocabulary))) - {*special, mask}))
    splits = []
    for which, texts, times in zip(("training", "validation", "test"), parts, (copies, 1, 1), strict=True):
        ids = tokenise(texts) if texts else torch.zeros(0, 1, dtype=torch.int64)
        ordinary = ~torch.isin(ids, torch.tensor(list(special)))
        ids, ordinary = ids[ordinary.any(1)], ordinary[ordinary.any(1)]
        if not len(ids):
            raise InputError(f"task {name!r}: the {which} part has no text with a token to hide. Give more texts.")
        ids, ordinary = ids.repeat(times, 1), ordinary.repeat(times, 1)
        splits.append(_hidden(ids, ordinary, mask, others, share, generator))
    return Task(name, *splits, head=Head.own(len(vocabulary)), classes=tuple(vocabulary))


def following_task(
    name: str, parts: Sequence[Sequence[str]], *, tokenise: Callable[[Sequence[str]], torch.Tensor], pad: int, vocabulary: Sequence[str]
) -> Task:  # fmt: skip
    """Texts, each token of which but the first is to be told from those before it.

    Inputs are ids ``[n, length]``, labels ``[n, length]`` the ids that follow; padding does not count.

    Args:
        parts, tokenise, vocabulary: as in `masked_task`.
        pad: the id that fills rows up.
    Raises:
        InputError: a part without a text of two tokens.
    """
    torch = require_torch("Telling the next token")
    splits = []
    for which, texts in zip(("training", "validation", "test"), parts, strict=True):
        ids = tokenise(texts) if texts else torch.zeros(0, 2, dtype=torch.int64)
        after = torch.cat([ids[:, 1:], torch.full((len(ids), 1), pad)], 1)
        labels = torch.where(after == pad, IGNORED, after)
        counted = (labels != IGNORED).any(1)
        if not counted.any():
            raise InputError(f"task {name!r}: the {which} part has no text of two tokens. Give more texts.")
        splits.append(Split(ids[counted], labels[counted]))
    return Task(name, *splits, head=Head.own(len(vocabulary)), classes=tuple(vocabulary))


def _hidden(
    ids: torch.Tensor, ordinary: torch.Tensor, mask: int, others: torch.Tensor, share: float, generator: torch.Generator
) -> Split:
    import torch

    counts = (ordinary.sum(1) * share).round().clamp(min=1).long()
    k = int(counts.max())
    # The ordinary tokens of a row in random order, the others behind them.
    order = (torch.rand(ids.shape, generator=generator) + 2.0 * ~ordinary).argsort(1)[:, :k]
    chosen = torch.arange(k) < counts[:, None]
    labels = torch.where(chosen, ids.gather(1, order), IGNORED)
    fate, other = (
        torch.rand(order.shape, generator=generator),
        others[torch.randint(len(others), order.shape, generator=generator)],
    )
    new = torch.where(fate < HIDDEN, mask, torch.where(fate < HIDDEN + OTHER, other, ids.gather(1, order)))
    new = torch.where(chosen, new, ids.gather(1, order))
    return Split(torch.cat([ids.scatter(1, order, new), torch.where(chosen, order, -1)], 1), labels)
