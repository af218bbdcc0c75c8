"""The linear family against slow, plain NumPy transcriptions of the equations, on whole tensors."""

from __future__ import annotations

import numpy as np
import pytest

from taskvec.errors import BaseMismatch, UsageError
from taskvec.methods import expo, karcher, model_stock, multislerp, nuslerp, paint, weighted_average
from taskvec.weights import Checkpoint, TaskVector

SHAPES = {"w": (20, 31), "b": (100,), "s": (), "conv": (4, 3, 2, 2), "none": (0, 2)}
Table = dict[str, np.ndarray]


def family(seed: int, count: int, *, alike: float = 0.0) -> tuple[Checkpoint, list[TaskVector], Table, list[Table]]:
    """A base, vectors, and both in float64; `alike` mixes a common direction in."""
    rng = np.random.default_rng(seed)

    def draw() -> Table:
        return {n: np.asarray(rng.normal(size=s)).astype(np.float32) for n, s in SHAPES.items()}

    start, common = draw(), draw()
    taus = [{n: x + np.float32(alike) * common[n] for n, x in draw().items()} for _ in range(count)]
    base = Checkpoint.of(start, label="base")
    vs = [Checkpoint.of({n: start[n] + x for n, x in t.items()}, label=f"t{i}") - base for i, t in enumerate(taus)]
    wide = [{n: x.astype(np.float64) for n, x in v.arrays().items()} for v in vs]
    return base, vs, {n: x.astype(np.float64) for n, x in start.items()}, wide


def close(vector: TaskVector, table: Table, *, rtol: float = 1e-5, atol: float = 2e-6) -> None:
    for n, x in table.items():
        np.testing.assert_allclose(vector.array(n), x, rtol=rtol, atol=atol, err_msg=n)


def test_weighted_average_paint_and_expo():
    _, vs, _, ts = family(1, 3)
    a = np.array([0.2, -0.5, 1.7])
    close(
        weighted_average(vs, coefficients=a.tolist()),
        {n: sum(c * t[n] for c, t in zip(a / a.sum(), ts, strict=True)) for n in SHAPES},
    )
    close(weighted_average(vs), {n: np.mean([t[n] for t in ts], 0) for n in SHAPES})
    close(paint(vs[:1], t=0.3), {n: 0.3 * ts[0][n] for n in SHAPES})
    close(expo(vs[:1], alpha=0.3), {n: 1.3 * ts[0][n] for n in SHAPES})


def arc(x: np.ndarray, y: np.ndarray, t: float) -> np.ndarray:
    size = np.linalg.norm(x) * np.linalg.norm(y)
    cosine = np.clip((x * y).sum() / size, -1, 1) if size else 1.0
    if 1 - cosine**2 <= 1e-16:
        return (1 - t) * x + t * y
    angle = np.arccos(cosine)
    return (np.sin((1 - t) * angle) * x + np.sin(t * angle) * y) / np.sin(angle)


def by(x: np.ndarray, y: np.ndarray, t: float, per: str) -> np.ndarray:
    if per == "tensor" or x.ndim < 2:
        return arc(x, y, t)
    axis = -1 if per == "row" else 0
    p, q = np.moveaxis(x, axis, -1), np.moveaxis(y, axis, -1)
    out = np.zeros_like(p)
    for i in np.ndindex(p.shape[:-1]):
        out[i] = arc(p[i], q[i], t)
    return np.moveaxis(out, -1, axis)


@pytest.mark.parametrize("per", ["tensor", "row", "column"])
@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_nuslerp(per, t):
    base, vs, start, (x, y) = family(2, 2)
    close(nuslerp(vs, t=t, per=per), {n: by(x[n], y[n], t, per) for n in SHAPES})
    got = nuslerp(vs, t=t, per=per, of="models", base=base)
    close(got, {n: by(start[n] + x[n], start[n] + y[n], t, per) - start[n] for n in SHAPES}, atol=5e-6)


def log_map(m: np.ndarray, u: np.ndarray) -> np.ndarray:
    angle = np.arccos(np.clip(m @ u, -1, 1))
    return (u - (m @ u) * m) * (angle / np.sin(angle)) if angle > 1e-9 else 0.0 * m


def exp_map(m: np.ndarray, v: np.ndarray) -> np.ndarray:
    size = np.linalg.norm(v)
    return np.cos(size) * m + np.sin(size) * v / size if size else m


@pytest.mark.parametrize("of", ["vectors", "models"])
def test_karcher_mean_is_where_the_angles_balance(of):
    _, vs, start, ts = family(3, 4, alike=0.8)
    got = karcher(vs, iterations=200, tolerance=1e-12, of=of)
    for n in ("w", "b", "conv"):
        xs = [(t[n] + (start[n] if of == "models" else 0)).ravel() for t in ts]
        us = [x / np.linalg.norm(x) for x in xs]
        m = np.sum(us, 0)
        m /= np.linalg.norm(m)
        for _ in range(200):  # plain gradient steps in the full space
            m = exp_map(m, np.mean([log_map(m, u) for u in us], 0))
        expected = np.mean([np.linalg.norm(x) for x in xs]) * m - (start[n].ravel() if of == "models" else 0)
        np.testing.assert_allclose(got.array(n).ravel(), expected, rtol=1e-4, atol=3e-6, err_msg=n)
        direction = got.array(n).ravel() + (start[n].ravel() if of == "models" else 0)
        direction = direction.astype(np.float64) / np.linalg.norm(direction)
        assert np.linalg.norm(np.mean([log_map(direction, u) for u in us], 0)) < 1e-5  # its definition


def test_multislerp_in_the_published_form():
    """Through the tangent space at the mean, as it is published."""
    _, vs, _, ts = family(4, 3, alike=0.5)
    a = np.array([0.5, 0.3, 0.2])
    for n in ("w", "b"):
        xs = np.stack([t[n].ravel() for t in ts])
        norms = np.linalg.norm(xs, axis=1)
        us = xs / norms[:, None]
        mean = a @ us / np.linalg.norm(a @ us)
        tangent = a @ (us - (us @ mean)[:, None] * mean)
        expected = exp_map(mean, tangent) * (a @ norms)
        got = multislerp(vs, coefficients=a.tolist()).array(n).ravel()
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("per", ["tensor", "row"])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_model_stock(per, count):
    _, vs, _, ts = family(5, count, alike=0.7)
    expected = {}
    for n, shape in SHAPES.items():
        rows = [t[n].reshape(-1, shape[-1]) if per == "row" and shape else t[n].reshape(1, -1) for t in ts]
        out = np.zeros_like(rows[0])
        for r in range(len(out)):
            cosines = []
            for i in range(count):
                for j in range(i):
                    size = np.linalg.norm(rows[i][r]) * np.linalg.norm(rows[j][r])
                    cosines.append(rows[i][r] @ rows[j][r] / size if size else 0.0)
            c = np.mean(cosines)
            out[r] = count * c / (1 + (count - 1) * c) * np.mean([x[r] for x in rows], 0)
        expected[n] = out.reshape(shape)
    close(model_stock(vs, per=per), expected, rtol=1e-4, atol=1e-5)


def test_what_is_refused(tmp_path):
    base, vs, _, _ = family(6, 2)
    for call, said in (
        (lambda: weighted_average(vs, coefficients=[1.0]), "list of 2 numbers"),
        (lambda: weighted_average(vs, coefficients=[1.0, -1.0]), "add up to zero"),
        (lambda: weighted_average(vs, coefficients=[1.0, float("nan")]), "finite"),
        (lambda: paint(vs), "exactly 1"),
        (lambda: paint(vs[:1], t=1.2), r"in \[0, 1\]"),
        (lambda: expo(vs[:1], alpha=-0.1), "at least 0"),
        (lambda: nuslerp(vs, of="model"), "choose one of vectors, models"),
        (lambda: karcher(vs, iterations=-1), "whole number"),
        (lambda: model_stock(vs[:1]), "at least 2"),
    ):
        with pytest.raises(UsageError, match=said):
            call()
    stored = [TaskVector.read(v.save(tmp_path / f"{i}.safetensors")) for i, v in enumerate(vs)]
    with pytest.raises(UsageError, match="base's weights are needed"):
        karcher(stored, of="models")
    assert karcher(stored, of="models", base=base).names == vs[0].names
    with pytest.raises(BaseMismatch):
        karcher(stored, of="models", base=Checkpoint.of({n: np.ones(s) for n, s in SHAPES.items()}, label="other"))
