"""The model card: what the hub reads, what people read, and whose it is."""

import json

import numpy as np
import pytest
import yaml

from taskvec.results import AdditionResult, Curve, GeometryResult, Provenance, Row, Score
from taskvec.weights import Checkpoint


@pytest.fixture
def models(tmp_path, weights):
    for i, name in enumerate(("base", "models--org--tuned/snapshots/0abc")):
        Checkpoint.of(weights(i), label=name).save(tmp_path / name)
    (tmp_path / "base" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    return tmp_path


def edit(models, run_cli, *more):
    tuned = models / "models--org--tuned" / "snapshots" / "0abc"
    lets = ("--let", f"base={models / 'base'}", "--let", f"tuned={tuned}")
    return run_cli("edit", "base + 0.5 * (tuned - base)", *lets, "-o", models / "out", *more)


def test_a_folder_gets_a_card(models, run_cli):
    assert edit(models, run_cli)[0] == 0
    text = (models / "out" / "README.md").read_text()
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["base_model"] == ["base", "org/tuned"] and head["base_model_relation"] == "merge"
    assert head["library_name"] == "transformers" and "task-arithmetic" in head["tags"]
    info = json.loads((models / "out" / "taskvec.json").read_text())
    assert "base + 0.5 * (tuned - base)" in text and info["inputs"]["base"]["sha256"]["model.safetensors"] in text
    assert str(models) not in text
    assert run_cli("verify", models / "out")[0] == 0


def test_a_card_is_left_out_when_asked_and_one_of_ones_own_is_kept(models, run_cli):
    assert edit(models, run_cli, "--no-card")[0] == 0
    assert not (models / "out" / "README.md").exists()
    assert edit(models, run_cli, "--overwrite")[0] == 0
    ours = (models / "out" / "README.md").read_text()
    assert edit(models, run_cli, "--overwrite")[0] == 0
    assert (models / "out" / "README.md").read_text() == ours
    (models / "out" / "README.md").write_text("# Mine\n")
    assert edit(models, run_cli, "--overwrite")[0] == 0
    assert (models / "out" / "README.md").read_text() == "# Mine\n"


def test_names_from_files_cannot_break_out(models, run_cli):
    bad = models / "a|b`\u0007c"
    Checkpoint.of({"w": np.zeros(2, np.float32)}, label="x").save(bad)
    assert run_cli("edit", "x", "--let", f"x={bad}", "-o", models / "out")[0] == 0
    text = (models / "out" / "README.md").read_text()
    assert "\u0007" not in text and "a\\|b'" in text
    assert yaml.safe_load(text.split("---\n")[1])["base_model"] == ["a|b`\u0007c"]


@pytest.fixture
def results(tmp_path):
    scores = {"cars": Score.share(90, 100), "pets|dogs": Score.share(150, 200)}
    curve = Curve(coefficients=(0.0, 0.4), scores={t: (s, s) for t, s in scores.items()}, chosen=1, objective="mean")
    rows = (
        Row(name="base", scores={t: Score.share(50, 100) for t in scores}, coefficient=0.0),
        Row(name="random vector", scores=scores, coefficient=0.1, curve=curve),
        Row(name="task arithmetic", scores=scores, coefficient=0.4, curve=curve),
        Row(name="ties", scores={"cars": Score.share(80, 100)}, coefficient=0.4, curve=curve),
    )
    how = Provenance.now()
    AdditionResult(title="Two tasks", tasks=tuple(scores), rows=rows, provenance=how).write(tmp_path / "r" / "a.json")
    return tmp_path / "r"


def test_results_go_into_the_card_as_the_hub_reads_them(models, results, run_cli):
    assert edit(models, run_cli)[0] == 0
    plain = (models / "out" / "README.md").read_text()
    code, _, err = run_cli("card", models / "out", "--results", results, "--task-type", "image-classification")
    assert code == 0, err
    text = (models / "out" / "README.md").read_text()
    (index,) = yaml.safe_load(text.split("---\n")[1])["model-index"]
    assert [r["dataset"]["name"] for r in index["results"]] == ["cars", "pets|dogs"]
    metric = index["results"][0]["metrics"][0]
    assert metric["value"] == 0.9 and "n = 100" in metric["name"] and "0.8256 to 0.9448" in metric["name"]
    assert "| cars | 90.0\u00a0% [82.6,\u00a094.5] | 100 | 50.0\u00a0% [40.4,\u00a059.6] |" in text
    assert "pets\\|dogs" in text and "coefficient 0.4, chosen on validation data" in text
    assert text.startswith(plain.split("---\n")[0]) and "base + 0.5 * (tuned - base)" in text
    assert run_cli("card", models / "out", "--results", results, "--row", "ties")[0] == 0  # in place of the first
    again = (models / "out" / "README.md").read_text()
    assert "80.0" in again and "90.0" not in again and again.count("## Evaluation") == 1
    assert run_cli("verify", models / "out")[0] == 0
    repocard = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed (extra: hf)")
    found = repocard.ModelCard.load(models / "out" / "README.md").data
    assert [e.dataset_name for e in found.eval_results] == ["cars"] and found.eval_results[0].metric_value == 0.8


def test_a_card_that_cannot_hold_results_is_left_alone(models, results, run_cli):
    assert edit(models, run_cli)[0] == 0
    card = models / "out" / "README.md"
    code, _, err = run_cli("card", models / "out", "--results", results, "--row", "tie")
    assert code == 2 and "Did you mean 'ties'?" in err and "Evaluation" not in card.read_text()
    how = Provenance.now()
    GeometryResult(title="Shapes", names=("x",), norms=(1.0,), cosine=((1.0,),), provenance=how).write(
        models / "g.json"
    )
    code, _, err = run_cli("card", models / "out", "--results", models / "g.json")
    assert code == 2 and "left out" in err
    card.write_text("# Mine\n")
    code, _, err = run_cli("card", models / "out", "--results", results)
    assert code == 4 and "was not written by taskvec" in err and card.read_text() == "# Mine\n"
    card.unlink()
    assert run_cli("card", models / "out", "--results", results)[0] == 4
