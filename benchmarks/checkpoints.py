"""Llama-shaped bfloat16 checkpoints of random numbers, made at the speed of the disk; loadable by the peer.

    python benchmarks/checkpoints.py FOLDER --bytes 1e9 --models 4

Writes FOLDER/{base,a,b,...}. Drawing billions of normal numbers would take longer than the edits to be measured, so a
few tiles are drawn once (base values of a few scales, and fine-tuned values about 5e-4 away, each rounded to bfloat16
on its own) and every tensor is a tile read from another place on. Models differ from each other as fine-tuned ones do.
"""

from __future__ import annotations

import argparse
import json
import math
import string
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np

TILE = 1 << 21  # values
SCALES = ((0.015, 4e-4), (0.02, 5e-4), (0.03, 6e-4))  # (spread of the base, spread of the change), one pair a tile


def names(models: int) -> list[str]:
    return ["base", *string.ascii_lowercase[: models - 1]]


def shapes(size: float, layers: int = 0) -> tuple[dict[str, tuple[int, ...]], dict[str, object]]:
    """Tensors of about `size` bytes in all, or of `layers` tiny layers, and the model's configuration."""
    hidden, inner, vocabulary = (
        (16, 32, 64) if layers else (256, 704, 4096) if size < 40e6 else (1024, 2816, 8192) if size < 6e8 else (2048, 5632, 32000)
    )  # fmt: skip
    layer: dict[str, tuple[int, ...]] = {f"self_attn.{n}_proj.weight": (hidden, hidden) for n in "qkvo"}
    layer |= {f"mlp.{n}_proj.weight": (inner, hidden) for n in ("gate", "up")} | {
        "mlp.down_proj.weight": (hidden, inner),
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    a_layer = 2 * sum(math.prod(s) for s in layer.values())
    layers = layers or max(1, round((size - 4 * vocabulary * hidden) / a_layer))
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    tensors |= {f"model.layers.{i}.{n}": s for i in range(layers) for n, s in layer.items()}
    tensors |= {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": hidden // 8, "num_key_value_heads": hidden // 8,
        "vocab_size": vocabulary, "torch_dtype": "bfloat16", "tie_word_embeddings": False,
    }  # fmt: skip
    return tensors, config


def tiles(models: int) -> Iterator[list[np.ndarray]]:
    """The tiles of the base, then of each fine-tuned model."""
    draw = np.random.default_rng(0)
    base = [draw.standard_normal(TILE, np.float32) * spread for spread, _ in SCALES]
    base = [b.astype(ml_dtypes.bfloat16) for b in base]
    yield base
    for _ in range(models - 1):
        changes = [draw.standard_normal(TILE, np.float32) * change for _, change in SCALES]
        yield [(b.astype(np.float32) + c).astype(ml_dtypes.bfloat16) for b, c in zip(base, changes, strict=True)]


def write(path: Path, tensors: dict[str, tuple[int, ...]], tile: list[np.ndarray], first: int) -> None:
    """One safetensors file. `first` numbers its first tensor, so that equal names get equal places in every model."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in tensors.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb", buffering=0) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for number, shape in enumerate(tensors.values(), first):
            source = tile[number % len(tile)].view(np.uint16)
            at, left = number * 1_000_003 % TILE, math.prod(shape)
            while left:
                piece = source[at : at + left]
                file.write(piece.data)
                left, at = left - piece.size, 0


def make(folder: Path, size: float, models: int, *, shards: int = 1, layers: int = 0) -> None:
    tensors, config = shapes(size, layers)
    per = math.ceil(len(tensors) / shards)
    groups = [dict(list(tensors.items())[i : i + per]) for i in range(0, len(tensors), per)]
    for name, tile in zip(names(models), tiles(models), strict=True):
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        (place / "config.json").write_text(json.dumps(config))
        index: dict[str, str] = {}
        for i, group in enumerate(groups):
            file = "model.safetensors" if shards == 1 else f"model-{i + 1:05}-of-{len(groups):05}.safetensors"
            write(place / file, group, tile, i * per)
            index |= dict.fromkeys(group, file)
        if shards > 1:
            total = 2 * sum(math.prod(s) for s in tensors.values())
            text = json.dumps({"metadata": {"total_size": total}, "weight_map": index})
            (place / "model.safetensors.index.json").write_text(text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bytes", type=float, default=1e9)
    parser.add_argument("--models", type=int, default=4, help="the base and the fine-tuned ones")
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--layers", type=int, default=0, help="this many tiny layers, whatever the bytes")
    arguments = parser.parse_args()
    make(arguments.folder, arguments.bytes, arguments.models, shards=arguments.shards, layers=arguments.layers)
