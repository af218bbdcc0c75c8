"""Slow, plain NumPy transcriptions of the equations, held against the streamed code."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskvec.methods import average, dare, random_like, slerp, task_sum, ties
from taskvec.weights import Checkpoint, TaskVector, execute, lift
from taskvec.weights.dtypes import all_finite, narrow, widen
from taskvec.weights.summaries import KTH_MAGNITUDE, MAGNITUDE_BIN, count_kept

BF16 = np.dtype(ml_dtypes.bfloat16)
SHAPES = {"w": (40, 31), "v": (40, 31), "b": (100,), "s": (), "none": (0, 2)}
Table = dict[str, np.ndarray]


def vectors(seed: int, count: int, *, dtype: object = np.float32) -> tuple[Checkpoint, list[TaskVector], list[Table]]:
    """A zero base, so that a vector's values are the fine-tuned ones, and those in float64."""
    rng = np.random.default_rng(seed)
    base = Checkpoint.of({n: np.zeros(s, dtype) for n, s in SHAPES.items()}, label="base")
    tables = [{n: np.asarray(rng.normal(size=s)).astype(dtype) for n, s in SHAPES.items()} for _ in range(count)]
    vs = [Checkpoint.of(t, label=f"t{i}") - base for i, t in enumerate(tables)]
    return base, vs, [{n: x.astype(np.float64) for n, x in t.items()} for t in tables]


def kth_magnitude(values: np.ndarray, density: float) -> float:
    """The smallest magnitude that is kept when ceil(density n) largest are, by sorting everything."""
    n = len(values)
    return float(np.sort(np.abs(values))[n - count_kept(n, density)]) if n else 0.0


def ties_oracle(tables: list[Table], density: float) -> Table:
    """arXiv:2306.01708, section 4: trim globally, elect the sign of the sum, average those that carry it."""
    trimmed = []
    for t in tables:
        cut = kth_magnitude(np.concatenate([x.reshape(-1) for x in t.values()]), density)
        trimmed.append({n: np.where(np.abs(x) >= cut, x, 0.0) for n, x in t.items()})
    out = {}
    for n in tables[0]:
        stack = np.stack([t[n] for t in trimmed])
        sign = np.sign(stack.sum(0))
        chosen = (np.sign(stack) == sign) & (sign != 0)
        out[n] = np.where(chosen, stack, 0).sum(0) / np.maximum(chosen.sum(0), 1)
    return out


def close(vector: TaskVector, table: Table, *, rtol: float = 2e-6, atol: float = 1e-6) -> None:
    for n, x in table.items():
        np.testing.assert_allclose(vector.array(n), x, rtol=rtol, atol=atol, err_msg=n)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_sum_and_average(count):
    _, vs, ts = vectors(1, count)
    close(task_sum(vs), {n: sum(t[n] for t in ts) for n in SHAPES})
    close(average(vs), {n: np.mean([t[n] for t in ts], 0) for n in SHAPES})


@pytest.mark.parametrize("density", [1.0, 0.5, 0.2, 0.013, 1e-9])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.float32, BF16, np.float64], ids=str)
def test_ties(density, count, dtype):
    _, vs, ts = vectors(2, count, dtype=dtype)
    close(ties(vs, density=density), ties_oracle(ts, density), rtol=1e-5)


@pytest.mark.parametrize("density", [0.9, 0.2, 0.01])
def test_ties_keeps_the_share_it_says(density):
    for dtype in (np.float32, np.float64, BF16):
        _, (v,), (t,) = vectors(3, 1, dtype=dtype)
        n = sum(x.size for x in t.values())
        kept = sum(np.count_nonzero(x) for x in ties([v], density=density).arrays().values())
        wanted = count_kept(n, density)
        assert kept >= wanted
        if dtype != BF16:  # no equal magnitudes
            assert kept == wanted


def test_ties_ignores_zeros_in_the_vote_and_ties_of_signs():
    base = Checkpoint.of({"w": np.zeros(5, np.float32)}, label="base")
    tables = [[3, -1, 0, 2, 0], [1, 2, 5, -2, 0], [0, 0, -1, 0, 0]]
    vs = [Checkpoint.of({"w": np.array(t, np.float32)}, label=f"t{i}") - base for i, t in enumerate(tables)]
    assert ties(vs, density=1.0).array("w").tolist() == [2, 2, 5, 0, 0]


value_lists = st.one_of(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=200),
    st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 1e-40, 3.0]), min_size=1, max_size=200),
)


@given(value_lists, st.floats(0.001, 1.0), st.booleans())
def test_kth_magnitude_against_sorting(values, density, quantised):
    x = np.array(values, np.float32)
    if quantised:
        x = np.clip(x, -1e30, 1e30).astype(BF16).astype(np.float32)
    point = Checkpoint.of({"a": x[: len(x) // 3], "b": x[len(x) // 3 :]}, label="t")
    v = TaskVector(point.node, (point - point).base, "t")
    found = lift(KTH_MAGNITUDE, [v], high=lift(MAGNITUDE_BIN, [v], density=density)).value()
    assert found == kth_magnitude(x, density)


@pytest.mark.parametrize("block", [37, 1000, 1 << 18])
def test_kth_magnitude_of_many(block, monkeypatch):
    monkeypatch.setattr(execute, "BLOCK", block)
    x = np.random.default_rng(0).normal(size=3000).astype(BF16).astype(np.float32)
    point = Checkpoint.of({"a": x}, label="t")
    v = TaskVector(point.node, (point - point).base, "t")
    for k in (1, 2, 1499, 1500, 2999, 3000):
        found = lift(KTH_MAGNITUDE, [v], high=lift(MAGNITUDE_BIN, [v], density=k / 3000)).value()
        assert found == np.sort(np.abs(x))[3000 - k]


def test_count_kept():
    for n in (1, 2, 3, 10, 99, 100, 10**9):
        assert count_kept(n, 1.0) == n and count_kept(n, 1e-12) == 1
        for k in {1, 2, n // 3, n - 1, n} - {0}:
            assert count_kept(n, min(1.0, k / n)) == min(k, n)
    assert count_kept(0, 0.5) == 0 and count_kept(10, 0.11) == 2


# --- random ------------------------------------------------------------------------------------------------------------


def constant(value: float, shapes: dict[str, tuple[int, ...]], count: int) -> tuple[Checkpoint, list[TaskVector]]:
    base = Checkpoint.of({n: np.zeros(s, np.float32) for n, s in shapes.items()}, label="base")
    return base, [
        Checkpoint.of({n: np.full(s, value, np.float32) for n, s in shapes.items()}, label=f"t{i}") - base
        for i in range(count)
    ]


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_dare_keeps_its_share_and_rescales_by_it(density):
    _, (v, _) = constant(3.0, {"w": (200, 200)}, 2)
    n = 40_000
    got = dare([v], density=density, seed=1).array("w")
    assert set(np.unique(got)) == {np.float32(0), np.float32(3) * (np.float32(1) / np.float32(density))}
    kept = np.count_nonzero(got)
    assert abs(kept - density * n) < 5 * math.sqrt(n * density * (1 - density))
    assert got.mean() == pytest.approx(3.0, abs=5 * 3 * math.sqrt((1 - density) / density / n))  # unbiased


def test_dare_masks_are_the_documented_ones():
    """Transcribed: a Philox counter keyed by blake2b(seed, name), one 32-bit word an entry, kept below density 2^32."""
    import hashlib

    _, (v,) = constant(1.0, {"w": (1000,)}, 1)
    key = np.frombuffer(hashlib.blake2b(b"dare 7 0\0w", digest_size=16).digest(), np.uint64)
    words = np.random.Philox(key=key, counter=0).random_raw(500).view(np.uint32)
    np.testing.assert_array_equal(dare([v], density=0.25, seed=7).array("w") != 0, words < 2**30)


def test_dare_masks_are_independent():
    shapes = {"w": (100, 100), "v": (100, 100)}
    _, vs = constant(1.0, shapes, 2)

    def mask(vectors, place, name, seed=0):
        apart = [w if i == place else 0.0 * w for i, w in enumerate(vectors)]
        return dare(apart, density=0.5, seed=seed).array(name) != 0

    first = mask(vs, 0, "w")
    for other in (mask(vs, 1, "w"), mask(vs, 0, "v"), mask(vs, 0, "w", seed=1)):
        assert abs(np.mean(first == other) - 0.5) < 0.025
    assert abs(np.corrcoef(first[:-1].ravel(), first[1:].ravel())[0, 1]) < 0.05  # nor rows of one tensor
    assert abs(np.corrcoef(first.ravel()[:-1], first.ravel()[1:])[0, 1]) < 0.05
    np.testing.assert_array_equal(first, mask(vs, 0, "w"))


def test_random_vectors_have_the_norms_of_the_vector():
    _, (v,), (t,) = vectors(5, 1)
    got = random_like(v, seed=3)
    for n, x in t.items():
        assert np.linalg.norm(got.array(n).astype(np.float64)) == pytest.approx(np.linalg.norm(x), rel=1e-6)
    w, u = got.array("w").ravel(), got.array("v").ravel()
    assert abs(np.corrcoef(w, u)[0, 1]) < 0.12 and abs(np.corrcoef(w, t["w"].ravel())[0, 1]) < 0.12
    z = (w - w.mean()) / w.std()
    assert abs(np.mean(z**3)) < 0.25 and abs(np.mean(z**4) - 3) < 0.6  # normal moments
    assert not np.array_equal(w, random_like(v, seed=4).array("w").ravel())


# --- geometry ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_slerp(t):
    _, (a, b), (x, y) = vectors(6, 2)
    got = slerp([a, b], t=t)
    for n in SHAPES:
        p, q = x[n].ravel(), y[n].ravel()
        scale = np.linalg.norm(p) * np.linalg.norm(q)
        cosine = p @ q / scale if scale else 1.0
        if abs(cosine) > 0.9995:
            expected = (1 - t) * p + t * q
        else:
            angle = np.arccos(cosine)
            expected = (np.sin((1 - t) * angle) * p + np.sin(t * angle) * q) / np.sin(angle)
        np.testing.assert_allclose(got.array(n).ravel(), expected, rtol=1e-5, atol=1e-6)


def test_slerp_keeps_the_length_of_equal_lengths():
    base = Checkpoint.of({"w": np.zeros(2, np.float32)}, label="base")
    a, b = (Checkpoint.of({"w": np.array(x, np.float32)}, label=str(x)) - base for x in ([1, 0], [0, 1]))
    for t in (0.25, 0.5):
        assert slerp([a, b], t=t).norm() == pytest.approx(1.0, rel=1e-6)
    np.testing.assert_allclose(slerp([a, b], t=0.5).array("w"), [math.sqrt(0.5)] * 2, rtol=1e-6)


# --- rounding ----------------------------------------------------------------------------------------------------------


def finite_bf16() -> np.ndarray:
    patterns = np.arange(1 << 16, dtype=np.uint16).view(BF16)
    return patterns[np.isfinite(patterns.astype(np.float32))]


def test_every_bfloat16_is_read_exactly():
    x = finite_bf16()
    np.testing.assert_array_equal(widen(x).view(np.uint32), x.view(np.uint16).astype(np.uint32) << 16)


@pytest.mark.parametrize("offset", [-0x8000, -0x7FFF, -1, 0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
def test_rounding_to_bfloat16_is_to_nearest_even(offset):
    """All values, all half-way points, and what lies a bit beside them, against integer arithmetic."""
    bits = finite_bf16().view(np.uint16).astype(np.int64) << 16
    x = ((bits + offset) % (1 << 32)).astype(np.uint32).view(np.float32)
    x = x[np.isfinite(x)]
    bits = x.view(np.uint32).astype(np.uint64)
    np.testing.assert_array_equal(narrow(x, "BF16").view(np.uint16), (bits + 0x7FFF + (bits >> 16) % 2) >> 16)


SMALL = {"F16": np.float16, "BF16": BF16, "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2}


@pytest.mark.parametrize("name", SMALL)
def test_every_small_float_is_read_told_finite_and_written(name):
    kind = np.dtype(SMALL[name])
    values = np.arange(1 << 8 * kind.itemsize).astype(f"u{kind.itemsize}").view(kind)
    expected = values.astype(np.float32)
    np.testing.assert_array_equal(widen(values), expected)
    assert widen(values[:0]).shape == (0,) and widen(values[3].reshape(())).shape == ()
    finite = np.isfinite(expected)
    assert all_finite(values[finite])
    assert not any(all_finite(values[i : i + 1]) for i in np.flatnonzero(~finite))
    assert narrow(expected[finite], name).tobytes() == values[finite].tobytes()


@pytest.mark.parametrize("name", ["F16", "F8_E4M3", "F8_E5M2"])
def test_float32_is_rounded_as_by_numpy(name):
    """Random bits, all half-way points and their neighbours; overflow gives what the format has for it."""
    kind = np.dtype(SMALL[name])
    values = np.arange(1 << 8 * kind.itemsize).astype(f"u{kind.itemsize}").view(kind).astype(np.float32)
    values = np.unique(values[np.isfinite(values)])
    half = values[:-1] + (values[1:] - values[:-1]) / 2
    far = np.float32([values[-1] * 1.01, values[-1] * 1.2, -3e38, 3e38, np.inf, -np.inf])
    drawn = np.random.default_rng(0).integers(0, 1 << 32, 100_000, np.uint32).view(np.float32)
    x = np.concatenate([half, np.nextafter(half, np.float32(1e9)), np.nextafter(half, np.float32(-1e9)), far, drawn])
    x = x[~np.isnan(x)]
    with np.errstate(over="ignore"):
        expected = x.astype(kind)
    np.testing.assert_array_equal(narrow(x, name).astype(np.float32), expected.astype(np.float32))


@pytest.mark.parametrize("name", ["BF16", "F16", "F8_E4M3", "F8_E5M2"])
def test_float64_is_rounded_once(name):
    """Half-way points, and neighbours that float32 cannot tell from them: rounding through float32 would lose them."""
    kind = {"BF16": BF16, "F16": np.dtype(np.float16)}.get(name) or np.dtype(
        {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2}[name]
    )
    count = 1 << (8 * kind.itemsize)
    with np.errstate(invalid="ignore"):
        values = np.arange(count).astype(f"u{kind.itemsize}").view(kind).astype(np.float64)
    values = np.unique(values[np.isfinite(values)])
    low, high = values[:-1], values[1:]
    half = low + (high - low) / 2
    for nudge, expected in ((1 - 2**-40, low), (1 + 2**-40, high)):
        x = np.where(half > 0, half * nudge, half / nudge)
        got = narrow(x, name).astype(np.float64)
        np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(narrow(values, name).astype(np.float64), values)


@given(st.integers(0, 2**32 - 1), st.lists(st.floats(-2, 2), min_size=1, max_size=4))
def test_a_bfloat16_edit_is_within_one_rounding_of_float64(seed, coefficients):
    rng = np.random.default_rng(seed)
    start = rng.normal(size=300).astype(BF16)
    base = Checkpoint.of({"w": start}, label="base")
    tuned = [(start.astype(np.float32) + 0.1 * rng.normal(size=300)).astype(BF16) for _ in coefficients]
    taus = [Checkpoint.of({"w": y}, label=f"t{i}") - base for i, y in enumerate(tuned)]
    got = (base + sum(c * tau for c, tau in zip(coefficients, taus, strict=True))).array("w").astype(np.float64)
    x = start.astype(np.float64)
    parts = [c * (y.astype(np.float64) - x) for c, y in zip(coefficients, tuned, strict=True)]
    exact = x + sum(parts)
    working = (
        np.abs(x) + sum(np.abs(p) for p in parts)
    ) * 2.0**-22  # a few float32 roundings before the one that counts
    half = np.abs(exact) * 2.0**-8 + 2.0**-134  # at most half a unit of an 8-bit significand
    assert np.all(np.abs(got - exact) <= half + working)
    np.testing.assert_array_equal(got[working == 0], exact[working == 0])


# --- a peer ------------------------------------------------------------------------------------------------------------


@pytest.mark.peer
@pytest.mark.filterwarnings("ignore")  # the peer's own
def test_mergekit_agrees_on_task_arithmetic_ties_and_slerp():
    """In float32 and where both mean the same: TIES of one tensor (mergekit trims per tensor), slerp of whole models."""
    api = pytest.importorskip("mergekit.merge_methods.api", reason="mergekit is not installed")
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    base, *tuned = (rng.normal(size=(40, 25)).astype(np.float32) for _ in range(4))
    start = Checkpoint.of({"w": base}, label="base")
    taus = [Checkpoint.of({"w": x}, label=f"t{i}") - start for i, x in enumerate(tuned)]
    models = {"base": {"w": torch.from_numpy(base)}} | {
        f"t{i}": {"w": torch.from_numpy(x)} for i, x in enumerate(tuned)
    }

    def theirs(method: str, **parameters: object) -> np.ndarray:
        return api.merge_state_dicts(models, method, base="base", parameters=parameters)["w"].numpy()

    close_to = {"rtol": 1e-5, "atol": 2e-6}
    np.testing.assert_allclose((start + 0.4 * sum(taus)).array("w"), theirs("task_arithmetic", weight=0.4), **close_to)
    for density in (0.2, 0.5, 1.0):
        ours = start + 0.7 * ties(taus, density=density)
        peer = theirs("ties", weight=1.0, density=density, normalize=True, **{"lambda": 0.7})
        np.testing.assert_allclose(ours.array("w"), peer, **close_to)
    origin = Checkpoint.of({"w": np.zeros_like(base)}, label="zero")
    a, b = (Checkpoint.of({"w": x}, label=f"p{i}") - origin for i, x in enumerate(tuned[:2]))
    pair = {"x": models["t0"], "y": models["t1"]}
    peer = api.merge_state_dicts(pair, "slerp", base="x", parameters={"t": 0.3})["w"].numpy()
    np.testing.assert_allclose(slerp([a, b], t=0.3).array("w"), peer, **close_to)
