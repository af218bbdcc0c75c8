"""docs/methods.md names every method, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

from taskvec.methods import METHODS

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"


def test_the_page_has_a_row_for_every_method_and_only_for_these():
    rows = re.findall(r"^\| `(\w+)` \|.*$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    variants = {"paper", "mergekit", "peft"}
    assert sorted(set(rows) - variants) == sorted(METHODS)
    assert len(rows) == len(set(rows))


def test_sources_on_the_page_are_those_of_the_docstrings():
    for name, cells in re.findall(r"^\| `(\w+)` \|(.*)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE):
        for number in re.findall(r"\b\d{4}\.\d{5}\b", cells):
            assert f"arXiv:{number}" in (METHODS[name].fn.__doc__ or ""), name
