"""Training of models that are larger than one device: weights, gradients and optimiser state cut over several processes.

PyTorch's fully sharded data parallelism (`torch.distributed.fsdp.fully_shard`) gathers the weights of one block at a time for its
computation. As in `fit`, what learns is the displacement: each process holds its rows of it, of the base, of the gradient and
of AdamW's moments, and of nothing all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..models.forward import plain
from ..models.functional import aliases, applied, check_names, device_of, require_torch, twin_of, under_first_names
from ..models.parts import blocks
from ..tasks.metrics import cross_entropy
from ..tasks.task import Task
from ..weights import Checkpoint
from .coordinates import Coordinates
from .loop import Batches, Fitted, TrainSpec, check, counted, fitted, update
from .parallel import Team, team
from .regime import STANDARD, Regime

if TYPE_CHECKING:
    import torch

    from .loop import Augment


def fit_sharded(
    model: torch.nn.Module,
    base: Checkpoint,
    task: Task,
    *,
    regime: Regime = STANDARD,
    spec: TrainSpec | None = None,
    augment: Augment | None = None,
    ascent: bool = False,
    label: str | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> Fitted | None:
    r"""As `fit`, by several processes none of which holds the whole model: the same vector, up to the rounding of sums.

    Start the processes with ``torchrun --nproc-per-node N script.py`` and call ``torch.distributed.init_process_group`` first (and
    ``torch.cuda.set_device`` on GPUs). A process then holds about 1/N of the weights, the displacement, its gradient and AdamW's
    moments, and while it computes one block of the network whole. The vector is gathered tensor by tensor into the memory of
    the first process.

    Args:
        model: gives the structure; may be built under ``torch.device("meta")``, without weights. It is not modified.
        base: :math:`\theta_0`; read tensor by tensor, so that a checkpoint on disk is never in memory whole.
        task: data and head; the head is small and held by every process.
        regime: one through the ordinary model, with the weights' own coordinates and a frozen head.
        spec, augment, ascent, label, progress: as in `fit`.
    Returns:
        what `fit` gives, in the first process; None in the others.
    Raises:
        UsageError: there is no process group, or the regime is another one; and as in `fit`.
        KeyMismatch, NonFinite: as in `fit`.
    Reference: Zhao et al. 2023, arXiv:2304.11277 (fully sharded data parallelism).
    """
    torch = require_torch("Fine-tuning")
    spec = spec or TrainSpec()
    processes = _processes()
    check(base, task, regime, spec, processes.size)
    _supported(regime, spec)
    head, chosen = task.needs_head(), regime.names(model)
    cut = Cut(model, base, chosen, processes)
    head = replace(head, **{n: getattr(head, n).detach().clone().to(cut.device) for n in ("weight", "bias")})
    theta = cut.own()
    start = {n: theta[n].detach().clone() for n in chosen}
    point = Coordinates(start, {n: torch.zeros_like(t).requires_grad_() for n, t in start.items()})
    optimiser = torch.optim.AdamW(point.free.values(), lr=spec.lr, weight_decay=0.0)  # which `point.decay` does
    generator = torch.Generator().manual_seed(spec.seed)
    inputs, labels, losses = task.train.inputs, task.train.labels, []
    batches = Batches(len(labels), spec.batch, generator, torch.empty(0, dtype=torch.long), 0)

    def backward(rows: torch.Tensor) -> float:
        x = inputs[rows] if augment is None else augment(inputs[rows], generator)  # all rows, so that all draw alike
        x, wanted = processes.mine(x).to(cut.device), processes.mine(labels[rows]).to(cut.device)
        logits = head(applied(type(model).__name__, x, lambda: cut.module(x)))
        share = counted(wanted) / counted(labels[rows])
        part = cross_entropy(head.within(logits, wanted), wanted) * share / spec.accumulate
        if part.requires_grad:
            ((-part if ascent else part) * processes.size).backward()  # gradients are averaged over the processes
        return float(part.detach())

    for step in range(spec.steps):
        cut.module.zero_grad()
        total = torch.tensor(sum(backward(batches.draw()) for _ in range(spec.accumulate)), dtype=torch.float64)
        total = total.to(cut.device)
        processes.add_up([total])
        losses.append(float(total))
        gradients = cut.gradients()
        for n, t in point.free.items():
            t.grad = gradients[n]
        update(step, losses[-1], task, spec, point, point.free, optimiser, cut.clip)
        with torch.no_grad():
            for n, t in point.free.items():
                torch.add(start[n], t, out=theta[n])
        if progress:
            progress(step + 1, losses[-1])
    learnt: dict[str, torch.Tensor] = {}
    for name, t in point.free.items():
        whole = cut.gathered(name, t.detach())  # all processes take part
        if processes.rank == 0:
            learnt[name] = whole.cpu()
    if processes.rank != 0:
        return None
    head = replace(head, weight=head.weight.cpu(), bias=head.bias.cpu())
    origin = {n: cut.read(n) for n in chosen}
    name = label or task.name
    return fitted(base, task, origin, aliases(model), learnt, head, tuple(losses), regime.forward, name)


class Cut:
    """A module whose parameters have the base's values and are cut by rows over the processes."""

    def __init__(self, model: torch.nn.Module, base: Checkpoint, learn: Collection[str], processes: Team):
        import torch
        import torch.distributed as dist
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        check_names({n: tuple(s.shape) for n, s in base.spec.items()}, model, base.label)
        self.device = device_of(model)
        if self.device.type == "meta":
            self.device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
        if self.device.type == "cuda":
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.base, self.processes = base, processes
        self.stored = under_first_names({n: n for n in base.names}, aliases(model))  # first name -> the base's name
        self.mesh = init_device_mesh(self.device.type, (processes.size,))
        self.module = twin_of(model)
        names = {id(t): n for n, t in (*model.named_parameters(), *model.named_buffers())}
        alone: set[Any] = set()  # numbers, which have no rows

        def fill(unit: torch.nn.Module) -> None:
            """The base's values in place of the tensors shared with the caller's module."""
            made: dict[int, Any] = {}  # tied ones stay tied
            for layer in unit.modules():
                own = (
                    *layer.named_parameters(recurse=False, remove_duplicate=False),
                    *layer.named_buffers(recurse=False),
                )
                for leaf, t in own:
                    if id(t) not in names:  # filled before
                        continue
                    if id(t) not in made:
                        made[id(t)] = new = self._filled(names[id(t)], t, learn)
                        alone.update({new} if new.dim() == 0 and isinstance(new, torch.nn.Parameter) else ())
                    setattr(layer, leaf, made[id(t)])

        # Block by block, so that no more than one is whole.
        for path in (*blocks(model), ""):
            unit = self.module.get_submodule(path)
            fill(unit)
            fully_shard(unit, mesh=self.mesh, ignored_params=alone)
        self.shapes = {n: p.shape for n, p in model.named_parameters()}

    def _filled(self, name: str, t: torch.Tensor, learn: Collection[str]) -> torch.Tensor:
        import torch

        if isinstance(t, torch.nn.Parameter):
            return torch.nn.Parameter(self.read(name).to(self.device), requires_grad=name in learn)
        if name not in self.stored and t.is_meta:
            raise UsageError(
                f"the buffer {name!r} of {type(self.module).__name__} has no values: {self.base.label} lacks it and the model was "
                "built without any. Build the model's buffers outside torch.device('meta')."
            )
        return (self.read(name) if name in self.stored else t).to(self.device)

    def read(self, name: str) -> torch.Tensor:
        """One of the base's tensors, whole, on the CPU; floats in float32."""
        import numpy as np
        import torch

        array = self.base.array(self.stored[name])
        values = array if array.dtype.kind in "iub" else np.asarray(array, dtype=np.float32)
        return torch.from_numpy(np.asarray(values, order="C"))

    def own(self) -> dict[str, torch.Tensor]:
        """This process's rows of every parameter."""
        return {n: _own(p.detach()) for n, p in self.module.named_parameters()}

    def gradients(self) -> dict[str, torch.Tensor | None]:
        """This process's rows of every gradient."""
        found = {n: None if p.grad is None else _own(p.grad) for n, p in self.module.named_parameters()}
        for name, grad in found.items():
            if grad is not None and not self.shapes[name]:
                self.processes.add_up([grad])
                grad /= self.processes.size
        return found

    def clip(self, learned: Collection[torch.Tensor], most: float) -> None:
        """Scale the gradients so that their norm over all processes is at most this."""
        import torch

        grads = [t.grad for t in learned if t.grad is not None]
        ours = [g for g in grads if g.dim() or self.processes.rank == 0]  # numbers are in every process
        square = torch.stack([torch.zeros((), device=self.device), *(g.norm() ** 2 for g in ours)]).sum()
        self.processes.add_up([square])
        scale = torch.clamp(most / (square.sqrt() + 1e-6), max=1.0)
        for g in grads:
            g.mul_(scale)

    def gathered(self, name: str, own: torch.Tensor) -> torch.Tensor:
        """A tensor of a parameter's shape from every process's rows."""
        import torch
        from torch.distributed.tensor import DTensor, Shard

        shape = self.shapes[name]
        if not shape:
            return own
        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(own, self.mesh, [Shard(0)], run_check=False, shape=shape, stride=stride).full_tensor()


def _own(t: Any) -> torch.Tensor:
    return t.to_local() if hasattr(t, "to_local") else t


def _processes() -> Team:
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_initialized():
        raise UsageError(
            "sharded training needs a group of processes. Start the script with torchrun --nproc-per-node N and call "
            "torch.distributed.init_process_group() first; or use fit, in one process."
        )
    return team()


def _supported(regime: Regime, spec: TrainSpec) -> None:
    if spec.check:
        raise UsageError(
            "sharded training does not look at the validation split on the way. Leave out check, or use fit."
        )
    if spec.autocast:
        raise UsageError("sharded training computes in float32. Leave out autocast, or use fit.")
    odd = []
    if regime.forward is not plain:
        odd.append(f"the {regime.forward.name} forward rule")
    if regime.low_rank is not None:
        odd.append("coordinates of low rank")
    if regime.head != "frozen" or regime.select is None:
        odd.append("a trained head")
    if odd:
        raise UsageError(
            f"regime {regime.name!r} cannot be trained sharded: it has {' and '.join(odd)}. Regimes through the ordinary model with the "
            "weights' own coordinates can (STANDARD, LINEAR_ONLY, LINEAR_ONLY_BIASES, BIAS_ATTENTION, MLP_ONLY). Use fit, which "
            "holds the model whole in every process."
        )
