"""Pre-training from nothing, and small vision transformers as folders."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from taskvec.errors import InputError, KeyMismatch, NonFinite, StorageError, UnknownName, UsageError
from taskvec.models import bind, tensors
from taskvec.models.small import read_small_vit, save_small_vit
from taskvec.models.vit import VisionTransformer, small_vit
from taskvec.tasks import Split, Task
from taskvec.tasks.vision import jitter
from taskvec.training import TrainSpec
from taskvec.training.objectives import PRETRAININGS, masked, patches_of, self_distilled, windows
from taskvec.training.pretraining import divided, jointly, pretrain
from taskvec.weights import Checkpoint

torch.set_num_threads(1)
WAYS = tuple(PRETRAININGS)
SPEC = TrainSpec(steps=40, lr=3e-3, batch=32)
views = functools.partial(jitter, border="border", brightness=0.1, colour=0.1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def vit(**sizes: Any) -> VisionTransformer:
    made: dict[str, Any] = {"image": 16, "channels": 3, "patch": 4, "width": 32, "depth": 2, "heads": 2} | sizes
    return small_vit(**made, generator=generator())


def waves_of(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Vertical, horizontal and diagonal waves in turn, uint8 ``[n, 16, 16]``, and which."""
    at = np.arange(16) / 16 * 2 * 2 * np.pi
    labels = np.arange(n) % 3
    kinds = np.stack([np.broadcast_to(at, (16, 16)), np.broadcast_to(at[:, None], (16, 16)), at + at[:, None]])
    phase = 2 * np.pi * np.random.default_rng(1).random((n, 1, 1))
    return np.round(127.5 + 127.5 * np.sin(kinds[labels] + phase)).astype(np.uint8), labels


@pytest.fixture(scope="module")
def stripes():
    """Three kinds of images: vertical, horizontal and diagonal waves of random phase and colour; 96 of 16 x 16 pixels."""
    grey, labels = waves_of(96)
    x = torch.from_numpy(grey).float() / 127.5 - 1
    return x[:, None] * (0.5 + torch.rand(96, 3, 1, 1, generator=generator(2))), torch.from_numpy(labels)


def made(stripes, how, *, seed=0, **changes):
    spec = TrainSpec(**({"steps": SPEC.steps, "lr": SPEC.lr, "batch": SPEC.batch, "seed": seed} | changes))
    return pretrain(vit(), stripes[0], how=how, labels=stripes[1], spec=spec, augment=views)


@pytest.mark.parametrize("how", WAYS)
def test_each_way_lowers_its_loss_and_is_the_same_again(stripes, how):
    state = torch.get_rng_state()
    first = made(stripes, how)
    assert sum(first.losses[-8:]) < 0.95 * sum(first.losses[:8])
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)  # whatever the global generator says
    again = made(stripes, how)
    assert again.losses == first.losses
    assert again.checkpoint.fingerprint() == first.checkpoint.fingerprint()
    other = made(stripes, how, seed=1, steps=2)
    assert other.losses[0] != first.losses[0]


def test_the_model_given_is_not_changed(stripes):
    model = vit()
    before = Checkpoint.of(model).fingerprint()
    pretrain(model, stripes[0], how="masked", spec=TrainSpec(steps=2, batch=32))
    assert Checkpoint.of(model).fingerprint() == before
    assert all(p.requires_grad for p in model.parameters())


def test_self_distillation_does_not_collapse(stripes):
    tuned = made(stripes, "self-distilled", steps=80)
    with torch.no_grad():
        features = torch.nn.functional.normalize(bind(vit())(tensors(tuned.checkpoint), stripes[0]), dim=1)
        start = torch.nn.functional.normalize(vit()(stripes[0]), dim=1)
    assert (features @ features.T).mean() < (start @ start.T).mean() - 0.1


def test_hidden_patches_do_not_reach_the_encoder():
    model, x = vit(), torch.randn(4, 3, 16, 16, generator=generator())
    kept = torch.tensor([[0, 5, 7], [1, 2, 3], [15, 14, 0], [8, 9, 4]])
    seen = torch.zeros(4, 16, dtype=torch.bool).scatter(1, kept, True).reshape(4, 1, 4, 4)
    seen = seen.repeat_interleave(4, 2).repeat_interleave(4, 3)
    other = torch.where(seen, x, 7 * torch.randn(x.shape, generator=generator(1)))
    with torch.no_grad():
        assert torch.equal(model.tokens(x, kept), model.tokens(other, kept))
        assert not torch.allclose(model.tokens(x), model.tokens(other))
        # Changing what is seen does change it, and seeing everything in order is the ordinary pass.
        assert not torch.allclose(model.tokens(x, kept), model.tokens(x + 1, kept))
        all_of_them = torch.arange(16).expand(4, 16)
        torch.testing.assert_close(model.tokens(x, all_of_them), model.tokens(x))


def test_the_masked_loss_is_of_hidden_patches_only():
    """Against a transcription that puts the decoder's input together patch by patch."""
    model, x = vit(), torch.randn(5, 3, 16, 16, generator=generator())
    objective = masked(model, x[:1], 0, generator(2))
    loss = objective.loss([x], None, generator(3))
    order = torch.rand(5, 16, generator=generator(3)).argsort(1)
    d = objective.parts
    wanted = patches_of(x, 4)
    total = 0.0
    for i in range(5):
        kept = order[i, :4]
        tokens = d["embed"](model.tokens(x[i : i + 1], kept[None]))[0]
        rows = [tokens[0]] + [d.hidden[0, 0]] * 16
        for k, patch in enumerate(kept.tolist()):
            rows[1 + patch] = tokens[1 + k]
        out = d["pixels"](d["norm"](d["blocks"](torch.stack(rows)[None] + d.position)))[0, 1:]
        for patch in order[i, 4:].tolist():
            p = wanted[i, patch]
            total = total + ((out[patch] - (p - p.mean()) / (p.var() + 1e-4).sqrt()) ** 2).mean() / (5 * 12)
    torch.testing.assert_close(loss, total)


def test_patches_are_cut_as_the_model_cuts_them():
    model, x = vit(), torch.randn(2, 3, 16, 16, generator=generator())
    weight = model.patch_embed.proj.weight.flatten(1)
    torch.testing.assert_close(patches_of(x, 4) @ weight.T + model.patch_embed.proj.bias, model.patch_embed(x))


def test_windows_are_squares_of_patches():
    found = windows(50, 4, 0.5, generator())
    assert found.shape == (50, 4)
    corners = {tuple(row.tolist()) for row in found}
    assert corners == {(a, a + 1, a + 4, a + 5) for r in range(3) for a in range(4 * r, 4 * r + 3)}


def test_the_teacher_follows_without_gradient(stripes):
    model = vit()
    objective = self_distilled(model, stripes[0][:1], 0, generator(), momentum=0.5)
    x = stripes[0][:8]
    before = objective.loss([x, x.flip(3)], None, generator())
    before.backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all() for p in (*model.parameters(), *objective.parts.parameters())
    )
    # Moving the student moves the loss; the teacher, which did not move, then follows and moves it again.
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator(5)))
    moved = [float(objective.loss([x, x.flip(3)], None, generator()).detach())]
    objective.after(0.0)
    moved.append(float(objective.loss([x, x.flip(3)], None, generator()).detach()))
    assert len({float(before.detach()), *moved}) == 3


def test_what_cannot_be_pretrained_is_refused(stripes):
    x, y = stripes
    with pytest.raises(UnknownName, match="'masked'"):
        pretrain(vit(), x, how="maskd", spec=SPEC)
    with pytest.raises(UsageError, match="needs labels"):
        pretrain(vit(), x, how="supervised", spec=SPEC)
    with pytest.raises(UsageError, match=r"shape \[96\]"):
        pretrain(vit(), x, labels=y[:5], spec=SPEC)
    with pytest.raises(UsageError, match="needs augment"):
        pretrain(vit(), x, how="contrastive", spec=SPEC)
    with pytest.raises(UsageError, match="fewer than a batch"):
        pretrain(vit(), x, how="masked", spec=TrainSpec(batch=97))
    with pytest.raises(UsageError, match="takes a model of small_vit"):
        pretrain(torch.nn.Flatten(), x, how="masked", spec=SPEC)
    with pytest.raises(UsageError, match="leaves 0 to see"):
        pretrain(vit(), x, how=functools.partial(masked, share=1.0), spec=SPEC)
    with pytest.raises(NonFinite, match="step 1 of"):
        pretrain(vit(), x * float("nan"), how="masked", spec=SPEC)
    with pytest.raises(UsageError, match="pool is 'max'"):
        vit(pool="max")
    with pytest.raises(UsageError, match="depth"):
        vit(depth=0)


def numbered(n: int, classes: int, start: int = 0) -> Task:
    x = torch.arange(start, start + n).float()[:, None]
    split = Split(x, torch.arange(n) % classes)
    return Task(
        f"from {start}",
        split,
        Split(x + 1000, split.labels),
        Split(x + 2000, split.labels),
        None,
        tuple("abcdef"[:classes]),
    )


def test_a_task_divides_into_disjoint_parts():
    task = numbered(101, 3)
    first, second = divided(task, share=0.4, seed=3)
    a, b = (set(t.train.inputs[:, 0].tolist()) for t in (first, second))
    assert len(a) == 40 and len(b) == 61 and not a & b
    assert a | b == set(range(101))
    assert all(torch.equal(t.train.labels, t.train.inputs[:, 0].long() % 3) for t in (first, second))
    assert first.test is task.test and second.validation is task.validation
    again, other = divided(task, share=0.4, seed=3)[0], divided(task, share=0.4, seed=4)[0]
    assert torch.equal(again.train.inputs, first.train.inputs) and not torch.equal(
        other.train.inputs, first.train.inputs
    )
    for share in (0.0, 1.0, 0.001):
        with pytest.raises(UsageError, match="share"):
            divided(task, share=share)


def test_several_tasks_have_their_labels_one_after_another():
    inputs, labels, classes = jointly([numbered(7, 2), numbered(5, 3, 100)])
    assert inputs[:, 0].tolist() == [*range(7), *range(100, 105)]
    assert labels.tolist() == [0, 1, 0, 1, 0, 1, 0, 2, 3, 4, 2, 3]
    assert classes == ("from 0: a", "from 0: b", "from 100: a", "from 100: b", "from 100: c")
    with pytest.raises(UsageError, match="no tasks"):
        jointly([])


@pytest.fixture
def folder(tmp_path):
    model = vit(pool="mean", mlp_ratio=1.5)
    said = {"how": "masked", "steps": 3}
    return save_small_vit(
        tmp_path / "base", model, Checkpoint.of(model), mean=[0.5, 0.25, 0.0], std=[1.0, 2.0, 0.5], pretraining=said
    )


def test_a_folder_gives_model_weights_and_preparation_back(folder):
    state = torch.get_rng_state()
    model, base, config = read_small_vit(folder)
    assert torch.equal(torch.get_rng_state(), state)
    x = torch.randn(3, 3, 16, 16, generator=generator())
    with torch.no_grad():
        assert torch.equal(model(x), vit(pool="mean", mlp_ratio=1.5)(x))
        assert torch.equal(bind(model)(tensors(base, like=model), x), model(x))
    assert (config["mean"], config["std"]) == ([0.5, 0.25, 0.0], [1.0, 2.0, 0.5])
    assert config["image"] == 16 and config["channels"] == 3 and config["pretraining"] == {"how": "masked", "steps": 3}
    assert base.label == "base" and config["taskvec"] == "small_vit"


def test_an_existing_folder_is_refused_and_replaced_whole_if_asked(folder, untouched):
    check = untouched(folder)
    model = vit()
    with pytest.raises(StorageError, match="exists"):
        save_small_vit(folder, model, Checkpoint.of(model))
    with pytest.raises(KeyMismatch, match="does not fit"):
        save_small_vit(folder, vit(width=16), Checkpoint.of(model), overwrite=True)
    with pytest.raises(UsageError, match="std must be"):
        save_small_vit(folder, model, Checkpoint.of(model), std=[1.0], overwrite=True)
    check()
    save_small_vit(folder, model, Checkpoint.of(model), overwrite=True)
    assert read_small_vit(folder)[2]["pool"] == "class"
    with pytest.raises(UsageError, match="is a folder"):
        save_small_vit(folder.parent / "base.safetensors", model, Checkpoint.of(model))


def test_an_edited_folder_opens_too(folder, run_cli):
    _, base, config = read_small_vit(folder)
    tuned = Checkpoint.of({n: a + 0.5 for n, a in base.arrays().items()}, label="tuned")
    (tuned - base).save(folder.parent / "tau.safetensors")
    out = folder.parent / "edited"
    code, _, err = run_cli(
        "edit",
        "base + 0.5 * tau",
        "--let",
        f"base={folder}",
        "--let",
        f"tau={folder.parent / 'tau.safetensors'}",
        "-o",
        out,
    )
    assert code == 0, err
    model, edited, same = read_small_vit(out)
    assert same == config
    assert abs(float(model.norm.bias.detach().mean()) - 0.25) < 1e-6
    assert edited.names == base.names


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "no config.json"),
        ("{", "not JSON"),
        ("[" * 100000, "not JSON"),
        ("[1]", "not of a small_vit"),
        ('{"model_type": "bert"}', "got 'bert'"),
        ({"width": 0}, "width must be a whole number"),
        ({"image": 10**12}, "image must be a whole number"),
        ({"depth": True}, "depth must be"),
        ({"depth": 60000}, "depth 60000"),
        ({"heads": 5}, "width of heads"),
        ({"pool": "max"}, "pool must be"),
        ({"mlp_ratio": None}, "mlp_ratio"),
        ({"std": [1.0, 0.0, 1.0]}, "std must be above 0"),
        ({"mean": [1.0]}, "mean must be 3 numbers"),
        ({"mean": "abc"}, "mean must be 3 numbers"),
        ({"width": 64}, "does not fit"),
    ],
)
def test_damaged_folders_are_errors_that_say_what_is_wrong(folder, change, message):
    path = folder / "config.json"
    if change is None:
        path.unlink()
    elif isinstance(change, str):
        path.write_text(change)
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message):
        read_small_vit(folder)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="is not a folder"):
        read_small_vit(tmp_path / "nowhere")


@pytest.fixture
def waves(tmp_path):
    """Two sets as npz files, grey, 16 x 16 pixels, 60 training and 12 test images each."""
    x, y = waves_of(72)
    for name, picture in (("waves", x), ("faint", x // 3)):
        (tmp_path / name).mkdir()
        np.savez(
            tmp_path / name / f"{name}.npz", x_train=picture[:60], y_train=y[:60], x_test=picture[60:], y_test=y[60:]
        )
    return tmp_path / "waves", tmp_path / "faint"


def test_the_command_writes_a_folder_that_says_how_it_was_made(waves, run_cli):
    pytest.importorskip("PIL", reason="Pillow is not installed")
    pytest.importorskip("taskvec.tasks.images", reason="this version reads no image sets")
    out = waves[0].parent / "base"
    small = ["--size", 16, "--channels", "1", "--patch", 4, "--width", 16, "--depth", 1, "--batch", 16, "--steps", 12]
    code, said, err = run_cli("pretrain", *waves, "--how", "supervised", *small, "--share", 0.6, "-o", out, "--json")
    assert code == 0, err
    facts = json.loads(said)
    model, _, config = read_small_vit(out)
    assert (config["image"], config["channels"], config["mean"], config["std"]) == (16, 1, [0.5], [0.5])
    assert config["pretraining"]["data"] == ["waves", "faint"] and config["pretraining"]["how"] == "supervised"
    assert config["pretraining"]["samples"] == 2 * 32  # 0.6 of 54, as 6 of 60 validate
    assert model(torch.zeros(2, 1, 16, 16)).shape == (2, 16)
    assert json.dumps(facts).count('"low"') == 2 and str(out.parent) not in json.dumps(config)
    code, _, err = run_cli("pretrain", *waves, *small, "-o", out)
    assert code == 2 and "exists" in err
    code, said, err = run_cli("pretrain", *waves, "--how", "random", *small, "-o", out, "--overwrite")
    assert code == 0 and "random" in said and "n 6 (validation)" in said, err
    code, _, err = run_cli("pretrain", *waves, "--how", "mask", "-o", out.parent / "other")
    assert code == 2 and "'masked'" in err


def test_the_example_of_the_documentation_runs(tmp_path, monkeypatch):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed (extra: eval)")
    text = (Path(__file__).parents[1] / "docs/pretraining.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for code in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(compile(code, "pretraining.md", "exec"), {})
    assert (tmp_path / "base" / "config.json").exists()
