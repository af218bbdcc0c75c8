"""Parts of networks by the names of their tensors, and coefficients for them."""

from __future__ import annotations

import re

import numpy as np
import pytest

from taskvec.errors import UsageError
from taskvec.recipe import load, parse
from taskvec.weights import Checkpoint, compare, part, parts, scale_by
from taskvec.weights.layers import patterns
from taskvec.weights.text import expression

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 1}
TEXT, VISION = {**SIZES, "vocab_size": 64}, {**SIZES, "image_size": 16, "patch_size": 8}
SIDES = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
SIDES |= {"vocab_size": 64, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1}
GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 1, "n_head": 4}
T5 = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4}
START = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
MODELS = {
    "BertForSequenceClassification": ("BertConfig", TEXT),
    "BertForMaskedLM": ("BertConfig", TEXT),
    "RobertaForMaskedLM": ("RobertaConfig", TEXT),
    "AlbertForSequenceClassification": ("AlbertConfig", {**TEXT, "embedding_size": 16}),
    "DistilBertForSequenceClassification": (
        "DistilBertConfig", {"vocab_size": 64, "dim": 32, "hidden_dim": 48, "n_heads": 4, "n_layers": 1},
    ),
    "GPT2LMHeadModel": ("GPT2Config", GPT2),
    "GPT2ForSequenceClassification": ("GPT2Config", GPT2),
    "LlamaForCausalLM": ("LlamaConfig", TEXT),
    "Qwen3ForCausalLM": ("Qwen3Config", {**TEXT, "num_key_value_heads": 2, "head_dim": 8}),
    "MixtralForCausalLM": ("MixtralConfig", {**TEXT, "num_key_value_heads": 2, "num_local_experts": 2}),
    "OPTForCausalLM": (
        "OPTConfig", {"vocab_size": 64, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 1, "num_attention_heads": 4},
    ),
    "GPTNeoXForCausalLM": ("GPTNeoXConfig", TEXT),
    "BloomForCausalLM": ("BloomConfig", {"vocab_size": 64, "hidden_size": 32, "n_layer": 1, "n_head": 4}),
    "T5ForConditionalGeneration": ("T5Config", {**T5, "feed_forward_proj": "gated-gelu"}),
    "BartForConditionalGeneration": ("BartConfig", SIDES),
    "WhisperForConditionalGeneration": ("WhisperConfig", {**SIDES, **START}),
    "ViTForImageClassification": ("ViTConfig", VISION),
    "ViTModel": ("ViTConfig", VISION),
    "Dinov2ForImageClassification": ("Dinov2Config", VISION),
    "CLIPModel": ("CLIPConfig", {"text_config": TEXT, "vision_config": VISION}),
    "SiglipModel": ("SiglipConfig", {"text_config": TEXT, "vision_config": VISION}),
    "ResNetForImageClassification": ("ResNetConfig", {"embedding_size": 8, "hidden_sizes": [8], "depths": [1]}),
}  # fmt: skip
# What `models.parts.kinds` has no kind for, and what its name says.
UNKIND = {
    r"(^|\.)(lm_head|classifier|score|cls|pre_classifier|proj_out|head)\.": "head",
    r"EncDecAttention|encoder_attn": "attention",
    r"experts": "mlp",
    r"(patch_embeddings|patch_embedding|embedder)\.|encoder\.conv[12]\.": "embedding",
}  # fmt: skip


def network(name):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra: hf)")
    config, settings = MODELS[name]
    return getattr(transformers, name)(getattr(transformers, config)(**settings))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore")
def test_names_say_what_classes_say(name):
    from taskvec.models.parts import kinds

    for tensor, kind in kinds(network(name)).items():
        if kind == "other":
            kind = next((k for pattern, k in UNKIND.items() if re.search(pattern, tensor)), "other")
        assert part(tensor) == kind, tensor


def test_small_vit_and_its_own_module_agree():
    import torch

    from taskvec.models.parts import kinds
    from taskvec.models.vit import small_vit

    for tensor, kind in kinds(small_vit(width=8, depth=1, heads=2, generator=torch.Generator())).items():
        assert part(tensor) == (kind if "patch_embed" not in tensor else "embedding"), tensor


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        # Names of files whose modules are not built here: open_clip, timm, older transformers, Meta's Llama, torch.
        ("visual.transformer.resblocks.0.attn.in_proj_weight", "attention"),
        ("visual.transformer.resblocks.0.attn.in_proj_bias", "attention"),
        ("visual.transformer.resblocks.0.mlp.c_fc.weight", "mlp"),
        ("visual.transformer.resblocks.0.ln_1.weight", "norm"),
        ("visual.ln_pre.bias", "norm"),
        ("visual.conv1.weight", "embedding"),
        ("visual.class_embedding", "embedding"),
        ("positional_embedding", "embedding"),
        ("token_embedding.weight", "embedding"),
        ("text_projection", "other"),
        ("visual.proj", "other"),
        ("logit_scale", "other"),
        ("visual.attnpool.q_proj.weight", "other"),
        ("blocks.3.attn.qkv.weight", "attention"),
        ("blocks.3.ls1.gamma", "other"),
        ("fc_norm.weight", "norm"),
        ("head.bias", "head"),
        ("head", "head"),
        ("cls_token", "embedding"),
        ("vit.encoder.layer.0.attention.attention.query.weight", "attention"),
        ("vit.encoder.layer.0.attention.output.dense.weight", "attention"),
        ("vit.encoder.layer.0.intermediate.dense.weight", "mlp"),
        ("vit.encoder.layer.0.output.dense.bias", "mlp"),
        ("bert.pooler.dense.weight", "other"),
        ("layers.0.attention.wq.weight", "attention"),
        ("layers.0.feed_forward.w1.weight", "mlp"),
        ("layers.0.attention_norm.weight", "norm"),
        ("tok_embeddings.weight", "embedding"),
        ("model.layers.0.block_sparse_moe.gate.weight", "other"),
        ("model.layers.0.block_sparse_moe.experts.1.w2.weight", "mlp"),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", "other"),
        ("encoder.layers.0.self_attn.out_proj.weight", "attention"),
        ("encoder.layers.0.linear1.weight", "mlp"),
        ("layer1.0.conv1.weight", "other"),
        ("layer1.0.bn1.weight", "norm"),
        ("fc.weight", "other"),
    ],
)
def test_names_of_other_files(name, wanted):
    assert part(name) == wanted


TABLE = (
    "model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight",
    "model.layers.0.input_layernorm.weight", "model.layers.1.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight",
    "model.norm.weight", "lm_head.weight", "logit_scale",
)  # fmt: skip


@pytest.fixture
def names():
    rng = np.random.default_rng(0)
    return {
        label: Checkpoint.of({n: rng.normal(size=(3, 2)).astype(np.float32) for n in TABLE}, label=label)
        for label in ("base", "tuned")
    }


def coefficients(vector, like):
    held = {n: float((vector.array(n) / like.array(n)).mean()) for n in vector.names}
    return [round(held.get(n, 0.0), 5) for n in TABLE]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"attention": 0.5, "mlp": 0.25}, [1, 0.5, 0.25, 1, 0.5, 0.25, 1, 1, 1]),
        ({"norm": 2, "embedding": 3, "head": 4, "*": 0}, [3, 0, 0, 2, 0, 0, 2, 4, 0]),
        ({"mlp": [0.5, 0.25], "*.1.*": 7}, [1, 1, 0.5, 1, 7, 0.25, 1, 1, 1]),
        ({"*.0.*": 7, "attention": 0.5}, [1, 7, 7, 7, 0.5, 1, 1, 1, 1]),
    ],
)
def test_one_way_of_saying_it_in_python_recipes_and_on_the_command_line(names, given, wanted, tmp_path, run_cli):
    tau = names["tuned"] - names["base"]
    scaled = scale_by(tau, given)
    assert coefficients(scaled, tau) == wanted
    text = f"base + scale_by(tuned - base, {given!r})"
    edited = parse(text, names)
    assert edited.node.key == (names["base"] + scaled).node.key == parse(expression(edited.node), names).node.key
    for label, point in names.items():
        point.save(tmp_path / label)
    lets = ["--let", f"base={tmp_path / 'base'}", "--let", f"tuned={tmp_path / 'tuned'}"]
    assert run_cli("edit", text, *lets, "-o", tmp_path / "out")[0] == 0
    assert run_cli("verify", tmp_path / "out")[0] == 0
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f'recipe: 1\nlet:\n  base: {{read: base}}\n  tuned: {{read: tuned}}\noutput: "{text}"\n')
    built = load(recipe).build()
    for n, x in Checkpoint.read(tmp_path / "out").arrays().items():
        np.testing.assert_array_equal(built.array(n), x)
        np.testing.assert_allclose(x, edited.array(n), atol=1e-6)


def test_a_part_that_is_not_there_is_an_error_and_says_what_is(names):
    tau = (names["tuned"] - names["base"]).restrict(["*.mlp.*", "model.norm.weight", "logit_scale"])
    with pytest.raises(UsageError, match=r"'attention' matches none .* mlp \(2\), norm \(1\), other \(1\)"):
        scale_by(tau, {"attention": 0.5})
    with pytest.raises(UsageError, match="Did you mean 'attention'"):
        scale_by(tau, {"atention": 0.5})
    with pytest.raises(UsageError, match="no numbered blocks"):
        scale_by(names["tuned"] - names["base"], {"head": [0, 1]})


def test_a_word_that_is_also_a_tensor_is_refused_and_can_be_escaped():
    base = Checkpoint.of({"head": np.zeros(2, np.float32), "lm_head.weight": np.zeros(2, np.float32)}, label="base")
    tau = Checkpoint.of({n: np.ones(2, np.float32) for n in base.names}) - base
    with pytest.raises(UsageError, match=r"has a tensor of that name.*'\[h\]ead'"):
        scale_by(tau, {"head": 0.5})
    found = scale_by(tau, {"[h]ead": 0.5}).arrays()
    assert found["head"][0] == 0.5 and found["lm_head.weight"][0] == 1
    assert patterns(["head"], base.names) == ["[h]ead"]  # what configs of mergekit become
    np.testing.assert_array_equal(tau.restrict("[h]ead").array("head"), np.ones(2))


def test_comparing_by_part(names):
    tau = names["tuned"] - names["base"]
    groups = {g.name: g.norms[0] for g in compare([tau], by="part").groups}
    for p, held in parts(tau.names).items():
        assert groups[p] == pytest.approx(np.sqrt(sum((tau.array(n).astype(float) ** 2).sum() for n in held)), rel=1e-6)
