"""Tokenizers of merged models: whose files the output gets, and whether the models number tokens alike."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from ..errors import InputError, UsageError, some
from .mergekit import Config

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.txt", "vocab.json", "merges.txt", "spiece.model", "chat_template.jinja", "chat_template.json",
)  # fmt: skip


def tokenizer_files(config: Config, folders: Mapping[str, Path], here: Path) -> dict[str, bytes]:
    """The tokenizer files of the model that the config names.

    Args:
        config: the document.
        folders: model -> its folder.
        here: the folder of the config.
    Raises:
        InputError: tokenizers that number tokens differently, whose embeddings would have to be brought together.
    """
    folders = dict(folders)
    if config.tokenizer is None:
        return {}
    source = config.base if config.tokenizer == "base" else config.tokenizer
    if source is None:
        raise UsageError("the tokenizer source `base` needs `base_model`.")
    if source not in folders and here.joinpath(source).is_dir():
        folders[source] = here / source
    if source not in folders:
        raise InputError(f"the tokenizer source {source!r} is none of the folders that the config names.")
    tables = {m: _vocabulary(f) for m, f in folders.items()}
    mine = tables[source]
    for model, theirs in tables.items():
        if mine is not None and theirs is not None and mine != theirs:
            apart = sorted({t for t, _ in mine.items() ^ theirs.items()})
            raise InputError(
                f"the tokenizers of {source} and {model} differ in {len(apart)} tokens ({some(apart)}). Bringing embeddings of "
                "different vocabularies together is not available yet."
            )
    return {f: (folders[source] / f).read_bytes() for f in TOKENIZER_FILES if (folders[source] / f).is_file()}


def _vocabulary(folder: Path) -> dict[str, int] | None:
    """Token -> number, where the folder says so in a form that needs no tokenizer library."""
    try:
        if (folder / "tokenizer.json").is_file():
            table = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
            vocab = table["model"]["vocab"]
            found = vocab if isinstance(vocab, dict) else {entry[0]: i for i, entry in enumerate(vocab)}
            return {**found, **{t["content"]: t["id"] for t in table.get("added_tokens", [])}}
        if (folder / "vocab.json").is_file():
            return json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        if (folder / "vocab.txt").is_file():
            lines = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
            return {t: i for i, t in enumerate(lines) if t}
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        pass
    return None
