"""How many elements of a bfloat16 edit are the float64 result rounded once.

    python benchmarks/accuracy.py METHOD MODELS OUTPUT...

METHOD is one of CASES; MODELS a folder of benchmarks/checkpoints.py. Prints JSON: for each output (a file or a folder)
the share of elements equal to the float64 result rounded once (to nearest, ties to even); the share within one unit in
the last place of it; and the share no farther from the exact result than one rounding and SLACK times the sum of the
inputs' magnitudes, which is what arithmetic in float32 may add where terms cancel.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

BLOCK = 1 << 20
SLACK = 2.0**-22
CASES: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "task arithmetic": lambda base, a, b, c: base + 0.4 * ((a - base) + (b - base) + (c - base)),
    "average of three": lambda base, a, b, c: (a + b + c) / 3,
    "negation": lambda base, a, b, c: base - 0.4 * (a - base),
}


def tensors(path: Path) -> dict[str, np.ndarray]:
    """The bits of every bfloat16 tensor of a file or a folder of files."""
    found: dict[str, np.ndarray] = {}
    for file in sorted(path.glob("*.safetensors")) if path.is_dir() else [path]:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
        bits = np.memmap(file, np.uint16, "r", 8 + length)
        for name, entry in header.items():
            if name != "__metadata__":
                assert entry["dtype"] == "BF16", (file, name, entry["dtype"])
                begin, end = entry["data_offsets"]
                found[name] = bits[begin // 2 : end // 2]
    return found


def widen(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def rounded(values: np.ndarray) -> np.ndarray:
    """float64 to the bits of bfloat16 in one rounding: 45 of 52 places go, and by way of float32 would be two."""
    bits = values.view(np.uint64)
    nearest = bits + np.uint64((1 << 44) - 1) + ((bits >> np.uint64(45)) & np.uint64(1))
    exact = (nearest & ~np.uint64((1 << 45) - 1)).view(np.float64).astype(np.float32)
    return (exact.view(np.uint32) >> 16).astype(np.uint16)


def order(bits: np.ndarray) -> np.ndarray:
    """Consecutive integers for consecutive bfloat16 values; both zeros are 0."""
    magnitude = (bits & 0x7FFF).astype(np.int32)
    return np.where(bits & 0x8000, -magnitude, magnitude)


def compare(method: str, models: Path, outputs: list[Path]) -> dict[str, dict[str, float]]:
    inputs = [tensors(models / name) for name in ("base", "a", "b", "c")]
    results = [tensors(path) for path in outputs]
    counts = [{"rounded_once": 0, "within_one_ulp": 0, "one_rounding_and_float32": 0} for _ in outputs]
    total = 0
    for name, base in inputs[0].items():
        for at in range(0, base.size, BLOCK):
            block = slice(at, at + BLOCK)
            values = [widen(i[name][block]) for i in inputs]
            exact = CASES[method](*values)
            nearest = order(rounded(exact))
            half = np.ldexp(1.0, np.frexp(exact)[1] - 9)  # half a unit in the last of 8 places
            bound = half + SLACK * sum(np.abs(v) for v in values)
            total += exact.size
            for count, result in zip(counts, results, strict=True):
                bits = result[name][block]
                away = np.abs(order(bits) - nearest)
                count["rounded_once"] += int(np.count_nonzero(away == 0))
                count["within_one_ulp"] += int(np.count_nonzero(away <= 1))
                count["one_rounding_and_float32"] += int(np.count_nonzero(np.abs(widen(bits) - exact) <= bound))
    shares = [{k: v / total for k, v in count.items()} | {"elements": total} for count in counts]
    return {str(path): share for path, share in zip(outputs, shares, strict=True)}


if __name__ == "__main__":
    print(json.dumps(compare(sys.argv[1], Path(sys.argv[2]), [Path(p) for p in sys.argv[3:]])))
