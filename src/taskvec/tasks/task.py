"""Split, Head and Task: the data that a task vector is trained on and measured with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError, KeyMismatch, UsageError
from ..models.functional import require_torch, tensors
from ..weights import Checkpoint
from .lazy import Inputs, LazyInputs, chained

if TYPE_CHECKING:
    import torch

IGNORED = -100  # the label of a position that does not count, as torch's cross-entropy has it


@dataclass(frozen=True, eq=False)
class Split:
    """Inputs ``[n, ...]`` (floats as float32, token ids as int64) and labels ``[n]``, int64 from 0, on the CPU.

    Inputs may also be `LazyInputs`, which are made when they are used. Labels ``[n, length]`` are those of the positions of a
    sequence, `IGNORED` where a position does not count. `groups` says who is in which group, bool ``[n]`` by name: a sample may
    be in several, or in none.

    Raises:
        InputError: no samples, counts that differ, inputs with NaN or infinity, labels that are not whole numbers, or groups
            that are not bool or of another count.
    """

    inputs: Inputs
    labels: torch.Tensor
    groups: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("inputs", "labels"):
            lazy = name == "inputs" and isinstance(self.inputs, LazyInputs)
            if not lazy and not hasattr(getattr(self, name), "is_floating_point"):
                kind = type(getattr(self, name)).__name__
                raise InputError(f"a split takes torch tensors, got {name} of type {kind}. Use torch.as_tensor(...).")
        n, m = len(self.inputs), len(self.labels)
        if n != m:
            raise InputError(f"a split needs one label per input, got {n} inputs and {m} labels.")
        if n == 0:
            raise InputError("a split is empty: it needs at least one sample. Take a larger part of the data.")
        if self.labels.dim() == 2 and str(self.labels.dtype) == "torch.int64":
            wrong = (self.labels < 0) & (self.labels != IGNORED)
            if wrong.any() or not self.counted:
                raise InputError(
                    f"labels of sequences must be from 0, or {IGNORED} where a position does not count, and some must count; got "
                    f"{int(wrong.sum())} others and {self.counted} that count."
                )
        elif self.labels.dim() != 1 or str(self.labels.dtype) != "torch.int64" or int(self.labels.min()) < 0:
            raise InputError(
                f"labels must be classes from 0, int64 of shape [n]; got {self.labels.dtype} of shape {list(self.labels.shape)}"
                + (f", the least {int(self.labels.min())}." if self.labels.dim() == 1 else ".")
                + " Use labels.long(), and argmax(1) for one-hot labels."
            )
        if not isinstance(self.inputs, LazyInputs) and self.inputs.is_floating_point():
            bad = (~self.inputs.isfinite()).flatten(1).any(1) if self.inputs.dim() > 1 else ~self.inputs.isfinite()
            if bad.any():
                raise InputError(
                    f"{int(bad.sum())} of {n} inputs hold NaN or infinity, the first is sample {int(bad.nonzero()[0])}. "
                    "Leave them out, or repair them."
                )
        for name, inside in self.groups.items():
            if str(getattr(inside, "dtype", "")) != "torch.bool" or inside.shape != self.labels.shape[:1]:
                raise InputError(
                    f"group {name!r} must be a bool tensor of shape [{n}], one entry per sample; got "
                    f"{getattr(inside, 'dtype', type(inside).__name__)} of shape {list(getattr(inside, 'shape', ()))}."
                )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def counted(self) -> int:
        """How many labels count: one a sample, or those of sequences that are not ignored."""
        return len(self.labels) if self.labels.dim() == 1 else int((self.labels != IGNORED).sum())

    def take(self, rows: torch.Tensor) -> Split:
        """Some of the samples, with their groups: positions, which may repeat, or a mask."""
        inputs = self.inputs.take(rows) if isinstance(self.inputs, LazyInputs) else self.inputs[rows]
        return Split(inputs, self.labels[rows], {n: inside[rows] for n, inside in self.groups.items()})


@dataclass(frozen=True, eq=False)
class Head:
    r"""A linear classifier on features, :math:`W z + b`: frozen in fine-tuning, never part of a task vector.

    Args:
        weight: ``[classes, width]``.
        bias: ``[classes]``.
        normalise: scale features to length 1 first, as CLIP's zero-shot heads do.
        vocabularies: how many classes belong to each of several tasks whose heads stand side by side; a sample then competes
            only within the classes of its own task. Empty for one task.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    normalise: bool = False
    vocabularies: tuple[int, ...] = ()

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """Logits ``[n, classes]`` of features ``[n, width]``; with `Head.own` what the model gives.

        Raises:
            KeyMismatch: features of another shape.
        """
        if not self.weight.shape[1] and features.dim() > 1 and features.shape[1] == len(self.weight):
            return features
        if features.dim() != 2 or features.shape[1] != self.weight.shape[1]:
            raise KeyMismatch(
                f"the model gives features of shape {list(features.shape)}, the head takes [n, {self.weight.shape[1]}]. "
                "A model for taskvec maps inputs to one vector a sample; make the head for this model."
            )
        if self.normalise:
            features = features / features.norm(dim=1, keepdim=True).clamp(min=1e-12)
        return features @ self.weight.T + self.bias

    def within(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The logits, those of classes of other tasks than the label's at minus infinity."""
        if not self.vocabularies:
            return logits
        torch = require_torch("A head")
        sizes = torch.tensor(self.vocabularies, device=logits.device)
        owner = torch.repeat_interleave(torch.arange(len(sizes), device=logits.device), sizes)
        return logits.masked_fill(owner[labels][:, None] != owner[None], -torch.inf)

    @classmethod
    def own(cls, classes: int) -> Head:
        """No head beside the model: its outputs ``[n, classes]`` or, of sequences, ``[n, classes, length]`` are the logits."""
        torch = require_torch("A head")
        return cls(torch.zeros(classes, 0), torch.zeros(classes))

    @classmethod
    def random(cls, classes: int, width: int, *, generator: torch.Generator) -> Head:
        """A small random head, to be trained with the base."""
        torch = require_torch("A head")
        return cls(torch.randn(classes, width, generator=generator) / width**0.5, torch.zeros(classes))

    def to(self, device: torch.device) -> Head:
        return replace(self, weight=self.weight.to(device), bias=self.bias.to(device))

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the head as a safetensors file beside the vectors."""
        weights: dict[str, Any] = {"weight": self.weight.detach().cpu(), "bias": self.bias.detach().cpu()}
        if self.normalise:
            weights["normalise"] = np.ones(1, np.uint8)
        if self.vocabularies:
            weights["vocabularies"] = np.array(self.vocabularies, np.int64)
        return Checkpoint.of(weights, label="head").save(path, overwrite=overwrite)

    @classmethod
    def read(cls, path: str | Path) -> Head:
        """Read a head written by `save`.

        Raises:
            KeyMismatch: the file does not hold exactly ``weight`` and ``bias``.
        """
        table = tensors(Checkpoint.read(path))
        normalise = "normalise" in table
        sizes = table.pop("vocabularies", None)
        if set(table) - {"normalise"} != {"weight", "bias"}:
            raise KeyMismatch(f"{path} is not a head: expected the tensors 'weight' and 'bias', got {sorted(table)}.")
        return cls(table["weight"], table["bias"], normalise, () if sizes is None else tuple(map(int, sizes)))


@dataclass(frozen=True, eq=False)
class Task:
    """A learning task. Coefficients are chosen on `validation`; `test` is read once, at the end.

    Args:
        name: what tables call it.
        train, validation, test: disjoint samples.
        head: the linear head, frozen unless the regime trains it; None until one is made (`fit` with PROBE or PRETRAIN).
        classes: names of the head's rows.
        notes: what a reader of scores should know of the data: parts limited, samples left out.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    head: Head | None
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.head is not None and len(self.classes) != len(self.head.weight):
            raise UsageError(
                f"task {self.name!r} has {len(self.classes)} classes but its head has {len(self.head.weight)} rows."
            )

    def check_labels(self, split: Split) -> None:
        """Refuse labels that no class has, and those of sequences where the head is for single samples.

        Raises:
            UsageError: as said.
        """
        if split.labels.dim() == 2 and (self.head is None or self.head.weight.shape[1]):
            raise UsageError(
                f"task {self.name!r} has labels of shape {list(split.labels.shape)}, which are those of positions of sequences: its "
                "model's outputs must be the logits, head=Head.own(classes). If they are one-hot, use labels.argmax(1)."
            )
        high = int(split.labels.max())
        if high >= len(self.classes):
            raise UsageError(
                f"task {self.name!r}: labels go up to {high}; with {len(self.classes)} classes they must be 0 to "
                f"{len(self.classes) - 1}."
            )

    def with_head(self, head: Head) -> Task:
        """The same data with another head."""
        return replace(self, head=head)

    def needs_head(self) -> Head:
        """The head.

        Raises:
            UsageError: the task has none yet.
        """
        if self.head is None:
            raise UsageError(
                f"task {self.name!r} has no head. Make one on the base, "
                "task.with_head(fit(model, base, task, regime=PROBE).head), and keep it frozen from then on."
            )
        return self.head


def joined(name: str, tasks: Sequence[Task]) -> Task:
    """One task from the samples of several that share a head and classes, each split after split.

    Raises:
        UsageError: no tasks, or heads or classes that differ.
    """
    torch = require_torch("Joining tasks")
    if not tasks or any(t.head is not tasks[0].head or t.classes != tasks[0].classes for t in tasks):
        raise UsageError(
            f"cannot join tasks into {name!r}: it takes at least one task, all with one head and its classes."
        )

    def together(splits: Sequence[Split]) -> Split:
        return Split(chained([s.inputs for s in splits]), torch.cat([s.labels for s in splits]), _groups(splits))

    parts = ([getattr(t, part) for t in tasks] for part in ("train", "validation", "test"))
    notes = tuple(f"{t.name}: {n}" for t in tasks for n in t.notes)
    return Task(name, *map(together, parts), head=tasks[0].head, classes=tasks[0].classes, notes=notes)


def side_by_side(name: str, tasks: Sequence[Task]) -> Task:
    """One task from several with heads and classes of their own, to train one model on all of them together.

    Heads stand one below the other, labels are counted on; a sample competes within the classes of its own task only.

    Raises:
        UsageError: no tasks, a task without a head, or heads that treat features differently.
    """
    torch = require_torch("Joining tasks")
    heads = [t.needs_head() for t in tasks]
    if not tasks or any(h.normalise != heads[0].normalise or h.vocabularies for h in heads):
        raise UsageError(
            f"cannot put tasks side by side into {name!r}: it takes at least one task, with heads that all normalise features or all "
            "do not."
        )
    sizes = [len(t.classes) for t in tasks]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]

    def together(splits: Sequence[Split]) -> Split:
        labels = torch.cat([s.labels + start for s, start in zip(splits, starts, strict=True)])
        return Split(chained([s.inputs for s in splits]), labels, _groups(splits))

    head = Head(
        torch.cat([h.weight for h in heads]), torch.cat([h.bias for h in heads]), heads[0].normalise, tuple(sizes)
    )
    parts = ([getattr(t, part) for t in tasks] for part in ("train", "validation", "test"))
    classes = tuple(f"{t.name}: {c}" for t in tasks for c in t.classes)
    notes = tuple(f"{t.name}: {n}" for t in tasks for n in t.notes)
    return Task(name, *map(together, parts), head=head, classes=classes, notes=notes)


def _groups(splits: Sequence[Split]) -> dict[str, torch.Tensor]:
    """The groups of splits one after another; who is said to be in no such group counts as outside."""
    torch = require_torch("Joining tasks")
    names = dict.fromkeys(n for s in splits for n in s.groups)
    return {n: torch.cat([s.groups.get(n, torch.zeros(len(s), dtype=torch.bool)) for s in splits]) for n in names}
