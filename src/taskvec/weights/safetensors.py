"""The safetensors format: a header read with suspicion, tensors read in ranges.

Our own reader, because the published one accepts duplicate names, cannot open files larger than memory, and dies with
SIGBUS when a file shrinks. Layout (https://huggingface.co/docs/safetensors): 8 bytes header length, little endian; JSON
header ``{name: {dtype, shape, data_offsets}}``; the data, contiguous.
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import struct
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, NotACheckpoint, quoted, some
from ..files import exists
from .dtypes import DTYPES, TensorSpec

MAX_HEADER = 100_000_000
MAX_DIMENSIONS = 64  # of a NumPy array
PAGE = 4096
MAX_READ = 1 << 30  # Linux transfers at most 2 GiB in one call
FAULTS = 10  # of one file, shown in one error
FIELDS = {"dtype", "shape", "data_offsets"}
SUB_BYTE = ("F4", "F6_E2M3", "F6_E3M2")


@dataclass(frozen=True)
class Header:
    """Tensors of one file with the byte where each begins, and the file's metadata."""

    spec: Mapping[str, TensorSpec]
    offset: Mapping[str, int]
    metadata: Mapping[str, str]


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `json.loads`, which keeps the last of equal keys: refuse them."""
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = [k for k, _ in pairs if k in seen or seen.add(k)]
        raise NotACheckpoint(f"names {some(dict.fromkeys(twice))} twice")
    return found


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Without the garbage collector, which walks a big table again and again while it grows: a third of the time."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


@_uncollected()
def parse_header(head: bytes, size: int, label: str) -> Header:
    """Check a header against the file it heads; `head` is the JSON text, `size` the file's length in bytes.

    Raises:
        NotACheckpoint: anything the format does not allow, and duplicate names, which it leaves open; all faults of the
            tensors at once.
    """

    def bad(*faults: str) -> NotACheckpoint:
        if len(faults) == 1:
            return NotACheckpoint(f"{label} is not a sound safetensors file: {faults[0]}.")
        rest = [f"and {len(faults) - FAULTS} more faults"] if len(faults) > FAULTS else []
        listed = "".join(f"\n  {fault}" for fault in [*faults[:FAULTS], *rest])
        return NotACheckpoint(f"{label} is not a sound safetensors file; it has {len(faults)} faults:{listed}")

    try:
        table = json.loads(head.decode("utf-8"), object_pairs_hook=unique)
    except NotACheckpoint as error:
        raise bad(f"the header {error}") from None
    except (ValueError, RecursionError) as error:
        raise bad(f"the header is not JSON ({type(error).__name__})") from None
    if not isinstance(table, dict):
        raise bad(f"the header is a JSON {type(table).__name__}, expected an object")
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise bad("__metadata__ is not a table of texts")
    for text in (*table, *metadata, *metadata.values()):
        if not _is_text(text):
            raise bad(f"the name or __metadata__ text {quoted(text)} holds half a surrogate pair")
    spec: dict[str, TensorSpec] = {}
    extent: list[tuple[int, int, str]] = []
    wrong: dict[str, list[str]] = {}  # what is wrong -> the tensors it is wrong with
    known: dict[Any, tuple[TensorSpec, int]] = {}
    for name, entry in table.items():
        found = _entry(entry, known)
        if found is not None:
            spec[name], begin, end = found
            extent.append((begin, end, name))
            continue
        for fault in _entry_faults(entry):
            wrong.setdefault(fault, []).append(name)
        offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
        if isinstance(offsets, list) and len(offsets) == 2 and _counts(offsets):
            extent.append((offsets[0], offsets[1], name))
    faults = [f"tensor {quoted(names[0])} {fault}{_others(names[1:])}" for fault, names in wrong.items()]
    start = 8 + len(head)
    if len(extent) == len(table):  # else what looks like a hole is a tensor already reported
        faults += _data_faults(sorted(extent), start, size)
    if faults:
        raise bad(*faults)
    return Header(spec, {name: start + begin for begin, _, name in extent}, metadata)


def _is_text(text: str) -> bool:
    """False for halves of surrogate pairs, which JSON can spell and no file or terminal can take."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _others(names: list[str]) -> str:
    return f" (so {'has' if len(names) == 1 else 'have'} {some(names)})" if names else ""


def _counts(values: Any) -> bool:
    """Whether this is a list of whole numbers that a file could hold."""
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**63 for v in values)


def _entry(entry: Any, known: dict[Any, tuple[TensorSpec, int]]) -> tuple[TensorSpec, int, int] | None:
    """One tensor's row of the header: what it says and the bytes it spans; None if anything is wrong with it.

    Checkpoints have few distinct formats and shapes; `known` keeps those already looked at, with their bytes.
    """
    if not isinstance(entry, dict) or entry.keys() != FIELDS:
        return None
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if type(dtype) is not str or type(shape) is not list or type(offsets) is not list or len(offsets) != 2:
        return None
    begin, end = offsets
    if type(begin) is not int or type(end) is not int or not 0 <= begin <= end < 2**63:
        return None
    for n in shape:
        if type(n) is not int:  # True and 1.0 would be found among the known
            return None
    key = (dtype, *shape)
    if key not in known:
        if dtype not in DTYPES or not _counts(shape) or len(shape) > MAX_DIMENSIONS:
            return None
        if math.prod(n or 1 for n in shape) >= 2**63:
            return None
        tensor = TensorSpec(dtype, tuple(shape))
        known[key] = tensor, tensor.nbytes
    tensor, size = known[key]
    return (tensor, begin, end) if end - begin == size else None


def _entry_faults(entry: Any) -> list[str]:
    """Everything that is wrong with a row that `_entry` refuses, in words that continue "tensor 'w' ..."."""
    if not isinstance(entry, dict) or entry.keys() != FIELDS:
        return ["needs exactly dtype, shape and data_offsets"]
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    faults = []
    if isinstance(dtype, str) and dtype in SUB_BYTE:
        faults.append(
            f"has the number format {dtype!r}, of less than a byte a value, which is not read here; "
            "dequantise the model first"
        )
    elif not isinstance(dtype, str) or dtype not in DTYPES:
        faults.append(f"has the unknown number format {quoted(dtype)}; known are {', '.join(DTYPES)}")
    if not _counts(shape):
        faults.append(f"has the shape {quoted(shape)}, expected a list of whole numbers")
    elif len(shape) > MAX_DIMENSIONS or math.prod(n or 1 for n in shape) >= 2**63:
        faults.append(f"has a shape of {len(shape)} dimensions that no array can have")
    if not _counts(offsets) or len(offsets) != 2:
        faults.append(f"has the offsets {quoted(offsets)}, expected two whole numbers")
    elif not faults:
        tensor = TensorSpec(dtype, tuple(shape))
        faults.append(f"is {tensor} = {tensor.nbytes:,} bytes, its offsets span {offsets[1] - offsets[0]:,}")
    elif offsets[1] < offsets[0]:
        faults.append(f"has offsets that span {offsets[1] - offsets[0]:,} bytes")
    return faults


def _data_faults(extent: list[tuple[int, int, str]], start: int, size: int) -> list[str]:
    """Holes, overlaps and a wrong end of the data, which begins at `start` of a file of `size` bytes."""
    faults, at = [], 0
    for begin, end, name in extent:
        if begin != at:
            faults.append(
                f"tensor {quoted(name)} begins at byte {begin} of the data, expected {at} (a hole or an overlap)"
            )
        at = max(at, end)
    if start + at != size:
        kind = "truncated" if start + at > size else "followed by unknown bytes"
        faults.append(f"{kind}: the header describes {start + at:,} bytes, the file has {size:,}")
    return faults


class SafetensorsFile:
    """One open file; `read` returns a range of a tensor's values in their stored format."""

    def __init__(self, path: Path, label: str):
        self.path, self.label = path, label
        if exists(path) and not path.is_file():
            raise InputError(f"cannot open {label}: it is not a regular file.")
        try:
            self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            raise InputError(f"cannot open {label}: {error.strerror}.") from error
        self._close = weakref.finalize(self, os.close, self._fd)
        try:
            size = os.fstat(self._fd).st_size
        except OSError as error:
            raise InputError(f"cannot read {label}: {error.strerror}.") from error
        first = self._pread(64, 0)
        # The first bytes are a length and can look like anything, a pickle's included; a header begins with a brace.
        kind = "" if first[8:9] == b"{" else _disguise(first)
        if kind or len(first) < 8:
            raise NotACheckpoint(f"{label} is not a safetensors file: {kind or f'only {size} bytes long'}.")
        (length,) = struct.unpack("<Q", first[:8])
        if length > MAX_HEADER or length > size - 8:
            raise NotACheckpoint(
                f"{label} is not a sound safetensors file: it announces a header of {length:,} bytes, "
                f"the file has {size:,} (limit {MAX_HEADER:,})."
            )
        self.header = parse_header(self._pread(length, 8), size, label)

    def _pread(self, count: int, at: int) -> bytes:
        try:
            return os.pread(self._fd, count, at)
        except OSError as error:
            raise InputError(f"cannot read the header of {self.label}: {error.strerror}.") from error

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        spec = self.header.spec[name]
        itemsize = DTYPES[spec.dtype].itemsize
        want = (stop - start) * itemsize
        out = _page_aligned(want)
        at, done = self.header.offset[name] + start * itemsize, 0
        while done < want:
            try:
                got = os.preadv(self._fd, [out.data[done : min(want, done + MAX_READ)]], at + done)
            except OSError as error:
                raise InputError(f"cannot read {name!r} from {self.label}: {error.strerror}.") from error
            if got == 0:
                raise InputError(f"{self.label} became shorter while it was read: tensor {name!r} is incomplete.")
            done += got
        return out.view(DTYPES[spec.dtype])


def _page_aligned(nbytes: int) -> np.ndarray:
    """An uninitialised buffer on a page border: elsewhere the kernel's copy is up to five times slower on some CPUs."""
    raw = np.empty(nbytes + PAGE, np.uint8)
    shift = -raw.ctypes.data % PAGE
    return raw[shift : shift + nbytes]


def _disguise(first: bytes) -> str:
    """What a file that is no checkpoint probably is, from its first bytes."""
    if first.startswith(b"version https://git-lfs"):
        return "it is a git-LFS pointer, not the weights; run `git lfs pull`"
    if first.lstrip()[:5].lower() in (b"<!doc", b"<html"):
        return "it is an HTML page, probably an error page saved by a download"
    if first[:8].isascii() and first[:8].decode().isprintable() and len(first) >= 8:
        return "it begins like a text file"
    if first.startswith((b"PK\x03\x04", b"\x80\x02")):
        return "it is a PyTorch pickle; name it .pt or .bin to have it read as one"
    return ""


def layout(spec: Mapping[str, TensorSpec], metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int]]:
    """The header bytes of a new file, padded to 8, and the byte where each tensor begins."""
    table: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    begins: dict[str, int] = {}
    for name, tensor in spec.items():
        begins[name] = at
        table[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [at, at + tensor.nbytes]}
        at += tensor.nbytes
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    head = struct.pack("<Q", len(text)) + text
    return head, {name: len(head) + begin for name, begin in begins.items()}
