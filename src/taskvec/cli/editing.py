"""`taskvec diff`, `edit`, `explain` and `extract-lora`: making vectors and edited checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ..address import is_address, parse_address
from ..errors import TaskvecError, UsageError, collecting, raise_all
from .commands import cli, device_option, json_flag, let_option, overwrite_flag, shared_flag, threads_option
from .expressions import built, distinct_label, is_weights, recipe_of, size_in_bytes, value_of
from .terminal import note, plain, print_json, progress


@cli.command(short_help="Write the task vector of a fine-tuned model.")
@click.argument("base", type=click.Path(path_type=Path))
@click.argument("finetuned", type=click.Path(path_type=Path))
@click.option("--out", "-o", required=True, type=click.Path(path_type=Path), help="The vector's file, *.safetensors.")
@shared_flag
@overwrite_flag
@threads_option
@json_flag
def diff(
    base: Path, finetuned: Path, out: Path, shared: bool, overwrite: bool, threads: int | None, as_json: bool
) -> None:  # fmt: skip
    """Write the task vector FINETUNED - BASE.

    \b
    taskvec diff clip-b32/ ft/cars/ -o cars.safetensors
    """
    from ..address import label_of
    from ..weights import Checkpoint, kinship_notes
    from ..weights.agreement import clash_notes
    from ..weights.names import floats

    start = Checkpoint.read(base)
    tuned = Checkpoint.read(finetuned, label=distinct_label(label_of(finetuned), start.label))
    match = tuned.match(start)
    if shared:
        if not as_json:
            note(str(match))
        tuned = tuned.shared(start)
    vector = tuned - start
    notes = [*kinship_notes(vector.node), *clash_notes(vector.node)]
    whole = len(start.spec) - len(floats(start.spec))
    if whole:
        notes.append(f"{whole} integer or boolean tensors of {start.label} are left out: they are never edited.")
    for text in notes:
        note(text)
    with progress(vector) as step:
        vector.save(out, overwrite=overwrite, threads=threads, progress=step)
    saved = _measured(out)
    saved |= {"base": _called(base), "finetuned": _called(finetuned), "notes": list(notes)}
    saved["left_out"] = sorted(set(floats(start.spec)) - set(vector.names)) if shared else []
    if as_json:
        print_json("diff", saved)
    else:
        print(f"{plain(out)}: {saved['tensors']} tensors, {saved['values']:,} values, norm {saved['norm']:.4g}")


def _measured(path: Path) -> dict[str, Any]:
    """Facts of a written vector, read back from the file."""
    from ..weights import TaskVector

    vector = TaskVector.read(path)
    values = sum(s.size for s in vector.spec.values())
    return {"output": str(path), "tensors": len(vector.names), "values": values, "norm": vector.norm()}


tokenizer_option = click.option(
    "--tokenizer",
    metavar="NAME|union|none",
    help="Whose vocabulary, where those of the inputs differ; their embeddings are matched by token (none: by number).",
)


@cli.command(short_help="Compute an edited checkpoint and write it.")
@click.argument("edit", metavar="EXPRESSION|RECIPE.yaml")
@let_option
@tokenizer_option
@click.option("--out", "-o", type=click.Path(path_type=Path), help="A folder, or a *.safetensors file.")
@click.option("--dtype", help="Number format of the output, for example bfloat16; else each tensor keeps its own.")
@click.option("--shard-size", help="Bytes per file of a folder, for example 5GB (the default).")
@click.option("--allow-nonfinite", is_flag=True, help="Copy untouched tensors even if they hold NaN or infinity.")
@click.option("--no-card", is_flag=True, help="Write no model card (README.md) into the folder.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, like `taskvec explain`, and do nothing.")
@overwrite_flag
@threads_option
@device_option
@json_flag
def edit(
    edit: str, lets: tuple[str, ...], tokenizer: str | None, out: Path | None, dtype: str | None, shard_size: str | None,
    dry_run: bool, allow_nonfinite: bool, no_card: bool, overwrite: bool, threads: int | None, device: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Compute an edited checkpoint (or task vector) and write it.

    \b
    taskvec edit 'base + 0.4 * (cars + dtd)' --let base=clip-b32/ \\
        --let cars=cars.safetensors --let dtd=dtd.safetensors -o out/

    \b
    An expression has names, numbers, + - * / and parentheses, and
      ties([a, b], density=0.2)     a method, of a list of vectors (taskvec methods)
      restrict(v, '*.attn.*')       only these names; '~*.bias' excludes, a list combines
      shared(ft, base)              only what both have, under the base's names
      rebase(v, base)               use a vector with another base than its own
      scale_by(v, {'mlp': 0.5})     coefficients by part (attention, mlp, norm,
                                    embedding, head), by name, or over the layers
      stack([a, 0, 8], [b, 4, 12])  blocks of several checkpoints on top of each other
      aligned(a, base)              embeddings in the vocabulary of base; [base, b]: in the union

    A YAML file is a recipe or a mergekit config, which runs as it is.
    """
    from ..weights import Checkpoint, kinship_notes
    from ..weights.agreement import alignment_notes
    from ..weights.device import device as check_device
    from ..weights.dtypes import parse_dtype
    from ..weights.output import sources
    from ..weights.plan import planned_output
    from ..weights.text import cut

    check_device(device)
    if dry_run:
        facts = _planned(
            edit, lets, tokenizer=tokenizer, out=out, dtype=dtype, shard_size=shard_size, overwrite=overwrite, threads=threads
        )  # fmt: skip
        return _show_explanation(facts, as_json)
    recipe, value, beside = value_of(edit, lets, tokenizer, fetch=False)
    dtype = dtype or recipe.dtype
    if dtype:
        parse_dtype(dtype)
    if not isinstance(value, Checkpoint) and (dtype or shard_size):
        raise UsageError(
            "the result is a task vector, which is one float32 file: --dtype and --shard-size are for checkpoints."
        )
    if isinstance(value, Checkpoint) and value.partial:
        note(f"the result holds only the {len(value.names)} tensors that the expression keeps, not a whole model.")
    if out is None:
        raise UsageError("name the output with -o, for example -o out/ (or use --dry-run).")
    size = None if shard_size is None else size_in_bytes(shard_size)
    if any(s.missing for s in sources(value.node)):  # all that headers can show comes before anything is fetched
        mistakes: list[TaskvecError] = []
        planned_output(value, mistakes, dtype=dtype, out=out, shard_size=size, overwrite=overwrite)
        raise_all(mistakes)
        value = built(recipe)
    how: dict[str, Any] = {"overwrite": overwrite, "threads": threads, "device": device}
    notes = [*kinship_notes(value.node), *alignment_notes(value.node)]
    for text in notes:
        note(text)
    with progress(value) as step:
        if isinstance(value, Checkpoint):
            allow = "allow" if allow_nonfinite else "error"
            value.save(
                out, dtype=dtype, shard_size=size, on_nonfinite=allow, progress=step, beside=beside,
                card=not no_card, **how,
            )  # fmt: skip
        else:
            value.save(out, progress=step, **how)
    facts = value.explain(dtype=dtype)
    if as_json:
        print_json("edit", {**facts.as_dict(), "output": str(out), "notes": list(notes)})
    else:
        print(
            f"{plain(out)}: {cut(facts.expression)} ({facts.tensors} tensors, {facts.unchanged} of them copied unchanged)"
        )
    return None


@cli.command(short_help="Say what an edit would do, from headers only.")
@click.argument("edit", metavar="EXPRESSION|RECIPE.yaml|PATH")
@let_option
@tokenizer_option
@click.option("--out", "-o", type=click.Path(path_type=Path), help="Where it would be written: looks at the disk too.")
@click.option("--dtype", help="Number format of the output, for example bfloat16.")
@click.option("--shard-size", help="Bytes per file of a folder, for example 5GB (the default).")
@overwrite_flag
@threads_option
@json_flag
def explain(
    edit: str, lets: tuple[str, ...], tokenizer: str | None, out: Path | None, dtype: str | None, shard_size: str | None,
    overwrite: bool, threads: int | None, as_json: bool,
) -> None:  # fmt: skip
    """Say what an edit would do, from headers only: inputs and how they match, passes, bytes, disk, memory, time.

    All mistakes that headers can show are reported at once.

    \b
    taskvec explain 'base + 0.7 * ties([cars, dtd])' --let base=clip-b32/ ... -o out/
    taskvec explain cars.safetensors
    """
    facts = _planned(
        edit, lets, tokenizer=tokenizer, out=out, dtype=dtype, shard_size=shard_size, overwrite=overwrite, threads=threads
    )  # fmt: skip
    _show_explanation(facts, as_json)


def _planned(
    edit: str, lets: tuple[str, ...], *, tokenizer: str | None = None, out: Path | None = None, dtype: str | None = None,
    shard_size: str | None = None, overwrite: bool = False, threads: int | None = None,
) -> Any:  # fmt: skip
    """What an edit would do (`Explanation`), or one error with all that is wrong with it."""
    from ..weights import open_weights
    from ..weights.plan import explain as explanation
    from ..weights.plan import planned_output

    mistakes: list[TaskvecError] = []
    size = recipe = value = facts = account = None
    with collecting(mistakes):
        size = None if shard_size is None else size_in_bytes(shard_size)
    with collecting(mistakes):
        if is_weights(edit, lets):
            value = open_weights(edit, fetch=False)
        else:
            recipe, _, account = recipe_of(edit, lets, tokenizer)
            dtype = dtype or recipe.dtype
            value = built(recipe, fetch=False)
    if value is None:
        planned_output(None, mistakes, dtype=dtype, out=out, shard_size=size, overwrite=overwrite)
    else:
        with collecting(mistakes):
            facts = explanation(value, dtype=dtype, out=out, shard_size=size, overwrite=overwrite, threads=threads)
    for name in recipe.unused() if recipe else ():
        note(f"{name} is named but not used.")
    raise_all(mistakes)
    return facts if account is None or facts is None else replace(facts, recipe=account)


def _show_explanation(facts: Any, as_json: bool) -> None:
    if as_json:
        print_json("explain", facts.as_dict())
    else:
        print(facts)


@cli.command("extract-lora", short_help="Write a fine-tuned model's task vector as a LoRA adapter.")
@click.argument("base", type=click.Path(path_type=Path))
@click.argument("finetuned", type=click.Path(path_type=Path))
@click.option("--out", "-o", required=True, type=click.Path(path_type=Path), help="The adapter's folder.")
@click.option("--rank", type=click.IntRange(1), help="Rank of every matrix.")
@click.option("--error", type=float, help="Instead: the relative error that every matrix keeps to, for example 0.05.")
@click.option("--only-matrices", is_flag=True, help="Leave out biases and norms, which an adapter cannot hold.")
@click.option("--task-type", help="For the adapter's config, for example CAUSAL_LM.")
@shared_flag
@overwrite_flag
@json_flag
def extract_lora(
    base: Path, finetuned: Path, out: Path, rank: int | None, error: float | None, only_matrices: bool,
    task_type: str | None, shared: bool, overwrite: bool, as_json: bool,
) -> None:  # fmt: skip
    """Write FINETUNED - BASE as a LoRA adapter in PEFT's format, each matrix at a rank or to an error.

    \b
    taskvec extract-lora llama/ ft/cars/ -o cars-lora/ --rank 16
    """
    from ..address import label_of
    from ..interop import write_adapter
    from ..weights import Checkpoint

    if (rank is None) == (error is None):
        raise UsageError("extract-lora takes --rank or --error.")
    start = Checkpoint.read(base)
    tuned = Checkpoint.read(finetuned, label=distinct_label(label_of(finetuned), start.label))
    vector = (tuned.shared(start) if shared else tuned) - start
    said = write_adapter(
        vector, out, rank=rank, error=error, only_matrices=only_matrices, task_type=task_type, overwrite=overwrite
    )  # fmt: skip
    if as_json:
        print_json("extract-lora", said.as_dict())
        return
    width = max(len(m.name) for m in said.modules)
    print(f"{'matrix':<{width}}  {'rank':>5}  {'error':>8}")
    for m in said.modules:
        print(f"{plain(m.name):<{width}}  {m.rank:>5}  {m.error:>8.3g}")
    print(plain(said))


def _called(path: Path) -> str:
    return str(parse_address(path)) if is_address(path) else path.name
