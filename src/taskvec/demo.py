"""The demo: forget, add and reason by analogy on a real model and real data, told as a story.

Two settings share this story: digits (scikit-learn's images, a small transformer trained on the spot) and text. They
differ only in how the base and the tasks are made: see `Setting`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import protocols, report
from .errors import StorageError, missing_extra
from .models.functional import require_torch
from .report import story
from .results import Row, Score
from .search import grid
from .tasks.task import Head, Task, joined
from .training import PRETRAIN, TrainSpec, fit
from .weights import Checkpoint, TaskVector

if TYPE_CHECKING:
    import torch
    from rich.console import Console

Train = Callable[[Task, bool], Checkpoint]  # (task, ascent) -> fine-tuned weights


@dataclass(frozen=True, eq=False)
class Setting:
    """What a demo is made of: a pre-trained base, and a task for each part of the three questions.

    Args:
        title: heading of the report.
        told: sentences that say what the model and the data are.
        model: inputs -> features.
        base: the pre-trained weights.
        target, control: what is to be forgotten, and what is to be kept.
        add: the tasks to be learnt together.
        cells: "A", "B", "C", "D": tasks such that A is to B as C is to D.
        train: fine-tunes the base on a task (of `target`, `add` and `cells`), or ascends its loss.
        near: grid for adding and for the analogy.
        wide: grid for forgetting; it reaches beyond 1 so that weak vectors get every chance.
    """

    title: str
    told: tuple[str, ...]
    model: torch.nn.Module
    base: Checkpoint
    target: Task
    control: Task
    add: tuple[Task, ...]
    cells: Mapping[str, Task]
    train: Train
    near: tuple[float, ...] = grid(0, 1, 21)
    wide: tuple[float, ...] = grid(0, 2, 41)


def digits_setting(*, seed: int = 0, quick: bool = False) -> Setting:
    """Pre-train a small vision transformer on handwritten digits, and set three questions.

    The base sees plain digits, and now and then rotated or mirrored ones: it has a notion of those domains and is weak on
    them, as CLIP is on the papers' tasks. Its head is frozen from then on and is in no vector.

    Args:
        seed: chooses the split, the initial weights and every batch.
        quick: a few steps only, to see that all parts run; the numbers mean nothing.
    """
    torch = require_torch("The demo")
    from .models.vit import small_vit
    from .tasks.vision import PARTS, digits, jitter

    generator = torch.Generator().manual_seed(seed)
    model = small_vit(generator=generator)
    # A head as wide as the features; pre-training shapes both.
    plain = digits(Head.random(10, 64, generator=generator), part="pretrain", seed=seed)
    spec = TrainSpec(steps=4 if quick else 900, lr=2e-3, weight_decay=0.05, seed=seed)
    augment = functools.partial(jitter, domains=("rotated", "mirrored"), share=0.1)
    start = Checkpoint.of(model, label="initial")
    made = fit(model, start, plain, regime=PRETRAIN, spec=spec, augment=augment, label="base")
    tune = TrainSpec(steps=3 if quick else 120, lr=3e-4, seed=seed)
    brief = TrainSpec(steps=3 if quick else 80, lr=2e-4, batch=32, seed=seed)
    forget = 3
    task = functools.partial(digits, made.head, seed=seed)
    target = task(keep={forget}, name=f"digit {forget}")

    def train(task: Task, ascent: bool) -> Checkpoint:
        # Cells trained together get the updates of all their vectors: the rival of the analogy is not to lack training.
        whole = dataclasses.replace(tune, steps=tune.steps * max(1, round(len(task.train) / PARTS["train"])))
        spec = brief if task is target else whole
        return fit(model, made.checkpoint, task, spec=spec, ascent=ascent, label=_file(task.name)).checkpoint

    values = sum(s.size for s in start.spec.values())
    return Setting(
        title="taskvec demo: handwritten digits",
        told=(
            "Data: 1,797 real handwritten digits, 8 x 8 pixels, from scikit-learn, in disjoint parts: "
            f"{PARTS['pretrain']} to pre-train, {PARTS['train']} to fine-tune, {PARTS['validation']} for validation, "
            f"{len(plain.test)} for test.",
            f"Base: a vision transformer with {values:,} weights, pre-trained here on plain digits and a few rotated or "
            f"mirrored ones (loss {made.losses[0]:.2f} -> {sum(made.losses[-20:]) / len(made.losses[-20:]):.2f}).",
            "Its last layer, the head, is frozen from now on and is in no vector.",
        ),
        model=model,
        base=made.checkpoint,
        target=target,
        control=task(keep=set(range(10)) - {forget}, name="other digits"),
        add=(task(domain="rotated"), task(domain="mirrored"), task(domain="faint")),
        cells={
            "A": task(domain="plain"),
            "B": task(domain="faint"),
            "C": task(domain="mirrored"),
            "D": task(domain="mirrored+faint", name="mirrored and faint"),
        },
        train=train,
        **({"near": grid(0, 1, 3), "wide": grid(0, 2, 3)} if quick else {}),
    )


def run(
    out: str | Path,
    *,
    seed: int = 0,
    text: bool = False,
    data: str | Path | None = None,
    overwrite: bool = False,
    quick: bool = False,
    console: Console | None = None,
) -> list[Any]:
    """Run the demo, tell it on the console, and leave checkpoints, vectors, results and a report in `out`.

    Args:
        out: a folder; made if missing.
        seed: everything random follows from it.
        text: sentences and a pre-trained language model instead of digits.
        data: with `text`, the folder of the sentence files.
        overwrite: replace the files of an earlier run.
        quick: a few training steps only; the numbers mean nothing.
        console: where to print, else the standard output.
    Returns:
        the results: forgetting, adding, analogy, geometry.
    Raises:
        StorageError: `out` is not empty and `overwrite` is off.
        MissingExtra: torch, scikit-learn, matplotlib or jinja2 is not installed.
    """
    from rich.console import Console

    out, began = Path(out), time.monotonic()
    if not overwrite and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise StorageError(f"{out} already exists and is not empty. Name another folder, or pass --overwrite.")
    for library in ("matplotlib", "jinja2"):  # now, not after a minute of training
        if importlib.util.find_spec(library) is None:
            raise missing_extra(library, "demo", "The demo's report")
    console = console or Console()
    torch = require_torch("The demo")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors this small run slower on several; and the same bits on every machine size
    try:
        _opening(console)
        if text:
            from .demo_text import text_setting  # type: ignore[import-not-found]

            setting: Setting = text_setting(seed=seed, data=data, quick=quick)
        else:
            setting = digits_setting(seed=seed, quick=quick)
        for sentence in setting.told:
            _say(console, sentence)
        vectors = task_vectors(setting, console)
        results = answers(setting, vectors, seed=seed, tell=lambda result: _tell(console, result))
    finally:
        torch.set_num_threads(threads)
    _write(out, setting, vectors, results, overwrite=overwrite)
    _closing(console, out, setting, seconds=time.monotonic() - began)
    return results


def answers(
    setting: Setting, vectors: Mapping[str, TaskVector], *, seed: int, tell: Callable[[Any], None] = lambda result: None
) -> list[Any]:
    """The three questions and the geometry, as results; `tell` gets each as soon as it is there."""
    model, base, cells = setting.model, setting.base, setting.cells
    results: list[Any] = []

    def answered(result: Any) -> None:
        results.append(result)
        tell(result)

    target = setting.target.name
    answered(
        protocols.negation(
            model,
            base,
            vectors[target],
            target=setting.target,
            control=setting.control,
            ascent=vectors[f"{target} (ascent)"],
            coefficients=setting.wide,
            seed=seed,
            title=f"Forget: {target}",
        )
    )
    added = {t.name: vectors[t.name] for t in setting.add}
    title = "Add: " + ", ".join(added)
    answered(protocols.addition(model, base, added, setting.add, coefficients=setting.near, seed=seed, title=title))
    a, b, c, d = (cells[k] for k in "ABCD")
    answered(
        protocols.analogy(
            model,
            base,
            a=vectors[a.name],
            b=vectors[b.name],
            c=vectors[c.name],
            task=d,
            cells={k: t.name for k, t in cells.items()},
            sources={n: vectors[n] for n in (b.name, c.name, _together(cells))},
            target_tuned=vectors[d.name],
            coefficients=setting.near,
            seed=seed,
            title=f"Analogy: {d.name}",
        )
    )
    shown = {n: vectors[n] for n in dict.fromkeys([*added, *(t.name for t in cells.values()), target])}
    answered(protocols.geometry(shown, base=base, title="Geometry of the vectors"))
    return results


def task_vectors(setting: Setting, console: Console | None = None) -> dict[str, TaskVector]:
    """Fine-tune once per task and subtract: every vector that the three questions need, by task name."""
    from rich.markup import escape

    cells = setting.cells
    alone = {t.name: t for t in (setting.target, *setting.add, *cells.values())}
    jobs = {name: (task, False) for name, task in alone.items()}
    jobs[f"{setting.target.name} (ascent)"] = (setting.target, True)
    # What one would do without arithmetic: train on everything there is but D.
    jobs[_together(cells)] = (joined(_together(cells), [cells[k] for k in "ABC"]), False)
    _head(console, "Fine-tune", "One task vector per task: tau = finetuned - base.")
    table = _table("task", "samples", "norm of tau", "seconds")
    vectors: dict[str, TaskVector] = {}
    for name, (task, ascent) in jobs.items():
        start = time.monotonic()
        with console.status(f"fine-tuning: {escape(name)}") if console else contextlib.nullcontext():
            vectors[name] = setting.train(task, ascent) - setting.base
        table.add_row(name, str(len(task.train)), f"{vectors[name].norm():.2f}", f"{time.monotonic() - start:.1f}")
    if console:
        console.print(table)
    return vectors


def _together(cells: Mapping[str, Task]) -> str:
    return " + ".join(cells[k].name for k in "ABC")


# ---- telling ----------------------------------------------------------------------------------------------------------


def _opening(console: Console) -> None:
    console.print("[bold]taskvec demo[/]: editing a model by arithmetic on its weights")
    _say(
        console,
        "A task vector is what fine-tuning changed: tau = finetuned - base. Subtract it and the model forgets the task, "
        "add several and it learns several, combine them and it reaches a task it has no data for.",
    )
    _say(
        console,
        "Every coefficient below is chosen on validation data; the test data are read once. Brackets are 95 % intervals.",
    )
    _say(console, "Making the base ...")


def _tell(console: Console, result: Any) -> None:
    """One question: heading, table, and the sentences that a report would say about these numbers."""
    told = story.section(result)
    _head(console, told.title, told.question, told.equation)
    if result.kind == "geometry":
        table = _table("cosine", *result.names)
        for name, row in zip(result.names, result.cosine, strict=True):
            table.add_row(name, *(f"{c:.2f}" for c in row))
    else:
        tasks = list(result.rows[0].scores)
        several = result.kind == "addition"
        table = _table("model", "α", *tasks, *(("mean", "normalised") if several else ()))
        for row in result.rows:
            table.add_row(*_cells(row, tasks, several))
    console.print(table)
    for sentence in told.sentences:
        _say(console, sentence)


def _cells(row: Row, tasks: list[str], several: bool) -> list[str]:
    cells = [row.name, "" if row.coefficient is None else f"{row.coefficient:g}"]
    cells += [_score(row.scores[t]) for t in tasks]
    if several:
        mean = row.mean_normalised
        cells += [_score(row.mean), "" if mean is None else f"{mean:.3f}"]
    return cells


def _score(score: Score) -> str:
    # The interval in whole per cent, so that a row of five scores fits 80 columns; the report has the decimals.
    return f"{score}\n[{100 * score.low:.0f}, {100 * score.high:.0f}]"


def _head(console: Console | None, title: str, *lines: str) -> None:
    if console:
        console.print()
        console.rule(title, align="left", characters="-")
        for line in lines:
            _say(console, line)


def _say(console: Console, text: str) -> None:
    # No markup: names may hold brackets. No highlighting: numbers in prose need no colours.
    console.print(text, markup=False, highlight=False)


def _table(*columns: str) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(Text(column), justify="left" if i == 0 else "right", no_wrap=i == 0)
    return table


def _closing(console: Console, out: Path, setting: Setting, *, seconds: float) -> None:
    first, second = (_file(t.name) for t in setting.add[:2])
    lets = [f"base={out}/checkpoints/base.safetensors"]
    lets += [f"{n}={out}/vectors/{n}.safetensors" for n in (first, second)]
    let = " ".join(f"--let {x}" for x in lets)
    _head(console, f"Done in {seconds:.0f} s")
    _say(console, f"Read the report: {out}/report.html. The numbers are in {out}/results/, as JSON.")
    _say(console, "The vectors are files. Try next:")
    for command in (
        f"taskvec compare {out}/vectors/{first}.safetensors {out}/vectors/{second}.safetensors --by layer",
        f"taskvec explain 'base + 0.4 * ({first} + {second})' {let}",
        f"taskvec edit 'base + 0.4 * ({first} + {second})' {let} -o {out}/edited.safetensors",
    ):
        console.print(f"  {command}", markup=False, highlight=False, soft_wrap=True)


# ---- writing ----------------------------------------------------------------------------------------------------------


def _write(
    out: Path, setting: Setting, vectors: Mapping[str, TaskVector], results: list[Any], *, overwrite: bool
) -> None:
    setting.base.save(out / "checkpoints" / "base.safetensors", overwrite=overwrite)
    for name, vector in vectors.items():
        (setting.base + vector).save(out / "checkpoints" / f"{_file(name)}.safetensors", overwrite=overwrite)
        vector.save(out / "vectors" / f"{_file(name)}.safetensors", overwrite=overwrite)
    heads: dict[int, str] = {}
    for task in (*setting.add, setting.control):
        head = task.needs_head()
        if id(head) not in heads:  # tasks may share a head; it is saved once, under the first task's name
            heads[id(head)] = _file(task.name)
            head.save(out / "heads" / f"{_file(task.name)}.safetensors", overwrite=overwrite)
    for i, (name, result) in enumerate(zip(("forget", "add", "analogy", "geometry"), results, strict=True), start=1):
        result.write(out / "results" / f"{i}-{name}.json")
    report.write(results, out / "report.html", title=setting.title)


def _file(name: str) -> str:
    """A name as a file name that is also a valid name in expressions: "digit 3 (ascent)" -> "digit_3_ascent"."""
    return "_".join("".join(c if c.isalnum() else " " for c in name).split()) or "task"
