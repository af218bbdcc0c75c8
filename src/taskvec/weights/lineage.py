"""Lineage: which base a vector was taken from, and which vectors may therefore meet."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..errors import BaseMismatch, TaskvecError, collecting, raise_all
from . import graph
from .dtypes import TensorSpec
from .graph import Node
from .names import raise_mismatch, same_names

if TYPE_CHECKING:
    from .algebra import TaskVector


@dataclass(frozen=True, eq=False)
class Base:
    """The point a vector was taken from: the point itself, or the fingerprint a file recorded, or neither; and the
    function (`plain`, `linearised`; `mixed` for a sum of both) through which it was trained there."""

    label: str
    node: Node | None = None
    recorded: str | None = None
    forward: str = "plain"

    @property
    def known(self) -> bool:
        return self.node is not None or self.recorded is not None

    @property
    def fingerprint(self) -> str | None:
        if self.node is None:
            return self.recorded
        return lineage(self.node) if _ready(self.node) else None

    def same(self, other: Base) -> bool | None:
        """Whether both are the same weights; None if one of them is unknown, or is on the hub and only its headers are
        looked at."""
        if self.node is not None and other.node is not None and root(self.node).key == root(other.node).key:
            return True
        mine, theirs = self.fingerprint, other.fingerprint
        return None if mine is None or theirs is None else mine == theirs


def _ready(node: Node) -> bool:
    return all(n.source is None or n.source.ready for n in graph.walk(root(node)))


def root(node: Node) -> Node:
    """The checkpoint behind renaming, restricting and displacing."""
    while node.op in (graph.RESTRICT, graph.RENAME, graph.MOVE):
        node = node.inputs[0]
    return node


def lineage(node: Node) -> str:
    """The fingerprint of the checkpoint a point goes back to."""
    return root(node).digest


def meet(vectors: list[TaskVector]) -> tuple[dict[str, TensorSpec], Base, bool]:
    """The common space of vectors: union of names (only partial vectors may lack some), one base, still partial or not."""
    first = vectors[0]
    whole = next((v for v in vectors if not v.partial), None)
    spec = dict((whole or first).spec)
    base = first.base
    mistakes: list[TaskvecError] = []
    for v in vectors:
        if v is first and v is whole:
            continue
        reference = whole or first
        with collecting(mistakes):
            if whole is not None:
                same_names(v.spec, whole.spec, v.label, whole.label, "combine", subset=v.partial)
            else:
                clash = [n for n in v.spec if n in spec and spec[n].shape != v.spec[n].shape]
                if clash:
                    raise_mismatch([], [], clash, v.spec, spec, v.label, reference.label, "combine")
                spec.update({n: s for n, s in v.spec.items() if n not in spec})
        if v.base.same(base) is False:
            mistakes.append(
                BaseMismatch(
                    f"cannot combine {v.label} and {first.label}: they were taken from different bases, {v.base.label} "
                    f"(fingerprint {v.base.fingerprint}) and {base.label} ({base.fingerprint}). "
                    "Fine-tune both from one base, or say that the bases are interchangeable with vector.rebase(base); in an expression, rebase(vector, base)."
                )
            )
        if not base.known and v.base.known:
            base = v.base
    raise_all(mistakes)
    through = {v.base.forward for v in vectors if v.spec} or {base.forward}
    base = replace(base, forward=through.pop() if len(through) == 1 else "mixed")
    for v in vectors:
        spec.update({n: s for n, s in v.spec.items() if s.dtype == "F64"})
    return spec, base, whole is None
