"""Results: frozen data that protocols return, JSON holds, and reports are drawn from.

Every number that was measured is a `Score` (with n and an interval). Every coefficient says on which data it was
chosen. A result knows nothing of models, files or plots. `parts.py` holds what they are made of; a new kind is a class, here
in the module of its question, and a member of `Result`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from ..errors import InputError, some
from .edits import AdditionResult, AnalogyResult, FewShotResult, NegationResult, Skill, SkillsResult, Start
from .fairness import (
    GAPS,
    MEASURES,
    Audit,
    Comparison,
    Estimate,
    FairnessCurve,
    FairnessResult,
    FairnessRow,
    Gap,
    GapName,
    Group,
    Measure,
)
from .gate import CurvePoint, GateResult, GateRun, GateTarget, OwnUnits, Relative
from .gate import Error as RegressionError
from .generation import Agreement, Continuations, Fluency, Point, ScoredBy, ToxicityResult, ToxicityRow
from .inspection import GateInspection, Place
from .parts import SCHEMA_VERSION, Z95, Curve, Provenance, Row, Score, Share
from .steering import Bound, BoundPoint, Injection, SteeringResult, SteeringRow, Worst
from .weights import DisentanglementResult, GeometryResult, LocalityResult, Pair, Step

__all__ = [
    "GAPS",
    "MEASURES",
    "SCHEMA_VERSION",
    "Z95",
    "AdditionResult",
    "Agreement",
    "AnalogyResult",
    "Audit",
    "Bound",
    "BoundPoint",
    "Comparison",
    "Continuations",
    "Curve",
    "CurvePoint",
    "DisentanglementResult",
    "Estimate",
    "FairnessCurve",
    "FairnessResult",
    "FairnessRow",
    "FewShotResult",
    "Fluency",
    "Gap",
    "GapName",
    "GateInspection",
    "GateResult",
    "GateRun",
    "GateTarget",
    "GeometryResult",
    "Group",
    "Injection",
    "LocalityResult",
    "Measure",
    "NegationResult",
    "OwnUnits",
    "Pair",
    "Place",
    "Point",
    "Provenance",
    "RegressionError",
    "Relative",
    "Result",
    "Row",
    "Score",
    "ScoredBy",
    "Share",
    "Skill",
    "SkillsResult",
    "Start",
    "SteeringResult",
    "SteeringRow",
    "Step",
    "ToxicityResult",
    "ToxicityRow",
    "Worst",
    "read_result",
    "read_results",
]

Result = Annotated[
    AdditionResult
    | NegationResult
    | AnalogyResult
    | GeometryResult
    | DisentanglementResult
    | LocalityResult
    | FewShotResult
    | FairnessResult
    | SteeringResult
    | ToxicityResult
    | SkillsResult
    | GateResult
    | GateInspection,
    Field(discriminator="kind"),
]
LOG = logging.getLogger("taskvec")
_ADAPTER: TypeAdapter[Any] = TypeAdapter(Result)


def read_result(path: str | Path) -> Any:
    """Read one result file.

    Raises:
        InputError: not a file of this schema; says which fields are wrong.
    """
    path = Path(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the result {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a result file: not JSON ({error}).") from error
    if not _claimed(document):
        raise InputError(
            f"{path} is not a result: it has no kind and schema_version. Results are what protocols, studies, `taskvec audit` and "
            "`taskvec steer` write."
        )
    version = document["schema_version"]
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{path} is not a result of this version: schema_version is {version!r}, expected {SCHEMA_VERSION}. "
            "Make it again with this version of taskvec."
        )
    try:
        return _ADAPTER.validate_python(document)
    except ValidationError as error:
        fields = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5])
        raise InputError(f"{path} is not a valid result: {fields}.") from error


def _claimed(document: Any) -> bool:
    """Whether a document says that it is a result; configs and what commands print with --json do not."""
    return isinstance(document, dict) and "kind" in document and "schema_version" in document


def read_results(folder: str | Path) -> list[Any]:
    """All ``*.json`` results of a folder (or one file), in the order of their file names; of the folder in which studies were run,
    those of all studies. Other JSON files of a folder are left out, which is noted."""
    folder = Path(folder)
    if (folder / "results").is_dir():
        folder = folder / "results"
    files: Sequence[Path] = [folder] if folder.is_file() else sorted([*folder.glob("*.json"), *folder.glob("*/*.json")])
    if not folder.is_file():
        other = [f for f in files if not _is_result(f)]
        files = [f for f in files if f not in other]
        if files and other:
            LOG.info("left out, no results: %s", some(str(f.relative_to(folder)) for f in other))
    if not files:
        raise InputError(
            f"no results in {folder}: expected *.json files that a protocol, a study, `taskvec audit`, `taskvec steer` or `taskvec demo` wrote."
        )
    return [read_result(f) for f in files]


def _is_result(path: Path) -> bool:
    """False for JSON of another kind; a damaged file stays in, to be refused with its reason."""
    try:
        return _claimed(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return True
