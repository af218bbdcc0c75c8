"""A demo over several seeds, as Markdown tables.

    python examples/demo_study.py --seeds 0 1 2 3 4 5
    python examples/demo_study.py --seeds 0 1 2 --text --data FOLDER


Every seed draws its own split, base, vectors and random vector. Brackets are 95 % intervals of one seed's test split (Wilson);
the last line is the mean and the standard deviation over the seeds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from taskvec.demo.digits import digits_setting
from taskvec.demo.questions import answers, task_vectors
from taskvec.demo.text import text_setting
from taskvec.results import Row, Score


def main() -> None:
    parser = argparse.ArgumentParser(description="A demo over several seeds, as Markdown tables.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, help="also write each seed's results here, as JSON")
    parser.add_argument("--quick", action="store_true", help="a few steps only, to try the script")
    parser.add_argument("--text", action="store_true", help="the text demo instead of the digits")
    parser.add_argument("--data", type=Path, help="with --text: folder of the sentence files")
    options = parser.parse_args()
    torch.set_num_threads(1)
    study = {}
    for seed in options.seeds:
        print(f"seed {seed} ...", file=sys.stderr)
        if options.text:
            setting = text_setting(seed=seed, data=options.data, quick=options.quick)
        else:
            setting = digits_setting(seed=seed, quick=options.quick)
        study[seed] = answers(setting, task_vectors(setting), seed=seed)
        if options.out:
            for result in study[seed]:
                result.write(options.out / f"seed{seed}-{result.kind}.json")
    print(markdown(study))


def markdown(study: dict[int, list]) -> str:
    """Three tables: a line per seed, a column per model."""
    forget, add, analogy = ({seed: results[i] for seed, results in study.items()} for i in range(3))
    first = forget[next(iter(forget))]
    n = {role: first.rows[0].scores[name].n for role, name in (("target", first.target), ("control", first.control))}
    parts = []
    for role, sense in (("target", "lower is better"), ("control", "to be kept")):
        name = getattr(first, role)
        models = ["base", "random vector", "gradient ascent", "task arithmetic"]
        cells = {s: [_tuned(r.row(m), r.row(m).scores[name]) for m in models] for s, r in forget.items()}
        values = {s: [r.row(m).scores[name].value for m in models] for s, r in forget.items()}
        parts.append(
            _table(f"Forget: {name}, the {role} ({sense}; n of the first seed {n[role]})", models, cells, values)
        )
    models = ["base", "random vector", "task arithmetic", "fine-tuned"]
    cells = {s: [_tuned(r.row(m), r.row(m).mean, normalised=True) for m in models] for s, r in add.items()}
    values = {s: [r.row(m).mean.value for m in models] for s, r in add.items()}
    tasks = add[next(iter(add))].tasks
    parts.append(
        _table(
            f"Add: {', '.join(tasks)}: mean accuracy; normalised accuracy after the bar (denominator: fine-tuned)",
            models,
            cells,
            values,
        )
    )
    models = ["base", "source", "random vector", "analogy", "target-tuned"]
    d = analogy[next(iter(analogy))]
    cells = {s: [_tuned(r.row(m), r.row(m).scores[r.task]) for m in models] for s, r in analogy.items()}
    values = {s: [r.row(m).scores[r.task].value for m in models] for s, r in analogy.items()}
    parts.append(_table(f"Analogy: {d.task} (n {d.rows[0].mean.n})", models, cells, values))
    return "\n\n".join(parts)


def _tuned(row: Row, score: Score, *, normalised: bool = False) -> str:
    text = f"{100 * score.value:.1f} [{100 * score.low:.1f}, {100 * score.high:.1f}]"
    if normalised and row.mean_normalised is not None:
        text += f" \\| {row.mean_normalised:.3f}"
    return text if row.coefficient is None else f"{text} at {row.coefficient:g}"


def _table(caption: str, models: Sequence[str], cells: dict[int, list[str]], values: dict[int, list[float]]) -> str:
    lines = [f"**{caption}**", "", "| seed | " + " | ".join(models) + " |", "|---" * (len(models) + 1) + "|"]
    lines += [f"| {seed} | " + " | ".join(row) + " |" for seed, row in cells.items()]
    columns = list(zip(*values.values(), strict=True))
    spread = [statistics.stdev(c) if len(c) > 1 else 0.0 for c in columns]
    means = [f"{100 * statistics.mean(c):.1f} ± {100 * s:.1f}" for c, s in zip(columns, spread, strict=True)]
    lines.append("| mean ± sd | " + " | ".join(means) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
