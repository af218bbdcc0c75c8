"""Geometry: how long task vectors are, and how they lie to each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..models.forward import plain, value_and_tangent
from ..models.functional import bind, device_of, tensors
from ..results import GeometryResult, Provenance
from ..tasks.lazy import Inputs, batches
from ..tasks.task import Task
from ..weights import Checkpoint, TaskVector, compare

if TYPE_CHECKING:
    import torch


def geometry(
    vectors: Mapping[str, TaskVector],
    *,
    base: Checkpoint | None = None,
    model: torch.nn.Module | None = None,
    tasks: Sequence[Task] = (),
    title: str = "Geometry",
) -> GeometryResult:
    r"""Norms :math:`\lVert\tau_i\rVert` and cosines :math:`\langle\tau_i,\tau_j\rangle/(\lVert\tau_i\rVert\lVert\tau_j\rVert)`.

    Args:
        vectors: name -> task vector.
        base: if given, its norm over the vectors' parameters is shown for scale.
        model, tasks: if given (with `base`), also how far from linear the step of each vector is, on the validation inputs of
            the task of its name: :math:`\lVert f(\theta_0+\tau) - f_{lin}(\theta_0+\tau)\rVert /
            \lVert f(\theta_0+\tau) - f(\theta_0)\rVert` over all features; 0 if the step is linear, about 1 if the first order
            explains nothing.
        title: heading in reports.
    Raises:
        UsageError: no vectors, or a model without base and one task for each vector.
    Reference: Ilharco et al. 2022, arXiv:2212.04089, section 4 (cosines between task vectors); Ortiz-Jimenez et al. 2023,
        arXiv:2305.12827 (is fine-tuning linear?).
    """
    if not vectors:
        raise UsageError("geometry needs at least one task vector.")
    names = tuple(vectors)
    bent: tuple[float, ...] = ()
    if model is not None or tasks:
        inputs = {t.name: t.validation.inputs for t in tasks}
        if model is None or base is None or not set(names) <= set(inputs):
            raise UsageError(
                f"to say how linear the vectors are, geometry needs the model, the base and a task for each of {list(names)}; "
                f"got tasks {list(inputs)}."
            )
        bent = tuple(_nonlinearity(model, base, vectors[n], inputs[n]) for n in names)
    found = compare(list(vectors.values()), base=base).groups[0]
    return GeometryResult(
        title=title,
        names=names,
        norms=found.norms,
        cosine=found.cosine,
        base_norm=found.base_norm,
        nonlinearity=bent,
        provenance=Provenance.now(inputs={} if base is None else {"base": base.fingerprint()}),
    )


def _nonlinearity(model: torch.nn.Module, base: Checkpoint, vector: TaskVector, inputs: Inputs) -> float:
    import torch

    f, device = bind(model), device_of(model)
    start, delta = tensors(base, like=model, device=device), tensors(vector, device=device)
    rest = change = 0.0
    with torch.no_grad():
        for x in batches(inputs, 256):
            value, along = value_and_tangent(f, start, delta, x.to(device))
            actual = plain(f, start, delta, x.to(device)) - value
            rest += float(((actual - along) ** 2).sum())
            change += float((actual**2).sum())
    return math.sqrt(rest / change) if change else 0.0
