"""Regimes: which parameters learn, in which coordinates, through which function. A new regime is a value, never a class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from ..errors import UsageError, some
from ..models.forward import Forward, linearised, plain
from ..models.functional import aliases
from ..models.parts import Part, classifiers
from ..select import Select, everything

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Rank:
    r"""Coordinates of LoRA: each selected matrix moves by :math:`\frac{\alpha}{r} U V`, with U and V of rank r.

    Args:
        rank: r.
        alpha: the product is scaled by ``alpha / rank``.
        both: whether both factors learn; else only the one that starts at zero (the tangent space at the start).
    Reference: Hu et al. 2021, arXiv:2106.09685, section 4.1.
    """

    rank: int = 16
    alpha: float = 16.0
    both: bool = True


@dataclass(frozen=True)
class Regime:
    """What fine-tuning may change, and how.

    Args:
        name: as results and tables call it.
        select: which parameters of the model learn: by names, or a `Part` of the network; None for none of them.
        head: whether the head learns too. A trained head goes with its model and is never part of a vector.
        forward: through which function: `plain`, or `linearised` at the base.
        low_rank: coordinates of low rank, else the weights' own.
    """

    name: str
    select: Select | Part | None = everything
    head: Literal["frozen", "trained"] = "frozen"
    forward: Forward = plain
    low_rank: Rank | None = None

    def names(self, model: torch.nn.Module) -> list[str]:
        """The parameters of `model` that learn, tied ones under their first name.

        Raises:
            UsageError: none is selected, or a low rank is asked of one that is no matrix.
        """
        first = aliases(model)
        if self.select is None:
            return []
        if isinstance(self.select, Part):
            found = self.select.names(model)
        else:
            found = list(dict.fromkeys(c for n, c in first.items() if self.select(n)))
        if not found:
            raise UsageError(
                f"regime {self.name!r} selects no parameter: {self.select} matches none of {some(first)}. "
                "Correct the pattern, or set select=None to train a head alone."
            )
        inside = [n for n in classifiers(model) if first[n] in found] if isinstance(self.select, Select) else []
        if inside and self.head == "frozen":
            raise UsageError(
                f"regime {self.name!r} selects {len(inside)} parameters of a classifier inside the model ({some(inside)}). Heads are "
                "never part of a vector: give the encoder that makes features, with the classifier as the task's head, or leave it out: "
                f"select=~matching({inside[0].rpartition('.')[0] + '.*'!r})."
            )
        flat = [n for n in found if model.get_parameter(n).dim() != 2] if self.low_rank else []
        if flat:
            raise UsageError(
                f"regime {self.name!r} has coordinates of low rank, which are for matrices; {some(flat)} are none. "
                "Select weights of linear layers, for example Part('attention')."
            )
        return found

    def said(self, model: torch.nn.Module) -> str:
        """What learns, for a person: count, share of all parameters, names."""
        names = self.names(model)
        total = sum(p.numel() for p in model.parameters())
        count = sum(model.get_parameter(n).numel() for n in names)
        return (
            f"{self.name}: {len(names)} tensors, {count:,} of {total:,} parameters ({count / total:.1%}): {some(names)}"
        )


def within(regime: Regime, select: Select) -> Regime:
    """The regime, confined to names that `select` takes; it keeps its own name."""
    if regime.select is None:
        return regime
    if isinstance(regime.select, Part):
        inside = regime.select.within & select if regime.select.within is not everything else select
        return replace(regime, select=replace(regime.select, within=inside))
    return replace(regime, select=select if regime.select is everything else regime.select & select)


ATTENTION = Part("attention")

STANDARD = Regime("standard")  # all weights, frozen head: arXiv:2212.04089, section 2
PROBE = Regime("probe", select=None, head="trained")  # the head alone: makes heads for a base
PRETRAIN = Regime("pre-training", head="trained")  # weights and head together: makes a base
TANGENT = Regime("tangent", forward=linearised)  # arXiv:2305.12827
LINEAR_ONLY = Regime("linear-only", ATTENTION)  # arXiv:2407.07089: biases stay frozen
LINEAR_ONLY_BIASES = Regime("linear-only with biases", Part("attention", biases=True))
BIAS_ATTENTION = Regime("bias-attention", Part("attention", weights=False, biases=True))  # ibid., an ablation
MLP_ONLY = Regime("MLP-only", Part("mlp"))  # ibid., an ablation
LORA = Regime("LoRA", ATTENTION, low_rank=Rank())  # arXiv:2106.09685
# Linear in U at its start, where the random V stays: arXiv:2310.04742.
LINEARISED_LORA = Regime("linearised LoRA", ATTENTION, forward=linearised, low_rank=Rank(both=False))

REGIMES: Mapping[str, Regime] = MappingProxyType(
    {
        "standard": STANDARD,
        "tangent": TANGENT,
        "linear-only": LINEAR_ONLY,
        "linear-only-biases": LINEAR_ONLY_BIASES,
        "bias-attention": BIAS_ATTENTION,
        "mlp-only": MLP_ONLY,
        "lora": LORA,
        "linearised-lora": LINEARISED_LORA,
    }
)  # by the names that the command line and studies use
