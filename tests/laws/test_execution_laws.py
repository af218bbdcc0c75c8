"""Threads, blocks, shards and files are invisible in the numbers."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from strategies import BF16, equal_bits, family, random_weights, seeds, shape_tables

from taskvec.methods import average, dare, random_like, slerp, ties
from taskvec.weights import Checkpoint, TaskVector, execute

SHAPES = {"big": (37, 29), "b.weight": (100,), "b.bias": (99,), "one": (1,), "scalar": (), "none": (0, 4)}


def outcomes(base, vs):
    """One of everything: elementwise, global summaries, per-tensor summaries, random draws."""
    return {
        "sum": base + 0.3 * (vs[0] + vs[1] - vs[2]),
        "ties": base + 0.7 * ties(vs, density=0.3),
        "dare": base + 0.4 * dare(vs, density=0.4, seed=3),
        "slerp": base + slerp(vs[:2], t=0.3),
        "random": base + random_like(vs[0], seed=2),
    }


@pytest.fixture(scope="module", params=["F32", "BF16"])
def group(request):
    return family(11, SHAPES, 3, dtype=np.float32 if request.param == "F32" else BF16)


def save_all(points, folder) -> dict[str, bytes]:
    written = {}
    for name, point in points.items():
        file = point.save(folder / f"{name}.safetensors")
        data = file.read_bytes()
        written[name] = data[8 + int.from_bytes(data[:8], "little") :]
    return written


def test_one_two_and_four_threads_write_the_same_bytes(group, tmp_path, monkeypatch):
    monkeypatch.setattr(execute, "BLOCK", 64)
    seen = []
    for threads in (1, 2, 4):
        monkeypatch.setattr(execute, "default_threads", lambda n=threads: n)
        (tmp_path / str(threads)).mkdir()
        seen.append(save_all(outcomes(*group), tmp_path / str(threads)))
    assert seen[0] == seen[1] == seen[2]


@pytest.mark.parametrize("block", [1, 7, 64, 1072, 1073, 1 << 18])
def test_blocks_of_any_size_give_the_same_bits(group, monkeypatch, block):
    """Exactly, where no floating-point sum runs over a tensor; the measures of slerp and random may differ in a last bit."""
    expected = {k: p.arrays() for k, p in outcomes(*group).items()}
    monkeypatch.setattr(execute, "BLOCK", block)
    for name, point in outcomes(*group).items():
        if name in ("sum", "ties", "dare"):
            equal_bits(point.arrays(), expected[name])
        else:
            for n, x in point.arrays().items():
                np.testing.assert_allclose(
                    x.astype(float),
                    expected[name][n].astype(float),
                    rtol=1e-5 if x.dtype == np.float32 else 2**-7,
                    atol=1e-6,
                )


def test_a_tensor_of_one_value_more_than_a_block(tmp_path):
    base, vs = family(2, {"w": (execute.BLOCK + 1,)}, 2)
    point = base + 0.5 * dare(vs, density=0.5)
    equal_bits(Checkpoint.read(point.save(tmp_path / "out.safetensors")).arrays(), point.arrays())


def test_a_norm_does_not_depend_on_the_threads_of_the_linear_algebra_library():
    """OpenBLAS splits long sums among its threads, as many as there are cores."""
    import os
    import subprocess
    import sys

    program = (
        "import numpy as np; from taskvec.weights import Checkpoint as C;"
        "r = np.random.default_rng(0);"
        "z = C.of({'w': np.zeros(1 << 19, np.float32)}, label='z');"
        "t = C.of({'w': r.normal(size=1 << 19).astype(np.float32)}, label='t');"
        "print(repr((t - z).norm()))"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "OPENBLAS_NUM_THREADS": n, "OMP_NUM_THREADS": n, "MKL_NUM_THREADS": n},
            capture_output=True, text=True, check=True,
        ).stdout
        for n in ("1", "2")
    }  # fmt: skip
    assert len(said) == 1, said


@given(seeds, shape_tables)
def test_file_shards_and_memory_are_the_same_checkpoint(seed, shapes):
    import tempfile
    from pathlib import Path

    table = {**random_weights(seed, shapes), "steps": np.array(seed, np.int64)}
    point = Checkpoint.of(table, label="m")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        one = Checkpoint.read(point.save(place / "one.safetensors"))
        whole = Checkpoint.read(point.save(place / "folder"))
        shards = Checkpoint.read(point.save(place / "shards", shard_size=64))
        if sum(v.nbytes for v in table.values()) > 64:
            assert json.loads((place / "shards" / "model.safetensors.index.json").read_text())["weight_map"]
        backwards = Checkpoint.of(dict(reversed(table.items())), label="other order")
        for other in (one, whole, shards, backwards):
            equal_bits(other.arrays(), table)
            assert other.fingerprint() == point.fingerprint()


def test_edits_of_shards_and_of_the_single_file_are_equal(tmp_path):
    base, vs = family(11, SHAPES, 3)
    single = Checkpoint.read(base.save(tmp_path / "base.safetensors"))
    shards = Checkpoint.read(base.save(tmp_path / "base", shard_size=300))
    assert len(list((tmp_path / "base").glob("*.safetensors"))) > 2
    expected = {k: p.arrays() for k, p in outcomes(single, vs).items()}
    for name, point in outcomes(shards, vs).items():
        equal_bits(point.arrays(), expected[name])
        equal_bits(Checkpoint.read(point.save(tmp_path / name, shard_size=500)).arrays(), expected[name])


def test_another_base_has_another_fingerprint():
    base, _ = family(11, SHAPES, 0)
    table = base.arrays()
    seen = {base.fingerprint()}
    for change in ("value", "name", "shape", "format"):
        other = {n: v.copy() for n, v in table.items()}
        if change == "value":
            other["b.bias"][50] += 1
        elif change == "name":
            other["c.bias"] = other.pop("b.bias")
        elif change == "shape":
            other["big"] = other["big"].reshape(29, 37)
        else:
            other["b.bias"] = other["b.bias"].astype(np.float64)
        seen.add(Checkpoint.of(other, label="base").fingerprint())
    assert len(seen) == 5


@given(seeds, shape_tables)
def test_a_vector_file_comes_back(seed, shapes):
    import tempfile
    from pathlib import Path

    base, (a, b) = family(seed, shapes, 2)
    with tempfile.TemporaryDirectory() as folder:
        read = TaskVector.read((a - 0.5 * b).save(Path(folder) / "v.safetensors"))
        equal_bits(read.arrays(), (a - 0.5 * b).arrays())
        assert read.base.fingerprint == base.fingerprint() and not read.partial
        equal_bits((base + read).arrays(), (base + (a - 0.5 * b)).arrays())
        name = a.names[0]
        part = TaskVector.read(a.restrict([name]).save(Path(folder) / "p.safetensors"))
        assert part.partial and part.names == (name,)
        equal_bits((base + part).arrays(), (base + a.restrict([name])).arrays())
        equal_bits((b + part).arrays(), (b + a.restrict([name])).arrays())


def test_a_file_keeps_its_recipe_however_long(tmp_path):
    base, vs = family(1, {"w": (4,)}, 1)
    files = []
    for i in range(300):
        label = f"a_model_with_quite_a_long_name_{i}"
        files.append(Checkpoint.of(random_weights(i, {"w": (4,)}), label=label).save(tmp_path / f"{label}.safetensors"))
    point = base + sum((i + 1) / 7 * (Checkpoint.read(f) - base) for i, f in enumerate(files)) + vs[0]
    out = Checkpoint.read(point.save(tmp_path / "out.safetensors"))
    equal_bits(out.arrays(), point.arrays())
    recipe = json.loads(out.node.source.metadata["taskvec"])
    assert recipe["expression"] == point.explain().expression and len(recipe["inputs"]) == 302
    assert len(next(iter(recipe["inputs"]["a_model_with_quite_a_long_name_0"]["sha256"].values())).strip("0")) > 32
    folder = Checkpoint.read(point.save(tmp_path / "out"))
    assert dict(folder.node.source.metadata) == {"format": "pt"}  # there the recipe is taskvec.json
    assert json.loads((tmp_path / "out" / "taskvec.json").read_text())["inputs"] == recipe["inputs"]


def test_float64_is_kept_through_files(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=50), rng.normal(size=50)
    base, tuned = Checkpoint.of({"w": x}, label="base"), Checkpoint.of({"w": y}, label="tuned")
    tau = TaskVector.read((tuned - base).save(tmp_path / "tau.safetensors"))
    assert tau.spec["w"].dtype == "F64"
    np.testing.assert_array_equal(tau.array("w"), y - x)
    np.testing.assert_array_equal((base + 0.3 * tau).array("w"), x + 0.3 * (y - x))
    np.testing.assert_array_equal(average([tau, tau]).array("w"), (y - x) * 1.0)


def test_inputs_are_copied_so_that_training_on_cannot_change_a_checkpoint():
    x = np.ones(4, np.float32)
    point = Checkpoint.of({"w": x}, label="m")
    x[:] = 7
    assert point.array("w").tolist() == [1, 1, 1, 1]
    got = point.array("w")
    got[:] = 9
    assert point.array("w").tolist() == [1, 1, 1, 1]


def test_a_torch_module_and_its_arrays_are_the_same_checkpoint():
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    table = {n: t.numpy() for n, t in module.state_dict().items()}
    point = Checkpoint.of(module, label="module")
    assert point.spec["1.num_batches_tracked"].shape == ()
    assert point.fingerprint() == Checkpoint.of(table, label="arrays").fingerprint()
    half = {n: t.bfloat16() for n, t in module.state_dict().items() if t.is_floating_point()}
    read = Checkpoint.of(half, label="half")
    for n, t in half.items():
        np.testing.assert_array_equal(read.array(n).astype(np.float32), t.float().numpy())
