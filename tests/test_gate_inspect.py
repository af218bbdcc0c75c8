"""What lies in a network of geometric alignment: known answers, refusals, the command, the report."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra: train)")

from taskvec import report  # noqa: E402
from taskvec.errors import InputError, NonFinite, UnknownName, UsageError  # noqa: E402
from taskvec.gate import Gate, GateSpec, Rows, Shape, inspect, predict, pretrain, routed, save  # noqa: E402
from taskvec.gate.model import Property, embedding_of, seeded  # noqa: E402
from taskvec.report.inspection import inspection_sentences, inspection_tables  # noqa: E402
from taskvec.results import GateInspection, read_result  # noqa: E402

SQUARE = Rows(torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]))  # mean 0, variance 1 in each axis
ONE = ((1.0, 0.0), (0.0, 1.0))
TURN = ((0.0, -1.0), (1.0, 0.0))
SHAPE = Shape(embedding="rows", inputs=2, width=2, latent=2, frame=2, depth=1)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def linear(matrix: Any, bias: Any = (0.0, 0.0)) -> Any:
    made = torch.nn.Linear(len(matrix[0]), len(matrix))
    made.weight.data, made.bias.data = torch.tensor(matrix), torch.tensor(bias)
    return made


def by_hand(encoder: Any = ONE, transfer: Any = ONE, shift: Any = (0.0, 0.0), std: float = 1.0) -> Property:
    """A property whose latent is the encoder's, with a transfer, its inverse, and a head that reads the first axis."""
    made = Property(SHAPE, 0.0, std)
    back = np.linalg.pinv(np.array(transfer))
    made.encoder, made.transfer = linear(encoder), linear(transfer, shift)
    made.inverse = linear(back.astype(np.float32).tolist(), (-(back @ np.array(shift))).astype(np.float32).tolist())
    made.head = linear([[1.0, 0.0]], [0.0])
    return made


def network(**properties: Property) -> Gate:
    embedding: Any = embedding_of(SHAPE)
    embedding.layers = torch.nn.Identity()
    return Gate(SHAPE, embedding, properties, list(properties)[:1])


def test_equal_maps_lie_in_one_place_and_read_each_other() -> None:
    mixing = ((2.0, 1.0), (0.0, 1.0))
    truth = SQUARE.values[:, 0].double().numpy() + np.array([1.0, -1.0, 0.5, 2.0])
    found = inspect(network(s=by_hand(transfer=mixing), t=by_hand(transfer=mixing)), SQUARE, {"t": truth})
    assert found.alignment[0][1] == pytest.approx(0, abs=1e-12) and found.displacement[0][1] == pytest.approx(
        0, abs=1e-9
    )
    assert found.alignment[0][0] == found.displacement[1][1] == 0
    ratio = found.transfer["t"]["s"]
    assert ratio.ratio == pytest.approx(1, abs=1e-6) and ratio.high - ratio.low < 1e-5 and ratio.n == 4
    assert found.disagreement[1][0] == pytest.approx(0, abs=1e-6)
    assert list(found.transfer) == ["t"] and found.place("s").error is None
    own = found.place("t").error
    assert own is not None and own.rmse == pytest.approx(np.sqrt((1 + 1 + 0.25 + 4) / 4))
    assert [p.source for p in found.properties] == [True, False] and len(found.notes) == 1
    assert "t: intervals from 4 labels are too narrow" in found.notes[0]


def test_latents_have_the_dimensions_and_losses_of_their_covariance() -> None:
    found = inspect(network(s=by_hand(), t=by_hand(encoder=((2.0, 0.0), (0.0, 1.0)), transfer=((1.0, 0.0), (0.0, 0.0)))), SQUARE)  # fmt: skip
    assert found.place("s").latent == pytest.approx(2) and found.place("t").latent == pytest.approx(25 / 17)
    assert found.place("t").frame == pytest.approx(1)  # one axis of the frame is not used
    assert found.place("s").autoencoding == pytest.approx(0, abs=1e-12)
    assert found.place("t").autoencoding == pytest.approx(
        1 / 5
    )  # the second axis, of variance 1 of 5, does not come back
    assert found.place("s").spread == pytest.approx(1) and found.place("t").spread == pytest.approx(2)


@pytest.mark.parametrize(
    ("other", "alignment", "displacement"),
    [
        (by_hand(shift=(3.0, -4.0)), 25 / 4, 0),  # |b|^2 / (2 + 2)
        (by_hand(transfer=TURN), 1, 0),  # a quarter turn: as far apart as two different molecules, and rigid
        (by_hand(transfer=((3.0, 0.0), (0.0, 3.0))), 0.4, 0.4),  # (1 - 3)^2 / (1 + 9)
        (by_hand(transfer=((0.0, 0.0), (0.0, 0.0))), 1, 1),  # collapsed onto the mean
    ],
)
def test_frames_that_differ_have_known_errors(other: Property, alignment: float, displacement: float) -> None:
    found = inspect(network(s=by_hand(), t=other), SQUARE)
    for matrix, wanted in ((found.alignment, alignment), (found.displacement, displacement)):
        assert matrix[0][1] == matrix[1][0] == pytest.approx(wanted, abs=1e-6)


def test_a_way_that_is_off_has_the_error_that_this_makes() -> None:
    off = network(s=by_hand(shift=(2.0, 0.0), std=9.0), t=by_hand(std=4.0))
    truth = SQUARE.values[:, 0].double().numpy() * 4 + np.array(
        [4.0, -4.0, 4.0, -4.0]
    )  # direct errors of one deviation
    found = inspect(off, SQUARE, {"t": truth})
    assert found.transfer["t"]["s"].ratio == pytest.approx(np.sqrt(5))  # (1 + 2)^2 and (1 - 2)^2
    assert found.transfer["t"]["t"].ratio == pytest.approx(1) and found.disagreement[1][0] == pytest.approx(2)
    assert found.disagreement[0][1] == pytest.approx(2)  # in deviations of its own label
    low, high = found.transfer["t"]["s"].low, found.transfer["t"]["s"].high
    assert 1 <= low < np.sqrt(5) < high <= 3


def learnt() -> tuple[Any, Rows, dict[str, np.ndarray]]:
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    y = {n: (x[:, i] * x[:, i + 1] + x[:, 0]).double().numpy() * 10**i for i, n in enumerate(("a", "b.c", "<d>"))}
    shape = Shape(embedding="rows", inputs=6, width=16, latent=5, frame=4, depth=2)
    return pretrain(Rows(x), y, np.arange(150), np.arange(150, 170), shape=shape, spec=GateSpec(steps=30)), Rows(x), y


def test_it_agrees_with_the_ways_and_the_spread_of_learning(tmp_path: Path) -> None:
    made, x, y = learnt()
    held, labels = x.take(range(150, 200)), {n: v[150:].copy() for n, v in y.items()}
    labels["a"][::2] = np.nan
    found = inspect(made.model, held, labels)
    direct, known = predict(made.model, held), np.isfinite(labels["a"])
    for i, t in enumerate(found.names):
        for j, s in enumerate(found.names):
            way = routed(made.model, held, t, s)
            rms = np.sqrt(np.mean((way - direct[t]) ** 2)) / made.model.of(t).std
            assert found.disagreement[i][j] == pytest.approx(rms, rel=1e-6)
    errors = [(v - labels["a"])[known] for v in (routed(made.model, held, "a", "b.c"), direct["a"])]
    assert found.transfer["a"]["b.c"].ratio == pytest.approx(np.sqrt(np.mean(errors[0] ** 2) / np.mean(errors[1] ** 2)))
    assert found.transfer["a"]["b.c"].n == 25 and found.transfer["<d>"]["a"].n == 50
    assert (found.molecules, found.latent, found.frame) == (50, 5, 4)
    again = inspect(made.model, x.take(range(150)))
    assert {p.name: p.spread for p in again.properties} == pytest.approx(dict(made.spread), rel=1e-5)
    assert inspect(made.model, held, labels) == found  # perturbations are seeded
    assert inspect(made.model, held, labels, seed=1).displacement != found.displacement
    assert read_result(found.write(tmp_path / "r.json")) == found


def test_collapse_and_constant_predictions_are_said(tmp_path: Path) -> None:
    nowhere = ((0.0, 0.0), (0.0, 0.0))
    flat = by_hand(encoder=nowhere, transfer=nowhere)
    found = inspect(network(s=flat, t=by_hand(encoder=nowhere, transfer=nowhere)), SQUARE, {"s": np.array([1.0, np.nan, np.nan, np.nan])})  # fmt: skip
    assert found.alignment == found.displacement == ((None, None), (None, None))
    assert found.place("s").latent is found.place("s").autoencoding is found.place("s").frame is None
    said = " ".join(found.notes)
    assert "nearly at one point" in said and "0 for all molecules" in said and "1 labels are too few" in said
    assert not found.transfer and read_result(found.write(tmp_path / "r.json")) == found
    assert "–" in report.markdown([found])
    exact = inspect(network(s=by_hand(), t=by_hand()), SQUARE, {"s": SQUARE.values[:, 0].double().numpy()})
    assert not exact.transfer and "no error at all" in exact.notes[0]


def test_what_cannot_be_inspected_is_refused() -> None:
    two = network(s=by_hand(), t=by_hand())
    with pytest.raises(UsageError, match="the network has 's' alone"):
        inspect(network(s=by_hand()), SQUARE)
    with pytest.raises(InputError, match="1 molecules"):
        inspect(two, SQUARE.take([0]))
    with pytest.raises(UnknownName, match=r"no property 'tt'.*Did you mean 't'"):
        inspect(two, SQUARE, {"tt": np.zeros(4)})
    with pytest.raises(UsageError, match=r"shape \(3,\) for 4 molecules"):
        inspect(two, SQUARE, {"t": np.zeros(3)})
    with pytest.raises(UsageError, match="radius"):
        inspect(two, SQUARE, radius=-1)
    holes = SQUARE.values.clone()
    holes[1, 0] = float("nan")
    with pytest.raises(NonFinite, match="'s': the network gives no numbers for 1 of 4 molecules"):
        inspect(two, Rows(holes))
    broken: Any = by_hand()
    broken.inverse.weight.data[0, 0] = float("inf")
    with pytest.raises(NonFinite, match="'t': the way from the frame"):
        inspect(network(s=by_hand(), t=broken), SQUARE)


def test_results_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = inspect(network(s=by_hand(), t=by_hand()), SQUARE).write(tmp_path / "r.json")
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({**whole, "alignment": whole["alignment"][:1]}))
    with pytest.raises(InputError, match="2 x 2 numbers of alignment"):
        read_result(path)
    path.write_text(json.dumps({**whole, "transfer": {"u": {}}}))
    with pytest.raises(InputError, match="transfer matrix"):
        read_result(path)


@pytest.mark.parametrize("k", [3, 20])
def test_the_report_tells_and_draws_few_and_many(k: int, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra: report)")
    pytest.importorskip("jinja2", reason="jinja2 is not installed (extra: report)")
    many = {f"<p{i}>": seeded(i, lambda: Property(SHAPE, 0.0, 1.0)) for i in range(k)}
    labels = {"<p0>": np.array([0.0, 1.0, 2.0, 4.0])}
    found = inspect(network(**many), SQUARE, labels)
    text, page = report.markdown([found]), report.write([found], tmp_path / "r.html").read_text()
    assert page.count("<svg") == 4 and "<p1>" not in page and "<p1>" not in text
    assert (
        "has learnt from flatter" in text
        and "properties with labels" not in text
        and "one property with labels" in text
    )
    tables = list(inspection_tables(found))
    assert [len(t.rows) for t in tables] == ([3, 3, 3, 1, 3] if k == 3 else [20, 10, 10, 10, 10])
    assert len(page) < 600_000
    bare = inspect(network(**many), SQUARE)
    assert report.write([bare], tmp_path / "r.html").read_text().count("<svg") == 3
    assert any("Without labels" in s for s in inspection_sentences(bare))


def test_the_latent_that_others_are_read_through_best_is_not_the_one_that_is_hard_to_read() -> None:
    found = inspect(network(a=by_hand(), b=by_hand(), c=by_hand()), SQUARE)
    # c is read badly through all; through a everyone is read a little better than through the others.
    lines = ((0.1, 0.2, 0.2), (0.1, 0.1, 0.2), (0.8, 1.0, 0.9))
    said = " ".join(inspection_sentences(found.model_copy(update={"disagreement": lines})))
    assert "read best through a" in said


# ---- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pytest.importorskip("rdkit", reason="rdkit is not installed (extra: molecules)")
    shape = Shape(embedding="fingerprint", width=8, latent=4, frame=4, depth=1)
    names = ("size", "hetero", "other")
    model = seeded(0, lambda: Gate(shape, embedding_of(shape), {n: Property(shape, 1.0, 2.0) for n in names}, names[:2]))  # fmt: skip
    save(model, tmp_path / "net", learned={})
    return tmp_path / "net"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "data.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["smiles", "size", "oxygens", "empty", "word"])
        for i in range(1, 13):
            writer.writerows([["C" * i + "O" * (i % 3), i, i % 3, "", "x"], ["C(C", i, 0, "", "x"]])
    return path


def test_the_command_from_molecules_to_report(
    folder: Path, table: Path, tmp_path: Path, run_cli: Callable[..., tuple[int, str, str]]
) -> None:
    out = tmp_path / "r.json"
    code, said, err = run_cli("gate", "inspect", folder, table, "--column", "hetero=oxygens", "-o", out)
    assert code == 0 and "Alignment error" in said and "flatter" in said and "'C(C'" in err and "labels for 2" in err
    made = read_result(out)
    assert isinstance(made, GateInspection) and made.title == "Inside net"
    assert set(made.transfer) == {"size", "hetero"} and made.molecules == 12
    assert "size, n 12" in said and "size, source" in said and "intervals from 12 labels are too narrow" in err
    assert run_cli("gate", "inspect", folder, table, "-o", out)[0] == 2  # exists
    code, said, _ = run_cli("gate", "inspect", folder, table, "--json")
    shown = json.loads(said)
    assert code == 0 and set(shown["result"]["transfer"]) == {"size"} and shown["output"] is None
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra: report)")
    assert run_cli("report", out, "-o", tmp_path / "r.html")[0] == 0
    assert "Transfer" in (tmp_path / "r.html").read_text()


def test_the_command_without_labels_and_without_molecules(
    folder: Path, table: Path, tmp_path: Path, run_cli: Callable[..., tuple[int, str, str]]
) -> None:
    bare = tmp_path / "bare.csv"
    bare.write_text("CCO\nCCC\nCCC\nC(C\n")  # a list of SMILES
    code, said, err = run_cli("gate", "inspect", folder, bare)
    assert code == 0 and "on 2 molecules" in said and "Disagreement" in said and "Transfer" not in said
    assert "--column NAME=COLUMN" in err and "1 of 4 rows" in err
    code, said, err = run_cli("gate", "inspect", folder, table, "--column", "size=empty")
    assert code == 0 and "all equal, and left out: 'empty'" in err and "Transfer" not in said
    for rows, why in (
        ("CCO,1\nOCC,900\nCCC,x", "'size' is 'x', not a number. The column is left out"),
        (
            "CCO,1\nOCC,900\nCCC,\nCC,",
            "labels that could be kept are all equal, or there are none. Labels are left out",
        ),
    ):
        bare.write_text(f"smiles,size\n{rows}\n")
        code, said, err = run_cli("gate", "inspect", folder, bare)
        assert code == 0 and why in err and "Disagreement" in said and "Transfer" not in said
    code, said, _ = run_cli("gate", "inspect", folder)
    assert code == 0 and "source  size" in said and "added   other" in said


def test_names_may_hold_what_parts_them_from_columns(
    table: Path, tmp_path: Path, run_cli: Callable[..., tuple[int, str, str]]
) -> None:
    shape = Shape(embedding="fingerprint", width=8, latent=4, frame=4, depth=1)
    names = ("logD", "logD(pH=7.4)")
    model = seeded(0, lambda: Gate(shape, embedding_of(shape), {n: Property(shape, 1.0, 2.0) for n in names}, names))
    save(model, tmp_path / "net", learned={})
    code, said, err = run_cli("gate", "inspect", tmp_path / "net", table, "--column", "logD(pH=7.4)=oxygens", "--json")
    assert code == 0 and list(json.loads(said)["result"]["transfer"]) == ["logD(pH=7.4)"], err


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["--column", "siz=oxygens"], 2, "Did you mean 'size'"),
        (["--column", "size=oxygen"], 2, "Did you mean 'oxygens'"),
        (["--column", "size"], 2, "expected NAME=COLUMN"),
        (["--column", "size=oxygens", "--column", "size=size"], 2, "the property 'size' twice"),
        (["--column", "size=word"], 3, "not a number"),
        (["--smiles", "smile"], 2, "Did you mean 'smiles'"),
        (["--smiles", "word"], 3, "no valid SMILES"),
    ],
)
def test_the_command_refuses(
    more: list[str], code: int, said: str, folder: Path, table: Path, tmp_path: Path,
    run_cli: Callable[..., tuple[int, str, str]],
) -> None:  # fmt: skip
    found, out, err = run_cli("gate", "inspect", folder, table, *more, "-o", tmp_path / "r.json")
    assert (found, out) == (code, "") and said in err and not (tmp_path / "r.json").exists()


def test_the_command_refuses_options_of_molecules_without_any(
    folder: Path, tmp_path: Path, run_cli: Callable[..., tuple[int, str, str]]
) -> None:
    for more in (["-o", tmp_path / "r.json"], ["--smiles", "x"], ["--column", "a=b"]):
        code, _, err = run_cli("gate", "inspect", folder, *more)
        assert code == 2 and "name a CSV file after the model" in err
    (tmp_path / "one.csv").write_text("smiles\nCCO\n")
    code, _, err = run_cli("gate", "inspect", folder, tmp_path / "one.csv")
    assert code == 3 and "at least 2" in err
