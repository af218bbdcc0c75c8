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


@pytest.fixture
def same_masks(monkeypatch):
    """Feed a peer that draws with `torch.bernoulli` the masks that our results show, in the order it asks for them."""
    torch = pytest.importorskip("torch", reason="torch is not installed")

    def feed(masks: list[np.ndarray]) -> None:
        queue = iter([torch.from_numpy(m.astype(np.float32)) for m in masks])
        monkeypatch.setattr(torch, "bernoulli", lambda p: next(queue).reshape(p.shape).to(p.dtype))

    return feed


def test_mergekit_sparse_family(mergekit, record_property):
    base, vs, start, tuned = family()
    a = [0.5, 0.3, 0.4]
    per = {f"t{i}": c for i, c in enumerate(a)}
    kit = {"variant": "mergekit", "coefficients": a}
    for density in (0.2, 0.5, 1.0):
        of = {"weight": per, "density": density}
        crumbs = {"density": density, "gamma": 0.05, **kit}
        for what, ours, theirs in (
            ("ties", methods.ties(vs, density=density, **kit), mergekit("ties", start, tuned, **of)),
            ("breadcrumbs", methods.breadcrumbs(vs, **crumbs), mergekit("breadcrumbs", start, tuned, gamma=0.05, **of)),
            (
                "breadcrumbs_ties",
                methods.breadcrumbs(vs, consensus="ties", **crumbs),
                mergekit("breadcrumbs_ties", start, tuned, gamma=0.05, **of),
            ),
            ("sce", methods.sce(vs, density=density), mergekit("sce", start, tuned, select_topk=density)),
        ):
            differences(base + ours, theirs, f"{what} {density}", record_property)


def test_mergekit_methods_of_thresholds(mergekit, record_property):
    base, vs, start, tuned = family()
    one = {"epsilon": 0.2}
    for what, ours, theirs in (
        ("nearswap", methods.nearswap(vs[:1], t=0.1), mergekit("nearswap", start, tuned[:1], t=0.1)),
        ("arcee_fusion", methods.arcee_fusion(vs[:1]), mergekit("arcee_fusion", start, tuned[:1])),
        ("ram", methods.ram(vs, **one), mergekit("ram", start, tuned, **one)),
        ("ram default", methods.ram(vs), mergekit("ram", start, tuned)),
        (
            "ramplus_tl",
            methods.ram(vs, **one, r=0.5, alpha=0.6, per="tensor"),
            mergekit("ramplus_tl", start, tuned, r=0.5, alpha=0.6, **one),
        ),
    ):
        differences(base + ours, theirs, what, record_property)


def test_mergekit_rescaling(mergekit, same_masks, record_property):
    base, vs, start, tuned = family()
    a = [0.5, 0.3, 0.4]
    of = {"weight": {f"t{i}": c for i, c in enumerate(a)}, "density": 0.4}
    kit = {"density": 0.4, "variant": "mergekit", "coefficients": a}
    for what, ours, theirs in (
        ("ties rescaled", methods.ties(vs, rescale=True, **kit), mergekit("ties", start, tuned, rescale=True, **of)),
        (
            "breadcrumbs rescaled",
            methods.breadcrumbs(vs, gamma=0.05, rescale=True, **kit),
            mergekit("breadcrumbs", start, tuned, gamma=0.05, rescale=True, **of),
        ),
    ):
        differences(base + ours, theirs, what, record_property)
    kit |= {"rescale": False, "consensus": "sum"}
    same_masks(
        [
            methods.della([w if i == j else 0.0 * w for j, w in enumerate(vs)], **kit).array(n) != 0
            for n in SHAPES
            for i in range(3)
        ]
    )
    theirs = mergekit("della_linear", start, tuned, rescale=False, epsilon=0.1, **of)
    differences(base + methods.della(vs, **kit), theirs, "della_linear as it is", record_property)


@pytest.mark.parametrize("method", ["dare", "della"])
@pytest.mark.parametrize("consensus", ["sum", "ties"])
def test_mergekit_random_methods_given_the_same_masks(method, consensus, mergekit, same_masks, record_property):
    base, vs, start, tuned = family()
    a = [0.5, 0.3, 0.4]
    ours = getattr(methods, method)
    more = {"density": 0.4, "seed": 1, "variant": "mergekit"}
    alone = [
        ours([w if i == j else 0.0 * w for j, w in enumerate(vs)], consensus="sum", **more) for i in range(len(vs))
    ]
    # mergekit goes through the tensors, and for each through the models
    same_masks([v.array(n) != 0 for n in SHAPES for v in alone])
    name = {"dare sum": "dare_linear", "dare ties": "dare_ties", "della sum": "della_linear", "della ties": "della"}
    theirs = mergekit(
        name[f"{method} {consensus}"], start, tuned, weight={f"t{i}": c for i, c in enumerate(a)}, density=0.4,
        **({"epsilon": 0.1} if method == "della" else {}),
    )  # fmt: skip
    merged = base + ours(vs, consensus=consensus, coefficients=a, **more)
    differences(merged, theirs, f"{method} {consensus}", record_property)


@pytest.mark.parametrize("votes", ["mass", "count"])
def test_peft_ties(votes, record_property):
    utils = pytest.importorskip("peft.utils.merge_utils", reason="peft is not installed")
    torch = pytest.importorskip("torch", reason="torch is not installed")
    _, vs, _, _ = family()
    a = [0.5, 0.3, -0.4]
    for density in (0.2, 0.5, 1.0):
        ours = methods.ties(vs, density=density, variant="peft", votes=votes, coefficients=a)
        worst = 0.0
        for n in SHAPES:
            tensors = [torch.from_numpy(v.array(n)) for v in vs]
            theirs = utils.ties(tensors, torch.tensor(a), density, {"mass": "total", "count": "frequency"}[votes])
            worst = max(worst, float(np.abs(ours.array(n) - theirs.numpy()).max()))
            np.testing.assert_allclose(ours.array(n), theirs.numpy(), **CLOSE)
        record_property(f"peft ties {votes} {density}", worst)


def test_fusion_bench_spectral_methods_emr_and_wudi(record_property):
    """Their functions of state dicts. They decompose in float32, hence the wider margin."""
    why = "fusion_bench is not installed"
    iso = pytest.importorskip("fusion_bench.method.isotropic_merging.iso_utils", reason=why)
    tsv = pytest.importorskip("fusion_bench.method.task_singular_vector.utils.TSVM_utils", reason=why)
    emr = pytest.importorskip("fusion_bench.method.emr_merging.utils", reason=why)
    wudi = pytest.importorskip("fusion_bench.method.wudi.wudi", reason=why)
    torch = pytest.importorskip("torch", reason="torch is not installed")
    _, vs, _, _ = family()

    def tables(dtype=None):
        return [{n: torch.from_numpy(x.copy()).to(dtype) for n, x in v.arrays().items()} for v in vs]

    unified, masks, scales = emr.emr_merge([{"w": t["w"]} for t in tables()])
    ours_emr = [v.restrict(["w"]) for v in vs]
    for what, ours, theirs in (
        ("iso_c", methods.iso_c(vs), iso.iso_c(tables(), accelerator="cpu")),
        ("iso_cts", methods.iso_cts(vs, common=0.8), iso.iso_cts(tables(), 0.8, accelerator="cpu")),
        ("tsv_m", methods.tsv_m(vs), tsv.compute_and_sum_svd_mem_reduction(tables(), accelerator="cpu")),
        ("emr", methods.emr(ours_emr), unified),
        ("emr task", methods.emr(ours_emr, task=1), {"w": unified["w"] * masks["w"][1] * scales[1]}),
        ("wudi", methods.wudi(vs), wudi.wudi_merging(tables(torch.float64), accelerator="cpu")),
    ):
        worst = 0.0
        for n, x in theirs.items():
            theirs_n = x.detach().numpy()
            worst = max(worst, float(np.abs(ours.array(n) - theirs_n).max()))
            np.testing.assert_allclose(ours.array(n), theirs_n, rtol=1e-4, atol=5e-6, err_msg=what)
        record_property(what, worst)
