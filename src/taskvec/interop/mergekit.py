"""mergekit configs: what may stand in one, read strictly, and what a parameter is for a tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import TaskvecError, UnknownName, UsageError, collecting, nearest, raise_all
from ..recipe import documents
from ..weights.layers import between
from .tokenizers import Tokenizer, check_template, read_tokenizer

Settings = Mapping[str, Any]  # parameter -> number, gradient, or list of {filter, value}

# Parameters of each method: of single models, and of the whole merge with their defaults. From mergekit 0.1.5.
_SUM = {"normalize": False, "rescale": False, "lambda": 1.0}
_RANDOM = {**_SUM, "rescale": True, "variant": "paper"}  # the variant is ours: "paper" or "mergekit"
METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "linear": ({"weight": None}, {"normalize": True}),
    "slerp": ({}, {"t": None}),
    "nuslerp": ({"weight": None}, {"nuslerp_row_wise": False, "nuslerp_flatten": True}),
    "multislerp": ({"weight": None}, {"normalize_weights": True, "eps": 1e-8}),
    "karcher": ({}, {"max_iter": 10, "tol": 1e-5}),
    "passthrough": ({"scale": 1.0}, {}),
    "model_stock": ({}, {"filter_wise": False}),
    "task_arithmetic": ({"weight": None}, _SUM),
    "ties": ({"weight": None, "density": 1.0}, {**_SUM, "normalize": True}),
    "dare_linear": ({"weight": None, "density": 1.0}, _RANDOM),
    "dare_ties": ({"weight": None, "density": 1.0}, _RANDOM),
    "breadcrumbs": ({"weight": None, "density": 1.0, "gamma": 0.01}, _SUM),
    "breadcrumbs_ties": ({"weight": None, "density": 1.0, "gamma": 0.01}, _SUM),
    "della": ({"weight": None, "density": 1.0, "epsilon": 0.15}, {**_RANDOM, "normalize": True}),
    "della_linear": ({"weight": None, "density": 1.0, "epsilon": 0.15}, _RANDOM),
    "sce": ({}, {"select_topk": 1.0}),
    "nearswap": ({}, {"t": None}),
    "arcee_fusion": ({}, {}),
    "ram": ({}, {"epsilon": 1e-5}),
    "ramplus_tl": ({}, {"r": 0.1, "alpha": 0.2, "epsilon": 1e-5}),
}
WITHOUT_BASE = ("linear", "passthrough", "karcher", "nuslerp", "multislerp")
PARAMETERS = {p for own, shared in METHODS.values() for p in (*own, *shared)} | {"int8_mask"}
KEYS = (
    "merge_method", "models", "slices", "modules", "base_model", "parameters", "dtype", "out_dtype", "tokenizer_source",
    "tokenizer", "chat_template", "name",
)  # fmt: skip


@dataclass(frozen=True)
class Input:
    """A model of a slice: its name as the config writes it, its blocks (None: all), its own parameters."""

    model: str
    blocks: tuple[int, int] | None = None
    parameters: Settings = field(default_factory=dict)


@dataclass(frozen=True)
class Slice:
    """What becomes one stretch of the output's blocks."""

    inputs: tuple[Input, ...]
    parameters: Settings = field(default_factory=dict)
    base: str | None = None


@dataclass(frozen=True)
class Config:
    """One document of a mergekit config.

    Args:
        slices: what the whole model becomes, from its first block to the last; of several modules none.
        parameters: of the whole.
        modules: what each module becomes, if several are named: a config of its own, with `own` parameters of the module.
    """

    method: str
    slices: tuple[Slice, ...]
    base: str | None
    parameters: Settings
    dtype: str | None
    tokenizer: Tokenizer | None
    name: str | None
    notes: tuple[str, ...] = ()
    template: str | None = None  # of chats: `auto`, or its text
    own: Settings = field(default_factory=dict)
    modules: Mapping[str, Config] = field(default_factory=dict)

    @property
    def models(self) -> tuple[str, ...]:
        """Every model it names, once: the base first."""
        bases = [self.base, *(s.base for s in self.slices)]
        named = [i.model for s in self.slices for i in s.inputs] + [m for c in self.modules.values() for m in c.models]
        return tuple(dict.fromkeys(m for m in (*bases, *named) if m))


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


def _config(table: Mapping[str, Any], said: str) -> Config:
    mistakes: list[TaskvecError] = []

    def wrong(text: str, kind: type[TaskvecError] = UsageError) -> None:
        mistakes.append(kind(f"{said}: {text}"))

    for key in table:
        if key not in KEYS:
            wrong(f"unknown key {key!r}; a mergekit config has {', '.join(KEYS)}.{nearest(key, KEYS)}", UnknownName)
    method = table.get("merge_method")
    if not isinstance(method, str) or method not in METHODS:
        hint = nearest(str(method), METHODS)
        wrong(f"unknown merge_method {method!r}; there are {', '.join(METHODS)}.{hint}", UnknownName)
    notes: list[str] = []

    def settings(given: Any, where: str) -> Settings:
        if given is not None and not isinstance(given, dict):
            wrong(f"{where} must be a table, got {given!r}.")
        given = given if isinstance(given, dict) else {}
        for name, value in given.items():
            if name not in PARAMETERS:
                wrong(f"{where} has the unknown parameter {name!r}.{nearest(name, PARAMETERS)}", UnknownName)
            elif method in METHODS and not any(name in part for part in METHODS[method]):
                text = f"{name} has no effect" + ("" if name == "int8_mask" else f" with {method}") + " and is ignored."
                notes.append(text)
            problem = "" if name == "variant" and value in ("paper", "mergekit") else _malformed(value)
            if problem:
                wrong(f"{where}.{name} {problem}")
        return given

    def text(key: str, value: Any, *, among: str = "") -> str | None:
        if value is None or isinstance(value, str):
            return value
        wrong(f"`{key}` must be a text{among}, got {value!r}.")
        return None

    def item(entry: Any, where: str, known: tuple[str, ...]) -> dict[str, Any]:
        if not isinstance(entry, dict):
            wrong(f"{where} must be a table with {', '.join(known)}, got {entry!r}.")
            return {}
        for key in entry:
            if key not in known:
                wrong(
                    f"{where} has the unknown key {key!r}; it has {', '.join(known)}.{nearest(key, known)}", UnknownName
                )
        return entry

    def items(value: Any, where: str) -> list[Any]:
        if not isinstance(value, list) or not value:
            wrong(f"`{where}` must be a list that is not empty, got {value!r}.")
            return []
        return value

    def model(entry: Mapping[str, Any], where: str) -> str:
        name = entry.get("model")
        if not isinstance(name, str) or not name:
            wrong(f"{where} needs `model`, the folder of a model, got {name!r}.")
            return ""
        return name

    def slices_of(body: Mapping[str, Any], where: str) -> tuple[Slice, ...]:
        """The slices of a table with `models` or `slices`; `where` is put before their names."""
        given = [k for k in ("models", "slices") if body.get(k)]
        if len(given) != 1:
            options = "models, slices and modules" if not where else "models and slices"
            wrong(
                f"exactly one of {options} must be given{where and f' in {where}'}, got {', '.join(given) or 'none'}."
            )
            return ()
        where = f"{where}.{given[0]}" if where else given[0]
        if given == ["models"]:
            inputs = []
            for i, entry in enumerate(items(body["models"], where)):
                entry = item(entry, f"{where}[{i}]", ("model", "parameters"))
                own = settings(entry.get("parameters"), f"{where}[{i}]")
                inputs.append(Input(model(entry, f"{where}[{i}]"), None, own))
            return (Slice(tuple(inputs)),)
        found = []
        for i, part in enumerate(items(body["slices"], where)):
            part = item(part, f"{where}[{i}]", ("sources", "parameters", "base_model"))
            inputs = []
            for j, entry in enumerate(items(part.get("sources"), f"{where}[{i}].sources")):
                there = f"{where}[{i}].sources[{j}]"
                entry = item(entry, there, ("model", "layer_range", "parameters"))
                blocks = entry.get("layer_range")
                if not (isinstance(blocks, list) and len(blocks) == 2 and all(type(b) is int for b in blocks)):
                    wrong(f"{there} needs `layer_range: [first, past the last]`, got {blocks!r}.")
                    blocks = [0, 1]
                own = settings(entry.get("parameters"), there)
                inputs.append(Input(model(entry, there), (blocks[0], blocks[1]), own))
            if len({i.blocks[1] - i.blocks[0] for i in inputs if i.blocks}) > 1:
                wrong(f"{where}[{i}]: its sources have different numbers of blocks; each must have as many.")
            own = settings(part.get("parameters"), f"{where}[{i}]")
            found.append(Slice(tuple(inputs), own, text("base_model", part.get("base_model"))))
        return tuple(found)

    modules: dict[str, tuple[tuple[Slice, ...], Settings]] = {}
    slices: tuple[Slice, ...] = ()
    if table.get("modules"):
        if table.get("models") or table.get("slices"):
            wrong("exactly one of models, slices and modules must be given.")
        given = table["modules"]
        if not isinstance(given, dict):
            wrong(f"`modules` must be a table of modules, got {given!r}.")
            given = {}
        for name, body in given.items():
            body = item(body, f"modules.{name}", ("models", "slices", "parameters"))
            own = settings(body.get("parameters"), f"modules.{name}.parameters")
            modules[name] = slices_of(body, f"modules.{name}"), own
    else:
        slices = slices_of(table, "")
    shared = settings(table.get("parameters"), "parameters")
    base = text("base_model", table.get("base_model"))
    every = [s for held in (slices, *(held for held, _ in modules.values())) for s in held]
    if method in METHODS and method not in WITHOUT_BASE and base is None and not all(s.base for s in every):
        wrong(f"{method} needs `base_model`.")
    dtype, out = (text(k, table.get(k)) for k in ("dtype", "out_dtype"))
    if dtype not in (None, "float32"):
        notes.append(f"dtype: {dtype} is the format of the output here; the arithmetic is in float32.")
    tokenizer, template = read_tokenizer(table, wrong), check_template(table.get("chat_template"), wrong)
    raise_all(mistakes)
    said_notes = tuple(dict.fromkeys(notes))
    whole = Config(
        str(method),
        slices,
        base,
        shared,
        out or dtype,
        tokenizer,
        text("name", table.get("name")),
        said_notes,
        template,
    )
    parts = {n: replace(whole, slices=held, own=own) for n, (held, own) in modules.items()}
    if len(parts) == 1:  # all of a model that has but one
        return next(iter(parts.values()))
    return replace(whole, modules=parts)


def _malformed(value: Any) -> str:
    """What is wrong with the value of a parameter; empty if nothing is."""
    if _scalar(value):
        return ""
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list) or not value:
        return f"must be a number, a gradient or a list of filters, got {value!r}."
    if all(_scalar(v) for v in value):
        return ""
    for entry in value:
        if not isinstance(entry, dict) or not entry.keys() <= {"filter", "value"} or "value" not in entry:
            return f"must hold numbers alone, or entries {{filter: ..., value: ...}} alone; {entry!r} is none."
        inner = entry["value"]
        if not (_scalar(inner) or (isinstance(inner, list) and inner and all(_scalar(v) for v in inner))):
            return f"has the value {inner!r}, which is no number or gradient."
        if not isinstance(entry.get("filter"), (str, type(None))):
            return f"has the filter {entry['filter']!r}, which is no text."
    return ""


def _scalar(value: Any) -> bool:
    if isinstance(value, str):  # YAML 1.1 reads 1e-5 as a text
        try:
            float(value)
        except ValueError:
            return False
        return True
    return isinstance(value, (bool, int, float))


def filters(setting: Any) -> list[str]:
    """The filters of a parameter's value."""
    entries = [setting] if isinstance(setting, dict) else setting if isinstance(setting, list) else []
    return [e["filter"] for e in entries if isinstance(e, dict) and e.get("filter") not in (None, "*")]


def value_for(name: str, t: float, settings: Iterable[Settings], parameter: str) -> Any:
    """What a parameter is for a tensor, from the first settings that speak of it; None if none does.

    Args:
        name: the tensor's.
        t: where its block lies among the blocks, from 0 to 1; 0 outside of blocks.
        settings: of the model, the slice and the whole, in this order.
        parameter: its name.
    Example:
        >>> value_for("layers.1.mlp.w", 0.5, [{"t": [{"filter": "mlp", "value": [0, 1]}, {"value": 7}]}], "t")
        0.5
    """
    for table in settings:
        if parameter in table:
            found = _chosen(name, t, table[parameter])
            if found is not None:
                return found
    return None


def _chosen(name: str, t: float, setting: Any) -> Any:
    if isinstance(setting, dict):
        setting = [setting]
    if not isinstance(setting, list):
        return setting if isinstance(setting, bool) or not _scalar(setting) else float(setting)
    if all(_scalar(v) for v in setting):
        if any(isinstance(v, bool) for v in setting):
            return setting[int(t * (len(setting) - 1))]
        return between([float(v) for v in setting], t)
    for entry in setting:
        if entry.get("filter") in (None, "*") or entry["filter"] in name:
            return _chosen(name, t, entry["value"])
    return None
