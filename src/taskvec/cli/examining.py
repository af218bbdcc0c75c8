"""`taskvec compare` and `verify`: what vectors look like, and whether an output is what it says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ..errors import CheckFailed, NotLinear, UsageError
from .commands import cli, device_option, json_flag, let_option, shared_flag, threads_option
from .expressions import distinct_label, named_inputs
from .terminal import note, plain, print_json, progress, rate


@cli.command(short_help="Norms, cosines and signs of task vectors.")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--base", type=click.Path(path_type=Path), help="The common base, when PATHS are fine-tuned checkpoints.")
@click.option("--by", type=click.Choice(["model", "part", "layer", "tensor"]), default="model", show_default=True)
@shared_flag
@threads_option
@json_flag
def compare(
    paths: tuple[Path, ...], base: Path | None, by: Any, shared: bool, threads: int | None, as_json: bool
) -> None:  # fmt: skip
    """Norms, cosines, sign agreement and share of changed entries of task vectors, in one pass.

    \b
    taskvec compare cars.safetensors dtd.safetensors --by layer
    taskvec compare ft/cars/ ft/dtd/ --base clip-b32/
    taskvec compare clip-b32/ ft/cars/            (the first is taken as the base)
    """
    from ..address import label_of
    from ..weights import Checkpoint, TaskVector, kinship_notes, open_weights
    from ..weights import compare as compare_vectors

    opened: list[Any] = []
    for path in paths:
        opened.append(open_weights(path, label=distinct_label(label_of(path), *(o.label for o in opened))))
    start = Checkpoint.read(base) if base else None
    if start is None and isinstance(opened[0], Checkpoint):
        start, opened = opened[0], opened[1:]
        if not opened:
            raise UsageError("compare needs a second file: a fine-tuned checkpoint, or task vectors.")
    vectors: list[TaskVector] = []
    notes: list[str] = []
    for value in opened:
        if isinstance(value, TaskVector):
            vectors.append(value)
            continue
        if start is None:
            raise NotLinear(f"{value.label} is a checkpoint among task vectors; name their common base with --base.")
        if shared:
            notes.append(str(value.match(start)))
            value = value.shared(start)
        vectors.append(replace(value - start, label=value.label))
    for vector in vectors:
        notes.extend(kinship_notes(vector.node))
    for text in notes:
        note(text)
    with progress(*vectors) as step:
        found = compare_vectors(vectors, base=start, by=by, threads=threads, progress=step)
    if as_json:
        print_json("compare", found.as_dict() | {"notes": notes})
    else:
        _show_comparison(found)


def _show_comparison(found: Any) -> None:
    model = found.groups[0]
    width = max(len(n) for n in (*found.names, "vector"))
    print(f"{'vector':<{width}}  {'norm':>10}" + (f"  {'of base':>8}" if model.base_norm else "") + f"  {'changed':>8}")
    for i, name in enumerate(found.names):
        relative = f"  {model.norms[i] / model.base_norm:>8.3f}" if model.base_norm else ""
        print(f"{name:<{width}}  {model.norms[i]:>10.4g}{relative}  {100 * model.changed[i]:>7.1f}%")
    if model.base_norm:
        print(f"{'base':<{width}}  {model.base_norm:>10.4g}")
    if len(found.names) > 1:
        print("\ncosine")
        for i, name in enumerate(found.names):
            print(f"{name:<{width}}  " + "  ".join(f"{c:>7.3f}" for c in model.cosine[i]))
        print(
            f"\nsign agreement of {found.names[0]} and {found.names[1]}: {100 * model.sign_agreement:.1f}% of entries non-zero in both"
        )
    if len(found.groups) > 1:
        columns = [f"norm {n}" for n in found.names] + (["cosine"] if len(found.names) > 1 else [])
        label = max(len(plain(g.name)) for g in found.groups[1:])
        print(f"\n{'':<{label}}  {'values':>12}  " + "  ".join(f"{c:>12}" for c in columns))
        for g in found.groups[1:]:
            figures = [f"{n:>{max(12, len(c))}.4g}" for n, c in zip(g.norms, columns, strict=False)]
            figures += [f"{g.cosine[0][1]:>12.3f}"] if len(found.names) > 1 else []
            print(f"{plain(g.name):<{label}}  {g.values:>12,}  " + "  ".join(figures))


@cli.command(short_help="Compute an output again and compare every byte.")
@click.argument("output", type=click.Path(path_type=Path))
@let_option
@click.option("--sample", type=float, help="Compare only this share of the values, for example 0.05.")
@threads_option
@device_option
@json_flag
def verify(
    output: Path, lets: tuple[str, ...], sample: float | None, threads: int | None, device: str | None, as_json: bool
) -> None:  # fmt: skip
    """Compute the recorded recipe of OUTPUT again, compare every byte, and check that its inputs are unchanged.

    \b
    taskvec verify out/
    taskvec verify out/ --let base=/elsewhere/clip-b32     (inputs that have moved)

    Exit code 5 if anything differs; each tensor that does is named.
    """
    from ..verify import verify as verify_output

    with rate() as step:
        found = verify_output(
            output, inputs=named_inputs(lets), sample=sample, threads=threads, device=device, progress=step
        )
    for text in found.notes:
        note(text)
    if as_json:
        print_json("verify", found.as_dict())
        if not found.ok:
            raise click.exceptions.Exit(CheckFailed.exit_code)
    elif not found.ok:
        raise CheckFailed(str(found))
    else:
        print(plain(str(found)))
