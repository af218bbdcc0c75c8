"""`taskvec steer`: a vector for each group of people, merged for accuracy and fairness, beside what does not need them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..errors import UnknownName, UsageError, nearest, plain
from .commands import cli, json_flag, overwrite_flag
from .terminal import note, print_json
from .training import REGIMES, _regime


@cli.command(short_help="Train a vector per group of people; merge them for accuracy and fairness.")
@click.argument("base", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--out", "-o", required=True, type=click.Path(path_type=Path), help="The result, *.json, for `taskvec report`.")  # fmt: skip
@click.option("--set", "known", help="DATA is the folder of this known set: hatecheck, hatexplain, civil-comments, ...")
@click.option("--grouping", help="With --set: which attribute makes the groups.")
@click.option("--text", default="text", show_default=True, help="Column of the texts.")
@click.option("--label", default="label", show_default=True, help="Column of the labels.")
@click.option("--group", help="Groups: the values of this column, several with ; between.")
@click.option("--member", "members", multiple=True, metavar="COLUMN", help="A group: a column of 0 and 1, or shares; repeat.")  # fmt: skip
@click.option("--terms", type=click.Path(path_type=Path), help="Groups by who is mentioned: lines of 'group: term, term'.")  # fmt: skip
@click.option("--key", metavar="COLUMN", help="What must not be in two splits, such as a template; else the text.")
@click.option("--threshold", type=float, help="Labels are numbers: from here on they are positive.")
@click.option("--positive", help="The class that is selected; else the second one.")
@click.option("--regime", default="standard", show_default=True, help=f"One of {', '.join(REGIMES)}.")
@click.option("--only", help="Train only parameters whose names match this pattern.")
@click.option("--lora", is_flag=True, help="Also LoRA on all groups together.")
@click.option("--epochs", type=click.FloatRange(0, min_open=True), default=2.0, show_default=True)
@click.option("--lr", type=float, default=1e-4, show_default=True)
@click.option("--batch", type=click.IntRange(1), default=16, show_default=True)
@click.option("--max-tokens", type=click.IntRange(3), default=64, show_default=True)
@click.option("--at-most", default="parity=0.05", show_default=True, metavar="GAP=LIMIT", help="The gap to keep small.")
@click.option("--accuracy-at-least", type=click.FloatRange(0, 1), metavar="SHARE", help="The least accuracy of what may be chosen; a gap can be closed by selecting nobody.")  # fmt: skip
@click.option("--points", type=click.IntRange(2), default=11, show_default=True, help="Coefficients from 0 to 1.")
@click.option("--each", is_flag=True, help="Also a coefficient for each group.")
@click.option("--inject", "injected", multiple=True, metavar="GROUP", help="Add this group's vector to full fine-tuning; else the worst group's.")  # fmt: skip
@click.option("--fairlearn", "frozen_features", is_flag=True, help="Also fairlearn's methods on frozen features.")
@click.option("--vectors", type=click.Path(path_type=Path), help="Keep the vectors and the head in this folder.")
@click.option("--min-n", type=click.IntRange(1), default=30, show_default=True, help="Least members for a group to be compared.")  # fmt: skip
@click.option("--min-cases", type=click.IntRange(1), default=10, show_default=True, help="Least positives, and negatives, for rates among them.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Chooses splits, batches and draws.")
@overwrite_flag
@json_flag
def steer(
    base: Path, data: Path, out: Path, known: str | None, grouping: str | None, text: str, label: str, group: str | None,
    members: tuple[str, ...], terms: Path | None, key: str | None, threshold: float | None, positive: str | None, regime: str,
    only: str | None, lora: bool, epochs: float, lr: float, batch: int, max_tokens: int, at_most: str,
    accuracy_at_least: float | None, points: int, each: bool,
    injected: tuple[str, ...], frozen_features: bool, vectors: Path | None, min_n: int, min_cases: int, seed: int, overwrite: bool, as_json: bool,
) -> None:  # fmt: skip
    """Fine-tune the text encoder in the folder BASE for every group of DATA under one head, and merge the vectors.

    DATA is a CSV, TSV or parquet file, or with --set the folder of a known set. Of the texts 60 % train, 20 % validate (all
    choices), 20 % test (read once for each row).

    \b
    taskvec steer minilm/ posts.csv --group who --only 'encoder.layer.5.*' -o steering.json
    taskvec steer minilm/ posts.csv --terms terms.txt --label toxic --lora --each -o steering.json
    taskvec steer minilm/ data/ --set hatecheck --fairlearn -o steering.json
    """
    if regime not in REGIMES:
        raise UsageError(f"unknown regime {regime!r}; expected one of {', '.join(REGIMES)}.{nearest(regime, REGIMES)}")
    constraint, limit = _limit(at_most)
    files = [out] if vectors is None else [out, vectors]
    for path in files:
        if path.exists() and not overwrite:
            raise UsageError(f"{plain(path)} exists. Use --overwrite to replace it, or name another.")
    from .. import training
    from ..models.hub import tokenizer, transformer
    from ..protocols import steering
    from ..report.steering import steering_section
    from ..search import grid
    from ..tasks.group_files import read_grouped
    from ..tasks.group_sets import GROUP_SETS, read_group_set
    from ..tasks.groups import grouped_task, read_terms, told
    from ..training.subgroups import subgroup_vectors

    if known:
        if known in GROUP_SETS and GROUP_SETS[known].kind != "text":
            raise UsageError(f"--set {known} holds {GROUP_SETS[known].kind}; this command trains text encoders. See examples/fairness_study.py.")  # fmt: skip
        people = read_group_set(known, data, grouping=grouping)
    else:
        words = read_terms(terms) if terms else None
        people = read_grouped(data, text=text, label=label, group=group, members=members, terms=words, key=key, threshold=threshold)  # fmt: skip
    if positive is not None and positive not in people.classes:
        raise UnknownName(f"--positive {positive!r} is no class; there are {', '.join(people.classes)}.{nearest(positive, people.classes)}")  # fmt: skip
    model, start = transformer(base)
    task = grouped_task(people, encode=tokenizer(base, max_tokens=max_tokens), seed=seed)
    chosen = task.classes.index(positive) if positive else 1
    for line in (*task.notes, *told(task, positive=chosen)):
        note(line)
    how, low_rank = _regime(regime, only), _regime("lora", only) if lora else None
    note(f"probing a head of {len(task.classes)} classes on the base, for all groups")
    task = task.with_head(training.probe(model, start, task))
    note(how.said(model))
    spec = training.TrainSpec(lr=lr, batch=batch, seed=seed)
    made = subgroup_vectors(
        model, start, task, regime=how, epochs=epochs, spec=spec, low_rank=low_rank, progress=lambda n: note(f"training {n}")
    )  # fmt: skip
    if vectors is not None:
        _keep(vectors, made, task.needs_head(), overwrite)
    note("sweeping coefficients on validation data")
    found: Any = steering(
        model, start, made.vectors, task, full=made.full, rivals=made.rivals, coefficients=grid(0, 1, points), constraint=constraint,
        at_most=limit, accuracy_at_least=accuracy_at_least, each=grid(0, 1, 6) if each else None, inject=list(injected) or "worst", frozen_features=frozen_features,
        positive=chosen, min_n=min_n, min_cases=min_cases, seed=seed, title=f"Steering fairness: {people.name}",
        notes=[f"{how.said(model)}; {epochs:g} epochs at rate {lr:g}", *task.notes],
    )  # fmt: skip
    found.write(out)
    if as_json:
        print_json("steer", {"output": str(out), "result": found.model_dump(mode="json")})
        return
    for sentence in steering_section(found).sentences:
        print(sentence.replace("\u00a0", " "))
    print(f"{plain(out)}: `taskvec report {plain(out)} -o report.html` draws it")


def _limit(text: str) -> tuple[Any, float]:
    name, equals, limit = text.partition("=")
    try:
        value = float(limit)
    except ValueError:
        value = -1.0
    if not equals or not 0 <= value <= 1:
        raise UsageError(f"--at-most {text!r}: expected GAP=LIMIT with a limit from 0 to 1, for example parity=0.05.")
    gaps = ("parity", "odds", "opportunity", "accuracy")
    if name not in gaps:
        raise UnknownName(f"--at-most {text!r}: the gap is one of {', '.join(gaps)}.{nearest(name, gaps)}")
    return name, value


def _keep(folder: Path, made: Any, head: Any, overwrite: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    every = {**made.vectors, "all groups": made.full, **made.rivals}
    names = {n: "".join(c if c.isalnum() else "-" for c in n).lower() for n in every}
    if len(set(names.values())) < len(names):
        names = {n: f"{i}-{file}" for i, (n, file) in enumerate(names.items(), 1)}
    for n, vector in every.items():
        vector.save(folder / f"{names[n]}.safetensors", overwrite=overwrite)
    head.save(folder / "head.safetensors", overwrite=overwrite)
