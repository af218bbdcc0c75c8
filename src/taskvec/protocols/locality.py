"""Locality: do the eigenfunctions that the tangent kernel uses for a task live on that task's inputs?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import NonFinite, UsageError
from ..models.functional import Bound, bind, device_of, tensors
from ..results import LocalityResult, Provenance
from ..tasks.task import Task
from ..weights import Checkpoint
from .rows import checked_tasks

if TYPE_CHECKING:
    import torch

HELD = 1e9  # bytes of gradients held at a time


def tangent_kernel(
    f: Bound, base: Mapping[str, torch.Tensor], names: Sequence[str], inputs: torch.Tensor, *, trace: bool = False
) -> torch.Tensor:
    r"""The empirical neural tangent kernel of some inputs, ``[n, n]``, float64.

    :math:`k(x, x') = \langle\nabla_\theta \bar f(x), \nabla_\theta \bar f(x')\rangle` with :math:`\bar f = \frac{1}{\sqrt d}
    \sum_k f_k`, or, with `trace`, :math:`\frac{1}{d}\sum_k \langle\nabla f_k(x), \nabla f_k(x')\rangle`, which costs d times as much.

    Gradients are taken sample by sample and held for a group of parameters at a time, so memory is bounded whatever the model.

    Args:
        f: the bound model, inputs -> features ``[n, d]``.
        base: its weights.
        names: the parameters that count.
        inputs: a batch.
        trace: average over outputs instead of taking their mean direction.
    Reference: Jacot et al. 2018, arXiv:1806.07572; the one-output form is Mohamadi et al. 2023, arXiv:2206.12543.
    """
    import torch

    leaves = {n: base[n].detach().clone().requires_grad_() for n in names}
    point = {**base, **leaves}
    width = f(point, inputs[:1]).shape[1]
    outputs = [torch.eye(width)[k] / width**0.5 for k in range(width)] if trace else [torch.ones(width) / width**0.5]
    kernel = torch.zeros(len(inputs), len(inputs), dtype=torch.float64)
    for group in _groups(leaves, int(HELD / 4 / len(inputs))):
        for direction in outputs:
            rows = []
            for x in inputs.split(1):
                value = (f(point, x)[0] * direction.to(x.device)).sum()
                grads = torch.autograd.grad(value, [leaves[n] for n in group], allow_unused=True)
                parts = [g if g is not None else torch.zeros_like(leaves[n]) for n, g in zip(group, grads, strict=True)]
                rows.append(torch.cat([g.flatten() for g in parts]))
            block = torch.stack(rows)
            kernel += (block @ block.T).double().cpu()
    return kernel


def _groups(leaves: Mapping[str, torch.Tensor], most: int) -> Iterator[list[str]]:
    """Names in groups of at most so many values (one tensor, if it alone has more)."""
    group: list[str] = []
    held = 0
    for name, t in leaves.items():
        if group and held + t.numel() > most:
            yield group
            group, held = [], 0
        group.append(name)
        held += t.numel()
    if group:
        yield group


def locality(
    model: torch.nn.Module,
    base: Checkpoint,
    tasks: Sequence[Task],
    *,
    samples: int = 32,
    eigenfunctions: int = 8,
    names: Sequence[str] | None = None,
    trace: bool = False,
    seed: int = 0,
    title: str = "Locality of the tangent kernel",
) -> LocalityResult:
    r"""How the tangent kernel of the base ties the inputs of tasks together, and where its eigenfunctions have their energy.

    On `samples` anchors of each task the kernel is diagonalised, :math:`K = U \Lambda U^\top`; its leading eigenfunctions,
    :math:`\phi_\rho(x) = \frac{\sqrt n}{\lambda_\rho}\sum_i U_{i\rho}\,k(x, x_i)`, have mean square 1 there. The local energy
    :math:`\sum_\rho \phi_\rho(x)^2` is averaged over as many other inputs of the same task and of every other and divided by the number of
    eigenfunctions: about 1 where they live, near 0 where they do not.

    Args:
        model: inputs -> features.
        base: :math:`\theta_0`.
        tasks: at least two (a control among them); validation inputs are used, no labels and no heads.
        samples: anchors of each task, and as many probes.
        eigenfunctions: how many leading ones count.
        names: parameters that count, else all.
        trace: see `tangent_kernel`.
        seed: chooses the inputs.
        title: heading in reports.
    Raises:
        UsageError: fewer than two tasks, too few inputs, or more eigenfunctions than anchors.
        NonFinite: a gradient is NaN or infinite.
    Reference: Ortiz-Jimenez et al. 2023, arXiv:2305.12827 (eigenfunction localisation).
    """
    import torch

    tasks = checked_tasks(tasks)
    short = [t.name for t in tasks if len(t.validation) < 2 * samples]
    if len(tasks) < 2 or short or not 0 < eigenfunctions <= samples:
        raise UsageError(
            f"locality needs at least two tasks with {2 * samples} validation inputs each (too few: {short}), and between 1 and "
            f"{samples} eigenfunctions, got {eigenfunctions}. Set samples to less."
        )
    f, device = bind(model), device_of(model)
    start = tensors(base, like=model, device=device)
    chosen = list(names) if names is not None else [n for n, _ in model.named_parameters()]
    generator = torch.Generator().manual_seed(seed)
    picked: list[Any] = []
    for t in tasks:
        rows = torch.randperm(len(t.validation), generator=generator)[: 2 * samples]
        picked.append(t.validation.inputs[rows])
    kernel = tangent_kernel(f, start, chosen, torch.cat(picked).to(device), trace=trace)
    if not kernel.isfinite().all():
        raise NonFinite("the tangent kernel is not finite. Are the weights or the inputs damaged?")
    size = kernel.diagonal().clamp(min=1e-300).sqrt()
    similar = (kernel / size[:, None] / size).abs()
    energy, ties = [], []
    for i in range(len(tasks)):
        anchors = slice(2 * samples * i, 2 * samples * i + samples)
        values, directions = torch.linalg.eigh(kernel[anchors, anchors])
        values, directions = values[-eigenfunctions:].clamp(min=1e-300), directions[:, -eigenfunctions:]
        probes = [slice(2 * samples * j + samples, 2 * samples * (j + 1)) for j in range(len(tasks))]
        functions = [kernel[p, anchors] @ directions / values * samples**0.5 for p in probes]
        energy.append(tuple(float((g**2).sum(1).mean()) / eigenfunctions for g in functions))
        ties.append(tuple(float(similar[anchors, p].mean()) for p in probes))
    return LocalityResult(
        title=title,
        tasks=tuple(t.name for t in tasks),
        samples=samples,
        eigenfunctions=eigenfunctions,
        energy=tuple(energy),
        similarity=tuple(ties),
        provenance=Provenance.now(
            seed=seed,
            inputs={"base": base.fingerprint()},
            settings={"split": "validation", "kernel": "trace" if trace else "one output", "tensors": len(chosen)},
        ),
    )
