"""Molecules with properties: cleaned, counted, and split so that no test molecule is ever trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..errors import InputError, UnknownName, UsageError, missing_extra, nearest, plain, some
from .tables import header_of, read_table
from .units import mismatch

TOLERANCE = 0.5  # standard deviations of a target that two labels of one molecule may lie apart


def require_rdkit(purpose: str) -> Any:
    """`rdkit.Chem`, or the error that says how to install it."""
    try:
        from rdkit import Chem  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise missing_extra("rdkit", "molecules", purpose) from error
    return Chem


@dataclass(frozen=True)
class Counts:
    """What cleaning found. Molecules: `rows` read, `invalid` left out, `salts` cut to their largest fragment, `duplicates` folded into
    another row. By target: labels that were missing, labels dropped because they conflict, targets left out as constant, and where two `units`
    seem mixed in one column (labels that differ so are dropped, and not counted as conflicts)."""

    rows: int = 0
    invalid: int = 0
    salts: int = 0
    duplicates: int = 0
    missing: Mapping[str, int] = field(default_factory=dict)
    conflicting: Mapping[str, int] = field(default_factory=dict)
    constant: tuple[str, ...] = ()
    units: Mapping[str, str] = field(default_factory=dict)
    examples: tuple[str, ...] = ()  # the first invalid ones, as written

    def said(self) -> list[str]:
        """The counts in sentences; nothing for what did not occur."""
        lines = []
        if self.invalid:
            lines.append(
                f"{self.invalid} of {self.rows} rows have no valid SMILES and are left out: {some(self.examples)}"
            )
        if self.salts:
            lines.append(f"{self.salts} rows with several fragments are cut to the largest")
        if self.duplicates:
            lines.append(f"{self.duplicates} rows repeat a molecule and are folded into it")
        for name, n in self.conflicting.items():
            if n:
                lines.append(
                    f"{name!r}: {n} molecules have labels more than {TOLERANCE:g} standard deviations apart; dropped"
                )
        for name, said in self.units.items():
            lines.append(f"{name!r}: {said}: two units in one column? Those labels are dropped")
        if self.constant:
            lines.append(f"constant, left out: {some(self.constant, 8)}")
        for name, n in self.missing.items():
            if n:
                lines.append(f"{name!r}: {n} molecules have no label")
        return lines


@dataclass(frozen=True, eq=False)
class Molecules:
    """Different molecules as canonical SMILES, with targets float64 ``[n]`` in their own units, NaN where there is no label."""

    smiles: tuple[str, ...]
    targets: Mapping[str, np.ndarray]
    counts: Counts = Counts()

    def __len__(self) -> int:
        return len(self.smiles)

    def target(self, name: str) -> np.ndarray:
        """The labels of one target.

        Raises:
            UnknownName: no such target.
        """
        if name not in self.targets:
            raise UnknownName(
                f"no target {name!r}; there are {some(self.targets, 20)}.{nearest(name, self.targets)}"
                + (f" {name!r} was left out: it is constant." if name in self.counts.constant else "")
            )
        return self.targets[name]


def canonical(smiles: str) -> tuple[str, bool] | None:
    """Canonical SMILES with stereochemistry of the largest fragment, and whether there were others; None if it is not valid.

    The largest has most heavy atoms, then the greatest mass, then the first SMILES in the alphabet. Charges stay as they are.

    ``OCC`` gives ``("CCO", False)``, ``[Na+].CC(=O)[O-]`` gives ``("CC(=O)[O-]", True)``, ``C(C`` gives None.
    """
    chem = require_rdkit("Reading SMILES")
    from rdkit import rdBase  # pyright: ignore[reportMissingImports]
    from rdkit.Chem.Descriptors import MolWt  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]

    with rdBase.BlockLogs():
        mol = chem.MolFromSmiles(smiles) if smiles else None
        if mol is None or not mol.GetNumHeavyAtoms():
            return None
        if "." not in smiles:
            return chem.MolToSmiles(mol), False
        parts = chem.GetMolFrags(mol, asMols=True)
        written = [(-m.GetNumHeavyAtoms(), -MolWt(m), chem.MolToSmiles(m)) for m in parts]
    return min(written)[2], len(parts) > 1


def read_molecules(
    path: str | Path,
    *,
    smiles: str | None = None,
    targets: Sequence[str] | None = None,
    prefix: str = "",
) -> Molecules:
    """Molecules of a CSV file, cleaned by `clean`.

    Args:
        path: a CSV file with a header, also ``.gz``.
        smiles: the column of SMILES, else the one called so.
        targets: the columns to predict, else all columns of numbers.
        prefix: put before the names of the targets, for `together`.
    Raises:
        InputError: not a table, or no molecule in it is valid.
        UnknownName: no such column.
        MissingExtra: rdkit is not installed.
    """
    column, table = read_table(path, smiles=smiles, targets=targets)
    try:
        return clean(column, {prefix + n: v for n, v in table.items()})
    except InputError as error:
        raise InputError(f"{plain(path)}: {error}") from error


def clean(
    smiles: Sequence[str], targets: Mapping[str, Sequence[float] | np.ndarray], *, tolerance: float = TOLERANCE
) -> Molecules:
    """Different, valid molecules with one label for each target.

    Rows whose canonical SMILES agree are one molecule. Its label is the mean of theirs if they lie within `tolerance` standard
    deviations of the target; further apart the label is dropped, since nobody can say which is right. So are labels of repeated
    molecules that differ by what two units differ by, where half of those that differ do (`units.mismatch`). A target whose labels are
    all equal is left out, as there is nothing to learn.

    Args:
        smiles: as written.
        targets: by name, one number for each row; NaN is missing.
    Raises:
        InputError: no valid molecule, or no target that varies.
    """
    rows: dict[str, list[int]] = {}
    invalid, salts = [], 0
    for i, text in enumerate(smiles):
        found = canonical(text)
        if found is None:
            invalid.append(text)
            continue
        salts += found[1]
        rows.setdefault(found[0], []).append(i)
    if not rows:
        raise InputError(f"no valid SMILES in {len(smiles)} rows: {some(invalid)}. Is it the right column?")
    kept: dict[str, np.ndarray] = {}
    missing, conflicting, constant, units = {}, {}, [], {}
    for name, values in targets.items():
        column = np.asarray(values, np.float64)
        present = column[np.isfinite(column)]
        wide = tolerance * float(np.std(present)) if len(present) else 0.0
        labels, least, most = (np.full(len(rows), np.nan) for _ in range(3))
        for k, at in enumerate(rows.values()):
            own = column[at][np.isfinite(column[at])]
            if len(own):
                labels[k], least[k], most[k] = own.mean(), own.min(), own.max()
        conflict, drop = most - least > wide, np.zeros(len(rows), bool)
        if (mixed := mismatch(least, most)) is not None:
            drop = mixed.pairs
            units[name] = f"labels of {drop.sum()} repeated molecules differ by {mixed.said}"
        labels[conflict | drop] = np.nan
        dropped = int((conflict & ~drop).sum())
        usable = labels[np.isfinite(labels)]
        if not len(usable) or np.ptp(usable) == 0:
            constant.append(name)
            continue
        kept[name] = labels
        missing[name], conflicting[name] = int(np.isnan(labels).sum()) - dropped - int(drop.sum()), dropped
    if not kept:
        raise InputError(
            f"no target varies: of {some(constant)} the labels that could be kept are all equal, or there are none."
        )
    counts = Counts(
        len(smiles), len(invalid), salts, len(smiles) - len(invalid) - len(rows), missing, conflicting, tuple(constant), units,
        tuple(invalid[:3]),
    )  # fmt: skip
    return Molecules(tuple(rows), kept, counts)


def together(sets: Sequence[Molecules]) -> Molecules:
    """The molecules of several sets, each once, with the targets of all.

    Raises:
        UsageError: two sets have a target of the same name: read one of them with a prefix.
    """
    names = [n for s in sets for n in s.targets]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise UsageError(
            f"several files have the target {some(twice)}{_compared(sets, twice[0])}. Name its columns apart."
        )
    place = {s: i for i, s in enumerate(dict.fromkeys(x for found in sets for x in found.smiles))}
    targets, missing = {}, {}
    for found in sets:
        at = [place[s] for s in found.smiles]
        for name, values in found.targets.items():
            targets[name] = np.full(len(place), np.nan)
            targets[name][at] = values
            missing[name] = int(np.isnan(targets[name]).sum())
    every = [s.counts for s in sets]
    shared = sum(len(s) for s in sets) - len(place)
    counts = replace(
        Counts(),
        rows=sum(c.rows for c in every), invalid=sum(c.invalid for c in every), salts=sum(c.salts for c in every),
        duplicates=sum(c.duplicates for c in every) + shared, missing=missing,
        conflicting={n: k for c in every for n, k in c.conflicting.items()},
        constant=tuple(n for c in every for n in c.constant), units={n: u for c in every for n, u in c.units.items()},
        examples=tuple(x for c in every for x in c.examples)[:3],
    )  # fmt: skip
    return Molecules(tuple(place), targets, counts)


def _compared(sets: Sequence[Molecules], name: str) -> str:
    """How the labels of one target in the first two sets that have it go together, on the molecules of both."""
    first, second = [dict(zip(s.smiles, s.targets[name], strict=True)) for s in sets if name in s.targets][:2]
    both = [s for s, v in first.items() if np.isfinite(v) and np.isfinite(second.get(s, np.nan))]
    if not both:
        return ""
    a, b = (np.array([found[s] for s in both]) for found in (first, second))
    mixed = mismatch(a, b)
    said = f"differ by {mixed.said}" if mixed else f"agree for {int(np.isclose(a, b, rtol=0.01).sum())}"
    return f" (on the {len(both)} molecules of both its labels {said})"


# ---- splits ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Split:
    """Rows that train, validate and test, for all properties alike."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def scaffold(smiles: str) -> str:
    """The Murcko scaffold as SMILES without stereochemistry; empty for molecules without rings."""
    chem = require_rdkit("Splitting by scaffold")
    from rdkit.Chem.Scaffolds import MurckoScaffold  # pyright: ignore[reportMissingImports]

    core = MurckoScaffold.GetScaffoldForMol(chem.MolFromSmiles(smiles))
    return chem.MolToSmiles(core, isomericSmiles=False)


def split(
    smiles: Sequence[str],
    *,
    by: Literal["random", "scaffold"] = "random",
    folds: int = 5,
    fold: int = 0,
    validation: float = 0.125,
    seed: int = 0,
) -> Split:
    """One of `folds` splits: the fold is the test set, a share of the rest validates.

    The split is of molecules, not of labels: what tests one property trains none. By scaffold, molecules with one Murcko scaffold
    stay together, and groups of more than half a fold (as a rule that of molecules without rings) always train.

    Args:
        smiles: canonical SMILES, each once.
        by: whether molecules or groups with one scaffold are dealt to the folds.
        fold: which of them tests, from 0.
        validation: share of the molecules outside the fold.
        seed: of the dealing.
    Raises:
        UsageError: fewer than two folds, no such fold, or an empty part.
    """
    if by not in ("random", "scaffold"):
        raise UsageError(f"a split is by 'random' or 'scaffold', not {by!r}.{nearest(by, ('random', 'scaffold'))}")
    if folds < 2 or not 0 <= fold < folds or not 0 < validation < 1:
        raise UsageError(
            f"a split needs 2 folds or more, a fold from 0, and a share that validates between 0 and 1; got folds={folds}, fold={fold}, "
            f"validation={validation:g}."
        )
    groups: dict[Any, list[int]] = {}
    for i, s in enumerate(smiles):
        groups.setdefault(scaffold(s) if by == "scaffold" else i, []).append(i)
    rng = np.random.default_rng([seed, folds])
    order = [list(groups.values())[i] for i in rng.permutation(len(groups))]
    if by == "scaffold":
        order.sort(key=len, reverse=True)  # stable: groups of one size stay shuffled
    most = len(smiles) / folds / 2
    parts: list[list[int]] = [[] for _ in range(folds)]
    always: list[int] = []
    rest: list[list[int]] = []
    for group in order:
        if len(group) > max(1, most):
            always += group
            continue
        least = min(range(folds), key=lambda k: len(parts[k]))
        parts[least] += group
        if least != fold:
            rest.append(group)
    wanted = validation * (len(smiles) - len(parts[fold]))
    chosen: list[int] = []
    for i in np.random.default_rng([seed, folds, fold]).permutation(len(rest)):
        if len(chosen) + len(rest[i]) <= wanted:
            chosen += rest[i]
    if not chosen and len(rest) > 1:
        chosen = min(rest, key=len)
    held = {*chosen, *parts[fold]}
    train = [i for i in range(len(smiles)) if i not in held]
    found = Split(*(np.array(sorted(x), np.int64) for x in (train, chosen, parts[fold])))
    for what, rows in (("train", found.train), ("validation", found.validation), ("test", found.test)):
        if not len(rows):
            raise UsageError(
                f"the {what} part of the split by {by} is empty: {len(smiles)} molecules in {len(groups)} groups, {folds} folds. "
                "Take fewer folds, a larger share that validates, or a random split."
            )
    return found


def labelled(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Those of `rows` that have a label."""
    return rows[np.isfinite(values[rows])]


def few(values: np.ndarray, found: Split, most: int, *, seed: int) -> Split:
    """At most `most` labels of one target for training and validation together, in the proportion of the split; the test rows stay.

    Raises:
        UsageError: fewer than four labels, or none in a part.
    """
    train, validation, test = (labelled(values, rows) for rows in (found.train, found.validation, found.test))
    rng = np.random.default_rng([seed, most])
    total = len(train) + len(validation)
    if total > most:
        held = max(1, round(most * len(validation) / total))
        train = np.sort(rng.permutation(train)[: most - held])
        validation = np.sort(rng.permutation(validation)[:held])
    if len(train) < 2 or not len(validation) or not len(test):
        raise UsageError(
            f"too few labels: {len(train)} to train, {len(validation)} to validate, {len(test)} to test. Take another split or more data."
        )
    return Split(train, validation, test)


def holdout(rows: np.ndarray, *, share: float = 0.125, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """All but a share of these rows, at random, and that share: to train and to validate where nothing is to be tested.

    Raises:
        UsageError: fewer than three rows.
    """
    if len(rows) < 3:
        raise UsageError(f"{len(rows)} labelled molecules are too few: at least 2 train and 1 validates.")
    order = np.random.default_rng([seed, 1]).permutation(rows)
    held = max(1, round(share * len(rows)))
    return np.sort(order[held:]), np.sort(order[:held])


def gather(
    paths: Sequence[str | Path],
    *,
    smiles: str | None = None,
    targets: Sequence[str] | None = None,
) -> Molecules:
    """The molecules of several files together; of each the columns that are among `targets` (or all columns of numbers).

    Raises:
        UnknownName: no file has one of the targets.
        UsageError: no files, or a target is in several of them.
        InputError: a file is no table, or holds no valid molecule.
    """
    if not paths:
        raise UsageError("name at least one CSV file of molecules.")
    heads = {p: header_of(p) for p in paths}
    every = list(dict.fromkeys(h for head in heads.values() for h in head))
    for name in targets or ():
        if name not in every:
            raise UnknownName(f"no file has a column {name!r}; there are {some(every, 20)}.{nearest(name, every)}")
    own = {p: None if targets is None else [t for t in targets if t in head] for p, head in heads.items()}
    sets = [read_molecules(p, smiles=smiles, targets=names) for p, names in own.items() if names is None or names]
    return sets[0] if len(sets) == 1 else together(sets)
