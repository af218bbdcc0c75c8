"""The log of a run: every update's loss, and what was seen on the validation split, for spreadsheets and TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MissingExtra, UsageError, plain
from ..files import replace_text

if TYPE_CHECKING:
    from .loop import Fitted

Progress = Callable[[int, float], None]
SUFFIXES = (".csv", ".json")


def check_log(path: Path) -> None:
    """Refuse, before any work, a log that cannot be written.

    Raises:
        UsageError: a file name with another suffix than .csv or .json.
        MissingExtra: a folder is asked for and TensorBoard is not installed.
    """
    if path.suffix in SUFFIXES:
        return
    if path.suffix:
        raise UsageError(
            f"cannot write the log {plain(path)}: a log is a .csv or .json file, or a folder for TensorBoard (a name without suffix)."
        )
    _writer()


@contextmanager
def logged(path: Path | None, progress: Progress | None) -> Iterator[Progress | None]:
    """A `progress` that also writes to TensorBoard while training goes on, where `path` is a folder."""
    if path is None or path.suffix in SUFFIXES:
        yield progress
        return
    writer: Any = _writer()(str(path))

    def both(step: int, loss: float) -> None:
        writer.add_scalar("loss", loss, step)
        if progress:
            progress(step, loss)

    try:
        yield both
    finally:
        writer.close()


def write_log(path: Path, made: Fitted) -> Path:
    """Write a finished run: step, loss before that update, and validation loss where there was a look; nothing for a folder."""
    rows = [{"step": i, "loss": loss, "validation_loss": made.looks.get(i)} for i, loss in enumerate(made.losses, 1)]
    if path.suffix == ".json":
        return replace_text(
            path, json.dumps({"returned_step": made.step, "steps": rows}, indent=1) + "\n", what="the log"
        )
    if path.suffix == ".csv":
        lines = [
            f"{r['step']},{r['loss']!r},{'' if r['validation_loss'] is None else repr(r['validation_loss'])}"
            for r in rows
        ]
        return replace_text(path, "\n".join(["step,loss,validation_loss", *lines]) + "\n", what="the log")
    writer: Any = _writer()(str(path))
    for step, loss in made.looks.items():
        writer.add_scalar("validation loss", loss, step)
    writer.close()
    return path


def _writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtra(
            "A log for TensorBoard needs the package tensorboard, which is not installed. Run: pip install tensorboard. Or name a "
            ".csv or .json file."
        ) from error
    return SummaryWriter
