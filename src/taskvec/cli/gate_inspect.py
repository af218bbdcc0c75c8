"""`taskvec gate inspect`: what a network knows, and what lies in it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from ..errors import InputError, UnknownName, UsageError, nearest, plain, some
from .commands import json_flag, overwrite_flag
from .gate import free, gate, smiles_option, tell_counts
from .terminal import note, print_json

SHOWN_WHOLE = 8  # properties up to which the console shows matrices


@gate.command(short_help="What a network knows; with molecules, how its properties lie to each other.")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("data", required=False, type=click.Path(path_type=Path))
@smiles_option
@click.option("--column", "columns", multiple=True, metavar="NAME=COLUMN", help="The column with the labels of a property; repeat. Else the one called as it.")  # fmt: skip
@click.option("--out", "-o", type=click.Path(path_type=Path), help="The result to write, *.json, for `taskvec report`.")
@overwrite_flag
@json_flag
def inspect(
    model: Path, data: Path | None, smiles: str | None, columns: tuple[str, ...], out: Path | None, overwrite: bool, as_json: bool
) -> None:  # fmt: skip
    """Sizes, properties with their scales, and how each was learnt. Reads no weights.

    With a CSV file DATA of molecules: the effective dimension of each latent, how well the properties agree on the common frame,
    and how well each is read through the latent of every other (which columns of labels are for). Take molecules that the network
    has not learnt from: those flatter it.
    """
    if data is None:
        given = [o for o, v in (("--smiles", smiles), ("--column", columns), ("-o", out)) if v]
        if given:
            raise UsageError(f"{given[0]} is for an inspection on molecules: name a CSV file after the model.")
        _facts(model, as_json)
        return
    if out is not None:
        free(out, overwrite)
    from ..gate import inputs_for, load
    from ..gate import inspect as look
    from ..report.inspection import FLATTERY, inspection_sentences, inspection_tables

    network = load(model)
    molecules, labels = _molecules(data, smiles, _columns(data, network, columns))
    note(f"inspecting {len(network.names)} properties on {len(molecules)} molecules, labels for {len(labels)}")
    found = look(
        network, inputs_for(network.shape.embedding, molecules), labels, title=f"Inside {plain(model.resolve().name)}"
    )
    if out is not None:
        found.write(out)
    if as_json:
        print_json("gate inspect", {"model": str(model), "output": str(out) if out else None, "result": found.model_dump(mode="json")})  # fmt: skip
        return
    whole = len(found.names) <= SHOWN_WHOLE
    for table in inspection_tables(found, whole=SHOWN_WHOLE):
        print(_told(table, details=not whole) + "\n")
    for line in inspection_sentences(found):
        print(line.replace("\u00a0", " "))
    for line in found.notes:
        note(line)
    print(FLATTERY)
    if out is not None:
        print(f"{plain(out)}: `taskvec report {plain(out)} -o report.html` draws it")


def _facts(model: Path, as_json: bool) -> None:
    from ..gate.files import facts_of

    facts = facts_of(model)
    if as_json:
        print_json("gate inspect", {"model": str(model), **facts.model_dump(mode="json")})
        return
    print(", ".join(f"{n} {v}" for n, v in facts.shape.items()))
    for p in facts.properties:
        kind = "source" if p.name in facts.sources else "added "
        print(f"{kind}  {plain(p.name)}  (mean {p.mean:.4g}, standard deviation {p.std:.4g})")
    for name, said in facts.learned.items():
        if isinstance(said, dict) and "validation" in said:
            print(
                f"{plain(name)}: {said.get('molecules')} molecules, validation RMSE {said['validation']} standard deviations"
            )


def _columns(data: Path, network: Any, given: tuple[str, ...]) -> dict[str, str]:
    """Property -> column of its labels."""
    from ..gate.tables import header_of

    header = header_of(data)
    found = {n: n for n in network.names if n in header}
    told = set()
    for text in given:
        # Either side may hold a "=" itself (logD(pH=7.4)): the name is the longest one that is a property.
        cuts = [i for i, c in enumerate(text) if c == "=" and text[i + 1 :]]
        if not cuts:
            raise UsageError(
                f"--column {text!r}: expected NAME=COLUMN, for example --column {network.names[0]}=measured."
            )
        at = next((i for i in reversed(cuts) if text[:i] in network.names), cuts[0])
        name, column = text[:at], text[at + 1 :]
        network.of(name)
        if name in told:
            raise UsageError(f"--column names the property {name!r} twice.")
        told.add(name)
        if column not in header:
            raise UnknownName(
                f"{plain(data)} has no column {column!r}; it has {some(header, 12)}.{nearest(column, header)}"
            )
        found[name] = column
    return found


def _molecules(data: Path, smiles: str | None, columns: dict[str, str]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Different valid molecules, and the labels there are by property."""
    from ..gate import clean
    from ..gate.molecules import canonical
    from ..gate.tables import read_smiles, read_table

    written = read_smiles(data, smiles=smiles)
    table: dict[str, list[float]] = {}
    if asked := [c for n, c in columns.items() if n != c]:  # by --column: numbers, or an error
        table = read_table(data, smiles=smiles, targets=asked)[1]
    for c in (c for n, c in columns.items() if n == c):  # only called as a property: it may be something else
        try:
            table |= read_table(data, smiles=smiles, targets=[c])[1]
        except InputError as error:
            note(f"{error} The column is left out.")
    if not columns:
        note(
            "no column is called as a property: predictions are compared without labels (--column NAME=COLUMN names them)"
        )
    varied = {c: v for c, v in table.items() if len({x for x in v if math.isfinite(x)}) > 1}
    if flat := [c for c in table if c not in varied]:
        note(f"no labels, or all equal, and left out: {some(flat, 8)}")
    if varied:
        try:
            made = clean(written, varied)
        except InputError as error:
            note(f"{plain(data)}: {error} Labels are left out.")
        else:
            tell_counts(made)
            return made.smiles, {n: made.targets[c] for n, c in columns.items() if c in made.targets}
    found = [canonical(s) for s in written]
    unique = tuple(dict.fromkeys(f[0] for f in found if f))
    if not unique:
        raise InputError(f"{plain(data)}: none of {len(written)} rows has a valid SMILES. Is it the right column?")
    if bad := found.count(None):
        note(f"{bad} of {len(written)} rows have no valid SMILES and are left out")
    return unique, {}


def _told(table: Any, *, details: bool) -> str:
    """A table of a report as plain text; with `details`, the small print of cells too, else that of the row's name alone."""
    lines = [
        [(" " if i else ", ").join((c.text, *(c.detail if details or not i else ()))) for i, c in enumerate(row)]
        for row in table.rows
    ]
    lines = [[plain(text.replace("\u00a0", " ")) for text in line] for line in lines]
    lines = [list(map(plain, table.columns)), *lines]
    width = [max(len(line[i]) for line in lines) for i in range(len(table.columns))]
    said = [
        "  ".join([line[0].ljust(width[0]), *(t.rjust(w) for t, w in zip(line[1:], width[1:], strict=True))]).rstrip()
        for line in lines
    ]
    return "\n".join([plain(table.caption), *said])
