"""What an output will be, known before any of it is computed: its files, what lies beside them, and what is refused."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .. import __version__
from ..address import is_address
from ..errors import StorageError, TaskvecError, UsageError, plain, raise_all
from . import graph
from .algebra import BASE_KEY, FORWARD_KEY, PARTIAL_KEY, VECTOR_KIND, Checkpoint, TaskVector
from .device import CPU, Device
from .device import device as named
from .dtypes import LONG_NAMES, TensorSpec, parse_dtype
from .graph import Node
from .lineage import root
from .source import OPEN_CLIP, Source
from .staging import held_bytes
from .text import expression, size_text, source_names
from .vocabulary import TOKENIZER_FILES

SHARD_SIZE = 5_000_000_000
INFO = "taskvec.json"


LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")  # how configs call the number of layers


@dataclass(frozen=True)
class Output:
    """What an output will be, known before any of it is computed.

    Args:
        path: where it will be.
        node: what is computed.
        files: file name -> its tensors in their stored formats; one file named "" for an output that is a file itself.
        metadata: what the headers carry.
        point: a checkpoint, else a task vector.
        dtype: the format asked for, if one was.
        strict: refuse NaN and infinity also in tensors that are only copied.
        device: where it is computed.
        beside: further files of a folder, name -> content; they stand in for the origin's of that name.
        card: write a model card (README.md) into the folder, unless one that is not ours is there.
    """

    path: Path
    node: Node
    files: Mapping[str, Mapping[str, TensorSpec]]
    metadata: Mapping[str, str]
    point: bool
    dtype: str | None = None
    strict: bool = True
    device: Device = CPU
    beside: Mapping[str, bytes] = field(default_factory=dict)
    card: bool = False

    @property
    def single(self) -> bool:
        return "" in self.files

    @property
    def spec(self) -> dict[str, TensorSpec]:
        return {name: tensor for held in self.files.values() for name, tensor in held.items()}

    def place(self, out: Path, file: str) -> Path:
        return out / file if file else out


def checkpoint_output(
    point: Checkpoint, path: Path, *, dtype: str | None = None, shard_size: int | None = None,
    on_nonfinite: Literal["error", "allow"] = "error", device: str | None = None,
    beside: Mapping[str, bytes] | None = None, card: bool = False,
) -> Output:  # fmt: skip
    """The output that `Checkpoint.save` would write.

    Raises:
        UsageError: a format, size or kind of file that cannot be written.
    """
    target = parse_dtype(dtype) if dtype else None
    spec = {n: TensorSpec(target if target and s.is_float else s.dtype, s.shape) for n, s in point.spec.items()}
    if path.suffix in (".pt", ".pth", ".bin", ".ckpt"):
        raise UsageError(
            f"cannot write {plain(path)}: pickles are read but not written. Name a folder or a .safetensors file."
        )
    files = (
        {"": spec}
        if path.suffix == ".safetensors"
        else plan_shards(spec, SHARD_SIZE if shard_size is None else shard_size, whole=_whole_name(point.node))
    )
    strict = on_nonfinite == "error"
    return Output(path, point.node, files, {"format": "pt"}, True, target, strict, named(device), beside or {}, card)


def vector_output(vector: TaskVector, path: Path, *, device: str | None = None) -> Output:
    """The output that `TaskVector.save` would write.

    Raises:
        UsageError: the name is not that of a .safetensors file.
    """
    if path.suffix != ".safetensors":
        raise UsageError(
            f"cannot write the task vector {plain(path)}: a vector is one file whose name ends in .safetensors."
        )
    spec = {n: TensorSpec("F64" if s.dtype == "F64" else "F32", s.shape) for n, s in vector.spec.items()}
    metadata = {"format": "pt", VECTOR_KIND: "vector", "taskvec.base_label": vector.base.label}
    if vector.base.fingerprint:
        metadata[BASE_KEY] = vector.base.fingerprint
    if vector.partial:
        metadata[PARTIAL_KEY] = "true"
    if vector.forward != "plain":
        metadata[FORWARD_KEY] = vector.forward
    return Output(path, vector.node, {"": spec}, metadata, False, device=named(device))


def _whole_name(node: Node) -> str:
    """How the file of a folder that is not in shards is called: open_clip looks for its own name on the hub."""
    source = root(node).source
    return OPEN_CLIP if source is not None and source.file_names == (OPEN_CLIP,) else "model.safetensors"


def plan_shards(
    spec: Mapping[str, TensorSpec], shard_size: int, *, whole: str = "model.safetensors"
) -> dict[str, dict[str, TensorSpec]]:
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
        return {whole: groups[0]}
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": g for i, g in enumerate(groups, 1)}


def check_output(path: Path, node: Node, need: int, *, overwrite: bool) -> None:
    """Refuse, before any work, an output that is an input, exists, cannot be made or does not fit the disk; all at once.

    Raises:
        UsageError: it would write into an input.  StorageError: it exists, or the disk or its permissions forbid it.
    """
    raise_all(list(_obstacles(path, node, need, overwrite=overwrite)))


def _obstacles(path: Path, node: Node, need: int, *, overwrite: bool) -> Iterator[TaskvecError]:
    if is_address(path):
        yield UsageError("the output is an address on the hub: write to a folder, then `taskvec push` it.")
        return
    parent = path.absolute().parent
    for source in {id(s): s for s in sources(node)}.values():
        if path.exists() and any(path.samefile(f) or path.samefile(f.parent) for f in source.files):
            yield UsageError(
                f"the output {plain(path)} is an input ({source.label}); inputs are never written. Name another output."
            )
            return
        if source.folder is not None and source.folder.resolve() in (parent.resolve() / path.name).parents:
            yield UsageError(
                f"the output {plain(path)} lies in the input folder {source.folder}; inputs are never written to. "
                "Name another output."
            )
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        if not overwrite:
            yield StorageError(
                f"the output {plain(path)} exists. Use --overwrite (overwrite=True) to replace it, or name another."
            )
        elif path.is_dir() and not (path / INFO).exists():
            yield StorageError(
                f"the folder {plain(path)} was not written by taskvec (it has no {INFO}) and is not replaced. Name another."
            )
        elif path.is_dir() == (path.suffix == ".safetensors"):
            yield StorageError(
                f"{plain(path)} is {'a folder' if path.is_dir() else 'a file'}; the output would be the other kind. Name another."
            )
    existing = next(p for p in (parent, *parent.parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        yield StorageError(f"cannot write {plain(path)}: {existing} is not a folder that can be written to.")
        return
    free = shutil.disk_usage(existing).free + held_bytes(path)
    if free < need:
        yield StorageError(
            f"cannot write {plain(path)}: it needs {size_text(need)}, the disk has {size_text(free)} free."
        )


def sources(node: Node) -> list[Source]:
    return [n.source for n in graph.walk(node) if n.source is not None]


def side_files(node: Node, *, dtype: str | None) -> dict[str, bytes]:
    """Config, tokenizer and the like, from the folder of the origin, as the output will hold them."""
    found = _beside(root(node))
    if dtype and "config.json" in found:
        found["config.json"] = _tell_dtype(found["config.json"], dtype)
    return found


def with_derived(output: Output) -> Output:
    """The output with the files that stand in for config and tokenizer where its origin is of a format without them."""
    origin = root(output.node)
    while origin.op is graph.STACK:
        origin = root(origin.inputs[0])
    if output.single or origin.source is None:
        return output
    found = {n: content for n, content in origin.source.derived().items() if n not in output.beside}
    if output.dtype and "config.json" in found:
        found["config.json"] = _tell_dtype(found["config.json"], output.dtype)
    return replace(output, beside={**found, **output.beside})


def _beside(origin: Node) -> dict[str, bytes]:
    """What lies beside a file, changed as its layers were stacked and its rows aligned."""
    if origin.op is graph.STACK:
        found = _beside(root(origin.inputs[0]))
        if "config.json" in found:
            found["config.json"] = _tell_layers(found["config.json"], origin)
        return found
    if origin.op is graph.ALIGN:
        from .tokenizer_files import tell_vocabulary, tokenizer_files  # which need the algebra

        found = {n: c for n, c in _beside(root(origin.inputs[0])).items() if n not in TOKENIZER_FILES}
        found |= tokenizer_files(origin)
        tell_vocabulary(found, origin)
        return found
    return origin.source.beside() if origin.source is not None else {}


def _tell_layers(config: bytes, stacked: Node) -> bytes:
    """Put the number of layers into a copied config, and into its lists with an entry for each layer."""
    try:
        table = json.loads(config)
    except (ValueError, RecursionError):
        return config
    key = next((k for k in LAYER_KEYS if isinstance(table, dict) and isinstance(table.get(k), int)), None)
    if key is None:
        return config
    pieces = [(first, last) for _, first, last in stacked.params["pieces"]]
    for name, value in table.items():
        if name == "layer_types" and isinstance(value, list) and len(value) == table[key]:
            table[name] = [v for first, last in pieces for v in value[first:last]]
    table[key] = sum(last - first for first, last in pieces)
    return (json.dumps(table, indent=2, ensure_ascii=False) + "\n").encode()


def _tell_dtype(config: bytes, dtype: str) -> bytes:
    """Put the output's number format into a copied config: transformers would convert the weights back otherwise."""
    try:
        table = json.loads(config)
    except (ValueError, RecursionError):  # not ours to understand: it stays as it is
        return config
    name = {v: k for k, v in LONG_NAMES.items()}[dtype]
    sections = [table, *(v for v in table.values() if isinstance(v, dict))] if isinstance(table, dict) else []
    found = [(section, key) for section in sections for key in ("dtype", "torch_dtype") if key in section]
    for section, key in found:
        section[key] = name
    return (json.dumps(table, indent=2, ensure_ascii=False) + "\n").encode() if found else config


def recipe_of(output: Output, hashes: Mapping[Path, str]) -> dict[str, Any]:
    """The recipe of an output: expression, inputs with sha256 and fingerprint, versions. No absolute paths."""
    names = source_names(output.node)
    inputs = {
        names[n.key]: {
            "read": _said_place(n.source, output.path),
            "fingerprint": n.source.fingerprint,
            "sha256": {f.name: hashes[f] for f in n.source.files},
        }
        for n in graph.walk(output.node)
        if n.source is not None
    }
    info = {
        "schema_version": 1, "taskvec": __version__, "numpy": np.__version__,
        "expression": expression(output.node, names), "inputs": inputs, "dtype": output.dtype,
    }  # fmt: skip
    if not output.strict:
        info["on_nonfinite"] = "allow"
    if output.device is not CPU:
        info["device"] = output.device.name
    if output.beside and not output.single:
        info["beside"] = {n: hashlib.sha256(content).hexdigest() for n, content in output.beside.items()}
    return info


def _said_place(source: Source, target: Path) -> str | None:
    """Where an input lies: its address on the hub, else seen from the folder of the output if it is below that, else its
    bare name."""
    if source.origin is not None:
        return source.origin
    place = source.folder or (source.files[0] if source.files else None)
    if place is None:
        return None
    with contextlib.suppress(ValueError, OSError):
        return place.resolve().relative_to(target.absolute().parent.resolve()).as_posix()
    return place.name
