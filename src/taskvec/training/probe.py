"""Linear probes: heads for classes that a model was not made for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..models.functional import bind, device_of, require_torch, tensors
from ..tasks.task import Head, Split, Task
from ..weights import Checkpoint
from .loop import TrainSpec, fit
from .regime import PROBE

if TYPE_CHECKING:
    import torch


def probe(
    model: torch.nn.Module, base: Checkpoint, task: Task, *, ridge: float = 1.0, spec: TrainSpec | None = None
) -> Head:
    r"""The linear head :math:`W, b` on the base's features :math:`f(\theta_0, x)`: logistic regression, to convergence.

    Minimises :math:`\sum_i \mathrm{CE}(W z_i + b, y_i) + \frac{\rho}{2}\lVert W\rVert^2` over the n training samples, where
    features z are measured in units in which their mean square is 1. Nothing in it is random.

    Args:
        model: inputs -> features.
        base: :math:`\theta_0`; not changed.
        task: its train split is read, nothing else; a head it has is ignored.
        ridge: :math:`\rho`.
        spec: train with `fit` and PROBE instead, for so many steps, from zero and without a ridge: for sets whose features do not fit
            into memory in float64, or a head that is meant to be early. A batch larger than the data is cut to it.
    Raises:
        UsageError: labels beyond the classes, or a ridge that is not above 0.
    Reference: arXiv:2511.14569 (heads aligned before the encoder is fine-tuned).
    """
    torch = require_torch("Probing")
    f, device = bind(model), device_of(model)
    weights, inputs = tensors(base, like=model, device=device), task.train.inputs
    with torch.no_grad():
        features = torch.cat([f(weights, inputs[i : i + 256].to(device)).cpu() for i in range(0, len(inputs), 256)])
    return probe_features(Split(features, task.train.labels), task.classes, ridge=ridge, spec=spec)


def probe_features(seen: Split, classes: Sequence[str], *, ridge: float = 1.0, spec: TrainSpec | None = None) -> Head:
    """As `probe`, where the features are there already: they are the split's inputs, ``[n, width]``."""
    torch = require_torch("Probing")
    blank = Head(torch.zeros(len(classes), seen.inputs.shape[1]), torch.zeros(len(classes)))
    task = Task("features", seen, seen, seen, blank, tuple(classes))
    if spec is not None:
        spec = replace(spec, batch=min(spec.batch, len(seen)))
        return fit(torch.nn.Identity(), Checkpoint.of({}, label="features"), task, regime=PROBE, spec=spec).head
    if not ridge > 0:
        raise UsageError(f"probe: ridge is {ridge}; it must be above 0, or separable classes would have no best head.")
    task.check_labels(seen)
    z = seen.inputs[:].double()
    scale = z.square().mean().sqrt().clamp(min=1e-12)
    z, labels, n = z / scale, seen.labels, len(seen)
    weight = torch.zeros(len(classes), z.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(len(classes), dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=1000, history_size=20, tolerance_grad=1e-7, tolerance_change=1e-10,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def loss() -> torch.Tensor:
        solver.zero_grad()
        with torch.enable_grad():
            value = (
                torch.nn.functional.cross_entropy(z @ weight.T + bias, labels) + ridge / (2 * n) * weight.square().sum()
            )
            value.backward()
        return value

    solver.step(loss)  # type: ignore[arg-type]
    return Head((weight / scale).detach().float(), bias.detach().float())
