"""`verify` computes an output again: whole outputs pass, any change is named."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from taskvec.errors import InputError, NotACheckpoint, UnknownName, UsageError
from taskvec.verify import verify
from taskvec.weights import Checkpoint, execute

EDITS = ["base + 0.5 * (a - base)", "base + 0.7 * ties([a - base, b - base])", "base + dare([a - base], density=0.5)",
         "base - restrict(a - base, 'w1*') / 3", "a - base"]  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(execute, "BLOCK", 500)
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("base", "a", "b")):
        rng = np.random.default_rng(seed)
        table = {f"w{i}": rng.normal(size=(30, 40)).astype(ml_dtypes.bfloat16) for i in range(12)}
        Checkpoint.of({**table, "steps": np.array([1, 2])}).save(name)
    (tmp_path / "base" / "config.json").write_text('{"dtype": "bfloat16"}')
    return tmp_path


LETS = [x for n in ("base", "a", "b") for x in ("--let", f"{n}={n}")]


def made(run_cli: Callable[..., tuple[int, str, str]], edit: str, *options: str) -> Path:
    out = Path("out.safetensors" if edit == "a - base" else "out")
    lets = [
        x for n in ("base", "a", "b") if n in edit.split("[", 1)[-1] or f"{n} " in edit for x in ("--let", f"{n}={n}")
    ]
    code, _, err = run_cli("edit", edit, *lets, "-o", out, *options)
    assert code == 0, err
    return out


@pytest.mark.parametrize("edit", EDITS)
def test_a_whole_output_passes(edit, here, run_cli):
    out = made(run_cli, edit)
    code, said, err = run_cli("verify", out)
    assert code == 0 and "every byte" in said, err
    code, said, _ = run_cli("verify", out, "--json", "--sample", "0.1")
    found = json.loads(said)
    assert code == 0 and found["ok"] and 0 < found["share"] < 1


def test_formats_and_shards(here, run_cli):
    out = made(run_cli, EDITS[0], "--dtype", "float16", "--shard-size", "10kB")
    assert run_cli("verify", out)[0] == 0
    (out / "config.json").write_text('{"dtype": "bfloat16"}')
    code, _, err = run_cli("verify", out)
    assert code == 5 and "config.json" in err


def test_every_flipped_bit_is_found_in_its_tensor(here, run_cli):
    out = made(run_cli, EDITS[1])
    file = out / "model.safetensors"
    point = Checkpoint.read(out)
    source = point.node.source
    assert source is not None
    header = json.loads(file.read_bytes()[8 : 8 + int.from_bytes(file.read_bytes()[:8], "little")])
    start = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    rng = np.random.default_rng(0)
    whole = file.read_bytes()
    for _ in range(64):
        at = int(rng.integers(start, len(whole)))
        broken = bytearray(whole)
        broken[at] ^= 1 << int(rng.integers(8))
        file.write_bytes(broken)
        name = next(
            n for n, e in header.items()
            if n != "__metadata__" and e["data_offsets"][0] <= at - start < e["data_offsets"][1]
        )  # fmt: skip
        found = verify(out)
        assert [d.name for d in found.differences] == [name] and not found.problems
        entry = header[name]["data_offsets"]
        assert found.differences[0].first == (at - start - entry[0]) // (8 if name == "steps" else 2)
    file.write_bytes(whole)
    assert verify(out).ok


def test_a_changed_input_is_named(here, run_cli):
    out = made(run_cli, EDITS[0])
    file = here / "a" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-17] ^= 0x80  # the sign of the last value before the two counters
    file.write_bytes(data)
    code, _, err = run_cli("verify", out)
    assert code == 5 and "the input a changed" in err and "model.safetensors" in err and "1 values differ" in err


def test_inputs_that_moved(here, run_cli):
    out = made(run_cli, EDITS[0])
    (here / "a").rename(here / "elsewhere")
    code, _, err = run_cli("verify", out)
    assert code == 3 and "--let a=PATH" in err
    assert run_cli("verify", out, "--let", "a=elsewhere")[0] == 0
    assert run_cli("verify", out, "--let", "aa=elsewhere")[0] == 2
    with pytest.raises(UnknownName):
        verify(out, inputs={"c": "a"})
    os.chdir("/")
    assert verify(here / "out", inputs={"a": here / "elsewhere"}).ok
    shutil.copytree(here / "b", here / "a")  # of that name, but another model
    code, _, err = run_cli("verify", here / "out")
    assert code == 5 and "the input a changed" in err


def test_what_is_no_output(here, run_cli):
    made(run_cli, EDITS[0])
    assert run_cli("verify", "base")[0] == 3  # made of arrays in memory
    Path("out/taskvec.json").write_text('{"expression": "base", "inputs": {"base": {"read": "../x"}}}')
    with pytest.raises(NotACheckpoint, match="damaged"):
        verify("out")
    Path("out/taskvec.json").unlink()
    with pytest.raises(NotACheckpoint, match="no recipe"):
        verify("out")
    assert run_cli("verify", "nowhere")[0] == 3
    with pytest.raises(UsageError):
        verify("out", sample=2)


@pytest.mark.parametrize("place", ["../secret", "/etc", "..", "."])
def test_a_recipe_cannot_point_anywhere(place, here, run_cli):
    out = made(run_cli, EDITS[0])
    info = json.loads((out / "taskvec.json").read_text())
    info["inputs"]["a"]["read"] = place
    (out / "taskvec.json").write_text(json.dumps(info))
    with pytest.raises(InputError, match="cannot find a"):
        verify(out)


def test_another_table_of_tensors(here, run_cli):
    out = made(run_cli, EDITS[0])
    point = Checkpoint.read(out)
    table = {n: point.array(n) for n in point.names if n != "w3"} | {"more": np.zeros(2, np.float32)}
    table["w4"] = table["w4"].astype(np.float32)
    info = (out / "taskvec.json").read_text()
    shutil.rmtree(out)
    Checkpoint.of(table).save(out)
    (out / "taskvec.json").write_text(info)
    shutil.copy(here / "base" / "config.json", out)
    found = verify(out)
    said = " ".join(found.problems)
    assert "'w3'" in said and "'more'" in said and "'w4' is F32" in said and not found.differences


def test_masks_that_are_not_finite(here, run_cli):
    for name in ("m", "n"):
        Checkpoint.of({"w": np.ones(4, np.float32), "mask": np.full(2, -np.inf, np.float32)}).save(
            name, on_nonfinite="allow"
        )
    lets = ["--let", "m=m", "--let", "n=n"]
    assert run_cli("edit", "m + restrict(n - m, 'w')", *lets, "-o", "o", "--allow-nonfinite")[0] == 0
    assert run_cli("verify", "o")[0] == 0


def test_recorded_places_are_relative(here, run_cli):
    made(run_cli, EDITS[0])
    assert str(here) not in Path("out/taskvec.json").read_text()
