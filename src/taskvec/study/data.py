"""Tasks of a study, from the facts that describe them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, UsageError, nearest
from ..models.preprocess import Preprocess
from ..tasks.image_sets import SETS
from ..tasks.images import folder_task, image_task
from ..tasks.lazy import LazyInputs
from ..tasks.task import Split, Task

if TYPE_CHECKING:
    import torch

SEED = 0  # of the parts: the papers' split; the study's seeds are for everything else


def whole(data: str, root: Path | None, prepare: Preprocess, *, download: bool) -> Task:
    """A data set with all its samples."""
    if data in SETS:
        return image_task(data, root=root, prepare=prepare, seed=SEED, download=download and root is None)
    folder = Path(data) if root is None or Path(data).is_absolute() else root / data
    if not folder.is_dir():
        raise UsageError(
            f"unknown data {data!r}: neither a known image set ({', '.join(SETS)}) nor a folder of images.{nearest(data, SETS)}"
        )
    return folder_task(folder, prepare=prepare, seed=SEED)


def part(task: Task, facts: Mapping[str, Any], prepare: Preprocess) -> Task:
    """The task that `facts` describe, out of the whole set: without what is kept for pre-training, cut and turned as they say."""
    rows = _order(task)[round(facts["share"] * len(task.train)) :]
    classes = _classes(task, facts["keep"])
    splits = {
        "train": _cut(task.train, rows, classes, facts["limit"]),
        "validation": _cut(task.validation, None, classes, None),
        "test": _cut(task.test, None, classes, facts["test_limit"]),
    }
    if facts["invert"]:
        splits = {n: Split(_inverted(s.inputs, prepare), s.labels) for n, s in splits.items()}
    return replace(task, name=facts["name"], **splits)


def for_pretraining(task: Task, share: float) -> Split:
    """The samples that no task of the study trains on, validates or tests with."""
    return _taken(task.train, _order(task)[: round(share * len(task.train))])


def fingerprint(task: Task) -> str:
    """Hash of all labels and of some samples: tells whether the data is what it was."""
    found = hashlib.sha256()
    for split in (task.train, task.validation, task.test):
        found.update(split.labels.numpy().tobytes())
        found.update(split.inputs[:: max(1, len(split) // 8)][:8].numpy().tobytes())
    return found.hexdigest()[:16]


def _order(task: Task) -> torch.Tensor:
    import torch

    return torch.randperm(len(task.train), generator=torch.Generator().manual_seed(SEED))


def _classes(task: Task, keep: tuple[int | str, ...]) -> torch.Tensor | None:
    import torch

    if not keep:
        return None
    names = list(task.classes)
    unknown = [k for k in keep if k not in names and not (isinstance(k, int) and 0 <= k < len(names))]
    if unknown:
        raise UsageError(f"{task.name} has no classes {unknown}; it has {', '.join(names)}.")
    # A digit's name is a number too: as a name it goes before.
    return torch.tensor([names.index(str(k)) if str(k) in names else int(k) for k in keep])


def _cut(split: Split, rows: torch.Tensor | None, classes: torch.Tensor | None, most: int | None) -> Split:
    import torch

    if rows is None:
        rows = torch.arange(len(split))
        if most is not None:
            rows = torch.randperm(len(split), generator=torch.Generator().manual_seed(SEED))
    if classes is not None:
        rows = rows[torch.isin(split.labels[rows], classes)]
        if len(rows) == 0:
            raise InputError(
                "a part of the data has no sample of the classes that are kept. Keep others, or get more data."
            )
    return _taken(split, rows[:most])


def _taken(split: Split, rows: torch.Tensor) -> Split:
    inputs: Any = split.inputs
    return Split(inputs.take(rows) if isinstance(inputs, LazyInputs) else inputs[rows], split.labels[rows])


def _inverted(inputs: Any, prepare: Preprocess) -> Any:
    """Dark for light: pixels p, from 0 to 1, become 1 - p."""
    import torch

    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (prepare.mean, prepare.std))
    shift = (1 - 2 * mean) / std
    if isinstance(inputs, LazyInputs):
        make = inputs.make
        return replace(inputs, make=lambda rows: shift - make(rows))
    return shift - inputs
