"""Readers of image sets: class folders, npz, idx, mat and parquet files, the Hugging Face hub. Labels are numbers from 0."""

from __future__ import annotations

import gzip
import importlib
import io
import json
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import InputError, missing_extra, nearest, some
from ..models.preprocess import require_pillow
from .image_sets import Hub

SUFFIXES = frozenset([".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"])
FOLDERS = {"train": ("train",), "validation": ("val", "validation", "valid"), "test": ("test",)}
IDX = {"train": "train", "test": "t10k"}
MATLAB = {"train": "train_32x32.mat", "test": "test_32x32.mat"}


class Items(Protocol):
    """What can be counted and indexed."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: Any, /) -> Any: ...


@dataclass(frozen=True, eq=False)
class Images:
    """One part of a set, its images not yet decoded.

    Args:
        pixels: uint8 ``[n, h, w]`` or ``[n, h, w, 3]``, or a sequence of files' paths, of encoded files as bytes, or of Pillow images.
        labels: int64 ``[n]``, from 0.
        classes: names of the labels; empty where the source has none.
    """

    pixels: Items
    labels: np.ndarray
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def grey(self) -> bool:
        """Whether all images are known to have one channel."""
        return isinstance(self.pixels, np.ndarray) and self.pixels.ndim == 3

    def open(self, i: int) -> Any:
        """Image i, as Pillow has it; what Pillow raises goes through."""
        Image = require_pillow("Reading images")
        item: Any = self.pixels[i]
        if isinstance(item, Mapping):  # how the hub stores an image
            item = item["bytes"] if item.get("bytes") is not None else Path(item["path"])
        if isinstance(item, np.ndarray):
            return Image.fromarray(item)
        if isinstance(item, bytes):
            item = io.BytesIO(item)
        if isinstance(item, Path | io.BytesIO):
            with Image.open(item) as image:
                image.load()
                return image
        return item

    def said(self, i: int) -> str:
        """Image i, for a message."""
        item = self.pixels[i]
        return str(item) if isinstance(item, Path) else f"image {i}"


def read_images(folder: Path, classes: Sequence[str] = ()) -> dict[str, Images]:
    """The parts that lie in a folder: ``train`` and perhaps ``validation`` and ``test``.

    Args:
        folder: ``train/CLASS/*.png`` (also val/, test/), or ``*.npz`` (x_train, y_train, x_test, y_test or x, y), or idx files
            as MNIST's (``train-images-idx3-ubyte``, with or without .gz), or ``train_32x32.mat`` as SVHN's, or ``*.parquet`` as
            the Hugging Face hub has them.
        classes: the set's class names, if they are known.
    Raises:
        InputError: nothing of the kind, or damaged files.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder. {LAYOUT}")
    names = _class_file(folder)
    found = {
        part: next((folder / n for n in alternatives if (folder / n).is_dir()), None)
        for part, alternatives in FOLDERS.items()
    }
    if found["train"]:
        return _class_folders({part: path for part, path in found.items() if path}, classes, names)
    if files := sorted(folder.glob("*.npz")):
        return _npz(files)
    if any(folder.glob("*-images-idx3-ubyte*")):
        return _idx(folder)
    if (folder / MATLAB["train"]).is_file():
        return {part: _matlab(folder / name) for part, name in MATLAB.items() if (folder / name).is_file()}
    if files := sorted(folder.rglob("*.parquet")):
        return _parquet(folder, files)
    raise InputError(f"{folder} holds no images that can be read. {LAYOUT}")


LAYOUT = (
    "Lay it out as train/CLASS/*.png, with test/ and val/ beside train/ if there are such parts, or as .npz, idx, .mat or .parquet "
    "files; docs/images.md says how."
)


def _class_file(folder: Path) -> dict[str, str]:
    """``classes.txt``: a folder's name, a space, the name of its class, on each line."""
    path = folder / "classes.txt"
    if not path.exists():
        return {}
    lines = [
        x.strip().partition(" ") for x in path.read_text(encoding="utf-8", errors="replace").splitlines() if x.strip()
    ]
    return {name: said.strip() or name for name, _, said in lines}


def _class_folders(parts: Mapping[str, Path], classes: Sequence[str], names: Mapping[str, str]) -> dict[str, Images]:
    found = {
        part: {d.name: _pictures(d) for d in sorted(path.iterdir()) if d.is_dir() and not d.name.startswith(".")}
        for part, path in parts.items()
    }
    number, said = _numbered(sorted(found["train"]), classes, names, parts["train"])
    out = {}
    for part, by_class in found.items():
        strange = [c for c in by_class if c not in number]
        if strange:
            hint = nearest(strange[0], number)
            raise InputError(f"{parts[part]} has classes that {parts['train']} lacks: {some(strange)}.{hint}")
        files = [(f, number[c]) for c, fs in by_class.items() for f in fs]
        if not files:
            raise InputError(f"{parts[part]} holds no images in class folders. {LAYOUT}")
        out[part] = Images([f for f, _ in files], np.array([k for _, k in files], np.int64), said)
    return out


def _pictures(folder: Path) -> list[Path]:
    return sorted(
        f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES and not f.name.startswith(".") and f.is_file()
    )


def _numbered(
    folders: Sequence[str], classes: Sequence[str], names: Mapping[str, str], where: Path
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Folder -> label, and the class names."""
    if classes and not names:
        if all(f.isdecimal() and int(f) < len(classes) for f in folders):
            return {f: int(f) for f in folders}, tuple(classes)
        known = {_letters(c): i for i, c in enumerate(classes)}
        odd = [f for f in folders if _letters(f) not in known]
        if odd:
            raise InputError(
                f"{where}: the folders {some(odd)} are none of the {len(classes)} classes ({some(classes)})."
                f"{nearest(odd[0], classes)} Name them so, or by the number of the class from 0."
            )
        return {f: known[_letters(f)] for f in folders}, tuple(classes)
    order = sorted(folders, key=lambda f: (int(f), f) if all(x.isdecimal() for x in folders) else (0, f))
    return {f: i for i, f in enumerate(order)}, tuple(names.get(f, f.replace("_", " ")) for f in order)


def _letters(name: str) -> str:
    return "".join(c for c in name.casefold() if c.isalnum())


def _npz(files: Sequence[Path]) -> dict[str, Images]:
    if len(files) > 1:
        raise InputError(
            f"{files[0].parent} holds {len(files)} .npz files ({some(f.name for f in files)}); expected one."
        )
    try:
        with np.load(files[0], allow_pickle=False) as held:
            table = {n: held[n] for n in held.files}
    except (OSError, ValueError, EOFError, zlib.error, KeyError) as error:
        raise InputError(f"{files[0]} is no .npz file of arrays: {error}.") from error
    classes = tuple(str(c) for c in table.get("classes", ()))
    pairs = {"train": ("x_train", "y_train"), "validation": ("x_val", "y_val"), "test": ("x_test", "y_test")}
    if "x_train" not in table:
        pairs = {"train": ("x", "y")}
    if not set(pairs["train"]) <= set(table):
        raise InputError(f"{files[0]} has the arrays {some(table)}; expected x_train and y_train, or x and y.")
    return {p: _arrays(table[x], table[y], classes, files[0]) for p, (x, y) in pairs.items() if {x, y} <= set(table)}


def _arrays(x: np.ndarray, y: np.ndarray, classes: tuple[str, ...], where: Path) -> Images:
    if x.ndim == 4 and x.shape[-1] == 1:
        x = x[..., 0]
    if x.dtype != np.uint8 or x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[3] != 3):
        raise InputError(
            f"{where}: images are {x.dtype} of shape {list(x.shape)}; expected uint8 of shape [n, height, width] or [n, height, "
            "width, 3]."
        )
    if y.shape != (len(x),) or y.dtype.kind not in "iu":
        raise InputError(f"{where}: labels are {y.dtype} of shape {list(y.shape)}; expected {len(x)} whole numbers.")
    return Images(x, y.astype(np.int64), classes)


def _idx(folder: Path) -> dict[str, Images]:
    out = {}
    for part, prefix in IDX.items():
        x, y = (_idx_path(folder, f"{prefix}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1"))
        if x and y:
            out[part] = _arrays(_idx_array(x), _idx_array(y), (), x)
    if not out:
        raise InputError(f"{folder} has idx files, but no pair of images and labels named as MNIST's.")
    # A test file alone is a set of its own, which is then split.
    return out if "train" in out else {"train": out["test"]}


def _idx_path(folder: Path, name: str) -> Path | None:
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.exists()), None)


def _idx_array(path: Path) -> np.ndarray:
    """An array of bytes: two zeros, the type (8), the number of axes, their lengths, then the values."""
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
        zeros, kind, axes = struct.unpack_from(">HBB", raw)
        shape = struct.unpack_from(f">{axes}I", raw, 4)
        values = np.frombuffer(raw, np.uint8, offset=4 + 4 * axes)
        if zeros or kind != 8:
            raise ValueError(f"it begins with {raw[:4].hex()}")
        return values.reshape(shape)
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise InputError(f"{path} is not an idx file of bytes: {error}.") from error


def _matlab(path: Path) -> Images:
    """SVHN's file: X, bytes ``[height, width, 3, n]``, and y, in which 10 stands for the digit 0."""
    io = _library("scipy.io", "reading .mat files", extra="eval")
    try:
        held = io.loadmat(path, variable_names=["X", "y"])
        x, y = np.asarray(held["X"]), np.asarray(held["y"]).ravel()
    except KeyError as error:
        raise InputError(
            f"{path} has no array {error}; expected X and y, as SVHN's cropped digits have them."
        ) from error
    except Exception as error:  # the reader raises many kinds; all mean that the file is damaged
        raise InputError(f"{path} does not read as a MATLAB file of version 5: {error}.") from error
    if x.ndim != 4:
        raise InputError(f"{path}: X has the shape {list(x.shape)}; expected [height, width, 3, n].")
    return _arrays(np.ascontiguousarray(x.transpose(3, 0, 1, 2)), np.where(y == 10, 0, y), (), path)


def _parquet(folder: Path, files: Sequence[Path]) -> dict[str, Images]:
    """Files whose names, or whose folders' names, say train, validation or test; the compressed images are held in memory."""
    pq = _library("pyarrow.parquet", "reading .parquet files")
    pa = _library("pyarrow", "reading .parquet files")

    parts: dict[str, list[Path]] = {}
    for f in files:
        said = str(f.relative_to(folder)).lower()
        part = next((p for p, alternatives in FOLDERS.items() if any(a in said for a in alternatives)), None)
        if part is None and len(files) > 1:
            raise InputError(f"{f} says neither train, validation nor test in its name.")
        parts.setdefault(part or "train", []).append(f)
    if "train" not in parts:
        raise InputError(f"{folder} has .parquet files of {some(parts)}, none of train.")
    out = {}
    for part, paths in parts.items():
        try:
            table = pa.concat_tables([pq.read_table(p) for p in paths])
        except (OSError, ValueError) as error:
            raise InputError(f"{paths[0]} does not read as parquet: {error}.") from error
        image = _column(table.column_names, ("image", "img"), paths[0])
        label = _column(table.column_names, ("label", "fine_label", "labels"), paths[0])
        names: list[str] = []
        about = (table.schema.metadata or {}).get(b"huggingface")
        if about:
            names = json.loads(about).get("info", {}).get("features", {}).get(label, {}).get("names") or []
        items = table.column(image).combine_chunks()
        out[part] = Images(
            _Items(partial(_arrow, items), len(items)), _whole(table.column(label).to_pylist(), paths[0]), tuple(names)
        )
    return out


def _whole(labels: Sequence[Any], where: Path) -> np.ndarray:
    found = np.asarray(labels)
    if found.dtype.kind not in "iu":
        raise InputError(f"{where}: labels are {found.dtype}, such as {found[0]!r}; expected whole numbers from 0.")
    return found.astype(np.int64)


def _library(name: str, purpose: str, *, extra: str = "data") -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise missing_extra(name.partition(".")[0], extra, purpose) from None


def _column(columns: Sequence[str], wanted: Sequence[str], where: Path) -> str:
    found = next((c for c in wanted if c in columns), None)
    if found is None:
        raise InputError(f"{where} has the columns {some(columns)}; expected one called {' or '.join(wanted)}.")
    return found


def _arrow(column: Any, i: int) -> Any:
    return column[i].as_py()


def _row(rows: Any, column: str, i: int) -> Any:
    return rows[i][column]


@dataclass(frozen=True, eq=False)
class _Items:
    """A column of some table as a sequence."""

    get: Callable[[int], Any]
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: Any) -> Any:
        return self.get(int(i))


def download_images(hub: Hub) -> dict[str, Images]:
    """The parts of a set on the hub, fetched into the cache of the datasets library, images not decoded.

    Raises:
        MissingExtra: the library is not installed.
        InputError: there is no such set, part or column, or no way to it.
    """
    datasets = _library("datasets", f"downloading {hub.id}")
    out = {}
    for part, split in (("train", hub.train), ("validation", hub.validation), ("test", hub.test)):
        if split is None:
            continue
        try:
            rows: Any = datasets.load_dataset(hub.id, hub.config, split=split)
        except Exception as error:  # the library raises many kinds; all mean that there is no data
            raise InputError(f"cannot load {hub.id} ({split}) from the hub: {error}") from error
        image = _column(rows.column_names, (hub.image, "image", "img"), Path(hub.id))
        label = _column(rows.column_names, (hub.label, "label"), Path(hub.id))
        rows = rows.cast_column(image, datasets.Image(decode=False))
        names = tuple(getattr(rows.features[label], "names", None) or ())
        out[part] = Images(
            _Items(partial(_row, rows, image), len(rows)), _whole(list(rows[label]), Path(hub.id)), names
        )
    return out
