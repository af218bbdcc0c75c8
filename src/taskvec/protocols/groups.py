"""Who belongs to which group, what is positive, and counting: what the fairness protocol stands on.

Predictions of n people are counted once, by cell: which groups a person is in, the label, what each model predicted. A
bootstrap that draws n people with replacement draws the counts of the cells from a multinomial distribution; so drawing the
counts directly is the same bootstrap, exactly, at a cost that does not depend on n.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError, NonFinite, UnknownName, UsageError, nearest, told
from ..results import Measure
from ..tasks.masks import Groups, group_values, is_missing

BLOCK = 4_000_000  # counts drawn at a time


def groups_of(column: Any) -> dict[str, np.ndarray]:
    """The groups of one categorical column, in sorted order; None, NaN and the empty string belong to none.

    Raises:
        InputError: fewer than two groups.
    Example:
        >>> {name: mask.tolist() for name, mask in groups_of(["b", "a", None, "b"]).items()}
        {'a': [False, True, False, False], 'b': [True, False, False, True]}
    """
    found = group_values(column)
    if len(found) < 2:
        raise InputError(
            f"groups cannot be compared: the column has {_so_many(list(found))}, expected at least two values."
        )
    return found


def binary(values: Any, *, positive: Any = None, what: str = "labels", known: Sequence[Any] = ()) -> np.ndarray:
    """True where the value is the positive one: `positive`, else 1 or True.

    Args:
        values: [n], of booleans, of 0 and 1, or of two or more values of which `positive` is one.
        positive: the value that counts as positive; all others are negative.
        what: what they are, for errors.
        known: the values that labels have; with `positive`, predictions may have no others.
    Raises:
        InputError: not one-dimensional, empty, with missing values, or not binary.
        UnknownName: `positive` occurs nowhere.
    Example:
        >>> binary(["yes", "no", "yes"], positive="yes").tolist()
        [True, False, True]
    """
    given = np.asarray(values)
    if given.ndim != 1 or not given.size:
        raise InputError(f"{what}: expected one value for each row, got an array of shape {given.shape}.")
    missing = np.asarray([is_missing(v) for v in given.tolist()])
    if missing.any():
        kind = NonFinite if given.dtype.kind == "f" else InputError
        raise kind(
            f"{what}: {missing.sum()} of {given.size} values are missing (NaN, None or empty), the first in row "
            f"{int(missing.argmax())}. Leave these rows out, or fill them in."
        )
    if given.dtype.kind == "b":
        return given
    distinct = sorted(set(given.tolist()), key=str)
    if positive is None or (known and set(distinct) <= {0, 1} and not set(distinct) <= set(known)):
        if set(distinct) <= {0, 1}:
            return given == 1
        few = len(distinct) <= 20 or given.dtype.kind in "fiu"  # else texts, which may be offensive
        if given.dtype.kind == "f" and len(distinct) > 2:
            remedy = "They look like scores: threshold them first (probability >= 0.5), and pass them as scores too."
        elif not few:
            remedy = "Name the column of labels."
        else:
            remedy = (
                f"Say which value is positive, for example positive={told(distinct[-1:])} (at the command "
                "line --positive); all others are then negative."
            )
        raise InputError(
            f"{what} are not binary: expected 0 and 1, got {len(distinct)} values{f', {told(distinct)}' if few else ''}. {remedy}"
        )
    strange = [v for v in distinct if known and v not in known]
    if strange:
        raise InputError(f"{what} have values that the labels do not have: {told(strange)}; labels have {told(known)}.")
    if positive not in (known or distinct):
        names = [str(v) for v in distinct]
        raise UnknownName(f"{what} are never {positive!r}; they are {told(names, 8)}.{nearest(str(positive), names)}")
    return np.asarray([v == positive for v in given.tolist()])


def membership(groups: Groups, labels: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """Names, and who is in which group: bool [n, groups].

    Raises:
        UsageError: fewer than two groups.
        InputError: a mask of another length or not of booleans, or a group that is the label itself.
    """
    names = tuple(map(str, groups))
    if len(names) < 2:
        raise UsageError(
            f"groups cannot be compared: got {_so_many(names)}, expected at least two. To compare one group with everybody "
            "else, pass the others as a group of their own."
        )
    masks = []
    for name, mask in groups.items():
        mask = np.asarray(mask)
        if mask.shape != labels.shape:
            raise InputError(f"group {name!r} has shape {mask.shape}, but there are {labels.size} labels.")
        if mask.dtype.kind != "b":
            if mask.dtype.kind not in "iuf" or not np.isin(mask, (0, 1)).all():
                raise InputError(f"group {name!r} must say True or False (or 1 or 0) for each row; missing is False.")
            mask = mask == 1
        if 0 < labels.sum() < labels.size and ((mask == labels).all() or (mask == ~labels).all()):
            raise InputError(
                f"group {name!r} is the label itself (or its opposite) in all {labels.size} rows. Name the column that says who "
                "people are, not the one to be predicted."
            )
        masks.append(mask)
    return names, np.column_stack(masks)


def _so_many(names: Sequence[str]) -> str:
    return f"one group, {names[0]!r}" if names else "no group"


@dataclass(frozen=True)
class Cells:
    """People counted by what is the same about them. The last column of `member` is everybody.

    ``count[k]`` people are in the groups ``member[k]``, have the label ``label[k]``, and model m predicted ``predicted[k, m]``.
    """

    count: np.ndarray
    member: np.ndarray
    label: np.ndarray
    predicted: np.ndarray

    @property
    def n(self) -> int:
        return int(self.count.sum())

    def draws(self, times: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """Counts of `times` samples of n people with replacement, in blocks of shape [draws, cells]."""
        share = self.count / self.n
        step = max(1, BLOCK // len(share))
        for start in range(0, times, step):
            yield rng.multinomial(self.n, share, size=min(step, times - start))

    def tally(
        self, measure: Measure, model: int = 0, counts: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Hits and trials of a measure by group, everybody last: of these `counts` [..., cells], else of the people themselves."""
        predicted = self.predicted[:, model]
        among = {"tpr": self.label, "fpr": ~self.label}.get(measure)
        hit = predicted == self.label if measure == "accuracy" else predicted
        drawn = (self.count if counts is None else counts).astype(np.float64)
        of = self.member if among is None else self.member & among[:, None]
        return drawn @ (of & hit[:, None]).astype(np.float64), drawn @ of.astype(np.float64)


def counted(member: np.ndarray, label: np.ndarray, predicted: np.ndarray) -> Cells:
    """Count people by cell. `member` [n, groups], `label` [n], `predicted` [n, models], all of booleans.

    Example:
        >>> member = np.array([[True, False], [True, False], [False, True]])
        >>> cells = counted(member, np.array([True, True, False]), np.array([[True], [True], [True]]))
        >>> sorted(cells.count.tolist()), [x.tolist() for x in cells.tally("accuracy")]
        ([1, 2], [[2.0, 0.0, 2.0], [2.0, 1.0, 3.0]])
    """
    facts = np.column_stack([member, label, predicted])
    packed = np.packbits(facts, axis=1)
    words = np.zeros((len(packed), -(-packed.shape[1] // 8) * 8), np.uint8)
    words[:, : packed.shape[1]] = packed
    keys = words.view(np.uint64)
    keys = keys[:, 0] if keys.shape[1] == 1 else keys
    _, first, count = np.unique(keys, axis=0, return_index=True, return_counts=True)
    facts, groups = facts[first], member.shape[1]
    everybody = np.ones((len(first), 1), bool)
    return Cells(count, np.hstack([facts[:, :groups], everybody]), facts[:, groups], facts[:, groups + 1 :])
