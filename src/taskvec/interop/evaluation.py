"""Results in the model card of an output: `model-index` metadata as the Hugging Face hub reads it, and a table for people."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError, StorageError, UnknownName, UsageError, nearest, plain
from ..files import replace_text
from ..report.words import edited, interval, percent
from ..results import Row, read_results
from ..weights.card import CARD, MARK

BEGIN, END = "<!-- results by taskvec -->", "<!-- end of results -->"


def add_results(
    out: str | Path, results: Sequence[str | Path], *, row: str | None = None, task_type: str = "other"
) -> list[str]:
    """Put test scores into the card of an output, in place of those that were there.

    Args:
        out: a folder that `edit` wrote, with its card.
        results: result files (or folders of them) in which this model was measured.
        row: which row of them this model is; else the edited one (task arithmetic, or the first method that was tuned).
        task_type: the hub's word for what was measured, for example ``image-classification``.
    Returns:
        what was left out, in words.
    Raises:
        StorageError: the folder has no card, or one that taskvec did not write.
        UsageError: no result has scores.  UnknownName: no such row.
    """
    path = Path(out) / CARD
    if not path.is_file():
        raise StorageError(f"{out} has no model card ({CARD}); edit writes one unless --no-card is given.")
    text = path.read_text(encoding="utf-8")
    match = re.fullmatch(r"---\n(.*?\n)---\n(.*)", text, re.DOTALL)
    if MARK not in text or match is None:
        raise StorageError(f"{path} was not written by taskvec, and is left alone.")
    notes: list[str] = []
    index: list[dict[str, Any]] = []
    tables: list[str] = []
    for result in (r for file in results for r in read_results(file)):
        rows: Sequence[Row] = getattr(result, "rows", ())
        mine = _mine(rows, row, result.title)
        if mine is None:
            notes.append(f"{result.title}: a {result.kind} result has no row of an edited model, and is left out.")
            continue
        index += [_entry(task, score, task_type, mine) for task, score in mine.scores.items()]
        tables.append(_table(result, mine, next((r for r in rows if r.name == "base"), None)))
    if not tables:
        raise UsageError("no scores of an edited model are in the results: " + " ".join(notes))
    head, body = _without_results(match[1], match[2], path)
    head["model-index"] = [{"name": Path(out).resolve().name, "results": index}]
    import yaml

    said = yaml.safe_dump(head, sort_keys=False, allow_unicode=True)
    section = f"\n{BEGIN}\n## Evaluation\n\n" + "\n".join(tables) + f"{END}\n"
    replace_text(path, f"---\n{said}---\n{body.rstrip()}\n{section}", what="the model card")
    return notes


def _mine(rows: Sequence[Row], name: str | None, title: str) -> Row | None:
    if name is None:
        return edited(rows, "task arithmetic")
    found = next((r for r in rows if r.name == name), None)
    if rows and found is None:
        known = [r.name for r in rows]
        raise UnknownName(f"{title} has no row {name!r}; it has {', '.join(known)}.{nearest(name, known)}")
    return found


def _entry(task: str, score: Any, task_type: str, row: Row) -> dict[str, Any]:
    name = f"accuracy, n = {score.n}, 95 % interval {score.low:.4f} to {score.high:.4f}"
    return {
        "task": {"type": task_type},
        "dataset": {"name": plain(task), "type": re.sub(r"[^\w.-]+", "-", task).strip("-") or "data", "split": "test"},
        "metrics": [{"type": "accuracy", "name": name, "value": round(score.value, 6)}],
    }


def _table(result: Any, mine: Row, base: Row | None) -> str:
    chosen = "" if mine.coefficient is None else f", coefficient {mine.coefficient:g}, chosen on validation data"
    lines = [
        f"{_cell(result.title)} ({_cell(mine.name)}{chosen}). Accuracy on the test split, with 95 % intervals:\n",
        "| task | this model | n | base |\n|---|---|---|---|",
    ]
    for task, score in mine.scores.items():
        before = base.scores.get(task) if base is not None else None
        was = f"{percent(before.value)} {interval(before)}" if before is not None else ""
        lines.append(f"| {_cell(task)} | {percent(score.value)} {interval(score)} | {score.n} | {was} |")
    return "\n".join(lines) + "\n"


def _without_results(head: str, body: str, path: Path) -> tuple[dict[str, Any], str]:
    import yaml

    try:
        table = yaml.safe_load(head)
        assert isinstance(table, dict)
    except (yaml.YAMLError, AssertionError):
        raise InputError(f"{path}: its metadata is no table; write the card anew.") from None
    return table, re.sub(rf"\n*{re.escape(BEGIN)}.*?{re.escape(END)}\n*", "\n", body, flags=re.DOTALL)


def _cell(text: str) -> str:
    return plain(text).replace("|", "\\|").replace("<", "&lt;")
