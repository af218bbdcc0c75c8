"""mergekit configs, read strictly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import TaskvecError, UnknownName, UsageError, collecting, nearest, raise_all
from ..recipe import documents
from .mergekit import KEYS, METHODS, PARAMETERS, WITHOUT_BASE, Config, Input, Settings, Slice, scalar
from .tokenizers import check_template, read_tokenizer


def recognises(path: str | Path) -> bool:
    """Whether a YAML file is a mergekit config: a document with `merge_method`, and none with `recipe`."""
    tables = documents(Path(path))
    return any("merge_method" in t for t in tables) and not any("recipe" in t for t in tables)


def read_configs(path: str | Path) -> list[Config]:
    """The documents of a mergekit config. All mistakes are raised as one error.

    Raises:
        UsageError: a key, method or parameter that mergekit does not have, or one that is not supported here.
    """
    path = Path(path)
    mistakes: list[TaskvecError] = []
    tables = documents(path)
    found = []
    for i, table in enumerate(tables, 1):
        said = f"{path}, document {i}" if len(tables) > 1 else str(path)
        with collecting(mistakes):
            found.append(_config(table, said))
    raise_all(mistakes)
    return found


@dataclass
class _Reader:
    """Reads one document: gives what stands there, or something in its place, and collects what is wrong.

    Args:
        said: what errors call the document.
        method: the merge's; empty if there is none of that name.
    """

    said: str
    method: str
    mistakes: list[TaskvecError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def wrong(self, text: str, kind: type[TaskvecError] = UsageError) -> None:
        self.mistakes.append(kind(f"{self.said}: {text}"))

    def settings(self, given: Any, where: str) -> Settings:
        if given is not None and not isinstance(given, dict):
            self.wrong(f"{where} must be a table, got {given!r}.")
        given = given if isinstance(given, dict) else {}
        for name, value in given.items():
            if name not in PARAMETERS:
                self.wrong(f"{where} has the unknown parameter {name!r}.{nearest(name, PARAMETERS)}", UnknownName)
            elif self.method and not any(name in part for part in METHODS[self.method]):
                text = f"{name} has no effect" + ("" if name == "int8_mask" else f" with {self.method}")
                self.notes.append(f"{text} and is ignored.")
            problem = "" if name == "variant" and value in ("paper", "mergekit") else _malformed(value)
            if problem:
                self.wrong(f"{where}.{name} {problem}")
        return given

    def text(self, key: str, value: Any) -> str | None:
        if value is None or isinstance(value, str):
            return value
        self.wrong(f"`{key}` must be a text, got {value!r}.")
        return None

    def item(self, entry: Any, where: str, known: tuple[str, ...]) -> dict[str, Any]:
        if not isinstance(entry, dict):
            self.wrong(f"{where} must be a table with {', '.join(known)}, got {entry!r}.")
            return {}
        for key in (k for k in entry if k not in known):
            hint = nearest(key, known)
            self.wrong(f"{where} has the unknown key {key!r}; it has {', '.join(known)}.{hint}", UnknownName)
        return entry

    def items(self, value: Any, where: str) -> list[Any]:
        if not isinstance(value, list) or not value:
            self.wrong(f"`{where}` must be a list that is not empty, got {value!r}.")
            return []
        return value

    def model(self, entry: Mapping[str, Any], where: str) -> str:
        name = entry.get("model")
        if not isinstance(name, str) or not name:
            self.wrong(f"{where} needs `model`, the folder of a model, got {name!r}.")
            return ""
        return name

    def slices(self, body: Mapping[str, Any], where: str) -> tuple[Slice, ...]:
        """The slices of a table with `models` or `slices`; `where` is put before their names."""
        given = [k for k in ("models", "slices") if body.get(k)]
        if len(given) != 1:
            options = "models, slices and modules" if not where else "models and slices"
            within = where and f" in {where}"
            self.wrong(f"exactly one of {options} must be given{within}, got {', '.join(given) or 'none'}.")
            return ()
        key = given[0]
        where = f"{where}.{key}" if where else key
        entries = enumerate(self.items(body[key], where))
        if key == "models":
            return (Slice(tuple(self.whole(entry, f"{where}[{i}]") for i, entry in entries)),)
        return tuple(self.slice(part, f"{where}[{i}]") for i, part in entries)

    def whole(self, entry: Any, where: str) -> Input:
        """A model with all its blocks."""
        entry = self.item(entry, where, ("model", "parameters"))
        own = self.settings(entry.get("parameters"), where)
        return Input(self.model(entry, where), None, own)

    def slice(self, part: Any, where: str) -> Slice:
        part = self.item(part, where, ("sources", "parameters", "base_model"))
        sources = enumerate(self.items(part.get("sources"), f"{where}.sources"))
        inputs = tuple(self.source(entry, f"{where}.sources[{j}]") for j, entry in sources)
        if len({i.blocks[1] - i.blocks[0] for i in inputs if i.blocks}) > 1:
            self.wrong(f"{where}: its sources have different numbers of blocks; each must have as many.")
        own = self.settings(part.get("parameters"), where)
        return Slice(inputs, own, self.text("base_model", part.get("base_model")))

    def source(self, entry: Any, where: str) -> Input:
        """Some blocks of a model."""
        entry = self.item(entry, where, ("model", "layer_range", "parameters"))
        blocks = entry.get("layer_range")
        if not (isinstance(blocks, list) and len(blocks) == 2 and all(type(b) is int for b in blocks)):
            self.wrong(f"{where} needs `layer_range: [first, past the last]`, got {blocks!r}.")
            blocks = [0, 1]
        own = self.settings(entry.get("parameters"), where)
        return Input(self.model(entry, where), (blocks[0], blocks[1]), own)

    def modules(self, given: Any) -> dict[str, tuple[tuple[Slice, ...], Settings]]:
        """Of each module its slices and its own parameters."""
        if not isinstance(given, dict):
            self.wrong(f"`modules` must be a table of modules, got {given!r}.")
            return {}
        found = {}
        for name, body in given.items():
            body = self.item(body, f"modules.{name}", ("models", "slices", "parameters"))
            own = self.settings(body.get("parameters"), f"modules.{name}.parameters")
            found[name] = self.slices(body, f"modules.{name}"), own
        return found


def _config(table: Mapping[str, Any], said: str) -> Config:
    called = table.get("merge_method")
    method = called if isinstance(called, str) and called in METHODS else ""
    reader = _Reader(said, method)
    for key in table:
        if key not in KEYS:
            hint = nearest(key, KEYS)
            reader.wrong(f"unknown key {key!r}; a mergekit config has {', '.join(KEYS)}.{hint}", UnknownName)
    if not method:
        hint = nearest(str(called), METHODS)
        reader.wrong(f"unknown merge_method {called!r}; there are {', '.join(METHODS)}.{hint}", UnknownName)
    modules: dict[str, tuple[tuple[Slice, ...], Settings]] = {}
    slices: tuple[Slice, ...] = ()
    if table.get("modules"):
        if table.get("models") or table.get("slices"):
            reader.wrong("exactly one of models, slices and modules must be given.")
        modules = reader.modules(table["modules"])
    else:
        slices = reader.slices(table, "")
    shared = reader.settings(table.get("parameters"), "parameters")
    base = reader.text("base_model", table.get("base_model"))
    every = [s for held in (slices, *(held for held, _ in modules.values())) for s in held]
    if method and method not in WITHOUT_BASE and base is None and not all(s.base for s in every):
        reader.wrong(f"{method} needs `base_model`.")
    dtype, out = (reader.text(k, table.get(k)) for k in ("dtype", "out_dtype"))
    if dtype not in (None, "float32"):
        reader.notes.append(f"dtype: {dtype} is the format of the output here; the arithmetic is in float32.")
    tokenizer, template = (
        read_tokenizer(table, reader.wrong),
        check_template(table.get("chat_template"), reader.wrong),
    )
    name = reader.text("name", table.get("name"))
    raise_all(reader.mistakes)
    notes = tuple(dict.fromkeys(reader.notes))
    whole = Config(method, slices, base, shared, out or dtype, tokenizer, name, notes, template)
    parts = {n: replace(whole, slices=held, own=own) for n, (held, own) in modules.items()}
    if len(parts) == 1:  # all of a model that has but one
        return next(iter(parts.values()))
    return replace(whole, modules=parts)


def _malformed(value: Any) -> str:
    """What is wrong with the value of a parameter; empty if nothing is."""
    if scalar(value):
        return ""
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list) or not value:
        return f"must be a number, a gradient or a list of filters, got {value!r}."
    if all(scalar(v) for v in value):
        return ""
    for entry in value:
        if not isinstance(entry, dict) or not entry.keys() <= {"filter", "value"} or "value" not in entry:
            return f"must hold numbers alone, or entries {{filter: ..., value: ...}} alone; {entry!r} is none."
        inner = entry["value"]
        if not (scalar(inner) or (isinstance(inner, list) and inner and all(scalar(v) for v in inner))):
            return f"has the value {inner!r}, which is no number or gradient."
        if not isinstance(entry.get("filter"), (str, type(None))):
            return f"has the filter {entry['filter']!r}, which is no text."
    return ""
