"""Image sets as tasks: reading, preparing, cutting, and inputs that are made when they are used."""

from __future__ import annotations

import gzip
import math
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from taskvec.errors import InputError, UnknownName, UsageError
from taskvec.models import bind, tensors
from taskvec.models.vit import small_vit
from taskvec.protocols import addition, disentanglement, geometry, locality
from taskvec.search import curves
from taskvec.tasks import Head, Split, Task, accuracy, joined
from taskvec.tasks.image_files import read_images
from taskvec.tasks.images import CLIP, SETS, Images, Preprocess, folder_task, image_task
from taskvec.tasks.lazy import LazyInputs, batches
from taskvec.training import PRETRAIN, STANDARD, TANGENT, TrainSpec, fisher, fit, gram, probe
from taskvec.training.penalties import tau_jp
from taskvec.weights import Checkpoint

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed (extra: images)")
torch.set_num_threads(1)

SHARED = Path(__file__).parents[2] / "shared" / "data"
SMALL = Preprocess(8)
# name -> samples for training, validation and test, classes
REAL = {
    "mnist": (9001, 1000, 2000, 10),
    "fashion_mnist": (9000, 1000, 2000, 10),
    "notmnist": (6000, 2000, 2000, 10),
    "usps": (6562, 729, 2007, 10),
    "gtsrb": (7201, 800, 2004, 43),
    "sign_digits": (1237, 413, 412, 10),
}


def parts(task):
    return {"train": task.train, "validation": task.validation, "test": task.test}


def picture(rng, shape=(10, 12, 3)):
    return rng.integers(0, 256, shape, dtype=np.uint8)


def lay_out(root, counts, *, seed=0, suffix=".png"):
    """``counts``: part -> class -> number of pictures, all different."""
    rng = np.random.default_rng(seed)
    for part, classes in counts.items():
        for name, n in classes.items():
            place = root / part / name
            place.mkdir(parents=True)
            for i in range(n):
                Image.fromarray(picture(rng)).save(place / f"{i}{suffix}")
    return root


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "pets"
    return lay_out(root, {"train": {"cat": 40, "old_dog": 24}, "test": {"cat": 8, "old_dog": 10}})


def idx(path, values):
    raw = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


# --- preparing


def test_a_pixel_is_scaled_and_normalised():
    prepare = Preprocess(4, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    pixels = torch.arange(48, dtype=torch.uint8).view(1, 3, 4, 4) * 5
    found = prepare.normalised(pixels)
    for c, (m, s) in enumerate(zip(prepare.mean, prepare.std, strict=True)):
        torch.testing.assert_close(found[:, c], (pixels[:, c].float() / 255 - m) / s)
    grey = pixels[:, :1]
    assert torch.equal(prepare.normalised(grey), prepare.normalised(grey.expand(-1, 3, -1, -1)))
    assert Preprocess(4, channels=1).normalised(grey).shape == (1, 1, 4, 4)
    assert torch.equal(SMALL.normalised(grey), SMALL.normalised(grey.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (4, 4), 100), (100, 100, 100)),
        (Image.new("RGBA", (4, 4), (200, 0, 0, 255)), (200, 0, 0)),
        (Image.new("RGBA", (4, 4), (200, 0, 0, 0)), (255, 255, 255)),  # transparent: white
        (Image.new("LA", (4, 4), (10, 0)), (255, 255, 255)),
        (Image.new("1", (4, 4), 1), (255, 255, 255)),
        (Image.fromarray(np.full((4, 4), 257 * 40, np.uint16)), (40, 40, 40)),
        (Image.fromarray(np.full((4, 4), 65535, np.int32)), (255, 255, 255)),
        (Image.new("CMYK", (4, 4), (0, 0, 0, 0)), (255, 255, 255)),
        (Image.new("RGB", (4, 4), (1, 2, 3)).convert("P"), None),
    ],
)
def test_every_mode_becomes_colour(image, expected):
    found = Preprocess(4).pixels(image)
    assert found.shape == (3, 4, 4) and found.dtype == np.uint8
    if expected:
        assert [int(x) for x in found[:, 2, 2]] == list(expected)
    assert Preprocess(4, channels=1).pixels(image).shape == (1, 4, 4)


def test_a_palette_with_transparent_entries_and_16_bit_files(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 9, 9, 9])
    image.save(tmp_path / "p.png", transparency=bytes([255, 0]))
    Image.fromarray(np.full((4, 4), 256 * 128, np.uint16)).save(tmp_path / "deep.png")
    source = Images([tmp_path / "p.png", tmp_path / "deep.png"], np.zeros(2, np.int64))
    assert (Preprocess(4).pixels(source.open(0)) == 255).all()
    assert set(Preprocess(4).pixels(source.open(1)).ravel().tolist()) == {128}
    with pytest.raises(InputError, match="floating"):
        Preprocess(4).pixels(Image.fromarray(np.zeros((4, 4), np.float32)))


def test_the_centre_is_cut_out_or_the_image_is_squashed():
    values = np.zeros((10, 30, 3), np.uint8)
    values[:, 10:20] = 255
    image = Image.fromarray(values)
    assert Preprocess(10).pixels(image).min() == 255
    squashed = Preprocess(9, squash=True, interpolation="box").pixels(image)
    assert squashed[0, 0].tolist() == [0] * 3 + [255] * 3 + [0] * 3
    inner = np.zeros((8, 8), np.uint8)
    inner[2:6, 2:6] = 7
    assert set(Preprocess(4, channels=1, shorter=8).pixels(Image.fromarray(inner)).ravel().tolist()) == {7}
    assert Preprocess(8).pixels(Image.new("RGB", (3, 900))).shape == (3, 8, 8)


@pytest.mark.parametrize("shape", [(40, 40, 3), (32, 58, 3), (90, 33, 3)])
def test_clip_is_prepared_as_transformers_does(shape):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra: hf)")
    image = Image.fromarray(picture(np.random.default_rng(0), shape))
    theirs = transformers.CLIPImageProcessorPil()(images=image, return_tensors="pt")["pixel_values"]
    ours = CLIP.normalised(torch.from_numpy(CLIP.pixels(image))[None])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"size": 0}, "size is 0"),
        ({"size": 8.0}, "size is 8.0"),
        ({"size": 8, "channels": 4}, "channels is 4"),
        ({"size": 8, "std": (0.0,)}, "std"),
        ({"size": 8, "mean": (0.1, 0.2)}, "one finite value, or 3"),
        ({"size": 8, "mean": (math.nan,)}, "finite"),
        ({"size": 8, "shorter": 7}, "less than the size"),
        ({"size": 8, "interpolation": "bicubical"}, "bicubic"),
    ],
)
def test_a_preparation_that_cannot_be(wrong, says):
    with pytest.raises(UsageError, match=says):
        Preprocess(**wrong)


# --- cutting


def test_the_validation_part_is_the_papers():
    # The code published with arXiv:2212.04089 asserts that its first training image of MNIST is number 36044.
    from taskvec.tasks.images import _cut

    whole = Images(np.zeros((60000, 1, 1), np.uint8), np.zeros(60000, np.int64))
    cut = _cut("mnist", {"train": whole, "test": whole}, 0)
    assert cut["training"].rows[0] == 36044
    assert [len(p.rows) for p in cut.values()] == [55000, 5000, 60000]
    small = Images(np.zeros((95, 1, 1), np.uint8), np.zeros(95, np.int64))
    cut = _cut("x", {"train": small, "test": small}, 3)
    theirs = torch.utils.data.random_split(range(95), [86, 9], generator=torch.Generator().manual_seed(3))
    assert [cut[k].rows.tolist() for k in ("training", "validation")] == [list(s.indices) for s in theirs]


@pytest.mark.parametrize("extra", [{}, {"val": {"cat": 5, "old_dog": 5}}, {"test": {"cat": 5, "old_dog": 5}}])
def test_no_image_is_in_two_parts(extra, tmp_path):
    root = lay_out(tmp_path, {"train": {"cat": 60, "old_dog": 40}, **extra})
    for seed in (0, 1):
        task = folder_task(root, prepare=SMALL, seed=seed)
        seen = [[x.numpy().tobytes() for x in p.inputs[:]] for p in parts(task).values()]
        everything = [x for part in seen for x in part]
        assert len(set(everything)) == len(everything) == 100 + 10 * len(extra)
        assert task.notes == () and task.classes == ("cat", "old dog")
    sizes = {"": (60, 20, 20), "val": (80, 10, 20), "test": (90, 10, 10)}
    assert tuple(map(len, parts(task).values())) == sizes["".join(extra)]


def test_the_same_call_gives_the_same_task(pets):
    a, b, c = (folder_task(pets, prepare=SMALL, seed=s, limit=20) for s in (0, 0, 1))
    for p, q in zip(parts(a).values(), parts(b).values(), strict=True):
        assert torch.equal(p.inputs[:], q.inputs[:]) and torch.equal(p.labels, q.labels)
    assert not torch.equal(a.train.inputs[:], c.train.inputs[:])
    assert a.name == "pets" and a.train.inputs.shape == (20, 3, 8, 8)


def test_a_limit_is_even_recorded_and_leaves_validation_alone(pets):
    whole = folder_task(pets, prepare=SMALL)
    some = [folder_task(pets, prepare=SMALL, limit=n, test_limit=5) for n in (10, 20, 10_000)]
    assert [len(t.train) for t in some] == [10, 20, 58] and len(whole.train) == 58
    assert some[1].train.labels.bincount().tolist() == [10, 10]
    assert torch.equal(
        some[1].train.inputs[:10], some[0].train.inputs[:]
    )  # smaller limits are contained in larger ones
    assert all(torch.equal(t.validation.inputs[:], whole.validation.inputs[:]) for t in some)
    assert some[0].notes[:2] == ("training: 10 of 58 samples (seed 0)", "test: 5 of 18 samples (seed 0)")
    assert some[2].notes == ("test: 5 of 18 samples (seed 0)",)


def test_images_of_two_parts_that_are_the_same_are_counted(tmp_path):
    x = picture(np.random.default_rng(0), (30, 8, 8))
    np.savez(tmp_path / "set.npz", x_train=x, y_train=np.arange(30) % 2, x_test=x[:6], y_test=np.arange(6) % 2)
    assert folder_task(tmp_path, prepare=SMALL).notes == ("test: 6 of 6 images are also in an earlier part",)
    assert folder_task(tmp_path, prepare=SMALL, memory=0).notes == ()  # would need all of them decoded


# --- reading


def test_files_of_every_kind_give_the_same_task(tmp_path):
    rng = np.random.default_rng(0)
    x, y = {}, {}
    for part, n in (("train", 40), ("test", 12)):
        x[part], y[part] = picture(rng, (n, 28, 28)), (np.arange(n) % 10).astype(np.uint8)
    for kind in ("npz", "idx", "gz", "folders", "single"):
        (tmp_path / kind / "mnist").mkdir(parents=True)
    np.savez_compressed(tmp_path / "npz/mnist/m.npz", **{f"{a}_{p}": v[p] for a, v in (("x", x), ("y", y)) for p in x})
    np.savez(tmp_path / "single/mnist/m.npz", x=x["train"][..., None], y=y["train"])
    for part, prefix in (("train", "train"), ("test", "t10k")):
        for kind, end in (("idx", ""), ("gz", ".gz")):
            idx(tmp_path / kind / f"mnist/{prefix}-images-idx3-ubyte{end}", x[part])
            idx(tmp_path / kind / f"mnist/{prefix}-labels-idx1-ubyte{end}", y[part])
        for i in np.argsort(y[part], kind="stable"):
            place = tmp_path / "folders/mnist" / part / str(y[part][i])
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(x[part][i]).save(place / f"{i:03}.png")
    tasks = {k: image_task("mnist", root=tmp_path / k, prepare=Preprocess(12)) for k in ("npz", "idx", "gz", "folders")}
    for task in tasks.values():
        assert task.classes == tuple("0123456789") and (len(task.train), len(task.validation)) == (36, 4)
        ours = sorted(a.numpy().tobytes() for a in tasks["npz"].test.inputs[:])
        assert sorted(a.numpy().tobytes() for a in task.test.inputs[:]) == ours  # folders are read class by class
    for k in ("idx", "gz"):
        assert torch.equal(tasks[k].train.inputs[:], tasks["npz"].train.inputs[:])
    assert len(image_task("mnist", root=tmp_path / "single/mnist", prepare=SMALL).test) == 8


def test_parquet_as_the_hub_has_it(tmp_path):
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra: data)")
    import io
    import json

    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    about = {"info": {"features": {"label": {"names": ["cat", "big_dog"], "_type": "ClassLabel"}}}}
    for part, n in (("train", 30), ("test", 8)):
        rows = []
        for _ in range(n):
            file = io.BytesIO()
            Image.fromarray(picture(rng)).save(file, "png")
            rows.append({"bytes": file.getvalue(), "path": None})
        table = pa.table({"image": rows, "label": [i % 2 for i in range(n)]})
        pq.write_table(
            table.replace_schema_metadata({"huggingface": json.dumps(about)}), tmp_path / f"{part}-0-of-1.parquet"
        )
    held, lazy = (folder_task(tmp_path, prepare=SMALL, memory=m) for m in (2**20, 0))
    assert held.classes == ("cat", "big dog") and len(held.test) == 8
    assert torch.equal(held.train.inputs[:], lazy.train.inputs[:])


def test_folders_of_known_classes_are_found_by_name_or_number(tmp_path):
    a, b = tmp_path / "a" / "EuroSAT", tmp_path / "b"
    for root, names in ((a, ["AnnualCrop", "SeaLake", "Forest"]), (b, ["0", "9", "1"])):
        lay_out(root, {"train": dict.fromkeys(names, 10), "test": dict.fromkeys(names, 2)})
    by_name = image_task("eurosat", root=tmp_path / "a", prepare=SMALL)
    by_number = image_task("eurosat", root=b, prepare=SMALL)
    assert by_name.classes == by_number.classes == SETS["eurosat"].classes
    assert set(by_name.test.labels.tolist()) == set(by_number.test.labels.tolist()) == {0, 1, 9}
    assert any("no images of 'herbaceous vegetation'" in n for n in by_name.notes)
    lay_out(tmp_path / "c", {"train": {"Forests": 10}})
    with pytest.raises(InputError, match=r"'Forests'.*Did you mean 'forest'"):
        image_task("eurosat", root=tmp_path / "c", prepare=SMALL)


def test_names_of_classes_can_stand_in_a_file(tmp_path):
    lay_out(tmp_path, {"train": {"n01": 20, "n02": 20}})
    (tmp_path / "classes.txt").write_text("n01 tench, Tinca tinca\nn02 great white shark\n")
    assert folder_task(tmp_path, prepare=SMALL).classes == ("tench, Tinca tinca", "great white shark")


@pytest.mark.parametrize("name", REAL)
def test_a_real_set(name):
    if not SHARED.is_dir():
        pytest.skip("the real image sets are not here (../shared/data)")
    task = image_task(name, root=SHARED, prepare=Preprocess(32))
    *sizes, classes = REAL[name]
    assert [len(p) for p in parts(task).values()] == sizes and len(task.classes) == classes
    x = task.train.inputs[torch.arange(50)]
    assert x.shape == (50, 3, 32, 32) and x.dtype == torch.float32 and -1 <= float(x.min()) < 0 < float(x.max()) <= 1
    assert x.std() > 0.2 and set(task.train.labels.tolist()) == set(range(classes))
    again = image_task(name, root=SHARED, prepare=Preprocess(32), memory=0)  # decoded at each use
    rows = torch.tensor([5, 700, 3])
    assert torch.equal(again.train.inputs[rows], task.train.inputs[rows])


# --- what is refused


def test_an_unknown_set_and_one_that_is_not_here(tmp_path):
    with pytest.raises(UnknownName, match="Did you mean 'eurosat'"):
        image_task("eurosta", prepare=SMALL)
    with pytest.raises(InputError, match=r"download=True.*docs/images.md"):
        image_task("mnist", prepare=SMALL)
    with pytest.raises(InputError, match="cannot fetch it"):
        image_task("notmnist", prepare=SMALL, download=True)
    with pytest.raises(InputError, match="looked for"):
        image_task("gtsrb", root=tmp_path, prepare=SMALL)
    with pytest.raises(InputError, match="no folder"):
        folder_task(tmp_path / "nothing", prepare=SMALL)
    with pytest.raises(InputError, match="no images that can be read"):
        folder_task(tmp_path, prepare=SMALL)
    for wrong in (0, -3, 1.5, True):
        with pytest.raises(UsageError, match="limit is"):
            lay = lay_out(tmp_path / str(wrong), {"train": {"a": 10, "b": 10}})
            folder_task(lay, prepare=SMALL, limit=wrong)


def test_classes_that_are_tested_and_never_trained(tmp_path):
    lay_out(tmp_path / "a", {"train": {"cat": 12}, "test": {"cat": 2, "cats": 2}})
    with pytest.raises(InputError, match=r"lacks: 'cats'.*Did you mean 'cat'"):
        folder_task(tmp_path / "a", prepare=SMALL)
    lay_out(tmp_path / "b", {"train": {"cat": 12, "dog": 0}, "test": {"cat": 2, "dog": 2}})
    with pytest.raises(InputError, match="training part has no image of 'dog'"):
        folder_task(tmp_path / "b", prepare=SMALL)
    lay_out(tmp_path / "c", {"train": {"cat": 30, "dog": 30}, "test": {"cat": 2}})
    assert folder_task(tmp_path / "c", prepare=SMALL).notes == ("test: no images of 'dog'",)
    lay_out(tmp_path / "d", {"train": {"cat": 4, "dog": 4}})
    with pytest.raises(InputError, match="too few"):
        folder_task(tmp_path / "d", prepare=SMALL)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x": np.zeros((20, 4, 4), np.float32), "y": np.zeros(20, int)}, "uint8"),
        ({"x": np.zeros((20, 4, 4, 5), np.uint8), "y": np.zeros(20, int)}, "shape"),
        ({"x": np.zeros((20, 4, 4), np.uint8), "y": np.zeros(19, int)}, "20 whole numbers"),
        ({"x": np.zeros((20, 4, 4), np.uint8), "y": np.full(20, 10)}, "labels from"),
        ({"x": np.zeros((20, 4, 4), np.uint8), "y": np.full(20, -1)}, "labels from -1"),
        ({"images": np.zeros((20, 4, 4), np.uint8)}, "x_train and y_train"),
        ({"x": np.array([{}] * 20), "y": np.zeros(20, int)}, "Object arrays"),
    ],
)
def test_arrays_that_are_no_images(arrays, says, tmp_path):
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(InputError, match=says):
        image_task("mnist", root=tmp_path, prepare=SMALL)


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"\1" + b[1:], lambda b: b + b"x"]
)
@pytest.mark.parametrize("end", ["", ".gz"])
def test_damaged_idx_files(damage, end, tmp_path):
    idx(tmp_path / f"train-images-idx3-ubyte{end}", picture(np.random.default_rng(0), (20, 4, 4)))
    idx(tmp_path / f"train-labels-idx1-ubyte{end}", np.arange(20, dtype=np.uint8) % 10)
    path = tmp_path / f"train-images-idx3-ubyte{end}"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match="not an idx file"):
        image_task("mnist", root=tmp_path, prepare=SMALL)


def test_house_numbers_as_they_are_offered(tmp_path):
    io = pytest.importorskip("scipy.io", reason="scipy is not installed (extra: eval)")
    rng, kept = np.random.default_rng(0), {}
    for part, n in (("train", 40), ("test", 10)):
        kept[part] = picture(rng, (n, 4, 5, 3)), np.arange(n, dtype=np.uint8) % 10
        x, y = kept[part]
        io.savemat(
            tmp_path / f"{part}_32x32.mat", {"X": x.transpose(1, 2, 3, 0), "y": np.where(y == 0, 10, y)[:, None]}
        )
    read = read_images(tmp_path)
    for part, (x, y) in kept.items():
        np.testing.assert_array_equal(read[part].pixels, x)
        np.testing.assert_array_equal(read[part].labels, y)
    assert len(image_task("svhn", root=tmp_path, prepare=SMALL).test) == 10
    whole = (tmp_path / "train_32x32.mat").read_bytes()
    (tmp_path / "train_32x32.mat").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"train_32x32.mat does not read as a MATLAB file"):
        read_images(tmp_path)
    io.savemat(tmp_path / "train_32x32.mat", {"X": x})
    with pytest.raises(InputError, match="no array 'y'"):
        read_images(tmp_path)


@pytest.fixture
def damaged(tmp_path):
    """Three images of sixty cannot be decoded."""
    root = lay_out(tmp_path / "set", {"train": {"cat": 30, "dog": 30}, "test": {"cat": 4, "dog": 4}})
    whole = (root / "train/cat/0.png").read_bytes()
    (root / "train/cat/1.png").write_bytes(whole[: len(whole) // 2])
    (root / "train/dog/2.png").write_bytes(b"")
    (root / "test/dog/3.png").write_bytes(b"no picture at all")
    return root


def test_damaged_images_are_named_and_stop(damaged):
    with pytest.raises(InputError, match=r"3 images cannot be decoded.*skip_corrupt=True") as caught:
        folder_task(damaged, prepare=SMALL)
    assert all(name in str(caught.value) for name in ("cat/1.png", "dog/2.png", "dog/3.png"))
    task = folder_task(damaged, prepare=SMALL, memory=0)  # nothing is decoded until it is used
    with pytest.raises(InputError, match=r"dog/3\.png.*skip_corrupt"):
        task.test.inputs[:]


@pytest.mark.parametrize("memory", [0, 2**30])
def test_damaged_images_are_left_out_and_counted(damaged, memory):
    task = folder_task(damaged, prepare=SMALL, skip_corrupt=True, memory=memory)
    assert sum(len(p) for p in parts(task).values()) == 68 - 3
    assert "test: 1 of 8 images cannot be decoded and are left out" in task.notes
    for p in parts(task).values():
        assert len(p.inputs[:]) == len(p.labels)
    assert task.test.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
    for file in damaged.glob("test/*/*"):
        file.write_bytes(b"")
    with pytest.raises(InputError, match="no image can be decoded in 'test'"):
        folder_task(damaged, prepare=SMALL, skip_corrupt=True, memory=memory)


def test_what_cannot_be_a_split():
    lazy = LazyInputs(lambda rows: torch.zeros(len(rows), 2), torch.arange(3), (2,))
    with pytest.raises(InputError, match="one label per input"):
        Split(lazy, torch.zeros(2, dtype=torch.long))
    with pytest.raises(InputError, match="torch tensors"):
        Split(torch.zeros(3, 2), lazy)
    other = LazyInputs(lambda rows: torch.zeros(len(rows), 4), torch.arange(3), (4,))
    head = Head(torch.zeros(2, 2), torch.zeros(2))
    a, b = (Split(x, torch.zeros(3, dtype=torch.long)) for x in (lazy, other))
    with pytest.raises(UsageError, match="cannot join"):
        joined("both", [Task("a", a, a, a, head, ("x", "y")), Task("b", b, b, b, head, ("x", "y"))])


# --- lazy inputs stand where tensors do


def eager(task):
    return Task(
        task.name, *(Split(p.inputs[:], p.labels) for p in parts(task).values()), task.head, task.classes, task.notes
    )


def test_lazy_inputs_are_indexed_as_tensors_are(pets):
    lazy = folder_task(pets, prepare=SMALL, memory=0).train.inputs
    whole = lazy[:]
    assert isinstance(lazy, LazyInputs) and len(lazy) == len(whole) and lazy.shape == tuple(whole.shape)
    mask = torch.arange(len(whole)) % 3 == 0
    for key in (3, -1, slice(2, 9), slice(None, None, 2), torch.tensor([5, 1, 5]), mask, slice(0, 0), [1, 2]):
        assert torch.equal(lazy[key], whole[key])
    assert torch.equal(lazy.take(mask)[1:4], whole[mask][1:4])
    assert [len(x) for x in batches(lazy, 25)] == [25, 25, 8]
    for a, b in zip(batches(whole, 25), whole.split(25), strict=True):
        assert torch.equal(a, b) and a.data_ptr() == b.data_ptr()
    with pytest.raises(IndexError):
        lazy[len(lazy)]


@pytest.fixture(scope="module")
def model():
    return small_vit(
        image=8, channels=3, patch=4, width=16, depth=1, heads=2, generator=torch.Generator().manual_seed(0)
    )


@pytest.mark.parametrize("memory", [0, 2**30])
def test_everything_is_the_same_with_lazy_inputs(memory, model, pets, tmp_path):
    lay_out(tmp_path, {"train": {"cat": 30, "old_dog": 30}}, seed=7)
    base = Checkpoint.of(model)
    lazy = [
        folder_task(pets, prepare=SMALL, memory=memory),
        folder_task(tmp_path, prepare=SMALL, name="b", memory=memory),
    ]
    plain = [eager(t) for t in lazy]
    spec = TrainSpec(steps=6, lr=1e-3, batch=16)
    found = []
    for tasks in (lazy, plain):
        head = probe(model, base, tasks[0], spec=TrainSpec(steps=5, lr=1e-2, batch=32))
        tasks = [t.with_head(head) for t in tasks]
        made = fit(model, base, tasks[0], regime=STANDARD, spec=spec, penalties=[tau_jp([tasks[1].train], weight=0.1)])
        bent = fit(model, base, joined("both", tasks), regime=TANGENT, spec=spec)
        blank = fit(
            model,
            base,
            Task("none", *list(parts(tasks[0]).values()), None, tasks[0].classes),
            regime=PRETRAIN,
            spec=spec,
        )
        vectors = {t.name: v for t, v in zip(tasks, (made.vector, made.vector * 0.5), strict=True)}
        at = {"coefficients": (0.0, 1.0)}
        results = [
            addition(model, base, vectors, tasks, **at),
            disentanglement(model, base, vectors, tasks, **at),
            geometry(vectors, base=base, model=model, tasks=tasks),
            locality(model, base, tasks, samples=3, eigenfunctions=2),
        ]
        found.append(
            (
                head.weight.tolist(), made.losses, bent.losses, blank.losses, fisher(model, base, tasks[0], samples=3).fingerprint(),
                gram(model, base, tasks[0], samples=8).fingerprint(),
                accuracy(bind(model), tensors(base), tasks[0].test, head, batch=7),
                curves(model, base, bent.vector, {"b": (tasks[1].validation, head)}, forward=bent.forward, **at),
                [r.model_copy(update={"provenance": None}) for r in results],
            )
        )  # fmt: skip
    assert found[0] == found[1]
