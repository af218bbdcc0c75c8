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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .errors import InputError, NotLinear, TaskvecError, UnknownName, UsageError, collecting, nearest, raise_all
from .methods import METHODS
from .select import matching
from .weights import Checkpoint, TaskVector, open_weights
from .weights.graph import combine
from .weights.lineage import Base

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
        """Open the inputs (headers only) and build the output, still lazy. All mistakes are raised as one error.

        Raises:
            UsageError: the text is malformed, names an unknown input or method, or refers to itself.
            InputError: an input cannot be used.
        """
        mistakes: list[TaskvecError] = []
        for name, expected in self.sha256.items():
            with collecting(mistakes):
                _check_hash(name, self.read[name], expected)
        names = _Names(self.read, self.define, mistakes)
        value = _parse(self.output, names, mistakes)
        for name in self.read if mistakes else ():  # a mistyped name may hide one that the next run would trip over
            names.get(name)
        raise_all(mistakes)
        assert not isinstance(value, _Broken)
        return value


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

    known = {"recipe", "let", "output", "dtype"}
    for key in table:
        if key not in known:
            wrong(f"unknown key {key!r}; a recipe has recipe, let, output and dtype.{nearest(str(key), known)}")
    if table.get("recipe") != 1 or isinstance(table["recipe"], bool):
        wrong(f"expected `recipe: 1` (the version of the format), got {table.get('recipe')!r}.")
    output, let, dtype = table.get("output"), table.get("let", {}), table.get("dtype")
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
        read[name] = path.parent / value["read"]
        if "sha256" in value:
            hashes[name] = str(value["sha256"])
    raise_all(mistakes)
    return Recipe(str(output), read, define, dtype, hashes)


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


@dataclass(frozen=True)
class _Broken:
    """Stands for a part of an expression that failed, so that the rest of it is still checked.

    `rest` is what the part holds beside its mistake, if that is known: of ``base + bad`` it is ``base``. What it clashes
    with is a mistake of its own.
    """

    rest: Value | None = None


class _Names(Mapping[str, "Value | _Broken"]):
    """Names that are opened or computed when first used, each once; a definition may use others but not itself."""

    def __init__(self, read: Mapping[str, Path], define: Mapping[str, str], mistakes: list[TaskvecError]):
        self._read, self._define, self._mistakes = read, define, mistakes
        self._known: dict[str, Value | _Broken] = {}
        self._open: list[str] = []

    def __getitem__(self, name: str) -> Value | _Broken:
        if name in self._known:
            return self._known[name]
        if name in self._open:
            circle = " -> ".join([*self._open, name])
            self._mistakes.append(UsageError(f"the definition of {name!r} refers to itself: {circle}."))
            return _Broken()
        found: Value | _Broken = _Broken()
        if name in self._read:
            with collecting(self._mistakes):
                found = open_weights(self._read[name], label=name)
        elif name in self._define:
            self._open.append(name)
            found = _parse(self._define[name], self, self._mistakes)
            self._open.pop()
        else:
            raise KeyError(name)
        self._known[name] = found
        return found

    def __iter__(self):
        return iter([*self._read, *self._define])

    def __len__(self) -> int:
        return len(self._read) + len(self._define)


@dataclass(frozen=True)
class _Scope:
    """What building an expression needs: the names it may use, its text (for messages), and the mistakes so far."""

    names: Mapping[str, Any]
    text: str
    mistakes: list[TaskvecError]

    def said(self, node: ast.AST) -> str:
        return ast.get_source_segment(self.text, node) or type(node).__name__  # type: ignore[arg-type]

    def wrong(self, error: TaskvecError) -> None:
        self.mistakes.append(error)


def parse(text: str, names: Mapping[str, Value]) -> Value:
    """Build the value of an expression over the given names.

    Only names, numbers, ``+ - * /``, parentheses, method calls with a list of vectors and keyword hyper-parameters, and
    ``restrict``, ``shared``, ``rebase`` are understood; the text is walked as a syntax tree and never executed.

    Raises:
        UsageError: anything else; UnknownName with the nearest match for a name or method that does not exist. Several
            mistakes are raised as one error.
    """
    mistakes: list[TaskvecError] = []
    value = _parse(text, names, mistakes)
    raise_all(mistakes)
    assert not isinstance(value, _Broken)
    return value


def _parse(text: str, names: Mapping[str, Any], mistakes: list[TaskvecError]) -> Value | _Broken:
    """As `parse`; mistakes go to the list, and what comes back is broken where there is one."""
    found = len(mistakes)
    value: Any = _Broken()
    with collecting(mistakes):
        value = _expression(text, names, mistakes)
    if isinstance(value, float):
        mistakes.append(
            NotLinear(f"the expression is the number {value:g}; it must give a checkpoint or a task vector.")
        )
        value = _Broken()
    if len(mistakes) > found and not isinstance(value, _Broken):
        value = _Broken(value)
    return value


def _expression(text: str, names: Mapping[str, Any], mistakes: list[TaskvecError]) -> Any:
    text = text.strip()
    if len(text) > LONGEST:
        raise UsageError(f"the expression has {len(text):,} characters; the limit is {LONGEST:,}.")
    try:
        return _build(ast.parse(text, mode="eval").body, _Scope(names, text, mistakes))
    except SyntaxError as error:
        for word in dict.fromkeys(re.findall(r"\w+", text)):  # so that mistakes in its inputs show as well
            names.get(word)
        place = " " * (max(1, error.offset or 1) - 1) + "^"
        raise UsageError(f"cannot read the expression ({error.msg}):\n  {text}\n  {place}") from None
    except (RecursionError, MemoryError):
        raise UsageError("the expression is nested too deeply.") from None
    except ValueError as error:
        if isinstance(error, TaskvecError):
            raise
        raise UsageError(f"cannot read the expression ({error}).") from None


def _build(node: ast.expr, scope: _Scope) -> Any:
    """The value of a part of the expression; `_Broken` once its mistake is in the list."""
    try:
        return _value(node, scope)
    except TaskvecError as error:
        scope.wrong(error)
        return _Broken()


def _value(node: ast.expr, scope: _Scope) -> Any:
    match node:
        case ast.Name(id=name):
            try:
                return scope.names[name]
            except KeyError:
                hint = nearest(name, scope.names)
                known = ", ".join(scope.names) or "none"
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
            value = _build(inner, scope)
            return value if isinstance(value, _Broken) else -value
        case ast.UnaryOp(op=ast.UAdd(), operand=inner):
            return _build(inner, scope)
        case ast.BinOp(left=left, op=op, right=right):
            return _binary(op, _build(left, scope), _build(right, scope), node, scope)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
            return _call(name, args, keywords, scope)
    match node:
        case ast.Call(func=ast.Attribute(value=inner, attr=name)) if name in FUNCTIONS:
            what = "'*.attn.*'" if name == "restrict" else "base"
            raise UsageError(f"in an expression, write {name}({scope.said(inner)}, {what}).")
    raise UsageError(
        f"{scope.said(node)!r} cannot stand in an expression: only names, numbers, + - * /, parentheses and methods can."
    )


def _binary(op: ast.operator, a: Any, b: Any, node: ast.expr, scope: _Scope) -> Any:
    operations: dict[type, Callable[[Any, Any], Any]] = {
        ast.Add: lambda x, y: x + y,
        ast.Sub: lambda x, y: x - y,
        ast.Mult: lambda x, y: x * y,
        ast.Div: lambda x, y: x / y,
    }
    broken = isinstance(a, _Broken) or isinstance(b, _Broken)
    a, b = (x.rest if isinstance(x, _Broken) else x for x in (a, b))
    if type(op) not in operations:
        scope.wrong(UsageError(f"{scope.said(node)!r}: only + - * / are operations here."))
        return _Broken()
    if a is None or b is None:
        return _Broken(_left(op, a, b))
    try:
        value = operations[type(op)](a, b)
    except ZeroDivisionError:
        scope.wrong(UsageError(f"{scope.said(node)!r} divides by zero."))
        return _Broken()
    except TypeError as error:
        if not isinstance(error, TaskvecError):
            kinds = {Checkpoint: "a checkpoint", TaskVector: "a task vector", float: "a number"}
            error = NotLinear(
                f"{scope.said(node)!r} combines {kinds[type(a)]} and {kinds[type(b)]}, which has no meaning: a task vector "
                "is a difference of checkpoints, takes a number as coefficient, and is added to a checkpoint."
            )
        scope.wrong(error)
        return _Broken()
    except TaskvecError as error:
        scope.wrong(error)
        return _Broken(_left(op, a, b))
    return _Broken(value) if broken else value


def _left(op: ast.operator, a: Any, b: Any) -> Value | None:
    """What is known of ``a op b`` when it could not be computed: for sums, the point or vector it begins with."""
    if isinstance(op, ast.Add):
        known = [x for x in (a, b) if isinstance(x, (Checkpoint, TaskVector))]
        return next((x for x in known if isinstance(x, Checkpoint)), known[0] if known else None)
    if isinstance(op, ast.Sub) and (isinstance(a, TaskVector) or isinstance(b, TaskVector)):
        return a
    return a if isinstance(op, (ast.Mult, ast.Div)) and isinstance(a, TaskVector) else None


def _call(name: str, args: list[ast.expr], keywords: list[ast.keyword], scope: _Scope) -> Any:
    if name in FUNCTIONS:
        return _function(name, args, keywords, scope)
    before = len(scope.mistakes)
    values = [
        (e, _build(e, scope)) for a in args for e in (a.elts if isinstance(a, (ast.List, ast.Tuple)) else [a])
    ]  # first, so that mistakes inside show even if the call itself is wrong
    if name not in METHODS:
        known = [*METHODS, *FUNCTIONS]
        raise UnknownName(f"unknown method {name!r}; `taskvec methods` lists them.{nearest(name, known)}")
    method = METHODS[name].fn
    if len(args) != 1 or not isinstance(args[0], (ast.List, ast.Tuple)):
        scope.wrong(UsageError(f"{name} takes a list of task vectors in brackets, for example {name}([a, b])."))
    vectors: list[TaskVector] = []
    for said, value in values:
        value = value.rest if isinstance(value, _Broken) else value
        if isinstance(value, TaskVector):
            vectors.append(value)
        elif value is not None:
            what = "a checkpoint; subtract its base first" if isinstance(value, Checkpoint) else "a number"
            scope.wrong(NotLinear(f"{name}: {scope.said(said)!r} is {what}. Methods combine task vectors."))
    vectors += [_nothing()] * (len(values) - len(vectors))
    given = _hyper_parameters(name, method, keywords, scope)
    if given is None:
        return _Broken()
    broken = len(scope.mistakes) > before or any(isinstance(v, _Broken) for _, v in values)
    value = method(vectors, **given)
    return value if not broken else _Broken(value if value.spec else None)


def _nothing() -> TaskVector:
    """A vector without tensors and of unknown base, which no other can clash with: it stands for a broken one."""
    return TaskVector(combine([], {}), Base("an unknown base"), "?", partial=True)


def _hyper_parameters(
    name: str, method: Callable[..., Any], keywords: list[ast.keyword], scope: _Scope
) -> dict[str, Any] | None:
    """The numbers given to a method; None if one is wrong or lacking."""
    wanted = [p for p in inspect.signature(method).parameters.values() if p.kind is p.KEYWORD_ONLY]
    allowed = [p.name for p in wanted]
    given: dict[str, Any] = {}
    before = len(scope.mistakes)
    for word in keywords:
        if word.arg in given:
            scope.wrong(UsageError(f"{name}: {word.arg} is given twice."))
        elif word.arg not in allowed:
            known = ", ".join(allowed) or "none"
            hint = nearest(word.arg or "", allowed)
            scope.wrong(UnknownName(f"{name} has no hyper-parameter {word.arg!r}; it has: {known}.{hint}"))
        else:
            number = _build(word.value, replace(scope, names={}))
            given[word.arg] = number
            if not isinstance(number, (float, _Broken)):
                scope.wrong(UsageError(f"{name}: {word.arg} must be a number."))
            elif word.arg == "seed" and isinstance(number, float):
                with collecting(scope.mistakes):
                    given[word.arg] = _whole(word.value, number, name)
    required = [p.name for p in wanted if p.default is p.empty and p.name not in given]
    if required and len(scope.mistakes) == before:  # else the wrong name may be meant for it
        scope.wrong(UsageError(f"{name} needs {', '.join(required)}, for example {name}([a, b], {required[0]}=0.2)."))
    return given if len(scope.mistakes) == before else None


def _whole(node: ast.expr, number: float, method: str) -> int:
    """A seed; written out, it may have more digits than a float holds."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if not number.is_integer():
        raise UsageError(f"{method}: seed must be a whole number, got {number:g}.")
    return int(number)


def _function(name: str, args: list[ast.expr], keywords: list[ast.keyword], scope: _Scope) -> Any:
    if len(args) != 2 or keywords:
        example = {"restrict": "restrict(v, '*.attn.*')", "shared": "shared(tuned, base)", "rebase": "rebase(v, base)"}
        raise UsageError(f"{name} takes two arguments: {example[name]}.")
    first = _build(args[0], scope)
    patterns = _patterns(args[1], scope) if name == "restrict" else []
    base = _build(args[1], scope) if name != "restrict" else None
    if not isinstance(first, (Checkpoint, TaskVector, _Broken)):
        scope.wrong(NotLinear(f"{name}: the first argument must be a checkpoint or a task vector."))
        return _Broken()
    if isinstance(first, _Broken) or isinstance(base, _Broken):
        return _Broken()
    if name == "restrict":
        return first.restrict(matching(*patterns)) if patterns else _Broken()
    if not isinstance(base, Checkpoint) or (name == "rebase" and isinstance(first, Checkpoint)):
        raise NotLinear(f"{name} takes a {'vector' if name == 'rebase' else 'checkpoint or vector'} and a checkpoint.")
    return first.shared(base) if name == "shared" else first.rebase(base)  # type: ignore[union-attr]


def _patterns(node: ast.expr, scope: _Scope) -> list[str]:
    """The patterns of a restrict; none if they are not patterns."""
    given = node.elts if isinstance(node, (ast.List, ast.Tuple)) else [node]
    patterns = [e.value for e in given if isinstance(e, ast.Constant) and isinstance(e.value, str)]
    if patterns and len(patterns) == len(given):
        return patterns
    scope.wrong(
        UsageError("restrict takes patterns of names in quotes: restrict(v, '*.attn.*') or restrict(v, ['a', 'b']).")
    )
    return []


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
