"""Geometry: how long task vectors are, and how they lie to each other."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from ..errors import UsageError
from ..results import GeometryResult, Provenance
from ..weights import Checkpoint, TaskVector


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
    cosine = [[1.0] * len(names) for _ in names]
    for i, a in enumerate(names):
        for j, b in enumerate(names[:i]):
            cosine[i][j] = cosine[j][i] = vectors[a].cosine(vectors[b])
    base_norm = None
    if base is not None:
        shared = dict.fromkeys(n for v in vectors.values() for n in v.names)
        squares = (float(np.sum(np.square(base.array(n).astype(np.float64)))) for n in shared)
        base_norm = math.sqrt(math.fsum(squares))
    return GeometryResult(
        title=title,
        names=names,
        norms=tuple(v.norm() for v in vectors.values()),
        cosine=tuple(map(tuple, cosine)),
        base_norm=base_norm,
        provenance=Provenance.now(inputs={} if base is None else {"base": base.fingerprint()}),
    )
