"""Passages: texts with, perhaps, a mark and a group each, from plain files. What language models read, continue and are scored on.

Messages name files, columns and lines, never the text itself: such files may hold offensive language.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import importlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, UsageError, lacks_column, missing_extra, nearest, some, told

KINDS = (".txt", ".csv", ".tsv", ".jsonl", ".parquet")


@dataclass(frozen=True)
class Passages:
    """Texts, and for each of them its mark and its group as the file writes them; both may be empty.

    `left` counts rows that were left out, because they had no text or repeated an earlier one (regardless of case).
    """

    name: str
    texts: tuple[str, ...]
    marks: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    left: int = 0

    def __post_init__(self) -> None:
        n = len(self.texts)
        if len(self.marks) not in (0, n) or len(self.groups) not in (0, n):
            raise UsageError(
                f"{self.name}: {n} texts need as many marks and groups, or none; got {len(self.marks)} and {len(self.groups)}."
            )

    def __len__(self) -> int:
        return len(self.texts)

    def sha256(self) -> str:
        """Hash of all that is there: tells whether the data is what it was."""
        said = json.dumps([self.texts, self.marks, self.groups], ensure_ascii=True)
        return hashlib.sha256(said.encode()).hexdigest()

    def take(self, rows: Sequence[int]) -> Passages:
        """Some of them, in the order of `rows`."""

        def of(values: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(values[i] for i in rows) if values else ()

        return replace(self, texts=of(self.texts), marks=of(self.marks), groups=of(self.groups))

    def keep(self, marks: Sequence[str]) -> Passages:
        """Those with one of these marks.

        Raises:
            UsageError: a mark that none has.
        """
        known = sorted(set(self.marks))
        if wrong := [m for m in marks if m not in known]:
            raise UsageError(
                f"{self.name} has no mark {wrong[0]!r}; it has {told(known, 8)}.{nearest(wrong[0], known)}"
            )
        return self.take([i for i, m in enumerate(self.marks) if m in marks])

    def drawn(self, most: int | None, *, seed: int = 0) -> Passages:
        """So many of them, drawn without replacement, in their order; all where there are no more."""
        if most is None or most >= len(self):
            return self
        return self.take(np.sort(np.random.default_rng(seed).permutation(len(self))[:most]).tolist())

    def openings(self, words: int) -> Passages:
        """The first words of each, as prompts; those without a word more, and repetitions of an earlier one, are left out."""
        seen: set[str] = set()
        rows, texts = [], []
        for i, text in enumerate(self.texts):
            said = text.split()
            opening = " ".join(said[:words])
            if len(said) > words and opening.casefold() not in seen:
                seen.add(opening.casefold())
                rows.append(i)
                texts.append(opening)
        return replace(self.take(rows), texts=tuple(texts), left=self.left + len(self) - len(rows))

    def joined(self, words: int) -> Passages:
        """Neighbours joined, line by line, into passages of at least so many words; what is left at the end is left out."""
        texts, lines, n = [], [], 0
        for text in self.texts:
            lines.append(text)
            n += len(text.split())
            if n >= words:
                texts.append("\n".join(lines))
                lines, n = [], 0
        return Passages(self.name, tuple(texts))

    def halves(self, *, seed: int = 0) -> tuple[Passages, Passages]:
        """Two disjoint parts of equal size, drawn within each group: one to choose on, one to report."""
        rng = np.random.default_rng(seed)
        parts: tuple[list[int], list[int]] = ([], [])
        groups = self.groups or ("",) * len(self)
        for n, group in enumerate(dict.fromkeys(groups)):
            rows = rng.permutation([i for i, g in enumerate(groups) if g == group]).tolist()
            cut = (len(rows) + n % 2) // 2  # odd ones in turn
            parts[0].extend(rows[:cut])
            parts[1].extend(rows[cut:])
        return self.take(sorted(parts[0])), self.take(sorted(parts[1]))


def read_passages(
    path: str | Path | Sequence[Path], *, text: str = "text", mark: str | None = None, group: str | None = None,
    between: tuple[float, float] | None = None, quoting: bool = True, columns: Sequence[str] = (), separator: str = "\t",
    encoding: str = "utf-8", name: str | None = None,
) -> Passages:  # fmt: skip
    """Passages of a file: ``.txt`` (one a line), ``.csv`` and ``.tsv`` with a header, ``.jsonl``, all also as ``.gz``, or
    ``.parquet``. With `columns` of any file of lines, which has no header.

    Args:
        path: the file, or several of one kind.
        text, mark, group: names of columns; the last two may be absent.
        between: only those whose mark is a number from the first to the second, both included.
        quoting: whether quotation marks enclose fields of ``.csv`` and ``.tsv``; otherwise they are characters like others.
        columns: names of the fields of each line, which `separator` divides; the text takes what the others leave, so that it may
            hold the separator.
        encoding: of text files.
        name: in messages; the file's name unless told.
    Raises:
        InputError: no such file, another kind, not text in this encoding, a column that is missing, no texts.
        MissingExtra: pyarrow is not installed and the file is ``.parquet``.
    """
    files = [Path(path)] if isinstance(path, str | Path) else list(path)
    if not columns and (wrong := [f for f in files if _kind(f) not in KINDS]):
        raise InputError(
            f"{wrong[0]} is no file of passages: expected {', '.join(KINDS)}, each but the last also as .gz. Of other files of "
            "lines say the columns."
        )
    if between is not None and mark is None:
        raise UsageError("between goes with mark: the column that holds the numbers.")
    if columns and (len(set(columns)) < len(columns) or not separator):
        raise UsageError(f"columns are {list(columns)}, separated by {separator!r}: each needs a name of its own.")
    wanted = {"text": text, "mark": mark, "group": group}
    texts: list[str] = []
    others: dict[str, list[str]] = {n: [] for n in ("mark", "group") if wanted[n] is not None}
    seen: set[str] = set()
    left = 0
    for file in files:
        named = {n: c for n, c in wanted.items() if c is not None}
        for row in (
            _fields(file, _content(file, encoding), named, columns, separator)
            if columns
            else _rows(file, named, quoting, encoding)
        ):
            if between is not None and not between[0] <= _number(row["mark"], file) <= between[1]:
                continue
            said = row["text"].strip()
            if not said or said.casefold() in seen:
                left += 1
                continue
            seen.add(said.casefold())
            texts.append(said)
            for n, values in others.items():
                values.append(row[n].strip())
    if not texts:
        raise InputError(
            f"{some(map(str, files))}: no text in the column {text!r}"
            + (f" has a mark in {between}." if between else ".")
        )
    marks, groups = (tuple(others.get(n, ())) for n in ("mark", "group"))
    return Passages(name or files[0].name.split(".")[0], tuple(texts), marks, groups, left)


def _number(mark: str, where: Path) -> float:
    try:
        return float(mark)
    except ValueError:
        raise InputError(
            f"{where}: the mark {mark[:20]!r} is no number. Keep passages by their marks instead."
        ) from None


def _kind(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix.lower()


Rows = Iterator[Mapping[str, str]]


def _rows(path: Path, wanted: Mapping[str, str], quoting: bool, encoding: str) -> Rows:
    kind = _kind(path)
    if kind == ".parquet":
        return _parquet(path, wanted)
    content = _content(path, encoding)
    if kind == ".txt":
        return _lines(path, content, wanted)
    if kind == ".jsonl":
        return _objects(path, content, wanted)
    return _table(path, content, wanted, "," if kind == ".csv" else "\t", quoting)


def _content(path: Path, encoding: str) -> str:
    try:
        raw = path.read_bytes()
        return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode(encoding)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(
            f"{path}, line {line}: not {encoding} text. Save it as UTF-8; in Python `encoding` names another."
        ) from None
    except (OSError, EOFError) as error:
        raise InputError(f"cannot read the passages {path}: {getattr(error, 'strerror', None) or error}.") from error


def _fields(path: Path, content: str, wanted: Mapping[str, str], columns: Sequence[str], separator: str) -> Rows:
    _has(f"{path}, whose columns were said to be {', '.join(columns)},", wanted, columns)
    before = list(columns).index(wanted["text"])
    for i, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        first = line.rstrip("\r").split(separator, before)
        row = [*first[:-1], *first[-1].rsplit(separator, len(columns) - 1 - before)]
        if len(row) != len(columns):
            raise InputError(
                f"{path}, line {i}: expected {len(columns)} fields divided by {separator!r}, got {len(row)}."
            )
        yield {n: row[list(columns).index(c)] for n, c in wanted.items()}


def _lines(path: Path, content: str, wanted: Mapping[str, str]) -> Rows:
    if set(wanted) != {"text"}:
        raise InputError(f"{path} has no columns; marks and groups need .csv, .tsv, .jsonl or .parquet.")
    return ({"text": line} for line in content.split("\n"))


def _objects(path: Path, content: str, wanted: Mapping[str, str]) -> Rows:
    for i, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            said = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}, line {i}: not JSON ({error}).") from None
        known = said if isinstance(said, dict) else {}
        _has(f"{path}, line {i},", wanted, known)
        yield {n: str(said[c]) for n, c in wanted.items()}


def _table(path: Path, content: str, wanted: Mapping[str, str], separator: str, quoting: bool) -> Rows:
    how: Any = {"strict": True} if quoting else {"quoting": csv.QUOTE_NONE}
    hint = " If quotation marks are characters like others there, read it without quoting." if quoting else ""
    reader = csv.reader(io.StringIO(content, newline="" if quoting else None), delimiter=separator, **how)
    try:
        header = next(reader, [])
        _has(str(path), wanted, header)
        at = {n: header.index(c) for n, c in wanted.items()}
        for row in reader:
            if row and len(row) != len(header):
                raise InputError(
                    f"{path}, line {reader.line_num}: expected {len(header)} fields, got {len(row)}." + hint
                )
            if row:
                yield {n: row[i] for n, i in at.items()}
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}.{hint}") from None


def _parquet(path: Path, wanted: Mapping[str, str]) -> Rows:
    try:
        pq: Any = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise missing_extra("pyarrow", "data", "reading .parquet files") from None
    try:
        file: Any = pq.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} does not read as parquet: {error}.") from error
    _has(str(path), wanted, file.schema_arrow.names)
    for piece in file.iter_batches(columns=list(dict.fromkeys(wanted.values()))):
        columns = {n: piece.column(c).to_pylist() for n, c in wanted.items()}
        for i in range(piece.num_rows):
            yield {n: "" if v[i] is None else str(v[i]) for n, v in columns.items()}


def _has(where: str, wanted: Mapping[str, str], columns: Sequence[str] | Mapping[str, Any]) -> None:
    for column in wanted.values():
        if column not in columns:
            raise InputError(lacks_column(where, column, columns))


def fetched_passages(id: str, *, files: str = "*.parquet", revision: str | None = None) -> tuple[Path, ...]:
    """The files of a data set on the Hugging Face hub whose names match, in the hub client's cache.

    Raises:
        InputError: the download failed, or nothing matches.
        MissingExtra: huggingface_hub is not installed.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise missing_extra("huggingface_hub", "hf", f"downloading {id}") from None
    fetch: Callable[..., str] = snapshot_download
    try:
        folder = Path(fetch(id, repo_type="dataset", revision=revision, allow_patterns=[files]))
    except Exception as error:  # the client's errors have no common class but Exception
        raise InputError(f"cannot fetch the data set {id}: {str(error).splitlines()[0]}") from error
    found = tuple(sorted(folder.glob(files)))
    if not found:
        raise InputError(f"the data set {id} has no file {files!r}.")
    return found
