"""Reading samples with groups: tables of texts (CSV, TSV, parquet, perhaps packed) and folders of images."""

from __future__ import annotations

import csv
import gzip
import importlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..errors import InputError, UsageError, lacks_column, missing_extra, some
from .groups import Grouped, mentions

Table = dict[str, list[str]]


def read_table(path: str | Path) -> Table:
    """The columns of a CSV, TSV or parquet file, with a header, as strings; ``.gz`` is unpacked.

    TSV is taken as it stands: quotes in it are text.

    Raises:
        InputError: no such file, or a row of another length; says which, and never what stands in it.
        MissingExtra: parquet without pyarrow.
    """
    path = Path(path)
    if path.suffix == ".parquet":
        return _parquet(path)
    try:
        raw = path.read_bytes()
        content = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the table {path}: {getattr(error, 'strerror', None) or error}.") from error
    tabs = ".tsv" in path.suffixes
    # Lines of TSV are cut at newlines only: posts hold other characters that end a line for Python.
    lines = content.split("\n") if tabs else io.StringIO(content, newline="")
    quoting = csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL
    reader = csv.reader(lines, delimiter="\t" if tabs else ",", quoting=quoting)
    try:
        header = [h.strip() for h in next(reader, [])]
        rows = []
        for row in reader:
            if row and len(row) != len(header):
                raise InputError(f"{path}, line {reader.line_num}: {len(row)} fields; the header has {len(header)}.")
            rows += [row] if row else []
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}.") from error
    if not header or not rows:
        raise InputError(f"{path} is empty: expected a line of column names, and rows.")
    return {h: [row[i].strip() for row in rows] for i, h in enumerate(header)}


def _parquet(path: Path) -> Table:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise missing_extra("pyarrow", "data", f"reading {path.name}") from None
    try:
        table = parquet.read_table(path)
    except Exception as error:  # pyarrow raises kinds of its own
        raise InputError(f"cannot read the table {path}: {error}") from error
    # None, True and 1.0 become what CSV would have.
    return {n: ["" if v is None else str(v) for v in table.column(n).to_pylist()] for n in table.column_names}


def columns(table: Table, names: Sequence[str], where: str) -> list[list[str]]:
    """Some columns of a table.

    Raises:
        InputError: one that it lacks.
    """
    for n in names:
        if n not in table:
            raise InputError(lacks_column(where, n, table))
    return [table[n] for n in names]


def labels_of(
    values: Sequence[str], *, classes: Mapping[str, str] | None = None, threshold: float | None = None, above: bool = False,
    names: tuple[str, str] = ("no", "yes"), where: str = "the table",
) -> tuple[np.ndarray, tuple[str, ...], np.ndarray]:  # fmt: skip
    """Labels from 0, the classes, and which rows have a label.

    Args:
        classes: value -> class, in the order of the classes; rows of other values are left out. Without it and without
            `threshold`, each value is a class, in sorted order.
        threshold: numbers from it on are class 1.
        above: only those above it.
        names: of the two classes on both sides of `threshold`.
    """
    if threshold is not None:
        numbers = numbers_of(values, where)
        has = ~np.isnan(numbers)
        return (numbers > threshold if above else numbers >= threshold).astype(np.int64), names, has
    if classes is None:
        classes = {v: v for v in sorted({v for v in values if v})}
    order = tuple(dict.fromkeys(classes.values()))
    if len(order) < 2:
        raise InputError(f"{where}: a task needs two classes or more, got {some(order) or 'none'}.")
    number = {v: order.index(c) for v, c in classes.items()}
    if not any(v in number for v in values):
        raise InputError(f"{where}: no label is one of {some(number, 8)}; there are {some(sorted(set(values)), 8)}.")
    return np.array([number.get(v, 0) for v in values], np.int64), order, np.array([v in number for v in values])


def numbers_of(values: Sequence[str], where: str) -> np.ndarray:
    """Numbers and truth values as float64; empty fields are NaN.

    Raises:
        InputError: something else; says in which row.
    """
    words = {"": float("nan"), "true": 1.0, "false": 0.0, "nan": float("nan")}
    out = np.empty(len(values))
    for i, v in enumerate(values):
        try:
            out[i] = words[v.lower()] if v.lower() in words else float(v)
        except ValueError:
            raise InputError(f"{where}, row {i + 1}: expected a number.") from None
    return out


def group_columns(table: Table, members: Mapping[str, str], *, threshold: float = 0.5, where: str = "the table") -> dict[str, np.ndarray]:  # fmt: skip
    """Membership by columns, one for each group: 0 and 1, true and false, or shares, from `threshold` on. Empty means outside.

    Args:
        members: name of the group -> name of its column.
    """
    found = columns(table, list(members.values()), where)
    return {g: np.nan_to_num(numbers_of(v, f"{where}, column {members[g]!r}")) >= threshold for g, v in zip(members, found, strict=True)}  # fmt: skip


def group_values(values: Sequence[str], *, separator: str = ";") -> dict[str, np.ndarray]:
    """Membership by one column that names the group, or several of them with `separator` between. Empty means none."""
    parts = [{p.strip() for p in v.split(separator)} - {""} for v in values]
    return {g: np.array([g in p for p in parts], bool) for g in sorted(set().union(*parts))}


def read_grouped(
    path: str | Path, *, text: str = "text", label: str = "label", group: str | None = None,
    members: Sequence[str] = (), terms: Mapping[str, Sequence[str]] | None = None, key: str | None = None,
    classes: Mapping[str, str] | None = None, threshold: float | None = None, name: str | None = None,
) -> Grouped:  # fmt: skip
    """Texts with labels and groups from one table. Groups come by exactly one of `group`, `members`, `terms`.

    Rows without text or label are left out and counted in the notes.

    Args:
        path: as `read_table` takes.
        text, label: names of columns.
        group: a column that names each row's group, or several with ``;`` between.
        members: columns of 0 and 1, or shares of annotators (from 0.5 on), one for each group.
        terms: words by group, as `mentions` takes: who is mentioned is who belongs.
        key: a column of what must not be in two splits, such as a template; the text itself unless told.
        classes, threshold: as `labels_of` takes.
    Raises:
        UsageError: groups by none or several of the ways.
        InputError: the file, a column or a value is not as expected.
    """
    path = Path(path)
    ways = [n for n, way in (("group", group), ("members", members), ("terms", terms)) if way]
    if len(ways) != 1:
        raise UsageError(f"groups come by one of group, members or terms; got {', '.join(ways) or 'none of them'}.")
    table = read_table(path)
    texts, marks = columns(table, [text, label], str(path))
    labels, order, has = labels_of(marks, classes=classes, threshold=threshold, where=f"{path}, column {label!r}")
    if group:
        groups = group_values(columns(table, [group], str(path))[0])
    elif members:
        groups = group_columns(table, {m: m for m in members}, where=str(path))
    else:
        groups = mentions(texts, terms or {})
    keys = tuple(columns(table, [key], str(path))[0]) if key else ()
    return without_empty(name or path.name.split(".")[0], texts, labels, order, groups, has, keys)


def without_empty(
    name: str, texts: Sequence[str], labels: np.ndarray, classes: tuple[str, ...], groups: Mapping[str, np.ndarray],
    has: np.ndarray, keys: tuple[str, ...] = (),
) -> Grouped:  # fmt: skip
    """The rows that have a text and a label."""
    kept = np.flatnonzero(has & np.array([bool(t) for t in texts]))
    notes = (f"{len(texts) - len(kept):,} rows without text or label left out",) if len(kept) < len(texts) else ()
    data = Grouped(name, tuple(texts), labels, classes, groups, keys, notes)
    return data.take(kept) if len(kept) < len(texts) else data


def read_grouped_images(
    folder: str | Path, table: str | Path, *, file: str = "file", label: str = "label", group: str | None = None,
    members: Sequence[str] = (), classes: Mapping[str, str] | None = None, threshold: float | None = None, name: str | None = None,
) -> Grouped:  # fmt: skip
    """Images of a folder with labels and groups from a table: items are paths. Groups come by `group` or by `members`.

    Args:
        folder: the images.
        table: as `read_table` takes; a row for each image.
        file: the column of their paths, relative to `folder`; nothing outside it is opened.
        label, group, members, classes, threshold: as in `read_grouped`.
    Raises:
        InputError: an image that is not there, or lies outside `folder`; and what `read_grouped` raises.
    """
    data = read_grouped(
        table, text=file, label=label, group=group, members=members, classes=classes, threshold=threshold, name=name
    )
    root = Path(folder).resolve()
    paths = tuple((root / item).resolve() for item in data.items)
    wrong = [str(i) for i, p in zip(data.items, paths, strict=True) if not p.is_relative_to(root) or not p.is_file()]
    if wrong:
        raise InputError(f"{table}: {len(wrong)} of {len(paths)} images are not in {folder}: {some(wrong)}.")
    return replace(data, items=paths)
