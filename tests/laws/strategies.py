"""Small weights for the laws: shapes with scalars and empty tensors, dyadic values whose sums are exact, odd values."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

from taskvec.weights import Checkpoint, TaskVector

BF16 = np.dtype(ml_dtypes.bfloat16)
SHAPES = ((), (0,), (1,), (2,), (3, 0), (3, 4), (99,), (100,), (2, 3, 5))
Weights = dict[str, np.ndarray]


def random_weights(seed: int, shapes: dict[str, tuple[int, ...]], *, dtype: object = np.float32) -> Weights:
    """Normal values over several magnitudes."""
    rng = np.random.default_rng(seed)
    return {
        n: np.asarray(rng.normal(size=s) * 2.0 ** rng.integers(-6, 3, size=s)).astype(dtype) for n, s in shapes.items()
    }


shape_tables = st.dictionaries(
    st.sampled_from(["w", "a.weight", "a.bias", "block.0.attn.q", "block.10.mlp", "ü", "x" * 40]),
    st.sampled_from(SHAPES),
    min_size=1,
    max_size=4,
)
seeds = st.integers(0, 2**32 - 1)
coefficients = st.floats(-4, 4, allow_nan=False, width=32)


def finite_values(dtype: np.dtype) -> st.SearchStrategy[np.ndarray]:
    """Up to 8 values of any finite bit pattern: -0.0, denormals, the largest."""
    width = dtype.itemsize * 8
    bits = st.lists(st.integers(0, 2**width - 1), min_size=1, max_size=8)

    def values(patterns: list[int]) -> np.ndarray:
        return np.array(patterns, f"u{dtype.itemsize}").view(dtype)

    return bits.map(values).filter(lambda x: bool(np.isfinite(x.astype(np.float64)).all()))


def family(seed: int, shapes: dict[str, tuple[int, ...]], count: int, *, dtype: object = np.float32):
    """A base and `count` task vectors of fine-tuned checkpoints of it, all in memory."""
    base = Checkpoint.of(random_weights(seed, shapes, dtype=dtype), label="base")
    vectors = []
    for i in range(count):
        tuned = random_weights(seed + 1000 + i, shapes, dtype=dtype)
        vectors.append(Checkpoint.of(tuned, label=f"t{i}") - base)
    return base, vectors


def equal_bits(a: Weights, b: Weights) -> None:
    """Same names in whatever order, same formats, shapes and bytes."""
    assert sorted(a) == sorted(b)
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert a[name].shape == b[name].shape, name
        assert a[name].tobytes() == b[name].tobytes(), name


def equal_values(a: Weights, b: Weights) -> None:
    """As `equal_bits`, but -0.0 equals 0.0."""
    assert sorted(a) == sorted(b)
    for name in a:
        assert a[name].shape == b[name].shape, name
        np.testing.assert_array_equal(a[name].astype(np.float64), b[name].astype(np.float64), err_msg=name)


def flat(vector: TaskVector) -> np.ndarray:
    """All entries in float64, names sorted."""
    table = vector.arrays()
    return np.concatenate([table[n].reshape(-1).astype(np.float64) for n in sorted(table)] or [np.zeros(0)])


def ulp(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The gap between neighbours of the format at x (float64 in, float64 out)."""
    info = ml_dtypes.finfo(dtype)
    _, exponent = np.frexp(np.abs(x))
    lowest = math.frexp(float(info.smallest_normal))[1]
    return np.ldexp(1.0, np.maximum(exponent, lowest) - 1 - info.nmant)
