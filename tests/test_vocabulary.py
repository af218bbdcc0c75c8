"""Vocabularies: reading them, aligning rows by token, tokenizers that match their embeddings, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taskvec.weights import Checkpoint, aligned
from taskvec.weights.vocabulary import read_vocabulary

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
