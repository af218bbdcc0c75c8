"""Linear probes: heads for classes that a model was not made for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..models.functional import bind, device_of, require_torch, tensors
from ..tasks.lazy import batches
from ..tasks.task import Head, Split, Task
from ..weights import Checkpoint
from .loop import TrainSpec, fit
from .regime import PROBE

if TYPE_CHECKING:
    import torch

SPEC = TrainSpec(steps=200, lr=1e-3, batch=128)


def probe(model: torch.nn.Module, base: Checkpoint, task: Task, *, spec: TrainSpec = SPEC) -> Head:
    r"""The linear head :math:`W, b` that minimises cross-entropy on the base's features :math:`f(\theta_0, x)`.

    As `fit` with PROBE, with the features computed once.

    Args:
        model: inputs -> features.
        base: :math:`\theta_0`; not changed.
        task: its train split is read, nothing else; a head it has is ignored.
        spec: how long and how fast; a batch larger than the data is cut to it.
    Reference: arXiv:2511.14569 (heads aligned before the encoder is fine-tuned).
    """
    torch = require_torch("Probing")
    f, device = bind(model), device_of(model)
    weights = tensors(base, like=model, device=device)
    with torch.no_grad():
        features = torch.cat([f(weights, x.to(device)).cpu() for x in batches(task.train.inputs, 256)])
    return probe_features(Split(features, task.train.labels), task.classes, spec=spec)


def probe_features(seen: Split, classes: Sequence[str], *, spec: TrainSpec = SPEC) -> Head:
    """As `probe`, where the features are there already: they are the split's inputs, ``[n, width]``."""
    torch = require_torch("Probing")
    blank = Head(torch.zeros(len(classes), seen.inputs.shape[1]), torch.zeros(len(classes)))
    task = Task("features", seen, seen, seen, blank, tuple(classes))
    spec = replace(spec, batch=min(spec.batch, len(seen)))
    return fit(torch.nn.Identity(), Checkpoint.of({}, label="features"), task, regime=PROBE, spec=spec).head
