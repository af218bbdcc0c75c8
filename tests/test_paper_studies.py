"""The studies at the papers' scale, tried out from end to end: tiny random models from a hub on the loopback interface, tiny data."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from loopback_hub import serving

torch = pytest.importorskip("torch", reason="torch is not installed (extra: train)")
transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra: hf)")
pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed (extra: hf)")
pytest.importorskip("PIL.Image", reason="Pillow is not installed (extra: images)")

from taskvec.results import read_results  # noqa: E402
from taskvec.study import load, plan, tried  # noqa: E402
from taskvec.study.cells import ordered  # noqa: E402
from taskvec.study.running import chosen  # noqa: E402

torch.set_num_threads(1)
STUDIES = Path(__file__).parents[1] / "studies" / "paper"
FILES = sorted(p.name for p in STUDIES.glob("*.yaml") if p.stem not in ("toxicity", "fairness"))  # see their tests
EIGHT = ("cars", "dtd", "eurosat", "gtsrb", "mnist", "resisc45", "sun397", "svhn")
SQUARE = {"size": {"height": 8, "width": 8}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3, "resample": 2}
TOWER = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "image_size": 8,
    "patch_size": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise with a bright row that tells the class, three classes in each of the nine sets."""
    place, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for name in (*EIGHT, "imagenet"):
        table = {}
        for part, n in (("train", 90), ("test", 30)):
            labels = np.arange(n) % 3
            pixels = rng.integers(0, 120, (n, 8, 8, 3)).astype(np.uint8)
            pixels[np.arange(n), 2 * labels] = 230
            table |= {f"x_{part}": pixels, f"y_{part}": labels}
        (place / name).mkdir()
        np.savez(place / name / "images.npz", **table)
    return place


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, clip_folder: Path) -> dict[str, Path]:
    """What the studies fetch, by id."""
    place = tmp_path_factory.mktemp("hub")
    clip = shutil.copytree(clip_folder, place / "clip")
    (clip / "preprocessor_config.json").write_text(json.dumps(SQUARE))
    old = shutil.copytree(clip, place / "old", ignore=shutil.ignore_patterns("*.safetensors"))
    whole = transformers.CLIPModel.from_pretrained(str(clip))
    torch.save(whole.state_dict(), old / "pytorch_model.bin")  # as older models lie on the hub
    found = {"openai/clip-vit-base-patch32": clip, "openai/clip-vit-base-patch16": old}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for kind, suffix, id in (
            ("ViT", "Model", "google/vit-base-patch16-224-in21k"),
            ("Dinov2", "Model", "facebook/dinov2-base"),
            ("ViTMAE", "ForPreTraining", "facebook/vit-mae-base"),
        ):
            found[id] = place / kind
            more = {"decoder_hidden_size": 8, "decoder_num_attention_heads": 2, "decoder_intermediate_size": 8}
            config = getattr(transformers, f"{kind}Config")(**TOWER, **(more if kind == "ViTMAE" else {}))
            getattr(transformers, f"{kind}{suffix}")(config).save_pretrained(found[id])
            (found[id] / "preprocessor_config.json").write_text(json.dumps(SQUARE))
        for name in EIGHT:
            said = "stanford-cars" if name == "cars" else name
            found[f"tanganke/clip-vit-base-patch32_{said}"] = place / name
            tower = transformers.CLIPVisionModel.from_pretrained(str(clip))
            with torch.no_grad():
                for p in tower.parameters():
                    p += 0.05 * torch.randn(p.shape)
            tower.save_pretrained(place / name)
    return found


def small(name: str, tmp_path: Path) -> Path:
    """The study's file itself; only a base that is made here would be too large for a test."""
    text = (STUDIES / name).read_text(encoding="utf-8")
    large = "random: {patch: 16, width: 768, depth: 12, attention_heads: 12}"
    assert (large in text) == name.startswith("closed")
    text = text.replace(large, "random: {patch: 4, width: 16, depth: 2, attention_heads: 2}").replace(
        "size: 224", "size: 8"
    )
    (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path / name


@pytest.mark.parametrize(
    ("name", "only"),
    [("given-vectors.yaml", ["addition"]), *(pytest.param(n, [], marks=pytest.mark.slow) for n in FILES)],
)
def test_a_paper_runs_from_the_hub_to_results(name, only, root, models, tmp_path):
    path = small(name, tmp_path)
    command = [sys.executable, "-m", "taskvec.cli", "run", str(path), "--root", str(root), "-o", str(tmp_path / "out")]
    command += [x for text in only for x in ("--only", text)]
    with serving(models) as (env, asked):
        env = os.environ | env | {"HF_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, "--steps", "2", "--limit", "8", "--json"], env=env, capture_output=True, text=True, timeout=280
        )
    assert done.returncode == 0, done.stderr
    study = load(path)
    wanted = chosen(plan(tried(study, steps=2, limit=8)), only)
    assert json.loads(done.stdout)["computed"] == len(ordered(wanted))
    results = read_results(tmp_path / "out" / "results")
    assert len(results) == len(wanted)
    assert all(r.provenance.settings["study"]["tryout"] is True and r.title.endswith("try-out") for r in results)
    ids = {b.read for b in study.bases.values() if b.read} | {
        g.read for b in study.bases.values() for g in b.finetuned.values()
    }
    assert {"/".join(a.split("/")[:2]) for a in asked} == ids  # all of it came from the hub, and nothing else
    assert len(asked) == len(set(asked)), "a file was fetched twice"
    for result in results:
        if result.kind == "addition":
            assert {s.n for row in result.rows for s in row.scores.values()} == {8}
        elif result.kind == "geometry":
            assert len(result.names) == 8 and min(result.norms) > 0


def test_data_comes_from_the_hub_too(models, tmp_path):
    """Sets as they lie there, parquet files of encoded images: fetched once, those in the root not at all."""
    pytest.importorskip("datasets", reason="datasets is not installed (extra: data)")
    Image = pytest.importorskip("PIL.Image")
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

    rng, hub, names = np.random.default_rng(0), tmp_path / "hub", ("even", "odd")
    features = {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": list(names)},
    }
    for part, n in (("train", 60), ("test", 20)):
        labels = [i % 2 for i in range(n)]
        rows = []
        for _ in labels:
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 255, (8, 8, 3)).astype(np.uint8)).save(file, "png")
            rows.append({"bytes": file.getvalue(), "path": None})
        table = pa.table({"image": rows, "label": pa.array(labels, pa.int64())})
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        for name in ("sun397", "dtd"):
            (hub / name / "data").mkdir(parents=True, exist_ok=True)
            pq.write_table(table, hub / name / "data" / f"{part}-00000-of-00001.parquet")
    text = (STUDIES / "given-vectors.yaml").read_text(encoding="utf-8")
    text = text.replace("tasks: [cars, dtd, eurosat, gtsrb, mnist, resisc45, sun397, svhn", "tasks: [dtd, sun397")
    text = "".join(x for x in text.splitlines(keepends=True) if "tanganke" not in x or "_dtd" in x or "_sun397" in x)
    (tmp_path / "study.yaml").write_text(text, encoding="utf-8")
    served = models | {f"datasets/tanganke/{n}": hub / n for n in ("sun397", "dtd")}
    command = [
        sys.executable,
        "-m",
        "taskvec.cli",
        "run",
        "study.yaml",
        "--download",
        "--only",
        "addition",
        "--limit",
        "8",
    ]
    with serving(served) as (env, asked):
        env = os.environ | env | {"HF_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert len([a for a in asked if a.endswith(".parquet")]) >= 4
    assert not any("imagenet" in a for a in asked)  # the control is not needed for an addition
    results = read_results(tmp_path / "results" / "given-vectors-tryout" / "results")
    assert {r.provenance.settings["study"]["regime"] for r in results} == {"given", "post-hoc"}
