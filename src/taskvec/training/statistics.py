"""Statistics of a model on data, for the methods of merging that use them: diagonal Fisher information, Gram matrices.

`grams_in_sequence` takes Gram matrices where RegMean++ wants them, so that `taskvec.methods.regmean` is RegMean++. Each is a checkpoint of its own under the names of the model's parameters, so that it is saved, read, compared and restricted
as weights are. Streamed: memory is that of the statistic and one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from ..errors import NonFinite, UsageError
from ..methods import average, checks, regmean
from ..models.functional import Bound, aliases, bind, device_of, require_torch, tensors
from ..models.parts import blocks
from ..tasks.task import Task
from ..weights import Checkpoint, TaskVector

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
    require_torch("Gram matrices")
    found = _grams(bind(model), tensors(base, like=model, device=device_of(model)), task, samples, batch, seed)
    if not found:
        raise _no_layer(model)
    return Checkpoint.of({n: x.cpu() for n, x in found.items()}, label=f"gram {task.name}")


def grams_in_sequence(
    model: torch.nn.Module,
    base: Checkpoint,
    vectors: Sequence[TaskVector],
    tasks: Sequence[Task],
    *,
    shrink: float = 0.9,
    inputs: Literal["last", "first"] = "last",
    samples: int = 1024,
    batch: int = 64,
    seed: int = 0,
) -> list[Checkpoint]:
    r"""The Gram matrices of RegMean++: a block's inputs come through the blocks before it as they are once merged.

    :math:`X_t^{(l)} = f_M^{(l-1)}(X_t^{(l-1)})`: task t's data go through the merged blocks :math:`f_M` up to block l and from
    there through t's own block, whose linear layers' inputs give :math:`G_t`; with these, block l is merged, and the next is
    taken. ``regmean(vectors, grams=grams_in_sequence(...))`` is then RegMean++; give both the same `shrink` and `inputs`.

    Blocks are the network's repeated ones (`taskvec.models.parts.blocks`); a linear layer outside of them is one by itself.
    They are taken in the order in which they first run. What is no linear layer is averaged beforehand.

    Args:
        model: inputs -> features.
        base: the base of the vectors.
        vectors: one per task.
        tasks: as many, in the same order; of each its train inputs are used, labels are not.
        shrink, inputs: as in `taskvec.methods.regmean`.
        samples, batch, seed: as in `gram`, of each task.
    Returns:
        for each vector ``[inputs, inputs]`` under the names of weights, as `gram` gives them. Every block costs a pass of every
        task's samples through the whole network; all models are in memory at once.
    Raises:
        UsageError: not one task a vector, or a model that runs no linear layer.
    Reference: Nguyen et al. 2025, arXiv:2508.03121. That embeddings (and what else comes before the first block) are already
        averaged when the first block's inputs are taken is [inferred] from its equation.
    """
    require_torch("Gram matrices")
    if len(tasks) != len(vectors):
        raise UsageError(
            f"grams_in_sequence: one task a vector is needed, got {len(vectors)} vectors, {len(tasks)} tasks."
        )
    if not vectors:
        raise UsageError("grams_in_sequence needs at least one task vector, got none.")
    f, device = bind(model), device_of(model)
    vectors = checks.widened(vectors)
    own = [tensors(base + v, like=model, device=device) for v in vectors]
    merged = tensors(base + average(vectors), like=model, device=device)
    homes = blocks(model)
    first = aliases(model)  # tied parameters move together

    def home(name: str) -> str:
        return next((b for b in homes if name.startswith(f"{b}.")), name)

    order = dict.fromkeys(home(n) for n in _grams(f, merged, tasks[0], 1, 1, seed))
    if not order:
        raise _no_layer(model)
    out: list[dict[str, Any]] = [{} for _ in vectors]
    for place in order:
        inside = {first.get(n, n) for n in merged if home(n) == place}
        found = []
        for theirs, task, table in zip(own, tasks, out, strict=True):
            point = {n: theirs[n] if first.get(n, n) in inside else x for n, x in merged.items()}
            seen = _grams(f, point, task, samples, batch, seed)
            found.append({n: x.cpu() for n, x in seen.items() if home(n) == place})
            table |= found[-1]
        names = [n for n in {n: None for g in found for n in g} if n in vectors[0].spec]
        if names:
            chosen = [v.restrict(names) for v in vectors]
            given = [
                Checkpoint.of({n: x for n, x in g.items() if n in names}, label=t.name)
                for g, t in zip(found, tasks, strict=True)
            ]
            step = regmean(chosen, grams=given, shrink=shrink, inputs=inputs)
            for n, x in tensors((base + step).restrict(names), device=device).items():
                merged |= {m: x for m in merged if first.get(m, m) == first.get(n, n)}
    return [Checkpoint.of(g, label=f"gram {t.name} in sequence") for g, t in zip(out, tasks, strict=True)]


def gradient_gram(
    model: torch.nn.Module, base: Checkpoint, task: Task, *, samples: int = 256, labels: Literal["model", "given"] = "model",
    seed: int = 0,
) -> Checkpoint:  # fmt: skip
    r"""Second moments of the log-likelihood's gradients at the outputs of every linear layer, the other half of K-FAC:
    :math:`\frac{1}{N}\sum_n E_{y \sim p(y|x_n)} \sum_i g_{ni} g_{ni}^\top` over samples n and positions i.

    One reverse pass for each sample (and class).

    Args:
        model: inputs -> features.
        base: the weights at which gradients are taken.
        task: its train inputs, and its head.
        samples, labels, seed: as in `fisher`.
    Returns:
        ``[outputs, outputs]`` under the name of each layer's weight, for `taskvec.methods.mats`.
    Raises:
        UsageError: the model runs no linear layer.
    Reference: Tam et al. 2023 (MaTS), arXiv:2312.04339.
    """
    torch = require_torch("Gradients' second moments")
    if labels not in ("model", "given"):
        raise UsageError(f"gradient_gram: labels is {labels!r}; choose 'model' or 'given'.")
    f, device, head = bind(model), device_of(model), task.needs_head().to(device_of(model))
    point = {n: t.requires_grad_(t.is_floating_point()) for n, t in tensors(base, like=model, device=device).items()}
    found: dict[str, Any] = {}
    rows = torch.randperm(len(task.train), generator=torch.Generator().manual_seed(seed))[:samples]
    for i in rows.tolist():
        outputs: list[tuple[str, torch.Tensor]] = []
        with _watch(point, lambda name, x, y, outputs=outputs: outputs.append((name, y))):
            features = f(point, task.train.inputs[i : i + 1].to(device))
        if not outputs:
            raise _no_layer(model)
        scores = torch.log_softmax(head(features)[0], 0)
        chosen = range(len(scores)) if labels == "model" else [int(task.train.labels[i])]
        for k, label in enumerate(chosen):
            weight = float(scores[label].detach().exp()) if labels == "model" else 1.0
            grads = torch.autograd.grad(
                scores[label], [y for _, y in outputs], retain_graph=k + 1 < len(chosen), allow_unused=True
            )
            for (name, y), g in zip(outputs, grads, strict=True):
                flat = (torch.zeros_like(y) if g is None else g).reshape(-1, y.shape[-1])
                own = flat.T @ flat * (weight / len(rows))
                found[name] = found[name] + own if name in found else own
    return Checkpoint.of({n: x.cpu() for n, x in found.items()}, label=f"gradients {task.name}")


def _no_layer(model: torch.nn.Module) -> UsageError:
    return UsageError(
        f"{type(model).__name__} runs no linear layer whose weight is a parameter: there is nothing to measure."
    )


def _grams(
    f: Bound, point: Mapping[str, torch.Tensor], task: Task, samples: int, batch: int, seed: int
) -> dict[str, torch.Tensor]:
    """Mean Gram matrices of the inputs of linear layers, in the order in which these first run."""
    import torch

    found: dict[str, Any] = {}
    seen: dict[str, int] = {}

    def add(name: str, x: torch.Tensor, y: torch.Tensor) -> None:
        x = x.reshape(-1, x.shape[-1]).float()
        found[name] = found[name] + x.T @ x if name in found else x.T @ x
        seen[name] = seen.get(name, 0) + len(x)

    device = next(iter(point.values())).device if point else torch.device("cpu")
    rows = torch.randperm(len(task.train), generator=torch.Generator().manual_seed(seed))[:samples]
    with torch.no_grad(), _watch(point, add):
        for part in rows.split(batch):
            f(point, task.train.inputs[part].to(device))
    return {n: found[n] / seen[n] for n in found}


def _watch(point: Mapping[str, torch.Tensor], told: Callable[[str, torch.Tensor, torch.Tensor], None]) -> Any:
    """A context in which every linear layer whose weight is one of `point` is told of: its name, inputs, outputs."""
    import torch
    import torch.nn.functional as F
    from torch.overrides import TorchFunctionMode

    name_of = {id(t): n for n, t in point.items()}

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            place = {F.linear: (0, 1), torch.addmm: (1, 2)}.get(func)
            if place is not None and len(args) > place[1] and id(args[place[1]]) in name_of:
                told(name_of[id(args[place[1]])], args[place[0]], out)
            return out

    return Watch()
