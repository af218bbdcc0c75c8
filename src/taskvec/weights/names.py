"""Parameter names: when two tables agree, how they differ, and which tensors correspond across a prefix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..errors import KeyMismatch, quoted, some
from .dtypes import DTYPES, TensorSpec

TABLE = 5  # differing shapes shown in an error


def floats(spec: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
    return {n: s for n, s in spec.items() if s.is_float}


@dataclass(frozen=True)
class NameMatch:
    """Which tensors of two checkpoints correspond: `old` maps the base's names to the other's names."""

    old: Mapping[str, str]
    prefix: str
    only_here: tuple[str, ...]
    only_base: tuple[str, ...]
    other_shape: tuple[str, ...]
    here: str
    base: str

    def __str__(self) -> str:
        lines = [
            f"{len(self.old)} tensors of {self.here} match {self.base}" + (f" ({self.prefix})" if self.prefix else "")
        ]
        for what, names in (
            (f"only in {self.here}", self.only_here),
            (f"only in {self.base}", self.only_base),
            ("in both with another shape", self.other_shape),
        ):
            if names:
                lines.append(f"  left out, {what}: {len(names)} ({some(names, 6)})")
        return "\n".join(lines)


def _prefixes(names: Iterable[str]) -> list[str]:
    """Leading components that most names share: candidates for a wrapper's prefix such as ``bert.``."""
    names = list(names)
    counts: dict[str, int] = {}
    for name in names:
        parts = name.split(".")
        for i in range(1, min(len(parts), 4)):
            prefix = ".".join(parts[:i]) + "."
            counts[prefix] = counts.get(prefix, 0) + 1
    return ["", *(p for p, c in counts.items() if c >= len(names) / 2)]


def match_names(
    here: Mapping[str, TensorSpec], base: Mapping[str, TensorSpec], here_label: str, base_label: str
) -> NameMatch:
    """Match two tables of names, allowing that one side carries a prefix which the other lacks."""
    best: tuple[int, dict[str, str], str] = (-1, {}, "")
    for mine in _prefixes(here):
        for theirs in _prefixes(base):
            bare = {n[len(mine) :]: n for n in here if n.startswith(mine)}
            old = {n: bare[n[len(theirs) :]] for n in base if n.startswith(theirs) and n[len(theirs) :] in bare}
            said = " and ".join(f"without {p!r} in {w}" for p, w in ((mine, here_label), (theirs, base_label)) if p)
            if len(old) > best[0]:
                best = (len(old), old, said)
    _, old, said = best
    wrong = tuple(n for n, m in old.items() if base[n].shape != here[m].shape)
    old = {n: m for n, m in old.items() if n not in wrong}
    taken = set(old.values()) | {best[1][n] for n in wrong}
    return NameMatch(
        old, said, tuple(n for n in here if n not in taken), tuple(n for n in base if n not in old and n not in wrong),
        wrong, here_label, base_label,
    )  # fmt: skip


def same_names(
    here: Mapping[str, TensorSpec], there: Mapping[str, TensorSpec], a: str, b: str, verb: str, *, subset: bool
) -> None:
    """Raise unless names and shapes agree; with `subset`, `here` may have fewer names."""
    extra = [n for n in here if n not in there]
    absent = [] if subset else [n for n in there if n not in here]
    shapes = [n for n in here if n in there and here[n].shape != there[n].shape]
    if extra or absent or shapes:
        raise_mismatch(extra, absent, shapes, here, there, a, b, verb)


def _names(names: list[str]) -> str:
    return f"{len(names)} name{'s' if len(names) != 1 else ''}"


def raise_mismatch(
    extra: list[str], absent: list[str], shapes: list[str], here: Mapping[str, TensorSpec],
    there: Mapping[str, TensorSpec], a: str, b: str, verb: str,
) -> None:  # fmt: skip
    joined = {"subtract": f"subtract {b} from {a}", "apply": f"apply {a} to {b}", "combine": f"combine {a} and {b}"}[
        verb
    ]
    parts = []
    if extra:
        parts.append(f"{_names(extra)} only in {a} ({some(extra)})")
    if absent:
        parts.append(f"{len(absent)} only in {b} ({some(absent)})")
    if shapes:
        n = shapes[0]
        example = f" ({quoted(n)} is {here[n]} and {there[n]})" if len(shapes) == 1 else ""
        parts.append(f"{len(shapes)} differ in shape{example}")
    remedy = f"To edit only what both have, use {a}.shared({b}); in an expression, shared({a}, {b})"
    remedy += "; `taskvec diff` and `compare` take --shared." if verb == "subtract" else "."
    table = _shapes(shapes, here, there, a, b) if len(shapes) > 1 else ""
    raise KeyMismatch(f"cannot {joined}: {', '.join(parts)}. {remedy}{table}")


def _shapes(names: list[str], here: Mapping[str, TensorSpec], there: Mapping[str, TensorSpec], a: str, b: str) -> str:
    """The first few of the tensors that differ, in columns."""
    rows = [("tensor", a, b)]
    rows += [(quoted(n, 60), str(here[n]), str(there[n])) for n in names[:TABLE]]
    widths = [max(len(row[i]) for row in rows) for i in (0, 1)]
    lines = [f"\n  {n:<{widths[0]}}  {x:<{widths[1]}}  {y}" for n, x, y in rows]
    return "".join(lines) + (f"\n  and {len(names) - TABLE} more" if len(names) > TABLE else "")


def stored_bytes(spec: Mapping[str, TensorSpec], dtype: str | None = None) -> int:
    """Size on disk of these tensors, floating-point ones in `dtype` if given."""
    return sum(s.size * DTYPES[dtype if dtype and s.is_float else s.dtype].itemsize for s in spec.values())


def layer_of(name: str) -> str:
    """The block a parameter belongs to: its name up to the first number, else its first two components.

    Example:
        >>> layer_of("bert.encoder.layer.3.attention.self.query.weight"), layer_of("bert.embeddings.word_embeddings.weight")
        ('bert.encoder.layer.3', 'bert.embeddings')
    """
    parts = name.split(".")
    place = next((i for i, p in enumerate(parts) if p.isdigit()), None)
    return ".".join(parts[: place + 1] if place is not None else parts[: min(2, max(1, len(parts) - 1))])
