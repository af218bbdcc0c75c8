"""What an edit does to one tensor, as leaves, steps and roots: what the compiled path makes one loop of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .execute import ABSENT_IS_NONE, ordered
from .graph import ALIGN, AS_VECTOR, MOVE, READ, REBASE, RENAME, RESTRICT, STACK, Node
from .summaries import KTH_MAGNITUDE, MAGNITUDE_BIN

HISTOGRAMS = (MAGNITUDE_BIN, KTH_MAGNITUDE)  # their counts are gathered over the whole model


class Unfit(Exception):
    """This tensor is computed by NumPy."""


@dataclass
class Sketch:
    """One tensor's computation. `values` holds ("leaf", i) or ("step", i); a place of None is a zero."""

    leaves: list[tuple[Node, str]] = field(default_factory=list)
    steps: list[tuple[Node, tuple[int | None, ...]]] = field(default_factory=list)
    values: list[tuple[str, int]] = field(default_factory=list)
    roots: list[tuple[Node, tuple[int | None, ...]]] = field(default_factory=list)  # a summary's inputs, or one output


def sketch(roots: Sequence[Node], name: str) -> Sketch:
    """The computation of the roots on one tensor.

    Raises:
        Unfit: some part of it has no entry form.
    """
    out = Sketch()
    seen: dict[tuple[str, str], int | None] = {}

    def add(kind: str, items: list[Any], item: Any) -> int:
        items.append(item)
        out.values.append((kind, len(items) - 1))
        return len(out.values) - 1

    def visit(node: Node, name: str) -> int | None:
        while node.expansion is not None:
            node = node.expansion
        if name not in node.spec:
            return None
        if (node.key, name) not in seen:
            seen[node.key, name] = make(node, name)
        return seen[node.key, name]

    def make(node: Node, name: str) -> int | None:
        if node.op is READ:
            if not node.spec[name].is_float or node.spec[name].dtype == "F64":
                raise Unfit
            return add("leaf", out.leaves, (node, name))
        if node.op is RENAME:
            return visit(node.inputs[0], node.params["old"][name])
        if node.op is STACK:
            i, old = node.params["old"][name]
            return visit(node.inputs[i], old)
        if node.op is ALIGN and name in node.params["rows"].tensors:
            raise Unfit
        if node.op in (RESTRICT, REBASE, AS_VECTOR, ALIGN):
            return visit(node.inputs[0], name)
        if node.op.entry is None or node.op.works_on == "tensor":
            raise Unfit
        places = tuple(visit(n, name) for n in ordered(node, name))
        if node.op in ABSENT_IS_NONE:
            if all(p is None for p in places):
                return None
            if node.op is MOVE and None in places:
                return places[0]  # a point that does not move there
        return add("step", out.steps, (node, places))

    for root in roots:
        if root.op.gives == "summary":
            if root.op.entry is None or (root.op in HISTOGRAMS and root.per == "tensor"):
                raise Unfit
            out.roots.append((root, tuple(visit(n, name) for n in ordered(root, name))))
        else:
            out.roots.append((root, (visit(root, name),)))
    return out
