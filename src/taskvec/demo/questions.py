"""The vectors of a setting, and the three questions that are asked of them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .. import protocols
from ..tasks.task import Task, joined
from ..weights import TaskVector
from . import telling
from .setting import Setting

if TYPE_CHECKING:
    from rich.console import Console


def answers(
    setting: Setting, vectors: Mapping[str, TaskVector], *, seed: int, tell: Callable[[Any], None] = lambda result: None
) -> list[Any]:
    """The three questions and the geometry, as results; `tell` gets each as soon as it is there."""
    model, base, cells = setting.model, setting.base, setting.cells
    results: list[Any] = []

    def answered(result: Any) -> None:
        results.append(result)
        tell(result)

    target = setting.target.name
    answered(
        protocols.negation(
            model,
            base,
            vectors[target],
            target=setting.target,
            control=setting.control,
            ascent=vectors[f"{target} (ascent)"],
            coefficients=setting.wide,
            seed=seed,
            title=f"Forget: {target}",
        )
    )
    added = {t.name: vectors[t.name] for t in setting.add}
    title = "Add: " + ", ".join(added)
    answered(protocols.addition(model, base, added, setting.add, coefficients=setting.near, seed=seed, title=title))
    a, b, c, d = (cells[k] for k in "ABCD")
    answered(
        protocols.analogy(
            model,
            base,
            a=vectors[a.name],
            b=vectors[b.name],
            c=vectors[c.name],
            task=d,
            cells={k: t.name for k, t in cells.items()},
            sources={n: vectors[n] for n in (b.name, c.name, _together(cells))},
            target_tuned=vectors[d.name],
            coefficients=setting.near,
            seed=seed,
            title=f"Analogy: {d.name}",
        )
    )
    shown = {n: vectors[n] for n in dict.fromkeys([*added, *(t.name for t in cells.values()), target])}
    answered(protocols.geometry(shown, base=base, title="Geometry of the vectors"))
    return results


def task_vectors(setting: Setting, console: Console | None = None) -> dict[str, TaskVector]:
    """Fine-tune once per task and subtract: every vector that the three questions need, by task name."""
    from rich.markup import escape

    cells = setting.cells
    alone = {t.name: t for t in (setting.target, *setting.add, *cells.values())}
    jobs = {name: (task, False) for name, task in alone.items()}
    jobs[f"{setting.target.name} (ascent)"] = (setting.target, True)
    # What one would do without arithmetic: train on everything there is but D.
    jobs[_together(cells)] = (joined(_together(cells), [cells[k] for k in "ABC"]), False)
    telling.heading(console, "Fine-tune", "One task vector per task: tau = finetuned - base.")
    table = telling.table("task", "samples", "norm τ", "seconds")
    vectors: dict[str, TaskVector] = {}
    for name, (task, ascent) in jobs.items():
        start = time.monotonic()
        with console.status(f"fine-tuning: {escape(name)}") if console else contextlib.nullcontext():
            vectors[name] = setting.train(task, ascent) - setting.base
        table.add_row(name, str(len(task.train)), f"{vectors[name].norm():.2f}", f"{time.monotonic() - start:.1f}")
    if console:
        console.print(table)
    return vectors


def _together(cells: Mapping[str, Task]) -> str:
    return " + ".join(cells[k].name for k in "ABC")
