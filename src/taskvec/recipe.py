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
"""

from __future__ import annotations

import ast
import inspect
import keyword
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import InputError, NotLinear, TaskvecError, UnknownName, UsageError, nearest
from .methods import METHODS
from .select import matching
from .weights import Checkpoint, TaskVector, open_weights

Value = Checkpoint | TaskVector
LONGEST = 20_000  # characters of one expression
FUNCTIONS = ("restrict", "shared", "rebase")


@dataclass(frozen=True)
class Recipe:
    """Inputs by name (a path, or an expression over other names) and the output expression."""

    output: str
    read: Mapping[str, Path] = field(default_factory=dict)
    define: Mapping[str, str] = field(default_factory=dict)
    dtype: str | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)

    def unused(self) -> list[str]:
        """Inputs that neither the output nor a definition mentions."""
        words = {w for text in (self.output, *self.define.values()) for w in re.findall(r"\w+", text)}
        return [n for n in self.read if n not in words]

    def build(self) -> Value:
        """Open the inputs (headers only) and build the output, still lazy.

        Raises:
            UsageError: the text is malformed, names an unknown input or method, or refers to itself.
            InputError: an input cannot be used.
        """
        for name, expected in self.sha256.items():
            _check_hash(name, self.read[name], expected)
        return parse(self.output, _Names(self.read, self.define))


def load(path: str | Path) -> Recipe:
    """Read a YAML recipe; file names in it are relative to its folder.

    Raises:
        UsageError: not a recipe; says which key or line is wrong.
    """
    path = Path(path)
    table = _yaml(path)
    known = {"recipe", "let", "output", "dtype"}
    for key in table:
        if key not in known:
            raise UsageError(
                f"{path}: unknown key {key!r}; a recipe has recipe, let, output and dtype.{nearest(str(key), known)}"
            )
    if table.get("recipe") != 1 or isinstance(table["recipe"], bool):
        raise UsageError(f"{path}: expected `recipe: 1` (the version of the format), got {table.get('recipe')!r}.")
    output, let = table.get("output"), table.get("let", {})
    if not isinstance(output, str):
        raise UsageError(f"{path}: `output` must be an expression such as `base + 0.4 * cars`, got {output!r}.")
    if not isinstance(let, dict):
        raise UsageError(f"{path}: `let` must be a table of names, got {type(let).__name__}.")
    if not isinstance(table.get("dtype"), (str, type(None))):
        raise UsageError(f"{path}: `dtype` must be a number format such as bfloat16, got {table['dtype']!r}.")
    read: dict[str, Path] = {}
    define: dict[str, str] = {}
    hashes: dict[str, str] = {}
    for name, value in let.items():
        check_name(name)
        if isinstance(value, str):
            define[name] = value
            continue
        if not isinstance(value, dict) or not isinstance(value.get("read"), str):
            raise UsageError(f"{path}: let.{name} must be `{{read: path}}` or an expression, got {value!r}.")
        for key in value:
            if key not in ("read", "sha256"):
                raise UsageError(
                    f"{path}: let.{name} has the unknown key {key!r}.{nearest(str(key), ['read', 'sha256'])}"
                )
        read[name] = path.parent / value["read"]
        if "sha256" in value:
            hashes[name] = str(value["sha256"])
    return Recipe(output, read, define, table.get("dtype"), hashes)


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


class _Names(Mapping[str, Value]):
    """Names that are opened or computed when first used; a definition may use others but not itself."""

    def __init__(self, read: Mapping[str, Path], define: Mapping[str, str]):
        self._read, self._define = read, define
        self._known: dict[str, Value] = {}
        self._open: list[str] = []

    def __getitem__(self, name: str) -> Value:
        if name in self._known:
            return self._known[name]
        if name in self._open:
            raise UsageError(f"the definition of {name!r} refers to itself: {' -> '.join([*self._open, name])}.")
        if name in self._read:
            self._known[name] = open_weights(self._read[name], label=name)
        elif name in self._define:
            self._open.append(name)
            self._known[name] = parse(self._define[name], self)
            self._open.pop()
        else:
            raise KeyError(name)
        return self._known[name]

    def __iter__(self):
        return iter([*self._read, *self._define])

    def __len__(self) -> int:
        return len(self._read) + len(self._define)


def parse(text: str, names: Mapping[str, Value]) -> Value:
    """Build the value of an expression over the given names.

    Only names, numbers, ``+ - * /``, parentheses, method calls with a list of vectors and keyword hyper-parameters, and
    ``restrict``, ``shared``, ``rebase`` are understood; the text is walked as a syntax tree and never executed.

    Raises:
        UsageError: anything else; UnknownName with the nearest match for a name or method that does not exist.
    """
    if len(text) > LONGEST:
        raise UsageError(f"the expression has {len(text):,} characters; the limit is {LONGEST:,}.")
    try:
        tree = ast.parse(text.strip(), mode="eval")
        value = _build(tree.body, names, text.strip())
    except SyntaxError as error:
        place = " " * (max(1, error.offset or 1) - 1) + "^"
        raise UsageError(f"cannot read the expression ({error.msg}):\n  {text.strip()}\n  {place}") from None
    except (RecursionError, MemoryError):
        raise UsageError("the expression is nested too deeply.") from None
    except ValueError as error:
        if isinstance(error, TaskvecError):
            raise
        raise UsageError(f"cannot read the expression ({error}).") from None
    if isinstance(value, float):
        raise NotLinear(f"the expression is the number {value:g}; it must give a checkpoint or a task vector.")
    return value


def _build(node: ast.expr, names: Mapping[str, Value], text: str) -> Any:
    match node:
        case ast.Name(id=name):
            try:
                return names[name]
            except KeyError:
                hint = nearest(name, names)
                known = ", ".join(names) or "none"
                hint = (
                    hint
                    or f" To open a checkpoint: `{name}: {{read: path}}` in a recipe, --let {name}=PATH on the command line."
                )
                raise UnknownName(f"unknown name {name!r} in the expression; known are: {known}.{hint}") from None
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            try:
                return float(value)
            except OverflowError:
                raise UsageError("a number in the expression has more digits than a coefficient can hold.") from None
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -_build(inner, names, text)
        case ast.UnaryOp(op=ast.UAdd(), operand=inner):
            return _build(inner, names, text)
        case ast.BinOp(left=left, op=op, right=right):
            return _binary(op, _build(left, names, text), _build(right, names, text), _said(node, text))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
            return _call(name, args, keywords, names, text)
    match node:
        case ast.Call(func=ast.Attribute(value=inner, attr=name)) if name in FUNCTIONS:
            what = "'*.attn.*'" if name == "restrict" else "base"
            raise UsageError(f"in an expression, write {name}({_said(inner, text)}, {what}).")
    raise UsageError(
        f"{_said(node, text)!r} cannot stand in an expression: only names, numbers, + - * /, parentheses and methods can."
    )


def _said(node: ast.AST, text: str) -> str:
    return ast.get_source_segment(text, node) or type(node).__name__  # type: ignore[arg-type]


def _binary(op: ast.operator, a: Any, b: Any, said: str) -> Any:
    operations: dict[type, Callable[[Any, Any], Any]] = {
        ast.Add: lambda x, y: x + y,
        ast.Sub: lambda x, y: x - y,
        ast.Mult: lambda x, y: x * y,
        ast.Div: lambda x, y: x / y,
    }
    if type(op) not in operations:
        raise UsageError(f"{said!r}: only + - * / are operations here.")
    try:
        return operations[type(op)](a, b)
    except ZeroDivisionError:
        raise UsageError(f"{said!r} divides by zero.") from None
    except TypeError as error:
        if isinstance(error, TaskvecError):
            raise
        kinds = {Checkpoint: "a checkpoint", TaskVector: "a task vector", float: "a number"}
        raise NotLinear(
            f"{said!r} combines {kinds[type(a)]} and {kinds[type(b)]}, which has no meaning: a task vector is a difference "
            "of checkpoints, takes a number as coefficient, and is added to a checkpoint."
        ) from None


def _call(name: str, args: list[ast.expr], keywords: list[ast.keyword], names: Mapping[str, Value], text: str) -> Any:
    if name in FUNCTIONS:
        return _function(name, args, keywords, names, text)
    if name not in METHODS:
        known = [*METHODS, *FUNCTIONS]
        raise UnknownName(f"unknown method {name!r}; `taskvec methods` lists them.{nearest(name, known)}")
    method = METHODS[name].fn
    if len(args) != 1 or not isinstance(args[0], (ast.List, ast.Tuple)):
        raise UsageError(f"{name} takes a list of task vectors in brackets, for example {name}([a, b]).")
    vectors = [_build(v, names, text) for v in args[0].elts]
    for value, said in zip(vectors, args[0].elts, strict=True):
        if not isinstance(value, TaskVector):
            what = "a checkpoint; subtract its base first" if isinstance(value, Checkpoint) else "a number"
            raise NotLinear(f"{name}: {_said(said, text)!r} is {what}. Methods combine task vectors.")
    allowed = [p.name for p in inspect.signature(method).parameters.values() if p.kind is p.KEYWORD_ONLY]
    given: dict[str, Any] = {}
    for word in keywords:
        if word.arg in given:
            raise UsageError(f"{name}: {word.arg} is given twice.")
        if word.arg not in allowed:
            known = ", ".join(allowed) or "none"
            hint = nearest(word.arg or "", allowed)
            raise UnknownName(f"{name} has no hyper-parameter {word.arg!r}; it has: {known}.{hint}")
        number = _build(word.value, {}, text)
        if not isinstance(number, float):
            raise UsageError(f"{name}: {word.arg} must be a number.")
        given[word.arg] = _whole(word.value, number, name) if word.arg == "seed" else number
    required = [
        p.name
        for p in inspect.signature(method).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.default is p.empty and p.name not in given
    ]
    if required:
        raise UsageError(f"{name} needs {', '.join(required)}, for example {name}([a, b], {required[0]}=0.2).")
    return method(vectors, **given)


def _whole(node: ast.expr, number: float, method: str) -> int:
    """A seed; written out, it may have more digits than a float holds."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if not number.is_integer():
        raise UsageError(f"{method}: seed must be a whole number, got {number:g}.")
    return int(number)


def _function(
    name: str, args: list[ast.expr], keywords: list[ast.keyword], names: Mapping[str, Value], text: str
) -> Any:
    if len(args) != 2 or keywords:
        example = {"restrict": "restrict(v, '*.attn.*')", "shared": "shared(tuned, base)", "rebase": "rebase(v, base)"}
        raise UsageError(f"{name} takes two arguments: {example[name]}.")
    first = _build(args[0], names, text)
    if not isinstance(first, (Checkpoint, TaskVector)):
        raise NotLinear(f"{name}: the first argument must be a checkpoint or a task vector.")
    if name == "restrict":
        given = args[1].elts if isinstance(args[1], (ast.List, ast.Tuple)) else [args[1]]
        patterns = [e.value for e in given if isinstance(e, ast.Constant) and isinstance(e.value, str)]
        if not patterns or len(patterns) < len(given):
            raise UsageError(
                "restrict takes patterns of names in quotes: restrict(v, '*.attn.*') or restrict(v, ['a', 'b'])."
            )
        return first.restrict(matching(*patterns))
    base = _build(args[1], names, text)
    if not isinstance(base, Checkpoint) or (name == "rebase" and isinstance(first, Checkpoint)):
        raise NotLinear(f"{name} takes a {'vector' if name == 'rebase' else 'checkpoint or vector'} and a checkpoint.")
    return first.shared(base) if name == "shared" else first.rebase(base)  # type: ignore[union-attr]


def _check_hash(name: str, path: Path, expected: str) -> None:
    import hashlib

    if not path.is_file():
        raise UsageError(f"let.{name}: sha256 is checked for single files; {path} is not one.")
    with path.open("rb") as f:
        found = hashlib.file_digest(f, "sha256").hexdigest()
    if found != expected:
        raise InputError(f"let.{name}: {path} has sha256 {found}, the recipe expects {expected}. It is another file.")


def _yaml(path: Path) -> dict[Any, Any]:
    """A YAML mapping, strictly: no tags, no aliases, no key twice."""
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
            table = yaml.load(f, Strict)
    except OSError as error:
        raise InputError(f"cannot read the recipe {path}: {error.strerror}.") from error
    except (yaml.YAMLError, RecursionError, ValueError, TypeError, AttributeError) as error:
        # The last three come from values such as 2001-99-99 or `!!int x`, which PyYAML converts without looking.
        said = " ".join(str(error).split()) if not isinstance(error, RecursionError) else "nested too deeply"
        raise UsageError(f"{path} is not a recipe: {said}.") from None
    if not isinstance(table, dict):
        raise UsageError(
            f"{path} is not a recipe: expected a table with recipe, let and output, got {type(table).__name__}."
        )
    return table
