"""Two processes, each with half of the model, train the vector that one process trains with all of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import sharded_process
from taskvec.errors import UsageError
from taskvec.models.parts import blocks
from taskvec.models.vit import small_vit
from taskvec.tasks import Head, Split, Task
from taskvec.training import STANDARD, TrainSpec, fit_sharded
from taskvec.weights import Checkpoint, TaskVector

torch.set_num_threads(1)


def two(folder):
    """What each of two processes says."""
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("torch was built without gloo")
    command = [sys.executable, "-W", "ignore", Path(sharded_process.__file__)]
    group = [
        subprocess.Popen([*command, str(rank), "2", folder], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        said = [p.communicate(timeout=120) for p in group]
    finally:
        for p in group:
            p.kill()
            p.communicate()
    assert all(p.returncode == 0 for p in group), said
    return [json.loads(s[0].splitlines()[-1]) for s in said]


def test_two_halves_give_the_vector_of_one(tmp_path):
    alone, halves = sharded_process.main(0, 1, tmp_path), two(tmp_path)
    assert list(halves[0]["losses"]) == list(alone["losses"]) and len(alone["losses"]) == 4
    for name, losses in alone["losses"].items():
        np.testing.assert_allclose(halves[0]["losses"][name], losses, rtol=1e-5)
        one, other = (TaskVector.read(tmp_path / f"{size}-{name}.safetensors") for size in (1, 2))
        assert one.norm() > 0.01 and set(one.names) == set(other.names)
        for n, a in one.arrays().items():
            if a.ndim != 1:  # the gradient of a key's bias is rounding, which Adam makes as large as any other
                np.testing.assert_allclose(other.array(n), a, atol=2e-5, err_msg=f"{name} {n}")
    assert all(len(h["refused"]) == 3 and "(STANDARD, LINEAR_ONLY" in h["refused"][0] for h in halves)
    # Base, displacement, gradient and two moments; a half of these and of the displaced weights.
    assert all(0.5 < h["held"] / alone["held"] < 0.7 for h in halves), (alone, halves)


def test_without_a_group_of_processes():
    g = torch.Generator().manual_seed(0)
    model = small_vit(width=8, depth=1, heads=2, generator=g)
    split = Split(torch.rand(8, 1, 8, 8, generator=g), torch.randint(3, (8,), generator=g))
    task = Task("t", split, split, split, Head.random(3, 8, generator=g), tuple("abc"))
    with pytest.raises(UsageError, match="torchrun"):
        fit_sharded(model, Checkpoint.of(model), task, regime=STANDARD, spec=TrainSpec(batch=4))


def test_blocks_are_the_outermost_members_of_lists_that_share_nothing():
    def layer():
        return torch.nn.TransformerEncoderLayer(8, 2, 16)

    def network(*layers, **more):
        return torch.nn.ModuleDict({"layers": torch.nn.ModuleList(layers), **more})

    assert blocks(network(layer(), layer(), norm=torch.nn.LayerNorm(8))) == ["layers.0", "layers.1"]
    assert blocks(network(torch.nn.ModuleList([layer(), torch.nn.ReLU()]))) == ["layers.0.0"]
    one = layer()
    assert blocks(network(one, layer(), head=one.linear1)) == ["layers.1"]
    assert blocks(torch.nn.Linear(2, 2)) == []
