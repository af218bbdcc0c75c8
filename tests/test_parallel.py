"""Two processes train the vector of one."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from taskvec.weights import TaskVector

SCRIPT = """
import sys
import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # before the group, see taskvec.training.parallel
from taskvec.models.vit import small_vit
from taskvec.tasks import Head, Split, Task
from taskvec.training import LORA, STANDARD, TANGENT, TrainSpec, fit, tau_jp
from taskvec.weights import Checkpoint

rank, size, where, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
torch.set_num_threads(1)
if size > 1:
    dist.init_process_group("gloo", init_method=f"file://{where}", rank=rank, world_size=size)
g = torch.Generator().manual_seed(0)
model = small_vit(width=8, depth=1, heads=2, generator=g)
base = Checkpoint.of(model, label="base")
split = Split(torch.rand(50, 1, 8, 8, generator=g), torch.randint(3, (50,), generator=g))
task = Task("t", split, split, split, Head.random(3, 8, generator=g), tuple("abc"))
noisy = lambda x, generator: x + 0.1 * torch.randn(x.shape, generator=generator)
for regime in (STANDARD, TANGENT, LORA):
    spec = TrainSpec(steps=6, lr=1e-3, batch=9, accumulate=2, clip=0.5)
    made = fit(model, base, task, regime=regime, spec=spec, augment=noisy, penalties=[tau_jp([split], weight=0.1)],
               state=f"{out}-{regime.name}-state.safetensors", every=3)
    if rank == 0:
        made.vector.save(f"{out}-{regime.name}.safetensors")
if size > 1:
    dist.destroy_process_group()
"""


def test_two_processes_give_the_vector_of_one(tmp_path):
    pytest.importorskip("torch.distributed")
    if not torch.distributed.is_gloo_available():
        pytest.skip("torch was built without gloo")

    def run(size):
        where, out = tmp_path / f"meet{size}", tmp_path / f"v{size}"
        command = [sys.executable, "-W", "ignore", "-c", SCRIPT]
        group = [
            subprocess.Popen([*command, str(rank), str(size), where, out], stderr=subprocess.PIPE, text=True)
            for rank in range(size)
        ]
        said = [p.communicate(timeout=120)[1] for p in group]
        assert all(p.returncode == 0 for p in group), said
        return {n: TaskVector.read(f"{out}-{n}.safetensors") for n in ("standard", "tangent", "LoRA")}

    alone, together = run(1), run(2)
    for name, vector in alone.items():
        assert vector.norm() > 0.01
        for n, a in vector.arrays().items():
            if a.ndim > 1:  # the gradient of a key's bias is rounding, which Adam makes as large as any other
                np.testing.assert_allclose(together[name].array(n), a, atol=2e-5, err_msg=f"{name} {n}")
