"""One result, told, in whatever form the report takes."""

from __future__ import annotations

from dataclasses import dataclass

from .tables import Table


@dataclass(frozen=True)
class Section:
    """One result, told: the question, the formula, the answer as figure and as sentences, the tables, the notes."""

    title: str
    question: str
    equation: str
    figure: str
    figure_label: str
    verdict: str
    sentences: tuple[str, ...]
    tables: tuple[Table, ...]
    notes: tuple[str, ...]
