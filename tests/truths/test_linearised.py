"""Linearised models: exact at the base, affine, of Taylor slope 2, and equal to torch.func.jvp with any architecture."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import taskvec.models.dual  # noqa: F401  (loads what torch would otherwise warn about)
from taskvec.errors import UsageError
from taskvec.models import bind
from taskvec.models.forward import linearised, plain
from taskvec.models.vit import small_vit

torch.set_num_threads(1)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(model, seed=1, scale=1.0, names=None):
    g = generator(seed)
    draw = {n: scale * torch.randn(p.shape, generator=g, dtype=p.dtype) for n, p in model.named_parameters()}
    return {n: d for n, d in draw.items() if names is None or n in names}


def weights(model):
    return {n: p.detach().clone() for n, p in model.named_parameters()}


class Fused(nn.Module):
    """Fused attention, dropout, a convolution with batch normalisation, several activations, in-place operations."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2), nn.BatchNorm2d(4)
        self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 4)
        self.norm, self.drop = nn.LayerNorm(4), nn.Dropout(0.5)
        self.mlp = nn.Sequential(
            nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4), nn.ReLU(inplace=True)
        )
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x):
        x = self.bn(self.conv(x)).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, 2)).permute(2, 0, 3, 1, 4)
        x += self.drop(self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)))
        x = x * self.scale / 2 - self.mlp(x) ** 2
        x = torch.cat([x, F.normalize(x, dim=-1), torch.sigmoid(x), F.gelu(x, approximate="tanh")], 1)
        mask = torch.arange(x.shape[1]) % 3 == 0
        return x.masked_fill(mask[None, :, None], 0.5).logsumexp(1) + x.mean(1).clamp(min=-0.1)


class OpenClipBlock(nn.Module):
    """torch's MultiheadAttention as open_clip calls it, with a causal mask."""

    def __init__(self):
        super().__init__()
        self.attn, self.norm = nn.MultiheadAttention(8, 2), nn.LayerNorm(8)
        self.embed = nn.Embedding(11, 8)
        self.position = nn.Parameter(torch.zeros(5, 8))

    def forward(self, ids):
        x = (self.embed(ids) + self.position).permute(1, 0, 2)
        mask = torch.full((5, 5), -math.inf, dtype=x.dtype).triu(1)
        hidden = self.norm(x)
        return (x + self.attn(hidden, hidden, hidden, need_weights=False, attn_mask=mask)[0])[-1]


def models():
    torch.manual_seed(0)
    x = torch.randn(3, 2, 6, 6, generator=generator(2), dtype=torch.float64)
    ids = torch.randint(11, (3, 5), generator=generator(3))
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu")
    fused = Fused()
    fused.bn.running_mean.uniform_(-1, 1)
    fused.bn.running_var.uniform_(0.5, 2)
    return {
        "vit": (
            small_vit(width=8, depth=2, heads=2, generator=generator()),
            x[:, :1, :, :].repeat(1, 1, 2, 2)[:, :, :8, :8],
        ),
        "fused": (fused, x),
        "open_clip": (OpenClipBlock(), ids),
        "encoder layer": (nn.Sequential(layer), torch.randn(3, 5, 8, generator=generator(4), dtype=torch.float64)),
    }


@pytest.fixture(params=["vit", "fused", "open_clip", "encoder layer"])
def case(request):
    with torch.random.fork_rng():
        model, x = models()[request.param]
    return model.double().eval(), x


def reference(model, base, delta, x):
    """torch's own forward-mode derivative, of the kernel that has one."""
    from torch.func import functional_call, jvp
    from torch.nn.attention import SDPBackend, sdpa_kernel

    full = {n: delta.get(n, torch.zeros_like(t)) for n, t in base.items()}
    torch.backends.mha.set_fastpath_enabled(False)  # which has no derivative
    try:
        with sdpa_kernel(SDPBackend.MATH):
            value, along = jvp(lambda p: functional_call(model, p, (x,)), (base,), (full,))
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    return value + along


def test_outputs_are_those_of_torchs_own_derivative(case):
    model, x = case
    base = weights(model)
    for names in (None, [n for n in base if "weight" in n], list(base)[-1:]):
        delta = drawn(model, names=names, scale=0.3)
        torch.testing.assert_close(
            linearised(bind(model), base, delta, x), reference(model, base, delta, x), rtol=1e-9, atol=1e-11
        )


def test_gradients_are_those_of_torchs_own_derivative(case):
    model, x = case
    base = weights(model)
    delta = {n: d.requires_grad_() for n, d in drawn(model, scale=0.3).items()}
    aim = torch.randn(linearised(bind(model), base, delta, x).shape, generator=generator(5), dtype=torch.float64)
    found, expected = (
        torch.autograd.grad(((out - aim) ** 2).sum(), list(delta.values()), allow_unused=True)
        for out in (linearised(bind(model), base, delta, x), reference(model, base, delta, x))
    )
    for name, a, b in zip(delta, found, expected, strict=True):
        torch.testing.assert_close(a if a is not None else torch.zeros_like(b), b, rtol=1e-8, atol=1e-10, msg=name)


def test_exact_at_the_base_and_affine(case):
    model, x = case
    f, base = bind(model), weights(model)
    d, e = drawn(model, 1), drawn(model, 2)
    origin = f(base, x)
    torch.testing.assert_close(linearised(f, base, {n: 0 * t for n, t in d.items()}, x), origin, rtol=0, atol=1e-12)
    torch.testing.assert_close(linearised(f, base, {}, x), origin, rtol=0, atol=1e-12)
    both = linearised(f, base, {n: 2 * d[n] - 3 * e[n] for n in d}, x)
    parts = 2 * linearised(f, base, d, x) - 3 * linearised(f, base, e, x) + 2 * origin
    torch.testing.assert_close(both, parts, rtol=1e-9, atol=1e-9)


def test_the_error_is_of_second_order():
    model = small_vit(width=8, depth=2, heads=2, generator=generator()).double()
    x = torch.rand(4, 1, 8, 8, generator=generator(1), dtype=torch.float64)
    f, base, direction = bind(model), weights(model), drawn(model, scale=0.1)
    errors = []
    for step in (1e-1, 1e-2, 1e-3):
        delta = {n: step * d for n, d in direction.items()}
        errors.append(float((plain(f, base, delta, x) - linearised(f, base, delta, x)).norm()))
    slopes = [math.log10(errors[i] / errors[i + 1]) for i in range(2)]
    assert all(1.9 < s < 2.1 for s in slopes), (errors, slopes)


def test_a_linear_model_is_its_own_linearisation():
    model = nn.Linear(5, 3).double()
    x = torch.randn(7, 5, generator=generator(), dtype=torch.float64)
    f, base, delta = bind(model), weights(model), drawn(model)
    torch.testing.assert_close(plain(f, base, delta, x), linearised(f, base, delta, x))


def test_the_base_gets_no_gradient_and_is_not_changed(case):
    model, x = case
    base = {n: t.requires_grad_() for n, t in weights(model).items()}
    before = {n: t.detach().clone() for n, t in base.items()}
    delta = {n: d.requires_grad_() for n, d in drawn(model).items()}
    linearised(bind(model), base, delta, x).sum().backward()
    assert all(t.grad is None for t in base.values())
    assert all(torch.equal(t, before[n]) for n, t in base.items())
    assert any(d.grad is not None for d in delta.values())


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (lambda m, x: torch.zeros_like(x).index_put_((torch.tensor([0]),), m.w[0]), "index_put_"),
        (lambda m, x: x.clone().copy_(m.w), "copy_"),
        (lambda m, x: (m.w * x, x), "returns tuple"),
    ],
)
def test_what_cannot_be_linearised_is_said(body, says):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.rand(3, 3))

        def forward(self, x):
            return body(self, x)

    model, x = Odd(), torch.rand(3, 3)
    with pytest.raises(UsageError, match="cannot be linearised") as error:
        linearised(bind(model), weights(model), drawn(model), x)
    assert says in str(error.value)
