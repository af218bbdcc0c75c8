"""Samples that belong to groups of people, and tasks of them: who is in which group, and splits that keep copies together."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, UnknownName, UsageError, nearest, some
from ..models.functional import require_torch
from .lazy import Inputs
from .task import Split, Task
from .text import PARTS, split_indices

Encode = Callable[[Sequence[Any]], Inputs]
NAMES = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class Grouped:
    """Samples with labels and groups, not yet cut into splits.

    Args:
        name: of the data in tables and messages.
        items: texts, rows of a table, or paths of images.
        labels: int64 ``[n]``, from 0.
        classes: names of the labels.
        groups: bool ``[n]`` by name of the group; a sample may be in several, or in none.
        keys: what must not be in two splits: equal keys stay together; the items themselves unless told.
        notes: what a reader of scores should know: rows left out, merged, limited.
    Raises:
        InputError: counts that differ.
    """

    name: str
    items: tuple[Any, ...]
    labels: np.ndarray
    classes: tuple[str, ...]
    groups: Mapping[str, np.ndarray]
    keys: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        counts = {"labels": len(self.labels)} | {f"group {n!r}": len(m) for n, m in self.groups.items()}
        counts |= {"keys": len(self.keys)} if self.keys else {}
        if wrong := {k: c for k, c in counts.items() if c != len(self)}:
            raise InputError(
                f"{self.name}: {len(self)} samples, but {', '.join(f'{c} {k}' for k, c in wrong.items())}."
            )

    def __len__(self) -> int:
        return len(self.items)

    def take(self, rows: Sequence[int] | np.ndarray) -> Grouped:
        """Some of the samples, by position."""
        rows = np.asarray(rows, np.int64)
        return replace(
            self, items=tuple(self.items[i] for i in rows), labels=self.labels[rows],
            groups={n: m[rows] for n, m in self.groups.items()}, keys=tuple(self.keys[i] for i in rows) if self.keys else (),
        )  # fmt: skip

    def with_groups(self, groups: Mapping[str, np.ndarray]) -> Grouped:
        """The same samples in other groups."""
        return replace(self, groups=groups)


def mentions(texts: Sequence[str], terms: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
    """Which texts mention a group by one of its terms, as a whole word, in whatever case. A text may mention several groups.

    Args:
        texts: n texts.
        terms: words or phrases by group.
    Returns:
        bool ``[n]`` by group.
    Raises:
        UsageError: a group without terms.
    Example:
        >>> found = mentions(["Women and men", "mention no one"], {"men": ["man", "men"], "women": ["women"]})
        >>> found["men"].tolist(), found["women"].tolist()
        ([True, False], [True, False])
    """
    empty = [g for g, words in terms.items() if not any(w.strip() for w in words)]
    if empty or not terms:
        raise UsageError(f"groups by identity terms need at least one term each; {some(empty) or 'no group'} has none.")
    found = {}
    for group, words in terms.items():
        either = "|".join(r"\s+".join(map(re.escape, w.split())) for w in words if w.strip())
        pattern = re.compile(rf"(?<!\w)(?:{either})(?!\w)", re.IGNORECASE)
        found[group] = np.array([pattern.search(t) is not None for t in texts], bool)
    return found


def read_terms(path: str | Path) -> dict[str, tuple[str, ...]]:
    """Identity terms of a text file, a group on each line: ``women: woman, women, girl, girls``.

    Raises:
        InputError: no such file, or a line of another form; says which.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the identity terms {path}: {error}.") from error
    terms: dict[str, tuple[str, ...]] = {}
    for i, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        group, colon, words = line.partition(":")
        found = tuple(w.strip() for w in words.split(",") if w.strip())
        if not colon or not group.strip() or not found or group.strip() in terms:
            raise InputError(f"{path}, line {i}: expected 'group: term, term' with a new group and at least one term.")
        terms[group.strip()] = found
    if not terms:
        raise InputError(f"{path} has no identity terms: expected lines of the form 'group: term, term'.")
    return terms


def chosen_groups(data: Grouped, names: Sequence[str]) -> Grouped:
    """The data with some of its groups; samples stay.

    Raises:
        UnknownName: no such group.
    """
    for name in names:
        if name not in data.groups:
            raise UnknownName(f"{data.name} has no group {name!r}; it has {', '.join(data.groups)}.{nearest(name, data.groups)}")  # fmt: skip
    return data.with_groups({n: data.groups[n] for n in names})


def merged_repeats(data: Grouped) -> Grouped:
    """Rows of one text as one sample: the label that most of them have, and the groups that at least half of them name.

    For files with one row per annotator, and posts that came twice. Texts on whose label the rows are divided are left out. Both
    are counted in the notes.
    """
    rows_of: dict[str, list[int]] = {}
    for i, item in enumerate(data.items):
        rows_of.setdefault(_key(item), []).append(i)
    if len(rows_of) == len(data):
        return data
    kept, labels, divided = [], [], 0
    groups: dict[str, list[bool]] = {n: [] for n in data.groups}
    for rows in rows_of.values():
        votes = np.bincount(data.labels[rows], minlength=len(data.classes))
        if (votes == votes.max()).sum() > 1:
            divided += 1
            continue
        kept.append(rows[0])
        labels.append(int(votes.argmax()))
        for n, inside in data.groups.items():
            groups[n].append(bool(2 * inside[rows].sum() >= len(rows)))
    out = replace(data.take(kept), labels=np.array(labels, np.int64), groups={n: np.array(m, bool) for n, m in groups.items()})  # fmt: skip
    said = f"{len(data) - len(rows_of):,} rows repeat a text and are merged with it"
    said += f"; {divided:,} texts left out, on whose label the rows are divided" if divided else ""
    return replace(out, notes=(*data.notes, said))


def grouped_parts(
    data: Grouped, *, parts: tuple[float, float, float] = PARTS, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions of the training, validation and test samples; samples of one key, and texts that are the same, are all in
    one of them. A sample whose key is empty has none but itself.

    Args:
        parts: shares of the keys, not of the samples.
        seed: chooses the permutation of the keys.
    """
    key = _clusters(data)
    where = np.empty(int(key.max(initial=-1)) + 1, np.int64)
    for part, keys in enumerate(split_indices(len(where), parts=parts, seed=seed)):
        where[keys] = part
    order = np.random.default_rng(seed).permutation(len(data))  # rows of one key need not stand side by side
    a, b, c = (order[where[key[order]] == part] for part in range(3))
    return a, b, c


def grouped_task(
    data: Grouped, *, encode: Encode | Callable[[Sequence[Any]], Encode], fitted: bool = False, name: str | None = None,
    parts: tuple[float, float, float] = PARTS, seed: int = 0,
) -> Task:  # fmt: skip
    """The data as a task, with its groups in every split.

    Args:
        encode: items -> inputs, for example a tokenizer; with `fitted`, training items -> such a function, so that
            means and categories are learnt from the training part alone.
        parts, seed: as in `grouped_parts`.
    Raises:
        InputError: a group without a training sample; says which.
    """
    torch = require_torch("A task with groups")
    cut = dict(zip(NAMES, grouped_parts(data, parts=parts, seed=seed), strict=True))
    if absent := [n for n, m in data.groups.items() if not m[cut["train"]].any()]:
        raise InputError(f"{data.name}: the training part has nobody of {some(absent)}. Leave these groups out, or merge them.")  # fmt: skip
    made: Any = encode([data.items[i] for i in cut["train"]]) if fitted else encode
    splits = [
        Split(
            made([data.items[i] for i in rows]),
            torch.from_numpy(data.labels[rows]),
            {n: torch.from_numpy(m[rows]) for n, m in data.groups.items()},
        )
        for rows in cut.values()
    ]
    return Task(name or data.name, *splits, head=None, classes=data.classes, notes=data.notes)


def members(task: Task, group: str) -> Task:
    """The task of one group alone, for its own vector: training samples of the group, and its validation and test samples where there
    are any.

    Raises:
        UnknownName: the task has no such group.
        InputError: the group has no training sample.
    """
    known = task.train.groups
    if group not in known:
        raise UnknownName(f"task {task.name!r} has no group {group!r}; it has {', '.join(known) or 'none'}.{nearest(group, known)}")  # fmt: skip
    if not known[group].any():
        raise InputError(f"task {task.name!r}: nobody of {group!r} is in the training part.")
    own = {n: s.take(s.groups[group]) if s.groups[group].any() else s for n, s in _splits(task).items()}
    return replace(task, name=f"{task.name}, {group}", **own)


def balanced(task: Task, *, seed: int = 0) -> Task:
    r"""The task with its training samples drawn anew, so that all groups, and all classes within them, count alike.

    Sample i is drawn with probability proportional to the mean over its groups g (those in no group form one of their own) of
    :math:`1 / n_{g, y_i}`, with :math:`n_{g,y}` the samples of group g with label y. As many are drawn as there were, with
    replacement: in expectation this is training with these sample weights. Exact for groups that do not overlap.

    Reference: reweighing after Kamiran and Calders 2012, doi:10.1007/s10115-011-0463-8, with equal weight for every cell.
    """
    torch = require_torch("Balancing groups")
    split = task.train
    inside = torch.stack([*split.groups.values(), ~torch.stack([*split.groups.values()]).any(0)]).double()
    weight = torch.zeros(len(split), dtype=torch.float64)
    for y in split.labels.unique():
        own = inside * (split.labels == y)
        weight += (own / own.sum(1, keepdim=True).clamp(min=1)).sum(0)
    weight /= inside.sum(0)
    rows = torch.multinomial(weight, len(split), replacement=True, generator=torch.Generator().manual_seed(seed))
    return replace(task, name=f"{task.name}, balanced", train=split.take(rows))


def counts(task: Task, *, positive: int = 1) -> dict[str, dict[str, tuple[int, int]]]:
    """By group, "all" and "no group", and by split: samples, and how many of them have the label `positive`."""

    def of(split: Split, group: str) -> tuple[int, int]:
        import torch

        every = torch.ones(len(split), dtype=torch.bool)
        rest = ~torch.stack([*split.groups.values()]).any(0) if split.groups else every
        inside = {"all": every, "no group": rest}.get(group, split.groups.get(group, every))
        return int(inside.sum()), int((split.labels[inside] == positive).sum())

    names = (*task.train.groups, "no group", "all")
    return {g: {n: of(s, g) for n, s in _splits(task).items()} for g in names}


def told(task: Task, *, positive: int = 1) -> list[str]:
    """What `counts` finds as lines of text, for people."""
    found = counts(task, positive=positive)
    width = max(map(len, found))
    head = (
        f"{'':{width}}  " + "  ".join(f"{n:>16}" for n in NAMES) + f"   (samples, share of {task.classes[positive]!r})"
    )
    lines = [
        f"{g:{width}}  " + "  ".join(f"{f'{n:,} ({100 * p / n:.0f} %)' if n else '0':>16}" for n, p in row.values())
        for g, row in found.items()
    ]
    return [head, *lines]


def _splits(task: Task) -> dict[str, Split]:
    return {n: getattr(task, n) for n in NAMES}


def _clusters(data: Grouped) -> np.ndarray:
    """For each sample the number of what must stay together, in the order in which these first come."""
    above = list(range(len(data)))
    first: dict[tuple[bool, str], int] = {}

    def top(i: int) -> int:
        while above[i] != i:
            above[i] = i = above[above[i]]
        return i

    for i, (item, key) in enumerate(zip(data.items, data.keys or [""] * len(data), strict=True)):
        marks = [(True, key)] if key else []
        if not key or isinstance(item, str):
            marks.append((False, _key(item)))
        for mark in marks:
            a, b = sorted((top(i), top(first.setdefault(mark, i))))
            above[b] = a
    number: dict[int, int] = {}
    return np.array([number.setdefault(top(i), len(number)) for i in range(len(data))], np.int64)


def _key(item: Any) -> str:
    """Texts are the same whatever their case and spaces."""
    return " ".join(item.casefold().split()) if isinstance(item, str) else repr(item)
