"""Cells: the units of a study. Each is described by plain facts, and kept in a folder named by the hash of its description.

A finished cell is never computed again; one that was interrupted is begun again. Several processes may work on one
folder: each cell is locked while it is computed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import InputError, StorageError
from ..files import replace_text

VERSION = 1  # of what cells compute; a higher number makes all of them anew
DONE = "cell.json"  # written last: a folder that has it is finished
STATE = "state.safetensors"  # of a training run, from which it goes on


@dataclass(frozen=True, eq=False)
class Cell:
    """A piece of work.

    Args:
        kind: what is done: ``base``, ``head``, ``fit``, ``rate`` or a protocol's name.
        label: what people call it, unique enough to be found.
        facts: everything that decides the outcome, beside the cells it needs; JSON.
        needs: cells whose outcome it reads, by role.
    """

    kind: str
    label: str
    facts: Mapping[str, Any]
    needs: Mapping[str, Cell] = field(default_factory=dict)

    @cached_property
    def key(self) -> str:
        """Hash of the description, and of those of all cells it needs."""
        said = [VERSION, self.kind, self.facts, {role: cell.key for role, cell in self.needs.items()}]
        text = json.dumps(said, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:20]


@dataclass(frozen=True)
class Store:
    """The folder of finished cells."""

    folder: Path

    def place(self, cell: Cell) -> Path:
        return self.folder / f"{cell.kind}-{cell.key}"

    def done(self, cell: Cell) -> bool:
        return (self.place(cell) / DONE).is_file()

    def outcome(self, cell: Cell) -> dict[str, Any]:
        """What the finished cell found.

        Raises:
            InputError: its file is damaged.
        """
        return self._said(cell)["outcome"]

    def seconds(self, cell: Cell) -> float:
        """How long it took."""
        return float(self._said(cell)["seconds"])

    def _said(self, cell: Cell) -> dict[str, Any]:
        path = self.place(cell) / DONE
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
            return {"outcome": dict(said["outcome"]), "seconds": float(said["seconds"])}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path} is damaged ({error}). Remove the folder {path.parent} to compute it again."
            ) from error

    def finish(self, cell: Cell, outcome: Mapping[str, Any], *, seconds: float) -> None:
        needs = {role: n.key for role, n in cell.needs.items()}
        said = {
            "version": VERSION, "kind": cell.kind, "label": cell.label, "facts": cell.facts, "needs": needs,
            "seconds": round(seconds, 2), "outcome": outcome,
        }  # fmt: skip
        replace_text(self.place(cell) / DONE, json.dumps(said, indent=1) + "\n", what="the cell")

    @contextlib.contextmanager
    def claimed(self, cell: Cell) -> Iterator[Path | None]:
        """The cell's folder, empty but for the state of a run, for this process alone while it works; None if another has it."""
        import fcntl

        place = self.place(cell)
        try:
            place.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.folder / f".{place.name}.lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise StorageError(
                f"cannot keep cells in {self.folder}: {error.strerror}. Name another folder, or make room there."
            ) from error
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
                return
            if not self.done(cell):  # what an interrupted process left
                for path in (p for p in place.iterdir() if p.name != STATE):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            yield place
        finally:
            os.close(lock)


def ordered(wanted: Sequence[Cell]) -> list[Cell]:
    """The cells and all that they need, each once, needs first."""
    out: dict[str, Cell] = {}
    # Without recursion: a study may be deep.
    stack = [(cell, False) for cell in reversed(wanted)]
    while stack:
        cell, ready = stack.pop()
        if cell.key in out:
            continue
        if ready:
            out[cell.key] = cell
        else:
            stack.append((cell, True))
            stack.extend((n, False) for n in reversed(list(cell.needs.values())))
    return list(out.values())


def needed(wanted: Sequence[Cell], store: Store) -> list[Cell]:
    """Of `ordered`, those that are not done and are needed by something that is not done."""
    kept: dict[str, Cell] = {}
    todo = [c for c in wanted if not store.done(c)]
    while todo:
        cell = todo.pop()
        if cell.key not in kept:
            kept[cell.key] = cell
            todo.extend(n for n in cell.needs.values() if not store.done(n))
    return [c for c in ordered(wanted) if c.key in kept]


Work = Callable[[Cell, Path], Mapping[str, Any]]  # computes a cell in its folder, gives its outcome
