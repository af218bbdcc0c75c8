"""Vectors of checkpoints that others fine-tuned; try-outs; training in fewer bits and where memory runs out."""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra: train)")
pytest.importorskip("PIL.Image", reason="Pillow is not installed (extra: images)")

from taskvec.errors import InputError, KeyMismatch, StorageError, TaskvecError, UsageError  # noqa: E402
from taskvec.models.encoders import displacement, encoder  # noqa: E402
from taskvec.models.preprocess import Preprocess  # noqa: E402
from taskvec.models.vit import small_vit  # noqa: E402
from taskvec.results import read_results  # noqa: E402
from taskvec.study import estimate, load, plan, run, tried  # noqa: E402
from taskvec.study.cells import Store, ordered  # noqa: E402
from taskvec.study.data import whole  # noqa: E402
from taskvec.tasks import Head, Split, Task  # noqa: E402
from taskvec.training import LINEAR_ONLY, STANDARD, TANGENT, TrainSpec, fit, pretrain  # noqa: E402
from taskvec.weights import Checkpoint, TaskVector  # noqa: E402

torch.set_num_threads(1)
SQUARE = {"size": {"height": 8, "width": 8}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3, "resample": 2}
STUDY = """
study: 1
name: given
tasks: {{one: {{data: mnist}}, two: {{data: svhn}}, kept: {{data: usps}}}}
bases:
  clip:
    read: {clip}
    finetuned: {{one: {one}, two: {{read: {two}}}}}
heads: zero-shot
regimes: [standard, post-hoc]
protocols:
  addition: {{tasks: [one, two], coefficients: [0, 1, 3], baselines: [joint, ensemble]}}
  negation: {{control: kept, coefficients: [0, 1, 3]}}
"""


@pytest.fixture(scope="module")
def clip(tmp_path_factory, clip_folder):
    path = shutil.copytree(clip_folder, tmp_path_factory.mktemp("given") / "clip")
    (path / "preprocessor_config.json").write_text(json.dumps(SQUARE))
    return path


@pytest.fixture(scope="module")
def tuned(clip, tmp_path_factory):
    """Two checkpoints of it: the vision tower alone, as transformers saves it, and the whole model in half precision."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra: hf)")
    place = tmp_path_factory.mktemp("tuned")
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        tower = transformers.CLIPVisionModel.from_pretrained(str(clip))
        for p in tower.parameters():
            p += 0.1 * torch.randn(p.shape)
        tower.save_pretrained(place / "one")
        model = transformers.CLIPModel.from_pretrained(str(clip))
        for p in model.parameters():
            p += 0.1 * torch.randn(p.shape)
        model.half().save_pretrained(place / "two")
    return place


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    place, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for name in ("mnist", "svhn", "usps"):
        (place / name).mkdir()
        x, y = rng.integers(0, 255, (60, 8, 8, 3)).astype(np.uint8), np.arange(60) % 3
        np.savez(place / name / "images.npz", x_train=x, y_train=y, x_test=x[:9] // 2, y_test=y[:9])
    return place


def test_the_vector_is_fine_tuned_minus_base(clip, tuned):
    base = encoder(clip).base
    file, raw = Checkpoint.read(clip), Checkpoint.read(tuned / "one")
    tower, left = displacement(tuned / "one", base, label="one")
    assert left == ("visual_projection.weight",) and set(tower.names) == set(base.names) - set(left)
    prefix = "" if "vision_model.embeddings.class_embedding" in raw.names else "vision_model."
    for name in tower.names:
        np.testing.assert_array_equal(tower.array(name), raw.array(name.removeprefix(prefix)) - file.array(name))
    both, left = displacement(tuned / "two", base)
    assert left == () and set(both.names) == set(base.names)
    name = "visual_projection.weight"
    there = Checkpoint.read(tuned / "two").array(name).astype(np.float32)
    np.testing.assert_array_equal(both.array(name), there - file.array(name))


@pytest.mark.parametrize("prefix", ["", "module.vision_model."])
def test_prefixes_and_single_files(clip, tuned, tmp_path, prefix):
    base = encoder(clip).base
    whole_tower, _ = displacement(tuned / "one", base)
    raw = Checkpoint.read(tuned / "one")
    named = {prefix + n.removeprefix("vision_model."): torch.from_numpy(raw.array(n)) for n in raw.names}
    torch.save(named, tmp_path / "tower.pt")
    found, _ = displacement(tmp_path / "tower.pt", base)
    assert set(found.names) == set(whole_tower.names)
    assert all(found.array(n).tobytes() == whole_tower.array(n).tobytes() for n in found.names)


def test_what_does_not_fit_is_refused(clip, tuned, tmp_path):
    base, raw = encoder(clip).base, Checkpoint.read(tuned / "two")
    table = raw.arrays()
    name = "vision_model.post_layernorm.weight"
    Checkpoint.of({n: t for n, t in table.items() if n != name}).save(tmp_path / "less.safetensors")
    with pytest.raises(
        KeyMismatch,
        match=r"it is not fine-tuned from clip: of \d+ parameters, 1 do not fit \('vision_model.post_layern",
    ):
        displacement(tmp_path / "less.safetensors", base, label="it")
    Checkpoint.of(table | {name: np.zeros(5, np.float32)}).save(tmp_path / "odd.safetensors")
    with pytest.raises(KeyMismatch, match=r"1 do not fit .* has shape \[16\] in the base and another one here"):
        displacement(tmp_path / "odd.safetensors", base)
    Checkpoint.of({"a": np.zeros(5, np.float32)}).save(tmp_path / "other.safetensors")
    with pytest.raises(KeyMismatch, match="Give a checkpoint of the same architecture"):
        displacement(tmp_path / "other.safetensors", base)


def test_a_classifier_gives_a_vector_of_its_encoder(tmp_path):
    """Names that transformers changes on opening, and the head, are seen to."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra: hf)")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.ViTConfig(**sizes, image_size=8, patch_size=4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "base")
        transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "tuned")
    (tmp_path / "base" / "preprocessor_config.json").write_text(json.dumps(SQUARE))
    base = encoder(tmp_path / "base").base
    vector, left = displacement(tmp_path / "tuned", base)
    assert left == () and set(vector.names) == set(base.names)
    tuned = base + vector
    name = next(n for n in base.names if n.endswith("patch_embeddings.projection.weight"))
    file = Checkpoint.read(tmp_path / "tuned")
    np.testing.assert_allclose(tuned.array(name), file.array(f"vit.{name}"), rtol=1e-6, atol=1e-6)


def test_a_study_of_given_vectors(clip, tuned, root, tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.format(clip=clip, one=tuned / "one", two=tuned / "two"))
    study = load(path)
    kinds = [c.kind for c in ordered(plan(study))]
    assert "fit" not in kinds and "rate" not in kinds and kinds.count("given") == 2  # none for the control
    before = estimate(study, tmp_path / "out", root=root)
    assert all(c.seconds > 0 and not c.done for c in before) and [c.kind for c in before] == kinds
    found = run(study, tmp_path / "out", root=root)
    results = read_results(tmp_path / "out" / "results")
    assert len(found.results) == len(results) == 6  # an addition and two negations, through the model and linearised
    by = {(r.kind, r.provenance.settings["study"]["regime"]): r for r in results}
    assert {k[1] for k in by} == {"given", "post-hoc"}
    rows = [r.name for r in by["addition", "given"].rows]
    assert "joint training" not in rows and "ensemble of logits" in rows  # nothing is trained here
    assert "lr" not in by["addition", "given"].provenance.settings
    assert by["addition", "post-hoc"].provenance.settings["forward"] == "linearised"
    assert "gradient ascent" not in [r.name for r in by["negation", "given"].rows]
    cell = next(c for c in ordered(plan(study)) if c.label == "vector of one on clip, given")
    store = Store(tmp_path / "out" / "cells")
    assert store.outcome(cell)["left"] == ["visual_projection.weight"]
    kept = TaskVector.read(store.place(cell) / "vector.safetensors")
    assert (encoder(clip).base + kept) is not None and kept.norm() > 0
    # Another state of the checkpoint is another vector.
    other = tried(study).model_copy(update={"tryout": False})
    shutil.copytree(tuned / "two", tmp_path / "moved")
    swapped = other.bases["clip"].finetuned["one"].model_copy(update={"read": str(tmp_path / "moved")})
    bases = {
        "clip": other.bases["clip"].model_copy(update={"finetuned": {**other.bases["clip"].finetuned, "one": swapped}})
    }
    assert cell.key not in {c.key for c in ordered(plan(other.model_copy(update={"bases": bases})))}


def test_mistakes_about_given_vectors(clip, tuned, tmp_path):
    text = STUDY.format(clip=clip, one=tuned / "one", two=tuned / "two")

    def said(old, new):
        assert old in text
        (tmp_path / "s.yaml").write_text(text.replace(old, new))
        return plan(load(tmp_path / "s.yaml"))

    with pytest.raises(UsageError, match=r"bases.clip.finetuned: no task 'onne'\. Did you mean 'one'"):
        said("finetuned: {one", "finetuned: {onne")
    with pytest.raises(UsageError, match=r"bases.clip.finetuned has no checkpoint for 'kept'.*it has one, two"):
        said("tasks: [one, two]", "tasks: [one, kept]")
    with pytest.raises(UsageError, match=r"unknown field bases.clip.finetuned.two.rread. Did you mean 'read'"):
        said("{read: ", "{rread: x, read: ")
    with pytest.raises(UsageError, match="come without heads"):
        said("heads: zero-shot", "heads: joint")
    with pytest.raises(UsageError, match="revision goes with download"):
        said("{read: ", "{revision: main, read: ")
    with pytest.raises(UsageError, match="there is no checkpoint /nowhere"):
        said(f"one: {tuned / 'one'}", "one: /nowhere")
    with pytest.raises(UsageError, match="finetuned goes with read"):
        said(f"read: {clip}\n", "width: 16\n")
    assert said("regimes: [standard, post-hoc]\n", "")  # none is needed where nothing is trained


def test_sets_that_the_root_lacks_are_fetched_if_they_may_be(root):
    prepare = Preprocess(8, 3)
    assert len(whole("mnist", root, prepare, download=True).test) == 9  # what is there is not fetched
    with pytest.raises(InputError, match="no dtd in"):
        whole("dtd", root, prepare, download=False)
    if importlib.util.find_spec("datasets") is None:
        with pytest.raises(TaskvecError, match=r"downloading tanganke/dtd needs datasets"):
            whole("dtd", root, prepare, download=True)


def test_a_try_out_is_small_and_says_so(tmp_path):
    (tmp_path / "s.yaml").write_text(
        "study: 1\nname: s\nseeds: [0, 1]\ntasks: {a: {test_limit: 5}, b: {}}\n"
        "bases: {made: {pretrain: supervised}, random: {}}\nregimes: {standard: {steps: 7}, tangent: {}}\nfit: {batch: 64}\n"
        "protocols: {addition: {subsets: all}, locality: {samples: 24}, disentanglement: {coefficients: [-3, 3, 25]}}\n"
    )
    study = load(tmp_path / "s.yaml")
    small = tried(study, steps=2, limit=8)
    assert small.fit.steps == 2 and small.fit.batch == 8 and small.seeds == (0, 1)
    assert small.regimes["standard"].steps == 2 and small.regimes["tangent"].steps is None
    assert small.bases["made"].steps == 2 and small.bases["made"].batch == 8 and small.bases["random"].steps is None
    assert (small.tasks["a"].limit, small.tasks["a"].test_limit, small.tasks["b"].validation_limit) == (8, 5, 8)
    asked = small.protocols
    assert asked.addition and asked.addition.subsets == "pairs" and asked.addition.coefficients.points == 3
    assert asked.locality and asked.locality.samples == 4
    assert all(c.facts["where"]["tryout"] is True for c in plan(small))
    assert not {c.label for c in plan(small)} & {c.label for c in plan(study)}  # nor are their files replaced
    assert all("tryout" not in c.facts["where"] for c in plan(study))  # keys of measurements stay as they were
    only_steps = tried(study, steps=2)
    assert only_steps.fit.batch == 64 and only_steps.tasks["b"].limit is None and only_steps.tryout
    text = (tmp_path / "s.yaml").read_text().replace("{batch: 64}", "{batch: 64, autocast: bfloat16}")
    (tmp_path / "s.yaml").write_text(text)
    fits = [c for c in ordered(plan(load(tmp_path / "s.yaml"))) if c.kind == "fit"]
    assert {(c.facts["regime"], c.facts.get("autocast")) for c in fits} == {("standard", "bfloat16"), ("tangent", None)}
    assert all("autocast" not in c.facts for c in ordered(plan(study)))


@pytest.fixture(scope="module")
def setting():
    model = small_vit(
        image=8, channels=1, patch=4, width=16, depth=1, heads=2, generator=torch.Generator().manual_seed(0)
    )
    g = torch.Generator().manual_seed(0)
    split = Split(torch.randn(32, 1, 8, 8, generator=g), torch.arange(32) % 2)
    head = Head.random(2, 16, generator=g)
    return model, Checkpoint.of(model), Task("noise", split, split, split, head, ("a", "b"))


def test_fewer_bits_give_nearly_the_same_vector(setting):
    model, base, task = setting
    spec = TrainSpec(steps=5, batch=16, lr=1e-3)
    for regime in (STANDARD, LINEAR_ONLY):
        exact = fit(model, base, task, regime=regime, spec=spec)
        short = fit(model, base, task, regime=regime, spec=replace(spec, autocast="bfloat16"))
        assert short.losses != exact.losses and short.losses[0] == pytest.approx(exact.losses[0], rel=0.02)
        assert short.vector.cosine(exact.vector) > 0.8
        assert all(t.dtype == np.float32 for t in short.vector.arrays().values())


def test_fewer_bits_are_refused_where_they_would_not_be_used(setting):
    model, base, task = setting
    spec = TrainSpec(steps=1, batch=16, autocast="bfloat16")
    with pytest.raises(UsageError, match="autocast does not go with regime 'tangent'"):
        fit(model, base, task, regime=TANGENT, spec=spec)
    with pytest.raises(UsageError, match="autocast='float16'; expected None or 'bfloat16'"):
        TrainSpec(autocast="float16")
    with pytest.raises(UsageError, match="pre-training computes in float32"):
        pretrain(model, task.train.inputs, how="masked", spec=spec)


class Hungry(torch.nn.Module):
    """Has memory for `room` samples, forward or backward."""

    def __init__(self, room: int, where: str, error: Exception) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)
        self.room, self.where, self.error = room, where, error

    def forward(self, x):
        y = self.layer(x)
        if len(x) > self.room:
            if self.where == "forward":
                raise self.error
            if y.requires_grad:
                y.register_hook(self.fail)
        return y

    def fail(self, grad):
        raise self.error


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
    ],
    ids=["torch", "driver", "cpu"],
)
def test_where_memory_runs_out_the_batch_and_a_smaller_one_are_named(where, error):
    split = Split(torch.zeros(32, 3), torch.zeros(32, dtype=torch.long))
    task = Task("wide", split, split, split, Head(torch.eye(2), torch.zeros(2)), ("a", "b"))
    model = Hungry(4, where, error)
    match = r"out of memory on cpu while training on 'wide' with a batch of 16\. Set batch=8 and accumulate=2"
    with pytest.raises(StorageError, match=match):
        fit(model, Checkpoint.of(model), task, spec=TrainSpec(steps=2, batch=16))
    assert fit(model, Checkpoint.of(model), task, spec=TrainSpec(steps=2, batch=4, accumulate=4)).losses
    none = Hungry(0, where, error)
    with pytest.raises(StorageError, match=r"with a batch of 1\. That is the least batch"):
        fit(none, Checkpoint.of(none), task, spec=TrainSpec(steps=2, batch=1))


def test_other_failures_stay_what_they_are():
    split = Split(torch.zeros(32, 3), torch.zeros(32, dtype=torch.long))
    task = Task("wide", split, split, split, Head(torch.eye(2), torch.zeros(2)), ("a", "b"))
    model = Hungry(4, "forward", RuntimeError("sizes do not match"))
    with pytest.raises(UsageError, match="sizes do not match"):
        fit(model, Checkpoint.of(model), task, spec=TrainSpec(steps=2, batch=16))
