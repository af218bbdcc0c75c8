"""The commands: each is one public function and a way to show what it returns."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from .. import __version__
from ..address import is_address, parse_address
from ..errors import CheckFailed, NotLinear, TaskvecError, UnknownName, UsageError, collecting, nearest, raise_all
from ..files import exists
from .terminal import note, plain, print_json, progress, rate


class _Group(click.Group):
    """Suggests the nearest command, and lists commands in the order of a first session."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            hint = nearest(args[0], self.commands)
            raise UnknownName(f"unknown command {args[0]!r}; commands are {', '.join(self.commands)}.{hint}")
        return super().resolve_command(ctx, args)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
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


_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text.")
_overwrite = click.option("--overwrite", is_flag=True, help="Replace an existing output once the new one is complete.")
_threads = click.option(
    "--threads", type=click.IntRange(1, 256), help="How many threads compute; the result does not depend on it."
)
_device = click.option("--device", help="Where it is computed: cpu (the default), cuda or cuda:N (needs torch).")
_let = click.option(
    "--let",
    "lets",
    multiple=True,
    metavar="NAME=PATH",
    help="Name a checkpoint or task vector for the expression; repeat.",
)
_shared = click.option(
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
@click.option("--seed", type=int, default=0, show_default=True)
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


@cli.command(short_help="Write the task vector of a fine-tuned model.")
@click.argument("base", type=click.Path(path_type=Path))
@click.argument("finetuned", type=click.Path(path_type=Path))
@click.option("--out", "-o", required=True, type=click.Path(path_type=Path), help="The vector's file, *.safetensors.")
@_shared
@_overwrite
@_threads
@_json
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
    tuned = Checkpoint.read(finetuned, label=_distinct(label_of(finetuned), start.label))
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


_tokenizer = click.option(
    "--tokenizer",
    metavar="NAME|union|none",
    help="Whose vocabulary, where those of the inputs differ; their embeddings are matched by token (none: by number).",
)


@cli.command(short_help="Compute an edited checkpoint and write it.")
@click.argument("edit", metavar="EXPRESSION|RECIPE.yaml")
@_let
@_tokenizer
@click.option("--out", "-o", type=click.Path(path_type=Path), help="A folder, or a *.safetensors file.")
@click.option("--dtype", help="Number format of the output, for example bfloat16; else each tensor keeps its own.")
@click.option("--shard-size", help="Bytes per file of a folder, for example 5GB (the default).")
@click.option("--allow-nonfinite", is_flag=True, help="Copy untouched tensors even if they hold NaN or infinity.")
@click.option("--no-card", is_flag=True, help="Write no model card (README.md) into the folder.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, like `taskvec explain`, and do nothing.")
@_overwrite
@_threads
@_device
@_json
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
    recipe, value, beside = _value(edit, lets, tokenizer, fetch=False)
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
    size = None if shard_size is None else _bytes(shard_size)
    if any(s.missing for s in sources(value.node)):  # all that headers can show comes before anything is fetched
        mistakes: list[TaskvecError] = []
        planned_output(value, mistakes, dtype=dtype, out=out, shard_size=size, overwrite=overwrite)
        raise_all(mistakes)
        value = _built(recipe)
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
@_let
@_tokenizer
@click.option("--out", "-o", type=click.Path(path_type=Path), help="Where it would be written: looks at the disk too.")
@click.option("--dtype", help="Number format of the output, for example bfloat16.")
@click.option("--shard-size", help="Bytes per file of a folder, for example 5GB (the default).")
@_overwrite
@_threads
@_json
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
        size = None if shard_size is None else _bytes(shard_size)
    with collecting(mistakes):
        if _is_weights(edit, lets):
            value = open_weights(edit, fetch=False)
        else:
            recipe, _, account = _recipe(edit, lets, tokenizer)
            dtype = dtype or recipe.dtype
            value = _built(recipe, fetch=False)
    if value is None:
        planned_output(None, mistakes, dtype=dtype, out=out, shard_size=size, overwrite=overwrite)
    else:
        with collecting(mistakes):
            facts = explanation(value, dtype=dtype, out=out, shard_size=size, overwrite=overwrite, threads=threads)
    for name in recipe.unused() if recipe else ():
        note(f"{name} is named but not used.")
    raise_all(mistakes)
    return facts if account is None or facts is None else replace(facts, recipe=account)


def _is_weights(edit: str, lets: tuple[str, ...]) -> bool:
    """Whether the argument is a checkpoint or a vector by itself rather than an expression."""
    path = Path(edit)
    if lets or path.suffix in (".yaml", ".yml"):
        return False
    return is_address(edit) or path.suffix in (".safetensors", ".gguf") or exists(path)


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
@_shared
@_overwrite
@_json
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
    tuned = Checkpoint.read(finetuned, label=_distinct(label_of(finetuned), start.label))
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


@cli.command(short_help="Norms, cosines and signs of task vectors.")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--base", type=click.Path(path_type=Path), help="The common base, when PATHS are fine-tuned checkpoints.")
@click.option("--by", type=click.Choice(["model", "part", "layer", "tensor"]), default="model", show_default=True)
@_shared
@_threads
@_json
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
        opened.append(open_weights(path, label=_distinct(label_of(path), *(o.label for o in opened))))
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
@_let
@click.option("--sample", type=float, help="Compare only this share of the values, for example 0.05.")
@_threads
@_device
@_json
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
        found = verify_output(output, inputs=_lets(lets), sample=sample, threads=threads, device=device, progress=step)
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
@_json
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
@_json
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


@cli.command(short_help="List the merging methods, or explain one.")
@click.argument("name", required=False)
@_json
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
@_json
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


def _built(recipe: Any, *, fetch: bool = True) -> Any:
    """The lazy value of a recipe, whose models agree on what their rows stand for."""
    from ..weights.agreement import check_vocabularies

    value = recipe.build(fetch=fetch)
    if recipe.tokenizer is None:
        check_vocabularies(value.node)
    return value


def _value(edit: str, lets: tuple[str, ...], tokenizer: str | None, *, fetch: bool = True) -> tuple[Any, Any, Any]:
    """The recipe, its lazy value, and files that go beside it, from an expression or a YAML file."""
    recipe, beside, _ = _recipe(edit, lets, tokenizer)
    value = _built(recipe, fetch=fetch)
    for name in recipe.unused():
        note(f"{name} is named but not used.")
    return recipe, value, beside


def _recipe(
    edit: str, lets: tuple[str, ...], tokenizer: str | None = None
) -> tuple[Any, dict[str, bytes], str | None]:  # fmt: skip
    """The recipe of an expression or a YAML file; for a mergekit config files that go beside, and the recipe it becomes."""
    from ..recipe import Recipe, load

    read = _lets(lets)
    if not edit.endswith((".yaml", ".yml")):
        return Recipe(edit, read, tokenizer=tokenizer), {}, None
    from ..interop import recognises, translate

    translation = translate(edit) if recognises(edit) else None
    recipe = translation.recipe if translation else load(edit)
    for text in translation.notes if translation else ():
        note(text)
    mistakes: list[TaskvecError] = [
        UnknownName(f"--let {name}: {edit} has no input of that name; it has {', '.join(recipe.read)}.")
        for name in sorted(set(read) - set(recipe.read))
    ]
    raise_all(mistakes)
    beside, account = (dict(translation.beside), str(translation)) if translation else ({}, None)
    if translation and tokenizer:
        raise UsageError(f"--tokenizer: {edit} is a mergekit config; say it there (tokenizer_source).")
    whole = replace(recipe, read={**recipe.read, **read}, tokenizer=tokenizer or recipe.tokenizer)
    return whole, beside, account


def _lets(lets: tuple[str, ...]) -> dict[str, Path]:
    """``--let NAME=PATH``, repeated, as a table."""
    from ..recipe import check_name

    read: dict[str, Path] = {}
    mistakes: list[TaskvecError] = []
    for let in lets:
        name, sign, path = let.partition("=")
        with collecting(mistakes):
            if not sign or not path:
                raise UsageError(f"--let takes NAME=PATH, got {let!r}.")
            if check_name(name) in read:
                raise UsageError(f"--let names {name!r} twice.")
            read[name] = Path(path)
    raise_all(mistakes)
    return read


def _bytes(text: str) -> int:
    units = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    size = int(float(found[1]) * units[found[2]]) if found and found[2] in units else 0
    if size <= 0:
        raise UsageError(f"{text!r} is not a size; write 5GB, 500MB or 2GiB.")
    return size


def _called(path: Path) -> str:
    return str(parse_address(path)) if is_address(path) else path.name


def _distinct(label: str, *taken: str) -> str:
    unique, i = label, 2
    while unique in taken:
        unique, i = f"{label}_{i}", i + 1
    return unique
