"""Image encoders from folders, and `taskvec fit` on a folder of images; tiny models with random weights."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from taskvec.errors import InputError, KeyMismatch
from taskvec.models import bind, linearised, tensors
from taskvec.models.encoders import encoder
from taskvec.models.hub import filed, opened
from taskvec.models.preprocess import CLIP, Preprocess
from taskvec.tasks import Head
from taskvec.training import LINEAR_ONLY
from taskvec.weights import Checkpoint, TaskVector

transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra: hf)")
Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed (extra: images)")
torch.set_num_threads(1)

SQUARE = {"size": {"height": 8, "width": 8}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3, "resample": 2}
TOWER = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "image_size": 8,
    "patch_size": 4,
}  # fmt: skip
STAGES = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "patch_size": 2, "image_size": 8}
# transformers class -> its config, and where its features are
KNOWN = {
    "ViT": (TOWER, lambda out: out.last_hidden_state[:, 0]),
    "DeiT": (TOWER, lambda out: out.last_hidden_state[:, 0]),
    "ViTMAE": ({**TOWER, "mask_ratio": 0.0}, lambda out: out.last_hidden_state[:, 0]),
    "Dinov2": (TOWER, lambda out: out.pooler_output),
    "Dinov2WithRegisters": (TOWER, lambda out: out.pooler_output),
    "Beit": ({**TOWER, "use_relative_position_bias": True}, lambda out: out.pooler_output),
    "ConvNext": (STAGES, lambda out: out.pooler_output),
    "ConvNextV2": (STAGES, lambda out: out.pooler_output),
    "Swin": (
        {"image_size": 8, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2},
        lambda out: out.pooler_output,
    ),
    "ResNet": (
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
        lambda out: out.pooler_output.flatten(1),
    ),
}


def build(kind, suffix, path):
    config = getattr(transformers, f"{kind}Config")(**KNOWN[kind][0])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, f"{kind}{suffix}")(config).eval()
        for p in model.parameters():  # some start at zero
            torch.nn.init.normal_(p, std=0.2)
    path.mkdir(exist_ok=True)
    model.save_pretrained(path)
    (path / "preprocessor_config.json").write_text(json.dumps(SQUARE))
    return model


@pytest.mark.parametrize("kind", KNOWN)
def test_features_are_those_of_the_model_and_vectors_apply_to_its_file(kind, tmp_path):
    whole = build(kind, "ForPreTraining" if kind == "ViTMAE" else "ForImageClassification", tmp_path / "model")
    found = encoder(tmp_path / "model")
    assert found.text is None and found.prepare == Preprocess(
        8, std=(0.25,) * 3, mean=(0.5,) * 3, interpolation="bilinear", squash=True
    )
    pixels = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    features = KNOWN[kind][1]

    def of(model):
        body = getattr(model, model.base_model_prefix)
        with torch.no_grad():
            return features(body(pixel_values=pixels))

    start = tensors(found.base, like=found.module)
    expected, before = of(whole), torch.random.get_rng_state()
    with torch.no_grad():
        torch.testing.assert_close(bind(found.module)(start, pixels), expected)
    assert torch.equal(before, torch.random.get_rng_state())

    generator = torch.Generator().manual_seed(1)
    names = {n for n, _ in found.module.named_parameters()}
    delta = {n: 0.05 * torch.randn(t.shape, generator=generator) for n, t in start.items() if n in names}
    vector = TaskVector.of({n: d.numpy() for n, d in delta.items()}, found.base, label="tau")
    written = TaskVector.read(filed(vector, found.base).save(tmp_path / "tau.safetensors"))
    edited = (Checkpoint.read(tmp_path / "model") + written).save(tmp_path / "edited")
    again = type(whole).from_pretrained(edited).eval()
    with torch.no_grad():
        expected = bind(found.module)(tensors(found.base + vector), pixels)
        assert (expected - of(whole)).abs().max() > 1e-3
        torch.testing.assert_close(of(again), expected, rtol=1e-4, atol=1e-5)
    back = opened(written, found.base)
    assert all(np.array_equal(back.array(n), vector.array(n)) for n in vector.names)
    f = bind(found.module)
    small = {n: 1e-3 * d for n, d in delta.items()}
    changed = {n: t + small.get(n, 0) for n, t in start.items()}
    with torch.no_grad():
        torch.testing.assert_close(linearised(f, start, small, pixels), f(changed, pixels), rtol=1e-2, atol=1e-3)


def test_attention_is_found_in_an_encoder(tmp_path):
    build("ViT", "Model", tmp_path)
    assert len(LINEAR_ONLY.names(encoder(tmp_path).module)) == 8


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"size": 6}, {"size": 6, "squash": True}),
        ({"size": {"shortest_edge": 9}, "do_center_crop": True, "crop_size": {"height": 6, "width": 6}}, {"size": 6, "shorter": 9}),
        ({"size": {"shortest_edge": 6}, "do_center_crop": True, "crop_size": 6, "resample": 3}, {"size": 6, "shorter": 6, "interpolation": "bicubic"}),
        ({"size": {"shortest_edge": 200}, "crop_pct": 0.875}, {"size": 200, "shorter": 228}),
        ({"size": {"shortest_edge": 384}, "crop_pct": 0.875}, {"size": 384, "squash": True}),
        ({"size": {"height": 6, "width": 6}, "do_normalize": False}, {"size": 6, "squash": True, "mean": (0.0,), "std": (1.0,)}),
    ],
)  # fmt: skip
def test_how_images_are_prepared_is_read(said, expected, tmp_path):
    build("ViT", "Model", tmp_path)
    whole = {"image_mean": [0.4] * 3, "image_std": [0.2] * 3, "resample": 2, **said}
    for name, text in (
        ("preprocessor_config.json", whole),
        ("processor_config.json", {"image_processor": whole}),
    ):
        (tmp_path / "preprocessor_config.json").unlink(missing_ok=True)
        (tmp_path / name).write_text(json.dumps(text))
        default = {"mean": (0.4,) * 3, "std": (0.2,) * 3, "interpolation": "bilinear"}
        assert encoder(tmp_path).prepare == Preprocess(**{**default, **expected})


def test_what_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no config\.json"):
        encoder(tmp_path)
    for config, says in (
        ({"model_type": "bert"}, "model_type 'bert'"),
        ({"taskvec": "large_vit"}, "'large_vit'"),
        ([], "expected an object"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(InputError, match=says):
            encoder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        encoder(tmp_path)
    whole = tmp_path / "whole"
    build("ViT", "Model", whole)
    for wrong, says in (
        ({"size": {"height": 8, "width": 9}}, "square"),
        ({"rescale_factor": 1.0}, "rescale_factor"),
        ({"resample": 17}, "resample"),
        ({"image_std": [0, 0, 0]}, "above 0"),
    ):
        (whole / "preprocessor_config.json").write_text(json.dumps({**SQUARE, **wrong}))
        with pytest.raises(InputError, match=says):
            encoder(whole)
    (whole / "preprocessor_config.json").unlink()
    with pytest.raises(InputError, match="was published"):
        encoder(whole)
    (whole / "preprocessor_config.json").write_text(json.dumps(SQUARE))
    weights = Checkpoint.read(whole)
    cut = weights.restrict([n for n in weights.names if ".layer.1." not in n]).save(tmp_path / "cut")
    for name in ("config.json", "preprocessor_config.json"):
        (cut / name).write_text((whole / name).read_text())
    with pytest.raises(KeyMismatch, match="would be random"):
        encoder(cut)


# --- the command line


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Dark and bright pictures."""
    root, rng = tmp_path_factory.mktemp("data") / "light", np.random.default_rng(0)
    for part, n in (("train", 40), ("test", 10)):
        for name, low in (("dark", 0), ("very_bright", 150)):
            (root / part / name).mkdir(parents=True)
            for i in range(n):
                Image.fromarray(rng.integers(low, low + 100, (9, 9, 3), dtype=np.uint8)).save(
                    root / part / name / f"{i}.png"
                )
    return root


def quick(*more):
    return ["--steps", 20, "--batch", 16, "--lr", "3e-3", *more]


@pytest.mark.parametrize("head", ["zero-shot", "probe"])
def test_clip_learns_from_a_folder(head, clip_folder, shapes, tmp_path, run_cli):
    (clip_folder / "preprocessor_config.json").write_text(
        json.dumps({"size": {"shortest_edge": 8}, "image_mean": CLIP.mean, "image_std": CLIP.std, "resample": 3})
    )
    out = tmp_path / "tau.safetensors"
    more = ["--head", "probe"] if head == "probe" else []
    code, said, err = run_cli("fit", clip_folder, shapes, "-o", out, "--limit", 48, *quick("--json", *more))
    assert code == 0, err
    facts = json.loads(said)
    assert facts["classes"] == ["dark", "very bright"] and facts["samples"] == {"train": 48, "validation": 8}
    assert facts["loss"]["last"] < facts["loss"]["first"]
    assert "training: 48 of 72 samples" in err and ("zero-shot head" in err) == (head == "zero-shot")
    assert Head.read(tmp_path / "tau.head.safetensors").normalise == (head == "zero-shot")
    assert (Checkpoint.read(clip_folder) + TaskVector.read(out)).save(tmp_path / "edited").is_dir()


def test_a_vision_transformer_learns_and_its_vector_applies_to_the_folder(shapes, tmp_path, run_cli):
    (tmp_path / "vit").mkdir()
    build("ViT", "ForImageClassification", tmp_path / "vit")
    out = tmp_path / "tau.safetensors"
    code, _, err = run_cli("fit", tmp_path / "vit", shapes, "-o", out, *quick("--regime", "linear-only"))
    assert code == 0 and "probing a head of 2 classes on the base (72 images)" in err, err
    assert all(n.startswith("vit.encoder.layer.") for n in TaskVector.read(out).names)
    edit = [
        "edit",
        "base + 0.5 * tau",
        "--let",
        f"base={tmp_path / 'vit'}",
        "--let",
        f"tau={out}",
        "-o",
        tmp_path / "edited",
    ]
    assert run_cli(*edit)[0] == 0
    changed = encoder(tmp_path / "edited")
    assert (
        sum(not np.array_equal(changed.base.array(n), x) for n, x in encoder(tmp_path / "vit").base.arrays().items())
        == 8
    )


def test_what_the_command_refuses(shapes, tmp_path, run_cli, clip_folder):
    out = ["-o", tmp_path / "tau.safetensors"]
    code, _, err = run_cli("fit", tmp_path, shapes, *out)
    assert code == 3 and "no config.json" in err
    code, _, err = run_cli("fit", clip_folder, shapes, *out, "--set", "minst")
    assert code == 2 and "Did you mean 'mnist'" in err
    code, _, err = run_cli("fit", clip_folder, tmp_path / "a.csv", *out, "--limit", 5)
    assert code == 2 and "for a folder of images" in err
    (shapes / "train/dark/broken.png").write_bytes(b"")
    code, _, err = run_cli("fit", clip_folder, shapes, *out)
    assert code == 3 and "broken.png" in err and not out[1].exists()
    assert run_cli("fit", clip_folder, shapes, *out, *quick("--skip-corrupt"))[0] == 0
