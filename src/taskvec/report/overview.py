"""The overview of a study: one table for each question, a line for each base and regime, mean and spread over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .addition import addition_overview
from .analogy import analogy_overview
from .claims import claims, measured
from .disentanglement import disentanglement_overview
from .fairness_overview import fairness_overview
from .few_shot import few_shot_overview
from .geometry import geometry_overview
from .locality import locality_overview
from .negation import negation_overview
from .section import Section
from .seeds import Where
from .skills import skills_overview
from .toxicity import toxicity_overview
from .words import clean

TRYOUT = "This is a try-out, with few updates and samples: it shows that all parts run, its numbers mean nothing."


def belongs(result: Any) -> Where | None:
    """Where in a study a result belongs; None for one of its own."""
    where = result.provenance.settings.get("study") if hasattr(result, "provenance") else None
    return where if isinstance(where, Mapping) and {"base", "regime", "protocol", "seed"} <= set(where) else None


def overview(results: Sequence[Any]) -> list[tuple[str, Section, list[tuple[Where, Any]]]]:
    """Sections over all results of each study, each with its kind and the results it tells; empty if none belongs to one."""
    studies: dict[tuple[str, bool], list[tuple[Where, Any]]] = {}  # a try-out is never averaged with the study
    for r in results:
        if where := belongs(r):
            studies.setdefault((str(where.get("name", "")), bool(where.get("tryout"))), []).append((where, r))
    out = []
    for (name, tryout), placed in studies.items():
        told = _one(placed)
        if tryout:
            name += ", try-out"
            told = [(kind, replace(s, sentences=(TRYOUT, *s.sentences)), which) for kind, s, which in told]
        if len(studies) > 1:
            told = [
                (kind, replace(s, title=f"{clean(name)}: {s.title[0].lower()}{s.title[1:]}"), which)
                for kind, s, which in told
            ]
        out += told
    return out


def _one(placed: list[tuple[Where, Any]]) -> list[tuple[str, Section, list[tuple[Where, Any]]]]:
    """The sections of one study."""
    out = []
    for kind, tell in (("addition", addition_overview), ("negation", negation_overview), ("analogy", analogy_overview), ("skills", skills_overview),
                       ("disentanglement", disentanglement_overview), ("geometry", geometry_overview), ("locality", locality_overview), ("few-shot", few_shot_overview),
                       ("toxicity", toxicity_overview), ("fairness", fairness_overview)):  # fmt: skip
        mine = [(w, r) for w, r in placed if w["protocol"] == kind]
        if mine:
            out.append((kind, tell(mine), mine))
    found = claims(measured(placed))
    return [*out, ("orderings", found, [])] if found else out
