"""What the command line prints, and where: results to stdout, notes, errors and progress to stderr."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

from ..errors import plain


def note(text: str) -> None:
    print("note: " + "\n".join(map(plain, text.split("\n"))), file=sys.stderr)


def say_error(text: str, code: int) -> int:
    with contextlib.suppress(BrokenPipeError):
        print("error: " + "\n".join(map(plain, text.split("\n"))), file=sys.stderr)
    return code


def print_json(command: str, document: dict[str, Any]) -> None:
    print(json.dumps({"schema_version": 1, "command": command, **document}, indent=1, default=str))


@contextlib.contextmanager
def progress(*values: Any) -> Iterator[Callable[[int], None] | None]:
    """A bar by bytes, with rate and time left, on a terminal; nothing in a pipe."""
    if not sys.stderr.isatty():
        yield None
        return
    with _bar(sum(v.explain().bytes_to_read for v in values)) as step:
        yield step


@contextlib.contextmanager
def rate() -> Iterator[Callable[[int], None] | None]:
    """As `progress`, where the whole is not known before."""
    if not sys.stderr.isatty():
        yield None
        return
    with _bar(None) as step:
        yield step


@contextlib.contextmanager
def _bar(total: int | None) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda n: bar.advance(task, n)


@contextlib.contextmanager
def training_bar() -> Iterator[tuple[Callable[[str], None], Callable[[int, int, float], None] | None]]:
    """Say a line, which begins a new bar; and a bar by updates (so many, of how many, the loss) with the time left. On a terminal;
    in a pipe lines are notes and there is no bar."""
    if not sys.stderr.isatty():
        yield note, None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns: Any = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        shown = bar.add_task("", total=1, loss=0.0)

        def tell(line: str) -> None:
            bar.console.print(line, highlight=False, markup=False)
            bar.reset(shown, total=1, loss=0.0)

        yield tell, lambda step, total, loss: bar.update(shown, completed=step, total=total, loss=loss)
