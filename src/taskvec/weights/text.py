"""From graph to text: the expression as a user would write it, and an account of what computing it takes."""

from __future__ import annotations

import glob
import keyword
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..errors import some
from . import graph
from .dtypes import DTYPES, TensorSpec, parse_dtype
from .execute import BLOCK, default_threads, levels, whole_tensors
from .graph import Node, reads, walk
from .names import stored_bytes

if TYPE_CHECKING:
    from .algebra import Checkpoint, TaskVector

INTERPRETER_BYTES = 40_000_000  # Python and NumPy before any tensor is read


def number(c: float) -> str:
    """The shortest text that reads back as the same number."""
    short = f"{c:g}"
    return short if float(short) == c else repr(c)


def source_names(node: Node) -> dict[str, str]:
    """Key of each file's node -> a distinct identifier made of its label, in order of first use."""
    names: dict[str, str] = {}
    for n in walk(node):
        if n.op is graph.READ and n.key not in names:
            assert n.source is not None
            word = re.sub(r"\W+", "_", n.source.label).strip("_") or "source"
            if word[0].isdigit() or keyword.iskeyword(word):
                word = f"_{word}"
            taken, i, unique = set(names.values()), 2, word
            while unique in taken:
                unique, i = f"{word}_{i}", i + 1
            names[n.key] = unique
    return names


def expression(node: Node, names: Mapping[str, str] | None = None, *, expand: bool = False) -> str:
    """The graph as an expression that parses back to the same graph; `expand` shows methods as their steps."""
    names = source_names(node) if names is None else names

    def text(n: Node) -> str:
        if n.op is graph.READ:
            return names[n.key]
        if expand and n.expansion is not None:
            return text(n.expansion)
        if n.op is graph.DIFFERENCE:
            return f"{operand(n.inputs[0])} - {operand(n.inputs[1])}"
        if n.op is graph.MOVE:
            return text(n.inputs[0]) + signed(n.inputs[1])
        if n.op is graph.COMBINE:
            said = signed(n).removeprefix(" + ") or nothing()
            return f"-{said[3:]}" if said.startswith(" - ") else said
        if n.op is graph.RESTRICT:
            chosen = list(n.params["patterns"] or map(glob.escape, n.spec))
            return f"restrict({text(n.inputs[0])}, {(chosen[0] if len(chosen) == 1 else chosen)!r})"
        if n.op is graph.REBASE:
            return f"rebase({text(n.inputs[0])}, {text(n.inputs[1])})"
        if n.op is graph.RENAME:
            return f"shared({text(n.inputs[0])}, {text(n.inputs[1])})"
        inner = ", ".join(text(i) for i in n.inputs)
        if n.expansion is not None:
            inner = f"[{inner}]"
        params = "".join(
            f", {k}={text(v) if isinstance(v, Node) else number(v) if isinstance(v, float) else repr(v)}"
            for k, v in n.params.items()
        )
        return f"{n.op.name}({inner}{params})"

    def nothing() -> str:
        """A sum without terms: zero times a vector at hand."""
        some = next((n for n in walk(node) if n.op is graph.DIFFERENCE), None)
        first = next(iter(names.values()), None)
        return f"0 * ({text(some)})" if some else f"{first} - {first}" if first else "0 * nothing"

    def operand(n: Node) -> str:
        return f"({text(n)})" if n.op in (graph.DIFFERENCE, graph.COMBINE, graph.MOVE) else text(n)

    def signed(vector: Node) -> str:
        out = ""
        for term, c in graph.terms(vector):
            factor = "" if abs(c) == 1 else f"{number(abs(c))} * "
            out += f" {'-' if c < 0 else '+'} {factor}{operand(term)}"
        return out

    return text(node)


@dataclass(frozen=True)
class SourceFacts:
    """One input as its headers describe it."""

    name: str
    label: str
    files: tuple[str, ...]
    tensors: int
    values: int
    bytes: int
    formats: Mapping[str, int]  # number format -> tensors


@dataclass(frozen=True)
class Explanation:
    """What computing and saving an expression would do, known before any tensor is read."""

    expression: str
    expansion: str
    gives: str
    tensors: int
    unchanged: int
    sources: tuple[SourceFacts, ...]
    passes: int
    bytes_to_read: int
    bytes_to_write: int
    peak_memory: int
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.gives}: {self.expression}"]
        if self.expansion != self.expression:
            lines.append(f"  as steps: {self.expansion}")
        lines.append(f"  {self.tensors} tensors, {self.unchanged} of them copied unchanged")
        lines.append("inputs")
        for s in self.sources:
            kinds = ", ".join(f"{n} {k}" for k, n in s.formats.items())
            lines.append(
                f"  {s.name}: {', '.join(s.files) or 'in memory'}; {kinds}; {s.values:,} values, {size_text(s.bytes)}"
            )
        lines.append(
            f"work\n  {self.passes} pass{'es' if self.passes > 1 else ''}, {size_text(self.bytes_to_read)} to read, "
            f"{size_text(self.bytes_to_write)} to write, about {size_text(self.peak_memory)} of memory"
        )
        lines.extend(f"note\n  {n}" for n in self.notes)
        return "\n".join(lines)


def size_text(n: int) -> str:
    """Bytes for people: 1.5 MB."""
    amount, unit = float(n), "bytes"
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if amount < 1000 or unit == "TB":
            break
        amount /= 1000
    return f"{amount:.0f} {unit}" if unit == "bytes" or amount >= 100 else f"{amount:.1f} {unit}"


def explain(value: Checkpoint | TaskVector, *, dtype: str | None = None) -> Explanation:
    """Describe the work behind a checkpoint or task vector, saved in `dtype` if given; reads headers only."""
    from .algebra import Checkpoint

    node = value.node
    point = isinstance(value, Checkpoint)
    target = parse_dtype(dtype) if dtype else None

    def kept(s: TensorSpec) -> bool:
        return target is None or not s.is_float or s.dtype == target

    names = source_names(node)
    facts = []
    for n in walk(node):
        if n.op is graph.READ:
            assert n.source is not None
            formats: dict[str, int] = {}
            for s in n.spec.values():
                formats[s.dtype] = formats.get(s.dtype, 0) + 1
            facts.append(
                SourceFacts(
                    names[n.key], n.source.label, tuple(f.name for f in n.source.files), len(n.spec),
                    sum(s.size for s in n.spec.values()), stored_bytes(n.spec), formats,
                )
            )  # fmt: skip
    groups = levels(node)
    to_read = sum(
        stored_bytes({name: s for name, s in r.spec.items() if any(name in i.spec for g in group for i in g.inputs)})
        for group in groups
        for r in {r.key: r for g in group for r in reads(g)}.values()
    )
    final = {r.key: r for r in reads(node)}.values()
    to_read += sum(stored_bytes(_used(r, node)) for r in final)
    largest = max((s.size for s in node.spec.values()), default=0)
    block = largest if whole_tensors(node) else min(BLOCK, largest)
    peak = INTERPRETER_BYTES + 2 * default_threads() * block * 4 * (len(list(walk(node))) + 1)
    notes = [
        f"{len(n.source.tied)} tied in {n.source.label}, kept once: "
        + some(f"{a} = {b}" for a, b in n.source.tied.items())
        for n in walk(node)
        if n.source is not None and n.source.tied
    ]
    return Explanation(
        expression(node, names),
        expression(node, names, expand=True),
        "checkpoint" if point else "task vector",
        len(node.spec),
        sum(graph.untouched(node, n) is not None and kept(s) for n, s in node.spec.items()) if point else 0,
        tuple(facts),
        len(groups) + 1,
        to_read,
        stored_bytes(node.spec, target) if point else 4 * sum(s.size for s in node.spec.values()),
        peak,
        tuple(notes),
    )


def _used(read_node: Node, root: Node) -> dict[str, Any]:
    """The tensors of a file that computing `root` touches; renamed ones are counted under either name."""
    old: dict[str, str] = {}
    for n in walk(root):
        if n.op is graph.RENAME:
            old.update(n.params["old"])
    wanted = set(root.spec) | {old[n] for n in root.spec if n in old}
    return {name: s for name, s in read_node.spec.items() if name in wanted and s.dtype in DTYPES}
