"""docs/fairness.md: its code runs, and its worked example prints what the page shows."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import pytest

from taskvec.cli import _run
from taskvec.results import read_result

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "fairness.md").read_text(encoding="utf-8")
ADULT = ROOT.parent / "shared" / "data" / "fair_tabular" / "adult.csv.gz"
EXAMPLE, IN_PYTHON = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def test_the_python_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(IN_PYTHON, "fairness.md", "exec"), {})
    assert [r.name for r in read_result("fairness.json").rows] == ["base", "task addition"]


@pytest.mark.slow
def test_the_worked_example_prints_what_the_page_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("fairlearn", reason="fairlearn is not installed (extra: fairness)")
    if not ADULT.exists():
        pytest.skip("the Adult data are not there (../shared/data/fair_tabular)")
    monkeypatch.chdir(tmp_path)
    Path("adult.csv").write_bytes(gzip.decompress(ADULT.read_bytes()))
    exec(compile(EXAMPLE, "fairness.md", "exec"), {})
    command, shown = re.findall(r"```\n\$ taskvec (audit predictions.csv.*?)\n(.*?)```", PAGE, flags=re.DOTALL)[0]
    capsys.readouterr()
    assert _run(command.split()) == 0
    printed = [line.rstrip() for line in capsys.readouterr().out.strip().splitlines()]
    assert printed == shown.strip().splitlines()
