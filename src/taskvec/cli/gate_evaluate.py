"""`taskvec gate evaluate`: task addition beside its rivals."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import click

from ..errors import UsageError, plain
from .commands import json_flag, overwrite_flag
from .gate import LEARNING, SIZES, free, gate, losses_of, shape_of, smiles_option, spec_of, tell_counts, with_options
from .terminal import note, print_json


@gate.command(short_help="Compare task addition with its rivals on the same labels and splits.")
@click.argument("data", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--source", "sources", multiple=True, required=True, metavar="COLUMN", help="A property to pre-train on; repeat.")  # fmt: skip
@click.option("--target", "targets", multiple=True, required=True, metavar="COLUMN", help="A property to add; repeat.")
@click.option("--split", "by", type=click.Choice(["random", "scaffold"]), default="random", show_default=True)
@click.option("--labels", type=click.IntRange(4), default=200, show_default=True, help="Most labels of a target, to train and validate.")  # fmt: skip
@click.option(
    "--sizes", metavar="N,N,...,all", help="A learning curve over further numbers of labels, for example 25,50,100,all."
)
@click.option(
    "--ablate", is_flag=True, help="Add every target again without each loss, and with the supervised one alone."
)
@click.option("--folds", type=click.IntRange(2), default=5, show_default=True)
@click.option("--fold", default="0", show_default=True, metavar="K,K,...", help="Which of them tests: numbers from 0, a run for each, or `all`.")  # fmt: skip
@click.option("--seeds", default="0", show_default=True, help="One run for each (and each fold), with commas between.")
@click.option("--pretraining-steps", type=click.IntRange(1), help="Updates where all labels of the sources are used; else as --steps.")  # fmt: skip
@click.option("--chemprop", metavar="COMMAND", help="The command of an installed chemprop 2 (of any environment): one more rival.")  # fmt: skip
@smiles_option
@click.option("--out", "-o", required=True, type=click.Path(path_type=Path), help="The result, *.json, for `taskvec report`.")  # fmt: skip
@with_options(SIZES)
@with_options(LEARNING[:-1])
@overwrite_flag
@json_flag
def evaluate(
    data: tuple[Path, ...], sources: tuple[str, ...], targets: tuple[str, ...], by: Any, labels: int, sizes: str | None, ablate: bool,
    folds: int, fold: str, seeds: str, smiles: str | None, out: Path, embedding: str, width: int, latent: int, depth: int, steps: int, lr: float, batch: int,
    factors: tuple[str, ...], pretraining_steps: int | None, chemprop: str | None, overwrite: bool, as_json: bool,
) -> None:  # fmt: skip
    """Pre-train on the sources, add each target from few labels, and train the rivals on the same: a single-task network, a
    multi-task network, fine-tuning, a random forest, task arithmetic on the shared trunk, and chemprop, if it is named.

    Test molecules of the split train nothing. Errors are root mean squares in the target's own units. The result is written after
    every run (seed and fold), of all runs so far.
    """
    free(out, overwrite)
    chosen = _whole_numbers("--seeds", seeds, "0,1,2")
    if not chosen or min(chosen) < 0:
        raise UsageError(f"--seeds {seeds!r}: expected at least one whole number from 0 up.")
    held = list(range(folds)) if fold == "all" else _whole_numbers("--fold", fold, "0,1,2 or all")
    if not held or not 0 <= min(held) <= max(held) < folds:
        raise UsageError(f"--fold {fold!r}: expected whole numbers from 0 to {folds - 1} (--folds {folds}), or all.")
    numbers = [s.strip() for s in sizes.split(",")] if sizes is not None else []
    more = _whole_numbers("--sizes", ",".join(n for n in numbers if n != "all"), "25,50,100,all")
    losses, shape = losses_of(factors), shape_of(embedding, width, latent, depth)
    from ..gate import evaluate as compare
    from ..gate import gather, pooled
    from ..report.gate import gate_section

    molecules = gather(data, smiles=smiles, targets=[*sources, *targets])
    tell_counts(molecules)
    done: list[Any] = []
    for s, k in itertools.product(chosen, held):
        where = f"seed {s}, fold {k}" if len(held) > 1 else f"seed {s}"
        done.append(
            compare(
                molecules, sources=sources, targets=targets, by=by, labels=labels, folds=folds, fold=k, shape=shape, losses=losses,
                sizes=[*more, *([None] if "all" in numbers else [])], ablate=ablate, chemprop=chemprop,
                spec=spec_of(steps, lr, batch, s), pretraining=spec_of(pretraining_steps or steps, lr, batch, s),
                progress=lambda line, where=where: note(f"{where}: {line}"),
            )
        )  # fmt: skip
        pooled(done).write(out)  # after every run: if a later one fails, what there is stays
    found = pooled(done)
    if as_json:
        print_json("gate evaluate", {"output": str(out), "result": found.model_dump(mode="json")})
        return
    for sentence in gate_section(found).sentences:
        print(sentence.replace("\u00a0", " "))
    print(f"{plain(out)}: `taskvec report {plain(out)} -o report.html` draws it")


def _whole_numbers(option: str, text: str, example: str) -> list[int]:
    try:
        found = [int(s) for s in text.split(",")] if text else []
    except ValueError as error:
        raise UsageError(
            f"{option} {text!r}: expected whole numbers with commas between, for example {example}."
        ) from error
    if twice := sorted({n for n in found if found.count(n) > 1}):
        raise UsageError(f"{option} {text!r}: {twice[0]} is there more than once.")
    return found
