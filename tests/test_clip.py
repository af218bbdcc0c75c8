"""CLIP through transformers: image encoder, text encoder, zero-shot heads; a tiny model with random weights."""

from __future__ import annotations

import pytest
import torch

from taskvec.errors import InputError, UsageError
from taskvec.models import bind, linearised, tensors
from taskvec.models.hub import clip
from taskvec.tasks import Head, Split, Task, accuracy, zero_shot
from taskvec.training import LINEAR_ONLY, TANGENT, TrainSpec, fit
from taskvec.weights import Checkpoint

transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra: hf)")
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(clip_folder):
    return clip_folder


def test_zero_shot_logits_are_those_of_the_model(folder):
    encoder, base, encode = clip(folder)
    whole = transformers.CLIPModel.from_pretrained(folder).eval()
    pixels = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    head = zero_shot(encode, ["cat", "dog", "car"], templates=["a {}."], scale=whole.logit_scale.exp().item())
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(
        ["a cat.", "a dog.", "a car."], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        expected = whole(pixel_values=pixels, **tokens).logits_per_image
        found = head(bind(encoder)(tensors(base), pixels))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    many = zero_shot(encode, ["cat", "dog"], templates=["a {}.", "the {}.", "{}"])
    assert torch.allclose(many.weight.norm(dim=1), torch.full((2,), 100.0))


def test_a_vector_of_the_image_encoder_applies_to_the_whole_model(folder, tmp_path):
    encoder, base, encode = clip(folder)
    g = torch.Generator().manual_seed(1)
    labels = torch.randint(2, (64,), generator=g)
    pixels = torch.rand(64, 3, 8, 8, generator=g) + labels[:, None, None, None]
    split = Split(pixels, labels)
    task = Task("bright", split, split, split, zero_shot(encode, ["dark", "bright"]), ("dark", "bright"))
    spec = TrainSpec(steps=30, lr=3e-3, batch=32)
    for regime in (LINEAR_ONLY, TANGENT):
        made = fit(encoder, base, task, regime=regime, spec=spec)
        assert made.losses[-1] < made.losses[0] and all(
            n.startswith(("vision_model.", "visual_proj")) for n in made.vector.names
        )
        whole = Checkpoint.read(folder)
        edited = (whole + made.vector).save(tmp_path / regime.name)
        loaded = transformers.CLIPModel.from_pretrained(edited).eval()
        with torch.no_grad():
            found = loaded.visual_projection(loaded.vision_model(pixel_values=pixels[:3]).pooler_output)
            expected = bind(encoder)(tensors(base + made.vector), pixels[:3])
        torch.testing.assert_close(found, expected)
    start, delta = tensors(base), tensors(made.vector)
    assert linearised(bind(encoder), start, delta, pixels).shape == (64, 8)
    assert accuracy(bind(encoder), start, split, task.head).n == 64


def test_a_head_remembers_that_it_scales(tmp_path):
    head = Head(torch.eye(3), torch.zeros(3), normalise=True)
    back = Head.read(head.save(tmp_path / "head.safetensors"))
    assert back.normalise and torch.equal(back(torch.tensor([[3.0, 0.0, 4.0]])), torch.tensor([[0.6, 0.0, 0.8]]))
    plain = Head.read(Head(torch.eye(3), torch.zeros(3)).save(tmp_path / "plain.safetensors"))
    assert not plain.normalise


def test_what_is_refused(folder, tmp_path):
    _, _, encode = clip(folder)
    for templates in ([], ["a photo"], ["{} and {}"]):
        with pytest.raises(UsageError, match="templates"):
            zero_shot(encode, ["cat"], templates=templates)
    with pytest.raises(InputError):
        clip(tmp_path / "nothing")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="CLIP"):
        clip(tmp_path)
