"""What a 21 x 21 grid of the disentanglement error costs: taskvec against the obvious ways, in one process.

    python benchmarks/grid.py [--samples 8] [--points 21] [--probe 6]

A BERT of MiniLM's shape (22.7 M random weights, 32 tokens), two random task vectors, `--samples` inputs for each of two tasks.
"merge and load" makes a new state dict for the joint and for both single-task models at each point and loads it; "JVP at each
point" evaluates torch.func.jvp for each of them. Both are timed on `--probe` points of the grid and multiplied; taskvec runs
the whole grid. CPU seconds, one torch thread. Writes benchmarks/results/grid.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from measure import machine, moment
from torch import nn
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

import taskvec as tv
from taskvec.models import linearised, plain
from taskvec.protocols import disentanglement
from taskvec.tasks import Head, Split, Task


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--samples", type=int, default=8)
    p.add_argument("--points", type=int, default=21)
    p.add_argument("--probe", type=int, default=6)
    o = p.parse_args()
    from transformers import BertConfig, BertModel

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = BertModel(config, add_pooling_layer=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x).last_hidden_state.mean(1)

    model = Encoder().eval()
    base = tv.Checkpoint.of(model, label="base")
    draw = np.random.default_rng(0)
    vectors = {
        n: tv.TaskVector.of(
            {m: (1e-2 * draw.standard_normal(s.shape)).astype(np.float32) for m, s in base.spec.items()}, base
        )
        for n in "ab"
    }
    tasks = []
    for n in "ab":
        split = Split(torch.randint(100, 30000, (o.samples, 32)), torch.zeros(o.samples, dtype=torch.long))
        head = Head.random(10, 384, generator=torch.Generator().manual_seed(0))
        tasks.append(Task(n, split, split, split, head, tuple("0123456789")))
    coefficients = tv.grid(0, 1, o.points)

    def timed(run):
        begin = time.process_time()
        out = run()
        return time.process_time() - begin, out

    seconds, results = {}, {}
    for rule in (plain, linearised):
        seconds[rule.name], results[rule.name] = timed(
            lambda rule=rule: disentanglement(model, base, vectors, tasks, coefficients=coefficients, forward=rule)
        )
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    moves = [{n: torch.from_numpy(a) for n, a in vectors[k].arrays().items()} for k in "ab"]
    picked = [(coefficients[i], coefficients[-1 - i]) for i in np.linspace(0, o.points - 1, o.probe).astype(int)]

    def predicted(features: torch.Tensor) -> torch.Tensor:
        return tasks[0].head(features).argmax(1)

    def merged(a: float, b: float, t: int) -> torch.Tensor:
        model.load_state_dict({n: s + a * moves[0][n] + b * moves[1][n] for n, s in start.items()}, strict=False)
        with torch.no_grad():
            return predicted(model(tasks[t].validation.inputs))

    def tangent(a: float, b: float, t: int) -> torch.Tensor:
        full = {n: a * moves[0][n] + b * moves[1][n] for n in start}
        with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            value, along = jvp(lambda w: functional_call(model, w, (tasks[t].validation.inputs,)), (start,), (full,))
        return predicted(value + along)

    for name, one in (("merge and load", merged), ("JVP at each point", tangent)):
        took, found = timed(
            lambda one=one: [
                [float((one(a, b, t) != one(*((a, 0.0) if t == 0 else (0.0, b)), t)).float().mean()) for t in (0, 1)]
                for a, b in picked
            ]
        )
        seconds[name] = took / len(picked) * o.points**2
        ours = results["plain" if name.startswith("merge") else "linearised"]
        table = ours.xi(ours.pairs[0])
        apart = max(
            abs(sum(x) - table[coefficients.index(a)][coefficients.index(b)])
            for x, (a, b) in zip(found, picked, strict=True)
        )
        print(
            f"{name}: {seconds[name]:.1f} s for the grid; xi, up to {max(map(max, table)):.2f}, differs from taskvec's by at most {apart:.3g}"
        )
    ratios = {
        "plain": seconds["merge and load"] / seconds["plain"],
        "linearised": seconds["JVP at each point"] / seconds["linearised"],
    }
    print({k: round(v, 1) for k, v in seconds.items()}, {k: round(v, 1) for k, v in ratios.items()})
    out = Path(__file__).parent / "results" / "grid.json"
    facts = {"samples": o.samples, "points": o.points, "probe": o.probe, "cpu_s": seconds, "ratios": ratios}
    out.write_text(json.dumps({"machine": machine(None), "when": moment(), **facts}, indent=1) + "\n")


if __name__ == "__main__":
    main()
