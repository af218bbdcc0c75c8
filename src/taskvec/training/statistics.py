"""Statistics of a model on data, for the methods of merging that use them: diagonal Fisher information, Gram matrices.

Each is a checkpoint of its own under the names of the model's parameters, so that it is saved, read, compared and restricted
as weights are. Streamed: memory is that of the statistic and one batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from ..errors import NonFinite, UsageError
from ..models.functional import bind, device_of, require_torch, tensors
from ..tasks.task import Task
from ..weights import Checkpoint

if TYPE_CHECKING:
    import torch


def fisher(
    model: torch.nn.Module,
    base: Checkpoint,
    task: Task,
    *,
    samples: int = 256,
    labels: Literal["model", "given"] = "model",
    seed: int = 0,
) -> Checkpoint:
    r"""The diagonal of the Fisher information, :math:`\frac{1}{N}\sum_n E_{y \sim p(y|x_n)} (\nabla_\theta \log p(y|x_n))^2`.

    One reverse pass for each sample (and class), so that squares are of single samples.

    Args:
        model: inputs -> features.
        base: :math:`\theta`, where it is taken.
        task: its train inputs, and its head.
        samples: N, drawn without replacement; all if there are fewer.
        labels: "model" takes the expectation over the model's own predictions (the Fisher information); "given" takes the
            data's label alone (the "empirical Fisher").
        seed: chooses the samples.
    Returns:
        non-negative tensors, one for each parameter of floating point.
    Raises:
        NonFinite: a gradient is NaN or infinite.
    Reference: Matena and Raffel 2021, arXiv:2111.09832.
    """
    torch = require_torch("The Fisher information")
    if labels not in ("model", "given"):
        raise UsageError(f"fisher: labels is {labels!r}; choose 'model' or 'given'.")
    f, device, head = bind(model), device_of(model), task.needs_head().to(device_of(model))
    point = tensors(base, like=model, device=device)
    names = [n for n, _ in model.named_parameters()]
    leaves = [point[n].requires_grad_() for n in names]
    total = [torch.zeros_like(t) for t in leaves]
    rows = torch.randperm(len(task.train), generator=torch.Generator().manual_seed(seed))[:samples]
    for i in rows.tolist():
        scores = torch.log_softmax(head(f(point, task.train.inputs[i : i + 1].to(device)))[0], 0)
        chosen = range(len(scores)) if labels == "model" else [int(task.train.labels[i])]
        for k, y in enumerate(chosen):
            weight = float(scores[y].detach().exp()) if labels == "model" else 1.0
            grads = torch.autograd.grad(scores[y], leaves, retain_graph=k + 1 < len(chosen), allow_unused=True)
            for t, g in zip(total, grads, strict=True):
                if g is not None:
                    t.addcmul_(g, g, value=weight / len(rows))
    if not all(t.isfinite().all() for t in total):
        raise NonFinite(
            f"the Fisher information of {task.name!r} is not finite. Are the weights or the inputs damaged?"
        )
    return Checkpoint.of({n: t.cpu() for n, t in zip(names, total, strict=True)}, label=f"fisher {task.name}")


def gram(
    model: torch.nn.Module, base: Checkpoint, task: Task, *, samples: int = 1024, batch: int = 64, seed: int = 0
) -> Checkpoint:  # fmt: skip
    r"""Gram matrices of the inputs of every linear layer, :math:`\frac{1}{M}\sum_m x_m x_m^\top` over samples and positions.

    Args:
        model: inputs -> features.
        base: the weights at which inputs are taken.
        task: its train inputs; labels are not used.
        samples: how many, drawn without replacement.
        batch: at a time.
        seed: chooses the samples.
    Returns:
        ``[inputs, inputs]`` under the name of each layer's weight (`Linear`, and GPT-2's `Conv1D`). Layers inside
        `torch.nn.MultiheadAttention` are not seen.
    Raises:
        UsageError: the model runs no linear layer.
    Reference: Jin et al. 2022 (RegMean), arXiv:2212.09849.
    """
    torch = require_torch("Gram matrices")
    import torch.nn.functional as F
    from torch.overrides import TorchFunctionMode

    f, device = bind(model), device_of(model)
    point = tensors(base, like=model, device=device)
    name_of = {id(t): n for n, t in point.items()}
    found: dict[str, Any] = {}
    seen: dict[str, int] = {}

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            place = {F.linear: (0, 1), torch.addmm: (1, 2)}.get(func)
            if place is not None and len(args) > place[1] and id(args[place[1]]) in name_of:
                name, x = name_of[id(args[place[1]])], args[place[0]].reshape(-1, args[place[0]].shape[-1]).float()
                found[name] = found[name] + x.T @ x if name in found else x.T @ x
                seen[name] = seen.get(name, 0) + len(x)
            return func(*args, **(kwargs or {}))

    rows = torch.randperm(len(task.train), generator=torch.Generator().manual_seed(seed))[:samples]
    with torch.no_grad(), Watch():
        for part in rows.split(batch):
            f(point, task.train.inputs[part].to(device))
    if not found:
        raise UsageError(
            f"{type(model).__name__} runs no linear layer whose weight is a parameter: there is nothing to measure."
        )
    return Checkpoint.of({n: (found[n] / seen[n]).cpu() for n in found}, label=f"gram {task.name}")
