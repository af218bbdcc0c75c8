"""LoRA adapters: read as task vectors, against files made by hand and against PEFT itself where it is installed."""

from __future__ import annotations

import importlib.util
import json
import math

import numpy as np
import pytest

from taskvec.errors import InputError, KeyMismatch, NotACheckpoint, StorageError, UsageError
from taskvec.interop import adapter, write_adapter
from taskvec.weights import Checkpoint, TaskVector

rng = np.random.default_rng(0)


def normal(*shape):
    return rng.normal(size=shape).astype(np.float32)


def write(folder, tensors, **settings):
    """An adapter folder in PEFT's format."""
    folder.mkdir(exist_ok=True)
    config = {"peft_type": "LORA", "base_model_name_or_path": "org/model", "r": 2, "lora_alpha": 6, **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    named = {f"base_model.model.{n}": t for n, t in tensors.items()}
    Checkpoint.of(named).save(folder / "adapter_model.safetensors", overwrite=True)
    return folder


@pytest.fixture
def base(tmp_path):
    weights = {
        "h.0.q.weight": normal(6, 5), "h.0.q.bias": normal(6), "h.1.q.weight": normal(6, 5), "h.1.q.bias": normal(6),
        "embed.weight": normal(9, 5), "head.weight": normal(4, 5), "conv.weight": normal(3, 4, 2, 2), "count": np.array([1, 2]),
    }  # fmt: skip
    Checkpoint.of(weights).save(tmp_path / "base")
    return Checkpoint.read(tmp_path / "base")


def pair(name, out, into, r=2):
    return {f"{name}.lora_A.weight": normal(r, into), f"{name}.lora_B.weight": normal(out, r)}


def test_an_adapter_is_the_product_of_its_factors(tmp_path, base):
    t = pair("h.0.q", 6, 5)
    tau = TaskVector.read(write(tmp_path / "lora", t))
    assert tau.names == ("h.0.q.weight",) and tau.partial
    want = 3.0 * t["h.0.q.lora_B.weight"].astype(float) @ t["h.0.q.lora_A.weight"].astype(float)
    np.testing.assert_array_equal(tau.array("h.0.q.weight"), want.astype(np.float32))
    edited = base - 0.5 * tau
    np.testing.assert_array_equal(edited.array("h.1.q.weight"), base.array("h.1.q.weight"))
    np.testing.assert_allclose(edited.array("h.0.q.weight"), base.array("h.0.q.weight") - 0.5 * want, atol=1e-6)


def test_scales_patterns_embeddings_convolutions_and_biases(tmp_path, base):
    t = {
        **pair("h.0.q", 6, 5, r=3), **pair("h.1.q", 6, 5), "h.0.q.lora_B.bias": normal(6),
        "embed.lora_embedding_A": normal(2, 9), "embed.lora_embedding_B": normal(5, 2),
        "conv.lora_A.weight": normal(2, 4, 2, 2), "conv.lora_B.weight": normal(3, 2, 1, 1),
    }  # fmt: skip
    folder = write(tmp_path / "lora", t, rank_pattern={"0.q": 3}, alpha_pattern={r"h\.1\.q": 8})
    tau = adapter(folder, base).arrays()
    f = {n: x.astype(float) for n, x in t.items()}
    np.testing.assert_allclose(tau["h.0.q.weight"], 2 * f["h.0.q.lora_B.weight"] @ f["h.0.q.lora_A.weight"], rtol=1e-6)
    np.testing.assert_allclose(tau["h.1.q.weight"], 4 * f["h.1.q.lora_B.weight"] @ f["h.1.q.lora_A.weight"], rtol=1e-6)
    np.testing.assert_allclose(tau["h.0.q.bias"], 2 * f["h.0.q.lora_B.bias"], rtol=1e-6)
    np.testing.assert_allclose(
        tau["embed.weight"], 3 * (f["embed.lora_embedding_B"] @ f["embed.lora_embedding_A"]).T, rtol=1e-6
    )
    conv = np.einsum("or,rikl->oikl", f["conv.lora_B.weight"][..., 0, 0], f["conv.lora_A.weight"])
    np.testing.assert_allclose(tau["conv.weight"], 3 * conv, rtol=1e-5, atol=1e-6)
    stable = write(tmp_path / "stable", pair("h.0.q", 6, 5), use_rslora=True)
    assert TaskVector.read(stable).norm() == pytest.approx(_plain_norm(stable) * 6 / math.sqrt(2))


def _plain_norm(folder):
    t = Checkpoint.read(folder / "adapter_model.safetensors").arrays()
    a, b = (next(x for n, x in t.items() if f"lora_{k}" in n).astype(float) for k in "AB")
    return np.linalg.norm(b @ a)


def test_reading_rows_gives_the_bits_of_the_whole(tmp_path):
    tau = TaskVector.read(write(tmp_path / "lora", pair("h.0.q", 300, 70)))
    source = tau.node.source
    assert source is not None
    whole = source.read("h.0.q.weight", 0, 300 * 70)
    cut = [source.read("h.0.q.weight", i, min(i + 997, 21_000)) for i in range(0, 21_000, 997)]
    np.testing.assert_array_equal(np.concatenate(cut), whole)


def test_whole_modules_are_differences_to_the_base(tmp_path, base, run_cli):
    head = normal(4, 5)
    folder = write(tmp_path / "lora", {**pair("h.0.q", 6, 5), "head.weight": head}, modules_to_save=["head"])
    tau = adapter(folder, base)
    np.testing.assert_allclose((base + tau).array("head.weight"), head, atol=1e-6)
    with pytest.raises(InputError, match=r"1 whole tensors .*interop\.adapter"):
        TaskVector.read(folder)
    (base + tau).save(tmp_path / "out")
    assert run_cli("verify", tmp_path / "out")[0] == 0
    lets = (f"base={tmp_path / 'base'}", f"f={folder / 'factors'}", f"w={folder / 'modules_to_save'}")
    lets = [x for let in lets for x in ("--let", let)]
    assert run_cli("edit", "base + f + (w - base)", *lets, "-o", tmp_path / "cli")[0] == 0
    again = Checkpoint.read(tmp_path / "cli")
    np.testing.assert_array_equal(again.array("head.weight"), (base + tau).array("head.weight"))
    assert run_cli("verify", tmp_path / "cli")[0] == 0


def test_names_may_differ_by_a_prefix(tmp_path, base):
    t = pair("model.h.0.q", 6, 5)
    tau = adapter(write(tmp_path / "lora", t), base)
    assert tau.names == ("h.0.q.weight",)


def test_an_adapter_of_another_model_is_refused(tmp_path, base):
    for t in (pair("h.0.q", 6, 7), pair("layers.0.q", 6, 5)):
        with pytest.raises(KeyMismatch, match="does not fit"):
            adapter(write(tmp_path / "lora", t), base)
        with pytest.raises(KeyMismatch):
            _ = base + TaskVector.read(tmp_path / "lora")


@pytest.mark.parametrize(
    ("settings", "more", "said"),
    [
        ({"use_dora": True}, {}, "DoRA rescales"),
        ({"peft_type": "IA3"}, {}, "of the kind 'IA3'"),
        ({"layer_replication": [[0, 2]]}, {}, "repeats layers"),
        ({}, {"h.0.q.lora_magnitude_vector.weight": np.ones(6)}, "no LoRA factors"),
        ({}, {"h.1.q.lora_A.weight": np.ones((2, 5))}, "only one of its two factors"),
        ({"r": 4}, {}, "do not go with the rank 4"),
        ({"r": None}, {}, "no number that fits"),
        ({"rank_pattern": {"(": 2}}, {}, "no pattern"),
    ],
)
def test_what_is_no_low_rank_sum_is_refused(tmp_path, settings, more, said):
    folder = write(tmp_path / "lora", {**pair("h.0.q", 6, 5), **more}, **settings)
    with pytest.raises(NotACheckpoint) as caught:
        TaskVector.read(folder)
    assert said in str(caught.value)


def test_a_written_adapter_reads_back(tmp_path, base):
    low = normal(6, 2) @ normal(2, 5)
    tau = TaskVector.of({"h.0.q.weight": low, "embed.weight": normal(9, 5), "h.1.q.weight": normal(6, 5)}, base)
    said = write_adapter(tau, tmp_path / "lora", rank=2)
    errors = {m.name: m.error for m in said.modules}
    assert errors["h.0.q.weight"] < 1e-6 < errors["embed.weight"]
    back = adapter(tmp_path / "lora", base)
    for name in tau.names:
        whole = tau.array(name).astype(float)
        u, s, v = np.linalg.svd(whole)
        np.testing.assert_allclose(back.array(name), (u[:, :2] * s[:2]) @ v[:2], atol=1e-5)
        assert errors[name] == pytest.approx(np.linalg.norm(s[2:]) / np.linalg.norm(s), abs=1e-6)
    assert said.error == pytest.approx((tau - back).norm() / tau.norm(), abs=1e-6)
    with pytest.raises(StorageError, match="exists"):
        write_adapter(tau, tmp_path / "lora", rank=2)


def test_an_error_bound_is_kept_with_the_least_ranks(tmp_path, base):
    tau = TaskVector.of({"h.0.q.weight": normal(6, 1) @ normal(1, 5), "head.weight": normal(4, 5)}, base)
    said = write_adapter(tau, tmp_path / "lora", error=0.3)
    ranks = {m.name: m.rank for m in said.modules}
    assert ranks["h.0.q.weight"] == 1 and all(m.error <= 0.3 for m in said.modules)
    s = np.linalg.svd(tau.array("head.weight"))[1]
    least = ranks["head.weight"] - 1
    assert least == 0 or np.linalg.norm(s[least:]) / np.linalg.norm(s) > 0.3
    assert (tau - adapter(tmp_path / "lora", base)).norm() <= 0.3 * tau.norm()


def test_a_large_matrix_is_projected(tmp_path):
    low = normal(1500, 3) @ normal(3, 1100) + 0.01 * normal(1500, 1100)
    base = Checkpoint.of({"w.weight": np.zeros_like(low)}, label="base")
    said = write_adapter(TaskVector.of({"w.weight": low}, base), tmp_path / "lora", rank=4)
    assert said.modules[0].error == pytest.approx(0.01 / math.sqrt(3), rel=0.1)


def test_a_sum_of_adapters_is_written_exactly(tmp_path, base):
    a = adapter(write(tmp_path / "a", {**pair("h.0.q", 6, 5), **pair("h.1.q", 6, 5)}), base)
    b = adapter(write(tmp_path / "b", pair("h.0.q", 6, 5), use_rslora=True), base)
    both = 0.7 * a - 1.3 * b
    said = write_adapter(both, tmp_path / "sum")
    assert {m.name: m.rank for m in said.modules} == {"h.0.q.weight": 4, "h.1.q.weight": 2}
    assert said.error < 1e-6
    back = adapter(tmp_path / "sum", base)
    for name in both.names:
        np.testing.assert_allclose(back.array(name), both.array(name), rtol=1e-5, atol=1e-5)


def test_knots_of_adapters_takes_their_factors(tmp_path, monkeypatch):
    """The same as of the products, from a decomposition of the size of the ranks; sums and missing modules included."""
    from taskvec.methods import knots

    names = ("q", "v")
    point = Checkpoint.of({f"h.0.{n}.weight": normal(60, 50) for n in names}, label="base")
    taus = [
        adapter(
            write(tmp_path / f"lora{i}", {k: x for n in held for k, x in pair(f"h.0.{n}", 60, 50, r=3).items()}, r=3),
            point,
        )
        for i, held in enumerate((names, names, ("q",)))
    ]
    vectors = [taus[0], 0.5 * taus[1] - 0.25 * taus[2], taus[2]]
    dense = [TaskVector.of({n: v.array(n) for n in v.names}, point, label=v.label) for v in vectors]
    want = knots(dense, density=0.3).arrays()
    sizes, svd = [], np.linalg.svd
    monkeypatch.setattr(np.linalg, "svd", lambda x, **k: (sizes.append(x.shape), svd(x, **k))[1])
    got = knots(vectors, density=0.3)
    for n, x in want.items():
        np.testing.assert_allclose(got.array(n), x, rtol=0, atol=1e-5 * np.abs(x).max(), err_msg=n)
    assert set(sizes) == {(12, 12), (6, 6)}  # q: ranks 3 + (3 + 3) + 3; v: 3 + 3 and nothing of the third
    np.testing.assert_allclose(
        knots(vectors, merge="mean").array("h.0.q.weight"), sum(v.array("h.0.q.weight") for v in vectors) / 3, atol=1e-5
    )
    wide = [adapter(write(tmp_path / "wide", pair("h.0.q", 60, 50, r=30), r=30), point), taus[0], taus[1], taus[2]]
    wide = [*wide, 2 * wide[0]]
    sizes.clear()
    again = knots(wide, density=0.3).array("h.0.q.weight")  # the ranks add up to more than the matrix has
    assert sizes == [(60, 250)] and np.isfinite(again).all()
    (point + got).save(tmp_path / "out")
    still = knots([0 * taus[0], taus[1] - taus[1]])
    assert still.names and not any(x.any() for x in still.arrays().values())
    np.testing.assert_allclose(
        knots([taus[0], 0 * taus[1]], density=1).array("h.0.q.weight"), taus[0].array("h.0.q.weight"), atol=1e-5
    )


def test_what_an_adapter_cannot_hold_is_said(tmp_path, base):
    tau = TaskVector.of({"h.0.q.weight": normal(6, 5), "h.0.q.bias": normal(6)}, base)
    with pytest.raises(InputError, match=r"no matrices.*h\.0\.q\.bias"):
        write_adapter(tau, tmp_path / "lora", rank=2)
    said = write_adapter(tau, tmp_path / "lora", rank=5, only_matrices=True)
    assert said.left_out == ("h.0.q.bias",)
    assert said.error == pytest.approx(np.linalg.norm(tau.array("h.0.q.bias")) / tau.norm())
    with pytest.raises(UsageError, match="rank=, or error="):
        write_adapter(tau, tmp_path / "more")
    with pytest.raises(UsageError, match="rank=, or error="):
        write_adapter(tau, tmp_path / "more", rank=1, error=0.1)


def test_the_command_writes_an_adapter(tmp_path, base, run_cli):
    (base + TaskVector.of({"h.0.q.weight": normal(6, 5)}, base)).save(tmp_path / "tuned")
    code, out, err = run_cli(
        "extract-lora", tmp_path / "base", tmp_path / "tuned", "-o", tmp_path / "lora", "--rank", 3
    )
    assert code == 0, err
    assert "relative error" in out and (tmp_path / "lora" / "adapter_config.json").is_file()
    assert run_cli("extract-lora", tmp_path / "base", tmp_path / "tuned", "-o", tmp_path / "lora", "--rank", 3)[0] == 4


# --- PEFT itself ------------------------------------------------------------------------------------------------------

KINDS = {
    "plain": {"r": 3, "lora_alpha": 5},
    "rslora": {"r": 3, "lora_alpha": 5, "use_rslora": True},
    "patterns": {"r": 3, "lora_alpha": 5, "rank_pattern": {"0.ATT": 2}, "alpha_pattern": {"1.ATT": 7}},
    "embedding": {"r": 3, "lora_alpha": 5, "embedding": True},
    "saved": {"r": 3, "lora_alpha": 5, "modules_to_save": ["lm_head"]},
    "bias": {"r": 3, "lora_alpha": 5, "lora_bias": True},
}


def _model(kind):
    import torch
    import transformers as t

    torch.manual_seed(0)
    if kind == "gpt2":
        config = t.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=32, tie_word_embeddings=False)
        return t.GPT2LMHeadModel(config), "attn.c_attn", "wte"
    config = t.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, attention_bias=True,
    )  # fmt: skip
    return t.LlamaForCausalLM(config), "self_attn.q_proj", "embed_tokens"


@pytest.mark.peer
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_equals_peft(tmp_path, architecture, kind):
    """The edited base is what PEFT's merge_and_unload makes of it, to a rounding."""
    if importlib.util.find_spec("peft") is None:
        pytest.skip("peft is not installed: pip install --no-deps peft accelerate")
    import torch
    from peft import LoraConfig, get_peft_model

    model, target, embedding = _model(architecture)
    model.save_pretrained(tmp_path / "base")
    settings = json.loads(json.dumps(KINDS[kind]).replace("ATT", target.replace(".", r"\\.")))
    targets = [target] + [embedding] * settings.pop("embedding", False)
    config = LoraConfig(target_modules=targets, fan_in_fan_out=architecture == "gpt2", **settings)
    tuned = get_peft_model(model, config)
    for n, p in tuned.named_parameters():
        if p.requires_grad:
            p.data = p.data + 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(n)))
    tuned.save_pretrained(tmp_path / "lora")
    base = Checkpoint.read(tmp_path / "base")
    edited = base + adapter(tmp_path / "lora", base)
    want = {n: p.detach().numpy() for n, p in tuned.merge_and_unload().state_dict().items()}
    apart = max(float(np.abs(edited.array(n) - want[n]).max()) for n in edited.names)
    assert apart <= 4e-7, apart
    moved = sum(bool((edited.array(n) != base.array(n)).any()) for n in edited.names)
    assert moved >= 2


@pytest.mark.peer
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_peft_loads_what_is_written(tmp_path, architecture):
    """The outputs of base and adapter in PEFT are those of the edited base."""
    if importlib.util.find_spec("peft") is None:
        pytest.skip("peft is not installed: pip install --no-deps peft accelerate")
    import torch
    import transformers
    from peft import PeftModel

    model, target, embedding = _model(architecture)
    model.save_pretrained(tmp_path / "base")
    base = Checkpoint.read(tmp_path / "base")
    noise = np.random.default_rng(1)
    chosen = [n for n in base.names if target in n or embedding in n or "lm_head" in n or "mlp" in n]
    moves = {n: 0.1 * noise.normal(size=base.spec[n].shape) for n in chosen if len(base.spec[n].shape) == 2}
    tau = TaskVector.of({n: x.astype(np.float32) for n, x in moves.items()}, base)
    said = write_adapter(tau, tmp_path / "lora", error=0.5, task_type="CAUSAL_LM")
    assert 0.2 < said.error <= 0.5
    (base + adapter(tmp_path / "lora", base)).save(tmp_path / "edited")
    tokens = torch.arange(10)[None]
    with torch.no_grad():
        plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        theirs = PeftModel.from_pretrained(plain, tmp_path / "lora").eval()(tokens).logits
        ours = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "edited").eval()(tokens).logits
        before = model.eval()(tokens).logits
    assert float((theirs - ours).abs().max()) < 1e-5 < float((before - ours).abs().max())
