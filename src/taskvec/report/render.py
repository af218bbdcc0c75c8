"""Results to one HTML page or to Markdown."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from ..errors import StorageError, UsageError, missing_extra
from ..results import AdditionResult, AnalogyResult, GeometryResult, NegationResult, Provenance
from . import words
from .words import Cell, Section, clean

HOW_TO_READ = (
    "A task vector is what fine-tuning added to a model: τ = θ(finetuned) − θ₀, the fine-tuned weights minus the base "
    "weights, parameter by parameter. Editing adds multiples of such vectors to the base; nothing is trained any more. "
    "The coefficient α says how much.",
    "Every score is the share of right answers among n examples. Square brackets hold the 95 % Wilson interval, in per cent. "
    "The interval of a mean adds the half-widths of its tasks in squares, as if their test examples were independent; where "
    "tasks share examples it is only approximate.",
    "A difference is called higher or lower only if the two intervals do not overlap, and otherwise a “difference within the "
    "intervals”. That is cautious: models scored on the same examples may differ truly although their intervals overlap. "
    "The intervals cover the sampling of test examples, not the luck of the seed in training.",
    "Normalised accuracy divides a model’s accuracy on a task by the accuracy of the model that was fine-tuned on that task "
    "alone with the same regime; “0.900 of 95.0 %” gives the ratio and what it divides by. A weak denominator makes "
    "a high ratio, so read both. Ratios have no interval here.",
    "Coefficients are chosen on validation data, for the baselines by the same rule as for the method, and the test split is "
    "then read once. “Random vector” is Gaussian noise with the norm of the real vector, tensor by tensor: what an edit of "
    "that size does without knowing the task.",
)


def write(results: Sequence[Any], path: str | Path, *, title: str | None = None) -> Path:
    """Write one self-contained HTML page: no network, no scripts, light and dark, fit for print.

    Equal results give equal bytes. The file is complete or absent: it is written beside `path` and renamed; an existing
    report is replaced and missing folders are made.

    Args:
        results: what `taskvec.results.read_results` or the protocols return, in the order to show.
        title: the page's title; "Task arithmetic report" if not given.

    Raises:
        UsageError: no results, or something that is no result.
        MissingExtra: matplotlib or jinja2 is not installed.
        StorageError: the file cannot be written.
    """
    page = _page(_checked(results), clean(title or "Task arithmetic report"))
    return _replace(Path(path), page)


def markdown(results: Sequence[Any]) -> str:
    """The same sentences and tables as GitHub Markdown; needs no optional library.

    Raises:
        UsageError: no results, or something that is no result.
    """
    lines: list[str] = []
    for result, told in _checked(results):
        lines += [f"## {_escape(told.title)}", "", _escape(told.question), ""]
        lines += [f"`{told.equation.replace('`', chr(39))}`", ""]
        lines += [_escape(" ".join(told.sentences)), ""]
        for table in told.tables:
            lines += [f"**{_escape(table.caption)}**", ""]
            lines += ["| " + " | ".join(_escape(c) for c in table.columns) + " |", "|---" * len(table.columns) + "|"]
            lines += ["| " + " | ".join(_markdown_cell(c) for c in row) + " |" for row in table.rows]
            lines += [""]
        lines += [line for note in told.notes for line in (f"- {_escape(note)}",)]
        lines += [""] if told.notes else []
        made = "; ".join(f"{name}: {value}" for name, value in _facts(result.provenance))
        lines += [f"<sub>{_escape(made)}</sub>", ""]
    return "\n".join(lines)


def _checked(results: Sequence[Any]) -> list[tuple[Any, Section]]:
    if isinstance(results, AdditionResult | NegationResult | AnalogyResult | GeometryResult):
        raise UsageError("a report takes a list of results, got one result: write([result], path).")
    results = list(results)
    if not results:
        raise UsageError("no results to report: pass at least one, for example report.write([result], 'report.html').")
    return [(result, words.section(result)) for result in results]


# ---- HTML -----------------------------------------------------------------------------------------------------------


def _page(told: list[tuple[Any, Section]], title: str) -> str:
    try:
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup
    except ImportError as error:
        raise missing_extra("jinja2", "report", "writing a report") from error

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(
        resources.files(__package__).joinpath("template.html").read_text(encoding="utf-8")
    )
    sections = [
        {
            "id": f"r{i}",
            "kind": result.kind,
            "told": section,
            "figures": [{"svg": Markup(svg), "caption": caption} for svg, caption in _figures(result, f"r{i}")],
        }
        for i, (result, section) in enumerate(told, start=1)
    ]
    return template.render(
        title=title, sections=sections, made=_made(told), how_to_read=HOW_TO_READ, within=words.WITHIN
    )


def _figures(result: Any, key: str) -> list[tuple[str, str]]:
    """The drawings of one result, each with its caption."""
    from . import figures

    if isinstance(result, GeometryResult):
        caption = "Cosine between every two task vectors: blue above zero, orange below, stronger is larger."
        return [(figures.cosines(result, key=f"{key}g"), caption)]

    label, floor_of = clean, None
    if isinstance(result, NegationResult):
        roles = {result.target: f"target: {clean(result.target)}", result.control: f"control: {clean(result.control)}"}
        tasks: tuple[str, ...] = (result.target, result.control)

        def label(task: str) -> str:
            return roles.get(task, clean(task))

        def floor_of(found: Any) -> tuple[float, str] | None:
            floor = words.control_floor(result, found)
            return None if floor is None else (floor, f"{100 * result.control_share:g} % of the base’s control")

    elif isinstance(result, AdditionResult):
        tasks = result.tasks
    else:
        tasks = tuple(dict.fromkeys(t for row in result.rows for t in row.scores))

    drawn = [
        (
            figures.before_after(
                result.rows, tasks, label=label, mean=isinstance(result, AdditionResult), key=f"{key}b"
            ),
            "Test accuracy of every model. Whiskers: 95 % interval.",
        )
    ]
    for i, row in enumerate(result.rows):
        if row.curve is None:
            continue
        floor = floor_of(row.curve) if floor_of else None
        shown = tuple(t for t in dict.fromkeys((*tasks, *row.curve.scores)) if t in row.curve.scores)
        svg = figures.curve(row, row.curve, shown, label=label, floor=floor, key=f"{key}c{i}")
        drawn.append(
            (svg, f"{clean(row.name)}: how the coefficient was chosen, on validation data. Bands: 95 % interval.")
        )
    return drawn


def _made(told: list[tuple[Any, Section]]) -> list[dict[str, Any]]:
    """Provenance, told once for all results that share it."""
    groups: list[tuple[Provenance, list[str]]] = []
    for result, section in told:
        for provenance, titles in groups:
            if provenance == result.provenance:
                titles.append(section.title)
                break
        else:
            groups.append((result.provenance, [section.title]))
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


# ---- files ----------------------------------------------------------------------------------------------------------


def _replace(path: Path, text: str) -> Path:
    """Write, flush to disk and rename, so that a reader sees the old file or the whole new one."""
    staged = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with staged.open("x", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            staged.replace(path)
        finally:
            with contextlib.suppress(OSError):
                staged.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(
            f"cannot write the report {path}: {error.strerror}. Choose another path, or free space and permission there."
        ) from error
    return path
