"""More than one process: two writers of one target, inputs that change under a reader, a pipe that closes."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from harness import beside, content, edit, finish, models, staging, start, taskvec

from taskvec.weights import Checkpoint

# Computing slowly: every read of a whole block takes its time.
SLOWLY = """
import time
from taskvec.weights import safetensors
def slowly(self, name, start, stop, *a, real=safetensors.SafetensorsFile.read, **k):
    time.sleep({pause} if stop - start > 64 else 0)
    return real(self, name, start, stop, *a, **k)
safetensors.SafetensorsFile.read = slowly
"""


def until(process: subprocess.Popen[str], condition) -> None:
    while process.poll() is None and not condition():
        time.sleep(0.002)
    assert process.poll() is None, finish(process)


@pytest.mark.parametrize("name", ["out", "out.safetensors"])
def test_two_runs_to_one_target(name, tmp_path):
    inputs, out = models(tmp_path, tensors=40, values=100), tmp_path / name
    first = start(*edit(inputs, out), prelude=SLOWLY.format(pause=0.03))
    until(first, (staging(out) / "lock").exists)
    time.sleep(0.05)
    others = [start(*edit(inputs, out)), start(*edit(inputs, out, "--overwrite", coefficient=0.25))]
    ends = [finish(other).clean() for other in others]
    assert first.poll() is None, "the first was still at work"
    for other in ends:
        assert other.code == 4 and re.search(rf"\b{first.pid}\b", other.err), other
    assert finish(first).clean().code == 0
    alone = tmp_path / "alone" / name
    assert taskvec(*edit(inputs, alone)).clean().code == 0
    assert content(out) == content(alone) and not staging(out).exists() and not beside(out) - {"base", "tuned", "alone"}


def test_many_runs_at_once_to_one_target(tmp_path):
    """Whoever wins, the result is one of them, and the others say why not."""
    inputs, out = models(tmp_path), tmp_path / "outs" / "out"
    out.parent.mkdir()
    wanted = {}
    for c in (0.25, 0.5):
        assert taskvec(*edit(inputs, tmp_path / f"{c}" / "out", coefficient=c)).clean().code == 0
        wanted[c] = content(tmp_path / f"{c}" / "out")
    for _ in range(2):
        runs = [start(*edit(inputs, out, "--overwrite", coefficient=c)) for c in (0.25, 0.5, 0.25, 0.5)]
        ends = [finish(r).clean() for r in runs]
        assert all(e.code in (0, 4) for e in ends) and any(e.code == 0 for e in ends), ends
        assert all("in use" in e.err for e in ends if e.code == 4), ends
        assert content(out) in wanted.values() and not staging(out).exists() and not beside(out)


def test_the_lock_of_a_dead_process_holds_nobody_up(tmp_path):
    inputs, out = models(tmp_path), tmp_path / "out"
    staging(out).mkdir()
    (staging(out) / "lock").write_text("1")  # a process that lives, but does not hold it
    assert taskvec(*edit(inputs, out)).clean().code == 0
    assert content(out) is not None and not staging(out).exists()


@pytest.mark.parametrize("way", ["cut short", "emptied", "replaced", "other values", "removed"])
def test_an_input_changes_while_it_is_read(way, tmp_path):
    """A clear error or the right bytes; never a signal from the system, never an output of two halves."""
    base, tuned = models(tmp_path, tensors=40, values=5000, shards=1)
    out, file = tmp_path / "out.safetensors", tuned / "model.safetensors"
    clean = tmp_path / "clean.safetensors"
    assert taskvec(*edit((base, tuned), clean)).clean().code == 0
    process = start(*edit((base, tuned), out), prelude=SLOWLY.format(pause=0.01))
    until(process, (staging(out) / "out").exists)
    time.sleep(0.1)
    if way == "cut short":
        os.truncate(file, file.stat().st_size // 2)
    elif way == "emptied":
        os.truncate(file, 0)
    elif way == "removed":
        file.unlink()
    elif way == "replaced":
        shutil.copyfile(base / "model.safetensors", tmp_path / "new")
        (tmp_path / "new").replace(file)
    else:
        with file.open("r+b") as f:
            f.seek(-40_000, os.SEEK_END)
            f.write(bytes(40_000))
    outcome = finish(process).clean()
    assert outcome.code in (0, 3, 4), outcome
    if way in ("cut short", "emptied", "other values"):
        assert outcome.code in (3, 4) and str(file) in outcome.err, outcome
    if outcome.code == 0:  # the file that was open is the one that counts
        assert content(out) == content(clean)
    else:
        assert content(out) is None
        assert not staging(out).exists(), "it cannot be continued"


@pytest.mark.parametrize("command", ["explain", "compare", "methods"])
def test_a_pipe_that_closes(command, tmp_path):
    base, tuned = models(tmp_path, tensors=400, values=2)
    arguments = {
        "explain": ["explain", base],
        "compare": ["compare", base, tuned, "--by", "tensor"],
        "methods": ["methods"],
    }
    taskvec_json = [sys.executable, "-m", "taskvec.cli", *map(str, arguments[command]), "--json"]
    writer = subprocess.Popen(taskvec_json, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert writer.stdout is not None
    writer.stdout.read(1)
    writer.stdout.close()
    _, err = writer.communicate(timeout=20)
    assert writer.returncode in (0, 1, 128 + signal.SIGPIPE) and err == b"", err


def test_output_is_there_although_nobody_reads_of_it(tmp_path):
    """stdout and stderr both closed: the edit is made all the same."""
    inputs, out = models(tmp_path), tmp_path / "out"
    run = subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" >&- 2>&-', "sh", sys.executable, "-m", "taskvec.cli", *map(str, edit(inputs, out))]
    )
    assert run.returncode in (0, 4) and not staging(out).exists()
    assert (content(out) is not None) == (run.returncode == 0)
    table = Checkpoint.read(out).arrays() if run.returncode == 0 else {}
    assert all(np.isfinite(v).all() for v in table.values())


AGAIN = """
import sys
import taskvec as tv

base = tv.Checkpoint.read(sys.argv[1])
for _ in range(60):
    try:
        base.save(sys.argv[2], overwrite=True)
    except tv.errors.StorageError as error:
        assert "in use" in str(error), error
"""


def test_runs_that_begin_while_others_tidy_up(tmp_path):
    """Folder and lock vanish and come back at any moment; a run either has both or says that another has."""
    base = Checkpoint.of({"w": np.ones(9, np.float32)}, label="base").save(tmp_path / "base.safetensors")
    out = tmp_path / "out.safetensors"
    runs = [
        subprocess.Popen([sys.executable, "-c", AGAIN, base, out], stderr=subprocess.PIPE, text=True) for _ in range(4)
    ]
    said = [run.communicate(timeout=120)[1] for run in runs]
    assert all(run.returncode == 0 for run in runs), said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base.safetensors", "out.safetensors"]
