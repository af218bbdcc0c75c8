"""`taskvec audit`: from a table to the verdict, the files, the limits and the errors."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from taskvec.protocols import fairness, groups_of, intersections
from taskvec.results import read_result

ADULT = Path(__file__).parents[2] / "shared" / "data" / "fair_tabular" / "adult.csv.gz"


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list]:
    """600 people; `base` selects men more often, `edited` does not. Written to people.csv in the current folder."""
    rng = np.random.default_rng(0)
    sex, race = rng.choice(["f", "m"], 600), rng.choice(["x", "y", "z"], 600, p=[0.5, 0.46, 0.04])
    y = rng.integers(0, 2, 600)
    base = (rng.random(600) < np.where(sex == "m", 0.7, 0.3)).astype(int)
    edited = np.where(rng.random(600) < 0.8, y, 1 - y)
    columns = {
        "y": y, "sex": sex, "race": race, "base": base, "edited": edited, "p": (edited + rng.random(600)).round(3),
        "old": rng.integers(0, 2, 600), "ill": rng.integers(0, 2, 600),
    }  # fmt: skip
    found = {name: values.tolist() for name, values in columns.items()}
    monkeypatch.chdir(tmp_path)
    write(found)
    return found


def write(columns: dict[str, list], path: str = "people.csv") -> None:
    rows = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
    data = ("\n".join(rows) + "\n").encode()
    Path(path).write_bytes(gzip.compress(data) if path.endswith(".gz") else data)


BASIC = ("audit", "people.csv", "--label", "y", "--prediction", "base", "--prediction", "edited", "--no-check")


def test_the_file_is_the_result_of_the_protocol(table, run_cli):
    code, out, err = run_cli(*BASIC, "--group", "sex", "--score", "edited=p", "-o", "out/audit.json")
    assert (code, "out/audit.json" in err) == (0, True)
    assert out.count("AUC") == 1  # of the model with scores
    expected = fairness(
        table["y"], {n: table[n] for n in ("base", "edited")}, groups_of(table["sex"]), grouping="sex", scores={"edited": table["p"]}
    )  # fmt: skip
    result = read_result("out/audit.json")
    assert (result.rows, result.comparisons) == (expected.rows, expected.comparisons)
    for words in (
        "base, by sex", "parity_ratio", "edited less base", "edited has a smaller parity difference", "a small gap is no proof",
    ):  # fmt: skip
        assert words in out, words
    assert run_cli("report", "out/audit.json", "-o", "r.md")[0] == 0
    assert "Rates by group: edited" in Path("r.md").read_text(encoding="utf-8")
    code, _, err = run_cli(*BASIC, "--group", "sex", "-o", "out/audit.json")
    assert code == 4
    assert "out/audit.json exists" in err
    assert run_cli(*BASIC, "--group", "sex", "-o", "out/audit.json", "--overwrite")[0] == 0


def test_each_column_their_combinations_and_overlapping_groups(table, run_cli):
    arguments = ["--group", "sex", "--group", "race", "--intersect", "--member", "old", "--member", "ill"]
    code, out, _ = run_cli(*BASIC, *arguments, "-o", "a.json", "--json")
    document = json.loads(out)
    assert code == 0
    assert [r["grouping"] for r in document["results"]] == ["sex", "race", "sex & race", "old, ill"]
    assert document["output"] == ["a.sex.json", "a.race.json", "a.sex-race.json", "a.old-ill.json"]
    both = read_result("a.sex-race.json")
    assert both.groups == tuple(intersections(groups_of(table["sex"]), groups_of(table["race"])))
    assert "‘f & z’" in " ".join(document["verdict"]["sex & race"])  # too small, and said so
    overlapping = read_result("a.old-ill.json").rows[0].audit
    neither = sum(not a and not b for a, b in zip(table["old"], table["ill"], strict=True))
    assert (overlapping.overlap, overlapping.missing) == (True, neither)


def test_a_limit_that_does_not_hold_is_exit_code_5(table, run_cli):
    code, out, err = run_cli(
        *BASIC, "--group", "sex", "--at-most", "edited:parity=0.2", "--at-least", "edited:parity_ratio=0.5"
    )
    assert code == 0
    assert "holds: parity by sex of edited is 0.0" in out
    code, out, err = run_cli(*BASIC, "--group", "sex", "--at-most", "parity=0.2", "-o", "a.json")
    assert code == 5
    assert "parity by sex of base is 0.4" in err
    assert "of edited" not in err
    assert Path("a.json").exists()  # the gate fails, the result is there to look at
    code, out, err = run_cli(
        *BASIC, "--group", "sex", "--at-least", "base:parity_ratio=0.8", "--at-most", "base:odds=0.1", "--json"
    )
    assert code == 5
    assert [h["holds"] for h in json.loads(out)["limits"]] == [False, False]
    code, _, err = run_cli(*BASIC, "--group", "sex", "--min-n", "5000", "--at-most", "parity=0.9")
    assert code == 5
    assert "could not be measured (only 0 of 2 groups" in err


@pytest.mark.parametrize(("arguments", "code", "said"), [
    (["--group", "sx"], 2, "people.csv has no column 'sx'; it has 'y', 'sex',"),
    (["--group", "sx"], 2, "Did you mean 'sex'?"),
    (["--group", "y"], 3, "group '0' is the label itself"),
    ([], 2, "name the groups: --group COLUMN"),
    (["--group", "sex", "--group", "sex"], 2, "--group names 'sex' twice"),
    (["--group", "sex", "--intersect"], 2, "--intersect needs two or more"),
    (["--group", "sex", "--score", "p"], 2, "--score p: say whose scores they are, for example --score base=p"),
    (["--group", "sex", "--score", "bse=p"], 2, "Did you mean 'base'?"),
    (["--group", "sex", "--at-most", "partiy=0.1"], 2, "Did you mean 'parity'?"),
    (["--group", "sex", "--at-most", "parity_ratio=0.8"], 2, "A ratio goes to --at-least."),
    (["--group", "sex", "--at-most", "parity"], 2, "[MODEL:]GAP=LIMIT"),
    (["--group", "sex", "--at-most", "parity=5"], 2, "a limit from 0 to 1"),
    (["--group", "sex", "--at-most", "edted:parity=0.1"], 2, "Did you mean 'edited'?"),
    (["--group", "p"], 3, "different values are too many groups"),
    (["--member", "sex", "--member", "old"], 3, "--member sex: expected 0 and 1"),
    (["--member", "old"], 2, "one group, 'old', expected at least two"),
    (["--group", "sex", "--positive", "3"], 2, "labels are never '3'"),
    (["--group", "sex", "-o", "audit.csv"], 2, "ends in .json"),
])  # fmt: skip
def test_mistakes_are_said_in_words(table, run_cli, arguments, code, said):
    found, _, err = run_cli(*BASIC, *arguments)
    assert (found, said in err) == (code, True), err


@pytest.mark.parametrize(("change", "code", "said"), [
    (lambda t: {**t, "y": [7, *t["y"][1:]]}, 3, "labels are not binary: expected 0 and 1, got 3 values"),
    (lambda t: {**t, "y": ["", *t["y"][1:]]}, 3, "labels: 1 of 600 values are missing"),
    (lambda t: {**t, "base": ["nan", *t["base"][1:]]}, 3, "predictions of 'base': 1 of 600"),
    (lambda t: {**t, "base": t["p"]}, 3, "predictions of 'base' are not binary"),
    (lambda t: {**t, "sex": ["f"] * 600}, 3, "the column has one value, 'f', in all rows"),
    (lambda t: {**t, "sex": [""] * 600}, 3, "the column has no value in all rows"),
    (lambda t: {n: [] for n in t}, 3, "a header and no rows"),
])  # fmt: skip
def test_bad_tables_are_refused(table, run_cli, change, code, said):
    write(change(table))
    found, _, err = run_cli(*BASIC, "--group", "sex")
    assert (found, said in err) == (code, True), err


def test_files_that_are_no_tables_are_refused(table, run_cli):
    for name, content, said in (
        ("ragged.csv", b"y,base,sex\n1,0,f\n1,0\n", "line 3: 2 values, but the header has 3"),
        ("quote.csv", b'y,base,sex\n1,0,"f\n', "not readable as CSV"),
        ("binary.csv", b"\xff\xfe\x00", "not UTF-8 text"),
        ("broken.csv.gz", b"not gzip", "cannot read the table"),
        ("twice.csv", b"y,base,sex,sex\n1,0,f,f\n", "more than one column 'sex'"),
    ):
        Path(name).write_bytes(content)
        code, _, err = run_cli("audit", name, "--label", "y", "--prediction", "base", "--group", "sex")
        assert (code, said in err) == (3, True), err
    code, _, err = run_cli("audit", "absent.csv", "--label", "y", "--prediction", "base", "--group", "sex")
    assert (code, "cannot read the table absent.csv" in err) == (3, True)


def test_codes_are_not_read_as_numbers(table, run_cli):
    codes = ["01", "1", "1_0", "10"]
    write({**table, "code": [codes[i % 4] for i in range(600)]})
    code, out, _ = run_cli(*BASIC, "--group", "code", "--json")
    groups = json.loads(out)["results"][0]["rows"][0]["audit"]["groups"]
    assert code == 0 and [(g["name"], g["n"]) for g in groups] == [(c, 150) for c in sorted(codes)]


def test_missing_groups_count_overall_only(table, run_cli):
    table["sex"] = ["?" if i % 3 == 0 else s for i, s in enumerate(table["sex"])]
    table["race"] = ["" if i % 3 == 0 else s for i, s in enumerate(table["race"])]
    write(table, "people.csv.gz")
    arguments = ["audit", "people.csv.gz", "--label", "y", "--prediction", "base", "--no-check", "--json"]
    for more in (["--group", "sex", "--missing", "?"], ["--group", "race"]):
        code, out, _ = run_cli(*arguments, *more)
        audit = json.loads(out)["results"][0]["rows"][0]["audit"]
        assert (code, audit["missing"], audit["overall"]["n"]) == (0, 200, 600)


def test_positive_is_a_word_or_a_number(table, run_cli):
    table["y"] = [">50K" if v else "<=50K" for v in table["y"]]
    write(table)
    code, _, err = run_cli(*BASIC, "--group", "sex")
    assert (code, "positive='>50K'" in err) == (3, True)
    code, out, _ = run_cli(*BASIC, "--group", "sex", "--positive", ">50K", "--json")
    assert code == 0
    assert json.loads(out)["results"][0]["positive"] == ">50K"


def test_parquet_gives_the_same(table, run_cli):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra: data)")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(table), "people.parquet")
    _, csv, _ = run_cli(*BASIC, "--group", "sex", "--json")
    code, found, _ = run_cli("audit", "people.parquet", *BASIC[2:], "--group", "sex", "--json")
    assert code == 0
    assert json.loads(found)["results"] == json.loads(csv)["results"]


def test_parquet_without_pyarrow_names_the_extra(table, run_cli):
    import importlib.util

    if importlib.util.find_spec("pyarrow"):
        pytest.skip("pyarrow is installed")
    code, _, err = run_cli("audit", "people.parquet", *BASIC[2:], "--group", "sex")
    assert (code, "pip install 'taskvec[data]'" in err) == (2, True)


def test_adult(run_cli, tmp_path, monkeypatch):
    """Real people: who is over 40 predicted to earn more, a rule that nobody should use; against counts taken by hand."""
    if not ADULT.exists():
        pytest.skip("the Adult data are not there (../shared/data/fair_tabular)")
    monkeypatch.chdir(tmp_path)
    lines = [line.split(",") for line in gzip.decompress(ADULT.read_bytes()).decode().splitlines() if line]
    head, rows = [h.strip() for h in lines[0]], [[v.strip() for v in line] for line in lines[1:]]
    age, sex, income = (head.index(n) for n in ("age", "sex", "income-per-year"))
    write({
        "y": [r[income] for r in rows], "sex": [r[sex] for r in rows], "rule": [">50K" if int(r[age]) > 40 else "<=50K" for r in rows],
    })  # fmt: skip
    check = pytest.importorskip("fairlearn", reason="fairlearn is not installed (extra: fairness)").__version__
    code, out, _ = run_cli(
        "audit", "people.csv", "--label", "y", "--positive", ">50K", "--group", "sex", "--prediction", "rule", "--json"
    )  # fmt: skip
    audit = json.loads(out)["results"][0]["rows"][0]["audit"]
    shares = [np.mean([int(r[age]) > 40 for r in rows if r[sex] == s]) for s in ("Male", "Female")]
    assert code == 0
    assert audit["n"] == len(rows) == 32561
    assert audit["gaps"]["parity"]["value"] == pytest.approx(shares[0] - shares[1], abs=1e-12)
    assert audit["checked"] == f"fairlearn {check}"


def test_a_column_of_texts_in_the_place_of_labels_is_not_printed(tmp_path, run_cli):
    rows = "".join(f"a sentence {i},{i % 2},{i % 2}\n" for i in range(60))
    (tmp_path / "t.csv").write_text("text,who,label\n" + rows)
    code, out, err = run_cli("audit", tmp_path / "t.csv", "--label", "text", "--prediction", "label", "--group", "who")
    assert code == 3 and "got 60 values. Name the column of labels." in err and "a sentence" not in out + err
