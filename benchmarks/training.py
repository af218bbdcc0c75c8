"""What a training step costs in each regime, as ratios to standard fine-tuning in the same run: time and added memory.

    python benchmarks/training.py [--rounds 3] [--steps 6] [--models bert,vit] [--batch 16]

Each measurement is a process of its own on one torch thread (`tv.fit` on random inputs, the median over the steps after
the first two); the regimes take turns. Shapes: `bert` is MiniLM's (22.7 M weights, 64 tokens), `vit` is CLIP's image
encoder ViT-B/32 (87 M weights, 224 pixels), both with random weights from transformers' configurations. Added memory is the
peak resident memory minus what was resident with model and data, before training. Writes benchmarks/results/training.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
REGIMES = ("STANDARD", "TANGENT", "LINEAR_ONLY", "TANGENT_ATTENTION", "LORA", "LINEARISED_LORA")
TARGETS = {"TANGENT": 1.75, "TANGENT_ATTENTION": 1.3, "LINEAR_ONLY": 0.8, "LORA": 0.75}


def resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def child(name: str, regime_name: str, steps: int, batch: int) -> None:
    import torch
    from torch import nn
    from transformers import BertConfig, BertModel, CLIPVisionConfig, CLIPVisionModel

    import taskvec as tv
    from taskvec.models.forward import linearised
    from taskvec.tasks import Head, Split, Task

    torch.set_num_threads(1)
    torch.manual_seed(0)
    count = batch * steps
    if name == "bert":
        config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
        inner, inputs = BertModel(config, add_pooling_layer=False), torch.randint(100, 30000, (count, 64))
    else:
        config = CLIPVisionConfig(
            hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072, patch_size=32
        )
        inner, inputs = CLIPVisionModel(config), torch.rand(count, 3, 224, 224)

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            states = self.inner(x).last_hidden_state
            return states.mean(1) if name == "bert" else states[:, 0]

    model = Encoder().eval()
    base = tv.Checkpoint.of(model, label="base")
    split = Split(inputs, torch.arange(count) % 10)
    task = Task(
        "random",
        split,
        split,
        split,
        Head.random(10, config.hidden_size, generator=torch.Generator()),
        tuple("0123456789"),
    )
    if regime_name == "TANGENT_ATTENTION":
        regime = tv.Regime("tangent, attention", tv.training.LINEAR_ONLY.select, forward=linearised)
    else:
        regime = getattr(tv.training, regime_name)
    marks = [time.process_time()]
    before = resident()
    tv.fit(
        model, base, task, regime=regime, spec=tv.TrainSpec(steps=steps, batch=batch, lr=1e-5),
        progress=lambda *_: marks.append(time.process_time()),
    )  # fmt: skip
    times = [b - a for a, b in itertools.pairwise(marks)][2:]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(json.dumps({"cpu_s": statistics.median(times), "added_mb": peak - before}))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--steps", type=int, default=6)
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--models", default="bert,vit")
    p.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.child:
        child(*a.child, a.steps, a.batch)
        return
    from measure import machine, moment

    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    for name in a.models.split(","):
        for turn in range(a.rounds):
            for regime in REGIMES:
                command = [
                    sys.executable,
                    __file__,
                    "--child",
                    name,
                    regime,
                    "--steps",
                    str(a.steps),
                    "--batch",
                    str(a.batch),
                ]
                said = subprocess.run(command, env=environment, capture_output=True, text=True)
                if said.returncode:
                    sys.exit(said.stderr)
                got = json.loads(said.stdout.splitlines()[-1])
                found.setdefault(name, {}).setdefault(regime, []).append(got)
                print(
                    f"{name} round {turn + 1} {regime:18} {got['cpu_s']:7.3f} s a step  {got['added_mb']:7.0f} MB added"
                )
    rows = {}
    for name, kinds in found.items():
        standard = kinds["STANDARD"]
        for regime, runs in kinds.items():
            rows[f"{name} {regime}"] = {
                "cpu_s": [r["cpu_s"] for r in runs],
                "added_mb": [r["added_mb"] for r in runs],
                "time_ratio": statistics.median(r["cpu_s"] / s["cpu_s"] for r, s in zip(runs, standard, strict=True)),
                "memory_ratio": statistics.median(
                    r["added_mb"] / s["added_mb"] for r, s in zip(runs, standard, strict=True)
                ),
                "time_target": TARGETS.get(regime),
            }
            row = rows[f"{name} {regime}"]
            print(
                f"{name:5} {regime:18} time {row['time_ratio']:.2f}  memory {row['memory_ratio']:.2f}  (target {row['time_target']})"
            )
    table = {"machine": machine(None), "when": moment(), "batch": a.batch, "steps": a.steps, "rows": rows}
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "training.json").write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
