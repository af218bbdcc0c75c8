"""Building blocks of bad files."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np


def file_of(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A file of the safetensors layout with whatever header, announced length and data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def sound(path: Path, table: dict[str, np.ndarray] | None = None, seed: int = 0) -> Path:
    """A sound file of float32 tensors."""
    from taskvec.weights import Checkpoint

    rng = np.random.default_rng(seed)
    table = table or {"w": rng.normal(size=(4, 4)).astype(np.float32), "b": rng.normal(size=4).astype(np.float32)}
    return Checkpoint.of(table, label="m").save(path)
