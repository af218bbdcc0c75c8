"""What studies train text bases with where there are no labels: filling in masked tokens, or, decoders, telling the next one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..models.functional import bind, device_of, tensors
from ..models.modelling import causal, filling, own_head, telling, vocabulary_head, with_weights
from ..models.texts import TextBase
from ..search import curves
from ..select import matching
from ..tasks.task import IGNORED, Head, Split, Task
from ..tasks.unlabelled import following_task, masked_task
from ..training import TrainSpec, fit
from ..training.regime import Regime
from ..weights import Checkpoint

if TYPE_CHECKING:
    import torch

SEED = 0  # of the hidden tokens: equal for all seeds of a study
BATCH = 128  # masked tokens at a time, while the head is fitted
VOCABULARY = Regime("head over the vocabulary", matching("transform.*", "norm.*", "bias"))
Progress = Callable[[int, float], None] | None


def fitted_head(
    opened: TextBase, parts: Sequence[Sequence[str]], facts: Mapping[str, Any], *, progress: Progress
) -> tuple[Checkpoint, dict[str, Any]]:
    """The head over the vocabulary, fitted to the states that the base has where tokens of these texts are hidden; what it learnt."""
    task = hiding("texts", opened, parts, facts)
    model = filling(opened)
    f = bind(model)
    weights = tensors(opened.base, like=model, device=device_of(model))
    seen, held = (_states(f, weights, split, device_of(model)) for split in (task.train, task.validation))
    head = vocabulary_head(opened).to(device_of(model))
    start = Checkpoint.of(head, label="head over the vocabulary")
    states = Task(
        "masked tokens", seen, held, held, Head.own(len(task.classes)), task.classes
    )  # no test: none is reported
    spec = TrainSpec(
        steps=facts["steps"], lr=facts["lr"], batch=min(BATCH, len(seen)), weight_decay=0.01, check=max(1, facts["steps"] // 10)
    )  # fmt: skip
    made = fit(head, start, states, regime=VOCABULARY, spec=spec, progress=progress)
    data = {"own": (states.validation, states.needs_head())}
    before, after = curves(head, start, made.vector, data, coefficients=(0.0, 1.0))["own"]
    return made.checkpoint, {
        "tokens": len(seen), "loss": list(made.looks.values())[-1:], "step": made.step, "base": before.model_dump(), "validation": after.model_dump(),
    }  # fmt: skip


def taught(
    opened: TextBase, head: Path, parts: Sequence[Sequence[str]], facts: Mapping[str, Any], *, regime: Regime, state: Path, every: int,
    progress: Progress,
) -> tuple[Any, dict[str, Any]]:  # fmt: skip
    """The base trained to fill in masked tokens of a text through the head in a file, or to tell the next ones; what it learnt."""
    if causal(opened):
        model = telling(opened, own_head(opened).to(device_of(opened.whole)))
        task = following_task(
            facts["text"]["name"], parts, tokenise=opened.prepare.ids, pad=opened.pad, vocabulary=_vocabulary(opened)
        )
    else:
        kept = with_weights(vocabulary_head(opened), Checkpoint.read(head))
        model = filling(opened, kept.to(device_of(opened.whole)))
        task = hiding(facts["text"]["name"], opened, parts, facts)
    spec = TrainSpec(
        steps=facts["steps"], lr=facts["lr"], batch=min(facts["batch"], len(task.train)), weight_decay=facts["weight_decay"],
        warmup=facts["warmup"], seed=facts["seed"], autocast=facts.get("autocast"),
    )  # fmt: skip
    made = fit(
        model, opened.base, task, regime=regime, spec=spec, label=task.name, state=state, every=every, progress=progress
    )
    data = {"own": (task.validation, task.needs_head())}
    before, after = curves(model, opened.base, made.vector, data, coefficients=(0.0, 1.0), forward=made.forward)["own"]
    return made, {
        "loss": [made.losses[0], made.losses[-1]], "texts": len(parts[0]), "base": before.model_dump(), "validation": after.model_dump(),
    }  # fmt: skip


def hiding(name: str, opened: TextBase, parts: Sequence[Sequence[str]], facts: Mapping[str, Any]) -> Task:
    """Texts as a task of filling in what is hidden."""
    tokenizer = opened.prepare.tokenizer()
    return masked_task(
        name, parts, tokenise=opened.prepare.ids, mask=tokenizer.mask_token_id, special=tokenizer.all_special_ids,
        vocabulary=_vocabulary(opened), share=facts["masked"], copies=facts["copies"], seed=SEED,
    )  # fmt: skip


def _vocabulary(opened: TextBase) -> tuple[str, ...]:
    tokenizer = opened.prepare.tokenizer()
    size = opened.whole._inner.get_input_embeddings().weight.shape[0]
    known = tokenizer.convert_ids_to_tokens(range(min(size, len(tokenizer))))
    return (*map(str, known), *(f"<unused {i}>" for i in range(len(known), size)))


def _states(f: Any, weights: Mapping[str, torch.Tensor], split: Split, device: torch.device) -> Split:
    """The states of the base at the hidden tokens of a split, each a sample; inputs ``[m, d]``, labels the tokens."""
    import torch

    rows: Any = split.inputs
    with torch.no_grad():
        found = torch.cat([f(weights, x.to(device)).cpu().transpose(1, 2) for x in rows.split(64)])
    counted = split.labels != IGNORED
    return Split(found[counted], split.labels[counted])
