r"""LoRA adapters as PEFT writes them: a displacement :math:`s\,B A` for each module, multiplied out where it is read.

An adapter folder holds `adapter_config.json` and `adapter_model.safetensors` (or `.bin`). Its factors are a task vector;
what it holds as whole tensors (`modules_to_save`, biases) is a point, opened as ``folder/modules_to_save``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, NotACheckpoint, some
from ..files import exists
from .dtypes import TensorSpec, widen
from .source import Source

CONFIG, WEIGHTS = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
FACTORS, WHOLE = "factors", "modules_to_save"  # the two parts of an adapter that has both
FACTOR = re.compile(
    r"\.(lora_A|lora_B)\.(?:default\.)?(weight|bias)$|\.(lora_embedding_A|lora_embedding_B)(?:\.default)?$"
)
PREFIX = re.compile(r"^base_model\.model\.")
LONGEST_PATTERN = 1_000
# Settings under which the weights are no sum W + s B A; and why.
REFUSED = {
    "use_dora": "DoRA rescales the columns of the sum, which depends on the base and is no low-rank displacement",
    "use_qalora": "QA-LoRA pools the inputs",
    "use_bdlora": "its factors are cut into blocks",
    "layer_replication": "it repeats layers of the base",
    "target_parameters": "it adapts parameters of fused experts",
    "trainable_token_indices": "it replaces rows of the embedding",
    "megatron_config": "its layers are split between processes",
    "alora_invocation_tokens": "it works from a token on, not in the weights",
    "arrow_config": "it routes between adapters",
    "monteclora_config": "its weights are drawn at random",
}


@dataclass(frozen=True)
class Factors:
    """One module: ``scale * left @ right`` in the shape of its weight."""

    left: str  # names in the file
    right: str
    scale: float
    transposed: bool  # (left @ right)^T is the weight's displacement
    rank: int


def is_adapter(folder: Path) -> bool:
    return exists(folder / CONFIG)


def is_head(module: str) -> bool:
    """Whether a module is a head, which is a `Linear` also where blocks hold `Conv1D` (PEFT then ignores fan_in_fan_out)."""
    return module.rpartition(".")[2] in ("lm_head", "score", "classifier", "head", "embed_out")


def part_of(path: Path) -> tuple[Path, str]:
    """The adapter folder and the part of it that a path names; the part is empty for other paths."""
    if path.name in (FACTORS, WHOLE) and not exists(path) and is_adapter(path.parent):
        return path.parent, path.name
    return path, ""


class AdapterSource(Source):
    """The displacements of an adapter, by the names of the model that it adapts."""

    def __init__(self, inner: Source, config: Mapping[str, Any], folder: Path, label: str):
        self.label, self.files = label, inner.files
        self.inner, self.folder = inner, folder
        self.factors, self.biases, self.whole = _modules(inner, config, folder)
        spec = {n: TensorSpec("F32", self._shape(f)) for n, f in self.factors.items()}
        spec |= {n: TensorSpec("F32", inner.spec[old].shape) for n, (old, _) in self.biases.items()}
        self.spec = spec
        base = config.get("base_model_name_or_path")
        self.metadata = {
            "taskvec.kind": "vector", "taskvec.partial": "true",
            "taskvec.base_label": Path(str(base)).name if base else "an unknown base",
        }  # fmt: skip

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        if name in self.biases:
            old, scale = self.biases[name]
            return (widen(self.inner.read(old, start, stop)) * np.float32(scale)).astype(np.float32)
        left, right = self.matrices(name)
        width = right.shape[1]
        first, last = start // width if width else 0, -(-stop // width) if width else 0
        rows = (left[first:last] @ right).astype(np.float32).reshape(-1)
        return rows[start - first * width : stop - first * width]

    def matrices(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Two matrices in float64 whose product is the displacement of a weight, as a matrix of its first axis.

        In float64, so that the bits after rounding to float32 do not depend on how many rows are asked for.
        """
        f = self.factors[name]
        left, right = self._matrix(f.left), self._matrix(f.right)
        right = right.reshape(f.rank, -1)
        left = left.reshape(-1, f.rank) * f.scale
        return (right.T, left.T) if f.transposed else (left, right)

    def _matrix(self, old: str) -> np.ndarray:
        spec = self.inner.spec[old]
        return widen(self.inner.read(old, 0, spec.size)).reshape(spec.shape).astype(np.float64)

    def _shape(self, f: Factors) -> tuple[int, ...]:
        rows, columns = self.inner.spec[f.left].shape[0], self.inner.spec[f.right].shape[1:]
        return (*columns, rows) if f.transposed else (rows, *columns)


class WholeSource(Source):
    """What an adapter holds as whole tensors, by the names of the model."""

    def __init__(self, adapter: AdapterSource, label: str):
        self.label, self.files, self.folder = label, adapter.files, adapter.folder and adapter.folder / WHOLE
        self.inner, self.old = adapter.inner, adapter.whole
        self.spec = {n: adapter.inner.spec[old] for n, old in self.old.items()}
        self.metadata = {"taskvec.partial": "true"}

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        return self.inner.read(self.old[name], start, stop)


def read_config(folder: Path) -> dict[str, Any]:
    """The settings of an adapter.

    Raises:
        NotACheckpoint: the file is damaged, or the adapter is of a kind that is no low-rank sum.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        assert isinstance(config, dict)
    except (OSError, ValueError, RecursionError, AssertionError) as error:
        raise NotACheckpoint(f"{path} is not the config of an adapter ({type(error).__name__}).") from None
    kind = config.get("peft_type")
    if kind != "LORA":
        raise NotACheckpoint(
            f"{folder} is an adapter of the kind {kind!r}; only LORA adapters are displacements of weights. "
            "Merge it into its base first (merge_and_unload in peft), and name the merged folder."
        )
    for key, why in REFUSED.items():
        if config.get(key):
            raise NotACheckpoint(
                f"{folder}: the adapter has {key}: {why}. Merge it into its base first (merge_and_unload in peft), and name "
                "the merged folder."
            )
    return config


def _modules(
    inner: Source, config: Mapping[str, Any], folder: Path
) -> tuple[dict[str, Factors], dict[str, tuple[str, float]], dict[str, str]]:
    """Factors by weight, biases of the second factor by bias, and whole tensors, by the names of the model."""
    found: dict[str, dict[str, str]] = {}
    whole: dict[str, str] = {}
    strange: list[str] = []
    for old in inner.spec:
        match = FACTOR.search(old)
        if match:
            module = PREFIX.sub("", old[: match.start()]).replace(".base_layer", "")
            found.setdefault(module, {})[f"{match[1] or match[3]}.{match[2] or 'weight'}"] = old
        elif "lora_" in old or not PREFIX.search(old) or "token_adapter" in old:
            strange.append(old)
        else:
            whole[PREFIX.sub("", old).replace(".modules_to_save.default", "").replace(".base_layer", "")] = old
    if strange:
        raise NotACheckpoint(
            f"{folder} holds tensors that are no LoRA factors: {some(strange)}. It is of another kind."
        )
    factors: dict[str, Factors] = {}
    biases: dict[str, tuple[str, float]] = {}
    for module, parts in found.items():
        embedding = "lora_embedding_A.weight" in parts
        names = [f"lora_{'embedding_' if embedding else ''}{x}.weight" for x in "BA"]
        if not all(n in parts for n in names):
            raise NotACheckpoint(f"{folder}: the module {module!r} has only one of its two factors ({some(parts)}).")
        left, right = (parts[n] for n in names)
        rank, scale = _scale(module, config, folder)
        a, b = inner.spec[right].shape, inner.spec[left].shape
        if len(a) < 2 or len(a) != len(b) or a[0] != rank or b[1] != rank or any(k != 1 for k in b[2:]):
            raise NotACheckpoint(
                f"{folder}: the factors of {module!r} have the shapes {a} and {b}, which do not go with the rank {rank}."
            )
        turned = embedding or (bool(config.get("fan_in_fan_out")) and len(a) == 2 and not is_head(module))
        factors[f"{module}.weight"] = Factors(left, right, scale, turned, rank)
        if "lora_B.bias" in parts:
            biases[f"{module}.bias"] = parts["lora_B.bias"], scale
    if not factors:
        raise NotACheckpoint(f"{folder} holds no LoRA factors.")
    return factors, biases, whole


def _scale(module: str, config: Mapping[str, Any], folder: Path) -> tuple[int, float]:
    """Rank and scale of a module: alpha / rank, or alpha / sqrt(rank) for rank-stabilised adapters."""
    rank = _patterned(module, config.get("rank_pattern"), config.get("r"), folder)
    alpha = _patterned(module, config.get("alpha_pattern"), config.get("lora_alpha"), folder)
    sound = type(rank) is int and rank > 0 and isinstance(alpha, (int, float)) and math.isfinite(alpha)
    if not sound or isinstance(alpha, bool):
        raise NotACheckpoint(
            f"{folder / CONFIG}: the rank {rank!r} or alpha {alpha!r} of {module!r} is no number that fits."
        )
    return rank, float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _patterned(module: str, patterns: Any, otherwise: Any, folder: Path) -> Any:
    """The value of the first pattern that ends the module's name, as PEFT matches them."""
    if patterns and not isinstance(patterns, dict):
        raise NotACheckpoint(f"{folder / CONFIG}: rank_pattern and alpha_pattern must be tables.")
    for pattern, value in (patterns or {}).items():
        try:
            if len(pattern) < LONGEST_PATTERN and re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except re.error:
            raise NotACheckpoint(f"{folder / CONFIG}: {pattern!r} is no pattern of module names.") from None
    return otherwise


def open_adapter(folder: Path, inner: Source, label: str, part: str) -> Source:
    """The part of an adapter that is asked for; without a part, its factors if it holds nothing else.

    Raises:
        NotACheckpoint: it is damaged, or no low-rank sum.  InputError: the part is not there, or must be named.
    """
    adapter = AdapterSource(inner, read_config(folder), folder, label)
    if part == WHOLE:
        if not adapter.whole:
            raise InputError(f"{folder} holds no whole tensors (modules_to_save), only factors.")
        return WholeSource(adapter, label)
    if adapter.whole and part != FACTORS:
        raise InputError(
            f"{folder} holds {len(adapter.whole)} whole tensors beside its factors ({some(adapter.whole)}), whose displacement "
            f"needs the base. In Python, interop.adapter(path, base). In an expression, name {folder / FACTORS} as f and "
            f"{folder / WHOLE} as w, and write base + f + (w - base)."
        )
    adapter.folder = folder / FACTORS if part else folder
    return adapter
