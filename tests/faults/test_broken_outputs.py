"""A bit that flips in an output or an input is found by `taskvec verify`, which names the tensor; the same edit repairs it."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from harness import content, edit, models

from taskvec.weights import Checkpoint
from taskvec.weights.safetensors import SafetensorsFile

FLIPS = 64


@pytest.fixture(params=["out", "out.safetensors"])
def made(request, tmp_path, run_cli):
    """The output of an edit, its inputs and the command that made it."""
    inputs, out = models(tmp_path), tmp_path / request.param
    arguments = edit(inputs, out)
    assert run_cli(*arguments)[0] == 0
    assert run_cli("verify", out)[0] == 0
    return out, inputs, arguments


def weights(out: Path) -> list[Path]:
    return sorted(out.glob("*.safetensors")) if out.is_dir() else [out]


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def tensor_at(path: Path, byte: int) -> str | None:
    """The tensor that holds this byte of the file; None in the header."""
    header = SafetensorsFile(path, "m").header
    for name, begin in header.offset.items():
        if begin <= byte < begin + header.spec[name].nbytes:
            return name
    return None


def record(out: Path) -> dict[str, object]:
    """What an output says of itself, without what says nothing about the weights: versions, and the inputs' file names."""
    text = (out / "taskvec.json").read_text() if out.is_dir() else SafetensorsFile(out, "m").header.metadata["taskvec"]
    info = json.loads(text)
    inputs = {n: (i["fingerprint"], sorted(i["sha256"].values())) for n, i in info["inputs"].items()}
    return {**info, "taskvec": None, "numpy": None, "inputs": inputs}


def test_a_bit_flipped_in_a_tensor_is_named(made, run_cli):
    out, _, _ = made
    chance, seen = random.Random(0), set()
    for _ in range(FLIPS):
        path = chance.choice(weights(out))
        first = min(SafetensorsFile(path, "m").header.offset.values())
        bit = chance.randrange(8 * first, 8 * path.stat().st_size)
        name = tensor_at(path, bit // 8)
        flip(path, bit)
        code, stdout, err = run_cli("verify", out)
        assert code == 5 and stdout == "" and repr(name) in err, (bit, err)
        others = set(Checkpoint.read(out).names) - {name}
        assert not any(repr(other) in err for other in others), err
        code, stdout, _ = run_cli("verify", out, "--json")
        found = json.loads(stdout)
        assert code == 5 and found["ok"] is False and [d["name"] for d in found["differences"]] == [name]
        assert found["differences"][0]["values"] == 1
        flip(path, bit)
        seen.add(name)
    assert len(seen) == 5, "all tensors had their turn"
    assert run_cli("verify", out)[0] == 0


def test_a_bit_flipped_in_a_header_or_a_side_file_is_found(made, run_cli):
    """Never passed over: another name, shape or format, a file that is not sound, or a record that does not hold."""
    out, _, _ = made
    chance, silent, said = random.Random(1), [], record(out)
    files = [out] if out.is_file() else sorted(out.iterdir())
    for _ in range(FLIPS):
        path = chance.choice(files)
        length = (
            min(SafetensorsFile(path, "m").header.offset.values())
            if path.suffix == ".safetensors"
            else path.stat().st_size
        )
        bit = chance.randrange(8 * length)
        flip(path, bit)
        code, _, err = run_cli("verify", out)
        assert code in (0, 2, 3, 5), (path.name, bit, err)
        if code == 0 and record(out) != said:
            silent.append((path.name, path.read_bytes()[max(0, bit // 8 - 30) : bit // 8 + 10]))
        flip(path, bit)
    assert not silent, silent
    assert run_cli("verify", out)[0] == 0


def test_a_bit_flipped_in_an_input_is_found(made, run_cli):
    out, (base, tuned), _ = made
    chance = random.Random(2)
    for _ in range(8):
        path = chance.choice([*weights(base), *weights(tuned)])
        bit = chance.randrange(8 * min(SafetensorsFile(path, "m").header.offset.values()), 8 * path.stat().st_size)
        flip(path, bit)
        code, _, err = run_cli("verify", out)
        assert code in (3, 5) and path.name in err, err
        flip(path, bit)
    assert run_cli("verify", out)[0] == 0


def test_the_same_edit_repairs_what_is_damaged(made, run_cli):
    out, _, arguments = made
    whole = content(out)
    flip(weights(out)[0], 8 * (weights(out)[0].stat().st_size - 1))
    assert run_cli("verify", out)[0] == 5
    assert run_cli(*arguments, "--overwrite")[0] == 0
    assert content(out) == whole and run_cli("verify", out)[0] == 0


@pytest.mark.parametrize(
    "what", ["a tensor is gone", "a tensor more", "a shard is gone", "another file", "another model"]
)
def test_other_damage(what, made, run_cli):
    out, (base, _), _ = made
    if what == "another model":
        code, _, err = run_cli("verify", base)  # written by taskvec, from arrays in memory
        assert code in (3, 5) and err, err
        return
    if what == "another file":
        other = out.with_name("plain.safetensors")
        other.write_bytes(b"\x02\0\0\0\0\0\0\0{}")
        code, _, err = run_cli("verify", other)
        assert code == 3 and "recipe" in err
        return
    if out.is_file():
        pytest.skip("a folder's case")
    if what == "a shard is gone":
        weights(out)[0].unlink()
        assert run_cli("verify", out)[0] == 3
        return
    table = dict(Checkpoint.read(out).arrays())
    record = (out / "taskvec.json").read_bytes()
    if what == "a tensor is gone":
        table.pop("layer.2.weight")
    else:
        table["layer.9.weight"] = table["layer.2.weight"]
    for file in list(out.iterdir()):
        file.unlink()
    Checkpoint.of(table, label="m").save(out)
    (out / "taskvec.json").write_bytes(record)
    code, _, err = run_cli("verify", out)
    assert code == 5 and ("layer.2.weight" in err or "layer.9.weight" in err), err
