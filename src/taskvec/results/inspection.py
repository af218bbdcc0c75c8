"""Results of looking into a network of geometric alignment: latent spaces, how they lie to each other, and what goes through which."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator

from .gate import Error, Relative
from .parts import BaseResult, Frozen, one_named

Line = tuple[float | None, ...]


class Place(Frozen):
    """One property: its latent space and its points in the common frame.

    `latent` and `frame` are effective dimensions, ``(sum of eigenvalues)^2 / sum of their squares`` of the covariance over molecules;
    None if all molecules are at one point. `autoencoding` is the mean square of what the way to the frame and back changes, over the
    variance of the latent: 0 is no change, 1 as bad as the mean latent for all. `spread` is the variance in the frame, mean over axes:
    near 0 the frame has collapsed. `error` is that of the direct prediction in own units, where there are labels.
    """

    name: str
    source: bool
    latent: float | None = Field(ge=1 - 1e-9)
    frame: float | None = Field(ge=1 - 1e-9)
    autoencoding: float | None = Field(ge=0)
    spread: float = Field(ge=0)
    error: Error | None = None


class GateInspection(BaseResult):
    """A network of geometric alignment, seen on `molecules` molecules (arXiv:2409.16645 for the network; the measures are ours).

    Matrices follow the order of `properties`. ``alignment[s][t]`` is the mean squared distance of the two points that a molecule has in
    the common frame, over the sum of the two variances; ``displacement[s][t]`` the mean squared difference of the lengths that a small
    step has, over the sum of their mean squares; None where the variance of both frames is rounding. ``disagreement[t][s]`` is the root mean square
    difference between the prediction of t by the way through the latent of s and the direct one, in standard deviations of the label;
    ``transfer[t][s]``, for properties with labels, the error of that way relative to the direct one.
    """

    kind: Literal["gate-inspection"] = "gate-inspection"
    molecules: int = Field(ge=2)
    latent: int = Field(ge=1)  # dimensions there are
    frame: int = Field(ge=1)
    properties: tuple[Place, ...] = Field(min_length=2)
    alignment: tuple[Line, ...]
    displacement: tuple[Line, ...]
    disagreement: tuple[tuple[float, ...], ...]
    transfer: Mapping[str, Mapping[str, Relative]] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> GateInspection:
        k, names = len(self.properties), set(self.names)
        for what in ("alignment", "displacement", "disagreement"):
            matrix = getattr(self, what)
            if len(matrix) != k or any(len(line) != k for line in matrix):
                raise ValueError(f"{k} properties need {k} x {k} numbers of {what}")
        if not set(self.transfer) <= names or any(set(line) != names for line in self.transfer.values()):
            raise ValueError("each line of the transfer matrix needs one number for each property")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(p.name for p in self.properties)

    def place(self, name: str) -> Place:
        return one_named(self.properties, name, "property", self.kind)
