"""mergekit configs to recipes: every document becomes an expression over the models it names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..address import is_address, parse_address
from ..errors import TaskvecError, UsageError, collecting, raise_all, some
from ..recipe import Recipe, parse
from ..weights import Checkpoint
from .document import Document
from .mergekit import Config
from .models import Names
from .reading import read_configs
from .tokenizers import align, template_files


@dataclass(frozen=True)
class Translation:
    """A mergekit config as a recipe, what is done otherwise than mergekit does it, and files that the output gets."""

    recipe: Recipe
    notes: tuple[str, ...]
    beside: Mapping[str, bytes] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = ["recipe: 1", "let:"]
        lines += [f"  {name}: {{read: {json.dumps(_said(path))}}}" for name, path in self.recipe.read.items()]
        lines += [f"  {name}: {json.dumps(text, ensure_ascii=False)}" for name, text in self.recipe.define.items()]
        lines.append(f"output: {json.dumps(self.recipe.output, ensure_ascii=False)}")
        return "\n".join(lines + ([f"dtype: {self.recipe.dtype}"] if self.recipe.dtype else []))


def translate(path: str | Path) -> Translation:
    """A mergekit config, of one document or several, as the recipe that does the same.

    Raises:
        UsageError: a malformed config, documents that need each other, or a method that is not available.
        InputError: a model that is not there.
    """
    path = Path(path)
    configs = _in_order(read_configs(path), path)
    names = Names(path)
    notes: list[str] = []
    text, beside = "", {}
    for config in configs:
        mistakes: list[TaskvecError] = []
        for model in config.models:
            with collecting(mistakes):
                names.of(model)
        raise_all(mistakes)
        plain = dict(names.said)
        beside = align(config, names, path.parent, notes)
        text = Document(config, names, notes).text()
        names.said.clear()
        names.said.update(plain)  # in another document the same models may have another vocabulary
        notes += config.notes
        if config is not configs[-1]:
            assert config.name is not None
            names.said[config.name] = names.give(config.name, text)
            if config.dtype:
                notes.append(f"{config.name} is no file of its own: it is not rounded to {config.dtype} on the way.")
    last = configs[-1]
    recipe = Recipe(text, names.read, names.define, last.dtype)
    if last.template is not None:
        value = parse(text, names.values)
        assert isinstance(value, Checkpoint)
        beside |= template_files(last, names, value, beside)
    return Translation(recipe, tuple(dict.fromkeys(notes)), beside)


def _said(path: Path) -> str:
    return str(parse_address(path)) if is_address(path) else str(path)


def _in_order(configs: list[Config], path: Path) -> list[Config]:
    """The documents so that each comes after those it names; the one that is the output last.

    Raises:
        UsageError: documents that need each other, or no one output.
    """
    known = {c.name: c for c in configs if c.name}
    if len(known) < sum(c.name is not None for c in configs):
        raise UsageError(f"{path}: two documents have the same name.")
    used = {m for c in configs for m in c.models if m in known}
    done: list[Config] = []
    open_: list[str] = []

    def visit(config: Config) -> None:
        if config in done:
            return
        if config.name in open_:
            raise UsageError(f"{path}: documents need each other: {' -> '.join([*open_, config.name or ''])}.")
        open_.append(config.name or "the output")
        for model in config.models:
            if model in known:
                visit(known[model])
        open_.pop()
        done.append(config)

    for config in configs:
        visit(config)
    outputs = [c for c in configs if c.name is None or c.name not in used]
    if len(outputs) != 1:
        said = some(c.name or "without a name" for c in outputs)
        raise UsageError(
            f"{path}: {len(outputs)} documents are used by no other ({said}); one of them must be the output."
        )
    done.remove(outputs[0])
    return [*done, outputs[0]]
