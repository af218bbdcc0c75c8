"""Image classification tasks: known sets by name, or a folder of one's own."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError, UnknownName, UsageError, nearest, some
from ..models.functional import require_torch
from ..models.preprocess import CLIP, Preprocess, require_pillow
from .image_files import LAYOUT, Images, download_images, read_images
from .image_sets import SETS, ImageSet
from .lazy import LazyInputs
from .task import Head, Split, Task
from .text import split_indices

if TYPE_CHECKING:
    import torch

__all__ = ["CLIP", "SETS", "ImageSet", "Images", "Preprocess", "folder_task", "image_task", "images_encoder"]

HELD = 2**30  # bytes
CHUNK = 256  # images decoded at a time, which bounds memory


def image_task(
    name: str, *, prepare: Preprocess, root: str | Path | None = None, limit: int | None = None, test_limit: int | None = None,
    seed: int = 0, head: Head | None = None, download: bool = False, skip_corrupt: bool = False, memory: int = HELD,
) -> Task:  # fmt: skip
    r"""A known image set (`SETS`) as a task.

    Validation is the set's own part, or 10 % of the training part, at most 5,000 images: the end of the permutation of
    `seed`, as ``torch.utils.data.random_split`` cuts it. A set without a test part is cut 60 : 20 : 20.

    Args:
        name: one of `SETS`, for example ``"mnist"``.
        prepare: size, channels and normalisation that the model takes.
        root: the set's folder, or one in which it lies under its name.
        limit: most training samples, taken evenly from the classes; validation stays the same.
        test_limit: most test samples, drawn from all alike.
        seed: chooses the parts and the samples within the limits.
        head: the task's head, if there is one already.
        download: fetch the set from the Hugging Face hub where no root is given.
        skip_corrupt: leave out images that cannot be decoded, all of which are looked at now; else the first use stops.
        memory: bytes of decoded pixels (uint8) to hold; a larger set is decoded anew whenever its images are used.
    Returns:
        a task whose inputs are `LazyInputs`: float32 ``[n, channels, size, size]``. Its notes count what was left out, and test
        images that are also training images, if all are held.
    Raises:
        UnknownName: no such set; says the nearest.
        InputError: the data is not there or damaged, or a class has no training samples.
        MissingExtra: Pillow, or what the download needs, is not installed.
    Reference: the papers' validation split is that of the code published with Ilharco et al. 2022, arXiv:2212.04089.
    """
    if name not in SETS:
        raise UnknownName(f"no image set {name!r}; there are {', '.join(SETS)}.{nearest(name, SETS)}")
    row = SETS[name]
    if root is not None:
        folder = _place(row, Path(root))
        parts = read_images(folder, row.classes)
    elif download and row.hub:
        parts = download_images(row.hub)
    else:
        raise InputError(_how_to_get(row))
    return _task(name, parts, row.classes, prepare, limit, test_limit, seed, head, skip_corrupt, memory)


def folder_task(
    path: str | Path, *, prepare: Preprocess, name: str | None = None, limit: int | None = None, test_limit: int | None = None,
    seed: int = 0, head: Head | None = None, skip_corrupt: bool = False, memory: int = HELD,
) -> Task:  # fmt: skip
    """Images of one's own as a task: ``train/CLASS/*.png``, perhaps ``val/`` and ``test/`` beside it, or files as `read_images` takes.

    Class names are those of the folders, with spaces for underscores, or stand in ``classes.txt`` (``folder name of class``
    on each line).

    Args: as in `image_task`.
    """
    path = Path(path)
    parts = read_images(path)
    return _task(name or path.resolve().name, parts, (), prepare, limit, test_limit, seed, head, skip_corrupt, memory)


def images_encoder(prepare: Preprocess, *, memory: int = HELD) -> Callable[[Sequence[Path]], LazyInputs]:
    """A function from paths of images to inputs, for `taskvec.tasks.groups.grouped_task`.

    Raises:
        InputError: (the function) images that cannot be decoded; says which.
    """

    def encode(paths: Sequence[Path]) -> LazyInputs:
        require_pillow("An image task")
        part = _Part(Images(list(paths), np.zeros(len(paths), np.int64)), np.arange(len(paths)))
        held = len(paths) * prepare.channels * prepare.size**2 <= memory
        inputs, failed = _inputs(part, prepare, held=held, look=True)
        if failed:
            said = [f"{part.images.said(i)}: {why}" for i, why in failed.items()]
            raise InputError(f"{len(failed)} images cannot be decoded: {some(said)}. Replace them, or leave them out.")
        return inputs

    return encode


def _place(row: ImageSet, root: Path) -> Path:
    for n in (row.name, *row.folders):
        if (root / n).is_dir():
            return root / n
    if root.name in (row.name, *row.folders) or any((root / p).exists() for p in ("train", "data")) or _files(root):
        return root
    raise InputError(f"no {row.name} in {root}: looked for {' and '.join(str(root / n) for n in (row.name, *row.folders))}. {LAYOUT}")  # fmt: skip


def _files(root: Path) -> bool:
    return any(any(root.glob(p)) for p in ("*.npz", "*-ubyte*", "*.mat", "*.parquet"))


def _how_to_get(row: ImageSet) -> str:
    hub = (
        f"or let the datasets library fetch {row.hub.id} from the Hugging Face hub with download=True (on the command line --root and --download)"
        if row.hub
        else ""
    )
    if not hub:
        hub = "it is not on the hub under an id that we know, so download=True cannot fetch it"
    return (
        f"{row.name} ({row.origin}) is not here. Give root=FOLDER, in which {row.name}/ holds train/CLASS/*.png and "
        f"test/CLASS/*.png (or npz, idx, parquet files), {hub}. docs/images.md says where each set comes from."
    )


def _task(
    name: str, parts: Mapping[str, Images], known: tuple[str, ...], prepare: Preprocess, limit: int | None,
    test_limit: int | None, seed: int, head: Head | None, skip: bool, memory: int,
) -> Task:  # fmt: skip
    require_torch("An image task")
    require_pillow("An image task")
    for what, value in (("limit", limit), ("test_limit", test_limit)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise UsageError(f"image task {name!r}: {what} is {value!r}; expected a number of samples from 1, or None.")
    classes = _classes(name, parts, known)
    chosen = _cut(name, parts, seed)
    notes = _coverage(name, chosen, classes)
    for which, most in (("training", limit), ("test", test_limit)):
        part = chosen[which]
        if most is not None and most < len(part.rows):
            rows = _even(part.rows, part.labels) if which == "training" else _shuffled(part.rows, seed)
            chosen[which] = _Part(part.images, rows[:most])
            notes.append(f"{which}: {most:,} of {len(part.rows):,} samples (seed {seed})")
    bytes_needed = sum(
        len(p.rows) * (1 if p.images.grey else prepare.channels) * prepare.size**2 for p in chosen.values()
    )
    held, splits, bad = bytes_needed <= memory, {}, []
    for which, part in chosen.items():
        inputs, failed = _inputs(part, prepare, held=held, look=held or skip)
        bad += [f"{part.images.said(i)} ({which}): {why}" for i, why in failed.items()]
        kept = ~np.isin(part.rows, list(failed))
        if failed and skip:
            notes.append(f"{which}: {len(failed):,} of {len(part.rows):,} images cannot be decoded and are left out")
        if kept.any():
            splits[which] = (inputs, _Part(part.images, part.rows[kept]).labels)
    if bad and not skip:
        raise InputError(
            f"task {name!r}: {len(bad)} images cannot be decoded: {some(bad)}. Replace them, or leave them out with "
            "skip_corrupt=True."
        )
    if len(splits) < 3:
        raise InputError(f"task {name!r}: no image can be decoded in {some(set(chosen) - set(splits))}.")
    if held:
        notes += _repeated(splits)
    train, validation, test = (Split(x, _tensor(y)) for x, y in splits.values())
    return Task(name, train, validation, test, head, classes, tuple(notes))


@dataclass(frozen=True, eq=False)
class _Part:
    """Samples of one part of a set."""

    images: Images
    rows: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        return self.images.labels[self.rows]


def _classes(name: str, parts: Mapping[str, Images], known: tuple[str, ...]) -> tuple[str, ...]:
    """Names from the data, which fit its labels; else the known ones; else numbers."""
    labels = [int(k) for p in parts.values() for k in (p.labels.min(initial=0), p.labels.max(initial=0))]
    found = tuple(c.replace("_", " ") for c in parts["train"].classes)
    if not found or all(c.isdecimal() for c in found):
        found = known or found or tuple(str(i) for i in range(max(labels) + 1))
    if min(labels) < 0 or max(labels) >= len(found):
        raise InputError(
            f"image set {name!r} has labels from {min(labels)} to {max(labels)}; with {len(found)} classes they must be 0 to "
            f"{len(found) - 1}."
        )
    return found


def _cut(name: str, parts: Mapping[str, Images], seed: int) -> dict[str, _Part]:
    """Training, validation and test samples, disjoint; training in a shuffled order."""
    train, own, test = parts["train"], parts.get("validation"), parts.get("test")
    n = len(train)
    if n < 10 or any(not len(p) for p in parts.values()):
        raise InputError(f"image set {name!r}: {n} training images are too few, or a part is empty.")
    order = _shuffled(np.arange(n), seed)
    if test is None and own is None:
        cuts = [np.array(rows) for rows in split_indices(n, seed=seed)]
        return {k: _Part(train, rows) for k, rows in zip(("training", "validation", "test"), cuts, strict=True)}
    fifth, tenth = n // 5, min(n // 10, 5000)
    if test is None:
        rest, tested = order[: n - fifth], _Part(train, order[n - fifth :])
    else:
        rest, tested = order, _Part(test, np.arange(len(test)))
    if own is None:
        rest, validated = rest[: n - tenth], _Part(train, rest[n - tenth :])
    else:
        validated = _Part(own, np.arange(len(own)))
    return {"training": _Part(train, rest), "validation": validated, "test": tested}


def _coverage(name: str, chosen: Mapping[str, _Part], classes: tuple[str, ...]) -> list[str]:
    """Refuse classes that are tested and never trained; note those that are never tested."""
    seen = {which: set(part.labels.tolist()) for which, part in chosen.items()}
    unseen = sorted((seen["validation"] | seen["test"]) - seen["training"])
    if unseen:
        raise InputError(
            f"image set {name!r}: the training part has no image of {some(classes[k] for k in unseen)}. Add some, remove the "
            "class, or use another seed."
        )
    missing = {w: [c for k, c in enumerate(classes) if k not in s] for w, s in seen.items()}
    return [f"{which}: no images of {some(m)}" for which, m in missing.items() if m]


def _shuffled(rows: np.ndarray, seed: int) -> np.ndarray:
    import torch

    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).numpy()]


def _even(rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The first of every class, then the second of every class, and so on, in the order that the rows have."""
    by_class = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[by_class], labels[by_class])
    rank = np.empty(len(rows), np.int64)
    rank[by_class] = np.arange(len(rows)) - starts
    return rows[np.argsort(rank, kind="stable")]


def _tensor(values: np.ndarray) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.ascontiguousarray(values))


def _inputs(part: _Part, prepare: Preprocess, *, held: bool, look: bool) -> tuple[LazyInputs, dict[int, str]]:
    """The part's inputs, and why images of it cannot be decoded, where all of them are looked at."""
    import torch

    item = (prepare.channels, prepare.size, prepare.size)
    made: list[np.ndarray] = []
    failed: dict[int, str] = {}
    for rows, found in _decoded(part.images, part.rows, prepare) if look else ():
        failed |= {int(i): x for i, x in zip(rows, found, strict=True) if isinstance(x, str)}
        if held:
            made += [x for x in found if not isinstance(x, str)]
    if held:
        pixels = _tensor(np.stack(made)) if made else torch.empty(0, *item, dtype=torch.uint8)
        return LazyInputs(lambda rows: prepare.normalised(pixels[rows]), torch.arange(len(pixels)), item), failed

    def make(rows: torch.Tensor) -> torch.Tensor:
        made = []
        for which, found in _decoded(part.images, rows.numpy(), prepare):
            bad = [f"{part.images.said(i)}: {x}" for i, x in zip(which, found, strict=True) if isinstance(x, str)]
            if bad:
                raise InputError(
                    f"{len(bad)} images cannot be decoded: {some(bad)}. Use skip_corrupt=True to leave them out."
                )
            made += found
        return prepare.normalised(_tensor(np.stack(made))) if made else torch.empty(0, *item)

    return LazyInputs(make, _tensor(part.rows[~np.isin(part.rows, list(failed))]), item), failed


def _decoded(
    images: Images, rows: np.ndarray, prepare: Preprocess
) -> Iterator[tuple[np.ndarray, list[np.ndarray | str]]]:
    """Chunks of rows with the pixels of each, or why there are none. Files are read by a few threads."""

    def one(i: int) -> np.ndarray | str:
        try:
            return prepare.pixels(images.open(i), mode="L" if images.grey else None)
        except (MemoryError, ImportError):
            raise
        except Exception as error:  # Pillow raises many kinds for damaged files; all mean that there are no pixels
            return " ".join(str(error).split()) or type(error).__name__

    chunks = [rows[i : i + CHUNK] for i in range(0, len(rows), CHUNK)]
    if isinstance(images.pixels, np.ndarray) or len(rows) < 8:
        for chunk in chunks:
            yield chunk, [one(int(i)) for i in chunk]
        return
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        for chunk in chunks:
            yield chunk, list(threads.map(one, chunk.tolist()))


def _repeated(splits: Mapping[str, tuple[LazyInputs, np.ndarray]]) -> list[str]:
    """Counts of images that are, pixel by pixel after preparation, those of an earlier part."""
    notes: list[str] = []
    seen: set[bytes] = set()
    for which, (inputs, _) in splits.items():
        marks: list[bytes] = []
        for i in range(0, len(inputs), CHUNK):
            marks += [hashlib.blake2b(x.tobytes(), digest_size=16).digest() for x in inputs[i : i + CHUNK].numpy()]
        if again := sum(m in seen for m in marks):
            notes.append(f"{which}: {again:,} of {len(marks):,} images are also in an earlier part")
        seen.update(marks)
    return notes
