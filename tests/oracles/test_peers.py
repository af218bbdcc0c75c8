"""Methods and their named variants against the packages that users come from, in float32."""

from __future__ import annotations

import numpy as np
import pytest

from taskvec import methods
from taskvec.weights import Checkpoint

pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")]  # the peers' own
CLOSE = {"rtol": 1e-5, "atol": 2e-6}
SHAPES = {"w": (40, 25), "b": (60,)}


def family(count: int = 3, seed: int = 0, *, alike: float = 0.5):
    rng = np.random.default_rng(seed)
    start = {n: rng.normal(size=s).astype(np.float32) for n, s in SHAPES.items()}
    common = {n: rng.normal(size=s) for n, s in SHAPES.items()}
    tuned = [
        {n: (x + 0.3 * rng.normal(size=x.shape) + alike * 0.3 * common[n]).astype(np.float32) for n, x in start.items()}
        for _ in range(count)
    ]
    base = Checkpoint.of(start, label="base")
    return base, [Checkpoint.of(t, label=f"t{i}") - base for i, t in enumerate(tuned)], start, tuned


def differences(ours: Checkpoint, theirs: dict[str, np.ndarray], what: str, record) -> None:
    worst = max(float(np.abs(ours.array(n) - x).max()) for n, x in theirs.items())
    record(what, worst)
    for n, x in theirs.items():
        np.testing.assert_allclose(ours.array(n), x, err_msg=f"{what}: {n}", **CLOSE)


@pytest.fixture
def mergekit():
    """``merge(method, start, tuned, **parameters)`` by mergekit's in-memory interface."""
    api = pytest.importorskip("mergekit.merge_methods.api", reason="mergekit is not installed")
    torch = pytest.importorskip("torch", reason="torch is not installed")

    def merge(method: str, start, tuned, **parameters):
        models = {f"t{i}": {n: torch.from_numpy(x) for n, x in t.items()} for i, t in enumerate(tuned)}
        if start is not None:
            models = {"base": {n: torch.from_numpy(x) for n, x in start.items()}} | models
        merged = api.merge_state_dicts(
            models, method, base="base" if start is not None else None, parameters=parameters
        )
        return {n: x.numpy() for n, x in merged.items()}

    return merge


def test_mergekit_linear_family(mergekit, record_property):
    base, vs, start, tuned = family()
    of = {"of": "models"}
    a = [0.5, 0.3, 0.2]
    per = {f"t{i}": c for i, c in enumerate(a)}
    for what, ours, theirs in (
        ("linear", methods.weighted_average(vs, coefficients=a), mergekit("linear", None, tuned, weight=per)),
        ("nuslerp", methods.nuslerp(vs[:2], t=0.375), mergekit("nuslerp", start, tuned[:2], weight=per)),
        ("nuslerp models", methods.nuslerp(vs[:2], t=0.375, **of), mergekit("nuslerp", None, tuned[:2], weight=per)),
        (
            "nuslerp row",
            methods.nuslerp(vs[:2], t=0.375, per="row"),
            mergekit("nuslerp", start, tuned[:2], weight=per, nuslerp_flatten=False),
        ),
        (
            "nuslerp column",
            methods.nuslerp(vs[:2], t=0.375, per="column"),
            mergekit("nuslerp", start, tuned[:2], weight=per, nuslerp_flatten=False, nuslerp_row_wise=True),
        ),
        ("multislerp", methods.multislerp(vs, coefficients=a), mergekit("multislerp", start, tuned, weight=per)),
        (
            "multislerp models",
            methods.multislerp(vs, coefficients=a, **of),
            mergekit("multislerp", None, tuned, weight=per),
        ),
        ("karcher", methods.karcher(vs, **of), mergekit("karcher", None, tuned)),
        ("model_stock", methods.model_stock(vs), mergekit("model_stock", start, tuned)),
        (
            "model_stock row",
            methods.model_stock(vs, per="row"),
            mergekit("model_stock", start, tuned, filter_wise=True),
        ),
    ):
        differences(base + ours, theirs, what, record_property)
