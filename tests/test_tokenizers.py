"""Real tokenizers (of the tokenizers library) and tiny models of transformers: unions, configs, and equality with mergekit.

mergekit is looked for beside this Python, or as the interpreter that TASKVEC_MERGEKIT names.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from taskvec.errors import InputError
from taskvec.weights import Checkpoint, aligned
from taskvec.weights.vocabulary import read_vocabulary
from test_mergekit import DRIVER, _with_mergekit

tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed (extra: hf)")
transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra: hf)")
torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore")

TEXTS = {
    "base": "the cat sat on the mat and the rat ran from the cat to the other mat",
    "a": "we merge models whose tokens differ and the models merge tokens of other models",
    "b": "zebras graze quietly while quick foxes jump over quilts of quartz",
}
SPECIAL = {"base": ["<s>", "</s>"], "a": ["</s>", "<s>", "<|im_start|>"], "b": ["<s>", "</s>", "[PAD]"]}


def tokenizer(kind: str, text: str, special: list[str], size: int = 60) -> tokenizers.Tokenizer:
    from tokenizers import decoders, models, pre_tokenizers, trainers

    if kind == "BPE":
        made = tokenizers.Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    elif kind == "WordPiece":
        made = tokenizers.Tokenizer(models.WordPiece(unk_token=special[0]))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    else:
        made = tokenizers.Tokenizer(models.Unigram())
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        made.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=size, special_tokens=special, unk_token=special[0], show_progress=False
        )
    made.train_from_iterator([text] * 3, trainer)
    return made


def save(folder: Path, made: tokenizers.Tokenizer) -> None:
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>").save_pretrained(
        folder
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Llama (BPE), tied Llama (Unigram) and BERT (WordPiece): base, a and b, each with a tokenizer of its own."""
    root = tmp_path_factory.mktemp("tokenizers")
    for kind, form in (("llama", "BPE"), ("tied", "Unigram"), ("bert", "WordPiece")):
        for i, (name, text) in enumerate(TEXTS.items()):
            made = tokenizer(form, text, SPECIAL[name])
            if name == "a":
                made.add_tokens(["<extra>"])
            save(root / kind / name, made)
            vocabulary = made.get_vocab()
            small = {
                "vocab_size": len(vocabulary), "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2,
                "num_hidden_layers": 2, "bos_token_id": vocabulary["<s>"], "eos_token_id": vocabulary["</s>"],
            }  # fmt: skip
            torch.manual_seed(i)
            if kind == "bert":
                small["pad_token_id"] = vocabulary["<s>"]
                built = transformers.BertForMaskedLM(transformers.BertConfig(**small, max_position_embeddings=32))
            else:
                config = transformers.LlamaConfig(**small, num_key_value_heads=2, tie_word_embeddings=kind == "tied")
                built = transformers.LlamaForCausalLM(config)
            for p in built.parameters():
                p.data += 0.1 * torch.randn(p.shape)
            built.save_pretrained(root / kind / name)
            if kind == "bert":  # mergekit reads such models only with a pooler
                shutil.copytree(root / kind / name, root / "pooled" / name)
                table = {n: p.detach() for n, p in built.named_parameters()}
                table |= {f"bert.pooler.dense.{n}": torch.randn(s) for n, s in (("weight", (16, 16)), ("bias", (16,)))}
                Checkpoint.of(table).save(root / "pooled" / name / "model.safetensors", overwrite=True)
    return root


PEERS = ("llama", "tied", "pooled")
NAMES = {
    "llama": ("model.embed_tokens.weight", "lm_head.weight"), "tied": ("model.embed_tokens.weight",),
    "bert": ("bert.embeddings.word_embeddings.weight", "cls.predictions.bias"),
}  # fmt: skip


@pytest.mark.parametrize("kind", NAMES)
def test_a_union_loads_and_has_the_rows_of_its_tokens(models, kind, tmp_path):
    from tokenizers import Tokenizer

    base, a, b = (Checkpoint.read(models / kind / n) for n in TEXTS)
    every = [base, a, b]
    edited = aligned(base, every) + 0.5 * (aligned(a, every) - aligned(base, every))
    edited.save(tmp_path / "out")
    got = read_vocabulary(tmp_path / "out", "out")
    assert got.tokens == Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json")).get_vocab()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == got.size
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert {t: i for t, i in loaded.get_vocab().items() if i < got.size} == dict(got.tokens)
    make = transformers.AutoModelForMaskedLM if kind == "bert" else transformers.AutoModelForCausalLM
    model, info = make.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    rows = model.get_input_embeddings().weight.detach().numpy()
    name = NAMES[kind][0]
    mine, theirs, third = (read_vocabulary(models / kind / n, n).tokens for n in TEXTS)
    x, y, z = (p.array(name) for p in every)
    assert len(set(mine) & set(theirs)) > 5
    for token, row in got.tokens.items():
        if token in mine and token in theirs:
            np.testing.assert_allclose(rows[row], (x[mine[token]] + y[theirs[token]]) / 2, atol=1e-6)
        elif token in mine:
            np.testing.assert_array_equal(rows[row], x[mine[token]])
        elif token in theirs:  # the base got the mean of those that have it
            start = (y[theirs[token]] + z[third[token]]) / 2 if token in third else y[theirs[token]]
            np.testing.assert_allclose(rows[row], (start + y[theirs[token]]) / 2, atol=1e-6)
    with torch.no_grad():
        assert torch.isfinite(model(torch.tensor([loaded(TEXTS["b"])["input_ids"][:16]])).logits).all()
    flags = {
        t["content"]: t["special"]
        for t in json.loads((tmp_path / "out" / "tokenizer.json").read_text())["added_tokens"]
    }
    assert flags == {"<s>": True, "</s>": True, "<|im_start|>": True, "<extra>": False, "[PAD]": True}
    ids = loaded("<|im_start|>")["input_ids"]
    assert got.tokens["<|im_start|>"] in ids


@pytest.mark.parametrize("kind", NAMES)
def test_a_text_of_known_tokens_has_its_models_embeddings(models, kind, tmp_path):
    """Each model alone in the union: every token of the text that it had keeps its embedding."""
    points = {n: Checkpoint.read(models / kind / n) for n in TEXTS}
    for name, point in points.items():
        order = [point, *(p for n, p in points.items() if n != name)]
        aligned(point, order).save(tmp_path / name)
        before, after = (transformers.AutoTokenizer.from_pretrained(f) for f in (models / kind / name, tmp_path / name))
        old, new = (
            transformers.AutoModel.from_pretrained(f).get_input_embeddings().weight
            for f in (models / kind / name, tmp_path / name)
        )
        tokens = [t for t in after.tokenize(TEXTS[name]) if t in before.get_vocab()]
        assert tokens
        ids = [t.convert_tokens_to_ids(tokens) for t in (before, after)]
        assert torch.equal(old[ids[0]], new[ids[1]])


def test_the_merges_of_a_union_build_the_tokens_of_all(models, tmp_path):
    """What only one model's merges can build is built: a word that it knows is cut as it was."""
    from tokenizers import Tokenizer

    base, a, b = (Checkpoint.read(models / "llama" / n) for n in TEXTS)
    aligned(base, [base, a, b]).save(tmp_path / "out")
    union = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    own = Tokenizer.from_file(str(models / "llama" / "b" / "tokenizer.json"))
    word = " qu"
    assert union.encode(word).tokens == own.encode(word).tokens == ["Ġqu"]


def test_special_tokens_of_the_config_are_numbered_anew(models, tmp_path):
    base, a = (Checkpoint.read(models / "llama" / n) for n in ("base", "a"))
    aligned(base, a).save(tmp_path / "out")
    tokens = read_vocabulary(models / "llama" / "a", "a").tokens
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["vocab_size"] == a.spec["lm_head.weight"].shape[0] != base.spec["lm_head.weight"].shape[0]
    assert (config["bos_token_id"], config["eos_token_id"]) == (tokens["<s>"], tokens["</s>"]) == (1, 0)
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert (generation["bos_token_id"], generation["eos_token_id"]) == (1, 0)
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (
        models / "llama" / "a" / "tokenizer.json"
    ).read_bytes()


def test_stacked_models_share_a_vocabulary(models, run_cli):
    """Embedding of a, head of b: both have the rows of the union."""
    text = """
slices:
  - sources: [{model: a, layer_range: [0, 2]}]
  - sources: [{model: b, layer_range: [1, 2]}]
merge_method: passthrough
tokenizer_source: union
"""
    folder = models / "llama"
    (folder / "stack.yml").write_text(text)
    assert run_cli("edit", folder / "stack.yml", "-o", folder / "stacked")[0] == 0
    tokens = read_vocabulary(folder / "stacked", "x").tokens
    got = Checkpoint.read(folder / "stacked")
    for name, model in (("model.embed_tokens.weight", "a"), ("lm_head.weight", "b")):
        own, rows = read_vocabulary(folder / model, model).tokens, Checkpoint.read(folder / model).array(name)
        for token, row in tokens.items():
            if token in own:
                np.testing.assert_array_equal(got.array(name)[row], rows[own[token]])
    config = json.loads((folder / "stacked" / "config.json").read_text())
    assert config["num_hidden_layers"] == 3 and config["vocab_size"] == len(tokens)
    assert run_cli("verify", folder / "stacked")[0] == 0


def test_a_sentencepiece_model_that_cannot_be_read_is_said(models, run_cli, tmp_path):
    shutil.copytree(models / "tied" / "a", tmp_path / "a")
    (tmp_path / "a" / "tokenizer.json").unlink()
    (tmp_path / "a" / "tokenizer.model").write_bytes(b"no pieces")
    base, a = Checkpoint.read(models / "tied" / "a", label="base"), Checkpoint.read(tmp_path / "a")
    with pytest.raises(InputError, match=r"transformers cannot read .*Save it as a fast tokenizer"):
        aligned(a, base)
    lets = ["--let", f"base={models / 'tied' / 'a'}", "--let", f"a={tmp_path / 'a'}"]
    assert run_cli("edit", "base + 0.5 * (a - base)", *lets, "-o", tmp_path / "out")[0] == 0  # nobody asked for it


def test_tokenizers_of_two_kinds_have_no_union(models):
    base, other = Checkpoint.read(models / "llama" / "base"), Checkpoint.read(models / "tied" / "a")
    with pytest.raises(InputError, match=r"one kind: .* BPE and .* Unigram"):
        aligned(base, [base, other])


@pytest.mark.parametrize("tokenizer", ["union", "base", "a"])
def test_the_command_line_aligns_and_verifies(models, run_cli, tmp_path, tokenizer):
    lets = [x for n in TEXTS for x in ("--let", f"{n}={models / 'llama' / n}")]
    text = "base + 0.5 * ties([a - base, b - base], density=0.5)"
    out = tmp_path / "out"
    code, _, err = run_cli("edit", text, *lets, "-o", out)
    assert code == 3 and "tokenizers of a and base differ in" in err and "--tokenizer" in err
    code, said, _ = run_cli("explain", text, *lets, "--tokenizer", tokenizer)
    assert code == 0 and "aligned(b, " in said
    code, _, err = run_cli("edit", text, *lets, "--tokenizer", tokenizer, "-o", out)
    assert code == 0, err
    there = [x for n in TEXTS for x in ("--let", f"{n}={models / 'llama' / n}")]
    code, said, err = run_cli("verify", out, *there)
    assert code == 0, said + err
    (tmp_path / "again.yaml").write_text(
        f"recipe: 1\nlet: {json.dumps({n: {'read': str(models / 'llama' / n)} for n in TEXTS})}\noutput: {json.dumps(text)}\n"
        f"tokenizer: {tokenizer}\n"
    )
    assert run_cli("edit", tmp_path / "again.yaml", "-o", tmp_path / "again")[0] == 0
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "again" / "model.safetensors").read_bytes()


LINEAR = (
    "models: [{model: a, parameters: {weight: 0.3}}, {model: b, parameters: {weight: 0.7}}]\nmerge_method: linear\n"
)
SUM = """
models: [{model: a, parameters: {weight: 0.5}}, {model: b, parameters: {weight: 0.8}}]
merge_method: task_arithmetic
base_model: base
"""
TOKENS = """
tokenizer:
  source: SOURCE
  pad_to_multiple_of: 16
  tokens:
    <|im_start|>: {source: a}
    <s>: {source: b, force: true}
    <new>: {source: {kind: model_token, model: b, token: '[PAD]'}}
    <numbered>: {source: {kind: model_token, model: a, token_id: 3}}
    <void>: {source: {kind: zero}}
"""
CONFIGS = {
    "linear_union": LINEAR + "tokenizer_source: union\n",
    "sum_union": SUM + "tokenizer_source: union\n",
    "sum_base": SUM + "tokenizer_source: base\n",
    "sum_a": SUM + "tokenizer_source: a\n",
    "tokens_union": SUM + TOKENS.replace("SOURCE", "union"),
    "tokens_a": SUM + TOKENS.replace("SOURCE", "a"),  # with `base` mergekit 0.1.5 fails by itself
    "slerp_union": "models: [{model: a}, {model: b}]\nmerge_method: slerp\nbase_model: a\nparameters: {t: 0.4}\ntokenizer: {source: union}\n",
    "elsewhere": "models: [{model: a, parameters: {weight: 1}}]\nmerge_method: task_arithmetic\nbase_model: base\ntokenizer_source: b\n",
}


@pytest.fixture(scope="module")
def theirs(models):
    """What mergekit makes of the configs: (architecture, config) -> folder, or why it failed."""
    python = _with_mergekit()
    if python is None:
        pytest.skip("mergekit is not installed here; name an interpreter that has it in TASKVEC_MERGEKIT")
    found = {}
    for kind in PEERS:
        jobs = []
        for name, text in CONFIGS.items():
            (models / kind / f"{name}.yml").write_text(text + "dtype: float32\n")
            jobs.append((f"{name}.yml", f"mergekit_{name}"))
        done = subprocess.run(
            [python, "-c", DRIVER, json.dumps(jobs)], cwd=models / kind, capture_output=True, text=True, check=False,
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        failed = json.loads(done.stdout.splitlines()[-1])
        found |= {(kind, n): failed.get(o, models / kind / o) for n, (_, o) in zip(CONFIGS, jobs, strict=True)}
    return found


@pytest.mark.peer
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("kind", PEERS)
def test_equals_mergekit_token_by_token(models, theirs, run_cli, kind, config):
    """Their numbers of further tokens are chosen at random, so that rows are compared by token; padding by its values."""
    expected = theirs[kind, config]
    if isinstance(expected, str):
        pytest.skip(f"mergekit itself fails: {expected[:300]}")
    out = models / kind / f"ours_{config}"
    assert run_cli("edit", models / kind / f"{config}.yml", "-o", out)[0] == 0
    mine, want = (read_vocabulary(f, "x").tokens for f in (out, expected))
    assert set(mine) == set(want)
    got, exact = Checkpoint.read(out), Checkpoint.read(expected)
    assert {n: got.spec[n].shape for n in exact.names} == {n: s.shape for n, s in exact.spec.items()}
    assert kind == "pooled" or set(got.names) == set(exact.names)  # of BERT mergekit leaves out part of the head
    order = sorted(mine)
    for name in exact.names:
        x, y = got.array(name), exact.array(name)
        if name in NAMES[kind.replace("pooled", "bert")]:
            np.testing.assert_allclose(x[len(mine) :], y[len(mine) :], atol=1e-6)
            x, y = x[[mine[t] for t in order]], y[[want[t] for t in order]]
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-6, err_msg=name)
    assert (
        json.loads((out / "config.json").read_text())["vocab_size"]
        == json.loads((expected / "config.json").read_text())["vocab_size"]
    )
