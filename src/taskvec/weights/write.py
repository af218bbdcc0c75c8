"""Writing: header first, blocks streamed to their places, one rename at the end.

An output is built beside its target under a temporary name, synced to disk and renamed. Whatever goes wrong before the
rename, the target is as it was and the temporary files are removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..errors import StorageError, UsageError
from . import graph
from .algebra import (
    BASE_KEY,
    PARTIAL_KEY,
    VECTOR_KIND,
    Checkpoint,
    TaskVector,
)
from .dtypes import LONG_NAMES, TensorSpec, parse_dtype
from .execute import Block, blocks, bytes_per_value, in_order, summarise, whole_tensors
from .graph import Node
from .lineage import root
from .names import stored_bytes
from .produce import producer
from .safetensors import layout
from .source import Source
from .text import expression, size_text, source_names

SHARD_SIZE = 5_000_000_000
INFO = "taskvec.json"
# What a model folder needs besides weights, by fixed names: nothing that a config mentions is opened.
SIDE_FILES = (
    "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json", "tokenizer.json",
    "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json",
    "merges.txt", "spiece.model", "chat_template.jinja", "chat_template.json", "open_clip_config.json", "modules.json",
    "sentence_bert_config.json", "config_sentence_transformers.json", "1_Pooling/config.json",
)  # fmt: skip


def save_checkpoint(
    point: Checkpoint, path: Path, *, dtype: str | None, overwrite: bool, shard_size: int | None, on_nonfinite: str,
    progress: Callable[[int], None] | None,
) -> Path:  # fmt: skip
    """See `Checkpoint.save`."""
    target = parse_dtype(dtype) if dtype else None
    spec = {n: TensorSpec(target if target and s.is_float else s.dtype, s.shape) for n, s in point.spec.items()}
    single = path.suffix == ".safetensors"
    if path.suffix in (".pt", ".pth", ".bin", ".ckpt"):
        raise UsageError(
            f"cannot write {path}: pickles are read but not written. Name a folder or a .safetensors file."
        )
    check_output(path, point.node, stored_bytes(spec), overwrite=overwrite)
    shards = {path.name: spec} if single else plan_shards(spec, shard_size or SHARD_SIZE)
    with _hashing(point.node) as hashes, _staged(path, folder=not single, overwrite=overwrite) as staging:
        place = staging.parent if single else staging
        files = {staging.name: spec} if single else shards
        room = {"taskvec": _placeholder(point.node, dtype=target)} if single else {}
        _stream(
            point.node, place, files, {"format": "pt", **room}, progress, point=True, strict=on_nonfinite == "error"
        )
        info = _info(point.node, hashes(), dtype=target)
        if single:
            _rewrite_metadata(staging, spec, {"format": "pt", "taskvec": json.dumps(info)})
        else:
            if len(shards) > 1:
                _write_index(staging, shards, spec)
            _copy_side_files(point.node, staging, dtype=target)
            (staging / INFO).write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")
    return path


def save_vector(vector: TaskVector, path: Path, *, overwrite: bool, progress: Callable[[int], None] | None) -> Path:
    """See `TaskVector.save`."""
    if path.suffix != ".safetensors":
        raise UsageError(f"cannot write the task vector {path}: a vector is one file whose name ends in .safetensors.")
    spec = {n: TensorSpec("F64" if s.dtype == "F64" else "F32", s.shape) for n, s in vector.spec.items()}
    check_output(path, vector.node, stored_bytes(spec), overwrite=overwrite)
    metadata = {"format": "pt", VECTOR_KIND: "vector", "taskvec.base_label": vector.base.label}
    if vector.base.fingerprint:
        metadata[BASE_KEY] = vector.base.fingerprint
    if vector.partial:
        metadata[PARTIAL_KEY] = "true"
    with _hashing(vector.node) as hashes, _staged(path, folder=False, overwrite=overwrite) as staging:
        room = {"taskvec": _placeholder(vector.node, dtype=None)}
        _stream(vector.node, staging.parent, {staging.name: spec}, {**metadata, **room}, progress, point=False)
        _rewrite_metadata(staging, spec, {**metadata, "taskvec": json.dumps(_info(vector.node, hashes(), dtype=None))})
    return path


def plan_shards(spec: Mapping[str, TensorSpec], shard_size: int) -> dict[str, dict[str, TensorSpec]]:
    """File name -> its tensors, in order, each file at most `shard_size` bytes unless one tensor is larger."""
    if shard_size <= 0:
        raise UsageError(f"the shard size is {shard_size}; it must be a positive number of bytes.")
    groups: list[dict[str, TensorSpec]] = [{}]
    used = 0
    for name, tensor in spec.items():
        if groups[-1] and used + tensor.nbytes > shard_size:
            groups.append({})
            used = 0
        groups[-1][name] = tensor
        used += tensor.nbytes
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": g for i, g in enumerate(groups, 1)}


def check_output(path: Path, node: Node, need: int, *, overwrite: bool) -> None:
    """Refuse, before any work, an output that is an input, exists, cannot be made or does not fit the disk."""
    parent = path.absolute().parent
    for source in sources(node):
        for file in source.files:
            if path.exists() and (path.samefile(file) or path.samefile(file.parent)):
                raise UsageError(
                    f"the output {path} is an input ({source.label}); inputs are never written. Name another output."
                )
        if source.folder is not None and path.suffix == ".safetensors" and parent.resolve() == source.folder.resolve():
            raise UsageError(
                f"the output {path} lies in the input folder {source.folder}, which would then hold two sets of weights. "
                "Name another output."
            )
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        if not overwrite:
            raise StorageError(
                f"the output {path} exists. Use --overwrite (overwrite=True) to replace it, or name another."
            )
        if path.is_dir() and not (path / INFO).exists():
            raise StorageError(
                f"the folder {path} was not written by taskvec (it has no {INFO}) and is not replaced. Name another."
            )
        if path.is_dir() == (path.suffix == ".safetensors"):
            raise StorageError(
                f"{path} is {'a folder' if path.is_dir() else 'a file'}; the output would be the other kind. Name another."
            )
    existing = next(p for p in (parent, *parent.parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise StorageError(f"cannot write {path}: {existing} is not a folder that can be written to.")
    free = shutil.disk_usage(existing).free
    if free < need:
        raise StorageError(f"cannot write {path}: it needs {size_text(need)}, the disk has {size_text(free)} free.")


def sources(node: Node) -> list[Source]:
    return [n.source for n in graph.walk(node) if n.source is not None]


@contextlib.contextmanager
def _staged(path: Path, *, folder: bool, overwrite: bool) -> Iterator[Path]:
    """A temporary file or folder beside `path` that takes its place if the block ends well, and vanishes if not."""
    staging = path.absolute().parent / f".{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}"
    made = [p for p in staging.parents if not p.exists()]
    try:
        staging.parent.mkdir(parents=True, exist_ok=True)
        if folder:
            staging.mkdir()
        yield staging
        for file in [staging] if not folder else [p for p in sorted(staging.rglob("*")) if p.is_file()]:
            _sync(file)
        if folder:
            _sync(staging)
            old = staging.with_name(staging.name + ".old")
            try:
                if path.exists() and overwrite and any(path.iterdir()):
                    path.rename(old)
                staging.rename(path)
            except BaseException:
                if old.exists() and not path.exists():
                    old.rename(path)
                raise
            if old.exists():
                shutil.rmtree(old)
        else:
            staging.replace(path)
        _sync(staging.parent)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"cannot write {path}: {error.strerror or error}. Nothing was changed.") from error
    finally:
        if staging.is_dir():
            shutil.rmtree(staging, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):  # a name too long for the file system, for example
                staging.unlink(missing_ok=True)
        for folder_made in made:  # those that hold nothing: the output did not come to be
            with contextlib.suppress(OSError):
                folder_made.rmdir()


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _stream(
    node: Node, folder: Path, files: Mapping[str, Mapping[str, TensorSpec]], metadata: Mapping[str, str],
    progress: Callable[[int], None] | None, *, point: bool, strict: bool = True,
) -> None:  # fmt: skip
    """Compute every tensor of `files` and write it to its place."""
    summaries = summarise(node, progress=progress)
    whole = whole_tensors(node)
    cost = bytes_per_value([node])
    place: dict[str, tuple[int, int, TensorSpec]] = {}
    with contextlib.ExitStack() as stack:
        for file, spec in files.items():
            head, begins = layout(spec, metadata)
            fd = os.open(folder / file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            stack.callback(os.close, fd)
            size = len(head) + stored_bytes(spec)
            _reserve(fd, size)
            _write_all(fd, head, 0)
            place.update({name: (fd, begins[name], spec[name]) for name in spec})

        produce = producer(node, {n: s for n, (_, _, s) in place.items()}, summaries, point=point, strict=strict)

        def job(block: Block) -> int:
            fd, begin, _ = place[block.name]
            out = produce(block)
            _write_all(fd, out.view(np.uint8), begin + block.start * out.dtype.itemsize)
            return (block.stop - block.start) * cost.get(block.name, out.dtype.itemsize)

        for _, done in in_order(job, blocks(node, place, whole=whole)):
            if progress:
                progress(done)


def _reserve(fd: int, size: int) -> None:
    try:
        os.posix_fallocate(fd, 0, size)
    except AttributeError:  # not on macOS
        os.ftruncate(fd, size)
    except OSError as error:
        if error.errno in (95, 22):  # not supported by this file system
            os.ftruncate(fd, size)
        else:
            raise


def _write_all(fd: int, data: Any, at: int) -> None:
    view = memoryview(data)
    while len(view):
        done = os.pwrite(fd, view, at)
        view, at = view[done:], at + done


def _rewrite_metadata(path: Path, spec: Mapping[str, TensorSpec], metadata: dict[str, str]) -> None:
    """Put the final metadata, of the placeholder's length, in its place, so that no tensor moves."""
    with path.open("r+b") as f:
        old = 8 + int.from_bytes(f.read(8), "little")
        head, _ = layout(spec, metadata)
        assert len(head) == old, "the placeholder has the length of what replaces it"
        f.seek(0)
        f.write(head)


def _write_index(folder: Path, shards: Mapping[str, Mapping[str, TensorSpec]], spec: Mapping[str, TensorSpec]) -> None:
    index = {
        "metadata": {"total_size": stored_bytes(spec), "total_parameters": sum(s.size for s in spec.values())},
        "weight_map": {name: file for file, held in shards.items() for name in held},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _copy_side_files(node: Node, target: Path, *, dtype: str | None) -> None:
    """Config, tokenizer and the like, from the folder of the origin."""
    origin = root(node)
    folder = origin.source.folder if origin.source is not None else None
    if folder is None:
        return
    for name in SIDE_FILES:
        if (folder / name).is_file():
            (target / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(folder / name, target / name)
    if dtype:
        _tell_dtype(target / "config.json", dtype)


def _tell_dtype(config: Path, dtype: str) -> None:
    """Put the output's number format into a copied config: transformers would convert the weights back otherwise."""
    try:
        table = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # no config, or not ours to understand: it stays as it is
        return
    name = {v: k for k, v in LONG_NAMES.items()}[dtype]
    sections = [table, *(v for v in table.values() if isinstance(v, dict))] if isinstance(table, dict) else []
    found = [(section, key) for section in sections for key in ("dtype", "torch_dtype") if key in section]
    for section, key in found:
        section[key] = name
    if found:
        config.write_text(json.dumps(table, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _info(node: Node, hashes: Mapping[str, Mapping[str, str]], *, dtype: str | None) -> dict[str, Any]:
    """The recipe of an output: expression, inputs by file name with sha256 and fingerprint, versions. No paths."""
    names = source_names(node)
    inputs = {}
    for n in graph.walk(node):
        if n.source is not None:
            place = n.source.folder.name if n.source.folder else n.source.files[0].name if n.source.files else None
            inputs[names[n.key]] = {
                "read": place, "fingerprint": n.source.fingerprint, "sha256": dict(hashes.get(n.key, {})),
            }  # fmt: skip
    return {
        "schema_version": 1, "taskvec": __version__, "numpy": np.__version__,
        "expression": expression(node, names), "inputs": inputs, "dtype": dtype,
    }  # fmt: skip


def _placeholder(node: Node, *, dtype: str | None) -> str:
    """The recipe with empty hashes: these are known only after the data is written, and all have one length."""
    files = {n.key: {f.name: "0" * 64 for f in n.source.files} for n in graph.walk(node) if n.source is not None}
    return json.dumps(_info(node, files, dtype=dtype))


@contextlib.contextmanager
def _hashing(node: Node) -> Iterator[Callable[[], dict[str, dict[str, str]]]]:
    """sha256 of every input file, computed beside the main work; call the result to wait for it."""
    pool = ThreadPoolExecutor(1)
    files: dict[str, dict[str, Future[str]]] = {}
    for n in graph.walk(node):
        if n.source is not None:
            files[n.key] = {f.name: pool.submit(_sha256, f) for f in n.source.files}
    try:
        yield lambda: {k: {name: f.result() for name, f in v.items()} for k, v in files.items()}
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
