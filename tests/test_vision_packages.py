"""Models of timm and open_clip, small and with random weights: their parts, their linearisation, and vectors of them.

Runs where both import; a torchvision without its compiled operators is helped along, as no operator of it is used.
"""

from __future__ import annotations

import importlib
import json
import sys

import pytest
import torch
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

import taskvec.models.dual  # noqa: F401  (loads what torch would otherwise warn about)
from taskvec.errors import InputError, MissingExtra, UsageError
from taskvec.models import bind, linearised, tensors
from taskvec.models.images import open_clip_model, timm_model
from taskvec.models.parts import Part
from taskvec.tasks import Split, Task, zero_shot
from taskvec.training import LINEAR_ONLY, TANGENT, TrainSpec, fit, probe
from taskvec.weights import Checkpoint

torch.set_num_threads(1)
pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")]
DECLARED = ("nms", "qnms")  # torchvision registers Python kernels of them when it is imported
# timm's name -> arguments, size of the image, attention weights, and part of one of their names
KNOWN = {
    "vit_tiny_patch16_224": ({"img_size": 32, "depth": 2}, 32, 4, "blocks.1.attn.qkv"),
    "beit_base_patch16_224": ({"img_size": 32, "depth": 1, "embed_dim": 24, "num_heads": 2}, 32, 2, "blocks.0.attn.proj"),
    "eva02_tiny_patch14_224": ({"img_size": 28, "depth": 1}, 28, 2, "blocks.0.attn.qkv"),
    "swin_tiny_patch4_window7_224": (
        {"img_size": 56, "depths": (1, 1), "embed_dim": 24, "num_heads": (1, 2)}, 56, 4, "layers.1.blocks.0.attn.proj",
    ),
    "maxvit_rmlp_pico_rw_256": ({"img_size": 64}, 64, 44, "attn_grid.attn.proj"),
    "xcit_nano_12_p16_224": ({"img_size": 32, "depth": 1}, 32, 10, "blocks.0.attn.qkv"),
    "convnext_atto": ({}, 32, 0, ""),
    "resnet18": ({}, 32, 0, ""),
}  # fmt: skip


@pytest.fixture(scope="module")
def declared():
    """torchvision imports, if it is there at all."""
    try:
        importlib.import_module("torchvision")
    except ImportError:
        pytest.skip("torchvision is not installed")
    except RuntimeError:
        for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for name in DECLARED:
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        try:
            importlib.import_module("torchvision")
        except RuntimeError as error:
            pytest.skip(f"torchvision does not import: {error}")
        yield
        return  # the library holds the operators as long as the tests run
    yield


@pytest.fixture(scope="module")
def timm(declared):
    return pytest.importorskip("timm", reason="timm is not installed")


@pytest.fixture(scope="module")
def open_clip(declared):
    return pytest.importorskip("open_clip", reason="open_clip_torch is not installed")


def made(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().eval()


def pixels(n, size, dtype=torch.float32):
    return torch.randn(n, 3, size, size, dtype=dtype, generator=torch.Generator().manual_seed(0))


def agrees_with_torch(model, names, x):
    """`linearised` gives torch's own forward-mode derivative, of the attention kernel that has one."""
    base, g = {n: p.detach() for n, p in model.named_parameters()}, torch.Generator().manual_seed(1)
    delta = {n: 0.1 * torch.randn(base[n].shape, generator=g, dtype=torch.float64) for n in names}
    full = {n: delta.get(n, torch.zeros_like(t)) for n, t in base.items()}
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            value, along = torch.func.jvp(lambda p: functional_call(model, p, (x,)), (base,), (full,))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    assert along.abs().max() > 1e-6
    torch.testing.assert_close(linearised(bind(model), base, delta, x), value + along, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", KNOWN)
def test_parts_and_linearisation_of_timm(name, timm):
    options, size, count, part = KNOWN[name]
    model = made(lambda: timm.create_model(name, num_classes=0, **options)).double()
    agrees_with_torch(model, [n for n, _ in model.named_parameters()], pixels(2, size, torch.float64))
    if not count:
        with pytest.raises(UsageError, match="no weights of attention projections"):
            LINEAR_ONLY.names(model)
        return
    found, rest = LINEAR_ONLY.names(model), Part("mlp").names(model)
    assert len(found) == count and any(part in n for n in found), found
    assert all(model.get_parameter(n).dim() == 2 and n.endswith("weight") for n in found)
    assert not set(found) & set(rest) and all("mlp" in n for n in rest), rest
    agrees_with_torch(model, found, pixels(2, size, torch.float64))


CLIP = {
    "embed_dim": 16, "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}  # fmt: skip


@pytest.fixture(scope="module")
def clip_folder(open_clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "clip"
    Checkpoint.of(made(lambda: open_clip.CLIP(**CLIP))).save(folder)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": CLIP, "preprocess_cfg": {}}))
    return folder


def bright_and_dark(head, size):
    labels = torch.arange(32) % 2
    split = Split(0.3 * pixels(32, size) + labels[:, None, None, None], labels)
    return Task("bright", split, split, split, head, ("dark", "bright"))


def test_open_clip(open_clip, clip_folder, tmp_path):
    """Parts as in the authors' code, torch's derivative, and vectors that apply to the whole model."""
    encoder, base, encode = open_clip_model(clip_folder)
    whole = open_clip.create_model(f"local-dir:{clip_folder}").eval()
    x, texts = pixels(3, 32), ["a dark photo", "a bright photo"]
    with torch.no_grad():
        torch.testing.assert_close(bind(encoder)(tensors(base), x), whole.encode_image(x))
        ids = open_clip.get_tokenizer(f"local-dir:{clip_folder}")(texts)
        torch.testing.assert_close(encode(texts), whole.encode_text(ids))
    found = LINEAR_ONLY.names(encoder)
    assert found == [
        f"visual.transformer.resblocks.{i}.attn.{n}" for i in range(2) for n in ("in_proj_weight", "out_proj.weight")
    ]
    assert Part("mlp").names(encoder) == [
        f"visual.transformer.resblocks.{i}.mlp.{n}.weight" for i in range(2) for n in ("c_fc", "c_proj")
    ]
    task = bright_and_dark(zero_shot(encode, ["dark", "bright"]), 32)
    for regime in (LINEAR_ONLY, TANGENT):
        fitted = fit(encoder, base, task, regime=regime, spec=TrainSpec(steps=10, lr=1e-3, batch=16))
        assert fitted.losses[-1] < fitted.losses[0]
        edited = (Checkpoint.read(clip_folder) + fitted.vector).save(tmp_path / regime.name)
        (edited / "open_clip_config.json").write_text((clip_folder / "open_clip_config.json").read_text())
        loaded = open_clip.create_model(f"local-dir:{edited}").eval()
        with torch.no_grad():
            torch.testing.assert_close(loaded.encode_image(x), bind(encoder)(tensors(base + fitted.vector), x))
    model = encoder.double()
    for names in ([n for n, _ in model.named_parameters()], found):
        agrees_with_torch(model, names, x.double())


def test_a_folder_of_timm(timm, tmp_path):
    model = made(lambda: timm.create_model("resnet10t", num_classes=7))
    timm.models.save_for_hf(model, tmp_path / "resnet", safe_serialization=True)
    encoder, base = timm_model(tmp_path / "resnet")
    x = pixels(2, 32)
    with torch.no_grad():
        torch.testing.assert_close(encoder(x), model.forward_head(model.forward_features(x), pre_logits=True))
    assert not any(n.startswith("fc.") for n in base.names) and "bn1.running_mean" in base.names
    task = bright_and_dark(None, 32)
    task = task.with_head(probe(encoder, base, task))
    vector = fit(encoder, base, task, regime=TANGENT, spec=TrainSpec(steps=3, lr=1e-3, batch=16)).vector
    assert vector.norm() > 0 and not any("running" in n for n in vector.names)
    edited = Checkpoint.read(tmp_path / "resnet") + vector
    assert edited.array("fc.weight").shape == (7, 512)
    (tmp_path / "empty").mkdir()
    for load in (timm_model, open_clip_model):
        with pytest.raises(InputError, match="does not load"):
            load(tmp_path / "empty")


@pytest.mark.parametrize(
    ("load", "module", "package"), [(timm_model, "timm", "timm"), (open_clip_model, "open_clip", "open_clip_torch")]
)
def test_absence_is_said(load, module, package, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=f"pip install {package}$"):
        load(tmp_path)
