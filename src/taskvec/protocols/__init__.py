"""Protocols: one question each, asked of a model, its vectors and tasks; one Result each. They neither print nor plot."""

from .addition import addition
from .analogy import analogy
from .disentanglement import disentanglement
from .few_shot import few_shot
from .geometry import geometry
from .locality import locality, tangent_kernel
from .negation import negation
from .skills import skills
from .toxicity import toxicity

__all__ = [
    "addition",
    "analogy",
    "disentanglement",
    "few_shot",
    "geometry",
    "locality",
    "negation",
    "skills",
    "tangent_kernel",
    "toxicity",
]
