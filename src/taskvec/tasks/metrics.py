"""Scores of a bound model on a split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..errors import NonFinite, UsageError
from ..models.functional import Bound, require_torch
from ..results import Score
from .task import IGNORED, Head, Split

if TYPE_CHECKING:
    import torch

MOST_LOGITS = 2**27  # float32 numbers at a time


def accuracy(
    f: Bound, params: Mapping[str, torch.Tensor], split: Split, head: Head, *, batch: int | None = None
) -> Score:
    r"""Top-1 accuracy, the share of samples with :math:`\arg\max_k (W f(\theta, x) + b)_k = y`, with its interval.

    Of sequences the share of positions, which the interval takes for independent.

    Args:
        f: the bound model, inputs -> features.
        params: its weights.
        split: samples; each is read once.
        head: the task's head.
        batch: samples at a time, else 128 on the CPU, where more cost memory and no less time, and 512 elsewhere.
    Raises:
        NonFinite: a feature or logit is NaN or infinite, so that no class can be named.
    """
    return Score.share(correct(f, params, split, head, batch=batch), split.counted)


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor, *, reduction: str = "mean") -> torch.Tensor:
    """Of samples ``[n, classes]``, or of all positions of sequences ``[n, classes, length]`` whose label counts."""
    import torch

    if logits.dim() == 3:  # classes last is how a model makes them: nothing is copied
        logits, labels = logits.transpose(1, 2).flatten(0, 1), labels.flatten()
    return torch.nn.functional.cross_entropy(logits, labels, reduction=reduction, ignore_index=IGNORED)


def at_a_time(split: Split, head: Head, batch: int) -> int:
    """At most `batch` samples, fewer where the logits of sequences would take more than half a gigabyte."""
    if split.labels.dim() == 1:
        return batch
    return max(1, min(batch, MOST_LOGITS // (len(head.weight) * split.labels.shape[1])))


def correct(f: Bound, params: Mapping[str, torch.Tensor], split: Split, head: Head, *, batch: int | None = None) -> int:
    """The number of samples that are right; arguments and errors of `accuracy`."""
    torch = require_torch("Measuring accuracy")
    inputs, labels = split.inputs, split.labels
    device = next(iter(params.values())).device
    batch = at_a_time(split, head, batch or (128 if device.type == "cpu" else 512))
    head, hits = head.to(device), 0
    if int(labels.max()) >= len(head.weight):
        raise UsageError(
            f"labels go up to {int(labels.max())}; the head has {len(head.weight)} classes, 0 to {len(head.weight) - 1}."
        )
    with torch.inference_mode():
        for i in range(0, len(labels), batch):
            logits = head(f(params, inputs[i : i + batch].to(device)))
            if not torch.isfinite(logits).all():
                raise NonFinite(
                    "cannot measure accuracy: the model's outputs are not finite. "
                    "The edit is too large, or the weights are damaged; try smaller coefficients."
                )
            wanted = labels[i : i + batch].to(device)
            hits += int((head.within(logits, wanted).argmax(dim=1) == wanted).sum())
    return hits
