"""Writing: header first, blocks streamed to their places, one rename at the end.

What an output will be is known before any work (`Output`); `staging` keeps it out of sight until it is whole, and
remembers how much of it is safe on disk, so that a run that was killed can be continued.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from .. import __version__
from ..errors import InputError
from . import graph
from .card import CARD, MARK, model_card
from .dtypes import TensorSpec
from .execute import Block, blocks, bytes_per_value, in_order, summarise, whole_tensors
from .graph import Node
from .hashes import hashing
from .names import stored_bytes
from .output import INFO, Output, check_output, recipe_of, side_files, sources, with_derived
from .produce import producer
from .safetensors import layout
from .staging import Staging, staged, sweep

CHECKPOINT = 1_000_000_000  # bytes after which what is written is synced and noted in the journal


def write(
    output: Output,
    *,
    overwrite: bool = False,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Compute an output and put it in its place; what an earlier, interrupted run of the same output finished is kept.

    Raises:
        StorageError: the output exists or is being written, or the disk is too small or fails.
        NonFinite: an input or a result holds NaN or infinity.
    """
    sweep(output.path)
    check_output(output.path, output.node, stored_bytes(output.spec), overwrite=overwrite)
    for source in sources(output.node):
        source.fetch()
    output = with_derived(output)
    files = [f for source in sources(output.node) for f in source.files]
    begun = _stats(files)
    with (
        hashing(files) as hashes,
        staged(output.path, folder=not output.single, plan=_plan(output), overwrite=overwrite) as work,
    ):
        metadata = dict(output.metadata)
        if output.single:  # the recipe goes into the header, whose length must be known before the hashes are
            metadata["taskvec"] = json.dumps(recipe_of(output, dict.fromkeys(files, "0" * 64)))
        _stream(output, work, metadata, progress, threads)
        info = recipe_of(output, hashes())
        changed = [f for f, a, b in zip(files, begun, _stats(files), strict=True) if a != b]
        if changed:
            raise InputError(f"{changed[0]} was changed while it was read. Run again when nothing writes to it.")
        if output.single:
            _rewrite_metadata(work.out, output.spec, {**metadata, "taskvec": json.dumps(info)})
        else:
            if len(output.files) > 1:
                _write_index(work.out, output.files, output.spec)
            beside = {**side_files(output.node, dtype=output.dtype), **output.beside}
            for name, content in beside.items():
                (work.out / name).parent.mkdir(exist_ok=True)
                (work.out / name).write_bytes(content)
            _write_card(output, work.out, info, beside)
            (work.out / INFO).write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")
    return output.path


def _write_card(output: Output, out: Path, info: Mapping[str, Any], beside: Mapping[str, bytes]) -> None:
    """The model card; one that someone wrote into the folder that is replaced is kept."""
    old = output.path / CARD
    kept = old.read_text(encoding="utf-8", errors="replace") if old.is_file() else MARK
    if MARK not in kept:
        (out / CARD).write_bytes(old.read_bytes())
    elif output.card:
        text = model_card(output.node, info, beside, beside.get("config.json"))
        (out / CARD).write_text(text, encoding="utf-8")


def _plan(output: Output) -> str | None:
    """A digest of all that decides the output's bytes; None if arrays in memory do, which a later run cannot have."""
    inputs = sources(output.node)
    if not all(source.files for source in inputs):
        return None
    layouts = [(file, [(n, str(s)) for n, s in held.items()]) for file, held in output.files.items()]
    said = [
        __version__, output.node.digest, layouts, sorted(output.metadata.items()), output.point, output.strict,
        output.device.name, output.device.block, sorted(output.beside.items()), output.card,
        [(size, changed) for source in inputs for _, size, changed in _stats(source.files)],
    ]  # fmt: skip
    return hashlib.blake2b(repr(said).encode(), digest_size=16).hexdigest()


def _stats(files: Iterable[Path]) -> list[tuple[int, int, int]]:
    """Inode, size and time of change of each file."""
    try:
        found = [f.stat() for f in files]
    except OSError as error:
        raise InputError(f"the input {error.filename} vanished: {error.strerror}.") from error
    return [(s.st_ino, s.st_size, s.st_mtime_ns) for s in found]


def _stream(
    output: Output, work: Staging, metadata: Mapping[str, str], progress: Callable[[int], None] | None,
    threads: int | None,
) -> None:  # fmt: skip
    """Compute every tensor and write it to its place, from the first block that is not yet safe on disk."""
    node = output.node
    begins, files = {}, {}
    for file, spec in output.files.items():
        head, at = layout(spec, metadata)
        begins |= at
        files |= dict.fromkeys(spec, file)
        work.done = _prepare(output.place(work.out, file), head, len(head) + stored_bytes(spec), work.done)
    cost = bytes_per_value([node])

    def read_for(block: Block) -> int:
        return (block.stop - block.start) * cost.get(block.name, 1)

    summaries = _summaries(node, work, progress, threads)
    jobs = list(blocks(node, begins, whole=whole_tensors(node), block=output.device.block))
    work.done = work.done if work.done <= len(jobs) else 0
    for block in jobs[: work.done]:
        if progress:
            progress(read_for(block))
    produce = producer(output, summaries)
    written, done, dirty = 0, work.done, set()
    with _open_files(output, work.out) as (opened, close), _recorder(output, work) as record:

        def job(block: Block) -> int:
            out = produce(block)
            _write_all(
                opened(files[block.name]), out.view(np.uint8), begins[block.name] + block.start * out.dtype.itemsize
            )
            return out.nbytes

        last = {file: list(spec)[-1] for file, spec in output.files.items() if spec}
        for block, size in in_order(job, jobs[work.done :], threads=threads):
            file = files[block.name]
            written, done = written + size, done + 1
            dirty.add(file)
            ended = last[file] == block.name and block.stop == node.spec[block.name].size
            if ended:
                close(file)
            if (ended and len(output.files) > 1) or written >= CHECKPOINT:
                record(frozenset(dirty), done)
                written, dirty = 0, set()
            if progress:
                progress(read_for(block))


def _summaries(
    node: Node, work: Staging, progress: Callable[[int], None] | None, threads: int | None
) -> Mapping[str, Any]:
    """The values of all passes, from the journal if an earlier run noted them."""
    wanted = [n for n in graph.walk(node) if n.op.gives == "summary"]
    if wanted and all(n.digest in work.summaries for n in wanted):
        return {n.key: work.summaries[n.digest] for n in wanted}
    values = summarise(node, progress=progress, threads=threads)
    if wanted and work.plan is not None:
        with contextlib.suppress(TypeError):  # a summary that JSON cannot hold is computed again
            found = {n.digest: values[n.key] for n in wanted}
            json.dumps(found)
            work.summaries = found
            work.record(0)
    return values


def _prepare(path: Path, head: bytes, size: int, done: int) -> int:
    """Make a file of the output with its header and all its room; 0 if it was not there to be continued, else `done`."""
    kept = path.exists() and path.stat().st_size == size
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        if not kept:
            _reserve(fd, size)
        _write_all(fd, head, 0)
    finally:
        os.close(fd)
    return done if kept else 0


@contextlib.contextmanager
def _open_files(output: Output, out: Path) -> Iterator[tuple[Callable[[str], int], Callable[[str], None]]]:
    """Files of the output, opened on first use: there may be more of them than a process may hold open."""
    held: dict[str, int] = {}
    lock = Lock()

    def opened(file: str) -> int:
        with lock:
            if file not in held:
                held[file] = os.open(output.place(out, file), os.O_RDWR | os.O_CLOEXEC)
            return held[file]

    def close(file: str) -> None:
        with lock:
            os.close(held.pop(file))

    try:
        yield opened, close
    finally:
        for file in list(held):
            close(file)


@contextlib.contextmanager
def _recorder(output: Output, work: Staging) -> Iterator[Callable[[frozenset[str], int], None]]:
    """Sync files and note progress in the journal on a thread of its own, while the next blocks are computed."""
    pool = ThreadPoolExecutor(1)
    waiting: list[Future[None]] = []

    def sync(files: frozenset[str], done: int) -> None:
        for file in sorted(files):
            fd = os.open(output.place(work.out, file), os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        work.record(done)

    def record(files: frozenset[str], done: int) -> None:
        if work.plan is not None:
            while waiting:  # one at a time; its error, if it had one, stops the run
                waiting.pop().result()
            waiting.append(pool.submit(sync, files, done))

    try:
        yield record
        while waiting:
            waiting.pop().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


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
