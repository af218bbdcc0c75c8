"""Studies of fairness from end to end: made-up people in tables, tiny models from a hub on the loopback interface."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from loopback_hub import serving

torch = pytest.importorskip("torch", reason="torch is not installed (extra: train)")

from taskvec import grid, report  # noqa: E402
from taskvec.errors import InputError, UsageError  # noqa: E402
from taskvec.protocols import steering  # noqa: E402
from taskvec.report.overview import overview  # noqa: E402
from taskvec.results import read_results  # noqa: E402
from taskvec.study import estimate, load, plan, run, tried  # noqa: E402
from taskvec.study.cells import Store, ordered  # noqa: E402
from taskvec.tasks.group_rows import read_grouped_rows  # noqa: E402
from taskvec.training import TrainSpec  # noqa: E402
from taskvec.training.people import low_rank_rival, prepared, row_setting  # noqa: E402
from taskvec.training.subgroups import subgroup_vectors  # noqa: E402

torch.set_num_threads(1)
STUDIES = Path(__file__).parents[1] / "studies"
SHARED = Path(__file__).parents[2] / "shared" / "data"
STUDY = """
study: 1
name: loans
seeds: [0, 1]
people:
  loans: {data: loans.csv, label: granted, group: age, group_as_input: true, epochs: 2, lr: 1.0e-2, batch: 16, lora: {rank: 2}}
bases:
  small: {perceptron: [8, 4], steps: 30, lr: 1.0e-2, batch: 16}
pretraining_share: 0.3
regimes: [standard]
protocols:
  fairness: {coefficients: [0, 1, 3], each: [0, 1, 3], inject: all, injections: [0, 1, 2], min_n: 10, min_cases: 3, bootstrap: 200}
"""


def people(place: Path, n: int = 600) -> Path:
    rng = np.random.default_rng(0)
    old, signal, noise = rng.random(n) < 0.4, rng.normal(size=n), rng.normal(size=n)
    granted = signal + 0.5 * noise > np.where(old, 0.8, 0.0)
    rows = [f"{s:.4f},{'old' if o else 'young'},{'yes' if g else 'no'}" for s, o, g in zip(signal, old, granted, strict=True)]  # fmt: skip
    (place / "loans.csv").write_text("income,age,granted\n" + "\n".join(rows) + "\n")
    return place


def written(place: Path, text: str = STUDY) -> Path:
    (place / "study.yaml").write_text(text, encoding="utf-8")
    return place / "study.yaml"


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    root = people(tmp_path_factory.mktemp("data"))
    out = tmp_path_factory.mktemp("out")
    study = load(written(out))
    return study, root, out, run(study, out, root=root)


def test_every_vector_is_a_cell_and_nothing_is_computed_twice(ran, tmp_path):
    study, root, out, outcome = ran
    assert (
        outcome.computed == 2 * 7 and len(outcome.results) == 2
    )  # start, old, young, everybody, balanced, LoRA, result
    assert [r.title for r in read_results(out)] == [f"Fairness of loans: small, standard, seed {s}" for s in (0, 1)]
    assert run(study, out, root=root).computed == 0
    assert all(c.done for c in estimate(study, out, root=root))
    shutil.copytree(out, tmp_path / "killed")
    next((tmp_path / "killed" / "cells").glob("fairness-*/cell.json")).unlink()
    next((tmp_path / "killed" / "cells").glob("subgroup-*/cell.json")).unlink()
    again = run(study, tmp_path / "killed", root=root)
    assert 1 <= again.computed <= 2  # the vector only if it is that of this result
    assert [r.rows for r in read_results(tmp_path / "killed")] == [r.rows for r in read_results(out)]


def test_it_measures_what_the_library_does(ran):
    _, root, out, _ = ran
    data = read_grouped_rows(root / "loans.csv", label="granted", group="age", group_as_input=True)
    made = prepared(
        row_setting(data, share=0.3, hidden=(8, 4), seed=1), spec=TrainSpec(steps=30, lr=1e-2, batch=16, seed=1)
    )
    own = subgroup_vectors(
        made.model, made.base, made.task, epochs=2, spec=TrainSpec(lr=1e-2, batch=16, seed=1), low_rank=low_rank_rival(made, rank=2)
    )  # fmt: skip
    wanted = steering(
        made.model, made.base, own.vectors, made.task, full=own.full, rivals=own.rivals, coefficients=grid(0, 1, 3), each=grid(0, 1, 3),
        inject=list(own.vectors), injections=grid(0, 1, 2), min_n=10, min_cases=3, bootstrap=200, seed=1,
    )  # fmt: skip
    found = read_results(out)[1]
    assert found.rows == wanted.rows and found.injections == wanted.injections
    assert found.provenance.settings["training"] == {"epochs": 2.0, "most": None, "lr": 0.01, "batch": 16}


def test_steps_and_autocast_of_fit_count(ran, tmp_path):
    _, root, out, _ = ran
    one = STUDY.replace("[0, 1]\npeople", "[0]\npeople")
    fitted = one.replace("protocols:", "fit: {steps: 3, autocast: bfloat16}\nprotocols:")

    def vectors(text):
        return [c for c in ordered(plan(load(written(tmp_path, text)), root)) if c.kind == "subgroup"]

    assert run(load(written(tmp_path, fitted)), tmp_path / "out", root=root).computed == 7
    (result,) = read_results(tmp_path / "out")
    trained = result.provenance.settings["training"]
    assert trained["most"] == 3 and trained["autocast"] == "bfloat16"
    short, full = Store(tmp_path / "out" / "cells"), Store(out / "cells")
    assert [short.outcome(c)["steps"] for c in vectors(fitted)] == [3] * 5
    for few, many in zip(vectors(fitted), vectors(one), strict=True):  # the first loss: of one batch, in two formats
        losses = short.outcome(few)["loss"][0], full.outcome(many)["loss"][0]
        assert losses[0] != losses[1] and abs(losses[0] - losses[1]) < 0.05

    own = fitted.replace("[standard]", "{tangent: {steps: 4}}").replace(", lora: {rank: 2}", "")  # tangents are float32
    assert {(c.facts["most"], "autocast" in c.facts) for c in vectors(own)} == {(4, False)}
    assert {c.facts["most"] for c in vectors(own.replace("epochs: 2", "epochs: 2, steps: 5"))} == {5}


def test_the_overview_has_mean_and_spread_of_every_model(ran, tmp_path):
    results = read_results(ran[2])
    ((kind, told, _),) = overview(results)
    (table,) = told.tables
    assert kind == "fairness" and [row[0].text for row in table.rows] == [r.name for r in results[0].rows]
    both = [100 * r.row("task addition").audit.overall.accuracy.value for r in results]
    line = next(row for row in table.rows if row[0].text == "task addition")
    assert line[3].text == f"{np.mean(both):.1f} ± {np.std(both, ddof=1):.1f}" and line[2].text.endswith(" of 2")
    assert "task addition less full fine-tuning" in told.sentences[0] and "of 2 seeds" in told.sentences[0]
    ((_, one, _),) = overview(results[:1])
    assert one.tables[0].rows[0][3].detail[0].startswith("[")
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra: report)")
    pytest.importorskip("jinja2", reason="jinja2 is not installed (extra: report)")
    page = report.write(results, tmp_path / "page.html").read_text()
    assert page.count("<svg") == 1 and "parity difference" in page


def test_people_that_changed_are_refused_and_missing_ones_said(ran, tmp_path):
    study, root, out, _ = ran
    text = (root / "loans.csv").read_text().replace(",yes", ",no", 5)
    (tmp_path / "loans.csv").write_text(text)
    other = load(written(tmp_path, STUDY.replace("min_n: 10", "min_n: 11")))
    with pytest.raises(InputError, match="people are not those that"):
        run(other, out, root=tmp_path)
    with pytest.raises(InputError, match=r"cannot read the table .*loans\.csv"):
        plan(study, tmp_path / "nowhere")
    two = load(written(tmp_path, STUDY.replace("bases:", "  adult: {}\nbases:")))
    with pytest.raises(InputError, match="no adult in"):
        plan(two, root)
    assert len(plan(two, root, ["of loans"])) == 4  # who is not asked about may be missing
    assert run(two, out, root=root, only=["of loans"]).computed == 0


@pytest.mark.parametrize(
    ("old", "young", "said"), [("", "", "nobody is in any group"), ("LoRA", "young", "'LoRA', as something else")]
)
def test_groups_that_cannot_be_are_said_before_any_work(ran, tmp_path, old, young, said):
    _, root, _, _ = ran
    text = (root / "loans.csv").read_text().replace(",old,", f",{old},").replace(",young,", f",{young},")
    (tmp_path / "loans.csv").write_text(text)
    with pytest.raises(InputError, match=said):
        plan(load(written(tmp_path)), tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("data: loans.csv, label: granted, group: age", "data: adlut", "Did you mean 'adult'"),
        ("data: loans.csv, label: granted, group: age", "data: hatecheck", "holds text"),
        ("group: age", "grup: age", "Did you mean 'group'"),
        ("[standard]", "[post-hoc]", "through the function"),
        ("[standard]", "[tangent]", "leave out `lora`"),
        ("batch: 16, lora", "batch: 16, base: smal, lora", "Did you mean 'small'"),
        ("batch: 16, lora", "batch: 16, frozen_layers: 2, lora", "text encoders"),
        ("batch: 16, lora", "batch: 16, parts: [0.5, 0.5, 0.5], lora", "sum to 1"),
        ("small: {perceptron: [8, 4], steps: 30, lr: 1.0e-2, batch: 16}", "small: {}", "an encoder that is read"),
        ("small: {perceptron", "small: {read: x, perceptron", "neither read"),
        ("inject: all", "people: [loan]", "Did you mean 'loans'"),
        ("protocols:", "protocols:\n  geometry: {}", "two studies"),
        ("rank: 2", "rnak: 2", "Did you mean 'rank'"),
    ],
)  # fmt: skip
def test_what_a_study_cannot_mean_is_said(tmp_path, old, new, said):
    assert old in STUDY
    with pytest.raises(UsageError, match=said):
        load(written(tmp_path, STUDY.replace(old, new)))


def test_groups_and_classes_that_are_not_there(ran, tmp_path):
    _, root, _, _ = ran
    for change, said in ((", groups: [old, yuong]", "Did you mean 'young'"), (", positive: yse", "Did you mean 'yes'")):
        study = load(
            written(
                tmp_path, STUDY.replace(", epochs: 2", f"{change}, epochs: 2").replace("[0, 1]\npeople", "[0]\npeople")
            )
        )
        with pytest.raises(UsageError, match=said):
            run(study, tmp_path, root=root)


def test_a_try_out_is_small_and_marked(ran, tmp_path, run_cli):
    study, root, _, _ = ran
    small = tried(study, steps=2, limit=8)
    assert small.fit.steps == 2 and small.people["loans"].most == 40 and small.bases["small"].steps == 2
    assert {c.facts["most"] for c in ordered(plan(small, root)) if c.kind == "subgroup"} == {2}
    path = written(tmp_path)
    code, said, error = run_cli(
        "run", path, "--root", root, "-o", tmp_path / "out", "--steps", 2, "--limit", 8, "--json"
    )
    assert code == 0, error
    assert json.loads(said)["computed"] == 14
    assert all(r.title.endswith("try-out") for r in read_results(tmp_path / "out"))
    code, said, _ = run_cli("run", path, "--root", root, "-o", tmp_path / "new", "--dry-run")
    assert code == 0 and "14 to compute" in said and "fit young of loans, standard, seed 1" in said


# ---- the files of the repository ----------------------------------------------------------------------------------------


def test_the_study_on_the_page_about_it_can_be_read(tmp_path):
    page = (STUDIES.parent / "docs" / "fairness-steering.md").read_text(encoding="utf-8")
    study = load(written(tmp_path, page.partition("```yaml\n")[2].partition("```")[0]))
    assert list(study.people) == ["adult", "loans", "posts"] and study.people["posts"].terms["men"] == ("men", "boys")


def test_the_small_study_asks_what_the_example_does():
    study = load(STUDIES / "small" / "fairness.yaml")
    adult, hate = study.people["adult"], study.people["hatexplain"]
    assert (adult.epochs, adult.lr, adult.batch, study.pretraining_share) == (4, 1e-3, 64, 0.3)
    assert (hate.most, hate.parts, hate.max_tokens, hate.frozen_layers, hate.ridge) == (
        800,
        (0.4, 0.25, 0.35),
        32,
        5,
        10,
    )


@pytest.mark.slow
def test_the_small_study_on_real_people(tmp_path):
    if not (SHARED / "fair_tabular").is_dir():
        pytest.skip("the Adult data is not here (../shared/data)")
    (tmp_path / "adult").symlink_to(SHARED / "fair_tabular")
    study = load(STUDIES / "small" / "fairness.yaml")
    outcome = run(study, tmp_path / "out", root=tmp_path, only=["of adult on perceptron, standard, seed 0"])
    (result,) = read_results(tmp_path / "out")
    assert outcome.computed == 11 and result.row("task addition").coefficient == 0.5
    assert result.row("task addition").audit.overall.accuracy.value == pytest.approx(0.848, abs=0.004)


WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "women",
    "men",
    "people",
    "are",
    "say",
    "they",
    "that",
    "some",
    "so",
]


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> dict[str, Path]:
    """A DistilBERT, a Qwen2 and a ViT of random weights."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra: hf)")
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed (extra: hf)")
    place = tmp_path_factory.mktemp("hub")
    found = {"distilbert/distilbert-base-uncased": place / "distilbert", "Qwen/Qwen2.5-0.5B": place / "qwen", "google/vit-base-patch16-224-in21k": place / "vit"}  # fmt: skip
    tower = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.DistilBertConfig(vocab_size=len(WORDS), dim=16, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=128)  # fmt: skip
        transformers.DistilBertModel(config).save_pretrained(place / "distilbert")
        config = transformers.Qwen2Config(vocab_size=len(WORDS), num_key_value_heads=2, pad_token_id=0, **tower)
        transformers.Qwen2Model(config).save_pretrained(place / "qwen")
        config = transformers.ViTConfig(image_size=8, patch_size=4, **tower)
        transformers.ViTModel(config).save_pretrained(place / "vit")
    for name in ("distilbert", "qwen"):
        (place / name / "vocab.txt").write_text("\n".join(WORDS))
        transformers.BertTokenizerFast(vocab=str(place / name / "vocab.txt")).save_pretrained(place / name)
    square = {"size": {"height": 8, "width": 8}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3, "resample": 2}
    (place / "vit" / "preprocessor_config.json").write_text(json.dumps(square))
    return found


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> Path:
    """Files of the form of the three sets, of nobody."""
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed (extra: images)")
    place, rng = tmp_path_factory.mktemp("sets"), np.random.default_rng(0)
    n = 240
    texts = [f"{' '.join(rng.choice(WORDS[8:], 6))} {i}" for i in range(n)]
    for name in ("measuring-hate-speech", "civil-comments", "utkface"):
        (place / name).mkdir()
    who = [int(i) for i in np.arange(n) % 4]
    # One file in place of the real one, whose format needs pyarrow.
    lines = ["text,hate_speech_score,target_race_black,target_race_asian,target_gender_men,target_gender_women"]
    lines += [f"{t},{rng.normal():.2f},{w == 0},{w == 1},{w in (0, 2)},{w in (1, 3)}" for t, w in zip(texts, who, strict=True)]  # fmt: skip
    (place / "measuring-hate-speech" / "measuring-hate-speech.csv").write_text("\n".join(lines))
    lines = ["comment_text,toxicity,male,female,black,white,christian,muslim"]
    lines += [f"{t},{rng.random():.2f},{w % 2},{1 - w % 2},{w // 2},{1 - w // 2},{w % 2},{w // 2}" for t, w in zip(texts, who, strict=True)]  # fmt: skip
    (place / "civil-comments" / "all_data_with_identities.csv").write_text("\n".join(lines))
    for i in range(n):
        pixels = rng.integers(0, 255, (8, 8, 3)).astype(np.uint8)
        image.fromarray(pixels).save(place / "utkface" / f"{20 + int(rng.integers(30))}_{i % 2}_{who[i]}_{i}.jpg")
    return place


@pytest.mark.slow
def test_the_paper_runs_from_the_hub_to_results(hub, sets, tmp_path):
    path = STUDIES / "paper" / "fairness.yaml"
    text = path.read_text(encoding="utf-8").replace("fairlearn: true", "fairlearn: false")
    command = [
        sys.executable,
        "-m",
        "taskvec.cli",
        "run",
        str(written(tmp_path, text)),
        "--root",
        str(sets),
        "-o",
        str(tmp_path / "out"),
    ]
    command += ["--steps", "2", "--limit", "8", "--only", "seed 0", "--json"]
    with serving(hub) as (env, asked):
        env = os.environ | env | {"HF_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    results = read_results(tmp_path / "out" / "results")
    assert len(results) == 9
    assert all(r.title.endswith("try-out") and "LoRA" in [x.name for x in r.rows] for r in results)
    assert {tuple(r.groups) for r in results} >= {("Male", "Female")}
    assert {"/".join(a.split("/")[:2]) for a in asked} == set(hub)
