"""Shared by all tests: a deterministic hypothesis profile, small weights, and the command line called in process."""

from __future__ import annotations

import json
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import settings

settings.register_profile("suite", derandomize=True, deadline=None, max_examples=20, database=None)
settings.load_profile("suite")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that starts the suite in the background has it ignore interrupts, and so would every command that tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)

BF16 = np.dtype(ml_dtypes.bfloat16)


@pytest.fixture
def weights() -> Callable[..., dict[str, np.ndarray]]:
    """``weights(seed, dtype=..., scale=...)``: a small state dict with a matrix, a scalar, an empty tensor and a counter."""

    def make(seed: int = 0, *, dtype: object = np.float32, scale: float = 1.0) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        return {
            "a.weight": (scale * rng.normal(size=(7, 5))).astype(dtype),
            "a.bias": (scale * rng.normal(size=5)).astype(dtype),
            "scale": np.asarray(scale * rng.normal()).astype(dtype),
            "empty": np.zeros((0, 3), dtype),
            "counter": np.array([3, 4], np.int64),
            "mask": np.array([True, False, True]),
        }

    return make


@pytest.fixture
def run_cli(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """``run_cli("edit", ...)`` -> (exit code, stdout, stderr), in process; asserts that nothing looks like a traceback."""
    from taskvec.cli import _run

    handler, show = signal.getsignal(signal.SIGTERM), warnings.showwarning

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = _run([str(a) for a in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        assert "bug in taskvec" not in err, err
        return code, out, err

    yield run
    signal.signal(signal.SIGTERM, handler)
    warnings.showwarning = show


@pytest.fixture
def untouched(tmp_path: Path) -> Callable[[Path], Callable[[], None]]:
    """``check = untouched(folder)``; later ``check()`` fails unless the folder holds the same files with the same bytes."""

    def remember(folder: Path) -> Callable[[], None]:
        def look() -> dict[str, bytes | None]:
            return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}

        before = look()

        def check() -> None:
            after = look()
            assert sorted(after) == sorted(before), "files appeared or vanished"
            assert after == before, "a file's content changed"

        return check

    return remember


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP model of 8 x 8 pixels with random weights and a tokenizer of letters."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra: hf)")
    import torch

    path = tmp_path_factory.mktemp("models") / "clip"
    path.mkdir()
    letters = [*"abcdefghijklmnopqrstuvwxyz."]
    vocabulary = [*letters, *(f"{x}</w>" for x in letters), "<|startoftext|>", "<|endoftext|>"]
    (path / "vocab.json").write_text(json.dumps({x: i for i, x in enumerate(vocabulary)}))
    (path / "merges.txt").write_text("#version: 0.2\n")
    tokens = {
        "bos_token_id": len(vocabulary) - 2,
        "eos_token_id": len(vocabulary) - 1,
        "pad_token_id": len(vocabulary) - 1,
    }
    transformers.CLIPTokenizer(vocab=str(path / "vocab.json"), merges=str(path / "merges.txt")).save_pretrained(path)
    tower = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "projection_dim": 8,
    }
    config = transformers.CLIPConfig(
        text_config={**tower, "vocab_size": len(vocabulary), "max_position_embeddings": 20, **tokens},
        vision_config={**tower, "image_size": 8, "patch_size": 4}, projection_dim=8,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.CLIPModel(config).save_pretrained(path)
    return path
