"""Running a graph: the only place that schedules. Passes for summaries, blocks, threads.

Memory is bounded by threads x blocks x streams, whatever the file size. Block borders and the order of every sum are
fixed, so one thread and eight give the same bits.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import NonFinite
from .device import CPU, Device
from .dtypes import DTYPES, all_finite, widen
from .factors import factors
from .gather import Block, gather
from .graph import ALIGN, AS_VECTOR, COMBINE, MOVE, READ, REBASE, RENAME, RESTRICT, STACK, Node, reads, walk

BLOCK = 1 << 18  # values; half a megabyte of bfloat16 a stream stays in cache
Values = Mapping[str, Any]  # summary key -> value (or {name: value} where the summary is per tensor)
Progress = Callable[[int], None]  # told of bytes read
ABSENT_IS_NONE = (COMBINE, MOVE)  # these skip an input without the name; other operations see zeros


def default_threads() -> int:
    return max(1, min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))


def keep_pages() -> None:
    """Make the C allocator reuse freed block buffers instead of returning them to the system after every block.

    glibc raises its thresholds when a large allocation is freed. Untouched, this one costs nothing; without it most of
    the time goes into page faults (3.2 of 5.2 CPU seconds on three 265 MB models).
    """
    np.empty(31 << 20, np.uint8)


def whole_tensors(node: Node) -> bool:
    """True if some operation below needs tensors uncut (a singular value decomposition, for example)."""
    return any(n.op.works_on == "tensor" for n in walk(node))


def blocks(node: Node, names: Iterable[str], *, whole: bool, block: int | None = None) -> Iterator[Block]:
    for name in names:
        size = node.spec[name].size
        step = max(1, size) if whole else block or BLOCK
        for start in range(0, max(1, size), step):
            yield Block(name, start, min(size, start + step))


@dataclass(frozen=True)
class _Frame:
    """What one block is computed with, and what has been computed of it."""

    summaries: Values
    device: Device = CPU
    found: dict[tuple[str, str], Any] = field(default_factory=dict)


def evaluate(node: Node, block: Block, summaries: Values, *, device: Device = CPU) -> np.ndarray | None:
    """The node's values in one block, in working precision; None where the node has no such name (a zero)."""
    with np.errstate(over="ignore", invalid="ignore"):  # whoever stores the result checks it
        values = _evaluate(node, block, _Frame(summaries, device))
    return None if values is None else device.down(values)


def _evaluate(node: Node, block: Block, frame: _Frame) -> Any:
    while node.expansion is not None:
        node = node.expansion
    if block.name not in node.spec:
        return None
    place = (node.key, block.name)
    if place not in frame.found:
        frame.found[place] = _compute(node, block, frame)
    return frame.found[place]


def _compute(node: Node, block: Block, frame: _Frame) -> Any:
    if node.op is READ:
        return frame.device.up(_read(node, block))
    if node.op is RENAME:
        return _evaluate(node.inputs[0], Block(node.params["old"][block.name], block.start, block.stop), frame)
    if node.op is STACK:
        i, old = node.params["old"][block.name]
        return _evaluate(node.inputs[i], Block(old, block.start, block.stop), frame)
    if node.op is ALIGN and block.name in node.params["rows"].tensors:
        return frame.device.up(gather(node, block, _parts(node, frame)))
    if node.op in (RESTRICT, REBASE, AS_VECTOR, ALIGN):
        return _evaluate(node.inputs[0], block, frame)
    if node.op.works_on == "tensor":
        return _whole(node, block, frame)
    arrays = [_evaluate(n, block, frame) for n in ordered(node, block.name)]
    if node.op not in ABSENT_IS_NONE and any(a is None for a in arrays):
        zeros = frame.device.up(np.zeros(block.stop - block.start, np.float32))
        arrays = [zeros if a is None else a for a in arrays]
    return node.op.fn(arrays, **_given(node, block, frame))


def _parts(node: Node, frame: _Frame) -> Callable[[Node, Block], np.ndarray | None]:
    """Any part of an input's tensor; one that can only be computed whole is so once, and cut."""
    uncut = {n.key for n in node.inputs if whole_tensors(n)}
    known: dict[tuple[str, str], np.ndarray | None] = {}

    def values(n: Node, part: Block) -> np.ndarray | None:
        if n.key not in uncut:
            return evaluate(n, part, frame.summaries, device=frame.device)
        place = (n.key, part.name)
        if place not in known:
            size = n.spec[part.name].size
            known[place] = evaluate(n, Block(part.name, 0, size), frame.summaries, device=frame.device)
        whole = known[place]
        return None if whole is None else whole[part.start : part.stop]

    return values


def _given(node: Node, block: Block, frame: _Frame) -> dict[str, Any]:
    params = {k: resolve(v, block.name, frame.summaries) for k, v in params_of(node, block.name).items()}
    if node.op.random:
        params["at"] = (block.name, block.start)
    return params


def _whole(node: Node, block: Block, frame: _Frame) -> Any:
    """An operation on uncut tensors, each in the shape it has (statistics beside the vectors may have another)."""
    own = node.spec[block.name].shape
    if node.op.factored is not None and len(own) == 2:
        pairs = [factors(n, block.name, own) for n in ordered(node, block.name)]
        if all(p is not None and all(np.isfinite(x).all() for x in p) for p in pairs):
            thin = node.op.factored(pairs, **_given(node, block, frame))
            if thin is not None:
                return frame.device.up(thin.reshape(-1))
    arrays = []
    for n in ordered(node, block.name):
        spec = n.spec.get(block.name)
        x = None if spec is None else _evaluate(n, Block(block.name, 0, spec.size), frame)
        shape = own if spec is None else spec.shape
        arrays.append((frame.device.up(np.zeros(math.prod(shape), np.float32)) if x is None else x).reshape(shape))
    return node.op.fn(arrays, **_given(node, block, frame)).reshape(-1)


def _read(node: Node, block: Block) -> np.ndarray:
    """The stored values of one block, all finite."""
    source = node.source
    assert source is not None
    stored = source.read(block.name, block.start, block.stop)
    if node.spec[block.name].is_float and not all_finite(stored):
        values = widen(stored)
        bad = np.flatnonzero(~np.isfinite(values))
        raise NonFinite(
            f"{source.label}: tensor {block.name!r} holds {len(bad)} non-finite values in entries {block.start:,} to "
            f"{block.stop:,} (the first is {values[bad[0]]} at {block.start + int(bad[0]):,}). An edit would spread them; "
            "repair the file, or leave that tensor out: restrict(vector, '~NAME')."
        )
    return stored


def _order(node: Node, name: str) -> list[int]:
    """The one order in which a symmetric operation sees its inputs: by what this tensor is, not by how it was named."""
    index = list(range(len(node.inputs)))
    if len(node.inputs) < 3 and node.op is COMBINE:  # two summands commute exactly
        return index
    if node.op is COMBINE or node.op.symmetric:
        digests = [n.digest_of(name) for n in node.inputs]
        if len(set(digests)) < len(digests):  # tensors that look alike where they are sampled: the models decide
            digests = [d + n.digest for d, n in zip(digests, node.inputs, strict=True)]
        return sorted(index, key=lambda i: digests[i])
    return index


def ordered(node: Node, name: str) -> list[Node]:
    return [node.inputs[i] for i in _order(node, name)]


def params_of(node: Node, name: str) -> Mapping[str, Any]:
    if node.op is COMBINE:
        c = node.params["coefficients"]
        return {"coefficients": tuple(c[i] for i in _order(node, name))}
    return node.params


def resolve(value: Any, name: str, summaries: Values) -> Any:
    if not isinstance(value, Node):
        return value
    known = summaries[value.key]
    return known[name] if value.per == "tensor" else known


def levels(*roots: Node) -> list[list[Node]]:
    """The summaries below the roots, grouped so that each group needs only earlier groups: one pass a group."""
    depth: dict[str, int] = {}
    groups: dict[int, list[Node]] = {}
    for root in roots:
        for node in walk(root):
            if node.key in depth:
                continue
            below = max((depth[n.key] for n in node.below()), default=0)
            depth[node.key] = below + (node.op.gives == "summary")
            if node.op.gives == "summary":
                groups.setdefault(depth[node.key], []).append(node)
    return [groups[d] for d in sorted(groups)]


def summarise(
    *roots: Node, threads: int | None = None, progress: Progress | None = None, finished: bool = True
) -> dict[str, Any]:
    """Run all passes the roots need; returns summary key -> value (for the roots, the bare sum if not `finished`)."""
    from .fused import Fused, wanted  # which sees this module

    values: dict[str, Any] = {}
    bare = set() if finished else {r.key for r in roots}

    def finished_value(node: Node, name: str, total: Any) -> Any:
        if node.key in bare or node.op.finish is None:
            return total
        return node.op.finish(total, **_named(node, name, values))

    for group in levels(*roots):
        totals: dict[str, dict[str, Any]] = {n.key: {} for n in group}
        by_key = {n.key: n for n in group}
        whole = any(whole_tensors(n) for n in group)
        spec = {name: s for node in group for i in node.inputs for name, s in i.spec.items()}
        cost = bytes_per_value(group)
        carrier = Node(group[0].op, (), spec)
        fast = Fused(group) if wanted(sum(cost.get(n, 0) * s.size for n, s in spec.items())) else None

        def partials(block: Block, group: list[Node] = group, fast: Fused | None = fast) -> dict[str, Any]:
            quick = fast.run(block, values) if fast else None
            if quick is not None:
                return quick
            frame = _Frame(values)
            used = [n for n in group if any(block.name in i.spec for i in n.inputs)]
            with np.errstate(over="ignore", invalid="ignore"):  # whoever stores the result checks it
                return {n.key: _compute(n, block, frame) for n in used}

        # Names are taken in sorted order and results in order of blocks: floating-point sums then never depend on
        # the order of the file or on which thread finished first.
        jobs = blocks(carrier, sorted(spec), whole=whole)
        for block, partial in in_order(partials, jobs, threads=threads):
            for key, value in partial.items():
                slot = totals[key]
                name = block.name if by_key[key].per == "tensor" else ""
                slot[name] = slot[name] + value if name in slot else value
                if name and block.stop >= spec[name].size:  # at once: a histogram for each tensor would fill memory
                    values.setdefault(key, {})[name] = finished_value(by_key[key], name, slot.pop(name))
            if progress:
                progress((block.stop - block.start) * cost.get(block.name, 0))
        for key, counts in fast.histograms().items() if fast else ():
            totals[key][""] = totals[key][""] + counts if "" in totals[key] else counts
        for node in group:
            if node.per == "tensor":
                values.setdefault(node.key, {})
            elif totals[node.key]:
                values[node.key] = finished_value(node, "", totals[node.key][""])
            else:  # no tensor at all
                nothing = node.op.fn([np.zeros(0, np.float32)] * len(node.inputs), **_named(node, "", values))
                values[node.key] = finished_value(node, "", nothing)
    return values


def _named(node: Node, name: str, values: Values) -> dict[str, Any]:
    return {k: resolve(v, name, values) for k, v in node.params.items()}


def bytes_per_value(roots: Iterable[Node]) -> dict[str, int]:
    """For each name, the bytes that one value of it costs to read in one pass over the roots."""
    cost: dict[str, int] = {}
    for node in {r.key: r for root in roots for r in reads(root)}.values():
        for name, spec in node.spec.items():
            cost[name] = cost.get(name, 0) + DTYPES[spec.dtype].itemsize
    return cost


def in_order(
    fn: Callable[[Block], Any], jobs: Iterable[Block], *, threads: int | None = None
) -> Iterator[tuple[Block, Any]]:
    """Run `fn` over the jobs on threads (NumPy and file calls release the interpreter lock); yield in the order of the jobs.

    At most two jobs a thread are under way, so memory stays bounded.
    """
    threads = threads or default_threads()
    keep_pages()
    if threads == 1:
        for job in jobs:
            yield job, fn(job)
        return
    waiting: deque[tuple[Block, Future[Any]]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for job in jobs:
            waiting.append((job, pool.submit(fn, job)))
            if len(waiting) >= 2 * threads:
                done, future = waiting.popleft()
                yield done, future.result()
        while waiting:
            done, future = waiting.popleft()
            yield done, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
