"""The demo on scikit-learn's handwritten digits and a small vision transformer that is trained on the spot."""

from __future__ import annotations

import dataclasses
import functools

from ..models.functional import require_torch
from ..search import grid
from ..tasks.task import Head, Task
from ..training import PRETRAIN, TrainSpec, fit
from ..weights import Checkpoint
from .setting import Setting
from .telling import file_name


def digits_setting(*, seed: int = 0, quick: bool = False) -> Setting:
    """Pre-train a small vision transformer on handwritten digits, and set three questions.

    The base sees plain digits, and now and then rotated or mirrored ones: it has a notion of those domains and is weak on
    them, as CLIP is on the papers' tasks. Its head is frozen from then on and is in no vector.

    Args:
        seed: chooses the split, the initial weights and every batch.
        quick: a few steps only, to see that all parts run; the numbers mean nothing.
    """
    torch = require_torch("The demo")
    from ..models.vit import small_vit
    from ..tasks.vision import PARTS, digits, jitter

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
        return fit(model, made.checkpoint, task, spec=spec, ascent=ascent, label=file_name(task.name)).checkpoint

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
        near=grid(0, 1, 3 if quick else 21),
        wide=grid(0, 2, 3 if quick else 41),
    )
