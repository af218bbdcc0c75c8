"""The tokenizer of an aligned model, and the numbers in its config that speak of tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import exists
from .aligned import Rows, rows_of, vocabulary_of
from .graph import Node
from .vocabulary import TOKENIZER_FILES, fast_json, read_json, read_vocabulary

# Files that only a tokenizer.json made anew makes stale.
OLDER = (
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "added_tokens.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
LISTS = ("suppress_tokens", "begin_suppress_tokens")  # of token numbers, in generation configs


def tokenizer_files(node: Node) -> dict[str, bytes]:
    """The tokenizer files that the folder of an aligned model gets: those of the vocabulary's owner, or a union of several.

    Raises:
        InputError: tokenizers that cannot be brought together.
    """
    rows: Rows = node.params["rows"]
    target = rows.vocabulary
    folder = target.folder
    found = {n: (folder / n).read_bytes() for n in TOKENIZER_FILES if (folder / n).is_file()}
    if read_vocabulary(folder, target.label).tokens == target.tokens:
        return found
    folders = list(dict.fromkeys(vocabulary_of(node.inputs[i], target.label).folder for i in rows.owners))
    table = union_json([fast_json(f) for f in folders], target.tokens, target.added)
    out = {n: content for n, content in found.items() if n not in OLDER}
    out["tokenizer.json"] = (json.dumps(table, indent=2, ensure_ascii=False) + "\n").encode()
    if "tokenizer_config.json" in out:
        config = read_json(folder / "tokenizer_config.json")
        if isinstance(config, dict) and isinstance(config.get("added_tokens_decoder"), dict):
            fields = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
            config["added_tokens_decoder"] = {
                str(t["id"]): {f: t.get(f) for f in fields} for t in table["added_tokens"]
            }
            out["tokenizer_config.json"] = (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
    return out


def union_json(tables: list[Any], tokens: Mapping[str, int], added: Iterable[str] = ()) -> dict[str, Any]:
    """One tokenizer.json for the given numbers of tokens, of several of one kind; how a text is cut up is the first one's.

    The vocabulary holds every token, added ones too: a tokenizer numbers those that it does not hold anew. The merges of BPE are the
    first one's, then those of the others that it lacks, in their order.

    Args:
        tables: what the tokenizer.json of each holds.
        tokens: token -> number; tokens of the tables that are not mentioned are left out.
        added: tokens to be found in a text before it is cut up, beside those that the tables say so of.
    """
    first = dict(tables[0])
    model = dict(first["model"])
    first["model"] = model
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        said = {json.dumps(t["model"].get(key) or None) for t in tables}
        if len(said) > 1:
            raise InputError(f"a union needs tokenizers of one kind; they differ in {key} ({', '.join(sorted(said))}).")
    if isinstance(model["vocab"], list):
        model["vocab"] = _pieces(tables, tokens)
        if isinstance(model.get("unk_id"), int):
            model["unk_id"] = tokens.get(tables[0]["model"]["vocab"][model["unk_id"]][0])
    else:
        model["vocab"] = dict(sorted(tokens.items(), key=lambda pair: pair[1]))
    if "merges" in model:
        model["merges"] = _merges(tables, tokens)
    entries: dict[str, dict[str, Any]] = {}
    for table in tables:
        for entry in table.get("added_tokens") or []:
            if entry["content"] in tokens:
                entries.setdefault(entry["content"], entry)  # the first one's settings count
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    for token in added:
        if token in tokens:
            entries.setdefault(token, {"content": token, **plain})
    numbered = [{"id": tokens[t], **{k: v for k, v in e.items() if k != "id"}} for t, e in entries.items()]
    first["added_tokens"] = sorted(numbered, key=lambda e: e["id"])
    return first


def _pieces(tables: list[Any], tokens: Mapping[str, int]) -> list[list[Any]]:
    """A Unigram vocabulary, whose numbers are places in a list; tokens without a score get one below all others."""
    scores: dict[str, float] = {}
    for table in tables:
        for piece, score in table["model"]["vocab"]:
            scores.setdefault(piece, score)
    least = min(scores.values(), default=0.0) - 10
    by_id = {i: t for t, i in tokens.items()}
    out, free = [], 0
    for i in range(max(by_id, default=-1) + 1):
        if i not in by_id:  # a place without a token still needs a piece
            while f"<unused_{free}>" in scores or f"<unused_{free}>" in tokens:
                free += 1
            by_id[i] = f"<unused_{free}>"
            free += 1
        out.append([by_id[i], scores.get(by_id[i], least)])
    return out


def _merges(tables: list[Any], tokens: Mapping[str, int]) -> list[Any]:
    seen: set[tuple[str, str]] = set()
    out: list[Any] = []
    pairs = [isinstance(m, list) for t in tables for m in t["model"].get("merges") or []]
    as_list = any(pairs)  # newer files write pairs, older ones a text with a space
    for table in tables:
        for merge in table["model"].get("merges") or []:
            a, b = merge if isinstance(merge, list) else merge.split(" ", 1)
            if (a, b) not in seen and {a, b, a + b} <= tokens.keys():
                seen.add((a, b))
                out.append([a, b] if as_list else f"{a} {b}")
    return out


def tell_vocabulary(files: dict[str, bytes], node: Node) -> None:
    """Put the new number of rows and the new numbers of special tokens into the configs of an aligned model."""
    rows: Rows = node.params["rows"]
    old = vocabulary_of(node.inputs[0], "the model").tokens
    before = rows_of(node.inputs[0].spec[min(rows.tensors)])
    text = {i: t for t, i in old.items()}
    for name in ("config.json", "generation_config.json"):
        if name not in files:
            continue
        try:
            table = json.loads(files[name])
        except (ValueError, RecursionError):  # not ours to understand: it stays as it is
            continue
        theirs = _config(rows.vocabulary.folder / name)
        if isinstance(table, dict):
            _renumber(table, theirs, text, rows.vocabulary.tokens)
            if name == "config.json":
                _resize(table, before, len(rows.which))
            files[name] = (json.dumps(table, indent=2, ensure_ascii=False) + "\n").encode()


def _config(path: Path) -> dict[str, Any]:
    try:
        table = json.loads(path.read_text(encoding="utf-8")) if exists(path) else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return table if isinstance(table, dict) else {}


def _resize(table: dict[str, Any], before: int, after: int) -> None:
    """`vocab_size`, at the top or in a section, where it is that of the embedding; else the one at the top."""
    sections = [table, *(v for v in table.values() if isinstance(v, dict))]
    fitting = [s for s in sections if s.get("vocab_size") == before]
    for section in fitting or [s for s in sections[:1] if "vocab_size" in s]:
        section["vocab_size"] = after


def _renumber(
    table: dict[str, Any], theirs: Mapping[str, Any], text: Mapping[int, str], new: Mapping[str, int]
) -> None:
    """Numbers of tokens by the new vocabulary; one whose token is not in it becomes what the vocabulary's owner has there."""

    def moved(value: Any, otherwise: Any) -> Any:
        if isinstance(value, list):
            found = [moved(v, None) for v in value]
            kept = [v for v in found if v is not None]
            return kept or otherwise
        if type(value) is not int or value < 0:
            return value
        token = text.get(value)
        return otherwise if token is None else new.get(token, otherwise)

    for key, value in table.items():
        if isinstance(value, dict):
            inner = theirs.get(key)
            _renumber(value, inner if isinstance(inner, dict) else {}, text, new)
        elif key.endswith(("_token_id", "_token_ids", "_token_index")) or key in LISTS:
            table[key] = moved(value, theirs.get(key))
