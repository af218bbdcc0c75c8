"""Damaged, lying and malicious checkpoints: one clean error each, with the file's name and what is wrong with it."""

from __future__ import annotations

import json
import os
import resource
import zipfile

import numpy as np
import pytest

from hostile import entry, file_of, sound
from taskvec.errors import InputError, NotACheckpoint
from taskvec.weights import Checkpoint
from taskvec.weights.safetensors import parse_header

DATA = bytes(8)
BAD = {
    "empty": (b"", "only 0 bytes"),
    "seven bytes": (b"1234567", "only 7 bytes"),
    "html": (b"<!DOCTYPE html><html><body>404</body></html>", "HTML"),
    "html after blanks": (b"\n\n  <html><body>login</body></html>          ", "HTML"),
    "lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12\n", "git lfs pull"),
    "zip": (b"PK\x03\x04" + bytes(100), "pickle"),
    "legacy pickle": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03." + bytes(80), "pickle"),
    "header of 2^63 bytes": (file_of({}, length=2**63), "header of 9,223,372,036,854,775,808 bytes"),
    "header of 2^64-1 bytes": (file_of({}, length=2**64 - 1), "announces a header"),
    "header longer than the file": (file_of({}, length=100), "announces a header of 100 bytes"),
    "header of no bytes": (file_of(b""), "not JSON"),
    "not json": (file_of(b"{'w': 1}"), "not JSON"),
    "bad utf-8": (file_of(b'{"\xff": 1}'), "not JSON"),
    "utf-16": (file_of('{"w": 1}'.encode("utf-16")), "not JSON"),
    "array": (file_of([1, 2]), "JSON list"),
    "number": (file_of(b"12"), "JSON int"),
    "null": (file_of(b"null"), "NoneType"),
    "nul padding": (file_of(json.dumps({"w": entry()}).encode() + b"\0\0\0\0", DATA), "not JSON"),
    "5,000 deep": (file_of(b'{"w":' + b"[" * 5000 + b"]" * 5000 + b"}"), "sound"),
    "100,000 deep": (file_of(b"[" * 100_000), "not JSON"),
    "huge number": (file_of(b'{"w":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,8]}}', DATA), "sound"),
    "truncated": (file_of({"w": entry()}, DATA[:-1]), "truncated"),
    "trailing bytes": (file_of({"w": entry()}, DATA + b"x"), "followed by unknown bytes"),
    "hole": (file_of({"w": entry(offsets=[8, 16])}, bytes(16)), "'w' begins at byte 8 of the data, expected 0"),
    "overlap": (file_of({"w": entry(), "v": entry(offsets=[4, 12])}, bytes(12)), "'v' begins at byte 4"),
    "same place twice": (file_of({"w": entry(), "v": entry()}, DATA), "begins at byte 0"),
    "reversed offsets": (file_of({"w": entry(offsets=[8, 0])}, DATA), "offsets span -8"),
    "negative offset": (file_of({"w": entry(offsets=[-8, 0])}, DATA), "whole numbers"),
    "three offsets": (file_of({"w": entry(offsets=[0, 4, 8])}, DATA), "two whole numbers"),
    "float offsets": (file_of({"w": entry(offsets=[0.0, 8.0])}, DATA), "two whole numbers"),
    "true offsets": (file_of({"w": entry(offsets=[False, 8])}, DATA), "two whole numbers"),
    "offsets table": (file_of({"w": entry(offsets={"a": 1})}, DATA), "two whole numbers"),
    "too many values": (file_of({"w": entry(shape=[3])}, DATA), "12 bytes"),
    "2^62 x 2^62": (file_of({"w": entry(shape=[2**62, 2**62])}, DATA), "'w'"),
    "300 x 2^62": (file_of({"w": entry(shape=[2**62] * 300)}, DATA), "'w'"),
    "100 dimensions": (file_of({"w": entry(shape=[1] * 99 + [2])}, DATA), "'w'"),
    "nothing times a lot": (file_of({"w": entry(shape=[0, 2**62, 2**62], offsets=[0, 0])}), "'w'"),
    "2^70": (file_of({"w": entry(shape=[2**70])}, DATA), "whole numbers"),
    "negative shape": (file_of({"w": entry(shape=[-2])}, DATA), "whole numbers"),
    "negative shapes": (file_of({"w": entry(shape=[-2, -1])}, DATA), "whole numbers"),
    "shape text": (file_of({"w": entry(shape="2")}, DATA), "whole numbers"),
    "shape null": (file_of({"w": entry(shape=None)}, DATA), "whole numbers"),
    "shape nan": (file_of(b'{"w":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', DATA), "whole numbers"),
    "duplicate name": (
        file_of(b'{"w":%s,"w":%s}' % ((json.dumps(entry()).encode(),) * 2), DATA), "names 'w' twice"
    ),
    "duplicate field": (file_of(b'{"w":{"dtype":"F32","dtype":"I32","shape":[2],"data_offsets":[0,8]}}', DATA), "twice"),
    "duplicate metadata": (file_of(b'{"__metadata__":{},"__metadata__":{}}'), "twice"),
    "missing field": (file_of({"w": {"dtype": "F32", "shape": [2]}}, DATA), "exactly dtype, shape"),
    "extra field": (file_of({"w": {**entry(), "x": 1}}, DATA), "exactly dtype, shape"),
    "tensor is text": (file_of({"w": "F32"}, DATA), "exactly dtype, shape"),
    "unknown format": (file_of({"w": entry("F31")}, DATA), "unknown number format 'F31'"),
    "complex of 16 bytes": (file_of({"w": entry("C128", [1])}, DATA), "unknown number format 'C128'"),
    "format list": (file_of({"w": entry(["F32"])}, DATA), "unknown number format"),
    "format table": (file_of({"w": entry({})}, DATA), "unknown number format"),
    "format null": (file_of({"w": entry(None)}, DATA), "unknown number format"),
    "lower case": (file_of({"w": entry("f32")}, DATA), "unknown number format 'f32'"),
    "metadata numbers": (file_of({"__metadata__": {"a": 1}}), "__metadata__"),
    "metadata text": (file_of({"__metadata__": "a"}), "__metadata__"),
    "metadata null": (file_of({"__metadata__": None}), "__metadata__"),
    "half a surrogate": (file_of(b'{"\\ud800":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', DATA), "name"),
    "half a surrogate in metadata": (file_of(b'{"__metadata__":{"a":"\\ud800"}}'), "__metadata__"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_file(case, tmp_path, run_cli, untouched):
    data, said = BAD[case]
    good = sound(tmp_path / "good.safetensors")
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(data)
    check = untouched(tmp_path)
    with pytest.raises(NotACheckpoint) as caught:
        Checkpoint.read(bad)
    assert "bad.safetensors" in str(caught.value) and said in str(caught.value)
    assert len(str(caught.value)) < 1000 or "deep" in case or case == "huge number"
    out = tmp_path / "out.safetensors"
    code, stdout, stderr = run_cli("diff", good, bad, "-o", out)
    assert (code, stdout) == (3, "") and stderr.startswith("error: ")
    check()


@pytest.mark.parametrize("length", [640, 640 + 65536, 1024])
def test_any_length_of_a_sound_header_is_accepted(length, tmp_path):
    """The length is the file's first bytes, and can look like the beginning of something else (640 is a pickle's)."""
    text = json.dumps({"w": entry()}).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(file_of(text + b" " * (length - len(text)), DATA))
    assert Checkpoint.read(path).array("w").tolist() == [0, 0]


def test_sound_oddities_are_read(tmp_path):
    header = {
        "__metadata__": {"format": "pt"},
        "later": entry("F32", [], [4, 8]),
        "empty": entry("F32", [0, 5], [4, 4]),
        "ü/../x\x1b[31m<script>": entry("U8", [4], [0, 4]),
        "": entry("BF16", [1, 1, 1], [8, 10]),
        "x" * 1_000_000: entry("F8_E4M3", [2], [10, 12]),
    }
    path = tmp_path / "m.safetensors"
    path.write_bytes(file_of(header, bytes(range(12))))
    point = Checkpoint.read(path)
    assert point.spec["later"].shape == () and point.array("later").shape == ()
    assert point.array("empty").shape == (0, 5)
    assert point.array("ü/../x\x1b[31m<script>").tolist() == [0, 1, 2, 3]
    again = Checkpoint.read(point.save(tmp_path / "again.safetensors"))
    assert again.fingerprint() == point.fingerprint()


def test_many_tensors_are_quick(tmp_path):
    import time

    n = 50_000
    header = {f"layer.{i}.weight": entry("F32", [1], [4 * i, 4 * i + 4]) for i in range(n)}
    path = tmp_path / "m.safetensors"
    path.write_bytes(file_of(header, bytes(4 * n)))
    start = time.process_time()
    assert len(Checkpoint.read(path).names) == n
    assert time.process_time() - start < 5


def test_a_lying_header_length_allocates_nothing(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(file_of({}, length=99_999_999))
    with path.open("r+b") as f:
        f.truncate(50_000_000)  # sparse, and shorter than announced
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(NotACheckpoint):
        Checkpoint.read(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10_000


def test_every_single_byte_change_of_a_small_file():
    """Never a crash; and what is accepted has the names and shapes that its header says, by another reading of it."""
    header = json.dumps(
        {"__metadata__": {"format": "pt"}, "w": entry("F32", [4, 4], [0, 64]), "b": entry("BF16", [8], [64, 80])}
    ).encode()
    whole = file_of(header + b" " * (1024 - 88 - len(header)), bytes(80))
    assert len(whole) == 1024
    rng = np.random.default_rng(0)
    accepted = 0
    for place in range(8 + len(header) + 10):
        for value in {0, 0x20, 0x22, 0x2C, 0x30, 0x39, 0x7B, 0xFF, whole[place] ^ 1, int(rng.integers(256))}:
            changed = bytearray(whole)
            changed[place] = value
            length = int.from_bytes(changed[:8], "little")
            head = bytes(changed[8 : 8 + length])
            if length > len(changed) - 8:
                continue
            try:
                found = parse_header(head, len(changed), "m")
            except NotACheckpoint:
                continue
            accepted += 1
            said = json.loads(head)
            said.pop("__metadata__", None)
            assert {n: list(s.shape) for n, s in found.spec.items()} == {n: e["shape"] for n, e in said.items()}
            assert sum(s.nbytes for s in found.spec.values()) == len(changed) - 8 - length
    assert accepted > 20  # changes inside names and metadata make another sound file


def test_what_we_accept_the_published_reader_accepts(tmp_path):
    safetensors = pytest.importorskip("safetensors")
    ours: list[str] = []
    for case, (data, _) in BAD.items():
        path = tmp_path / "m.safetensors"
        path.write_bytes(data)
        try:
            with safetensors.safe_open(path, framework="np"):
                ours.append(case)
        except Exception:
            continue
    # Where we are stricter on purpose, so that a change there is noticed.
    assert set(ours) <= {
        "duplicate name", "duplicate field", "duplicate metadata", "metadata null", "100 dimensions",
        "extra field", "nothing times a lot", "same place twice", "html after blanks",
    }, ours  # fmt: skip


@pytest.mark.parametrize("kind", ["fifo", "device", "missing", "unreadable folder"])
def test_things_that_are_not_files(kind, tmp_path, run_cli):
    path = tmp_path / "model.safetensors"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "unreadable folder":
        path = tmp_path / "empty"
        path.mkdir()
    with pytest.raises(InputError):
        Checkpoint.read(path)
    assert run_cli("compare", path, path)[0] == 3


def test_a_near_miss_of_a_path_is_suggested(tmp_path, run_cli):
    sound(tmp_path / "cars.safetensors")
    code, _, err = run_cli("explain", tmp_path / "casr.safetensors")
    assert code == 3 and "Did you mean" in err and "cars.safetensors" in err


# --- folders -----------------------------------------------------------------------------------------------------------


def shards(folder, **changes):
    """A folder of two shards with an index, and then what is wrong with it."""
    table = {"a": np.ones(8, np.float32), "b": np.ones(8, np.float32), "c": np.ones(8, np.float32)}
    Checkpoint.of(table, label="m").save(folder, shard_size=64)
    index = folder / "model.safetensors.index.json"
    found = json.loads(index.read_text())
    assert sorted(set(found["weight_map"].values())) == [
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
    ]  # fmt: skip
    found["weight_map"].update(changes)
    index.write_text(json.dumps(found))
    return index


FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.mark.parametrize(
    "target",
    ["../secret.safetensors", "/etc/passwd", "sub/../../secret.safetensors", "a\\b", "x\0y", "", ".", "..", 7, None],
)
def test_an_index_that_points_outside_its_folder(target, tmp_path, run_cli, monkeypatch):
    sound(tmp_path / "secret.safetensors")
    shards(tmp_path / "m", a=target)
    opened: list[str] = []
    real = os.open
    monkeypatch.setattr(
        os, "open", lambda path, *rest, **more: (opened.append(str(path)), real(path, *rest, **more))[1]
    )
    m, out = tmp_path / "m", tmp_path / "o.safetensors"
    for arguments in (("compare", m, m), ("diff", m, m, "-o", out), ("explain", m)):
        code, _, err = run_cli(*arguments)
        assert code == 3 and "plain file name" in err
    assert not any("secret" in p or "passwd" in p for p in opened)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"a": SECOND}, "disagree"),
        ({"extra": FIRST}, "'extra'"),
        ({"a": "model-00003-of-00003.safetensors"}, "missing"),
    ],
)
def test_an_index_that_disagrees(change, said, tmp_path, run_cli):
    shards(tmp_path / "m", **change)
    code, _, err = run_cli("compare", tmp_path / "m", tmp_path / "m")
    assert code == 3 and said in err


def test_an_index_that_leaves_a_tensor_out(tmp_path):
    index = shards(tmp_path / "m")
    found = json.loads(index.read_text())
    del found["weight_map"]["b"]
    index.write_text(json.dumps(found))
    with pytest.raises(NotACheckpoint, match="'b'"):
        Checkpoint.read(tmp_path / "m")


def test_a_tensor_held_by_two_shards(tmp_path):
    shards(tmp_path / "m")
    sound(tmp_path / "m" / SECOND.replace("m", "n", 1), {"x": np.ones(1, np.float32)})
    (tmp_path / "m" / SECOND.replace("m", "n", 1)).unlink()
    table = {**Checkpoint.read(tmp_path / "m" / SECOND).arrays(), "a": np.zeros(8, np.float32)}
    (tmp_path / "m" / SECOND).unlink()
    sound(tmp_path / "m" / SECOND, table)
    with pytest.raises(NotACheckpoint, match="'a'"):
        Checkpoint.read(tmp_path / "m")


def test_an_index_that_names_a_tensor_twice(tmp_path):
    index = shards(tmp_path / "m")
    index.write_text(index.read_text().replace('"a":', f'"a": "{SECOND}", "a":', 1))
    with pytest.raises(NotACheckpoint, match="twice"):
        Checkpoint.read(tmp_path / "m")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "[" * 5000, "\udc80", '{"weight_map": 3}']
)
def test_an_index_that_is_none(text, tmp_path):
    index = shards(tmp_path / "m")
    index.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(NotACheckpoint):
        Checkpoint.read(tmp_path / "m")


def test_a_missing_shard_and_a_stale_single_file(tmp_path, run_cli):
    shards(tmp_path / "m")
    sound(tmp_path / "m" / "model.safetensors")
    code, _, err = run_cli("compare", tmp_path / "m", tmp_path / "m")
    assert code == 3 and "stale" in err
    (tmp_path / "m" / "model.safetensors").unlink()
    (tmp_path / "m" / FIRST).unlink()
    out = tmp_path / "out.safetensors"
    code, _, err = run_cli("diff", tmp_path / "m", tmp_path / "m", "-o", out)
    assert code == 3 and FIRST in err and not out.exists()


def test_a_folder_with_several_files_and_no_index(tmp_path):
    (tmp_path / "m").mkdir()
    sound(tmp_path / "m" / "a.safetensors")
    sound(tmp_path / "m" / "b.safetensors")
    with pytest.raises(NotACheckpoint, match="no index"):
        Checkpoint.read(tmp_path / "m")


def test_links(tmp_path):
    """A shard that leaves the folder is refused; the layout of the Hugging Face cache is not leaving."""
    shards(tmp_path / "m")
    outside = tmp_path / "outside.safetensors"
    (tmp_path / "m" / FIRST).rename(outside)
    (tmp_path / "m" / FIRST).symlink_to(outside)
    with pytest.raises(NotACheckpoint, match="leaves the folder"):
        Checkpoint.read(tmp_path / "m")
    hub = tmp_path / "models--x--y"
    (hub / "snapshots").mkdir(parents=True)
    (hub / "blobs").mkdir()
    (tmp_path / "m" / FIRST).unlink()
    outside.rename(tmp_path / "m" / FIRST)
    (tmp_path / "m").rename(hub / "snapshots" / "abc")
    for i, file in enumerate(list((hub / "snapshots" / "abc").iterdir())):
        file.rename(hub / "blobs" / str(i))
        file.symlink_to(f"../../blobs/{i}")
    assert Checkpoint.read(hub / "snapshots" / "abc").names == ("a", "b", "c")


# --- pickles -----------------------------------------------------------------------------------------------------------


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_would_run_a_command(legacy, tmp_path, torch, run_cli):
    marker = tmp_path / "marker"
    path = tmp_path / "m.pt"
    torch.save({"w": torch.ones(2), "x": Malicious(marker)}, path, _use_new_zipfile_serialization=not legacy)
    code, _, err = run_cli("compare", path, path)
    assert code == 3 and "never executed" in err
    assert not marker.exists()


@pytest.mark.parametrize(
    "case", ["truncated", "flipped", "bomb", "noise", "empty", "list", "numbers", "sparse", "complex", "meta"]
)
def test_pickles_that_are_no_checkpoints(case, tmp_path, torch, run_cli):
    path = tmp_path / "m.pt"
    torch.save({"w": torch.arange(4000.0)}, path)
    data = path.read_bytes()
    if case == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif case == "flipped":
        at = data.index(torch.arange(4000.0).numpy().tobytes()) + 400
        path.write_bytes(data[:at] + bytes([data[at] ^ 64]) + data[at + 1 :])
    elif case == "bomb":
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "n.pt", "w", zipfile.ZIP_DEFLATED) as new:
            for item in old.namelist():
                body = old.read(item)
                new.writestr(item, bytes(50_000_000) if item.endswith("data/0") else body)
        (tmp_path / "n.pt").rename(path)
    elif case == "noise":
        path.write_bytes(np.random.default_rng(0).bytes(1000))
    elif case == "empty":
        path.write_bytes(b"")
    else:
        value = {
            "list": [torch.ones(2)],
            "numbers": {"w": 3.0},
            "sparse": {"w": torch.eye(3).to_sparse()},
            "complex": {"w": torch.ones(2, dtype=torch.complex128)},
            "meta": {"w": torch.ones(2, device="meta")},
        }[case]
        torch.save(value, path)
    with pytest.raises(InputError, match="m"):
        Checkpoint.read(path)
    assert run_cli("compare", path, path)[0] == 3


def test_an_index_of_pickles_that_disagrees(tmp_path, torch):
    (tmp_path / "m").mkdir()
    torch.save({"a": torch.ones(2)}, tmp_path / "m" / "pytorch_model-00001-of-00002.bin")
    torch.save({"a": torch.zeros(2)}, tmp_path / "m" / "pytorch_model-00002-of-00002.bin")
    index = {"weight_map": {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}}
    (tmp_path / "m" / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(NotACheckpoint, match="disagree"):
        Checkpoint.read(tmp_path / "m")


def test_an_old_torch_is_refused(tmp_path, torch, monkeypatch, run_cli):
    path = tmp_path / "m.pt"
    torch.save({"w": torch.ones(2)}, path)
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    code, _, err = run_cli("compare", path, path)
    assert code == 2 and "CVE" in err and "convert" in err
