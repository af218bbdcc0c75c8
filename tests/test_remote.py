"""Models on a hub as inputs: addresses, headers first, the commit in recipes, offline, and what cannot be read."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from loopback_hub import COMMIT, serving

pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed (extra: hf)")

from taskvec.address import Address, is_address, label_of, parse_address
from taskvec.errors import UsageError
from taskvec.weights import Checkpoint

RUN = """
import contextlib, io, json, sys
for name in json.loads(sys.argv[2]):
    sys.modules[name] = None
from taskvec.cli import _run
for arguments in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = _run(arguments)
    print(json.dumps([code, out.getvalue(), err.getvalue()]), file=sys.__stdout__, flush=True)
"""


def run(env, cwd, *commands, without=()):
    """Commands in a process of their own, because the hub's client reads its environment once: [(code, stdout, stderr)]."""
    told = [json.dumps([[str(a) for a in c] for c in commands]), json.dumps(without)]
    done = subprocess.run(
        [sys.executable, "-c", RUN, *told], cwd=cwd, env=os.environ | env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found = [tuple(json.loads(line)) for line in done.stdout.splitlines()]
    assert not any("Traceback" in err or "bug in taskvec" in err for _, _, err in found), found
    return found


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A base, a fine-tuned model in shards, one in a folder of its repository, and what cannot be read."""
    root = tmp_path_factory.mktemp("hub")
    rng = np.random.default_rng(0)
    start = {f"layers.{i}.weight": rng.normal(size=(8, 8)).astype(np.float32) for i in range(4)}
    tuned = {n: w + 0.1 * rng.normal(size=w.shape).astype(np.float32) for n, w in start.items()}
    Checkpoint.of(start).save(root / "base")
    (root / "base" / "config.json").write_text('{"model_type": "bert"}')
    (root / "base" / "vocab.txt").write_text("a\nb\n")
    (root / "base" / "notes.pdf").write_text("large and of no use")
    Checkpoint.of(tuned).save(root / "tuned", shard_size=300)
    Checkpoint.of({n: w + 1 for n, w in start.items()}).save(root / "nested" / "sub")
    (root / "pickled").mkdir()
    (root / "pickled" / "pytorch_model.bin").write_bytes(b"no matter")
    (root / "quantised").mkdir()
    (root / "quantised" / "q4.gguf").write_bytes(b"GGUF")
    (root / "damaged").mkdir()
    (root / "damaged" / "model.safetensors").write_bytes(b"\xff" * 64)
    for path in root.rglob("taskvec.json"):
        path.unlink()
    return {f"org/{p.name}": p for p in root.iterdir()}


EDIT = ("base + 0.5 * (tuned - base)", "--let", "base=hf://org/base", "--let", "tuned=hf://org/tuned@main")


def test_addresses():
    for text in ("hf://org/name", "hf://org/n-1.5@v2", "hf://org/name@refs/pr/1/sub/dir", "hf://org/name@a%2Fb/x.gguf"):
        assert str(parse_address(text)) == str(parse_address(Path(text))) == text and is_address(Path(text))
    assert parse_address("hf://org/name@refs/pr/1/sub/") == Address("org/name", "refs/pr/1", "sub")
    assert parse_address("hf://org/name@a%2Fb").revision == "a/b"
    assert label_of("hf://org/Smol-1.7B@v1") == "Smol-1.7B" and label_of("hf://org/name/q4.gguf") == "q4"
    for text in ("hf://name", "hf://datasets/org/name", "hf://org/name/../x", "hf://org/name@", "hf://"):
        with pytest.raises(UsageError, match="not an address of a model"):
            parse_address(text)
    assert not is_address("org/name") and not is_address("hf/org")


def test_headers_come_first_and_the_commit_is_recorded(models, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("")
    local = [f"--let={n}={models[f'org/{n}']}" for n in ("base", "tuned")]
    with serving(models) as (env, asked):
        env |= {"HF_HOME": str(tmp_path / "cache")}
        (code, out, _), refused = run(env, tmp_path, ("explain", *EDIT, "-o", "out"), ("edit", *EDIT, "-o", "taken"))
        assert code == 0 and "all 4 tensors of base" in out and f"hf://org/base@{COMMIT}" in out and "to fetch" in out
        assert refused[0] == 4 and "taken exists" in refused[2]
        assert not any(a.endswith("-of-00004.safetensors") or a == "org/base/model.safetensors" for a in asked)
        done, verified, by_hand = run(
            env, tmp_path, ("edit", *EDIT, "-o", "out"), ("verify", "out"), ("edit", EDIT[0], *local, "-o", "by-hand")
        )
        assert done[0] == verified[0] == by_hand[0] == 0, (done, verified, by_hand)
        assert "note: fetching hf://org/base" in done[2] and "fetching" not in verified[2]
        assert not any("notes.pdf" in a for a in asked)
        assert len(asked) == len(set(asked)), "a file was fetched twice"
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "README.md", "config.json", "model.safetensors", "taskvec.json", "vocab.txt",
    }  # fmt: skip
    weights = [(tmp_path / n / "model.safetensors").read_bytes() for n in ("out", "by-hand")]
    assert weights[0] == weights[1]
    info = json.loads((tmp_path / "out" / "taskvec.json").read_text())
    assert {i["read"] for i in info["inputs"].values()} == {f"hf://org/{n}@{COMMIT}" for n in ("base", "tuned")}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "- org/base\n- org/tuned\n" in card and f"hf://org/tuned@{COMMIT}" in card
    with serving(models | {"me/out": tmp_path / "out"}) as (again, _):
        ((code, said, err),) = run(env | again, tmp_path, ("verify", "hf://me/out"))
        assert code == 0 and said.startswith("hf://me/out is base + 0.5"), err
    # The hub is gone: what is in the cache is used, and what is not is an error that says so.
    kept, other = run(env, tmp_path, ("edit", *EDIT, "-o", "out", "--overwrite"), ("explain", "hf://org/nested/sub"))
    assert kept[0] == 0 and "cannot reach http://127.0.0.1" in kept[2] and COMMIT in kept[2]
    assert other[0] == 3 and "cannot reach http://127.0.0.1" in other[2] and "not in the cache either" in other[2]
    env |= {"HF_HUB_OFFLINE": "1"}
    verified, other = run(env, tmp_path, ("verify", "out"), ("explain", "hf://org/nested/sub"))
    assert verified[0] == 0 and other[0] == 3 and "HF_HUB_OFFLINE" in other[2]


def test_every_command_that_reads_paths_reads_addresses(models, tmp_path):
    config = "merge_method: linear\nmodels:\n- {model: %s/base, parameters: {weight: 1}}\n- {model: %s/tuned, parameters: {weight: 1}}\ntokenizer_source: %s/base\n"
    (tmp_path / "merge.yml").write_text(config % (("hf://org",) * 3))
    (tmp_path / "bare.yml").write_text(config % (("org",) * 3))
    (tmp_path / "recipe.yml").write_text(
        "recipe: 1\nlet:\n  base: {read: hf://org/base}\n  tuned: {read: hf://org/tuned}\noutput: base + 0.5 * (tuned - base)\n"
    )
    vector = ("--let", "base=hf://org/base", "--let", "moved=hf://org/nested/sub", "--let", "v=v.safetensors")
    with serving(models, ranges=False) as (env, _):
        env |= {"HF_HOME": str(tmp_path / "cache")}
        found = run(
            env,
            tmp_path,
            ("diff", "hf://org/base", "hf://org/tuned", "-o", "v.safetensors", "--json"),
            ("compare", "hf://org/base", "hf://org/tuned", "--json"),
            ("extract-lora", "hf://org/base", "hf://org/tuned", "-o", "lora", "--rank", "8"),
            ("edit", "recipe.yml", "-o", "a"),
            ("edit", "merge.yml", "-o", "b"),
            ("edit", "base + 0.5 * v", *vector, "-o", "c"),
            ("explain", "moved + v", *vector),
        )
        assert [code for code, _, _ in found] == [0] * 7, found
        wrong, bare, onto = run(
            env,
            tmp_path,
            ("edit", "moved + v", *vector, "-o", "d"),
            ("explain", "bare.yml"),
            ("edit", "recipe.yml", "-o", "hf://me/new"),
        )
    assert onto[0] == 2 and "taskvec push" in onto[2] and not (tmp_path / "hf:").exists()
    assert json.loads(found[0][1])["base"] == "hf://org/base"
    assert json.loads(found[1][1])["names"] == ["tuned"]
    assert wrong[0] == 3 and "it was taken from base" in wrong[2] and not (tmp_path / "d").exists()
    assert bare[0] == 3 and "hf://org/base" in bare[2]
    first = (tmp_path / "a" / "model.safetensors").read_bytes()
    assert first == (tmp_path / "c" / "model.safetensors").read_bytes()
    half = Checkpoint.read(tmp_path / "b").arrays()
    for name, value in Checkpoint.read(tmp_path / "a").arrays().items():
        np.testing.assert_allclose(half[name], value, rtol=0, atol=2e-7)
    assert (tmp_path / "b" / "vocab.txt").read_text() == "a\nb\n"


def test_tokenizers_on_the_hub_are_compared_and_aligned_to(tmp_path):
    rng, hub = np.random.default_rng(0), {}
    for name, tokens in (("base", "abc"), ("other", "acb")):
        table = {"embed_tokens.weight": rng.normal(size=(3, 2)), "layers.0.weight": rng.normal(size=(2, 2))}
        hub[f"org/{name}"] = Checkpoint.of({n: x.astype(np.float32) for n, x in table.items()}).save(tmp_path / name)
        (tmp_path / name / "vocab.txt").write_text("".join(f"{t}\n" for t in tokens))
        (tmp_path / name / "tokenizer_config.json").write_text(
            json.dumps({"chat_template": f"{{{{ '{name} says' }}}}"})
        )
    lets = ("--let", "base=hf://org/base", "--let", "other=hf://org/other")
    config = "merge_method: linear\nbase_model: hf://org/base\nmodels:\n- {model: hf://org/base, parameters: {weight: 1}}\n- {model: hf://org/other, parameters: {weight: 1}}\n"
    (tmp_path / "silent.yml").write_text(config)
    (tmp_path / "told.yml").write_text(config + "tokenizer_source: base\nchat_template: auto\n")
    with serving(hub) as (env, _):
        env |= {"HF_HOME": str(tmp_path / "cache")}
        text = "base + 0.5 * (other - base)"
        found = run(
            env, tmp_path, ("explain", text, *lets), ("edit", text, *lets, "-o", "no"), ("edit", "silent.yml", "-o", "no"),
            ("edit", "told.yml", "-o", "told"), ("edit", text, *lets, "-o", "out", "--tokenizer", "base"),
        )  # fmt: skip
    for code, _, err in found[:3]:
        assert code == 3 and "differ in 2 tokens" in err, err
    assert found[3][0] == found[4][0] == 0, found[3:]
    a, b = (Checkpoint.read(tmp_path / n).array("embed_tokens.weight") for n in ("base", "other"))
    for name in ("told", "out"):
        np.testing.assert_allclose(
            Checkpoint.read(tmp_path / name).array("embed_tokens.weight"), (a + b[[0, 2, 1]]) / 2, atol=1e-6
        )
    assert "base says" in (tmp_path / "told" / "chat_template.jinja").read_text()
    assert "chat_template" not in json.loads((tmp_path / "told" / "tokenizer_config.json").read_text())


def test_what_cannot_be_read_is_said_in_words(models, tmp_path):
    wanted = {
        "hf://org/nothing": (3, "does not exist on http"),
        "hf://org/base@v9": (3, "no revision 'v9'"),
        "hf://org/tuned": (3, "is gated: accept its conditions at http"),
        "hf://org/pickled": (3, "no safetensors files. It has 'pytorch_model.bin', and pickles"),
        "hf://org/quantised": (3, f"name the file that is meant: hf://org/quantised@{COMMIT}/q4.gguf"),
        "hf://org/damaged": (3, "announces a header of"),
        "hf://org/nested": (3, f"name one: hf://org/nested@{COMMIT}/sub"),
        "hf://org/nested/sbu": (3, "Did you mean 'sub'?"),
        "hf://base": (2, "expected hf://org/name"),
    }
    with serving(models, gated=["org/tuned"], token="secret") as (env, _):
        env |= {"HF_HOME": str(tmp_path / "cache")}
        found = run(env | {"HF_TOKEN": "secret"}, tmp_path, *[("explain", a) for a in wanted])
        for (address, (code, words)), (got, _, err) in zip(wanted.items(), found, strict=True):
            assert got == code and words in err, (address, err)
            assert len(err.splitlines()) == 1, err
        ((code, _, err),) = run(env, tmp_path, ("explain", "hf://org/base"))
        assert code == 3 and "hf auth login" in err
        ((code, _, err),) = run(env, tmp_path, ("explain", "hf://org/base"), without=["huggingface_hub"])
        assert code == 2 and "pip install 'taskvec[hub]'" in err
