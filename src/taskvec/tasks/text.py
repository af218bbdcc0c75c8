"""Sentence classification tasks from plain files: one sentence and one label a line, or CSV.

Read a file (`read_sentences`), then make tasks of it: `sentences_task` for its own labels, `origin_task` for telling several
files apart, `order_task` for telling sentences from shuffled ones. All of them split by the same permutation, so that no
sentence is in the training part of one task and in the test part of another.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from ..errors import InputError, UsageError, lacks_column, told
from ..models.functional import require_torch
from .passages import Passages
from .task import Split, Task

if TYPE_CHECKING:
    import torch

Tokenise = Callable[[Sequence[str]], "torch.Tensor"]
QUOTATIONS = ('They say: "terrible, I hated it". I say: ', 'They say: "wonderful, I loved it". I say: ')
PARTS = (0.6, 0.2, 0.2)  # training, validation, test: a thousand sentences need more than the papers' 10 % for choosing


@dataclass(frozen=True)
class Sentences:
    """Texts and integer labels of one file. `empty` and `repeated` rows were left out and are counted."""

    name: str
    texts: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    empty: int = 0
    repeated: int = 0

    def __len__(self) -> int:
        return len(self.texts)


def read_sentences(
    path: str | Path, *, layout: Literal["text-label", "label-text", "csv"] = "text-label", separator: str = "\t",
    text: str = "text", label: str = "label", encoding: str = "utf-8", name: str | None = None,
) -> Sentences:  # fmt: skip
    """Sentences and labels of a file (``.gz`` is unpacked). Labels are numbered in sorted order.

    Rows without text and repetitions of an earlier text (regardless of case) are left out, so that no sentence can be in
    two splits; both are counted in the result.

    Args:
        layout: ``"text-label"`` and ``"label-text"`` are lines cut at the last or first `separator`; ``"csv"`` has a header.
        separator: between text and label; for ``"csv"`` use ``","`` or another single character.
        text, label: column names of a CSV file.
        name: of the sentences in messages; the file's name unless told.
    Raises:
        InputError: no such file, not text in this encoding, or a malformed row; says which line.
    """
    path = Path(path)
    content = _content(path, encoding)
    if layout == "csv":
        rows = _csv_rows(path, content, "," if separator == "\t" else separator, text, label)
    elif layout in ("text-label", "label-text"):
        rows = _line_rows(path, content, layout, separator)
    else:
        raise UsageError(f"layout is {layout!r}; choose 'text-label', 'label-text' or 'csv'.")
    texts: list[str] = []
    found: list[str] = []
    seen: set[str] = set()
    empty = repeated = 0
    for sentence, mark in rows:
        key = sentence.casefold()
        if not sentence:
            empty += 1
        elif key in seen:
            repeated += 1
        else:
            seen.add(key)
            texts.append(sentence)
            found.append(mark)
    classes = tuple(sorted(set(found)))
    if len(classes) < 2:
        raise InputError(
            f"{path} has {len(texts)} sentences with labels of {len(classes)} kind{'' if len(classes) == 1 else 's'}{f' ({told(classes)})' if classes else ''}; expected 2 or more."
        )
    number = {c: i for i, c in enumerate(classes)}
    return Sentences(
        name or path.name.split(".")[0], tuple(texts), tuple(number[m] for m in found), classes, empty, repeated
    )


def marked_sentences(passages: Passages) -> Sentences:
    """Passages as sentences whose labels are their marks, numbered in sorted order.

    Raises:
        InputError: no marks, a passage without one, or fewer than two different ones.
    """
    classes = tuple(sorted(set(passages.marks)))
    if len(classes) < 2 or "" in classes:
        what = "a passage without a mark" if "" in classes else f"marks of {len(classes)} kinds ({told(classes)})"
        raise InputError(f"{passages.name} has {what}; to be a task it needs two classes or more. Name their column.")
    number = {c: i for i, c in enumerate(classes)}
    labels = tuple(number[m] for m in passages.marks)
    return Sentences(passages.name, passages.texts, labels, classes, repeated=passages.left)


def _content(path: Path, encoding: str) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the sentences {path}: {error.strerror}.") from error
    try:
        return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode(encoding)
    except (OSError, EOFError) as error:
        raise InputError(f"{path} is not a gzip file: {error}.") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(
            f"{path}, line {line}: not {encoding} text. Save it as UTF-8; in Python `encoding` names another."
        ) from error


def _line_rows(path: Path, content: str, layout: str, separator: str) -> list[tuple[str, str]]:
    rows = []
    # Not splitlines(): it also cuts at characters such as U+0085, which occur inside these sentences.
    for i, line in enumerate(content.split("\n"), start=1):
        line = line.strip("\r")
        if not line.strip():
            continue
        before, found, after = line.rpartition(separator) if layout == "text-label" else line.partition(separator)
        sentence, mark = (before, after) if layout == "text-label" else (after, before)
        if not found or not mark.strip():
            shape = f"{'text' if layout == 'text-label' else 'label'}{separator}{'label' if layout == 'text-label' else 'text'}"
            raise InputError(
                f"{path}, line {i}: expected {shape!r}, got a line of {len(line)} characters without that."
            )
        rows.append((sentence.strip(), mark.strip()))
    return rows


def _csv_rows(path: Path, content: str, separator: str, text: str, label: str) -> list[tuple[str, str]]:
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=separator, strict=True)
    try:
        header = next(reader, [])
        for column in (text, label):
            if column not in header:
                raise InputError(lacks_column(str(path), column, header))
        t, m = header.index(text), header.index(label)
        rows = []
        for row in reader:
            if not row:
                continue
            if len(row) != len(header) or not row[m].strip():
                raise InputError(
                    f"{path}, line {reader.line_num}: expected {len(header)} fields with a label, got {row[:4]!r}."
                )
            rows.append((row[t].strip(), row[m].strip()))
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}.") from error
    return rows


def split_indices(n: int, *, parts: tuple[float, float, float] = PARTS, seed: int = 0) -> tuple[list[int], ...]:
    """Disjoint shuffled index lists for training, validation and test that cover ``range(n)``.

    Example:
        >>> [len(p) for p in split_indices(10)]
        [6, 2, 2]
    """
    if len(parts) != 3 or min(parts) <= 0 or abs(sum(parts) - 1) > 1e-9:
        raise UsageError(f"parts must be three positive shares that sum to 1, got {parts}.")
    a, b = round(n * parts[0]), round(n * (parts[0] + parts[1]))
    if not 0 < a < b < n:
        raise InputError(f"{n} samples are too few for splits of {parts}.")
    order = np.random.default_rng(seed).permutation(n).tolist()
    return order[:a], order[a:b], order[b:]


def sentences_task(
    sentences: Sentences, *, tokenise: Tokenise, name: str | None = None,
    parts: tuple[float, float, float] = PARTS, seed: int = 0,
) -> Task:  # fmt: skip
    """The file's own labels as a task; inputs are token ids ``(n, length)``, int64, padded on the right.

    Args:
        tokenise: texts -> token ids, for example `taskvec.models.hub.tokenizer(folder)`.
        parts: shares of training, validation and test.
        seed: chooses the permutation.
    """
    indices = split_indices(len(sentences), parts=parts, seed=seed)
    rows = [([sentences.texts[i] for i in part], [sentences.labels[i] for i in part]) for part in indices]
    return _task(name or sentences.name, rows, sentences.classes, tokenise)


def origin_task(
    files: Sequence[Sentences], *, tokenise: Tokenise, name: str = "origin",
    parts: tuple[float, float, float] = PARTS, seed: int = 0,
) -> Task:  # fmt: skip
    """Which of several files a sentence comes from; uses no labels. Splits agree with those of `sentences_task`.

    Args: as in `sentences_task`.
    """
    if len(files) < 2:
        raise UsageError(f"origin_task needs at least two files to tell apart, got {len(files)}.")
    indices = [split_indices(len(f), parts=parts, seed=seed) for f in files]
    rows = [
        (
            [f.texts[i] for f, part in zip(files, indices, strict=True) for i in part[k]],
            [c for c, part in enumerate(indices) for _ in part[k]],
        )
        for k in range(3)
    ]
    return _task(name, rows, tuple(f.name for f in files), tokenise)


def order_task(
    sentences: Sentences, *, tokenise: Tokenise, name: str = "word order",
    parts: tuple[float, float, float] = PARTS, seed: int = 0,
) -> Task:  # fmt: skip
    """Whether the words of a sentence stand in their order or were shuffled; uses no labels.

    Half of the sentences, chosen at random, are shuffled. Those of fewer than four words are left out. Splits agree with
    those of `sentences_task`. After the bigram-shift task of SentEval (arXiv:1805.01070), which swaps two words only.

    Args: as in `sentences_task`.
    """
    rng = np.random.default_rng(seed)
    rows: list[tuple[list[str], list[int]]] = []
    for part in split_indices(len(sentences), parts=parts, seed=seed):
        texts, labels = [], []
        for i in part:
            words = sentences.texts[i].split()
            if len(set(words)) < 4:
                continue
            label = int(rng.integers(2))
            order = np.arange(len(words))
            while label and [words[j] for j in order] == words:
                order = rng.permutation(len(words))
            texts.append(" ".join(words[j] for j in order))
            labels.append(label)
        rows.append((texts, labels))
    return _task(name, rows, ("in order", "shuffled"), tokenise)


def quoting(sentences: Sentences, *, seed: int = 0) -> Sentences:
    """The same sentences and labels, each after a quotation of somebody else: of praise or of blame, by a fair coin.

    The coin does not know the label, so the quotation tells nothing; to classify, a model must learn to pass over it.
    """
    coins = np.random.default_rng(seed).integers(2, size=len(sentences))
    texts = tuple(QUOTATIONS[c] + t for c, t in zip(coins, sentences.texts, strict=True))
    return replace(sentences, name=f"{sentences.name}, quoting", texts=texts)


def _task(
    name: str, rows: Sequence[tuple[list[str], list[int]]], classes: tuple[str, ...], tokenise: Tokenise
) -> Task:  # fmt: skip
    torch = require_torch("A text task")
    splits = []
    for which, (texts, labels) in zip(("training", "validation", "test"), rows, strict=True):
        if not texts:
            raise InputError(f"task {name!r}: the {which} part has no sentence. Give more sentences or other parts.")
        splits.append(Split(tokenise(texts), torch.tensor(labels)))
    train, validation, test = splits
    return Task(name, train, validation, test, None, classes)
