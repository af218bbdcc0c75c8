"""Running a demo from beginning to end, and writing what it made."""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import report
from ..errors import StorageError, missing_extra
from ..models.functional import require_torch
from ..weights import TaskVector
from ..weights.execute import default_threads
from . import telling
from .questions import answers, task_vectors
from .setting import Setting

if TYPE_CHECKING:
    from rich.console import Console


def run(
    out: str | Path,
    *,
    seed: int = 0,
    text: bool = False,
    data: str | Path | None = None,
    overwrite: bool = False,
    quick: bool = False,
    console: Console | None = None,
) -> list[Any]:
    """Run the demo, tell it on the console, and leave checkpoints, vectors, results and a report in `out`.

    Args:
        out: a folder; made if missing.
        seed: everything random follows from it.
        text: sentences and a pre-trained language model instead of digits.
        data: with `text`, the folder of the sentence files.
        overwrite: replace the files of an earlier run.
        quick: a few training steps only; the numbers mean nothing.
        console: where to print, else the standard output.
    Returns:
        the results: forgetting, adding, analogy, geometry.
    Raises:
        StorageError: `out` is not empty and `overwrite` is off.
        MissingExtra: torch, scikit-learn, matplotlib or jinja2 is not installed.
    """
    from rich.console import Console

    out, began = Path(out), time.monotonic()
    if not overwrite and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise StorageError(f"{out} already exists and is not empty. Name another folder, or pass --overwrite.")
    if text:
        from .text import find_files

        find_files(data)
    _writable(out)
    for library in ("matplotlib", "jinja2"):  # now, not after a minute of training
        if importlib.util.find_spec(library) is None:
            raise missing_extra(library, "demo", "The demo's report")
    console = console or Console()
    torch = require_torch("The demo")
    threads = torch.get_num_threads()
    # The digits' tensors are so small that several threads are slower; one thread also gives the same bits everywhere.
    torch.set_num_threads(min(4, default_threads()) if text else 1)
    try:
        telling.opening(console)
        if text:
            from .text import text_setting

            setting = text_setting(seed=seed, data=data, quick=quick)
        else:
            from .digits import digits_setting

            setting = digits_setting(seed=seed, quick=quick)
        for sentence in setting.told:
            telling.say(console, sentence)
        vectors = task_vectors(setting, console)
        results = answers(setting, vectors, seed=seed, tell=lambda result: telling.answer(console, result))
    finally:
        torch.set_num_threads(threads)
    _write(out, setting, vectors, results, overwrite=overwrite)
    telling.closing(console, out, setting, seconds=time.monotonic() - began)
    return results


def _writable(out: Path) -> None:
    """Make the folder and a file in it, so that a minute of training is not lost to a disk that cannot be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise StorageError(f"cannot write to {out}: {error.strerror}. Name another folder with --out.") from error


def _write(
    out: Path, setting: Setting, vectors: Mapping[str, TaskVector], results: list[Any], *, overwrite: bool
) -> None:
    setting.base.save(out / "checkpoints" / "base.safetensors", overwrite=overwrite)
    for name, vector in vectors.items():
        if setting.keep_finetuned:
            (setting.base + vector).save(
                out / "checkpoints" / f"{telling.file_name(name)}.safetensors", overwrite=overwrite
            )
        vector.save(out / "vectors" / f"{telling.file_name(name)}.safetensors", overwrite=overwrite)
    heads: dict[int, str] = {}
    for task in (*setting.add, setting.control):
        head = task.needs_head()
        if id(head) not in heads:  # tasks may share a head; it is saved once, under the first task's name
            heads[id(head)] = telling.file_name(task.name)
            head.save(out / "heads" / f"{telling.file_name(task.name)}.safetensors", overwrite=overwrite)
    for i, (name, result) in enumerate(zip(("forget", "add", "analogy", "geometry"), results, strict=True), start=1):
        result.write(out / "results" / f"{i}-{name}.json")
    report.write(results, out / "report.html", title=setting.title)
