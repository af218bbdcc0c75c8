"""Tables of molecules: CSV files with a column of SMILES and columns of numbers, as they are written."""

from __future__ import annotations

import csv
import gzip
import io
import math
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError, UnknownName, UsageError, nearest, plain, some

MISSING = ("", "nan", "na", "n/a", "none", "null", "-")
SMILES = ("smiles", "canonical_smiles", "mol", "structure")


def read_table(
    path: str | Path, *, smiles: str | None = None, targets: Sequence[str] | None = None
) -> tuple[list[str], dict[str, list[float]]]:
    """The column of SMILES and the target columns; NaN where a value is missing or not finite.

    Args:
        path: a CSV file with a header, also ``.gz``.
        smiles: the column of SMILES, else the first that is called smiles, whatever its case.
        targets: the columns to read, else every column whose values are all numbers.
    Raises:
        UnknownName: no such column.
        InputError: not readable, or a value of a named target is no number; says in which line.
        UsageError: no column of SMILES is named and none is called so.
    """
    path = Path(path)
    header, rows = _rows(path)
    if smiles is None:
        found = [h for name in SMILES for h in header if h.lower() == name]
        if not found:
            raise UsageError(f"{plain(path)} has no column called smiles; name it. It has {some(header, 12)}.")
        smiles = found[0]
    for name in (smiles, *(targets or ())):
        if name not in header:
            raise UnknownName(
                f"{plain(path)} has no column {name!r}; it has {some(header, 12)}.{nearest(name, header)}"
            )
        if header.count(name) > 1:
            raise InputError(f"{plain(path)} has more than one column {name!r}.")
    named = list(dict.fromkeys(targets)) if targets is not None else [h for h in header if h != smiles and h]
    table: dict[str, list[float]] = {}
    for name in named:
        at = header.index(name)
        values = []
        for line, row in rows:
            text = row[at].strip()
            try:
                value = math.nan if text.lower() in MISSING else float(text)
            except ValueError as error:
                if targets is not None:
                    raise InputError(f"{plain(path)}, line {line}: {name!r} is {text[:40]!r}, not a number.") from error
                break
            values.append(value if math.isfinite(value) else math.nan)
        else:
            table[name] = values
    if not table:
        raise InputError(f"{plain(path)} has no column of numbers beside {smiles!r}; it has {some(header, 12)}.")
    return [row[header.index(smiles)].strip() for _, row in rows], table


def read_smiles(path: str | Path, *, smiles: str | None = None) -> list[str]:
    """The column of SMILES alone, as written; a file without a header line of that name and with one column is a list of SMILES."""
    path = Path(path)
    header, rows = _rows(path)
    if smiles is None:
        found = [h for name in SMILES for h in header if h.lower() == name]
        if not found and len(header) == 1:
            return [header[0], *(row[0].strip() for _, row in rows)]
        if not found:
            raise UsageError(f"{plain(path)} has no column called smiles; name it. It has {some(header, 12)}.")
        smiles = found[0]
    if smiles not in header:
        raise UnknownName(
            f"{plain(path)} has no column {smiles!r}; it has {some(header, 12)}.{nearest(smiles, header)}"
        )
    return [row[header.index(smiles)].strip() for _, row in rows]


def _rows(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except (OSError, EOFError, ValueError) as error:
        why = getattr(error, "strerror", None) or ("not UTF-8 text" if isinstance(error, UnicodeError) else error)
        raise InputError(f"cannot read the table {plain(path)}: {why}. Expected CSV with a header.") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[tuple[int, list[str]]] = []
    try:
        header = [name.strip() for name in next(reader, [])]
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise InputError(
                    f"{plain(path)}, line {reader.line_num}: {len(row)} values, but the header has {len(header)} columns."
                )
            rows.append((reader.line_num, row))
    except csv.Error as error:
        raise InputError(f"{plain(path)}, line {reader.line_num}: not readable as CSV ({error}).") from error
    if not rows:
        raise InputError(f"{plain(path)} has no rows under its header.")
    return header, rows


def header_of(path: str | Path) -> list[str]:
    """The names of the columns."""
    return _rows(Path(path))[0]
