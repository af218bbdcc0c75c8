"""The model card: what the hub reads, what people read, and whose it is."""

import json

import numpy as np
import pytest
import yaml

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
