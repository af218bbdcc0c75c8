"""Fine-tuning: which parameters learn (regime.py) and the loop that makes them (loop.py)."""

from .loop import Fitted, TrainSpec, fit, validation_loss
from .penalties import Penalty, orthogonal, tau_jp
from .pretraining import Pretrained, pretrain
from .probe import probe
from .regime import (
    BIAS_ATTENTION,
    LINEAR_ONLY,
    LINEAR_ONLY_BIASES,
    LINEARISED_LORA,
    LORA,
    MLP_ONLY,
    PRETRAIN,
    PROBE,
    STANDARD,
    TANGENT,
    Rank,
    Regime,
)
from .sharded import fit_sharded
from .statistics import fisher, gram

__all__ = [
    "BIAS_ATTENTION", "LINEARISED_LORA", "LINEAR_ONLY", "LINEAR_ONLY_BIASES", "LORA", "MLP_ONLY", "PRETRAIN", "PROBE", "STANDARD",
    "TANGENT", "Fitted", "Penalty", "Pretrained", "Rank", "Regime", "TrainSpec", "fisher", "fit", "fit_sharded",
    "gram", "orthogonal", "pretrain", "probe", "tau_jp",
    "validation_loss",
]  # fmt: skip
