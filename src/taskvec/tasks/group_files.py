"""Reading samples with groups: tables of texts (CSV, TSV, parquet, perhaps packed) and folders of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..errors import InputError, UsageError, some
from .groups import Grouped, mentions
from .masks import group_values, intersections
from .tables import Table, columns, read_table


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


def read_grouped(
    path: str | Path, *, text: str = "text", label: str = "label", group: str | Sequence[str] | None = None,
    members: Sequence[str] = (), terms: Mapping[str, Sequence[str]] | None = None, key: str | None = None,
    classes: Mapping[str, str] | None = None, threshold: float | None = None, name: str | None = None,
) -> Grouped:  # fmt: skip
    """Texts with labels and groups from one table. Groups come by exactly one of `group`, `members`, `terms`.

    Rows without text or label are left out and counted in the notes.

    Args:
        path: as `read_table` takes.
        text, label: names of columns.
        group: a column that names each row's group, or several with ``;`` between; of several columns every combination of
            their values that occurs is a group.
        members: columns of 0 and 1, or shares of annotators (from 0.5 on), one for each group.
        terms: words by group, as `mentions` takes: who is mentioned is who belongs.
        key: a column of what must not be in two splits, such as a template; the text itself unless told.
        classes, threshold: as `labels_of` takes.
    Raises:
        UsageError: groups by none or several of the ways.
        InputError: the file, a column or a value is not as expected.
    """
    path = Path(path)
    one_way(group, members, terms)
    table = read_table(path)
    texts, marks = columns(table, [text, label], str(path))
    labels, order, has = labels_of(marks, classes=classes, threshold=threshold, where=f"{path}, column {label!r}")
    groups = mentions(texts, terms) if terms else groups_in(table, group, members, where=str(path))
    keys = tuple(columns(table, [key], str(path))[0]) if key else ()
    return without_empty(name or path.name.split(".")[0], texts, labels, order, groups, has, keys)


def one_way(
    group: str | Sequence[str] | None, members: Sequence[str], terms: Mapping[str, Sequence[str]] | None = None
) -> None:
    """Refuse groups that come by none or by several of the ways."""
    ways = [n for n, way in (("group", group), ("members", members), ("terms", terms)) if way]
    if len(ways) != 1:
        raise UsageError(f"groups come by one of group, members or terms; got {', '.join(ways) or 'none of them'}.")


def groups_in(
    table: Table, group: str | Sequence[str] | None, members: Sequence[str], *, where: str
) -> dict[str, np.ndarray]:
    """Membership by the values of one column, by every combination of several, or by a column for each group."""
    if members:
        return group_columns(table, {m: m for m in members}, where=where)
    names = [group] if isinstance(group, str) else list(group or ())
    found = [group_values(c, separator=";") for c in columns(table, names, where)]
    return found[0] if len(found) == 1 else intersections(*found, joint=", ")


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
    folder: str | Path, table: str | Path, *, file: str = "file", label: str = "label", group: str | Sequence[str] | None = None,
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
