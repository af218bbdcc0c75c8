"""`taskvec methods` and `report`: what methods there are, and what results say."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ..errors import UnknownName, UsageError, nearest
from .commands import cli, json_flag
from .terminal import plain, print_json


@cli.command(short_help="List the merging methods, or explain one.")
@click.argument("name", required=False)
@json_flag
def methods(name: str | None, as_json: bool) -> None:
    """List the merging methods, or show one: equation, hyper-parameters, source, example, variants."""
    import inspect

    from ..methods import METHODS
    from ..recipe import FUNCTIONS

    if name in FUNCTIONS:
        raise UsageError(f"{name} is no method but a function of expressions; `taskvec edit --help` explains it.")
    if name is not None and name not in METHODS:
        raise UnknownName(f"unknown method {name!r}; known are {', '.join(METHODS)}.{nearest(name, METHODS)}")
    chosen = {n: m.fn for n, m in METHODS.items() if name in (None, n)}
    table = {n: re.sub(r":math:`([^`]*)`", r"\1", inspect.getdoc(fn) or "") for n, fn in chosen.items()}
    signatures = {n: _signature(n, fn) for n, fn in chosen.items()}
    if as_json:
        print_json("methods", {n: {"signature": signatures[n], "doc": d} for n, d in table.items()})
    elif name is not None:
        print(f"{signatures[name]}\n\n{table[name]}")
    else:
        width = max(map(len, table))
        for n, doc in table.items():
            print(f"{n:<{width}}  {doc.splitlines()[0]}")
        print(
            "\n`taskvec methods NAME` explains one: equation, hyper-parameters, source, example, variants. Beside methods, expressions know restrict, shared, rebase, scale_by, as_vector, stack and aligned: see `taskvec edit --help`."
        )


def _signature(name: str, fn: Callable[..., Any]) -> str:
    """A method as an expression writes it: ``ties([...], density=0.2)``."""
    import inspect

    hyper = [p for p in inspect.signature(fn).parameters.values() if p.kind is p.KEYWORD_ONLY]
    shown = "".join(f", {p.name}" if p.default is p.empty else f", {p.name}={p.default!r}" for p in hyper)
    return f"{name}([...]{shown})"


@cli.command(short_help="Render results as one self-contained page.")
@click.argument("results", type=click.Path(path_type=Path))
@click.option("--out", "-o", type=click.Path(path_type=Path), default=Path("report.html"), show_default=True)
@click.option("--title", help="Heading of the page.")
@click.option("--every", is_flag=True, help="Tell every single result of a study too, not the overview alone.")
@json_flag
def report(results: Path, out: Path, title: str | None, every: bool, as_json: bool) -> None:
    """Render a folder of results (*.json), or the folder of a study, as one self-contained page.

    A file name that ends in .md gives the same tables and sentences as Markdown, without figures.
    """
    from ..files import replace_text
    from ..report import markdown, write
    from ..results import read_results

    found = read_results(results)
    if out.suffix == ".md":
        heading = f"# {title}\n\n" if title else ""
        replace_text(out, heading + markdown(found, every=every), what="the report")
    else:
        write(found, out, title=title, every=every)
    if as_json:
        print_json("report", {"output": str(out), "results": [r.title for r in found]})
    else:
        print(f"{plain(out)}: {len(found)} results")
