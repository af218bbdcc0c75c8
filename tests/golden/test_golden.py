"""Files of a kilobyte or two, byte for byte: a change of the format on disk, or of a number, cannot pass unseen.

To renew them after an intended change: ``python tests/golden/test_golden.py``, and say why in the commit.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from taskvec.methods import dare, random_like, slerp, ties
from taskvec.weights import Checkpoint, TaskVector

HERE = Path(__file__).parent
BF16 = np.dtype(ml_dtypes.bfloat16)


def table(step: int) -> dict[str, np.ndarray]:
    """Values without randomness: a few of every format, a scalar, an empty tensor, a name outside ASCII."""
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    return {
        "w": x / 8 - step * (x % 5) / 16,
        "half": (x / 4 + step).astype(np.float16),
        "brain": (x / 4 - step * 0.3).astype(BF16),
        "double": np.linspace(0, 1, 3) * (1 + step),
        "scalar": np.array(0.1 + step, np.float32),
        "empty": np.zeros((0, 2), np.float32),
        "zähler": np.array([7 + step], np.int64),
        "mask": np.array([True, False]),
    }


def points() -> dict[str, Checkpoint | TaskVector]:
    base, *tuned = (Checkpoint.of(table(i), label=n) for i, n in enumerate(("base", "cars", "dtd", "sun")))
    cars, dtd, sun = (t - base for t in tuned)
    return {
        "base": base,
        "edited": base + 0.4 * (cars + dtd) - 0.1 * sun,
        "vector": cars - 0.5 * dtd,
        "methods": base
        + 0.5 * ties([cars, dtd, sun], density=0.4)
        + 0.1 * dare([cars, dtd], density=0.5, seed=7)
        + 0.1 * slerp([cars, -1 * sun], t=0.3),
        "random": random_like(cars, seed=1).restrict("w"),
    }


def stable(data: bytes) -> bytes:
    """Without what says which versions wrote it."""
    size = int.from_bytes(data[:8], "little")
    head = json.loads(data[8 : 8 + size])
    info = json.loads(head["__metadata__"]["taskvec"])
    assert set(info) >= {"schema_version", "taskvec", "numpy", "expression", "inputs"}
    for versions in ("taskvec", "numpy"):
        assert re.fullmatch(r"\d+\.\d+.*", info.pop(versions))
    head["__metadata__"]["taskvec"] = json.dumps(info)
    text = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


@pytest.mark.parametrize("name", ["base", "edited", "vector", "methods", "random"])
def test_written_bytes(name, tmp_path):
    written = points()[name].save(tmp_path / f"{name}.safetensors").read_bytes()
    golden = (HERE / f"{name}.safetensors").read_bytes()
    if name == "random":  # logarithm and cosine may differ in a last bit between builds of NumPy
        ours, theirs = (TaskVector.read(p) for p in (tmp_path / "random.safetensors", HERE / "random.safetensors"))
        np.testing.assert_allclose(ours.array("w"), theirs.array("w"), rtol=1e-5)
        return
    assert stable(written) == golden
    assert len(golden) < 2500


@pytest.mark.parametrize("name", ["base", "edited", "vector", "methods", "random"])
def test_the_published_reader_reads_them(name):
    safetensors = pytest.importorskip("safetensors")
    with safetensors.safe_open(HERE / f"{name}.safetensors", framework="np") as f:
        assert f.metadata()["format"] == "pt"
        expected = points()[name]
        assert sorted(f.keys()) == sorted(expected.names)
        mine = (TaskVector if isinstance(expected, TaskVector) else Checkpoint).read(HERE / f"{name}.safetensors")
        for n in f.keys():  # noqa: SIM118 - not a dictionary
            theirs = f.get_tensor(n)
            ours = mine.array(n)
            assert theirs.shape == ours.shape
            np.testing.assert_array_equal(theirs.astype(np.float64), ours.astype(np.float64))


def test_what_the_published_writer_writes_is_read(tmp_path):
    numpy_side = pytest.importorskip("safetensors.numpy")
    weights = {n: np.asarray(x) for n, x in table(1).items()}
    numpy_side.save_file(weights, tmp_path / "theirs.safetensors", metadata={"format": "np"})
    point = Checkpoint.read(tmp_path / "theirs.safetensors")
    assert point.fingerprint() == Checkpoint.of(weights).fingerprint()
    for n, x in weights.items():
        assert point.array(n).tobytes() == x.tobytes() and point.array(n).shape == x.shape


def test_fingerprints_are_what_they_were():
    """Vector files on people's disks name their base by this."""
    assert points()["base"].node.digest != ""
    assert Checkpoint.of(table(0)).node.source.fingerprint == (HERE / "fingerprint.txt").read_text().strip()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for key, point in points().items():
            file = point.save(Path(folder) / f"{key}.safetensors")
            (HERE / f"{key}.safetensors").write_bytes(stable(file.read_bytes()))
    (HERE / "fingerprint.txt").write_text(Checkpoint.of(table(0)).node.source.fingerprint + "\n")
