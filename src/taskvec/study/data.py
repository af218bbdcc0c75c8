"""Tasks of a study, from the facts that describe them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, UsageError, nearest
from ..models.preprocess import Preprocess
from ..models.texts import Tokens
from ..tasks.image_sets import SETS
from ..tasks.images import HELD, folder_task, image_task
from ..tasks.lazy import LazyInputs
from ..tasks.task import Split, Task
from ..tasks.text import marked_sentences, sentences_task, split_indices
from ..training.pretraining import divided
from .language import passages

if TYPE_CHECKING:
    import torch

SEED = 0  # of the parts: the papers' split; the study's seeds are for everything else


def whole(data: str, root: Path | None, prepare: Preprocess, *, download: bool, memory: int = HELD) -> Task:
    """A data set with all its samples: from `root`, or, if it is not there and may be fetched, from the hub."""
    if data in SETS:
        names = (data, *SETS[data].folders)
        fetch = download and (root is None or not any((root / n).is_dir() for n in names))
        return image_task(data, root=None if fetch else root, prepare=prepare, seed=SEED, download=fetch, memory=memory)
    folder = Path(data) if root is None or Path(data).is_absolute() else root / data
    if not folder.is_dir():
        raise UsageError(
            f"unknown data {data!r}: neither a known image set ({', '.join(SETS)}) nor a folder of images.{nearest(data, SETS)}"
        )
    return folder_task(folder, prepare=prepare, seed=SEED, memory=memory)


def whole_text(facts: Mapping[str, Any], root: Path | None, prepare: Tokens) -> Task:
    """A text with all its passages, their marks as classes."""
    found = passages(facts, root)
    task = sentences_task(marked_sentences(found), tokenise=prepare.ids, seed=SEED)
    left = f"{found.left} rows without text, or that repeat an earlier one, are left out"
    return replace(task, notes=(left,) if found.left else ())


def unmarked(facts: Mapping[str, Any], root: Path | None) -> tuple[list[str], list[str], list[str]]:
    """A text's passages for training, validation and test: in the parts that they are in where it is a task."""
    found = passages(facts, root)
    one, two, three = ([found.texts[i] for i in rows] for rows in split_indices(len(found), seed=SEED))
    return one, two, three


def part(task: Task, facts: Mapping[str, Any], prepare: Preprocess | Tokens) -> Task:
    """The task that `facts` describe, out of the whole set: without what is kept for pre-training, cut and turned as they say."""
    if facts["share"]:
        task = divided(task, share=facts["share"], seed=SEED)[1]
    classes = _classes(task, facts["keep"])
    limits = {"train": facts["limit"], "validation": facts["validation_limit"], "test": facts["test_limit"]}
    splits = {n: _cut(getattr(task, n), classes, most) for n, most in limits.items()}
    if facts["invert"] and isinstance(prepare, Preprocess):
        splits = {n: Split(_inverted(s.inputs, prepare), s.labels) for n, s in splits.items()}
    return replace(task, name=facts["name"], **splits)


def fingerprint(task: Task) -> str:
    """Hash of all labels and of some samples: tells whether the data is what it was."""
    found = hashlib.sha256()
    for split in (task.train, task.validation, task.test):
        found.update(split.labels.numpy().tobytes())
        found.update(split.inputs[:: max(1, len(split) // 8)][:8].numpy().tobytes())
    return found.hexdigest()[:16]


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


def _cut(split: Split, classes: torch.Tensor | None, most: int | None) -> Split:
    """The samples of some classes, and of these a number that `SEED` draws."""
    import torch

    rows = torch.arange(len(split))
    if classes is not None:
        rows = rows[torch.isin(split.labels, classes)]
        if len(rows) == 0:
            raise InputError(
                "a part of the data has no sample of the classes that are kept. Keep others, or get more data."
            )
    if most is not None and most < len(rows):
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(SEED))[:most]]
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
