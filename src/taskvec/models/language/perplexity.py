"""How well a language model predicts texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ...errors import InputError, NonFinite, UsageError
from ...weights import Checkpoint
from ..functional import device_of, require_torch
from .holding import holding
from .opening import LanguageModel, padding

LONGEST_WINDOW = 1024  # tokens, unless told: more context changes perplexity little and costs memory
MOST_LOGITS = 2**27  # float32 numbers of logits at a time, half a gigabyte
RESAMPLES = 1000
DOCUMENTS = 10  # with fewer, the bootstrap draws windows


@dataclass(frozen=True)
class Perplexity:
    r"""How well a model predicts texts. With L the summed negative log likelihood of the scored tokens, in nats:

    Args:
        token: :math:`\exp(L / \text{tokens})`.
        word: :math:`\exp(L / \text{words})`, words cut at white space; comparable between tokenizers.
        bits_per_byte: :math:`L / (\ln 2 \cdot \text{bytes})`; comparable between tokenizers.
        tokens: scored tokens: all but the first of each text.
        words, bytes: of the texts of two tokens or more; shorter ones have nothing to score and do not count.
        low, high: 95 % interval of `token`, by bootstrap over `units`.
        units: what the bootstrap drew, ``"documents"`` or, of less than ten texts, ``"windows"``.
        window, stride: how the texts were read.
        loss: :math:`L / \text{tokens}`.
        drawn: loss and tokens of each unit, for `ratio`.
    """

    token: float
    word: float
    bits_per_byte: float
    tokens: int
    words: int
    bytes: int
    low: float
    high: float
    units: Literal["documents", "windows"]
    window: int
    stride: int
    loss: float
    drawn: tuple[tuple[float, int], ...] = field(default=(), repr=False, compare=False)

    def ratio(self, other: Perplexity) -> tuple[float, float, float]:
        """`token` of this over that of `other`, measured on the same texts with the same tokens, and its 95 % interval by a
        bootstrap that draws the same units for both.

        Raises:
            UsageError: other texts, another tokenizer or other windows.
        """
        if [n for _, n in self.drawn] != [n for _, n in other.drawn] or not self.drawn:
            raise UsageError("perplexities are compared on the same texts, with one tokenizer and the same windows.")
        gaps = np.array([(a - b, n) for (a, n), (b, _) in zip(self.drawn, other.drawn, strict=True)])
        return (_exp(self.loss - other.loss), *_bootstrapped(gaps))


def perplexity(
    model: LanguageModel, texts: Sequence[str], *, weights: Checkpoint | None = None, window: int | None = None,
    stride: int | None = None, batch: int = 8,
) -> Perplexity:  # fmt: skip
    r"""Perplexity :math:`\exp(-\frac{1}{N}\sum_i \log p(x_i \mid x_{j(i)}, \dots, x_{i-1}))` of texts under a causal model.

    Windows of `window` tokens are moved by `stride`; each scores the tokens that no earlier window has, so every token but
    the first of its text is scored once, after at least ``window - stride`` others where the text has as many.

    Args:
        model: a causal language model.
        texts: documents, each read by itself.
        weights: a checkpoint or an edit to be used in place of the model's own weights.
        window: tokens; the model's context, at most 1024, unless told.
        stride: less than `window`; half of it unless told.
        batch: windows at a time, at most.
    Raises:
        UsageError: a sequence-to-sequence model, or a window or stride that cannot be.
        InputError: no text of two tokens.
        NonFinite: the model's outputs are not finite.
    Reference: the strided evaluation that transformers documents ("Perplexity of fixed-length models").
    """
    require_torch("Perplexity")
    if model.kind != "causal":
        raise UsageError(f"{model.name} is a sequence-to-sequence model; perplexity is measured on causal ones.")
    texts = [texts] if isinstance(texts, str) else list(texts)
    window = min(model.longest or LONGEST_WINDOW, LONGEST_WINDOW) if window is None else window
    stride = max(1, window // 2) if stride is None else stride
    if window < 2 or not 1 <= stride < window or batch < 1 or (model.longest and window > model.longest):
        raise UsageError(
            f"perplexity: window={window}, stride={stride}, batch={batch}; expected a window of 2 to {model.longest or 'any'} tokens and a "
            "lesser stride of at least 1."
        )
    pieces: list[tuple[int, list[int], int]] = []  # document, tokens of a window, how many of its last are scored
    for d, text in enumerate(texts):
        ids = list(model.tokenizer(text, verbose=False)["input_ids"])
        done = 1
        for begin in range(0, len(ids), stride):
            if done >= len(ids):
                break
            end = min(begin + window, len(ids))
            pieces.append((d, ids[begin:end], end - done))
            done = end
    if not pieces:
        raise InputError("perplexity needs a text of at least two tokens.")
    sums = _scored(model, pieces, weights, batch)
    counts = np.array([n for _, _, n in pieces], np.float64)
    owners = np.array([d for d, _, _ in pieces])
    documents = np.unique(owners)
    by_document = len(documents) >= DOCUMENTS
    if by_document:
        drawn = [(sums[owners == d].sum(), counts[owners == d].sum()) for d in documents]
    else:
        drawn = list(zip(sums, counts, strict=True))
    total, tokens = float(sums.sum()), int(counts.sum())
    read = [texts[d] for d in documents]
    words = sum(len(t.split()) for t in read)
    size = sum(len(t.encode()) for t in read)
    low, high = _bootstrapped(np.array(drawn))
    return Perplexity(
        token=_exp(total / tokens), word=_exp(total / max(1, words)), bits_per_byte=total / math.log(2) / size, tokens=tokens, words=words,
        bytes=size, low=low, high=high, units="documents" if by_document else "windows", window=window, stride=stride, loss=total / tokens,
        drawn=tuple((float(a), int(n)) for a, n in drawn),
    )  # fmt: skip


def _scored(
    model: LanguageModel, pieces: list[tuple[int, list[int], int]], weights: Checkpoint | None, batch: int
) -> np.ndarray:
    """Summed negative log likelihood of the scored tokens of each window."""
    import torch

    sums = np.zeros(len(pieces))
    order = sorted(range(len(pieces)), key=lambda i: -len(pieces[i][1]))
    pad, device = padding(model), device_of(model.module)
    config: Any = model.module.config
    vocabulary = int(config.get_text_config().vocab_size)
    with holding(model, weights) as module, torch.inference_mode():
        at = 0
        while at < len(order):
            width = len(pieces[order[at]][1])
            room = max(1, min(batch, MOST_LOGITS // (vocabulary * width)))
            chosen, at = order[at : at + room], at + room
            # On the right: causal attention does not look there.
            ids = torch.tensor([(r := pieces[i][1]) + [pad] * (width - len(r)) for i in chosen], device=device)
            mask = torch.tensor([[1] * (n := len(pieces[i][1])) + [0] * (width - n) for i in chosen], device=device)
            logits = module(input_ids=ids, attention_mask=mask, use_cache=False).logits
            for i, row, z in zip(chosen, ids, logits, strict=True):
                n, last = pieces[i][2], len(pieces[i][1])
                z = z[last - 1 - n : last - 1].to(torch.float32)
                nll = torch.nn.functional.cross_entropy(z, row[last - n : last], reduction="none")
                sums[i] = float(nll.to(torch.float64).sum())
    if not np.isfinite(sums).all():
        raise NonFinite(
            f"cannot measure the perplexity of {model.name}: its outputs are not finite. The edit is too large, or the weights are damaged; "
            "try smaller coefficients."
        )
    return sums


def _bootstrapped(drawn: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of exp(sum of losses / sum of counts) over units drawn with replacement."""
    rng = np.random.default_rng(0)
    picks = rng.integers(len(drawn), size=(RESAMPLES, len(drawn)))
    sums = drawn[picks].sum(axis=1)
    low, high = np.quantile(sums[:, 0] / sums[:, 1], (0.025, 0.975))
    return _exp(low), _exp(high)


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf
