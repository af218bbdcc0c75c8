"""Penalties: terms that are added to the loss so that task vectors disturb each other less. Each is a value; none is a class
of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..models.functional import Bound, require_torch

if TYPE_CHECKING:
    import torch

    # (model, base, displacements, generator) -> a scalar whose value and gradient count.
    Term = Callable[[Bound, Mapping[str, torch.Tensor], Mapping[str, torch.Tensor], torch.Generator], torch.Tensor]
else:
    Term = Callable


@dataclass(frozen=True)
class Penalty:
    """A term of the loss.

    Args:
        name: as messages and saved runs call it.
        weight: what it is multiplied with.
        term: ``(f, base, delta, generator) -> scalar``; delta are formed displacements, the generator is the run's own.
    """

    name: str
    weight: float
    term: Term

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float("inf"):
            raise UsageError(f"penalty {self.name}: weight is {self.weight}; it must be finite and at least 0.")


def tau_jp(others: Sequence[Any], *, weight: float, batch: int = 16) -> Penalty:
    r"""Keep the first-order effect of the vector off other tasks' inputs: :math:`\frac{1}{T}\sum_t E_x \lVert J(x)\tau\rVert^2`.

    Uses inputs only, no labels; each update draws a batch from each of the others.

    Args:
        others: the other tasks' inputs: tensors ``[n, ...]``, or splits, whose labels are not read.
        weight: of the term.
        batch: inputs drawn from each.
    Reference: tau-Jp, ICLR 2025, OpenReview 1VwWi6zbxs; there the norm, here its square, whose
        gradient is :math:`2 J^\top J\tau` and is as cheap as a linearised step.
    """
    inputs = [getattr(o, "inputs", o) for o in others]
    if not inputs or batch < 1:
        raise UsageError("tau_jp needs the inputs of at least one other task, and a batch of at least 1.")

    def term(f: Bound, base: Any, delta: Any, generator: Any) -> Any:
        torch = require_torch("The tau-Jp penalty")
        from ..models.forward import value_and_tangent

        total: Any = 0.0
        for x in inputs:
            rows = torch.randint(len(x), (min(batch, len(x)),), generator=generator)
            device = next(iter(base.values())).device
            value, along = value_and_tangent(f, base, delta, x[rows].to(device))
            # `value` carries J^T; what is added to the square of `along` is zero and has its gradient.
            carrier = ((value - value.detach()) * 2 * along).sum()
            total = total + ((along**2).sum() + carrier) / len(rows)
        return total / len(inputs)

    return Penalty("tau-Jp", weight, term)


def orthogonal(*, weight: float) -> Penalty:
    r"""Push every displaced matrix towards orthogonal columns: :math:`\sum_l \lVert \Delta W_l^\top \Delta W_l - I\rVert_F^2`.

    Of :math:`\Delta W^\top \Delta W` and :math:`\Delta W \Delta W^\top` the smaller, as the larger cannot be the identity.

    Args:
        weight: of the term.
    Reference: arXiv:2604.17078 (OrthoReg).
    """

    def term(f: Bound, base: Any, delta: Any, generator: Any) -> Any:
        torch = require_torch("The orthogonality penalty")
        total: Any = 0.0
        for d in (d for d in delta.values() if d.dim() == 2):
            gram = d.T @ d if d.shape[1] <= d.shape[0] else d @ d.T
            total = total + ((gram - torch.eye(len(gram), device=d.device)) ** 2).sum()
        return total

    return Penalty("orthogonality", weight, term)
