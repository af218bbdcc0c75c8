"""Verifying an output: its recorded recipe is computed again and every byte compared. Nothing is written."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .address import is_address, parse_address
from .errors import InputError, NotACheckpoint, UnknownName, UsageError, nearest, some
from .recipe import parse
from .weights import Checkpoint, TaskVector, open_weights
from .weights.execute import Block, blocks, bytes_per_value, in_order, summarise, whole_tensors
from .weights.hashes import sha256
from .weights.output import INFO, Output, checkpoint_output, side_files, sources, vector_output
from .weights.produce import producer
from .weights.remote import local
from .weights.source import Source, open_source, readable

RECORDED = {"schema_version", "taskvec", "numpy", "expression", "inputs", "dtype", "on_nonfinite", "device", "beside"}

SHOWN = 20  # differing tensors that a person is shown


@dataclass(frozen=True)
class Difference:
    """A tensor of the output that is not what its recipe gives."""

    name: str
    values: int  # that differ, among those looked at
    first: int  # flat position of the first
    found: str
    expected: str

    def __str__(self) -> str:
        return (
            f"{self.name!r}: {self.values:,} values differ, the first at {self.first:,} "
            f"({self.found}, computed again {self.expected})"
        )


@dataclass(frozen=True)
class Verification:
    """What `verify` found. `problems` are differences other than of values: inputs, names, formats, files beside."""

    output: str
    expression: str
    tensors: int
    values: int  # looked at
    share: float  # of all values
    differences: tuple[Difference, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.differences and not self.problems

    def as_dict(self) -> dict[str, Any]:
        return {"ok": self.ok, **asdict(self)}

    def __str__(self) -> str:
        looked = "every byte" if self.share == 1 else f"{self.values:,} values ({100 * self.share:.1f} %)"
        if self.ok:
            return f"{self.output} is {self.expression}: {self.tensors} tensors, {looked} as computed again"
        lines = [f"{self.output} is not what its recipe gives: {self.expression}"]
        lines += [f"  {p}" for p in self.problems]
        lines += [f"  {d}" for d in self.differences[:SHOWN]]
        if len(self.differences) > SHOWN:
            lines.append(f"  and {len(self.differences) - SHOWN} more tensors of {self.tensors} (--json lists all)")
        return "\n".join(lines)


def verify(
    path: str | Path,
    *,
    inputs: Mapping[str, str | Path] | None = None,
    sample: float | None = None,
    threads: int | None = None,
    device: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Verification:
    """Compute an output's recorded recipe again and compare it with the output, byte by byte.

    Args:
        path: a checkpoint or task vector written by taskvec, or the address of one on the hub.
        inputs: where inputs are now, by the names of the recorded expression; else they are looked for at their recorded
            places, seen from the output's folder and from the current one.
        sample: compare only this share of the blocks of 256 K values, in (0, 1), chosen at random with a fixed seed,
            and the first of every tensor. The sha256 of inputs is then taken from the cache where a file is unchanged.
        threads: how many compute.
        device: where; see `Checkpoint.save`.
        progress: called with the bytes read since the last call.
    Raises:
        NotACheckpoint: not an output of taskvec.
        InputError: an input cannot be found.
    """
    said = str(parse_address(path)) if is_address(path) else str(path)
    path = local(parse_address(path)) if is_address(path) else Path(path)
    if sample is not None and not 0 < sample < 1:
        raise UsageError(f"verify: sample is {sample}; it is a share of the blocks and must lie between 0 and 1.")
    found = open_source(path, label=said)
    info = _recorded(path, found)
    problems: list[str] = []
    value = parse(info["expression"], _open_inputs(path, info["inputs"], inputs or {}))
    for name, recorded in info["inputs"].items():
        problems += _changed_input(name, recorded, value, fresh=sample is None)
    allow = "allow" if info.get("on_nonfinite") == "allow" else "error"
    if isinstance(value, Checkpoint):
        expected = checkpoint_output(value, path, dtype=info.get("dtype"), on_nonfinite=allow, device=device)
    else:
        expected = vector_output(value, path, device=device)
    spec = expected.spec
    problems += _changed_table(spec, found)
    if path.is_dir():
        problems += _changed_files(path, expected, info.get("beside", {}))
    shared = {n: s for n, s in spec.items() if found.spec.get(n) == s}
    differences, values = _compare(expected, found, list(shared), sample, threads, progress)
    share = values / max(1, sum(s.size for s in shared.values())) if shared else 1.0
    return Verification(
        said,
        info["expression"],
        len(spec),
        values,
        share,
        differences,
        tuple(problems),
        _notes(info, expected.device.name),
    )


def unsound(path: str | Path) -> list[str]:
    """What is wrong with an output, as far as it shows without its inputs: what `verify` would say first, in no time.

    Looked at are the recipe, the headers against the sizes of the files, the index against the shards, and the hashes of
    files that came from elsewhere. Values are not.
    """
    path = Path(path)
    try:
        found = open_source(path, label=str(path))
        info = _recorded(path, found)
    except InputError as error:
        return [str(error)]
    return _changed_beside(path, info.get("beside", {})) if path.is_dir() else []


def _recorded(path: Path, found: Source) -> dict[str, Any]:
    """The recipe that an output carries."""
    text: str | bytes | None = found.metadata.get("taskvec")
    if path.is_dir():
        text = (path / INFO).read_bytes() if (path / INFO).is_file() else None
    if text is None:
        raise NotACheckpoint(f"{path} carries no recipe ({INFO}, or metadata of the file): taskvec did not write it.")
    try:
        info = json.loads(text)
        version = info["schema_version"]
        inputs, dtype = info["inputs"], info["dtype"]
        sound = (
            version == 1
            and set(info) <= RECORDED
            and isinstance(info["expression"], str)
            and isinstance(dtype, str | None)
            and isinstance(info.get("beside", {}), dict)
        )
        sound = sound and all(
            isinstance(i["fingerprint"], str) and isinstance(i["sha256"], dict) and isinstance(i["read"], str | None)
            for i in inputs.values()
        )
        if sound:
            return info
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise NotACheckpoint(f"the recipe that {path} carries is damaged, or of a later version; it cannot be verified.")


def _open_inputs(
    path: Path, recorded: Mapping[str, Any], given: Mapping[str, str | Path]
) -> dict[str, Checkpoint | TaskVector]:
    unknown = [n for n in given if n not in recorded]
    if unknown:
        known = ", ".join(recorded)
        raise UnknownName(f"{path} has no input {unknown[0]!r}; its inputs are {known}.{nearest(unknown[0], recorded)}")
    opened: dict[str, Checkpoint | TaskVector] = {}
    missing: list[str] = []
    for name, entry in recorded.items():
        if name in given:
            opened[name] = open_weights(given[name], label=name)
            continue
        if is_address(entry["read"] or ""):  # with its commit
            opened[name] = open_weights(entry["read"], label=name)
            continue
        place = Path(entry["read"] or ".")
        inside = (
            not place.is_absolute() and ".." not in place.parts and place != Path()
        )  # what a recipe says is not trusted
        fitting = [p for p in (path.absolute().parent / place, Path.cwd() / place) if inside and readable(p)]
        if not fitting:
            missing.append(name)
            continue
        values = [open_weights(p, label=name) for p in dict.fromkeys(fitting)]
        same = [v for v in values if v.node.source is not None and v.node.source.fingerprint == entry["fingerprint"]]
        opened[name] = (same or values)[0]
    if missing:
        said = ", ".join(f"{n} ({recorded[n]['read'] or 'it was in memory'})" for n in missing)
        raise InputError(
            f"cannot find {said}, from which {path} was made. Say where: "
            + " ".join(f"--let {n}=PATH" for n in missing)
        )
    return opened


def _changed_input(name: str, recorded: Mapping[str, Any], value: Checkpoint | TaskVector, *, fresh: bool) -> list[str]:
    source = next((s for s in sources(value.node) if s.label == name), None)
    if source is None:  # an expression such as a - a, which reads nothing
        return []
    source.fetch()
    now = {f.name: sha256(f, fresh=fresh) for f in source.files}
    if not recorded["sha256"]:  # it was in memory: the fingerprint alone can tell
        now = {}
    changed = [f for f, digest in now.items() if digest not in recorded["sha256"].values()]
    said = [f"the input {name} changed: sha256 of {some(changed)} is not the recorded one"] if changed else []
    if not changed and source.fingerprint != recorded["fingerprint"]:
        said = [f"the input {name} is not the recorded one (fingerprint {source.fingerprint})"]
    return said


def _changed_table(spec: Mapping[str, Any], found: Source) -> list[str]:
    absent = [n for n in spec if n not in found.spec]
    extra = [n for n in found.spec if n not in spec]
    other = [n for n in spec if n in found.spec and found.spec[n] != spec[n]]
    said = [f"{len(absent)} tensors are missing: {some(absent)}"] if absent else []
    said += [f"{len(extra)} tensors do not belong there: {some(extra)}"] if extra else []
    said += [f"{n!r} is {found.spec[n]}, expected {spec[n]}" for n in other[:5]]
    return said + ([f"and {len(other) - 5} more differ in shape or format"] if len(other) > 5 else [])


def _changed_files(path: Path, expected: Output, beside: Mapping[str, str]) -> list[str]:
    said = []
    for name, content in side_files(expected.node, dtype=expected.dtype).items():
        place = path / name
        if name in beside:  # it came from elsewhere, and is known by its hash
            continue
        if not place.is_file():
            said.append(f"{name} is missing")
        elif place.read_bytes() != content:
            said.append(f"{name} is not the one of the origin")
    return said + _changed_beside(path, beside)


def _changed_beside(path: Path, beside: Mapping[str, str]) -> list[str]:
    said = []
    for name, digest in beside.items():
        inside = name not in ("", ".", "..") and not any(
            c in name for c in "/\\\0"
        )  # what a recipe says is not trusted
        if not inside or not (path / name).is_file():
            said.append(f"{name} is missing")
        elif sha256(path / name, fresh=True) != digest:
            said.append(f"{name} is not the recorded one")
    return said


def _compare(
    expected: Output,
    found: Source,
    names: list[str],
    sample: float | None,
    threads: int | None,
    progress: Callable[[int], None] | None,
) -> tuple[tuple[Difference, ...], int]:
    node = expected.node
    summaries = summarise(node, threads=threads, progress=progress)
    produce = producer(expected, summaries)

    def chosen() -> Iterator[Block]:
        draw = random.Random(0)
        for block in blocks(node, names, whole=whole_tensors(node), block=expected.device.block):
            if sample is None or block.start == 0 or draw.random() < sample:
                yield block

    def job(block: Block) -> Difference | None:
        want, got = produce(block), found.read(block.name, block.start, block.stop)
        size = max(1, want.dtype.itemsize)
        apart = (want.view(np.uint8) != got.view(np.uint8)).reshape(-1, size).any(axis=1)
        if not apart.any():
            return None
        at = int(np.argmax(apart))
        return Difference(block.name, int(apart.sum()), block.start + at, str(got[at]), str(want[at]))

    cost = bytes_per_value([node])
    table: dict[str, Difference] = {}
    values = 0
    for block, new in in_order(job, chosen(), threads=threads):
        values += block.stop - block.start
        if new is not None:
            old = table.get(block.name)
            table[block.name] = new if old is None else replace(old, values=old.values + new.values)
        if progress:
            progress((block.stop - block.start) * cost.get(block.name, 1))
    return tuple(table.values()), values


def _notes(info: Mapping[str, Any], device: str) -> tuple[str, ...]:
    from . import __version__

    made, there = info.get("taskvec"), info.get("device", "cpu")
    said = () if made == __version__ else (f"the output was made by taskvec {made}, verified by {__version__}.",)
    if there != device:
        said += (f"the output was computed on {there}, verified on {device}; decompositions may round differently.",)
    return said
