"""Geometric alignment without chemistry: losses, both stages, folders, rivals, results, report."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra: train)")

from taskvec import report  # noqa: E402
from taskvec.errors import BaseMismatch, InputError, KeyMismatch, MissingExtra, NonFinite, UnknownName, UsageError  # noqa: E402
from taskvec.gate import GateSpec, Losses, Rows, Shape, add, load, pooled, predict, pretrain, routed, save  # noqa: E402
from taskvec.gate import losses as terms  # noqa: E402
from taskvec.gate.baselines import fit_trunk, predict_trunk, weight_addition  # noqa: E402
from taskvec.gate.molecules import Split, few, holdout  # noqa: E402
from taskvec.gate.scores import error, over_runs, paired  # noqa: E402
from taskvec.results import GateResult, GateRun, GateTarget, Provenance, read_result  # noqa: E402

SHAPE = Shape(embedding="rows", inputs=8, width=32, latent=8, frame=8, depth=2)
QUICK = GateSpec(steps=20, check=10, lr=2e-3)
TRAIN, VALIDATION, TEST = np.arange(600), np.arange(600, 700), np.arange(700, 1000)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@cache
def problem() -> tuple[Rows, dict[str, np.ndarray]]:
    """Properties of a shared latent of three numbers, which is a curved function of the eight that are seen."""
    g = torch.Generator().manual_seed(3)
    x = torch.randn(1000, 8, generator=g)
    u = torch.tanh(torch.tanh(x @ torch.randn(8, 12, generator=g) * 0.5) @ torch.randn(12, 3, generator=g) * 0.6)
    names = ("a", "b.c", "d", "first", "second")
    out = {}
    for i, n in enumerate(names):
        h = torch.tanh(u @ torch.randn(3, 5, generator=g)) @ torch.randn(5, generator=g)
        out[n] = 10.0**i * h.double().numpy() + 100 * i
    return Rows(x), out


def sources() -> dict[str, np.ndarray]:
    return {n: problem()[1][n] for n in ("a", "b.c", "d")}


@cache
def base() -> Any:
    x, _ = problem()
    return pretrain(x, sources(), TRAIN, VALIDATION, shape=SHAPE, spec=GateSpec(steps=150, lr=5e-3))


def bits(model: Any) -> dict[str, bytes]:
    return {n: t.numpy().tobytes() for n, t in model.state_dict().items()}


def test_losses_are_their_formulas() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5, 3)).astype(np.float32)
    near_a, near_b = rng.normal(size=(2, 4, 5, 3)).astype(np.float32)
    t = torch.from_numpy
    assert terms.consistency(t(a), t(b)).item() == pytest.approx(np.mean((a - b) ** 2), rel=1e-5)
    assert terms.autoencoding(t(a), t(b)).item() == pytest.approx(np.mean((a - b) ** 2), rel=1e-5)
    total = 0.0
    for i in range(4):
        total += np.mean([
            (np.linalg.norm(a[k] - near_a[i, k]) - np.linalg.norm(b[k] - near_b[i, k])) ** 2 for k in range(5)
        ])  # fmt: skip
    assert terms.displacement(t(a), t(near_a), t(b), t(near_b)).item() == pytest.approx(total / 4, rel=1e-4)
    y = torch.tensor([1.0, float("nan"), 3.0])
    assert terms.regression(torch.tensor([2.0, 9.0, 5.0]), y).item() == pytest.approx(2.5)
    assert terms.regression(torch.ones(2), torch.full((2,), float("nan"))).item() == 0
    still = torch.zeros(2, 3, requires_grad=True)
    terms.displacement(still, still[None], torch.ones(2, 3), torch.ones(1, 2, 3)).backward()
    assert torch.isfinite(still.grad).all()


@pytest.mark.parametrize("term", terms.TERMS[1:])
def test_a_factor_of_zero_leaves_its_term_out_and_another_brings_it_in(term: str) -> None:
    x, y = problem()
    spec = GateSpec(steps=3, check=3)
    made = add(base().model, "first", x, y["first"], TRAIN[:20], VALIDATION[:9], losses=replace(Losses(), **{term: 0.0}), spec=spec)  # fmt: skip
    assert set(made.terms) == set(terms.TERMS) - {term}
    whole = add(base().model, "first", x, y["first"], TRAIN[:20], VALIDATION[:9], spec=spec)
    assert set(whole.terms) == set(terms.TERMS)
    assert bits(made.model) != bits(whole.model)  # the term moves the weights


def test_all_pairs_at_once_are_all_pairs() -> None:
    x = torch.randn(4, 7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pairs = [terms.consistency(x[i], x[j]) for i in range(4) for j in range(i)]
    assert terms.among(x).item() == pytest.approx(torch.stack(pairs).mean().item(), rel=1e-12)
    y = torch.tensor([[1.0, float("nan")], [2.0, 4.0]])
    assert terms.regression(torch.zeros(2, 2), y).item() == pytest.approx((1 + 10) / 2)  # each property counts alike


def test_routes_are_drawn_evenly_and_all_of_them_are_the_mean_over_pairs() -> None:
    x, _ = problem()
    only = Losses(regression=0, autoencoding=0, consistency=0, displacement=0, mapping=1)
    spec = GateSpec(steps=1, check=1, batch=600)
    every, drawn = (
        pretrain(x, sources(), TRAIN, VALIDATION, shape=SHAPE, losses=replace(only, routes=r), spec=spec)
        for r in (99, 1)
    )
    start = pretrain(x, sources(), TRAIN, VALIDATION, shape=SHAPE, spec=GateSpec(steps=1, check=1, lr=1e-30)).model
    part, wanted = x.take(TRAIN), []
    for i in start.names:
        for j in start.names:
            if i != j:
                truth = start.of(i).standardised(problem()[1][i][TRAIN]).numpy()
                wanted.append(np.mean(((routed(start, part, i, j) - start.of(i).mean) / start.of(i).std - truth) ** 2))
    assert every.terms["mapping"] == pytest.approx(np.mean(wanted), rel=1e-4)
    assert min(wanted) < drawn.terms["mapping"] < max(wanted) and drawn.terms != every.terms
    with pytest.raises(UsageError, match="routes is 0"):
        Losses(routes=0)


def test_factors_are_checked() -> None:
    with pytest.raises(UsageError, match="mapping is -1"):
        Losses(mapping=-1)
    with pytest.raises(UsageError, match="perturbations"):
        Losses(perturbations=0)


def test_additions_leave_everything_before_them_bit_identical_in_any_order() -> None:
    x, y = problem()
    start, before = bits(base().model), predict(base().model, x)
    more = {n: (lambda m, n=n: add(m, n, x, y[n], TRAIN[:50], VALIDATION[:15], spec=QUICK).model) for n in ("first", "second")}  # fmt: skip
    one = more["first"](base().model)
    after_one = predict(one, x)
    both = more["second"](one)
    other = more["first"](more["second"](base().model))
    assert bits(base().model) == start and base().model.names == ("a", "b.c", "d")  # the given network is not changed
    for name, values in {**before, "first": after_one["first"]}.items():
        assert predict(both, x)[name].tobytes() == values.tobytes(), name
        assert predict(other, x)[name].tobytes() == values.tobytes(), name
    assert predict(both, x)["second"].tobytes() == predict(other, x)["second"].tobytes()
    assert both.sources == ("a", "b.c", "d")
    apart = one.joined(more["second"](base().model))  # added elsewhere, at the same time
    assert bits(apart) == bits(both) and apart.names == both.names
    with pytest.raises(BaseMismatch, match="'first' differs"):
        one.joined(add(base().model, "first", x, y["first"], TRAIN[:40], VALIDATION[:15], spec=QUICK).model)


def test_an_addition_costs_one_pass_of_each_source_for_each_update() -> None:
    x, y = problem()
    model = base().model

    def passes(against: list[str], steps: int) -> int:
        seen = []
        hooks = [model.of(n).encoder.register_forward_hook(lambda *_: seen.append(1)) for n in model.names]
        add(model, "first", x, y["first"], TRAIN[:30], VALIDATION[:9], against=against, spec=GateSpec(steps=steps, check=steps))  # fmt: skip
        for h in hooks:
            h.remove()
        return len(seen)

    one = passes(["a"], 4) - passes(["a"], 2)
    assert one > 0
    assert passes(["a", "b.c", "d"], 4) - passes(["a", "b.c", "d"], 2) == 3 * one
    assert all(p.grad is None for p in model.parameters())


def test_added_modules_beat_a_network_of_their_own_when_labels_are_few() -> None:
    x, y = problem()
    part, values = (TRAIN[:40], VALIDATION[:15]), y["first"]
    spec = GateSpec(steps=60, check=10, lr=5e-3)
    made = add(base().model, "first", x, values, *part, pool=TRAIN, spec=spec)
    alone, _ = fit_trunk(x, {"first": values}, *part, shape=SHAPE, spec=spec)
    held = x.take(TEST)
    ours, theirs = (
        np.sqrt(np.mean((p - values[TEST]) ** 2))
        for p in (predict(made.model, held, ["first"])["first"], predict_trunk(alone, held, "first"))
    )
    assert ours < 0.9 * theirs
    assert ours < 0.9 * np.std(values[TEST])
    by_route = [np.sqrt(np.mean((routed(made.model, held, "first", s) - values[TEST]) ** 2)) for s in sources()]
    assert max(by_route) < np.std(values[TEST])  # each source's latent carries it
    assert made.spread["first"] > 1e-3 and not made.notes


def test_mapping_and_consistency_do_what_they_are_for() -> None:
    x, y = problem()
    spec = GateSpec(steps=60, check=60, lr=3e-3, patience=9)
    held = x.take(TEST)
    off = add(base().model, "first", x, y["first"], TRAIN[:60], VALIDATION[:15], losses=Losses(mapping=0, consistency=0), spec=spec)  # fmt: skip
    on = add(base().model, "first", x, y["first"], TRAIN[:60], VALIDATION[:15], spec=spec)
    lost, kept = (np.mean((routed(m.model, held, "first", "a") - y["first"][TEST]) ** 2) for m in (off, on))
    assert kept < 0.7 * lost


def test_units_do_not_matter() -> None:
    x, y = problem()
    one = add(base().model, "t", x, y["first"], TRAIN[:30], VALIDATION[:9], spec=QUICK).model
    two = add(base().model, "t", x, 1000 * y["first"] - 7, TRAIN[:30], VALIDATION[:9], spec=QUICK).model
    np.testing.assert_allclose(predict(two, x)["t"], 1000 * predict(one, x)["t"] - 7, rtol=1e-3)
    assert one.of("t").mean == pytest.approx(y["first"][:30].mean())  # the statistics of training labels alone


def test_missing_labels_and_test_rows_teach_nothing() -> None:
    x, y = problem()
    holes = {n: v.copy() for n, v in sources().items()}
    for v in holes.values():
        v[TEST] = 1e9
    spec = replace(QUICK, steps=10)
    a, b = (pretrain(x, t, TRAIN, VALIDATION, shape=SHAPE, spec=spec).model for t in (sources(), holes))
    assert bits(a) == bits(b)
    labels = y["first"].copy()
    labels[20:600] = np.nan
    c = add(base().model, "t", x, labels, TRAIN, VALIDATION[:9], spec=QUICK).model
    d = add(base().model, "t", x, y["first"], TRAIN[:20], VALIDATION[:9], spec=QUICK).model
    assert bits(c) == bits(d)


def test_what_cannot_be_learnt_is_refused() -> None:
    x, y = problem()
    model, values = base().model, y["first"]
    with pytest.raises(InputError, match=r"'t' is 5 for all 30 training molecules"):
        add(model, "t", x, np.full(1000, 5.0), TRAIN[:30], VALIDATION)
    with pytest.raises(InputError, match="1 labels to train"):
        add(model, "t", x, values, TRAIN[:1], VALIDATION)
    with pytest.raises(UsageError, match="has a property 'a' already"):
        add(model, "a", x, values, TRAIN, VALIDATION)
    with pytest.raises(UnknownName, match=r"Did you mean 'b\.c'"):
        add(model, "t", x, values, TRAIN, VALIDATION, against=["b.d"])
    with pytest.raises(UsageError, match="at least one property"):
        add(model, "t", x, values, TRAIN, VALIDATION, against=[])
    with pytest.raises(UnknownName, match="no property 'e'"):
        predict(model, x, ["e"])
    with pytest.raises(NonFinite, match="smaller rate"):
        pretrain(Rows(x.values * 1e38), sources(), TRAIN, VALIDATION, shape=SHAPE, spec=QUICK)


def test_a_collapsed_frame_is_said() -> None:
    x, _ = problem()
    only = Losses(regression=0, autoencoding=0, mapping=0, displacement=0, consistency=1)
    made = pretrain(x, sources(), TRAIN, VALIDATION, shape=SHAPE, losses=only, spec=GateSpec(steps=80, check=80, lr=1e-2))  # fmt: skip
    assert max(made.spread.values()) < 1e-3 < min(base().spread.values())
    assert any("nearly at one point" in n for n in made.notes)


def test_a_folder_gives_the_same_network_back(tmp_path: Path) -> None:
    x, _ = problem()
    save(base().model, tmp_path / "net", learned={"note": 1})
    again = load(tmp_path / "net")
    assert bits(again) == bits(base().model)
    assert again.names == base().model.names and again.sources == base().model.sources
    assert {n: v.tobytes() for n, v in predict(again, x).items()} == {n: v.tobytes() for n, v in predict(base().model, x).items()}  # fmt: skip
    assert not [p for p in (tmp_path / "net").rglob("*") if p.suffix in (".pt", ".bin", ".pkl")]
    with pytest.raises(OSError, match="exists"):
        save(base().model, tmp_path / "net")


@pytest.mark.parametrize(
    ("change", "error_type", "said"),
    [
        (lambda f: f["shape"].update(width=33), KeyMismatch, "tensors are not those"),
        (lambda f: f["shape"].update(width=10**9), InputError, "absurd"),
        (lambda f: f["shape"].update(embedding="pickle"), InputError, "sizes"),
        (lambda f: f["properties"].append(f["properties"][0]), InputError, "names repeat"),
        (lambda f: f["properties"][0].update(std=0), InputError, "std"),
        (lambda f: f.update(more=1), InputError, "more"),
    ],
)
def test_damaged_folders_are_refused(
    tmp_path: Path, change: Callable[[Any], None], error_type: type, said: str
) -> None:
    save(base().model, tmp_path / "net")
    path = tmp_path / "net" / "gate.json"
    facts = json.loads(path.read_text())
    change(facts)
    path.write_text(json.dumps(facts))
    with pytest.raises(error_type, match=said):
        load(tmp_path / "net")


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="taskvec gate pretrain"):
        load(tmp_path)


def test_weight_addition_is_task_arithmetic_on_the_trunk() -> None:
    x, y = problem()
    trunk, _ = fit_trunk(x, sources(), TRAIN, VALIDATION, shape=SHAPE, spec=QUICK)
    tuned = {n: fit_trunk(x, {n: y[n]}, TRAIN[:40], VALIDATION[:15], shape=SHAPE, spec=QUICK, start=trunk)[0] for n in ("first", "second")}  # fmt: skip
    targets, rows = {n: y[n] for n in tuned}, dict.fromkeys(tuned, VALIDATION[:15])
    made = weight_addition(trunk, tuned, x, targets, rows, coefficients=(0.5,))
    for n, t in trunk.shared().items():
        wanted = t + 0.5 * sum(m.shared()[n] - t for m in tuned.values())
        torch.testing.assert_close(made.trunk.shared()[n], wanted, rtol=1e-5, atol=1e-6)
    one = weight_addition(trunk, {"first": tuned["first"]}, x, targets, rows, coefficients=(1.0,))
    ours, theirs = (predict_trunk(t, x, "first") for t in (one.trunk, tuned["first"]))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * float(np.std(theirs)))
    chosen = weight_addition(trunk, tuned, x, targets, rows, coefficients=(0.0, 0.5, 1.0))
    assert chosen.looks[chosen.coefficient] == min(chosen.looks.values())
    assert all(b in bits(tuned["first"]) for b in bits(trunk) if not b.startswith("heads."))


def made_result(seed: int = 0, *, factor: float = 0.5) -> GateResult:
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=60)
    off = rng.normal(size=60)
    said = {"task addition": truth + factor * off, "single task": truth + off, "random forest": truth + off}
    target = GateTarget(
        name="<t>", train=30, validation=5, molecules=tuple(f"C{i}" for i in range(60)), truth=tuple(truth),
        predictions={m: tuple(v) for m, v in said.items()}, errors={m: error(v - truth) for m, v in said.items()},
        routes={"a": 0.9, "b": 1.5},
    )  # fmt: skip
    run = GateRun(seed=seed, fold=0, targets=(target,), sources={"a": error(off), "b": error(off)}, unchanged=True)
    return GateResult(
        title="made", provenance=Provenance.now(seed=seed), split="random", embedding="rows", methods=tuple(said),
        runs=(run,), **over_runs([run], list(said)),
    )  # fmt: skip


def test_own_units_and_rivals_over_runs() -> None:
    whole = pooled([made_result(0), made_result(1)])
    off = [np.subtract(r.target("<t>").predictions["single task"], r.target("<t>").truth) for r in whole.runs]
    found = whole.errors["<t>"]["single task"]
    assert found.rmse == pytest.approx(np.sqrt(np.mean(np.square(off)))) and found.mae == pytest.approx(
        np.mean(np.abs(off))
    )
    assert found.rmse_low < found.rmse < found.rmse_high and found.mae_low < found.mae < found.mae_high
    assert (found.n, found.runs) == (60, 2)
    assert whole.against["<t>"]["random forest"].ratio == pytest.approx(0.5, rel=1e-5)
    assert not whole.curves and not whole.ablation


def test_molecules_with_the_largest_errors_are_drawn_and_nothing_else_comes_with_them() -> None:
    pytest.importorskip("rdkit", reason="rdkit is not installed (extra: molecules)")
    from taskvec.report.drawn import worst, worst_molecules

    made = made_result()
    (run,) = made.runs
    (target,) = run.targets
    names = ("CCO", "not a molecule<script>", "C[N+](C)(C)C", "F/C=C/F", *(f"C{'C' * i}" for i in range(56)))
    guess = tuple(t + (9 - i if i < 4 else 0.1) for i, t in enumerate(target.truth))
    target = target.model_copy(
        update={"molecules": names, "predictions": {**target.predictions, "task addition": guess}}
    )
    made = made.model_copy(update={"runs": (run.model_copy(update={"targets": (target,)}),)})
    assert [row[0] for row in worst(made, "<t>")[:4]] == list(names[:4])
    drawn = worst_molecules(made, "k")
    assert drawn is not None and drawn.count("<g ") == 4 and drawn.count("not drawn") == 1
    assert "<script" not in drawn and "#0" not in drawn and "&lt;t&gt;" in drawn
    from xml.etree import ElementTree

    ElementTree.fromstring(drawn)  # one whole element


def test_relative_errors_keep_pairs_together() -> None:
    found = made_result().relative["<t>"]
    assert found["random forest"].ratio == found["random forest"].low == found["random forest"].high == 1
    assert found["task addition"].ratio == pytest.approx(0.5, rel=1e-5)
    assert found["task addition"].high - found["task addition"].low < 1e-4  # every pair has the same ratio
    whole = pooled([made_result(0), made_result(1, factor=0.25)])
    assert whole.relative["<t>"]["task addition"].ratio == pytest.approx(np.sqrt((0.25 + 0.0625) / 2), rel=1e-5)
    assert whole.relative["<t>"]["task addition"].runs == 2 and whole.relative["<t>"]["task addition"].n == 60
    with pytest.raises(UsageError, match="split"):
        pooled([made_result(), made_result().model_copy(update={"split": "scaffold"})])
    with pytest.raises(UsageError, match="no results"):
        pooled([])


def test_draws_on_which_the_reference_has_no_error_say_nothing() -> None:
    """Of two molecules, one without error of the reference: only draws with the other one have a ratio."""
    (found,) = paired([np.array([1e6, 4.0])], np.array([0.0, 4.0]))
    assert found.ratio == pytest.approx(np.sqrt(1000004 / 4)) and (found.low, found.high) == pytest.approx(
        (1.0, np.sqrt(1000004 / 4))
    )


def test_error_interval_holds_the_truth() -> None:
    rng = np.random.default_rng(1)
    held = [e.low < 2 < e.high for e in (error(2 * rng.normal(size=100)) for _ in range(40))]
    assert 32 <= sum(held) < 41


def test_results_go_through_json_and_are_told(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra: report)")
    pytest.importorskip("jinja2", reason="jinja2 is not installed (extra: report)")
    made = made_result()
    assert read_result(made.write(tmp_path / "r.json")) == made
    text = report.markdown([made])
    assert "0.500 times the error of single-task networks" in text and "the same bits" in text
    assert "&lt;t&gt;" in text and "<t>" not in text
    page = report.write([made], tmp_path / "r.html").read_text()
    assert page.count("<svg") == 3 and "<t>" not in page
    heads = re.findall(r'<th scope="row">&lt;t&gt;(.*?)</th>', page)  # what a row is of, beside its name
    assert {"<small>n\u00a060</small>", "<small>RMSE</small>", "<small>MAE</small>"} <= set(heads)
    assert "t> through b" not in page and "through b" in page


def test_few_labels_are_few_in_both_parts() -> None:
    values = np.where(np.arange(1000) % 2, np.nan, 1.0)
    part = few(values, Split(TRAIN, VALIDATION, TEST), 70, seed=0)
    assert len(part.train) + len(part.validation) == 70 and len(part.test) == 150
    assert set(part.train) <= set(TRAIN[::2]) and set(part.validation) <= set(VALIDATION[::2])
    with pytest.raises(UsageError, match="too few labels"):
        few(np.full(1000, np.nan), Split(TRAIN, VALIDATION, TEST), 70, seed=0)
    train, held = holdout(np.arange(80))
    assert len(held) == 10 and not {*train} & {*held} and len(train) == 70


def test_without_rdkit_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "rdkit", None)
    from taskvec.gate import clean

    with pytest.raises(MissingExtra, match=r"taskvec\[molecules\]"):
        clean(["C"], {"y": [1.0]})
