"""Does fairness gain from sub-group task vectors? The comparison of arXiv:2505.24262 on real data, with the controls it lacks.

    python examples/fairness_study.py adult --root FOLDER --seeds 0 1 2 -o OUT
    python examples/fairness_study.py hatexplain --root FOLDER --seeds 0 -o OUT

For each seed: one base, one head, one vector for each group; task addition with one coefficient and with one for each group,
full fine-tuning, LoRA, balanced samples (each as trained and with a coefficient chosen in the same way), fairlearn's methods on
frozen features, the vector of the worst group added to full fine-tuning, and the paper's bound. Then the same groups with a new random
head for each, as in code that was published, beside two controls. Coefficients are chosen on validation data, the test split
is read once for each row.

`adult`, `german`: a multi-layer perceptron, pre-trained on a part of the training data that no vector sees. `hatexplain`, `hatecheck`:
all-MiniLM-L6-v2, of which the last layer learns; the head is probed on the base. Hateful texts are read, never printed.

Each seed writes OUT/DATA-SEED.json (a result that `taskvec report` draws) and OUT/DATA-SEED.heads.json, and is left out when both are there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import taskvec as tv
from taskvec.methods import task_sum
from taskvec.models.hub import minilm_folder
from taskvec.protocols import group_metrics, steering
from taskvec.results import read_result
from taskvec.search import answers
from taskvec.tasks import Head, Split, Task
from taskvec.tasks.group_sets import GROUP_SETS, read_group_set
from taskvec.tasks.groups import Grouped, members, told
from taskvec.tasks.people import at_most_each
from taskvec.training import Regime, TrainSpec, fit
from taskvec.training.people import FIRST, low_rank_rival, prepared, row_setting, text_setting
from taskvec.training.subgroups import subgroup_vectors

FROZEN = 5  # of MiniLM's six layers
TOKENS = 32
MOST = 800  # posts of each group, and of no group
PARTS = (0.4, 0.25, 0.35)
SCALES = tv.grid(0, 1, 11)


def tabular(data: Grouped, seed: int):
    """Setting, regimes, spec and epochs: 30 % of the training rows make the base and the head."""
    made = prepared(row_setting(data, share=0.3, seed=seed), spec=replace(FIRST, seed=seed))
    return made, Regime("standard"), low_rank_rival(made), TrainSpec(lr=1e-3, batch=64, seed=seed), 4.0


def language(data: Grouped, seed: int):
    some = at_most_each(data, MOST, seed=seed)
    setting = text_setting(some, minilm_folder(), max_tokens=TOKENS, frozen_layers=FROZEN, parts=PARTS, seed=seed)
    made = prepared(setting, ridge=10.0)
    low_rank = low_rank_rival(made, rank=8, alpha=16.0)
    return made, Regime("standard", made.select), low_rank, TrainSpec(lr=2e-4, batch=16, seed=seed), 2.0


def heads(model, base, task: Task, regime: Regime, spec: TrainSpec, epochs: float, seed: int) -> dict:
    """Sub-group models with heads that learn too, merged with their heads: what a random head for each costs.

    "one frozen head": our way. "one start": all heads start at one random head and learn. "own random heads": each starts at another
    one, and the base's, which is subtracted, is yet another. The encoder learns in all of them.
    """
    classes, width = task.needs_head().weight.shape
    split, groups = task.validation, list(task.train.groups)

    def random_head(k: int) -> Head:
        # What transformers draws for a new classifier: N(0, 0.02^2), no bias.
        weight = 0.02 * torch.randn(classes, width, generator=torch.Generator().manual_seed(1000 * seed + k))
        return Head(weight, torch.zeros(classes))

    def merged(ways: str) -> dict:
        learning = ways != "one frozen head"
        start = random_head(0) if learning else task.needs_head()
        vectors, learnt = [], []
        for k, g in enumerate(groups, 1):
            own = members(task, g).with_head(random_head(k) if ways == "own random heads" else start)
            batch = min(spec.batch, len(own.train))
            steps = max(1, round(epochs * len(own.train) / batch))
            by = replace(regime, head="trained") if learning else regime
            made = fit(model, base, own, regime=by, spec=replace(spec, steps=steps, batch=batch))
            vectors.append(made.vector)
            learnt.append(made.head)
        total = task_sum(vectors)
        weight = torch.stack([h.weight - start.weight for h in learnt]).sum(0)  # zero where heads are frozen
        bias = torch.stack([h.bias - start.bias for h in learnt]).sum(0)

        def audit(c: float, part: Split):
            head = Head(start.weight + c * weight, start.bias + c * bias)
            logits = answers(model, base, {"sum": total}, {"x": (part, head)})({"sum": c})["x"]
            names = {n: m.numpy() for n, m in part.groups.items()}
            return group_metrics(part.labels.numpy(), (logits[:, 1] > logits[:, 0]).numpy(), names, bootstrap=400)

        looks = [audit(c, split) for c in tv.grid(0, 1, 11)]
        right = [a.overall.accuracy.value for a in looks if a.overall.accuracy]
        best = int(np.argmax(right))
        c = tv.grid(0, 1, 11)[best]
        test = audit(c, task.test)
        single = []
        for g, vector, head in zip(groups, vectors, learnt, strict=True):
            own = members(task, g).test
            logits = answers(model, base, {"v": vector}, {"x": (own, head)})({"v": 1.0})["x"]
            single.append(float((logits.argmax(1) == own.labels).float().mean()))
        noise = [float((random_head(k).weight - start.weight).norm()) for k in range(1, len(groups) + 1)]
        norms = [float((h.weight - start.weight).norm()) for h in learnt]
        return {
            "validation accuracy": right, "validation parity": [g.value for a in looks if (g := a.gap("parity"))], "coefficient": c,
            "validation selection": [a.overall.selection.value for a in looks if a.overall.selection],
            "test": test.model_dump(mode="json", include={"n", "overall", "gaps"}), "own group's accuracy, mean": statistics.mean(single),
            "head vectors' norms": norms, "noise in them": noise if ways == "own random heads" else [0.0] * len(norms),
        }  # fmt: skip

    return {w: merged(w) for w in ("one frozen head", "one start", "own random heads")}


def study(name: str, root: Path, seed: int, out: Path) -> None:
    result, defect = out / f"{name}-{seed}.json", out / f"{name}-{seed}.heads.json"
    if result.exists() and defect.exists():
        return
    began = time.process_time()
    data = read_group_set(name, root)
    rows = GROUP_SETS[name].kind == "rows"
    made, regime, low_rank, spec, epochs = (tabular if rows else language)(data, seed)
    model, base, task = made.model, made.base, made.task
    for line in (*task.notes, *told(task)):
        print("  " + line, file=sys.stderr)
    if not result.exists():
        made = subgroup_vectors(
            model, base, task, regime=regime, epochs=epochs, spec=spec, low_rank=low_rank,
            progress=lambda n: print(f"  {time.process_time() - began:6.0f} s  training {n}", file=sys.stderr),
        )  # fmt: skip
        found = steering(
            model, base, made.vectors, task, full=made.full, rivals=made.rivals, coefficients=SCALES, each=tv.grid(0, 1, 5),
            inject=list(made.vectors), frozen_features=True, seed=seed, title=f"Steering fairness: {name}, seed {seed}",
            notes=[f"{name}: {len(task.train)} samples to train, {len(task.validation)} for validation, {len(task.test)} for test; "
                   f"{regime.said(model)}; {epochs:g} epochs at {spec.lr:g}", *task.notes],
        )  # fmt: skip
        found.write(result)
        print(f"  {time.process_time() - began:6.0f} s  steering done", file=sys.stderr)
    if not defect.exists():
        defect.write_text(json.dumps(heads(model, base, task, regime, spec, epochs, seed), indent=1) + "\n")
    print(f"  {time.process_time() - began:6.0f} s  {name}, seed {seed}", file=sys.stderr)


def summary(name: str, seeds: list[int], out: Path) -> None:
    """Means over the seeds that are there; brackets are the interval of a single seed."""
    found = {s: read_result(out / f"{name}-{s}.json") for s in seeds if (out / f"{name}-{s}.json").exists()}
    if not found:
        return
    print(f"\n{name}, seeds {list(found)}, test n = {[r.rows[0].audit.n for r in found.values()]}\n")
    print(
        "| model | accuracy | parity gap | odds gap | worst group's accuracy | coefficient | limit kept on validation |"
    )
    print("|---|---|---|---|---|---|---|")
    for row in next(iter(found.values())).rows:
        rows = [r.row(row.name) for r in found.values() if any(x.name == row.name for x in r.rows)]
        audits = [r.audit for r in rows]
        columns = [
            [(a.overall.accuracy.value, a.overall.accuracy.low, a.overall.accuracy.high) for a in audits],
            [(g.value, g.low, g.high) for a in audits if (g := a.gap("parity"))],
            [(g.value, g.low, g.high) for a in audits if (g := a.gap("odds"))],
            [(w.accuracy.value, w.accuracy.low, w.accuracy.high) for a in audits if (w := a.worst)],
        ]

        def cell(values: list) -> str:
            mean = statistics.mean(v[0] for v in values)
            spread = f" ± {100 * statistics.stdev(v[0] for v in values):.1f}" if len(values) > 1 else ""
            return f"{100 * mean:.1f}{spread} [{100 * values[0][1]:.1f}, {100 * values[0][2]:.1f}]"

        at = ", ".join(f"{r.coefficient:g}" for r in rows if r.coefficient is not None)
        met = ", ".join("yes" if r.met else "no" for r in rows if r.met is not None)
        print(f"| {row.name} | " + " | ".join(map(cell, columns)) + f" | {at} | {met} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=("adult", "german", "hatexplain", "hatecheck"))
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("-o", "--out", type=Path, default=Path("fairness"))
    o = parser.parse_args()
    torch.set_num_threads(1)
    o.out.mkdir(parents=True, exist_ok=True)
    for seed in o.seeds:
        print(f"{o.data}, seed {seed} ...", file=sys.stderr)
        study(o.data, o.root, seed, o.out)
    summary(o.data, o.seeds, o.out)


if __name__ == "__main__":
    main()
