"""Vocabularies: reading them, aligning rows by token, tokenizers that match their embeddings, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taskvec.errors import InputError, KeyMismatch, UnknownName, UsageError
from taskvec.methods import METHODS
from taskvec.weights import Checkpoint, aligned
from taskvec.weights.vocabulary import LARGEST_ID, read_vocabulary

EMBED, HEAD, BODY = "model.embed_tokens.weight", "lm_head.weight", "model.layers.0.mlp.w"


def tokenizer_json(tokens: dict[str, int], *, added: tuple[str, ...] = ()) -> dict:
    """A word-level tokenizer with the given numbers."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None, "decoder": None,
        "added_tokens": [{"id": tokens[t], "content": t, **flags} for t in added],
        "model": {"type": "WordLevel", "vocab": tokens, "unk_token": next(iter(tokens), "x")},
    }  # fmt: skip


def model(
    folder: Path, tokens: dict[str, int] | list[str], *, seed: int = 0, rows: int | None = None, width: int = 3,
    tied: bool = False, added: tuple[str, ...] = (), config: dict | None = None,
) -> Checkpoint:  # fmt: skip
    """A folder with weights and a word-level tokenizer."""
    tokens = tokens if isinstance(tokens, dict) else {t: i for i, t in enumerate(tokens)}
    rows = 1 + max(tokens.values()) if rows is None else rows
    draw = np.random.default_rng(seed)
    table = {EMBED: draw.standard_normal((rows, width)), BODY: draw.standard_normal((2, 2))}
    table |= {} if tied else {HEAD: draw.standard_normal((rows, width))}
    folder.mkdir(parents=True, exist_ok=True)
    Checkpoint.of({n: x.astype(np.float32) for n, x in table.items()}, label=folder.name).save(folder, overwrite=True)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(tokens, added=added)))
    (folder / "config.json").write_text(json.dumps({"vocab_size": rows, **(config or {})}))
    return Checkpoint.read(folder)


def by_token(point: Checkpoint, folder: Path, name: str = EMBED) -> dict[str, np.ndarray]:
    table = point.array(name)
    return {t: table[i] for t, i in read_vocabulary(folder, "x").tokens.items() if i < len(table)}


def test_rows_follow_their_tokens(tmp_path):
    base = model(tmp_path / "base", ["x", "y", "z"])
    a = model(tmp_path / "a", ["z", "q", "x"], seed=1)
    got = aligned(a, base)
    for name in (EMBED, HEAD):
        mine, theirs = a.array(name), base.array(name)
        np.testing.assert_array_equal(got.array(name), [mine[2], theirs[1], mine[0]])
    np.testing.assert_array_equal(got.array(BODY), a.array(BODY))
    np.testing.assert_array_equal((got - base).array(EMBED)[1], 0)
    assert aligned(base, base) is base
    both = aligned(a, [base, a])
    assert both.spec[EMBED].shape == (4, 3)
    np.testing.assert_array_equal(both.array(EMBED)[3], a.array(EMBED)[1])


def test_what_a_missing_token_gets(tmp_path):
    base = model(tmp_path / "base", ["x", "y"])
    a, b, c = (
        model(tmp_path / n, t, seed=i) for i, (n, t) in enumerate({"a": "xpq", "b": "xpr", "c": "xs"}.items(), 1)
    )
    every = [base, a, b, c]
    got = aligned(c, every).array(EMBED)  # x y p q r s
    rows = {n: p.array(EMBED) for n, p in zip("0abc", every, strict=True)}
    np.testing.assert_array_equal(got[:2], [rows["c"][0], rows["0"][1]])
    np.testing.assert_allclose(got[2], (rows["a"][1] + rows["b"][1]) / 2, rtol=1e-6)
    np.testing.assert_array_equal(got[3:], [rows["a"][2], rows["b"][2], rows["c"][1]])
    zero = aligned(c, every, missing="zero").array(EMBED)
    assert not zero[1:5].any()
    p = aligned(c, every, donors=[b, a], missing="base").array(EMBED)
    np.testing.assert_array_equal(p[2], rows["b"][1])
    np.testing.assert_array_equal(p[1], 0)  # none of these donors has it
    chosen = aligned(c, base, tokens={"y": (a, "q"), "new": b, "x": (a, 1), "void": 0} | {"new": (b, "r")}, force=["x"])
    np.testing.assert_array_equal(chosen.array(EMBED), [rows["a"][1], rows["a"][2], rows["b"][2], np.zeros(3)])


def test_padding(tmp_path):
    base = model(tmp_path / "base", ["x", "y", "z"], rows=8)
    a = model(tmp_path / "a", ["z", "x"], seed=1)
    got = aligned(a, base).array(EMBED)
    np.testing.assert_array_equal(got[3:], base.array(EMBED)[3:])  # rows without a token stay the base's
    cut = aligned(base, base, pad_to_multiple_of=1)
    np.testing.assert_array_equal(cut.array(EMBED), base.array(EMBED)[:3])
    padded = aligned(a, base, pad_to_multiple_of=4).array(EMBED)
    assert padded.shape == (4, 3)
    np.testing.assert_allclose(padded[3], padded[:3].mean(axis=0), rtol=1e-6)


words = st.lists(st.sampled_from([f"t{i}" for i in range(12)]), min_size=1, max_size=9, unique=True)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    vocabularies=st.lists(st.tuples(words, st.integers(0, 3), st.randoms(use_true_random=False)), min_size=2, max_size=4),
    union=st.booleans(), pad=st.sampled_from([None, 1, 4]), missing=st.sampled_from(["base", "mean", "zero"]), width=st.integers(1, 5),
)  # fmt: skip
def test_equals_an_oracle(tmp_path_factory, vocabularies, union, pad, missing, width):
    """Random vocabularies with holes in their numbers and rows beyond them, against plain NumPy."""
    root = tmp_path_factory.mktemp("models")
    models, tables = [], []
    for i, (tokens, extra, random) in enumerate(vocabularies):
        places = random.sample(range(len(tokens) + extra), len(tokens))
        table = dict(zip(tokens, places, strict=True))
        tables.append(table)
        models.append(model(root / f"m{i}", table, seed=i, rows=max(2, 1 + max(places) + extra), width=width))
    point, to = models[-1], (models if union else models[0])
    arrays = [m.array(EMBED).astype(np.float64) for m in models]
    target = dict(tables[0])
    for table in tables[1:] if union else ():
        for token in sorted(table, key=table.__getitem__):
            target.setdefault(token, 1 + max(target.values()))
    size = 1 + max(target.values())
    rows = len(arrays[0]) if pad is None and not union else size if pad is None else -(-size // pad) * pad
    want = np.full((max(rows, size), width), np.nan)
    limit = len(want) if pad is None and not union else size
    keep = min(limit, len(arrays[0]))
    want[:keep] = arrays[0][:keep]
    for token, row in target.items():
        having = [arrays[i][t[token]] for i, t in enumerate(tables) if token in t]
        if token in tables[-1]:
            want[row] = arrays[-1][tables[-1][token]]
        elif missing == "zero":
            want[row] = 0
        elif missing == "base" and token in tables[0]:
            want[row] = arrays[0][tables[0][token]]
        else:
            want[row] = np.mean(having, axis=0)
    empty = np.isnan(want).any(axis=1)
    want[empty] = want[~empty].mean(axis=0)
    got = aligned(point, to, donors=models, missing=missing, pad_to_multiple_of=pad)
    np.testing.assert_allclose(got.array(EMBED), want, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(got.array(BODY), point.array(BODY))


# --- files ------------------------------------------------------------------------------------------------------------


def test_vocabularies_are_read_from_every_kind_of_file(tmp_path):
    def made(name: str, **files: object) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for file, content in files.items():
            text = content if isinstance(content, str) else json.dumps(content)
            (folder / file.replace("__", ".")).write_text(text)
        return folder

    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    unigram = {"added_tokens": [{"id": 2, "content": "<z>", **flags}], "model": {"vocab": [["x", 0.0], ["y", -1.5]]}}
    decoder = {"added_tokens_decoder": {"3": {"content": "<q>", **flags}, "2": {"content": "<z>", **flags}}}
    folders = {
        "fast": made("fast", tokenizer__json=tokenizer_json({"x": 0, "y": 1, "<z>": 2}, added=("<z>",))),
        "unigram": made("unigram", tokenizer__json=unigram),
        "gpt": made("gpt", vocab__json={"x": 0, "y": 1}, merges__txt="", added_tokens__json={"<z>": 2}),
        "bert": made("bert", vocab__txt="x\ny\n", added_tokens__json={"<z>": 2}),
    }
    for name, folder in folders.items():
        found = read_vocabulary(folder, name)
        assert found.tokens == {"x": 0, "y": 1, "<z>": 2} and found.added == {"<z>"}, name
        assert found.kind == {"fast": "WordLevel", "unigram": "Unigram", "gpt": "BPE", "bert": "WordPiece"}[name]
    (folders["fast"] / "tokenizer_config.json").write_text(json.dumps(decoder))
    assert read_vocabulary(folders["fast"], "fast").tokens["<q>"] == 3
    with pytest.raises(InputError, match="no tokenizer lies beside"):
        read_vocabulary(tmp_path, "nothing")


BAD = {
    "two numbers": (tokenizer_json({"x": 0, "y": 1}) | {"added_tokens": [{"content": "x", "id": 2}]}, "two numbers, 0 and 2"),
    "one number": ({"model": {"vocab": {"x": 0, "y": 0}}}, "have one number, 0"),
    "added clashes": (tokenizer_json({"x": 0}) | {"added_tokens": [{"content": "z", "id": 0}]}, "have one number, 0"),
    "added twice": (
        tokenizer_json({"x": 0}) | {"added_tokens": [{"content": "z", "id": 1}, {"content": "z", "id": 2}]}, "added twice"
    ),
    "key twice": ('{"model": {"vocab": {"x": 0, "x": 1}}}', "names 'x' twice"),
    "piece twice": ({"model": {"vocab": [["x", 0.0], ["x", 0.0]]}}, "two numbers"),
    "negative": ({"model": {"vocab": {"x": -1}}}, "no row of an embedding"),
    "boolean": ({"model": {"vocab": {"x": True}}}, "no row of an embedding"),
    "huge": ({"model": {"vocab": {"x": LARGEST_ID + 1}}}, "no row of an embedding"),
    "no model": ({"added_tokens": []}, "no table of tokens"),
    "odd vocab": ({"model": {"vocab": 3}}, "not a table of tokens"),
    "surrogate": ('{"model": {"vocab": {"\\\\ud800": 0}}}'.replace("\\\\", "\\"), "surrogate"),
    "list": ("[]", "no table of tokens"),
    "not json": ("{", "not JSON"),
    "deep": ("[" * 100_000, "not JSON"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_damaged_tokenizers_are_refused(tmp_path, case):
    base, a = model(tmp_path / "base", ["x", "y"]), model(tmp_path / "a", ["y", "x"])
    content, said = BAD[case]
    (tmp_path / "a" / "tokenizer.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError, match=said):
        aligned(a, base)


def test_what_cannot_be_aligned_is_said(tmp_path):
    base, a = model(tmp_path / "base", ["x", "y"]), model(tmp_path / "a", ["y", "z"], seed=1)
    wide = model(tmp_path / "wide", ["y", "q"], width=4)
    tied = model(tmp_path / "tied", ["x", "q"], tied=True)
    memory = Checkpoint.of({EMBED: np.zeros((2, 3), np.float32)}, label="memory")
    odd = Checkpoint.of({"something.weight": np.zeros((2, 3), np.float32)}, label="odd")
    for point, to, more, kind, said in (
        (memory, base, {}, InputError, "not read from a folder"),
        (odd, base, {}, InputError, "not read from a folder"),
        (a, wide, {}, KeyMismatch, "lacks tokens that would get rows of wide"),
        (a, tied, {}, KeyMismatch, "has no such tensor"),
        (a, [], {}, UsageError, "needs a vocabulary"),
        (a, base, {"pad_to_multiple_of": 0}, UsageError, "positive whole number"),
        (a, base, {"missing": "median"}, UsageError, "'base', 'mean' or 'zero'"),
        (a, base, {"force": ["x"]}, UsageError, "force names 'x'"),
        (a, base, {"tokens": {"n": (base, "xx")}}, UnknownName, "has no token 'xx'"),
        (a, base, {"tokens": {"n": (base, 2)}}, InputError, "the rows 0 to 1"),
        (a, base, {"tokens": {"n": "x"}}, UsageError, "gets a checkpoint's row"),
    ):
        with pytest.raises(kind, match=said):
            aligned(point, to, **more)
    (tmp_path / "a" / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="no tokenizer lies beside"):
        aligned(Checkpoint.read(tmp_path / "a"), base)


def test_tokens_beyond_the_embedding_have_no_row(tmp_path):
    base = model(tmp_path / "base", ["x", "y", "z"], rows=2)
    a = model(tmp_path / "a", ["z", "x"], seed=1)
    union = aligned(base, [base, a])
    assert union.spec[EMBED].shape == (3, 3)
    np.testing.assert_array_equal(union.array(EMBED)[2], a.array(EMBED)[0])
    union.save(tmp_path / "out")
    assert read_vocabulary(tmp_path / "out", "out").tokens == {"x": 0, "y": 1, "z": 2}
    aligned(a, base).save(tmp_path / "cut")
    assert read_vocabulary(tmp_path / "cut", "cut").tokens == {"x": 0, "y": 1}


def test_every_tensor_of_tokens_is_touched_and_no_other(tmp_path):
    names = {
        "bert.embeddings.word_embeddings.weight": (4, 2), "bert.embeddings.position_embeddings.weight": (4, 2),
        "bert.embeddings.token_type_embeddings.weight": (2, 2), "cls.predictions.decoder.weight": (4, 2),
        "cls.predictions.bias": (4,), "final_logits_bias": (1, 4), "encoder.dense.weight": (4, 4),
    }  # fmt: skip
    for i, name in enumerate(("base", "a")):
        model(tmp_path / name, ["w", "x", "y", "z"] if name == "base" else ["z", "y", "x", "w"])
        draw = np.random.default_rng(i)
        table = {n: draw.standard_normal(s).astype(np.float32) for n, s in names.items()}
        Checkpoint.of(table).save(tmp_path / name / "model.safetensors", overwrite=True)
    base, a = (Checkpoint.read(tmp_path / n) for n in ("base", "a"))
    got = aligned(a, base)
    for n in names:
        flipped = n.startswith(("cls", "final")) or "word" in n
        want = a.array(n)
        np.testing.assert_array_equal(
            got.array(n), (want[:, ::-1] if n == "final_logits_bias" else want[::-1]) if flipped else want
        )
    union = aligned(a, base, tokens={"<new>": 0})
    assert union.spec["final_logits_bias"].shape == (1, 5) and union.spec["cls.predictions.bias"].shape == (5,)


def test_the_special_tokens_of_a_config_follow(tmp_path):
    config = {
        "eos_token_id": [0, 2], "bos_token_id": 1, "pad_token_id": None, "text_config": {"vocab_size": 3, "image_token_id": 2},
        "hidden_size": 3, "odd_token_id": -1,
    }  # fmt: skip
    base = model(tmp_path / "base", ["x", "y", "z"], config=config)
    (tmp_path / "base" / "generation_config.json").write_text(json.dumps({"suppress_tokens": [0, 1], "max_length": 2}))
    a = model(tmp_path / "a", ["z", "q", "x", "p"], config={"bos_token_id": 3}, seed=1)
    aligned(base, a).save(tmp_path / "out")
    found = json.loads((tmp_path / "out" / "config.json").read_text())
    assert found == {
        "vocab_size": 4, "eos_token_id": [2, 0], "bos_token_id": 3, "pad_token_id": None,
        "text_config": {"vocab_size": 4, "image_token_id": 0}, "hidden_size": 3, "odd_token_id": -1,
    }  # fmt: skip
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == {
        "suppress_tokens": [2],
        "max_length": 2,
    }


# --- expressions, recipes, the command line ---------------------------------------------------------------------------


def test_expressions_print_as_they_are_read(tmp_path):
    from taskvec.recipe import parse
    from taskvec.weights.text import expression

    names = {
        n: model(tmp_path / n, t, seed=i) for i, (n, t) in enumerate({"base": "xyz", "a": "zq", "b": "pqx"}.items())
    }
    for text in (
        "aligned(a, base)",
        "aligned(a, [base, b])",
        "base + 0.5 * (aligned(a, base) - base)",
        "aligned(a, base, donors=[b, base], missing='mean', pad_to_multiple_of=8)",
        "aligned(a, [base, a], tokens={'<n>': b, \"it's\": [b, 'p'], 'z': [base, 0], '<o>': 0, '<r>': None}, force=['z'])".replace(
            "'<n>': b", "'q': b"
        ),
    ):
        value = parse(text, names)
        assert expression(value.node) == text
        again = parse(expression(value.node), names)
        assert again.node.key == value.node.key and again.node.digest == value.node.digest
    for wrong, said in (
        ("aligned(a)", "whose vocabulary"),
        ("aligned(a - a, base)", "no checkpoint"),
        ("aligned(a, base, donor=[b])", "there is no 'donor'"),
        ("aligned(a, base, donors=b)", "donors is wrong"),
        ("aligned(a, base, missing=3)", "missing is wrong"),
    ):
        with pytest.raises(UsageError, match=said):
            parse(wrong, names)


def test_without_a_choice_a_mismatch_is_an_error(tmp_path, run_cli):
    base, a = model(tmp_path / "base", ["x", "y", "z"]), model(tmp_path / "a", ["x", "z", "q", "p"], seed=1)
    with pytest.raises(KeyMismatch, match=r"tokenizers of a and base differ in 4 tokens \('[yz]', "):
        _ = a - base
    model(tmp_path / "c", ["x", "z", "y"], seed=2)
    lets = [x for n in ("base", "c") for x in ("--let", f"{n}={tmp_path / n}")]
    text = "base + 0.5 * (c - base)"
    for command in (["explain"], ["edit", "-o", tmp_path / "no"]):
        code, _, err = run_cli(command[0], text, *lets, *command[1:])
        assert code == 3 and "differ in 2 tokens" in err and "'y'" in err and "--tokenizer base" in err
    assert run_cli("edit", text, *lets, "-o", tmp_path / "rows", "--tokenizer", "none")[0] == 0
    model(tmp_path / "d", ["x", "z", "w"], seed=4)
    more = [*lets, "--let", f"d={tmp_path / 'd'}"]
    for hidden in (
        "c - base", "restrict(base + 0.5 * (c - base), '*embed*')", "stack([base + (c - base), 0, 1])",
        f"aligned({text}, [base, d])", f"base + 0.5 * (aligned({text}, base) - base)", f"aligned({text}, [base, d]) - aligned(base, [base, d])",
    ):  # fmt: skip
        code, _, err = run_cli("explain", hidden, *more)
        assert code == 3 and "tokenizers of" in err and "--tokenizer" in err, (hidden, err)
    for fine in ("aligned(c, [base, d]) - aligned(base, [base, d])", "restrict(c - base, '*.mlp.*')"):
        assert run_cli("explain", fine, *more)[0] == 0, fine
    code, _, err = run_cli("diff", tmp_path / "base", tmp_path / "c", "-o", tmp_path / "c.safetensors")
    assert code == 0 and "note: the tokenizers of" in err and "differ in 2 tokens" in err
    body = text.replace("c - base", "restrict(c - base, '*.mlp.*')")
    assert run_cli("edit", body, *lets, "-o", tmp_path / "body")[0] == 0  # no row is edited
    assert run_cli("edit", text, *lets, "-o", tmp_path / "aligned", "--tokenizer", "base")[0] == 0
    c = Checkpoint.read(tmp_path / "c")
    want = 0.5 * (base.array(EMBED) + c.array(EMBED)[[0, 2, 1]])
    np.testing.assert_allclose(Checkpoint.read(tmp_path / "aligned").array(EMBED), want, atol=1e-6)
    code, _, err = run_cli("edit", text, *lets, "-o", tmp_path / "no", "--tokenizer", "bass")
    assert code == 2 and "Did you mean 'base'" in err


def test_a_folder_with_a_tokenizer_alone_gives_a_vocabulary(tmp_path, run_cli):
    model(tmp_path / "base", ["x", "y", "z"])
    tokens = {"y": 0, "x": 1, "<w>": 2}
    (tmp_path / "tok").mkdir()
    (tmp_path / "tok" / "tokenizer.json").write_text(json.dumps(tokenizer_json(tokens, added=("<w>",))))
    lets = [x for n in ("base", "tok") for x in ("--let", f"{n}={tmp_path / n}")]
    assert run_cli("edit", "aligned(base, tok, donors=[base])", *lets, "-o", tmp_path / "out")[0] == 0
    assert read_vocabulary(tmp_path / "out", "out").tokens == tokens
    got = Checkpoint.read(tmp_path / "out").array(EMBED)
    base = Checkpoint.read(tmp_path / "base").array(EMBED)
    np.testing.assert_array_equal(got, [base[1], base[0], np.zeros(3)])
    assert run_cli("verify", tmp_path / "out")[0] == 0
    (tmp_path / "tok" / "tokenizer.json").write_text(
        json.dumps(tokenizer_json(tokens | {"y": 1, "x": 0}, added=("<w>",)))
    )
    code, _, err = run_cli("verify", tmp_path / "out")
    assert code == 5 and "the input tok changed" in err
    code, _, err = run_cli("edit", "base + (tok - base)", *lets, "-o", tmp_path / "no")
    assert code == 3 and "holds no weights" in err


def test_aligned_tensors_are_the_same_compiled_or_not(tmp_path, monkeypatch):
    pytest.importorskip("llvmlite")
    every = [
        model(tmp_path / n, t, seed=i, width=64)
        for i, (n, t) in enumerate({"base": "xyz", "a": "zq", "b": "pqx"}.items())
    ]
    base, a, b = (aligned(m, every) for m in every)
    for fast in "01":
        monkeypatch.setenv("TASKVEC_FAST", fast)
        (base + 0.3 * (a - base) + 0.4 * (b - base)).save(tmp_path / f"out{fast}", threads=2)
    assert (tmp_path / "out0" / "model.safetensors").read_bytes() == (
        tmp_path / "out1" / "model.safetensors"
    ).read_bytes()


# --- chat templates ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["auto", "{% for m in messages %}{{ m.content }}{% endfor %}"])
def test_chat_templates(tmp_path, run_cli, given):
    for i, (name, template) in enumerate({"base": "{{ old }}", "a": "{{ new }}\n", "b": "{{ new }}"}.items()):
        model(tmp_path / name, ["x", "y", "z"], seed=i)
        (tmp_path / name / "tokenizer_config.json").write_text(json.dumps({"chat_template": template, "kept": 1}))
    (tmp_path / "b" / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": [{"name": "default", "template": "{{ new }}"}]})
    )
    config = "base_model: base\nmodels: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 1}}]\nmerge_method: task_arithmetic\n"
    (tmp_path / "c.yml").write_text(f"{config}chat_template: {json.dumps(given)}\n")
    assert run_cli("edit", tmp_path / "c.yml", "-o", tmp_path / "out")[0] == 0
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == ("{{ new }}" if given == "auto" else given)
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text()) == {"kept": 1}
    assert run_cli("verify", tmp_path / "out")[0] == 0


@pytest.mark.parametrize("method", ["tsv_m", "della", "iso_c"])
def test_an_edit_that_needs_whole_tensors_is_aligned_row_by_row(tmp_path, method):
    base, a, b = (model(tmp_path / n, "xyzu", rows=6, seed=i) for i, n in enumerate("0ab"))
    c = model(tmp_path / "c", "uqx", seed=3)
    edited = base + METHODS[method].fn([a - base, b - base])
    want = edited.array(EMBED)
    got = aligned(edited, c).array(EMBED)  # rows 3 and 0 of six
    np.testing.assert_array_equal(got, [want[3], c.array(EMBED)[1], want[0]])
    saved = aligned(edited, c).save(tmp_path / "out", threads=2)
    np.testing.assert_array_equal(Checkpoint.read(saved).array(EMBED), got)
