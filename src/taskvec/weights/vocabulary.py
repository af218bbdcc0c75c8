"""Vocabularies: which token each row of a model's embeddings stands for, as the tokenizer files beside it say.

Read without a tokenizer library from tokenizer.json (BPE, WordPiece, Unigram, word level), or from vocab.json or vocab.txt
with added_tokens.json and tokenizer_config.json; a SentencePiece model alone is read through transformers.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError, NotACheckpoint, missing_extra, quoted, some
from ..files import exists
from .safetensors import unique

# What a tokenizer may consist of. The first three, and the SentencePiece models, hold its tokens.
TOKENIZER_FILES = (
    "tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt", "chat_template.jinja",
    "chat_template.json",
)  # fmt: skip
PLAIN = ("tokenizer.json", "vocab.json", "vocab.txt")  # read without a library
READS_PIECES = {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"}  # library -> module
PIECES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
LARGEST_ID = 10_000_000  # no embedding has so many rows; a table of places as long as a damaged file says is not made


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Tokens and the rows they have.

    Args:
        label: whose it is, for messages.
        tokens: token -> row.
        folder: where its files lie.
        kind: the tokenizer's model: "BPE", "WordPiece", "Unigram", "WordLevel", or empty if the files do not say.
        added: those of the tokens that were added to the model's own: special tokens and the like.
    """

    label: str
    tokens: Mapping[str, int]
    folder: Path
    kind: str = ""
    added: frozenset[str] = field(default_factory=frozenset)

    @property
    def size(self) -> int:
        """The rows that the tokens need: one more than the largest."""
        return 1 + max(self.tokens.values(), default=-1)

    def below(self, rows: int | None) -> Mapping[str, int]:
        """The tokens that have a row in an embedding of so many."""
        if rows is None or self.size <= rows:
            return self.tokens
        return {t: i for t, i in self.tokens.items() if i < rows}

    def digest(self) -> str:
        return hashlib.blake2b(repr(sorted(self.tokens.items())).encode(), digest_size=16).hexdigest()


def has_tokenizer(folder: Path | None) -> bool:
    return folder is not None and any(exists(folder / n) for n in (*PLAIN, *PIECES))


def lacking_pieces(folder: Path) -> str:
    """What to install for a folder's tokenizer, where it is a SentencePiece model alone; transformers names another library."""
    if any(exists(folder / n) for n in PLAIN) or not any(exists(folder / n) for n in PIECES):
        return ""
    absent = [library for library, module in READS_PIECES.items() if not _importable(module)]
    return f" A SentencePiece model takes {' and '.join(absent)}: pip install 'taskvec[language]'." if absent else ""


def _importable(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def read_vocabulary(folder: Path, label: str) -> Vocabulary:
    """The vocabulary of the tokenizer in a folder.

    Raises:
        InputError: no tokenizer, or a damaged one: a token or a row twice, rows that are no numbers.
        MissingExtra: a SentencePiece model, which is read through transformers.
    """
    if not has_tokenizer(folder):
        raise InputError(
            f"{label}: no tokenizer lies beside the weights (expected tokenizer.json, vocab.json or vocab.txt in {folder}), so "
            "which token a row stands for is unknown. Copy the files of the model it was trained from into that folder."
        )
    stats = tuple((n, s.st_mtime_ns, s.st_size) for n in TOKENIZER_FILES if (s := _stat(folder / n)) is not None)
    kind, tokens, added = _read(folder, stats)
    return Vocabulary(label, tokens, folder, kind, added)


def _stat(path: Path) -> Any:
    try:
        return path.stat()
    except OSError:
        return None


@functools.lru_cache(maxsize=16)  # every model of an edit asks for those of all others
def _read(folder: Path, stats: Any) -> tuple[str, Mapping[str, int], frozenset[str]]:
    kind, found, added = "", [], {}
    if exists(folder / "tokenizer.json"):
        path = folder / "tokenizer.json"
        kind, found, added = from_json(read_json(path), path)
        more = added_in_config(folder)
        taken = {i for _, i in found} | set(added.values())
        known = {t for t, _ in found} | added.keys()
        added |= {t: i for t, i in more.items() if t not in known and i not in taken}  # else tokenizer.json counts
    elif exists(folder / "vocab.json"):
        path = folder / "vocab.json"
        found, kind = list(_table(read_json(path), path)), "BPE" if exists(folder / "merges.txt") else "WordLevel"
        added = added_in_config(folder)
    elif exists(folder / "vocab.txt"):
        path = folder / "vocab.txt"
        lines = _text(path).split("\n")
        found = [(line.removesuffix("\r"), i) for i, line in enumerate(lines) if line or i < len(lines) - 1]
        kind, added = "WordPiece", added_in_config(folder)
    else:
        path = folder / next(n for n in PIECES if exists(folder / n))
        found = list(_table(_through_transformers(folder, path), path))
    return kind, _checked([*found, *added.items()], path), frozenset(added)


def from_json(table: Any, path: Path) -> tuple[str, list[tuple[str, int]], dict[str, int]]:
    """The model's kind, its tokens, and the tokens that were added to them, of a tokenizer.json."""
    try:
        vocab, kind = table["model"]["vocab"], str(table["model"].get("type") or "")
        if isinstance(vocab, list):
            found = [(entry[0], i) for i, entry in enumerate(vocab)]
        else:
            found = list(_table(vocab, path))
        added = {t["content"]: t["id"] for t in table.get("added_tokens") or []}
        if len(added) < len(table.get("added_tokens") or []):
            raise InputError(f"{path}: a token is added twice.")
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(f"{path} is not a tokenizer: no table of tokens was found ({type(error).__name__}).") from None
    return kind or ("Unigram" if isinstance(vocab, list) else ""), found, added


def added_in_config(folder: Path) -> dict[str, int]:
    """Tokens that only added_tokens.json or tokenizer_config.json name."""
    out: dict[str, int] = {}
    path = folder / "added_tokens.json"
    if exists(path):
        out |= dict(_table(read_json(path), path))
    path = folder / "tokenizer_config.json"
    if exists(path):
        table = read_json(path)
        entries = table.get("added_tokens_decoder") if isinstance(table, dict) else None
        for i, entry in (entries if isinstance(entries, dict) else {}).items():
            token = entry.get("content") if isinstance(entry, dict) else None
            if not isinstance(token, str) or not i.isdecimal():
                raise InputError(
                    f"{path}: added_tokens_decoder has the entry {quoted(i)}: {quoted(entry)}, which is no token."
                )
            out.setdefault(token, int(i))
    return out


def _checked(pairs: Iterable[tuple[Any, Any]], path: Path) -> dict[str, int]:
    out: dict[str, int] = {}
    for token, i in pairs:
        if not isinstance(token, str) or type(i) is not int or i < 0 or i > LARGEST_ID:
            raise InputError(
                f"{path}: the token {quoted(token)} has the number {quoted(i)}, which is no row of an embedding."
            )
        if out.setdefault(token, i) != i:
            raise InputError(
                f"{path}: the token {quoted(token)} has two numbers, {out[token]} and {i}; which one counts is unclear."
            )
    if len(set(out.values())) < len(out):
        seen: dict[int, str] = {}
        other, token = next((seen[i], t) for t, i in out.items() if seen.setdefault(i, t) != t)
        raise InputError(f"{path}: the tokens {quoted(other)} and {quoted(token)} have one number, {out[token]}.")
    try:
        "".join(out).encode()
    except UnicodeEncodeError:
        raise InputError(f"{path}: a token holds half of a surrogate pair, which is no text.") from None
    return out


def _table(table: Any, path: Path) -> Iterable[tuple[str, Any]]:
    if not isinstance(table, dict):
        raise InputError(f"{path} is not a table of tokens.")
    return table.items()


def read_json(path: Path) -> Any:
    """A JSON file without a key twice.

    Raises:
        InputError: it is none.
    """
    try:
        return json.loads(_text(path), object_pairs_hook=unique)
    except NotACheckpoint as error:
        raise InputError(f"{path} {error}.") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({type(error).__name__}).") from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {type(error).__name__}.") from None


def _through_transformers(folder: Path, path: Path) -> dict[str, int]:
    return dict(_auto(folder, path).get_vocab())


def _auto(folder: Path, path: Path) -> Any:
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise missing_extra("transformers", "hf", f"reading {path}, a SentencePiece model,") from None
    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of many kinds; all mean the same to a user
        raise InputError(
            f"{path}: transformers cannot read this tokenizer ({type(error).__name__}).{lacking_pieces(folder)} Save it as a fast "
            "tokenizer (AutoTokenizer.from_pretrained(...).save_pretrained(...)), which gives a tokenizer.json."
        ) from None


def fast_json(folder: Path) -> dict[str, Any]:
    """The tokenizer of a folder as the table that tokenizer.json holds, converted by transformers where there is no such file."""
    path = folder / "tokenizer.json"
    if exists(path):
        return read_json(path)
    tokenizer = getattr(_auto(folder, path), "backend_tokenizer", None)
    if tokenizer is None:
        raise InputError(f"the tokenizer in {folder} has no tokenizer.json, and cannot be written as one.")
    return json.loads(tokenizer.to_str())


def union(vocabularies: Iterable[tuple[Vocabulary, int | None]]) -> dict[str, int]:
    """The tokens of all: the first one's keep their rows, further ones follow, model after model in the order of their rows.

    Args:
        vocabularies: each with the rows of its model's embedding; tokens beyond have none and do not count.
    Example:
        >>> a = Vocabulary("a", {"x": 0, "y": 1}, Path())
        >>> b = Vocabulary("b", {"z": 0, "x": 1}, Path())
        >>> union([(a, 2), (b, 2)])
        {'x': 0, 'y': 1, 'z': 2}
    """
    out: dict[str, int] = {}
    following = 0
    for i, (vocabulary, rows) in enumerate(vocabularies):
        held = vocabulary.below(rows)
        if i == 0:
            out = dict(held)
            following = 1 + max(out.values(), default=-1)
            continue
        for token in sorted(held, key=held.__getitem__):
            if token not in out:
                out[token] = following
                following += 1
    return out


@dataclass(frozen=True)
class Apart:
    """How two vocabularies differ: tokens that are not in both under one number, and how many of them clash.

    A clash is a token with two numbers, or a number with two tokens; a token that only one has, at a row the other leaves free, is
    none.
    """

    tokens: tuple[str, ...]
    clashes: int

    def __str__(self) -> str:
        return f"{len(self.tokens):,} token{'s' if len(self.tokens) != 1 else ''} ({some(self.tokens)})"


def apart(a: Mapping[str, int], b: Mapping[str, int]) -> Apart:
    """How two vocabularies differ."""
    if a == b:
        return Apart((), 0)
    tokens = dict(sorted(a.items() ^ b.items(), key=lambda pair: pair[1]))
    mine, theirs = ({i: t for t, i in v.items()} for v in (a, b))
    clash = {t for t in tokens if t in a and t in b} | {
        t for t in tokens if (t in a and a[t] in theirs) or (t in b and b[t] in mine)
    }
    return Apart(tuple(tokens), len(clash))
