"""Which parameters each regime trains, on the architectures in use (tiny, from their configs), and what comes of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

import taskvec.models.dual  # noqa: F401  (loads what torch would otherwise warn about)
from taskvec.errors import NonFinite, UsageError
from taskvec.models import bind, tensors
from taskvec.models.forward import linearised, plain
from taskvec.models.parts import Part
from taskvec.models.vit import small_vit
from taskvec.select import matching
from taskvec.tasks import Head, Split, Task
from taskvec.training import (
    BIAS_ATTENTION,
    LINEAR_ONLY,
    LINEAR_ONLY_BIASES,
    LINEARISED_LORA,
    LORA,
    MLP_ONLY,
    PRETRAIN,
    STANDARD,
    TANGENT,
    Rank,
    Regime,
    TrainSpec,
    fit,
)
from taskvec.weights import Checkpoint, TaskVector

torch.set_num_threads(1)
QUICK = TrainSpec(steps=5, lr=1e-2, batch=8)

SMALL = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
TEXT = {"vocab_size": 20, "max_position_embeddings": 16}
IMAGE = {"image_size": 8, "patch_size": 4}
# transformers class and config -> how many attention weights a layer has, layers, and part of one of their names.
KNOWN = {
    "Bert": ({**SMALL, **TEXT}, 4, 2, "attention.self.query"),
    "Roberta": ({**SMALL, **TEXT}, 4, 2, "attention.output.dense"),
    "DistilBert": ({"dim": 8, "n_layers": 2, "n_heads": 2, "hidden_dim": 16, **TEXT}, 4, 2, "q_lin"),
    "GPT2": ({"n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 16, "vocab_size": 20}, 2, 2, "attn.c_attn"),
    "Llama": ({**SMALL, **TEXT, "num_key_value_heads": 1}, 4, 2, "self_attn.o_proj"),
    "T5": (
        {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 2, "vocab_size": 20},
        4,
        4,
        "SelfAttention.q",
    ),
    "ViT": ({**SMALL, **IMAGE}, 4, 2, "attention"),
    "Dinov2": ({"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, **IMAGE}, 4, 2, "attention"),
    "ViTMAE": ({**SMALL, **IMAGE}, 4, 2, "attention"),
    "CLIPVision": ({**SMALL, **IMAGE}, 4, 2, "self_attn.q_proj"),
    "CLIPText": ({**SMALL, **TEXT}, 4, 2, "self_attn.out_proj"),
}


def built(name):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra: hf)")
    config = getattr(transformers, f"{name}Config")(**KNOWN[name][0])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return getattr(transformers, f"{name}Model")(config).eval()


def inputs_of(name):
    if "image_size" in KNOWN[name][0]:
        g = torch.Generator().manual_seed(0)
        return {"pixel_values": torch.rand(2, 3, 8, 8, dtype=torch.float64, generator=g)}
    ids = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 2]])
    return {"input_ids": ids, **({"decoder_input_ids": ids[:, :3]} if name == "T5" else {})}


@pytest.mark.parametrize("name", KNOWN)
def test_attention_projections_are_found(name):
    _, per_layer, layers, part = KNOWN[name]
    model = built(name)
    found = Part("attention").names(model)
    assert len(found) == per_layer * layers and any(part in n for n in found), found
    assert all(n.endswith("weight") and model.get_parameter(n).dim() == 2 for n in found)
    assert not any(w in n for n in found for w in ("norm", "Norm", "EncDec", "embed", "mlp", "pooler"))
    rest = Part("mlp").names(model)
    assert not set(rest) & set(found) and not any("ttention" in n or "attn" in n for n in rest), rest
    assert {model.get_parameter(n).dim() for n in rest} == {2}


@pytest.mark.parametrize("name", KNOWN)
def test_every_architecture_can_be_linearised(name):
    """Equal to torch's own forward-mode derivative, for attention projections alone and for all parameters."""
    if name == "ViTMAE":
        pytest.skip("masks patches at random")

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = built(name)

        def forward(self, _):
            return self.inner(**inputs_of(name)).last_hidden_state.sum(1)

    model = Wrapped().double()
    f, x, g = bind(model), torch.zeros(2), torch.Generator().manual_seed(1)
    base = {n: p.detach() for n, p in model.named_parameters()}
    for names in (list(base), Part("attention").names(model)):
        delta = {n: 0.1 * torch.randn(base[n].shape, generator=g, dtype=torch.float64) for n in names}
        full = {n: delta.get(n, torch.zeros_like(t)) for n, t in base.items()}
        with sdpa_kernel(SDPBackend.MATH):
            value, along = torch.func.jvp(lambda p: functional_call(model, p, (x,)), (base,), (full,))
        torch.testing.assert_close(linearised(f, base, delta, x), value + along, rtol=1e-9, atol=1e-9)


class OpenClipBlock(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.attn, self.ln_1 = nn.MultiheadAttention(8, 2, **options), nn.LayerNorm(8)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))


def test_the_fused_projections_of_torch():
    """As in the authors' code: in_proj_weight and out_proj.weight, not their four biases."""
    ResidualAttentionBlock = type("ResidualAttentionBlock", (OpenClipBlock,), {})
    model = nn.ModuleDict(
        {"resblocks": nn.ModuleList(ResidualAttentionBlock() for _ in range(2)), "head": nn.Linear(8, 3)}
    )
    assert Part("attention").names(model) == [
        f"resblocks.{i}.attn.{n}" for i in range(2) for n in ("in_proj_weight", "out_proj.weight")
    ]
    assert Part("attention", weights=False, biases=True).names(model)[:2] == [
        "resblocks.0.attn.in_proj_bias", "resblocks.0.attn.out_proj.bias",
    ]  # fmt: skip
    assert Part("mlp").names(model) == [f"resblocks.{i}.mlp.{k}.weight" for i in range(2) for k in (0, 2)]
    separate = nn.ModuleList([OpenClipBlock(kdim=4, vdim=4)])
    assert len(Part("attention").names(separate)) == 4


def make(class_, **children):
    """A module of a class so named, with these children or parameters."""
    module = type(class_, (nn.Module,), {})()
    for name, child in children.items():
        (module.register_parameter if isinstance(child, nn.Parameter) else module.add_module)(name, child)
    return module


def test_what_is_no_self_attention():
    def line():
        return nn.Linear(4, 4)

    own = make(
        "Attention", in_proj_weight=nn.Parameter(torch.zeros(12, 4)), in_proj_bias=nn.Parameter(torch.zeros(12)),
        out_proj=line(), q_norm=nn.LayerNorm(4), relative_position_bias_table=nn.Parameter(torch.zeros(9, 2)),
    )  # fmt: skip
    block = make(
        "Block", attn=own, cross_attention=make("PerceiverLayer", attention=make("FooAttention", query=line())),
        window=make("WindowAttention", qkv=line(), cpb_mlp=nn.Sequential(line(), nn.ReLU(), line())),
        moe=make("SparseMoe", gate=line(), experts=nn.ModuleList([make("Expert", up=line())])), mlp=make("Mlp", fc=line()),
    )  # fmt: skip
    model = make(
        "Model", layers=nn.ModuleList([block]), head=make("Pooler", attention=make("Attention", out=line())),
        decoder=nn.TransformerDecoder(nn.TransformerDecoderLayer(4, 1, 8), 1),
    )  # fmt: skip
    assert Part("attention").names(model) == [
        "layers.0.attn.in_proj_weight", "layers.0.attn.out_proj.weight", "layers.0.window.qkv.weight",
        "decoder.layers.0.self_attn.in_proj_weight", "decoder.layers.0.self_attn.out_proj.weight",
    ]  # fmt: skip
    biases = Part("attention", weights=False, biases=True).names(model)
    assert "layers.0.attn.in_proj_bias" in biases and not any("norm" in n or "table" in n for n in biases)
    assert [n for n in Part("mlp").names(model) if n.startswith("layers")] == [
        "layers.0.moe.experts.0.up.weight", "layers.0.mlp.fc.weight",
    ]  # fmt: skip
    nn.utils.parametrizations.weight_norm(model.layers[0].attn.out_proj)
    with pytest.raises(UsageError, match="computes its weight from others"):
        Part("attention").names(model)
    with pytest.raises(UsageError, match="expected 'attention' or 'mlp'"):
        Part("atention")


def test_low_rank_weights_may_be_transposed_in_the_model(task):
    class Written(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.v = nn.Parameter(torch.randn(6, 64) / 8), nn.Linear(6, 8)

        def forward(self, x):
            return self.v(torch.tanh(x.flatten(1) @ self.w.T))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Written()
    base = Checkpoint.of(model, label="base")
    regime = Regime("lr", matching("w"), low_rank=Rank(2, 2.0))
    assert fit(model, base, task, regime=regime, spec=TrainSpec(steps=20, lr=1e-2)).vector.norm() > 0.1


def test_a_network_without_attention_says_what_it_has():
    convnext = nn.Sequential(nn.ModuleDict({"dw": nn.Conv2d(4, 4, 3), "pw": nn.Linear(4, 8)}), nn.Linear(8, 2))
    with pytest.raises(UsageError, match=r"no weights of attention projections \(it has linear layers of: mlp"):
        LINEAR_ONLY.names(convnext)
    with pytest.raises(UsageError, match="no linear layers in attention modules or in blocks"):
        LINEAR_ONLY.names(nn.Conv2d(1, 1, 1))


@pytest.fixture(scope="module")
def model():
    return small_vit(width=8, depth=2, heads=2, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def base(model):
    return Checkpoint.of(model, label="base")


@pytest.fixture(scope="module")
def task():
    g = torch.Generator().manual_seed(1)
    labels = torch.randint(3, (64,), generator=g)
    inputs = torch.rand(64, 1, 8, 8, generator=g)
    for k in range(3):
        inputs[labels == k, :, k] += 2.0
    split = Split(inputs, labels)
    return Task("rows", split, split, split, Head.random(3, 8, generator=g), ("0", "1", "2"))


TRAINED = {
    "standard": (STANDARD, lambda n: True),
    "tangent": (TANGENT, lambda n: True),
    "linear-only": (LINEAR_ONLY, lambda n: ".attn." in n and "weight" in n),
    "with biases": (LINEAR_ONLY_BIASES, lambda n: ".attn." in n),
    "biases": (BIAS_ATTENTION, lambda n: ".attn." in n and "bias" in n),
    "mlp": (MLP_ONLY, lambda n: ".mlp." in n and "weight" in n),
    "lora": (LORA, lambda n: ".attn." in n and "weight" in n),
    "linearised lora": (LINEARISED_LORA, lambda n: ".attn." in n and "weight" in n),
    "tangent on mlp": (Regime("x", Part("mlp"), forward=linearised), lambda n: ".mlp." in n and "weight" in n),
}


@pytest.mark.parametrize("name", TRAINED)
def test_each_regime_trains_its_parameters_and_learns(name, model, base, task):
    regime, wanted = TRAINED[name]
    spec = TrainSpec(steps=30, lr=1e-2, batch=64)
    made = fit(model, base, task, regime=regime, spec=spec)
    moved = {n for n, d in made.vector.arrays().items() if np.any(d)}
    assert moved == {n for n in base.names if wanted(n)} == set(made.vector.names)
    assert np.mean(made.losses[-5:]) < 0.97 * made.losses[0]
    assert made.forward is regime.forward
    difference = (made.checkpoint - base).arrays()
    for n, d in made.vector.arrays().items():
        np.testing.assert_allclose(difference[n], d, atol=1e-6)
    again = fit(model, base, task, regime=regime, spec=spec)
    assert again.losses == made.losses


def test_a_tangent_step_is_the_step_of_the_linear_model(model, base, task):
    """The first step has the gradient of the ordinary model; later ones that of the linearised."""
    spec = TrainSpec(steps=1, lr=1e-3, batch=64, warmup=0)
    a, b = (fit(model, base, task, regime=r, spec=spec).vector.arrays() for r in (STANDARD, TANGENT))
    for n in a:
        np.testing.assert_allclose(a[n], b[n], atol=1e-6)
    spec = TrainSpec(steps=30, lr=1e-2, batch=64)
    a, b = (fit(model, base, task, regime=r, spec=spec).vector for r in (STANDARD, TANGENT))
    assert a.cosine(b) < 0.999


def test_weight_decay_acts_on_the_weights_not_on_the_displacement(model, base, task):
    """AdamW on theta itself, written out, gives the same trajectory."""
    spec = TrainSpec(steps=6, lr=1e-2, batch=64, weight_decay=0.3, clip=1e9)
    found = fit(model, base, task, spec=spec).vector
    f, start = bind(model), tensors(base, like=model)
    theta = {n: t.clone().requires_grad_() for n, t in start.items()}
    optimiser = torch.optim.AdamW(theta.values(), lr=0, weight_decay=0.3)
    inputs, labels, g = task.train.inputs, task.train.labels, torch.Generator().manual_seed(spec.seed)
    from taskvec.training.loop import rate_at

    for step in range(spec.steps):
        rows = torch.randperm(len(labels), generator=g)
        loss = nn.functional.cross_entropy(task.head(f(theta, inputs[rows])), labels[rows])
        optimiser.zero_grad()
        loss.backward()
        for group in optimiser.param_groups:
            group["lr"] = spec.lr * rate_at(step, spec.steps, spec.warmup)
        optimiser.step()
    for n, t in theta.items():
        if t.dim() > 1:  # the gradient of a key's bias is zero but for rounding, which Adam makes as large as any other
            np.testing.assert_allclose(found.array(n), (t - start[n]).detach().numpy(), atol=2e-5)


def test_low_rank_displacements_have_that_rank_and_the_same_function(model, base, task):
    regime = Regime("r1", Part("attention"), low_rank=Rank(rank=1, alpha=2.0))
    vector = fit(model, base, task, regime=regime, spec=QUICK).vector
    for n, d in vector.arrays().items():
        assert np.linalg.matrix_rank(d, tol=1e-6 * np.abs(d).max()) == 1, n
    from taskvec.models.lowrank import LowRank

    g = torch.Generator().manual_seed(0)
    f, start = bind(model), tensors(base, like=model)
    parts = {n: LowRank(torch.randn(t.shape[0], 2, generator=g), torch.randn(2, t.shape[1], generator=g), 0.1)
             for n, t in start.items() if n in vector.names}  # fmt: skip
    two_steps = plain(f, start, parts, task.train.inputs)
    formed = plain(f, start, {n: p.full() for n, p in parts.items()}, task.train.inputs)
    torch.testing.assert_close(two_steps, formed, rtol=1e-4, atol=1e-5)


def test_low_rank_on_gpt2s_transposed_layers():
    model = built("GPT2")
    from taskvec.models.lowrank import zero_product

    g = torch.Generator().manual_seed(0)
    weight = model.h[0].attn.c_attn.weight
    made = zero_product(weight, rank=3, alpha=3.0, by_columns=False, generator=g)
    assert made.left.shape == (8, 3) and made.right.shape == (3, 24) and made.left.any() and not made.right.any()
    made.right.normal_(generator=g)
    base = {n: p.detach() for n, p in model.named_parameters()}

    class States(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, ids):
            return self.inner(input_ids=ids).last_hidden_state

    f, ids = bind(States()), torch.tensor([[1, 2, 3]])
    base = {f"inner.{n}": p for n, p in base.items()}
    name = "inner.h.0.attn.c_attn.weight"
    torch.testing.assert_close(
        plain(f, base, {name: made}, ids), plain(f, base, {name: made.full()}, ids), rtol=1e-4, atol=1e-5
    )


def test_low_rank_is_for_matrices(model, base, task):
    with pytest.raises(UsageError, match="for matrices"):
        fit(model, base, task, regime=Regime("bad", matching("*.bias"), low_rank=Rank()), spec=QUICK)


def test_a_regime_says_what_it_trains(model):
    said = LINEAR_ONLY.said(model)
    assert said.startswith("linear-only: 4 tensors, 512 of ") and "blocks.0.attn.qkv.weight" in said


def test_a_vector_in_memory_is_checked(base):
    with pytest.raises(Exception, match="nonsense"):
        TaskVector.of({"nonsense": np.zeros(3, np.float32)}, base)
    tau = TaskVector.of({"norm.weight": np.ones(8, np.float32)}, base)
    assert tau.partial and tau.norm() == pytest.approx(math.sqrt(8))
    assert ((base + tau) - base).array("norm.weight").tolist() == [1.0] * 8


def test_a_loss_that_is_not_finite_names_the_step(model, base, task):
    with pytest.raises(NonFinite, match="step"):
        fit(model, base, task, regime=TANGENT, spec=TrainSpec(steps=50, lr=1e38, batch=8))


def test_a_classifier_inside_the_selection_is_refused():
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.classifier = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.classifier(self.body(x))

    model = Whole()
    with pytest.raises(UsageError, match=r"2 parameters of a classifier inside the model \('classifier.weight'"):
        STANDARD.names(model)
    assert Regime("body", ~matching("classifier.*")).names(model) == ["body.weight", "body.bias"]
    assert len(PRETRAIN.names(model)) == 4
