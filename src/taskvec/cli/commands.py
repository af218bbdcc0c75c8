"""The command line's root, the options that commands share, and `taskvec demo`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from .. import __version__
from ..errors import UnknownName, nearest


class Group(click.Group):
    """Suggests the nearest command, and lists commands in the order of a first session."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            hint = nearest(args[0], self.commands)
            raise UnknownName(f"unknown command {args[0]!r}; commands are {', '.join(self.commands)}.{hint}")
        return super().resolve_command(ctx, args)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="taskvec")
def cli() -> None:
    """Edit trained models by arithmetic on their weights.

    \b
      tau = finetuned - base          a task vector
      base - 0.6 * toxic              forget
      base + 0.4 * (cars + digits)    learn several
      base + c + (b - a)              analogy

    Start with `taskvec demo`: the whole loop on a real model and real data, in a minute or two.
    """


json_flag = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text.")
overwrite_flag = click.option(
    "--overwrite", is_flag=True, help="Replace an existing output once the new one is complete."
)
threads_option = click.option(
    "--threads", type=click.IntRange(1, 256), help="How many threads compute; the result does not depend on it."
)
device_option = click.option("--device", help="Where it is computed: cpu (the default), cuda or cuda:N (needs torch).")
let_option = click.option(
    "--let",
    "lets",
    multiple=True,
    metavar="NAME=PATH",
    help="Name a checkpoint or task vector for the expression; repeat.",
)
shared_flag = click.option(
    "--shared", is_flag=True, help="Use only the tensors both have, allowing for a prefix that one side lacks."
)


@cli.command(short_help="The whole loop once: train, subtract, edit, measure.")
@click.option(
    "--out", "-o", type=click.Path(path_type=Path), default=None, help="Folder for models, vectors and report."
)
@click.option(
    "--text", is_flag=True, help="Sentences and the pre-trained MiniLM instead of digits and a small transformer."
)
@click.option("--data", type=click.Path(path_type=Path), help="With --text: folder of the sentence files.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace the output of an earlier demo.")
def demo(out: Path | None, text: bool, data: Path | None, seed: int, overwrite: bool) -> None:
    """Train, subtract, edit, measure, report: the whole loop, with no download."""
    # Before torch is imported: idle OpenMP threads then sleep, where spinning would slow a busy machine down severalfold.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from ..demo import run

    run(
        out or Path("taskvec-demo-text" if text else "taskvec-demo"),
        seed=seed,
        text=text,
        data=data,
        overwrite=overwrite,
    )
