"""Regimes: what is trained. A new regime is a value, or one more field; never a class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..select import Select, everything


@dataclass(frozen=True)
class Regime:
    """What fine-tuning may change.

    Args:
        name: as results and tables call it.
        select: which parameters of the model learn; None for none of them.
        head: whether the head learns too. A trained head goes with its model and is never part of a vector.
    """

    name: str
    select: Select | None = everything
    head: Literal["frozen", "trained"] = "frozen"


STANDARD = Regime("standard")  # all weights, frozen head: arXiv:2212.04089, section 2
PROBE = Regime("probe", select=None, head="trained")  # the head alone: makes heads for a base
PRETRAIN = Regime("pre-training", head="trained")  # weights and head together: makes a base
