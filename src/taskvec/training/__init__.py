"""Fine-tuning: which parameters learn (regime.py) and the loop that makes them (loop.py)."""

from .loop import Fitted, TrainSpec, fit
from .regime import PRETRAIN, PROBE, STANDARD, Regime

__all__ = ["PRETRAIN", "PROBE", "STANDARD", "Fitted", "Regime", "TrainSpec", "fit"]
