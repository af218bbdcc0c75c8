"""The command that pre-trains: a small vision transformer from nothing, on image sets that lie here."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ..errors import UsageError, nearest, plain
from .commands import cli, json_flag, overwrite_flag
from .terminal import note, print_json
from .training import _steps

WAYS = ("supervised", "masked", "self-distilled", "contrastive", "random")


@cli.command(short_help="Pre-train a small vision transformer; write it as a folder.")
@click.argument("data", nargs=-1, required=True)
@click.option("--out", "-o", required=True, type=click.Path(path_type=Path), help="The folder to write.")
@click.option("--how", default="supervised", show_default=True, help=f"One of {', '.join(WAYS)} (initial weights).")
@click.option("--root", type=click.Path(path_type=Path), help="Folder in which sets given by name lie.")
@click.option(
    "--share", type=float, default=0.5, show_default=True, help="Of the training samples; the rest is to fine-tune on."
)
@click.option("--split-seed", type=int, default=0, show_default=True, help="Chooses the parts of the data.")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Chooses initial weights, batches and views."
)
@click.option("--steps", type=click.IntRange(1), help="Updates; each way has its own default.")
@click.option("--lr", type=float, help="Learning rate after the warm-up.")
@click.option("--batch", type=click.IntRange(2), help="Samples at a time.")
@click.option("--size", type=click.IntRange(1), default=32, show_default=True, help="Height and width in pixels.")
@click.option("--channels", type=click.Choice(["1", "3"]), default="3", show_default=True)
@click.option("--patch", type=click.IntRange(1), default=8, show_default=True)
@click.option("--width", type=click.IntRange(1), default=128, show_default=True)
@click.option("--depth", type=click.IntRange(1), default=4, show_default=True)
@overwrite_flag
@json_flag
def pretrain(
    data: tuple[str, ...], out: Path, how: str, root: Path | None, share: float, split_seed: int, seed: int,
    steps: int | None, lr: float | None, batch: int | None, size: int, channels: str, patch: int, width: int, depth: int,
    overwrite: bool, as_json: bool,
) -> None:  # fmt: skip
    """Pre-train a small vision transformer on the image sets DATA, known names or folders, and write it to a folder.

    A share of each set's training samples is used, with the labels of all sets jointly where labels are. The rest is left to
    fine-tune on; a linear probe on it says how good the features are on the validation part. No test part is read.

    \b
    taskvec pretrain mnist usps gtsrb --root data/ --how masked -o base/
    """
    # Before torch is imported: idle OpenMP threads then sleep, where spinning would slow a busy machine down severalfold.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if how not in WAYS:
        raise UsageError(f"unknown pre-training {how!r}; expected one of {', '.join(WAYS)}.{nearest(how, WAYS)}")
    if out.exists() and not overwrite:
        raise UsageError(f"{plain(out)} exists. Use --overwrite to replace it, or name another.")
    from ..models.functional import require_torch

    torch = require_torch("Pre-training")
    from ..models.preprocess import Preprocess
    from ..models.small import save_small_vit
    from ..models.vit import small_vit
    from ..tasks.images import folder_task, image_task
    from ..training.pretraining import RECIPES, divided, jointly, probe_scores
    from ..training.pretraining import pretrain as run
    from ..weights import Checkpoint

    model = small_vit(
        image=size,
        channels=int(channels),
        patch=patch,
        width=width,
        depth=depth,
        generator=torch.Generator().manual_seed(seed),
    )
    prepare = Preprocess(size, channels=int(channels))

    def task(name: str) -> Any:
        if root is None and Path(name).is_dir():
            return folder_task(name, prepare=prepare, seed=split_seed)
        return image_task(name, prepare=prepare, root=root, seed=split_seed)

    parts = [divided(task(name), share=share, seed=split_seed) for name in data]
    inputs, labels, classes = jointly([first for first, _ in parts])
    rest = [second for _, second in parts]
    made, begun = Checkpoint.of(model, label="random"), time.process_time()
    facts: dict[str, Any] = {}
    if how != "random":
        spec = replace(RECIPES[how].spec, seed=seed)
        given = {"steps": steps, "lr": lr, "batch": batch}
        spec = replace(spec, **{n: v for n, v in given.items() if v is not None})
        note(
            f"{how}: {spec.steps} updates on {len(inputs):,} samples of {len(data)} sets, {len(classes)} classes in all"
        )
        with _steps(spec.steps) as step:
            done = run(model, inputs, how=how, labels=labels, spec=spec, augment=RECIPES[how].augment, progress=step)
        made = done.checkpoint
        tenth = max(1, spec.steps // 10)
        first, last = sum(done.losses[:tenth]) / tenth, sum(done.losses[-tenth:]) / tenth
        facts = {
            "steps": spec.steps, "lr": spec.lr, "batch": spec.batch, "weight_decay": spec.weight_decay,
            "loss": {"first tenth": first, "last tenth": last},
        }  # fmt: skip
    seconds = time.process_time() - begun
    scores = probe_scores(model, made, rest)
    said = {
        "how": how, "data": [t.name for t in rest], "share": share, "split_seed": split_seed, "seed": seed,
        "samples": len(inputs), **facts, "probe": {n: s.value for n, s in scores.items()},
    }  # fmt: skip
    save_small_vit(
        out, model, made, mean=prepare.mean * (int(channels) // len(prepare.mean)),
        std=prepare.std * (int(channels) // len(prepare.std)), pretraining=said, overwrite=overwrite,
    )  # fmt: skip
    if as_json:
        print_json(
            "pretrain",
            {"output": str(out), **said, "seconds": seconds, "probe": {n: s.model_dump() for n, s in scores.items()}},
        )
        return
    loss = facts.get("loss")
    print(
        f"{plain(out)}: {how}"
        + (f", loss {loss['first tenth']:.3f} -> {loss['last tenth']:.3f}, {seconds:.0f} s of CPU time" if loss else "")
    )
    for name, score in scores.items():
        print(
            f"linear probe on {name}: {score} [{100 * score.low:.1f}, {100 * score.high:.1f}], n {score.n} (validation)"
        )
