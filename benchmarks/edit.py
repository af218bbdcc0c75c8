"""Cost of editing checkpoints: taskvec against a peer and against the floor, in one run.

    python benchmarks/edit.py [--megabytes 270] [--rounds 3] [--peer-python PATH] [--json FILE]

Makes a base and three fine-tuned bfloat16 checkpoints of random numbers, then runs whole processes in turn, round by
round, and prints medians of per-round ratios. The floor reads all inputs and writes one output, nothing else. The peer
is mergekit, if `--peer-python` names an interpreter that has it (pip install mergekit==0.1.5 in its own environment).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ml_dtypes
import numpy as np

from taskvec import Checkpoint, __version__

METHODS = {
    "task arithmetic": ("base + 0.4 * ((a - base) + (b - base) + (c - base))", ("task_arithmetic", {"weight": 0.4})),
    "ties": ("base + ties([a - base, b - base, c - base], density=0.2)", ("ties", {"weight": 1.0, "density": 0.2})),
    "dare": ("base + 0.4 * dare([a - base, b - base, c - base], density=0.1)", ("dare_linear", {"weight": 0.4, "density": 0.1})),
}  # fmt: skip
FLOOR = """
import os, sys
*inputs, output = sys.argv[1:]
size = os.path.getsize(inputs[0])
fds = [os.open(p, os.O_RDONLY) for p in inputs]
out = os.open(output, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
os.posix_fallocate(out, 0, size)
import mmap
buffer = memoryview(mmap.mmap(-1, 1 << 19))
for at in range(0, size, 1 << 19):
    for fd in fds:
        n = os.preadv(fd, [buffer], at)
    os.pwrite(out, buffer[:n], at)
os.fsync(out)
"""


MODELS = ("base", "a", "b", "c")


def make(folder: Path, megabytes: int) -> None:
    """A LLaMA-shaped base and three fine-tuned models; loadable by the peer."""
    hidden, inner, vocabulary = 1024, 2816, 8192
    layer = {f"self_attn.{n}_proj.weight": (hidden, hidden) for n in "qkvo"}
    layer |= {"mlp.gate_proj.weight": (inner, hidden), "mlp.up_proj.weight": (inner, hidden)}
    layer |= {"mlp.down_proj.weight": (hidden, inner), "input_layernorm.weight": (hidden,)}
    layer |= {"post_attention_layernorm.weight": (hidden,)}
    per_layer = 2 * sum(int(np.prod(s)) for s in layer.values())
    layers = max(1, round((megabytes * 1e6 - 4 * vocabulary * hidden) / per_layer))
    shapes = {"model.embed_tokens.weight": (vocabulary, hidden), "lm_head.weight": (vocabulary, hidden)}
    shapes |= {"model.norm.weight": (hidden,)}
    shapes |= {f"model.layers.{i}.{n}": s for i in range(layers) for n, s in layer.items()}
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": vocabulary,
        "torch_dtype": "bfloat16", "tie_word_embeddings": False,
    }  # fmt: skip
    rng = np.random.default_rng(0)
    base = {n: rng.standard_normal(s, np.float32) * 0.02 for n, s in shapes.items()}
    for name in MODELS:
        scale = 0.0 if name == "base" else 5e-4
        weights = {
            n: (x + scale * rng.standard_normal(x.shape, np.float32)).astype(ml_dtypes.bfloat16)
            for n, x in base.items()
        }
        Checkpoint.of(weights, copy=False).save(folder / name)
        (folder / name / "config.json").write_text(json.dumps(config))


def peer_config(folder: Path, method: str, parameters: dict[str, float], paths: list[Path]) -> Path:
    models = [{"model": str(p), "parameters": parameters} for p in paths[1:]]
    config = {"merge_method": method, "base_model": str(paths[0]), "models": models, "dtype": "bfloat16"}
    path = folder / f"{method}.yml"
    path.write_text(json.dumps(config))
    return path


def run(command: list[str]) -> dict[str, float]:
    """Wall and CPU seconds and peak memory of one process."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} failed:\n{said.decode()[-2000:]}")
    wall = time.perf_counter() - begin
    return {"wall_s": wall, "cpu_s": usage.ru_utime + usage.ru_stime, "memory_mb": usage.ru_maxrss / 1000}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=270)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer-python", help="an interpreter whose environment has mergekit")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.make:
        make(arguments.make, arguments.megabytes)
        return
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        # In a process of its own: a child's peak memory counts what its parent held when it was started.
        size = ["--megabytes", str(arguments.megabytes)]
        subprocess.run([sys.executable, __file__, "--make", str(folder), *size], check=True)
        paths = [folder / name for name in MODELS]
        files = [str(p / "model.safetensors") for p in paths]
        lets = [x for n, p in zip(MODELS, paths, strict=True) for x in ("--let", f"{n}={p}")]
        for method, (expression, (peer_method, parameters)) in METHODS.items():
            kinds = {
                "floor": [sys.executable, "-c", FLOOR, *files, str(folder / "floor")],
                "taskvec": [sys.executable, "-m", "taskvec.cli", "edit", expression, *lets, "-o", str(folder / "out")],
            }
            if arguments.peer_python:
                config = peer_config(folder, peer_method, parameters, paths)
                script = "import sys; from mergekit.scripts.run_yaml import main; main()"
                kinds["peer"] = [
                    arguments.peer_python,
                    "-c",
                    script,
                    str(config),
                    str(folder / "peer"),
                    "--allow-crimes",
                ]
            runs: dict[str, list[dict[str, float]]] = {k: [] for k in kinds}
            for _ in range(arguments.rounds + 1):  # the first warms the page cache and is dropped
                for kind, command in kinds.items():
                    shutil.rmtree(folder / "out", ignore_errors=True)
                    shutil.rmtree(folder / "peer", ignore_errors=True)
                    runs[kind].append(run(command))
            row = {"memory_mb": statistics.median(r["memory_mb"] for r in runs["taskvec"][1:])}
            for other in (k for k in kinds if k != "taskvec"):
                for figure in ("wall_s", "cpu_s"):
                    pairs = zip(runs["taskvec"][1:], runs[other][1:], strict=True)
                    ratios = [t[figure] / o[figure] if other == "floor" else o[figure] / t[figure] for t, o in pairs]
                    row[f"{figure[:-2]}_{'over_floor' if other == 'floor' else 'peer_over_taskvec'}"] = (
                        statistics.median(ratios)
                    )
            rows[method] = row
            print(f"{method}: " + ", ".join(f"{k} {v:.2f}" for k, v in row.items()), flush=True)
    if arguments.json:
        facts = {
            "taskvec": __version__,
            "megabytes": arguments.megabytes,
            "rounds": arguments.rounds,
            "machine": platform.machine(),
        }
        arguments.json.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
