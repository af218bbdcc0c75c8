"""The commands for language models: what they say, and how well they do."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ..errors import InputError, UsageError, plain
from .commands import cli, json_flag
from .expressions import distinct_label
from .terminal import note, print_json


def language_data(
    base: Path, data: Path, *, text: str, answer: str | None, window: int, limit: int | None, seed: int
) -> tuple[Any, Any, Any]:
    """(module, base, task) for `taskvec fit --language`."""
    from ..models.language import language_model, next_tokens
    from ..tasks.language import language_task, read_texts

    texts = read_texts(data, text=text, answer=answer)
    if texts.empty:
        note(f"{plain(data)}: {texts.empty} empty texts are left out.")
    model = language_model(base)
    task = language_task(model, texts, window=window, limit=limit, seed=seed)
    return next_tokens(model), model.base, task


_models = [
    click.argument("out"),
    click.option("--against", multiple=True, metavar="BASE", help="Another model to show beside it; repeat."),
    click.option("--device", help="cpu (the default), cuda or cuda:N."),
]


def _with_models(command: Callable[..., None]) -> Callable[..., None]:
    for decorate in reversed(_models):
        command = decorate(command)
    return command


@cli.command(short_help="Continuations of prompts by several language models, side by side.")
@_with_models
@click.option("--prompt", "-p", "given", multiple=True, help="A prompt; repeat.")
@click.option("--prompts", type=click.Path(path_type=Path), help="A file with a prompt on each line; - for stdin.")
@click.option("--tokens", type=click.IntRange(1), default=64, show_default=True, help="Most tokens of a continuation.")
@click.option("--temperature", type=click.FloatRange(0), default=1.0, show_default=True, help="0: the likeliest token.")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=0.9, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="The same for all models.")
@click.option("--ban", multiple=True, metavar="WORD", help="A word or phrase never to be said; repeat.")
@click.option("--batch", type=click.IntRange(1), default=16, show_default=True)
@click.option("--raw", is_flag=True, help="Prompts as they are, also where a tokenizer has a chat template.")
@json_flag
def chat(
    out: str, against: tuple[str, ...], device: str | None, given: tuple[str, ...], prompts: Path | None, tokens: int,
    temperature: float, top_p: float, seed: int, ban: tuple[str, ...], batch: int, raw: bool, as_json: bool,
) -> None:  # fmt: skip
    """Continue the same prompts, with the same seed, by the language model OUT and by others.

    A model is a folder, a .gguf file or an id on the hub; or a .safetensors file of weights alone, for the model that the
    first --against names.

    \b
    taskvec chat edited/ --against stories/ -p 'Once upon a time'
    taskvec chat edited/ --against smollm2/ --prompts questions.txt --temperature 0
    """
    said = _prompts(given, prompts)
    models = _opened(out, against, device)
    from ..models.language import chat_prompt, generate

    found: dict[str, list[str]] = {}
    templates: dict[str, bool] = {}
    for name, (model, weights) in models.items():
        templates[name] = not raw and bool(getattr(model.tokenizer, "chat_template", None))
        asked = [chat_prompt(model, p) for p in said] if templates[name] else said
        found[name] = generate(
            model, asked, weights=weights, tokens=tokens, temperature=temperature, top_p=top_p, seed=seed, banned=ban, batch=batch
        )  # fmt: skip
    if as_json:
        settings = {"tokens": tokens, "temperature": temperature, "top_p": top_p, "seed": seed, "banned": list(ban)}
        print_json("chat", {"settings": settings, "prompts": said, "chat_template": templates, "continuations": found})
        return
    for i, prompt in enumerate(said):
        _show_row(prompt, {name: lines[i] for name, lines in found.items()})


@cli.command("eval", short_help="Measure language models: perplexity, or tasks of lm-eval.")
@_with_models
@click.option("--perplexity", "texts", type=click.Path(path_type=Path), help="On a text, .csv or .jsonl file.")
@click.option("--text", default="text", show_default=True, help="Column of the texts.")
@click.option(
    "--window", type=click.IntRange(2), help="Tokens that the model sees at once; else its context, at most 1024."
)
@click.option("--stride", type=click.IntRange(1), help="Tokens by which the window moves; half a window unless told.")
@click.option("--lm-eval", "tasks", help="Tasks of lm-evaluation-harness, separated by commas.")
@click.option("--include-path", type=click.Path(path_type=Path), help="A folder of task files for lm-eval; trust it.")
@click.option("--limit", type=click.IntRange(1), help="With --lm-eval: samples of each task. With --perplexity: texts.")
@click.option("--batch", type=click.IntRange(1), default=8, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@json_flag
def evaluate(
    out: str, against: tuple[str, ...], device: str | None, texts: Path | None, text: str, window: int | None, stride: int | None,
    tasks: str | None, include_path: Path | None, limit: int | None, batch: int, seed: int, as_json: bool,
) -> None:  # fmt: skip
    """Measure the language model OUT, and others on the same samples.

    \b
    taskvec eval edited/ --against stories/ --perplexity wiki.txt
    taskvec eval edited/ --against stories/ --lm-eval taskvec_stories --include-path examples/lm_eval
    """
    if (texts is None) == (tasks is None):
        raise UsageError("say what to measure: --perplexity FILE or --lm-eval TASKS.")
    if include_path is not None and tasks is None:
        raise UsageError("--include-path goes with --lm-eval.")
    if texts is not None:
        from ..tasks.language import read_texts

        found = read_texts(texts, text=text).texts[:limit]
        models = _opened(out, against, device)
        _perplexities(models, found, window=window, stride=stride, batch=batch, as_json=as_json)
        return
    from ..interop.lm_eval import lm_eval_scores
    from ..models.language import loaded_with

    opened = {n: loaded_with(model, weights) for n, (model, weights) in _opened(out, against, device).items()}
    wanted = [t.strip() for t in (tasks or "").split(",") if t.strip()]
    if not as_json:
        note(f"lm-eval: {', '.join(wanted)} on {', '.join(opened)}")
    result = lm_eval_scores(opened, wanted, include_path=include_path, limit=limit, batch=batch, seed=seed)
    if as_json:
        facts = {"measured": [asdict(m) for m in result.measured], "paired": [asdict(p) for p in result.paired]}
        print_json("eval", {"lm_eval": result.version, "models": list(opened), **facts})
        return
    first = next(iter(opened))
    rows = []
    for task, metric in dict.fromkeys((m.task, m.metric) for m in result.measured):
        cells = [task, metric]
        for name in opened:
            here = [m for m in result.measured if (m.task, m.metric, m.model) == (task, metric, name)]
            cells.append(_value(here[0].value, here[0].stderr) if here else "")
        for name in [n for n in opened if n != first]:
            pairs = [p for p in result.paired if (p.task, p.metric, p.against) == (task, metric, name)]
            cells.append(_pair(pairs[0]) if pairs else "")
        rows.append(cells)
    others = [n for n in opened if n != first]
    _table(["task", "metric", *opened, *(f"{first} - {n}" for n in others)], rows)


def _value(value: float, stderr: float | None) -> str:
    return f"{value:.4g}" if stderr is None else f"{value:.4f} ± {stderr:.4f}"


def _pair(p: Any) -> str:
    return f"{p.difference:+.4f} [{p.low:+.4f}, {p.high:+.4f}], {p.test} p {p.p:.2g} ({p.wins} up, {p.losses} down of {p.n})"


def _perplexities(
    models: Mapping[str, Any], texts: Sequence[str], *, window: int | None, stride: int | None, batch: int, as_json: bool
) -> None:  # fmt: skip
    from ..models.language import perplexity
    from ..report.words import legible

    found = {
        n: perplexity(model, texts, weights=weights, window=window, stride=stride, batch=batch)
        for n, (model, weights) in models.items()
    }
    first = next(iter(found))
    ratios = {}
    for name in list(found)[1:]:
        try:
            ratios[name] = found[first].ratio(found[name])
        except UsageError:
            note(f"{first} and {name} cut the texts into other tokens: compare words and bytes.")
    if as_json:
        facts = {n: {k: v for k, v in asdict(p).items() if k != "drawn"} for n, p in found.items()}
        ratio = {n: {"ratio": r, "low": low, "high": high} for n, (r, low, high) in ratios.items()}
        print_json("eval", {"perplexity": facts, "ratio": ratio, "first": first})
        return
    rows = []
    for name, p in found.items():
        r = ratios.get(name)
        beside = "" if r is None else f"{r[0]:.4f} [{r[1]:.4f}, {r[2]:.4f}]"
        shown = [
            "{} [{}, {}]".format(*(legible(v, ".2f") for v in (p.token, p.low, p.high))),
            legible(p.word, ".2f"),
            f"{p.bits_per_byte:.4f}",
            f"{p.tokens:,}",
        ]
        rows.append([name, *shown, beside])
    _table(["model", "perplexity", "by word", "bits per byte", "tokens", f"{first} / it"], rows)
    p = found[first]
    print(f"windows of {p.window} tokens moved by {p.stride}; 95 % intervals by bootstrap over {p.units}")


def _prompts(given: Sequence[str], path: Path | None) -> list[str]:
    said = list(given)
    if path is not None and str(path) != "-":
        try:
            said += [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read the prompts {plain(path)}: {error}.") from error
    elif path is not None or (not said and not sys.stdin.isatty()):
        said += [line for line in sys.stdin.read().splitlines() if line.strip()]
    if not said:
        raise UsageError("no prompt. Give --prompt TEXT, --prompts FILE, or lines on stdin.")
    return said


def _opened(out: str, against: Sequence[str], device: str | None) -> dict[str, tuple[Any, Any]]:
    """Name -> (model, weights in place of its own or None), OUT first."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from ..models.language import language_model
    from ..weights import Checkpoint
    from ..weights.device import device as check_device

    check_device(device)
    models: dict[str, tuple[Any, Any]] = {}
    others = [language_model(path) for path in against]
    if out.endswith(".safetensors") and Path(out).is_file():
        if not others:
            raise UsageError(f"{plain(out)} holds weights alone. Name the model that they are for with --against.")
        mine = others[0]
        weights: Any = Checkpoint.read(out)
        models[Path(out).stem] = (mine, weights)
    else:
        mine = language_model(out)
        models[mine.name] = (mine, None)
    for model in others:
        models[distinct_label(model.name, *models)] = (model, None)
    if device:
        for model, _ in models.values():
            model.module.to(device)
    return models


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for name in header:
        table.add_column(Text(plain(name)))
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    Console(highlight=False, width=None if sys.stdout.isatty() else 200).print(table)


def _show_row(prompt: str, continuations: Mapping[str, str]) -> None:
    """A prompt over its continuations, a column for each model."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def safe(text: str) -> str:
        return "\n".join(map(plain, text.split("\n")))

    table = Table(box=None, pad_edge=False, expand=True, title=Text(safe(prompt), style="bold"), title_justify="left")
    for name in continuations:
        table.add_column(Text(plain(name), style="dim"), ratio=1, overflow="fold")
    table.add_row(*(Text(safe(text).strip()) for text in continuations.values()))
    console = Console(highlight=False)
    console.print(table)
    console.print()
