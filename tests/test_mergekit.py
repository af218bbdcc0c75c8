"""mergekit configs: what is refused, what they become, and equality with mergekit itself where it is installed.

mergekit is looked for beside this Python, or as the interpreter that TASKVEC_MERGEKIT names.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from taskvec.errors import InputError, UnknownName, UsageError
from taskvec.interop import read_configs, recognises, translate
from taskvec.weights import Checkpoint

EPS = 2.0**-23
CONFIGS = {
    "linear": "models: [{model: a, parameters: {weight: 0.3}}, {model: b, parameters: {weight: 1.1}}]\nmerge_method: linear",
    "linear_sum": """
models: [{model: a, parameters: {weight: 1.0}}, {model: b, parameters: {weight: -0.5}}, {model: c, parameters: {weight: 0.7}}]
merge_method: linear
parameters: {normalize: false}
""",
    "task_arithmetic": """
models:
  - model: a
    parameters: {weight: [0, 0.3, 0.7, 1]}
  - model: b
    parameters:
      weight:
        - filter: mlp
          value: 0.5
        - value: 0
merge_method: task_arithmetic
base_model: base
parameters: {normalize: false, int8_mask: true, lambda: 0.9}
""",
    "task_arithmetic_normalised": """
models: [{model: base}, {model: a, parameters: {weight: 0.2}}, {model: b, parameters: {weight: [0.1, 2]}}]
merge_method: task_arithmetic
base_model: base
parameters: {normalize: true}
""",
    "slerp": """
slices:
  - sources:
      - {model: a, layer_range: [0, LAYERS]}
      - {model: b, layer_range: [0, LAYERS]}
merge_method: slerp
base_model: a
parameters:
  t:
    - filter: attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5
""",
    "passthrough": """
slices:
  - sources: [{model: a, layer_range: [0, 2]}]
  - sources: [{model: b, layer_range: [1, LAYERS]}]
merge_method: passthrough
""",
    "passthrough_scaled": """
slices:
  - sources: [{model: a, layer_range: [0, 2]}]
  - sources:
      - model: a
        layer_range: [0, LAYERS]
        parameters:
          scale:
            - {filter: o_proj, value: 0.0}
            - {filter: down_proj, value: 0.5}
            - {value: 1.0}
merge_method: passthrough
""",
    "slices": """
slices:
  - sources:
      - {model: base, layer_range: [0, 2]}
      - {model: a, layer_range: [0, 2], parameters: {weight: 0.4}}
  - sources:
      - {model: base, layer_range: [1, 3]}
      - {model: b, layer_range: [0, 2], parameters: {weight: [0.2, 0.9]}}
merge_method: task_arithmetic
base_model: base
""",
    "dare_linear_whole": """
models: [{model: a, parameters: {weight: 0.5, density: 1.0}}, {model: b, parameters: {weight: 0.4}}]
merge_method: dare_linear
base_model: base
""",
    "ties": """
models:
  - model: a
    parameters: {density: [1, 0.7, 0.1], weight: 1.0}
  - model: b
    parameters: {density: 0.5, weight: [0, 0.3, 0.7, 1]}
  - model: c
    parameters:
      density: 0.33
      weight:
        - {filter: mlp, value: 0.5}
        - {value: 0}
merge_method: ties
base_model: base
parameters: {normalize: true, int8_mask: true}
""",
    "ties_sum": """
models:
  - {model: a, parameters: {density: 0.4, weight: 0.5}}
  - {model: b, parameters: {density: 0.6, weight: 0.3}}
merge_method: ties
base_model: base
parameters: {normalize: false, lambda: 1.2}
""",
    "breadcrumbs": """
models:
  - {model: a, parameters: {density: 0.9, gamma: 0.01, weight: 0.5}}
  - {model: b, parameters: {density: 0.7, gamma: 0.05, weight: 0.3}}
merge_method: breadcrumbs
base_model: base
""",
    "breadcrumbs_ties": """
models:
  - {model: a, parameters: {density: 0.9, gamma: 0.01, weight: 0.5}}
  - {model: b, parameters: {density: 0.7, gamma: 0.05, weight: 0.3}}
merge_method: breadcrumbs_ties
base_model: base
""",
    "dare_ties_whole": """
models: [{model: a, parameters: {weight: 0.5, density: 1.0}}, {model: b, parameters: {weight: 0.4}}]
merge_method: dare_ties
base_model: base
""",
    "della_whole": """
models: [{model: a, parameters: {weight: 0.5, density: 1.0}}, {model: b, parameters: {weight: 0.4}}]
merge_method: della
base_model: base
""",
    "della_linear_whole": """
models: [{model: a, parameters: {weight: 0.5, density: 1.0}}, {model: b, parameters: {weight: 0.4}}]
merge_method: della_linear
base_model: base
""",
    "sce": """
models: [{model: a}, {model: b}, {model: c}]
merge_method: sce
base_model: base
parameters: {select_topk: 0.3}
""",
    "model_stock": "models: [{model: a}, {model: b}, {model: c}]\nmerge_method: model_stock\nbase_model: base",
    "nuslerp": "models: [{model: a, parameters: {weight: 0.3}}, {model: b, parameters: {weight: 0.5}}]\nmerge_method: nuslerp",
    "nuslerp_base": """
models: [{model: a, parameters: {weight: 0.3}}, {model: b, parameters: {weight: 0.5}}]
merge_method: nuslerp
base_model: base
""",
    "nuslerp_rows": """
models: [{model: a, parameters: {weight: 0.3}}, {model: b, parameters: {weight: 0.5}}]
merge_method: nuslerp
parameters: {nuslerp_flatten: false}
""",
    "multislerp_base": """
models: [{model: a, parameters: {weight: 0.3}}, {model: b, parameters: {weight: [0.5, 0.1]}}]
merge_method: multislerp
base_model: base
""",
    "multislerp": """
models: [{model: a, parameters: {weight: 0.3}}, {model: b, parameters: {weight: 0.5}}, {model: c, parameters: {weight: 0.2}}]
merge_method: multislerp
""",
    "karcher": "models: [{model: a}, {model: b}, {model: c}]\nmerge_method: karcher",
    "nearswap": """
models: [{model: a}]
merge_method: nearswap
base_model: base
parameters: {t: [{filter: mlp, value: [0.01, 0.1]}, {value: 0.05}]}
""",
    "arcee_fusion": "models: [{model: a}]\nmerge_method: arcee_fusion\nbase_model: base",
    "ram": "models: [{model: a}, {model: b}, {model: c}]\nmerge_method: ram\nbase_model: base\nparameters: {epsilon: 0.1}",
    "ramplus_tl": "models: [{model: a}, {model: b}]\nmerge_method: ramplus_tl\nbase_model: base\nparameters: {epsilon: 0.1, r: 0.3}",
    "ties_rescaled": """
models:
  - {model: a, parameters: {density: 0.4, weight: 0.5}}
  - {model: b, parameters: {density: [0.6, 0.2], weight: 0.3}}
merge_method: ties
base_model: base
parameters: {rescale: true}
""",
    "breadcrumbs_rescaled": """
models:
  - {model: a, parameters: {density: 0.9, gamma: 0.01, weight: 0.5}}
  - {model: b, parameters: {density: 0.7, gamma: 0.05, weight: 0.3}}
merge_method: breadcrumbs_ties
base_model: base
parameters: {rescale: true}
""",
    "multislerp_sum": """
models: [{model: a, parameters: {weight: 0.3}}, {model: b, parameters: {weight: [0.5, 0.1]}}]
merge_method: multislerp
base_model: base
parameters: {normalize_weights: false}
""",
    "multislerp_models_sum": """
models: [{model: a, parameters: {weight: -0.9}}, {model: b, parameters: {weight: 0.2}}, {model: c, parameters: {weight: 0.1}}]
merge_method: multislerp
parameters: {normalize_weights: false}
""",
    "slices_of_different_numbers": """
slices:
  - sources:
      - {model: base, layer_range: [0, 1]}
      - {model: a, layer_range: [0, 1], parameters: {weight: 0.4}}
  - sources:
      - {model: base, layer_range: [1, 3]}
      - {model: a, layer_range: [1, 3], parameters: {weight: [0.2, 0.9]}}
      - {model: b, layer_range: [0, 2], parameters: {weight: 0.3}}
    parameters: {lambda: 0.7}
  - sources:
      - {model: base, layer_range: [1, 2]}
      - {model: c, layer_range: [0, 1], parameters: {weight: 0.5}}
merge_method: task_arithmetic
base_model: base
""",
    "slices_of_different_bases": """
slices:
  - sources:
      - {model: a, layer_range: [0, 2]}
      - {model: b, layer_range: [0, 2]}
    base_model: a
  - sources:
      - {model: b, layer_range: [1, 3]}
      - {model: c, layer_range: [1, 3]}
    base_model: b
merge_method: slerp
parameters: {t: [0.2, 0.6]}
""",
    "modules_of_one": """
modules:
  default:
    models: [{model: a, parameters: {weight: 0.4}}, {model: b}]
    parameters: {weight: [{filter: mlp, value: 0.6}]}
merge_method: task_arithmetic
base_model: base
parameters: {weight: 0.2}
""",
}  # fmt: skip
DRIVER = """
import json, sys, logging
logging.disable(logging.CRITICAL)
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
options = MergeOptions(copy_tokenizer=False, quiet=True, write_model_card=False)
failed = {}
for config, out in json.loads(sys.argv[1]):
    try:
        run_merge(MergeConfiguration.model_validate(yaml.safe_load(open(config))), out, options=options)
    except Exception as error:
        failed[out] = repr(error)
print(json.dumps(failed))
"""
LAYERS = {"llama": 4, "gpt2": 3, "bert": 3}


def _with_mergekit() -> str | None:
    if named := os.environ.get("TASKVEC_MERGEKIT"):
        return named
    return sys.executable if importlib.util.find_spec("mergekit") else None


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Tiny random models of three architectures: base, a, b, c."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra: hf)")
    root = tmp_path_factory.mktemp("models")
    small = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    for i, name in enumerate(("base", "a", "b", "c")):
        for kind, make in {
            "llama": lambda t: t.LlamaForCausalLM(
                t.LlamaConfig(**small, num_hidden_layers=LAYERS["llama"], num_key_value_heads=2)
            ),
            "gpt2": lambda t: t.GPT2LMHeadModel(
                t.GPT2Config(vocab_size=64, n_embd=32, n_layer=LAYERS["gpt2"], n_head=4, n_positions=32)
            ),
            "bert": lambda t: t.BertForSequenceClassification(
                t.BertConfig(**small, num_hidden_layers=LAYERS["bert"], max_position_embeddings=32)
            ),
        }.items():
            torch.manual_seed(i)
            made = make(transformers)
            for p in made.parameters():  # biases and norms too: zeros and ones would hide mistakes
                p.data += 0.1 * torch.randn(p.shape)
            made.save_pretrained(root / kind / name)
    return root


def _write(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.yml"
    path.write_text(text.replace("LAYERS", str(LAYERS.get(folder.name, 4))) + "\ndtype: float32\n")
    return path


@pytest.fixture(scope="module")
def theirs(models):
    """What mergekit makes of the configs: (architecture, config) -> folder, or why it failed."""
    python = _with_mergekit()
    if python is None:
        pytest.skip("mergekit is not installed here; name an interpreter that has it in TASKVEC_MERGEKIT")
    found = {}
    for kind in LAYERS:
        jobs = [(f"{_write(models / kind, n, t)}", f"mergekit_{n}") for n, t in CONFIGS.items()]
        done = subprocess.run(
            [python, "-c", DRIVER, json.dumps(jobs)], cwd=models / kind, capture_output=True, text=True, check=False,
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        failed = json.loads(done.stdout.splitlines()[-1])
        found |= {(kind, n): failed.get(o, models / kind / o) for n, (_, o) in zip(CONFIGS, jobs, strict=True)}
    return found


@pytest.mark.peer
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("kind", LAYERS)
def test_equals_mergekit(models, theirs, kind, config, record_property):
    """To a rounding of float32 of the largest term; copied tensors exactly."""
    expected = theirs[kind, config]
    if isinstance(expected, str):
        pytest.skip(f"mergekit itself fails: {expected[:200]}")
    path = models / kind / f"{config}.yml"
    try:
        translation = translate(path)
    except UsageError as error:
        if "is not available" in str(error):
            pytest.skip(str(error))
        raise
    merged = translation.recipe.build()
    assert isinstance(merged, Checkpoint)
    want = Checkpoint.read(expected)
    assert set(merged.names) == set(want.names)
    inputs = [Checkpoint.read(models / kind / n) for n in ("base", "a", "b", "c")]
    largest = max(float(np.abs(x).max()) for point in inputs for x in point.arrays().values())
    got, exact = merged.arrays(), want.arrays()
    apart = {n: float(np.abs(got[n] - exact[n]).max()) for n in want.names}
    worst = max(apart, key=lambda n: apart[n])
    record_property(config, apart[worst])
    bound = 0.0 if config == "passthrough" else 4 * EPS * largest
    if config == "arcee_fusion":  # entries whose importance is the threshold's to a rounding may fall on either side
        flipped = sum(int((np.abs(got[n] - exact[n]) > bound).sum()) for n in want.names)
        assert flipped <= 3
        return
    assert apart[worst] <= bound, (worst, apart[worst], bound)


MODULES = """
modules:
  encoder:
    models: [{model: a, parameters: {weight: 0.4}}, {model: b}]
    parameters: {weight: 0.3}
  decoder:
    models:
      - {model: a, parameters: {weight: [{filter: SelfAttention, value: 0.7}, {value: 0.1}]}}
  shared:
    models: [{model: b, parameters: {weight: 0.5}}]
merge_method: task_arithmetic
base_model: base
parameters: {lambda: 0.9}
dtype: float32
"""


@pytest.fixture(scope="module")
def two_sided(tmp_path_factory):
    """Tiny T5s: encoder, decoder, and the embedding that both share."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra: hf)")
    root = tmp_path_factory.mktemp("t5")
    for i, name in enumerate(("base", "a", "b")):
        torch.manual_seed(i)
        made = transformers.T5ForConditionalGeneration(
            transformers.T5Config(
                vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
            )
        )
        for p in made.parameters():
            p.data += 0.1 * torch.randn(p.shape)
        made.save_pretrained(root / name)
    (root / "modules.yml").write_text(MODULES)
    return root


@pytest.mark.filterwarnings("ignore")
def test_each_of_several_modules_is_merged_by_itself(two_sided, run_cli):
    out = two_sided / "out"
    assert run_cli("edit", two_sided / "modules.yml", "-o", out)[0] == 0
    assert run_cli("verify", out)[0] == 0
    base, a, b, got = (
        {n: x.astype(float) for n, x in Checkpoint.read(two_sided / k).arrays().items()}
        for k in ("base", "a", "b", "out")
    )
    for n, x in base.items():
        u, v = a[n] - x, b[n] - x
        if n.startswith("encoder."):
            want = x + 0.9 * (0.4 * u + 0.3 * v)
        elif n.startswith("shared."):
            want = x + 0.9 * 0.5 * v
        else:
            want = x + 0.9 * (0.7 if "SelfAttention" in n else 0.1) * u
        np.testing.assert_allclose(got[n], want, atol=1e-6, err_msg=n)
    text = MODULES.replace("  shared:\n    models: [{model: b, parameters: {weight: 0.5}}]\n", "")
    (two_sided / "bad.yml").write_text(text.replace("  decoder:", "  shared_decoder:"))
    with pytest.raises(UsageError, match="no tensors of the module 'shared_decoder'"):
        translate(two_sided / "bad.yml")
    (two_sided / "bad.yml").write_text(
        MODULES.replace("  decoder:", "  dec:").replace("dtype", "models: [{model: a}]\ndtype")
    )
    with pytest.raises(UsageError, match="exactly one of models, slices and modules"):
        translate(two_sided / "bad.yml")


@pytest.mark.peer
@pytest.mark.filterwarnings("ignore")
def test_modules_equal_mergekit(two_sided):
    python = _with_mergekit()
    if python is None:
        pytest.skip("mergekit is not installed here; name an interpreter that has it in TASKVEC_MERGEKIT")
    done = subprocess.run(
        [python, "-c", DRIVER, json.dumps([["modules.yml", "mergekit_modules"]])], cwd=two_sided, capture_output=True, text=True,
        check=False, env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {}
    want = Checkpoint.read(two_sided / "mergekit_modules")
    got = translate(two_sided / "modules.yml").recipe.build()
    for n, x in want.arrays().items():
        if n in got.names:  # it writes the tied copies of the shared embedding too
            np.testing.assert_allclose(got.array(n), x, atol=1e-6, err_msg=n)


@pytest.mark.parametrize("kind", LAYERS)
def test_runs_from_the_command_line_and_verifies(models, run_cli, kind):
    path = _write(models / kind, "cli", CONFIGS["slices" if kind != "bert" else "task_arithmetic"])
    out = models / kind / "cli_out"
    code, said, _ = run_cli("explain", path)
    assert code == 0 and "as a recipe" in said and "output: " in said
    assert run_cli("edit", path, "-o", out)[0] == 0
    code, said, err = run_cli("verify", out)
    assert code == 0, err
    # The recipe that explain shows is a recipe.
    import yaml

    shown = translate(path)
    (models / kind / "again.yaml").write_text(str(shown))
    assert yaml.safe_load(str(shown))["recipe"] == 1
    assert run_cli("edit", models / kind / "again.yaml", "-o", models / kind / "again_out")[0] == 0
    assert (models / kind / "again_out" / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


@pytest.mark.parametrize(("kind", "key"), [("llama", "num_hidden_layers"), ("gpt2", "n_layer")])
def test_a_frankenmerge_loads_with_its_new_depth(models, run_cli, kind, key):
    import torch
    import transformers

    path = _write(models / kind, "franken", CONFIGS["passthrough"])
    out = models / kind / "franken_out"
    assert run_cli("edit", path, "-o", out)[0] == 0
    deep = LAYERS[kind] + 1
    assert json.loads((out / "config.json").read_text())[key] == deep
    with torch.no_grad():
        model, info = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        assert torch.isfinite(model(torch.arange(8)[None]).logits).all()
    assert run_cli("verify", out)[0] == 0


def test_slices_of_different_numbers_of_models_load_and_verify(models, run_cli):
    path = _write(models / "llama", "mixed", CONFIGS["slices_of_different_numbers"])
    out = models / "llama" / "mixed_out"
    assert run_cli("edit", path, "-o", out)[0] == 0
    assert json.loads((out / "config.json").read_text())["num_hidden_layers"] == 4
    assert run_cli("verify", out)[0] == 0
    base, c, got = (Checkpoint.read(models / "llama" / n) for n in ("base", "c", "mixed_out"))
    x, y = base.array("model.layers.1.mlp.up_proj.weight"), c.array("model.layers.0.mlp.up_proj.weight")
    np.testing.assert_allclose(got.array("model.layers.3.mlp.up_proj.weight"), x + 0.5 * (y - x), atol=1e-6)


def test_documents_may_name_earlier_ones(models):
    folder = models / "llama"
    first = "name: mixed\nmerge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 1}}]"
    last = "merge_method: slerp\nbase_model: mixed\nmodels: [{model: mixed}, {model: c}]\nparameters: {t: 0.25}"
    path = folder / "several.yml"
    for text in (f"{first}\n---\n{last}\n", f"{last}\n---\n{first}\n"):
        path.write_text(text)
        found = translate(path).recipe.build().array("lm_head.weight").ravel()
        a, b, c = (Checkpoint.read(folder / n).array("lm_head.weight").astype(float).ravel() for n in "abc")
        x = (a + b) / 2
        angle = np.arccos(x @ c / np.linalg.norm(x) / np.linalg.norm(c))
        want = (np.sin(0.75 * angle) * x + np.sin(0.25 * angle) * c) / np.sin(angle)
        np.testing.assert_allclose(found, want, rtol=0, atol=1e-6)
    path.write_text(f"{first.replace('model: a', 'model: other')}\n---\nname: other\n{last}\n")
    with pytest.raises(UsageError, match=r"need each other: .*mixed"):
        translate(path)


def test_dare_is_the_mean_over_masks(models):
    path = models / "llama" / "dare.yml"
    path.write_text(
        "models: [{model: a, parameters: {weight: 0.5, density: 0.25}}]\nmerge_method: dare_linear\nbase_model: base\n"
    )
    translation = translate(path)
    assert any("divided by the probability" in n for n in translation.notes)
    base, a = (Checkpoint.read(models / "llama" / n).array("lm_head.weight") for n in ("base", "a"))
    moved = (translation.recipe.build().array("lm_head.weight") - base) / np.where(a == base, 1, a - base)
    kept = np.abs(moved) > 1e-3
    assert 0.2 < kept.mean() < 0.3
    np.testing.assert_allclose(moved[kept], 2.0, rtol=1e-3)


@pytest.fixture
def folder(tmp_path, weights):
    for i, name in enumerate(("base", "a", "b")):
        table = {f"layers.{k}.w": v for k, v in enumerate((weights(i)["a.weight"], weights(i + 9)["a.weight"]))}
        Checkpoint.of({**table, "embed.weight": weights(i)["a.bias"]}, label=name).save(tmp_path / name)
    return tmp_path


GOOD = "merge_method: task_arithmetic\nbase_model: base\nmodels: [{model: a, parameters: {weight: 0.5}}]\n"


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        (GOOD.replace("task_arithmetic", "task_arithmetics"), UnknownName, "Did you mean 'task_arithmetic'"),
        (GOOD.replace("task_arithmetic", "[ties]"), UnknownName, "unknown merge_method ['ties']"),
        (GOOD + "name: 3\n", UsageError, "`name` must be a text, got 3"),
        (GOOD.replace("weight", "wieght"), UnknownName, "Did you mean 'weight'"),
        (GOOD.replace("parameters", "paramaters"), UnknownName, "Did you mean 'parameters'"),
        (GOOD + "dytpe: float32\n", UnknownName, "Did you mean 'dtype'"),
        (GOOD.replace("base_model: base\n", ""), UsageError, "needs `base_model`"),
        (GOOD.replace("model: a", "model: aa"), InputError, "config.yml names the model 'aa'"),
        (GOOD.replace("{weight: 0.5}", "{}"), UsageError, "needs the parameter 'weight' for a"),
        (GOOD.replace("0.5", "[0.5, x]"), UsageError, "models[0].weight"),
        (GOOD.replace("[{model: a, parameters: {weight: 0.5}}]", "[]"), UsageError, "exactly one of models"),
        (GOOD + "tokenizer_source: 3\n", UsageError, "tokenizer_source must be"),
        (GOOD + "tokenizer: {sauce: base}\n", UnknownName, "Did you mean 'source'"),
        (GOOD + "tokenizer: {tokens: {x: {source: {kind: odd}}}}\n", UsageError, "kind: zero"),
        (GOOD + "tokenizer: {pad_to_multiple_of: 0}\n", UsageError, "positive whole number"),
        (GOOD + "tokenizer: {source: base}\ntokenizer_source: base\n", UsageError, "both"),
        (GOOD + "chat_template: chatml\n", UsageError, "not carried here"),
        (GOOD + "chat_template: chatty\n", UsageError, "neither"),
        (GOOD.replace("task_arithmetic", "nearswap"), UsageError, "needs the parameter 't'"),
        (
            "merge_method: linear\nslices: [{sources: [{model: a, layer_range: [0, 1]}, {model: b, layer_range: [0, 2]}]}]\n",
            UsageError,
            "different numbers of blocks",
        ),
        (GOOD.replace("task_arithmetic", "slerp"), UsageError, "needs the parameter 't'"),
        (
            "merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [0, 9]}]}]\n",
            UsageError,
            "blocks 0 to 1",
        ),
        ("merge_method: linear\nmodels: [{model: a}, {model: a}]\n", UsageError, "once"),
    ],
)
def test_what_is_wrong_is_said(folder, text, kind, said):
    path = folder / "config.yml"
    path.write_text(text)
    with pytest.raises(kind) as caught:
        translate(path)
    assert said in str(caught.value)


def test_all_mistakes_of_a_config_come_at_once(folder):
    path = folder / "config.yml"
    path.write_text("merge_metod: ties\nmerge_method: tie\nmodels: [{model: a, parameters: {densty: 1}}]\n")
    with pytest.raises(UsageError, match="3 mistakes"):
        read_configs(path)


def test_recipes_are_not_taken_for_configs(folder):
    path = folder / "recipe.yaml"
    path.write_text("recipe: 1\nlet: {a: {read: a}}\noutput: a\n")
    assert not recognises(path)
    path.write_text(GOOD)
    assert recognises(path)


def test_parameters_without_effect_are_noted(folder):
    path = folder / "config.yml"
    path.write_text(GOOD.replace("weight: 0.5", "weight: 0.5, density: 0.1") + "dtype: bfloat16\n")
    notes = translate(path).notes
    assert any("density has no effect with task_arithmetic" in n for n in notes)
    assert any("float32" in n for n in notes)


def test_the_tokenizer_of_a_named_model_comes_along(folder, run_cli):
    vocab = {"x": 0, "y": 1}
    for name, extra in (("base", "old"), ("a", "new")):
        (folder / name / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}, "said": extra}))
    path = folder / "config.yml"
    path.write_text(GOOD + "tokenizer_source: a\n")
    assert run_cli("edit", path, "-o", folder / "out")[0] == 0
    assert json.loads((folder / "out" / "tokenizer.json").read_text())["said"] == "new"
    assert run_cli("verify", folder / "out")[0] == 0
    (folder / "out" / "tokenizer.json").write_text("{}")
    assert run_cli("verify", folder / "out")[0] == 5
    (folder / "a" / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"x": 1, "y": 0}}}))
    path.write_text(GOOD)
    with pytest.raises(InputError, match="differ in 2 tokens"):
        translate(path)


def test_a_model_with_an_adapter(folder):
    low = folder / "low"
    low.mkdir()
    (low / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 2}))
    b, a = np.ones((7, 1), np.float32), np.full((1, 5), 0.25, np.float32)
    factors = {"base_model.model.layers.0.lora_B.weight": b, "base_model.model.layers.0.lora_A.weight": a}
    Checkpoint.of(factors).save(low / "adapter_model.safetensors")
    for name in ("base", "a"):  # PEFT adapts weights called `weight`
        table = Checkpoint.read(folder / name).arrays()
        Checkpoint.of({n.replace(".w", ".weight"): x for n, x in table.items()}).save(folder / name, overwrite=True)
    path = folder / "config.yml"
    path.write_text(GOOD.replace("model: a", "model: a+low"))
    got = translate(path).recipe.build().array("layers.0.weight")
    base, tuned = (Checkpoint.read(folder / n).array("layers.0.weight") for n in ("base", "a"))
    np.testing.assert_allclose(got, base + 0.5 * (tuned + 0.5 - base), atol=1e-6)


def test_without_rescaling_what_della_keeps_stays_as_it_is(models):
    path = models / "llama" / "della_plain.yml"
    path.write_text(
        "models: [{model: a, parameters: {weight: 1, density: 0.5}}]\nmerge_method: della_linear\nbase_model: base\n"
        "parameters: {rescale: false}\n"
    )
    base, a = (Checkpoint.read(models / "llama" / n).array("lm_head.weight") for n in ("base", "a"))
    moved = translate(path).recipe.build().array("lm_head.weight") - base
    kept = moved != 0
    assert 0.4 < kept.mean() < 0.6
    np.testing.assert_allclose(moved[kept], (a - base)[kept], atol=1e-6)


def test_the_l1_norm_is_kept_when_asked(models):
    import inspect

    from taskvec.methods import METHODS

    if "variant" not in inspect.signature(METHODS["dare"].fn).parameters:
        pytest.skip("dare has no variants here")
    path = models / "llama" / "dare_l1.yml"
    path.write_text(
        "models: [{model: a, parameters: {weight: 1, density: 0.4}}]\nmerge_method: dare_ties\nbase_model: base\n"
        "parameters: {variant: mergekit}\n"
    )
    translation = translate(path)
    assert not any("as in the paper" in n for n in translation.notes)
    base, a = (Checkpoint.read(models / "llama" / n) for n in ("base", "a"))
    merged = translation.recipe.build()
    for name in ("lm_head.weight", "model.layers.0.mlp.up_proj.weight"):
        moved, whole = (np.abs(p.array(name) - base.array(name)).sum() for p in (merged, a))
        assert moved == pytest.approx(whole, rel=1e-4)
