"""What an audit with bootstrap intervals costs: taskvec against drawing rows, in one process.

    python benchmarks/fairness.py [--people 100000] [--draws 1000] [--groups 8] [--probe 10]

A label, two models' predictions, `--groups` disjoint groups; then as many groups that overlap. taskvec draws the counts of the cells
(groups x label x prediction) from a multinomial distribution, which is the bootstrap of people, exactly. "rows" draws row numbers and
counts with NumPy's bincount; "fairlearn" is MetricFrame's own bootstrap. These two are timed on `--probe` draws and multiplied. CPU
seconds of one core. Writes benchmarks/results/fairness.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from fairlearn import metrics
from measure import machine, moment

from taskvec.protocols import compare_models, group_metrics


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--people", type=int, default=100_000)
    p.add_argument("--draws", type=int, default=1000)
    p.add_argument("--groups", type=int, default=8)
    p.add_argument("--probe", type=int, default=10)
    o = p.parse_args()
    rng = np.random.default_rng(0)
    column = rng.integers(0, o.groups, o.people)
    y = rng.random(o.people) < 0.3
    first, second = (rng.random(o.people) < 0.3 + 0.02 * column for _ in range(2))
    disjoint = {f"g{i}": column == i for i in range(o.groups)}
    overlapping = {f"g{i}": rng.random(o.people) < 0.2 for i in range(o.groups)}

    def timed(run: Callable[[], Any], times: float = 1.0) -> float:
        begin = time.process_time()
        run()
        return times * (time.process_time() - begin)

    def rows() -> None:
        cell = (column * 2 + y) * 2 + first
        for _ in range(o.probe):
            counts = np.bincount(cell[rng.integers(0, o.people, o.people)], minlength=4 * o.groups)
            by = counts.reshape(o.groups, 2, 2)
            by[..., 1].sum(1) / by.sum((1, 2)), by[:, 1, 1] / by[:, 1].sum(1), by[:, 0, 1] / by[:, 0].sum(1)

    names = ("selection_rate", "true_positive_rate", "false_positive_rate")
    measured = {n: getattr(metrics, n) for n in names}

    def frame(draws: int) -> None:
        metrics.MetricFrame(
            metrics=measured, y_true=y, y_pred=first, sensitive_features=column, n_boot=draws, ci_quantiles=[0.025, 0.975],
            random_state=0,
        )  # fmt: skip

    frame(1)
    once = timed(lambda: frame(1))

    scale = o.draws / o.probe
    seconds = {
        "audit": timed(lambda: group_metrics(y, first, disjoint, bootstrap=o.draws)),
        "audit, groups that overlap": timed(lambda: group_metrics(y, first, overlapping, bootstrap=o.draws)),
        "comparison of two models": timed(lambda: compare_models(y, first, second, disjoint, bootstrap=o.draws)),
        "rows": timed(rows, scale),
        "fairlearn": (timed(lambda: frame(o.probe + 1)) - once) * scale,
    }
    ratios = {n: seconds[n] / seconds["audit"] for n in ("rows", "fairlearn")}
    print({k: round(v, 3) for k, v in seconds.items()}, {k: round(v, 1) for k, v in ratios.items()})
    out = Path(__file__).parent / "results" / "fairness.json"
    facts = {**vars(o), "cpu_s": seconds, "ratios": ratios}
    out.write_text(json.dumps({"machine": machine(None), "when": moment(), **facts}, indent=1) + "\n")


if __name__ == "__main__":
    main()
