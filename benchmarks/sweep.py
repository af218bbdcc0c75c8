"""What choosing a coefficient costs: 21 points in memory, against merging to disk and reloading for each, and against evaluation alone.

    python benchmarks/sweep.py [--data FOLDER] [--rounds 3] [--models small,minilm,vit] [--work FOLDER]

Three ways to the same 21 scores, in turn, in one process on one torch thread: `memory` is `taskvec.search.curves`; `disk` adds
the scaled vector to the base, writes the sum with safetensors' `save_file`, reads it with `load_file`, and puts it into the module;
`floor` evaluates one model 21 times. Each way has the same batches. What a trial costs beyond evaluation does not depend on the
number of samples, the ratios do: a larger validation split brings all three together. Models: a vision transformer as studies make
it, the packaged all-MiniLM-L6-v2 on sentences (`--data`: a folder of "Sentiment Labelled Sentences"), and CLIP's image encoder
ViT-B/32 with random weights on random images. Then a study that is finished is run again. Writes benchmarks/results/sweep.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
POINTS = 21
SAMPLES = {"small": 256, "minilm": 64, "vit": 4}
STUDY = """
study: 1
name: again
image: {size: 16, channels: 1}
tasks: [one, two]
bases: {random: {width: 16, depth: 1}}
regimes: [standard, linear-only, tangent, post-hoc]
fit: {steps: 4, batch: 8}
protocols: {addition: {}, disentanglement: {}, geometry: {}}
"""


def prepared(name: str, samples: int, data: Path | None) -> tuple[Any, Any, Any, Any]:
    """Model, base, validation split and head."""
    import torch

    from taskvec import Checkpoint
    from taskvec.tasks import Head, Split

    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(samples) % 10
    if name == "small":
        from taskvec.models.vit import small_vit

        model: Any = small_vit(image=32, channels=1, patch=8, width=128, depth=4, heads=4, generator=generator)
        base, width = Checkpoint.of(model, label="base"), 128
        inputs = torch.rand(samples, 1, 32, 32, generator=generator)
    elif name == "minilm":
        from taskvec.models.hub import minilm
        from taskvec.tasks.text import read_sentences

        if data is None:
            sys.exit("minilm needs --data: a folder with amazon_cells_labelled.txt")
        model, base, tokenise = minilm()
        sentences = read_sentences(data / "amazon_cells_labelled.txt")
        inputs, labels, width = tokenise(sentences.texts[:samples]), torch.tensor(sentences.labels[:samples]), 384
    else:
        from transformers import CLIPVisionConfig, CLIPVisionModel

        torch.manual_seed(0)
        config = CLIPVisionConfig(
            hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072, patch_size=32
        )

        class Encoder(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = CLIPVisionModel(config)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.inner(x).last_hidden_state[:, 0]

        model = Encoder()
        base, width = Checkpoint.of(model, label="base"), 768
        inputs = torch.rand(samples, 3, 224, 224, generator=generator)
    head = Head.random(10, width, generator=generator)
    return model.eval(), base, Split(inputs, labels), head


def sweep(name: str, samples: int, rounds: int, data: Path | None, work: Path) -> dict[str, Any]:
    import torch
    from safetensors.torch import load_file, save_file

    from taskvec import Checkpoint
    from taskvec.models.functional import tensors
    from taskvec.search import curves, grid

    model, base, split, head = prepared(name, samples, data)
    generator = torch.Generator().manual_seed(1)
    start = tensors(base, like=model)
    moving = {n: t for n, t in start.items() if t.is_floating_point()}  # not buffers such as position ids
    tuned = {n: t + 0.02 * t.std(correction=0) * torch.randn(t.shape, generator=generator) for n, t in moving.items()}
    vector = Checkpoint.of(start | tuned, label="tuned") - base
    tau, path, written = tensors(vector), work / "merged.safetensors", 0

    def score() -> float:
        with torch.inference_mode():
            found = [head(model(split.inputs[i : i + 128])).argmax(1) for i in range(0, len(split), 128)]
        return float((torch.cat(found) == split.labels).float().mean())

    def floor() -> list[float]:
        return [score() for _ in range(POINTS)]

    def memory() -> list[float]:
        found = curves(model, base, vector, {"v": (split, head)}, coefficients=grid(0, 1, POINTS))
        return [s.value for s in found["v"]]

    def disk() -> list[float]:
        nonlocal written
        out = []
        for c in grid(0, 1, POINTS):
            save_file(start | {n: t + c * tau[n] for n, t in moving.items()}, path)
            written += path.stat().st_size
            model.load_state_dict(load_file(path), strict=False)
            out.append(score())
        return out

    ways = {"floor": floor, "memory": memory, "disk": disk}
    runs: dict[str, list[dict[str, float]]] = {w: [] for w in ways}
    scores = {}
    score()  # the first call of a model is slow
    for turn in range(rounds):
        for way, run in ways.items():
            cpu, wall = time.process_time(), time.perf_counter()
            scores[way] = run()
            runs[way].append({"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall})
            print(f"{name} round {turn + 1} {way:7}" + "".join(f"  {k} {v:8.2f}" for k, v in runs[way][-1].items()), flush=True)  # fmt: skip
    path.unlink()
    apart = max(abs(a - b) for a, b in zip(scores["memory"], scores["disk"], strict=True))
    row: dict[str, Any] = {
        "samples": len(split), "weights_mb": sum(t.numel() for t in moving.values()) * 4 / 1e6,
        "written_mb": {"memory": 0.0, "disk": written / rounds / 1e6}, "scores_apart": apart,
        "cpu_s": {w: statistics.median(r["cpu_s"] for r in rs) for w, rs in runs.items()},
        "wall_s": {w: statistics.median(r["wall_s"] for r in rs) for w, rs in runs.items()},
        "runs": runs,
    }  # fmt: skip
    for figure in ("cpu_s", "wall_s"):
        pairs = {w: list(zip(runs[w], runs["floor"], strict=True)) for w in ("memory", "disk")}
        row[f"{figure} over floor"] = {w: statistics.median(a[figure] / b[figure] for a, b in p) for w, p in pairs.items()}  # fmt: skip
        row[f"{figure} a trial beyond floor"] = {
            w: statistics.median((a[figure] - b[figure]) / POINTS for a, b in p) for w, p in pairs.items()
        }
    return row


def resumed(rounds: int, work: Path) -> dict[str, Any]:
    """A finished study, run again: whole processes."""
    import numpy as np
    from measure import Kind, run
    from PIL import Image

    rng = np.random.default_rng(0)
    for task in ("one", "two"):
        for part, n in (("train", 30), ("test", 10)):
            for k in range(3):
                folder = work / "data" / task / part / f"class{k}"
                folder.mkdir(parents=True)
                for i in range(n):
                    Image.fromarray(rng.integers(0, 256, (16, 16)).astype(np.uint8)).save(folder / f"{i}.png")
    (work / "again.yaml").write_text(STUDY)
    command = [sys.executable, "-m", "taskvec.cli", "run", str(work / "again.yaml"), "--root", str(work / "data"), "-o", str(work / "out")]  # fmt: skip

    def timed(what: list[str]) -> dict[str, float]:
        # Without the memory: a child's peak counts what this process held when it was started.
        return {k: v for k, v in run(Kind(what)).items() if k != "memory_mb"}

    first, cells = timed(command), work / "out" / "cells"
    marks = {p: p.stat().st_mtime_ns for p in cells.rglob("*.json")}
    again = [timed(command) for _ in range(rounds)]
    if {p: p.stat().st_mtime_ns for p in cells.rglob("*.json")} != marks:
        sys.exit("a finished study computed something again")
    torch_alone = [timed([sys.executable, "-c", "import torch"]) for _ in range(rounds)]
    return {
        "cells": len(list(cells.glob("*/cell.json"))), "first": first,
        "again": {k: statistics.median(r[k] for r in again) for k in first},
        "import torch": {k: statistics.median(r[k] for r in torch_alone) for k in first},
    }  # fmt: skip


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--models", default="small,minilm,vit")
    p.add_argument("--work", type=Path, help="where merged models are written, else a temporary folder")
    a = p.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    import torch
    from measure import machine, moment

    torch.set_num_threads(1)
    rows = {}
    with tempfile.TemporaryDirectory(dir=a.work) as folder:
        for name in a.models.split(","):
            rows[name] = sweep(name, SAMPLES[name], a.rounds, a.data, Path(folder))
            print(json.dumps({k: v for k, v in rows[name].items() if k != "runs"}), flush=True)
        again = resumed(a.rounds, Path(folder))
        print(json.dumps(again))
    table = {"machine": machine(None), "when": moment(), "points": POINTS, "rows": rows, "finished study": again}
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "sweep.json").write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
