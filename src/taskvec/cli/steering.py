"""`taskvec steer`: a vector for each group of people, merged for accuracy and fairness, beside what does not need them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ..errors import InputError, UnknownName, UsageError, nearest, plain, some
from .commands import cli, json_flag, overwrite_flag
from .terminal import note, print_json
from .training import REGIMES, _regime


@cli.command(short_help="Train a vector per group of people; merge them for accuracy and fairness.")
@click.argument("base", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--out", "-o", required=True, type=click.Path(path_type=Path), help="The result, *.json, for `taskvec report`.")  # fmt: skip
@click.option("--set", "known", help="DATA is the folder of this known set: hatecheck, adult, compas, utkface, ...")
@click.option("--grouping", help="With --set: which attribute makes the groups.")
@click.option("--images", type=click.Path(path_type=Path), help="Images lie in this folder, and DATA is a table of their files.")  # fmt: skip
@click.option("--text", default="text", show_default=True, help="Column of the texts.")
@click.option("--file", "file", default="file", show_default=True, help="With --images: column of the files.")
@click.option("--label", default="label", show_default=True, help="Column of the labels.")
@click.option("--group", "group", multiple=True, metavar="COLUMN", help="Groups: the values of this column, several with ; between; repeat for every combination.")  # fmt: skip
@click.option("--member", "members", multiple=True, metavar="COLUMN", help="A group: a column of 0 and 1, or shares; repeat.")  # fmt: skip
@click.option("--terms", type=click.Path(path_type=Path), help="Groups by who is mentioned: lines of 'group: term, term'.")  # fmt: skip
@click.option(
    "--key", metavar="COLUMN", help="What must not be in two splits, such as a template; else the text or row."
)
@click.option("--drop", multiple=True, metavar="COLUMN", help="Perceptron: a column that is no input, such as names; repeat.")  # fmt: skip
@click.option("--group-as-input", is_flag=True, help="Perceptron: it sees the columns of the groups too.")
@click.option("--threshold", type=float, help="Labels are numbers: from here on they are positive.")
@click.option("--positive", help="The class that is selected; else the second one.")
@click.option("--regime", default="standard", show_default=True, help=f"One of {', '.join(REGIMES)}.")
@click.option("--only", help="Train only parameters whose names match this pattern.")
@click.option("--frozen-layers", type=click.IntRange(0), default=0, help="So many first layers of a BERT never learn, and are computed once.")  # fmt: skip
@click.option("--lora", is_flag=True, help="Also LoRA on all groups together.")
@click.option("--rival", "rivals", multiple=True, metavar="NAME=PATH", help="Also this vector of everybody: an adapter's folder (PEFT), a vector or a checkpoint; repeat.")  # fmt: skip
@click.option("--epochs", type=click.FloatRange(0, min_open=True), help="[default: 2; perceptron: 4]")
@click.option("--lr", type=float, help="[default: 1e-4; perceptron: 1e-3]")
@click.option("--batch", type=click.IntRange(1), help="[default: 16; perceptron: 64]")
@click.option("--max-tokens", type=click.IntRange(3), default=64, show_default=True)
@click.option("--early", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.3, show_default=True, help="Perceptron: share of the training rows that makes base and head.")  # fmt: skip
@click.option("--at-most", default="parity=0.05", show_default=True, metavar="GAP=LIMIT", help="The gap to keep small.")
@click.option("--accuracy-at-least", type=click.FloatRange(0, 1), metavar="SHARE", help="The least accuracy of what may be chosen; a gap can be closed by selecting nobody.")  # fmt: skip
@click.option("--points", type=click.IntRange(2), default=11, show_default=True, help="Coefficients from 0 to 1.")
@click.option("--each", is_flag=True, help="Also a coefficient for each group.")
@click.option("--inject", "injected", multiple=True, metavar="GROUP", help="Add this group's vector to full fine-tuning; else the worst group's.")  # fmt: skip
@click.option("--fairlearn", "frozen_features", is_flag=True, help="Also fairlearn's methods on frozen features.")
@click.option("--vectors", type=click.Path(path_type=Path), help="Keep the vectors, the head and a perceptron's base in this folder.")  # fmt: skip
@click.option("--min-n", type=click.IntRange(1), default=30, show_default=True, help="Least members for a group to be compared.")  # fmt: skip
@click.option("--min-cases", type=click.IntRange(1), default=10, show_default=True, help="Least positives, and negatives, for rates among them.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Chooses splits, batches and draws.")
@overwrite_flag
@json_flag
def steer(
    base: Path, data: Path, out: Path, known: str | None, grouping: str | None, images: Path | None, text: str, file: str, label: str,
    group: tuple[str, ...], members: tuple[str, ...], terms: Path | None, key: str | None, drop: tuple[str, ...], group_as_input: bool,
    threshold: float | None, positive: str | None, regime: str, only: str | None, frozen_layers: int, lora: bool, rivals: tuple[str, ...],
    epochs: float | None, lr: float | None, batch: int | None, max_tokens: int, early: float, at_most: str,
    accuracy_at_least: float | None, points: int, each: bool, injected: tuple[str, ...], frozen_features: bool, vectors: Path | None,
    min_n: int, min_cases: int, seed: int, overwrite: bool, as_json: bool,
) -> None:  # fmt: skip
    """Fine-tune the model BASE for every group of DATA under one head, and merge the vectors.

    BASE is the folder of a text encoder or of an image encoder, or `perceptron` for the rows of a table: one is then pre-trained on a
    part of the training rows (--early), which no vector sees, and every column but those of label and groups is an input. DATA is a
    CSV, TSV or parquet file, or with --set the folder of a known set. Of the samples 60 % train, 20 % validate (all choices),
    20 % test (read once for each row of the result).

    \b
    taskvec steer minilm/ posts.csv --group who --only 'encoder.layer.5.*' -o steering.json
    taskvec steer minilm/ posts.csv --terms terms.txt --label toxic --lora --each -o steering.json
    taskvec steer minilm/ data/ --set hatecheck --fairlearn -o steering.json
    taskvec steer perceptron people.csv --label hired --group sex --group age --drop name -o steering.json
    taskvec steer perceptron data/ --set adult --each --fairlearn -o steering.json
    taskvec steer vit/ faces.csv --images faces/ --label smiling --group age -o steering.json
    """
    if regime not in REGIMES:
        raise UsageError(f"unknown regime {regime!r}; expected one of {', '.join(REGIMES)}.{nearest(regime, REGIMES)}")
    constraint, limit = _limit(at_most)
    paths = _rivals(rivals)
    if taken := set(paths) & {"balanced", "LoRA"}:
        raise UsageError(f"--rival {min(taken)}: that row is trained here; call the rival otherwise.")
    for path in [out] if vectors is None else [out, vectors]:
        if path.exists() and not overwrite:
            raise UsageError(f"{plain(path)} exists. Use --overwrite to replace it, or name another.")
    from .. import training
    from ..protocols import steering
    from ..report.steering import steering_section
    from ..search import grid
    from ..tasks.groups import read_terms, told
    from ..tasks.people import kind_of, read_people
    from ..training.people import FIRST, confined, low_rank_rival, prepared
    from ..training.subgroups import subgroup_vectors

    table = str(base) == "perceptron"
    kind = kind_of(known, perceptron=table, images=images is not None)
    if table and paths:
        raise UsageError("--rival is a vector of a model that is there; the base of a perceptron is made here.")
    if frozen_layers and kind != "text":
        raise UsageError(f"--frozen-layers is for text encoders, and these are {kind}. For others, --only.")
    people = read_people(
        data, kind=kind, known=known, grouping=grouping, images=images, text=text, file=file, label=label, group=group, members=members,
        terms=read_terms(terms) if terms else None, key=key, threshold=threshold, drop=drop, group_as_input=group_as_input,
    )  # fmt: skip
    if positive is not None and positive not in people.classes:
        raise UnknownName(f"--positive {positive!r} is no class; there are {', '.join(people.classes)}.{nearest(positive, people.classes)}")  # fmt: skip
    epochs, lr, batch = (
        epochs or (4.0 if table else 2.0),
        lr or (1e-3 if table else 1e-4),
        batch or (64 if table else 16),
    )
    setting = _setting(kind, base, people, max_tokens=max_tokens, frozen_layers=frozen_layers, early=early, seed=seed)
    chosen = people.classes.index(positive) if positive else 1
    for line in (*setting.task.notes, *told(setting.task, positive=chosen)):
        note(line)
    how = confined(_regime(regime, only), setting.select)
    if lora and how.forward.split is not None:
        raise UsageError(f"--lora is trained through the ordinary model, so that it cannot stand beside regime {regime!r}. Leave it out.")  # fmt: skip
    how.names(setting.model)  # what matches nothing is said before any work
    what = (
        "pre-training base and head"
        if setting.early
        else f"probing a head of {len(people.classes)} classes on the base"
    )
    note(f"{what}, for all groups")
    setting = prepared(setting, spec=replace(FIRST, seed=seed))
    model, start, task = setting.model, setting.base, setting.task
    others = {n: _rival(path, start) for n, path in paths.items()}
    for n, vector in others.items():
        if vector.forward != how.forward.name:
            raise UsageError(f"--rival {n} was trained through the {vector.forward} model, regime {regime!r} is {how.forward.name}. Leave it out.")  # fmt: skip
        below = [p for p in vector.names if frozen_layers and not setting.select(p) and vector.array(p).any()]
        below = [p for p in below if not p.startswith("pooler.")]  # which no feature here goes through
        if below:
            raise UsageError(f"--rival {n} changes {len(below)} tensors ({some(below)}) that --frozen-layers {frozen_layers} keeps as in the base. Leave --frozen-layers out.")  # fmt: skip
    low_rank = None
    if lora:
        low_rank = (
            low_rank_rival(setting, only=(only,) if only else ())
            if table
            else confined(_regime("lora", only), setting.select)
        )
    note(how.said(model))
    spec = training.TrainSpec(lr=lr, batch=batch, seed=seed)
    made = subgroup_vectors(
        model, start, task, regime=how, epochs=epochs, spec=spec, low_rank=low_rank, progress=lambda n: note(f"training {n}")
    )  # fmt: skip
    if vectors is not None:
        _keep(vectors, made, task.needs_head(), overwrite, base=start if table else None)
    note("sweeping coefficients on validation data")
    found: Any = steering(
        model, start, made.vectors, task, full=made.full, rivals={**made.rivals, **others}, coefficients=grid(0, 1, points),
        constraint=constraint, at_most=limit, accuracy_at_least=accuracy_at_least, each=grid(0, 1, 6) if each else None,
        inject=list(injected) or "worst", frozen_features=frozen_features, positive=chosen, min_n=min_n, min_cases=min_cases, seed=seed,
        title=f"Steering fairness: {people.name}", notes=[f"{how.said(model)}; {epochs:g} epochs at rate {lr:g}", *task.notes],
    )  # fmt: skip
    found.write(out)
    if as_json:
        print_json("steer", {"output": str(out), "result": found.model_dump(mode="json")})
        return
    for sentence in steering_section(found).sentences:
        print(sentence.replace("\u00a0", " "))
    print(f"{plain(out)}: `taskvec report {plain(out)} -o report.html` draws it")


def _setting(
    kind: str, base: Path, people: Any, *, max_tokens: int, frozen_layers: int, early: float, seed: int
) -> Any:  # fmt: skip
    from ..training.people import image_setting, row_setting, text_setting

    if kind == "rows":
        return row_setting(people, share=early, seed=seed)
    if kind == "text":
        return text_setting(people, base, max_tokens=max_tokens, frozen_layers=frozen_layers, seed=seed)
    from ..models.encoders import encoder

    module, start, prepare, _ = encoder(base)
    return image_setting(people, module, start, prepare, seed=seed)


def _rivals(given: tuple[str, ...]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals or not name or not path or name in found:
            raise UsageError(f"--rival {text!r}: expected NAME=PATH with a new name, for example peft=adapter/.")
        if not Path(path).exists():
            raise InputError(f"--rival {name}: there is no {plain(path)}.")
        found[name] = Path(path)
    return found


def _rival(path: Path, base: Any) -> Any:
    """A vector of the base's model: an adapter, a file of a vector, or a checkpoint minus the base."""
    from ..interop import adapter
    from ..models.hub import opened
    from ..weights import Checkpoint, TaskVector
    from ..weights.adapter import is_adapter
    from ..weights.source import open_source

    if path.is_dir() and is_adapter(path):
        return adapter(path, base)
    if not path.is_dir() and open_source(path, path.stem).metadata.get("taskvec.kind") == "vector":
        vector = opened(TaskVector.read(path), base)
        _ = base + vector  # refuses a vector of another base
        return vector
    return Checkpoint.read(path).shared(base) - base


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


def _keep(folder: Path, made: Any, head: Any, overwrite: bool, *, base: Any = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    every = {**made.vectors, "all groups": made.full, **made.rivals}
    names = {n: "".join(c if c.isalnum() else "-" for c in n).lower() for n in every}
    if len(set(names.values())) < len(names):
        names = {n: f"{i}-{file}" for i, (n, file) in enumerate(names.items(), 1)}
    for n, vector in every.items():
        vector.save(folder / f"{names[n]}.safetensors", overwrite=overwrite)
    if base is not None:
        base.save(folder / "base.safetensors", overwrite=overwrite)
    head.save(folder / "head.safetensors", overwrite=overwrite)
