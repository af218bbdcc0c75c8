"""What `taskvec fit` does differently for a folder of images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import plain
from .terminal import note

if TYPE_CHECKING:
    from ..models.encoders import Encoder
    from ..tasks import Task


def image_data(
    base: Path, data: Path, *, known: str | None, limit: int | None, seed: int, skip_corrupt: bool, named: bool
) -> tuple[Encoder, Task]:
    """The encoder and the task; with `named`, a zero-shot head from the classes' names if the encoder reads text."""
    from ..models.encoders import encoder
    from ..tasks import zero_shot
    from ..tasks.images import SETS, folder_task, image_task

    found = encoder(base)
    prepare, rest = found.prepare, {"limit": limit, "seed": seed, "skip_corrupt": skip_corrupt}
    if known:
        task = image_task(known, root=data, prepare=prepare, **rest)
    else:
        task = folder_task(data, prepare=prepare, **rest)
    for said in task.notes:
        note(f"{plain(data)}: {said}")
    if named and found.text is not None:
        templates = SETS[known].templates if known else ("a photo of a {}.",)
        note(f"a zero-shot head of {len(task.classes)} classes from prompts such as {templates[0]!r}")
        task = task.with_head(zero_shot(found.text, task.classes, templates=templates))
    return found, task
