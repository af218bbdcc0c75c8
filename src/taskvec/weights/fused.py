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
import functools
import importlib.util
import os
import platform
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .dtypes import DTYPES, NAMES, widen
from .entry import Count, Histogram, Total, Words
from .execute import Block, Values, params_of, resolve
from .graph import Node
from .loops import BITS, WIDTH, scattered, write
from .philox import LANES as GROUPS
from .philox import philox
from .sketch import HISTOGRAMS as HISTOGRAMS
from .sketch import Sketch, Unfit, sketch
from .summaries import LANES, add_lanes

WORTHWHILE = 100_000_000  # bytes to read; below, importing and compiling (60 ms) costs more than it saves
SWITCH = "TASKVEC_FAST"  # 0: never, 1: whatever the size


def wanted(nbytes: int) -> bool:
    """Whether to compile for a pass that reads so many bytes: if llvmlite is there and the pass is long enough."""
    said = os.environ.get(SWITCH, "")
    if said == "0" or (said != "1" and nbytes < WORTHWHILE):
        return False
    return importlib.util.find_spec("llvmlite") is not None


@functools.cache
def natural() -> frozenset[str]:
    """The formats that a loop reads and stores itself; NumPy converts all others, before it or after it."""
    try:
        import llvmlite.binding as llvm  # type: ignore[import-not-found]

        halves = platform.machine() in ("aarch64", "arm64") or llvm.get_host_cpu_features().get("f16c")
    except (ImportError, OSError):
        halves = False
    return frozenset(BITS if halves else BITS.keys() - {"F16"})  # without the instructions LLVM calls what is not there


class Fused:
    """Compiled loops for some roots: ask `run` for a block. Safe to call on threads.

    Args:
        roots: summaries of one pass, or one node whose values are wanted.
        stored: for a node, the format each tensor is stored in; values of formats that no loop stores come in float32.
    """

    def __init__(self, roots: Sequence[Node], stored: Mapping[str, str] | None = None):
        self.roots = list(roots)
        self.stored = {n: f if f in natural() else "F32" for n, f in (stored or {}).items()}
        self._sketches: dict[str, Sketch | None] = {}
        self._kernels: dict[Any, _Kernel | None] = {}
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
        arrays = [a if NAMES[a.dtype] in natural() else widen(a) for a in arrays]
        formats = tuple(NAMES[a.dtype] for a in arrays)
        shape = tuple(s for s, _, _ in flat)
        store = self.stored.get(name, "")
        key = (_key(plan), formats, shape, store)
        if key not in self._kernels:
            with self._lock:
                if key not in self._kernels:
                    self._kernels[key] = self._compile(plan, formats, shape, store)
        kernel = self._kernels[key]
        if kernel is None:
            return None
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

    def _compile(self, plan: Sketch, formats: tuple[str, ...], shape: tuple[Any, ...], store: str) -> _Kernel | None:
        if self._jit is None:
            try:
                self._jit = _Jit()
            except (ImportError, OSError):  # installed, but its library does not load here
                return None
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

        if llvm.llvm_version_info < (20,):  # another text format for pointers
            raise ImportError("llvmlite is older than 0.45")
        self._llvm = llvm
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        self._machine = llvm.Target.from_default_triple().create_target_machine(
            cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=2
        )
        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), self._machine)
        self._lock = threading.RLock()
        self._philox: Callable[..., None] | None = None

    def compile(self, name: str, text: str) -> int:
        """The address of the function `name` of a text."""
        with self._lock:
            return self._compile(name, text)

    def _compile(self, name: str, text: str) -> int:
        llvm = self._llvm
        module = llvm.parse_assembly(text)
        # The loops are written as vectors already; the whole pipeline of O2 would take four times as long for equal code.
        builder = llvm.create_pass_builder(self._machine, llvm.create_pipeline_tuning_options(speed_level=1))
        passes = llvm.create_new_function_pass_manager()
        passes.add_sroa_pass()
        passes.add_instruction_combine_pass()
        for function in module.functions:
            if not function.is_declaration:
                passes.run(function, builder)
        self._engine.add_module(module)
        self._engine.finalize_object()
        return self._engine.get_function_address(name)

    def fill(self, words: Words, count: int) -> np.ndarray:
        """`count` words of a random stream."""
        with self._lock:
            if self._philox is None:
                kind = ctypes.CFUNCTYPE(None, *[ctypes.c_uint64] * 2, ctypes.c_void_p, *[ctypes.c_uint64] * 2)
                self._philox = kind(self.compile("philox", philox()))
        first, skip = divmod(words.first, 8)
        turn = 8 * GROUPS
        turns = (skip + count + turn - 1) // turn
        out = np.empty(turn * turns, np.uint32)
        self._philox(first, turns, out.ctypes.data, *words.key)
        return out[skip : skip + count]


class _Kernel:
    """One compiled loop and what its calls need."""

    def __init__(
        self, jit: _Jit, name: str, plan: Sketch, formats: tuple[str, ...], shape: tuple[Any, ...], store: str
    ):
        self._jit, self._store = jit, store
        text, self._reductions = write(name, plan, formats, shape, store)
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


def _pointers(arrays: list[np.ndarray]) -> Any:
    return (ctypes.c_void_p * max(1, len(arrays)))(*[a.ctypes.data for a in arrays])
