"""The command that runs studies."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import click

from ..errors import UsageError, plain
from .commands import cli, json_flag
from .terminal import print_json, training_bar


@cli.command(short_help="Run a study: experiments described by a small text file.")
@click.argument("study", type=click.Path(path_type=Path))
@click.option(
    "--out", "-o", type=click.Path(path_type=Path), help="Folder of cells and results [default: results/NAME]."
)
@click.option("--root", type=click.Path(path_type=Path), help="Folder of the data sets, else the study's own.")
@click.option("--only", multiple=True, metavar="TEXT", help="Only results whose label contains this text; repeat.")
@click.option("--jobs", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes that share the work.")
@click.option("--threads", type=click.IntRange(1, 256), default=1, show_default=True, help="Threads of each process.")
@click.option("--device", help="cpu (the default), cuda or cuda:N.")
@click.option("--download", is_flag=True, help="Let missing data sets be fetched from the Hugging Face hub.")
@click.option(
    "--memory",
    type=click.FloatRange(0, 4096),
    default=1.0,
    show_default=True,
    help="GiB of decoded pixels to hold of each data set; larger sets are decoded whenever they are used.",
)
@click.option("--steps", type=click.IntRange(1), help="Try-out: at most so many updates for each vector.")
@click.option(
    "--limit",
    type=click.IntRange(2),
    help="Try-out: at most so many samples in each part and batch; three points in each grid, subsets are pairs.",
)
@click.option("--dry-run", is_flag=True, help="List what would be computed, with an estimate of the time.")
@json_flag
def run(
    study: Path, out: Path | None, root: Path | None, only: tuple[str, ...], jobs: int, threads: int, device: str | None,
    download: bool, memory: float, steps: int | None, limit: int | None, dry_run: bool, as_json: bool,
) -> None:  # fmt: skip
    """Run the study file STUDY: pre-train or read bases, fine-tune vectors, ask the protocols' questions.

    Every piece of work is a cell with a hash of all that decides it. Finished cells are never computed again, so a study that
    was stopped goes on where it was, and studies that share a folder share equal cells.

    \b
    taskvec run studies/quick.yaml --root data/ --dry-run
    taskvec run studies/quick.yaml --root data/
    taskvec report results/quick -o quick.html

    A try-out shows in minutes whether all of a long study runs, downloads included; its results are marked, and lie in a folder
    of their own:

    \b
    taskvec run studies/paper/editing-models.yaml --download --steps 2 --limit 8
    """
    # Before torch is imported: idle OpenMP threads then sleep, where spinning would slow a busy machine down severalfold.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from .. import study as studies
    from ..models.functional import require_torch
    from ..study import running
    from ..weights.device import device as check_device

    said = studies.load(study)
    if steps is not None or limit is not None:
        said = studies.tried(said, steps=steps, limit=limit)
    out = out or Path("results") / (f"{said.name}-tryout" if said.tryout else said.name)
    root = root or (study.parent / said.root if said.root else None)
    if root is not None and not root.is_dir():
        raise UsageError(f"there is no folder {plain(root)} of data sets. Name it with --root, or put the data there.")
    require_torch("A study").set_num_threads(threads)
    check_device(device)
    if dry_run:
        held = int(memory * 2**30)
        found = studies.estimate(said, out, root=root, only=only, device=device, download=download, memory=held)
        _list(found, as_json)
        return
    began = time.monotonic()
    worker = running.is_worker()
    with training_bar() as (tell, progress):
        found = studies.run(
            said, out, root=root, only=only, jobs=1 if worker else jobs, device=device, download=download,
            memory=int(memory * 2**30), tell=tell, progress=progress, again=running.same_again(),
        )  # fmt: skip
    if worker:
        return
    if as_json:
        results = [str(p) for p in found.results]
        print_json(
            "run", {"computed": found.computed, "kept": found.kept, "seconds": found.seconds, "results": results}
        )
        return
    print(
        f"{said.name}: {len(found.results)} results in {plain(out / running.RESULTS / said.name)}; {found.computed} cells computed here, "
        f"{found.kept} were there, {time.monotonic() - began:.0f} s"
    )
    print(f"See them with: taskvec report {plain(out)} -o {said.name}.html")


def _list(cells: Any, as_json: bool) -> None:
    """What is to be done, a line for each cell, and the sum."""
    todo = [c for c in cells if not c.done]
    seconds = sum(c.seconds for c in todo)
    if as_json:
        rows = [{"label": c.label, "kind": c.kind, "key": c.key, "done": c.done, "seconds": c.seconds} for c in cells]
        print_json("run", {"dry_run": True, "cells": rows, "seconds": seconds})
        return
    for c in todo:
        print(f"{_clock(c.seconds):>9}  {c.label}")
    print(f"{len(cells) - len(todo)} of {len(cells)} cells are there; {len(todo)} to compute, about {_clock(seconds)}")


def _clock(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
