"""chemprop as a rival of task addition: what it is shown, what is taken from it, and what is said when it fails.

The real one is looked for where commands are, or as the command that TASKVEC_CHEMPROP names.
"""

from __future__ import annotations

import csv
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed (extra: train)")
pytest.importorskip("rdkit", reason="rdkit is not installed (extra: molecules)")

from taskvec.errors import InputError, UsageError
from taskvec.gate.chemprop import find, predictions
from taskvec.gate.molecules import Split
from taskvec.results import GateResult, read_result

# Takes what chemprop is told, keeps it, and answers with the mean of the training labels.
STAND_IN = """#!{python}
import csv, json, pathlib, shutil, sys
if sys.argv[1:] == ["--version"]:
    sys.exit(print("chemprop 2.0.0"))
told = dict(zip(sys.argv[3::2], sys.argv[4::2]))
here = pathlib.Path({folder!r})
shutil.copy(told["-i"], here / "labels.csv")
(here / "told.json").write_text(json.dumps(sys.argv[1:]))
rows = list(csv.DictReader(open(told["-i"])))
labels = [float(r["label"]) for r in rows if r["split"] == "train"]
out = pathlib.Path(told["-o"]) / "model_0"
out.mkdir(parents=True)
{change}
with open(out / "test_predictions.csv", "w", newline="") as file:
    w = csv.writer(file)
    w.writerow(["smiles", "label"])
    w.writerows((r["smiles"], sum(labels) / len(labels)) for r in rows if r["split"] == "test")
"""
SMILES = [t + r for r in ("c1ccccc1", "C1CCCCC1", "C1CCOC1", "c1ccncc1") for t in ("C", "CC", "O", "N", "CO")]
LABELS = np.arange(20) + 0.25
PART = Split(np.arange(10), np.arange(10, 14), np.array([19, 15, 17]))


@pytest.fixture
def stand_in(tmp_path: Path) -> Callable[..., Path]:
    def make(change: str = "") -> Path:
        path = tmp_path / "chemprop"
        path.write_text(STAND_IN.format(python=sys.executable, folder=str(tmp_path), change=change), encoding="utf-8")
        path.chmod(0o755)
        return path

    return make


def test_it_is_shown_training_labels_and_no_test_labels(stand_in: Callable[..., Path], tmp_path: Path) -> None:
    found = find(stand_in("sum(range(5_000_000))"))
    assert found.version == "chemprop 2.0.0"
    values, seconds = predictions(found, SMILES, LABELS, PART, updates=10, seed=7)
    assert values.tolist() == [LABELS[:10].mean()] * 3 and seconds > 0
    with (tmp_path / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["smiles"] for r in rows if r["split"] == "test"] == [SMILES[i] for i in PART.test]
    assert {r["label"] for r in rows if r["split"] == "test"} == {"0.0"}
    assert [float(r["label"]) for r in rows if r["split"] == "val"] == LABELS[10:14].tolist()
    told = (tmp_path / "told.json").read_text()
    assert '"--pytorch-seed", "7"' in told and '"--epochs", "50"' in told


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("sys.exit('no such molecule')", "ended with 1. It said:\nno such molecule"),
        ("sys.exit(0)", "left no predictions"),
        ("rows.pop()", "predicted 2 molecules, not the 3"),
        ("rows.reverse()", "not the 3 test molecules in their order"),
        ("labels = [float('nan')]", "predicted 3 molecules"),
        ("(out / 'test_predictions.csv').write_text('smiles,label\\nC'); sys.exit(0)", "left no predictions"),
        ("(out / 'test_predictions.csv').write_bytes(bytes(range(256))); sys.exit(0)", "left no predictions"),
    ],
)
def test_what_goes_wrong_there_is_said(stand_in: Callable[..., Path], change: str, said: str) -> None:
    with pytest.raises(InputError, match="chemprop") as failure:
        predictions(find(stand_in(change)), SMILES, LABELS, PART, updates=1, seed=0)
    assert said in str(failure.value)


def test_another_command_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no command .*pip install chemprop"):
        find(tmp_path / "chemprop")
    with pytest.raises(UsageError, match="expected `chemprop 2"):
        find(sys.executable)
    old = tmp_path / "chemprop"
    old.write_text(f"#!{sys.executable}\nprint('chemprop 1.6.1')\n")
    old.chmod(0o755)
    with pytest.raises(UsageError, match=r"says 'chemprop 1.6.1'; expected `chemprop 2"):
        find(old)
    old.write_text(f"#!{sys.executable}\nprint('a warning')\nprint('chemprop 2.1.0')\n")
    assert find(old).version == "chemprop 2.1.0"
    old.write_text(f"#!{sys.executable}\nimport sys; sys.exit('broken')\n")
    with pytest.raises(UsageError, match="broken"):
        find(old)


def test_it_stands_beside_the_others(
    stand_in: Callable[..., Path], tmp_path: Path, run_cli: Callable[..., tuple[int, str, str]]
) -> None:
    with (tmp_path / "t.csv").open("w", newline="") as file:
        rows = [(s, float(len(s)), float(s.count("C"))) for s in SMILES]
        csv.writer(file).writerows([("smiles", "size", "carbon"), *rows])
    common = [
        "gate",
        "evaluate",
        tmp_path / "t.csv",
        "--source",
        "size",
        "--target",
        "carbon",
        "--labels",
        10,
        "--steps",
        2,
    ]
    common += ["--width", 8, "--sizes", "8", "--chemprop"]
    code, out, err = run_cli(*common, tmp_path / "nothing", "-o", tmp_path / "r.json")
    assert code == 2 and "there is no command" in err and "pre-training" not in err
    code, out, err = run_cli(*common, stand_in(), "-o", tmp_path / "r.json")
    assert code == 0 and "chemprop" in out, err
    found = read_result(tmp_path / "r.json")
    assert isinstance(found, GateResult) and found.methods[-1] == "chemprop"
    assert found.provenance.settings["chemprop"] == "chemprop 2.0.0"
    run = found.runs[0]
    assert run.seconds["chemprop carbon"] > 0 and run.curve[0].predictions["chemprop"]
    assert len(set(run.targets[0].predictions["chemprop"])) == 1
    assert "chemprop" in found.against["carbon"] and "chemprop" in found.curves["carbon"][0].errors


@pytest.mark.peer
def test_chemprop_itself_learns() -> None:
    """Lengths of alkyl chains from 36 labels, of 12 others."""
    command = os.environ.get("TASKVEC_CHEMPROP", "chemprop")
    if shutil.which(command) is None:
        pytest.skip("chemprop is not installed here; name its command in TASKVEC_CHEMPROP")
    smiles = ["C" * k + tail for k in range(1, 13) for tail in ("", "O", "N", "Cl")]
    length = np.repeat(np.arange(1.0, 13.0), 4)
    order = np.random.default_rng(0).permutation(48)
    part = Split(order[:30], order[30:36], order[36:])
    program = find(command)
    values, _ = predictions(program, smiles, length, part, updates=300, seed=0)
    assert program.version.startswith("chemprop 2.")
    assert np.sqrt(np.mean((values - length[part.test]) ** 2)) < 0.5 * length.std()
