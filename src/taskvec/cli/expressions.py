"""From what stands on the command line to a lazy value: expressions, recipes, names of inputs, sizes."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..address import is_address
from ..errors import TaskvecError, UnknownName, UsageError, collecting, raise_all
from ..files import exists
from .terminal import note


def is_weights(edit: str, lets: tuple[str, ...]) -> bool:
    """Whether the argument is a checkpoint or a vector by itself rather than an expression."""
    path = Path(edit)
    if lets or path.suffix in (".yaml", ".yml"):
        return False
    return is_address(edit) or path.suffix in (".safetensors", ".gguf") or exists(path)


def built(recipe: Any, *, fetch: bool = True) -> Any:
    """The lazy value of a recipe, whose models agree on what their rows stand for."""
    from ..weights.agreement import check_vocabularies

    value = recipe.build(fetch=fetch)
    if recipe.tokenizer is None:
        check_vocabularies(value.node)
    return value


def value_of(edit: str, lets: tuple[str, ...], tokenizer: str | None, *, fetch: bool = True) -> tuple[Any, Any, Any]:
    """The recipe, its lazy value, and files that go beside it, from an expression or a YAML file."""
    recipe, beside, _ = recipe_of(edit, lets, tokenizer)
    value = built(recipe, fetch=fetch)
    for name in recipe.unused():
        note(f"{name} is named but not used.")
    return recipe, value, beside


def recipe_of(
    edit: str, lets: tuple[str, ...], tokenizer: str | None = None
) -> tuple[Any, dict[str, bytes], str | None]:  # fmt: skip
    """The recipe of an expression or a YAML file; for a mergekit config files that go beside, and the recipe it becomes."""
    from ..recipe import Recipe, load

    read = named_inputs(lets)
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
    stands = {n: where for n, where in recipe.stands.items() if n not in read}
    whole = replace(recipe, read={**recipe.read, **read}, tokenizer=tokenizer or recipe.tokenizer, stands=stands)
    return whole, beside, account


def named_inputs(lets: tuple[str, ...]) -> dict[str, Path]:
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


def size_in_bytes(text: str) -> int:
    units = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    size = int(float(found[1]) * units[found[2]]) if found and found[2] in units else 0
    if size <= 0:
        raise UsageError(f"{text!r} is not a size; write 5GB, 500MB or 2GiB.")
    return size


def distinct_label(label: str, *taken: str) -> str:
    unique, i = label, 2
    while unique in taken:
        unique, i = f"{label}_{i}", i + 1
    return unique
