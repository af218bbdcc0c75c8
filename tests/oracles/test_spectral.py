"""Spectral and layered methods, and those with statistics, against plain transcriptions of their definitions."""

from __future__ import annotations

import numpy as np
import pytest

from taskvec.errors import KeyMismatch, UsageError
from taskvec.methods import fisher, iso_c, iso_cts, knots, lines, low_rank, mats, regmean, tsv_m, wudi
from taskvec.weights import Checkpoint, TaskVector

SHAPES = {"tall": (24, 10), "wide": (9, 20), "b": (7,), "conv": (3, 2, 2, 2), "s": ()}
Table = dict[str, np.ndarray]


def family(seed: int, count: int, shapes=SHAPES, *, scale: float = 1.0) -> tuple[list[TaskVector], list[Table]]:
    rng = np.random.default_rng(seed)
    base = Checkpoint.of({n: np.zeros(s, np.float32) for n, s in shapes.items()}, label="base")
    ts = [
        {n: np.asarray(scale * rng.normal(size=s)).astype(np.float32) for n, s in shapes.items()} for _ in range(count)
    ]
    vs = [Checkpoint.of(t, label=f"t{i}") - base for i, t in enumerate(ts)]
    return vs, [{n: x.astype(np.float64) for n, x in t.items()} for t in ts]


def near(got: TaskVector, n: str, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(got.array(n), expected, rtol=0, atol=tolerance * (1 + np.abs(expected).max()), err_msg=n)


def averaged(got: TaskVector, ts: list[Table]) -> None:
    for n in ("b", "conv", "s"):
        near(got, n, np.mean([t[n] for t in ts], 0))


def polar(x: np.ndarray) -> np.ndarray:
    """The nearest orthonormal matrix, without its singular value decomposition: x (x'x)^-1/2."""
    if x.shape[0] < x.shape[1]:
        return polar(x.T).T
    values, vectors = np.linalg.eigh(x.T @ x)
    return x @ (vectors / np.sqrt(values)) @ vectors.T


def test_low_rank_is_the_best_of_its_rank():
    (v,), (t,) = family(1, 1)
    got = low_rank([v], rank=3)
    for n in ("tall", "wide"):
        values, vectors = np.linalg.eigh(t[n].T @ t[n])  # projection on the largest right singular directions
        largest = vectors[:, np.argsort(values)[-3:]]
        near(got, n, t[n] @ largest @ largest.T)
        assert np.linalg.matrix_rank(got.array(n), tol=1e-4) == 3
    for n in ("b", "conv", "s"):
        np.testing.assert_array_equal(got.array(n), v.array(n))
    np.testing.assert_array_equal(low_rank([v], rank=10).array("tall"), v.array("tall"))
    for n in ("tall", "wide"):
        squares = np.linalg.svd(t[n], compute_uv=False) ** 2
        for share in (0.5, 0.9, 1.0):
            kept = (low_rank([v], energy=share).array(n) ** 2).sum() / squares.sum()
            assert kept >= share - 1e-6
            r = int(np.searchsorted(np.cumsum(squares) / squares.sum(), share - 1e-12)) + 1
            assert kept == pytest.approx(squares[:r].sum() / squares.sum(), rel=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_tsv_m(count):
    vs, ts = family(2, count)
    got = tsv_m(vs)
    for n in ("tall", "wide"):
        k = min(SHAPES[n]) // count
        us, ss, ws = zip(*(np.linalg.svd(t[n], full_matrices=False) for t in ts), strict=True)
        u, w = np.concatenate([u[:, :k] for u in us], 1), np.concatenate([w[:k] for w in ws], 0)
        near(got, n, polar(u) @ np.diag(np.concatenate([s[:k] for s in ss])) @ polar(w))
    averaged(got, ts)
    if count == 1:
        near(got, "tall", ts[0]["tall"])


def test_iso_c_has_one_singular_value_and_the_directions_of_the_sum():
    vs, ts = family(3, 3)
    got = iso_c(vs)
    for n in ("tall", "wide"):
        total = sum(t[n] for t in ts)
        near(got, n, np.linalg.svd(total, compute_uv=False).mean() * polar(total))
    averaged(got, ts)


@pytest.mark.parametrize("common", [0.0, 0.5, 0.8, 1.0])
def test_iso_cts(common):
    vs, ts = family(4, 2)
    got = iso_cts(vs, common=common)
    for n in ("tall", "wide"):
        r = min(SHAPES[n])
        own = round((r - int(r * common)) / 2)
        if 2 * own > r:
            own = r // 2
        c = r - 2 * own
        u, s, w = np.linalg.svd(sum(t[n] for t in ts), full_matrices=False)
        left = np.eye(SHAPES[n][0]) - u[:, :c] @ u[:, :c].T
        parts = [np.linalg.svd(left @ t[n], full_matrices=False) for t in ts]
        us = np.concatenate([u[:, :c], *(p[0][:, :own] for p in parts)], 1)
        ws = np.concatenate([w[:c], *(p[2][:own] for p in parts)], 0)
        ss = np.concatenate([s[:c], *(p[1][:own] for p in parts)])
        near(got, n, ss.mean() * polar(us) @ polar(ws))
    averaged(got, ts)
    if common == 1.0:
        near(got, "tall", iso_c(vs).array("tall"))


def test_knots():
    vs, ts = family(5, 3)
    got = knots(vs, density=0.3)
    for n in ("tall", "wide"):
        joined = np.concatenate([t[n] for t in ts], 1)
        u, s, w = np.linalg.svd(joined, full_matrices=False)
        parts = np.split(w, 3, axis=1)
        trimmed = []
        for p in parts:
            cut = np.sort(np.abs(p).ravel())[::-1][int(np.ceil(0.3 * p.size - 1e-9)) - 1]
            trimmed.append(np.where(np.abs(p) >= cut, p, 0))
        stack = np.stack(trimmed)
        sign = np.sign(stack.sum(0))
        agrees = (np.sign(stack) == sign) & (sign != 0)
        near(got, n, u @ np.diag(s) @ ((stack * agrees).sum(0) / np.maximum(1, agrees.sum(0))))
        near(knots(vs, merge="mean"), n, np.mean([t[n] for t in ts], 0))
    averaged(got, ts)


def test_knots_on_low_rank_updates_gives_a_low_rank_update():
    rng = np.random.default_rng(0)
    factors = [(rng.normal(size=(24, 2)), rng.normal(size=(2, 10))) for _ in range(3)]
    base = Checkpoint.of({"w": np.zeros((24, 10), np.float32)}, label="base")
    vs = [Checkpoint.of({"w": (b @ a).astype(np.float32)}, label=f"t{i}") - base for i, (b, a) in enumerate(factors)]
    assert np.linalg.matrix_rank(knots(vs, density=0.5).array("w"), tol=1e-3) <= 6


def test_lines():
    shapes = {
        "embed": (3,),
        "layer.0.w": (2, 2),
        "layer.1.w": (2, 2),
        "layer.3.w": (2,),
        "other.0.w": (2,),
        "head": (2,),
    }
    vs, ts = family(6, 2, shapes)
    scales = {
        "embed": 0.5,
        "head": 0.5,
        "other.0.w": 0.5,
        "layer.0.w": 0.5,
        "layer.1.w": 0.5 + 0.9 / 3,
        "layer.3.w": 1.4,
    }
    got = lines(vs, alpha=0.5, beta=0.9)
    for n, c in scales.items():
        near(got, n, c * (ts[0][n] + ts[1][n]))
    near(lines(vs), "embed", 0.5 * (ts[0]["embed"] + ts[1]["embed"]))
    near(lines(vs), "layer.3.w", ts[0]["layer.3.w"] + ts[1]["layer.3.w"])
    near(
        lines(vs, alpha=0.5, beta=0.9, layers=7),
        "layer.3.w",
        (0.5 + 0.9 / 2) * (ts[0]["layer.3.w"] + ts[1]["layer.3.w"]),
    )
    near(lines(vs, alpha=-1.0, beta=0.0), "head", -(ts[0]["head"] + ts[1]["head"]))
    with pytest.raises(UsageError, match="of at least 4"):
        lines(vs, layers=3)


def test_wudi_takes_the_steps_of_adam_on_its_loss():
    torch = pytest.importorskip("torch", reason="torch is not installed (extra: train)")
    vs, ts = family(7, 3, scale=0.01)
    got = wudi(vs, steps=60, rate=1e-4)
    for n in ("tall", "wide"):
        taus = torch.tensor(np.stack([t[n] for t in ts]))
        m = taus.sum(0).clone().requires_grad_()
        adam = torch.optim.Adam([m], lr=1e-4)
        sizes = (taus**2).sum((1, 2))
        losses = []
        for _ in range(60):
            loss = (((m - taus) @ taus.mT) ** 2).sum((1, 2)).div(sizes).sum()
            losses.append(float(loss.detach()))
            adam.zero_grad()
            loss.backward()
            adam.step()
        assert losses[-1] < losses[0]
        np.testing.assert_allclose(got.array(n), m.detach().numpy(), rtol=1e-4, atol=1e-7)
    averaged(got, ts)


def test_fisher():
    vs, ts = family(8, 3)
    rng = np.random.default_rng(1)
    tables = [{n: np.asarray(rng.random(s)) for n, s in SHAPES.items() if n != "s"} for _ in ts]
    for f in tables:
        f["b"][:2] = 0  # no information from any: the mean
    given = [Checkpoint.of({n: x.astype(np.float32) for n, x in f.items()}, label="fisher") for f in tables]
    a = [1.0, 0.5, 2.0]
    got = fisher(vs, information=given, coefficients=a)
    for n in SHAPES:
        if n == "s":
            near(got, n, np.mean([t[n] for t in ts], 0))
            continue
        below = sum(c * f[n] for c, f in zip(a, tables, strict=True))
        top = sum(c * f[n] * t[n] for c, f, t in zip(a, tables, ts, strict=True))
        near(got, n, np.where(below > 0, top / np.where(below > 0, below, 1), np.mean([t[n] for t in ts], 0)))


@pytest.mark.parametrize("inputs", ["last", "first"])
def test_regmean_is_least_squares_on_the_inputs(inputs):
    """Its definition: with shrink 1, no other weights come closer to each model's outputs on its own inputs."""
    vs, ts = family(9, 2)
    rng = np.random.default_rng(2)
    xs = [{n: rng.normal(size=(60, SHAPES[n][-1 if inputs == "last" else 0])) for n in ("tall", "wide")} for _ in ts]
    grams = [Checkpoint.of({n: (y.T @ y).astype(np.float32) for n, y in x.items()}, label="gram") for x in xs]
    got = regmean(vs, grams=grams, shrink=1.0, inputs=inputs)
    for n in ("tall", "wide"):
        ws = [t[n].T if inputs == "last" else t[n] for t in ts]
        y = np.concatenate([x[n] @ w for x, w in zip(xs, ws, strict=True)])
        best = np.linalg.lstsq(np.concatenate([x[n] for x in xs]), y, rcond=None)[0]
        near(got, n, best.T if inputs == "last" else best, 1e-4)
    averaged(got, ts)
    plain = regmean(vs, grams=grams, shrink=0.0, inputs=inputs)
    for n in ("tall", "wide"):
        ds = [(x[n] ** 2).sum(0) for x in xs]
        ds = [d[None, :] if inputs == "last" else d[:, None] for d in ds]
        near(plain, n, sum(t[n] * d for t, d in zip(ts, ds, strict=True)) / sum(ds))


def test_very_small_and_large_matrices_come_out_as_others():
    (v, w), _ = family(10, 2, {"w": (6, 5)})
    for method in (tsv_m, iso_c, iso_cts, knots):
        expected = method([v, w]).array("w")
        for factor in (2.0**-120, 2.0**90):
            scaled = [
                Checkpoint.of({"w": x.array("w") * np.float32(factor)}, label="x")
                - Checkpoint.of({"w": np.zeros((6, 5), np.float32)}, label="0")
                for x in (v, w)
            ]
            got = method(scaled).array("w")
            np.testing.assert_allclose(got / np.float32(factor), expected, rtol=1e-5, atol=1e-6)


def test_what_is_refused():
    vs, _ = family(11, 2)
    for call, said in (
        (lambda: low_rank(vs[:1]), "either rank"),
        (lambda: low_rank(vs[:1], rank=2, energy=0.5), "either rank"),
        (lambda: low_rank(vs[:1], rank=0), "at least 1"),
        (lambda: low_rank(vs[:1], energy=0.0), "energy"),
        (lambda: iso_cts(vs, common=1.1), r"in \[0, 1\]"),
        (lambda: knots(vs, density=0), "share of entries"),
        (lambda: wudi(vs, steps=-1), "at least 0"),
        (lambda: lines(vs, alpha=float("inf")), "finite"),
        (lambda: fisher(vs, information=[]), "list of 2 checkpoints"),
    ):
        with pytest.raises(UsageError, match=said):
            call()
    wrong = Checkpoint.of({"tall": np.ones((24, 24))}, label="gram")
    with pytest.raises(KeyMismatch, match=r"last axis.*inputs='first'"):
        regmean(vs, grams=[wrong, wrong])
    with pytest.raises(KeyMismatch, match="another shape"):
        fisher(vs, information=[wrong, wrong])
    with pytest.raises(KeyMismatch, match="another model"):
        regmean(vs, grams=[Checkpoint.of({"elsewhere": np.ones((2, 2))}, label="g")] * 2)


@pytest.mark.parametrize("inputs", ["last", "first"])
@pytest.mark.parametrize("with_gradients", [False, True])
def test_mats_solves_its_equation(inputs, with_gradients):
    rng = np.random.default_rng(0)
    shape = (5, 4) if inputs == "last" else (4, 5)  # four inputs, five outputs
    vs, ts = family(9, 3, {"w": shape, "b": (5,), "other": (3, 2)})

    def moments(side):
        return [(lambda x: x.T @ x / len(x))(rng.normal(size=(3 * side, side))) for _ in vs]

    a, b = moments(4), moments(5) if with_gradients else [np.eye(5)] * 3
    files = [[Checkpoint.of({"w": m.astype(np.float32)}, label=f"s{i}") for i, m in enumerate(ms)] for ms in (a, b)]
    more = {"gradients": files[1]} if with_gradients else {}
    got = mats(vs, grams=files[0], inputs=inputs, **more)
    xs = [t["w"] if inputs == "last" else t["w"].T for t in ts]
    # Row by row, B X A is (B kron A) times the entries of X.
    left = sum(np.kron(y, x) for x, y in zip(a, b, strict=True))
    right = sum(np.kron(y, x) @ t.ravel() for x, y, t in zip(a, b, xs, strict=True))
    want = np.linalg.solve(left, right).reshape(5, 4)
    near(got, "w", want if inputs == "last" else want.T, 1e-4)
    for n in ("b", "other"):
        near(got, n, np.mean([t[n] for t in ts], 0))
    near(mats(vs, grams=files[0], inputs=inputs, iterations=0, **more), "w", np.mean([t["w"] for t in ts], 0))
    if not with_gradients:
        near(got, "w", regmean(vs, grams=files[0], shrink=1, inputs=inputs).array("w").astype(float), 1e-4)
    with pytest.raises(KeyMismatch, match="does not fit the"):
        mats(vs, grams=files[0], gradients=files[0], inputs=inputs)
