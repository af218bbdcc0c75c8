"""`taskvec card` and `push`: scores into a model card, and an output to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

import click

from .commands import cli, json_flag
from .terminal import note, plain, print_json


@cli.command(short_help="Put test results into the model card of an output.")
@click.argument("output", type=click.Path(path_type=Path))
@click.option(
    "--results",
    "-r",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="A result, or a folder of them.",
)
@click.option("--row", help="Which row of the results this model is; else the edited one.")
@click.option("--task-type", default="other", show_default=True, help="The hub's word, e.g. image-classification.")
@json_flag
def card(output: Path, results: tuple[Path, ...], row: str | None, task_type: str, as_json: bool) -> None:
    """Put test scores into the model card of OUTPUT: the hub's metadata (model-index), and a table with n and intervals.

    \b
    taskvec card out/ --results results/addition.json --task-type image-classification
    """
    from ..interop.evaluation import add_results

    notes = add_results(output, results, row=row, task_type=task_type)
    for text in notes:
        note(text)
    if as_json:
        print_json("card", {"output": str(output), "notes": notes})
    else:
        print(f"{plain(output / 'README.md')}: results written")


@cli.command(short_help="Upload an output to the Hugging Face hub.")
@click.argument("output", type=click.Path(path_type=Path))
@click.argument("repository", metavar="ORG/NAME")
@click.option("--private", is_flag=True, help="Make a new repository private.")
@click.option("--revision", "--branch", help="A branch, made if it is not there; else the main one.")
@click.option("--message", "-m", help="Message of the commit.")
@click.option("--dry-run", is_flag=True, help="List the files and their sizes, and upload nothing.")
@click.option("--overwrite", is_flag=True, help="Remove other weights that the repository holds, in the same commit.")
@click.option("--force", is_flag=True, help="Push an output that fails the check.")
@json_flag
def push(
    output: Path, repository: str, private: bool, revision: str | None, message: str | None, dry_run: bool,
    overwrite: bool, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Upload OUTPUT, in one commit, to a model repository of the hub; it is made if it is not there.

    \b
    taskvec push out/ org/name --dry-run
    taskvec push out/ org/name --private

    Sizes, shards, recipe and recorded hashes are checked first (`taskvec verify` compares every byte). The token is that of
    `hf auth login` or HF_TOKEN.
    """
    from ..interop.push import planned
    from ..interop.push import push as upload

    if dry_run:
        said = planned(output, repository, revision=revision, force=force)
    else:
        said = upload(
            output, repository, private=private, revision=revision, message=message, overwrite=overwrite, force=force
        )
    if as_json:
        print_json("push", said.as_dict())
    else:
        print("\n".join(map(plain, str(said).split("\n"))))
