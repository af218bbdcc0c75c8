"""One entry of a step, written once and compiled: numbers that write down what is done to them.

An `Op` may carry, beside its array form, the same computation on one entry (`Op.entry`). It is called with `Entry`
values, which look like numbers and emit LLVM instructions, for a whole vector of entries or for one. Only what steps and
summaries need is here: ``+ - * /``, comparisons, `abs`, `where`, the bits of a number, and three ways to add up.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

TYPES = {"number": "float", "double": "double", "word": "i32", "truth": "i1"}


@dataclass(frozen=True)
class Words:
    """The 32-bit words of Philox-4x64 under a 128-bit key, from position `first` on: a random stream a step may ask for."""

    key: tuple[int, int]
    first: int


@dataclass(frozen=True)
class Total:
    """A summary's reduction: the sum of a double over all entries, in `LANES` interleaved lanes (see summaries.py)."""

    value: Entry


@dataclass(frozen=True)
class Count:
    """A summary's reduction: how many entries meet a condition."""

    condition: Entry | None  # None: all


@dataclass(frozen=True)
class Histogram:
    """A summary's reduction: counts of words below `bins`, of those entries that meet the condition."""

    index: Entry
    bins: int
    condition: Entry | None = None


class Code:
    """Instructions of one loop body that treats `width` entries at a time."""

    def __init__(self, width: int):
        self.width, self.lines, self._count = width, [], 0
        self.lines: list[str]

    def line(self, text: str) -> None:
        self.lines.append("  " + text)

    def name(self) -> str:
        self._count += 1
        return f"%x{self.width}_{self._count}"

    def emit(self, instruction: str) -> str:
        name = self.name()
        self.line(f"{name} = {instruction}")
        return name

    def type(self, base: str) -> str:
        return base if self.width == 1 else f"<{self.width} x {base}>"

    def constant(self, base: str, value: float) -> str:
        if base in ("float", "double"):
            text = f"0x{struct.pack('>d', struct.unpack('f', struct.pack('f', value))[0]).hex()}"
        else:
            text = str(int(value))
        return text if self.width == 1 else "<" + ", ".join([f"{base} {text}"] * self.width) + ">"

    def spread(self, base: str, scalar: str) -> str:
        """A loop-invariant scalar in every place."""
        if self.width == 1:
            return scalar
        one = self.emit(f"insertelement {self.type(base)} poison, {base} {scalar}, i64 0")
        return self.emit(
            f"shufflevector {self.type(base)} {one}, {self.type(base)} poison, <{self.width} x i32> zeroinitializer"
        )


class Entry:
    """A number (float32), double, word (unsigned 32 bits) or truth value of each entry."""

    __slots__ = ("at", "code", "kind")

    def __init__(self, code: Code, kind: str, at: str):
        self.code, self.kind, self.at = code, kind, at

    @property
    def type(self) -> str:
        return self.code.type(TYPES[self.kind])

    def _text(self, other: Any) -> str:
        if isinstance(other, Entry):
            if other.kind != self.kind:
                raise TypeError(f"a {self.kind} meets a {other.kind}")
            return other.at
        return self.code.constant(TYPES[self.kind], other)

    def _do(self, instruction: str, other: Any, *, back: bool = False) -> Entry:
        a, b = self.at, self._text(other)
        if back:
            a, b = b, a
        return Entry(self.code, self.kind, self.code.emit(f"{instruction} {self.type} {a}, {b}"))

    def _arithmetic(self, name: str, other: Any, *, back: bool = False) -> Entry:
        if self.kind == "truth" or (self.kind == "word" and name == "div"):
            raise TypeError(f"no {name} of a {self.kind}")
        return self._do(name if self.kind == "word" else f"f{name}", other, back=back)

    def __add__(self, other: Any) -> Entry:
        return self._arithmetic("add", other)

    def __radd__(self, other: Any) -> Entry:
        return self._arithmetic("add", other, back=True)

    def __sub__(self, other: Any) -> Entry:
        return self._arithmetic("sub", other)

    def __mul__(self, other: Any) -> Entry:
        return self._arithmetic("mul", other)

    def __rmul__(self, other: Any) -> Entry:
        return self._arithmetic("mul", other, back=True)

    def __truediv__(self, other: Any) -> Entry:
        return self._arithmetic("div", other)

    def __rtruediv__(self, other: Any) -> Entry:
        return self._arithmetic("div", other, back=True)

    def __and__(self, other: Any) -> Entry:
        return self._do("and", other)

    def __or__(self, other: Any) -> Entry:
        return self._do("or", other)

    def __xor__(self, other: Any) -> Entry:
        return self._do("xor", other)

    def __rshift__(self, other: int) -> Entry:
        return self._do("lshr", other)

    def _compare(self, how: str, other: Any) -> Entry:
        if self.kind == "word":
            instruction = f"icmp {'ne' if how == 'ne' else 'eq' if how == 'eq' else 'u' + how}"
        else:  # as NumPy: false for NaN, except for "not equal"
            instruction = f"fcmp {'une' if how == 'ne' else 'o' + how}"
        return Entry(self.code, "truth", self.code.emit(f"{instruction} {self.type} {self.at}, {self._text(other)}"))

    def __gt__(self, other: Any) -> Entry:
        return self._compare("gt", other)

    def __ge__(self, other: Any) -> Entry:
        return self._compare("ge", other)

    def __lt__(self, other: Any) -> Entry:
        return self._compare("lt", other)

    def nonzero(self) -> Entry:
        return self._compare("ne", 0)

    def equals(self, other: Any) -> Entry:
        return self._compare("eq", other)

    def __abs__(self) -> Entry:
        magnitude = self.bits() & 0x7FFFFFFF
        return Entry(self.code, "number", self.code.emit(f"bitcast {magnitude.type} {magnitude.at} to {self.type}"))

    def where(self, yes: Any, no: Any) -> Entry:
        """`yes` where this truth value holds, else `no`; either may be a Python number."""
        kind = next((v.kind for v in (yes, no) if isinstance(v, Entry)), "number")
        like = Entry(self.code, kind, "")
        a, b = like._text(yes), like._text(no)
        at = self.code.emit(f"select {self.type} {self.at}, {like.type} {a}, {like.type} {b}")
        return Entry(self.code, kind, at)

    def bits(self) -> Entry:
        """The word that stores this number."""
        to = self.code.type("i32")
        return Entry(self.code, "word", self.code.emit(f"bitcast {self.type} {self.at} to {to}"))

    def wide(self) -> Entry:
        """This number as a double."""
        to = self.code.type("double")
        return Entry(self.code, "double", self.code.emit(f"fpext {self.type} {self.at} to {to}"))
