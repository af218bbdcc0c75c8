"""Who is in which group: masks by the name of the group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Groups = Mapping[str, Any]  # name -> bool array [n]


def group_values(column: Any, *, separator: str | None = None) -> dict[str, np.ndarray]:
    """Membership by one column that names the group, or with `separator` several of them; names in sorted order. None, NaN and the
    empty string name none.

    Example:
        >>> {name: mask.tolist() for name, mask in group_values(["b", "a;b", None], separator=";").items()}
        {'a': [False, True, False], 'b': [True, True, False]}
    """
    values = np.asarray(["" if is_missing(v) else str(v) for v in column], dtype=object)
    if separator is None:
        return {name: values == name for name in sorted(set(values) - {""})}
    parts = [{p.strip() for p in v.split(separator)} - {""} for v in values]
    return {g: np.array([g in p for p in parts], bool) for g in sorted(set().union(*parts))}


def is_missing(value: Any) -> bool:
    """Whether a value is None, NaN or empty."""
    try:
        return value is None or bool(value != value) or bool(value == "")
    except TypeError:  # pandas' NA, which is neither
        return True


def intersections(*groupings: Groups, joint: str = " & ") -> dict[str, np.ndarray]:
    """Every combination of one group of each grouping in which there is somebody.

    Example:
        >>> sex, race = group_values("mmff"), group_values("xyxx")
        >>> list(intersections(sex, race))
        ['f & x', 'm & x', 'm & y']
    """
    found = {"": np.asarray(True)}
    for grouping in groupings:
        found = {
            (f"{a}{joint}{b}" if a else b): first & np.asarray(second, bool)
            for a, first in found.items()
            for b, second in grouping.items()
        }
    return {name: mask for name, mask in found.items() if mask.any()}
