"""People as rows of a table: one column is the label, some say who belongs to which group, the others are the inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..errors import InputError, UsageError, lacks_column, some
from .group_files import groups_in, labels_of, one_way
from .groups import Grouped
from .tables import MISSING, Table, as_numbers, columns, read_table

MOST_VALUES = 300  # of a column of words: one with more names people, or is a text, rather than to describe them


def read_grouped_rows(
    path: str | Path, *, label: str = "label", group: str | Sequence[str] | None = None, members: Sequence[str] = (),
    drop: Sequence[str] = (), group_as_input: bool = False, missing: Sequence[str] = (), key: str | None = None,
    classes: Mapping[str, str] | None = None, threshold: float | None = None, name: str | None = None,
) -> Grouped:  # fmt: skip
    """Rows with labels and groups from one table; every other column is an input. Groups come by `group` or by `members`.

    A column in which every value is a number is one of numbers, any other one of words (`columns_of` makes inputs of both).
    Numbers that are missing become NaN, words that are missing a word of their own. Rows without label are left out and counted in
    the notes; rows that are alike in everything are never in two splits.

    Args:
        path: as `read_table` takes.
        label: column of the labels.
        group: column of the groups, or several: every combination of their values is a group.
        members: columns of 0 and 1, or shares, one for each group.
        drop: further columns that are no inputs, such as names, numbers of cases, and what is known only after the label.
        group_as_input: whether the model sees the columns of the groups too.
        missing: what stands for a missing value, beside nothing and NaN.
        key: a column of what must not be in two splits, such as a person with several rows; no input either.
        classes, threshold: as `labels_of` takes.
    Raises:
        UsageError: groups by none or both of the ways, or no column is left as an input.
        InputError: the file, a column or a value is not as expected, or a column of words has too many of them.
    """
    path = Path(path)
    one_way(group, members)
    where, table = str(path), read_table(path)
    (marks,) = columns(table, [label], where)
    labels, order, has = labels_of(marks, classes=classes, threshold=threshold, where=f"{path}, column {label!r}")
    groups = groups_in(table, group, members, where=where)
    keys = columns(table, [key], where)[0] if key else None
    for n in drop:
        if n not in table:
            raise InputError(lacks_column(where, n, table))
    own = [group] if isinstance(group, str) else list(group or ())
    out = {label, *drop, *([key] if key else []), *([] if group_as_input else [*own, *members])}
    inputs = [n for n in table if n and n not in out]
    if not inputs:
        raise UsageError(f"{path}: no column is left as an input. Drop fewer.")
    kept = np.flatnonzero(has)
    items = described({n: [table[n][i] for i in kept] for n in inputs}, missing=missing, where=where)
    same = tuple(keys[i] for i in kept) if keys else tuple(repr([v[i] for v in table.values()]) for i in kept)
    left = len(has) - len(kept)
    return Grouped(
        name or path.name.split(".")[0], items, labels[kept], order, {n: m[kept] for n, m in groups.items()}, same,
        (f"{left:,} rows without label left out",) if left else (),
    )  # fmt: skip


def described(table: Table, *, missing: Sequence[str] = (), where: str = "the table") -> tuple[dict[str, str | float], ...]:  # fmt: skip
    """The rows of a table as inputs: floats in columns of numbers, strings elsewhere.

    Raises:
        InputError: a column of words with more than 300 different ones, or an infinite number.
    Example:
        >>> described({"age": ["20", ""], "job": ["cook", ""]})
        ({'age': 20.0, 'job': 'cook'}, {'age': nan, 'job': 'missing'})
    """
    absent, made, many = {*MISSING, *missing}, {}, []
    for n, values in table.items():
        found = as_numbers([None if v in absent else v for v in values])
        if any(isinstance(v, str) for v in found) or all(v is None for v in found):
            made[n] = ["missing" if v is None else str(v) for v in found]
            many += [n] if len(set(made[n])) > MOST_VALUES else []
        else:
            made[n] = [float("nan") if v is None else float(v) for v in found]
            if any(map(math.isinf, made[n])):
                raise InputError(f"{where}, column {n!r}: a number is infinite. Leave the row out, or cut the value.")
    if many:
        raise InputError(
            f"{where}: columns of words with more than {MOST_VALUES} different ones name people rather than describe them: "
            f"{some(many)}. Drop them, or put their values into fewer classes."
        )
    return tuple(dict(zip(made, row, strict=True)) for row in zip(*made.values(), strict=True))
