"""Results to one HTML page or to Markdown."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from ..errors import UsageError, missing_extra
from ..files import replace_text
from ..results import (
    AdditionResult,
    DisentanglementResult,
    FairnessResult,
    FewShotResult,
    GateInspection,
    GateResult,
    GeometryResult,
    LocalityResult,
    NegationResult,
    Provenance,
    SkillsResult,
    SteeringResult,
    ToxicityResult,
)
from ..results.parts import BaseResult
from .overview import belongs, overview
from .section import Section
from .story import section
from .tables import Cell
from .words import WITHIN, clean, control_floor, edited


def write(results: Sequence[Any], path: str | Path, *, title: str | None = None, every: bool = False) -> Path:
    """Write one self-contained HTML page: no network, no scripts, light and dark, fit for print.

    Equal results give equal bytes. The file is complete or absent: it is written beside `path` and renamed; an existing
    report is replaced and missing folders are made.

    Args:
        results: what `taskvec.results.read_results` or the protocols return, in the order to show.
        title: the page's title; "Task arithmetic report" if not given.
        every: also tell every single result of a study, after the overview. Results of no study are always told.

    Raises:
        UsageError: no results, or something that is no result.
        MissingExtra: matplotlib or jinja2 is not installed.
        StorageError: the file cannot be written.
    """
    page = _page(_checked(results, every), clean(title or "Task arithmetic report"))
    return replace_text(path, page, what="the report")


def markdown(results: Sequence[Any], *, every: bool = False) -> str:
    """The same sentences and tables as GitHub Markdown; needs no optional library. `every` as in `write`.

    Raises:
        UsageError: no results, or something that is no result.
    """
    lines: list[str] = []
    for told, _, made_by, _ in _checked(results, every):
        lines += [f"## {_escape(told.title)}", "", _escape(told.question), ""]
        lines += [f"`{told.equation.replace('`', chr(39))}`", ""]
        lines += [f"- {_escape(sentence)}" for sentence in told.sentences] + [""]
        for table in told.tables:
            lines += [f"**{_escape(table.caption)}**", ""]
            lines += ["| " + " | ".join(_escape(c) for c in table.columns) + " |", "|---" * len(table.columns) + "|"]
            lines += ["| " + " | ".join(_markdown_cell(c) for c in row) + " |" for row in table.rows]
            lines += [""]
        lines += [f"- {_escape(note)}" for note in told.notes] + [""] * bool(told.notes)
        if made_by is not None:
            made = "; ".join(f"{name}: {value}" for name, value in _facts(made_by))
            lines += [f"<sub>{_escape(made)}</sub>", ""]
    return "\n".join(lines)


# A section, its kind, the provenance of the result it tells (None if it tells many), and a function that draws it.
Told = tuple[Section, str, Provenance | None, Callable[[str], list[tuple[str, str]]]]


def _checked(results: Sequence[Any], every: bool) -> list[Told]:
    if isinstance(results, BaseResult):
        raise UsageError("a report takes a list of results, got one result: write([result], path).")
    results = list(results)
    if not results:
        raise UsageError("no results to report: pass at least one, for example report.write([result], 'report.html').")
    told: list[Told] = [
        (found, kind, None, _overview_figures(kind, placed)) for kind, found, placed in overview(results)
    ]
    single = [r for r in results if every or not belongs(r)]
    return told + [(section(r), r.kind, r.provenance, functools.partial(_figures, r)) for r in single]


def _overview_figures(kind: str, placed: Any) -> Callable[[str], list[tuple[str, str]]]:
    def draw(key: str) -> list[tuple[str, str]]:
        from .overview_figures import drawings

        return drawings(kind, placed, key)

    return draw


# ---- HTML -----------------------------------------------------------------------------------------------------------


def _page(told: list[Told], title: str) -> str:
    try:
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup
    except ImportError as error:
        raise missing_extra("jinja2", "report", "writing a report") from error

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(
        resources.files("taskvec.report").joinpath("template.html").read_text(encoding="utf-8")
    )
    sections = [
        {
            "id": f"r{i}",
            "kind": kind,
            "told": section,
            "figures": [{"svg": Markup(svg), "caption": caption} for svg, caption in draw(f"r{i}")],
        }
        for i, (section, kind, _, draw) in enumerate(told, start=1)
    ]
    return template.render(title=title, sections=sections, made=_made(told), within=WITHIN)


def _figures(result: Any, key: str) -> list[tuple[str, str]]:
    """The drawings of one result, each with its caption."""
    from . import figures  # with Matplotlib, which `import taskvec.report` does not need

    if isinstance(result, GeometryResult):
        caption = "Cosine between every two task vectors: blue above zero, orange below, stronger is larger."
        return [(figures.cosines(result, key=f"{key}g"), caption)]

    if isinstance(result, ToxicityResult):
        from .toxicity_figures import toxicity_figures

        return toxicity_figures(result, key)
    if isinstance(result, LocalityResult | SkillsResult):
        return []
    if isinstance(result, DisentanglementResult):
        caption = (
            "Disentanglement error ξ over both coefficients: no colour is 0, the strongest orange is 2. "
            "The frame is the range in which coefficients are searched."
        )
        return [(figures.disentanglement(result, key=f"{key}d"), caption)]

    if isinstance(result, FewShotResult):
        lines = [(s.name, s.scores) for s in result.starts]
        caption = "Test accuracy against the number of labels, one line for each start. Bands: 95 % interval."
        return [(figures.by_labels(result.labels, lines, key=f"{key}f"), caption)]

    if isinstance(result, FairnessResult):
        from .fairness_figures import fairness_figures

        return fairness_figures(result, key)
    if isinstance(result, GateResult):
        from .gate_figures import gate_figures

        return gate_figures(result, key)
    if isinstance(result, GateInspection):
        from .inspection import inspection_figures

        return inspection_figures(result, key)
    if isinstance(result, SteeringResult):
        from .steering import steering_figures

        return steering_figures(result, key)

    roles = {}
    if isinstance(result, NegationResult):
        roles = {result.target: f"target: {clean(result.target)}", result.control: f"control: {clean(result.control)}"}
        tasks: tuple[str, ...] = (result.target, result.control)
    elif isinstance(result, AdditionResult):
        tasks = result.tasks
    else:
        tasks = tuple(dict.fromkeys(t for row in result.rows for t in row.scores))

    def label(task: str) -> str:
        return roles.get(task, clean(task))

    drawn = [
        (
            figures.before_after(
                result.rows, tasks, label=label, mean=isinstance(result, AdditionResult), key=f"{key}b"
            ),
            "Test accuracy of every model. Whiskers: 95 % interval.",
        )
    ]
    main = edited(result.rows, "task arithmetic", "analogy")
    for i, row in enumerate(sorted(result.rows, key=lambda r: r is not main)):  # the point first, then the baselines
        if row.curve is None:
            continue
        floor = None
        if isinstance(result, NegationResult) and (kept := control_floor(result, row.curve)) is not None:
            floor = (kept, f"{100 * result.control_share:g} % of the base’s control")
        shown = tuple(t for t in dict.fromkeys((*tasks, *row.curve.scores)) if t in row.curve.scores)
        svg = figures.curve(row, row.curve, shown, label=label, floor=floor, key=f"{key}c{i}")
        drawn.append(
            (svg, f"{clean(row.name)}: how the coefficient was chosen, on validation data. Bands: 95 % interval.")
        )
    return drawn


def _made(told: list[Told]) -> list[dict[str, Any]]:
    """Provenance, told once for all results that share it."""
    groups: list[tuple[Provenance, list[str]]] = []
    for story, _, made_by, _ in told:
        for provenance, titles in groups:
            if provenance == made_by:
                titles.append(story.title)
                break
        else:
            groups += [(made_by, [story.title])] if made_by is not None else []
    return [{"titles": titles, "facts": _facts(p), "inputs": _clean_items(p.inputs)} for p, titles in groups]


def _facts(made: Provenance) -> list[tuple[str, str]]:
    facts = [("taskvec", made.taskvec), ("Python", made.python), ("platform", made.platform)]
    facts += [("seed", str(made.seed))] if made.seed is not None else []
    facts += _clean_items(made.libraries)
    facts += _clean_items(
        {k: v if isinstance(v, str) else json.dumps(v, default=str) for k, v in made.settings.items()}
    )
    return [(name, clean(value)) for name, value in facts]


def _clean_items(mapping: Any) -> list[tuple[str, str]]:
    return [(clean(str(k)), clean(str(v))) for k, v in mapping.items()]


# ---- Markdown -------------------------------------------------------------------------------------------------------


def _escape(text: str) -> str:
    r"""Text that Markdown shows as it is.

    Example:
        >>> _escape("a|b <i> *c*")
        'a\\|b &lt;i&gt; \\*c\\*'
    """
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_|~\[\]#$])", r"\\\1", text)


def _markdown_cell(cell: Cell) -> str:
    return "<br>".join(_escape(part) for part in (cell.text, *cell.detail))
