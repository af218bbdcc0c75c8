"""Continuations of prompts."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import NonFinite, UsageError
from ...weights import Checkpoint
from ..functional import device_of, require_torch
from .holding import holding
from .opening import LanguageModel, padding

if TYPE_CHECKING:
    import torch


FEW = 512  # tokens of a nucleus that are looked for without sorting the vocabulary
OUTSIDE = 1e4  # what tokens outside the nucleus are put back by: they come only where all inside are banned


def chat_prompt(model: LanguageModel, text: str) -> str:
    """The text as a person's turn in the form that the model's chat template gives it, ready for an answer.

    Raises:
        UsageError: the tokenizer has no template.
    """
    tokenizer = model.tokenizer
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError(f"{model.name} has no chat template. Use the text as it is.")
    said = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
    )
    start = tokenizer.bos_token
    if start and said.startswith(start) and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]:
        return said[len(start) :]  # which the tokenizer adds by itself
    return said


def generate(
    model: LanguageModel, prompts: Sequence[str], *, weights: Checkpoint | None = None, tokens: int = 32,
    batch: int = 16, temperature: float = 1.0, top_p: float = 0.9, seed: int = 0, banned: Sequence[str] = (),
) -> list[str]:  # fmt: skip
    r"""Continuations of prompts, without the prompts.

    Samples from the least set of tokens whose probability reaches `top_p`, as
    :math:`\arg\max_k (z_k / T + g_k)` with Gumbel noise g of a generator that belongs to (seed, index of the prompt): a
    continuation depends on neither the batch it is in nor the other prompts.

    Args:
        model: the language model.
        prompts: texts; of one longer than the model's context the end is kept.
        weights: a checkpoint or an edit to be used in place of the model's own weights.
        tokens: most tokens of a continuation; it also ends where the model says so.
        batch: prompts at a time, of like length.
        temperature: T; 0 takes the likeliest token.
        top_p: 1 for all tokens.
        seed: chooses the continuations.
        banned: words or phrases that no continuation has, in whatever case and however cut into tokens. A word is what stands
            between characters that are not of words; one that a prompt begins counts.
    Raises:
        UsageError: a value out of range.
        NonFinite: the model's outputs are not finite.
        KeyMismatch: the weights do not fit the model.
    Reference: nucleus sampling, Holtzman et al. 2019, arXiv:1904.09751.
    """
    torch = require_torch("Generating text")
    prompts = list(prompts)
    if isinstance(banned, str) or not all(isinstance(p, str) for p in prompts):
        raise UsageError("generate takes a list of prompts and a list of banned words, all of them strings.")
    if tokens < 1 or batch < 1 or not 0 <= temperature < math.inf or not 0 < top_p <= 1:
        raise UsageError(
            f"generate: tokens={tokens}, batch={batch}, temperature={temperature}, top_p={top_p}; expected tokens and batch at least 1, "
            "temperature at least 0, top_p above 0 and at most 1."
        )
    if not prompts:
        return []
    longest = model.longest
    if longest is not None and tokens >= longest:
        raise UsageError(f"generate: tokens={tokens}, but {model.name} has a context of {longest} tokens.")
    rows = [_prompt_ids(model, p) for p in prompts]
    if longest is not None and model.kind == "causal":
        rows = [r[-(longest - tokens) :] for r in rows]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    device, out = device_of(model.module), [""] * len(rows)
    pad = padding(model)
    with holding(model, weights) as module, _settings(module, tokens, pad) as settings, torch.inference_mode():
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            width = max(len(rows[i]) for i in chosen)
            ids = torch.tensor([[pad] * (width - len(rows[i])) + rows[i] for i in chosen], device=device)
            mask = torch.tensor([[0] * (width - len(rows[i])) + [1] * len(rows[i]) for i in chosen], device=device)
            before = width if model.kind == "causal" else 1
            pick = _picking(model, [rows[i] for i in chosen], chosen, before, temperature, top_p, seed, banned)
            found = module.generate(
                input_ids=ids, attention_mask=mask, generation_config=settings, logits_processor=[pick]
            )  # fmt: skip
            for i, row in zip(chosen, found.tolist(), strict=True):
                out[i] = _continuation(model, rows[i], row[before:])
    return out


def _prompt_ids(model: LanguageModel, prompt: str) -> list[int]:
    ids = model.tokenizer(prompt)["input_ids"]
    if not ids:
        start = [t for t in (model.tokenizer.bos_token_id, model.tokenizer.eos_token_id) if t is not None]
        if not start:
            raise UsageError(f"{model.name} has no token to begin an empty prompt with. Give a prompt.")
        ids = start[:1]
    return list(ids)


@contextlib.contextmanager
def _settings(module: Any, tokens: int, pad: int) -> Iterator[Any]:
    """The likeliest token of the scores that `_picking` gives, whatever the folder's own generation settings are: they
    are out of the way meanwhile, since transformers takes from them what it is not told."""
    from transformers import GenerationConfig

    own = module.generation_config
    ends = own.eos_token_id if own.eos_token_id is not None else getattr(module.config, "eos_token_id", None)
    settings = GenerationConfig(
        max_new_tokens=tokens, do_sample=False, num_beams=1, repetition_penalty=1.0, no_repeat_ngram_size=0, pad_token_id=pad,
        bos_token_id=own.bos_token_id, eos_token_id=ends, decoder_start_token_id=own.decoder_start_token_id,
        forced_bos_token_id=own.forced_bos_token_id, min_length=0, use_cache=True, return_dict_in_generate=False,
    )  # fmt: skip
    module.generation_config = settings
    try:
        yield settings
    finally:
        module.generation_config = own


def _picking(
    model: LanguageModel, rows: list[list[int]], indices: list[int], before: int, temperature: float, top_p: float,
    seed: int, banned: Sequence[str],
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:  # fmt: skip
    """A logits processor after which the largest score is the token to take."""
    import torch

    generators = [
        torch.Generator().manual_seed(int(np.random.SeedSequence([seed % 2**64, i]).generate_state(1, np.uint64)[0] >> 1))
        for i in indices
    ]  # fmt: skip
    refused = _refused(model, banned) if banned else None

    def pick(ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        scores = logits.to(torch.float32)
        if torch.isnan(scores).any() or (scores == torch.inf).any():
            raise NonFinite(
                f"cannot generate with {model.name}: its outputs are not finite. The edit is too large, or the weights are damaged; try "
                "smaller coefficients."
            )
        if temperature > 0:
            scores = scores / temperature
            noise = torch.empty(scores.shape)
            for row, generator in zip(noise, generators, strict=True):
                row.exponential_(generator=generator)
            noisy = scores - noise.log().to(scores.device)
            scores = noisy if top_p == 1 else torch.where(_nucleus(scores, top_p), noisy, scores - OUTSIDE)
        if refused is not None:
            for i, row in enumerate(rows):
                new = ids[i, before:].tolist()
                while refused(row, new, token := int(scores[i].argmax())):
                    scores[i, token] = -torch.inf
        return scores

    return pick


def _nucleus(scores: torch.Tensor, top_p: float) -> torch.Tensor:
    """Which tokens are in the least set, likeliest first, whose probability reaches `top_p`.

    Mostly a few hundred, for which nothing need be sorted; rows of which more are inside are sorted whole.
    """
    import torch

    probabilities = scores.softmax(-1)
    values, order = probabilities.topk(min(FEW, scores.shape[-1]), dim=-1)
    inside = values.cumsum(-1) - values < top_p
    found = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order, inside)
    many = inside[..., -1]
    if many.any():
        values, order = probabilities[many].sort(dim=-1, descending=True)
        inside = values.cumsum(-1) - values < top_p
        found[many] = inside.scatter(-1, order, inside)
    return found


def _refused(model: LanguageModel, banned: Sequence[str]) -> Callable[[list[int], list[int], int], bool]:
    """Whether a token after (prompt, continuation so far) would complete a banned word.

    Looked for in the decoded text, so that every way to cut it into tokens counts. A word that ends with the text is
    refused at once, since nothing may follow it; a longer word that contains it is free.
    """
    words = [w.split() for w in banned]
    if not all(words):
        raise UsageError("banned has an empty word. Leave it out.")
    parts = "|".join(r"\s+".join(map(re.escape, w)) for w in words)
    pattern = re.compile(rf"(?<!\w)(?:{parts})(?!\w)", re.IGNORECASE)
    decode, reach = model.tokenizer.decode, 8 + 4 * max(map(len, banned))
    prompted = model.kind == "causal"

    def refused(prompt: list[int], new: list[int], token: int) -> bool:
        tail = ([*prompt, *new] if prompted else new)[-reach:]
        had = decode(tail, skip_special_tokens=True)
        text = decode([*tail, token], skip_special_tokens=True)
        return any(not had.startswith(text[: m.end()]) for m in pattern.finditer(text))

    return refused


def _continuation(model: LanguageModel, prompt: list[int], new: list[int]) -> str:
    """The text that the new tokens add: decoded with the prompt, since tokenizers drop a space that begins a text."""
    decode = model.tokenizer.decode
    if model.kind == "seq2seq":
        return decode(new, skip_special_tokens=True)
    had, text = (decode(ids, skip_special_tokens=True) for ids in (prompt, [*prompt, *new]))
    return text[len(had) :] if text.startswith(had) else decode(new, skip_special_tokens=True)
