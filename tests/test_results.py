"""Results: intervals against published values, JSON there and back, and errors that name the field."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from taskvec.errors import InputError, StorageError, UnknownName
from taskvec.results import (
    Z95,
    AdditionResult,
    AnalogyResult,
    Curve,
    GeometryResult,
    NegationResult,
    Provenance,
    Row,
    Score,
    read_result,
    read_results,
)

MADE = Provenance(
    taskvec="0.1.0",
    python="3.12.0",
    platform="Linux x86_64",
    seed=3,
    libraries={"torch": "2.13.0"},
    inputs={"base": "sha256:00ff"},
    settings={"steps": 300, "lr": 1e-3, "nested": {"a": [1, 2]}},
)


def scores(**hits: int) -> dict[str, Score]:
    return {task: Score.share(h, 100) for task, h in hits.items()}


def one_curve() -> Curve:
    line = tuple(Score.share(h, 50) for h in (20, 30, 25))
    return Curve(coefficients=(0.0, 0.1, 0.2), scores={"a": line, "<b>": line}, chosen=1, objective="highest mean")


ROWS = (
    Row(name="base", scores=scores(a=40, b=50)),
    Row(
        name="task arithmetic",
        scores=scores(a=80, b=70),
        coefficient=0.1,
        curve=one_curve(),
        normalised={"a": 0.8421052631578947, "b": 0.7},
        note="π ≈ 3, \x1b[31m, <script>",
    ),
)
ALL = [
    AdditionResult(title="add", provenance=MADE, tasks=("a", "b"), rows=ROWS),
    NegationResult(title="forget", provenance=MADE, target="a", control="b", control_share=0.95, rows=ROWS),
    AnalogyResult(title="infer", provenance=MADE, task="a", cells={k: k.lower() for k in "ABCD"}, rows=ROWS),
    GeometryResult(
        title="shape", provenance=MADE, names=("a", "b"), norms=(0.1, 1e-30), cosine=((1.0, -1 / 3), (-1 / 3, 1.0))
    ),
]


# ---- intervals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0000, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_is_wilsons(hits: int, n: int, low: float, high: float) -> None:
    """Newcombe 1998, Statistics in Medicine 17:857, table I, method 3."""
    score = Score.share(hits, n)
    assert (round(score.low, 4), round(score.high, 4)) == (low, high)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_interval_ends_are_the_shares_a_z_test_just_accepts(case: tuple[int, int]) -> None:
    hits, n = case
    score = Score.share(hits, n)
    assert 0 <= score.low <= score.value <= score.high <= 1
    for end in (score.low, score.high):
        if 0 < end < 1:
            assert abs(score.value - end) == pytest.approx(Z95 * math.sqrt(end * (1 - end) / n), rel=1e-6, abs=1e-12)


@given(st.integers(0, 200))
def test_hits_and_misses_mirror(hits: int) -> None:
    one, other = Score.share(hits, 200), Score.share(200 - hits, 200)
    assert one.low == pytest.approx(1 - other.high, abs=1e-12)


@pytest.mark.parametrize(("hits", "n"), [(1, 0), (-1, 10), (11, 10)])
def test_an_impossible_share_is_refused(hits: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"hits={hits}, n={n}"):
        Score.share(hits, n)


@pytest.mark.parametrize("field", ["value", "low", "high"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.1, 1.1])
def test_a_score_is_a_share(field: str, bad: float) -> None:
    good = {"value": 0.5, "n": 10, "low": 0.2, "high": 0.8}
    with pytest.raises(ValidationError, match=field):
        Score(**{**good, field: bad})  # type: ignore[arg-type]


def test_the_mean_of_many_is_narrower_than_each() -> None:
    one = Score.share(60, 100)
    four = Score.mean([one] * 4)
    assert four.value == pytest.approx(0.6)
    assert four.n == 400
    assert four.high - four.low == pytest.approx((one.high - one.low) / 2)


# ---- rows and curves ------------------------------------------------------------------------------------------------


def test_a_curve_knows_the_chosen_coefficient() -> None:
    assert one_curve().coefficient == 0.1


@pytest.mark.parametrize("chosen", [-1, 3])
def test_a_choice_outside_the_curve_is_refused(chosen: int) -> None:
    with pytest.raises(ValidationError, match=f"chosen is {chosen}, but there are 3"):
        Curve(**{**one_curve().model_dump(), "chosen": chosen})


def test_a_curve_with_a_missing_point_is_refused() -> None:
    short = {"a": one_curve().scores["a"][:2]}
    with pytest.raises(ValidationError, match="'a' has 2 scores for 3 coefficients"):
        Curve(**{**one_curve().model_dump(), "scores": short})


def test_geometry_must_be_square() -> None:
    with pytest.raises(ValidationError, match="2 names need 2 norms"):
        GeometryResult(title="x", provenance=MADE, names=("a", "b"), norms=(1.0, 1.0), cosine=((1.0, 0.0),))


def test_row_lookup_and_its_error() -> None:
    assert ALL[0].row("base").mean.value == pytest.approx(0.45)
    assert ALL[0].row("base").mean_normalised is None
    assert ALL[0].row("task arithmetic").mean_normalised == pytest.approx((0.8421052631578947 + 0.7) / 2)
    with pytest.raises(UnknownName, match=r"no row 'task arithmetics'.*Did you mean 'task arithmetic'"):
        ALL[0].row("task arithmetics")


def test_results_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        ALL[0].title = "other"  # type: ignore[misc]


def test_provenance_holds_no_path_and_no_host() -> None:
    import getpass
    import socket

    text = Provenance.now(seed=1).model_dump_json()
    assert socket.gethostname() not in text
    assert f"/{getpass.getuser()}" not in text


# ---- JSON -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("result", ALL, ids=lambda r: r.kind)
def test_json_there_and_back(result, tmp_path) -> None:
    path = result.write(tmp_path / "deep" / "er" / "r.json")
    assert read_result(path) == result
    assert read_result(path).model_dump_json() == result.model_dump_json()


def test_what_has_no_number_survives_json(tmp_path) -> None:
    result = ALL[3].model_copy(update={"cosine": ((1.0, math.nan), (math.nan, 1.0)), "base_norm": math.inf})
    back = read_result(result.write(tmp_path / "r.json"))
    assert math.isnan(back.cosine[0][1])
    assert back.base_norm == math.inf


def test_a_folder_reads_in_the_order_of_its_names(tmp_path) -> None:
    for name, result in zip("cab", ALL, strict=False):
        result.write(tmp_path / f"{name}.json")
    (tmp_path / "notes.txt").write_text("not a result")
    assert [r.kind for r in read_results(tmp_path)] == ["negation", "analogy", "addition"]
    assert read_results(tmp_path / "a.json") == [ALL[1]]


def test_an_empty_folder_says_what_was_expected(tmp_path) -> None:
    with pytest.raises(InputError, match="no results in"):
        read_results(tmp_path)


def broken(result, **changes) -> str:
    document = json.loads(result.model_dump_json())
    for where, value in changes.items():
        *parents, last = where.split("__")
        inner = document
        for key in parents:
            inner = inner[int(key) if key.isdigit() else key]
        inner[last] = value
    return json.dumps(document)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "it has no kind and schema_version"),
        ("3", "it has no kind and schema_version"),
        (broken(ALL[0], schema_version=2), "schema_version is 2, expected 1"),
        (broken(ALL[0], schema_version="1"), "schema_version is '1', expected 1"),
        (broken(ALL[0], kind="addtion"), "addtion"),
        (broken(ALL[0], colour="red"), "addition.colour"),
        (broken(ALL[0], rows__0__scores__a__value="high"), "addition.rows.0.scores.a.value"),
        (broken(ALL[0], rows__0__scores__a__value=1.5), "addition.rows.0.scores.a.value"),
        (broken(ALL[0], rows__1__curve__split="test"), "addition.rows.1.curve.split"),
        (broken(ALL[1], control_share=None), "negation.control_share"),
        (broken(ALL[2], cells="ABCD"), "analogy.cells"),
        (broken(ALL[3], norms=[1.0]), "2 names need 2 norms"),
    ],
)
def test_a_wrong_file_is_refused_by_field(text: str, said: str, tmp_path) -> None:
    path = tmp_path / "r.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_result(path)
    assert "r.json" in str(caught.value)
    assert said in str(caught.value)


def test_bytes_that_are_no_text_are_refused(tmp_path) -> None:
    (tmp_path / "r.json").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(InputError, match="not JSON"):
        read_result(tmp_path / "r.json")


def test_a_missing_file_is_refused(tmp_path) -> None:
    with pytest.raises(InputError, match="cannot read the result"):
        read_result(tmp_path / "none.json")


def test_a_result_that_cannot_be_written_says_so(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write the result"):
        ALL[0].write(tmp_path / "file" / "r.json")


def test_other_json_of_a_folder_is_left_out_and_noted(tmp_path, caplog) -> None:
    ALL[0].write(tmp_path / "a.json")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "printed.json").write_text('{"schema_version": 1, "command": "eval"}')
    with caplog.at_level("INFO", logger="taskvec"):
        assert read_results(tmp_path) == [ALL[0]]
    assert "no results: 'config.json', 'printed.json'" in caplog.text
    with pytest.raises(InputError, match=r"config\.json is not a result: it has no kind"):
        read_results(tmp_path / "config.json")
    (tmp_path / "cut.json").write_text('{"schema_version": 1, "kind')
    with pytest.raises(InputError, match=r"cut\.json is not a result file"):
        read_results(tmp_path)
