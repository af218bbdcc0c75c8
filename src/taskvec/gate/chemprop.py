"""chemprop as a rival: a program of its own, since its requirements and ours need not fit one environment."""

from __future__ import annotations

import csv
import math
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import InputError, UsageError, plain
from .molecules import Split

CHEMPROP = "chemprop"
BATCH, LEAST_EPOCHS = 64, 50  # chemprop's own defaults


@dataclass(frozen=True)
class Chemprop:
    """The program that was found, and what it calls itself ("chemprop 2.3.1")."""

    program: str
    version: str


def find(program: str | Path = CHEMPROP) -> Chemprop:
    """The command `program`, asked for its version.

    Args:
        program: a path, or a name to look for where commands are.
    Raises:
        UsageError: there is no such command, or it does not answer as chemprop 2 does within two minutes.
    """
    found = shutil.which(str(program))
    if found is None:
        raise UsageError(
            f"there is no command {plain(str(program))}. Install chemprop 2 (`pip install chemprop`, in an environment of its own if "
            "you like) and name its command: .../bin/chemprop."
        )
    found = str(Path(found).absolute())  # it is run in another folder
    try:
        said = _ran([found, "--version"], seconds=120).stdout
    except InputError as error:
        raise UsageError(str(error)) from error
    version = re.search(r"^chemprop 2\.\S+$", said, re.MULTILINE)
    if version is None:
        raise UsageError(
            f"{plain(found)} --version says {plain(said.strip()[:80])!r}; expected `chemprop 2.` and so on."
        )
    return Chemprop(found, version.group())


def epochs(train: int, updates: int) -> int:
    """As many as make at least so many updates, and never fewer than chemprop's default.

    Example:
        >>> epochs(175, 800), epochs(1000, 800)
        (267, 50)
    """
    return max(LEAST_EPOCHS, math.ceil(updates / math.ceil(train / BATCH)))


def predictions(
    program: Chemprop, smiles: Sequence[str], labels: np.ndarray, part: Split, *, updates: int, seed: int
) -> tuple[np.ndarray, float]:
    """Train chemprop's default network on one target and predict its test molecules.

    The training molecules teach, the validation molecules choose the epoch, as for all other methods; all else is chemprop's default
    (message passing of width 300, 318,000 weights). Runs in a process of one thread; nothing is kept.

    Args:
        smiles: of all molecules.
        labels: float64, alike, in own units; the rows of `part` have one.
        part: rows to train, validate and test.
        updates: at least so many, see `epochs`.
        seed: of initial weights; batches come in chemprop's own order.
    Returns:
        Predictions for ``part.test`` in own units, and the CPU seconds of the process.
    Raises:
        InputError: chemprop failed, or its predictions are not those of the test molecules.
    """
    parts = {"train": part.train, "val": part.validation, "test": part.test}
    wanted = [smiles[i] for i in part.test]
    before = _children()
    with tempfile.TemporaryDirectory(prefix="taskvec-") as folder:
        table, out = Path(folder) / "labels.csv", Path(folder) / "out"
        with table.open("w", newline="", encoding="utf-8") as file:
            # Test labels stay here: chemprop needs a number in the column, and none of them reaches it.
            rows = ((smiles[i], 0.0 if n == "test" else float(labels[i]), n) for n, at in parts.items() for i in at)
            csv.writer(file).writerows([("smiles", "label", "split"), *rows])
        said = _ran([
            program.program, "train", "-q", "-i", str(table), "-o", str(out), "--smiles-columns", "smiles", "--target-columns", "label",
            "--splits-column", "split", "--accelerator", "cpu", "--num-workers", "0", "--pytorch-seed", str(seed),
            "--epochs", str(epochs(len(part.train), updates)),
        ], folder)  # fmt: skip
        try:
            with (out / "model_0" / "test_predictions.csv").open(newline="", encoding="utf-8") as file:
                found = list(csv.DictReader(file))
            values = np.array([float(r["label"]) for r in found])
            fits = [r["smiles"] for r in found] == wanted and bool(np.isfinite(values).all())
        except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
            raise InputError(f"{program.version} left no predictions ({error}). It said:\n{_last(said)}") from error
    if not fits:
        raise InputError(
            f"{program.version} predicted {len(values)} molecules, not the {len(wanted)} test molecules in their order. It said:\n"
            f"{_last(said)}"
        )
    return values, _children() - before


def _ran(
    command: Sequence[str], folder: str | None = None, seconds: float | None = None
) -> subprocess.CompletedProcess[str]:
    # One thread; and another environment is not to find this one's modules.
    around = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    around |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, cwd=folder, env=around, text=True, errors="replace", stdin=subprocess.DEVNULL, capture_output=True, check=False,
            timeout=seconds,
        )  # fmt: skip
    except OSError as error:
        raise UsageError(f"{plain(command[0])} cannot be run: {error.strerror}.") from error
    except subprocess.TimeoutExpired as error:
        raise InputError(f"{plain(' '.join(command[:2]))} gave no answer in {seconds:g} seconds.") from error
    if done.returncode:
        raise InputError(f"{plain(' '.join(command[:2]))} ended with {done.returncode}. It said:\n{_last(done)}")
    return done


def _last(done: subprocess.CompletedProcess[str]) -> str:
    return "\n".join(plain(line) for line in (done.stderr or done.stdout).splitlines()[-5:])


def _children() -> float:
    """CPU seconds of all processes that were waited for."""
    spent = os.times()
    return spent.children_user + spent.children_system
