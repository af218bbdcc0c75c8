"""What computing and saving an expression takes, from headers alone: passes, bytes, memory, time, disk, and mistakes."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import TaskvecError, UsageError, collecting, raise_all, some
from . import graph
from .costs import COMPILE_SECONDS, DISK_BYTES, FUSED, HASH_BYTES, NUMPY, START_SECONDS, one_pass, peak_memory
from .dtypes import TensorSpec, parse_dtype
from .execute import default_threads, levels
from .graph import Node, walk
from .lineage import root
from .names import stored_bytes
from .text import Explanation, Match, OutputFacts, SourceFacts, expression, size_text, source_names

if TYPE_CHECKING:
    from .algebra import Checkpoint, TaskVector
    from .output import Output


def explain(
    value: Checkpoint | TaskVector, *, dtype: str | None = None, out: str | Path | None = None,
    shard_size: int | None = None, overwrite: bool = False, threads: int | None = None,
) -> Explanation:  # fmt: skip
    """Describe the work behind a checkpoint or task vector, and what saving it would do; reads headers only.

    Args:
        value: what would be computed.
        dtype: number format of the output's floating-point tensors, else each keeps its origin's.
        out: where it would be saved; then the files, the disk, and what stands in the way are looked at too.
        shard_size: bytes of a file of an output folder.
        overwrite: whether an existing output may be replaced.
        threads: how many would compute.
    Raises:
        UsageError, StorageError: the output cannot be as asked; all reasons in one error.
    """
    from .agreement import alignment_notes
    from .algebra import Checkpoint

    mistakes: list[TaskvecError] = []
    output = planned_output(
        value, mistakes, dtype=dtype, out=out, shard_size=shard_size, overwrite=overwrite
    )  # fmt: skip
    raise_all(mistakes)
    assert output is not None
    node = value.node
    stored = output.spec
    names = source_names(node)
    sources = {n.key: n for n in walk(node) if n.op is graph.READ}
    unchanged: list[str] = []
    if isinstance(value, Checkpoint):
        unchanged = [
            n for n, s in node.spec.items() if stored[n].dtype == s.dtype and graph.untouched(node, n) is not None
        ]
    conversions: dict[str, int] = {}
    for name, s in node.spec.items():
        if stored[name].dtype != s.dtype and isinstance(value, Checkpoint):
            said = f"{s.dtype} -> {stored[name].dtype}"
            conversions[said] = conversions.get(said, 0) + 1
    groups = levels(node)
    to_write = stored_bytes(stored)
    passes = [one_pass(group) for group in [*groups, [node]]]
    threads = threads or default_threads()
    costs = FUSED if passes[-1].fused else NUMPY
    busy = sum(p.nanoseconds for p in passes) + _values(stored) * costs.write + to_write * costs.write_byte
    fused = sum(p.fused for p in passes)
    seconds = START_SECONDS + COMPILE_SECONDS * fused + busy / 1e9 / threads
    held = sum(_bytes(n.spec) for n in sources.values() if n.source is not None and n.source.file_names)
    first = seconds + held / HASH_BYTES / threads + held / DISK_BYTES
    return Explanation(
        expression=expression(node, names),
        expansion=expression(node, names, expand=True),
        gives="checkpoint" if isinstance(value, Checkpoint) else "task vector",
        tensors=len(node.spec),
        unchanged=len(unchanged),
        sources=tuple(_facts(n, names[n.key]) for n in sources.values()),
        passes=len(passes),
        bytes_to_read=sum(p.read for p in passes),
        bytes_to_write=to_write,
        peak_memory=peak_memory(node, threads, compiled=fused > 0),
        notes=(*_notes(sources.values()), *alignment_notes(node)),
        unchanged_names=tuple(unchanged),
        conversions=conversions,
        matches=tuple(_matches(value, sources, names)),
        output=_output_facts(output, known=out is not None) if out is not None or shard_size else None,
        threads=threads,
        seconds=round(seconds, 2),
        seconds_first=round(first, 2),
    )


def planned_output(
    value: Checkpoint | TaskVector | None, mistakes: list[TaskvecError], *, dtype: str | None = None,
    out: str | Path | None = None, shard_size: int | None = None, overwrite: bool = False,
) -> Output | None:  # fmt: skip
    """The output that saving would write; what is wrong with its format or its place goes to the list of mistakes.

    Without a value (because the expression is wrong) the format and the place are still looked at.
    """
    from .algebra import Checkpoint
    from .output import check_output, checkpoint_output, vector_output

    path = Path(out) if out is not None else Path("out" if shard_size else "out.safetensors")
    output = None
    with collecting(mistakes):
        if isinstance(value, Checkpoint):
            output = checkpoint_output(value, path, dtype=dtype, shard_size=shard_size)
        elif value is not None and (dtype or shard_size):
            raise UsageError(
                "the result is a task vector, which is one float32 file: --dtype and --shard-size are for checkpoints."
            )
        elif value is not None:
            output = vector_output(value, path)
        elif dtype:
            parse_dtype(dtype)
    if out is not None:
        node = value.node if value is not None else graph.combine([], {})
        need = stored_bytes(output.spec if output is not None else node.spec)
        with collecting(mistakes):
            check_output(path, node, need, overwrite=overwrite)
    return output


def _output_facts(output: Output, *, known: bool) -> OutputFacts:
    """`known`: the place was named, so that its disk can be looked at."""
    parent = output.path.absolute().parent
    existing = next(p for p in (parent, *parent.parents) if p.exists())
    files = {file or output.path.name: stored_bytes(held) for file, held in output.files.items()}
    free = shutil.disk_usage(existing).free if known else None
    return OutputFacts(str(output.path) if known else "a folder", files, sum(files.values()), free)


def _facts(node: Node, name: str) -> SourceFacts:
    assert node.source is not None
    formats: dict[str, int] = {}
    for s in node.spec.values():
        formats[s.dtype] = formats.get(s.dtype, 0) + 1
    return SourceFacts(
        name,
        node.source.label,
        node.source.file_names,
        len(node.spec),
        _values(node.spec),
        stored_bytes(node.spec),
        formats,
    )


def _notes(sources: Iterable[Node]) -> Iterable[str]:
    for n in sources:
        if n.source is not None and n.source.missing:
            yield f"{n.source.label} is {n.source.origin}: {size_text(n.source.missing)} to fetch when it is computed"
        if n.source is not None and n.source.tied:
            said = some(f"{a} = {b}" for a, b in n.source.tied.items())
            yield f"{len(n.source.tied)} tied in {n.source.label}, kept once: {said}"


def _matches(value: Any, sources: Mapping[str, Node], names: Mapping[str, str]) -> Iterable[Match]:
    """Every other input against the checkpoint that the edit begins with."""
    origin = root(value.node)
    base = getattr(value, "base", None)
    if base is not None and base.node is not None:
        origin = root(base.node)
    if origin.key not in sources:
        return
    there = origin.spec
    renames = {root(n.inputs[0]).key: n.params["old"] for n in walk(value.node) if n.op is graph.RENAME}
    for key, source in sources.items():
        if key == origin.key:
            continue
        old = renames.get(key, {})
        taken = set(old.values())
        here = {n: source.spec[m] for n, m in old.items()} | {n: s for n, s in source.spec.items() if n not in taken}
        both = [n for n in here if n in there]
        shapes = tuple(n for n in both if here[n].shape != there[n].shape)
        yield Match(
            name=names[key],
            against=names[origin.key],
            same=len(both) - len(shapes),
            renamed=sum(n != m for n, m in old.items()),
            only_here=tuple(n for n in here if n not in there),
            only_there=tuple(n for n in there if n not in here),
            other_shape=shapes,
            other_format=sum(here[n].dtype != there[n].dtype for n in both),
        )


def _values(spec: Mapping[str, TensorSpec]) -> int:
    return sum(s.size for s in spec.values())


def _bytes(spec: Mapping[str, TensorSpec]) -> int:
    return sum(s.nbytes for s in spec.values())
