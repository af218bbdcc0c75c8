"""A network as a folder: model.safetensors and gate.json. Numbers and names only; nothing in it is ever executed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import InputError, KeyMismatch, plain
from ..weights import Checkpoint

if TYPE_CHECKING:
    from .model import Gate

FACTS = "gate.json"
LARGEST = 65536  # of a size in a file: what is beyond was not written by us


class Scale(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    mean: float = Field(allow_inf_nan=False)
    std: float = Field(gt=0, allow_inf_nan=False)


class Facts(BaseModel):
    """What gate.json says: sizes, properties with their scales in order, which are sources, and notes on how they were learnt."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    format: int = Field(ge=1, le=1)
    shape: dict[str, int | str]
    properties: tuple[Scale, ...] = Field(min_length=1, max_length=LARGEST)
    sources: tuple[str, ...]
    learned: dict[str, Any] = Field(default_factory=dict)


def save(model: Gate, folder: str | Path, *, learned: dict[str, Any] | None = None, overwrite: bool = False) -> Path:
    """Write the network; the folder appears whole or not at all.

    Args:
        folder: where.
        learned: what is to be known of how it was learnt, of what JSON can hold.
        overwrite: replace a folder that is there.
    Raises:
        StorageError: disk, permissions, or an output that exists.
    """
    facts = Facts(
        format=1, shape=vars(model.shape).copy(), sources=model.sources, learned=learned or {},
        properties=tuple(Scale(name=n, mean=p.mean, std=p.std) for n, p in model.properties.items()),
    )  # fmt: skip
    beside = {FACTS: (facts.model_dump_json(indent=1) + "\n").encode()}
    return Checkpoint.of(model, label="gate").save(folder, overwrite=overwrite, beside=beside)


def facts_of(folder: str | Path) -> Facts:
    """What a folder says of its network, without reading weights; needs no torch.

    Raises:
        InputError: not the folder of a network, or its gate.json is damaged; says which fields.
    """
    path = Path(folder) / FACTS
    try:
        if path.stat().st_size > 2**26:
            raise InputError(f"{plain(path)} is larger than any that taskvec writes.")
        facts = Facts.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise InputError(
            f"{plain(folder)} is no folder of `taskvec gate`: {FACTS} cannot be read ({error.strerror}). Make one with "
            "`taskvec gate pretrain`."
        ) from error
    except ValidationError as error:
        said = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5])
        raise InputError(f"{plain(path)} is damaged: {plain(said)}.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{plain(path)} is not JSON ({error}).") from error
    names = [p.name for p in facts.properties]
    sizes = [v for v in facts.shape.values() if isinstance(v, int)]
    if len(set(names)) < len(names) or not set(facts.sources) <= set(names) or max(sizes, default=0) > LARGEST:
        raise InputError(f"{plain(path)} is damaged: names repeat, a source is no property, or a size is absurd.")
    return facts


def load(folder: str | Path) -> Gate:
    """Read a network that `save` wrote.

    Raises:
        InputError: damaged, or not the folder of a network.
        KeyMismatch: the weights are not those that gate.json speaks of.
    """
    import torch

    from .model import Gate, Property, Shape, embedding_of

    facts = facts_of(folder)
    try:
        shape = Shape(**facts.shape)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise InputError(f"{plain(folder)}: the sizes in {FACTS} are not those of a network ({error}).") from error
    with torch.device("meta"):
        model = Gate(
            shape, embedding_of(shape), {p.name: Property(shape, p.mean, p.std) for p in facts.properties}, facts.sources
        )  # fmt: skip
    wanted = {n: tuple(t.shape) for n, t in model.state_dict().items()}
    weights = Checkpoint.read(folder)
    found = {n: tuple(s.shape) for n, s in weights.spec.items()}
    if wanted != found:
        differ = sorted(n for n in wanted.keys() | found.keys() if wanted.get(n) != found.get(n))
        raise KeyMismatch(
            f"{plain(folder)}: {len(differ)} tensors are not those that {FACTS} speaks of, for example {differ[0]!r}: "
            f"{found.get(differ[0], 'absent')}, expected {wanted.get(differ[0], 'none')}."
        )
    arrays = {n: torch.from_numpy(np.array(weights.array(n), np.float32)) for n in wanted}
    model.load_state_dict(arrays, assign=True)
    return model
