"""The command that trains: one public function and a way to show what it returns."""

from __future__ import annotations

import contextlib
import functools
import math
import os
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ..errors import InputError, UsageError, nearest, plain
from .commands import cli, json_flag, overwrite_flag
from .images import image_data
from .language import language_data
from .terminal import note, print_json, training_bar

REGIMES = (
    "standard", "tangent", "linear-only", "linear-only-biases", "bias-attention", "mlp-only", "lora", "linearised-lora",
)  # fmt: skip  # said here too, because `--help` does not load the training room


def _together(command: Callable[..., None]) -> Callable[..., None]:
    """Under torchrun or accelerate launch join the other processes. The command learns whether it is the `first` of them, which
    alone writes and speaks; errors that the first on each machine has too are said by that one."""

    @functools.wraps(command)
    def run(*, device: str | None, **arguments: Any) -> None:
        # Before torch is imported: idle OpenMP threads then sleep, where spinning would slow a busy machine down severalfold.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        from ..training.parallel import launched

        with launched(device) as (processes, own):
            if processes.rank == 0:
                return command(device=own, first=True, **arguments)
            try:
                with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
                    command(device=own, first=False, **arguments)
            except (UsageError, InputError) as error:
                if os.environ["LOCAL_RANK"] == "0":
                    raise
                raise click.exceptions.Exit(error.exit_code) from error

    return run


@cli.command(short_help="Fine-tune an encoder or a language model; write its task vector.")
@click.argument("base", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--out", "-o", required=True, type=click.Path(path_type=Path), help="The vector's file, *.safetensors.")
@click.option("--text", default="text", show_default=True, help="Column of the sentences.")
@click.option("--label", default="label", show_default=True, help="Column of the labels.")
@click.option("--lines", is_flag=True, help="DATA has no header: a sentence, a tab and a label on each line.")
@click.option("--regime", default="standard", show_default=True, help=f"One of {', '.join(REGIMES)}.")
@click.option("--only", help="Train only parameters whose names match this pattern, for example '*layer.1[01].*'.")
@click.option(
    "--head",
    type=click.Path(path_type=Path),
    help="A head to keep frozen, or 'probe'; else zero-shot for CLIP, probed on the base for others.",
)
@click.option(
    "--heads",
    type=click.Path(path_type=Path),
    help="A file of heads by task, named as the vector: this one's is taken from it, or made and added to it.",
)
@click.option("--steps", type=click.IntRange(1), default=200, show_default=True)
@click.option("--lr", type=float, default=1e-4, show_default=True, help="Learning rate after the warm-up.")
@click.option("--batch", type=click.IntRange(1), default=32, show_default=True)
@click.option("--accumulate", type=click.IntRange(1), default=1, show_default=True, help="Batches per update.")
@click.option("--max-tokens", type=click.IntRange(3), default=64, show_default=True, help="Of a sentence or a window.")
@click.option(
    "--language", is_flag=True, help="Train a language model to continue the texts of DATA: plain text, .csv or .jsonl."
)
@click.option("--answer", help="With --language: column of the answers to the texts, which alone are learnt.")
@click.option("--ascent", is_flag=True, help="Flip the sign of the loss: the gradient-ascent baseline of forgetting.")
@click.option("--set", "known", help="DATA is the folder of this known image set: mnist, gtsrb, ... (docs/images.md).")
@click.option("--limit", type=click.IntRange(1), help="Most training images, or windows of texts.")
@click.option("--skip-corrupt", is_flag=True, help="Leave out images that cannot be decoded.")
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Chooses the split, the batches and the coordinates.",
)
@click.option("--device", help="cpu (the default), cuda or cuda:N.")
@click.option(
    "--state", type=click.Path(path_type=Path), help="Keep the run in this .safetensors file and go on from it."
)
@click.option(
    "--check",
    type=click.IntRange(1),
    help="Updates between looks at validation; the vector of the best look is written.",
)
@click.option("--patience", type=click.IntRange(1), help="With --check: looks without a lesser loss before it stops.")
@click.option(
    "--log", type=click.Path(path_type=Path), help="Losses to a .csv or .json file, or to a folder for TensorBoard."
)
@overwrite_flag
@json_flag
@_together
def fit(
    base: Path, data: Path, out: Path, text: str, label: str, lines: bool, regime: str, only: str | None, head: Path | None, heads: Path | None,
    steps: int, lr: float, batch: int, accumulate: int, max_tokens: int, language: bool, answer: str | None, ascent: bool,
    known: str | None, limit: int | None, skip_corrupt: bool, seed: int, device: str | None, state: Path | None,
    check: int | None, patience: int | None, log: Path | None, overwrite: bool, as_json: bool, first: bool,
) -> None:  # fmt: skip
    """Fine-tune the encoder in the folder BASE on the labelled sentences or images of DATA and write its task vector.

    With --language BASE is a language model (a folder, a .gguf file or an id on the hub) and DATA are texts.

    Of the sentences 60 % train, 20 % validate; 20 % are a test part that is not read. A folder DATA holds images:
    train/CLASS/*.png, perhaps val/ and test/. The head lies beside the vector, as NAME.head.safetensors.

    \b
    taskvec fit minilm/ reviews.csv --regime tangent -o reviews.safetensors
    taskvec fit minilm/ other.csv --head reviews.head.safetensors -o other.safetensors
    taskvec fit clip-b32/ data/gtsrb/ --set gtsrb -o gtsrb.safetensors
    taskvec fit stories/ plays.txt --language --max-tokens 128 -o plays.safetensors

    \b
    Several processes share every batch and give one vector:
    torchrun --nproc-per-node 2 -m -- taskvec fit minilm/ reviews.csv -o reviews.safetensors
    """
    if regime not in REGIMES:
        raise UsageError(f"unknown regime {regime!r}; expected one of {', '.join(REGIMES)}.{nearest(regime, REGIMES)}")
    if not data.is_dir() and (known or (limit and not language) or skip_corrupt):
        raise UsageError(f"--set, --limit and --skip-corrupt are for a folder of images; {plain(data)} is none.")
    if language and (data.is_dir() or lines or head is not None or heads is not None):
        raise UsageError(
            "--language takes one file of texts, and its models need no head: leave out --lines, --head and --heads."
        )
    if answer and not language:
        raise UsageError("--answer goes with --language.")
    if patience and not check:
        raise UsageError("--patience counts looks at validation; set --check, the number of updates between two.")
    if head is not None and heads is not None:
        raise UsageError("--head and --heads both say where the head is. Name one.")
    beside, named = out.with_suffix(".head.safetensors"), head is None
    head = None if str(head) == "probe" else head
    if out.suffix != ".safetensors":
        raise UsageError(f"cannot write {plain(out)}: a vector is one file whose name ends in .safetensors.")
    for path in (out, *((beside,) if head is None and heads is None and not language else ())):
        if path.exists() and not overwrite:
            raise UsageError(f"{plain(path)} exists. Use --overwrite to replace it, or name another.")
    from .. import training
    from ..models.hub import filed, tokenizer, transformer
    from ..search import curves
    from ..tasks import Head, add_head, read_heads, with_heads
    from ..tasks.text import read_sentences, sentences_task
    from ..training.log import check_log, logged, write_log
    from ..weights.device import device as check_device

    check_device(device)
    if log is not None:
        check_log(log)
    how = _regime(regime, only)
    known_head = heads is not None and heads.exists() and out.stem in read_heads(heads)
    if data.is_dir():
        (model, start, *_), task = image_data(
            base, data, known=known, limit=limit, seed=seed, skip_corrupt=skip_corrupt, named=named
        )
    elif language:
        model, start, task = language_data(
            base, data, text=text, answer=answer, window=max_tokens, limit=limit, seed=seed
        )
    else:
        sentences = read_sentences(data, layout="text-label" if lines else "csv", text=text, label=label)
        if sentences.empty or sentences.repeated:
            note(f"{plain(data)}: {sentences.empty} empty and {sentences.repeated} repeated sentences are left out.")
        model, start = transformer(base)
        task = sentences_task(sentences, tokenise=tokenizer(base, max_tokens=max_tokens), seed=seed)
    if device:
        model = model.to(device)
    task = replace(task, name=out.stem) if heads is not None else task
    if heads is not None and known_head:
        (task,) = with_heads([task], heads)
    elif head is not None:
        task = task.with_head(Head.read(head))
    elif task.head is None:
        what = "images" if data.is_dir() else "sentences"
        note(f"probing a head of {len(task.classes)} classes on the base ({len(task.train)} {what})")
        task = task.with_head(training.probe(model, start, task))
    note(how.said(model))
    spec = training.TrainSpec(
        steps=steps, lr=lr, batch=batch, accumulate=accumulate, seed=seed, check=check or 0, patience=patience or 0
    )
    with _steps(steps) as step, logged(log if first else None, step) as progress:
        made = training.fit(model, start, task, regime=how, spec=spec, ascent=ascent, progress=progress, state=state)
    if not first:
        return
    if log is not None:
        write_log(log, made)
    parts = {task.name: (task.validation, task.needs_head())}
    before, after = curves(model, start, made.vector, parts, coefficients=(0.0, 1.0), forward=made.forward)[task.name]
    # Under the names of the base's file, which may be older than the model's.
    (filed(made.vector, start) if data.is_dir() or language else made.vector).save(out, overwrite=overwrite)
    if heads is not None and not known_head:
        add_head(heads, task)
    elif head is None and heads is None and not language:
        made.head.save(beside, overwrite=overwrite)
    facts = {
        "output": str(out), "head": None if language else str(head or heads or beside), "regime": how.name, "forward": made.forward.name,
        "classes": [] if language else list(task.classes), "samples": {"train": len(task.train), "validation": len(task.validation)},
        "tensors": len(made.vector.names), "values": sum(s.size for s in made.vector.spec.values()), "norm": made.vector.norm(),
        "loss": {"first": made.losses[0], "last": made.losses[-1]}, "step": made.step,
        "validation": {"base": before.model_dump(), "fine-tuned": after.model_dump()},
    }  # fmt: skip
    if ascent:
        facts["ascent"] = True
    perplexity = ""
    if language:
        from ..report.words import legible

        losses = [training.validation_loss(model, start, v, task, forward=made.forward) for v in (None, made.vector)]
        facts["perplexity"] = {"base": _exp(losses[0]), "fine-tuned": _exp(losses[1])}
        perplexity = f"validation perplexity {legible(_exp(losses[0]))} -> {legible(_exp(losses[1]))}; "
    if as_json:
        print_json("fit", facts)
        return
    print(
        f"{plain(out)}: {facts['tensors']} tensors, {facts['values']:,} values, norm {facts['norm']:.4g} ({how.name})"
    )
    print(
        f"{perplexity}validation accuracy {before} -> {after} [{100 * after.low:.1f}, {100 * after.high:.1f}], n {after.n}; "
        f"loss {made.losses[0]:.3f} -> {made.losses[-1]:.3f}"
        + (f"; the vector is that of update {made.step} of {len(made.losses)}" if check else "")
    )


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf


def _regime(name: str, only: str | None) -> Any:
    """A regime by its name on the command line, confined to names that match a pattern."""
    from ..select import matching
    from ..training.regime import REGIMES, within

    how = REGIMES[name]
    return how if not only else replace(within(how, matching(only)), name=f"{how.name} in {only}")


@contextlib.contextmanager
def _steps(total: int) -> Iterator[Callable[[int, float], None] | None]:
    """A bar by updates for one run of `total` updates."""
    with training_bar() as (_, show):
        yield None if show is None else lambda step, loss: show(step, total, loss)
