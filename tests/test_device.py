"""Computing through torch gives NumPy's bits. torch's own CPU device stands in for the accelerator here."""

from __future__ import annotations

import json
import sys

import ml_dtypes
import numpy as np
import pytest

import taskvec as tv
from method_rows import apply
from taskvec.errors import UsageError
from taskvec.methods import METHODS
from taskvec.verify import verify
from taskvec.weights import device as devices
from taskvec.weights import output

torch = pytest.importorskip("torch", reason="torch is not installed (extra: train)")
FORMATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
FORMATS |= {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2}


@pytest.fixture
def through_torch(monkeypatch):
    """The name "cuda" means torch on this processor; blocks are small enough to be several."""
    there = devices.through_torch("cpu")
    small = devices.Device("cuda", 1000, there.up, there.down)
    monkeypatch.setattr(output, "named", lambda name: small if name == "cuda" else devices.device(name))


def family(count, dtype, seed=0):
    rng = np.random.default_rng(seed)
    base = {
        "w": rng.normal(size=(70, 50)),
        "b": rng.normal(size=50),
        "scalar": rng.normal(size=()),
        "none": np.zeros((0, 4)),
    }
    points = [base] + [{n: x + 0.1 * rng.normal(size=x.shape) for n, x in base.items()} for _ in range(count)]
    made = [{n: x.astype(dtype) for n, x in p.items()} | {"steps": np.arange(3)} for p in points]
    base, *tuned = (tv.Checkpoint.of(p, label=f"m{i}") for i, p in enumerate(made))
    return base, [t - base for t in tuned]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_the_same_bytes(method, format, through_torch, tmp_path):
    row = METHODS[method]
    base, vectors = family(row.vectors[1] or 3, FORMATS[format])
    edited = base + 0.5 * apply(method, vectors)
    here = edited.save(tmp_path / "here.safetensors")
    there = edited.save(tmp_path / "there.safetensors", device="cuda")
    a, b = tv.Checkpoint.read(here), tv.Checkpoint.read(there)
    assert a.spec == b.spec
    for name in a.spec:
        assert a.array(name).tobytes() == b.array(name).tobytes(), name


def test_absent_names_and_parts(through_torch, tmp_path):
    base, (a, b, c) = family(3, np.float32)
    edited = base + tv.methods.ties([a.restrict("w"), b.restrict("b"), c]) - 0.3 * b.restrict("w")
    here, there = (edited.save(tmp_path / f"{d}.safetensors", device=d) for d in ("cpu", "cuda"))
    assert tv.Checkpoint.read(here).node.digest == tv.Checkpoint.read(there).node.digest
    difference = a + 0.5 * c
    here, there = (difference.save(tmp_path / f"v{d}.safetensors", device=d) for d in ("cpu", "cuda"))
    assert tv.TaskVector.read(here).array("w").tobytes() == tv.TaskVector.read(there).array("w").tobytes()


def test_the_output_says_where_it_was_computed(through_torch, tmp_path):
    base, vectors = family(2, np.float32)
    base.save(tmp_path / "base")
    (base + vectors[0]).save(tmp_path / "tuned")
    base, tuned = tv.Checkpoint.read(tmp_path / "base"), tv.Checkpoint.read(tmp_path / "tuned")
    (base + 0.5 * (tuned - base)).save(tmp_path / "out", device="cuda")
    assert json.loads((tmp_path / "out" / "taskvec.json").read_text())["device"] == "cuda"
    found = verify(tmp_path / "out")
    assert found.ok and "computed on cuda, verified on cpu" in " ".join(found.notes)
    again = verify(tmp_path / "out", device="cuda")
    assert again.ok and not again.notes
    (base + 0.5 * (tuned - base)).save(tmp_path / "plain")
    assert "device" not in json.loads((tmp_path / "plain" / "taskvec.json").read_text())


def test_bad_values_are_found_there_too(through_torch, tmp_path):
    base, (a,) = family(1, np.float16)
    with pytest.raises(tv.errors.NonFinite, match="overflow F16"):
        (base + 1e6 * a).save(tmp_path / "out", device="cuda")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "CUDA", "mps", ""])
def test_a_device_that_is_none(name, tmp_path):
    base, (a,) = family(1, np.float32)
    with pytest.raises(UsageError, match="cpu, cuda, or cuda:N"):
        (base + a).save(tmp_path / "out", device=name)
    assert not list(tmp_path.iterdir())


def test_a_device_that_is_not_here(tmp_path, run_cli):
    family(1, np.float32)[0].save(tmp_path / "base")
    code, _, err = run_cli(
        "edit", "base", "--let", f"base={tmp_path / 'base'}", "-o", tmp_path / "out", "--device", "cuda:99"
    )
    assert code == 2 and "'cuda:99'" in err and "--device cpu" in err
    assert not (tmp_path / "out").exists()


def test_without_torch(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    base, (a,) = family(1, np.float32)
    with pytest.raises(tv.errors.MissingExtra, match=r"taskvec\[train\]"):
        (base + a).save(tmp_path / "out", device="cuda")


@pytest.mark.gpu
def test_a_real_accelerator(tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    for method, row in METHODS.items():
        base, vectors = family(row.vectors[1] or 3, ml_dtypes.bfloat16)
        edited = base + 0.5 * apply(method, vectors)
        here, there = (edited.save(tmp_path / f"{method}-{d}.safetensors", device=d) for d in ("cpu", "cuda"))
        for name in edited.spec:
            assert tv.Checkpoint.read(here).array(name).tobytes() == tv.Checkpoint.read(there).array(name).tobytes()
