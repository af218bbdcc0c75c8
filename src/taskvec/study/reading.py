"""Reading the text of a study, with every mistake and its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from ..errors import InputError, UsageError, nearest
from .people import LoraSpec, PeopleSpec
from .spec import Study
from .subjects import BaseSpec, GivenSpec, RegimeSpec, TaskSpec, TextSpec


def load(path: str | Path) -> Study:
    """Read a study file.

    Raises:
        InputError: it cannot be read.
        UsageError: it is no study; says every field that is wrong.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the study {path}: {getattr(error, 'strerror', None) or error}.") from error
    try:
        if twice := _twice(yaml.compose(text, yaml.SafeLoader)):
            raise UsageError(
                f"{path}: {twice} stands there twice in one table; YAML would take the last without a word."
            )
        table = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UsageError(f"{path} is not YAML: {str(error).replace(chr(10), ' ')}") from error
    if not isinstance(table, dict):
        raise UsageError(
            f"{path} is no study: expected a table that begins with `study: 1`, got {type(table).__name__}."
        )
    try:
        return Study.model_validate(table)
    except ValidationError as error:
        raise UsageError(f"{path} is no study that can be run: {_told(error)}") from error


def _twice(node: Any) -> str:
    """The first name that a table of the file has two of, with its line; empty if there is none."""
    todo = [] if node is None else [node]
    for node in todo:  # grows as it is read; aliases lead to nodes that were read, so it ends
        found = node.value if isinstance(node, yaml.MappingNode) else []
        seen: set[str] = set()
        for key, _ in found:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                return f"{key.value!r} (line {key.start_mark.line + 1})"
            seen.add(str(key.value))
        inner = [v for _, v in found] if found else node.value if isinstance(node, yaml.SequenceNode) else []
        todo += [n for n in inner if not any(n is t for t in todo)]
    return ""


def _told(error: ValidationError) -> str:
    """Every mistake with its place; the nearest known field for an unknown one."""
    said = []
    for e in error.errors():
        place = ".".join(str(p) for p in e["loc"])
        if e["type"] == "extra_forbidden":
            known = _fields(e["loc"][:-1])
            said.append(f"unknown field {place}.{nearest(str(e['loc'][-1]), known)}")
        else:
            text = e["msg"].removeprefix("Value error, ")
            got = (
                f", got {e['input']!r}"
                if e["type"] not in ("value_error", "missing") and len(repr(e["input"])) < 60
                else ""
            )
            said.append(f"{place}: {text}{got}" if place else text)
    return "; ".join(said) + ("" if said[-1].endswith((".", "?")) else ".")


def _fields(place: tuple[int | str, ...]) -> list[str]:
    """The fields that exist at a place of the file."""
    model: Any = Study
    tables: dict[Any, Any] = {
        "tasks": TaskSpec,
        "texts": TextSpec,
        "people": PeopleSpec,
        "bases": BaseSpec,
        "regimes": RegimeSpec,
    }
    for i, part in enumerate(place):
        if model is Study and part in tables:
            if len(place) > i + 2 and place[i + 2] == "finetuned":
                return list(GivenSpec.model_fields) if len(place) > i + 3 else []
            if place[i + 2 :] == ("lora",):
                return list(LoraSpec.model_fields)
            return list(tables[part].model_fields) if len(place) > i + 1 else []
        inner = model.model_fields.get(str(part))
        kinds = [inner.annotation, *getattr(inner.annotation, "__args__", ())] if inner else []
        model = next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)
        if model is None:
            return []
    return list(model.model_fields)
