"""What studies ask of language models: their texts, their training, the toxicity of what they write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .. import protocols
from ..errors import InputError, UsageError, plain
from ..models.language import LanguageModel, language_model, next_tokens
from ..protocols.toxicity import Sampling
from ..search import grid
from ..tasks.agreement import measured, unseen
from ..tasks.language import language_task
from ..tasks.passages import Passages, fetched_passages, read_passages
from ..tasks.scorers import SCORERS, scorer
from ..tasks.words import distinctive_words
from ..training import TrainSpec, fit
from ..training.regime import REGIMES
from ..weights import TaskVector

CONTINUATIONS = "continuations.jsonl"
SEED = 0  # of the parts of texts: equal for all seeds of a study


def language_base(folder: Path, device: str | None) -> LanguageModel:
    """The language model in a folder or GGUF file."""
    found = language_model(folder)
    if device:
        found.module.to(device)
    return found


def passages(facts: Mapping[str, Any], root: Path | None) -> Passages:
    """The passages that `facts` describe."""
    said: Any = facts["data"]
    if facts["download"]:
        files = list(fetched_passages(said, files=facts["files"], revision=facts["revision"]))
    else:
        place = root or Path()
        files = [Path(said)] if Path(said).is_absolute() else sorted(place.glob(said))
        if not files:
            raise InputError(
                f"no file matches {plain(said)} in the root {plain(place)}. Name it in the text's `data`, or another --root."
            )
    found = read_passages(
        files, text=facts["text"], mark=facts["mark"], group=facts["group"], quoting=facts["quoting"],
        between=facts["between"] and tuple(facts["between"]), name=facts["name"],
        **{n: facts[n] for n in ("columns", "separator", "encoding") if n in facts},
    )  # fmt: skip
    if facts["keep"]:
        found = found.keep(facts["keep"])
    if facts["join"]:
        found = found.joined(facts["join"])
    if facts["words"]:
        found = found.openings(facts["words"])
    if not len(found):
        raise InputError(f"the text {facts['name']} has no passage left of what it keeps.")
    return found.drawn(facts["limit"], seed=SEED)


def tuned(
    model: LanguageModel, texts: Passages, facts: Mapping[str, Any], *, state: Path, every: int, progress: Callable[[int, float], None] | None
) -> Any:  # fmt: skip
    """The model trained on texts, or, with ascent, away from them."""
    task = language_task(model, texts.texts, window=facts["window"], seed=SEED, name=texts.name)
    spec = TrainSpec(
        steps=facts["steps"], lr=facts["lr"], batch=facts["batch"], accumulate=facts["accumulate"],
        weight_decay=facts["weight_decay"], warmup=facts["warmup"], seed=facts["seed"], autocast=facts.get("autocast"),
    )  # fmt: skip
    return fit(
        next_tokens(model), model.base, task, regime=REGIMES[facts["regime"]], spec=spec, ascent=facts["ascent"], label=texts.name,
        state=state, every=every, progress=progress,
    )  # fmt: skip


def toxicity(
    model: LanguageModel, vectors: Mapping[str, TaskVector], facts: Mapping[str, Any], *, root: Path | None, download: bool,
    device: str | None, place: Path,
) -> Any:  # fmt: skip
    """The answer of `protocols.toxicity` to what `facts` ask."""
    options, texts = facts["options"], facts["texts"]
    if options["unprompted"]:
        validation, prompts = (Passages("no prompt", ("",) * n) for n in options["unprompted"])
    else:
        validation, prompts = passages(texts["prompts"], root).halves(seed=SEED)
    # Neighbours are alike: the halves of a control text are its beginning and its end.
    control = passages(texts["control"], root)
    half = len(control) // 2
    judge = scorer(_placed(options["scorer"], root), download=download, device=device)
    agreement = None
    if "labelled" in texts:
        known = unseen(judge, passages(texts["labelled"], root))
        labels = _labels(known, options)
        agreement = measured(
            judge, known.texts, labels, groups=known.groups, threshold=options["threshold"], data=known.name
        )
    banned: tuple[str, ...] = ()
    if options["banned"]:
        toxic, clean = (passages(texts[role], root).texts for role in ("toxic", "clean"))
        banned = distinctive_words(toxic, clean, most=options["banned"])
    said = options["coefficients"]
    how = {n: options[n] for n in ("samples", "validation_samples", "tokens", "temperature", "top_p")}
    return protocols.toxicity(
        model, model.base, vectors["toxic"], prompts=prompts, validation_prompts=validation,
        control=control.take(range(half, len(control))), validation_control=control.take(range(half)), scorer=judge,
        agreement=agreement, ascent=vectors.get("ascent"), clean=vectors.get("clean"), banned=banned, toxic=texts["toxic"]["name"],
        threshold=options["threshold"], coefficients=grid(said["low"], said["high"], said["points"]),
        perplexity_ratio=options["perplexity_ratio"], sampling=Sampling(**how),
        texts=place / CONTINUATIONS if options["keep_texts"] else None, seed=facts["where"]["seed"],
    )  # fmt: skip


def _labels(known: Passages, options: Mapping[str, Any]) -> list[int]:
    """1 for texts that are toxic by their marks."""
    if not known.marks:
        raise UsageError(
            f"the text {known.name} has no marks to measure a scorer by. Name the column that holds them with mark."
        )
    if options["toxic_from"] is None:
        known.keep(options["labels"])  # a mark that no text has is a mistake
        return [int(m in options["labels"]) for m in known.marks]
    try:
        return [int(float(m) >= options["toxic_from"]) for m in known.marks]
    except ValueError:
        raise InputError(
            f"the text {known.name} has marks that are no numbers. Use labels in place of toxic_from."
        ) from None


def _placed(name: str, root: Path | None) -> str:
    """A scorer's name, its file looked for below the root."""
    kind, colon, rest = name.partition(":")
    inside = root is not None and kind in SCORERS and bool(rest) and (root / rest.partition("#")[0]).exists()
    return f"{kind}{colon}{root / rest}" if root is not None and inside else name
