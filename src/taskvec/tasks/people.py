"""People from wherever they come: a known set, a table of texts, a table whose columns are the inputs, a folder of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from ..errors import InputError, UnknownName, UsageError, nearest
from .group_files import read_grouped, read_grouped_images
from .group_rows import read_grouped_rows
from .group_sets import GROUP_SETS, read_group_set
from .groups import Grouped

Kind = Literal["text", "images", "rows"]
MODELS: Mapping[str, str] = {
    "text": "the folder of a text encoder", "images": "the folder of an image encoder", "rows": "perceptron",
}  # fmt: skip


def kind_of(known: str | None, *, perceptron: bool, images: bool) -> Kind:
    """What the samples are, by the set's name, else by the model and by whether there is a folder of images.

    Raises:
        UnknownName: no such set.
        UsageError: a model that cannot read them.
    """
    if known is None:
        if perceptron and images:
            raise UsageError("a perceptron takes rows of a table; for images name the folder of an image encoder.")
        return "rows" if perceptron else "images" if images else "text"
    if known not in GROUP_SETS:
        raise UnknownName(f"no set {known!r} with groups; there are {', '.join(GROUP_SETS)}.{nearest(known, GROUP_SETS)}")  # fmt: skip
    kind = GROUP_SETS[known].kind
    if (kind == "rows") is not perceptron:
        raise UsageError(f"the set {known} holds {kind}: its model is {MODELS[kind]}.")
    return kind  # pyright: ignore[reportReturnType]


def read_people(
    data: str | Path, *, kind: Kind, known: str | None = None, grouping: str | None = None, images: str | Path | None = None,
    text: str = "text", file: str = "file", label: str = "label", group: Sequence[str] = (), members: Sequence[str] = (),
    terms: Mapping[str, Sequence[str]] | None = None, key: str | None = None, threshold: float | None = None,
    drop: Sequence[str] = (), group_as_input: bool = False,
) -> Grouped:  # fmt: skip
    """Samples with labels and groups.

    Args:
        data: a table, or the folder of the set `known`.
        kind: of the samples (`kind_of`).
        known, grouping: as in `read_group_set`; what follows is for tables.
        images: the folder in which the files lie that the column `file` of the table names.
        text, label, group, members, terms, key, threshold: as in `read_grouped`.
        drop, group_as_input: as in `read_grouped_rows`.
    Raises:
        UsageError: a setting that this kind has not.
        InputError: the data are not there or not as expected.
    """
    whose = {"terms": ("text",), "drop": ("rows",), "group_as_input": ("rows",), "key": ("text", "rows")}
    given = {"terms": terms, "drop": drop, "group_as_input": group_as_input, "key": key}
    for n, kinds in whose.items():
        if given[n] and (kind not in kinds or known):
            told = f"these come from the set {known}" if known else f"these are {kind}"
            raise UsageError(f"{n.replace('_', '-')} is for tables of {' or '.join(kinds)}; {told}.")
    if known is not None:
        return read_group_set(known, data, grouping=grouping)
    if grouping is not None:
        raise UsageError("grouping is for known sets; name the groups of a table by its columns.")
    if kind == "rows":
        return read_grouped_rows(
            data, label=label, group=group, members=members, drop=drop, group_as_input=group_as_input, key=key, threshold=threshold
        )  # fmt: skip
    if kind == "images":
        if images is None:
            raise UsageError("images need the folder in which they lie.")
        return read_grouped_images(images, data, file=file, label=label, group=group, members=members, threshold=threshold)  # fmt: skip
    return read_grouped(
        data, text=text, label=label, group=group, members=members, terms=terms, key=key, threshold=threshold
    )


def at_most_each(data: Grouped, most: int, *, seed: int = 0) -> Grouped:
    """At most so many samples of each group, and of no group; more of a group whose members are in others too.

    Args:
        most: of each.
        seed: chooses which.
    """
    if most < 1:
        raise InputError(f"at_most_each: {most} of each group is nobody.")
    rng, kept = np.random.default_rng(seed), np.zeros(len(data), bool)
    inside = list(data.groups.values())
    for mask in (*inside, ~np.stack(inside).any(0)):
        rows = np.flatnonzero(mask)
        kept[rng.permutation(rows)[:most]] = True
    return data.take(np.flatnonzero(kept))
