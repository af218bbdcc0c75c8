"""Linearised models: exact at the base, affine, of Taylor slope 2, and equal to torch.func.jvp with any architecture."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn

import taskvec.models.dual  # noqa: F401  (loads what torch would otherwise warn about)
from taskvec.errors import KeyMismatch, UsageError
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


class Body(nn.Module):
    """A linear layer, then something."""

    def __init__(self, body):
        super().__init__()
        self.w, self.b = nn.Parameter(torch.empty(4, 4)), nn.Parameter(torch.empty(4))
        g = generator(7)
        nn.init.normal_(self.w, generator=g)
        nn.init.normal_(self.b, generator=g)
        self.body = body

    def forward(self, x):
        return self.body(self, F.linear(x, self.w, self.b), x)


def attended(h, mask=None, **options):
    q = h.reshape(1, 1, 3, 4)
    return F.scaled_dot_product_attention(query=q, key=q, value=q, attn_mask=mask, **options)[0, 0]


BLIND = torch.tensor([[0.0, -math.inf, 0.0], [-math.inf] * 3, [0.0, 0.0, 0.0]], dtype=torch.float64)
WAYS = {
    "keywords": lambda m, h, x: F.linear(input=x, weight=m.w, bias=m.b) + F.gelu(input=h) + torch.softmax(input=h, dim=-1),
    "more keywords": lambda m, h, x: torch.add(h, other=m.b) + torch.div(h, other=m.b) + torch.matmul(h, other=m.w) + torch.mul(input=h, other=h),
    "layer norm by keywords": lambda m, h, x: torch.layer_norm(input=h, normalized_shape=(4,)) + F.layer_norm(h, (4,), bias=m.b),
    "alpha": lambda m, h, x: torch.add(h, m.b, alpha=2).sub(m.b, alpha=3) + torch.addmm(input=m.b, mat1=h, mat2=m.w, beta=2, alpha=0.5),
    "from the other side": lambda m, h, x: 1 - h + 2 / h - (x - h) * 3,
    "transposes": lambda m, h, x: x @ m.w.T + x @ m.w.mT + x @ m.w.mH + x @ m.w.H + F.linear(x, m.w.t().t()),
    "real parts": lambda m, h, x: h.real + torch.complex(h, h * h).imag + torch.fft.rfft(h, n=4).abs().sum(-1, keepdim=True),
    "rotary": lambda m, h, x: torch.view_as_real(torch.view_as_complex(h.reshape(3, 2, 2)) * torch.polar(torch.ones(2, dtype=h.dtype), torch.ones(2, dtype=h.dtype))).flatten(1),
    "in place": lambda m, h, x: (h * 1).mul_(m.b).add_(1).relu_(),
    "in place of nn": lambda m, h, x: (lambda y: F.relu(y, inplace=True) @ m.w + y)(h * 1),
    "augmented": lambda m, h, x: (lambda y: y.__imul__(m.b))(h * 1),
    "indexing": lambda m, h, x: h[..., :2] @ m.w[:2] + h[[0, 0, 2]] + torch.where(h > 0, h, m.b),
    "formats": lambda m, h, x: (h.float() + x) @ m.w + h.to(torch.float64) + torch.softmax(h, -1, torch.float64),
    "a masked row": lambda m, h, x: attended(h, BLIND),
    "causal": lambda m, h, x: attended(h, is_causal=True, scale=0.3),
    "reductions": lambda m, h, x: h.mean(dim=0) + h.amax(1, keepdim=True) + h.sort(-1).values + torch.cumsum(h, 1) + h.norm(),
    "einsum": lambda m, h, x: torch.einsum("ij,kj->ik", h, m.w) + torch.baddbmm(m.b, h[None], m.w[None])[0],
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_ways_of_writing(way):
    model, x = Body(WAYS[way]).double(), torch.randn(3, 4, generator=generator(8), dtype=torch.float64)
    base, delta = weights(model), {n: d.requires_grad_() for n, d in drawn(model).items()}
    found, expected = linearised(bind(model), base, delta, x), reference(model, base, delta, x)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
    if way == "a masked row":
        return  # torch's fused kernel gives NaN there in an ordinary reverse pass too
    grads = [torch.autograd.grad((out**2).sum(), list(delta.values()), allow_unused=True) for out in (found, expected)]
    for a, b, d in zip(*grads, delta.values(), strict=True):
        torch.testing.assert_close(*(torch.zeros_like(d) if g is None else g for g in (a, b)), rtol=1e-6, atol=1e-6)


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, g):
        return g


def into_view(h):
    h = h * 1
    h[:, 0].mul_(3)
    return h


def through_view(h):
    h = h * 1
    y = h.view(-1)
    y.add_(1)
    return h


LOST = {
    "an autograd.Function": lambda m, h, x: h + Swish.apply(h),
    "no_grad": lambda m, h, x: torch.no_grad()(torch.tanh)(h),
    "a re-entrant checkpoint": lambda m, h, x: torch.utils.checkpoint.checkpoint(torch.tanh, h, use_reentrant=True),
    "vmap": lambda m, h, x: torch.vmap(lambda r: r * r)(h),
    "func.grad": lambda m, h, x: torch.func.grad(lambda a: (a**3).sum())(h),
    "a view written": lambda m, h, x: into_view(h),
    "a view's base": lambda m, h, x: through_view(h),
    "an operation of aten in place": lambda m, h, x: torch.ops.aten.add_.Tensor(h * 1, m.b),
    "dropout": lambda m, h, x: F.dropout(h, 0.5, True),
    "max_norm": lambda m, h, x: F.embedding(torch.tensor([0, 1, 2]), m.w, max_norm=1.0),
    "cdist": lambda m, h, x: torch.cdist(h, h)[:, :1] * h,
}


@pytest.mark.parametrize("way", LOST)
def test_what_would_lose_a_derivative_is_refused(way):
    model, x = Body(LOST[way]).double(), torch.randn(3, 4, generator=generator(8), dtype=torch.float64)
    delta = {n: d.requires_grad_() for n, d in drawn(model).items()}
    with pytest.raises(UsageError, match=r"cannot be linearised: in Body|cannot be applied"):
        linearised(bind(model), weights(model), delta, x)


def test_attention_weights_have_a_derivative():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            hidden = torch.zeros(x.shape[:2], dtype=torch.bool)
            hidden[0, 3:] = True
            out, shares = self.attn(x, x, x, key_padding_mask=hidden)
            return out + shares.sum(1, keepdim=True).transpose(1, 2)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Both().double().eval()
    x = torch.randn(2, 5, 8, generator=generator(3), dtype=torch.float64)
    base, delta = weights(model), drawn(model)
    torch.testing.assert_close(linearised(bind(model), base, delta, x), reference(model, base, delta, x))


def test_buffers_stay_and_unknown_names_and_gradients_of_inputs_are_refused():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)).double().eval()
    f, x = bind(model), torch.randn(4, 3, dtype=torch.float64, generator=generator())
    base = weights(model) | {n: b.clone() for n, b in model.named_buffers() if b.is_floating_point()}
    moved = linearised(f, base, {"0.running_mean": torch.ones(3, dtype=torch.float64)}, x)
    torch.testing.assert_close(moved, f(base, x))
    with pytest.raises(KeyMismatch, match="nonsense"):
        linearised(f, base, {"nonsense": torch.ones(3)}, x)
    delta = {"1.bias": torch.zeros(2, dtype=torch.float64, requires_grad=True)}
    with pytest.raises(UsageError, match="no gradient of its inputs"):
        linearised(f, base, delta, x.clone().requires_grad_())
    (first,) = torch.autograd.grad((linearised(f, base, delta, x) ** 2).sum(), [delta["1.bias"]], create_graph=True)
    with pytest.raises(RuntimeError):
        first.sum().backward()


def test_autocast():
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3))
    x, base, delta = torch.randn(5, 8, generator=generator()), weights(model), drawn(model, scale=0.1)
    exact = linearised(bind(model), base, delta, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = linearised(bind(model), base, {n: d.requires_grad_() for n, d in delta.items()}, x)
        rough.float().sum().backward()
    torch.testing.assert_close(rough.float(), exact, rtol=0.1, atol=0.1)
    assert all(d.grad is not None for d in delta.values())
