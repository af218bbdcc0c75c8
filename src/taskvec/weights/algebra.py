"""Checkpoint and TaskVector: points and displacements in weight space, lazy until read or saved.

::

    checkpoint - checkpoint -> vector        vector + vector, number * vector -> vector
    checkpoint + vector     -> checkpoint    nothing else
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..errors import BaseMismatch, InputError, KeyMismatch, NotLinear, UsageError, some
from ..select import Select, as_select
from . import graph
from .dtypes import TensorSpec, narrow
from .execute import Block, evaluate, summarise
from .graph import Node, Op
from .lineage import Base, lineage, meet, root
from .names import NameMatch, floats, match_names, same_names
from .source import MemorySource, Source, open_source
from .summaries import DOT, NORM

LONGEST_LABEL = 200  # characters; labels are for messages
VECTOR_KIND, BASE_KEY, PARTIAL_KEY = "taskvec.kind", "taskvec.base", "taskvec.partial"
FORWARD_KEY = "taskvec.forward"  # only where it is not the plain model


class _Tensors:
    """What points and vectors share: named tensors that are computed on demand."""

    node: Node
    label: str
    __array_ufunc__ = None  # so that a NumPy number times a vector is a vector, and an array times one is an error

    @property
    def spec(self) -> Mapping[str, TensorSpec]:
        """Name -> number format and shape, from headers."""
        return self.node.spec

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.node.spec)

    def explain(self, *, dtype: str | None = None) -> Any:
        """What computing and saving this (in `dtype`, if given) would do: sources, passes, bytes, memory; from headers only."""
        from .plan import explain

        return explain(self, dtype=dtype)  # type: ignore[arg-type]

    def _working(self, name: str, summaries: Mapping[str, Any] | None = None) -> np.ndarray:
        spec = self.spec.get(name)
        if spec is None:
            from ..errors import UnknownName, nearest

            raise UnknownName(f"{self.label} has no tensor {name!r}.{nearest(name, self.spec)}")
        if summaries is None:
            summaries = summarise(self.node)
        values = evaluate(self.node, Block(name, 0, spec.size), summaries)
        return np.zeros(spec.shape, np.float32) if values is None else values.reshape(spec.shape)


@dataclass(frozen=True, eq=False)
class Checkpoint(_Tensors):
    """A point in weight space.

    Example:
        >>> base = Checkpoint.of({"w": np.array([1.0, 2.0], np.float32)}, label="base")
        >>> tuned = Checkpoint.of({"w": np.array([3.0, 2.0], np.float32)}, label="tuned")
        >>> (base + 0.5 * (tuned - base)).array("w")
        array([2., 2.], dtype=float32)
    """

    node: Node
    label: str
    partial: bool = False  # some names were left out on purpose: a difference of it is zero there

    @classmethod
    def read(cls, path: str | Path, *, label: str | None = None) -> Checkpoint:
        """Open a checkpoint: a safetensors file, a folder (one file or shards), ``.pt``, ``.bin`` or ``.gguf``, or a model
        on the hub, ``hf://org/name@revision``. Reads headers only; values of the hub are fetched when they are first needed.

        Raises:
            NotACheckpoint: damaged, unsafe, or something else; also a task vector file (use `TaskVector.read`).
        """
        source = open_source(path, label)
        if source.metadata.get(VECTOR_KIND) == "vector":
            raise NotLinear(
                f"{path} holds a task vector, not a checkpoint. Open it with TaskVector.read, or add it to its base."
            )
        return _point(source)

    @classmethod
    def of(cls, weights: Any, *, label: str = "memory", copy: bool = True) -> Checkpoint:
        """A checkpoint of arrays, torch tensors, or a module's state dict; copied, so that later training cannot change it.

        Args:
            weights: mapping of names to NumPy arrays or torch tensors, or an object with ``state_dict()``.
            copy: False shares memory with the given float32 CPU tensors; then they must not be changed afterwards.
        """
        table = weights.state_dict() if hasattr(weights, "state_dict") else weights
        return cls(graph.read(MemorySource(table, label, copy=copy)), label)

    def __sub__(self, other: Checkpoint | TaskVector) -> Any:
        if isinstance(other, TaskVector):
            return self + (-other)
        if not isinstance(other, Checkpoint):
            return NotImplemented
        mine, theirs = graph.origin_and_delta(self.node), graph.origin_and_delta(other.node)
        lineage_ = Base(other.label, node=other.node)
        for point in (self, other):
            if not floats(point.spec):
                if not point.spec:
                    raise InputError(
                        f"cannot subtract {other.label} from {self.label}: {point.label} holds no weights."
                    )
                kinds = ", ".join(sorted({s.dtype for s in point.spec.values()})) or "none"
                raise InputError(
                    f"cannot subtract {other.label} from {self.label}: {point.label} has no floating-point tensor (formats: "
                    f"{kinds}). Integer tensors are never edited; dequantise the model first."
                )
        if mine[0].key == theirs[0].key:  # one origin: the displacement needs no rounding through the point
            spec = floats(self.spec)
            parts = [(v, c) for v, c in ((mine[1], 1.0), (theirs[1], -1.0)) if v is not None]
            return TaskVector(
                graph.combine(parts, spec), lineage_, _short(f"{self.label} - {other.label}"), self.partial
            )
        partial = self.partial or other.partial
        try:
            same_names(floats(self.spec), floats(other.spec), self.label, other.label, "subtract", subset=self.partial)
        except KeyMismatch as error:
            from .agreement import tokens_apart  # which sees this module

            raise KeyMismatch(f"{error}{tokens_apart(self.node, other.node, self.label, other.label)}") from None
        label = _short(f"{self.label} - {other.label}")
        return TaskVector(graph.difference(self.node, other.node), lineage_, label, partial)

    def __add__(self, other: TaskVector) -> Checkpoint:
        if isinstance(other, Checkpoint):
            raise NotLinear(
                f"cannot add the checkpoint {other.label} to the checkpoint {self.label}: a sum of points has no meaning. "
                f"Add what was learned: {self.label} + ({other.label} - {self.label})."
            )
        if not isinstance(other, TaskVector):
            return NotImplemented
        if other.base.same(Base(self.label, node=self.node)) is False:
            raise BaseMismatch(
                f"cannot apply the vector {other.label} to {self.label}: it was taken from {other.base.label} "
                f"(fingerprint {other.base.fingerprint}), and {self.label} goes back to {lineage(self.node)}. "
                "If the two bases are meant to be interchangeable, say so with vector.rebase(base); in an expression, rebase(vector, base)."
            )
        same_names(other.spec, floats(self.spec), other.label, self.label, "apply", subset=other.partial)
        return Checkpoint(graph.move(self.node, other.node), self.label, self.partial)

    def __mul__(self, other: object) -> Any:
        raise NotLinear(
            f"cannot multiply the checkpoint {self.label}: only task vectors have coefficients. "
            f"Write base + c * ({self.label} - base)."
        )

    __rmul__ = __truediv__ = __mul__  # type: ignore[assignment]

    def __neg__(self) -> Any:
        return self * -1

    def restrict(self, what: Select | str | Iterable[str]) -> Checkpoint:
        """Only the chosen names (a Select, a shell pattern, or exact names); differences are zero elsewhere.

        Raises:
            KeyMismatch: nothing is chosen.
        """
        return Checkpoint(graph.restrict(self.node, *_chosen(self, what)), self.label, True)

    def match(self, base: Checkpoint) -> NameMatch:
        """Which tensors correspond to the base's, allowing for a prefix that one side lacks; prints as a short account."""
        return match_names(floats(self.spec), floats(base.spec), self.label, base.label)

    def shared(self, base: Checkpoint) -> Checkpoint:
        """Only the tensors that match the base's, under the base's names.

        For checkpoints whose heads or prefixes differ: ``tuned.shared(base) - base``. What was matched and left out is
        in ``tuned.match(base)``.

        Raises:
            KeyMismatch: nothing matches.
        """
        found = self.match(base)
        if not found.old:
            raise KeyMismatch(
                f"{self.label} and {base.label} share no tensor of equal name and shape: {self.label} has {some(self.spec)}, "
                f"{base.label} has {some(base.spec)}."
            )
        return Checkpoint(graph.rename(self.node, found.old, base.node), self.label, True)

    def array(self, name: str) -> np.ndarray:
        """One tensor in its stored format; computed now. A tied tensor may be asked for by any of its names."""
        source = root(self.node).source
        if name not in self.spec and source is not None:
            name = source.tied.get(name, name)
        return self.arrays([name])[name]

    def arrays(self, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
        """Tensors by name, in their stored formats; computed now."""
        summaries = summarise(self.node)
        out: dict[str, np.ndarray] = {}
        for name in self.names if names is None else names:
            leaf = graph.untouched(self.node, name) if name in self.spec else None
            if leaf is not None:
                source, old = leaf
                spec = self.spec[name]
                out[name] = source.read(old, 0, spec.size).reshape(spec.shape).copy()
            else:
                values = narrow(self._working(name, summaries), self.spec[name].dtype)
                out[name] = (
                    values if values.flags.writeable else values.copy()
                )  # a sum with nothing is the input itself
        return out

    def fingerprint(self) -> str:
        """A hex digest of the weights; cheap for a checkpoint on disk (samples of each tensor)."""
        return self.node.digest

    def save(
        self, path: str | Path, *, dtype: str | None = None, overwrite: bool = False, shard_size: int | None = None,
        on_nonfinite: Literal["error", "allow"] = "error", threads: int | None = None,
        device: str | None = None, progress: Callable[[int], None] | None = None,
        beside: Mapping[str, bytes] | None = None, card: bool = False,
    ) -> Path:  # fmt: skip
        """Write the checkpoint; ``*.safetensors`` is one file, anything else a folder that loads as its origin did.

        Args:
            dtype: number format of the floating-point tensors, else each keeps its origin's.
            overwrite: replace an existing output, once the new one is complete.
            shard_size: bytes after which a folder continues in another shard (5 GB unless told).
            on_nonfinite: "allow" copies tensors that no vector touches even if they hold NaN or infinity (masks do).
            threads: how many compute; the result does not depend on it.
            device: where: ``cpu``, or ``cuda`` or ``cuda:N`` through torch. Element by element the bits are the same;
                passes over all tensors (norms, cuts) stay on the CPU.
            progress: called with the bytes read since the last call.
            beside: further files of a folder, name -> content, instead of the origin's of that name (another tokenizer).
            card: write a model card (README.md) into the folder; one that is there and not ours is kept.
        Raises:
            StorageError: the output exists, another run writes it, or the disk is too small or fails. The path is then
                as it was; what was finished is kept beside it where the same call can continue from it.
            NonFinite: an input or a result holds NaN or infinity (see `on_nonfinite`).
        """
        from .output import checkpoint_output
        from .write import write

        output = checkpoint_output(
            self,
            Path(path),
            dtype=dtype,
            shard_size=shard_size,
            on_nonfinite=on_nonfinite,
            device=device,
            beside=beside,
            card=card,
        )
        return write(output, overwrite=overwrite, threads=threads, progress=progress)

    def __repr__(self) -> str:
        return f"Checkpoint({_said(self.node)}: {len(self.spec)} tensors, {sum(s.size for s in self.spec.values()):,} values)"


@dataclass(frozen=True, eq=False)
class TaskVector(_Tensors):
    r"""A displacement in weight space, :math:`\tau = \theta_{ft} - \theta_0`; a vector space.

    Example:
        >>> base = Checkpoint.of({"w": np.zeros(2, np.float32)}, label="base")
        >>> a = Checkpoint.of({"w": np.array([3.0, 4.0], np.float32)}, label="a") - base
        >>> a.norm(), (a - 0.5 * a).array("w").tolist()
        (5.0, [1.5, 2.0])
    """

    node: Node
    base: Base
    label: str
    partial: bool = False  # zero outside its names

    @classmethod
    def of(
        cls, weights: Mapping[str, Any], base: Checkpoint, *, label: str = "memory", forward: str = "plain"
    ) -> TaskVector:
        """A displacement from `base` held in memory: NumPy arrays or torch tensors by the base's names; zero elsewhere.

        Args:
            weights: the displacement.
            base: where from.
            label: its name in messages.
            forward: through which function it was trained: ``plain`` or ``linearised``.
        Raises:
            KeyMismatch: a name or shape that the base does not have.
        Example:
            >>> base = Checkpoint.of({"w": np.zeros(2, np.float32), "b": np.zeros(1, np.float32)}, label="base")
            >>> tau = TaskVector.of({"w": np.ones(2, np.float32)}, base)
            >>> (base + 0.5 * tau).array("w").tolist()
            [0.5, 0.5]
        """
        source = MemorySource(weights, label)
        known = floats(base.spec)
        same_names(source.spec, known, label, base.label, "apply", subset=True)
        partial = base.partial or len(source.spec) < len(known)
        return cls(graph.read(source), Base(base.label, node=base.node, forward=forward), label, partial)

    @classmethod
    def read(cls, path: str | Path, *, label: str | None = None) -> TaskVector:
        """Open a task vector: a file written by `save` (or any safetensors file of differences), or the folder of a LoRA
        adapter. Reads headers only."""
        return _vector(open_source(path, label))

    def __add__(self, other: TaskVector) -> Any:
        if isinstance(other, int) and other == 0:  # the start of sum([...])
            return self
        if isinstance(other, Checkpoint):
            return other + self
        if not isinstance(other, TaskVector):
            return NotImplemented
        return combined([(self, 1.0), (other, 1.0)])

    __radd__ = __add__

    def __neg__(self) -> TaskVector:
        return self * -1.0

    def __sub__(self, other: TaskVector) -> TaskVector:
        if isinstance(other, Checkpoint):
            raise NotLinear(f"cannot subtract the checkpoint {other.label} from the vector {self.label}.")
        if not isinstance(other, TaskVector):
            return NotImplemented
        return combined([(self, 1.0), (other, -1.0)])

    def __mul__(self, coefficient: float) -> TaskVector:
        if isinstance(coefficient, (TaskVector, Checkpoint)):
            raise NotLinear(f"cannot multiply {self.label} by {coefficient.label}: a coefficient must be a number.")
        if isinstance(coefficient, bool) or not isinstance(coefficient, numbers.Real):
            return NotImplemented
        c = float(coefficient)
        if not math.isfinite(c):
            raise UsageError(f"the coefficient of {self.label} is {c}; it must be a finite number.")
        return combined([(self, c)])

    __rmul__ = __mul__

    def __truediv__(self, number: float) -> TaskVector:
        if isinstance(number, bool) or not isinstance(number, numbers.Real):
            return NotImplemented
        if float(number) == 0.0 or not math.isfinite(float(number)):
            raise UsageError(f"cannot divide {self.label} by {number}; the divisor must be finite and not zero.")
        return self * (1.0 / float(number))

    def restrict(self, what: Select | str | Iterable[str]) -> TaskVector:
        """The vector on the chosen names (a Select, a shell pattern, or exact names), zero elsewhere.

        Raises:
            KeyMismatch: nothing is chosen.
        """
        node = graph.restrict(self.node, *_chosen(self, what))
        return TaskVector(node, self.base, self.label, True)

    def shared(self, base: Checkpoint) -> TaskVector:
        """The vector under the names of another checkpoint of the same shape and lineage (see `Checkpoint.shared`)."""
        found = match_names(self.spec, floats(base.spec), self.label, base.label)
        if not found.old:
            raise KeyMismatch(f"the vector {self.label} and {base.label} share no tensor of equal name and shape.")
        return TaskVector(graph.rename(self.node, found.old, base.node), self.base, self.label, True)

    def rebase(self, base: Checkpoint) -> TaskVector:
        """The same numbers, declared to be a displacement from `base`: the explicit way to mix lineages."""
        there = Base(base.label, node=base.node, forward=self.forward)
        return TaskVector(graph.rebase(self.node, base.node), there, self.label, self.partial)

    @property
    def forward(self) -> str:
        """Through which function it was trained, and is evaluated unless told otherwise: ``plain``, ``linearised``, or
        ``mixed`` for a sum of both."""
        return self.base.forward

    def dot(self, other: TaskVector) -> float:
        r"""Inner product :math:`\langle\tau_a, \tau_b\rangle` over all entries, in float64."""
        return _measure(DOT, [self, other])

    def norm(self) -> float:
        r"""Euclidean norm :math:`\lVert\tau\rVert_2`, in float64."""
        return _measure(NORM, [self])

    def cosine(self, other: TaskVector) -> float:
        r""":math:`\langle\tau_a, \tau_b\rangle / (\lVert\tau_a\rVert \lVert\tau_b\rVert)`; 0 if one vector is zero."""
        both = [lift(DOT, [self, other]), lift(NORM, [self]), lift(NORM, [other])]
        values = summarise(*(s.node for s in both))
        product, a, b = (values[s.node.key] for s in both)
        return product / (a * b) if a and b else 0.0

    def array(self, name: str) -> np.ndarray:
        """One tensor in float32 (float64 where the files hold float64); computed now."""
        return self._working(name).copy()

    def arrays(self) -> dict[str, np.ndarray]:
        """All tensors by name, in float32; computed now."""
        summaries = summarise(self.node)
        return {name: self._working(name, summaries).copy() for name in self.names}

    def save(
        self, path: str | Path, *, overwrite: bool = False, threads: int | None = None, device: str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Path:  # fmt: skip
        """Write the vector as one float32 safetensors file that records the fingerprint of its base (see `Checkpoint.save`)."""
        from .output import vector_output
        from .write import write

        return write(
            vector_output(self, Path(path), device=device), overwrite=overwrite, threads=threads, progress=progress
        )

    def __repr__(self) -> str:
        return f"TaskVector({_said(self.node)}: {len(self.spec)} tensors, {sum(s.size for s in self.spec.values()):,} values)"


@dataclass(frozen=True, eq=False)
class Summary:
    """A small value reduced over all tensors, not yet computed; may stand where a step takes a number."""

    node: Node

    def value(self) -> Any:
        return summarise(self.node)[self.node.key]


def open_weights(path: str | Path, *, label: str | None = None, fetch: bool = True) -> Checkpoint | TaskVector:
    """A checkpoint or a task vector, whichever the file's metadata says; reads headers only (`fetch`: see `open_source`). A folder
    with a tokenizer alone is a checkpoint without tensors, for `aligned`."""
    source = open_source(path, label, fetch=fetch, tokenizer=True)
    return _vector(source) if source.metadata.get(VECTOR_KIND) == "vector" else _point(source)


def _point(source: Source) -> Checkpoint:
    return Checkpoint(graph.read(source), source.label, source.metadata.get(PARTIAL_KEY) == "true")


def _vector(source: Source) -> TaskVector:
    meta = source.metadata
    base = Base(
        meta.get("taskvec.base_label", "an unknown base"),
        recorded=meta.get(BASE_KEY),
        forward=meta.get(FORWARD_KEY, "plain"),
    )
    return TaskVector(graph.read(source), base, source.label, meta.get(PARTIAL_KEY) == "true")


def lift(
    op: Op, vectors: Sequence[TaskVector], *, per: Literal["model", "tensor"] = "model",
    beside: Sequence[Checkpoint] = (), **params: Any,
) -> Any:  # fmt: skip
    """Apply an operation to same-named tensors of vectors: the one way steps and summaries enter a graph.

    Args:
        op: what to compute.
        vectors: its inputs; a name that one lacks (a partial vector) is zero there.
        per: for a summary, one value over the model or one for each tensor.
        beside: further inputs, after the vectors: the base, or statistics under the vectors' names (zero where they have
            none), in shapes of their own if the operation takes whole tensors.
        params: numbers, texts, or `Summary` values.
    Returns:
        a TaskVector, or a Summary if the operation gives one.
    Raises:
        UsageError: no vectors.  KeyMismatch, BaseMismatch: vectors that cannot meet.
    """
    if not vectors:
        raise UsageError(f"{op.name} needs at least one task vector, got none.")
    spec, base, partial = meet(list(vectors))
    plain = {k: v.node if isinstance(v, Summary) else v for k, v in params.items()}
    others = tuple(graph.restrict(c.node, set(spec)) for c in beside)
    node = Node(op, (*(v.node for v in vectors), *others), spec, plain, per=per)
    if op.gives == "summary":
        return Summary(node)
    return TaskVector(node, base, _short(f"{op.name}({', '.join(v.label for v in vectors)})"), partial)


def named(name: str, vectors: Sequence[TaskVector], result: TaskVector, **params: Any) -> TaskVector:
    """Let a composition of steps print as the method it is: ``ties([a, b], density=0.2)``; `explain` shows the steps."""
    op = Op(name, fn=_no_kernel)
    said = {k: _plain(v) for k, v in params.items() if v is not None}
    node = Node(op, tuple(v.node for v in vectors), result.spec, said, expansion=result.node)
    label = _short(f"{name}({', '.join(v.label for v in vectors)})")
    return TaskVector(node, result.base, label, result.partial)


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_plain(v) for v in value)
    return value.node if isinstance(value, _Tensors) else value


def _no_kernel(*_: Any, **__: Any) -> Any:
    raise AssertionError("a named method is computed through its expansion")


def combined(weighted: list[tuple[TaskVector, float]]) -> TaskVector:
    """``sum_i c_i v_i`` in normal form."""
    vectors = [v for v, _ in weighted]
    spec, base, partial = meet(vectors)
    label = _short(" + ".join(v.label for v in vectors))
    return TaskVector(graph.combine([(v.node, c) for v, c in weighted], spec), base, label, partial)


def _said(node: Node) -> str:
    from .text import expression

    return _short(expression(node))


def _short(label: str) -> str:
    return label if len(label) <= LONGEST_LABEL else label[: LONGEST_LABEL - 1] + "…"


def _measure(op: Op, vectors: list[TaskVector]) -> float:
    return lift(op, vectors).value()


def _chosen(of: _Tensors, what: Select | str | Iterable[str]) -> tuple[set[str], tuple[str, ...]]:
    select = as_select(what)
    chosen = {n for n in of.names if select(n)}
    if not chosen:
        raise KeyMismatch(f"{select!r} chooses none of the {len(of.names)} tensors of {of.label} ({some(of.names)}).")
    return chosen, select.patterns
