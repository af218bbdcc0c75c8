"""Running a study: cells in order, each once, in one process or several; results gathered where reports find them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import StorageError, TaskvecError, plain
from ..models.functional import out_of_memory
from ..results import read_result
from .cells import Cell, Store, needed, ordered
from .plan import plan
from .spec import Study
from .work import HELD, RESULT, Bench

CELLS, RESULTS = "cells", "results"
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """What a run did: cells computed now and before, seconds, and the files of the results."""

    computed: int
    kept: int
    seconds: float
    results: tuple[Path, ...]


def run(
    study: Study, out: str | Path, *, root: str | Path | None = None, only: Sequence[str] = (), jobs: int = 1,
    device: str | None = None, download: bool = False, memory: int = HELD, tell: Tell = lambda _: None,
    progress: Callable[[int, int, float], None] | None = None, again: Sequence[str] = (),
) -> Outcome:  # fmt: skip
    """Compute every cell of a study that is not there yet, and write its results.

    Args:
        study: what is asked.
        out: folder of cells and results; several studies may share one, and then share equal cells.
        root: folder of the data sets, else the study's.
        only: results whose label contains one of these texts; all if empty.
        jobs: processes; the others are started with `again`, and share the folder.
        device: where models run.
        download: whether data sets that are not in the root may be fetched.
        memory: bytes of decoded pixels to hold of each data set; more are decoded whenever they are used.
        tell: called with one line for every cell.
        progress: called while a cell trains, with updates, of how many, and the loss.
        again: the command line of one more process that does the same.
    Raises:
        TaskvecError: a cell failed; says which. What was finished is kept.
    """
    began, out = time.monotonic(), Path(out)
    store = Store(out / CELLS)
    place = root if root is not None else study.root
    place = None if place is None else Path(place)
    asked = plan(study, place, only)
    wanted = chosen(asked, only)
    todo = needed(wanted, store)
    kept = len(ordered(wanted)) - len(todo)
    _make(store.folder)
    bench = Bench(store, place, download, device, memory, progress)
    others = [
        subprocess.Popen([*again], stdout=subprocess.DEVNULL, env=os.environ | {"TASKVEC_WORKER": "1"})
        for _ in range(jobs - 1)
    ]
    try:
        computed = _work(todo, store, bench, tell, others)
    finally:
        for other in others:
            other.terminate()
            other.wait()
    return Outcome(
        computed, kept, time.monotonic() - began, _gather(study, asked, wanted, store, out / RESULTS / study.name)
    )


def chosen(results: Sequence[Cell], only: Sequence[str]) -> list[Cell]:
    """Result cells by parts of their labels."""
    from ..errors import UsageError, some

    found = [c for c in results if not only or any(text in c.label for text in only)]
    if not found:
        raise UsageError(
            f"no result's label contains {some(only)}; there are, for example, {some(c.label for c in results)}."
        )
    return found


def _work(todo: Sequence[Cell], store: Store, bench: Bench, tell: Tell, others: Sequence[Any]) -> int:
    """All cells, each when its needs are done; what another process has is left to it and looked at again."""
    computed, left = 0, list(todo)
    while left:
        waiting = []
        for i, cell in enumerate(left):
            if store.done(cell):
                continue
            if not all(store.done(n) for n in cell.needs.values()):
                waiting.append(cell)
                continue
            with store.claimed(cell) as place:
                if place is None:
                    waiting.append(cell)
                    continue
                if store.done(cell):
                    continue
                computed += 1
                tell(f"[{len(todo) - len(left) + i + 1}/{len(todo)}] {cell.label}")
                _compute(cell, place, store, bench)
        if len(waiting) == len(left):  # all that is left is being computed elsewhere
            failed = [p for p in others if p.poll() not in (None, 0)]
            if failed:
                raise StorageError("a process of this run failed; what it says stands above. Run again to go on.")
            time.sleep(0.2)
        left = waiting
    return computed


def _compute(cell: Cell, place: Path, store: Store, bench: Bench) -> None:
    began = time.monotonic()
    try:
        outcome = bench.compute(cell, place)
    except TaskvecError as error:
        error.args = (f"{cell.label}: {error.args[0] if error.args else ''}", *error.args[1:])
        raise
    except BaseException as error:
        if out_of_memory(error):
            raise StorageError(
                f"{cell.label}: out of memory: {str(error).splitlines()[0]}. Take a device with more memory, or a smaller model."
            ) from error
        error.add_note(f"While computing: {cell.label}")
        raise
    store.finish(cell, outcome, seconds=time.monotonic() - began)


def _gather(
    study: Study, asked: Sequence[Cell], wanted: Sequence[Cell], store: Store, folder: Path
) -> tuple[Path, ...]:
    """Copies of all finished results of the study, which say that they are of it, under names that say what they are; the paths
    of those that were wanted.

    Copies of results that the study as it now stands does not ask for, of settings that it had before, are removed: a report
    would count them as its own. Their cells stay.
    """
    _make(folder)
    named: dict[str, Cell] = {}
    for cell in asked:
        name = "".join(c if c.isalnum() or c in "._-" else "-" for c in cell.label.replace(", ", "--"))
        if named.setdefault(f"{name}.json", cell).key != cell.key:  # labels that differ in other characters only
            named[f"{name}-{cell.key[:6]}.json"] = cell
    keys, out = {c.key for c in wanted}, []
    for name, cell in named.items():
        if store.done(cell):
            result = read_result(store.place(cell) / RESULT)
            made = result.provenance
            where = {"name": study.name, "heads": study.heads, **made.settings["study"]}
            settings = {**made.settings, "study": where}
            result = result.model_copy(update={"provenance": made.model_copy(update={"settings": settings})})
            result.write(folder / name)
            out += [folder / name] if cell.key in keys else []
    for path in folder.glob("*.json"):
        cell = named.get(path.name)
        # Looked at anew: another process may have finished it since.
        if (cell is None or not store.done(cell)) and _of(study, path):
            path.unlink(missing_ok=True)
    return tuple(out)


def _of(study: Study, path: Path) -> bool:
    """Whether a file is a copy of a result of this study, try-outs and others apart."""
    try:
        where = read_result(path).provenance.settings.get("study")
    except TaskvecError:
        return False
    return isinstance(where, dict) and where.get("name") == study.name and bool(where.get("tryout")) == study.tryout


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make {plain(folder)}: {error.strerror}. Name another folder with -o.") from error


def is_worker() -> bool:
    """Whether this process was started by another one to share its work."""
    return bool(os.environ.get("TASKVEC_WORKER"))


def same_again() -> list[str]:
    """The command line that starts this program once more."""
    return [sys.executable, "-m", "taskvec.cli", *sys.argv[1:]]
