"""Geometry: how long task vectors are, and how they lie to each other."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import UsageError
from ..results import GeometryResult, Provenance
from ..weights import Checkpoint, TaskVector, compare


def geometry(
    vectors: Mapping[str, TaskVector], *, base: Checkpoint | None = None, title: str = "Geometry"
) -> GeometryResult:
    r"""Norms :math:`\lVert\tau_i\rVert` and cosines :math:`\langle\tau_i,\tau_j\rangle/(\lVert\tau_i\rVert\lVert\tau_j\rVert)`.

    Args:
        vectors: name -> task vector.
        base: if given, its norm over the vectors' parameters is shown for scale.
        title: heading in reports.
    Raises:
        UsageError: no vectors.
    Reference: Ilharco et al. 2022, arXiv:2212.04089, section 4 (cosines between task vectors).
    """
    if not vectors:
        raise UsageError("geometry needs at least one task vector.")
    names = tuple(vectors)
    found = compare(list(vectors.values()), base=base).groups[0]
    return GeometryResult(
        title=title,
        names=names,
        norms=found.norms,
        cosine=found.cosine,
        base_norm=found.base_norm,
        provenance=Provenance.now(inputs={} if base is None else {"base": base.fingerprint()}),
    )
