"""Molecules: cleaning, splits, graphs, and the commands from CSV to report."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra: train)")
pytest.importorskip("rdkit", reason="rdkit is not installed (extra: molecules)")

from taskvec import report  # noqa: E402
from taskvec.errors import InputError, UnknownName, UsageError  # noqa: E402
from taskvec.gate import clean, fingerprints, gather, graphs, read_molecules, split, together  # noqa: E402
from taskvec.gate.inputs import Graphs  # noqa: E402
from taskvec.gate.model import MessagePassing, embed, seeded  # noqa: E402
from taskvec.gate.molecules import canonical, scaffold  # noqa: E402
from taskvec.gate.scores import ABLATIONS  # noqa: E402
from taskvec.results import GateResult, read_result  # noqa: E402

SHARED = Path(__file__).parents[2] / "shared" / "data"
RINGS = ["c1ccccc1", "C1CCCCC1", "c1ccncc1", "C1CCOC1", "c1ccsc1", "c1ccc2ccccc2c1", "C1CC1", "c1cc[nH]c1"]
TAILS = ["C", "CC", "O", "N", "CO", "CCO", "Cl", "F", "CCN", "CS"]
DRUGS = [tail + ring for ring in RINGS for tail in TAILS] + ["CCO", "CCC", "CCN", "C"]


def test_canonical_smiles_of_the_largest_fragment() -> None:
    assert canonical("OCC") == ("CCO", False)
    assert canonical("[Na+].CC(=O)[O-]") == ("CC(=O)[O-]", True)
    assert canonical("C(C") is None and canonical("") is None and canonical("[H][H]") is None
    assert canonical("F/C=C/F") != canonical("F/C=C\\F")  # stereochemistry stays
    assert canonical("CCO.OCC") == ("CCO", True)


def test_cleaning_counts_what_it_does() -> None:
    made = clean(
        ["CCO", "OCC", "C(C", "CC.[Cl-]", "CCC", "CCC", "CCCC"],
        {"y": [1.0, 1.2, 9.0, 3.0, 0.0, 8.0, np.nan], "same": [5.0] * 7, "none": [np.nan] * 7},
    )
    assert made.smiles == ("CCO", "CC", "CCC", "CCCC")
    np.testing.assert_allclose(made.targets["y"], [1.1, 3.0, np.nan, np.nan])
    c = made.counts
    assert (c.rows, c.invalid, c.salts, c.duplicates) == (7, 1, 1, 2)
    assert c.missing == {"y": 1} and c.conflicting == {"y": 1} and c.constant == ("same", "none")
    said = " ".join(c.said())
    assert "'C(C'" in said and "more than 0.5 standard deviations apart" in said
    with pytest.raises(UnknownName, match="constant"):
        made.target("same")
    with pytest.raises(InputError, match="no valid SMILES"):
        clean(["?", "("], {"y": [1, 2]})
    with pytest.raises(InputError, match="no target varies"):
        clean(["C", "CC"], {"y": [1, 1]})


def test_two_units_in_one_column_are_seen_on_repeated_molecules(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    energy = rng.normal(-5, 3, len(DRUGS))
    again = np.arange(12)
    smiles = DRUGS + [DRUGS[i] for i in again]
    for second, said in (
        (4.184 * energy[again], "a factor of 4.184 (kcal and kJ?)"),
        (energy[again] + 273.15, "a shift of 273.15 (degrees Celsius and kelvin?)"),
        (energy[again] + rng.normal(0, 1, 12), None),
        (np.r_[4.184 * energy[again[:4]], energy[again[4:]]], None),  # four pairs may be chance
    ):
        made = clean(smiles, {"y": [*energy, *second]})
        assert made.counts.units.get("y") == (said and f"labels of 12 repeated molecules differ by {said}")
        assert any("two units in one column" in line for line in made.counts.said()) == (said is not None)
        if said:
            assert (
                np.isnan(made.target("y")[again]).all()
                and made.counts.conflicting["y"] == made.counts.missing["y"] == 0
            )
            assert np.isfinite(made.target("y")[12:]).all()
    melting = rng.integers(200, 300, len(DRUGS)).astype(float)  # whole degrees, measured twice: 3 apart is no unit
    for _ in range(20):
        second = np.rint(melting + rng.normal(0, 1.5, len(DRUGS)))
        assert not clean(DRUGS * 2, {"y": [*melting, *second]}).counts.units
    tiny = 1e-12 * np.exp(rng.normal(size=len(DRUGS)))
    assert "thousand" in clean(smiles, {"y": [*tiny, *(1000 * tiny[again])]}).counts.units["y"]
    few = clean(DRUGS[:20], {"y": 27.2114 * energy[:20]})
    with pytest.raises(
        UsageError, match=r"20 molecules of both its labels differ by a factor of 27.2114 \(hartree and eV"
    ):
        together([clean(DRUGS, {"y": energy}), few])
    gaps = energy.copy()
    gaps[5:] = np.nan
    with pytest.raises(UsageError, match="5 molecules of both its labels agree for 5"):
        together([clean(DRUGS, {"y": energy}), clean(DRUGS[:20], {"y": gaps[:20]})])
    with pytest.raises(UsageError, match="20 molecules of both its labels agree for 20"):
        together([clean(DRUGS, {"y": energy}), clean(DRUGS[:20], {"y": energy[:20]})])


def test_tables_say_where_they_are_wrong(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("name,SMILES,y,z\nx,CCO,1,2\nx,CC,n/a,3\n")
    made = read_molecules(path)
    assert list(made.targets) == ["z"] and made.counts.constant == ("y",)  # text columns are no targets
    path.write_text("SMILES,y\nCCO,1\nCC,high\n")
    with pytest.raises(InputError, match=r"line 3: 'y' is 'high'"):
        read_molecules(path, targets=["y"])
    with pytest.raises(UnknownName, match="Did you mean 'y'"):
        read_molecules(path, targets=["yy"])
    path.write_text("formula,y\nCCO,1\n")
    with pytest.raises(UsageError, match="called smiles"):
        read_molecules(path)
    path.write_text("SMILES,y\nCCO\n")
    with pytest.raises(InputError, match="line 2: 1 values"):
        read_molecules(path)


def test_sets_join_by_molecule(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("smiles,y\nCCO,1\nCC,2\n")
    (tmp_path / "b.csv").write_text("smiles,z,w\nOCC,5,1\nCCC,6,2\n")
    made = gather([tmp_path / "a.csv", tmp_path / "b.csv"], targets=["y", "z"])
    assert made.smiles == ("CCO", "CC", "CCC") and list(made.targets) == ["y", "z"]
    np.testing.assert_equal(made.targets["z"], [5, np.nan, 6])
    with pytest.raises(UsageError, match="several files have the target 'y'"):
        together([made, made])


@pytest.mark.parametrize("by", ["random", "scaffold"])
def test_splits_share_nothing_and_cover_everything(by: str) -> None:
    smiles = [c[0] for s in DRUGS if (c := canonical(s))]
    parts = [split(smiles, by=by, folds=4, fold=k, seed=1) for k in range(4)]  # type: ignore[arg-type]
    for p in parts:
        assert sorted([*p.train, *p.validation, *p.test]) == list(range(len(smiles)))
        if by == "scaffold":
            cores = [{scaffold(smiles[i]) for i in rows} for rows in (p.train, p.validation, p.test)]
            assert not cores[0] & cores[1] and not cores[0] & cores[2] and not cores[1] & cores[2]
    tested = [i for p in parts for i in p.test]
    assert len(tested) == len(set(tested)) == len(smiles) - (0 if by == "random" else sum(len(g) > len(smiles) / 8 for g in _groups(smiles)))  # fmt: skip
    again, other = (split(smiles, by=by, folds=4, seed=s) for s in (1, 2))  # type: ignore[arg-type]
    np.testing.assert_equal(again.test, parts[0].test)
    assert [*other.test] != [*parts[0].test]


def _groups(smiles: list[str]) -> list[list[str]]:
    found: dict[str, list[str]] = {}
    for s in smiles:
        found.setdefault(scaffold(s), []).append(s)
    return [g for g in found.values() for _ in g]  # one for each molecule


def test_split_refuses_what_cannot_be() -> None:
    with pytest.raises(UsageError, match="'random' or 'scaffold'"):
        split(["C", "CC"], by="scaffolds")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="validation part of the split by random is empty"):
        split(["C", "CC"], folds=2)


def network() -> MessagePassing:
    return seeded(0, lambda: MessagePassing(12, 3))


def test_an_embedding_does_not_depend_on_the_order_of_atoms_or_on_company() -> None:
    a, b = graphs(["CC(=O)Oc1ccccc1C(=O)O", "C", "CCN"]), graphs(["OC(=O)c1ccccc1OC(C)=O"])
    ours, theirs = embed(network(), a), embed(network(), b)
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=1e-6)
    assert torch.isfinite(ours).all()  # methane has no bonds
    torch.testing.assert_close(embed(network(), a.take([2, 0])), ours[[2, 0]], rtol=1e-5, atol=1e-6)
    assert (ours[0] - ours[2]).abs().max() > 1e-3


def test_message_passing_is_its_equations() -> None:
    found: Graphs = graphs(["CC(=O)Nc1ccccc1", "C"])
    net = network()
    with torch.no_grad():
        first = {}
        arrows = list(zip(found.source.tolist(), found.goal.tolist(), strict=True))
        for k, (v, w) in enumerate(arrows):
            first[v, w] = torch.relu(net.start(torch.cat([found.atoms[v], found.bonds[k]])))
        state = dict(first)
        for _ in range(net.depth - 1):
            state = {
                (v, w): torch.relu(first[v, w] + net.message(sum((state[u, x] for u, x in arrows if x == v and u != w), torch.zeros(12))))
                for v, w in arrows
            }  # fmt: skip
        atoms = [
            torch.relu(net.atom(torch.cat([found.atoms[v], sum((state[u, x] for u, x in arrows if x == v), torch.zeros(12))])))
            for v in range(len(found.atoms))
        ]  # fmt: skip
        for i in range(2):
            own = torch.stack(atoms[found.first_atom[i] : found.first_atom[i + 1]])
            wanted = net.out(torch.cat([own.mean(0), own.sum(0) / 20]))
            torch.testing.assert_close(net(found)[i], wanted, rtol=1e-4, atol=1e-5)


def test_fingerprints_are_counts() -> None:
    found = fingerprints(["CCO", "OCC", "CCCCO"]).values
    assert found.shape == (3, 1024) and torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    with pytest.raises(InputError, match="no valid SMILES"):
        fingerprints(["C("])


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Two sources and a target that are functions of the molecule, with a duplicate and an invalid row."""
    path = tmp_path / "data.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["smiles", "size", "hetero", "mixed"])
        for s in [*DRUGS, DRUGS[0], "C(C"]:
            big, other = len(s.upper().strip("123()")), sum(c in "ONSFnso" for c in s)
            writer.writerow([s, big, other, big - 2 * other])
    return path


def test_the_commands_from_csv_to_report(
    table: Path, tmp_path: Path, run_cli: Callable[..., tuple[int, str, str]]
) -> None:
    small = ["--width", 16, "--latent", 8]
    sources = ["--target", "size", "--target", "hetero"]
    code, out, err = run_cli("gate", "pretrain", table, *sources, "-o", tmp_path / "net", "--steps", 20, *small)
    assert code == 0 and "size, hetero" in out and "'C(C'" in err
    assert run_cli("gate", "pretrain", table, *sources, "-o", tmp_path / "net", "--steps", 20)[0] == 2  # exists
    before = run_cli("gate", "predict", tmp_path / "net", table)[1]
    code, out, err = run_cli(
        "gate", "add", tmp_path / "net", table, "--target", "mixed", "--unlabelled", table, "-o", tmp_path / "more", "--steps", 10,
        "--factor", "displacement=0", "--json",
    )  # fmt: skip
    assert code == 0 and json.loads(out)["properties"] == ["size", "hetero", "mixed"]
    assert "displacement" not in json.loads(out)["terms"] and "mapping" in json.loads(out)["terms"]
    assert run_cli("gate", "predict", tmp_path / "more", table, "-o", tmp_path / "p.csv")[0] == 0
    rows = list(csv.DictReader((tmp_path / "p.csv").read_text().splitlines()))
    assert [{k: v for k, v in r.items() if k != "mixed"} for r in rows] == list(csv.DictReader(before.splitlines()))
    assert rows[-1] == {"smiles": "C(C", "size": "", "hetero": "", "mixed": ""} and len(rows) == len(DRUGS) + 2
    code, out, _ = run_cli("gate", "inspect", tmp_path / "more")
    assert code == 0 and "source  size" in out and "added   mixed" in out
    code, _, err = run_cli("gate", "predict", tmp_path / "more", table, "--property", "mixd")
    assert code == 2 and "Did you mean 'mixed'" in err
    assert run_cli("gate", "add", tmp_path / "net", table, "--target", "mixed", "-o", tmp_path / "x", "--factor", "maping=1")[0] == 2  # fmt: skip
    more = ["--target", "mixed", "--name", "again", "--steps", 3, "-o", tmp_path / "else"]
    assert run_cli("gate", "add", tmp_path / "net", table, *more)[0] == 0
    code, out, err = run_cli("gate", "join", tmp_path / "more", tmp_path / "else", "-o", tmp_path / "both")
    assert code == 0 and "size, hetero, mixed, again" in out and "brings again" in err
    both = list(csv.DictReader(run_cli("gate", "predict", tmp_path / "both", table)[1].splitlines()))
    assert [{k: v for k, v in r.items() if k != "again"} for r in both] == rows
    assert "adding again" in run_cli("gate", "inspect", tmp_path / "both")[1]
    assert run_cli("gate", "join", tmp_path / "more", "-o", tmp_path / "x")[0] == 2
    assert (
        run_cli("gate", "pretrain", table, *sources, "-o", tmp_path / "other", "--steps", 3, "--seed", 1, *small)[0]
        == 0
    )
    code, _, err = run_cli("gate", "join", tmp_path / "more", tmp_path / "other", "-o", tmp_path / "x")
    assert code == 3 and "embeddings differ" in err and not (tmp_path / "x").exists()


def test_evaluate_reads_test_labels_only_to_score(
    table: Path, tmp_path: Path, run_cli: Callable[..., tuple[int, str, str]]
) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed (extra: eval)")
    common = [
        "--source",
        "size",
        "--source",
        "hetero",
        "--target",
        "mixed",
        "--labels",
        20,
        "--folds",
        3,
        "--steps",
        10,
    ]
    common += ["--width", 16, "--latent", 8, "--pretraining-steps", 12]
    code, out, err = run_cli("gate", "evaluate", table, *common, "-o", tmp_path / "r.json", "--split", "scaffold")
    assert code == 0, err
    assert "the same bits" in out and "random forest" in out
    found = json.loads((tmp_path / "r.json").read_text())
    (target,) = found["runs"][0]["targets"]
    steps = found["provenance"]["settings"]
    assert (steps["spec"]["steps"], steps["pretraining"]["steps"]) == (10, 12)
    assert target["train"] + target["validation"] == 20
    assert set(found["methods"]) == {
        "task addition",
        "single task",
        "multi-task",
        "fine-tuned",
        "random forest",
        "weight addition",
    }
    assert not found["curves"] and not found["ablation"]
    # other test labels, the same predictions
    text = list(csv.reader(table.read_text().splitlines()))
    for row in text[1:]:
        if (c := canonical(row[0])) and c[0] in target["molecules"]:
            row[1:] = [str(float(x) + 50) for x in row[1:]]
    with (tmp_path / "other.csv").open("w", newline="") as file:
        csv.writer(file).writerows(text)
    assert run_cli("gate", "evaluate", tmp_path / "other.csv", *common, "-o", tmp_path / "s.json", "--split", "scaffold")[0] == 0  # fmt: skip
    other = json.loads((tmp_path / "s.json").read_text())["runs"][0]["targets"][0]
    assert other["truth"] != target["truth"] and other["predictions"] == target["predictions"]


def test_learning_curves_and_ablation(
    table: Path, tmp_path: Path, run_cli: Callable[..., tuple[int, str, str]]
) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed (extra: eval)")
    common = ["--source", "size", "--source", "hetero", "--target", "mixed", "--labels", 20, "--folds", 3, "--steps", 4]
    common += ["--width", 8, "--latent", 4, "--split", "scaffold", "-o", tmp_path / "r.json"]
    for wrong, said in (("3", "begins at 4"), ("10,x", "whole numbers"), ("10,10", "more than once")):
        code, _, err = run_cli("gate", "evaluate", table, *common, "--sizes", wrong)
        assert code == 2 and said in err
    code, _, err = run_cli(
        "gate", "evaluate", table, *common, "--sizes", "10,20,all,9999", "--ablate", "--seeds", "0,1"
    )
    assert code == 0, err
    found = read_result(tmp_path / "r.json")
    assert isinstance(found, GateResult)
    labels = [p.labels for p in found.curves["mixed"]]
    assert labels[:2] == [10, 20] and len(labels) == 3 and labels[2] > 20  # 9999 is all of them again
    assert set(found.curves["mixed"][0].errors) == {
        "task addition",
        "single task",
        "multi-task",
        "fine-tuned",
        "random forest",
    }
    assert found.curves["mixed"][1].errors["single task"] == found.errors["mixed"]["single task"]
    assert set(found.ablation["mixed"]) == set(ABLATIONS)
    assert all(r.runs == 2 for r in found.ablation["mixed"].values())
    whole, alone = (found.runs[0].target("mixed").predictions[m] for m in ("task addition", "regression alone"))
    assert whole != alone and "regression alone" not in found.methods
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra: report)")
    page = report.write([found], tmp_path / "r.html").read_text()
    assert page.count("<svg") == 5 and "Additions without a loss" in page and "by the number of labels" in page


def test_every_fold_tests_once(table: Path, tmp_path: Path, run_cli: Callable[..., tuple[int, str, str]]) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed (extra: eval)")
    common = [
        "gate",
        "evaluate",
        table,
        "--source",
        "size",
        "--target",
        "mixed",
        "--labels",
        20,
        "--steps",
        2,
        "--width",
        8,
    ]
    common += ["--folds", 3, "-o", tmp_path / "r.json", "--fold"]
    for wrong in ("3", "-1", "x", "", "1,1"):
        code, _, err = run_cli(*common, wrong)
        assert code == 2 and "--fold" in err and not (tmp_path / "r.json").exists()
    code, _, err = run_cli(*common, "all")
    assert code == 0 and "seed 0, fold 2: pre-training" in err, err
    found = read_result(tmp_path / "r.json")
    assert isinstance(found, GateResult) and [r.fold for r in found.runs] == [0, 1, 2]
    tested = [m for r in found.runs for m in r.target("mixed").molecules]
    labels = read_molecules(table, targets=["mixed"])
    assert len(tested) == len(set(tested)) == np.isfinite(labels.target("mixed")).sum()
    assert found.errors["mixed"]["single task"].n == len(tested)


def test_real_molecules_are_read() -> None:
    path = SHARED / "moleculenet" / "FreeSolv_SAMPL.csv.gz"
    if not path.exists():
        pytest.skip("the real molecules are not here (../shared/data)")
    made = read_molecules(path, targets=["expt"])
    assert len(made) == made.counts.rows == 642 and made.counts.invalid == 0
    assert np.isfinite(made.targets["expt"]).all() and -26 < made.targets["expt"].min() < -20
