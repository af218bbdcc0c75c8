"""The sparse family against slow, plain NumPy transcriptions of the equations, on whole vectors, by sorting."""

from __future__ import annotations

import math

import numpy as np
import pytest
from test_linear import SHAPES, Table, close, family

from taskvec.errors import KeyMismatch, UsageError
from taskvec.methods import (
    breadcrumbs,
    consensus,
    dare,
    della,
    emr,
    magmax,
    magnitude_drop,
    pcb,
    random_drop,
    sce,
    stitch,
    tall_mask,
    ties,
)
from taskvec.weights import Checkpoint


def top(x: np.ndarray, k: int) -> np.ndarray:
    """A mask of the k largest magnitudes."""
    mask = np.zeros(x.size, bool)
    mask[np.argsort(-np.abs(x.ravel()), kind="stable")[:k]] = True
    return mask.reshape(x.shape)


def flat(t: Table) -> np.ndarray:
    return np.concatenate([t[n].ravel() for n in SHAPES])


def elected(stack: np.ndarray, a: np.ndarray, *, votes: str, weigh: bool, divide: str, plus: bool) -> np.ndarray:
    a = a.reshape(-1, *[1] * (stack.ndim - 1))
    voting = stack * a if weigh else stack
    total = (np.sign(voting) if votes == "count" else voting).sum(0)
    sign = np.where(total >= 0, 1, -1) if plus else np.sign(total)
    chosen = (np.sign(voting) == sign) & (voting != 0)
    below = {"count": chosen.sum(0), "coefficients": (a * chosen).sum(0), "nothing": np.ones(stack.shape[1:])}[divide]
    return (stack * a * chosen).sum(0) / np.where(below == 0, 1, below)


@pytest.mark.parametrize("variant", ["paper", "mergekit", "peft"])
@pytest.mark.parametrize("votes", ["mass", "count"])
@pytest.mark.parametrize("density", [0.25, 1.0])
def test_ties_variants(variant, votes, density):
    _, vs, _, ts = family(11, 3)
    a = np.array([0.5, 1.5, -0.4])
    rule = {
        "paper": {"weigh": True, "divide": "count", "plus": False},
        "mergekit": {"weigh": True, "divide": "coefficients", "plus": True},
        "peft": {"weigh": False, "divide": "count", "plus": True},
    }[variant]
    got = ties(vs, density=density, variant=variant, votes=votes, coefficients=a.tolist())
    cuts = [np.sort(np.abs(flat(t)))[::-1][math.ceil(density * flat(t).size - 1e-9) - 1] for t in ts]
    for n, shape in SHAPES.items():
        size = math.prod(shape)
        k = {"mergekit": max(min(1, size), int(density * size)), "peft": int(density * size)}.get(variant, 0)
        masks = [np.abs(t[n]) >= c if variant == "paper" else top(t[n], k) for t, c in zip(ts, cuts, strict=True)]
        stack = np.stack([t[n] * m for t, m in zip(ts, masks, strict=True)])
        np.testing.assert_allclose(got.array(n), elected(stack, a, votes=votes, **rule), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("variant", ["paper", "mergekit"])
@pytest.mark.parametrize("how", ["sum", "ties"])
def test_dare_variants(variant, how):
    """With the masks that each vector alone shows."""
    _, vs, _, ts = family(12, 3)
    a = np.array([1.0, 0.5, 2.0])
    got = dare(vs, density=0.4, seed=3, consensus=how, variant=variant, coefficients=a.tolist())
    masks = [dare([w if i == j else 0.0 * w for j, w in enumerate(vs)], density=0.4, seed=3) for i in range(3)]
    for n in SHAPES:
        thin = []
        for t, m in zip(ts, masks, strict=True):
            x = t[n] * (m.array(n) != 0)
            scale = 1 / 0.4 if variant == "paper" else np.abs(t[n]).sum() / max(np.abs(x).sum(), 1e-300)
            thin.append(x * scale)
        stack = np.stack(thin)
        expected = (stack * a.reshape(-1, *[1] * (stack.ndim - 1))).sum(0)
        if how == "ties":
            divide = "count" if variant == "paper" else "nothing"
            expected = elected(stack, a, votes="mass", weigh=True, divide=divide, plus=variant != "paper")
        np.testing.assert_allclose(got.array(n), expected, rtol=1e-5, atol=1e-5, err_msg=n)


def test_della_keeps_large_entries_more_often_and_rescales_by_its_probability():
    """One vector, many seeds: the share of masks that keep an entry is its probability, and the mean is the entry."""
    x = np.array([[0.1, -3.0, 2.0, 0.5, -1.0], [5.0, 4.0, -3.0, 2.0, 1.0]], np.float32)
    base = Checkpoint.of({"w": np.zeros_like(x), "c": np.zeros((3, 1), np.float32)}, label="base")
    v = Checkpoint.of({"w": x, "c": np.ones((3, 1), np.float32)}, label="t") - base
    draws = [della([v], density=0.5, epsilon=0.3, seed=s).arrays() for s in range(1500)]
    kept = np.mean([d["w"] != 0 for d in draws], axis=0)
    rank = np.argsort(np.argsort(np.abs(x), axis=1), axis=1)
    expected = 0.2 + 0.6 * rank / 4
    np.testing.assert_allclose(kept, expected, atol=0.06)  # more than four standard deviations
    for d in draws[:20]:
        np.testing.assert_allclose(d["w"], np.where(d["w"] != 0, x / expected, 0), rtol=1e-5)
    assert abs(np.mean([d["c"] != 0 for d in draws]) - 0.5) < 0.04  # a row of one entry
    heavy = della([v], density=0.5, epsilon=0.3, variant="mergekit").array("w")
    assert np.abs(heavy).sum() == pytest.approx(np.abs(x).sum(), rel=1e-6)


@pytest.mark.parametrize("variant", ["paper", "mergekit"])
@pytest.mark.parametrize(("density", "gamma"), [(0.3, 0.05), (0.98, 0.2), (0.01, 0.0), (1.0, 0.1)])
def test_breadcrumbs(variant, density, gamma):
    _, vs, _, ts = family(13, 2)
    expected = {}
    for n, shape in SHAPES.items():
        size = math.prod(shape)
        kept = int(density * size) if variant == "mergekit" else math.ceil(density * size - 1e-9)
        above = min(int(gamma * size), size - kept) if density < 1 else 0
        expected[n] = sum(t[n] * (top(t[n], above + kept) & ~top(t[n], above)) for t in ts)
    close(breadcrumbs(vs, density=density, gamma=gamma, variant=variant), expected)


@pytest.mark.parametrize("density", [0.3, 1.0])
def test_sce(density):
    _, vs, _, ts = family(14, 3)
    for n, shape in SHAPES.items():
        stack = np.stack([t[n] for t in ts])
        deviation = stack.std(0)
        keep = top(deviation, int(density * math.prod(shape))) if density < 1 else np.ones(shape, bool)
        stack = stack * keep
        energy = np.array([(x**2).sum() for x in stack])
        c = energy / energy.sum() if energy.sum() else np.full(3, 1 / 3)
        expected = elected(stack, c, votes="mass", weigh=False, divide="coefficients", plus=False)
        np.testing.assert_allclose(sce(vs, density=density).array(n), expected, rtol=1e-5, atol=2e-6, err_msg=n)


def test_magmax():
    _, vs, _, ts = family(15, 4)
    stack = {n: np.stack([t[n] for t in ts]) for n in SHAPES}
    close(magmax(vs), {n: np.take_along_axis(x, np.abs(x).argmax(0)[None], 0)[0] for n, x in stack.items()})


@pytest.mark.parametrize("density", [0.05, 0.3])
def test_pcb(density):
    _, vs, _, ts = family(16, 3, alike=1.0)
    clip = 0.01
    x = np.stack([flat(t) for t in ts])
    t, d = x.shape
    ordered = np.sort(np.abs(x), axis=1)
    low, high = ordered[:, [int(d * clip)]], ordered[:, [int(d * (1 - clip) - 1)]]
    size = np.clip(np.abs(x), low, high)
    score = np.exp(t * ((size - low) / (high - low)) ** 2) * np.tanh(x * x.sum(0))
    least, most = np.sort(score, axis=1)[:, [int(d * (1 - density))]], score.max(1, keepdims=True)
    share = (np.maximum(score, least) - least) / (most - least)
    expected = (np.sign(x) * size * share).sum(0) / np.maximum(share.sum(0), 1e-12)
    got = flat({n: y.astype(np.float64) for n, y in pcb(vs, density=density, clip=clip).arrays().items()})
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-5)


def test_tall_masks_and_consensus():
    _, vs, _, ts = family(17, 4, alike=0.6)
    total = {n: sum(t[n] for t in ts) for n in SHAPES}
    masks = [{n: np.abs(t[n]) > 0.45 * np.abs(total[n] - t[n]) for n in SHAPES} for t in ts]
    for i in range(4):
        close(tall_mask(vs, task=i, threshold=0.45), {n: total[n] * masks[i][n] for n in SHAPES})
    for k in (0, 1, 2, 4):
        expected = {n: total[n] * (sum(m[n].astype(int) for m in masks) >= k) for n in SHAPES}
        close(consensus(vs, threshold=0.45, agree=k), expected)


def test_emr():
    _, vs, _, ts = family(18, 3)
    unified = {}
    for n in SHAPES:
        stack = np.stack([t[n] for t in ts])
        sign = np.sign(stack.sum(0))
        unified[n] = sign * np.where(np.sign(stack) == sign, np.abs(stack), 0).max(0)
    close(emr(vs), unified)
    for i, t in enumerate(ts):
        masked = {n: unified[n] * (t[n] * unified[n] > 0) for n in SHAPES}
        scale = np.abs(flat(t)).sum() / np.abs(flat(masked)).sum()
        close(emr(vs, task=i), {n: x * scale for n, x in masked.items()})


def test_drops_and_stitching():
    _, vs, _, ts = family(19, 2)
    (v, w), (t, u) = vs, ts
    cut = np.sort(np.abs(flat(t)))[::-1][math.ceil(0.1 * flat(t).size) - 1]
    close(magnitude_drop([v], density=0.1), {n: x * (np.abs(x) >= cut) for n, x in t.items()})
    by_tensor = {n: x * top(x, math.ceil(0.1 * x.size - 1e-9)) for n, x in t.items()}
    close(magnitude_drop([v], density=0.1, per="tensor"), by_tensor)
    thin = random_drop([v], density=0.3, seed=2).arrays()
    close(random_drop([v], density=0.3, seed=2), {n: x / 0.3 * (thin[n] != 0) for n, x in t.items()})
    plain = random_drop([v], density=0.3, seed=2, rescale=False)
    for n, x in v.arrays().items():
        np.testing.assert_array_equal(plain.array(n), x * (thin[n] != 0))
    assert abs((flat(thin) != 0).mean() - 0.3) < 0.05
    rng = np.random.default_rng(0)
    masks = [{n: np.asarray(rng.random(s) < 0.5).astype(np.float32) for n, s in SHAPES.items()} for _ in range(2)]
    expected = {n: (t[n] * a[n] + u[n] * b[n]) / np.maximum(1, a[n] + b[n]) for a, b in [masks] for n in SHAPES}
    close(stitch([v, w], masks=[Checkpoint.of(m, label="mask") for m in masks]), expected)


def test_zeros_and_single_entries_stay_finite():
    base = Checkpoint.of({"w": np.zeros((3, 1), np.float32), "s": np.zeros((), np.float32)}, label="base")
    zero = Checkpoint.of({"w": np.zeros((3, 1), np.float32), "s": np.zeros((), np.float32)}, label="z") - base
    one = Checkpoint.of({"w": np.array([[1.0], [2.0], [3.0]]), "s": np.ones(())}, label="one") - base
    assert ties([one], density=0.01, variant="mergekit").array("w").ravel().tolist() == [0, 0, 3]  # at least one entry
    assert not ties([one], density=0.01, variant="peft").array("w").any()  # as it rounds down
    for method in (ties, della, breadcrumbs, sce, magmax, pcb, consensus, emr):
        for vs in ([zero, zero], [zero, one], [one, one]):
            for x in method(vs).arrays().values():
                assert np.isfinite(x).all(), method
        assert not any(x.any() for x in method([zero, zero]).arrays().values())


def test_what_is_refused():
    _, vs, _, _ = family(20, 2)
    mask = Checkpoint.of({"w": np.ones((2, 2))}, label="mask")
    for call, said in (
        (lambda: ties(vs, density=0), "share of entries"),
        (lambda: ties(vs, variant="mergkit"), "choose one of paper, mergekit, peft.*mergekit"),
        (lambda: ties(vs, coefficients=[1.0, 2.0, 3.0]), "list of 2 numbers"),
        (lambda: dare(vs, density=1.2), "share of entries"),
        (lambda: dare(vs, density=0.5, consensus="mean"), "consensus"),
        (lambda: della(vs, density=0.9, epsilon=0.2), "from 0.7 to 1.1"),
        (lambda: breadcrumbs(vs, density=0.5, gamma=1.5), "gamma"),
        (lambda: sce(vs, density=-1), "share of entries"),
        (lambda: pcb(vs, density=0.1, clip=0.7), "clip"),
        (lambda: tall_mask(vs, task=2), "whole number from 0 to 1"),
        (lambda: consensus(vs, agree=-1), "whole number"),
        (lambda: emr(vs, task=5), "whole number from 0 to 1"),
        (lambda: random_drop(vs, density=0.5), "exactly 1"),
        (lambda: magnitude_drop(vs[:1], density=0.0), "share of entries"),
        (lambda: stitch(vs, masks=[mask]), "list of 2 checkpoints"),
    ):
        with pytest.raises(UsageError, match=said):
            call()
    with pytest.raises(KeyMismatch, match="another shape"):
        stitch(vs, masks=[mask, mask])
    with pytest.raises(KeyMismatch, match="not in t0"):
        stitch(vs, masks=[Checkpoint.of({"x": np.ones(1)}, label="m")] * 2)
