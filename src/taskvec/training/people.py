"""From people and a model to what sub-group vectors need: one base, one head, and a task with groups in its splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..models.functional import device_of, require_torch
from ..models.parts import Part
from ..models.preprocess import Preprocess
from ..select import Select, everything, matching
from ..tasks.groups import NAMES, Grouped, grouped_task
from ..tasks.images import HELD, images_encoder
from ..tasks.tabular import columns_of
from ..tasks.task import Head, Split, Task
from ..tasks.text import PARTS
from ..weights import Checkpoint
from .loop import TrainSpec, fit
from .probe import probe
from .regime import PRETRAIN, Rank, Regime

if TYPE_CHECKING:
    import torch

FIRST = TrainSpec(steps=150, lr=3e-3, batch=64)  # of a perceptron's pre-training
SHARE = 0.3


@dataclass(frozen=True, eq=False)
class Setting:
    """A model and its task.

    Args:
        model: inputs -> features.
        base: where vectors start; of a perceptron before it is pre-trained, random weights.
        task: with groups; without a head until `prepared`.
        early: for a perceptron, the training rows that make base and head, which no vector sees, under a random head.
        select: which parameters may learn.
    """

    model: torch.nn.Module
    base: Checkpoint
    task: Task
    early: Task | None = None
    select: Select = everything


def row_setting(
    people: Grouped, *, share: float = SHARE, hidden: Sequence[int] = (64, 32), parts: tuple[float, float, float] = PARTS, seed: int = 0
) -> Setting:  # fmt: skip
    """A perceptron with random weights for rows of a table; columns become inputs by what the training part has.

    Args:
        people: samples whose items are rows.
        share: of the training rows, to make base and head with.
        hidden: widths of the perceptron's layers.
        parts: shares of training, validation and test.
        seed: chooses the parts and the random weights.
    Raises:
        UsageError: a part of the training rows would be empty.
    """
    torch = require_torch("A perceptron")
    from ..models.perceptron import perceptron

    task = grouped_task(people, encode=columns_of, fitted=True, parts=parts, seed=seed)
    n = len(task.train)
    count = int(share * n)
    if not 0 < count < n:
        raise UsageError(f"{people.name}: a share of {share} of {n} training rows leaves a part empty; take one between 0 and 1.")  # fmt: skip
    first = torch.zeros(n, dtype=torch.bool)
    first[:count] = True  # the rows are shuffled
    generator = torch.Generator().manual_seed(seed)
    model = perceptron(task.train.inputs.shape[1], hidden=hidden, generator=generator)
    head = Head.random(len(task.classes), hidden[-1], generator=generator)
    early = replace(task, train=task.train.take(first), head=head)
    return Setting(model, Checkpoint.of(model, label="initial"), replace(task, train=task.train.take(~first)), early)


def text_setting(
    people: Grouped, folder: str | Path, *, max_tokens: int = 64, frozen_layers: int = 0, parts: tuple[float, float, float] = PARTS,
    seed: int = 0, device: str | None = None,
) -> Setting:  # fmt: skip
    """A text encoder in a folder, and texts as its tokens.

    Args:
        people: samples whose items are texts.
        folder: as `transformer` takes.
        max_tokens: of a text.
        frozen_layers: layers of a BERT-like encoder, beside the embeddings, that never learn: what they give is computed once and
            held, float32 ``[n, max_tokens, width]``.
        parts, seed: as in `row_setting`.
        device: where the model runs.
    """
    from ..models.hub import split_at, tokenizer, transformer

    model, base = transformer(folder)
    model = model.to(device) if device else model
    task = grouped_task(people, encode=tokenizer(folder, max_tokens=max_tokens), parts=parts, seed=seed)
    if not frozen_layers:
        return Setting(model, base, task)
    upper, lower = split_at(model, frozen_layers)
    where = device_of(model)

    def above(name: str) -> Split:
        split: Split = getattr(task, name)
        return replace(split, inputs=lower(split.inputs[:].to(where)).cpu())

    whole: Any = model  # of a BERT's form: `split_at` has looked
    count = len(whole.encoder.layer)
    late = matching(*(f"encoder.layer.{i}.*" for i in range(frozen_layers, count)))
    return Setting(upper, base, replace(task, **{n: above(n) for n in NAMES}), select=late)


def image_setting(
    people: Grouped, module: torch.nn.Module, base: Checkpoint, prepare: Preprocess, *, parts: tuple[float, float, float] = PARTS,
    seed: int = 0, memory: int = HELD,
) -> Setting:  # fmt: skip
    """An image encoder (`taskvec.models.encoders.encoder` gives its three parts), and images as its inputs.

    Args:
        people: samples whose items are paths.
        memory: bytes of decoded pixels to hold; more are decoded whenever they are used.
        parts, seed: as in `row_setting`.
    """
    encode = images_encoder(prepare, memory=memory)
    return Setting(module, base, grouped_task(people, encode=encode, parts=parts, seed=seed))


def prepared(setting: Setting, *, ridge: float = 1.0, spec: TrainSpec = FIRST) -> Setting:
    """The setting with its base and one head for all groups: probed on the base, or, for a perceptron, pre-trained together on the
    early rows.

    Args:
        ridge: of the probe.
        spec: of the pre-training; a batch larger than the early rows is cut to them.
    """
    if setting.early is None:
        return replace(
            setting, task=setting.task.with_head(probe(setting.model, setting.base, setting.task, ridge=ridge))
        )
    spec = replace(spec, batch=min(spec.batch, len(setting.early.train)))
    made = fit(setting.model, setting.base, setting.early, regime=PRETRAIN, spec=spec, label="base")
    base = Checkpoint.of(made.checkpoint.arrays(), label="base")
    return replace(setting, base=base, task=setting.task.with_head(made.head), early=None)


def confined(regime: Regime, select: Select) -> Regime:
    """The regime, of its parameters only those that `select` takes."""
    if regime.select is None or select is everything:
        return regime
    inside = replace(regime.select, within=regime.select.within & select) if isinstance(regime.select, Part) else regime.select & select  # fmt: skip
    return replace(regime, select=inside)


def low_rank_rival(
    setting: Setting, *, rank: int | None = None, alpha: float | None = None, only: Sequence[str] = ()
) -> Regime:
    """LoRA on everybody, as a rival: of all matrices of a perceptron, of the attention's of an encoder, or of those named `only`.

    Args:
        rank, alpha: 4 and 4 for a perceptron, else 16 and 16 unless told.
        only: patterns of parameters.
    """
    from ..models.perceptron import Perceptron

    table = isinstance(setting.model, Perceptron)
    size = rank or (4 if table else 16)
    how = Rank(size, float(alpha or size))
    if only or table:
        return Regime("LoRA", matching(*(only or ("*.weight",))), low_rank=how)
    return Regime("LoRA", Part("attention", within=setting.select), low_rank=how)
