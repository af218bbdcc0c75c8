"""What a shared embedding reads: plain rows of numbers, fingerprints, or graphs of molecules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from ..errors import InputError, UsageError, nearest, quoted
from .molecules import require_rdkit

Embedding = Literal["rows", "fingerprint", "graph"]
BITS, RADIUS = 1024, 2  # of the Morgan fingerprint

ELEMENTS = (5, 6, 7, 8, 9, 14, 15, 16, 17, 34, 35, 53)  # B C N O F Si P S Cl Se Br I, then any other
ATOM_WIDTH = len(ELEMENTS) + 1 + 7 + 5 + 5 + 6 + 2
BOND_WIDTH = 4 + 2


@dataclass(frozen=True, eq=False)
class Rows:
    """One row of numbers for each sample: float32 ``[n, width]``."""

    values: torch.Tensor

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: Sequence[int] | np.ndarray | torch.Tensor) -> Rows:
        return Rows(self.values[torch.as_tensor(rows, dtype=torch.long)])


@dataclass(frozen=True, eq=False)
class Graphs:
    """Molecules as graphs: atoms ``[A, ATOM_WIDTH]``, directed bonds ``[B, BOND_WIDTH]`` that lead from atom `source` to atom `goal`.

    Bonds 2k and 2k + 1 are the two directions of one bond. Atoms and bonds of a molecule lie together; molecule i has the atoms from
    ``first_atom[i]`` to ``first_atom[i + 1]``, its bonds alike.
    """

    atoms: torch.Tensor
    bonds: torch.Tensor
    source: torch.Tensor
    goal: torch.Tensor
    first_atom: torch.Tensor
    first_bond: torch.Tensor

    def __len__(self) -> int:
        return len(self.first_atom) - 1

    def take(self, rows: Sequence[int] | np.ndarray | torch.Tensor) -> Graphs:
        rows = torch.as_tensor(rows, dtype=torch.long)
        atom_at, atoms, _ = _spans(self.first_atom, rows)
        bond_at, bonds, owner = _spans(self.first_bond, rows)
        moved = (atoms[:-1] - self.first_atom[rows])[owner]  # where the atoms of a bond's molecule went
        return Graphs(
            self.atoms[atom_at], self.bonds[bond_at], self.source[bond_at] + moved, self.goal[bond_at] + moved, atoms, bonds
        )  # fmt: skip

    @property
    def molecule(self) -> torch.Tensor:
        """Which molecule each atom belongs to."""
        return torch.repeat_interleave(torch.arange(len(self)), self.first_atom.diff())


Inputs = Rows | Graphs


def _spans(first: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Where the entries of these rows lie, where they begin once gathered, and the row each belongs to."""
    sizes = first[rows + 1] - first[rows]
    starts = torch.cat([torch.zeros(1, dtype=torch.long), sizes.cumsum(0)])
    owner = torch.repeat_interleave(torch.arange(len(rows)), sizes)
    at = torch.arange(int(starts[-1])) - starts[owner] + first[rows][owner]
    return at, starts, owner


def inputs_for(embedding: Embedding, smiles: Sequence[str]) -> Inputs:
    """What the embedding reads of these molecules.

    Raises:
        UsageError: an unknown embedding, or "rows", which are not made from SMILES.
        InputError: a SMILES is not valid; `molecules.clean` leaves such out.
        MissingExtra: rdkit is not installed.
    """
    if embedding == "fingerprint":
        return fingerprints(smiles)
    if embedding == "graph":
        return graphs(smiles)
    known = ("graph", "fingerprint")
    raise UsageError(
        f"the embedding of molecules is one of {', '.join(known)}, not {embedding!r}.{nearest(embedding, known)}"
    )


def fingerprints(smiles: Sequence[str]) -> Rows:
    r""":math:`\log(1 + c)` of the counts c of Morgan fragments up to radius 2, folded to 1,024."""
    require_rdkit("Fingerprints")
    from rdkit.Chem import rdFingerprintGenerator  # pyright: ignore[reportMissingImports]

    make = rdFingerprintGenerator.GetMorganGenerator(radius=RADIUS, fpSize=BITS)
    found = [make.GetCountFingerprintAsNumPy(_parsed(s)) for s in smiles]
    return Rows(torch.from_numpy(np.log1p(np.stack(found).astype(np.float32))))


def graphs(smiles: Sequence[str]) -> Graphs:
    """Atoms by element, degree, charge, hydrogens, hybridisation, aromaticity and mass; bonds by order, conjugation and ring."""
    require_rdkit("Graphs of molecules")
    # Few kinds of atoms and bonds occur, so each is described once; molecules hold the numbers of their kinds.
    atom_kinds: dict[tuple, int] = {}
    bond_kinds: dict[tuple, int] = {}
    atoms: list[int] = []
    bonds: list[int] = []
    source: list[int] = []
    goal: list[int] = []
    first_atom, first_bond = [0], [0]
    for text in smiles:
        mol = _parsed(text)
        start = len(atoms)
        for a in mol.GetAtoms():
            kind = (
                a.GetAtomicNum(), a.GetTotalDegree(), a.GetFormalCharge(), a.GetTotalNumHs(), a.GetHybridization(), a.GetIsAromatic(),
                a.GetMass(),
            )  # fmt: skip
            atoms.append(atom_kinds.setdefault(kind, len(atom_kinds)))
        for b in mol.GetBonds():
            i, j = start + b.GetBeginAtomIdx(), start + b.GetEndAtomIdx()
            kind = (b.GetBondTypeAsDouble(), b.GetIsConjugated(), b.IsInRing())
            bonds += [bond_kinds.setdefault(kind, len(bond_kinds))] * 2
            source += [i, j]
            goal += [j, i]
        first_atom.append(len(atoms))
        first_bond.append(len(bonds))
    at_atoms, at_bonds, *whole = (
        torch.tensor(x, dtype=torch.long) for x in (atoms, bonds, source, goal, first_atom, first_bond)
    )
    of_atoms = torch.tensor([_atom(*k) for k in atom_kinds], dtype=torch.float32).reshape(-1, ATOM_WIDTH)
    of_bonds = torch.tensor([_bond(*k) for k in bond_kinds], dtype=torch.float32).reshape(-1, BOND_WIDTH)
    return Graphs(of_atoms[at_atoms], of_bonds[at_bonds], *whole)


_HYBRID = {"S": 0, "SP": 1, "SP2": 2, "SP3": 3, "SP3D": 4}


def _atom(
    number: int, degree: int, charge: int, hydrogens: int, hybrid: Any, aromatic: bool, mass: float
) -> list[float]:
    return [
        *_one_hot(ELEMENTS.index(number) if number in ELEMENTS else len(ELEMENTS), len(ELEMENTS) + 1),
        *_one_hot(min(degree, 6), 7), *_one_hot(max(-2, min(2, charge)) + 2, 5), *_one_hot(min(hydrogens, 4), 5),
        *_one_hot(_HYBRID.get(str(hybrid), 5), 6), float(aromatic), mass / 100,
    ]  # fmt: skip


def _bond(order: float, conjugated: bool, in_ring: bool) -> list[float]:
    return [*_one_hot({1.0: 0, 2.0: 1, 3.0: 2, 1.5: 3}.get(order), 4), float(conjugated), float(in_ring)]


def _one_hot(at: int | None, size: int) -> list[float]:
    return [float(i == at) for i in range(size)]


def _parsed(text: str):
    mol = require_rdkit("Reading SMILES").MolFromSmiles(text)
    if mol is None or not mol.GetNumAtoms():
        raise InputError(f"{quoted(text)} is no valid SMILES. Clean the molecules first (taskvec.gate.clean).")
    return mol
