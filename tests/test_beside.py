"""What lies beside weights comes along, so that an output loads as its inputs did: transformers, timm, open_clip."""

import json
from pathlib import Path

import numpy as np
import pytest

from taskvec.weights import Checkpoint


def edited(folder, out, **how):
    """The folder's own weights, half of each."""
    base = Checkpoint.read(folder)
    half = Checkpoint.of({n: (w / 2).astype(w.dtype) for n, w in base.arrays().items()}, label="half")
    (base + 1.0 * (half - base)).save(out, **how)
    return out


def beside(folder):
    kept = ("taskvec.json", ".safetensors")
    return {
        f.relative_to(folder).as_posix(): f.read_bytes()
        for f in folder.rglob("*")
        if f.is_file() and not f.name.endswith(kept)
    }


def processor_and_model(folder):
    """A tiny Llama with all that can lie beside one: tokenizer, chat templates, settings of a processor, a licence."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra: hf)")
    from tokenizers import Tokenizer, models, pre_tokenizers

    inner = Tokenizer(models.WordLevel({"<unk>": 0, "<pad>": 1, "<image>": 2, "a": 3, "cat": 4}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", pad_token="<pad>")
    tokenizer.chat_template = {"default": "{{ messages }}", "tools": "{{ tools }}"}
    text = transformers.LlamaConfig(
        vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    model = transformers.LlamaForCausalLM(text)
    model.generation_config.max_new_tokens = 7
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 8}, "crop_size": 8})
    )
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "LlavaProcessor", "patch_size": 4}))
    (folder / "LICENSE").write_text("as the base")
    return transformers


def test_a_transformers_folder_keeps_its_processor_templates_and_generation_settings(tmp_path):
    folder = tmp_path / "in"
    transformers = processor_and_model(folder)
    out = edited(folder, tmp_path / "out")
    assert beside(out) == beside(folder)
    assert any(n.endswith(".jinja") for n in beside(out))
    tokenizer = transformers.AutoTokenizer.from_pretrained(out, local_files_only=True)
    assert tokenizer.chat_template == {"default": "{{ messages }}", "tools": "{{ tools }}"}
    model = transformers.AutoModelForCausalLM.from_pretrained(out, local_files_only=True)
    assert model.generation_config.max_new_tokens == 7
    start = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    for a, b in zip(model.parameters(), start.parameters(), strict=True):
        assert np.allclose(a.detach().numpy(), b.detach().numpy() / 2)


def test_an_open_clip_folder_keeps_the_name_that_open_clip_looks_for(tmp_path):
    clip = tmp_path / "clip"
    weights = {"visual.proj": np.ones((2, 2), np.float32), "logit_scale": np.asarray(1.0, np.float32)}
    Checkpoint.of(weights).save(clip / "open_clip_model.safetensors")
    (clip / "open_clip_config.json").write_text(json.dumps({"model_cfg": {}, "preprocess_cfg": {}}))
    out = edited(clip, tmp_path / "out", card=True)
    assert sorted(p.name for p in out.iterdir()) == [
        "README.md", "open_clip_config.json", "open_clip_model.safetensors", "taskvec.json",
    ]  # fmt: skip
    assert "library_name: open_clip" in (out / "README.md").read_text()
    assert Checkpoint.read(edited(out, tmp_path / "again")).array("logit_scale") == 0.25
    # Many repositories hold the same model for transformers too: its weights are not those that the config describes.
    Checkpoint.of({"vision_model.proj": np.ones(2, np.float32)}).save(clip / "model.safetensors")
    (clip / "config.json").write_text(json.dumps({"model_type": "clip"}))
    both = edited(clip, tmp_path / "both", card=True)
    assert {p.name for p in both.iterdir()} == {"README.md", "config.json", "model.safetensors", "taskvec.json"}
    assert "library_name: transformers" in (both / "README.md").read_text()


def test_a_timm_folder_keeps_its_config(tmp_path):
    folder = tmp_path / "in"
    Checkpoint.of({"head.weight": np.ones((3, 2), np.float32)}).save(folder)
    (folder / "taskvec.json").unlink()
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 3, "pretrained_cfg": {"input_size": [3, 32, 32]}}
    (folder / "config.json").write_text(json.dumps(config))
    out = edited(folder, tmp_path / "out", card=True)
    assert json.loads((out / "config.json").read_text()) == config
    assert "library_name: timm" in (out / "README.md").read_text()


def test_links_in_a_cache_are_followed_and_nothing_else_is_opened(tmp_path):
    """Templates have names of their own; one that leads elsewhere by its name is no template."""
    folder = tmp_path / "in"
    Checkpoint.of({"w": np.ones(2, np.float32)}).save(folder)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("{{ documents }}")
    (folder / "additional_chat_templates" / "notes.txt").write_text("no template")
    found = beside(edited(folder, tmp_path / "out"))
    assert set(found) == {str(Path("additional_chat_templates") / "rag.jinja")}
