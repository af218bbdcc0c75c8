"""The state of a training run in one file: what is needed to go on as if nothing had happened. Safetensors, no pickles."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UsageError
from ..weights import Checkpoint

if TYPE_CHECKING:
    import torch

RUN = "run"  # the facts of the run, as bytes of JSON
MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass(frozen=True, eq=False)
class Saved:
    """How far a run came: updates made, losses so far, where in its epoch it is, and displacements on the way."""

    step: int
    losses: tuple[float, ...]
    order: torch.Tensor  # the epoch's permutation
    position: int
    kept: Mapping[int, Mapping[str, torch.Tensor]] = field(default_factory=dict)
    looks: Mapping[int, float] = field(default_factory=dict)  # validation losses
    best: Mapping[str, torch.Tensor] = field(default_factory=dict)  # what was learnt at the best of them


def save_state(
    path: Path, run: Mapping[str, Any], saved: Saved, learned: Mapping[str, torch.Tensor],
    optimiser: torch.optim.Optimizer, generator: torch.Generator,
) -> None:  # fmt: skip
    """Write everything that learns, the optimiser's moments and the generator, in place of an earlier state."""
    table: dict[str, Any] = {f"learned.{n}": t.detach().cpu() for n, t in learned.items()}
    for name, t in learned.items():
        table |= {f"adam.{name}.{m}": optimiser.state[t][m].cpu() for m in MOMENTS if t in optimiser.state}
    table |= {"generator": generator.get_state(), "order": saved.order, "losses": np.array(saved.losses, np.float64)}
    table |= {f"kept.{step}.{n}": t for step, delta in saved.kept.items() for n, t in delta.items()}
    table |= {f"best.{n}": t for n, t in saved.best.items()}
    looks = [[s, float.hex(loss)] for s, loss in saved.looks.items()]  # as hex: JSON knows no infinity
    facts = {
        "run": dict(run), "step": saved.step, "position": saved.position, "kept": list(saved.kept), "looks": looks,
    }  # fmt: skip
    table[RUN] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    Checkpoint.of(table, label="state", copy=False).save(path, overwrite=True)


def load_state(
    path: Path, run: Mapping[str, Any], learned: Mapping[str, torch.Tensor], optimiser: torch.optim.Optimizer,
    generator: torch.Generator,
) -> Saved:  # fmt: skip
    """Put a saved state into the run's tensors, optimiser and generator.

    Raises:
        UsageError: the state is of another run; says in what they differ.
    """
    import torch

    state = Checkpoint.read(path)
    if RUN not in state.spec:
        raise UsageError(f"{path} is not the state of a training run. Name another file, or remove it.")
    facts = json.loads(state.array(RUN).tobytes())
    wanted = json.loads(json.dumps(run))
    other = [k for k in {**wanted, **facts["run"]} if wanted.get(k) != facts["run"].get(k)]
    if other:
        said = "; ".join(f"{k} was {facts['run'].get(k)!r}, now {wanted.get(k)!r}" for k in other)
        raise UsageError(
            f"{path} is the state of another run: {said}. Go on with the same settings, or remove it to begin anew."
        )

    def tensor(name: str) -> torch.Tensor:
        return torch.from_numpy(state.array(name).copy())

    with torch.no_grad():
        for name, t in learned.items():
            t.copy_(tensor(f"learned.{name}"))
            kept = {m: tensor(f"adam.{name}.{m}") for m in MOMENTS if f"adam.{name}.{m}" in state.spec}
            if kept:
                optimiser.state[t] = {m: v if m == "step" else v.to(t.device) for m, v in kept.items()}
    generator.set_state(tensor("generator"))
    losses = tuple(float(x) for x in state.array("losses"))

    def under(start: str) -> dict[str, torch.Tensor]:
        return {n.removeprefix(start): tensor(n) for n in state.names if n.startswith(start)}

    kept = {step: under(f"kept.{step}.") for step in facts["kept"]}
    looks = {step: float.fromhex(loss) for step, loss in facts.get("looks", ())}
    return Saved(facts["step"], losses, tensor("order"), facts["position"], kept, looks, under("best."))
