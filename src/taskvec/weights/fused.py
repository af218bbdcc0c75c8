"""The element-wise part of an edit as one compiled loop: what the extra `fast` (llvmlite) adds, with the bits of NumPy.

For a tensor, the graph is sketched as leaves, steps and roots; every distinct sketch becomes one LLVM function, which
reads the stored values once, computes in float32 and stores rounded values or adds to a summary. Numbers that differ
between tensors (coefficients, cuts) are arguments. Nothing here relies on fast-math or on a vectoriser: the loop is
written for WIDTH entries, and once more for single ones at the end.

Whatever has no entry form (float64, whole tensors, integer buffers), and every block with NaN or infinity, which NumPy
words in full, stays on the NumPy path.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .dtypes import DTYPES, widen
from .entry import Code, Count, Entry, Histogram, Total, Words
from .execute import ABSENT_IS_NONE, Block, Values, ordered, params_of, resolve
from .graph import MOVE, READ, REBASE, RENAME, RESTRICT, Node
from .summaries import KTH_MAGNITUDE, LANES, MAGNITUDE_BIN, add_lanes

WIDTH = 16  # entries a turn of the loop
WORTHWHILE = 200_000_000  # bytes to read; below, importing and compiling costs more than it saves
HISTOGRAMS = (MAGNITUDE_BIN, KTH_MAGNITUDE)  # their counts are gathered over the whole model
SWITCH = "TASKVEC_FAST"  # 0: never, 1: whatever the size


class Unfit(Exception):
    """This tensor is computed by NumPy."""


def wanted(nbytes: int) -> bool:
    """Whether to compile for a pass that reads so many bytes: if llvmlite is there and the pass is long enough."""
    said = os.environ.get(SWITCH, "")
    if said == "0" or (said != "1" and nbytes < WORTHWHILE):
        return False
    return importlib.util.find_spec("llvmlite") is not None


@dataclass
class Sketch:
    """One tensor's computation. `values` holds ("leaf", i) or ("step", i); a place of None is a zero."""

    leaves: list[tuple[Node, str]] = field(default_factory=list)
    steps: list[tuple[Node, tuple[int | None, ...]]] = field(default_factory=list)
    values: list[tuple[str, int]] = field(default_factory=list)
    roots: list[tuple[Node, tuple[int | None, ...]]] = field(default_factory=list)  # a summary's inputs, or one output


def sketch(roots: Sequence[Node], name: str) -> Sketch:
    """The computation of the roots on one tensor.

    Raises:
        Unfit: some part of it has no entry form.
    """
    out = Sketch()
    seen: dict[tuple[str, str], int | None] = {}

    def add(kind: str, items: list[Any], item: Any) -> int:
        items.append(item)
        out.values.append((kind, len(items) - 1))
        return len(out.values) - 1

    def visit(node: Node, name: str) -> int | None:
        while node.expansion is not None:
            node = node.expansion
        if name not in node.spec:
            return None
        if (node.key, name) not in seen:
            seen[node.key, name] = make(node, name)
        return seen[node.key, name]

    def make(node: Node, name: str) -> int | None:
        if node.op is READ:
            if not node.spec[name].is_float or node.spec[name].dtype == "F64":
                raise Unfit
            return add("leaf", out.leaves, (node, name))
        if node.op is RENAME:
            return visit(node.inputs[0], node.params["old"][name])
        if node.op in (RESTRICT, REBASE):
            return visit(node.inputs[0], name)
        if node.op.entry is None or node.op.works_on == "tensor":
            raise Unfit
        places = tuple(visit(n, name) for n in ordered(node, name))
        if node.op in ABSENT_IS_NONE:
            if all(p is None for p in places):
                return None
            if node.op is MOVE and None in places:
                return places[0]  # a point that does not move there
        return add("step", out.steps, (node, places))

    for root in roots:
        if root.op.gives == "summary":
            if root.op.entry is None or (root.op in HISTOGRAMS and root.per == "tensor"):
                raise Unfit
            out.roots.append((root, tuple(visit(n, name) for n in ordered(root, name))))
        else:
            out.roots.append((root, (visit(root, name),)))
    return out


class Fused:
    """Compiled loops for some roots: ask `run` for a block. Safe to call on threads.

    Args:
        roots: summaries of one pass, or one node whose values are wanted.
        stored: for a node, the format each tensor is stored in; "F32" for formats rounded outside.
    """

    def __init__(self, roots: Sequence[Node], stored: Mapping[str, str] | None = None):
        self.roots, self.stored = list(roots), stored or {}
        self._sketches: dict[str, Sketch | None] = {}
        self._kernels: dict[Any, _Kernel] = {}
        self._lock = threading.Lock()
        self._jit: _Jit | None = None
        self._free: list[dict[tuple[str, int], np.ndarray]] = []  # histograms: one set a thread, added up by `counts`

    def run(self, block: Block, summaries: Values) -> Any:
        """The stored values of a block, or {summary key: partial value}; None where NumPy must compute it."""
        name, n = block.name, block.stop - block.start
        if name not in self._sketches:
            self._sketches[name] = self._sketch(name)
        plan = self._sketches[name]
        if plan is None:
            return None
        wished = []
        for node, _ in (*plan.steps, *((r, p) for r, p in plan.roots if r.op.gives == "summary")):
            params = {k: resolve(v, name, summaries) for k, v in params_of(node, name).items()}
            if node.op.random:
                params["at"] = (name, block.start)
            wished.append(node.op.prepare(**params) if node.op.prepare else params)
        if any(w is None for w in wished):
            return None
        try:
            flat = [_flatten(w) for w in wished]
        except Unfit:
            return None
        arrays = [node.source.read(old, block.start, block.stop) for node, old in plan.leaves]  # type: ignore[union-attr]
        arrays = [a if a.dtype == DTYPES["BF16"] else widen(a) for a in arrays]
        formats = tuple("BF16" if a.dtype == DTYPES["BF16"] else "F32" for a in arrays)
        shape = tuple(s for s, _, _ in flat)
        store = self.stored.get(name, "")
        key = (_key(plan), formats, shape, store)
        kernel = self._kernels.get(key)
        if kernel is None:
            with self._lock:
                kernel = self._kernels.get(key)
                if kernel is None:
                    kernel = self._kernels[key] = self._compile(plan, formats, shape, store)
        numbers = [x for _, numbers, _ in flat for x in numbers]
        streams = [w for _, _, words in flat for w in words]
        return kernel(n, arrays, numbers, streams, self._free)

    def histograms(self) -> dict[str, np.ndarray]:
        """The counts of all blocks so far, by summary key."""
        out: dict[str, np.ndarray] = {}
        for held in self._free:
            for (key, _), places in held.items():
                counts = places.sum(axis=1, dtype=np.int64)[scattered(len(places))]
                out[key] = out[key] + counts if key in out else counts
        return out

    def _sketch(self, name: str) -> Sketch | None:
        roots = [r for r in self.roots if r.op.gives != "summary" or any(name in i.spec for i in r.inputs)]
        try:
            return sketch(roots, name)
        except Unfit:
            return None

    def _compile(self, plan: Sketch, formats: tuple[str, ...], shape: tuple[Any, ...], store: str) -> _Kernel:
        if self._jit is None:
            self._jit = _Jit()
        return _Kernel(self._jit, f"k{len(self._kernels)}", plan, formats, shape, store)


def _key(plan: Sketch) -> Any:
    steps = tuple((node.op.name, id(node.op.entry), places) for node, places in plan.steps)
    roots = tuple((node.key if node.op.gives == "summary" else "", places) for node, places in plan.roots)
    return steps, tuple(plan.values), roots


def _flatten(prepared: Mapping[str, Any]) -> tuple[Any, list[int], list[Words]]:
    """Prepared parameters as (their shape, the 32-bit arguments, the random streams)."""
    arguments: list[int] = []
    words: list[Words] = []

    def one(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(one(v) for v in value)
        if isinstance(value, Words):
            words.append(value)
            return "words"
        if type(value) is float:
            with np.errstate(over="ignore"):
                arguments.append(int(np.float32(value).view(np.uint32)))
            return "number"
        if type(value) is int and 0 <= value < 2**32:
            arguments.append(value)
            return "word"
        raise Unfit

    return tuple((k, one(v)) for k, v in prepared.items()), arguments, words


class _Jit:
    """llvmlite, opened: compiles texts of LLVM functions for this processor."""

    def __init__(self) -> None:
        import llvmlite.binding as llvm  # type: ignore[import-not-found]

        self._llvm = llvm
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        self._machine = llvm.Target.from_default_triple().create_target_machine(
            cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=2
        )
        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), self._machine)
        self._philox: Callable[..., None] | None = None

    def compile(self, name: str, text: str) -> int:
        llvm = self._llvm
        module = llvm.parse_assembly(text)
        builder = llvm.create_pass_builder(self._machine, llvm.create_pipeline_tuning_options(speed_level=2))
        builder.getModulePassManager().run(module, builder)
        self._engine.add_module(module)
        self._engine.finalize_object()
        return self._engine.get_function_address(name)

    def fill(self, words: Words, count: int) -> np.ndarray:
        """`count` words of a random stream."""
        if self._philox is None:
            kind = ctypes.CFUNCTYPE(None, *[ctypes.c_uint64] * 2, ctypes.c_void_p, *[ctypes.c_uint64] * 2)
            self._philox = kind(self.compile("philox", PHILOX))
        first, skip = divmod(words.first, 8)
        groups = (skip + count + 7) // 8
        out = np.empty(8 * groups, np.uint32)
        self._philox(first, groups, out.ctypes.data, *words.key)
        return out[skip : skip + count]


class _Kernel:
    """One compiled loop and what its calls need."""

    def __init__(
        self, jit: _Jit, name: str, plan: Sketch, formats: tuple[str, ...], shape: tuple[Any, ...], store: str
    ):
        self._jit, self._store = jit, store
        text, self._reductions = _write(name, plan, formats, shape, store)
        per_tensor = {root.key for root, _ in plan.roots if root.per == "tensor"}
        assert not any(isinstance(r, Histogram) and key in per_tensor for key, r in self._reductions)
        kind = ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_int64, *[ctypes.c_void_p] * 4)
        self._call = kind(jit.compile(name, text))

    def __call__(
        self, n: int, arrays: list[np.ndarray], numbers: list[int], streams: list[Words], free: list[Any]
    ) -> Any:
        inputs = [*arrays, *(self._jit.fill(w, n) for w in streams)]
        out = np.empty(n, DTYPES[self._store]) if self._store else None
        held: dict[tuple[str, int], np.ndarray] = {}
        if any(isinstance(r, Histogram) for _, r in self._reductions):
            held = free.pop() if free else {}
        sums: list[np.ndarray] = []
        for i, (key, reduction) in enumerate(self._reductions):
            if isinstance(reduction, Histogram):
                if (key, i) not in held:
                    held[key, i] = np.zeros((reduction.bins, WIDTH), np.uint32)
                sums.append(held[key, i])
            else:
                sums.append(
                    np.zeros(
                        LANES if isinstance(reduction, Total) else 1,
                        np.float64 if isinstance(reduction, Total) else np.int64,
                    )
                )
        bad = self._call(
            n,
            _pointers(inputs),
            out.ctypes.data if out is not None else None,
            (ctypes.c_uint32 * max(1, len(numbers)))(*numbers),
            _pointers(sums),
        )
        if held:
            free.append(held)
        if bad:
            return None
        if out is not None:
            return out
        found: dict[str, list[Any]] = {}
        for (key, reduction), total in zip(self._reductions, sums, strict=True):
            if isinstance(reduction, Total):
                found[key] = [add_lanes(total)]
            elif isinstance(reduction, Count):
                found.setdefault(key, []).append(n if reduction.condition is None else int(total[0]))
        return {k: v[0] if isinstance(v[0], float) else np.array(v, np.int64) for k, v in found.items()}


def scattered(bins: int) -> np.ndarray:
    """Where the loop keeps the counters of each bin."""
    index = np.arange(bins)
    return index ^ (index >> 5)


def _pointers(arrays: list[np.ndarray]) -> Any:
    return (ctypes.c_void_p * max(1, len(arrays)))(*[a.ctypes.data for a in arrays])


# --- the text of a loop ---


def _write(
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

    def heed(base: str, bits: str, magnitude: int) -> None:
        """Keep the largest magnitude of stored bits: at or above infinity's, something is not finite."""
        type_, state = code.type(base), f"%h{base[1:]}_{code.width}"
        mangled = base if code.width == 1 else f"v{code.width}{base}"
        size = code.emit(f"and {type_} {bits}, {code.constant(base, magnitude)}")
        old = code.emit(f"load {type_}, ptr {state}")
        new = code.emit(f"call {type_} @llvm.umax.{mangled}({type_} {size}, {type_} {old})")
        code.line(f"store {type_} {new}, ptr {state}")

    def leaf(number: int) -> Entry:
        word = code.type("i32")
        if formats[number] == "BF16":
            raw = load(number, "i16")
            heed("i16", raw, 0x7FFF)
            wide = code.emit(f"zext {code.type('i16')} {raw} to {word}")
            bits = code.emit(f"shl {word} {wide}, {code.constant('i32', 16)}")
        else:
            bits = load(number, "i32")
            heed("i32", bits, 0x7FFFFFFF)
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
        base = "i16" if store == "BF16" else "i32"
        heed(base, bits, 0x7FFF if store == "BF16" else 0x7FFFFFFF)
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


def _philox() -> str:
    """Philox-4x64-10 (Salmon et al. 2011) as numpy.random.Philox runs it: the counter is raised before each group."""
    lines = [
        "define void @philox(i64 %first, i64 %groups, ptr noalias %out, i64 %key0, i64 %key1) {",
        "entry:", "  br label %head", "head:",
        "  %i = phi i64 [ 0, %entry ], [ %next, %body ]",
        "  %more = icmp ult i64 %i, %groups",
        "  br i1 %more, label %body, label %done", "body:",
        "  %c.0.0 = add i64 %first, %i", "  %c.0.0p = add i64 %c.0.0, 1",
    ]  # fmt: skip
    c, k = ["%c.0.0p", "0", "0", "0"], ["%key0", "%key1"]
    for r in range(10):
        if r:
            for j, weyl in enumerate((0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)):
                lines.append(f"  %k{j}.{r} = add i64 {k[j]}, {weyl}")
                k[j] = f"%k{j}.{r}"
        for j, multiplier in enumerate((0xD2E7470EE14C6C93, 0xCA5A826395121157)):
            lines += [
                f"  %w{j}.{r} = zext i64 {c[2 * j]} to i128",
                f"  %p{j}.{r} = mul i128 %w{j}.{r}, {multiplier}",
                f"  %l{j}.{r} = trunc i128 %p{j}.{r} to i64",
                f"  %s{j}.{r} = lshr i128 %p{j}.{r}, 64",
                f"  %h{j}.{r} = trunc i128 %s{j}.{r} to i64",
            ]
        lines += [
            f"  %a.{r} = xor i64 %h1.{r}, {c[1]}", f"  %x0.{r} = xor i64 %a.{r}, {k[0]}",
            f"  %b.{r} = xor i64 %h0.{r}, {c[3]}", f"  %x2.{r} = xor i64 %b.{r}, {k[1]}",
        ]  # fmt: skip
        c = [f"%x0.{r}", f"%l1.{r}", f"%x2.{r}", f"%l0.{r}"]
    lines.append("  %g = shl i64 %i, 2")
    for j in range(4):
        lines += [f"  %o{j} = getelementptr i64, ptr %out, i64 %g", f"  %q{j} = getelementptr i64, ptr %o{j}, i64 {j}"]
        lines.append(f"  store i64 {c[j]}, ptr %q{j}, align 1")
    lines += ["  %next = add i64 %i, 1", "  br label %head", "done:", "  ret void", "}", ""]
    return "\n".join(lines)


PHILOX = _philox()
