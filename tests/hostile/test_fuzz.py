"""Fuzzing: whatever stands in a header, an index, an expression or a recipe, it is understood or refused in one clean error.

Never another exception, a hang, an allocation that a lie asks for, code that runs, or a file opened that nobody named.
The suite runs a few thousand fixed examples; for fresh ones, as long as you like, all seconds shared between the targets::

    TASKVEC_FUZZ=600 pytest tests/hostile/test_fuzz.py -k longer
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import struct
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from hostile import sound
from taskvec.errors import InputError, TaskvecError
from taskvec.recipe import load, parse
from taskvec.weights import Checkpoint, TaskVector, open_weights
from taskvec.weights.dtypes import DTYPES
from taskvec.weights.source import open_source

SECONDS = float(os.environ.get("TASKVEC_FUZZ") or 0)
WATCHED = ("open", "exec", "import", "os.", "subprocess.", "socket.", "shutil.", "ctypes.dlopen", "pickle.")
HARMLESS = ("os.listdir", "os.scandir", "os.fwalk")  # looking at a folder's names is not opening a file in it


@pytest.fixture(scope="module")
def watch() -> Callable[[], contextlib.AbstractContextManager[list[tuple[str, Any]]]]:
    """``with watch() as seen``: what is opened, imported, executed or removed inside; Python's own audit events say."""
    active: list[list[tuple[str, Any]]] = []

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if active and event.startswith(WATCHED) and event not in HARMLESS:
            active[-1].append((event, args[0] if args else None))

    sys.addaudithook(hook)  # stays until the process ends; without an active list it does nothing

    @contextlib.contextmanager
    def watching() -> Iterator[list[tuple[str, Any]]]:
        active.append([])
        try:
            yield active[-1]
        finally:
            active.pop()

    return watching


@contextlib.contextmanager
def bounded(*, seconds: float, memory: int) -> Iterator[None]:
    """Fails where the block takes more CPU time or allocates more than that."""
    tracemalloc.start()
    start = time.process_time()
    try:
        yield
    finally:
        took, (_, peak) = time.process_time() - start, tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert took < seconds, f"took {took:.1f} s"
    assert peak < memory, f"allocated {peak:,} bytes"


def run(strategy: st.SearchStrategy[Any], check: Callable[[Any], str], examples: int) -> Counter[str]:
    """Run `check` over examples; counts what it answers (accepted, refused)."""
    counts: Counter[str] = Counter()

    def count(example: Any) -> None:
        counts[check(example)] += 1

    quiet = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
    fixed = settings(max_examples=examples, derandomize=not SECONDS, suppress_health_check=quiet)
    test = fixed(given(strategy)(count))
    (seed(random.randrange(2**32))(test) if SECONDS else test)()
    return counts


# --- material: JSON, and what can be wrong with it -----------------------------------------------------------------------

names = st.one_of(
    st.sampled_from(["w", "b", "a.weight", "", "__metadata__", "../../x", "ü\x1b[31m", "\ud800", "x" * 300, "dtype"]),
    st.text(max_size=6),
)
numbers = st.one_of(
    st.integers(-3, 70),
    st.sampled_from([2**31, 2**32, 2**53 + 1, 2**62, 2**63 - 1, 2**63, 2**64, 10**40, -1, -(2**63)]),
)
junk = st.recursive(
    st.one_of(numbers, st.none(), st.booleans(), st.floats(), st.sampled_from(["F32", "", "U8", "w", "\ud800"])),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(names, inner, max_size=2)),
    max_leaves=4,
)
SPLICES = [b"", b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"\\u0000", b"\\ud800", b"\0", b"\xff", b" ", b"\n", b"-", b"9" * 50, b"1e999",
           b"NaN", b"null", b"true", b"0", b".5", b"//", b'"w":', b'"__metadata__":', b"\xef\xbb\xbf", b"[" * 2000]  # fmt: skip


def encode(value: Any) -> bytes:
    """JSON where a table may be a list of pairs behind a marker, so that keys can stand twice."""
    if isinstance(value, Pairs):
        return b"{" + b",".join(json.dumps(k).encode() + b":" + encode(v) for k, v in value) + b"}"
    return json.dumps(value, ensure_ascii=bool(len(str(value)) % 2)).encode("utf-8", "surrogatepass")


class Pairs(list[Any]):
    """A JSON object as pairs."""


@st.composite
def spliced(draw: st.DrawFn, text: bytes) -> bytes:
    """The text with some of its bytes replaced, removed, repeated."""
    for _ in range(draw(st.integers(1, 3))):
        a = draw(st.integers(0, len(text)))
        b = min(len(text), a + draw(st.sampled_from([0, 0, 1, 1, 2, 8])))
        text = (
            text[:a]
            + draw(st.one_of(st.sampled_from(SPLICES), st.binary(max_size=3), st.just(text[a : b + 4])))
            + text[b:]
        )
    return text


# --- (a) headers -----------------------------------------------------------------------------------------------------------


@st.composite
def tables(draw: st.DrawFn) -> tuple[Pairs, int]:
    """A sound header as pairs, and the bytes of data it describes."""
    table, at = Pairs(), 0
    if draw(st.booleans()):
        table.append(("__metadata__", draw(st.dictionaries(names, names, max_size=2))))
    for name in draw(st.lists(names, max_size=4, unique=True)):
        dtype = draw(st.sampled_from([*DTYPES, "F32", "F32"]))
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        size = int(np.prod(shape)) * DTYPES[dtype].itemsize
        table.append((name, Pairs([("dtype", dtype), ("shape", shape), ("data_offsets", [at, at + size])])))
        at += size
    return Pairs(draw(st.permutations(table))), at


def _entries(table: Pairs) -> list[Any]:
    return [v for _, v in table if isinstance(v, Pairs) and len(v) >= 3]


@st.composite
def mutated(draw: st.DrawFn, table: Pairs) -> Pairs:
    """One thing in it changed."""
    what = draw(st.sampled_from(["field", "offset", "twice", "gone", "name", "add", "shape", "dtype"]))
    if what == "twice" and table:
        table.insert(draw(st.integers(0, len(table))), draw(st.sampled_from(table)))
    elif what == "gone" and table:
        table.pop(draw(st.integers(0, len(table) - 1)))
    elif what == "name" and table:
        place = draw(st.integers(0, len(table) - 1))
        table[place] = (draw(names), table[place][1])
    elif what == "add":
        table.append((draw(names), draw(junk)))
    elif entries := _entries(table):
        entry = draw(st.sampled_from(entries))
        place = draw(st.integers(0, len(entry) - 1))
        if what == "field":
            entry[place] = (draw(st.sampled_from(["dtype", "shape", "data_offsets", "x"])), draw(junk))
        elif what == "offset":
            entry[2] = ("data_offsets", [draw(numbers), draw(numbers)])
        elif what == "shape":
            entry[1] = ("shape", draw(st.lists(numbers, max_size=70 if draw(st.booleans()) else 3)))
        else:
            entry[0] = ("dtype", draw(st.sampled_from([*DTYPES, "F8_E8M0", "F4", "C64", "f32", "I4", ""])))
    return table


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """A safetensors file: sound, wrong in structure, wrong in its bytes, or not one at all."""
    kind = draw(st.integers(0, 9))
    if kind == 9:
        return draw(st.binary(max_size=64))
    table, size = draw(tables())
    for _ in range(draw(st.integers(1, 2)) if kind >= 3 else 0):
        table = draw(mutated(table))
    text = encode(table)
    if kind >= 7:
        text = draw(spliced(text))
    text += b" " * draw(st.integers(0, 8))
    length = len(text)
    if kind == 8:
        length = draw(st.one_of(st.integers(0, 2**64 - 1), st.integers(max(0, length - 8), length + 8)))
    data = bytes(i % 2 for i in range(size))  # sound booleans too
    cut = draw(st.sampled_from([0, 0, 0, 0, 0, 0, 0, 1, -1, 8]))
    return struct.pack("<Q", length) + text + (data + b"\1" if cut < 0 else data[: len(data) - cut])


def header_check(folder: Path) -> Callable[[bytes], str]:
    safetensors = pytest.importorskip("safetensors")
    path = folder / "m.safetensors"
    # Format names of the published library, where they are not ours.
    other = {"F8_E4M3": "F8_E4M3", "F8_E5M2": "F8_E5M2"}

    def check(data: bytes) -> str:
        path.write_bytes(data)
        with bounded(seconds=1, memory=300_000 + 100 * len(data)):
            try:
                source = open_source(path)
            except InputError as error:
                assert str(path) in str(error)
                return "refused"
        theirs = dict(safetensors.deserialize(data))
        assert sorted(theirs) == sorted(source.spec)
        for name, spec in source.spec.items():
            assert other.get(spec.dtype, spec.dtype) == theirs[name]["dtype"]
            assert list(spec.shape) == theirs[name]["shape"]
            assert source.read(name, 0, spec.size).tobytes() == bytes(theirs[name]["data"])
        return "accepted"

    return check


def test_headers(tmp_path):
    counts = run(files(), header_check(tmp_path), 600)
    assert min(counts["accepted"], counts["refused"]) > 120, counts  # else these examples say little


# --- (b) indexes -----------------------------------------------------------------------------------------------------------

SHARDS = {"model-00001-of-00002.safetensors": ("a", "b"), "model-00002-of-00002.safetensors": ("c",)}


@st.composite
def indexes(draw: st.DrawFn) -> bytes:
    weight_map = Pairs((name, file) for file, held in SHARDS.items() for name in held)
    index = Pairs([("metadata", {"total_size": 24}), ("weight_map", weight_map)])
    targets = st.sampled_from(
        [*SHARDS, "../secret.safetensors", "secret.safetensors", "link.safetensors", "/etc/passwd", "a\\b", "x\0", "", ".", "..",
         "model.safetensors.index.json", "y" * 300, "\ud800", "./" + next(iter(SHARDS))]
    )  # fmt: skip
    for _ in range(draw(st.integers(0, 2))):
        match draw(st.sampled_from(["target", "add", "gone", "twice", "junk", "top"])):
            case "target" if weight_map:
                place = draw(st.integers(0, len(weight_map) - 1))
                weight_map[place] = (weight_map[place][0], draw(targets))
            case "add":
                weight_map.append((draw(names), draw(targets)))
            case "gone" if weight_map:
                weight_map.pop(draw(st.integers(0, len(weight_map) - 1)))
            case "twice" if weight_map:
                weight_map.append((draw(st.sampled_from(weight_map))[0], draw(targets)))
            case "junk" if weight_map:
                weight_map[0] = (weight_map[0][0], draw(junk))
            case "top":
                index.append((draw(st.sampled_from(["weight_map", "metadata", "x"])), draw(junk)))
    text = encode(index)
    return draw(spliced(text)) if draw(st.integers(0, 3)) == 0 else text


def index_check(folder: Path, watch: Any) -> Callable[[bytes], str]:
    tensor = np.arange(2, dtype=np.float32)
    sound(folder / "secret.safetensors")
    inside = folder / "model"
    inside.mkdir()
    for number, (file, held) in enumerate(SHARDS.items()):
        sound(inside / file, {name: tensor + 10 * number + len(name) for name in held})
    (inside / "link.safetensors").symlink_to("../secret.safetensors")
    (inside / "secret.safetensors").hardlink_to(folder / "secret.safetensors")
    index = inside / "model.safetensors.index.json"
    allowed = {str(index), *(str(inside / f) for f in (*SHARDS, "secret.safetensors", index.name))}

    def check(data: bytes) -> str:
        index.write_bytes(data)
        with watch() as seen, bounded(seconds=1, memory=500_000 + 100 * len(data)):
            try:
                source = open_source(inside)
            except InputError as error:
                assert str(inside) in str(error)
                source = None
        assert {str(path) for _, path in seen} <= allowed, seen
        if source is None:
            return "refused"
        weight_map = json.loads(data)["weight_map"]
        assert set(weight_map) == set(source.spec)
        for name, file in weight_map.items():
            spec = source.spec[name]
            assert (source.read(name, 0, spec.size) == Checkpoint.read(inside / file).array(name).reshape(-1)).all()
        return "accepted"

    return check


def test_indexes(tmp_path, watch):
    counts = run(indexes(), index_check(tmp_path, watch), 250)
    assert min(counts["accepted"], counts["refused"]) > 5, counts


# --- (c) expressions -------------------------------------------------------------------------------------------------------

atoms = st.sampled_from(["base", "a", "b", "(a - base)", "tuned", "bsae", "0.5", "2", "1e400", "nan", "0", "True", "'a'", "1j", "10**9", "None", "...",
                         "__import__", "__class__", "[a, b]", "()", "9" * 400, "lambda", "_", "x" * 200, "a.norm()"])  # fmt: skip
patterns = st.text("aw*?[]!~-.\\^$\n(", max_size=12)
words = st.sampled_from(["density", "seed", "t", "normalise", "x", "vectors", "base", "self"])
calls = st.sampled_from(
    ["ties", "dare", "slerp", "sum", "average", "random", "restrict", "shared", "rebase", "eval", "open", "Ties"]
)


def _larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    many = st.lists(inner, max_size=3).map(", ".join)
    keyword = st.one_of(st.just(""), st.tuples(words, inner).map(lambda p: f", {p[0]}={p[1]}"))
    return st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "+", "-", "**", "@", "//", "<", "and", "if", ",", ".", ";", "=", ":="]), inner).map(" ".join),
        st.tuples(calls, many, keyword).map(lambda p: f"{p[0]}([{p[1]}]{p[2]})"),
        st.tuples(calls, many, keyword).map(lambda p: f"{p[0]}({p[1]}{p[2]})"),
        st.tuples(inner, patterns).map(lambda p: f"restrict({p[0]}, {p[1]!r})"),
        inner.map(lambda v: f"({v})"),
        inner.map(lambda v: f"-{v}"),
        st.tuples(inner, inner).map(lambda p: f"{p[0]}[{p[1]}]"),
    )  # fmt: skip


vectors = st.recursive(
    st.sampled_from(["a", "b", "(tuned - base)"]),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-"]), inner).map(lambda p: f"({' '.join(p)})"),
        st.tuples(st.floats(-1e3, 1e3), inner).map(lambda p: f"{p[0]!r} * {p[1]}"),
        st.tuples(st.sampled_from(["ties", "average", "sum"]), st.lists(inner, min_size=1, max_size=3)).map(lambda p: f"{p[0]}([{', '.join(p[1])}])"),
        inner.map(lambda v: f"restrict({v}, '*')"),
    ),
    max_leaves=5,
)  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn, texts: st.SearchStrategy[str], splices: str) -> str:
    """The text with characters put in, taken out or repeated (many times, at times)."""
    text = draw(texts)
    for _ in range(draw(st.integers(0, 3))):
        a = draw(st.integers(0, len(text)))
        b = min(len(text), a + draw(st.integers(0, 6)))
        put = draw(
            st.one_of(
                st.text(splices, max_size=3),
                st.text(max_size=2),
                st.just(text[a:b] * draw(st.sampled_from([2, 30, 900]))),
            )
        )
        text = text[:a] + put + text[b:]
    return text


expressions = st.one_of(
    vectors.map(lambda v: f"base + {v}"),
    st.recursive(atoms, _larger, max_leaves=8),
    damaged(
        st.one_of(vectors, st.recursive(atoms, _larger, max_leaves=4)), "()[]+-*/.,'\"\\\n\t #:;=_019eabjx{}@~!%&|^<>"
    ),
)


def expression_check(watch: Any) -> Callable[[str], str]:
    base = Checkpoint.of({"w": np.zeros(3, np.float32), "a[0].w": np.ones(2, np.float32)}, label="base")
    tuned = Checkpoint.of({n: v + 1 for n, v in base.arrays().items()}, label="tuned")
    known = {"base": base, "tuned": tuned, "a": tuned - base, "b": 2 * (tuned - base)}
    parse("base + 0.5 * restrict(ties([a, b]), '*')", known).explain()  # imports what is imported late

    def check(text: str) -> str:
        with watch() as seen:
            start = time.process_time()
            try:
                value = parse(text, known)
                assert isinstance(value, (Checkpoint, TaskVector))
                assert str(value.explain())
            except TaskvecError as error:
                assert error.exit_code in (2, 3)
                value = None
            assert time.process_time() - start < 2
        # A syntax tree is made by the compiler ("compile" is not among the watched events); nothing is run.
        assert not seen, seen
        return "refused" if value is None else "accepted"

    return check


def test_expressions(watch):
    counts = run(expressions, expression_check(watch), 1000)
    assert min(counts["accepted"], counts["refused"]) > 200, counts


# --- (d) recipes -----------------------------------------------------------------------------------------------------------

GOOD = """\
recipe: 1
let:
  base: {read: base.safetensors}
  tuned: {read: tuned.safetensors, sha256: SHA}
  tau: tuned - base
output: base + 0.5 * tau
dtype: bfloat16
"""
PIECES = ["&x", "*x", "!!python/object/apply:os.system [touch MARKER]", "!!python/name:os.system", "!x", "<<: *x", "? ", ": ", "- ", "|\n", ">", "%YAML 1.1\n",
          "---\n", "...\n", "{", "}", "[", "]", '"', "'", "#", "\t", "\n", "\0", "\ufeff", "no", "010", "1:30", ".nan", "2001-99-99", "~", "!!int x", "!!binary x",
          "!!set {a}", "!!timestamp 1", "recipe", "output", "let", "read", "dtype", "sha256", "../secret.safetensors", "/etc/passwd", "base", "tau", "1",
          "\ud800", "[" * 800, "a: " * 50, "x0: base\n", "  "]  # fmt: skip


edits = st.one_of(
    st.tuples(st.floats(-10, 10), st.floats(-10, 10)).map(
        lambda c: f"base + {c[0]!r} * (tau - {c[1]!r} * (tuned - base))"
    ),
    st.floats(-10, 10).map(lambda c: f"tuned + {c!r} * ties([tau, tuned - base])"),
)


@st.composite
def recipes(draw: st.DrawFn) -> str:
    """The sound recipe with pieces of YAML put in, lines moved, and its values replaced."""
    lines = list(map(str, GOOD.splitlines(keepends=True)))
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(lines) - 1))
        match draw(st.sampled_from(["gone", "twice", "moved", "value", "expression", "piece", "piece", "name"])):
            case "gone" if len(lines) > 1:
                lines.pop(place)
            case "twice":
                lines.append(lines[place])
            case "moved":
                lines.insert(draw(st.integers(0, len(lines))), lines.pop(place))
            case "value":
                key = lines[place].partition(":")[0]
                value = draw(st.one_of(junk.map(lambda v: json.dumps(v, default=str)), st.sampled_from(PIECES)))
                lines[place] = f"{key}: {value}\n"
            case "expression":
                key = lines[place].partition(":")[0]
                lines[place] = f"{key}: {draw(st.one_of(expressions, edits))}\n"
            case "name":
                lines[place] = f"  {draw(st.one_of(names, st.sampled_from(PIECES)))}: {draw(vectors)}\n"
            case "piece":
                at = draw(st.integers(0, len(lines[place])))
                lines[place] = lines[place][:at] + draw(st.sampled_from(PIECES)) + lines[place][at:]
            case _:
                pass
    text = "".join(lines)
    return draw(damaged(st.just(text), ":{}[]&*!|>'\"%@`#-? \n\t~,")) if draw(st.integers(0, 4)) == 0 else text


def recipe_check(folder: Path, watch: Any) -> Callable[[str], str]:
    import hashlib

    inside = folder / "recipes"
    inside.mkdir()
    sound(folder / "secret.safetensors", {"w": np.ones((4, 4), np.float32)})
    sound(inside / "base.safetensors")
    sound(inside / "tuned.safetensors", seed=1)
    good = GOOD.replace("SHA", hashlib.sha256((inside / "tuned.safetensors").read_bytes()).hexdigest())
    path = inside / "recipe.yaml"
    path.write_text(good)
    load(path).build().explain()  # imports what is imported late
    before = sorted(folder.rglob("*"))
    digest = good.splitlines()[3].split("sha256: ")[1].rstrip("}")
    cache = Path(os.environ["XDG_CACHE_HOME"])  # outside the folder, set by the caller

    def check(text: str) -> str:
        path.write_bytes(text.replace("SHA", digest).encode("utf-8", "surrogatepass"))
        recipe, value = None, None
        with watch() as seen:
            start = time.process_time()
            try:
                recipe = load(path)
                value = recipe.build()
                assert str(value.explain(dtype=recipe.dtype))
            except TaskvecError as error:
                assert error.exit_code in (2, 3), error
                value = None
            assert time.process_time() - start < 3
        named = {path, *(recipe.read.values() if recipe else ())}
        # Hashes of files that have lain there for two seconds are remembered, which a slow machine comes to.
        seen = [(event, at) for event, at in seen if cache not in Path(at).parents and Path(at) != cache]
        assert all(event == "open" for event, _ in seen), seen
        for _, opened in seen:  # the recipe, what it names, and files of a folder that it names
            assert any(Path(opened) == n or n in Path(opened).parents for n in named), (opened, named)
        assert sorted(folder.rglob("*")) == before
        return "refused" if value is None else "accepted"

    return check


def test_recipes(tmp_path, watch, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.with_name(f"{tmp_path.name}-cache")))
    counts = run(recipes(), recipe_check(tmp_path, watch), 500)
    assert counts["accepted"] > 10 and counts["refused"] > 200, counts


# --- (e) what an output says of itself ------------------------------------------------------------------------------------


@st.composite
def records(draw: st.DrawFn, sound_record: str) -> bytes:
    """A sound record (taskvec.json) with fields replaced, taken out or renamed, or its text spliced."""
    table = json.loads(sound_record)
    for _ in range(draw(st.integers(0, 2))):
        place = table
        while isinstance(place, dict) and place:
            key = draw(st.sampled_from(sorted(place)))
            if not isinstance(place[key], dict) or draw(st.booleans()):
                break
            place = place[key]
        else:
            continue
        match draw(st.sampled_from(["junk", "gone", "name", "expression", "read"])):
            case "junk":
                place[key] = draw(junk)
            case "gone":
                del place[key]
            case "name":
                place[draw(names)] = place.pop(key)
            case "expression":
                table["expression"] = draw(st.one_of(expressions, edits))
            case "read":
                place[key] = draw(
                    st.sampled_from(
                        [
                            "../secret.safetensors",
                            "/etc/passwd",
                            "..",
                            "",
                            ".",
                            "x\0",
                            "base.safetensors",
                            "\ud800",
                            "y" * 300,
                        ]
                    )
                )
    text = json.dumps(table, default=str).encode()
    return draw(spliced(text)) if draw(st.integers(0, 4)) == 0 else text


def record_check(folder: Path, watch: Any) -> tuple[st.SearchStrategy[bytes], Callable[[bytes], str]]:
    from taskvec.verify import verify

    inside = folder / "outs"
    inside.mkdir()
    sound(folder / "secret.safetensors")
    base = Checkpoint.read(sound(inside / "base.safetensors"))
    tuned = Checkpoint.read(sound(inside / "tuned.safetensors", seed=1))
    out = (base + 0.5 * (tuned - base)).save(inside / "out")
    path = out / "taskvec.json"
    good = path.read_text()
    assert verify(out).ok  # imports what is imported late
    before = sorted(folder.rglob("*"))

    def check(data: bytes) -> str:
        path.write_bytes(data)
        with watch() as seen:
            start = time.process_time()
            try:
                found = verify(out)
            except TaskvecError as error:
                assert error.exit_code in (2, 3), error
                found = None
            assert time.process_time() - start < 3
        # Notes of hashes are written to the cache; weights are read nowhere but beside the output.
        opened = {Path(str(p)) for event, p in seen if event == "open"}
        assert not {p for p in opened if p.name in ("secret.safetensors", "passwd")}, opened
        assert sorted(folder.rglob("*")) == before
        if found is not None and found.ok:
            return "accepted"
        return "refused"

    return records(good), check


def test_records(tmp_path, watch, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").mkdir()
    counts = run(*record_check(tmp_path / "x", watch), 300)
    assert counts["accepted"] > 10 and counts["refused"] > 100, counts


# --- found by fuzzing, or on the way -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["explain", "compare"])
def test_a_path_too_long_for_the_system(command, tmp_path, run_cli):
    good = sound(tmp_path / "good.safetensors")
    code, _, err = run_cli(command, tmp_path / ("x" * 300 + ".safetensors"), *([good] if command == "compare" else []))
    assert code == 3 and "does not exist" in err


def test_a_shard_that_lies_there_and_is_not_in_the_index(tmp_path, run_cli):
    table = {n: np.ones(8, np.float32) for n in "abc"}
    Checkpoint.of(table, label="m").save(tmp_path / "m", shard_size=64)
    index = tmp_path / "m" / "model.safetensors.index.json"
    said = json.loads(index.read_text())
    said["weight_map"] = {n: f for n, f in said["weight_map"].items() if "00002-of" not in f}
    assert 0 < len(said["weight_map"]) < 3
    index.write_text(json.dumps(said))
    code, _, err = run_cli("explain", tmp_path / "m")
    assert code == 3 and "model-00002-of-00002.safetensors" in err


# --- as long as you like ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not SECONDS, reason="TASKVEC_FUZZ=SECONDS runs it")
@pytest.mark.timeout(SECONDS + 300)
@pytest.mark.parametrize("target", ["headers", "indexes", "expressions", "recipes", "records"])
def test_longer(target, tmp_path, watch, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tmp_path = tmp_path / "x"
    tmp_path.mkdir()
    strategy, check = {
        "headers": lambda: (files(), header_check(tmp_path)),
        "indexes": lambda: (indexes(), index_check(tmp_path, watch)),
        "expressions": lambda: (expressions, expression_check(watch)),
        "recipes": lambda: (recipes(), recipe_check(tmp_path, watch)),
        "records": lambda: record_check(tmp_path, watch),
    }[target]()
    end, counts = time.monotonic() + SECONDS / 5, Counter()
    while time.monotonic() < end:
        counts += run(strategy, check, 500)
    print(f"{target}: {dict(counts)}")


def test_the_watch_sees(watch, tmp_path):
    """The property above could not fail if the watch were blind."""
    sound(tmp_path / "m.safetensors")
    with watch() as seen:
        open_weights(tmp_path / "m.safetensors")
        exec("1")
        (tmp_path / "m.safetensors").rename(tmp_path / "n.safetensors")
    assert {event for event, _ in seen} == {"open", "exec", "os.rename"}
