"""The commands for language models: what they say, and how well they do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import plain
from .terminal import note


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
