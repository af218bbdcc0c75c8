"""Layers: which tensor belongs to which repeated block, coefficients that differ between them, stacks of blocks."""

from __future__ import annotations

import glob
import math
import numbers
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from ..errors import KeyMismatch, UsageError, nearest, some
from ..select import matching, named
from . import graph
from .algebra import Checkpoint, TaskVector, combined
from .lineage import Base
from .parts import PARTS, parts

# What networks call the tensors that come before their blocks; all others outside of blocks come after them.
BEFORE = re.compile(r"(^|[._])(embed(?!_out)|embeddings?|wte|wpe|tok_embeddings|cls_token|pos_embed|conv1|patch)", re.I)

Amount = float | Sequence[float]


def layer(name: str) -> tuple[str, int] | None:
    """The stack of blocks a tensor lies in and its place there, from the first number in its name; None outside.

    Example:
        >>> layer("model.layers.3.mlp.up_proj.weight"), layer("lm_head.weight")
        (('model.layers', 3), None)
    """
    parts = name.split(".")
    place = next((i for i, p in enumerate(parts) if p.isdecimal()), None)
    return None if place is None else (".".join(parts[:place]), int(parts[place]))


def depths(names: Iterable[str]) -> dict[str, int]:
    """Stack of blocks -> how many blocks it has."""
    found: dict[str, int] = {}
    for at in filter(None, map(layer, names)):
        found[at[0]] = max(found.get(at[0], 0), at[1] + 1)
    return found


def between(values: Sequence[float], t: float) -> float:
    """The value at `t` in [0, 1] of the broken line through equally spaced values.

    Example:
        >>> between([0, 1, 0], 0.25)
        0.5
    """
    at = t * (len(values) - 1)
    i = min(int(at), len(values) - 1)
    share = at - i
    return (1 - share) * values[i] + share * values[min(i + 1, len(values) - 1)]


def scale_by(vector: TaskVector, coefficients: Amount | Mapping[str, Amount]) -> TaskVector:
    r"""A vector with coefficients that differ between its tensors: :math:`\sum_g c_g \tau_{|g}`.

    A list runs over the layers: its values are equally spaced from the first block to the last and interpolated between;
    tensors outside of blocks (embeddings, head) are not meant by it. A table gives a number or a list to each name
    pattern, or to each part of the network, for which the words attention, mlp, norm, embedding and head stand (see
    `taskvec.weights.part`; what is in none of them is reached by patterns). The first entry that a tensor matches counts.
    Tensors that nothing speaks of keep the coefficient 1; those with 0 are left out, as `restrict` leaves them out.

    Args:
        vector: the vector.
        coefficients: one number, a list over layers, or a table of name patterns and parts to such.
    Raises:
        UsageError: a pattern or part that matches no tensor, a word that is both a part and a tensor's name, or a list for a
            vector without numbered blocks.
    Example:
        >>> import numpy as np
        >>> base = Checkpoint.of({f"layers.{i}.w": np.zeros(1, np.float32) for i in range(3)})
        >>> tau = TaskVector.of({n: np.ones(1, np.float32) for n in base.names}, base)
        >>> [float(scale_by(tau, [1, 3]).array(n)[0]) for n in base.names]
        [1.0, 2.0, 3.0]
        >>> [float(scale_by(tau, {"layers.1.*": 7}).array(n)[0]) for n in base.names]
        [1.0, 7.0, 1.0]
        >>> base = Checkpoint.of({n: np.zeros(1, np.float32) for n in ("h.0.attn.w", "h.0.mlp.w", "wte.weight")})
        >>> tau = TaskVector.of({n: np.ones(1, np.float32) for n in base.names}, base)
        >>> [float(scale_by(tau, {"attention": 0.5, "mlp": 2}).array(n)[0]) for n in base.names]
        [0.5, 2.0, 1.0]
    """
    if isinstance(coefficients, numbers.Real) and not isinstance(coefficients, bool):
        return vector * float(coefficients)
    table = coefficients if isinstance(coefficients, Mapping) else {"*": coefficients}
    if not table:
        raise UsageError("scale_by: the table of coefficients is empty; write for example {'mlp': 0.5}.")
    found: dict[str, float] = {}
    for pattern, amount in table.items():
        chosen = _chosen(vector, pattern)
        if not chosen:
            hint = nearest(pattern, [*vector.names, *PARTS])
            raise UsageError(
                f"scale_by: {pattern!r} matches none of the {len(vector.names)} tensors of {vector.label} "
                f"({some(vector.names)}).{hint}"
            )
        for name, c in _amounts(chosen, amount, depths(vector.names)).items():
            found.setdefault(name, c)
    return scaled(vector, found)


def _chosen(vector: TaskVector, pattern: str) -> list[str]:
    """The tensors that an entry of a table is about.

    Raises:
        UsageError: a part that is not there, or a word that may mean a part or a tensor.
    """
    if pattern not in PARTS:
        return [n for n in vector.names if matching(pattern)(n)]
    if pattern in vector.names:
        raise UsageError(
            f"scale_by: {pattern!r} is a part of networks, and {vector.label} has a tensor of that name. For the tensor write "
            f"'[{pattern[0]}]{pattern[1:]}'; for the part, patterns of its names."
        )
    found = parts(vector.names)
    if pattern not in found:
        has = ", ".join(f"{p} ({len(held)})" for p, held in found.items())
        raise UsageError(
            f"scale_by: the part {pattern!r} matches none of the {len(vector.names)} tensors of {vector.label}; by their names "
            f"these are {has}. Name the tensors by patterns."
        )
    return found[pattern]


def _amounts(names: list[str], amount: Amount, deep: Mapping[str, int]) -> dict[str, float]:
    if isinstance(amount, numbers.Real) and not isinstance(amount, bool):
        return dict.fromkeys(names, _finite(amount))
    if isinstance(amount, str) or not isinstance(amount, Sequence) or not amount:
        raise UsageError(f"scale_by: {amount!r} is neither a number nor a list of numbers over the layers.")
    values = [_finite(v) for v in amount]
    places = {n: at for n in names if (at := layer(n)) is not None}
    if not places:
        raise UsageError(f"scale_by: a list runs over layers, but {some(names)} lie in no numbered blocks.")
    return {n: between(values, i / (deep[stack] - 1) if deep[stack] > 1 else 1.0) for n, (stack, i) in places.items()}


def _finite(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(float(value)):
        raise UsageError(f"scale_by: {value!r} is no coefficient; it must be a finite number.")
    return float(value)


def scaled(vector: TaskVector, coefficients: Mapping[str, float]) -> TaskVector:
    """The vector with a coefficient for each name; 1 for names that are not mentioned."""
    groups: dict[float, list[str]] = {}
    for name in vector.names:
        groups.setdefault(coefficients.get(name, 1.0), []).append(name)
    if len(groups) == 1:
        return vector * next(iter(groups))
    parts = [
        (only(vector, names), c) for c, names in groups.items() if c
    ]  # zeros are left out, as text leaves them out
    return replace(combined(parts), partial=vector.partial or 0.0 in groups, label=vector.label)


def only(vector: TaskVector, names: Sequence[str]) -> TaskVector:
    """The vector on exactly these of its names; a recipe says them by as few patterns as will do."""
    return vector.restrict(matching(*patterns(names, vector.names))) if names else vector.restrict(named(names))


def patterns(names: Iterable[str], among: Iterable[str]) -> list[str]:
    """The fewest patterns of the form ``prefix.*`` and exact names that choose `names` and none other of `among`.

    Example:
        >>> patterns(["a.0.w", "a.0.b", "a.1.w"], ["a.0.w", "a.0.b", "a.1.w", "a.1.b", "c"])
        ['a.0.*', 'a.1.w']
    """
    wanted, other = list(names), set(among) - set(names)
    barred = {prefix for n in other for prefix in _prefixes(n)}
    out: dict[str, None] = {}
    for n in wanted:
        whole = next((p for p in _prefixes(n) if p not in barred), None)
        said = glob.escape(n) if whole is None else f"{glob.escape(whole)}*"
        out[f"[{said[0]}]{said[1:]}" if said in PARTS else said] = None
    return list(out)


def _prefixes(name: str) -> list[str]:
    """``a.b.c`` -> ``["", "a.", "a.b."]``"""
    parts = name.split(".")
    return ["", *(".".join(parts[:i]) + "." for i in range(1, len(parts)))]


def as_vector(point: Checkpoint, base: Checkpoint) -> TaskVector:
    """A checkpoint's floating-point weights as a displacement from zero, to be added to `base`.

    What methods on weights rather than on differences need: ``base + 0.5 * as_vector(a, base) - as_vector(base, base)``.
    """
    node = graph.as_vector(point.node, base.node)
    return TaskVector(node, Base(base.label, node=base.node), point.label, point.partial or base.partial)


def stack(*pieces: tuple[Checkpoint, int, int]) -> Checkpoint:
    """Blocks of several checkpoints on top of each other, numbered anew (a "frankenmerge").

    What comes before the blocks (embeddings) is the first checkpoint's, what comes after them (norm, head) the last one's.
    A folder written from it carries the first one's config with the new number of layers.

    Args:
        pieces: (checkpoint, first block, past the last block).
    Raises:
        UsageError: no pieces, or a range that the checkpoint does not have.
        KeyMismatch: the checkpoints' blocks are named differently, or there is not one stack of them.
    Example:
        >>> import numpy as np
        >>> a = Checkpoint.of({"embed": np.zeros(1), "layers.0.w": np.full(1, 1.0), "layers.1.w": np.full(1, 2.0)}, label="a")
        >>> {n: float(x[0]) for n, x in stack((a, 0, 2), (a, 1, 2)).arrays().items()}
        {'embed': 0.0, 'layers.0.w': 1.0, 'layers.1.w': 2.0, 'layers.2.w': 2.0}
    """
    if not pieces:
        raise UsageError("stack needs pieces, for example stack((a, 0, 16), (b, 8, 24)).")
    homes = [_home(point) for point, _, _ in pieces]
    if len({name for name, _ in homes}) > 1:
        raise KeyMismatch(
            f"stack: the blocks are called {some(dict.fromkeys(n for n, _ in homes))}; they must have one name."
        )
    for (point, first, last), (_, deep) in zip(pieces, homes, strict=True):
        if not 0 <= first < last <= deep:
            raise UsageError(
                f"stack: {point.label} has the blocks 0 to {deep - 1}; from {first} to before {last} is no range of them."
            )
    points = list({p.node.key: p for p, _, _ in pieces}.values())
    place = {p.node.key: i for i, p in enumerate(points)}
    old: dict[str, tuple[int, str]] = {}
    bottom, top = pieces[0][0], pieces[-1][0]
    old |= {n: (place[bottom.node.key], n) for n in bottom.names if layer(n) is None and BEFORE.search(n)}
    offset, home = 0, homes[0][0]
    for point, first, last in pieces:
        for name in point.names:
            at = layer(name)
            if at is not None and first <= at[1] < last:
                rest = name[len(f"{home}.{at[1]}") :]
                old[f"{home}.{at[1] - first + offset}{rest}"] = place[point.node.key], name
        offset += last - first
    old |= {n: (place[top.node.key], n) for n in top.names if layer(n) is None and not BEFORE.search(n)}
    said = tuple((place[p.node.key], first, last) for p, first, last in pieces)
    labels = " on ".join(dict.fromkeys(p.label for p, _, _ in reversed(pieces)))
    return Checkpoint(graph.stack([p.node for p in points], old, said), labels, any(p.partial for p in points))


def _home(point: Checkpoint) -> tuple[str, int]:
    """The one stack of blocks of a checkpoint, and its depth."""
    found = depths(point.names)
    if len(found) != 1:
        has = f"{len(found)} ({some(found)})" if found else "none"
        raise KeyMismatch(f"stack: {point.label} must have one stack of numbered blocks, and has {has}.")
    return found.popitem()
