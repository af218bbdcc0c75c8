"""Printing the demo's story on a console."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..report import story
from ..results import Row, Score
from .setting import Setting

if TYPE_CHECKING:
    from rich.console import Console


def opening(console: Console) -> None:
    console.print("[bold]taskvec demo[/]: editing a model by arithmetic on its weights")
    say(
        console,
        "A task vector is what fine-tuning changed: tau = finetuned - base. Subtract it and the model forgets the task, "
        "add several and it learns several, combine them and it reaches a task it has no data for.",
    )
    say(
        console,
        "Every coefficient below is chosen on validation data; the test data are read once. Brackets are 95 % intervals.",
    )
    say(console, "Making the base ...")


def answer(console: Console, result: Any) -> None:
    """One question: heading, table, and the sentences that a report would say about these numbers."""
    told = story.section(result)
    heading(console, told.title, told.question, told.equation)
    if result.kind == "geometry":
        shown = table("cosine", *result.names)
        for name, row in zip(result.names, result.cosine, strict=True):
            shown.add_row(name, *(f"{c:.2f}" for c in row))
    else:
        tasks = list(result.rows[0].scores)
        several = result.kind == "addition"
        shown = table("model", "α", *tasks, *(("mean", "normalised") if several else ()))
        for row in result.rows:
            shown.add_row(*_cells(row, tasks, several))
    console.print(shown)
    for sentence in (*told.sentences, *told.notes):
        say(console, sentence)


def _cells(row: Row, tasks: list[str], several: bool) -> list[str]:
    cells = [row.name, "" if row.coefficient is None else f"{row.coefficient:g}"]
    cells += [_score(row.scores[t]) for t in tasks]
    if several:
        mean = row.mean_normalised
        cells += [_score(row.mean), "" if mean is None else f"{mean:.3f}"]
    return cells


def _score(score: Score) -> str:
    # The interval in whole per cent, so that a row of five scores fits 80 columns; the report has the decimals.
    return f"{score}\n[{100 * score.low:.0f}, {100 * score.high:.0f}]"


def heading(console: Console | None, title: str, *lines: str) -> None:
    if console:
        console.print()
        console.rule(title, align="left", characters="-")
        for line in lines:
            say(console, line)


def say(console: Console, text: str) -> None:
    # No markup: names may hold brackets. No highlighting: numbers in prose need no colours.
    console.print(text, markup=False, highlight=False)


def table(*columns: str) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(Text(column), justify="left" if i == 0 else "right", max_width=34 if i == 0 else None)
    return table


def closing(console: Console, out: Path, setting: Setting, *, seconds: float) -> None:
    first, second = (file_name(t.name) for t in setting.add[:2])
    lets = [f"base={out}/checkpoints/base.safetensors"]
    lets += [f"{n}={out}/vectors/{n}.safetensors" for n in (first, second)]
    let = " ".join(f"--let {x}" for x in lets)
    heading(console, f"Done in {seconds:.0f} s")
    say(console, f"Read the report: {out}/report.html. The numbers are in {out}/results/, as JSON.")
    say(console, "The vectors are files. Try next:")
    program = _program()
    for command in (
        f"taskvec compare {out}/vectors/{first}.safetensors {out}/vectors/{second}.safetensors --by layer",
        f"taskvec explain 'base + 0.4 * ({first} + {second})' {let}",
        f"taskvec edit 'base + 0.4 * ({first} + {second})' {let} -o {out}/edited.safetensors",
    ):
        console.print(f"  {command.replace('taskvec', program, 1)}", markup=False, highlight=False, soft_wrap=True)


def _program() -> str:
    """How to call taskvec here: by its name if the shell finds it, else by its path."""
    script = Path(sys.argv[0])
    if shutil.which("taskvec") or script.name != "taskvec":
        return "taskvec"
    return os.path.relpath(script)


def file_name(name: str) -> str:
    """A name as a file name that is also a valid name in expressions: "digit 3 (ascent)" -> "digit_3_ascent"."""
    return "_".join("".join(c if c.isalnum() else " " for c in name).split()) or "task"
