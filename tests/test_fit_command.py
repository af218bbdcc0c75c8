"""`taskvec fit`: a tiny BERT with a tokenizer of its own, fine-tuned on a file from the command line."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from taskvec.tasks import Head, read_heads
from taskvec.weights import Checkpoint, TaskVector

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
    "film",
    "meal",
    "phone",
    "very",
    "was",
    "the",
    "a",
    "it",
]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizerFast(vocab=str(folder / "vocab.txt"), do_lower_case=True).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=32,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "reviews.csv"
    things = [f"{a} {b} {c}" for a in ("the", "a", "it") for b in ("film", "meal", "phone") for c in WORDS[5:]]
    rows = [
        f"{t} was {'very ' * k}{w},{w}"
        for t in things
        for k in range(2)
        for w in ("good", "bad")
        if "bad" not in t and "good" not in t
    ]
    path.write_text("text,label\n" + "\n".join(rows) + "\n")
    return path


def quick(*more):
    return ["--steps", 20, "--batch", 16, "--lr", "3e-3", "--max-tokens", 16, *more]


@pytest.mark.parametrize("regime", ["standard", "tangent", "lora"])
def test_a_vector_and_its_head(regime, encoder, reviews, tmp_path, run_cli):
    out = tmp_path / "tau.safetensors"
    code, said, err = run_cli("fit", encoder, reviews, "-o", out, "--regime", regime, *quick("--json"))
    assert code == 0, err
    facts = json.loads(said)
    assert facts["command"] == "fit" and facts["classes"] == ["bad", "good"]
    assert facts["loss"]["last"] < 1.1 * facts["loss"]["first"]  # each of one batch
    assert facts["validation"]["fine-tuned"]["value"] >= facts["validation"]["base"]["value"]
    tau = TaskVector.read(out)
    assert tau.norm() == pytest.approx(facts["norm"]) and tau.forward == (
        "linearised" if regime == "tangent" else "plain"
    )
    assert Head.read(tmp_path / "tau.head.safetensors").weight.shape == (2, 16)
    assert (Checkpoint.read(encoder) + 0.5 * tau).save(tmp_path / "edited").is_dir()
    assert "parameters (" in err and ("attention" in err) == (regime == "lora")
    code, said, _ = run_cli(
        "fit", encoder, reviews, "-o", tmp_path / "b.safetensors", "--head", tmp_path / "tau.head.safetensors", *quick()
    )
    assert code == 0 and "validation accuracy" in said and not (tmp_path / "b.head.safetensors").exists()


def test_a_run_is_continued(encoder, reviews, tmp_path, run_cli):
    state = tmp_path / "run.safetensors"
    for name in "ab":
        arguments = quick("--state", state, "--only", "encoder.layer.1.*", "--log", tmp_path / "log.csv")
        assert run_cli("fit", encoder, reviews, "-o", tmp_path / f"{name}.safetensors", *arguments)[0] == 0
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 21
    a, b = (TaskVector.read(tmp_path / f"{n}.safetensors") for n in "ab")
    assert all(n.startswith("encoder.layer.1.") for n in a.names)
    assert all(a.array(n).tobytes() == b.array(n).tobytes() for n in a.names)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--regime", "tangnt"], 2, "Did you mean 'tangent'"),
        (["--only", "*.nonsense"], 2, "selects no parameter"),
        (["--regime", "linear-only", "--only", "*.nonsense"], 2, "no weights of attention projections in *.nonsense"),
        (["--batch", "5000"], 2, "fewer than a batch"),
        (["--label", "mark"], 3, "mark"),
        (["--device", "cuda:7"], 2, "--device cpu"),
        (["--head", "none.safetensors"], 3, "does not exist"),
        (["--lr", "0"], 2, "lr=0.0 out of range"),
    ],
)
def test_what_is_refused(arguments, code, says, encoder, reviews, tmp_path, run_cli):
    out = tmp_path / "tau.safetensors"
    got, _, err = run_cli("fit", encoder, reviews, "-o", out, *arguments)
    assert (got, says in err) == (code, True), err
    assert not out.exists()


def test_an_output_is_not_replaced_unasked(encoder, reviews, tmp_path, run_cli):
    out = tmp_path / "tau.safetensors"
    out.write_text("mine")
    assert run_cli("fit", encoder, reviews, "-o", out)[0] == 2 and out.read_text() == "mine"
    assert run_cli("fit", encoder, reviews, "-o", tmp_path / "folder")[0] == 2


def torchrun(*arguments):
    """Two processes of the command; the code, and what they wrote to stdout and stderr together."""
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("torch was built without gloo")
    launcher = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "--", "taskvec", *map(str, arguments)]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    ) as process:
        try:
            out, err = process.communicate(timeout=150)
        finally:
            process.terminate()  # which ends the two as well
    return process.returncode, out, err


@pytest.mark.slow
def test_two_processes_write_the_vector_of_one(encoder, reviews, tmp_path, run_cli):
    head, one, two = (tmp_path / f"{n}.safetensors" for n in ("one.head", "one", "two"))
    assert run_cli("fit", encoder, reviews, "-o", one, *quick("--steps", 5))[0] == 0
    code, out, err = torchrun(
        "fit",
        encoder,
        reviews,
        "-o",
        two,
        "--log",
        tmp_path / "log.csv",
        "--head",
        head,
        *quick("--steps", 5, "--json"),
    )
    assert code == 0, err
    assert json.loads(out)["output"] == str(two)  # one document
    assert err.count("parameters (") == 1
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 6
    a, b = TaskVector.read(one), TaskVector.read(two)
    assert a.norm() > 0.01
    for n, x in a.arrays().items():
        if x.ndim > 1:  # the gradient of a key's bias is rounding, which Adam makes as large as any other
            np.testing.assert_allclose(b.array(n), x, atol=2e-5, err_msg=n)


@pytest.mark.slow
def test_an_error_of_both_processes_is_said_once(encoder, reviews, tmp_path):
    code, out, err = torchrun("fit", encoder, reviews, "-o", tmp_path / "a.safetensors", "--regime", "tangnt")
    assert code and not out and err.count("Did you mean 'tangent'") == 1, err
    code, _, err = torchrun("fit", encoder, reviews, "-o", tmp_path / "a.safetensors", "--device", "cuda:0")
    assert code and "--device cuda:" in err, err


def test_heads_are_kept_by_task_in_one_file(encoder, reviews, tmp_path, run_cli):
    heads, first, second = (tmp_path / f"{n}.safetensors" for n in ("heads", "first", "second"))
    for out in (first, second):
        code, _, err = run_cli("fit", encoder, reviews, "-o", out, "--heads", heads, *quick("--steps", 3))
        assert code == 0 and "probing a head" in err, err
    assert list(read_heads(heads)) == ["first", "second"] and not (tmp_path / "first.head.safetensors").exists()
    before = heads.read_bytes()
    code, _, err = run_cli("fit", encoder, reviews, "-o", first, "--heads", heads, "--overwrite", *quick("--steps", 3))
    assert code == 0 and "probing" not in err and heads.read_bytes() == before
    code, _, err = run_cli(
        "fit", encoder, reviews, "-o", tmp_path / "x.safetensors", "--heads", heads, "--head", "probe"
    )
    assert code == 2 and "Name one" in err


def test_an_early_stop_and_its_log(encoder, reviews, tmp_path, run_cli):
    out, log = tmp_path / "a.safetensors", tmp_path / "log.json"
    arguments = ["--check", 2, "--patience", 1, "--lr", "0.3", "--log", log, "--json"]
    code, said, err = run_cli("fit", encoder, reviews, "-o", out, *quick(*arguments))
    assert code == 0, err
    written = json.loads(log.read_text())
    looks = {r["step"]: r["validation_loss"] for r in written["steps"] if r["validation_loss"] is not None}
    assert len(written["steps"]) < 20, "a rate this high should have been stopped"
    assert written["returned_step"] == json.loads(said)["step"] == min(looks, key=looks.get) == max(looks) - 2
    code, _, err = run_cli("fit", encoder, reviews, "-o", tmp_path / "b.safetensors", "--patience", 2)
    assert code == 2 and "set --check" in err
    code, _, err = run_cli("fit", encoder, reviews, "-o", tmp_path / "b.safetensors", "--log", tmp_path / "log.txt")
    assert code == 2 and ".csv or .json" in err


def test_a_log_for_tensorboard(encoder, reviews, tmp_path, run_cli):
    arguments = [
        "fit",
        encoder,
        reviews,
        "-o",
        tmp_path / "a.safetensors",
        "--log",
        tmp_path / "runs",
        *quick("--check", 10),
    ]
    code, _, err = run_cli(*arguments)
    if importlib.util.find_spec("tensorboard") is None:
        assert code == 2 and "pip install tensorboard" in err
        return
    assert code == 0, err
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    seen = EventAccumulator(str(tmp_path / "runs")).Reload()
    assert len(seen.Scalars("loss")) == 20 and [e.step for e in seen.Scalars("validation loss")] == [10, 20]
