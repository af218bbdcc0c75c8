"""The demo's text setting: the pre-trained MiniLM and three files of labelled review sentences."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from ..models.functional import bind, require_torch, tensors
from ..models.hub import minilm, split_at
from ..search import grid
from ..select import matching
from ..tasks import Head, Split, Task
from ..tasks.text import Sentences, order_task, origin_task, quoting, read_sentences, sentences_task
from ..training import Regime, TrainSpec, fit
from ..training.probe import probe_features
from ..weights import Checkpoint
from .setting import Setting

if TYPE_CHECKING:
    import torch

    Lift = Callable[[torch.Tensor], torch.Tensor]

FILES = {"phones": "amazon_cells_labelled.txt", "films": "imdb_labelled.txt", "restaurants": "yelp_labelled.txt"}
FOLDERS = (".", "sentiment labelled sentences", "uci_sentiment_sentences")  # as unpacked, and as often renamed
VARIABLE = "TASKVEC_DATA"
PARTS = (0.6, 0.15, 0.25)
HEAD = TrainSpec(steps=200, lr=1e-3, batch=128)  # an early head: the frozen layers below it were not made for sentiment
FROZEN = 4  # of six layers; the embeddings and these stay as they are, so their outputs are computed once
TOKENS = 32


def text_setting(*, seed: int = 0, data: str | Path | None = None, quick: bool = False) -> Setting:
    """Three questions about review sentences (UCI "Sentiment Labelled Sentences") for the pre-trained all-MiniLM-L6-v2.

    Nothing is pre-trained here. Heads are linear probes of the base's features, frozen from then on; fine-tuning changes
    the last two of six layers. Sentiment of all sites shares one head, probed on plain sentences only.

    Args:
        seed: chooses splits, quotations and batches.
        data: folder of the three files, else the environment variable TASKVEC_DATA.
        quick: few sentences and steps, to see that all parts run; the numbers mean nothing.
    Raises:
        InputError: the files are not there; says where to get them.
        MissingExtra: torch, transformers or the model's package is not installed.
    """
    torch = require_torch("The text demo")
    folder = find_files(data)
    files = {name: read_sentences(folder / file, name=name) for name, file in FILES.items()}
    if quick:
        files = {n: replace(s, texts=s.texts[:80], labels=s.labels[:80]) for n, s in files.items()}
    whole, base, tokenise = minilm(max_tokens=TOKENS)
    model, lower = split_at(whole, FROZEN)
    f, weights = bind(model), tensors(base, like=model)
    common = {"tokenise": tokenise, "parts": PARTS, "seed": seed}

    def features(states: torch.Tensor) -> torch.Tensor:
        return f(weights, states)

    plain = {name: _lifted(sentences_task(s, name=_opinion(name), **common), lower) for name, s in files.items()}
    head = probed([_lifted(t, features) for t in plain.values()], seed=seed)

    def ready(task: Task) -> Task:
        return task.with_head(probed([_lifted(task, features)], seed=seed))

    def quoted(name: str) -> Task:
        other: Sentences = quoting(files[name], seed=seed)
        return _lifted(sentences_task(other, name=f"{_opinion(name)}, quoting", **common), lower).with_head(head)

    cells = {
        "A": plain["phones"].with_head(head),
        "B": quoted("phones"),
        "C": plain["restaurants"].with_head(head),
        "D": quoted("restaurants"),
    }
    origin = origin_task(list(files.values()), name="site", **common)
    # The same sentences in the same order as in `plain`: their states are there already.
    states = {k: torch.cat([_parts(t)[k].inputs for t in plain.values()]) for k in _parts(origin)}
    origin = ready(replace(origin, **{k: Split(states[k], s.labels) for k, s in _parts(origin).items()}))
    order = ready(_lifted(order_task(files["films"], **common), lower))
    alone = (*cells.values(), origin, order)
    upper = Regime(f"layers from {FROZEN}", select=matching(*(f"encoder.layer.{i}.*" for i in range(FROZEN, 6))))
    spec = TrainSpec(steps=2 if quick else 30, lr=3e-4, batch=32, seed=seed)

    def train(task: Task, ascent: bool) -> Checkpoint:
        # A task joined of three gets the steps of all three.
        own = spec if any(task is t for t in alone) else replace(spec, steps=3 * spec.steps)
        fitted = fit(model, base, task, regime=upper, spec=own, ascent=ascent, label=task.name)
        return fitted.checkpoint.restrict(fitted.vector.names)

    counts = [len(plain["phones"].train), len(plain["phones"].validation), len(plain["phones"].test)]
    return Setting(
        title="taskvec demo: review sentences",
        told=(
            f"Data: {sum(len(s) + s.repeated + s.empty for s in files.values()):,} sentences from reviews of phones (Amazon), films (IMDb) and restaurants (Yelp), half of praise, half "
            f"of blame; {sum(s.repeated for s in files.values())} repetitions left out. Of each site about {counts[0]} to "
            f"train, {counts[1]} for validation, {counts[2]} for test.",
            "Tasks: sentiment, praise or blame; sentiment behind somebody else's opinion ('quoting', for example: They say: "
            '"wonderful, I loved it". I say: ...); which site a sentence is from; whether its words were shuffled.',
            f"Base: all-MiniLM-L6-v2, a BERT of six layers and {sum(s.size for s in base.spec.values()):,} weights, pre-trained "
            f"by others. Fine-tuning changes its last {6 - FROZEN} layers. Heads are probed on the base and frozen from now on.",
        ),
        model=model,
        base=base,
        target=cells["A"],
        control=origin,
        add=(cells["D"], origin, order),
        cells=cells,
        train=train,
        keep_finetuned=False,  # 90 MB each
        wide=grid(0, 2, 3 if quick else 11),
        near=grid(
            0, 1, 3 if quick else 11
        ),  # a sentence costs more than a digit: the step of the paper's language tasks
    )


def _opinion(name: str) -> str:
    return f"{name.removesuffix('s')} sentiment"


def find_files(data: str | Path | None = None) -> Path:
    """The folder that holds the three files: `data`, else the environment variable TASKVEC_DATA.

    Raises:
        InputError: no folder is named, or it lacks a file.
    """
    named = data or os.environ.get(VARIABLE)
    wanted = ", ".join(FILES.values())
    get = (
        'Download "Sentiment Labelled Sentences" (CC BY 4.0, 80 kB, https://archive.ics.uci.edu/dataset/331), unpack it, and '
        f"name its folder with --data or in {VARIABLE}; it holds {wanted}."
    )
    if not named:
        raise InputError(f"the text demo needs three files of sentences, and no folder was named. {get}")
    for inside in FOLDERS:
        folder = Path(named) / inside
        if all((folder / file).is_file() for file in FILES.values()):
            return folder
    absent = [file for file in FILES.values() if not (Path(named) / file).is_file()]
    raise InputError(f"{named} lacks {', '.join(absent)}. {get}")


def probed(tasks: list[Task], *, seed: int = 0) -> Head:
    """A linear head for tasks whose inputs are features of the base."""
    torch = require_torch("Probing")
    seen = Split(torch.cat([t.train.inputs for t in tasks]), torch.cat([t.train.labels for t in tasks]))
    return probe_features(seen, tasks[0].classes, spec=replace(HEAD, seed=seed))


def _lifted(task: Task, lift: Lift) -> Task:
    """The task with all inputs passed through `lift`, without gradients."""
    torch = require_torch("The text demo")
    with torch.no_grad():
        parts = {k: Split(lift(s.inputs[:]), s.labels) for k, s in _parts(task).items()}
    return replace(task, **parts)


def _parts(task: Task) -> dict[str, Split]:
    return {"train": task.train, "validation": task.validation, "test": task.test}
