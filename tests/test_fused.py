"""The compiled path: the bits of NumPy, block by block, summary by summary, and its error texts."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from method_rows import apply
from taskvec.errors import NonFinite
from taskvec.methods import METHODS, average, dare, random_like, slerp, ties
from taskvec.methods.elementwise import _random_words
from taskvec.weights import Checkpoint, compare, execute
from taskvec.weights.algebra import lift
from taskvec.weights.dtypes import narrow
from taskvec.weights.entry import Words
from taskvec.weights.execute import evaluate, summarise
from taskvec.weights.fused import SWITCH, WORTHWHILE, Fused, _Jit, natural, wanted
from taskvec.weights.summaries import CHANGED, DOT, KTH_MAGNITUDE, MAGNITUDE_BIN, NORM, SIGN_AGREEMENT

pytest.importorskip("llvmlite", reason="the compiled path needs llvmlite (pip install 'taskvec[fast]')")

BF16 = np.dtype(ml_dtypes.bfloat16)
SIZES = (0, 1, 15, 16, 17, 255, 256, 257, 1000)
HYPER = {"ties": {"density": 0.3}, "dare": {"density": 0.4, "seed": 5}, "slerp": {"t": 0.3}}
FUSES = {"sum", "average", "weighted_average", "paint", "expo", "ties", "dare", "slerp"}


def weights(seed: int, dtype: object, *, sizes=SIZES, scale: float = 1.0) -> dict[str, np.ndarray]:
    """Few distinct values, so that differences are often zero and often equal, as those of bfloat16 models are."""
    rng = np.random.default_rng(seed)
    return {f"w{n}": (scale * np.round(rng.normal(size=n), 1 + n % 3)).astype(dtype) for n in sizes}


def family(base_dtype: object = np.float32, dtype: object = np.float32, count: int = 3):
    base = Checkpoint.of(weights(0, base_dtype), label="base")
    return base, [Checkpoint.of(weights(i + 1, dtype), label=f"t{i}") - base for i in range(count)]


def compiled(node, stored: str, summaries) -> dict[str, bytes]:
    """Every tensor by the compiled path, in blocks; fails where NumPy would have to step in."""
    fast = Fused([node], dict.fromkeys(node.spec, stored))
    if stored not in natural():
        pytest.skip(f"this processor has no instruction for {stored}")
    out = dict.fromkeys(node.spec, b"")
    for block in execute.blocks(node, node.spec, whole=False):
        got = fast.run(block, summaries)
        assert got is not None, (block, "is not computed by the compiled path")
        out[block.name] += got.tobytes()
    return out


def by_numpy(node, stored: str, summaries) -> dict[str, bytes]:
    out = dict.fromkeys(node.spec, b"")
    for block in execute.blocks(node, node.spec, whole=False):
        out[block.name] += narrow(evaluate(node, block, summaries), stored).tobytes()
    return out


def equal(thing, stored: str = "F32") -> None:
    summaries = summarise(thing.node)
    assert compiled(thing.node, stored, summaries) == by_numpy(thing.node, stored, summaries)


@pytest.fixture(autouse=True)
def numpy_unless_said(monkeypatch):
    monkeypatch.setenv(SWITCH, "0")


@pytest.mark.parametrize(
    "formats", [(np.float32, np.float32), (BF16, BF16), (np.float32, BF16), (BF16, np.float16), (np.float16,) * 2]
)
@pytest.mark.parametrize("method", sorted(FUSES))
@pytest.mark.parametrize("stored", ["F32", "BF16", "F16"])
def test_methods_have_the_bits_of_numpy(method, formats, stored):
    base, vectors = family(*formats)
    merged = METHODS[method].fn(vectors[: METHODS[method].vectors[1]], **HYPER.get(method, {}))
    equal(merged, stored)
    equal(base + 0.7 * merged, stored)


@pytest.mark.parametrize("method", sorted(set(METHODS) - FUSES))
def test_every_other_method_is_left_to_numpy_or_has_its_bits(method):
    _, vectors = family()
    merged = apply(method, vectors[: METHODS[method].vectors[1]])
    summaries = summarise(merged.node)
    fast = Fused([merged.node], dict.fromkeys(merged.spec, "F32"))
    for block in execute.blocks(merged.node, merged.spec, whole=execute.whole_tensors(merged.node)):
        got = fast.run(block, summaries)
        assert got is None or got.tobytes() == evaluate(merged.node, block, summaries).tobytes()


@pytest.mark.parametrize("coefficient", [1.0, -1.0, 0.4, 1e-30, 1 / 3, 3e38])
def test_arithmetic_has_the_bits_of_numpy(coefficient):
    base, (a, b, c) = family(BF16, BF16)
    small = base + coefficient * 1e-9 * a
    for point in (base + coefficient * 1e-8 * (a + b - 2 * c), small + (b - c), base + (a - a.restrict(["w1", "w17"]))):
        equal(point, "BF16")
        equal(point, "F32")


def test_partial_vectors_have_one_loop_for_each_set_of_names(monkeypatch):
    base, (a, b, c) = family()
    for merged in (
        0.5 * (a.restrict(["w1", "w16"]) + b.restrict(["w16", "w257"]) + c),
        ties([a.restrict("w1*"), b, c.restrict("w2*")], density=0.5),
        dare([a.restrict("w1*"), b], density=0.5),
        slerp([a, b.restrict("w1*")], t=0.2),
    ):
        equal(merged)
        point = base + merged.restrict([n for n in merged.names if n != "w15"])
        spec = point.node.inputs[1].spec
        summaries = summarise(point.node)
        fast = Fused([point.node], dict.fromkeys(spec, "F32"))
        for block in execute.blocks(point.node, spec, whole=False):
            assert fast.run(block, summaries).tobytes() == evaluate(point.node, block, summaries).tobytes()


def test_shared_names_and_rebased_vectors():
    base, (a, b, _) = family()
    other = Checkpoint.of({f"model.{n}": x for n, x in weights(9, BF16).items()}, label="other")
    tau = other.shared(base) - base
    equal(base + 0.3 * tau + 0.2 * (a + b).rebase(base))


finite = st.integers(0, 2**32 - 1).map(lambda i: np.array([i], np.uint32).view(np.float32)[0]).filter(math.isfinite)


@given(st.lists(st.tuples(finite, finite, finite), min_size=1, max_size=40), st.sampled_from([0.3, 1.0, -2.5, 1e-20]))
def test_any_finite_bits_in_give_the_same_bits_out(rows, coefficient):
    """Denormals, negative zeros and the largest numbers; what overflows is left to NumPy."""
    x, y, z = (np.array(column, np.float32) for column in zip(*rows, strict=True))
    base = Checkpoint.of({"w": x}, label="base")
    a, b = (Checkpoint.of({"w": w}, label=label) - base for w, label in ((y, "a"), (z, "b")))
    for thing in (base + coefficient * (a - b), base + ties([a, b], density=0.5), base + dare([a, b], density=0.5)):
        summaries = summarise(thing.node)
        (block,) = execute.blocks(thing.node, ["w"], whole=False)
        for stored in ("F32", "BF16", "F16"):
            got = Fused([thing.node], {"w": stored}).run(block, summaries)
            expected = narrow(evaluate(thing.node, block, summaries), stored)
            if got is not None and got.dtype != expected.dtype:
                continue  # this processor has no instruction for F16
            if got is None:
                assert not np.isfinite(expected.astype(np.float64)).all()
            else:
                assert got.tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", [np.float32, BF16, np.float16])
def test_summaries_have_the_bits_of_numpy(dtype, monkeypatch):
    _, (a, b, c) = family(dtype, dtype)
    wanted_ = [lift(DOT, [x, y], per=per) for x in (a, b) for y in (b, c) for per in ("model", "tensor")]
    wanted_ += [lift(NORM, [a]), lift(NORM, [0.3 * a - b], per="tensor"), lift(SIGN_AGREEMENT, [a, b], per="tensor")]
    wanted_ += [lift(CHANGED, [c]), lift(SIGN_AGREEMENT, [c, b])]
    for v, density in ((a, 0.2), (b, 0.01), (c, 0.9), (a.restrict("w1*"), 0.5)):
        wanted_.append(lift(KTH_MAGNITUDE, [v], high=lift(MAGNITUDE_BIN, [v], density=density)))
    nodes = [s.node for s in wanted_]
    monkeypatch.setattr(execute, "BLOCK", 300)
    found = {}
    for said in "01":
        monkeypatch.setenv(SWITCH, said)
        for threads in (1, 2):
            found[said, threads] = repr(sorted(summarise(*nodes, threads=threads).items()))
    assert len(set(found.values())) == 1


def test_a_comparison_is_the_same(monkeypatch):
    base, vectors = family(BF16, BF16)
    plain = compare(vectors, base=base, by="tensor")
    monkeypatch.setenv(SWITCH, "1")
    assert compare(vectors, base=base, by="tensor") == plain


@pytest.mark.parametrize("block", [16, 100, 257])
def test_files_are_the_same_with_one_thread_and_two(block, tmp_path, monkeypatch):
    base, vs = family(BF16, BF16)
    monkeypatch.setattr(execute, "BLOCK", block)
    points = {
        "sum": base + 0.3 * (vs[0] + vs[1] - vs[2]), "ties": base + ties(vs), "dare": base + dare(vs, density=0.3),
        "average": base + average(vs), "slerp": base + slerp(vs[:2]), "random": base + random_like(vs[0]),
    }  # fmt: skip
    seen = []
    for said, threads in (("0", 1), ("1", 1), ("1", 2)):
        monkeypatch.setenv(SWITCH, said)
        monkeypatch.setattr(execute, "default_threads", lambda n=threads: n)
        files = [p.save(tmp_path / f"{n}-{said}-{threads}.safetensors") for n, p in points.items()]
        files += [vs[0].save(tmp_path / f"v-{said}-{threads}.safetensors")]
        seen.append([f.read_bytes() for f in files])
    assert seen[0] == seen[1] == seen[2]


@pytest.mark.parametrize("dtype", ["F16", "F8_E4M3", "F8_E5M2", "F64", "F32"])
def test_other_output_formats_are_rounded_once(dtype, tmp_path, monkeypatch):
    base, vs = family(BF16, BF16)
    point = base + 0.3 * (vs[0] - vs[1])
    one = point.save(tmp_path / "one.safetensors", dtype=dtype).read_bytes()
    monkeypatch.setenv(SWITCH, "1")
    assert point.save(tmp_path / "two.safetensors", dtype=dtype).read_bytes() == one


def test_a_tensor_longer_than_a_block_as_large_as_real_ones():
    rng = np.random.default_rng(0)
    n = execute.BLOCK + 1
    base = Checkpoint.of({"w": rng.normal(size=n).astype(BF16)}, label="base")
    a, b = (Checkpoint.of({"w": rng.normal(size=n).astype(BF16)}, label=label) - base for label in "ab")
    for merged in (0.4 * (a + b), ties([a, b]), dare([a, b], density=0.1), slerp([a, b])):
        equal(base + merged, "BF16")


@pytest.mark.parametrize("dtype", [np.float32, BF16, np.float16])
@pytest.mark.parametrize("what", ["base", "tuned", "overflow", "variance"])
def test_errors_say_the_same(what, dtype, tmp_path, monkeypatch):
    table, tuned = ({"w": np.ones(40, dtype), "running_var": np.ones(40, dtype)} for _ in "xy")
    largest = {np.float16: 6e4}.get(dtype, 3e38)
    if what in ("base", "tuned"):
        (table if what == "base" else tuned)["w"][17] = np.nan if dtype == np.float32 else -np.inf
    else:
        tuned["w" if what == "overflow" else "running_var"][3] = largest if what == "overflow" else 8.0
    base = Checkpoint.of(table, label="base")
    tau = Checkpoint.of(tuned, label="tuned") - base
    point = base + 2.0 * tau if what == "overflow" else base - tau
    said = []
    for switch in "01":
        monkeypatch.setenv(SWITCH, switch)
        with pytest.raises(Exception) as error:
            point.save(tmp_path / "out.safetensors")
        said.append((type(error.value), str(error.value)))
        if what in ("base", "tuned"):
            with pytest.raises(NonFinite) as error:
                tau.norm()
            said.append((NonFinite, str(error.value)))
    assert said[: len(said) // 2] == said[len(said) // 2 :]


def test_what_has_no_entry_form_is_left_to_numpy():
    base = Checkpoint.of({"d": np.ones(4), "n": np.ones(4, np.int64), "f": np.ones(4, np.float32)}, label="base")
    other = Checkpoint.of({"d": np.zeros(4), "n": np.ones(4, np.int64), "f": np.zeros(4, np.float32)}, label="other")
    node = (base + 0.5 * (other - base)).node
    fast = Fused([node], dict.fromkeys(node.spec, "F32"))
    ran = {b.name: fast.run(b, {}) is not None for b in execute.blocks(node, node.spec, whole=False)}
    assert ran == {"d": False, "n": False, "f": True}
    noise = random_like(other - base)
    values = summarise(noise.node)
    assert Fused([noise.node], {"f": "F32"}).run(execute.Block("f", 0, 4), values) is None


@pytest.mark.parametrize("first", [0, 1, 2, 7, 8, 9, 1001, 2**33 + 5])
def test_random_words_are_those_of_numpy(first):
    key = np.frombuffer(__import__("hashlib").blake2b(b"seed\0name", digest_size=16).digest(), np.uint64)
    got = _Jit().fill(Words((int(key[0]), int(key[1])), first), 100)
    expected = _random_words("seed", ("name", first), 60).view(np.uint32)[first % 2 :][:100]
    np.testing.assert_array_equal(got, expected)


def test_chosen_for_long_passes_only(monkeypatch):
    assert not wanted(10 * WORTHWHILE)
    monkeypatch.setenv(SWITCH, "1")
    assert wanted(0)
    monkeypatch.delenv(SWITCH)
    assert wanted(WORTHWHILE) and not wanted(WORTHWHILE - 1)


def test_small_edits_do_not_import_llvmlite(tmp_path):
    import subprocess
    import sys

    base, (a, *_) = family()
    files = [base.save(tmp_path / "base.safetensors"), (base + a).save(tmp_path / "a.safetensors")]
    program = (
        "import sys; from taskvec import Checkpoint as C;"
        "b, a = (C.read(p) for p in sys.argv[1:3]); (b + 0.5 * (a - b)).save(sys.argv[3]);"
        "assert 'llvmlite' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-c", program, *map(str, files), str(tmp_path / "o.safetensors")], check=True, env={}
    )
