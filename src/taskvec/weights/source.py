"""Sources: the only things that touch files or modules. ``spec`` from headers, ``read`` in ranges."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Set
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..address import is_address, parse_address
from ..errors import (
    InputError,
    NotACheckpoint,
    TaskvecError,
    UsageError,
    collecting,
    missing_extra,
    quoted,
    raise_all,
    some,
)
from ..files import exists
from .dtypes import NAMES, TensorSpec
from .safetensors import SafetensorsFile, unique
from .vocabulary import TOKENIZER_FILES, has_tokenizer

# What a model folder needs besides weights, by fixed names: nothing that a config mentions is opened.
SIDE_FILES = (
    "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json", "tokenizer.json",
    "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json",
    "merges.txt", "spiece.model", "chat_template.jinja", "chat_template.json", "open_clip_config.json", "modules.json",
    "sentence_bert_config.json", "config_sentence_transformers.json", "1_Pooling/config.json",
    "video_preprocessor_config.json", "normalizer.json", "sentencepiece.bpe.model", "source.spm", "target.spm",
    "tekken.json", "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE",
)  # fmt: skip
TEMPLATE = re.compile(r"additional_chat_templates/[\w.-]+\.jinja")
OPEN_CLIP = "open_clip_model.safetensors"
SAMPLE = 64  # values hashed at the beginning, middle and end of each tensor


def is_side_file(name: str) -> bool:
    """Whether a file of a model folder comes along with an edit of the model."""
    return name in SIDE_FILES or TEMPLATE.fullmatch(name) is not None


class Source:
    """Named tensors that can be read in ranges of flat values, in their stored format.

    A new file format is a subclass that sets these attributes and defines `read`.
    """

    label: str
    spec: Mapping[str, TensorSpec]
    files: tuple[Path, ...] = ()
    folder: Path | None = None
    origin: str | None = None  # where it was published: its address on the hub, with the commit
    ready: bool = True  # False: only headers are to be looked at
    metadata: Mapping[str, str] = {}
    tied: Mapping[str, str] = {}  # names left out because they are another name of the same tensor -> that name

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Values `start` to `stop` of a tensor, flat, in the stored format; the caller does not change them."""
        raise NotImplementedError

    def fetch(self) -> None:
        """Bring the values to this machine, where they are not yet."""

    def described(self) -> Path | None:
        """The folder with config and tokenizer; of a model on the hub, fetched without the weights."""
        return self.folder

    def beside(self) -> dict[str, bytes]:
        """Config, tokenizer and the like: name -> content."""
        folder = self.described()
        if folder is None:
            return {}
        templates = [f.relative_to(folder).as_posix() for f in sorted(folder.glob("additional_chat_templates/*"))]
        found = [n for n in (*SIDE_FILES, *filter(is_side_file, templates)) if (folder / n).is_file()]
        if (folder / OPEN_CLIP).exists() and OPEN_CLIP not in self.file_names:  # it describes those weights, not these
            found = [n for n in found if n != "open_clip_config.json"]
        return {n: (folder / n).read_bytes() for n in found}

    def derived(self) -> dict[str, bytes]:
        """What stands in for such files where a format holds them in words of its own; recipes record them by their hash."""
        return {}

    @property
    def file_names(self) -> tuple[str, ...]:
        return tuple(f.name for f in self.files)

    @property
    def missing(self) -> int:
        """Bytes that must be fetched before values can be read."""
        return 0

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self)

    def fingerprint_of(self, name: str) -> str:
        """As `fingerprint`, of one tensor."""
        return _sampled(self, [name])


def fingerprint(source: Source) -> str:
    """A hex digest of the weights: names, shapes, formats and three samples of 64 values of every tensor.

    Independent of file format, sharding, order and paths; reads a few hundred bytes a tensor. It tells bases apart, it
    is no proof against tampering (the sha256 of the files is recorded for that).
    """
    return _sampled(source, sorted(source.spec))


def _sampled(source: Source, names: list[str]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in names:
        tensor = source.spec[name]
        digest.update(f"{len(name)}:{name}:{tensor}".encode())
        n = tensor.size
        for begin in sorted({0, max(0, n // 2 - SAMPLE // 2), max(0, n - SAMPLE)}):
            digest.update(source.read(name, begin, min(n, begin + SAMPLE)).tobytes())
    return digest.hexdigest()


class FileSource(Source):
    """One safetensors file, or the shards of a folder, as one table of tensors."""

    def __init__(self, shards: list[SafetensorsFile], label: str, folder: Path | None = None):
        self.label, self.folder = label, folder
        self.files = tuple(s.path for s in shards)
        self.metadata = shards[0].header.metadata if len(shards) == 1 else {}
        self._where = {name: s for s in shards for name in s.header.spec}
        self.spec = {name: s.header.spec[name] for s in shards for name in s.header.spec}

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        return self._where[name].read(name, start, stop)


class MemorySource(Source):
    """NumPy arrays or torch tensors by name; copied unless told otherwise, so that later training cannot change them.

    Torch tensors that share their memory are tied weights: they are one tensor, kept under the first of its names, as
    safetensors files of such models keep it. So an edit changes them once, and norms count them once.
    """

    def __init__(
        self, weights: Mapping[str, Any], label: str, *, copy: bool = True, files: tuple[Path, ...] = (),
    ):  # fmt: skip
        self.label, self.files = label, files
        self._flat: dict[str, np.ndarray] = {}
        spec: dict[str, TensorSpec] = {}
        first: dict[Any, tuple[str, Any]] = {}  # with the tensor, so that its address is not given to another meanwhile
        tied: dict[str, str] = {}
        for name, value in weights.items():
            place = _place(value)
            if place is not None and first.setdefault(place, (name, value))[0] != name:
                tied[name] = first[place][0]
                continue
            array = _as_numpy(value, name, label)
            if array.dtype not in NAMES:
                raise InputError(
                    f"{label}: tensor {name!r} holds {array.dtype}, which no checkpoint format here stores."
                )
            spec[name] = TensorSpec(NAMES[array.dtype], array.shape)
            flat = array.reshape(-1)
            flat = flat.copy() if copy else flat.view()
            flat.flags.writeable = False
            self._flat[name] = flat
        self.spec, self.tied = spec, tied

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        return self._flat[name][start:stop]


def _place(value: Any) -> Any:
    """Where a torch tensor's values lie; equal for tied weights. None for what cannot be tied."""
    if not hasattr(value, "untyped_storage") or value.numel() == 0:
        return None
    try:
        return value.device, value.data_ptr(), value.dtype, tuple(value.shape), value.stride()
    except (RuntimeError, NotImplementedError):  # no data: refused later, with its name
        return None


def _as_numpy(value: Any, name: str, label: str) -> np.ndarray:
    if isinstance(value, (np.ndarray, np.generic)):
        return np.ascontiguousarray(value).reshape(value.shape)  # it would make a scalar a vector of one
    if not hasattr(value, "detach"):
        raise InputError(f"{label}: {name!r} is a {type(value).__name__}, expected a NumPy array or a torch tensor.")
    import torch

    try:
        tensor = value.detach().cpu().contiguous()
    except (RuntimeError, NotImplementedError, TypeError):  # sparse, quantised, or without data (device "meta")
        raise InputError(f"{label}: tensor {name!r} is not a plain dense tensor with data.") from None
    odd = {torch.bfloat16: torch.int16, torch.float8_e4m3fn: torch.int8, torch.float8_e5m2: torch.int8}
    if tensor.dtype not in odd:
        return tensor.numpy()
    import ml_dtypes

    target = {
        torch.bfloat16: ml_dtypes.bfloat16,
        torch.float8_e4m3fn: ml_dtypes.float8_e4m3fn,
        torch.float8_e5m2: ml_dtypes.float8_e5m2,
    }[tensor.dtype]
    return tensor.view(odd[tensor.dtype]).numpy().view(target)


class TokenizerSource(Source):
    """A folder that holds a tokenizer and no weights: a vocabulary to align others to."""

    def __init__(self, folder: Path, label: str):
        self.label, self.folder, self.spec = label, folder, {}
        self.files = tuple(folder / n for n in TOKENIZER_FILES if (folder / n).is_file())

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for file in self.files:
            digest.update(hashlib.blake2b(file.name.encode() + b"\0" + file.read_bytes()).digest())
        return digest.hexdigest()


def open_source(path: str | Path, label: str | None = None, *, fetch: bool = True, tokenizer: bool = False) -> Source:
    """Open a safetensors file, a folder (one file or shards, or a LoRA adapter), a ``.pt``/``.bin`` or ``.gguf``, or a
    model on the hub (``hf://org/name``); headers only.

    Args:
        path: what to open.
        label: what it is called in messages and recipes.
        fetch: whether values of a model on the hub may be fetched when they are asked for.
        tokenizer: also take a folder that holds a tokenizer and no weights.
    Raises:
        InputError: the path does not exist or holds no weights.
        NotACheckpoint: the file is damaged, unsafe or something else.
    """
    if is_address(path):
        from .remote import open_remote  # which sees this module

        return open_remote(parse_address(path), label, fetch=fetch)
    path = Path(path)
    # File names need not be text; labels go into headers, which must be.
    label = (label or path.stem or str(path)).encode("utf-8", "replace").decode()
    from .adapter import is_adapter, part_of  # which sees this module

    folder, part = part_of(path)
    if part or (exists(path) and path.is_dir() and is_adapter(path)):
        return _open_adapter(folder, label, part)
    if not exists(path):
        raise InputError(f"{path} does not exist.{_near(path)}")
    if path.is_dir():
        if tokenizer and has_tokenizer(path) and not any(path.glob("*.safetensors*")) and not any(path.glob("*.bin*")):
            return TokenizerSource(path, label)
        return _open_folder(path, label)
    if path.suffix in (".pt", ".pth", ".bin", ".ckpt"):
        return _open_pickles({path: None}, label, None, [])
    if path.suffix == ".gguf":
        from .gguf import GgufSource

        return GgufSource(path, label)
    return FileSource([SafetensorsFile(path, str(path))], label)


def _near(path: Path) -> str:
    import difflib

    names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    match = difflib.get_close_matches(path.name, names, n=1, cutoff=0.7)
    return f" Did you mean {path.parent / match[0]}?" if match else ""


def _open_adapter(folder: Path, label: str, part: str) -> Source:
    from .adapter import WEIGHTS, open_adapter, read_config

    read_config(folder)  # of which kind it is decides before what is in it
    path = next((folder / name for name in WEIGHTS if exists(folder / name)), None)
    if path is None:
        raise NotACheckpoint(f"{folder} is an adapter without weights: expected {' or '.join(WEIGHTS)}.")
    inner = (
        FileSource([SafetensorsFile(path, str(path))], label, folder)
        if path.suffix == ".safetensors"
        else _open_pickles({path: None}, label, folder, [])
    )
    return open_adapter(folder, inner, label, part)


def readable(path: Path) -> bool:
    """Whether there is something to open: a file, a folder, a part of an adapter, or an address on the hub."""
    if is_address(path):
        return True
    from .adapter import part_of

    return exists(path) or bool(part_of(path)[1])


def _open_folder(folder: Path, label: str) -> Source:
    mistakes: list[TaskvecError] = []
    for suffix, single in ((".safetensors", "model.safetensors"), (".bin", "pytorch_model.bin")):
        indexes = sorted(folder.glob(f"*{suffix}.index.json"))
        files = sorted(folder.glob(f"*{suffix}"))
        if suffix == ".bin":  # trainer state is pickled beside the weights under other names
            files = [f for f in files if f.name.startswith(("pytorch_model", "model"))]
        if len(indexes) > 1:
            raise NotACheckpoint(
                f"{folder} has {len(indexes)} indexes ({some(i.name for i in indexes)}), expected one."
            )
        if indexes:
            chosen = _indexed(folder, indexes[0], mistakes)
            if (folder / single).exists() and folder / single not in chosen:
                mistakes.append(
                    NotACheckpoint(
                        f"{folder} holds both {single} and {indexes[0].name}, and which one is meant is unclear. "
                        "Remove the stale one, or name the file itself."
                    )
                )
        elif (folder / single).exists():
            chosen = {folder / single: None}
        elif len(files) == 1:
            chosen = {files[0]: None}
        elif files:
            raise NotACheckpoint(
                f"{folder} has {len(files)} *{suffix} files and no index ({some(f.name for f in files)}). Name the one that is meant."
            )
        else:
            continue
        if suffix == ".bin":
            return _open_pickles(chosen, label, folder, mistakes)
        return FileSource(_open_shards(folder, chosen, mistakes), label, folder)
    raise NotACheckpoint(
        f"{folder} holds no weights: expected model.safetensors, an index with shards, or pytorch_model.bin."
    )


def _indexed(folder: Path, index: Path, mistakes: list[TaskvecError]) -> dict[Path, set[str] | None]:
    """Shard -> names the index promises in it. A shard must lie in the folder itself; those that do not are left out."""
    try:
        table = json.loads(index.read_text(encoding="utf-8"), object_pairs_hook=unique)
        weight_map = table["weight_map"]
        entries = list(weight_map.items())
    except NotACheckpoint as error:
        raise NotACheckpoint(f"{index} {error}.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise NotACheckpoint(f"{index} is not an index of shards ({type(error).__name__}).") from None
    if not entries:
        raise NotACheckpoint(f"{index} names no tensor.")
    promised: dict[str, set[str]] = {}
    outside: dict[str, list[str]] = {}
    for name, file in entries:
        if not isinstance(file, str) or not file or any(c in file for c in "/\\\0") or file in (".", ".."):
            outside.setdefault(quoted(file), []).append(name)
        else:
            promised.setdefault(file, set()).add(name)
    for file, names in outside.items():
        more = f" (so do {len(names) - 1} more)" if len(names) > 1 else ""
        mistakes.append(
            NotACheckpoint(
                f"{index}: tensor {quoted(names[0])} points to {file}{more}; a shard must be a plain file name in that folder."
            )
        )
    missing = [file for file in promised if not exists(folder / file)]
    if missing:
        which = f"shard {missing[0]!r} named by {index.name} is" if len(missing) == 1 else (
            f"{len(missing)} shards {some(sorted(missing), 10)} named by {index.name} are"
        )  # fmt: skip
        mistakes.append(NotACheckpoint(f"{folder}: the {which} missing."))
    left_out = _unlisted(folder, promised.keys())
    if left_out:
        mistakes.append(
            NotACheckpoint(
                f"{folder} holds shards that {index.name} does not list: {some(left_out)}. The index is damaged or of "
                "another model; half of a model is not taken for the whole."
            )
        )
    kept = {}
    for file in sorted(promised.keys() - missing):
        if _inside(folder / file, folder):
            kept[folder / file] = promised[file]
        else:
            mistakes.append(NotACheckpoint(f"{folder}: the shard {file!r} is a link that leaves the folder."))
    return kept


def _unlisted(folder: Path, listed: Iterable[str]) -> list[str]:
    """Files named as parts of the same set (``NAME-00002-of-00005``) that the index leaves out."""
    parts = [re.fullmatch(r"(.*)-\d+(-of-\d+\..*)", file) for file in listed]
    sets = {(m[1], m[2]) for m in parts if m}
    there = [(f.name, re.fullmatch(r"(.*)-\d+(-of-\d+\..*)", f.name)) for f in folder.iterdir()]
    return sorted({name for name, m in there if m and (m[1], m[2]) in sets} - set(listed))


def _open_shards(
    folder: Path, chosen: Mapping[Path, set[str] | None], mistakes: list[TaskvecError]
) -> list[SafetensorsFile]:
    """The shards, if all of them are sound and hold what the index says; else everything that is wrong with them."""
    shards: list[SafetensorsFile] = []
    for path in chosen:
        with collecting(mistakes):
            shards.append(SafetensorsFile(path, str(path)))
    owner: dict[str, Path] = {}
    twice: dict[str, tuple[Path, Path]] = {}
    for shard in shards:
        for name in shard.header.spec:
            if owner.setdefault(name, shard.path) != shard.path:
                twice[name] = owner[name], shard.path
    for name, (a, b) in list(twice.items())[:1]:
        more = f" (and {len(twice) - 1} more: {some(list(twice)[1:])})" if len(twice) > 1 else ""
        mistakes.append(
            NotACheckpoint(
                f"{folder}: the shards {a.name} and {b.name} both hold {quoted(name)}{more}, and which one is meant is unclear."
            )
        )
    for shard in shards:
        with collecting(mistakes):
            _check_index(folder, shard.path, shard.header.spec.keys(), chosen[shard.path], twice.keys())
    raise_all(mistakes)
    return shards


def _inside(path: Path, folder: Path) -> bool:
    real = path.resolve()
    if real.parent == folder.resolve():
        return True
    # The Hugging Face cache keeps snapshots/<commit>/file -> ../../blobs/<hash>.
    cache = next((p for p in folder.absolute().parents if p.name == "snapshots"), None)
    return cache is not None and real.parent == (cache.parent / "blobs").resolve()


def _check_index(
    folder: Path, shard: Path, held: Set[str], promised: Set[str] | None, twice: Set[str] = frozenset()
) -> None:
    """Raise unless a shard holds what the index promises; tensors held `twice` are already reported."""
    if promised is None or held == promised:
        return
    absent, extra = sorted(promised - held), sorted(held - promised - twice)
    if absent or extra:
        raise NotACheckpoint(
            f"{folder}: the index and the shard {shard.name} disagree: {len(absent)} names only in the index "
            f"({some(absent)}), {len(extra)} only in the shard ({some(extra)})."
        )


def _open_pickles(
    paths: Mapping[Path, set[str] | None], label: str, folder: Path | None, mistakes: list[TaskvecError]
) -> Source:
    weights: dict[str, Any] = {}
    for path, promised in paths.items():
        with collecting(mistakes):
            loaded = _load_pickle(path)
            _check_index(path.parent, path, set(loaded), promised)
            weights.update(loaded)
    raise_all(mistakes)
    source = MemorySource(weights, label, copy=False, files=tuple(paths))
    source.folder = folder
    return source


def _check_archive(path: Path) -> None:
    """Check what torch does not: the checksums of the zip archive, and that nothing in it unpacks to more than it is."""
    if not path.is_file():
        raise InputError(f"cannot open {path}: it is not a regular file.")
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
                raise NotACheckpoint(f"{path} unpacks to more than its size; a PyTorch checkpoint is not compressed.")
            broken = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise NotACheckpoint(f"{path} is a damaged PyTorch checkpoint ({error}).") from None
    if broken:
        raise NotACheckpoint(f"{path} is a damaged PyTorch checkpoint: the checksum of its part {broken!r} is wrong.")


def _load_pickle(path: Path) -> Mapping[str, Any]:
    """A state dict from a PyTorch pickle through the weights-only unpickler; never a second, laxer try."""
    try:
        import torch
    except ImportError:
        raise missing_extra("torch", "train", f"reading the PyTorch pickle {path}") from None
    version = tuple(int(p) for p in torch.__version__.split("+")[0].split(".")[:2])
    if version < (2, 10):
        raise UsageError(
            f"{path}: reading pickles with torch {torch.__version__} is unsafe (CVE-2025-32434, CVE-2026-24747). "
            "Install torch >= 2.10, or convert the file to safetensors."
        )
    _check_archive(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises many kinds; all mean the same to a user
        raise NotACheckpoint(
            f"{path} is not a PyTorch checkpoint of plain weights ({type(error).__name__}). "
            "It is damaged, or it holds objects other than tensors, which are never executed here."
        ) from None
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
            break
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(v, torch.Tensor) for v in loaded.values()):
        raise NotACheckpoint(f"{path} does not hold a table of tensors (a state dict).")
    return loaded
