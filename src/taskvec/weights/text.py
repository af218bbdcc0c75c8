"""To text: a graph as the expression a user would write, and an account (see `plan`) of what computing it takes."""

from __future__ import annotations

import glob
import keyword
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import some
from . import graph
from .graph import Node, walk


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
        if n.op is graph.AS_VECTOR:
            return f"as_vector({text(n.inputs[0])}, {text(n.inputs[1])})"
        if n.op is graph.STACK:
            pieces = (f"[{text(n.inputs[i])}, {first}, {last}]" for i, first, last in n.params["pieces"])
            return f"stack({', '.join(pieces)})"
        if n.op is graph.ALIGN:
            return aligned(n)
        if n.op is graph.RENAME:
            return f"shared({text(n.inputs[0])}, {text(n.inputs[1])})"
        inner = ", ".join(text(i) for i in n.inputs)
        if n.expansion is not None:
            inner = f"[{inner}]"
        params = "".join(f", {k}={value(v)}" for k, v in n.params.items())
        return f"{n.op.name}({inner}{params})"

    def aligned(n: Node) -> str:
        rows, said = n.params["rows"], [text(i) for i in n.inputs]
        to = ", ".join(said[i] for i in rows.owners)
        given = dict(rows.said)
        out = f"aligned({said[0]}, {f'[{to}]' if rows.joined else to}"
        if "donors" in given:
            out += f", donors=[{', '.join(said[i] for i in given.pop('donors'))}]"
        if "tokens" in given:
            out += f", tokens={{{', '.join(f'{t!r}: {donor(d, said)}' for t, d in given.pop('tokens').items())}}}"
        return out + "".join(f", {k}={v!r}" for k, v in given.items()) + ")"

    def donor(d: Any, said: list[str]) -> str:
        """Whose row a token gets: a model, [a model, its token or row], 0 or None."""
        if not isinstance(d, tuple):
            return repr(d)
        return said[d[0]] if len(d) == 1 else f"[{said[d[0]]}, {d[1]!r}]"

    def value(v: Any) -> str:
        if isinstance(v, tuple):
            return f"[{', '.join(map(value, v))}]"
        return text(v) if isinstance(v, Node) else number(v) if isinstance(v, float) else repr(v)

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
class Match:
    """How the tensors of one input correspond to those of the checkpoint that the edit begins with."""

    name: str
    against: str
    same: int  # of equal name and shape
    renamed: int  # of these, under another name in the file
    only_here: tuple[str, ...]
    only_there: tuple[str, ...]
    other_shape: tuple[str, ...]
    other_format: int

    def __str__(self) -> str:
        all_of = not (self.only_there or self.other_shape)
        text = f"{self.name}: {'all' if all_of else f'{self.same} of the'} {self.same + len(self.only_there) + len(self.other_shape)}"
        text += f" tensors of {self.against}" + (f", {self.renamed} under other names" if self.renamed else "")
        for what, names in (
            (f"only in {self.against}", self.only_there),
            (f"only in {self.name}", self.only_here),
            ("of another shape", self.other_shape),
        ):
            if names:
                text += f"; {len(names)} {what} ({some(names)})"
        if self.other_format:
            text += (
                f"; {self.other_format} in another number format, which is fine (all are computed in float32 or wider)"
            )
        return text


@dataclass(frozen=True)
class OutputFacts:
    """Where the result would go: its files with their tensors and bytes, and what the disk there has free."""

    path: str
    files: Mapping[str, int]  # file -> bytes of tensors
    bytes_needed: int
    bytes_free: int | None  # None if no place was named

    def __str__(self) -> str:
        text = f"{self.path}: "
        text += (
            f"{len(self.files)} shards of up to {size_text(max(self.files.values()))}"
            if len(self.files) > 1
            else "1 file"
        )
        free = "" if self.bytes_free is None else f", {size_text(self.bytes_free)} free on that disk"
        return f"{text}, {size_text(self.bytes_needed)} needed{free}"


LONG = 1500  # characters; a merge with coefficients by layer says each layer


def cut(text: str) -> str:
    return (
        text
        if len(text) <= LONG
        else f"{text[: LONG // 2]} ... {text[-LONG // 2 :]} ({len(text):,} characters; --json has all)"
    )


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
    unchanged_names: tuple[str, ...] = ()
    conversions: Mapping[str, int] = field(default_factory=dict)  # "F32 -> BF16" -> tensors
    matches: tuple[Match, ...] = ()
    output: OutputFacts | None = None
    threads: int = 1
    seconds: float = 0.0  # an estimate, with the inputs in memory and their hashes known
    seconds_first: float = 0.0  # an estimate, the first time and from a disk that reads 1 GB/s
    recipe: str = ""  # the recipe that a config of another tool becomes

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.gives}: {cut(self.expression)}"]
        if self.expansion != self.expression:
            lines.append(f"  as steps: {cut(self.expansion)}")
        text = f"  {self.tensors} tensors, {self.unchanged} of them copied unchanged"
        if 0 < self.unchanged < self.tensors:
            text += f" ({some(self.unchanged_names)})"
        lines.append(text)
        lines.extend(f"  {n} change their number format: {said}" for said, n in self.conversions.items())
        lines.append("inputs")
        for s in self.sources:
            kinds = ", ".join(f"{n} {k}" for k, n in s.formats.items()) or "no tensor"
            files = ", ".join(s.files) if len(s.files) <= 3 else f"{len(s.files)} files"
            lines.append(f"  {s.name}: {files or 'in memory'}; {kinds}; {s.values:,} values, {size_text(s.bytes)}")
        if self.matches:
            lines.append("matching")
            lines.extend(f"  {m}" for m in self.matches)
        if self.output is not None:
            lines.append(f"output\n  {self.output}")
        lines.append(
            f"work\n  {self.passes} pass{'es' if self.passes > 1 else ''}, {size_text(self.bytes_to_read)} to read, "
            f"{size_text(self.bytes_to_write)} to write, about {size_text(self.peak_memory)} of memory"
        )
        lines.append(
            f"  roughly {time_text(self.seconds)} with the inputs in memory, {time_text(self.seconds_first)} the first time "
            f"from a disk that reads 1 GB/s ({self.threads} thread{'s' if self.threads > 1 else ''})"
        )
        lines.extend(f"note\n  {n}" for n in self.notes)
        if self.recipe:
            lines.append("as a recipe\n  " + self.recipe.replace("\n", "\n  "))
        return "\n".join(lines)


def size_text(n: int) -> str:
    """Bytes for people: 1.5 MB."""
    amount, unit = float(n), "bytes"
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if amount < 1000 or unit == "TB":
            break
        amount /= 1000
    return f"{amount:.0f} {unit}" if unit == "bytes" or amount >= 100 else f"{amount:.1f} {unit}"


def time_text(seconds: float) -> str:
    """Seconds for people, to the precision of an estimate: 0.8 s, 12 s, 5 min."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
