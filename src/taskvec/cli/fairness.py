"""`taskvec audit`: predictions that somebody's model made, by group."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from ..errors import CheckFailed, InputError, StorageError, UnknownName, UsageError, nearest, plain
from ..files import exists
from .commands import cli
from .terminal import note, print_json

MOST_GROUPS = 100


@cli.command(short_help="Audit predictions by group: rates, gaps, intervals, what an edit changed.")
@click.argument("predictions", type=click.Path(path_type=Path))
@click.option("--label", required=True, metavar="COLUMN", help="The true labels.")
@click.option(
    "--prediction",
    "models",
    multiple=True,
    required=True,
    metavar="COLUMN",
    help="A model's predicted labels; repeat: the others are compared with the first.",
)
@click.option(
    "--group",
    "columns",
    multiple=True,
    metavar="COLUMN",
    help="Groups: the values of this column; repeat, each is audited.",
)
@click.option(
    "--member",
    "members",
    multiple=True,
    metavar="COLUMN",
    help="A group that may overlap others: a column of 0 and 1; repeat.",
)
@click.option("--intersect", is_flag=True, help="Also audit every combination of the --group columns.")
@click.option(
    "--score",
    "scores",
    multiple=True,
    metavar="[MODEL=]COLUMN",
    help="A model's scores, for the area under the ROC curve.",
)
@click.option("--positive", help="The label that counts as positive; else 1.")
@click.option(
    "--missing", multiple=True, metavar="TEXT", help="What stands for a missing value, beside nothing and NaN; repeat."
)
@click.option(
    "--min-n",
    type=click.IntRange(1),
    default=30,
    show_default=True,
    help="Least number of people for a group to be compared.",
)
@click.option(
    "--min-cases",
    type=click.IntRange(1),
    default=10,
    show_default=True,
    help="Least number of positives (negatives) for its true (false) positive rate.",
)
@click.option(
    "--bootstrap",
    type=click.IntRange(100, 1_000_000),
    default=1000,
    show_default=True,
    help="Draws for the intervals of gaps.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the draws.")
@click.option(
    "--at-most",
    "limits",
    multiple=True,
    metavar="[MODEL:]GAP=LIMIT",
    help="Exit code 5 if a gap is larger, for example parity=0.05.",
)
@click.option(
    "--at-least",
    "floors",
    multiple=True,
    metavar="[MODEL:]RATIO=LIMIT",
    help="Exit code 5 if a ratio is smaller, for example parity_ratio=0.8.",
)
@click.option(
    "--no-check", is_flag=True, help="Do not find the gaps through fairlearn too (which is done where it is installed)."
)
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path),
    help="The result, *.json, for `taskvec report`; one file for each grouping.",
)
@click.option("--overwrite", is_flag=True, help="Replace existing results.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text.")
def audit(
    predictions: Path, label: str, models: tuple[str, ...], columns: tuple[str, ...], members: tuple[str, ...], intersect: bool,
    scores: tuple[str, ...], positive: str | None, missing: tuple[str, ...], min_n: int, min_cases: int, bootstrap: int, seed: int,
    limits: tuple[str, ...], floors: tuple[str, ...], no_check: bool, out: Path | None, overwrite: bool, as_json: bool,
) -> None:  # fmt: skip
    """Audit a table of PREDICTIONS (CSV or Parquet, a row for each person) by group.

    \b
    taskvec audit predictions.csv --label y --group sex --prediction base --prediction edited -o audit.json
    taskvec audit predictions.csv --label y --group sex --group race --intersect --prediction edited
    taskvec audit posts.csv --label toxic --member black --member muslim --prediction edited
    taskvec audit predictions.csv --label y --group sex --prediction edited --at-most parity=0.05

    Gaps are parity, odds, opportunity and accuracy, ratios parity_ratio and odds_ratio. Exit code 5 if a limit does not hold, or
    could not be measured. The measured value is compared with the limit, not its interval. TPR and FPR, true and false positive rate, are
    the shares predicted positive of the truly positive and of the truly negative.
    """
    from ..protocols import fairness
    from ..report.fairness import audit_verdict
    from ..tasks.tables import read_columns

    _distinct(models, columns, members)
    scored = _scores(scores, models)
    wanted = [_limit(text, models, ratio=False) for text in limits] + [
        _limit(text, models, ratio=True) for text in floors
    ]
    table = read_columns(predictions, [label, *models, *columns, *members, *scored.values()], missing=missing)
    value = _positive(positive, table[label])
    groupings = _groupings(table, columns, members, intersect)
    paths = _paths(out, list(groupings), overwrite)
    results = []
    for name, groups in groupings.items():
        overlaps = bool(members) and name == _together(members)
        results.append(
            fairness(
                table[label], {m: table[m] for m in models}, groups, grouping=name, positive=value, min_n=min_n, min_cases=min_cases, bootstrap=bootstrap,
                seed=seed, scores={m: table[c] for m, c in scored.items()}, title=f"Audit by {name}",
                check=not no_check and not overlaps and find_spec("fairlearn") is not None,
            )
        )  # fmt: skip
    for path, result in zip(paths, results, strict=False):
        result.write(path)
    held = [_held(one, result) for result in results for one in wanted]
    said = {r.grouping: [s.replace("\u00a0", " ") for s in audit_verdict(r)] for r in results}
    if as_json:
        shown = {
            "results": [r.model_dump(mode="json") for r in results],
            "verdict": said,
            "limits": held,
            "output": [str(p) for p in paths],
        }
        print_json("audit", shown)
        if not all(h["holds"] for h in held):
            raise click.exceptions.Exit(CheckFailed.exit_code)
        return
    for result in results:
        _show(result, said[result.grouping])
    for path in paths:
        note(f"written to {plain(path)}; `taskvec report {plain(path)}` draws it.")
    broken = [h["said"] for h in held if not h["holds"]]
    for h in held:
        if h["holds"]:
            print(f"holds: {plain(h['said'])}")
    if broken:
        raise CheckFailed(
            "\n".join(broken) if len(broken) == 1 else f"{len(broken)} limits do not hold:\n" + "\n".join(broken)
        )


# ---- what was asked -------------------------------------------------------------------------------------------------


def _distinct(models: Sequence[str], columns: Sequence[str], members: Sequence[str]) -> None:
    if not columns and not members:
        raise UsageError(
            "name the groups: --group COLUMN for the values of a column, or --member COLUMN for each group."
        )
    for what, names in (("--prediction", models), ("--group", columns), ("--member", members)):
        twice = [n for n in names if list(names).count(n) > 1]
        if twice:
            raise UsageError(f"{what} names {twice[0]!r} twice.")


def _scores(given: Sequence[str], models: Sequence[str]) -> dict[str, str]:
    found = {}
    for text in given:
        model, sign, column = text.partition("=")
        if not sign:
            if len(models) > 1:
                raise UsageError(f"--score {text}: say whose scores they are, for example --score {models[0]}={text}.")
            model, column = models[0], text
        if model not in models:
            raise UnknownName(
                f"--score {text}: no --prediction {model!r}; there are {', '.join(models)}.{nearest(model, models)}"
            )
        found[model] = column
    return found


def _limit(text: str, models: Sequence[str], *, ratio: bool) -> dict[str, Any]:
    """``[MODEL:]GAP=LIMIT``; without a model it is for all of them."""
    from ..results import GAPS

    option = "--at-least" if ratio else "--at-most"
    found = re.fullmatch(r"(?:(.*):)?(\w+)=([\d.eE+-]+)", text)
    try:
        limit = float(found[3]) if found else -1.0
    except ValueError:
        limit = -1.0
    if not found or not 0 <= limit <= 1:
        example = "parity_ratio=0.8" if ratio else "parity=0.05"
        raise UsageError(
            f"{option} takes [MODEL:]GAP=LIMIT with a limit from 0 to 1, for example {example}; got {text!r}."
        )
    allowed = [g for g in GAPS if g.endswith("_ratio") is ratio]
    if found[2] not in allowed:
        other = (
            f" A {'difference' if ratio else 'ratio'} goes to {'--at-most' if ratio else '--at-least'}."
            if found[2] in GAPS
            else ""
        )
        raise UnknownName(
            f"{option} {text}: no {found[2]!r}; there are {', '.join(allowed)}.{nearest(found[2], allowed)}{other}"
        )
    if found[1] is not None and found[1] not in models:
        raise UnknownName(
            f"{option} {text}: no --prediction {found[1]!r}; there are {', '.join(models)}.{nearest(found[1], models)}"
        )
    return {"model": found[1], "gap": found[2], "limit": limit, "least": ratio}


def _positive(given: str | None, labels: Sequence[Any]) -> Any:
    """The positive label as the table has it: 1 is the number where labels are numbers."""
    if given is None:
        return None
    return next((v for v in labels if v is not None and (str(v) == given or _same_number(v, given))), given)


def _same_number(value: Any, text: str) -> bool:
    try:
        return not isinstance(value, str) and float(value) == float(text)
    except (TypeError, ValueError):
        return False


def _together(members: Sequence[str]) -> str:
    return ", ".join(members)


def _groupings(
    table: Mapping[str, list[Any]], columns: Sequence[str], members: Sequence[str], intersect: bool
) -> dict[str, Mapping[str, Any]]:
    from ..protocols import groups_of, intersections

    found: dict[str, Mapping[str, Any]] = {}
    for name in columns:
        distinct = {v for v in table[name] if v is not None}
        if len(distinct) > MOST_GROUPS:
            raise InputError(
                f"--group {name}: {len(distinct)} different values are too many groups (at most {MOST_GROUPS}). Bin the column first, "
                "for example ages into decades."
            )
        if len(distinct) < 2:
            only = f"one value, {next(iter(distinct))!r}," if distinct else "no value"
            raise InputError(
                f"--group {name}: the column has {only} in all rows, and groups need at least two to be compared."
            )
        found[name] = groups_of(table[name])
    if intersect:
        if len(columns) < 2:
            raise UsageError("--intersect needs two or more --group columns.")
        found[" & ".join(columns)] = intersections(*(found[name] for name in columns))
    if members:
        found[_together(members)] = {name: _member(name, table[name]) for name in members}
    return found


def _member(name: str, values: Sequence[Any]) -> list[bool]:
    words = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
    strange = next((v for v in values if v is not None and str(v).lower() not in words), None)
    if strange is not None:
        raise InputError(
            f"--member {name}: expected 0 and 1 (1: belongs to the group), got {strange!r}. For other values use --group."
        )
    return [v is not None and words[str(v).lower()] for v in values]


def _paths(out: Path | None, names: Sequence[str], overwrite: bool) -> list[Path]:
    if out is None:
        return []
    if out.suffix != ".json":
        raise UsageError(f"-o takes a file name that ends in .json, got {plain(out)}.")
    paths = (
        [out]
        if len(names) == 1
        else [out.with_suffix(f".{re.sub(r'[^A-Za-z0-9]+', '-', n).strip('-') or i}.json") for i, n in enumerate(names)]
    )
    for path in paths:
        if exists(path) and not overwrite:
            raise StorageError(f"{plain(path)} exists. Choose another name, or replace it with --overwrite.")
    return paths


# ---- what comes of it -----------------------------------------------------------------------------------------------


def _held(one: Mapping[str, Any], result: Any) -> dict[str, Any]:
    """Whether a limit holds, for every model that it is for, with the sentence that says so."""
    told, holds, values = [], True, {}
    sign = "at least" if one["least"] else "at most"
    for row in result.rows:
        if one["model"] not in (None, row.name):
            continue
        gap = row.audit.gap(one["gap"])
        values[row.name] = None if gap is None else gap.value
        if gap is None:
            fine, what = False, f"could not be measured ({row.audit.unmeasured.get(one['gap'], '')})"
        else:
            fine = gap.value >= one["limit"] if one["least"] else gap.value <= one["limit"]
            what = f"is {gap.value:.4f} [{gap.low:.4f}, {gap.high:.4f}]"
        holds = holds and fine
        if not fine or one["model"]:
            told.append(f"{one['gap']} by {result.grouping} of {row.name} {what}, asked for {sign} {one['limit']:g}")
    said = "; ".join(told) or f"{one['gap']} by {result.grouping} of every model is {sign} {one['limit']:g}"
    return {"grouping": result.grouping, **one, "holds": holds, "values": values, "said": said}


def _show(result: Any, said: Sequence[str]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from ..results import GAPS, MEASURES

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=120)

    def table(title: str, first: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        shown = Table(title=escape(plain(title)), title_justify="left", box=None, pad_edge=False)
        shown.add_column(first, overflow="fold")
        for head in heads:
            shown.add_column(escape(plain(head)), justify="right", no_wrap=len(head) < 12)
        for row in rows:
            shown.add_row(*(escape(plain(c)) if i == 0 else escape(c) for i, c in enumerate(row)))
        console.print(shown)

    def cell(found: Any, style: str, scale: float) -> str:
        if found is None:
            return "-"
        value, low, high = (format(scale * x, style) for x in (found.value, found.low, found.high))
        value += "%" if scale > 1 else ""
        return f"{value} [{low}, {high}]" if console.width >= 110 else f"{value}\n{low}, {high}"

    for row in result.rows:
        audit = row.audit
        heads = ["n", "positive", "accuracy", "selected", "TPR", "FPR"]
        lines = [
            [
                f"{g.name} *" if g.left_out else g.name, f"{g.n:,}", f"{g.positives:,}",
                *(cell(getattr(g, m), ".1f", 100) for m in MEASURES),
            ]
            for g in (audit.overall, *audit.groups)
        ]  # fmt: skip
        if any(g.auc for g in audit.groups):
            heads.append("AUC")
            for line, group in zip(lines, (audit.overall, *audit.groups), strict=True):
                line.append(cell(group.auc, ".3f", 1))
        table(f"{row.name}, by {result.grouping}", "group", heads, lines)
        if audit.flagged:
            print(
                "* left out of gaps: "
                + "; ".join(f"{plain(g.name)}: {next(iter(g.left_out.values()))}" for g in audit.flagged)
            )
        print()
    lines = [
        (
            gap,
            *(cell(r.audit.gaps.get(gap), ".3f", 1) for r in result.rows),
            *(cell(c.gaps.get(gap), "+.3f", 1) for c in result.comparisons),
        )
        for gap in GAPS
    ]
    heads = [*(r.name for r in result.rows), *(f"{c.after} less {c.before}" for c in result.comparisons)]
    table("gaps, 95 % interval", "gap", heads, lines)
    print()
    for sentence in said:
        print(plain(sentence))
    if result.rows[0].audit.checked:
        print(f"The same gaps by {result.rows[0].audit.checked}.")
    print()
