"""`taskvec steer` on a tiny BERT and texts that name groups."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from taskvec.results import read_result
from taskvec.weights import TaskVector

transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra: hf)")
torch.set_num_threads(1)
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "good",
    "bad",
    "women",
    "men",
    "people",
    "are",
    "say",
    "they",
    "that",
    "some",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("steer")
    model = folder / "tiny"
    model.mkdir()
    (model / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizerFast(vocab=str(model / "vocab.txt"), do_lower_case=True).save_pretrained(model)
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=32,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.BertModel(config).save_pretrained(model)
    rng = np.random.default_rng(0)
    rows, seen = [], set()
    while len(rows) < 240:
        who = ("women", "men", "people")[len(rows) % 3]
        filler = " ".join(rng.choice(["they", "say", "that", "some", "are"], size=6))
        mark = ("fine", "unkind")[int(rng.integers(2))]
        text = f"{filler} {who} {'good' if mark == 'fine' else 'bad'}"
        if text not in seen:
            seen.add(text)
            rows.append(f"{text},{mark},{who if who != 'people' else ''}")
    (folder / "posts.csv").write_text("text,label,who\n" + "\n".join(rows) + "\n")
    (folder / "terms.txt").write_text("women: women\nmen: men\n")
    return folder


BRIEF = ("--epochs", "0.5", "--max-tokens", "16", "--points", "3", "--min-n", "5", "--min-cases", "2", "--batch", "8")


def test_steer_trains_merges_and_reports(place, tmp_path, run_cli):
    out, kept = tmp_path / "steering.json", tmp_path / "vectors"
    code, text, said = run_cli(
        "steer", place / "tiny", place / "posts.csv", "--group", "who", "--positive", "unkind", "--lora", "--each",
        "--vectors", kept, "-o", out, *BRIEF,
    )  # fmt: skip
    assert code == 0, said
    found = read_result(out)
    assert found.positive == "unkind" and found.groups == ("men", "women")
    assert [r.name for r in found.rows][:4] == ["base", "full fine-tuning", "balanced", "LoRA"]
    assert found.row("one coefficient each").coefficients.keys() == {"men", "women"} and len(found.injections) == 1
    assert "Vectors are summed" in text and "training women" in said and "probing a head" in said
    assert "that some" not in text + said  # no text of the data is shown
    names = {p.name for p in kept.iterdir()}
    assert {"men.safetensors", "women.safetensors", "all-groups.safetensors", "balanced.safetensors", "head.safetensors"} <= names  # fmt: skip
    assert TaskVector.read(kept / "women.safetensors").norm() == pytest.approx(found.bounds[0].norms["women"], rel=1e-5)
    code, _, said = run_cli("steer", place / "tiny", place / "posts.csv", "--group", "who", "-o", out, *BRIEF)
    assert code == 2 and "exists" in said
    code, _, said = run_cli("report", out, "-o", tmp_path / "page.html")
    assert code == 0, said
    page = (tmp_path / "page.html").read_text()
    assert "sub-group task vectors" in page and page.count("<svg") == 5


def test_groups_by_terms_as_json(place, tmp_path, run_cli):
    code, text, said = run_cli(
        "steer", place / "tiny", place / "posts.csv", "--terms", place / "terms.txt", "--only", "encoder.layer.1.*", "--inject", "men",
        "--at-most", "odds=0.1", "--accuracy-at-least", "0.4", "--json", "-o", tmp_path / "s.json", *BRIEF,
    )  # fmt: skip
    assert code == 0, said
    found = json.loads(text)["result"]
    assert found["injections"][0]["group"] == "men"
    curve = next(r for r in found["rows"] if r["name"] == "task addition")["curve"]
    assert curve["constraint"] == "odds" and curve["at_most"] == 0.1 and curve["accuracy_at_least"] == 0.4


@pytest.mark.parametrize(
    "options, what",
    [
        (["--group", "whom"], "no column 'whom'"),
        ([], "one of group, members or terms"),
        (["--group", "who", "--positive", "nice"], "no class"),
        (["--group", "who", "--at-most", "parity=2"], "GAP=LIMIT"),
        (["--group", "who", "--at-most", "party=0.1"], "Did you mean 'parity'"),
        (["--group", "who", "--regime", "lorra"], "Did you mean 'lora'"),
        (["--set", "adult"], "its model is perceptron"),
    ],
)
def test_what_is_wrong_is_said_before_any_work(place, tmp_path, run_cli, options, what):
    code, _, said = run_cli("steer", place / "tiny", place / "posts.csv", "-o", tmp_path / "s.json", *options)
    assert code in (2, 3) and what in said and not (tmp_path / "s.json").exists()


def test_a_rival_below_the_frozen_layers_is_refused(place, tmp_path, run_cli):
    from safetensors.numpy import load_file, save_file

    def rival(*names):
        weights = load_file(place / "tiny" / "model.safetensors")
        save_file(weights | {n: weights[n] + 0.01 for n in names}, tmp_path / "r.safetensors")
        return run_cli(
            "steer", place / "tiny", place / "posts.csv", "--group", "who", "--rival", f"theirs={tmp_path / 'r.safetensors'}",
            "--frozen-layers", "1", "-o", tmp_path / "s.json", *BRIEF,
        )  # fmt: skip

    low, high = "encoder.layer.0.output.dense.weight", "encoder.layer.1.output.dense.weight"
    code, _, said = rival(low, high, "embeddings.word_embeddings.weight")
    assert code == 2 and not (tmp_path / "s.json").exists()
    assert "--rival theirs changes 2 tensors" in said and low in said and high not in said
    assert "Leave --frozen-layers out" in said
    code, _, said = rival(high, "pooler.dense.weight")  # no feature here goes through the pooler
    assert code == 0, said
    assert read_result(tmp_path / "s.json").row("theirs").audit
