"""lm-evaluation-harness on edited models: several models side by side on the same samples, with paired tests."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, UnknownName, UsageError, missing_extra, nearest, some
from ..models.language import LanguageModel

RESAMPLES = 2000


@dataclass(frozen=True)
class Measured:
    """One metric of one model on one task, as the harness reports it.

    Args:
        value: the harness's aggregate.
        stderr: its standard error; None where the harness gives none.
        n: samples.
    """

    task: str
    metric: str
    model: str
    value: float
    stderr: float | None
    n: int


@dataclass(frozen=True)
class Paired:
    """The mean difference `model` - `against` over the same samples.

    Args:
        low, high: 95 % interval by bootstrap over samples.
        p: two-sided; of McNemar's exact test where every outcome is 0 or 1, else of a sign-flip permutation test.
        wins, losses: samples on which `model` is higher and lower.
        test: which of the two.
    """

    task: str
    metric: str
    model: str
    against: str
    difference: float
    low: float
    high: float
    p: float
    wins: int
    losses: int
    n: int
    test: str


@dataclass(frozen=True)
class HarnessResult:
    """What `lm_eval_scores` found: every measure of every model, and the first model against each other one."""

    measured: tuple[Measured, ...]
    paired: tuple[Paired, ...]
    version: str


def lm_eval_scores(
    models: Mapping[str, LanguageModel], tasks: Sequence[str], *, include_path: str | Path | None = None,
    limit: int | None = None, batch: int = 8, seed: int = 0,
) -> HarnessResult:  # fmt: skip
    """Run tasks of lm-evaluation-harness on models in memory, on the same samples, and compare the first with the others.

    Task files may name Python functions, which the harness runs: include only folders that you trust.

    Args:
        models: name -> model, by rising interest of comparison: the first is compared with each of the others.
        tasks: names of tasks or groups.
        include_path: a folder of task files (.yaml) of your own. Where it has all of `tasks`, those that come with the
            harness are not searched.
        limit: samples of each task, else all.
        batch: requests at a time.
        seed: of few-shot examples and of the intervals here.
    Raises:
        MissingExtra: lm-eval is not installed.
        UnknownName: there is no such task.
        InputError: a task's data cannot be had, or its file is wrong.
    Reference: Gao et al., the language model evaluation harness, https://github.com/EleutherAI/lm-evaluation-harness
    """
    if not models or not tasks:
        raise UsageError("lm_eval_scores needs at least one model and one task.")
    try:
        harness: Any = importlib.import_module("lm_eval")
        HFLM = importlib.import_module("lm_eval.models.huggingface").HFLM
        TaskManager = importlib.import_module("lm_eval.tasks").TaskManager
    except ImportError:
        raise missing_extra("lm-eval", "lm-eval", "The language model evaluation harness") from None
    if include_path is not None and not Path(include_path).is_dir():
        raise InputError(f"there is no folder of task files {include_path}.")
    measured: list[Measured] = []
    outcomes: dict[str, dict[tuple[str, str], dict[Any, float]]] = {}
    with _quiet():
        manager = TaskManager(include_path=include_path, include_defaults=False) if include_path is not None else None
        if manager is None or not set(tasks) <= set(manager.all_tasks):
            manager = TaskManager(include_path=include_path)
        absent = [t for t in tasks if t not in manager.all_tasks]
        if absent:
            raise UnknownName(f"lm-eval has no task {some(absent)}.{nearest(absent[0], manager.all_tasks)}")
        for name, model in models.items():
            harnessed = HFLM(
                pretrained=model.module, tokenizer=model.tokenizer, batch_size=batch, device=str(next(model.module.parameters()).device),
                backend=model.kind, max_length=model.longest,
            )  # fmt: skip
            try:
                found: Any = harness.simple_evaluate(
                    model=harnessed, tasks=list(tasks), task_manager=manager, limit=limit, log_samples=True, bootstrap_iters=1000,
                    random_seed=seed, numpy_random_seed=seed, torch_random_seed=seed, fewshot_random_seed=seed,
                )  # fmt: skip
            except (OSError, ValueError, KeyError, RuntimeError) as error:
                raise InputError(
                    f"lm-eval could not run {some(tasks)} on {name}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}. "
                    "Its data may need the network, or the folder from which its file names them."
                ) from error
            measured += _aggregates(found, name)
            outcomes[name] = _outcomes(found)
    first, *others = models
    paired = tuple(
        _paired(task, metric, first, other, by_sample, outcomes[other][task, metric], seed)
        for other in others
        for (task, metric), by_sample in outcomes[first].items()
        if (task, metric) in outcomes[other]
    )
    return HarnessResult(tuple(measured), paired, harness.__version__)


def _aggregates(found: Mapping[str, Any], model: str) -> Iterator[Measured]:
    counts = found.get("n-samples", {})
    for task, row in found["results"].items():
        n = int(counts.get(task, {}).get("effective", row.get("sample_len", 0)) or 0)
        for key, value in row.items():
            metric, comma, kept = str(key).partition(",")
            if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
                stderr = row.get(f"{metric}_stderr,{kept}")
                shown = metric if kept == "none" else f"{metric} ({kept})"
                error = float(stderr) if isinstance(stderr, int | float) and math.isfinite(stderr) else None
                yield Measured(task, shown, model, float(value), error, n)


def _outcomes(found: Mapping[str, Any]) -> dict[tuple[str, str], dict[Any, float]]:
    """(task, metric) -> sample -> its value, of metrics that have one number a sample."""
    out: dict[tuple[str, str], dict[Any, float]] = {}
    for task, samples in found["samples"].items():
        for sample in samples:
            kept = sample.get("filter", "none")
            for metric in sample.get("metrics", ()):
                value = sample.get(metric)
                if isinstance(value, bool | int | float) and math.isfinite(value):
                    shown = metric if kept == "none" else f"{metric} ({kept})"
                    out.setdefault((task, shown), {})[sample["doc_id"]] = float(value)
    return out


def _paired(
    task: str, metric: str, model: str, against: str, mine: Mapping[Any, float], theirs: Mapping[Any, float], seed: int
) -> Paired:
    shared = [i for i in mine if i in theirs]
    a, b = np.array([mine[i] for i in shared]), np.array([theirs[i] for i in shared])
    gap = a - b
    wins, losses = int((gap > 0).sum()), int((gap < 0).sum())
    rng = np.random.default_rng(seed)
    drawn = gap[rng.integers(len(gap), size=(RESAMPLES, len(gap)))].mean(axis=1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    binary = bool(np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all())
    if binary:
        p, test = mcnemar(wins, losses), "McNemar"
    else:
        signs = rng.choice((-1.0, 1.0), size=(RESAMPLES, len(gap)))
        extreme = np.abs((signs * gap).mean(axis=1)) >= abs(gap.mean()) - 1e-12
        p, test = float((1 + extreme.sum()) / (1 + RESAMPLES)), "permutation"
    return Paired(
        task, metric, model, against, float(gap.mean()), float(low), float(high), p, wins, losses, len(gap), test
    )


def mcnemar(wins: int, losses: int) -> float:
    r"""McNemar's exact two-sided p-value: of n = wins + losses samples on which two models differ, so unequal a split
    under a fair coin, :math:`\min(1, 2 \sum_{i \le \min} \binom{n}{i} 2^{-n})`.

    Example:
        >>> mcnemar(5, 0), mcnemar(3, 3)
        (0.0625, 1.0)
    """
    n = wins + losses
    tail = sum(math.comb(n, i) for i in range(min(wins, losses) + 1))
    return min(1.0, 2 * tail / 2**n) if n else 1.0


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The harness's own log and progress bars off, but for errors."""
    names = ("lm_eval", "lm-eval", "datasets", "transformers")
    before = {n: logging.getLogger(n).level for n in names}
    for n in names:
        logging.getLogger(n).setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of libraries between the harness and its data
            yield
    finally:
        for n, level in before.items():
            logging.getLogger(n).setLevel(level)
