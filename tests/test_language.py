"""Language models: opening them, continuations that depend on (seed, index) alone, bans, perplexity against the plain loop, training."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra: hf)")

import taskvec as tv  # noqa: E402
from language_models import sentences, shared, stories, tiny_gpt2, tiny_t5  # noqa: E402
from loopback_hub import serving  # noqa: E402
from taskvec.errors import InputError, KeyMismatch, MissingExtra, NonFinite, UsageError  # noqa: E402
from taskvec.interop.lm_eval import mcnemar  # noqa: E402
from taskvec.models import bind, tensors  # noqa: E402
from taskvec.models.language import (  # noqa: E402
    LanguageModel,
    chat_prompt,
    generate,
    language_model,
    loaded_with,
    next_tokens,
    perplexity,
)
from taskvec.models.language.generating import FEW, _nucleus  # noqa: E402
from taskvec.tasks import accuracy  # noqa: E402
from taskvec.tasks.language import Texts, language_task, read_texts  # noqa: E402
from taskvec.tasks.task import IGNORED, Head, Split  # noqa: E402
from taskvec.training import LINEAR_ONLY, LORA, STANDARD, TANGENT, TrainSpec, validation_loss  # noqa: E402
from taskvec.weights import Checkpoint, TaskVector  # noqa: E402
from taskvec.weights.vocabulary import read_vocabulary  # noqa: E402

torch.set_num_threads(1)
ROOT = Path(__file__).parents[1]
PROMPTS = ["the cat", "the dog sat on a road and", "it", "the big red ball was", "a", "and then"]
SHORT = TrainSpec(steps=12, batch=8, lr=1e-2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_gpt2(tmp_path_factory.mktemp("models") / "tiny-gpt2")


@pytest.fixture(scope="module")
def gpt2(folder):
    return language_model(folder)


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return language_model(tiny_t5(tmp_path_factory.mktemp("models") / "tiny-t5"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return language_model(stories(tmp_path_factory.mktemp("models") / "stories"))


def shifted(model: LanguageModel, by: float) -> Checkpoint:
    rng = np.random.default_rng(0)
    base = model.base
    delta = {n: (by * rng.normal(size=s.shape)).astype(np.float32) for n, s in base.spec.items()}
    return base + TaskVector.of(delta, base, label="shift")


class TestOpening:
    def test_a_folder(self, gpt2, t5, folder):
        assert (gpt2.kind, gpt2.name, gpt2.longest) == ("causal", "tiny-gpt2", 64)
        assert (t5.kind, t5.longest) == ("seq2seq", None)
        assert set(gpt2.base.names) == set(Checkpoint.read(folder).names)
        assert gpt2.base.fingerprint() == Checkpoint.read(folder).fingerprint()
        assert not gpt2.module.training and next(gpt2.module.parameters()).dtype == torch.float32

    @pytest.mark.parametrize(("named", "called"), [("org/name", "org/name"), ("hf://org/name@main", "name")])
    def test_a_model_on_the_hub(self, folder, tmp_path, named, called):
        code = (
            "from taskvec.models.language import language_model, generate\n"
            f"m = language_model({named!r})\n"
            "print(m.kind, m.name, len(generate(m, ['the cat'], tokens=4)))"
        )
        with serving({"org/name": folder}) as (environment, asked):
            made = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, timeout=200,
                env={**os.environ, **environment, "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")},
            )  # fmt: skip
        assert made.stdout.split() == ["causal", called, "1"], made.stderr
        assert "org/name/model.safetensors" in asked and "org/name/tokenizer.json" in asked

    def test_what_is_none_is_refused(self, tmp_path, folder):
        with pytest.raises(InputError, match=r"is no folder, no \.gguf file, and no id"):
            language_model(tmp_path / "nothing here")
        (tmp_path / "empty").mkdir()
        with pytest.raises(InputError, match=r"no config\.json"):
            language_model(tmp_path / "empty")
        (tmp_path / "empty" / "config.json").write_text('{"model_type": "gpt2"}')
        with pytest.raises(InputError, match=r"has no tokenizer \(none of tokenizer\.json, .*beside the weights"):
            language_model(tmp_path / "empty")
        (tmp_path / "empty" / "tokenizer_config.json").write_text("{}")
        with pytest.raises(InputError, match="does not open as"):
            language_model(tmp_path / "empty")
        with pytest.raises(UsageError, match="kind is 'encoder'"):
            language_model(folder, kind="encoder")  # type: ignore[arg-type]

    @pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF" + bytes(40)])
    def test_a_gguf_file_that_is_cut_short_is_named(self, tmp_path, content):
        pytest.importorskip("gguf", reason="gguf is not installed (extra: gguf)")
        (tmp_path / "cut.gguf").write_bytes(content)
        with pytest.raises(InputError, match=r"cut\.gguf does not open"):
            language_model(tmp_path / "cut.gguf")

    @pytest.mark.parametrize("library", ["torch", "transformers"])
    def test_without_its_libraries_the_extra_is_named(self, folder, monkeypatch, library):
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(MissingExtra, match=rf"{library}, which is not installed.*taskvec\[language\]"):
            language_model(folder)

    def test_parameters_that_would_be_random_are_refused(self, gpt2, tmp_path):
        part = {n: t for n, t in gpt2.module.state_dict().items() if ".h.1." not in n}
        gpt2.module.save_pretrained(tmp_path / "cut", state_dict=part)
        gpt2.tokenizer.save_pretrained(tmp_path / "cut")
        with pytest.raises(KeyMismatch, match="lacks 12 parameters"):
            language_model(tmp_path / "cut")

    def test_a_file_without_the_prefix_of_the_names_is_edited_under_its_own(self, gpt2, tmp_path):
        """As GPT-2's original file on the hub."""
        bare = {n.removeprefix("transformer."): t for n, t in gpt2.base.arrays().items()}
        gpt2.module.config.save_pretrained(tmp_path / "old")
        gpt2.tokenizer.save_pretrained(tmp_path / "old")
        Checkpoint.of(bare).save(tmp_path / "old" / "model.safetensors")
        old = language_model(tmp_path / "old")
        assert set(old.base.names) == set(gpt2.base.names)
        assert generate(old, PROMPTS, tokens=6) == generate(gpt2, PROMPTS, tokens=6)
        own = Checkpoint.read(tmp_path / "old")
        zero = own + 0.0 * (Checkpoint.of({n: a + 1 for n, a in own.arrays().items()}) - own).rebase(own)
        assert generate(gpt2, PROMPTS, tokens=6, weights=zero) == generate(gpt2, PROMPTS, tokens=6)


class TestGenerate:
    @pytest.mark.parametrize("which", ["gpt2", "t5"])
    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_a_continuation_does_not_depend_on_its_batch(self, which, temperature, request):
        model = request.getfixturevalue(which)
        whole = generate(model, PROMPTS, tokens=8, batch=16, temperature=temperature)
        assert generate(model, PROMPTS, tokens=8, batch=1, temperature=temperature) == whole
        assert generate(model, PROMPTS, tokens=8, batch=4, temperature=temperature) == whole
        assert generate(model, PROMPTS[:3], tokens=8, temperature=temperature) == whole[:3]
        if temperature:
            assert generate(model, PROMPTS, tokens=8, seed=1) != whole
            assert len(set(generate(model, ["the cat"] * 6, tokens=8))) == 6

    def test_greedy_is_the_plain_loop_of_transformers(self, llama):
        prompts = ["Once upon a time", "Lily and Tom went to the big park and", "The"]
        found = generate(llama, prompts, tokens=20, temperature=0)
        for prompt, said in zip(prompts, found, strict=True):
            ids = llama.tokenizer(prompt, return_tensors="pt")
            out = llama.module.generate(**ids, max_new_tokens=20, do_sample=False, pad_token_id=0)
            assert llama.tokenizer.decode(out[0], skip_special_tokens=True) == prompt + said
        assert found[0].startswith(", there was a little girl named Lily.")

    def test_the_folders_own_generation_settings_decide_nothing(self, gpt2, t5):
        for model in (gpt2, t5):
            plain, own = generate(model, PROMPTS, tokens=6), model.module.generation_config
            said = own.to_dict() | {
                "suppress_tokens": list(range(60, 120)), "min_new_tokens": 5, "repetition_penalty": 3.0, "top_k": 1, "do_sample": True,
                "num_beams": 3, "remove_invalid_values": True,
            }  # fmt: skip
            told = transformers.GenerationConfig(**said)
            model.module.generation_config = told
            try:
                assert generate(model, PROMPTS, tokens=6) == plain
                if model is gpt2:
                    with pytest.raises(NonFinite):
                        generate(model, PROMPTS, tokens=6, weights=shifted(model, 1e30))
                assert model.module.generation_config is told
            finally:
                model.module.generation_config = own

    def test_a_nucleus_is_the_least_set_that_reaches_the_probability(self):
        scores = torch.randn(40, 3000, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.2, 8, 40)[:, None]
        for top_p in (0.05, 0.9, 0.999):
            for row, inside in zip(scores.double().softmax(-1), _nucleus(scores, top_p), strict=True):
                size = int(inside.sum())
                assert float(row[inside].sum()) >= top_p - 1e-5 and (
                    size == len(row) or row[inside].min() >= row[~inside].max()
                )
                assert float(row[inside].sum() - row[inside].min()) < top_p + 1e-5  # without its last it does not
        assert _nucleus(scores, 0.9).sum(-1).min() < FEW < _nucleus(scores, 0.9).sum(-1).max()

    def test_samples_have_the_nucleus_distribution(self, gpt2):
        """Frequencies of the first token over many indices against the probabilities of the model, cut and scaled."""
        ids = torch.tensor([gpt2.tokenizer("the cat")["input_ids"]])
        with torch.no_grad():
            p = (5 * gpt2.module(ids).logits[0, -1]).softmax(0)
        order = p.argsort(descending=True)
        kept = order[: int((p[order].cumsum(0) < 0.5).sum()) + 1]
        share: dict[str, float] = {}
        for k in kept.tolist():  # several bytes have one text
            text = gpt2.tokenizer.decode([k])
            share[text] = share.get(text, 0.0) + float(p[k] / p[kept].sum())
        said = generate(gpt2, ["the cat"] * 1500, tokens=1, temperature=0.2, top_p=0.5, batch=500)
        assert set(said) <= set(share)
        gap = [said.count(t) / 1500 - q for t, q in share.items()]
        assert max(map(abs, gap)) < 0.05

    def test_banned_words_are_never_said_however_they_are_cut(self, llama):
        prompts = ["Once upon a time", "Lily saw a", "The dog", "She was", "I am a gir"] * 4
        free = generate(llama, prompts, tokens=30, temperature=0.8)
        words = ["lily", "Girl", "was", "there was"]
        held = generate(llama, prompts, tokens=30, temperature=0.8, banned=words)
        import re

        pattern = re.compile(r"(?<!\w)(lily|girl|was|there\s+was)(?!\w)", re.I)
        before = [pattern.findall(p + s)[len(pattern.findall(p)) :] for p, s in zip(prompts, free, strict=True)]
        after = [pattern.findall(p + s)[len(pattern.findall(p)) :] for p, s in zip(prompts, held, strict=True)]
        assert sum(map(len, before)) > 5 and sum(map(len, after)) == 0
        assert not any(re.match(r"l(?!\w)", s) for s in held[4::5])  # nor a word that the prompt began

    def test_a_ban_leaves_longer_words_and_holds_where_the_whole_nucleus_is_banned(self, llama):
        (said,) = generate(llama, ["Once upon a time"], tokens=20, temperature=0, banned=["the", "litt"])
        assert "there" in said and "little" in said
        (other,) = generate(llama, ["Once upon a time, there"], tokens=3, temperature=0.01, top_p=0.01, banned=["was"])
        assert other.split()[0] != "was"

    def test_weights_take_the_place_of_the_models_own_which_come_back(self, gpt2, tmp_path):
        edited = shifted(gpt2, 0.3)
        before = {n: t.clone() for n, t in gpt2.module.state_dict().items()}
        own, moved = (generate(gpt2, PROMPTS, tokens=6, weights=w) for w in (None, edited))
        for n, t in gpt2.module.state_dict().items():
            assert torch.equal(t, before[n])
        edited.save(tmp_path / "edited")
        assert moved != own == generate(gpt2, PROMPTS, tokens=6)
        assert generate(language_model(tmp_path / "edited"), PROMPTS, tokens=6) == moved
        assert generate(loaded_with(gpt2, edited), PROMPTS, tokens=6) == moved
        assert generate(gpt2, PROMPTS, tokens=6) == own

    def test_the_random_state_of_the_process_is_left_alone(self, gpt2):
        torch.manual_seed(1)
        before = torch.get_rng_state()
        generate(gpt2, PROMPTS, tokens=4)
        assert torch.equal(torch.get_rng_state(), before)

    def test_long_prompts_keep_their_end_and_empty_ones_begin(self, gpt2):
        long = "the cat sat on a mat and then it was happy . " * 10
        assert generate(gpt2, [long], tokens=4) == generate(gpt2, ["sad . " + long], tokens=4)
        assert len(generate(gpt2, [""], tokens=4)) == 1 and generate(gpt2, []) == []

    def test_what_cannot_be_is_refused(self, gpt2):
        for wrong in (
            {"tokens": 0},
            {"batch": 0},
            {"temperature": -1},
            {"top_p": 0},
            {"tokens": 64},
            {"banned": [" "]},
        ):
            with pytest.raises(UsageError):
                generate(gpt2, ["the"], **wrong)
        with pytest.raises(NonFinite, match="not finite"):
            generate(gpt2, ["the"], tokens=2, weights=shifted(gpt2, 1e30))
        with pytest.raises(KeyMismatch):
            generate(gpt2, ["the"], weights=Checkpoint.of({"x": np.zeros(2, np.float32)}))

    def test_a_chat_template(self, folder):
        model = language_model(folder)
        with pytest.raises(UsageError, match="no chat template"):
            chat_prompt(model, "hello")
        model.tokenizer.chat_template = (
            "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}[assistant]"
        )
        assert chat_prompt(model, "hello") == "[user] hello\n[assistant]"


def strided(model, text, window, stride):
    """The plain loop that transformers documents: (summed loss, tokens)."""
    ids = model.tokenizer(text, return_tensors="pt", verbose=False).input_ids
    total, count, done = 0.0, 0, 0
    for begin in range(0, ids.shape[1], stride):
        end = min(begin + window, ids.shape[1])
        piece, labels = ids[:, begin:end], ids[:, begin:end].clone()
        labels[:, : -(end - done)] = -100
        with torch.no_grad():
            loss = model.module(piece, labels=labels).loss
        n = int((labels[:, 1:] != -100).sum())
        total, count, done = total + float(loss) * n, count + n, end
        if end == ids.shape[1]:
            break
    return total, count


class TestPerplexity:
    @pytest.mark.parametrize(("window", "stride"), [(64, 32), (64, 63), (20, 7)])
    def test_it_is_the_plain_loops(self, gpt2, window, stride):
        texts = [" ".join(sentences(n, seed=n)) for n in (12, 3, 1)]
        found = perplexity(gpt2, texts, window=window, stride=stride, batch=3)
        sums = [strided(gpt2, t, window, stride) for t in texts]
        assert found.tokens == sum(n for _, n in sums) == sum(len(gpt2.tokenizer(t).input_ids) - 1 for t in texts)
        assert found.token == pytest.approx(math.exp(sum(s for s, _ in sums) / found.tokens), rel=1e-5)
        assert found.bits_per_byte == pytest.approx(
            sum(s for s, _ in sums) / math.log(2) / sum(map(len, texts)), rel=1e-5
        )
        assert found.word == pytest.approx(math.exp(found.loss * found.tokens / sum(len(t.split()) for t in texts)))
        assert found.low < found.token < found.high and found.units == "windows"

    def test_wikitext_to_four_digits(self, llama):
        import gzip

        text = gzip.decompress(shared("lm_corpora", "wikitext2_valid.txt.gz").read_bytes()).decode()[:12000]
        found = perplexity(llama, [text], window=256, stride=128)
        total, count = strided(llama, text, 256, 128)
        assert found.tokens == count and found.token == pytest.approx(math.exp(total / count), rel=1e-4)

    def test_texts_with_nothing_to_score_do_not_count(self, gpt2):
        texts = sentences(12)
        with_short = [*texts[:6], "a", "", *texts[6:], " "]
        assert perplexity(gpt2, with_short) == perplexity(gpt2, texts)

    def test_edits_and_their_ratio(self, gpt2):
        texts = sentences(20)
        base, same, worse = (perplexity(gpt2, texts, weights=w) for w in (None, gpt2.base, shifted(gpt2, 0.5)))
        assert same == base and base.units == "documents"
        assert same.ratio(base) == (1.0, 1.0, 1.0)
        ratio, low, high = worse.ratio(base)
        assert ratio == pytest.approx(worse.token / base.token) and 1 < low < ratio < high
        with pytest.raises(UsageError, match="same texts"):
            worse.ratio(perplexity(gpt2, texts[:5]))

    def test_what_cannot_be_is_refused(self, gpt2, t5):
        for wrong in ({"window": 65}, {"window": 1}, {"window": 8, "stride": 8}, {"batch": 0}):
            with pytest.raises(UsageError):
                perplexity(gpt2, ["the cat sat"], **wrong)
        with pytest.raises(UsageError, match="sequence-to-sequence"):
            perplexity(t5, ["the cat sat"])
        with pytest.raises(InputError, match="two tokens"):
            perplexity(gpt2, ["", "a"])
        with pytest.raises(NonFinite):
            perplexity(gpt2, ["the cat sat"], weights=shifted(gpt2, 1e30))


def asking(n=60):
    said = sentences(n)
    cut = [s.index(" on") for s in said]
    return Texts(
        "asking",
        tuple(s[:i] for s, i in zip(said, cut, strict=True)),
        tuple(s[i:] for s, i in zip(said, cut, strict=True)),
    )


class TestTask:
    def test_windows_predict_the_token_after_each_and_no_document_is_in_two_parts(self, gpt2):
        task = language_task(gpt2, Texts("made up", tuple(sentences(200))), window=16)
        assert torch.equal(task.train.inputs[:, 1:], task.train.labels[:, :-1])
        flat = task.train.inputs.flatten()
        assert torch.equal(task.train.labels[:-1, -1], task.train.inputs[1:, 0]) and len(flat) > 1000
        assert len(task.classes) == gpt2.module.config.vocab_size
        short = language_task(gpt2, sentences(200), window=16, limit=20)
        assert len(short.train) == 20 and len(short.validation) <= 3

    def test_equal_texts_are_in_one_part(self, gpt2):
        words = [f"the {a} {b} {c}" for a in ("cat", "dog") for b in ("sat", "ran", "saw") for c in "abcdefgh"]
        texts = [w for w in words for _ in range(1 + len(w) % 3)]
        for answers in (None, tuple(t[:5] for t in texts)):
            task = language_task(gpt2, Texts("repeats", tuple(texts), answers), window=8 if answers else 60)
            if answers:
                found = [{tuple(x) for x in getattr(task, p).inputs.tolist()} for p in ("train", "validation", "test")]
            else:
                lines = [
                    gpt2.tokenizer.decode(getattr(task, p).inputs.flatten()) for p in ("train", "validation", "test")
                ]
                found = [{w for w in words if f">{w}<" in line} for line in lines]
            assert all(found) and not (found[0] & found[1] or found[0] & found[2] or found[1] & found[2])

    def test_one_document_is_cut_in_three(self, gpt2):
        text = " ".join(sentences(80))
        task = language_task(gpt2, [text], window=16)
        ids = gpt2.tokenizer(text).input_ids
        assert task.train.inputs[0].tolist() == ids[:16]
        assert task.test.inputs[0, 0] == ids[round(0.9 * len(ids))]

    def test_only_answers_count(self, gpt2, t5):
        texts = asking()
        task = language_task(gpt2, texts, window=24)
        for x, y in zip(task.train.inputs, task.train.labels, strict=True):
            said = gpt2.tokenizer.decode(y[y != IGNORED], skip_special_tokens=True)
            assert said in (texts.answers or ()) and bool((y[x < 0] == IGNORED).all())
        task = language_task(t5, texts, window=16)
        assert task.train.inputs.shape[1] == 32 and task.train.labels.shape[1] == 16
        with pytest.raises(UsageError, match="needs prompts and answers"):
            language_task(t5, sentences(60))

    @pytest.mark.parametrize("which", ["gpt2", "t5"])
    @pytest.mark.parametrize("regime", [STANDARD, LORA, LINEAR_ONLY, TANGENT], ids=lambda r: r.name)
    def test_every_regime_learns(self, which, regime, request):
        model = request.getfixturevalue(which)
        task = language_task(model, asking(), window=24)
        module = next_tokens(model)
        made = tv.fit(module, model.base, task, regime=regime, spec=SHORT)
        before, after = (
            validation_loss(module, model.base, v, task, forward=made.forward) for v in (None, made.vector)
        )
        assert after < before - 0.02
        assert set(made.vector.names) <= set(model.base.names)

    def test_the_loss_is_the_models_own(self, gpt2):
        task = language_task(gpt2, asking(), window=24)
        x, y = task.validation.inputs, task.validation.labels
        with torch.no_grad():
            logits = gpt2.module(x.clamp(min=0)).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=IGNORED)
        assert validation_loss(next_tokens(gpt2), gpt2.base, None, task) == pytest.approx(float(loss), rel=1e-5)
        score = accuracy(bind(next_tokens(gpt2)), tensors(gpt2.base), task.validation, task.needs_head())
        kept = y != IGNORED
        assert score.n == int(kept.sum()) and score.value == float((logits.argmax(-1) == y)[kept].double().mean())

    def test_tuned_weights_say_what_was_learnt_and_ascent_forgets_it(self, gpt2):
        task = language_task(gpt2, sentences(100), window=16)
        module, base = next_tokens(gpt2), gpt2.base
        made = tv.fit(module, base, task, spec=TrainSpec(steps=60, batch=8, lr=1e-2))
        there = perplexity(gpt2, sentences(20, seed=5), weights=base + made.vector)
        assert there.token < 6 < perplexity(gpt2, sentences(20, seed=5)).token
        (said,) = generate(gpt2, ["the cat sat on a"], weights=base + made.vector, tokens=1, temperature=0)
        assert said in (" mat", " road")
        lost = tv.fit(module, base, task, spec=TrainSpec(steps=5, batch=8, lr=1e-2), ascent=True)
        losses = [validation_loss(module, base, v, task) for v in (None, lost.vector)]
        assert losses[1] > losses[0]

    def test_protocols_take_it(self, gpt2):
        module, base = next_tokens(gpt2), gpt2.base
        target, control = (language_task(gpt2, t, window=24) for t in (asking(), sentences(100)))
        made = tv.fit(module, base, target, spec=SHORT)
        found = tv.protocols.negation(
            module, base, made.vector, target=target, control=control, coefficients=(0.0, 0.5, 1.0)
        )
        assert found.rows[0].scores["asking"].n == target.test.counted

    def test_labels_of_positions_need_a_model_that_gives_logits(self, gpt2):
        task = language_task(gpt2, asking(), window=24)
        with pytest.raises(UsageError, match=r"Head\.own"):
            tv.fit(
                next_tokens(gpt2),
                gpt2.base,
                task.with_head(Head(torch.zeros(len(task.classes), 4), torch.zeros(len(task.classes)))),
            )
        with pytest.raises(InputError, match="2 others"):
            Split(torch.zeros(2, 3), torch.tensor([[-1, 0, 1], [0, -5, 0]]))
        with pytest.raises(InputError, match="0 that count"):
            Split(torch.zeros(1, 2), torch.full((1, 2), IGNORED))

    def test_too_little_text(self, gpt2):
        with pytest.raises(InputError, match="less than a window"):
            language_task(gpt2, sentences(2), window=32)
        with pytest.raises(UsageError, match="takes 2 to 64 tokens"):
            language_task(gpt2, sentences(2), window=65)


class TestReading:
    def test_columns_lines_and_plain_text(self, tmp_path):
        (tmp_path / "a.csv").write_text('q,a\nfirst,"one, two"\n,x\nsecond,three\n')
        found = read_texts(tmp_path / "a.csv", text="q", answer="a")
        assert found.texts == ("first", "second") and found.answers == ("one, two", "three") and found.empty == 1
        (tmp_path / "b.jsonl").write_text('{"text": "x y"}\n\n{"text": "z"}\n')
        assert read_texts(tmp_path / "b.jsonl").texts == ("x y", "z")
        (tmp_path / "c.txt").write_text("all\nof it")
        assert read_texts(tmp_path / "c.txt").texts == ("all\nof it",)

    @pytest.mark.parametrize(
        ("name", "content", "says"),
        [
            ("a.csv", "x,y\n1,2\n", "no column 'text'"),
            ("a.csv", "text,y\n1,2,3\n", "line 2: expected 2 fields, got 3"),
            ("a.jsonl", '{"text": 3}\n', "line 1: expected an object with text"),
            ("a.jsonl", '{"text"\n', "line 1: not JSON"),
            ("a.txt", " \n", "has no text"),
            ("a.txt.gz", "plain", "not a gzip file"),
        ],
    )
    def test_mistakes_say_where(self, name, content, says, tmp_path):
        (tmp_path / name).write_text(content)
        with pytest.raises(InputError, match=says):
            read_texts(tmp_path / name)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "made.jsonl"
    path.write_text("".join(json.dumps({"text": s}) + "\n" for s in sentences(120)))
    return path


class TestCommands:
    def test_fit_edit_chat_eval(self, folder, corpus, tmp_path, run_cli):
        out, edited = tmp_path / "tau.safetensors", tmp_path / "edited"
        options = ["--steps", 80, "--batch", 8, "--lr", "1e-2", "--max-tokens", 16, "--json"]
        code, said, err = run_cli("fit", folder, corpus, "--language", "-o", out, *options)
        assert code == 0, err
        facts = json.loads(said)
        assert facts["head"] is None and facts["perplexity"]["fine-tuned"] < 0.2 * facts["perplexity"]["base"]
        assert [p.name for p in tmp_path.iterdir()] == ["tau.safetensors"]
        code, _, err = run_cli("edit", "base + tau", "--let", f"base={folder}", "--let", f"tau={out}", "-o", edited)
        assert code == 0, err
        code, said, err = run_cli("eval", edited, "--against", folder, "--perplexity", corpus, "--json")
        assert code == 0, err
        facts = json.loads(said)
        assert facts["perplexity"]["edited"]["token"] < facts["perplexity"]["tiny-gpt2"]["token"]
        assert facts["ratio"]["tiny-gpt2"]["high"] < 0.3
        chat = ["chat", edited, "--against", folder, "-p", "the cat sat on a", "--tokens", 1, "--temperature", 0]
        code, said, err = run_cli(*chat, "--json")
        assert code == 0, err
        answers = json.loads(said)["continuations"]
        assert answers["edited"][0] in (" mat", " road") and len(answers) == 2
        code, said, _ = run_cli(*chat, "--ban", answers["edited"][0].strip())
        assert code == 0 and "tiny-gpt2" in said and answers["edited"][0].strip() not in said.split("edited")[1]
        code, said, _ = run_cli("chat", edited / "model.safetensors", *chat[2:], "--json")
        assert json.loads(said)["continuations"]["model"] == answers["edited"]

    def test_a_perplexity_by_word_of_any_size_can_be_read(self, folder, tmp_path, run_cli):
        (tmp_path / "odd.txt").write_text("catdogcatdogcatdogcatdog dogcatdogcatdogcatdogcat\n" * 3)
        command = ["eval", folder, "--perplexity", tmp_path / "odd.txt"]
        word = json.loads(run_cli(*command, "--json")[1])["perplexity"]["tiny-gpt2"]["word"]
        code, said, err = run_cli(*command)
        assert code == 0, err
        assert word > 1e6 and f" {word:.4g} " in said and f"{word:.2f}" not in said

    def test_what_does_not_go_together(self, folder, corpus, tmp_path, run_cli):
        out = ("-o", tmp_path / "v.safetensors")
        assert run_cli("fit", folder, corpus, "--language", "--head", "probe", *out)[0] == 2
        assert run_cli("fit", folder, corpus, "--answer", "label", *out)[0] == 2
        assert run_cli("eval", folder)[0] == 2
        assert run_cli("eval", folder, "--perplexity", corpus, "--include-path", tmp_path)[0] == 2
        code, _, err = run_cli("eval", folder, "--perplexity", tmp_path / "none.txt")
        assert code == 3 and "cannot read the texts" in err
        code, _, err = run_cli("chat", tmp_path / "no such", "-p", "x")
        assert code == 3 and "is no folder" in err


def test_a_tokenizer_may_be_a_sentencepiece_model_alone(tmp_path, monkeypatch):
    pytest.importorskip("sentencepiece", reason="sentencepiece is not installed (extra: language)")
    pytest.importorskip("google.protobuf", reason="protobuf is not installed (extra: language)")
    plain, alone = stories(tmp_path / "plain"), tmp_path / "alone"
    shutil.copytree(shared("stories260k") / "hf", alone, copy_function=shutil.copyfile)
    alone.chmod(0o755)
    shutil.copyfile(shared("stories260k") / "tok512.model", alone / "tokenizer.model")
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    (alone / "tokenizer_config.json").write_text(json.dumps(config))
    expected = read_vocabulary(plain, "plain").tokens
    found = read_vocabulary(alone, "alone").tokens
    assert dict(found) == dict(expected) and len(found) == 512
    prompts = ["Once upon a time", "Lily saw a dog."]
    assert generate(language_model(alone), prompts, tokens=12) == generate(language_model(plain), prompts, tokens=12)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(InputError, match=r"takes sentencepiece: pip install 'taskvec\[language\]'"):
        language_model(alone)


def test_mcnemar_is_the_binomial_test():
    stats = pytest.importorskip("scipy.stats")
    for wins, losses in ((0, 0), (1, 0), (7, 2), (3, 12), (40, 61)):
        wanted = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
        assert mcnemar(wins, losses) == pytest.approx(min(1.0, wanted))


def test_lm_eval_scores_edited_and_base_on_the_same_samples(llama, tmp_path, monkeypatch, run_cli):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra: lm-eval)")
    monkeypatch.chdir(ROOT)
    shifted(llama, 0.3).save(tmp_path / "edited.safetensors")
    code, said, err = run_cli(
        "eval", tmp_path / "edited.safetensors", "--against", llama.base.node.source.folder, "--lm-eval", "taskvec_stories",
        "--include-path", "examples/lm_eval", "--json",
    )  # fmt: skip
    assert code == 0, err
    facts = json.loads(said)
    acc = {m["model"]: m for m in facts["measured"] if m["metric"] == "acc"}
    assert acc["stories"]["value"] > 0.8 > acc["edited"]["value"] and acc["edited"]["stderr"] > 0
    pair = next(p for p in facts["paired"] if p["metric"] == "acc")
    assert pair["difference"] == pytest.approx(acc["edited"]["value"] - acc["stories"]["value"]) and pair["n"] == 45
    assert pair["test"] == "McNemar" and pair["p"] == mcnemar(pair["wins"], pair["losses"]) < 0.05
    by_hand = 0
    for line in (ROOT / "examples/lm_eval/stories.jsonl").read_text().splitlines():
        row = json.loads(line)
        scores = []
        for choice in row["choices"]:
            ids = torch.tensor([llama.tokenizer(row["context"] + choice).input_ids])
            n = ids.shape[1] - len(llama.tokenizer(row["context"]).input_ids)
            with torch.no_grad():
                logp = llama.module(ids).logits[0, :-1].log_softmax(-1)
            scores.append(float(logp[-n:].gather(1, ids[0, -n:, None]).sum()))
        by_hand += int(np.argmax(scores)) == row["gold"]
    assert acc["stories"]["value"] == pytest.approx(by_hand / 45, abs=1 / 45)
