"""Binding a module as a pure function, tensors of checkpoints, the small transformer."""

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn

from taskvec.errors import KeyMismatch, UsageError
from taskvec.models import bind, plain, tensors
from taskvec.models.vit import small_vit
from taskvec.weights import Checkpoint

torch.set_num_threads(1)  # tensors this small only wait for each other on several threads


def seeded(n: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(n)


class Odd(nn.Module):
    """Dropout, batch norm (buffers, one of them an integer) and tied weights."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4, bias=False)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.b = nn.Linear(4, 4, bias=False)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.drop(self.norm(self.a(x))))


def test_a_bound_model_equals_the_module_bit_for_bit():
    vit = small_vit(width=16, depth=2, generator=seeded())
    x = torch.rand(7, 1, 8, 8, generator=seeded(1))
    assert torch.equal(bind(vit)(tensors(Checkpoint.of(vit), like=vit), x), vit(x))


def test_binding_evaluates_and_leaves_the_module_as_it_was():
    odd = Odd().train()
    before = {n: t.clone() for n, t in odd.state_dict().items()}
    f = bind(odd)
    x = torch.rand(5, 4, generator=seeded())
    first, second = (f(dict(odd.named_parameters()), x) for _ in range(2))
    assert torch.equal(first, second)  # no dropout
    assert odd.training
    assert all(torch.equal(t, before[n]) for n, t in odd.state_dict().items())  # batch-norm statistics did not move
    assert torch.equal(first, odd.eval()(x))


def test_binding_copies_no_tensor():
    vit = small_vit(width=16, depth=1, generator=seeded())
    f = bind(vit)
    with torch.no_grad():
        vit.norm.bias += 1.0
    x = torch.rand(2, 1, 8, 8, generator=seeded())
    assert torch.equal(f(dict(vit.named_parameters()), x), vit(x))


def test_buffers_are_taken_from_the_weights_where_given():
    odd = Odd()
    f, x = bind(odd), torch.ones(1, 4)
    params = dict(odd.named_parameters())
    moved = {**params, "norm.running_mean": torch.full((4,), 3.0)}
    assert not torch.equal(f(params, x), f(moved, x))


def test_tied_weights_go_by_their_first_name():
    odd = Odd()
    f, x = bind(odd), torch.ones(1, 4)
    both = {n: t.clone() for n, t in odd.state_dict().items()}  # as a file holds them: two copies
    one = {n: t for n, t in both.items() if n != "b.weight"}
    assert torch.equal(f(both, x), f(one, x))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda w: w.pop("norm.weight"), "1 missing ('norm.weight')"),
        (lambda w: w.update({"head.weight": torch.zeros(1)}), "1 unknown ('head.weight')"),
        (lambda w: w.update({"norm.bias": torch.zeros(5)}), "'norm.bias': expected (16,), got (5,)"),
    ],
)
def test_names_and_shapes_are_exact(change, says):
    vit = small_vit(width=16, depth=1, generator=seeded())
    weights = dict(vit.state_dict())
    change(weights)
    with pytest.raises(KeyMismatch) as bound:
        bind(vit)(weights, torch.zeros(1, 1, 8, 8))
    with pytest.raises(KeyMismatch) as read:
        tensors(Checkpoint.of(weights), like=vit)
    assert says in str(bound.value) and says in str(read.value)


def test_tensors_are_float32_copies_and_integers_stay():
    half = np.array([1.5, -2.0], ml_dtypes.bfloat16)
    table = {"half": half, "steps": np.array([3]), "w": np.ones(2, np.float32)}
    checkpoint = Checkpoint.of(table)
    got = tensors(checkpoint)
    assert {n: t.dtype for n, t in got.items()} == {
        "half": torch.float32, "steps": torch.int64, "w": torch.float32,
    }  # fmt: skip
    assert got["half"].tolist() == [1.5, -2.0]
    got["w"].fill_(9.0)
    assert checkpoint.array("w").tolist() == [1.0, 1.0] and table["w"].tolist() == [1.0, 1.0]


def test_plain_displaces_named_parameters_only():
    layer = nn.Linear(2, 1)
    base = {"weight": torch.tensor([[1.0, 2.0]]), "bias": torch.tensor([0.5])}
    out = plain(bind(layer), base, {"bias": torch.tensor([1.0])}, torch.ones(1, 2))
    assert out.tolist() == [[4.5]]


def test_small_vit_draws_from_its_generator_alone():
    state = torch.get_rng_state()
    a, b, c = (small_vit(width=16, depth=1, generator=seeded(s)).state_dict() for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert not torch.equal(a["blocks.0.attn.qkv.weight"], c["blocks.0.attn.qkv.weight"])
    assert {"cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight", "norm.bias"} <= set(a)


def test_small_vit_refuses_sizes_that_do_not_divide():
    with pytest.raises(UsageError, match="multiple of patch 3"):
        small_vit(patch=3, generator=seeded())
