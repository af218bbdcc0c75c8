"""Language models for tests: the TinyStories Llama of 260,032 parameters where it is, and tiny ones with random weights."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

SHARED = next((p / "shared" / "data" for p in Path(__file__).parents if (p / "shared" / "data").is_dir()), Path("none"))


def shared(*parts: str) -> Path:
    """A folder or file of the real data, or a skipped test."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"the real data are not here (../shared/data/{'/'.join(parts)})")
    return path


def stories(target: Path) -> Path:
    """The TinyStories Llama with its tokenizer as one folder of transformers."""
    source = shared("stories260k")
    shutil.copytree(source / "hf", target, copy_function=shutil.copyfile)
    target.chmod(0o755)
    table = (source / "tok512.bin").read_bytes()
    pieces, at = [], 4
    while at < len(table):
        score, size = struct.unpack_from("<fi", table, at)
        pieces.append((table[at + 8 : at + 8 + size].decode().replace(" ", "▁"), score))
        at += 8 + size
    names = ["<unk>", "<s>", "</s>", *(p for p, _ in pieces[3:])]
    vocabulary = {p: i for i, p in enumerate(names)}
    merges = []
    for piece, _ in sorted(pieces[259:], key=lambda p: -p[1]):  # after special tokens and bytes
        merges += [(piece[:i], piece[i:]) for i in range(1, len(piece)) if {piece[:i], piece[i:]} <= vocabulary.keys()]
    from tokenizers import Tokenizer, decoders, models, normalizers, processors

    inner = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])  # type: ignore
    inner.decoder = decoders.Sequence(  # type: ignore
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    inner.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 1)])  # type: ignore
    _wrapped(inner, target, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    return target


WORDS = "the a cat dog sat ran on mat road and then it was big small red happy sad saw ball ."


def sentences(n: int, seed: int = 0) -> list[str]:
    """Made-up sentences of few words, whose order a model can learn."""
    import random

    draw = random.Random(seed)
    return [
        f"the {draw.choice(['cat', 'dog'])} {draw.choice(['sat', 'ran'])} on a {draw.choice(['mat', 'road'])} and then it was {draw.choice(['happy', 'sad'])} ."
        for _ in range(n)
    ]


def tiny_gpt2(target: Path, *, seed: int = 0, vocabulary: Sequence[str] = (), positions: int = 64) -> Path:
    """A GPT-2 of one thousand to ten thousand random weights, with a tokenizer of bytes and a few words."""
    import torch
    import transformers

    inner = _byte_tokenizer(vocabulary or WORDS.split())
    end = inner.token_to_id("<|endoftext|>")
    config = transformers.GPT2Config(
        vocab_size=inner.get_vocab_size(), n_positions=positions, n_embd=16, n_layer=2, n_head=2, bos_token_id=end, eos_token_id=end,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.GPT2LMHeadModel(config)
    model.save_pretrained(target)
    _wrapped(inner, target, bos_token="<|endoftext|>", eos_token="<|endoftext|>")
    return target


def tiny_t5(target: Path, *, seed: int = 0) -> Path:
    """A T5 with random weights and a tokenizer of bytes and a few words."""
    import torch
    import transformers

    inner = _byte_tokenizer(WORDS.split())
    end = inner.token_to_id("<|endoftext|>")
    config = transformers.T5Config(
        vocab_size=inner.get_vocab_size(), d_model=16, d_kv=8, d_ff=24, num_layers=2, num_decoder_layers=2, num_heads=2, dropout_rate=0.0,
        pad_token_id=end, eos_token_id=end, decoder_start_token_id=end,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.T5ForConditionalGeneration(config)
    model.save_pretrained(target)
    _wrapped(inner, target, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    return target


def _byte_tokenizer(words: Sequence[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {b: i for i, b in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges: list[tuple[str, str]] = []
    for word in (f"Ġ{w}" for w in words):
        for i in range(2, len(word) + 1):
            if word[:i] not in vocabulary:
                vocabulary[word[:i]] = len(vocabulary)
                merges.append((word[: i - 1], word[i - 1]))
    vocabulary["<|endoftext|>"] = len(vocabulary)
    inner = Tokenizer(models.BPE(vocabulary, merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore
    inner.decoder = decoders.ByteLevel()  # type: ignore
    return inner


def _wrapped(inner: Any, target: Path, **special: str) -> None:
    import transformers

    transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, clean_up_tokenization_spaces=False, **special
    ).save_pretrained(target)
