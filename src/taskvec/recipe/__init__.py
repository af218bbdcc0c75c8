"""Recipes: an edit as text. An expression, or a YAML file of named inputs and one output; parsed, never evaluated.

An expression: ``base + 0.7 * ties([cars, dtd], density=0.2)``. The same as a file::

    recipe: 1
    let:
      base: {read: clip-b32/}            # a checkpoint or a task vector; its metadata says which
      tuned: {read: ft/cars/}
      cars: tuned - base                 # an expression over other names
      dtd: {read: dtd.safetensors}
    output: base + 0.7 * ties([cars, dtd], density=0.2)
    dtype: bfloat16                      # optional
    tokenizer: union                     # optional: whose vocabulary, where those of the inputs differ; an input or union
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..address import is_address
from ..errors import InputError, TaskvecError, UnknownName, UsageError, collecting, nearest, raise_all
from ..files import exists
from ..methods import METHODS
from ..weights import Checkpoint, TaskVector, aligned, open_weights
from ..weights.hashes import sha256
from .expression import FUNCTIONS, LONGEST, Broken, Value, parse, parse_into

__all__ = ["FUNCTIONS", "LONGEST", "Recipe", "check_name", "documents", "load", "parse"]


UNION, BY_NUMBER = "union", "none"  # what `tokenizer` can be beside an input


@dataclass(frozen=True)
class Recipe:
    """Inputs by name (a path, or an expression over other names) and the output expression.

    `stands` says where in which file an input is named, for errors.
    """

    output: str
    read: Mapping[str, Path] = field(default_factory=dict)
    define: Mapping[str, str] = field(default_factory=dict)
    dtype: str | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)
    tokenizer: str | None = None
    stands: Mapping[str, str] = field(default_factory=dict)

    def unused(self) -> list[str]:
        """Inputs that neither the output nor a definition mentions."""
        words = {w for text in (self.output, *self.define.values()) for w in re.findall(r"\w+", text)}
        return [n for n in self.read if n not in words and n != self.tokenizer]

    def build(self, *, fetch: bool = True) -> Value:
        """Open the inputs (headers only) and build the output, still lazy. All mistakes are raised as one error.

        Args:
            fetch: whether values of models on the hub may be fetched; else a vector of another base can go unnoticed.
        Raises:
            UsageError: the text is malformed, names an unknown input or method, or refers to itself.
            InputError: an input cannot be used.
        """
        mistakes: list[TaskvecError] = []
        for name, expected in self.sha256.items():
            if not is_address(self.read[name]) and not exists(self.read[name]):
                continue  # opening it says so
            with collecting(mistakes):
                _check_hash(name, self.read[name], expected)
        names = _Names(self.read, self.define, mistakes, self._aligned_to(), self.stands, fetch=fetch)
        value = parse_into(self.output, names, mistakes)
        for name in self.read if mistakes else ():  # a mistyped name may hide one that the next run would trip over
            names.get(name)
        raise_all(mistakes)
        assert not isinstance(value, Broken)
        return value

    def _aligned_to(self) -> tuple[str, list[str]] | None:
        """The vocabulary that all inputs get, and the inputs in the order of their use: the base comes first."""
        if self.tokenizer in (None, BY_NUMBER):
            return None
        if self.tokenizer != UNION and self.tokenizer not in self.read:
            raise UnknownName(
                f"the tokenizer {self.tokenizer!r} is none of the inputs {', '.join(self.read)}; it can be one of them, {UNION} or "
                f"{BY_NUMBER}.{nearest(str(self.tokenizer), self.read)}"
            )
        used = re.findall(r"\w+", self.output)
        return str(self.tokenizer), sorted(self.read, key=lambda n: used.index(n) if n in used else len(used))


def load(path: str | Path) -> Recipe:
    """Read a YAML recipe; file names in it are relative to its folder.

    Raises:
        UsageError: not a recipe; says which key or line is wrong.
    """
    path = Path(path)
    table = _yaml(path)
    mistakes: list[TaskvecError] = []

    def wrong(text: str) -> None:
        mistakes.append(UsageError(f"{path}: {text}"))

    known = {"recipe", "let", "output", "dtype", "tokenizer"}
    for key in table:
        if key not in known:
            wrong(
                f"unknown key {key!r}; a recipe has recipe, let, output, dtype and tokenizer.{nearest(str(key), known)}"
            )
    if table.get("recipe") != 1 or isinstance(table["recipe"], bool):
        wrong(f"expected `recipe: 1` (the version of the format), got {table.get('recipe')!r}.")
    output, let, dtype = table.get("output"), table.get("let", {}), table.get("dtype")
    tokenizer = table.get("tokenizer")
    if not isinstance(tokenizer, (str, type(None))):
        wrong(f"`tokenizer` must be an input, {UNION} or {BY_NUMBER}, got {tokenizer!r}.")
    if not isinstance(output, str):
        wrong(f"`output` must be an expression such as `base + 0.4 * cars`, got {output!r}.")
    if not isinstance(let, dict):
        wrong(f"`let` must be a table of names, got {type(let).__name__}.")
    if not isinstance(dtype, (str, type(None))):
        wrong(f"`dtype` must be a number format such as bfloat16, got {dtype!r}.")
    read: dict[str, Path] = {}
    define: dict[str, str] = {}
    hashes: dict[str, str] = {}
    for name, value in let.items() if isinstance(let, dict) else ():
        with collecting(mistakes):
            check_name(name)
        if isinstance(value, str):
            define[name] = value
            continue
        if not isinstance(value, dict) or not isinstance(value.get("read"), str):
            wrong(f"let.{name} must be `{{read: path}}` or an expression, got {value!r}.")
            continue
        for key in value:
            if key not in ("read", "sha256"):
                wrong(f"let.{name} has the unknown key {key!r}.{nearest(str(key), ['read', 'sha256'])}")
        read[name] = Path(value["read"]) if is_address(value["read"]) else path.parent / value["read"]
        if "sha256" in value:
            hashes[name] = str(value["sha256"])
    raise_all(mistakes)
    return Recipe(str(output), read, define, dtype, hashes, tokenizer, {n: f"{path}: let.{n}" for n in read})


def check_name(name: Any) -> str:
    """A name that can stand in an expression."""
    if not isinstance(name, str) or not name.isidentifier():
        hint = f" Write {str(name).replace('-', '_').replace('.', '_')!r}." if isinstance(name, str) else ""
        raise UsageError(f"{name!r} cannot be a name in an expression: use letters, digits and underscores.{hint}")
    if keyword.iskeyword(name):
        raise UsageError(f"{name!r} is a word of the expression language's grammar and cannot name an input.")
    if name in METHODS or name in FUNCTIONS:
        raise UsageError(f"{name!r} is the name of a method and cannot name an input; choose another.")
    return name


class _Names(Mapping[str, "Value | Broken"]):
    """Names that are opened or computed when first used, each once; a definition may use others but not itself."""

    def __init__(
        self, read: Mapping[str, Path], define: Mapping[str, str], mistakes: list[TaskvecError],
        aligned_to: tuple[str, list[str]] | None = None, stands: Mapping[str, str] | None = None, *, fetch: bool = True,
    ):  # fmt: skip
        self._aligned_to, self._stands, self._fetch = aligned_to, stands or {}, fetch
        self._opened: dict[str, Value | Broken] = {}
        self._read, self._define, self._mistakes = read, define, mistakes
        self._known: dict[str, Value | Broken] = {}
        self._open: list[str] = []

    def __getitem__(self, name: str) -> Value | Broken:
        if name in self._known:
            return self._known[name]
        if name in self._open:
            circle = " -> ".join([*self._open, name])
            self._mistakes.append(UsageError(f"the definition of {name!r} refers to itself: {circle}."))
            return Broken()
        found: Value | Broken = Broken()
        if name in self._read:
            found = self._open_input(name)
            if self._aligned_to and isinstance(found, Checkpoint) and found.spec:
                found = self._align(found, *self._aligned_to)
        elif name in self._define:
            self._open.append(name)
            found = parse_into(self._define[name], self, self._mistakes)
            self._open.pop()
        else:
            raise KeyError(name)
        self._known[name] = found
        return found

    def _open_input(self, name: str) -> Value | Broken:
        if name not in self._opened:
            self._opened[name] = Broken()
            path = self._read[name]
            with collecting(self._mistakes):
                try:
                    self._opened[name] = open_weights(path, label=name, fetch=self._fetch)
                except InputError as error:
                    if name not in self._stands or is_address(path) or exists(path):
                        raise
                    raise InputError(f"{self._stands[name]}: {error}") from None
        return self._opened[name]

    def _align(self, point: Checkpoint, tokenizer: str, order: list[str]) -> Value | Broken:
        """An input in the vocabulary of all: tokens that it lacks get the base's row, else the mean of those that have them."""
        points = [p for p in map(self._open_input, order) if isinstance(p, Checkpoint)]
        donors = [p for p in points if p.spec]
        to = donors if tokenizer == UNION else self._open_input(tokenizer)
        out: Value | Broken = Broken()
        if isinstance(to, TaskVector):
            self._mistakes.append(UsageError(f"the tokenizer {tokenizer!r} is a task vector, which has none."))
        elif not isinstance(to, Broken):
            with collecting(self._mistakes):
                own = isinstance(to, list) or to is donors[0]  # the vocabulary's owners are the donors, the base first
                out = aligned(point, to, donors=None if own else donors)
        return out

    def __iter__(self):
        return iter([*self._read, *self._define])

    def __len__(self) -> int:
        return len(self._read) + len(self._define)


def _check_hash(name: str, path: Path, expected: str) -> None:
    if is_address(path):
        raise UsageError(
            f"let.{name}: sha256 is checked for files; of a model on the hub name the commit: hf://org/name@COMMIT."
        )
    if exists(path) and not path.is_file():
        raise UsageError(f"let.{name}: sha256 is checked for single files; {path} is not one.")
    found = sha256(path, fresh=True)
    if found != expected:
        raise InputError(f"let.{name}: {path} has sha256 {found}, the recipe expects {expected}. It is another file.")


def _yaml(path: Path) -> dict[Any, Any]:
    tables = documents(path)
    if len(tables) != 1:
        raise UsageError(f"{path} is not a recipe: it holds {len(tables)} documents, expected one.")
    return tables[0]


def documents(path: Path) -> list[dict[Any, Any]]:
    """The mappings of a YAML file, strictly: no tags, no aliases, no key twice."""
    import yaml

    class Strict(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.constructor.ConstructorError(
                    None, None, "aliases are not allowed", self.peek_event().start_mark
                )
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen: set[Any] = set()
            for key_node, _ in node.value:
                key = self.construct_object(key_node, deep=True)
                if not isinstance(key, str) or key in seen or key == "<<":
                    what = (
                        "is not a text" if not isinstance(key, str) else "is given twice" if key in seen else "merges"
                    )
                    raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} {what}", key_node.start_mark)
                seen.add(key)
            return super().construct_mapping(node, deep)

    try:
        with path.open(encoding="utf-8") as f:
            tables = [t for t in yaml.load_all(f, Strict) if t is not None]
    except OSError as error:
        raise InputError(f"cannot read the recipe {path}: {error.strerror}.") from error
    except (yaml.YAMLError, RecursionError, ValueError, TypeError, AttributeError) as error:
        # The last three come from values such as 2001-99-99 or `!!int x`, which PyYAML converts without looking.
        said = " ".join(str(error).split()) if not isinstance(error, RecursionError) else "nested too deeply"
        raise UsageError(f"{path} is not a recipe: {said}.") from None
    for table in tables or [None]:
        if not isinstance(table, dict):
            raise UsageError(
                f"{path} is not a recipe: expected a table with recipe, let and output, got {type(table).__name__}."
            )
    return tables
