"""Studies: a small YAML file, cells that are computed once, results that reports gather."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra: train)")
Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed (extra: images)")

from taskvec import report  # noqa: E402
from taskvec.errors import InputError, TaskvecError, UsageError  # noqa: E402
from taskvec.results import read_results  # noqa: E402
from taskvec.study import (  # noqa: E402
    estimate,
    load,
    plan,
    run,
    tried,
    work,
)
from taskvec.study.cells import Cell, Store, needed, ordered  # noqa: E402
from taskvec.study.data import part, whole  # noqa: E402
from taskvec.study.running import CELLS, same_again  # noqa: E402
from taskvec.study.work import Bench  # noqa: E402
from taskvec.tasks.images import Preprocess  # noqa: E402

torch.set_num_threads(1)

STUDY = """
study: 1
name: tiny
seeds: [0, 1]
image: {size: 8, channels: 1}
tasks: [bars, dots]
bases:
  made: {pretrain: supervised, steps: 20, batch: 16, width: 16, depth: 1, patch: 4}
  random: {width: 16, depth: 1, patch: 4}
regimes: [standard, tangent, post-hoc]
fit: {steps: 6, batch: 8, lr: [1.0e-3, 1.0e-2]}
protocols:
  addition: {coefficients: [0, 1, 3], baselines: [joint, ensemble], per_task: true, subsets: pairs}
  negation: {control: dots, coefficients: [0, 1, 3]}
  disentanglement: {coefficients: [0, 1, 2], distances: [prediction, representation]}
  geometry: {}
  locality: {samples: 3}
"""


SMALL = (
    STUDY[: STUDY.index("  negation")]
    .replace("[standard, tangent, post-hoc]", "[standard]")
    .replace("[0, 1]\n", "[0]\n")
)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Two sets of pictures: a bright row or column, and a bright corner; three classes each."""
    place = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name in ("bars", "dots"):
        for which, n in (("train", 30), ("test", 8)):
            for k in range(3):
                folder = place / name / which / f"class{k}"
                folder.mkdir(parents=True)
                for i in range(n):
                    pixels = rng.integers(0, 90, (8, 8)).astype(np.uint8)
                    pixels[
                        (2 * k + 1, slice(None))
                        if name == "bars"
                        else (slice(2 * k, 2 * k + 2), slice(2 * k, 2 * k + 2))
                    ] = 230
                    Image.fromarray(pixels).save(folder / f"{i}.png")
    return place


@pytest.fixture
def study(tmp_path):
    def make(text: str = STUDY):
        path = tmp_path / "study.yaml"
        path.write_text(text, encoding="utf-8")
        return load(path)

    return make


@pytest.fixture(scope="module")
def done(tmp_path_factory, root):
    """The study, run once."""
    place = tmp_path_factory.mktemp("run")
    (place / "study.yaml").write_text(STUDY, encoding="utf-8")
    said, told = load(place / "study.yaml"), []
    found = run(said, place / "out", root=root, tell=told.append)
    return said, place / "out", found, told


def test_a_study_runs_from_data_to_report(done, tmp_path):
    said, out, found, told = done
    cells = ordered(plan(said))
    assert found.computed == len(cells) == len(told) and found.kept == 0
    results = read_results(out / "results" / "tiny")
    # 2 bases x 2 seeds: 3 regimes of addition, negation and geometry, two distances, one locality.
    assert len(results) == len(found.results) == 2 * 2 * (3 + 3 + 3 + 2 * 3 + 1)
    addition = next(r for r in results if r.kind == "addition" and r.title == "Addition: made, standard, seed 1")
    assert [r.name for r in addition.rows] == [
        "base", "fine-tuned", "joint training", "ensemble of logits", "random vector", "task arithmetic", "one coefficient each",
    ]  # fmt: skip
    assert addition.row("base").scores["bars"].n == 24 and [r.name for r in addition.subsets] == ["bars + dots"]
    assert addition.provenance.settings["study"] == {
        "name": "tiny",
        "base": "made",
        "regime": "standard",
        "protocol": "addition",
        "seed": 1,
        "heads": "probed",
    }
    assert addition.provenance.settings["lr"] in (1e-3, 1e-2) and addition.provenance.seed == 1
    linear = [r for r in results if (r.kind == "addition" and "post-hoc" in r.title) or "tangent" in r.title]
    assert {r.provenance.settings["forward"] for r in linear if r.kind == "addition"} == {"linearised"}
    report.write(results, tmp_path / "r.html", title="tiny")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "Do the papers’ orderings hold here?" in page and "Addition, over all regimes" in page
    assert 'id="r6"' in page and 'id="r7"' not in page and page.count("<svg") == 5
    text = report.markdown(results)
    assert "ξ: pre-trained below random" in text and "±" in text
    assert len(report.markdown(results, every=True)) > 5 * len(text)


def test_a_rate_that_diverges_is_not_chosen_and_is_told(study, root, tmp_path):
    text = SMALL.replace("batch: 8, lr: [1.0e-3, 1.0e-2]", "batch: 8, weight_decay: 1.0e+8, lr: [1.0e-9, 0.9]")
    text = text[: text.index("  random:")] + text[text.index("regimes") :]
    assert text != SMALL
    run(study(text), tmp_path / "out", root=root)
    settings = [r.provenance.settings for r in read_results(tmp_path / "out")]
    (chosen,) = [s for s in settings if "lr" in s]
    assert chosen["lr"] == 1e-9
    assert len(chosen["diverged"]) == 2 and all(x.startswith("0.9: training on") for x in chosen["diverged"])
    with pytest.raises(
        InputError, match=r"training went wrong at every rate of the study. At 0.9: training on .*Lower the learn"
    ):
        run(study(text.replace("1.0e-9, 0.9", "0.9")), tmp_path / "out", root=root)


def test_nothing_is_computed_twice(done, root):
    said, out, first, _ = done
    told = []
    again = run(said, out, root=root, tell=told.append)
    assert (again.computed, again.kept, told) == (0, first.computed, []) and again.results == first.results


def test_an_interrupted_study_goes_on(done, root, tmp_path, study, monkeypatch):
    """Killed in the middle of a training run: the rest is computed, and the results are those of the whole run, bit for bit."""
    said, (_, whole_run, *_) = study(SMALL), done
    monkeypatch.setattr(work, "EVERY", 2)
    told, steps = [], []

    def stop(step, total, loss):
        if len(told) == 6 and step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(said, tmp_path / "out", root=root, tell=told.append, progress=stop)
    found = run(said, tmp_path / "out", root=root, progress=lambda step, *_: steps.append(step))
    assert steps[0] == 3, "the training run was begun anew"
    assert found.kept == 5 and found.computed == len(ordered(plan(said))) - 5
    assert len(found.results) == 2
    for mine in found.results:
        assert mine.read_text() == (whole_run / "results" / "tiny" / mine.name).read_text()


def test_cells_are_shared_and_renamed_studies_compute_nothing(done, root, study):
    _, out, _, _ = done
    wider = study(STUDY.replace("name: tiny", "name: other").replace("seeds: [0, 1]", "seeds: [1, 2]"))
    todo = needed(plan(wider), Store(out / "cells"))
    assert todo and all("seed 2" in c.label for c in todo)
    fewer = study(STUDY.replace("post-hoc", "linear-only"))
    assert {c.kind for c in needed(plan(fewer), Store(out / "cells"))} == {"fit", "rate", "addition", "negation", "disentanglement", "geometry"}  # fmt: skip
    changed = study(STUDY.replace("steps: 6", "steps: 7"))
    assert not {c.kind for c in needed(plan(changed), Store(out / "cells"))} & {"base", "head", "locality"}


def test_only_some_results(done, root, tmp_path, study):
    said, *_ = done
    found = run(said, tmp_path / "out", root=root, only=["locality on random"])
    assert [p.name for p in found.results] == [
        "locality-on-random--base-alone--seed-0.json", "locality-on-random--base-alone--seed-1.json",
    ]  # fmt: skip
    assert found.computed == 4  # two bases, two results
    with pytest.raises(UsageError, match="no result's label contains 'fairness'"):
        run(said, tmp_path / "out", root=root, only=["fairness"])


def test_the_learning_rate_is_chosen_on_validation(done):
    said, out, *_ = done
    store = Store(out / "cells")
    rates = [c for c in ordered(plan(said)) if c.kind == "rate"]
    assert len(rates) == 8
    for cell in rates:
        means = {}
        for role, need in cell.needs.items():
            means.setdefault(float(role.split()[1]), []).append(store.outcome(need)["validation"]["value"])
        best = max(means, key=lambda lr: (sum(means[lr]), -lr))
        assert store.outcome(cell)["lr"] == best


def test_pre_training_and_fine_tuning_share_no_sample(root, study):
    prepare = Preprocess(8, channels=1)
    bars = whole("bars", root, prepare, download=False)
    facts = {
        "name": "b",
        "share": 0.5,
        "keep": (),
        "limit": None,
        "validation_limit": 4,
        "test_limit": 5,
        "invert": False,
    }
    from taskvec.training.pretraining import divided

    first = divided(bars, share=0.5, seed=0)[0].train
    task = part(bars, facts, prepare)

    def rows(split):
        return {x.numpy().tobytes() for x in split.inputs[:]}

    assert not rows(first) & (rows(task.train) | rows(task.validation) | rows(task.test))
    assert len(first) + len(task.train) == len(bars.train) and (len(task.validation), len(task.test)) == (4, 5)
    some = part(bars, facts | {"keep": ("class2", 0), "limit": 7, "invert": True}, prepare)
    assert set(some.train.labels.tolist()) == {0, 2} and len(some.train) == 7
    one = part(bars, facts | {"keep": (0,)}, prepare)
    turned = part(bars, facts | {"keep": (0,), "invert": True}, prepare)
    torch.testing.assert_close(turned.train.inputs[:], -one.train.inputs[:])  # mean and std are a half
    with pytest.raises(UsageError, match=r"no classes \['class9'\]"):
        part(bars, facts | {"keep": ("class9",)}, prepare)


def test_changed_data_is_refused(done, root, tmp_path, study):
    import shutil

    _said, out, *_ = done
    other = tmp_path / "data"
    shutil.copytree(root, other)
    next((other / "bars" / "test" / "class0").iterdir()).unlink()
    wider = study(STUDY.replace("coefficients: [0, 1, 3], baselines", "coefficients: [0, 1, 4], baselines"))
    shutil.copytree(out, tmp_path / "out")
    with pytest.raises(
        InputError, match=r"addition on made.*data of bars is not what the fit bars on made.* was made from"
    ):
        run(wider, tmp_path / "out", root=other, only=["addition"])
    # The control has no vector; its head knows the data. New vectors would be of a base that may have seen what is tested now.
    again = STUDY.replace("control: dots, coefficients: [0, 1, 3]", "control: bars, coefficients: [0, 1, 4]")
    with pytest.raises(InputError, match=r"negation of dots on made.*data of bars is not what the head bars of made"):
        run(study(again), tmp_path / "out", root=other, only=["negation of dots on made, standard, seed 0"])
    with pytest.raises(InputError, match=r"fit bars on made.*data of bars is not what the base made, seed 0"):
        run(study(STUDY.replace("steps: 6", "steps: 7")), tmp_path / "out", root=other, only=["addition on made"])


def test_results_of_settings_that_are_gone_are_not_told(done, root, tmp_path, study):
    """Copies of an earlier version of a study would be counted with those of the present one."""
    import shutil

    said, out, *_ = done
    shutil.copytree(out, tmp_path / "out")
    folder = tmp_path / "out" / "results" / "tiny"
    run(
        tried(study(STUDY.replace("seeds: [0, 1]", "seeds: [0]")), steps=2),
        tmp_path / "out",
        root=root,
        only=["locality"],
    )
    all_of_it = {p.name for p in folder.iterdir()}
    assert any("try-out" in name for name in all_of_it)  # which replaces nothing
    changed = study(
        STUDY.replace("samples: 3", "samples: 4").replace("tangent, ", "").replace("seeds: [0, 1]", "seeds: [0]")
    )
    found = run(changed, tmp_path / "out", root=root, only=["geometry"])
    gone = all_of_it - {p.name for p in folder.iterdir()}
    assert gone == {n for n in all_of_it if "try-out" not in n and ("seed-1" in n or "tangent" in n or "locality" in n)}
    assert len(found.results) == 4 and found.computed == 0
    run(said, tmp_path / "out", root=root)  # the cells stay
    assert {p.name for p in folder.iterdir()} == all_of_it


def test_results_whose_names_differ_in_signs_only_lie_apart(root, tmp_path, study):
    text = """
study: 1
name: signs
image: {size: 8, channels: 1}
tasks: {bars: {}, d-1: {data: dots}, d 1: {data: dots, limit: 20}}
bases: {random: {width: 16, depth: 1, patch: 4}}
regimes: [standard]
fit: {steps: 2, batch: 8}
protocols: {negation: {control: bars, coefficients: [0, 1, 2]}}
"""
    found = run(study(text), tmp_path / "out", root=root)
    assert len(set(found.results)) == 2 == len(read_results(tmp_path / "out"))


def test_several_processes_share_the_work(root, tmp_path, monkeypatch, run_cli):
    """The first process keeps its first cell until another one has finished a cell, however long that takes to start."""
    (tmp_path / "study.yaml").write_text(SMALL, encoding="utf-8")
    out, said = tmp_path / "out", load(tmp_path / "study.yaml")
    cells = ordered(plan(said))
    store, begun = Store(out / CELLS), []

    def wait(line: str) -> None:
        begun.append(line)
        until = time.monotonic() + 240
        while len(begun) == 1 and not any(store.done(c) for c in cells):
            assert time.monotonic() < until, "the second process did nothing"
            time.sleep(0.05)

    command = ["run", str(tmp_path / "study.yaml"), "--root", str(root), "-o", str(out), "--jobs", "2"]
    monkeypatch.setattr(sys, "argv", ["taskvec", *command])
    found = run(said, out, root=root, jobs=2, again=same_again(), tell=wait)
    assert 0 < found.computed == len(begun) < len(cells) and found.kept == 0
    assert len(found.results) == 2

    started = []

    class Noted(subprocess.Popen):
        def __init__(self, what, **how):
            started.append(what)
            super().__init__(what, **how)

    monkeypatch.setattr(subprocess, "Popen", Noted)
    code, told, err = run_cli(*command)
    assert code == 0, err
    assert started == [[sys.executable, "-m", "taskvec.cli", *command]], "--jobs 2 is this process and one more"
    assert "2 results" in told and " 0 cells computed here" in told


def test_an_estimate_says_what_there_is_to_do(done, root, tmp_path, study):
    said, out, *_ = done
    there = estimate(said, out, root=root)
    assert all(c.done and c.seconds >= 0 for c in there)
    fresh = estimate(said, tmp_path / "none", root=root)
    assert len(fresh) == len(there) and not any(c.done for c in fresh)
    assert sum(c.seconds for c in fresh) > 0 and {c.seconds for c in fresh if c.kind == "rate"} == {0.0}
    more = estimate(study(STUDY.replace("seeds: [0, 1]", "seeds: [0, 1, 2]")), out, root=root)
    longest = {k: max(c.seconds for c in there if c.kind == k) for k in {c.kind for c in there}}
    assert all(c.seconds <= longest[c.kind] for c in more)  # the others are told from those that are there


class TestText:
    def fails(self, study, old, new, match):
        with pytest.raises(UsageError, match=match):
            study(STUDY.replace(old, new))

    def test_every_mistake_has_its_place_and_the_nearest_name(self, study):
        self.fails(study, "seeds:", "seed:", r"unknown field seed\. Did you mean 'seeds'\?")
        self.fails(study, "batch: 8", "batches: 8", r"unknown field fit\.batches\. Did you mean 'batch'")
        self.fails(study, "pretrain: supervised, steps", "pretrain: supervised, step", r"unknown field bases\.made\.step\. Did you mean 'steps'")  # fmt: skip
        self.fails(study, "subsets: pairs", "subset: pairs", r"protocols\.addition\.subset\. Did you mean 'subsets'")
        self.fails(study, "tangent", "tangant", r"unknown regime 'tangant'.*Did you mean 'tangent'")
        self.fails(study, "control: dots", "control: dot", r"protocols\.negation: no task 'dot'.*Did you mean 'dots'")
        self.fails(
            study, "pretrain: supervised", "pretrain: dino", r"bases\.made\.pretrain: Input should be 'supervised'"
        )
        self.fails(study, "study: 1", "study: 2", "study: Input should be 1, got 2")
        self.fails(study, "lr: [1.0e-3, 1.0e-2]", "lr: []", "at least one learning rate")
        self.fails(study, "[0, 1, 3], b", "[0, 0, 3], b", "low must be below high")
        self.fails(study, "tasks: [bars, dots]", "tasks: [bars, bars]", "a name stands there twice")
        self.fails(study, "name: tiny", "name: ../tiny", "name: String should match")

    def test_what_is_no_study_is_refused(self, study, tmp_path):
        with pytest.raises(UsageError, match="begins with `study: 1`, got list"):
            study("[1, 2]")
        with pytest.raises(UsageError, match="is not YAML"):
            study("a: [")
        with pytest.raises(InputError, match="cannot read the study"):
            load(tmp_path / "none.yaml")

    def test_a_split_cannot_be_named(self, study):
        """Choosing on test data is no option that could be set."""
        for field in ("split: test", "choose_on: test"):
            self.fails(study, "  geometry: {}", f"  geometry: {{{field}}}", "unknown field protocols.geometry")

    def test_unknown_data_is_said_before_any_work(self, study, root, tmp_path):
        with pytest.raises(TaskvecError, match=r"unknown data 'mnits'.*Did you mean 'mnist'"):
            estimate(study(STUDY.replace("[bars, dots]", "{bars: {}, dots: {data: mnits}}")), tmp_path, root=root)


FEW = """
study: 1
name: analogy
seeds: [0, 1]
image: {size: 8, channels: 1}
tasks:
  plain: {data: bars, keep: [0, 1], head: bars}
  dark: {data: bars, keep: [0, 1], invert: true, head: bars}
  plain 2: {data: bars, keep: [2], head: bars}
  dark 2: {data: bars, keep: [2], invert: true, head: bars}
bases: {random: {width: 16, depth: 1, patch: 4}}
regimes: [standard, linear-only, tangent, post-hoc]
fit: {steps: 3, batch: 8, lr: 1.0e-3}
protocols:
  analogy: {cells: {A: plain, B: dark, C: plain 2, D: dark 2}, coefficients: [0, 1, 3], shots: [0, 1, 4], few_shot: {steps: 2, lr: 1.0e-3}}
"""


def test_few_shots_beside_an_analogy(root, tmp_path, study):
    said = study(FEW)
    cells = [c for c in plan(said) if c.kind == "few-shot"]
    assert [c.label for c in cells] == [f"few-shot on random, {r}, seed {s}" for r in ("standard", "linear-only") for s in (0, 1)]  # fmt: skip
    # The analogy itself does not depend on them, so it is kept when they are asked for later.
    before = {c.key for c in plan(study(FEW.replace(", shots: [0, 1, 4], few_shot: {steps: 2, lr: 1.0e-3}", "")))}
    assert before == {c.key for c in plan(said)} - {c.key for c in cells}
    assert not {c.key for c in cells} & {c.key for c in plan(study(FEW.replace("{steps: 2,", "{steps: 3,")))}
    found = run(said, tmp_path / "out", root=root, only=["few-shot"])
    results = read_results(tmp_path / "out" / "results")
    assert len(found.results) == len(results) == 4
    one = next(r for r in results if r.title == "Few-shot: random, standard, seed 1")
    assert (one.task, one.shots, one.labels) == ("dark 2", (0, 1, 4), (0, 1, 4))  # one class of three
    assert [s.name for s in one.starts] == ["base", "source", "analogy"] and one.starts[0].scores[0].n == 8
    assert one.provenance.settings["fine-tuning"]["lr"] == 1e-3 and one.provenance.settings["fine-tuning"]["seed"] == 1
    assert any("of other tasks, which have the same classes" in n for n in one.notes)
    report.write(results, tmp_path / "r.html", every=True)
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "Few shots, over all regimes" in page and "Labels needed for what the base has" in page
    assert page.count("labels of the target") == 2 + 4 and "nothing is interpolated" in page
    assert "4 labels" in report.markdown(results, every=True)
    assert all(c.seconds > 0 for c in estimate(said, tmp_path / "none", root=root) if c.kind == "few-shot")
    for old, new, match in (
        ("shots: [0, 1, 4]", "shots: [1, 0]", "shots must rise"),
        ("few_shot: {steps", "few_shot: {step", r"protocols\.analogy\.few_shot\.step\. Did you mean 'steps'"),
        ("regimes: [standard, linear-only, tangent, post-hoc]", "regimes: [tangent]", "through the ordinary model"),
        ("protocols:", "heads: joint\nprotocols:", "a joint head learnt from all labels"),
    ):
        with pytest.raises(UsageError, match=match):
            study(FEW.replace(old, new))


def test_a_damaged_cell_is_named(tmp_path):
    cell = Cell("fit", "fit", {"a": 1})
    store = Store(tmp_path)
    store.place(cell).mkdir()
    (store.place(cell) / "cell.json").write_text("{")
    with pytest.raises(InputError, match=r"is damaged .* to compute it again"):
        store.outcome(cell)
    with pytest.raises(InputError, match=r"is damaged"):
        store.seconds(cell)


def test_a_claimed_cell_is_left_to_its_owner(tmp_path):
    cell, store = Cell("fit", "fit", {"a": 1}), Store(tmp_path)
    with store.claimed(cell) as mine:
        assert mine is not None
        (mine / "half").write_text("x")
        with store.claimed(cell) as theirs:
            assert theirs is None
    with store.claimed(cell) as mine:
        assert mine is not None and list(mine.iterdir()) == []  # what was interrupted is begun again


def test_keys_follow_from_what_decides():
    a = Cell("fit", "one name", {"x": 1, "y": 2})
    assert a.key == Cell("fit", "another", {"y": 2, "x": 1}).key != Cell("fit", "one name", {"x": 1, "y": 3}).key
    assert Cell("r", "", {}, {"fit": a}).key != Cell("r", "", {}, {"fit": Cell("fit", "", {"x": 2})}).key
    assert isinstance(Bench(Store(Path(os.devnull))), Bench)


ANALOGY = """
study: 1
name: analogy
image: {size: 8, channels: 1}
tasks:
  bars low: {data: bars, keep: [0, class1], head: shared}
  bars high: {data: bars, keep: [1, 2], head: shared}
  dots low: {data: dots, keep: [0], head: shared}
  dots high: {data: dots, keep: [1, 2], head: shared}
bases:
  made: {pretrain: masked, sets: [bars], steps: 5, batch: 16, width: 16, depth: 1, patch: 4}
regimes: [standard, linear-only]
fit: {steps: 4, batch: 8, lr: 1.0e-2}
protocols:
  analogy: {cells: {A: bars low, B: bars high, C: dots low, D: dots high}, coefficients: [0, 1, 3]}
"""


def test_an_analogy_with_one_head_that_has_not_seen_the_fourth_cell(root, tmp_path, study):
    said = study(ANALOGY)
    cells = ordered(plan(said))
    (head,) = (c for c in cells if c.kind == "head")
    assert [t["name"] for t in head.facts["tasks"]] == ["bars low", "bars high", "dots low"]
    assert all(c.facts["tasks"] == ["bars low", "bars high", "dots low"] for c in cells if c.kind == "rate")
    assert next(c for c in cells if c.kind == "base").facts["on"] == ["bars"]
    found = run(said, tmp_path / "out", root=root)
    result = read_results(tmp_path / "out")[0]
    assert len(found.results) == 2 and result.cells["D"] == "dots high" and result.task == "dots high"
    assert [r.name for r in result.rows] == ["base", "source", "random vector", "analogy", "target-tuned"]
    assert "Analogy, over all regimes" in report.markdown(read_results(tmp_path / "out" / "results"))


def test_a_changed_label_changes_no_key_and_a_changed_option_does(study):
    before, after = (ordered(plan(study(t))) for t in (ANALOGY, ANALOGY.replace("name: analogy", "name: other")))
    assert [c.key for c in before] == [c.key for c in after]
    wider = ordered(plan(study(ANALOGY.replace("[0, 1, 3]", "[0, 2, 3]"))))
    assert [a.kind for a, b in zip(before, wider, strict=True) if a.key != b.key] == ["analogy", "analogy"]


class TestRefused:
    """What would run, and mean something else than its author thinks, is refused before any work."""

    def fails(self, study, changes, match, text=STUDY):
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new)
        with pytest.raises(UsageError, match=match):
            study(text)

    def test_heads_that_know_too_much_or_nothing(self, study):
        negation, analogy = "  negation: {control: dots, coefficients: [0, 1, 3]}\n", ANALOGY
        joint = {"regimes:": "heads: joint\nregimes:"}
        self.fails(study, joint, r"protocols\.negation: with `heads: joint` a head belongs to the model")
        self.fails(study, joint | {negation: ""}, r"addition\.baselines: with `heads: joint` the jointly trained model")
        assert study(STUDY.replace("regimes:", "heads: joint\nregimes:").replace(negation, "").replace("joint, e", "e"))
        self.fails(study, joint, r"protocols\.analogy: with `heads: joint`", analogy)
        alone = {"dots high: {data: dots, keep: [1, 2], head: shared}": "dots high: {data: dots, keep: [1, 2]}"}
        self.fails(study, alone, r"the head of 'dots high' would be probed on its own labels", analogy)
        self.fails(study, {"C: dots low": "C: dots high"}, "four different tasks", analogy)
        self.fails(study, {"dots, keep: [0]": "dots, keep: [0, 1]"}, "'dots low' has samples of 'dots high'", analogy)
        whole_set = {"bases:\n": "  all: {data: dots, head: shared}\nbases:\n"}
        self.fails(study, whole_set, "'all' has samples of 'dots high'", analogy)
        self.fails(
            study, {"regimes:": "heads: zero-shot\nregimes:"}, r"bases\.made: a base made here has no text encoder"
        )

    def test_settings_that_would_be_passed_over(self, study):
        self.fails(
            study, {"[standard, tangent, post-hoc]": "{standard: , post-hoc: {steps: 9}}"}, "post-hoc trains nothing"
        )
        self.fails(study, {"[standard, tangent, post-hoc]": "{standard: {lr: []}}"}, "at least one learning rate")
        self.fails(
            study,
            {"coefficients: [0, 1, 3], b": "tasks: [bars, bars], b"},
            r"addition\.tasks: a name stands there twice",
        )
        self.fails(study, {"[prediction, representation]": "[]"}, r"disentanglement\.distances: .*at least 1 item")
        self.fails(study, {"tasks: [bars, dots]": "tasks: {bars: {keep: [yes]}, dots: }"}, "in quotes")
        self.fails(
            study, {"tasks: [bars, dots]": "tasks: {bars: , dots: , bars: }"}, r"'bars' \(line 6\) stands there twice"
        )
        self.fails(study, {"seeds: [0, 1]": f"seeds: [{10**20}]"}, "seeds.0: Input should be less than")
        with pytest.raises(UsageError, match="there is no task but the control"):
            study(
                "study: 1\nname: a\ntasks: [a]\nbases: [r]\nregimes: [standard]\nprotocols: {negation: {control: a}}\n"
            )

    def test_a_protocol_without_settings_is_asked(self, study):
        said = study(STUDY.replace("  geometry: {}\n", "  geometry:\n"))
        assert said.protocols.geometry is not None and said.protocols.analogy is None
        small = tried(said, steps=2, limit=4)
        assert small.protocols.geometry is not None and small.protocols.analogy is None


class TestOverview:
    def numbers(self, gaps):
        from taskvec.report.claims import claims

        base = {s: {"single": 0.5, "sum": 0.5} for s in range(len(gaps))}
        other = {s: {"single": 0.5, "sum": 0.5 + g} for s, g in enumerate(gaps)}
        said = claims({("b", "standard"): base, ("b", "tangent"): other})
        assert said is not None
        return {row[0].text: row[-1].text for row in said.tables[0].rows}

    def test_equal_values_are_not_above(self):
        assert self.numbers([0.0, 0.0]) == {
            "single tasks: tangent at or below standard": "yes", "sum: tangent above standard": "no",
        }  # fmt: skip
        assert self.numbers([0.1, 0.0])["sum: tangent above standard"] == "in part"
        assert self.numbers([0.1, 0.1])["sum: tangent above standard"] == "yes"

    def test_the_best_line_is_said_to_be_picked_on_test_data(self, done):
        _, out, *_ = done
        results = read_results(out)
        said = report.markdown(results)
        assert "best of 6 lines by these same test scores" in said and "‘base’ is the linear probe" in said
        one = [r for r in results if r.title.startswith("Addition: made, standard")]
        assert "by these same test scores" not in report.markdown(one)

    def test_a_try_out_is_not_averaged_with_the_study(self, done):
        from taskvec.report.overview import overview

        _, out, *_ = done
        made = [r for r in read_results(out) if r.title.startswith("Addition: made, standard")]

        def tried_out(r):
            settings = {
                **r.provenance.settings,
                "study": {**r.provenance.settings["study"], "tryout": True, "heads": "joint"},
            }
            return r.model_copy(update={"provenance": r.provenance.model_copy(update={"settings": settings})})

        (_, real, mine), (_, mere, theirs) = overview([*made, tried_out(made[0])])
        assert len(mine) == 2 and len(theirs) == 1 and "try-out" in mere.title and "try-out" not in real.title
        assert "means nothing" not in " ".join(real.sentences) and "numbers mean nothing" in mere.sentences[0]
        assert any("trained with their task’s model" in x for x in mere.sentences)


def test_the_example_of_the_documentation_is_a_study(tmp_path):
    import re

    page = (Path(__file__).parent.parent / "docs" / "studies.md").read_text(encoding="utf-8")
    text = next(x for x in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if x.startswith("study: 1"))
    (tmp_path / "study.yaml").write_text(text.replace("  mine: {read: vit/}", "  # "), encoding="utf-8")
    kinds = {c.kind for c in plan(load(tmp_path / "study.yaml"))}
    assert kinds == {"addition", "negation", "analogy", "disentanglement", "geometry", "locality"}


def test_a_base_that_is_read_is_known_by_its_config_too(tmp_path, study):
    from taskvec.models.small import save_small_vit
    from taskvec.models.vit import small_vit
    from taskvec.weights import Checkpoint

    model = small_vit(image=8, channels=1, patch=4, width=16, depth=1, generator=torch.Generator().manual_seed(0))
    save_small_vit(tmp_path / "vit", model, Checkpoint.of(model))
    text = f"study: 1\nname: a\ntasks: [bars, dots]\nbases: {{b: {{read: {tmp_path / 'vit'}}}}}\nprotocols: {{locality: }}\n"

    def keys():
        return [c.key for c in plan(study(text))]

    before = keys()
    config = tmp_path / "vit" / "config.json"
    config.write_text(config.read_text().replace("0.0", "0.5", 1))  # the mean of the pixels
    assert before != keys()
