"""What one pass over the files costs: bytes, time, memory.

Time and memory are estimates. Their constants were fitted by hand to the CPU time and the peak resident memory of whole
`taskvec edit` runs (a copy, one vector, task arithmetic, TIES and DARE of three, slerp of two; TASKVEC_FAST=0 and 1) on
Llama-shaped bfloat16 checkpoints of 265 MB in the page cache, on two cores of an x86-64 server. Other machines differ,
easily by a factor of two; on these runs the memory was within 15 %.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from . import graph
from .dtypes import TensorSpec
from .execute import BLOCK, whole_tensors
from .factors import rank
from .fused import wanted as compiles
from .graph import Node, walk
from .summaries import COUNTED_BIN, COUNTED_CUT, HIGH_BINS, KTH_MAGNITUDE, MAGNITUDE_BIN


@dataclass(frozen=True)
class Costs:
    """Nanoseconds of one core for one value of one operand (`*_byte`: for one byte)."""

    read: float  # to float32, checked for NaN
    read_byte: float  # copied from the page cache
    write: float  # rounded, checked
    write_byte: float  # copied to the page cache
    term: float  # an operand of + - *
    step: float  # an operand of a step of a method
    random: float  # of one that draws random numbers
    product: float  # of a sum over all values (norm, inner product)
    histogram: float
    matrix: float = (
        0.1  # a multiply-add of matrices in float64: NumPy with OpenBLAS on one thread, 0.04 to 0.17 measured
    )


HISTOGRAMS = (MAGNITUDE_BIN, KTH_MAGNITUDE, COUNTED_BIN, COUNTED_CUT)
NUMPY = Costs(
    read=0.3, read_byte=0.1, write=1.35, write_byte=0.3, term=0.23, step=0.75, random=3.0, product=0.4, histogram=1.8
)
FUSED = Costs(
    read=0.3, read_byte=0.1, write=0.6, write_byte=0.3, term=0.02, step=0.1, random=1.8, product=0.05, histogram=0.25
)
START_SECONDS = 0.22  # interpreter, imports, headers, renaming the output into place
COMPILE_SECONDS = 0.05  # each fused pass: 10 to 20 ms a loop, and the import of the compiler once
INTERPRETER_BYTES, COMPILER_BYTES = 44_000_000, 70_000_000  # before any tensor is read
HASH_BYTES = 1.5e9  # sha256 a second
DISK_BYTES = 1e9  # a second, for the figure "from a disk that reads 1 GB/s"


@dataclass(frozen=True)
class Pass:
    """One reading of the files: its bytes, one core's time, and whether it would be compiled."""

    read: int
    nanoseconds: float
    fused: bool


def one_pass(group: list[Node]) -> Pass:
    """What `evaluate` visits for a group of nodes, each node once."""
    wanted: set[str] = set()
    for node in group:
        wanted.update(*(i.spec for i in node.inputs)) if node.op.gives == "summary" else wanted.update(node.spec)
    old: set[str] = set()
    counted: dict[int, int] = {}  # by identity: most nodes share their table of tensors with others
    seen: set[str] = set()
    count: dict[str, float] = dict.fromkeys((f.name for f in fields(Costs)), 0)

    def values(spec: Mapping[str, TensorSpec]) -> int:
        if id(spec) not in counted:
            counted[id(spec)] = sum(s.size for n, s in spec.items() if n in wanted or n in old)
        return counted[id(spec)]

    def visit(n: Node) -> None:
        n = n.expansion or n
        if n.key in seen:
            return
        seen.add(n.key)
        if n.op is graph.RENAME:  # counted under either name
            old.update(o for new, o in n.params["old"].items() if new in wanted)
        if n.op is graph.STACK:
            old.update(o for new, (_, o) in n.params["old"].items() if new in wanted)
        if n.op is graph.READ:
            count["read_byte"] += sum(s.nbytes for name, s in n.spec.items() if name in wanted or name in old)
            count["read"] += values(n.spec)
        elif n.op in (graph.RESTRICT, graph.RENAME, graph.REBASE, graph.AS_VECTOR, graph.ALIGN):
            visit(n.inputs[0])
        elif n.op is graph.STACK:
            for m in n.inputs:
                visit(m)
        else:
            for m in n.inputs:
                visit(m)
            count[_kind(n)] += sum(values(m.spec) for m in n.inputs)
            if n.op.work is not None:
                for name in wanted.intersection(n.spec):
                    ranks = [rank(m, name) for m in n.inputs]
                    count["matrix"] += n.op.work(n.spec[name].shape, ranks, **n.params)

    for node in group:
        visit(node)
    fused = compiles(int(count["read_byte"])) and count["read_byte"] > 0
    costs = FUSED if fused else NUMPY
    return Pass(int(count["read_byte"]), sum(n * getattr(costs, kind) for kind, n in count.items()), fused)


def _kind(node: Node) -> str:
    """The field of `Costs` that an operation's operands cost."""
    if node.op.gives == "summary":
        return "histogram" if node.op in HISTOGRAMS else "product"
    if node.op.random:
        return "random"
    return "term" if node.op in (graph.DIFFERENCE, graph.COMBINE, graph.MOVE) else "step"


def peak_memory(node: Node, threads: int, *, compiled: bool) -> int:
    """The interpreter, and for each thread the blocks of one evaluation and the histograms of two results under way."""
    largest = max((s.size for s in node.spec.values()), default=0)
    whole = whole_tensors(node)
    block = largest if whole else min(BLOCK, largest)
    width = whole or (max(s.dtype == "F64" for s in node.spec.values()) if node.spec else False)  # decompositions widen
    nodes = list(walk(node))
    histograms = sum(n.op in HISTOGRAMS for n in nodes)
    fixed = INTERPRETER_BYTES + (COMPILER_BYTES if compiled else 0)
    return fixed + threads * (block * (8 if width else 4) * (len(nodes) + 1) + histograms * 2 * HIGH_BINS * 8)
