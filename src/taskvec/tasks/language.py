"""Language modelling as a task: windows of tokens whose labels are the next tokens, from plain text, CSV or JSON lines.

The model that goes with such a task is `taskvec.models.language.next_tokens`: its outputs are the logits, so there is no head
beside it. The loss is the cross-entropy of the next token, the score the share of tokens that are right.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, UsageError, lacks_column, some, told
from ..models.functional import require_torch
from ..models.language import LanguageModel
from .task import IGNORED, Head, Split, Task
from .text import split_indices

PARTS = (0.8, 0.1, 0.1)  # training, validation, test
DOCUMENTS = 30  # with fewer, each text is cut into the three parts
INDEPENDENT = "intervals of the score take tokens for independent; those of a text are not"


@dataclass(frozen=True)
class Texts:
    """Documents of a file, each with an answer if the file has such a column. `empty` ones were left out and are counted."""

    name: str
    texts: tuple[str, ...]
    answers: tuple[str, ...] | None = None
    empty: int = 0

    def __len__(self) -> int:
        return len(self.texts)


def read_texts(
    path: str | Path, *, text: str = "text", answer: str | None = None, encoding: str = "utf-8", name: str | None = None
) -> Texts:
    """Documents of a ``.csv`` file with a header, of a ``.jsonl`` file of objects, or of any other: the whole as one document.

    A further ``.gz`` is unpacked.

    Args:
        text: column or key of the documents, or of the prompts.
        answer: column or key of what is to be said after them, for which alone the model is then trained.
        name: of the task; the file's name unless told.
    Raises:
        InputError: no such file, not text, a malformed row, no such column, or nothing but empty texts; says which line.
    """
    path = Path(path)
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    content = _content(path, encoding)
    wanted = (text,) if answer is None else (text, answer)
    rows: list[tuple[str, ...]]
    if suffix == ".csv":
        rows = _csv_rows(path, content, wanted)
    elif suffix in (".jsonl", ".ndjson"):
        rows = _json_rows(path, content, wanted)
    elif answer is None:
        rows = [(content,)]
    else:
        raise UsageError(
            f"{path} is plain text, which has no answers. Give a .csv or .jsonl file, or leave answer out."
        )
    kept = [r for r in rows if all(x.strip() for x in r)]
    if not kept:
        raise InputError(f"{path} has no text: {len(rows)} rows, all empty.")
    answers = None if answer is None else tuple(r[1] for r in kept)
    return Texts(name or path.name.split(".")[0], tuple(r[0] for r in kept), answers, len(rows) - len(kept))


def _content(path: Path, encoding: str) -> str:
    try:
        raw = path.read_bytes()
        return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode(encoding)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(
            f"{path}, line {line}: not {encoding} text. Save it as UTF-8; in Python `encoding` names another."
        ) from error
    except (EOFError, gzip.BadGzipFile) as error:
        raise InputError(f"{path} is not a gzip file: {error}.") from error
    except OSError as error:
        raise InputError(f"cannot read the texts {path}: {error.strerror}.") from error


def _csv_rows(path: Path, content: str, wanted: Sequence[str]) -> list[tuple[str, ...]]:
    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    rows = []
    try:
        header = next(reader, [])
        for column in wanted:
            if column not in header:
                raise InputError(lacks_column(str(path), column, header))
        places = [header.index(c) for c in wanted]
        for row in reader:
            if row and len(row) != len(header):
                raise InputError(f"{path}, line {reader.line_num}: expected {len(header)} fields, got {len(row)}.")
            if row:
                rows.append(tuple(row[i] for i in places))
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}.") from error
    return rows


def _json_rows(path: Path, content: str, wanted: Sequence[str]) -> list[tuple[str, ...]]:
    rows = []
    for i, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            found: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {i}: not JSON: {error}.") from error
        if not isinstance(found, dict) or not all(isinstance(found.get(k), str) for k in wanted):
            raise InputError(
                f"{path}, line {i}: expected an object with text under {some(wanted)}, got "
                f"{f'one with {told(found, 8)}' if isinstance(found, dict) else f'a {type(found).__name__}'}."
            )
        rows.append(tuple(found[k] for k in wanted))
    return rows


def language_task(
    model: LanguageModel, texts: Texts | Sequence[str], *, window: int = 128, parts: tuple[float, float, float] = PARTS,
    limit: int | None = None, seed: int = 0, name: str | None = None,
) -> Task:  # fmt: skip
    r"""Texts as a task of predicting the next token, for `next_tokens(model)`.

    Without answers, documents are joined, each followed by the end token, and cut into windows of `window` tokens, each of
    which predicts the `window` tokens that begin one later; the rest of a part is left out. With answers every prompt
    is a sample of its own, at most `window` tokens with its answer (a prompt that is too long loses its beginning), and only
    the answer's tokens and the end count. A sequence-to-sequence model needs answers.

    Thirty or more documents are dealt to training, validation and test whole, equal ones (with answers: equal pairs) to
    the same part; of fewer, each is cut into three parts in this order, so that no window crosses from one to
    another, and the pieces follow each other without end tokens.

    Args:
        model: gives the tokenizer and the size of the vocabulary.
        texts: documents, of `read_texts` or a list.
        window: tokens of a sample.
        parts: shares of training, validation and test.
        limit: most windows of training, drawn at random; the other parts keep in proportion to it.
        seed: chooses which document is in which part.
        name: of the task.
    Raises:
        InputError: too little text for a window in each part.
        UsageError: a window beyond the model's context, or a sequence-to-sequence model without answers.
    """
    require_torch("A language task")
    given = texts if isinstance(texts, Texts) else Texts(name or "texts", tuple(texts))
    if window < 2 or (model.longest is not None and window > model.longest):
        raise UsageError(f"window is {window}; {model.name} takes 2 to {model.longest or 'any number of'} tokens.")
    if limit is not None and limit < 1:
        raise UsageError(f"limit is {limit}; it must be at least 1.")
    if model.kind == "seq2seq" and given.answers is None:
        raise UsageError(
            f"{model.name} is a sequence-to-sequence model: it needs prompts and answers. Name the column of the answers."
        )
    rows = (
        _packed(model, given, window, parts, seed)
        if given.answers is None
        else _answered(model, given, window, parts, seed)
    )
    splits = []
    for which, share, part in zip(("training", "validation", "test"), parts, rows, strict=True):
        if limit is not None:
            most = max(1, round(limit * share / parts[0]))
            order = np.random.default_rng(seed).permutation(len(part))[:most]
            part = [part[i] for i in sorted(order)]
        if not part:
            raise InputError(
                f"task {name or given.name!r}: the {which} part has less than a window of {window} tokens. Give more text, a smaller "
                "window or other parts."
            )
        splits.append(_split(part))
    size = _vocabulary(model)
    classes = tuple(map(str, model.tokenizer.convert_ids_to_tokens(range(min(size, len(model.tokenizer))))))
    classes += tuple(f"<unused {i}>" for i in range(len(classes), size))
    return Task(name or given.name, splits[0], splits[1], splits[2], Head.own(size), classes, notes=(INDEPENDENT,))


def _vocabulary(model: LanguageModel) -> int:
    config: Any = model.module.config
    return int(config.get_text_config().vocab_size)


Sample = tuple[list[int], list[int]]  # ids and labels


def _split(samples: Sequence[Sample]) -> Split:
    import torch

    return Split(torch.tensor([x for x, _ in samples]), torch.tensor([y for _, y in samples]))


def _packed(model: LanguageModel, given: Texts, window: int, parts: Any, seed: int) -> list[list[Sample]]:
    """Windows of each part's joined documents."""
    end = model.tokenizer.eos_token_id
    streams: list[list[int]] = [[], [], []]
    documents = [list(model.tokenizer(t, verbose=False)["input_ids"]) for t in given.texts]
    if len(documents) >= DOCUMENTS:
        for stream, chosen in zip(streams, _dealt(given.texts, parts, seed), strict=True):
            for i in chosen:
                stream += documents[i] + ([end] if end is not None else [])
    else:
        for ids in documents:
            a, b = round(len(ids) * parts[0]), round(len(ids) * (parts[0] + parts[1]))
            for stream, piece in zip(streams, (ids[:a], ids[a:b], ids[b:]), strict=True):
                stream += piece
    return [
        [(s[i : i + window], s[i + 1 : i + window + 1]) for i in range(0, len(s) - window, window)] for s in streams
    ]


def _answered(model: LanguageModel, given: Texts, window: int, parts: Any, seed: int) -> list[list[Sample]]:
    """A padded sample of each prompt and its answer."""
    tokenizer, end = model.tokenizer, model.tokenizer.eos_token_id
    assert given.answers is not None

    def causal(prompt: str, answer: str) -> Sample:
        said = list(tokenizer(answer, add_special_tokens=False)["input_ids"]) + ([end] if end is not None else [])
        said = said[: window - 1]
        asked = list(tokenizer(prompt)["input_ids"])
        asked = asked[max(0, len(asked) + len(said) - window - 1) :]
        ids = asked + said
        labels = [IGNORED] * (len(asked) - 1) + said
        rest = window + 1 - len(ids)
        return ids[:-1] + [-1] * rest, labels + [IGNORED] * rest

    def answering(prompt: str, answer: str) -> Sample:
        read = list(tokenizer(prompt)["input_ids"])[:window]
        said = list(tokenizer(text_target=answer)["input_ids"])[:window]
        config: Any = model.module.config
        written = [config.decoder_start_token_id, *said[:-1]]
        rest = window - len(said)
        return read + [-1] * (window - len(read)) + written + [-1] * rest, said + [IGNORED] * rest

    make = causal if model.kind == "causal" else answering
    samples = [make(p, a) for p, a in zip(given.texts, given.answers, strict=True)]
    return [
        [samples[i] for i in chosen]
        for chosen in _dealt(list(zip(given.texts, given.answers, strict=True)), parts, seed)
    ]


def _dealt(texts: Sequence[Hashable], parts: tuple[float, float, float], seed: int) -> list[list[int]]:
    """Positions for training, validation and test; those of equal texts are all in one part."""
    places: dict[Hashable, list[int]] = {}
    for i, text in enumerate(texts):
        places.setdefault(text, []).append(i)
    alike = list(places.values())
    return [[i for k in chosen for i in alike[k]] for chosen in split_indices(len(alike), parts=parts, seed=seed)]
