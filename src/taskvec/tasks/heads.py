"""Heads by task in one small file that lies beside the vectors: heads are never part of a vector."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import KeyMismatch, UnknownName, UsageError, nearest, some
from ..files import exclusive
from ..models.functional import require_torch
from ..weights import Checkpoint
from .task import Head, Task

FACTS = "heads"  # task -> classes and normalisation, as bytes of JSON


def save_heads(path: str | Path, tasks: Sequence[Task], *, overwrite: bool = False) -> Path:
    """Write the heads of several tasks, with their classes, to one .safetensors file.

    Args:
        path: the file; replaced as a whole, so keep what `read_heads` gives if it is to be added to.
        tasks: each with a head and a name of its own.
        overwrite: replace a file that is there.
    Raises:
        UsageError: no tasks, two of one name, a task without a head, or a file that is there.
    """
    names = [t.name for t in tasks]
    if not tasks or len(set(names)) < len(names):
        raise UsageError(f"heads are kept by the names of their tasks, which must differ; got {names}.")
    facts = {t.name: {"classes": list(t.classes), "normalise": t.needs_head().normalise} for t in tasks}
    table: dict[str, Any] = {FACTS: np.frombuffer(json.dumps(facts).encode(), np.uint8)}
    for task in tasks:
        head = task.needs_head()
        table |= {f"{task.name}.weight": head.weight.detach().cpu(), f"{task.name}.bias": head.bias.detach().cpu()}
    return Checkpoint.of(table, label="heads").save(path, overwrite=overwrite)


def read_heads(path: str | Path) -> dict[str, tuple[Head, tuple[str, ...]]]:
    """Head and classes of every task in a file that `save_heads` wrote.

    Raises:
        KeyMismatch: the file is not one of heads.
    """
    torch = require_torch("Reading heads")
    file = Checkpoint.read(path)
    try:
        facts = json.loads(file.array(FACTS).tobytes())
        out = {}
        for task, said in facts.items():
            weight, bias = (torch.from_numpy(file.array(f"{task}.{n}").copy()) for n in ("weight", "bias"))
            out[task] = (Head(weight, bias, said["normalise"]), tuple(said["classes"]))
        return out
    except (KeyMismatch, UnknownName, ValueError, TypeError, KeyError) as error:
        raise KeyMismatch(
            f"{path} does not hold heads by task: it has the tensors {some(file.names)}. Write it with save_heads; a single "
            "head is read by Head.read."
        ) from error


def with_heads(tasks: Sequence[Task], path: str | Path) -> tuple[Task, ...]:
    """The tasks, each with the head that the file keeps under its name.

    Raises:
        UnknownName: the file has no head of a task's name.
        KeyMismatch: a task's classes differ from those its head was made for, in name or order.
    """
    kept = read_heads(path)
    for task in tasks:
        if task.name not in kept:
            raise UnknownName(
                f"{path} has no head for {task.name!r}; it has {', '.join(kept)}.{nearest(task.name, kept)}"
            )
        classes = kept[task.name][1]
        if classes != task.classes:
            only = [c for c in task.classes if c not in classes], [c for c in classes if c not in task.classes]
            raise KeyMismatch(
                f"task {task.name!r} has {len(task.classes)} classes, its head in {path} was made for {len(classes)}: only in the "
                f"task {some(only[0]) or 'none'}, only in the head {some(only[1]) or 'none'}"
                + ("; the order differs." if not any(only) else ".")
                + " Make a head for this task."
            )
    return tuple(t.with_head(kept[t.name][0]) for t in tasks)


def add_head(path: str | Path, task: Task) -> Path:
    """Put the task's head into the file, in place of an earlier one of its name; the file is made if it is missing.

    Several processes may do so at once: each waits for the others.
    """
    path = Path(path)
    with exclusive(path):
        others = read_heads(path) if path.exists() else {}
        # A task without data: what is kept of one is its name, its head and its classes.
        kept = [
            replace(task, name=n, head=head, classes=classes) for n, (head, classes) in others.items() if n != task.name
        ]
        return save_heads(path, [*kept, task], overwrite=path.exists())
