"""Comparing task vectors, or checkpoints, tensor by tensor in one streamed pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..errors import BaseMismatch, NonFinite, UsageError, some
from . import graph
from .algebra import FORWARD_KEY, Checkpoint, TaskVector, lift
from .execute import Block, evaluate, levels, summarise, whole_tensors
from .lineage import Base
from .names import floats, layer_of
from .parts import part
from .source import SAMPLE
from .summaries import CHANGED, DOT, NORM, SIGN_AGREEMENT
from .text import expression


@dataclass(frozen=True)
class Group:
    """Figures of one group of tensors (the model, a layer, or a tensor). Lists follow the order of the vectors."""

    name: str
    values: int
    norms: tuple[float, ...]
    cosine: tuple[tuple[float, ...], ...]
    sign_agreement: float | None  # of the first two, among entries non-zero in both
    changed: tuple[float, ...]  # share of non-zero entries
    base_norm: float | None


@dataclass(frozen=True)
class Comparison:
    """What `compare` found; `groups[0]` is the whole model."""

    names: tuple[str, ...]
    groups: tuple[Group, ...]
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(
    vectors: Sequence[TaskVector],
    *,
    base: Checkpoint | None = None,
    by: Literal["model", "part", "layer", "tensor"] = "model",
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Comparison:
    r"""Norms :math:`\lVert\tau_i\rVert`, cosines, sign agreement and share of changed entries, in one pass.

    Args:
        vectors: one or more task vectors of one base.
        base: if given, its norm on the same tensors is reported too, which tells how large a step the vectors are.
        by: also report every part (attention, mlp, ...), every layer, or every tensor.
        threads: how many compute.
        progress: called with the bytes read since the last call.
    Raises:
        UsageError: no vectors.
        BaseMismatch: `base` is not what a vector was taken from.
    """
    if not vectors:
        raise UsageError("compare needs at least one task vector.")
    if base is not None:
        here = Base(base.label, node=base.node)
        for v in (v for v in vectors if v.base.same(here) is False):
            raise BaseMismatch(
                f"{v.label} was taken from {v.base.label} (fingerprint {v.base.fingerprint}), not from {base.label}: its size "
                "beside that base would mean nothing. Name its own base, or none."
            )
    pairs = [(i, j) for i in range(len(vectors)) for j in range(i, len(vectors))]
    dots = {p: lift(DOT, [vectors[p[0]], vectors[p[1]]], per="tensor") for p in pairs}
    changed = [lift(CHANGED, [v], per="tensor") for v in vectors]
    signs = lift(SIGN_AGREEMENT, list(vectors[:2]), per="tensor") if len(vectors) > 1 else None
    own = lift(NORM, [weights_of(base)], per="tensor") if base is not None else None
    wanted = [s.node for s in [*dots.values(), *changed, *([signs] if signs else []), *([own] if own else [])]]
    raw = summarise(*wanted, threads=threads, progress=progress, finished=False)
    names = sorted(next(iter(dots.values())).node.spec)
    size = {n: next(iter(dots.values())).node.spec[n].size for n in names}

    def figures(label: str, members: Sequence[str]) -> Group:
        def total(summary: Any) -> Any:
            table = raw[summary.node.key]
            parts = [table[n] for n in members if n in table]
            return sum(parts[1:], start=parts[0]) if parts else 0.0

        product = {p: float(total(s)) for p, s in dots.items()}
        norms = [math.sqrt(product[i, i]) for i in range(len(vectors))]

        def cosine(i: int, j: int) -> float:
            scale = norms[i] * norms[j]
            return 1.0 if i == j and scale else product[min(i, j), max(i, j)] / scale if scale else 0.0

        def share(summary: Any) -> float:
            counts = total(summary)
            return float(counts[0] / counts[1]) if not isinstance(counts, float) and counts[1] else 0.0

        square = range(len(vectors))
        return Group(
            label,
            sum(size[n] for n in members),
            tuple(norms),
            tuple(tuple(cosine(i, j) for j in square) for i in square),
            share(signs) if signs else None,
            tuple(share(c) for c in changed),
            math.sqrt(float(total(own))) if own else None,
        )

    groups = [figures("model", names)]
    if by != "model":
        group = {"part": part, "layer": layer_of, "tensor": str}[by]
        order: dict[str, list[str]] = {}
        for n in vectors[0].names:
            order.setdefault(group(n), []).append(n)
        groups += [figures(label, members) for label, members in order.items()]
    return Comparison(tuple(v.label for v in vectors), tuple(groups))


def weights_of(point: Checkpoint) -> TaskVector:
    """A checkpoint's floating-point weights as a displacement from zero, to be measured like a vector."""
    node = graph.restrict(point.node, set(floats(point.spec)))
    return TaskVector(node, Base("zero"), point.label, True)


def relative_distance(a: Checkpoint, b: Checkpoint) -> float:
    r""":math:`\lVert a - b\rVert / \lVert b\rVert` on samples of every tensor both have: a cheap test of kinship.

    Two unrelated networks of one architecture lie around :math:`\sqrt 2`; a fine-tuned model usually lies well below 0.5
    of its base. Reads at most 192 values a tensor.
    """
    apart = norm = 0.0
    for name, spec in b.spec.items():
        other = a.spec.get(name)
        if other is None or other.shape != spec.shape or not (spec.is_float and other.is_float):
            continue
        for begin in sorted({0, max(0, spec.size // 2 - SAMPLE // 2), max(0, spec.size - SAMPLE)}):
            block = Block(name, begin, min(spec.size, begin + SAMPLE))
            try:
                x, y = evaluate(a.node, block, {}), evaluate(b.node, block, {})
            except NonFinite:  # says nothing about kinship; the edit itself reports it, if it uses that tensor
                continue
            assert x is not None and y is not None
            apart += float(((x - y).astype(float) ** 2).sum())
            norm += float((y.astype(float) ** 2).sum())
    return math.sqrt(apart / norm) if norm else 0.0


UNRELATED = 0.9  # relative distance from which "is this really a fine-tune of that base?" is worth asking


def kinship_notes(node: graph.Node) -> tuple[str, ...]:
    """Notes on what is probably a mistake: a difference of unrelated models, or an edit as large as the base itself.

    Sampled, as `relative_distance`; an edit that needs passes over the files or whole tensors first is not looked at.
    """
    notes = []
    for n in graph.walk(node):
        if n.op is graph.DIFFERENCE and _sampled(n):
            a, b = (Checkpoint(i, expression(i)) for i in n.inputs)
            apart = relative_distance(a, b)
            if apart > UNRELATED:
                notes.append(
                    f"{a.label} differs from {b.label} by {apart:.2f} times the norm of {b.label} (sampled). "
                    "A fine-tuned model usually differs by less than 0.5; are these really a model and its base?"
                )
    if node.op is graph.MOVE:
        tangent = [n.source.label for n in graph.walk(node) if n.source and n.source.metadata.get(FORWARD_KEY)]
        notes += [
            f"{some(tangent)}: trained through the linearised model; as weights of the plain model this is another function."
        ] * bool(tangent)
    if node.op is graph.MOVE and not notes and _sampled(node):
        origin = Checkpoint(node.inputs[0], expression(node.inputs[0]))
        apart = relative_distance(Checkpoint(node, "the result"), origin)
        if apart > UNRELATED:
            notes.append(
                f"the edit moves {origin.label} by {apart:.2f} times its norm (sampled); most edits stay below 0.5. "
                "Is the vector really one of this base, and the coefficient as meant?"
            )
    return tuple(notes)


def _sampled(node: graph.Node) -> bool:
    """Whether a few values of it can be computed alone."""
    return not levels(node) and not whole_tensors(node)
