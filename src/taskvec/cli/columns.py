"""Columns of a table of predictions: CSV (also gzipped) or Parquet."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError, UnknownName, lacks_column, missing_extra, plain

MISSING = ("", "nan", "NaN")


def read_columns(path: Path, names: Sequence[str], *, missing: Sequence[str] = ()) -> dict[str, list[Any]]:
    """The named columns, each as a list of numbers if all its values are, else of strings; None where a value is missing.

    Args:
        path: ``.parquet``, or a CSV file with a header, also ``.gz``.
        names: the columns to read.
        missing: what stands for a missing value, beside nothing and NaN.
    Raises:
        UnknownName: the table has no such column.
        InputError: not readable as a table.
        MissingExtra: a Parquet file without pyarrow.
    """
    if path.suffix == ".parquet":
        return _parquet(path, names, missing)
    content = _text(path)
    rows = csv.reader(io.StringIO(content, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(rows, [])]
        _known(path, header, names)
        at = [header.index(name) for name in names]
        read: list[list[Any]] = [[] for _ in names]
        for row in rows:
            if not row:
                continue
            if len(row) != len(header):
                raise InputError(
                    f"{plain(path)}, line {rows.line_num}: {len(row)} values, but the header has {len(header)} columns."
                )
            for values, i in zip(read, at, strict=True):
                values.append(row[i].strip())
    except csv.Error as error:
        raise InputError(f"{plain(path)}, line {rows.line_num}: not readable as CSV ({error}).") from error
    if not read[0]:
        raise InputError(f"{plain(path)} has a header and no rows.")
    absent = {*MISSING, *missing}
    return {
        name: _numbers([None if v in absent else v for v in values]) for name, values in zip(names, read, strict=True)
    }


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
        return data.decode("utf-8-sig")
    except (OSError, EOFError, ValueError) as error:
        why = getattr(error, "strerror", None) or ("not UTF-8 text" if isinstance(error, UnicodeError) else error)
        raise InputError(
            f"cannot read the table {plain(path)}: {why}. Expected CSV with a header, or .parquet."
        ) from error


def _parquet(path: Path, names: Sequence[str], missing: Sequence[str]) -> dict[str, list[Any]]:
    try:
        from pyarrow import ArrowException, parquet  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise missing_extra("pyarrow", "data", f"reading {plain(path)}") from error
    try:
        _known(path, list(parquet.read_schema(path).names), names)
        table = parquet.read_table(path, columns=list(dict.fromkeys(names)))
    except (OSError, ArrowException) as error:
        raise InputError(f"cannot read the table {plain(path)}: {error}.") from error
    found = {}
    for name in names:
        values = table.column(name).to_pylist()
        found[name] = [None if v is None or v != v or v in {*MISSING, *missing} else v for v in values]
    return found


def _known(path: Path, header: Sequence[str], names: Sequence[str]) -> None:
    for name in names:
        if name not in header:
            raise UnknownName(lacks_column(plain(path), name, header))
        if list(header).count(name) > 1:
            raise InputError(f"{plain(path)} has more than one column {name!r}.")


def _numbers(values: list[str | None]) -> list[Any]:
    """Whole numbers or floats if all that are there are, else the strings."""
    for kind in (int, float):
        try:
            return [None if v is None else kind(v) for v in values]
        except ValueError:
            continue
    return values
