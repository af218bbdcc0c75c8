"""Tables in files, each with a header: CSV and TSV, also gzipped, and Parquet."""

from __future__ import annotations

import csv
import gzip
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError, UnknownName, lacks_column, missing_extra, plain

Table = dict[str, list[str]]
MISSING = ("", "nan", "NaN")
CODE = re.compile(r"[+-]?0\d.*|.*_.*")  # what Python takes for a number and a table does not mean as one


def read_table(path: str | Path, *, first: bool = False) -> Table:
    """All columns, as strings; ``.gz`` is unpacked. TSV is taken as it stands: quotes in it are text.

    Args:
        path: the file.
        first: of several columns of one name take the first, instead of refusing the file.
    Raises:
        InputError: no such file, or a row of another length; says which, and never what stands in it.
        MissingExtra: parquet without pyarrow.
    """
    path = Path(path)
    if path.suffix == ".parquet":
        table = _parquet(path)
        # None, True and 1.0 become what CSV would have.
        return {n: ["" if v is None else str(v) for v in table.column(n).to_pylist()] for n in table.column_names}
    header, rows = _rows(path, strict=False)
    if not header or not rows:
        raise InputError(f"{plain(path)} is empty: expected a line of column names, and rows.")
    twice = sorted({h for h in header if h and header.count(h) > 1})
    if twice and not first:
        raise InputError(
            f"{plain(path)} has more than one column {twice[0]!r}. Which one counts is unclear: rename one."
        )
    return {h: [row[i] for row in rows] for i, h in enumerate(header) if h not in header[:i]}


def columns(table: Table, names: Sequence[str], where: str) -> list[list[str]]:
    """Some columns of a table.

    Raises:
        InputError: one that it lacks.
    """
    for n in names:
        if n not in table:
            raise InputError(lacks_column(where, n, table))
    return [table[n] for n in names]


def read_columns(path: Path, names: Sequence[str], *, missing: Sequence[str] = ()) -> dict[str, list[Any]]:
    """The named columns, each as a list of numbers if all its values are, else of strings; None where a value is missing.

    Args:
        path: as `read_table` takes.
        names: the columns to read.
        missing: what stands for a missing value, beside nothing and NaN.
    Raises:
        UnknownName: the table has no such column.
        InputError: not readable as a table.
        MissingExtra: a Parquet file without pyarrow.
    """
    absent = {*MISSING, *missing}
    if path.suffix == ".parquet":
        table = _parquet(path, names)
        found = {n: table.column(n).to_pylist() for n in names}
        return {n: [None if v is None or v != v or v in absent else v for v in values] for n, values in found.items()}
    header, rows = _rows(path, strict=True, names=names)
    if not rows:
        raise InputError(f"{plain(path)} has a header and no rows.")
    at = {n: header.index(n) for n in names}
    return {n: as_numbers([None if row[i] in absent else row[i] for row in rows]) for n, i in at.items()}


def _rows(path: Path, *, strict: bool, names: Sequence[str] = ()) -> tuple[list[str], list[list[str]]]:
    """The header, which has these names, and the rows, without blank lines and the spaces around values."""
    content = _text(path)
    tabs = ".tsv" in path.suffixes
    # Lines of TSV are cut at newlines only: posts hold other characters that end a line for Python.
    lines = content.split("\n") if tabs else io.StringIO(content, newline="")
    quoting = csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL
    reader = csv.reader(lines, delimiter="\t" if tabs else ",", quoting=quoting, strict=strict)
    rows = []
    try:
        header = [name.strip() for name in next(reader, [])]
        _known(path, header, names)
        for row in reader:
            if row and len(row) != len(header):
                raise InputError(
                    f"{plain(path)}, line {reader.line_num}: {len(row)} values, but the header has {len(header)} columns."
                )
            rows += [[value.strip() for value in row]] if row else []
    except csv.Error as error:
        raise InputError(f"{plain(path)}, line {reader.line_num}: not readable as CSV ({error}).") from error
    return header, rows


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except (OSError, EOFError, ValueError) as error:
        why = getattr(error, "strerror", None) or ("not UTF-8 text" if isinstance(error, UnicodeError) else error)
        raise InputError(
            f"cannot read the table {plain(path)}: {why}. Expected CSV or TSV with a header, or .parquet."
        ) from error


def _parquet(path: Path, names: Sequence[str] | None = None) -> Any:
    """The columns of a Parquet file: all of them, or those named."""
    try:
        from pyarrow import ArrowException, parquet  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise missing_extra("pyarrow", "data", f"reading {plain(path)}") from error
    try:
        if names is not None:
            _known(path, list(parquet.read_schema(path).names), names)
        return parquet.read_table(path, columns=None if names is None else list(dict.fromkeys(names)))
    except (OSError, ArrowException) as error:
        raise InputError(f"cannot read the table {plain(path)}: {error}.") from error


def _known(path: Path, header: Sequence[str], names: Sequence[str]) -> None:
    for name in names:
        if name not in header:
            raise UnknownName(lacks_column(plain(path), name, header))
        if list(header).count(name) > 1:
            raise InputError(f"{plain(path)} has more than one column {name!r}.")


def as_numbers(values: list[str | None]) -> list[Any]:
    """Whole numbers or floats if all that are there are, else the strings: codes such as 01 are none, nor is 1_0."""
    if any(v is not None and CODE.fullmatch(v) for v in values):
        return values
    for kind in (int, float):
        try:
            return [None if v is None else kind(v) for v in values]
        except ValueError:
            continue
    return values
