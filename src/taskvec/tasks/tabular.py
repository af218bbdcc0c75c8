"""Rows of a table as inputs: numbers standardised, categories as indicators, both learnt from the training part."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..models.functional import require_torch

if TYPE_CHECKING:
    import torch

Row = Mapping[str, str | float]


def columns_of(rows: Sequence[Row]) -> Callable[[Sequence[Row]], torch.Tensor]:
    r"""A function from rows to float32 ``[n, width]``, learnt from these rows.

    A column whose values are numbers becomes :math:`(x - \mu) / \sigma`, cut at ±5; one of strings, an indicator for each value
    seen here. Values that were not seen have no indicator. A number that is missing (NaN) becomes the mean, and a column that lacks
    some here has an indicator of that beside it.

    Args:
        rows: those of the training part; each maps the same column names to a float or a string.
    Example:
        >>> encode = columns_of([{"age": 20.0, "job": "clerk"}, {"age": 40.0, "job": "cook"}])
        >>> encode([{"age": 30.0, "job": "cook"}, {"age": 20.0, "job": "king"}]).tolist()
        [[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0]]
    """
    torch = require_torch("A table as inputs")
    numbers = {n: np.array([float(r[n]) for r in rows]) for n, v in rows[0].items() if not isinstance(v, str)}
    absent = {n: np.isnan(v) for n, v in numbers.items() if np.isnan(v).any()}
    known = {n: v[~np.isnan(v)] if n in absent else v for n, v in numbers.items()}
    scale = {n: (float(np.mean(v)), float(np.std(v)) or 1.0) if len(v) else (0.0, 1.0) for n, v in known.items()}
    seen = {n: sorted({str(r[n]) for r in rows}) for n, v in rows[0].items() if isinstance(v, str)}

    def encode(rows: Sequence[Row]) -> torch.Tensor:
        parts = []
        for n, (mu, sd) in scale.items():
            x = np.array([float(r[n]) for r in rows])
            parts.append(np.nan_to_num(np.clip((x - mu) / sd, -5, 5))[:, None])
            parts += [np.isnan(x).astype(float)[:, None]] if n in absent else []
        for n, values in seen.items():
            at = {v: i for i, v in enumerate(values)}
            mark = np.zeros((len(rows), len(values)))
            for i, r in enumerate(rows):
                if str(r[n]) in at:
                    mark[i, at[str(r[n])]] = 1
            parts.append(mark)
        return torch.from_numpy(np.concatenate(parts, axis=1).astype(np.float32))

    return encode
