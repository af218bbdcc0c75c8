"""The command line as a user meets it: outputs, JSON, exit codes, one-line errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from taskvec import Checkpoint, TaskVector
from taskvec.cli import _run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a base, two fine-tuned models of it and an unrelated one."""
    rng = np.random.default_rng(0)
    base = {f"layers.{i}.attn.weight": rng.normal(size=(6, 5)).astype(np.float32) for i in range(2)}
    base |= {"embed.weight": rng.normal(size=(7, 5)).astype(np.float32), "steps": np.array([3, 4])}
    floats = [n for n in base if n != "steps"]
    models = {"base": base}
    for name in ("cars", "dtd"):
        models[name] = base | {n: base[n] + 0.1 * rng.normal(size=base[n].shape).astype(np.float32) for n in floats}
    models["alien"] = base | {n: rng.normal(size=base[n].shape).astype(np.float32) for n in floats}
    models["headed"] = {f"model.{n}": models["cars"][n] for n in floats} | {"head.weight": np.ones((2, 5), np.float32)}
    for name, weights in models.items():
        Checkpoint.of(weights, label=name).save(tmp_path / name)
    (tmp_path / "base" / "config.json").write_text('{"model_type": "test"}')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ok(*arguments: str) -> None:
    assert _run(list(arguments)) == 0


def fails(capsys: pytest.CaptureFixture[str], code: int, *arguments: str) -> str:
    """Run a command that must fail with this exit code and one line on stderr; returns the line."""
    capsys.readouterr()
    assert _run(list(arguments)) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines()[-1].startswith("error: ") or said.err.startswith("error: ")
    assert all(line.startswith("note: ") for line in said.err.split("error: ", 1)[0].splitlines())
    assert "Traceback" not in said.err
    return said.err


LETS = ("--let", "base=base", "--let", "cars=cars", "--let", "dtd=dtd")


def test_diff_edit_and_compare_agree_with_numpy(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ok("diff", "base", "cars", "-o", "cars.safetensors")
    ok("diff", "base", "dtd", "-o", "dtd.safetensors", "--json")
    document = json.loads(capsys.readouterr().out.split("\n", 1)[1])
    assert document["schema_version"] == 1 and document["command"] == "diff" and document["tensors"] == 3
    lets = ("--let", "base=base", "--let", "cars=cars.safetensors", "--let", "dtd=dtd.safetensors")
    ok("edit", "base + 0.4 * (cars + dtd)", *lets, "-o", "out")
    name = "layers.0.attn.weight"
    base, cars, dtd, out = (Checkpoint.read(n).array(name) for n in ("base", "cars", "dtd", "out"))
    np.testing.assert_allclose(out, base + 0.4 * ((cars - base) + (dtd - base)), rtol=0, atol=3e-7)
    assert Checkpoint.read("out").array("steps").tolist() == [3, 4]
    assert json.loads(Path("out/config.json").read_text()) == {"model_type": "test"}
    capsys.readouterr()
    ok("compare", "cars.safetensors", "dtd.safetensors", "--json", "--by", "layer")
    found = json.loads(capsys.readouterr().out)
    vector = TaskVector.read("cars.safetensors")
    assert found["groups"][0]["norms"][0] == pytest.approx(vector.norm(), rel=1e-12)
    assert [g["name"] for g in found["groups"]] == ["model", "layers.0", "layers.1", "embed"]


def test_recipe_file_gives_what_the_expression_gives(here: Path) -> None:
    Path("r.yaml").write_text(
        "recipe: 1\nlet:\n  base: {read: base}\n  cars: {read: cars}\n  tau: cars - base\n"
        "output: base - 0.5 * tau\ndtype: bfloat16\n"
    )
    ok("edit", "r.yaml", "-o", "one")
    ok("edit", "base - 0.5 * (cars - base)", *LETS, "-o", "two", "--dtype", "bf16")
    one, two = Checkpoint.read("one"), Checkpoint.read("two")
    assert one.array("embed.weight").dtype == ml_dtypes.bfloat16
    assert all(np.array_equal(one.array(n), two.array(n)) for n in one.names)


def test_shared_edits_what_both_have_and_says_what_was_left_out(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = fails(capsys, 3, "diff", "base", "headed", "-o", "v.safetensors")
    assert "4 names only in headed" in text and "3 only in base" in text and "--shared" in text
    ok("diff", "base", "headed", "-o", "v.safetensors", "--shared")
    said = capsys.readouterr().err
    assert "3 tensors of headed match base" in said and "'head.weight'" in said and "'model.'" in said
    ok("diff", "base", "cars", "-o", "w.safetensors")
    a, b = TaskVector.read("v.safetensors"), TaskVector.read("w.safetensors")
    assert all(np.array_equal(a.array(n), b.array(n)) for n in a.names)


def test_explain_reads_headers_only_and_prints_the_plan(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ok("explain", "base + 0.7 * ties([cars - base, dtd - base], density=0.2)", *LETS)
    said = capsys.readouterr().out
    assert "base + 0.7 * ties([cars - base, dtd - base], density=0.2)" in said
    assert "3 passes" in said and "elect(trim(" in said
    ok("edit", "base + 0.5 * (cars - base)", *LETS, "--dry-run", "--json")
    plan = json.loads(capsys.readouterr().out)
    assert plan["passes"] == 1 and plan["bytes_to_write"] == 4 * (30 + 30 + 35) + 16


def test_unrelated_base_is_noted(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ok("diff", "base", "alien", "-o", "v.safetensors")
    assert "are these really a model and its base?" in capsys.readouterr().err
    ok("diff", "base", "cars", "-o", "w.safetensors")
    assert "really" not in capsys.readouterr().err


def test_an_edit_as_large_as_the_base_is_noted(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ok("edit", "base + 500 * (cars - base)", *LETS, "-o", "far")
    assert "the edit moves base by" in capsys.readouterr().err
    ok("edit", "base + 0.5 * (cars - base)", *LETS, "-o", "near")
    assert "the edit moves" not in capsys.readouterr().err


def test_vectors_of_another_base_are_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ok("diff", "base", "cars", "-o", "cars.safetensors")
    text = fails(capsys, 3, "edit", "x + v", "--let", "x=alien", "--let", "v=cars.safetensors", "-o", "out")
    assert "it was taken from base" in text and "rebase" in text
    assert not Path("out").exists()
    ok("edit", "x + rebase(v, x)", "--let", "x=alien", "--let", "v=cars.safetensors", "-o", "out")


@pytest.mark.parametrize(
    ("code", "expects", "arguments"),
    [
        (3, "does not exist. Did you mean cars?", ("diff", "base", "carz", "-o", "v.safetensors")),
        (3, "not a safetensors file: only 5 bytes", ("diff", "base", "short.safetensors", "-o", "v.safetensors")),
        (3, "git lfs pull", ("explain", "lfs.safetensors")),
        (3, "holds no weights", ("diff", "base", "empty", "-o", "v.safetensors")),
        (2, "Did you mean 'ties'?", ("edit", "base + tiez([cars - base])", *LETS, "-o", "out")),
        (2, "Did you mean 'density'?", ("edit", "base + ties([cars - base], densty=0.2)", *LETS, "-o", "out")),
        (2, "must lie in (0, 1]", ("edit", "base + ties([cars - base], density=20)", *LETS, "-o", "out")),
        (2, "Did you mean 'cars'?", ("edit", "base + 0.4 * (car - base)", *LETS, "-o", "out")),
        (2, "cannot read the expression", ("edit", "base + 0.4 *", *LETS, "-o", "out")),
        (2, "base + (cars - base)", ("edit", "base + cars", *LETS, "-o", "out")),
        (2, "cannot multiply the checkpoint", ("edit", "0.5 * base", *LETS, "-o", "out")),
        (2, "finite", ("edit", "base + 1e400 * (cars - base)", *LETS, "-o", "out")),
        (2, "cannot stand in an expression", ("edit", "base.__class__", *LETS, "-o", "out")),
        (2, "--let takes NAME=PATH", ("edit", "base", "--let", "base", "-o", "out")),
        (2, "unknown number format", ("edit", "base + (cars - base)", *LETS, "-o", "out", "--dtype", "bf17")),
        (2, "is not a size", ("edit", "base + (cars - base)", *LETS, "-o", "out", "--shard-size", "inf")),
        (2, "is not a size", ("edit", "base + (cars - base)", *LETS, "-o", "out", "--shard-size", "0")),
        (2, "patterns of names in quotes", ("edit", "base + restrict(cars - base, base)", *LETS, "-o", "out")),
        (2, "name the output with -o", ("edit", "base + (cars - base)", *LETS)),
        (2, "is an input", ("edit", "base + (cars - base)", *LETS, "-o", "base", "--overwrite")),
        (4, "--overwrite", ("edit", "base + (cars - base)", *LETS, "-o", "dtd")),
        (4, "was not written by taskvec", ("edit", "base + (cars - base)", *LETS, "-o", "foreign", "--overwrite")),
        (2, "pickles are read but not written", ("edit", "base + (cars - base)", *LETS, "-o", "out.pt")),
        (2, "Did you mean 'ties'?", ("methods", "tie")),
        (2, "Did you mean 'edit'?", ("edti", "x")),
        (3, "no results in empty", ("report", "empty")),
        (2, "Did you mean 'output'?", ("edit", "typo.yaml", "-o", "out")),
        (2, "is given twice", ("edit", "twice.yaml", "-o", "out")),
        (2, "refers to itself", ("edit", "loop.yaml", "-o", "out")),
        (3, "cannot read the recipe", ("edit", "absent.yaml", "-o", "out")),
    ],
    ids=lambda v: v[0] + "-" + v[1][:20] if isinstance(v, tuple) else None,
)
def test_bad_input_is_one_line_and_leaves_nothing(
    here: Path, capsys: pytest.CaptureFixture[str], code: int, expects: str, arguments: tuple[str, ...]
) -> None:
    (here / "short.safetensors").write_bytes(b"12345")
    (here / "lfs.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (here / "empty").mkdir()
    (here / "foreign").mkdir()
    (here / "foreign" / "thesis.txt").write_text("keep me")
    (here / "typo.yaml").write_text("recipe: 1\nlet: {base: {read: base}}\noutptu: base\n")
    (here / "twice.yaml").write_text("recipe: 1\noutput: a\noutput: b\n")
    (here / "loop.yaml").write_text("recipe: 1\nlet: {a: b, b: a}\noutput: a\n")
    before = sorted(p for p in here.rglob("*"))
    assert expects in fails(capsys, code, *arguments)
    assert sorted(p for p in here.rglob("*")) == before


def test_nan_in_an_input_is_named_and_nothing_is_written(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = Checkpoint.read("cars").arrays()
    bad["embed.weight"][2, 3] = np.nan
    from safetensors.numpy import save_file

    save_file({n: np.ascontiguousarray(a) for n, a in bad.items()}, here / "bad.safetensors")
    text = fails(
        capsys, 3, "edit", "base + (bad - base)", "--let", "base=base", "--let", "bad=bad.safetensors", "-o", "out"
    )
    assert "'embed.weight'" in text and "non-finite" in text and "bad" in text
    assert not (here / "out").exists() and not list(here.glob(".out*"))


def test_full_disk_is_known_before_work_begins(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 90, 10))
    assert "the disk has 10 bytes free" in fails(capsys, 4, "edit", "base + (cars - base)", *LETS, "-o", "out")


def test_overwrite_replaces_only_when_complete(here: Path) -> None:
    ok("edit", "base + (cars - base)", *LETS, "-o", "out")
    first = Checkpoint.read("out").array("embed.weight")
    ok("edit", "base + (dtd - base)", *LETS, "-o", "out", "--overwrite")
    second = Checkpoint.read("out").array("embed.weight")
    assert not np.array_equal(first, second)
    files = ["README.md", "config.json", "model.safetensors", "taskvec.json"]
    assert sorted(p.name for p in Path("out").iterdir()) == files
    assert not [p for p in here.iterdir() if p.name.startswith(".")]


def test_shards_read_back_equal(here: Path) -> None:
    ok("edit", "base + 0.5 * (cars - base)", *LETS, "-o", "one")
    ok("edit", "base + 0.5 * (cars - base)", *LETS, "-o", "many", "--shard-size", "200")
    assert len(list(Path("many").glob("model-*-of-*.safetensors"))) == 3
    one, many = Checkpoint.read("one"), Checkpoint.read("many")
    assert one.fingerprint() == many.fingerprint()
    assert all(np.array_equal(one.array(n), many.array(n)) for n in one.names)


def test_output_records_recipe_and_hashes_without_paths(here: Path) -> None:
    import hashlib

    ok("edit", "base + 0.5 * (cars - base)", *LETS, "-o", "out")
    info = json.loads(Path("out/taskvec.json").read_text())
    assert info["expression"] == "base + 0.5 * (cars - base)"
    expected = hashlib.sha256(Path("cars/model.safetensors").read_bytes()).hexdigest()
    assert info["inputs"]["cars"]["sha256"] == {"model.safetensors": expected}
    assert str(here) not in Path("out/taskvec.json").read_text()


def test_interrupt_exits_130_and_cleans_up(here: Path) -> None:
    """A real process, interrupted while it writes: it stops, says so, and leaves nothing."""
    import signal
    import time

    big = {"w": np.zeros((6000, 6000), np.float32)}
    Checkpoint.of(big, copy=False).save("big")
    script = "import taskvec.weights.produce as w, time, sys\n" \
        "old = w.narrow\n" \
        "w.narrow = lambda *a: (print('busy', file=sys.stderr, flush=True), time.sleep(0.05), old(*a))[2]\n" \
        "from taskvec.cli import main\nmain()"  # fmt: skip
    Checkpoint.of({"w": np.ones((6000, 6000), np.float32)}, copy=False).save("zero")
    command = ["edit", "big + (2 * (other - big))", "--let", "big=big", "--let", "other=zero", "-o", "out"]
    plain = {**os.environ, "TASKVEC_FAST": "0"}  # the compiled loop does not round by `narrow`
    with subprocess.Popen(
        [sys.executable, "-c", script, *command], stderr=subprocess.PIPE, text=True, env=plain
    ) as process:
        assert process.stderr is not None
        while "busy" not in process.stderr.readline():
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
        assert process.wait(timeout=20) == 130, said
    assert "interrupted" in said and "Traceback" not in said
    assert not (here / "out").exists() and not list(here.glob(".out*"))


def test_restrict_is_recorded_so_that_it_reads_back(here: Path) -> None:
    from taskvec.recipe import parse

    read = {n: Checkpoint.read(n) for n in ("base", "cars")}
    vector = read["cars"] - read["base"]
    for what in ("*.attn.*", ["embed.weight", "layers.1.attn.weight"], ["embed.weight"]):
        edited = read["base"] + vector.restrict(what)
        again = parse(edited.explain().expression, read)
        assert again.explain().expression == edited.explain().expression
        assert all(np.array_equal(again.array(n), edited.array(n)) for n in edited.names)


def test_tied_weights_are_edited_once(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch = pytest.importorskip("torch")
    for name, value in (("tied.pt", 1.0), ("tuned.pt", 3.0)):
        shared = torch.full((4, 3), value)
        torch.save({"wte.weight": shared, "lm_head.weight": shared, "bias": torch.zeros(3)}, name)
    ok("diff", "tied.pt", "tuned.pt", "-o", "v.safetensors")
    assert TaskVector.read("v.safetensors").norm() == pytest.approx(np.sqrt(12 * 4))  # once, not twice
    ok("edit", "base + 0.5 * v", "--let", "base=tied.pt", "--let", "v=v.safetensors", "-o", "out.safetensors")
    out = Checkpoint.read("out.safetensors")
    assert out.names == ("wte.weight", "bias") and np.all(out.array("wte.weight") == 2)
    capsys.readouterr()
    ok("explain", "tied.pt")
    assert "1 tied in tied, kept once: 'lm_head.weight = wte.weight'" in capsys.readouterr().out


def test_rebase_stays_in_the_record(here: Path) -> None:
    ok("diff", "base", "cars", "-o", "cars.safetensors")
    ok("edit", "x + rebase(v, x)", "--let", "x=alien", "--let", "v=cars.safetensors", "-o", "out")
    assert json.loads(Path("out/taskvec.json").read_text())["expression"] == "x + rebase(v, x)"
    expected = Checkpoint.read("alien").array("embed.weight") + TaskVector.read("cars.safetensors").array(
        "embed.weight"
    )
    np.testing.assert_array_equal(Checkpoint.read("out").array("embed.weight"), expected)


def test_negative_variance_of_batch_normalisation_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (("bn", 0.9), ("bn2", 0.5)):
        weights = {"norm.running_var": np.full(3, value, np.float32), "w": np.full(3, value, np.float32)}
        Checkpoint.of(weights).save(f"{name}.safetensors")
    lets = ("--let", "b=bn.safetensors", "--let", "t=bn2.safetensors", "-o", "out.safetensors")
    assert "is negative" in fails(capsys, 3, "edit", "b + 5 * (t - b)", *lets)
    ok("edit", "b + 5 * restrict(t - b, '~*running_*')", *lets)
    assert np.allclose(Checkpoint.read("out.safetensors").array("norm.running_var"), 0.9)


def test_dtype_reaches_the_config(here: Path) -> None:
    text = '{"dtype": "float32", "text_config": {"torch_dtype": "float32"}, "vocab_size": 7}'
    (here / "base" / "config.json").write_text(text)
    ok("edit", "base + (cars - base)", *LETS, "-o", "out", "--dtype", "bf16")
    config = json.loads(Path("out/config.json").read_text())
    assert config == {"dtype": "bfloat16", "text_config": {"torch_dtype": "bfloat16"}, "vocab_size": 7}
    ok("edit", "base + (cars - base)", *LETS, "-o", "same")
    assert Path("same/config.json").read_text() == text


def test_integer_models_are_refused_rather_than_left_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("q1", "q2"):
        Checkpoint.of({"w": np.arange(4, dtype=np.int8)}).save(f"{name}.safetensors")
    text = fails(capsys, 3, "diff", "q1.safetensors", "q2.safetensors", "-o", "v.safetensors")
    assert "no floating-point tensor" in text and "I8" in text


def test_an_expression_may_begin_with_a_minus(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Put -- before an expression" in fails(capsys, 2, "edit", "-v", "-o", "w.safetensors")
    ok("diff", "base", "cars", "-o", "cars.safetensors")
    ok("edit", "--let", "v=cars.safetensors", "-o", "w.safetensors", "--", "-0.5*v")
    v, w = TaskVector.read("cars.safetensors"), TaskVector.read("w.safetensors")
    np.testing.assert_array_equal(w.array("embed.weight"), -0.5 * v.array("embed.weight"))


def test_sampled_notes_keep_off_edits_that_need_passes(here: Path) -> None:
    lets = (*LETS, "-o", "o.safetensors")
    ok("edit", "base + 0.1 * ((base + ties([cars - base])) - dtd)".replace("base + 0.1", "dtd + 0.1"), *lets)


def test_vectors_take_no_format_and_no_shards(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option in (("--dtype", "bf16"), ("--shard-size", "1MB")):
        text = fails(capsys, 2, "edit", "2 * (cars - base)", *LETS, "-o", "v.safetensors", *option)
        assert "are for checkpoints" in text
    ok("edit", "base", *LETS, "--dry-run", "--dtype", "bf16", "--json")
    plan = json.loads(capsys.readouterr().out)
    assert plan["unchanged"] == 1 and plan["bytes_to_write"] == 2 * (30 + 30 + 35) + 16


def test_what_no_vector_touches_may_hold_infinity_if_asked_for(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (("m", 1.0), ("n", 2.0)):
        Checkpoint.of({"w": np.full(3, value, np.float32), "mask": np.zeros(2, np.float32)}).save(f"{name}.safetensors")
        raw = Path(f"{name}.safetensors").read_bytes()
        Path(f"{name}.safetensors").write_bytes(raw[:-8] + np.full(2, -np.inf, np.float32).tobytes())
    lets = ("--let", "m=m.safetensors", "--let", "n=n.safetensors", "-o", "o.safetensors")
    assert "restrict(vector, '~NAME')" in fails(capsys, 3, "edit", "m + (n - m)", *lets)
    edit = ("edit", "m + restrict(n - m, '~mask')", *lets)
    assert "--allow-nonfinite" in fails(capsys, 3, *edit)
    ok(*edit, "--allow-nonfinite")
    assert Checkpoint.read("o.safetensors").array("mask").tolist() == [-np.inf, -np.inf]


def test_side_files_come_with_any_form_of_the_origin(here: Path) -> None:
    for i, text in enumerate(("restrict(base + (cars - base), '*')", "restrict(base, '*') + (cars - base)")):
        ok("edit", text, *LETS, "-o", f"o{i}")
        assert Path(f"o{i}/config.json").exists()


def test_hang_up_is_ignored_under_nohup(here: Path) -> None:
    script = "import signal, os\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\nfrom taskvec.cli import _run\n_run(['methods'])\nos.kill(os.getpid(), signal.SIGHUP)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True).returncode == 0


def test_errors_are_json_too(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["compare", "nowhere", "base", "--json"]) == 3
    said = json.loads(capsys.readouterr().out)
    assert _run(["--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["exit_code"] == 2
    assert said["command"] == "compare" and said["error"]["exit_code"] == 3 and "nowhere" in said["error"]["message"]


def test_adapters_and_python_forms_get_the_right_advice(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "lora").mkdir()
    (here / "lora" / "adapter_config.json").write_text("{}")
    assert "adapter of the kind None" in fails(capsys, 3, "explain", "lora")
    text = fails(capsys, 2, "edit", "base + cars.restrict('*.attn.*')", *LETS, "-o", "out")
    assert "write restrict(cars, '*.attn.*')" in text
    ok("explain", "base + (cars - base)", *LETS)
    assert "note: dtd is named but not used" in capsys.readouterr().err


def test_names_cannot_drive_the_terminal(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (("plain", 1.0), ("evil", 2.0)):
        Checkpoint.of({"\x1b[31mred\x07": np.full(3, value, np.float32)}).save(name)
    ok("compare", "plain", "evil", "--by", "tensor")
    shown = capsys.readouterr()
    assert "\x1b" not in shown.out + shown.err and "\\x1b[31mred" in shown.out


def test_closed_pipe_is_quiet(here: Path) -> None:
    done = subprocess.run(
        f"{sys.executable} -m taskvec.cli compare base cars dtd --by tensor --json | head -n 1",
        shell=True, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == "{\n" and done.stderr == ""
