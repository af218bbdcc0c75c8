"""The demo runs, leaves its files, and tells what the results say."""

import io
import re
import shlex

import pytest
import torch
from rich.console import Console

from taskvec.demo import run
from taskvec.errors import StorageError
from taskvec.results import read_results
from taskvec.tasks import Head
from taskvec.weights import Checkpoint, TaskVector

for library in ("sklearn", "matplotlib", "jinja2"):
    pytest.importorskip(library, reason=f"{library} is not installed (extra: demo)")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out, text = tmp_path_factory.mktemp("demo") / "out", io.StringIO()
    threads = torch.get_num_threads()
    results = run(out, seed=1, quick=True, console=Console(file=text, width=100))
    assert torch.get_num_threads() == threads
    return out, text.getvalue(), results


def test_the_demo_leaves_its_files(demo):
    out, _, results = demo
    names = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    tasks = {"digit_3", "digit_3_ascent", "rotated", "mirrored", "faint", "plain", "mirrored_and_faint"}
    tasks |= {"plain_faint_mirrored"}
    expected = {f"{folder}/{t}.safetensors" for folder in ("vectors", "checkpoints") for t in tasks}
    expected |= {"checkpoints/base.safetensors", "heads/rotated.safetensors", "report.html"}
    expected |= {f"results/{n}.json" for n in ("1-forget", "2-add", "3-analogy", "4-geometry")}
    assert names == expected
    assert read_results(out / "results") == results


def test_the_files_belong_together(demo):
    out, _, results = demo
    base = Checkpoint.read(out / "checkpoints" / "base.safetensors")
    tuned = Checkpoint.read(out / "checkpoints" / "rotated.safetensors")
    vector = TaskVector.read(out / "vectors" / "rotated.safetensors")
    again = (base + vector).arrays()  # the vector knows its base; the fine-tuned model comes back
    assert all(again[n].tobytes() == a.tobytes() for n, a in tuned.arrays().items())
    assert results[0].provenance.inputs["base"] == base.fingerprint()
    assert Head.read(out / "heads" / "rotated.safetensors").weight.shape == (10, 64)


def test_the_story_says_what_the_results_hold(demo):
    out, text, (forget, add, _, geometry) = demo
    for question in ("Forget: digit 3", "Add: rotated, mirrored, faint", "Analogy: mirrored and faint"):
        assert question in text
    for row in (*forget.rows, *add.rows):
        for score in row.scores.values():
            assert str(score) in text
    assert f"{geometry.cosine[0][1]:.2f}" in text
    assert str(out / "report.html").split("/")[-1] in text


def test_the_commands_at_the_end_work(demo, tmp_path):
    from click.testing import CliRunner

    from taskvec.cli import cli

    _, text, _ = demo
    commands = re.findall(r"^  taskvec (\w+ .*)$", text, flags=re.MULTILINE)
    assert [c.split()[0] for c in commands] == ["compare", "explain", "edit"]
    for command in commands:
        arguments = shlex.split(command)
        if "-o" in arguments:
            arguments[-1] = str(tmp_path / "edited.safetensors")
        done = CliRunner().invoke(cli, arguments)
        assert done.exit_code == 0, (command, done.output, done.exception)
    assert "blocks.0.attn.qkv.weight" in Checkpoint.read(tmp_path / "edited.safetensors").names


def test_the_demo_refuses_a_folder_in_use(demo):
    out, _, _ = demo
    before = (out / "report.html").read_bytes()
    with pytest.raises(StorageError, match="--overwrite"):
        run(out, quick=True, console=Console(file=io.StringIO()))
    assert (out / "report.html").read_bytes() == before
