"""Regimes side by side over several seeds: does what is trained, and through which function, decide how well vectors add?

    python examples/regimes_study.py --seeds 0 1 2
    python examples/regimes_study.py --seeds 0 1 2 --text --data FOLDER

For each seed and regime: one vector for each of the demo's three tasks to be added, fine-tuned with each learning rate of
`--rates`; the rate is the one with the best mean accuracy of the single-task models on validation data. Then the addition
protocol (coefficient chosen on validation, test read once), and the disentanglement error on validation inputs (mean over
the box [0, 1] x [0, 1] and over the pairs). "post-hoc linearised" evaluates the standard vectors through the linearised model.
With digits, "random base" fine-tunes from the initial weights with a probed head. Brackets are 95 % intervals of one seed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import torch

import taskvec as tv
from taskvec.demo.digits import digits_setting
from taskvec.demo.text import FROZEN, text_setting
from taskvec.models import linearised, plain
from taskvec.models.parts import Part
from taskvec.models.vit import small_vit
from taskvec.protocols import addition, disentanglement
from taskvec.search import curves
from taskvec.select import everything, matching
from taskvec.training import PROBE, Rank, Regime, TrainSpec, fit


def regimes(late) -> list[Regime]:
    attention = Part("attention", within=late)
    return [
        Regime("standard", late),
        Regime("tangent", late, forward=linearised),
        Regime("linear-only", attention),
        Regime("tangent, attention", attention, forward=linearised),
        Regime("LoRA", attention, low_rank=Rank(rank=4, alpha=4.0)),
    ]


def trained(model, base, tasks, regime, spec, rates):
    """Vectors with the rate whose single-task models are best on validation."""
    found = {}
    for rate in rates:
        vectors = {t.name: fit(model, base, t, regime=regime, spec=replace(spec, lr=rate)).vector for t in tasks}
        scores = [
            curves(model, base, vectors[t.name], {t.name: (t.validation, t.head)}, coefficients=(1.0,), forward=regime.forward)[t.name][0].value
            for t in tasks
        ]  # fmt: skip
        found[rate] = (statistics.mean(scores), vectors)
    rate = max(found, key=lambda r: found[r][0])
    return rate, found[rate][1]


def study(seed, setting, late, steps, rates, points, start=None):
    rows = {}
    tasks = list(setting.add)

    def measure(name, model, base, tasks, vectors, forward, rate):
        added = addition(model, base, vectors, tasks, coefficients=setting.near, forward=forward)
        apart = disentanglement(model, base, vectors, tasks, coefficients=points, forward=forward)
        best = added.row("task arithmetic")
        rows[name] = {
            "rate": rate, "alone": added.row("fine-tuned").mean, "sum": best.mean, "normalised": best.mean_normalised,
            "coefficient": best.coefficient, "base": added.row("base").mean,
            "xi": statistics.mean(apart.mean(p) for p in apart.pairs),
        }  # fmt: skip
        print(f"  {name}: {rows[name]}", file=sys.stderr)

    spec = TrainSpec(steps=steps, batch=32, seed=seed)
    for regime in regimes(late):
        rate, vectors = trained(setting.model, setting.base, tasks, regime, spec, rates)
        measure(regime.name, setting.model, setting.base, tasks, vectors, regime.forward, rate)
        if regime.name == "standard":
            measure("post-hoc linearised", setting.model, setting.base, tasks, vectors, linearised, rate)
    if start is not None:  # the same network without pre-training
        heads = {t.name: fit(setting.model, start, t, regime=PROBE, spec=replace(spec, lr=3e-2)).head for t in tasks}
        own = [t.with_head(heads[t.name]) for t in tasks]
        rate, vectors = trained(setting.model, start, own, regimes(late)[0], replace(spec, steps=3 * steps), rates)
        measure("random base", setting.model, start, own, vectors, plain, rate)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-4, 1e-3, 3e-3])
    parser.add_argument("--steps", type=int)
    parser.add_argument("--text", action="store_true")
    parser.add_argument("--data", type=Path)
    o = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    for seed in o.seeds:
        print(f"seed {seed} ...", file=sys.stderr)
        if o.text:
            late = matching(*(f"encoder.layer.{i}.*" for i in range(FROZEN, 6)))
            found[seed] = study(
                seed, text_setting(seed=seed, data=o.data), late, o.steps or 30, o.rates, tv.grid(0, 1, 3)
            )
        else:
            start = tv.Checkpoint.of(small_vit(generator=torch.Generator().manual_seed(seed)), label="random")
            found[seed] = study(
                seed, digits_setting(seed=seed), everything, o.steps or 120, o.rates, tv.grid(0, 1, 5), start
            )
    names = list(found[o.seeds[0]])
    print("| regime | seed | rate | base | single tasks | sum | normalised | at | mean xi in the box |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in names:
        for seed, rows in found.items():
            r = rows[name]
            scores = [
                f"{100 * s.value:.1f} [{100 * s.low:.1f}, {100 * s.high:.1f}]"
                for s in (r["base"], r["alone"], r["sum"])
            ]
            print(
                f"| {name} | {seed} | {r['rate']:g} | "
                + " | ".join(scores)
                + f" | {r['normalised']:.3f} | {r['coefficient']:g} | {r['xi']:.3f} |"
            )
        if len(found) > 1:
            columns = [[100 * rows[name][k].value for rows in found.values()] for k in ("base", "alone", "sum")]
            columns += [[rows[name][k] for rows in found.values()] for k in ("normalised", "xi")]
            said = [
                f"{statistics.mean(c):.{d}f} ± {statistics.stdev(c):.{d}f}"
                for c, d in zip(columns, (1, 1, 1, 3, 3), strict=True)
            ]
            print(f"| **{name}** | mean ± sd | | " + " | ".join(said[:4]) + f" | | {said[4]} |")


if __name__ == "__main__":
    main()
