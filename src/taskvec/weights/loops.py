"""The text of a compiled loop, in LLVM's language: a sketch written for WIDTH entries a turn, and once more for single ones.

Arguments of a kernel: the number of entries, tables of pointers to the inputs, the output, the 32-bit parameters and the
sums. It returns 1 where an input or a result was not finite. No fast-math: each operation rounds as NumPy's does.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .entry import Code, Count, Entry, Histogram, Total
from .execute import ABSENT_IS_NONE
from .sketch import Sketch
from .summaries import LANES

WIDTH = 16  # entries a turn of the loop
BITS = {"F32": "i32", "BF16": "i16", "F16": "i16"}  # the formats that a loop can read and store


def write(
    name: str, plan: Sketch, formats: tuple[str, ...], shape: tuple[Any, ...], store: str
) -> tuple[str, list[tuple[str, Any]]]:
    """LLVM text of one kernel, and its reductions as (summary key, reduction)."""
    streams = str(shape).count("'words'")
    numbers = str(shape).count("'number'") + str(shape).count("'word'")
    head = [f"define i32 @{name}(i64 %n, ptr %in, ptr noalias %out, ptr %par, ptr %acc) {{", "entry:"]
    for i in range(len(formats) + streams):
        head += [f"  %at{i} = getelementptr ptr, ptr %in, i64 {i}", f"  %in{i} = load ptr, ptr %at{i}"]
    for i in range(numbers):
        head += [f"  %pat{i} = getelementptr i32, ptr %par, i64 {i}", f"  %par{i} = load i32, ptr %pat{i}"]
        head += [f"  %num{i} = bitcast i32 %par{i} to float"]
    tail: list[str] = []
    reductions: list[tuple[str, Any]] = []
    begin = "0"
    for width in (WIDTH, 1):
        pre, code = Code(width), Code(width)
        code._count = 1_000_000  # names of the two never meet
        env = _arguments(pre, shape, len(formats))
        reductions = _body(code, plan, formats, env, store)
        state = {"h16": "i16", "h32": "i32"} | {
            f"c{i}": "i32" for i, (_, r) in enumerate(reductions) if isinstance(r, Count) and r.condition is not None
        }
        for i in range(len(reductions)):
            head += [f"  %sat{width}_{i} = getelementptr ptr, ptr %acc, i64 {i}"]
            head += [f"  %sum{width}_{i} = load ptr, ptr %sat{width}_{i}"]
        for s, base in state.items():
            head += [f"  %{s}_{width} = alloca {code.type(base)}"]
            head += [f"  store {code.type(base)} zeroinitializer, ptr %{s}_{width}"]
        end = "%n" if width == 1 else "%whole"
        tail += [f"pre{width}:", *pre.lines]
        if width > 1:
            tail += [f"  %whole = and i64 %n, -{width}"]
        tail += [f"  br label %head{width}", f"head{width}:"]
        tail += [f"  %i{width} = phi i64 [ {begin}, %pre{width} ], [ %next{width}, %latch{width} ]"]
        tail += [f"  %more{width} = icmp ult i64 %i{width}, {end}"]
        after = "pre1" if width > 1 else "done"
        tail += [f"  br i1 %more{width}, label %body{width}, label %{after}", f"body{width}:", *code.lines]
        tail += [f"  br label %latch{width}", f"latch{width}:", f"  %next{width} = add i64 %i{width}, {width}"]
        tail += [f"  br label %head{width}"]
        begin = end
    head += [f"  br label %pre{WIDTH}"]
    tail += ["done:", *_finish(reductions), "}"]
    declared = [
        f"declare {v} @llvm.umax.{m}({v}, {v})"
        for v, m in (
            (f"<{WIDTH} x i16>", f"v{WIDTH}i16"),
            (f"<{WIDTH} x i32>", f"v{WIDTH}i32"),
            ("i16", "i16"),
            ("i32", "i32"),
        )
    ]
    declared += [f"declare {b} @llvm.vector.reduce.umax.v{WIDTH}{b}(<{WIDTH} x {b}>)" for b in ("i16", "i32")]
    declared += [f"declare i32 @llvm.vector.reduce.add.v{WIDTH}i32(<{WIDTH} x i32>)"]
    return "\n".join([*head, *tail, *declared]) + "\n", reductions


def _arguments(pre: Code, shape: tuple[Any, ...], streams_from: int) -> list[dict[str, Any]]:
    """Each step's prepared parameters as entries; streams as the number of their input."""
    number, stream = iter(range(10**6)), iter(range(streams_from, 10**6))

    def one(kind: Any) -> Any:
        if isinstance(kind, tuple):
            return tuple(one(k) for k in kind)
        if kind == "words":
            return next(stream)
        i = next(number)
        base, at = ("float", f"%num{i}") if kind == "number" else ("i32", f"%par{i}")
        return Entry(pre, kind, pre.spread(base, at))

    return [{name: one(kind) for name, kind in step} for step in shape]


def _body(
    code: Code, plan: Sketch, formats: tuple[str, ...], env: list[dict[str, Any]], store: str
) -> list[tuple[str, Any]]:
    """The loop's body: read, compute, store or reduce."""
    i = f"%i{code.width}"
    made: list[Entry] = []

    def load(number: int, base: str) -> str:
        at = code.emit(f"getelementptr {base}, ptr %in{number}, i64 {i}")
        return code.emit(f"load {code.type(base)}, ptr {at}, align 1")

    def heed(format: str, bits: str) -> None:
        """Keep the largest magnitude of stored bits: at or above infinity's, something is not finite."""
        base = BITS[format]
        type_, state = code.type(base), f"%h{base[1:]}_{code.width}"
        mangled = base if code.width == 1 else f"v{code.width}{base}"
        size = code.emit(f"and {type_} {bits}, {code.constant(base, (1 << int(base[1:]) - 1) - 1)}")
        if format == "F16":  # so that its infinity lies where that of BF16 does
            size = code.emit(f"add {type_} {size}, {code.constant(base, 0x7F80 - 0x7C00)}")
        old = code.emit(f"load {type_}, ptr {state}")
        new = code.emit(f"call {type_} @llvm.umax.{mangled}({type_} {size}, {type_} {old})")
        code.line(f"store {type_} {new}, ptr {state}")

    def leaf(number: int) -> Entry:
        word = code.type("i32")
        bits = load(number, BITS[formats[number]])
        heed(formats[number], bits)
        if formats[number] == "F16":
            short = code.emit(f"bitcast {code.type('i16')} {bits} to {code.type('half')}")
            return Entry(code, "number", code.emit(f"fpext {code.type('half')} {short} to {code.type('float')}"))
        if formats[number] == "BF16":
            wide = code.emit(f"zext {code.type('i16')} {bits} to {word}")
            bits = code.emit(f"shl {word} {wide}, {code.constant('i32', 16)}")
        return Entry(code, "number", code.emit(f"bitcast {word} {bits} to {code.type('float')}"))

    def given(params: dict[str, Any]) -> dict[str, Any]:
        def one(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(one(v) for v in value)
            if isinstance(value, Entry):
                return Entry(code, value.kind, value.at)
            return Entry(code, "word", load(value, "i32"))

        return {k: one(v) for k, v in params.items()}

    zero = Entry(code, "number", code.constant("float", 0.0))
    for kind, number in plan.values:
        if kind == "leaf":
            made.append(leaf(number))
            continue
        node, places = plan.steps[number]
        absent = None if node.op in ABSENT_IS_NONE else zero
        values = [absent if p is None else made[p] for p in places]
        assert node.op.entry is not None
        made.append(node.op.entry(values, **given(env[number])))
    reductions: list[tuple[str, Any]] = []
    summary = len(plan.steps)
    for root, places in plan.roots:
        values = [zero if p is None else made[p] for p in places]
        if root.op.gives == "summary":
            assert root.op.entry is not None
            for reduction in root.op.entry(values, **given(env[summary])):
                _reduce(code, reduction, len(reductions))
                reductions.append((root.key, reduction))
            summary += 1
            continue
        bits = values[0].bits().at
        word = code.type("i32")
        if store == "BF16":  # round to nearest, ties to even
            high = code.emit(f"lshr {word} {bits}, {code.constant('i32', 16)}")
            odd = code.emit(f"and {word} {high}, {code.constant('i32', 1)}")
            half = code.emit(f"add {word} {odd}, {code.constant('i32', 0x7FFF)}")
            up = code.emit(f"add {word} {half}, {bits}")
            down = code.emit(f"lshr {word} {up}, {code.constant('i32', 16)}")
            bits = code.emit(f"trunc {word} {down} to {code.type('i16')}")
        elif store == "F16":
            short = code.emit(f"fptrunc {code.type('float')} {values[0].at} to {code.type('half')}")
            bits = code.emit(f"bitcast {code.type('half')} {short} to {code.type('i16')}")
        heed(store, bits)
        base = BITS[store]
        at = code.emit(f"getelementptr {base}, ptr %out, i64 {i}")
        code.line(f"store {code.type(base)} {bits}, ptr {at}, align 1")
    return reductions


def _reduce(code: Code, reduction: Any, number: int) -> None:
    i, total = f"%i{code.width}", f"%sum{code.width}_{number}"
    if isinstance(reduction, Total):
        lane = code.emit(f"and i64 {i}, {LANES - 1}")
        at = code.emit(f"getelementptr double, ptr {total}, i64 {lane}")
        old = code.emit(f"load {code.type('double')}, ptr {at}, align 8")
        new = code.emit(f"fadd {code.type('double')} {old}, {reduction.value.at}")
        code.line(f"store {code.type('double')} {new}, ptr {at}, align 8")
    elif isinstance(reduction, Count):
        if reduction.condition is not None:
            type_, state = code.type("i32"), f"%c{number}_{code.width}"
            one = code.emit(f"zext {code.type('i1')} {reduction.condition.at} to {type_}")
            old = code.emit(f"load {type_}, ptr {state}")
            new = code.emit(f"add {type_} {old}, {one}")
            code.line(f"store {type_} {new}, ptr {state}")
    else:
        _count(code, reduction, total)


def _count(code: Code, histogram: Histogram, total: str) -> None:
    """Add to the counters of a table [bin, place of the loop].

    Adding twice in a row to one counter stalls a processor, hence the places. Round numbers would all meet in one set of
    the cache, hence `scattered`.
    """
    index, condition = (histogram.index ^ (histogram.index >> 5)).at, histogram.condition
    mark = code.name()[1:]
    if condition is not None:  # most turns of the loop have nothing to count
        if code.width == 1:
            some = condition.at
        else:
            mask = code.emit(f"bitcast {code.type('i1')} {condition.at} to i{code.width}")
            some = code.emit(f"icmp ne i{code.width} {mask}, 0")
        code.line(f"br i1 {some}, label %{mark}y, label %{mark}n")
        code.lines.append(f"{mark}y:")
    for place in range(code.width):
        one, bin_ = "1", index
        if code.width > 1:
            bin_ = code.emit(f"extractelement {code.type('i32')} {index}, i64 {place}")
        if condition is not None:
            truth = condition.at
            if code.width > 1:
                truth = code.emit(f"extractelement {code.type('i1')} {truth}, i64 {place}")
            one = code.emit(f"zext i1 {truth} to i32")
        wide = code.emit(f"zext i32 {bin_} to i64")
        at = code.emit(f"getelementptr [{WIDTH} x i32], ptr {total}, i64 {wide}, i64 {place}")
        old = code.emit(f"load i32, ptr {at}")
        new = code.emit(f"add i32 {old}, {one}")
        code.line(f"store i32 {new}, ptr {at}")
    if condition is not None:
        code.line(f"br label %{mark}n")
        code.lines.append(f"{mark}n:")


def _finish(reductions: list[tuple[str, Any]]) -> list[str]:
    """After the loops: counts to memory, and whether anything was not finite."""
    out: list[str] = []
    for i, (_, reduction) in enumerate(reductions):
        if isinstance(reduction, Count) and reduction.condition is not None:
            out += [
                f"  %f{i}a = load <{WIDTH} x i32>, ptr %c{i}_{WIDTH}",
                f"  %f{i}b = call i32 @llvm.vector.reduce.add.v{WIDTH}i32(<{WIDTH} x i32> %f{i}a)",
                f"  %f{i}c = load i32, ptr %c{i}_1",
                f"  %f{i}d = add i32 %f{i}b, %f{i}c",
                f"  %f{i}e = zext i32 %f{i}d to i64",
                f"  store i64 %f{i}e, ptr %sum1_{i}",
            ]
    bad = []
    for base, infinity in (("i16", 0x7F80), ("i32", 0x7F800000)):
        s = base[1:]
        out += [
            f"  %g{s}a = load <{WIDTH} x {base}>, ptr %h{s}_{WIDTH}",
            f"  %g{s}b = call {base} @llvm.vector.reduce.umax.v{WIDTH}{base}(<{WIDTH} x {base}> %g{s}a)",
            f"  %g{s}c = load {base}, ptr %h{s}_1",
            f"  %g{s}d = call {base} @llvm.umax.{base}({base} %g{s}b, {base} %g{s}c)",
            f"  %g{s}e = icmp uge {base} %g{s}d, {infinity}",
        ]
        bad.append(f"%g{s}e")
    return [*out, f"  %bad = or i1 {bad[0]}, {bad[1]}", "  %said = zext i1 %bad to i32", "  ret i32 %said"]


def scattered(bins: int) -> np.ndarray:
    """Where the loop keeps the counters of each bin."""
    index = np.arange(bins)
    return index ^ (index >> 5)
