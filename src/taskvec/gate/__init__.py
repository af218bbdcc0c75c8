"""Geometric alignment (GATE): task addition for regression on molecules by adding modules, not weights (arXiv:2409.16645)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .baselines import BASELINES
    from .comparison import evaluate
    from .files import load, save
    from .inputs import Graphs, Rows, fingerprints, graphs, inputs_for
    from .inspection import inspect
    from .losses import Losses
    from .model import Gate, Shape, predict, routed
    from .molecules import Molecules, Split, clean, few, gather, holdout, read_molecules, split, together
    from .scores import pooled
    from .train import GateSpec, Learned, add, pretrain

_NAMES = {
    "BASELINES": "baselines", "evaluate": "comparison", "pooled": "scores", "load": "files", "save": "files", "Graphs": "inputs",
    "Rows": "inputs", "fingerprints": "inputs", "graphs": "inputs", "inputs_for": "inputs", "inspect": "inspection", "Losses": "losses", "Gate": "model",
    "Shape": "model", "predict": "model", "routed": "model", "Molecules": "molecules", "Split": "molecules", "clean": "molecules",
    "few": "molecules", "gather": "molecules", "holdout": "molecules", "read_molecules": "molecules", "split": "molecules", "together": "molecules", "GateSpec": "train",
    "Learned": "train", "add": "train", "pretrain": "train",
}  # fmt: skip

__all__ = [
    "BASELINES", "Gate", "GateSpec", "Graphs", "Learned", "Losses", "Molecules", "Rows", "Shape", "Split", "add", "clean", "evaluate",
    "few", "fingerprints", "gather", "graphs", "holdout", "inputs_for", "inspect", "load", "pooled", "predict", "pretrain", "read_molecules", "routed", "save", "split",
    "together",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Names are loaded on first use: reading a table of molecules does not bring torch."""
    if name in _NAMES:
        return getattr(importlib.import_module(f".{_NAMES[name]}", __name__), name)
    raise AttributeError(f"module 'taskvec.gate' has no attribute {name!r}")
