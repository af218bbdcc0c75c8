"""taskvec: edit trained models by arithmetic on their weights, and say how well the edit worked.

Public names are loaded on first use: ``import taskvec`` brings neither torch nor the plotting libraries.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import errors, methods, models, protocols, report, results, select, tasks, training
    from .search import grid
    from .training import PROBE, STANDARD, Regime, TrainSpec, fit
    from .weights import Checkpoint, TaskVector, explain

_MODULES = ("errors", "methods", "models", "protocols", "report", "results", "select", "tasks", "training")
_NAMES = {
    "Checkpoint": "weights", "TaskVector": "weights", "explain": "weights",
    "fit": "training", "TrainSpec": "training", "Regime": "training", "STANDARD": "training", "PROBE": "training",
    "grid": "search",
}  # fmt: skip

__all__ = [
    "PROBE", "STANDARD", "Checkpoint", "Regime", "TaskVector", "TrainSpec", "__version__", "errors", "explain", "fit",
    "grid", "methods", "models", "protocols", "report", "results", "select", "tasks", "training",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name in _NAMES:
        return getattr(importlib.import_module(f".{_NAMES[name]}", __name__), name)
    raise AttributeError(f"module 'taskvec' has no attribute {name!r}")
