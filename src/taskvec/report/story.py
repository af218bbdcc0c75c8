"""The story of a result: the question, the formula, the answer in sentences computed from the numbers, the tables."""

from __future__ import annotations

from typing import Any

from ..errors import UsageError
from ..results import (
    AdditionResult,
    AnalogyResult,
    DisentanglementResult,
    FairnessResult,
    FewShotResult,
    GateInspection,
    GateResult,
    GeometryResult,
    LocalityResult,
    NegationResult,
    SkillsResult,
    SteeringResult,
    ToxicityResult,
)
from .addition import addition_section
from .analogy import analogy_section
from .disentanglement import disentanglement_section
from .fairness import fairness_section
from .few_shot import few_shot_section
from .geometry import geometry_section
from .locality import locality_section
from .negation import negation_section
from .section import Section
from .skills import skills_section
from .steering import steering_section
from .toxicity import toxicity_section


def section(result: Any) -> Section:
    """The story of one result.

    Raises:
        UsageError: not a result that a report knows.
    """
    match result:
        case AdditionResult():
            return addition_section(result)
        case NegationResult():
            return negation_section(result)
        case AnalogyResult():
            return analogy_section(result)
        case GeometryResult():
            return geometry_section(result)
        case DisentanglementResult():
            return disentanglement_section(result)
        case LocalityResult():
            return locality_section(result)
        case FewShotResult():
            return few_shot_section(result)
        case FairnessResult():
            return fairness_section(result)
        case SteeringResult():
            return steering_section(result)
        case ToxicityResult():
            return toxicity_section(result)
        case SkillsResult():
            return skills_section(result)
        case GateResult():
            from .gate import gate_section

            return gate_section(result)
        case GateInspection():
            from .inspection import inspection_section

            return inspection_section(result)
    raise UsageError(
        f"cannot report on a {type(result).__name__}: expected a result of a protocol. Read files with taskvec.results.read_result(s) first."
    )
