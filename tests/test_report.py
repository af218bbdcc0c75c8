"""Reports: self-contained, escaped, the same bytes again, and no number that the result does not hold."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from taskvec import report
from taskvec.errors import MissingExtra, StorageError, UsageError
from taskvec.report.words import WITHIN, compare
from taskvec.results import (
    AdditionResult,
    AnalogyResult,
    Curve,
    DisentanglementResult,
    GeometryResult,
    NegationResult,
    Pair,
    Provenance,
    Row,
    Score,
)

pytest.importorskip("matplotlib", reason="reports need the extra 'report'")
pytest.importorskip("jinja2", reason="reports need the extra 'report'")

MADE = Provenance(taskvec="0.1.0", python="3.12.0", platform="Linux x86_64", seed=3, inputs={"base": "sha256:00ff"})
HOSTILE = "<script>alert('x')</script>\x1b[31m $\\frac{1}$ | `\"&\u202e"


def share(hits: int, n: int = 360) -> Score:
    return Score.share(hits, n)


def curve(tasks, chosen: int, lines, n: int = 240) -> Curve:
    made = {t: tuple(Score.share(h, n) for h in line) for t, line in zip(tasks, lines, strict=True)}
    return Curve(coefficients=(0.0, 0.25, 0.5, 0.75, 1.0), scores=made, chosen=chosen, objective="the rule in words")


def addition(tasks=("rotated", "inverted", "shifted", "mirrored"), title="Add", edited=(300, 290, 310, 172)):
    finetuned = (350, 353, 340, 345)
    base, noise = (137, 76, 198, 169), (135, 80, 190, 170)

    def row(name, hits, **more):
        normalised = {t: h / f for t, h, f in zip(tasks, hits, finetuned, strict=True)}
        return Row(name=name, scores=dict(zip(tasks, map(share, hits), strict=True)), normalised=normalised, **more)

    rising = curve(tasks, 2, [(90, 150, 200, 190, 150)] * len(tasks))
    flat = curve(tasks, 0, [(90, 88, 80, 70, 60)] * len(tasks))
    return AdditionResult(
        title=title,
        provenance=MADE,
        tasks=tasks,
        rows=(
            row("base", base),
            row("fine-tuned", finetuned, note="each task by its own model"),
            row("random vector", noise, coefficient=0.0, curve=flat),
            row("task arithmetic", edited, coefficient=0.5, curve=rising),
        ),
    )


def negation(target="digit 3", control="the other nine", edited=(8, 420)):
    def row(name, hits, **more):
        return Row(name=name, scores={target: share(hits[0], 90), control: share(hits[1], 450)}, **more)

    kept = curve((target, control), 3, [(175, 150, 80, 20, 5), (174, 172, 170, 167, 150)], n=180)
    return NegationResult(
        title="Forget",
        provenance=MADE,
        target=target,
        control=control,
        control_share=0.95,
        rows=(
            row("base", (88, 436)),
            row("fine-tuned", (90, 140)),
            row("random vector", (85, 420), coefficient=1.0, curve=kept.model_copy(update={"chosen": 4})),
            row("gradient ascent", (50, 418), coefficient=0.25, curve=kept.model_copy(update={"chosen": 1})),
            row("task arithmetic", edited, coefficient=0.75, curve=kept),
        ),
    )


def analogy(hits: int = 134):
    d = "inverted 5-9"
    found = curve((d,), 2, [(120, 150, 190, 170, 140)])
    return AnalogyResult(
        title="Infer",
        provenance=MADE,
        task=d,
        cells={"A": "plain 0-4", "B": "inverted 0-4", "C": "plain 5-9", "D": d},
        rows=(
            Row(name="base", scores={d: share(87, 170)}),
            Row(name="source", scores={d: share(126, 170)}, coefficient=0.5, curve=found),
            Row(name="analogy", scores={d: share(hits, 170)}, coefficient=0.5, curve=found),
            Row(name="target-tuned", scores={d: share(163, 170)}),
        ),
    )


def geometry(names=("rotated", "inverted", "shifted")):
    cosine = ((1.0, 0.1234, -0.3), (0.1234, 1.0, float("nan")), (-0.3, float("nan"), 1.0))
    return GeometryResult(
        title="Shape", provenance=MADE, names=names, norms=(3.125, 4.25, 0.0), cosine=cosine, base_norm=41.5
    )


def xi(names=("rotated", "inverted"), hot=0.2):
    table = ((0.0, 0.0), (0.0, hot))
    pair = Pair(tasks=names, n=(40, 50), parts=(table, table), errors=(table, table))
    return DisentanglementResult(
        title="Apart", provenance=MADE, tasks=names, coefficients=(0.0, 1.0), box=(0.0, 1.0), forward="plain",
        distance="prediction", pairs=(pair,),
    )  # fmt: skip


def everything():
    return [addition(), negation(), analogy(), geometry(), xi()]


class Page(HTMLParser):
    """The parts of a page that tests ask for: tags with attributes, visible text, tables as lists of cell texts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self._inside, self._table, self._caption = "", [], ""
        self.text: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self._table, self._caption = [], ""
        elif tag == "tr":
            self._table.append([])
        elif tag in ("td", "th"):
            self._table[-1].append("")
        if tag in ("td", "th", "caption"):
            self._inside = tag
        elif tag == "small":
            self._table[-1][-1] += "\n"

    def handle_endtag(self, tag):
        if tag in ("td", "th", "caption"):
            self._inside = ""
        elif tag == "table":
            self.tables.setdefault(self._caption, self._table)

    def handle_data(self, data):
        self.text.append(data)
        if self._inside == "caption":
            self._caption += data
        elif self._inside:
            self._table[-1][-1] += data


def html_of(results, tmp_path, **more) -> str:
    return report.write(results, tmp_path / "report.html", **more).read_text(encoding="utf-8")


# ---- the file -------------------------------------------------------------------------------------------------------


def test_the_page_needs_nothing_but_itself(tmp_path) -> None:
    html = html_of(everything(), tmp_path)
    assert len(html) < 1_000_000
    assert "://" not in html
    assert "@import" not in html
    for tag, attributes in Page(html).tags:
        assert tag not in ("script", "link", "iframe", "img", "image", "object", "embed", "form", "base")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("href", "src", "xlink:href"):
                assert value and value.startswith("#")
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))


def test_every_reference_has_exactly_one_target(tmp_path) -> None:
    html = html_of([*everything(), *everything()], tmp_path)
    ids = re.findall(r'\bid="([^"]*)"', html)
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', html)) | set(re.findall(r'aria-labelledby="([^"]*)"', html))
    assert used <= set(ids)


def test_equal_results_give_equal_bytes_in_any_process(tmp_path) -> None:
    here = html_of([addition(), geometry()], tmp_path)
    for i, result in enumerate((addition(), geometry())):
        result.write(tmp_path / f"results/{i}.json")
    (tmp_path / "matplotlibrc").write_text("font.size: 30\naxes.facecolor: red\nsvg.hashsalt: other\n")
    code = (
        "import sys; from taskvec import report; from taskvec.results import read_results\n"
        "report.write(read_results(sys.argv[1]), sys.argv[2])"
    )
    where = {**os.environ, "MATPLOTLIBRC": str(tmp_path / "matplotlibrc"), "PYTHONHASHSEED": "7"}
    there = tmp_path / "there.html"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "results"), str(there)], check=True, env=where)
    assert hashlib.sha256(there.read_bytes()).hexdigest() == hashlib.sha256(here.encode()).hexdigest()


def test_drawing_leaves_matplotlib_as_it_was(tmp_path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    report.write([geometry()], tmp_path / "r.html")
    assert dict(matplotlib.rcParams) == before


def test_importing_the_report_loads_no_plotting() -> None:
    code = "import sys, taskvec.report; print([m for m in ('matplotlib', 'jinja2', 'torch') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("library", ["matplotlib", "jinja2"])
def test_an_absent_library_is_named_with_its_remedy(library, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtra, match=rf"{library}, which is not installed.*taskvec\[report\]"):
        report.write([addition()], tmp_path / "r.html")
    assert list(tmp_path.iterdir()) == []
    assert report.markdown([addition()])  # needs neither


def test_folders_are_made_and_an_old_report_is_replaced_whole(tmp_path) -> None:
    path = tmp_path / "a" / "b" / "r.html"
    assert report.write([geometry()], str(path)) == path
    path.write_text("old")
    report.write([geometry()], path, title="Second")
    assert "<h1>Second</h1>" in path.read_text(encoding="utf-8")
    assert [p.name for p in path.parent.iterdir()] == ["r.html"]


def test_a_failure_keeps_the_old_report_and_leaves_nothing_behind(tmp_path, monkeypatch) -> None:
    path = tmp_path / "r.html"
    path.write_text("old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"cannot write the report .*r\.html: No space left"):
        report.write([geometry()], path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]


def test_a_path_that_cannot_be_written_is_a_storage_error(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write the report"):
        report.write([geometry()], tmp_path / "file" / "r.html")
    with pytest.raises(StorageError, match="cannot write the report"):
        report.write([geometry()], tmp_path)


@pytest.mark.parametrize("call", [report.markdown, lambda r: report.write(r, "never-written.html")])
def test_what_is_no_list_of_results_is_refused(call) -> None:
    with pytest.raises(UsageError, match="no results to report"):
        call([])
    with pytest.raises(UsageError, match=r"takes a list of results.*write\(\[result\]"):
        call(geometry())
    with pytest.raises(UsageError, match="cannot report on a dict"):
        call([{"kind": "addition"}])


# ---- hostile names --------------------------------------------------------------------------------------------------


def test_hostile_names_are_shown_and_do_nothing(tmp_path) -> None:
    tasks = (HOSTILE, "b" * 300, "任务 ü", "")
    results = [
        addition(tasks, title=HOSTILE),
        negation(target=HOSTILE),
        geometry((HOSTILE, "$x^$", "plain")),
        analogy().model_copy(update={"cells": {"A": HOSTILE}}),
        addition().model_copy(update={"provenance": MADE.model_copy(update={"settings": {HOSTILE: HOSTILE}})}),
    ]
    html = html_of(results, tmp_path, title=HOSTILE)
    page = Page(html)
    assert "script" not in {tag for tag, _ in page.tags}
    assert not [a for _, attributes in page.tags for a in attributes if a.startswith("on")]
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", html)
    assert "<script>alert('x')</script>\ufffd[31m" in "".join(page.text)

    text = report.markdown(results)
    assert "<script" not in re.sub(r"`[^`\n]*`", "", text)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", text)
    for block in text.split("\n\n"):
        lines = block.splitlines()
        if lines and lines[0].startswith("|"):
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1


# ---- numbers --------------------------------------------------------------------------------------------------------


def cell(score: Score, *more: str) -> list[str]:
    return [f"{100 * score.value:.1f} %", f"[{100 * score.low:.1f}, {100 * score.high:.1f}]", *more]


def shown(text: str) -> list[str]:
    return [line for line in text.replace("\u00a0", " ").replace("\\", "").replace("<br>", "\n").split("\n") if line]


def markdown_table(text: str, caption: str) -> list[list[str]]:
    lines = text.split(f"**{caption}**\n\n")[1].split("\n\n")[0].splitlines()
    return [line.strip("| ").split(" | ") for line in (lines[0], *lines[2:])]


@pytest.mark.parametrize("form", ["html", "markdown"])
def test_every_score_of_an_addition_is_in_its_place(form, tmp_path) -> None:
    result, caption = addition(), "Test accuracy, one reading of the test split"
    table = (
        Page(html_of([result], tmp_path)).tables[caption]
        if form == "html"
        else markdown_table(report.markdown([result]), caption)
    )
    assert table[0] == [
        "model",
        "coefficient",
        *(f"{t} (n = 360)" for t in result.tasks),
        "mean of 4 tasks (n = 1440)",
    ]
    for line, row in zip(table[1:], result.rows, strict=True):
        assert line[0] == row.name
        assert line[1] == ("–" if row.coefficient is None else f"{row.coefficient:g}")
        for text, task in zip(line[2:-1], result.tasks, strict=True):
            below = result.row("fine-tuned").scores[task].value
            assert shown(text) == cell(row.scores[task], f"{row.normalised[task]:.3f} of {100 * below:.1f} %")
        assert shown(line[-1]) == cell(row.mean, f"{row.mean_normalised:.3f} normalised")


def test_every_score_of_a_negation_and_an_analogy_is_in_its_place(tmp_path) -> None:
    for result, caption, tasks in (
        (negation(), "Test accuracy, one reading of the test split", ("digit 3", "the other nine")),
        (analogy(), "Test accuracy on D, one reading of the test split", ("inverted 5-9",)),
    ):
        table = Page(html_of([result], tmp_path)).tables[caption]
        for line, row in zip(table[1:], result.rows, strict=True):
            assert [shown(text) for text in line[2:]] == [cell(row.scores[t]) for t in tasks]


def test_the_origin_of_every_coefficient_is_told(tmp_path) -> None:
    untuned = Row(name="ties", scores=addition().rows[0].scores, coefficient=0.3)
    result = addition().model_copy(update={"rows": (*addition().rows, untuned)})
    page = Page(html_of([result], tmp_path))
    table = {line[0]: line[1:] for line in page.tables["How the coefficients were chosen"]}
    assert table["task arithmetic"] == ["0.5", "0 to 1, 5 points", "the rule in words", "validation (n = 240 per task)"]
    assert table["ties"][-1] == "not recorded: do not compare with tuned rows"
    assert "ties at coefficient 0.3 (not tuned here)" in "".join(page.text)
    assert "random vector: the chosen coefficient is 0" in "".join(page.text)


def test_geometry_tables(tmp_path) -> None:
    tables = Page(html_of([geometry()], tmp_path)).tables
    assert tables["Norms"][1] == ["rotated", "3.125", f"{3.125 / 41.5:.4f}"]
    assert [line[1:] for line in tables["Cosines"][1:]] == [
        ["1.000", "0.123", "-0.300"],
        ["0.123", "1.000", "nan"],
        ["-0.300", "nan", "1.000"],
    ]


def test_a_row_without_scores_or_partial_scores_is_shown_as_a_gap(tmp_path) -> None:
    rows = (*addition().rows, Row(name="partial", scores={"rotated": share(5)}), Row(name="nothing", scores={}))
    table = Page(html_of([addition().model_copy(update={"rows": rows})], tmp_path)).tables
    scores = {line[0]: line[1:] for line in table["Test accuracy, one reading of the test split"]}
    assert scores["nothing"] == ["–"] * 6
    assert scores["partial"][2:5] == ["–"] * 3


def test_only_the_base_is_enough(tmp_path) -> None:
    html_of([r.model_copy(update={"rows": r.rows[:1]}) for r in (addition(), negation(), analogy())], tmp_path)


# ---- words ----------------------------------------------------------------------------------------------------------


def told(result) -> str:
    return report.markdown([result]).replace("\u00a0", " ").replace("\\", "")


def test_overlapping_intervals_are_no_win() -> None:
    assert compare(share(60, 100), share(50, 100)) == WITHIN
    assert compare(share(90, 100), share(50, 100)) == "higher"
    assert compare(share(50, 100), share(90, 100)) == "lower"

    near = told(analogy(hits=134))
    assert "For comparison, source" not in near  # told already, in its own sentence
    assert f"without data of D has 74.1 % [67.1, 80.1]: {WITHIN}." in near
    assert "The analogy is higher, beyond the intervals" in told(analogy(hits=165))
    assert "The analogy is lower, beyond the intervals" in told(analogy(hits=80))


def test_an_addition_tells_tasks_that_gain_from_tasks_that_do_not() -> None:
    text = told(addition())
    assert f"higher than the base on rotated, inverted, shifted; {WITHIN} on mirrored" in text
    worse = told(addition(edited=(20, 20, 20, 20)))
    assert "Task arithmetic is lower, beyond the intervals" in worse
    assert "lower than the base on rotated, inverted, shifted, mirrored" in worse


def test_a_negation_checks_the_control_on_test_too() -> None:
    assert "on test data it holds" in told(negation(edited=(8, 420)))
    assert "on test data it does not hold" in told(negation(edited=(8, 400)))


def test_the_figures_say_the_same_without_sight(tmp_path) -> None:
    labels = [a["aria-label"] for tag, a in Page(html_of([negation()], tmp_path)).tags if tag == "svg"]
    assert len(labels) == 4
    assert "target: digit 3: base 97.8 %" in labels[0]
    assert labels[1].startswith(
        "Validation accuracy of task arithmetic against the coefficient from 0 to 1. At the chosen 0.75"
    )


def test_the_control_line_is_the_share_of_the_bases_validation_control() -> None:
    from taskvec.report.words import control_floor

    result = negation()
    found = result.row("task arithmetic").curve
    assert found and control_floor(result, found) == pytest.approx(0.95 * 174 / 180)
    without_zero = found.model_copy(update={"coefficients": (0.1, 0.2, 0.3, 0.4, 0.5)})
    assert control_floor(result, without_zero) is None


def test_disentanglement_is_told(tmp_path) -> None:
    page = Page(html_of([xi(), xi((HOSTILE, "$x^$"))], tmp_path))
    told = " ".join(page.text)
    assert "0.100" in told and "through the plain model" in told
    (row,) = page.tables["Disentanglement error"][1:][:1]
    assert row[0] == "rotated + inverted" and row[-1] == "40 + 50"
    maps = [a for t, a in page.tags if t == "svg"]
    assert len(maps) == 2 and "rotated and inverted 0.100" in maps[0]["aria-label"]
