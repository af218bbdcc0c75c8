"""How often the intervals of the audit hold the truth, on samples of populations whose gaps are known.

    python benchmarks/coverage.py [--samples 400]

For one model: the parity difference of groups with these selection rates, with the interval of `group_metrics` and, beside it, with the
percentiles of the drawn gaps (what resampling usually reports). For two models: the change of the parity difference, and how often
`compare_models` calls it real. Every number is a share of the samples. Writes benchmarks/results/coverage.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from measure import machine, moment

from taskvec.protocols import compare_models, group_metrics
from taskvec.protocols.gaps import compared, gap_values, tallied
from taskvec.protocols.groups import counted

ALIKE, UNEVEN = (400,) * 5, (1000, 300, 100, 50, 40)
ONE: dict[str, tuple[tuple[int, ...], tuple[float, ...]]] = {
    "2 groups of 400, alike": ((400,) * 2, (0.3,) * 2),
    "2 groups of 400, gap 0.3": ((400,) * 2, (0.3, 0.6)),
    "5 groups of 400, alike": (ALIKE, (0.3,) * 5),
    "5 groups of 400, gap 0.05": (ALIKE, (0.3, 0.3, 0.3, 0.3, 0.35)),
    "10 groups of 400, alike": ((400,) * 10, (0.3,) * 10),
    "10 groups of 400, gap 0.3": ((400,) * 10, (0.3,) * 9 + (0.6,)),
    "uneven groups, alike": (UNEVEN, (0.3,) * 5),
    "uneven groups, gap 0.2": (UNEVEN, (0.3, 0.5, 0.4, 0.4, 0.4)),
    "5 groups of 30, alike, rate 0.02": ((30,) * 5, (0.02,) * 5),
}
GAP, EVEN = (0.3, 0.5, 0.4, 0.4, 0.4), (0.4,) * 5
TWO: dict[str, tuple[tuple[int, ...], tuple[float, ...], tuple[float, ...]]] = {
    "5 groups of 400, gap 0.2 stays": (ALIKE, GAP, GAP),
    "5 groups of 400, no gap, noisier": (ALIKE, (0.05,) * 5, (0.5,) * 5),
    "5 groups of 400, gap 0.2 halves": (ALIKE, GAP, (0.35, 0.45, 0.4, 0.4, 0.4)),
    "5 groups of 400, gap 0.2 vanishes": (ALIKE, GAP, EVEN),
    "uneven groups, gap 0.2 stays": (UNEVEN, GAP, GAP),
    "uneven groups, gap 0.2 vanishes": (UNEVEN, GAP, EVEN),
    "uneven groups, gap 0.2 appears": (UNEVEN, EVEN, GAP),
}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--samples", type=int, default=400)
    o = p.parse_args()
    one, two = {}, {}
    for name, (sizes, rates) in ONE.items():
        truth, found = max(rates) - min(rates), np.zeros(3)
        for seed in range(o.samples):
            rng = np.random.default_rng(seed)
            column = np.repeat(np.arange(len(sizes)), sizes)
            y, made = rng.random(len(column)) < 0.4, rng.random(len(column)) < np.array(rates)[column]
            groups = {f"g{i}": column == i for i in range(len(sizes))}
            gap = group_metrics(y, made, groups, bootstrap=300, min_cases=1, seed=seed).gaps["parity"]
            assert gap
            low, high = percentiles(y, made, groups, rng)
            found += [gap.low <= truth <= gap.high, gap.low > 0, low <= truth <= high]
        one[name] = dict(zip(("held", "shown", "held by percentiles"), (found / o.samples).tolist(), strict=True))
        print(name, one[name])
    for name, (sizes, first, second) in TWO.items():
        truth, found = (max(second) - min(second)) - (max(first) - min(first)), np.zeros(2)
        for seed in range(o.samples):
            rng = np.random.default_rng(seed)
            column = np.repeat(np.arange(len(sizes)), sizes)
            chance = rng.random(len(column))  # the same person is selected by both models, as far as the rates allow
            chance = np.where(rng.random(len(column)) < 0.8, [chance, chance], [chance, rng.random(len(column))])
            before, after = (c < np.array(r)[column] for c, r in zip(chance, (first, second), strict=True))
            y = rng.random(len(column)) < 0.4
            groups = {f"g{i}": column == i for i in range(len(sizes))}
            change = compare_models(y, before, after, groups, bootstrap=300, min_cases=1, seed=seed).gaps["parity"]
            found += [change.low <= truth <= change.high, change.real]
        two[name] = dict(zip(("held", "called real"), (found / o.samples).tolist(), strict=True))
        print(name, two[name])
    out = Path(__file__).parent / "results" / "coverage.json"
    facts = {"samples": o.samples, "one model": one, "two models": two}
    out.write_text(json.dumps({"machine": machine(None), "when": moment(), **facts}, indent=1) + "\n")


def percentiles(y: Any, made: Any, groups: dict[str, Any], rng: np.random.Generator) -> tuple[float, float]:
    """2.5 and 97.5 % of the parity differences of draws."""
    cells = counted(np.column_stack([*groups.values()]), y, made[:, None])
    able = compared(tallied(cells), len(groups), 1, 1)
    drawn = np.concatenate([gap_values(tallied(cells, 0, c), able)["parity"] for c in cells.draws(300, rng)])
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(low), float(high)


if __name__ == "__main__":
    main()
