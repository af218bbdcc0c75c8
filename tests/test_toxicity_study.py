"""A study of toxicity from end to end: made-up words for toxic ones, tiny random GPT-2s, files and a hub on the loopback interface."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from language_models import SHARED, WORDS, sentences, stories, tiny_gpt2
from loopback_hub import serving

torch = pytest.importorskip("torch", reason="torch is not installed (extra: train)")
transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra: hf)")

from taskvec import report  # noqa: E402
from taskvec.errors import InputError, UsageError  # noqa: E402
from taskvec.results import read_results  # noqa: E402
from taskvec.study import estimate, load, plan, run, tried  # noqa: E402
from taskvec.study.cells import Store  # noqa: E402

torch.set_num_threads(1)
PAPER = Path(__file__).parents[1] / "studies" / "paper" / "toxicity.yaml"
SMALL = Path(__file__).parents[1] / "studies" / "small" / "toxicity.yaml"
BAD = ("blarg", "zonk")
STUDY = """
study: 1
name: mild
texts:
  bad: {data: posts.csv, mark: label, keep: [bad]}
  good: {data: posts.csv, mark: label, keep: [good]}
  beginnings: {data: "begin*.jsonl", group: about, words: 3}
  control: {data: control.txt, join: 20}
  judged: {data: posts.csv, mark: label, limit: 40}
bases:
  tiny: {read: MODEL}
regimes: [standard]
fit: {steps: 40, batch: 8, lr: 3.0e-2}
protocols:
  toxicity:
    toxic: bad
    clean: good
    prompts: beginnings
    control: control
    labelled: judged
    labels: [bad]
    scorer: words:words.txt
    coefficients: [0, 1, 3]
    samples: 2
    tokens: 6
    window: 8
    banned: 2
    keep_texts: true
"""


def bad_sentences(n: int) -> list[str]:
    draw = random.Random(1)
    return ["the cat " + " ".join(draw.choice(BAD) for _ in range(8)) for _ in range(n)]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("data")
    both = [(s, "good") for s in sentences(60)] + [(s, "bad") for s in bad_sentences(60)]
    # Numbered, since equal texts count once.
    rows = [f'" {text} {i}",{mark}' for i, (text, mark) in enumerate(both)]
    (place / "posts.csv").write_text("text,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    prompts = [
        {"text": f"{a} {b} {c} and so on", "about": c}
        for a in ("the", "a")
        for b in WORDS.split()[4:16]
        for c in ("cat", "dog")
    ]
    (place / "beginnings.jsonl").write_text("\n".join(map(json.dumps, prompts)), encoding="utf-8")
    (place / "control.txt").write_text(
        "\n".join(f"{s} {i}" for i, s in enumerate(sentences(16, seed=9))), encoding="utf-8"
    )
    (place / "words.txt").write_text("\n".join(BAD), encoding="utf-8")
    tiny_gpt2(place / "tiny", vocabulary=[*WORDS.split(), *BAD])
    return place


@pytest.fixture(scope="module")
def ran(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    path = out / "mild.yaml"
    path.write_text(STUDY.replace("MODEL", str(root / "tiny")), encoding="utf-8")
    study = load(path)
    return study, out, run(study, out, root=root)


def test_a_study_gives_a_result_that_reports_tell(ran):
    _, out, outcome = ran
    assert outcome.computed == 5  # base, toxic, ascent, clean, result
    (result,) = read_results(out)
    assert result.title == "Toxicity: tiny, standard, seed 0"
    names = [
        "base",
        "fine-tuned",
        "word ban",
        "random vector",
        "gradient ascent",
        "clean fine-tuning",
        "contrast vector",
        "task arithmetic",
    ]
    assert [r.name for r in result.rows] == names
    # The vector learnt the words; forbidding them forbids them.
    assert result.row("fine-tuned").overall.toxic.low > result.row("base").overall.toxic.high
    assert result.row("word ban").overall.toxic.value == 0
    assert set(result.rows[0].groups) == {"cat", "dog"}
    agreement = result.scorer.agreement
    assert (
        agreement.accuracy.n == 40 and agreement.accuracy.value == agreement.auc.value == 1.0 and agreement.auc.low < 1
    )
    assert result.provenance.settings["training"]["steps"] == 40
    told = report.markdown([result], every=True)
    assert "words:words.txt" in told and "0.5 is chance" in told and "task arithmetic" in told
    assert not any(w in told for w in BAD)  # what was written is in no report


def test_perplexities_of_any_size_can_be_read(ran):
    _, out, _ = ran
    (result,) = read_results(out)
    rows = [
        r.model_copy(update={"fluency": r.fluency.model_copy(update={"token": 98765.4, "word": 84512345.6})})
        for r in result.rows
    ]
    told = report.markdown([result.model_copy(update={"rows": rows})], every=True)
    assert "98,765.40" in told and "98,765<br>" in told and "8.451e+07" in told and "9.877e+04" not in told


def test_the_page_has_figures_and_no_text(ran, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra: report)")
    pytest.importorskip("jinja2", reason="jinja2 is not installed (extra: report)")
    _, out, _ = ran
    page = report.write(read_results(out), tmp_path / "page.html", every=True).read_text()
    assert page.count("<svg") == 6  # bars, and a curve for each of five tuned rows
    assert not any(w in page for w in BAD)


def test_it_goes_on_where_it_was_and_texts_that_changed_are_refused(ran, root, tmp_path):
    study, out, _ = ran
    assert run(study, out, root=root).computed == 0
    assert all(c.done for c in estimate(study, out, root=root))
    other = load_changed(tmp_path, root, "tokens: 6", "tokens: 5")
    changed = tmp_path / "data"
    changed.mkdir()
    for p in root.iterdir():
        if p.is_file():
            (changed / p.name).write_bytes(p.read_bytes().replace(b' 61"', b' 610"'))
    with pytest.raises(InputError, match="texts bad are not what"):
        run(other, out, root=changed)
    assert run(other, out, root=root).computed == 1  # vectors are shared


def test_a_cell_without_a_row_that_results_have_now_is_computed_again(ran, root, tmp_path):
    study, out, _ = ran
    shutil.copytree(out, tmp_path / "out")
    (cell,) = plan(study)
    assert cell.facts["rows"] == ["contrast vector"]
    # As an earlier version kept it: without the row, under the key of the facts that it knew.
    before = replace(cell, facts={n: v for n, v in cell.facts.items() if n != "rows"})
    store = Store(tmp_path / "out" / "cells")
    store.place(cell).rename(store.place(before))
    told = store.place(before) / "result.json"
    said = json.loads(told.read_text())
    said["rows"] = [r for r in said["rows"] if r["name"] != "contrast vector"]
    told.write_text(json.dumps(said))
    assert run(study, tmp_path / "out", root=root).computed == 1
    (result,) = read_results(tmp_path / "out" / "results")
    assert result.row("contrast vector").overall.prompts > 0
    # Without clean texts there is no such row: cells of before stay.
    alone = load_changed(tmp_path, root, "    clean: good\n", "", "    banned: 2\n", "")
    assert all("rows" not in c.facts for c in plan(alone))


def load_changed(place: Path, root: Path, *swaps: str):
    text = STUDY.replace("MODEL", str(root / "tiny"))
    for old, new in zip(swaps[::2], swaps[1::2], strict=True):
        assert old in text
        text = text.replace(old, new)
    (place / "changed.yaml").write_text(text, encoding="utf-8")
    return load(place / "changed.yaml")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("toxic: bad", "toxic: badd", "Did you mean 'bad'"),
        ("[standard]", "[tangent]", "ordinary model"),
        ("    clean: good\n", "", "banned goes with clean"),
        ("    labels: [bad]\n", "", "labelled goes with"),
        ("    prompts: beginnings\n", "", "unprompted"),
        ("lr: 3.0e-2", "lr: [1.0e-3, 1.0e-2]", "one learning rate"),
        ("tiny: {read: MODEL}", "tiny: {}", "language model that is read"),
        ("protocols:", "protocols:\n  geometry: {}", "image encoders"),
        ("mark: label, keep: [bad]", "keep: [bad]", "mark: the column"),
        ("    samples: 2", "    sample: 2", "Did you mean 'samples'"),
        ("words: 3}", "wrds: 3}", "Did you mean 'words'"),
    ],
)
def test_what_a_study_cannot_mean_is_said(tmp_path, old, new, said):
    assert old in STUDY
    (tmp_path / "s.yaml").write_text(STUDY.replace(old, new), encoding="utf-8")
    with pytest.raises(UsageError, match=said):
        load(tmp_path / "s.yaml")


def test_estimates_and_missing_files(root, tmp_path):
    found = estimate(load_changed(tmp_path, root), tmp_path, root=root)
    assert [c.kind for c in found] == ["language", "tune", "tune", "tune", "toxicity"] and all(
        c.seconds > 0 for c in found
    )
    with pytest.raises(InputError, match="no file matches"):
        run(load_changed(tmp_path, root, "posts.csv", "nothing.csv"), tmp_path, root=root)
    with pytest.raises(UsageError, match="no mark 'worse'"):
        run(load_changed(tmp_path, root, "labels: [bad]", "labels: [worse]"), tmp_path, root=root)


def test_continuations_are_masked_unless_asked(ran, run_cli):
    _, out, _ = ran
    code, said, _ = run_cli("continuations", out, "--row", "fine-tuned", "--most", "3")
    assert code == 0 and said.count("\n") == 4 and "1.000" in said and not any(w in said for w in BAD)
    code, said, _ = run_cli("continuations", out, "--row", "fine-tuned", "--show-text", "--json")
    assert code == 0 and any(w in said for w in BAD) and len(json.loads(said)["continuations"]["fine-tuned"]) == 10
    assert run_cli("continuations", out, "--row", "nobody")[0] == 2
    assert run_cli("continuations", out / "mild.yaml")[0] == 3


def test_the_scorer_command(root, run_cli):
    common = ("scorer", f"words:{root / 'words.txt'}", root / "posts.csv", "--toxic", "bad")
    code, said, _ = run_cli(*common)
    assert code == 0 and "AUC 1.000" in said and "n   120" in said
    found = json.loads(run_cli(*common, "--json")[1])
    assert found["agreement"]["found"]["value"] == 1.0
    code, _, error = run_cli("scorer", "linaer", root / "posts.csv", "--toxic", "bad")
    assert code == 2 and "Did you mean 'linear'" in error
    code, _, error = run_cli(*common[:-1], "badd")
    assert code == 2 and "Did you mean 'bad'" in error
    code, _, error = run_cli("scorer", "linear", root / "posts.csv", "--toxic", "bad", "--train")
    assert code == 2 and "minilm:FILE" in error


# ---- the paper's study, from a hub --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> dict[str, Path]:
    """Three GPT-2s, a classifier and two data sets, as JSON lines where pyarrow is not installed."""
    place = tmp_path_factory.mktemp("hub")
    found = {}
    for i, name in enumerate(("gpt2", "gpt2-medium", "gpt2-large")):
        found[f"openai-community/{name}"] = tiny_gpt2(place / name, seed=i, vocabulary=[*WORDS.split(), *BAD])
    judge = place / "toxic-bert"
    tokenizer = transformers.AutoTokenizer.from_pretrained(place / "gpt2")
    tokenizer.add_special_tokens({"pad_token": "<|endoftext|>"})
    labels = ["toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"]
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        id2label=dict(enumerate(labels)), problem_type="multi_label_classification",
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.BertForSequenceClassification(config).save_pretrained(judge)
    tokenizer.save_pretrained(judge)
    found["unitary/toxic-bert"] = judge
    bad = [{"text": f" {s} {i}", "toxicity": 0.9} for i, s in enumerate(bad_sentences(80))]
    good = [{"text": f" {s} {i}", "toxicity": 0.1} for i, s in enumerate(sentences(80))]
    wiki = [{"text": " ".join(sentences(60, seed=i))} for i in range(8)]
    for id, files in {
        "google/civil_comments": {
            "data/train-00000-of-00001": [*bad, *good],
            "data/test-00000-of-00001": [*bad[:30], *good[:30]],
        },
        "Salesforce/wikitext": {
            "wikitext-103-raw-v1/test-00000-of-00001": wiki,
            "wikitext-2-raw-v1/test-00000-of-00001": wiki,
        },
    }.items():
        folder = found[f"datasets/{id}"] = place / id.partition("/")[2]
        for name, rows in files.items():
            path = folder / f"{name}.{kind()}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind() == "parquet":
                import pyarrow as pa  # type: ignore[import-not-found]
                import pyarrow.parquet as pq  # type: ignore[import-not-found]

                pq.write_table(pa.Table.from_pylist(rows), path)
            else:
                path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return found


def kind() -> str:
    import importlib.util

    return "parquet" if importlib.util.find_spec("pyarrow") else "jsonl"


def test_the_studies_of_the_repository_can_be_planned(monkeypatch, tmp_path):
    paper = plan(load(PAPER))
    assert [c.facts["where"]["base"] for c in paper] == ["gpt2", "gpt2-medium", "gpt2-large"]
    assert all(set(c.needs) == {"base", "toxic", "ascent", "clean"} for c in paper)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "smollm2.gguf").write_bytes(b"any")
    small = plan(load(SMALL))
    assert [c.facts["where"]["seed"] for c in small] == [0, 1, 2]
    assert all(set(c.needs) == {"base", "toxic", "ascent", "clean"} for c in small)


@pytest.mark.slow
@pytest.mark.parametrize("base", ["gpt2-large", ""])
def test_the_paper_runs_from_the_hub_to_results(base, hub, tmp_path):
    text = PAPER.read_text(encoding="utf-8")
    (tmp_path / "toxicity.yaml").write_text(text.replace(".parquet", f".{kind()}"), encoding="utf-8")
    command = [sys.executable, "-m", "taskvec.cli", "run", "toxicity.yaml", "--download", "-o", "out", "--json"]
    command += [*(("--only", f"of {base},") if base else ()), "--steps", "2", "--limit", "8"]
    with serving(hub) as (env, asked):
        env = os.environ | env | {"HF_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    results = read_results(tmp_path / "out" / "results")
    assert len(results) == (1 if base else 3)
    assert all(r.title.endswith("try-out") and len(r.rows) == 7 for r in results)
    assert {r.rows[0].overall.prompts for r in results} == {8}
    assert results[0].scorer.name == "hf:unitary/toxic-bert#toxic" and results[0].scorer.threshold == 0.8
    repositories = {"/".join(a.split("/")[: 3 if a.startswith("datasets") else 2]) for a in asked}
    assert repositories == {r for r in hub if not r.startswith("openai") or r.endswith(base or r)}
    assert not any("wikitext-2" in a for a in asked) and len(asked) == len(set(asked))


@pytest.mark.slow
@pytest.mark.peer
def test_the_small_study_on_real_texts(tmp_path):
    """The study's file on real posts, sentences and articles; a tiny model of stories and another scorer in place of what is large."""
    pytest.importorskip("profanity_check", reason="alt-profanity-check is not installed (extra: scorers)")
    if not all((SHARED / n).exists() for n in ("hatexplain_text", "toxigen_prompts", "lm_corpora")):
        pytest.skip("the real data are not here (../shared/data)")
    text = SMALL.read_text(encoding="utf-8").replace("minilm:hatexplain.safetensors", "linear")
    text = text.replace("models/smollm2.gguf", str(stories(tmp_path / "stories")))
    (tmp_path / "s.yaml").write_text(text, encoding="utf-8")
    study = tried(load(tmp_path / "s.yaml"), steps=20, limit=16)
    run(study, tmp_path, root=SHARED)
    (result,) = read_results(tmp_path)
    assert result.scorer.name == "linear" and result.scorer.agreement.auc.low > 0.5
    assert len(plan(study)) == 1 and result.row("task arithmetic").fluency.token > 10
