"""Language models as transformers opens them: a module with its tokenizer, continuations of prompts, perplexity of texts."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..address import is_address, parse_address
from ..errors import InputError, NonFinite, UsageError, missing_extra, some
from ..weights import Checkpoint
from ..weights.remote import local
from .functional import aliases, device_of, require_torch, tensors, under_first_names
from .hub import fetched, opening, require_transformers

if TYPE_CHECKING:
    import torch

Kind = Literal["causal", "seq2seq"]
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tokenizer_config.json")
LONGEST_WINDOW = 1024  # tokens, unless told: more context changes perplexity little and costs memory
MOST_LOGITS = 2**27  # float32 numbers of logits at a time, half a gigabyte
OUTSIDE = 1e4  # what tokens outside the nucleus are put back by: they come only where all inside are banned
RESAMPLES = 1000
DOCUMENTS = 10  # with fewer, the bootstrap draws windows


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A language model and its tokenizer.

    Args:
        module: of transformers, in evaluation mode, float32.
        tokenizer: of transformers; a missing padding token is no obstacle, padding is done here.
        kind: ``"causal"`` continues its input; ``"seq2seq"`` answers it (T5).
        name: what tables call it.
        weights: the checkpoint it was read from, which task vectors are taken from; None for a module made otherwise.
    """

    module: torch.nn.Module
    tokenizer: Any
    kind: Kind
    name: str
    weights: Checkpoint | None = None

    @property
    def base(self) -> Checkpoint:
        """The weights as a point: those of the file, else a view of the module's own."""
        return self.weights or Checkpoint.of(self.module, label=self.name, copy=False)

    @property
    def longest(self) -> int | None:
        """Tokens that the model's positions allow, or None if they are relative (T5)."""
        config: Any = self.module.config
        return getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)


def language_model(path: str | Path, *, kind: Kind | None = None, gguf_file: str | None = None) -> LanguageModel:
    """Open a language model: a transformers folder, a GGUF file or a folder with one, or an id on the Hugging Face hub.

    Whatever is no folder or file and has the form of an id is fetched into the hub client's cache. Code from a repository
    is never run.

    Args:
        path: ``"smollm2/"``, ``"model.gguf"``, ``"org/name"`` or ``"hf://org/name@revision"``.
        kind: ``"causal"`` or ``"seq2seq"``; read from the config unless told.
        gguf_file: which GGUF file of the folder or repository; needed only where there are several. Its weights are
            dequantised to float32.
    Raises:
        MissingExtra: transformers, torch, or gguf for a GGUF file, is not installed.
        InputError: nothing there, or not a language model with a tokenizer.
        KeyMismatch: the file lacks parameters that the model has, so that they would be random.
    """
    if kind not in (None, "causal", "seq2seq"):
        raise UsageError(f"kind is {kind!r}; choose 'causal' or 'seq2seq'.")
    require_torch("A language model", "language")
    transformers = require_transformers("A language model", "language")
    known = parse_address(path).name if is_address(path) else None  # the cache's folder is named by the commit
    place = local(parse_address(path)) if known else Path(path)
    if place.is_file() and place.suffix == ".gguf":
        place, gguf_file = place.parent, place.name
    if not place.is_dir() and not HUB_ID.fullmatch(str(path)):
        raise InputError(
            f"{path} is no folder, no .gguf file, and no id on the hub such as 'org/name'. Give the folder of a transformers model."
        )
    folder = fetched(place, download=True, files=[gguf_file] if gguf_file else None)
    if gguf_file is None and not (folder / "config.json").exists():
        found = sorted(f.name for f in folder.glob("*.gguf"))
        if len(found) != 1:
            what = f"{len(found)} GGUF files ({some(found)}); name one with gguf_file" if found else "no config.json"
            raise InputError(f"{path} has {what}. A language model is a transformers folder or a GGUF file.")
        gguf_file = found[0]
    name = known or (Path(gguf_file).stem if gguf_file else (folder.name if place.is_dir() else str(path)))
    options = {"gguf_file": gguf_file} if gguf_file else {}
    if options:
        _require_gguf(folder / str(gguf_file))
    elif not any((folder / n).exists() for n in TOKENIZERS):
        raise InputError(
            f"{path} has no tokenizer (none of {', '.join(TOKENIZERS)}). Put the files of the model it was made from beside the weights."
        )
    if kind is None and gguf_file:
        kind = (
            "causal"  # llama.cpp's other models are rare, and reading the config takes as long as reading the weights
        )
    if kind is None:
        with opening(folder, "a language model"):
            config = transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True)
        kind = "seq2seq" if config.is_encoder_decoder else "causal"
    auto: Any = {"causal": transformers.AutoModelForCausalLM, "seq2seq": transformers.AutoModelForSeq2SeqLM}[kind]
    import torch

    bars = contextlib.redirect_stderr(io.StringIO()) if gguf_file else contextlib.nullcontext()  # gguf has its own
    with opening(folder / (gguf_file or ""), f"a {kind} language model"), torch.random.fork_rng(devices=[]), bars:
        module, report = auto.from_pretrained(
            str(folder), dtype=torch.float32, local_files_only=True, output_loading_info=True, **options
        )
    absent = sorted(report["missing_keys"])
    if absent:
        raise _lacking(folder, absent, type(module).__name__)
    module.eval().requires_grad_(False)
    with opening(folder / (gguf_file or ""), "a tokenizer"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True, **options)
    weights = None if gguf_file else _under_names(Checkpoint.read(folder, label=name), module)
    return LanguageModel(module, tokenizer, kind, name, weights)


def _lacking(folder: Path, absent: Sequence[str], kind: str) -> Exception:
    from ..errors import KeyMismatch

    return KeyMismatch(
        f"{folder} lacks {len(absent)} parameters of {kind} ({some(absent)}); they would be random. Name a whole language model."
    )


def _require_gguf(path: Path) -> None:
    if not path.exists():
        raise InputError(f"there is no GGUF file {path}.")
    for needed in ("gguf", "accelerate"):
        if importlib.util.find_spec(needed) is None:
            raise missing_extra(needed, "language", f"reading {path.name}")


def _under_names(weights: Checkpoint, module: torch.nn.Module) -> Checkpoint:
    """The weights under the module's names, where a file has others (a prefix) or more (buffers of older versions)."""
    known = {n for n, _ in module.named_parameters(remove_duplicate=False)} | {n for n, _ in module.named_buffers()}
    if all(n in known for n in weights.names):
        return weights
    table = Checkpoint.of(module, label="the module", copy=False)
    if all(n in weights.names for n in table.names):
        return weights.restrict([n for n in weights.names if n in known])
    return weights.shared(table)


@contextlib.contextmanager
def holding(model: LanguageModel, weights: Checkpoint | None) -> Iterator[Any]:
    """The module with these weights in the place of its own, which come back afterwards; not copied, so memory is one
    model more. None leaves it as it is. For one thread at a time.

    Raises:
        KeyMismatch: the weights do not fit the module.
    """
    module = model.module
    if weights is None:
        yield module
        return
    new = tensors(_under_names(weights, module), like=module, device=device_of(module))
    new = under_first_names(new, aliases(module))
    slots = {**dict(module.named_buffers()), **dict(module.named_parameters())}
    old = {n: slots[n].data for n in new}
    try:
        for n, t in new.items():
            slots[n].data = t.to(old[n].dtype)
        yield module
    finally:
        for n, t in old.items():
            slots[n].data = t


def loaded_with(model: LanguageModel, weights: Checkpoint | None) -> LanguageModel:
    """A model of the same form with these weights for good, in a module of its own; the model itself if there are none.

    Raises:
        KeyMismatch: the weights do not fit the module.
    """
    if weights is None:
        return model
    module = copy.deepcopy(model.module)
    twin = replace(model, module=module, name=weights.label, weights=weights)
    new = under_first_names(
        tensors(_under_names(weights, module), like=module, device=device_of(module)), aliases(module)
    )
    slots = {**dict(module.named_buffers()), **dict(module.named_parameters())}
    for n, t in new.items():
        slots[n].data = t.to(slots[n].dtype)
    return twin


def next_tokens(model: LanguageModel) -> torch.nn.Module:
    r"""The model as a function of one tensor, for `fit`, protocols and whatever else takes a module.

    Of a causal model: token ids ``[n, length]`` -> logits ``[n, vocabulary, length]``, at each position those of the token
    after it. Of a sequence-to-sequence model: ids ``[n, 2 length]``, the first half what the encoder reads, the second what
    the decoder has so far. Ids below 0 are padding. Parameters have the names that they have in the checkpoint.
    """
    import torch

    inner: Any = model.module
    answers = model.kind == "seq2seq"
    own = [name for name, _ in inner.named_parameters(recurse=False)]
    if own:
        raise UsageError(
            f"{type(inner).__name__} holds parameters outside its layers ({some(own)}); not supported yet."
        )

    class NextTokens(torch.nn.Module):
        """Token ids -> logits of the next tokens."""

        _inner: Any

        def __init__(self) -> None:
            super().__init__()
            for name, child in inner.named_children():
                self.add_module(name, child)
            # Beside the module table: as a child, `inner` would give every parameter a second, prefixed name.
            object.__setattr__(self, "_inner", inner)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            if answers:
                read, written = ids.chunk(2, dim=1)
                out = self._inner(
                    input_ids=read.clamp(min=0), attention_mask=(read >= 0).long(), decoder_input_ids=written.clamp(min=0),
                    use_cache=False,
                )  # fmt: skip
            else:  # padding comes after the text, where causal attention does not look
                out = self._inner(input_ids=ids.clamp(min=0), use_cache=False)
            return out.logits.transpose(1, 2)

    return NextTokens().eval()


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
    pad = _padding(model)
    with holding(model, weights) as module, torch.inference_mode():
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            width = max(len(rows[i]) for i in chosen)
            ids = torch.tensor([[pad] * (width - len(rows[i])) + rows[i] for i in chosen], device=device)
            mask = torch.tensor([[0] * (width - len(rows[i])) + [1] * len(rows[i]) for i in chosen], device=device)
            before = width if model.kind == "causal" else 1
            pick = _picking(model, [rows[i] for i in chosen], chosen, before, temperature, top_p, seed, banned)
            found = module.generate(
                input_ids=ids, attention_mask=mask, generation_config=_settings(module, tokens, pad), logits_processor=[pick]
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


def _padding(model: LanguageModel) -> int:
    config: Any = model.module.config
    known = (model.tokenizer.pad_token_id, config.pad_token_id, model.tokenizer.eos_token_id, 0)
    return int(next(t for t in known if t is not None))


def _settings(module: Any, tokens: int, pad: int) -> Any:
    """The likeliest token of the scores that `_picking` gives, whatever the folder's own generation settings are."""
    from transformers import GenerationConfig

    own = module.generation_config
    ends = own.eos_token_id if own.eos_token_id is not None else module.config.eos_token_id
    return GenerationConfig(
        max_new_tokens=tokens, do_sample=False, num_beams=1, repetition_penalty=1.0, no_repeat_ngram_size=0, pad_token_id=pad,
        eos_token_id=ends, min_length=0, use_cache=True, return_dict_in_generate=False,
    )  # fmt: skip


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
    """Which tokens are in the least set, likeliest first, whose probability reaches `top_p`."""
    values, order = scores.softmax(-1).sort(dim=-1, descending=True)
    inside = values.cumsum(-1) - values < top_p
    return inside.scatter(-1, order, inside)


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


@dataclass(frozen=True)
class Perplexity:
    r"""How well a model predicts texts. With L the summed negative log likelihood of the scored tokens, in nats:

    Args:
        token: :math:`\exp(L / \text{tokens})`.
        word: :math:`\exp(L / \text{words})`, words cut at white space; comparable between tokenizers.
        bits_per_byte: :math:`L / (\ln 2 \cdot \text{bytes})`; comparable between tokenizers.
        tokens: scored tokens: all but the first of each text.
        words, bytes: of the texts.
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
    words = sum(len(t.split()) for t in texts)
    size = sum(len(t.encode()) for t in texts)
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
    pad, device = _padding(model), device_of(model.module)
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
