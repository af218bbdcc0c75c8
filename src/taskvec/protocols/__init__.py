"""Protocols: one question each, asked of a model, its vectors and tasks; one Result each. They neither print nor plot."""

from ..tasks.masks import intersections
from .addition import addition
from .analogy import analogy
from .disentanglement import disentanglement
from .fair_choice import choose_fair
from .fairness import compare_models, fairness, group_metrics
from .few_shot import few_shot
from .geometry import geometry
from .groups import groups_of
from .locality import locality, tangent_kernel
from .negation import negation
from .skills import skills
from .steering import steering
from .toxicity import toxicity

__all__ = [
    "addition",
    "analogy",
    "choose_fair",
    "compare_models",
    "disentanglement",
    "fairness",
    "few_shot",
    "geometry",
    "group_metrics",
    "groups_of",
    "intersections",
    "locality",
    "negation",
    "skills",
    "steering",
    "tangent_kernel",
    "toxicity",
]
