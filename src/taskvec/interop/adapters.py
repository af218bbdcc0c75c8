r"""LoRA adapters in PEFT's format: read onto a base, written from a task vector."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..address import is_address, label_of, parse_address
from ..errors import InputError, KeyMismatch, StorageError, UsageError, some
from ..weights import Checkpoint, TaskVector, graph
from ..weights.adapter import CONFIG, FACTORS, WHOLE, AdapterSource, is_adapter, is_head
from ..weights.factors import factors
from ..weights.layers import BEFORE
from ..weights.lineage import Base, root
from ..weights.remote import local
from ..weights.source import open_source

EXACT = 1024  # the smaller side up to which a matrix is decomposed whole; larger ones by a random projection
TURNED = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")  # model types whose blocks hold Conv1D: [in, out]


def adapter(path: str | Path, base: Checkpoint, *, label: str | None = None) -> TaskVector:
    r"""A LoRA adapter as the task vector that it is on a base: :math:`\tau = s\,B A` for every module it adapts.

    Multiplied out tensor by tensor when it is used. Whole tensors of the adapter (modules_to_save, biases) count as
    ``whole - base``. An adapter does not record the weights that it was trained on, so only names and shapes can show
    that the base is another one.

    Args:
        path: the adapter's folder, or its address on the hub (``hf://org/name``).
        base: the model that it adapts; names may differ by a prefix.
        label: its name in messages.
    Raises:
        NotACheckpoint: no LoRA adapter, or a kind that is no low-rank sum (DoRA and others).
        KeyMismatch: the base has no tensor of a name and shape that the adapter speaks of.
    Reference: Hu et al. 2021, arXiv:2106.09685; rank-stabilised scale: Kalajdzievski 2023, arXiv:2312.03732.
    Example: ``base + 0.5 * adapter("lora/", base)``
    """
    label = label or (label_of(path) if is_address(path) else Path(path).name)
    path = local(parse_address(path)) if is_address(path) else Path(path)
    if not is_adapter(path):
        raise InputError(f"{path} is no adapter: it has no {CONFIG}.")
    source = open_source(path / FACTORS, label)
    assert isinstance(source, AdapterSource)
    if not source.whole:
        source.folder = path
    parts = [_fitted(TaskVector(graph.read(source), Base(source.metadata["taskvec.base_label"]), label, True), base)]
    if source.whole:
        saved = Checkpoint(graph.read(open_source(path / WHOLE, f"{label}_{WHOLE}")), f"{label}_{WHOLE}", True)
        parts.append(_fitted(saved, base) - base)
    vector = parts[0].rebase(base)
    for part in parts[1:]:
        vector = vector + part
    return vector


def _fitted(value: Any, base: Checkpoint) -> Any:
    """An adapter's part under the base's names, all of it."""
    if all(n in base.spec and base.spec[n].shape == s.shape for n, s in value.spec.items()):
        return value
    found = value.match(base) if isinstance(value, Checkpoint) else Checkpoint(value.node, value.label).match(base)
    left = sorted({*found.only_here, *found.other_shape})
    left += [m for n, m in found.old.items() if not (n.endswith(f".{m}") or m.endswith(f".{n}") or n == m)]
    if left or not found.old:
        raise KeyMismatch(
            f"the adapter {value.label} does not fit {base.label}: {len(left)} of its {len(value.names)} tensors have no "
            f"counterpart of equal shape there ({some(left)}). It was trained on another model."
        )
    return value.shared(base)


@dataclass(frozen=True)
class Module:
    """How well one matrix is kept: ``error`` is :math:`\\lVert\\tau - BA\\rVert / \\lVert\\tau\\rVert`."""

    name: str
    rank: int
    error: float
    norm: float


@dataclass(frozen=True)
class Written:
    """What `write_adapter` wrote, matrix by matrix, and what it left out."""

    path: str
    modules: tuple[Module, ...]
    left_out: tuple[str, ...]
    left_norm: float
    error: float  # of the whole vector, with what was left out

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        worst = max(self.modules, key=lambda m: m.error)
        ranks = sorted({m.rank for m in self.modules})
        said = f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
        text = f"{self.path}: {len(self.modules)} matrices of rank {said}, relative error {self.error:.3g} (the largest is "
        text += f"{worst.error:.3g}, of {worst.name})"
        if self.left_out:
            text += f"; left out {len(self.left_out)} tensors of norm {self.left_norm:.3g} ({some(self.left_out)})"
        return text


def write_adapter(
    vector: TaskVector, path: str | Path, *, rank: int | None = None, error: float | None = None,
    only_matrices: bool = False, base_name: str | None = None, task_type: str | None = None,
    turned: bool | None = None, seed: int = 0, overwrite: bool = False,
) -> Written:  # fmt: skip
    r"""Write a task vector as a LoRA adapter in PEFT's format: each matrix by its best approximation of a rank.

    :math:`\tau \approx B A` with :math:`B = U\sqrt{\Sigma}` and :math:`A = \sqrt{\Sigma}V^\top` of the leading singular
    values; alpha is the rank, so the scale is 1. A sum of adapters without `rank` and `error` is written exactly, by
    stacking their factors. Matrices whose smaller side is over 1024 are decomposed by a random projection.

    Args:
        vector: the vector; coefficients included.
        path: the folder to write.
        rank: r, of every matrix (at most its smaller side).
        error: instead, the relative error that every matrix must keep to; ranks then differ.
        only_matrices: leave out what is not a matrix (biases, norms) and not zero, instead of refusing.
        base_name: the base for `base_model_name_or_path`; the base's label unless given.
        task_type: PEFT's, for example CAUSAL_LM.
        turned: whether weights lie as [in, out] (Conv1D, PEFT's fan_in_fan_out); read off the base's config unless given.
        seed: of the random projection.
        overwrite: replace an existing adapter.
    Raises:
        UsageError: neither or both of rank and error, where the vector is not a sum of adapters.
        InputError: the vector has tensors that are no matrices, and they are not zero.
        StorageError: the folder exists or cannot be written.
    Reference: randomised decomposition: Halko et al. 2011, arXiv:0909.4061.
    """
    path = Path(path)
    exact = rank is None and error is None
    if (rank is not None and error is not None) or (exact and _sum_of_adapters(vector) is None):
        raise UsageError(
            "write_adapter takes rank=, or error=; without them only a sum of LoRA adapters can be written."
        )
    if rank is not None and (type(rank) is not int or rank < 1):
        raise UsageError(f"write_adapter: rank is {rank!r}; it must be a whole number of at least 1.")
    if error is not None and not 0 < error < 1:
        raise UsageError(f"write_adapter: error is {error!r}; it is a share of the norm and must lie between 0 and 1.")
    if path.exists() and not (overwrite and (is_adapter(path) or not any(path.iterdir()))):
        raise StorageError(f"{path} exists{'' if overwrite else '; overwrite=True replaces an adapter'}.")
    turned = _turned(vector) if turned is None else turned
    tensors: dict[str, np.ndarray] = {}
    modules: list[Module] = []
    left: dict[str, float] = {}
    rng = np.random.default_rng(seed)
    for name in vector.names:
        if len(vector.spec[name].shape) != 2 or not name.endswith(".weight"):
            norm = float(np.linalg.norm(vector.array(name).astype(np.float64)))
            if norm:
                left[name] = norm
            continue
        whole = vector.array(name).astype(np.float64)
        norm = float(np.linalg.norm(whole))
        if not norm:
            continue
        embedding, module = _is_embedding(name), name.removesuffix(".weight")
        flip = embedding or (turned and not is_head(module))
        matrix = whole.T if flip else whole
        if exact:
            b, a = _stacked(vector, name, flip)
        else:
            b, a = _factors(matrix, rank, error, rng)
        b, a = b.astype(np.float32), a.astype(np.float32)
        apart = float(np.linalg.norm(matrix - b.astype(np.float64) @ a)) / norm
        modules.append(Module(name, a.shape[0], apart, norm))
        kind = "lora_embedding_{}" if embedding else "lora_{}.weight"
        tensors[f"base_model.model.{module}.{kind.format('A')}"] = np.ascontiguousarray(a)
        tensors[f"base_model.model.{module}.{kind.format('B')}"] = np.ascontiguousarray(b)
    if left and not only_matrices:
        raise InputError(
            f"{vector.label} has {len(left)} tensors that are no matrices and not zero ({some(left)}); an adapter of low rank "
            "cannot hold them. Leave them out with only_matrices=True (--only-matrices), or restrict the vector."
        )
    if not modules:
        raise InputError(f"{vector.label} has no matrix that is not zero; there is nothing to write.")
    config = _config(modules, turned, base_name or vector.base.label, task_type)
    _save(path, tensors, config, overwrite=overwrite)
    total = sum(m.norm**2 for m in modules) + sum(n**2 for n in left.values())
    lost = sum((m.error * m.norm) ** 2 for m in modules) + sum(n**2 for n in left.values())
    return Written(
        str(path), tuple(modules), tuple(left), sum(n**2 for n in left.values()) ** 0.5, (lost / total) ** 0.5
    )


def _factors(
    matrix: np.ndarray, rank: int | None, error: float | None, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """B and A of a rank, or of the least rank that keeps to the error."""
    least = min(matrix.shape)
    if least <= EXACT or (rank is not None and 4 * rank > least):
        u, s, v = np.linalg.svd(matrix, full_matrices=False)
    else:
        u, s, v = _projected(matrix, min(least, (rank or least // 4) + 16), rng)
    if rank is None:
        assert error is not None
        square = float((matrix**2).sum())
        lost = square - np.cumsum(s**2)
        enough = np.flatnonzero(lost <= error**2 * square * (1 - 1e-6))
        if not len(enough) and len(s) < least:
            u, s, v = np.linalg.svd(matrix, full_matrices=False)
            lost = square - np.cumsum(s**2)
            enough = np.flatnonzero(lost <= error**2 * square * (1 - 1e-6))
        rank = int(enough[0]) + 1 if len(enough) else len(s)
    r = min(rank, least)
    root_ = np.sqrt(s[:r])
    return u[:, :r] * root_, root_[:, None] * v[:r]


def _projected(matrix: np.ndarray, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Leading singular values by a random projection, with two rounds of powers."""
    basis = np.linalg.qr(matrix @ rng.standard_normal((matrix.shape[1], size)))[0]
    for _ in range(2):
        basis = np.linalg.qr(matrix @ np.linalg.qr(matrix.T @ basis)[0])[0]
    u, s, v = np.linalg.svd(basis.T @ matrix, full_matrices=False)
    return basis @ u, s, v


def _sum_of_adapters(vector: TaskVector) -> list[tuple[graph.Node, float]] | None:
    """The vector as coefficients of adapters, if it is such a sum."""

    def bare(node: graph.Node) -> graph.Node:
        while node.op in (graph.REBASE, graph.RESTRICT):
            node = node.inputs[0]
        return node

    terms = graph.terms(vector.node) if vector.node.op is graph.COMBINE else graph.terms(bare(vector.node))
    return terms if terms and all(isinstance(bare(n).source, AdapterSource) for n, _ in terms) else None


def _stacked(vector: TaskVector, name: str, flip: bool) -> tuple[np.ndarray, np.ndarray]:
    """B side by side with coefficients, A on top of each other: their product is the sum, without cross terms."""
    found = factors(vector.node, name, vector.spec[name].shape)
    assert found is not None
    left, right = found
    return (right.T, left.T) if flip else (left, right)


def _is_embedding(name: str) -> bool:
    return bool(BEFORE.search(name)) and "norm" not in name.lower() and not any(p.isdecimal() for p in name.split("."))


def _turned(vector: TaskVector) -> bool:
    """Whether the base's config is that of a model with Conv1D layers."""
    node = vector.base.node
    source = root(node).source if node is not None else None
    if source is not None:
        source.fetch()
    try:
        config = json.loads(source.beside().get("config.json", b"{}")) if source is not None else {}
    except (OSError, ValueError, RecursionError):
        config = {}
    return isinstance(config, dict) and config.get("model_type") in TURNED


def _config(modules: Sequence[Module], turned: bool, base: str, task_type: str | None) -> dict[str, Any]:
    ranks = [m.rank for m in modules]
    usual = max(set(ranks), key=ranks.count)
    other = {m.name.removesuffix(".weight"): m.rank for m in modules if m.rank != usual}
    return {
        "peft_type": "LORA", "task_type": task_type, "base_model_name_or_path": base, "r": usual, "lora_alpha": usual,
        "rank_pattern": other, "alpha_pattern": dict(other), "use_rslora": False, "use_dora": False, "lora_dropout": 0.0,
        "target_modules": [m.name.removesuffix(".weight") for m in modules], "modules_to_save": None, "bias": "none",
        "fan_in_fan_out": turned, "inference_mode": True, "init_lora_weights": True,
    }  # fmt: skip


def _save(path: Path, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any], *, overwrite: bool) -> None:
    """The folder, made beside its place and renamed."""
    staged = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        staged.mkdir(parents=True)
        Checkpoint.of(tensors, label=path.name, copy=False).save(staged / "adapter_model.safetensors")
        (staged / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        if path.exists() and overwrite:
            shutil.rmtree(path)
        staged.rename(path)
    except OSError as problem:
        raise StorageError(f"cannot write the adapter {path}: {problem.strerror}.") from problem
    finally:
        shutil.rmtree(staged, ignore_errors=True)
