"""The expression graph: one operation type, one node type, one normal form. Nothing here reads a number.

A vector is kept as ``sum_i c_i v_i`` with merged coefficients, a displaced point as ``origin + one vector``. So
``a + b - c`` and ``a + (b - c)`` are the same graph, hence the same bits. ``finetuned - base`` is an atom: it is never
multiplied out, because ``base + c (finetuned - base)`` and ``(1 - c) base + c finetuned`` round differently.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from ..errors import UsageError
from .dtypes import TensorSpec, wider
from .source import Source

LONG = 300  # parts of an expression from which a restriction also leaves out what it does not need
LARGEST = 100_000  # parts of an expression: a few lines that use each other twice would else print forever


@dataclass(frozen=True)
class Op:
    """A plain tensor function and what the executor must know about it.

    Args:
        name: how the operation is printed.
        fn: ``(arrays, **params) -> array``; arrays are float32 (or float64), flat for "element", shaped for "tensor".
            No input/output, no globals, inputs untouched. A summary's `fn` returns a partial value of one block.
        gives: "point" or "vector" (an array of the same shape) or "summary" (a small value over all tensors).
        works_on: "element" lets the executor cut big tensors into blocks; "tensor" needs them whole.
        random: `fn` also receives ``at=(name, start)`` and must draw from a generator keyed by seed, name and position.
        symmetric: the order of the inputs means nothing; the executor fixes one, so that permutations give equal bits.
        finish: for a summary, ``(sum of the partials, **params) -> value``.
        entry: the same on one entry, for the compiled path (see entry.py); a summary's gives its reductions.
        factored: for "tensor": the same on ``(left, right)`` pairs instead of arrays, each the thin factors of one input in
            float64 (adapters have them); None as its result asks for the arrays after all.
        work: for "tensor", what decompositions and products of matrices cost, for estimates of time:
            ``(shape, ranks, **params) -> multiply-adds`` for one tensor; `ranks` has for each input the rank of its thin factors,
            or None.
        prepare: ``(**params) -> parameters of entry``, numbers and random words; None where entry does not apply.
        reference: the source of the formula.
    """

    name: str
    fn: Callable[..., Any]
    gives: Literal["point", "vector", "summary"] = "vector"
    works_on: Literal["element", "tensor"] = "element"
    random: bool = False
    symmetric: bool = False
    finish: Callable[..., Any] | None = None
    entry: Callable[..., Any] | None = None
    prepare: Callable[..., Mapping[str, Any] | None] | None = None
    factored: Callable[..., Any] | None = None
    work: Callable[..., float] | None = None
    reference: str = ""


@dataclass(frozen=True, eq=False)
class Node:
    """One operation on its inputs. `params` hold numbers, texts or summary nodes; `spec` the tensors it has.

    `expansion` stands for a named method: the node prints as the method, and is computed as the expansion.
    """

    op: Op
    inputs: tuple[Node, ...]
    spec: Mapping[str, TensorSpec]
    params: Mapping[str, Any] = field(default_factory=dict)
    per: Literal["model", "tensor"] = "model"
    source: Source | None = None
    expansion: Node | None = None
    written: int = field(init=False, default=1)  # nodes of the expression written out, shared parts each time

    def __post_init__(self) -> None:
        written = 1 + max(
            sum(n.written for n in (*self.inputs, *self.params.values()) if isinstance(n, Node)),
            self.expansion.written if self.expansion is not None else 0,
        )
        if written > LARGEST:
            raise UsageError(
                f"the expression, written out, has more than {LARGEST:,} parts. Save what it repeats as a file and use that."
            )
        object.__setattr__(self, "written", written)

    @cached_property
    def key(self) -> str:
        """Equal keys, equal values, within this process."""
        return self._hash(lambda n: n.key, lambda s: f"memory {id(s)}")

    @cached_property
    def digest(self) -> str:
        """Equal digests, equal values, anywhere: built on the fingerprints of the weights. Reads samples of the files."""
        return self._hash(lambda n: n.digest, lambda s: s.fingerprint)

    def digest_of(self, name: str) -> str:
        """As `digest`, of one tensor, so that it does not depend on which others there are; empty where it is missing."""
        if name not in self._digests:
            self._digests[name] = self._digest_of(name)
        return self._digests[name]

    @cached_property
    def _digests(self) -> dict[str, str]:
        return {}

    def _digest_of(self, name: str) -> str:
        if name not in self.spec:
            return ""
        if self.op in (RESTRICT, REBASE, AS_VECTOR):
            return self.inputs[0].digest_of(name)
        if self.op is STACK:
            i, old = self.params["old"][name]
            return self.inputs[i].digest_of(old)
        if self.op is RENAME:
            return self.inputs[0].digest_of(self.params["old"][name])
        if self.op is ALIGN and name not in self.params["rows"].tensors:
            return self.inputs[0].digest_of(name)

        def below(node: Node) -> str:
            return node.digest if node.op.gives == "summary" and node.per == "model" else node.digest_of(name)

        return self._hash(below, lambda s: s.fingerprint_of(name), names=False)

    def _hash(
        self, of_node: Callable[[Node], str], of_source: Callable[[Source], str], *, names: bool = True
    ) -> str:  # fmt: skip
        h = hashlib.blake2b(f"{self.op.name} {self.per}".encode(), digest_size=16)
        if self.source is not None:
            h.update(of_source(self.source).encode())
        if self.expansion is not None:  # what is computed, so that ties([a, b]) is ties([b, a])
            h.update(of_node(self.expansion).encode())
            return h.hexdigest()
        inputs = [of_node(node) for node in self.inputs]
        params = dict(self.params)
        for said in ("patterns", "pieces"):  # how names were chosen; the names themselves count
            params.pop(said, None)
        if self.op is COMBINE:  # the order of summands means nothing
            inputs = sorted(f"{c!r}*{n}" for n, c in zip(inputs, params.pop("coefficients"), strict=True))
        elif self.op.symmetric:
            inputs.sort()
        h.update(" ".join(inputs).encode())
        for name, value in sorted(params.items()):
            said = sorted(value.items()) if isinstance(value, Mapping) else value
            h.update(f"{name}={of_node(value) if isinstance(value, Node) else repr(said)};".encode())
        if names and self.op in (RESTRICT, COMBINE):
            h.update(repr(sorted(self.spec)).encode())
        return h.hexdigest()

    def below(self) -> tuple[Node, ...]:
        """The nodes this one is computed from, summaries among its parameters included."""
        if self.expansion is not None:
            return (self.expansion,)
        return self.inputs + tuple(v for v in self.params.values() if isinstance(v, Node))


def reads(node: Node) -> list[Node]:
    """The files' nodes that one pass over this node reads; summaries are known by then and are not entered."""
    found: dict[str, Node] = {}

    def visit(n: Node) -> None:
        if n.op is READ:
            found[n.key] = n
        below = (
            (n.expansion,)
            if n.expansion is not None
            else n.inputs[:1]
            if n.op in (RESTRICT, RENAME, REBASE, AS_VECTOR, ALIGN)  # of an aligned model's donors a few rows are read
            else n.inputs
        )
        for m in below:
            visit(m)

    visit(node)
    return list(found.values())


def walk(node: Node) -> Iterator[Node]:
    """Every node once, inputs before what is computed from them."""
    seen: set[str] = set()

    def visit(n: Node) -> Iterator[Node]:
        if n.key in seen:
            return
        seen.add(n.key)
        for m in n.below():
            yield from visit(m)
        yield n

    yield from visit(node)


def _difference(arrays: list[np.ndarray]) -> np.ndarray:
    return arrays[0] - arrays[1]


def _combine(arrays: list[np.ndarray | None], *, coefficients: tuple[float, ...]) -> np.ndarray | None:
    total: np.ndarray | None = None
    own = False  # whether `total` is ours to change; an input never is
    for array, c in zip(arrays, coefficients, strict=True):
        if array is None:
            continue
        term = array if c == 1.0 else array * c
        if total is None:
            total, own = term, term is not array
        elif own and total.dtype == term.dtype:
            total += term
        else:
            total, own = total + term, True
    return total


def _combine_entry(values: list[Any], *, coefficients: tuple[Any, ...]) -> Any:
    total: Any = None
    for value, c in zip(values, coefficients, strict=True):
        if value is not None:
            total = value * c if total is None else total + value * c
    return total


def _move(arrays: list[np.ndarray | None]) -> np.ndarray | None:
    origin, delta = arrays
    if origin is None or delta is None:
        return origin
    return origin + delta


def _structural(arrays: list[np.ndarray | None]) -> np.ndarray | None:
    return arrays[0]


READ = Op("read", _structural, "point")  # a point, or a vector where the file's metadata says so
RESTRICT = Op("restrict", _structural)  # the same values, fewer names
REBASE = Op("rebase", _structural)  # the same values, declared to be a displacement from inputs[1]
RENAME = Op(
    "shared", _structural
)  # the same values under the names of inputs[1]; params["old"] maps those to inputs[0]'s
AS_VECTOR = Op(
    "as_vector", _structural
)  # a point's values, declared to be a displacement from zero, to be added to inputs[1]
STACK = Op("stack", _structural, "point")  # layers of several points; params["old"] maps names to (input, its name)
ALIGN = Op("aligned", _structural, "point")  # rows of some tensors gathered from all inputs; see aligned.Rows
DIFFERENCE = Op("difference", _difference, "vector", entry=lambda values: values[0] - values[1])
COMBINE = Op("combine", _combine, "vector", entry=_combine_entry)
MOVE = Op("move", _move, "point", entry=lambda values: values[0] + values[1])


def read(source: Source) -> Node:
    return Node(READ, (), dict(source.spec), source=source)


def restrict(node: Node, names: set[str], patterns: tuple[str, ...] = ()) -> Node:
    """The tensors named; `patterns` chose them, if patterns did."""
    if node.written > LONG:
        node = _relevant(node, names)
    return Node(RESTRICT, (node,), {n: s for n, s in node.spec.items() if n in names}, {"patterns": patterns})


def _relevant(node: Node, names: set[str]) -> Node:
    """The same values on these names, without the terms of sums that have none of them.

    An edit of an edit, with coefficients of its own for each layer in both, would otherwise be the product of their sizes.
    """
    if node.op is COMBINE:
        kept = [(_relevant(n, names), c) for n, c in terms(node) if not names.isdisjoint(n.spec)]
        held = {name for n, _ in kept for name in n.spec}
        return combine(kept, {name: s for name, s in node.spec.items() if name in held})
    if node.op is MOVE:
        return move(node.inputs[0], _relevant(node.inputs[1], names))
    if node.op is DIFFERENCE:
        return Node(DIFFERENCE, (_relevant(node.inputs[0], names), _relevant(node.inputs[1], names)), node.spec)
    if node.op is REBASE:
        return rebase(_relevant(node.inputs[0], names), node.inputs[1])
    return node


def rename(node: Node, old: Mapping[str, str], like: Node) -> Node:
    """`old` maps each name, one of `like`'s, to the name it has in `node`; names not mentioned are dropped."""
    return Node(RENAME, (node, like), {new: node.spec[name] for new, name in old.items()}, {"old": dict(old)})


def rebase(node: Node, base: Node) -> Node:
    return Node(REBASE, (node, base), node.spec)


def as_vector(point: Node, base: Node) -> Node:
    return Node(AS_VECTOR, (point, base), {n: s for n, s in point.spec.items() if s.is_float})


def stack(points: list[Node], old: Mapping[str, tuple[int, str]], pieces: tuple[tuple[int, int, int], ...]) -> Node:
    """A point of the names in `old`, each a tensor of one of `points`; `pieces` says it as (point, first, past the last)."""
    spec = {new: points[i].spec[name] for new, (i, name) in old.items()}
    return Node(STACK, tuple(points), spec, {"old": dict(old), "pieces": pieces})


def align(points: list[Node], spec: Mapping[str, TensorSpec], rows: Any) -> Node:
    """The first point with the rows of some tensors gathered from all of them, as `rows` (an `aligned.Rows`) says."""
    return Node(ALIGN, tuple(points), dict(spec), {"rows": rows})


def difference(a: Node, b: Node) -> Node:
    spec = {n: wider(s, b.spec[n]) for n, s in a.spec.items() if s.is_float and n in b.spec}
    if a.key == b.key:
        return combine([], spec)
    return Node(DIFFERENCE, (a, b), spec)


def terms(node: Node) -> list[tuple[Node, float]]:
    """A vector as ``[(v_i, c_i), ...]``."""
    if node.op is COMBINE:
        return list(zip(node.inputs, node.params["coefficients"], strict=True))
    return [(node, 1.0)]


def combine(weighted: list[tuple[Node, float]], spec: Mapping[str, TensorSpec]) -> Node:
    """The normal form of a sum: nested sums opened, equal vectors merged, zero coefficients dropped.

    Dropping zeros is what makes ``base + 0 * tau`` give the base's own bytes.
    """
    merged: dict[str, tuple[Node, float]] = {}
    for node, c in weighted:
        for inner, d in terms(node):
            _, before = merged.get(inner.key, (inner, 0.0))
            merged[inner.key] = (inner, before + c * d)
            if not math.isfinite(before + c * d):
                raise UsageError(f"a coefficient grows to {before + c * d}; it must be a finite number.")
    kept = [(n, c) for n, c in merged.values() if c != 0.0]
    if len(kept) == 1 and kept[0][1] == 1.0 and set(kept[0][0].spec) == set(spec):
        return kept[0][0]
    return Node(COMBINE, tuple(n for n, _ in kept), dict(spec), {"coefficients": tuple(c for _, c in kept)})


def origin_and_delta(point: Node) -> tuple[Node, Node | None]:
    """A point as ``origin + vector``; the vector is None for an undisplaced point."""
    return (point.inputs[0], point.inputs[1]) if point.op is MOVE else (point, None)


def move(point: Node, vector: Node) -> Node:
    """``point + vector`` with all displacements of one origin gathered in one vector."""
    origin, delta = origin_and_delta(point)
    if delta is not None:
        vector = combine([(delta, 1.0), (vector, 1.0)], {**delta.spec, **vector.spec})
    if not terms(vector):
        return origin
    return Node(MOVE, (origin, vector), point.spec)


def untouched(node: Node, name: str) -> tuple[Source, str] | None:
    """The source and name whose bytes a point keeps unchanged, if it does (integer buffers, names no vector has)."""
    while True:
        if node.op is READ:
            assert node.source is not None
            return node.source, name
        if node.op is RENAME:
            node, name = node.inputs[0], node.params["old"][name]
        elif node.op is STACK:
            i, name = node.params["old"][name]
            node = node.inputs[i]
        elif (
            node.op is RESTRICT
            or (node.op is MOVE and name not in node.inputs[1].spec)
            or (node.op is ALIGN and name not in node.params["rows"].tensors)
        ):
            node = node.inputs[0]
        else:
            return None
