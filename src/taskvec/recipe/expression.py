"""Expressions: text to a lazy value over given names. Walked as a syntax tree, never executed.

Building goes on after a mistake, with a stand-in for the part that failed, so that one run finds all mistakes.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..errors import NotLinear, TaskvecError, UnknownName, UsageError, collecting, nearest, raise_all
from ..methods import METHODS
from ..select import matching
from ..weights import Checkpoint, TaskVector, aligned, as_vector, scale_by, stack
from ..weights.graph import combine
from ..weights.lineage import Base

ALIGNED = "aligned(a, [base, b], donors=[base], missing='mean', tokens={'<x>': b, '<y>': [b, '<z>']}, force=['<x>'], pad_to_multiple_of=8)"
Value = Checkpoint | TaskVector
LONGEST = 200_000  # characters of one expression; hyper-parameters of their own for every tensor take a good part of it
FUNCTIONS = ("restrict", "shared", "rebase", "scale_by", "as_vector", "stack", "aligned")
EXAMPLES = {
    "restrict": "restrict(v, '*.attn.*')", "shared": "shared(tuned, base)", "rebase": "rebase(v, base)",
    "scale_by": "scale_by(v, {'mlp': 0.5, '*.0.*': 1})", "as_vector": "as_vector(a, base)", "stack": "stack([a, 0, 8], [b, 4, 12])",
    "aligned": "aligned(a, base), aligned(a, [base, b])",
}  # fmt: skip


@dataclass(frozen=True)
class Broken:
    """Stands for a part of an expression that failed, so that the rest of it is still checked.

    `rest` is what the part holds beside its mistake, if that is known: of ``base + bad`` it is ``base``. What it clashes
    with is a mistake of its own.
    """

    rest: Value | None = None


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
    value = parse_into(text, names, mistakes)
    raise_all(mistakes)
    assert not isinstance(value, Broken)
    return value


def parse_into(text: str, names: Mapping[str, Any], mistakes: list[TaskvecError]) -> Value | Broken:
    """As `parse`; mistakes go to the list, and what comes back is broken where there is one."""
    found = len(mistakes)
    value: Any = Broken()
    with collecting(mistakes):
        value = _expression(text, names, mistakes)
    if isinstance(value, float):
        mistakes.append(
            NotLinear(f"the expression is the number {value:g}; it must give a checkpoint or a task vector.")
        )
        value = Broken()
    if len(mistakes) > found and not isinstance(value, Broken):
        value = Broken(value)
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
    """The value of a part of the expression; `Broken` once its mistake is in the list."""
    try:
        return _value(node, scope)
    except TaskvecError as error:
        scope.wrong(error)
        return Broken()


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
            return value if isinstance(value, Broken) else -value
        case ast.UnaryOp(op=ast.UAdd(), operand=inner):
            return _build(inner, scope)
        case ast.BinOp():
            chain = [node]  # a long sum is a deep tree: its left side is walked, not recursed into
            while isinstance(chain[-1].left, ast.BinOp):
                chain.append(chain[-1].left)
            value = _build(chain[-1].left, scope)
            for part in reversed(chain):
                value = _binary(part.op, value, _build(part.right, scope), part, scope)
            return value
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
    broken = isinstance(a, Broken) or isinstance(b, Broken)
    a, b = (x.rest if isinstance(x, Broken) else x for x in (a, b))
    if type(op) not in operations:
        scope.wrong(UsageError(f"{scope.said(node)!r}: only + - * / are operations here."))
        return Broken()
    if a is None or b is None:
        return Broken(_left(op, a, b))
    try:
        value = operations[type(op)](a, b)
    except ZeroDivisionError:
        scope.wrong(UsageError(f"{scope.said(node)!r} divides by zero."))
        return Broken()
    except TypeError as error:
        if not isinstance(error, TaskvecError):
            kinds = {Checkpoint: "a checkpoint", TaskVector: "a task vector", float: "a number"}
            error = NotLinear(
                f"{scope.said(node)!r} combines {kinds[type(a)]} and {kinds[type(b)]}, which has no meaning: a task vector "
                "is a difference of checkpoints, takes a number as coefficient, and is added to a checkpoint."
            )
        scope.wrong(error)
        return Broken()
    except TaskvecError as error:
        scope.wrong(error)
        return Broken(_left(op, a, b))
    return Broken(value) if broken else value


def _left(op: ast.operator, a: Any, b: Any) -> Value | None:
    """What is known of ``a op b`` when it could not be computed: for sums, the point or vector it begins with."""
    if isinstance(op, ast.Add):
        known = [x for x in (a, b) if isinstance(x, (Checkpoint, TaskVector))]
        return next((x for x in known if isinstance(x, Checkpoint)), known[0] if known else None)
    if isinstance(op, ast.Sub) and (isinstance(a, TaskVector) or isinstance(b, TaskVector)):
        return a
    return a if isinstance(op, (ast.Mult, ast.Div)) and isinstance(a, TaskVector) else None


ALONE = ("random_drop", "magnitude_drop", "nearswap")  # of the methods that need a hyper-parameter, those of one vector


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
        value = value.rest if isinstance(value, Broken) else value
        if isinstance(value, TaskVector):
            vectors.append(value)
        elif value is not None:
            what = "a checkpoint; subtract its base first" if isinstance(value, Checkpoint) else "a number"
            scope.wrong(NotLinear(f"{name}: {scope.said(said)!r} is {what}. Methods combine task vectors."))
    vectors += [_nothing()] * (len(values) - len(vectors))
    given = _hyper_parameters(name, method, keywords, scope)
    if given is None:
        return Broken()
    broken = len(scope.mistakes) > before or any(isinstance(v, Broken) for _, v in values)
    value = method(vectors, **given)
    return value if not broken else Broken(value if value.spec else None)


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
            kind = str(next(p.annotation for p in wanted if p.name == word.arg))  # as it is written there
            with collecting(scope.mistakes):
                given[word.arg] = _hyper_parameter(name, word.arg, kind, word.value, scope)
    required = [p.name for p in wanted if p.default is p.empty and p.name not in given]
    if required and len(scope.mistakes) == before:  # else the wrong name may be meant for it
        kind = str(next(p.annotation for p in wanted if p.name == required[0]))
        value = "[a_file, b_file]" if kind.startswith("Sequence[") else "0" if kind.startswith("int") else "0.2"
        call = f"{name}([{'a' if name in ALONE else 'a, b'}], {required[0]}={value})"
        scope.wrong(
            UsageError(f"{name} needs {', '.join(required)}, for example {call}; `taskvec methods {name}` says more.")
        )
    return given if len(scope.mistakes) == before else None


def _hyper_parameter(name: str, word: str, kind: str, node: ast.expr, scope: _Scope) -> Any:
    """What is given to one hyper-parameter, read as the function declares it."""
    if kind.startswith("Sequence["):
        if not isinstance(node, (ast.List, ast.Tuple)):
            raise UsageError(f"{name}: {word} must be a list in brackets, for example {word}=[...].")
        inner = kind.removeprefix("Sequence[").split("]")[0]
        return [_hyper_parameter(name, word, inner, e, scope) for e in node.elts]
    if "Checkpoint" in kind:
        value = _build(node, scope)
        if not isinstance(value, (Checkpoint, Broken)):
            raise UsageError(f"{name}: {scope.said(node)!r} is no checkpoint, which {word} must be.")
        return value
    if isinstance(node, ast.Constant) and node.value is None and kind.endswith("| None"):
        return None
    if "Literal[" in kind or kind == "str":
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
            raise UsageError(f"{name}: {word} must be a word in quotes.")
        return node.value
    if kind == "bool":
        if not isinstance(node, ast.Constant) or not isinstance(node.value, bool):
            raise UsageError(f"{name}: {word} must be True or False.")
        return node.value
    if isinstance(node, ast.Constant) and isinstance(node.value, (str, bool)):
        raise UsageError(f"{name}: {word} must be a number, got {scope.said(node)}.")
    number = _build(node, replace(scope, names={}))
    if not isinstance(number, (float, Broken)):
        raise UsageError(f"{name}: {word} must be a number.")
    return _whole(node, number, name, word) if kind.startswith("int") and isinstance(number, float) else number


def _whole(node: ast.expr, number: float, method: str, word: str) -> int:
    """Written out, a seed may have more digits than a float holds."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if not number.is_integer():
        raise UsageError(f"{method}: {word} must be a whole number, got {number:g}.")
    return int(number)


def _function(name: str, args: list[ast.expr], keywords: list[ast.keyword], scope: _Scope) -> Any:
    if name == "stack":
        return _stack(args, keywords, scope)
    if name == "aligned":
        return _aligned(args, keywords, scope)
    if len(args) != 2 or keywords:
        raise UsageError(f"{name} takes two arguments: {EXAMPLES[name]}.")
    first = _build(args[0], scope)
    if name == "scale_by":
        table = _amounts(args[1], scope)
        if isinstance(first, (Checkpoint, float)):
            scope.wrong(
                NotLinear(f"scale_by: {scope.said(args[0])!r} is no task vector; only those have coefficients.")
            )
        return scale_by(first, table) if isinstance(first, TaskVector) and table is not None else Broken()
    patterns = _patterns(args[1], scope) if name == "restrict" else []
    base = _build(args[1], scope) if name != "restrict" else None
    if not isinstance(first, (Checkpoint, TaskVector, Broken)):
        scope.wrong(NotLinear(f"{name}: the first argument must be a checkpoint or a task vector."))
        return Broken()
    if isinstance(first, Broken) or isinstance(base, Broken):
        return Broken()
    if name == "restrict":
        return first.restrict(matching(*patterns)) if patterns else Broken()
    kind = {"rebase": TaskVector, "as_vector": Checkpoint}.get(name, (Checkpoint, TaskVector))
    if not isinstance(base, Checkpoint) or not isinstance(first, kind):
        what = {"rebase": "vector", "as_vector": "checkpoint"}.get(name, "checkpoint or vector")
        raise NotLinear(f"{name} takes a {what} and a checkpoint.")
    if isinstance(first, Checkpoint) and name == "as_vector":
        return as_vector(first, base)
    return first.shared(base) if name == "shared" else first.rebase(base)  # type: ignore[union-attr]


def _stack(args: list[ast.expr], keywords: list[ast.keyword], scope: _Scope) -> Any:
    """``stack([a, 0, 8], [b, 4, 12])``"""
    pieces: list[tuple[Checkpoint, int, int]] = []
    for arg in args:
        parts = [_build(e, scope) for e in arg.elts] if isinstance(arg, (ast.List, ast.Tuple)) else []
        match parts:
            case [Checkpoint() as point, float() as first, float() as last] if first.is_integer() and last.is_integer():
                pieces.append((point, int(first), int(last)))
            case _ if not any(isinstance(p, Broken) for p in parts):
                scope.wrong(
                    UsageError(f"stack takes [checkpoint, first block, past the last block]: {EXAMPLES['stack']}.")
                )
    if keywords:
        scope.wrong(UsageError(f"stack takes no hyper-parameters: {EXAMPLES['stack']}."))
    return stack(*pieces) if len(pieces) == len(args) and not keywords else Broken()


def _aligned(args: list[ast.expr], keywords: list[ast.keyword], scope: _Scope) -> Any:
    """``aligned(a, base)``, ``aligned(a, [base, b], donors=[base], missing='mean', tokens={'<x>': b}, pad_to_multiple_of=8)``"""
    before = len(scope.mistakes)

    def wrong(text: str) -> None:
        scope.wrong(UsageError(f"aligned: {text}"))

    def point(node: ast.expr) -> Checkpoint | None:
        value = _build(node, scope)
        if not isinstance(value, (Checkpoint, Broken)):
            wrong(f"{scope.said(node)!r} is no checkpoint.")
        return value if isinstance(value, Checkpoint) else None

    def points(node: ast.expr) -> list[Checkpoint | None]:
        return [point(e) for e in (node.elts if isinstance(node, (ast.List, ast.Tuple)) else [node])]

    def donor(node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=None | 0 as plain) if not isinstance(plain, bool):
                return plain
            case ast.List(elts=[of, ast.Constant(value=str() | int() as like)]):
                return point(of), like
        return point(node)

    given: dict[str, Any] = {}
    for word in keywords:
        match word.arg, word.value:
            case name, _ if name in given:
                wrong(f"{name} is given twice.")
            case "donors", ast.List() as value:
                given["donors"] = points(value)
            case "missing", ast.Constant(value=str() as value):
                given["missing"] = value
            case "pad_to_multiple_of", ast.Constant(value=int() as value):
                given["pad_to_multiple_of"] = value
            case "force", ast.List(elts=parts) if all(
                isinstance(e, ast.Constant) and isinstance(e.value, str) for e in parts
            ):
                given["force"] = [e.value for e in parts if isinstance(e, ast.Constant)]
            case "tokens", ast.Dict(keys=keys, values=values) if all(
                isinstance(k, ast.Constant) and isinstance(k.value, str) for k in keys
            ):
                given["tokens"] = {
                    k.value: donor(v) for k, v in zip(keys, values, strict=True) if isinstance(k, ast.Constant)
                }
            case name, _ if name in ("donors", "missing", "pad_to_multiple_of", "force", "tokens"):
                wrong(f"{name} is wrong; write {ALIGNED}.")
            case name, _:
                wrong(f"there is no {name!r}; it has donors, missing, tokens, force and pad_to_multiple_of.")
    if len(args) != 2:
        wrong(f"it takes a checkpoint and whose vocabulary it shall have: {EXAMPLES['aligned']}.")
        return Broken()
    first, to = point(args[0]), points(args[1])
    known = [first, *to, *given.get("donors", ())]
    if len(scope.mistakes) > before or any(p is None for p in known):
        return Broken()
    owners: Any = to if isinstance(args[1], (ast.List, ast.Tuple)) else to[0]
    return aligned(first, owners, **given)  # type: ignore[arg-type]


def _amounts(node: ast.expr, scope: _Scope) -> Any:
    """A coefficient, a list of them, or a table of patterns and parts to either; None if it is none of these."""
    match node:
        case ast.Dict(keys=keys, values=values):
            names = [k.value for k in keys if isinstance(k, ast.Constant) and isinstance(k.value, str)]
            amounts = [_amounts(v, scope) for v in values if not isinstance(v, ast.Dict)]
            if len(names) == len(set(names)) == len(amounts) == len(keys):
                return None if None in amounts else dict(zip(names, amounts, strict=True))
        case ast.List(elts=parts) | ast.Tuple(elts=parts):
            found = [_build(e, replace(scope, names={})) for e in parts]
            if all(isinstance(v, float) for v in found):
                return found
        case ast.Constant(value=str()):
            pass
        case _:
            value = _build(node, replace(scope, names={}))
            if isinstance(value, float):
                return value
            if isinstance(value, Broken):
                return None
    scope.wrong(
        UsageError(
            f"scale_by takes a number, a list over layers, or a table of parts and patterns: {EXAMPLES['scale_by']}."
        )
    )
    return None


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
