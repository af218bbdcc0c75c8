"""mergekit configs: what may stand in one, read strictly, and what a parameter is for a tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
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
}
NOT_YET = ("nearswap", "arcee_fusion", "ram", "ramplus_tl")
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
    """One document of a mergekit config."""

    method: str
    slices: tuple[Slice, ...]
    base: str | None
    parameters: Settings
    dtype: str | None
    tokenizer: Tokenizer | None
    name: str | None
    notes: tuple[str, ...] = ()
    template: str | None = None  # of chats: `auto`, or its text

    @property
    def models(self) -> tuple[str, ...]:
        """Every model it names, once: the base first."""
        bases = [self.base, *(s.base for s in self.slices)]
        return tuple(dict.fromkeys(m for m in (*bases, *(i.model for s in self.slices for i in s.inputs)) if m))


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
    if method in NOT_YET:
        wrong(f"merge_method {method} is not available; there are {', '.join(METHODS)}.")
    elif not isinstance(method, str) or method not in METHODS:
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

    slices: list[Slice] = []
    given = [k for k in ("models", "slices", "modules") if table.get(k)]
    body = table
    if given == ["modules"]:
        modules = table["modules"]
        if isinstance(modules, dict) and len(modules) == 1 and isinstance(next(iter(modules.values())), dict):
            body = item(next(iter(modules.values())), "modules", ("models", "slices", "parameters"))
            given = [k for k in ("models", "slices") if body.get(k)]
            if body.get("parameters"):
                wrong("`modules` with parameters of their own are not available; move them to the top.")
        else:
            wrong("`modules` with more than one module is not available yet; merge them one by one.")
            given = ["modules", ""]
    if len(given) != 1:
        if given != ["modules", ""]:
            wrong(f"exactly one of models, slices and modules must be given, got {', '.join(given) or 'none'}.")
    elif given == ["models"]:
        inputs = []
        for i, entry in enumerate(items(body["models"], "models")):
            entry = item(entry, f"models[{i}]", ("model", "parameters"))
            inputs.append(Input(model(entry, f"models[{i}]"), None, settings(entry.get("parameters"), f"models[{i}]")))
        slices.append(Slice(tuple(inputs)))
    else:
        for i, part in enumerate(items(body["slices"], "slices")):
            part = item(part, f"slices[{i}]", ("sources", "parameters", "base_model"))
            inputs = []
            for j, entry in enumerate(items(part.get("sources"), f"slices[{i}].sources")):
                where = f"slices[{i}].sources[{j}]"
                entry = item(entry, where, ("model", "layer_range", "parameters"))
                blocks = entry.get("layer_range")
                if not (isinstance(blocks, list) and len(blocks) == 2 and all(type(b) is int for b in blocks)):
                    wrong(f"{where} needs `layer_range: [first, past the last]`, got {blocks!r}.")
                    blocks = [0, 1]
                own = settings(entry.get("parameters"), where)
                inputs.append(Input(model(entry, where), (blocks[0], blocks[1]), own))
            own = settings(part.get("parameters"), f"slices[{i}]")
            slices.append(Slice(tuple(inputs), own, text("base_model", part.get("base_model"))))
    shared = settings(table.get("parameters"), "parameters")
    base = text("base_model", table.get("base_model"))
    if method in METHODS and method not in WITHOUT_BASE and base is None and not all(s.base for s in slices):
        wrong(f"{method} needs `base_model`.")
    dtype, out = (text(k, table.get(k)) for k in ("dtype", "out_dtype"))
    if dtype not in (None, "float32"):
        notes.append(f"dtype: {dtype} is the format of the output here; the arithmetic is in float32.")
    tokenizer, template = read_tokenizer(table, wrong), check_template(table.get("chat_template"), wrong)
    raise_all(mistakes)
    return Config(
        str(method), tuple(slices), base, shared, out or dtype, tokenizer, text("name", table.get("name")),
        tuple(dict.fromkeys(notes)), template,
    )  # fmt: skip


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
