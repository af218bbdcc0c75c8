"""Penalties: their values and gradients are those of their equations, and they do what they are for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from taskvec.errors import UsageError
from taskvec.models import bind, tensors
from taskvec.models.forward import value_and_tangent
from taskvec.models.vit import small_vit
from taskvec.tasks import Head, Split, Task
from taskvec.training import LORA, STANDARD, TANGENT, TrainSpec, fit, orthogonal, tau_jp
from taskvec.weights import Checkpoint

torch.set_num_threads(1)


def test_tau_jp_is_its_equation():
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    g = torch.Generator().manual_seed(0)
    base = {n: p.detach() for n, p in model.named_parameters()}
    delta = {n: torch.randn(p.shape, generator=g, dtype=torch.float64, requires_grad=True) for n, p in base.items()}
    x = torch.randn(5, 4, generator=g, dtype=torch.float64)
    found = tau_jp([x], weight=1.0, batch=5).term(bind(model), base, delta, torch.Generator().manual_seed(3))
    rows = torch.randint(5, (5,), generator=torch.Generator().manual_seed(3))
    jacobian = torch.func.jacrev(lambda p: torch.func.functional_call(model, p, (x[rows],)))(base)
    moved = sum(torch.einsum("nk...,...->nk", jacobian[n], d) for n, d in delta.items())
    expected = (moved**2).sum() / 5
    torch.testing.assert_close(found, expected)
    for a, b in zip(*(torch.autograd.grad(v, list(delta.values())) for v in (found, expected)), strict=True):
        torch.testing.assert_close(a, b)


def test_orthogonality_is_its_equation():
    wide = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 1.0]], requires_grad=True)
    term = orthogonal(weight=1.0).term(None, {}, {"w": wide, "b": torch.ones(3)}, None)
    gram = wide.detach() @ wide.detach().T
    assert float(term.detach()) == pytest.approx(float(((gram - torch.eye(2)) ** 2).sum()))
    assert float(orthogonal(weight=1.0).term(None, {}, {"w": torch.eye(3)[:, :2]}, None)) == 0


@pytest.fixture(scope="module")
def setting():
    g = torch.Generator().manual_seed(0)
    model = small_vit(width=16, depth=2, heads=2, generator=g)
    base = Checkpoint.of(model, label="base")
    labels = torch.randint(3, (96,), generator=g)
    inputs = torch.rand(96, 1, 8, 8, generator=g)
    for k in range(3):
        inputs[labels == k, :, k] += 2.0
    split = Split(inputs, labels)
    task = Task("rows", split, split, split, Head.random(3, 16, generator=g), ("0", "1", "2"))
    return model, base, task, inputs.transpose(2, 3).contiguous()


@pytest.mark.parametrize("regime", [STANDARD, TANGENT, LORA], ids=lambda r: r.name)
def test_tau_jp_keeps_the_vector_off_other_inputs(regime, setting):
    model, base, task, other = setting
    spec = TrainSpec(steps=40, lr=5e-3, batch=32)
    free = fit(model, base, task, regime=regime, spec=spec)
    held = fit(model, base, task, regime=regime, spec=spec, penalties=[tau_jp([other], weight=1.0)])
    f, start = bind(model), tensors(base)

    def effect(vector, x):
        return float(
            value_and_tangent(f, start, {n: torch.from_numpy(a) for n, a in vector.arrays().items()}, x)[1].norm()
        )

    ratio = {
        name: effect(m.vector, other) / effect(m.vector, task.train.inputs)
        for name, m in (("free", free), ("held", held))
    }
    assert ratio["held"] < 0.8 * ratio["free"], ratio
    again = fit(model, base, task, regime=regime, spec=spec, penalties=[tau_jp([other], weight=1.0)])
    assert again.losses == held.losses
    none = fit(model, base, task, regime=regime, spec=spec, penalties=[orthogonal(weight=0.0)])
    assert none.losses == free.losses


def test_penalties_are_part_of_a_saved_run(setting, tmp_path):
    model, base, task, other = setting
    spec, state = TrainSpec(steps=4, lr=1e-3, batch=32), tmp_path / "run.safetensors"
    fit(model, base, task, spec=spec, penalties=[tau_jp([other], weight=1.0)], state=state, every=2)
    with pytest.raises(UsageError, match="penalties was"):
        fit(model, base, task, spec=spec, penalties=[tau_jp([other], weight=2.0)], state=state)


def test_what_is_refused():
    with pytest.raises(UsageError, match="at least one other task"):
        tau_jp([], weight=1.0)
    with pytest.raises(UsageError, match="weight is -1"):
        orthogonal(weight=-1)
    with pytest.raises(UsageError, match="weight is nan"):
        orthogonal(weight=np.nan)
