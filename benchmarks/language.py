"""Generation, perplexity and holding an edit, against a plain loop over transformers in the same run.

    python benchmarks/language.py [--model small|smollm2] [--rounds 3; 0 for memory alone] [--prompts 32] [--tokens 32]

One process, one torch thread; the kinds take turns, and ratios are of CPU time (medians over the rounds). Models have random
weights: `smollm2` has the shape of SmolLM2-135M (134.5 M weights, 49,152 tokens), `small` a tenth of its layers and width.
Generation samples with temperature 1 and top-p 0.9; the plain loops call `model.generate`, one prompt at a time or in batches
of 16 in the order given. Perplexity is that of windows of 256 tokens moved by 128; the plain loop is the one that transformers
documents. Memory is peak resident memory of processes of their own: what an edit adds that is held in place of the model's
weights, and what opening the edited folder as a second model adds. Writes benchmarks/results/language-MODEL.json.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SHAPES = {
    "small": {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 6, "num_attention_heads": 6, "num_key_value_heads": 3},
    "smollm2": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3},
}  # fmt: skip


def child(kind: str, place: Path) -> None:
    """Generate with the base, and again with the edit: held in the base's place, or opened as a second model."""
    import torch

    from taskvec.models.language import generate, language_model
    from taskvec.weights import Checkpoint

    torch.set_num_threads(1)
    model = language_model(place / "base")
    generate(model, ["some words"], tokens=2)
    if kind == "edit":
        generate(model, ["some words"], tokens=2, weights=Checkpoint.read(place / "edited"))
    if kind == "two":
        generate(language_model(place / "edited"), ["some words"], tokens=2)
    # Not getrusage, which counts what the parent held when it started this one.
    held = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(int(held.split()[1]) * 1024 / 1e6)


def peak(kind: str, place: Path) -> float:
    """Peak resident memory of a process of its own, in MB."""
    command = [sys.executable, __file__, "--child", kind, str(place)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def made(name: str, folder: Path) -> None:
    """A Llama with random weights and a tokenizer of bytes."""
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=49152, max_position_embeddings=2048, tie_word_embeddings=True, bos_token_id=0, eos_token_id=256, **SHAPES[name]
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    letters = {b: i for i, b in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), "<end>"])}
    inner: Any = Tokenizer(models.BPE(letters, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>").save_pretrained(folder)


def plain_generate(model: Any, prompts: list[str], tokens: int, batch: int) -> None:
    import torch

    tokenizer = model.tokenizer
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "left"
    with torch.inference_mode():
        for i in range(0, len(prompts), batch):
            given = tokenizer(prompts[i : i + batch], return_tensors="pt", padding=True)
            kept = {n: given[n] for n in ("input_ids", "attention_mask")}
            out = model.module.generate(
                **kept, max_new_tokens=tokens, do_sample=True, top_p=0.9, top_k=0, pad_token_id=256
            )
            tokenizer.batch_decode(out, skip_special_tokens=True)


def plain_perplexity(model: Any, text: str) -> float:
    import torch

    ids = model.tokenizer(text, return_tensors="pt").input_ids
    total, count, done = 0.0, 0, 0
    with torch.no_grad():
        for begin in range(0, ids.shape[1], 128):
            end = min(begin + 256, ids.shape[1])
            labels = ids[:, begin:end].clone()
            labels[:, : -(end - done)] = -100
            n = int((labels[:, 1:] != -100).sum())
            total, count, done = total + float(model.module(ids[:, begin:end], labels=labels).loss) * n, count + n, end
            if end == ids.shape[1]:
                break
    return total / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, default="small")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=32)
    given = parser.parse_args()
    import torch
    import transformers

    from taskvec.models.language import generate, language_model, perplexity
    from taskvec.weights import TaskVector

    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    draw = random.Random(0)
    prompts = ["word " * draw.randrange(2, 24) for _ in range(given.prompts)]
    text = "some text of no meaning. " * 80
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as place:
        made(given.model, Path(place) / "base")
        model = language_model(Path(place) / "base")
        size = sum(p.numel() for p in model.module.parameters()) * 4 / 1e6
        base = model.base
        delta = {n: torch.full(s.shape, 1e-4).numpy() for n, s in base.spec.items()}
        edited = base + 0.5 * TaskVector.of(delta, base, label="v")
        edited.save(Path(place) / "edited")
        del delta
        alone, with_edit, two = (peak(kind, Path(place)) for kind in ("alone", "edit", "two"))
        kinds: dict[str, Callable[[], Any]] = {
            "generate: taskvec": lambda: generate(model, prompts, tokens=given.tokens),
            "generate: plain, 1 at a time": lambda: plain_generate(model, prompts, given.tokens, 1),
            "generate: plain, 16 at a time": lambda: plain_generate(model, prompts, given.tokens, 16),
            "perplexity: taskvec": lambda: perplexity(model, [text], window=256, stride=128).loss,
            "perplexity: plain": lambda: plain_perplexity(model, text),
        }
        agree = abs(kinds["perplexity: taskvec"]() - kinds["perplexity: plain"]()) if given.rounds else None
        for _ in range(given.rounds):
            for name, run in kinds.items():
                start = time.process_time()
                run()
                found.setdefault(name, []).append(time.process_time() - start)
    median = {n: statistics.median(t) for n, t in found.items()}
    tokens = given.prompts * given.tokens
    timed = {
        name: median[a] / median[b]
        for name, a, b in (
            ("generate, to plain 1 at a time", "generate: taskvec", "generate: plain, 1 at a time"),
            ("generate, to plain 16 at a time", "generate: taskvec", "generate: plain, 16 at a time"),
            ("perplexity, to plain", "perplexity: taskvec", "perplexity: plain"),
        )
        if given.rounds
    }
    result = {
        "settings": vars(given) | {"weights": f"{size / 4:.1f} M", "torch": torch.__version__, "transformers": transformers.__version__},
        "ratios": {
            **timed,
            "memory of an edit held, to the model": (with_edit - alone) / size,
            "memory of a second model, to the model": (two - alone) / size,
        },
        "tokens per CPU second": {n: tokens / median[n] for n in median if n.startswith("generate")},
        "difference of loss to the plain loop": agree,
        "rounds": found,
    }  # fmt: skip
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / f"language-{given.model}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({n: result[n] for n in result if n != "rounds"}, indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], Path(sys.argv[3]))
    else:
        main()
