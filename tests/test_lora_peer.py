"""LoRA as PEFT trains it beside our regime: from the same factors, on the same samples in the same order, the same weights."""

from __future__ import annotations

import importlib.util
import json

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra: train)")
transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra: hf)")

from taskvec.interop import adapter  # noqa: E402
from taskvec.models.functional import aliases, tensors  # noqa: E402
from taskvec.models.hub import transformer  # noqa: E402
from taskvec.results import read_result  # noqa: E402
from taskvec.select import matching  # noqa: E402
from taskvec.tasks import Head, Split, Task  # noqa: E402
from taskvec.training import Rank, Regime, TrainSpec, fit  # noqa: E402
from taskvec.training.coordinates import coordinates  # noqa: E402
from taskvec.training.loop import Batches, rate_at  # noqa: E402

torch.set_num_threads(1)
pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")]
QUERY_VALUE = Regime("LoRA", matching("*.query.weight", "*.value.weight"), low_rank=Rank(rank=4, alpha=8.0))
SPEC = TrainSpec(steps=40, lr=5e-3, batch=8, weight_decay=0.1, clip=0.05, seed=3)
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnop"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    if importlib.util.find_spec("peft") is None:
        pytest.skip("peft is not installed: pip install --no-deps peft accelerate")
    folder = tmp_path_factory.mktemp("peft")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder / "bert")
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, max_position_embeddings=32
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.BertModel(config).save_pretrained(folder / "bert")
    return folder


def tasks(n: int = 64) -> Task:
    """Which of two letters comes more often."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(5, len(WORDS), (n, 10), generator=draw)
    labels = ((ids == 5).sum(1) > (ids == 6).sum(1)).long()
    split = Split(ids, labels)
    return Task("letters", split, split, split, Head.random(2, 24, generator=draw), ("less", "more"))


def trained_by_peft(folder, task: Task, out) -> list[float]:
    """Their model and their factors in a loop of AdamW, warm-up, cosine and clipping: what `TrainSpec` says, without our code's step."""
    import peft

    model, base = transformer(folder)
    point = coordinates(model, QUERY_VALUE, tensors(base, like=model), SPEC.seed)
    inner = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    config = peft.LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=["query", "value"])
    theirs = peft.get_peft_model(inner, config).eval()
    learned = {n: p for n, p in theirs.named_parameters() if p.requires_grad}
    for name, factor in point.factors.items():
        weight, side = name.rsplit(":", 1)
        module = f"base_model.model.{weight.removesuffix('.weight')}"
        with torch.no_grad():
            learned[f"{module}.lora_{'B' if side == 'left' else 'A'}.default.weight"].copy_(factor)
    assert len(learned) == len(point.factors) == 8
    head, draw = task.needs_head(), torch.Generator().manual_seed(SPEC.seed)
    optimiser = torch.optim.AdamW(list(learned.values()), lr=SPEC.lr, weight_decay=SPEC.weight_decay)
    batches, losses = Batches(len(task.train), SPEC.batch, draw, torch.empty(0, dtype=torch.long), 0), []
    for step in range(SPEC.steps):
        rows = batches.draw()
        ids = task.train.inputs[rows]
        states = theirs(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        features = torch.nn.functional.normalize(states.mean(1), dim=1) * 24**0.5
        loss = torch.nn.functional.cross_entropy(features @ head.weight.T + head.bias, task.train.labels[rows])
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(learned.values()), SPEC.clip)
        for group in optimiser.param_groups:
            group["lr"] = SPEC.lr * rate_at(step, SPEC.steps, SPEC.warmup)
        optimiser.step()
        losses.append(float(loss.detach()))
    theirs.save_pretrained(out)
    return losses


def test_our_regime_gives_the_weights_that_peft_gives(place):
    task = tasks()
    losses = trained_by_peft(place / "bert", task, place / "adapter")
    model, base = transformer(place / "bert")
    ours = fit(model, base, task, regime=QUERY_VALUE, spec=SPEC)
    theirs = adapter(place / "adapter", base)
    assert max(abs(a - b) for a, b in zip(ours.losses, losses, strict=True)) < 1e-5
    assert sorted(theirs.names) == sorted(n for n in aliases(model) if "query.weight" in n or "value.weight" in n)
    moved = ours.vector.norm()
    # 1.6e-7 as measured: rounding alone.
    assert moved > 0.3 and (ours.vector - theirs).norm() < 1e-5 * moved
    other = fit(model, base, task, regime=QUERY_VALUE, spec=TrainSpec(**{**vars(SPEC), "weight_decay": 0.0}))
    assert (other.vector - theirs).norm() > 1e-3 * moved  # the comparison sees what is different


def test_an_adapter_of_peft_is_a_rival_of_steer(place, tmp_path, run_cli):
    if not (place / "adapter").exists():
        trained_by_peft(place / "bert", tasks(), place / "adapter")
    draw = torch.Generator().manual_seed(1)
    lines = ["text,label,who"]
    for i in range(120):
        letters = [WORDS[int(j)] for j in torch.randint(5, len(WORDS), (8,), generator=draw)]
        lines.append(f"{' '.join(letters)} {i},{int(letters.count('a') > letters.count('b'))},{'xy'[i % 2]}")
    (tmp_path / "posts.csv").write_text("\n".join(lines))
    code, _, said = run_cli(
        "steer", place / "bert", tmp_path / "posts.csv", "--group", "who", "--rival", f"LoRA (peft)={place / 'adapter'}", "--epochs", "0.2",
        "--points", "3", "--min-n", "5", "--min-cases", "1", "--max-tokens", "16", "-o", tmp_path / "s.json",
    )  # fmt: skip
    assert code == 0, said
    names = [r.name for r in read_result(tmp_path / "s.json").rows]
    assert {"LoRA (peft)", "LoRA (peft), scaled"} <= set(names)
    # One that was trained with a head of its own has no place under the head that all share.
    whole = tmp_path / "whole"
    whole.mkdir()
    from safetensors.torch import load_file, save_file

    factors = load_file(place / "adapter" / "adapter_model.safetensors")
    save_file(factors | {"base_model.model.classifier.weight": torch.zeros(2, 24)}, whole / "adapter_model.safetensors")
    config = json.loads((place / "adapter" / "adapter_config.json").read_text())
    (whole / "adapter_config.json").write_text(json.dumps(config | {"modules_to_save": ["classifier"]}))
    code, _, said = run_cli(
        "steer", place / "bert", tmp_path / "posts.csv", "--group", "who", "--rival", f"x={whole}", "-o", tmp_path / "t.json"
    )  # fmt: skip
    assert code == 3 and "classifier" in said
