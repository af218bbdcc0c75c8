"""One of the processes of test_sharded.py: ``python sharded_process.py RANK SIZE FOLDER``. Alone it trains with `fit`."""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # before the group, see taskvec.training.parallel

from taskvec.errors import UsageError
from taskvec.models.vit import small_vit
from taskvec.tasks import Head, Split, Task
from taskvec.training import LINEAR_ONLY, LORA, MLP_ONLY, PRETRAIN, STANDARD, TANGENT, TrainSpec, fit, fit_sharded
from taskvec.weights import Checkpoint

SPEC = TrainSpec(steps=6, lr=1e-3, batch=9, accumulate=2, clip=0.5, weight_decay=0.1)


class Odd(torch.nn.Module):
    """With a number and a buffer, a tied weight, and a layer that has no effect."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.scale = inner, torch.nn.Parameter(torch.tensor(1.5))
        self.first, self.unused = torch.nn.Linear(24, 24, bias=False), torch.nn.Linear(3, 3)
        self.second = torch.nn.Linear(24, 24, bias=False)
        self.second.weight = self.first.weight
        self.register_buffer("shift", torch.arange(24.0) / 24)

    def forward(self, x):
        return self.second(torch.tanh(self.first(self.scale * self.inner(x) + self.shift)))


def storages():
    """Bytes of every memory that tensors hold."""
    tensors = [t for t in gc.get_objects() if type(t) in (torch.Tensor, torch.nn.Parameter) and not t.is_meta]
    return {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}


def noisy(x, generator):
    return x + 0.1 * torch.randn(x.shape, generator=generator)


def main(rank, size, folder):
    """Trains, writes vectors into the folder, returns what a test may want to know."""
    g = torch.Generator().manual_seed(0)
    split = Split(torch.rand(50, 1, 8, 8, generator=g), torch.randint(3, (50,), generator=g))
    task = Task("t", split, split, split, Head.random(3, 24, generator=g), tuple("abc"))
    vit = small_vit(width=24, depth=2, heads=2, generator=g)
    Checkpoint.of(vit).save(folder / f"base{rank}-{size}")
    stored = Checkpoint.read(folder / f"base{rank}-{size}", label="base")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        odd = Odd(small_vit(width=24, depth=1, heads=2, generator=g))
    before = [t.clone() for t in odd.state_dict().values()]
    if size > 1:
        vit = vit.to("meta")  # the structure is enough
    facts = {"held": 0, "losses": {}, "refused": []}
    known = storages()

    def watch(step, loss):
        held = sum(n for place, n in storages().items() if place not in known)
        facts["held"] = max(facts["held"], held)

    runs = [("vit", vit, stored, regime) for regime in (STANDARD, LINEAR_ONLY, MLP_ONLY)]
    runs.append(("odd", odd, Checkpoint.of(odd, label="base"), STANDARD))
    for kind, model, base, regime in runs:
        train, progress = (fit_sharded if size > 1 else fit), (watch if regime is STANDARD and kind == "vit" else None)
        made = train(model, base, task, regime=regime, spec=SPEC, augment=noisy, progress=progress)
        assert (made is None) == (rank > 0)
        if made:
            made.vector.save(folder / f"{size}-{kind} {regime.name}.safetensors")
            edited = (base + made.vector).arrays()
            assert all(abs(edited[n] - a).max() < 1e-6 for n, a in made.checkpoint.arrays().items())
            facts["losses"][f"{kind} {regime.name}"] = made.losses
    assert all(torch.equal(a, b) for a, b in zip(odd.state_dict().values(), before, strict=True))
    for regime in (TANGENT, LORA, PRETRAIN) if size > 1 else ():
        try:
            fit_sharded(vit, stored, task, regime=regime, spec=SPEC)
        except UsageError as error:
            facts["refused"].append(str(error))
    return facts


if __name__ == "__main__":
    own, all_, where = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{where}/meet", rank=own, world_size=all_)
    print(json.dumps(main(own, all_, where)))
    dist.destroy_process_group()
