"""NearSwap, Arcee Fusion and RAM, and rescaling after thinning out, against slow transcriptions of their definitions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from taskvec.errors import UsageError
from taskvec.methods import arcee_fusion, breadcrumbs, della, nearswap, ram, ties
from taskvec.weights import Checkpoint, TaskVector

SHAPES = {"w": (9, 14), "conv": (3, 2, 2, 2), "b": (7,), "s": ()}


def family(seed, count, *, scale=0.3):
    rng = np.random.default_rng(seed)
    start = {n: np.asarray(rng.normal(size=s)).astype(np.float32) for n, s in SHAPES.items()}
    moved = [
        {n: np.asarray(scale * rng.normal(size=s)).astype(np.float32) for n, s in SHAPES.items()} for _ in range(count)
    ]
    base = Checkpoint.of(start, label="base")
    vs = [TaskVector.of(m, base, label=f"t{i}") for i, m in enumerate(moved)]
    wide = [{n: x.astype(np.float64) for n, x in m.items()} for m in moved]
    return base, vs, {n: x.astype(np.float64) for n, x in start.items()}, wide


def test_nearswap_goes_no_farther_than_t():
    _, (v,), _, (x,) = family(0, 1)
    got = nearswap([v], t=0.25)
    for n, tensor in x.items():
        want = np.empty(tensor.size)
        for i, value in enumerate(tensor.ravel()):
            weight = min(1.0, max(0.0, 0.25 / max(abs(value), 1e-6)))
            want[i] = weight * value
        np.testing.assert_allclose(got.array(n), want.reshape(tensor.shape), atol=1e-7)
    assert not nearswap([v], t=0).array("w").any()
    with pytest.raises(UsageError, match="at least 0"):
        nearswap([v], t=-1)


def test_arcee_fusion_keeps_what_stands_out():
    base, (v,), start, (x,) = family(1, 1)
    got = arcee_fusion([v])
    kept = []
    for n, tensor in x.items():
        rows = start[n].reshape(-1, start[n].shape[-1] if start[n].ndim else 1)
        tuned = rows + tensor.reshape(rows.shape)
        score = np.empty(rows.shape)
        for i, (a, b) in enumerate(zip(tuned, rows, strict=True)):
            p, q = (np.exp(r - r.max()) / np.exp(r - r.max()).sum() + 1e-8 for r in (a, b))
            score[i] = np.abs(a - b) * sum(p * np.log(p / q))
        in_order = sorted(score.ravel())
        low, middle, high = (in_order[int(q * (len(in_order) - 1))] for q in (0.25, 0.5, 0.75))
        mask = (score >= middle + 1.5 * (high - low)).reshape(tensor.shape)
        np.testing.assert_array_equal(got.array(n), np.where(mask, v.array(n), 0), err_msg=n)
        kept.append(mask.mean())
    assert 0 < kept[0] < 0.4
    path_like = TaskVector(v.node, type(v.base)("base", recorded=base.fingerprint()), "file")
    with pytest.raises(UsageError, match="base="):
        arcee_fusion([path_like])
    np.testing.assert_array_equal(arcee_fusion([path_like], base=base).array("w"), got.array("w"))


@pytest.mark.parametrize("per", ["model", "tensor"])
@pytest.mark.parametrize("r", [0.0, 0.5])
def test_ram(per, r):
    _, vs, _, xs = family(2, 3)
    got = ram(vs, epsilon=0.2, r=r, alpha=0.7, per=per)

    def counts(names):
        """(entries of its own, entries it shares) of every vector."""
        own, shared = [0, 0, 0], [0, 0, 0]
        for n in names:
            for entry in zip(*(x[n].ravel() for x in xs), strict=True):
                who = [t for t, value in enumerate(entry) if abs(value) > 0.2]
                for t in who:
                    own[t] += len(who) == 1
                    shared[t] += len(who) > 1
        return list(zip(own, shared, strict=True))

    for n in SHAPES:
        table = counts([n] if per == "tensor" else SHAPES)
        want = []
        for entry in zip(*(x[n].ravel() for x in xs), strict=True):
            who = [t for t, value in enumerate(entry) if abs(value) > 0.2]
            if len(who) == 1:
                own, shared = table[who[0]]
                want.append(entry[who[0]] * (1 + r * min(0.7, shared / own)))
            else:
                want.append(sum(entry[t] for t in who) / max(1, len(who)))
        np.testing.assert_allclose(got.array(n).ravel(), want, atol=1e-6, err_msg=n)
    for order in itertools.permutations(vs):
        for n in SHAPES:
            np.testing.assert_array_equal(ram(list(order), epsilon=0.2, r=r, alpha=0.7, per=per).array(n), got.array(n))


def test_rescaling_restores_the_sum_of_magnitudes_of_every_tensor():
    _, vs, _, xs = family(3, 2)
    for method, more in ((ties, {}), (ties, {"variant": "mergekit"}), (breadcrumbs, {"gamma": 0.1})):
        plain, heavy = (method([vs[0]], density=0.5, rescale=rescale, **more) for rescale in (False, True))
        for n in ("w", "conv", "b"):
            size = np.abs(xs[0][n]).sum()
            assert np.abs(heavy.array(n)).sum() == pytest.approx(size, rel=1e-5)
            kept = plain.array(n)
            np.testing.assert_allclose(heavy.array(n), kept * (size / np.abs(kept).sum()), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("variant", ["paper", "mergekit"])
def test_della_without_rescaling_keeps_entries_as_they_are(variant):
    _, vs, _, _ = family(4, 1)
    kept = della(vs, density=0.5, rescale=False, consensus="sum", variant=variant)
    full = della(vs, density=0.5, consensus="sum", variant=variant)
    for n in ("w", "conv", "b"):
        mask = kept.array(n) != 0
        assert 0 < mask.mean() < 1
        np.testing.assert_array_equal(mask, full.array(n) != 0)
        np.testing.assert_array_equal(kept.array(n)[mask], vs[0].array(n)[mask])
