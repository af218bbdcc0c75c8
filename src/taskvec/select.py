"""Select: a set of parameter names, as a predicate that can be combined with ``& | ~``."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .errors import UsageError


@dataclass(frozen=True)
class Select:
    """A predicate on parameter names with a text that says which.

    Example:
        >>> attention = matching("*.attn.*") & ~matching("*.bias")
        >>> [n for n in ("b.0.attn.qkv.weight", "b.0.attn.qkv.bias", "b.0.mlp.weight") if attention(n)]
        ['b.0.attn.qkv.weight']
    """

    test: Callable[[str], bool]
    text: str
    patterns: tuple[str, ...] = ()  # where patterns say it all, so that a recipe can repeat it

    def __call__(self, name: str) -> bool:
        return self.test(name)

    def __and__(self, other: Select) -> Select:
        return Select(lambda n: self(n) and other(n), f"({self.text} & {other.text})")

    def __or__(self, other: Select) -> Select:
        return Select(lambda n: self(n) or other(n), f"({self.text} | {other.text})")

    def __invert__(self) -> Select:
        return Select(lambda n: not self(n), f"~{self.text}")

    def __repr__(self) -> str:
        return f"Select[{self.text}]"


def matching(*patterns: str) -> Select:
    """Names that match at least one shell pattern (``*``, ``?``, ``[...]``), case-sensitively; ``~`` excludes.

    Example:
        >>> [n for n in ("a.weight", "a.bias", "b.weight") if matching("a.*", "~*.bias")(n)]
        ['a.weight']
        >>> matching("*.weight", "head.*")("head.bias")
        True
    """
    if not patterns:
        raise UsageError("matching() needs at least one pattern, for example matching('*.attn.*').")
    wanted = [re.compile(fnmatch.translate(p)) for p in patterns if not p.startswith("~")]
    unwanted = [re.compile(fnmatch.translate(p[1:])) for p in patterns if p.startswith("~")]

    def test(name: str) -> bool:
        chosen = any(c.match(name) for c in wanted) or not wanted
        return chosen and not any(c.match(name) for c in unwanted)

    return Select(test, ", ".join(patterns), patterns)


def named(names: Iterable[str]) -> Select:
    """Exactly these names.

    Example:
        >>> named(["head.weight"])("head.weight"), named(["head.weight"])("head")
        (True, False)
    """
    chosen = frozenset(names)
    return Select(chosen.__contains__, f"{len(chosen)} names")


everything = Select(lambda n: True, "*")


def as_select(what: Select | str | Iterable[str]) -> Select:
    """A Select, a shell pattern, or an iterable of exact names, as a Select."""
    if isinstance(what, Select):
        return what
    if isinstance(what, str):
        return matching(what)
    names = list(what)
    # An exact name holds neither; so a list of patterns means here what it means in an expression.
    return matching(*names) if any("*" in n or n.startswith("~") for n in names) else named(names)
