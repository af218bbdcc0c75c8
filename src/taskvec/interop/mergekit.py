"""mergekit configs: what may stand in one, and what a parameter is for a tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..weights.layers import between
from .tokenizers import Tokenizer

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


def scalar(value: Any) -> bool:
    """Whether the value of a parameter is one number or switch."""
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
        return setting if isinstance(setting, bool) or not scalar(setting) else float(setting)
    if all(scalar(v) for v in setting):
        if any(isinstance(v, bool) for v in setting):
            return setting[int(t * (len(setting) - 1))]
        return between([float(v) for v in setting], t)
    for entry in setting:
        if entry.get("filter") in (None, "*") or entry["filter"] in name:
            return _chosen(name, t, entry["value"])
    return None
