"""Pushing an output: what goes up, what is refused, and that what came up is what went."""

import json

import numpy as np
import pytest

from loopback_hub import COMMIT, serving
from test_remote import run

pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed (extra: hf)")

from taskvec.errors import CheckFailed, InputError, UsageError
from taskvec.interop.push import planned
from taskvec.weights import Checkpoint


@pytest.fixture
def out(tmp_path):
    rng = np.random.default_rng(0)
    base = Checkpoint.of({f"w{i}": rng.normal(size=(8, 8)).astype(np.float32) for i in range(4)}, label="base")
    tuned = Checkpoint.of({n: 2 * w for n, w in base.arrays().items()}, label="tuned")
    edited = base + 0.5 * (tuned - base)
    edited.save(tmp_path / "out", card=True, beside={"vocab.txt": b"a\n"})
    edited.save(tmp_path / "shards", shard_size=300)
    (tuned - base).save(tmp_path / "v.safetensors")
    (tmp_path / "out" / ".cache").mkdir()
    (tmp_path / "out" / ".cache" / "note").write_text("hidden")
    return tmp_path


def test_what_goes_up_is_what_is_there(out):
    with serving({}, into=out / "hub", token="secret") as (env, _):
        env |= {"HF_HOME": str(out / "cache"), "HF_TOKEN": "secret"}
        dry, first, other, replaced, branch, vector, read = run(
            env,
            out,
            ("push", "out", "me/edited", "--dry-run"),
            ("push", "out", "me/edited", "--private", "-m", "the first"),
            ("push", "shards", "me/edited"),
            ("push", "shards", "me/edited", "--overwrite", "--json"),
            ("push", "out", "hf://me/edited", "--branch", "trial"),
            ("push", "v.safetensors", "me/vector"),
            ("diff", "out", f"hf://me/edited@{COMMIT}", "-o", "nothing.safetensors", "--json"),
        )
        assert dry[0] == 0 and "5 files" not in dry[1] and "4 files" in dry[1] and "model.safetensors" in dry[1]
        assert ".cache" not in dry[1]
        assert first[0] == 0 and f"{env['HF_ENDPOINT']}/me/edited" in first[1] and COMMIT in first[1]
        assert other[0] == 4 and "other weights ('model.safetensors')" in other[2]
        assert replaced[0] == 0 and json.loads(replaced[1])["url"] == f"{env['HF_ENDPOINT']}/me/edited"
        assert branch[0] == vector[0] == 0 and "/tree/trial" in branch[1]
        assert read[0] == 0 and json.loads(read[1])["norm"] == 0
        ((code, _, err),) = run(env | {"HF_TOKEN": "wrong"}, out, ("push", "out", "me/other"))
        assert code == 3 and "hf auth login" in err
    hub = out / "hub" / "me"
    held = {p.name for p in (hub / "edited").iterdir() if not p.name.startswith(".")}
    assert held == {p.name for p in (out / "shards").iterdir()} | {"README.md", "vocab.txt"}
    assert (hub / "edited" / ".private").read_text() == "True"
    for name in ("README.md", "vocab.txt", "model.safetensors", "taskvec.json"):
        assert (hub / "edited@trial" / name).read_bytes() == (out / "out" / name).read_bytes()
    assert (hub / "vector" / "v.safetensors").read_bytes() == (out / "v.safetensors").read_bytes()


def damage_values(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-1])


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (damage_values, "truncated"),
        (lambda f: (f / "taskvec.json").unlink(), "carries no recipe"),
        (lambda f: (f / "taskvec.json").write_text("{}"), "damaged"),
        (lambda f: (f / "vocab.txt").write_text("b\n"), "vocab.txt is not the recorded one"),
        (lambda f: (f / "vocab.txt").unlink(), "vocab.txt is missing"),
        (lambda f: (f / "model.safetensors").unlink(), "holds no weights"),
    ],
)
def test_a_broken_output_is_refused_unless_forced(out, harm, words):
    assert planned(out / "out", "me/edited").files["vocab.txt"] == 2
    harm(out / "out")
    with pytest.raises(CheckFailed, match=words):
        planned(out / "out", "me/edited")
    assert planned(out / "out", "me/edited", force=True).files


def test_a_missing_shard_is_refused(out):
    next((out / "shards").glob("*-00002-of-*")).unlink()
    with pytest.raises(CheckFailed, match="missing"):
        planned(out / "shards", "me/edited")


def test_what_is_no_output_or_no_repository_is_said(out, run_cli):
    for repo in ("edited", "me/edited/sub", "datasets/me/x"):
        with pytest.raises(UsageError):
            planned(out / "out", repo)
    with pytest.raises(InputError, match="no output to push"):
        planned(out / "none", "me/edited")
    (out / "out" / "link.txt").symlink_to(out / "v.safetensors")
    with pytest.raises(InputError, match="link that leaves the folder"):
        planned(out / "out", "me/edited")
    assert run_cli("push", out / "out", "me/edited", "--dry-run")[0] == 3
