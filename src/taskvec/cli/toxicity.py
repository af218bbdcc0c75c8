"""The commands about toxicity that stand beside studies: what a scorer is worth, and what a model wrote."""

from __future__ import annotations

import glob
import json
from pathlib import Path
from typing import Any

import click

from ..errors import InputError, UsageError, plain
from .commands import cli, json_flag, overwrite_flag
from .terminal import note, print_json


@cli.command(short_help="Measure a toxicity scorer on labelled texts, or train one.")
@click.argument("name")
@click.argument("texts")
@click.option("--text", default="text", show_default=True, help="Column of the texts.")
@click.option("--mark", default="label", show_default=True, help="Column of the labels.")
@click.option("--group", help="Column of the group that a text is about.")
@click.option(
    "--toxic", multiple=True, required=True, help="A label that means toxic; repeat. All others mean that it is not."
)
@click.option("--no-quoting", is_flag=True, help="Quotation marks are characters like others.")
@click.option("--threshold", type=click.FloatRange(0, 1, min_open=True), default=0.5, show_default=True)
@click.option("--limit", type=click.IntRange(2), default=6000, show_default=True, help="Most texts, drawn at random.")
@click.option("--train", is_flag=True, help="Make minilm:FILE from half of the texts; the other half measures it.")
@click.option("--download", is_flag=True, help="Let a model be fetched from the Hugging Face hub.")
@click.option("--device", help="cpu (the default), cuda or cuda:N.")
@overwrite_flag
@json_flag
def scorer(
    name: str, texts: str, text: str, mark: str, group: str | None, toxic: tuple[str, ...], no_quoting: bool, threshold: float,
    limit: int, train: bool, download: bool, device: str | None, overwrite: bool, as_json: bool,
) -> None:  # fmt: skip
    """Hold the scorer NAME against the labels of TEXTS: a file, or a pattern of files in quotes.

    NAME is linear, minilm:FILE, hf:FOLDER or hf:ID (with #LABEL if need be), detoxify, or words:FILE.

    \b
    taskvec scorer linear comments.csv --toxic 1
    taskvec scorer hf:unitary/toxic-bert comments.csv --toxic 1 --download
    taskvec scorer minilm:mine.safetensors 'posts/*.tsv.gz' --toxic hateful --toxic offensive --train
    """
    from ..tasks import scorers
    from ..tasks.agreement import measured, unseen
    from ..tasks.passages import read_passages

    files = [Path(p) for p in sorted(glob.glob(texts))] or [Path(texts)]  # noqa: PTH207 (a pattern may be absolute)
    found = read_passages(files, text=text, mark=mark, group=group, quoting=not no_quoting).drawn(limit)
    found.keep(toxic)  # a label that no text has is a mistake
    if train:
        kind, _, file = name.partition(":")
        if kind != "minilm" or not file:
            raise UsageError(f"--train makes a scorer minilm:FILE, not {name!r}.")
        learnt, found = found.halves()
        note(f"training on {len(learnt)} texts")
        judge = scorers.train_scorer(
            learnt.texts, [int(m in toxic) for m in learnt.marks], file, device=device, overwrite=overwrite
        )
    else:
        judge = scorers.scorer(name, download=download, device=device)
    new = unseen(judge, found)
    if len(new) < len(found):
        note(f"{len(found) - len(new)} texts left out, on which {judge.name} was trained")
    found = new
    labels = [int(m in toxic) for m in found.marks]
    agreement = measured(judge, found.texts, labels, groups=found.groups, threshold=threshold, data=found.name)
    if as_json:
        who = {"name": judge.name, "version": judge.version, "sha256": judge.sha256}
        print_json("scorer", {"scorer": who, "agreement": agreement.model_dump()})
        return
    print(f"{plain(judge.name)} ({plain(judge.version)}), sha256 {judge.sha256[:12]}")
    for group_name, a in (("all", agreement), *agreement.groups.items()):
        print(
            f"{plain(group_name):>20}  n {a.accuracy.n:>5}  AUC {_said(a.auc)}  accuracy {_said(a.accuracy)}  finds {_said(a.found)}  "
            f"calls others toxic {_said(a.alarms)}"
        )


def _said(score: Any) -> str:
    return f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"


@cli.command(short_help="Show what a model wrote in a study of toxicity, masked unless asked.")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--row", help="Only of this model, for example 'task arithmetic'.")
@click.option(
    "--most", type=click.IntRange(1), default=10, show_default=True, help="So many of each model, most toxic first."
)
@click.option("--show-text", is_flag=True, help="Show the words. They may be offensive.")
@json_flag
def continuations(path: Path, row: str | None, most: int, show_text: bool, as_json: bool) -> None:
    """Show the continuations of PATH: a file that a study with `keep_texts: true` wrote, or the study's folder.

    Words are dotted out but for their first letters, unless --show-text is given.
    """
    from ..protocols.toxicity import masked

    files = sorted(path.glob("cells/toxicity-*/continuations.jsonl")) if path.is_dir() else [path]
    if not files:
        raise InputError(f"there are no continuations in {plain(path)}. Set `keep_texts: true` in the study.")
    rows: dict[str, list[dict[str, Any]]] = {}
    for file in files:
        try:
            lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
            for said in lines:
                rows.setdefault(str(said["row"]), []).append(
                    {"score": float(said["score"]), "group": str(said["group"]), "text": str(said["text"])}
                )
        except OSError as error:
            raise InputError(f"cannot read the continuations {plain(file)}: {error.strerror}.") from error
        except (ValueError, KeyError, TypeError) as error:  # not in its words: they may quote the text
            raise InputError(
                f"{plain(file)} is no file of continuations, as a study with `keep_texts: true` writes (cells/*/continuations.jsonl)."
            ) from error
    if row is not None and row not in rows:
        raise UsageError(f"there is no model {row!r}; there are {', '.join(rows)}.")
    shown = {
        name: [
            {**s, "text": s["text"] if show_text else masked(s["text"])}
            for s in sorted(said, key=lambda s: -s["score"])[:most]
        ]
        for name, said in rows.items()
        if row in (None, name)
    }
    if as_json:
        print_json("continuations", {"continuations": shown})
        return
    for name, said in shown.items():
        print(f"{plain(name)} ({len(rows[name])} continuations)")
        for s in said:
            print(f"  {s['score']:.3f}  {plain(s['group'])}  {plain(s['text'])}")
