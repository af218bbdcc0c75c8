"""Two units in one column: labels of the same molecule that differ by a factor or a shift that units are known to differ by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FACTORS = {
    2.302585: "natural and decimal logarithms", 4.184: "kcal and kJ", 23.0605: "eV and kcal/mol", 27.2114: "hartree and eV",
    96.4853: "eV and kJ/mol", 627.509: "hartree and kcal/mol", 2625.5: "hartree and kJ/mol", 1e3: "a factor of thousand", 1e6: "a factor of a million",
    1e9: "a factor of a billion",
}  # fmt: skip
SHIFTS = {273.15: "degrees Celsius and kelvin", 3.0: "logarithms, units a thousandfold apart", 6.0: "logarithms, units a millionfold apart",
          9.0: "logarithms, units a billionfold apart"}  # fmt: skip
LOGARITHM = 20.0  # labels beyond are no logarithms of amounts: whole-number melting points often lie 3 apart
NEAR, LEAST = 0.01, 5


@dataclass(frozen=True)
class Mismatch:
    """What is suspected, in words, and which pairs show it: bool ``[n]``."""

    said: str
    pairs: np.ndarray


def mismatch(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> Mismatch | None:
    """Whether half or more of the pairs of labels that differ do so by one known factor or shift, within 1 %.

    At least five pairs must show it; else None. Labels of two laboratories are rarely that close: this finds values that were copied
    from one source in two units. A shift of logarithms counts where both are below 20.

    Args:
        first, second: labels of the same molecules, ``[n]``, in either order; pairs with NaN do not count.
    Example:
        >>> mismatch([1, 2, -3, 4, 5], [4.184, 8.368, -12.552, 16.736, 20.92]).said
        'a factor of 4.184 (kcal and kJ?)'
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    differ = np.isfinite(a) & np.isfinite(b) & ~np.isclose(a, b, rtol=NEAR, atol=0)
    small, large = np.minimum(np.abs(a), np.abs(b)), np.maximum(np.abs(a), np.abs(b))
    ratio = np.divide(large, small, out=np.zeros_like(a), where=(small > 0) & (a * b > 0))
    found: list[Mismatch] = []
    for measure, known, what in ((ratio, FACTORS, "a factor of"), (np.abs(a - b), SHIFTS, "a shift of")):
        for value, units in known.items():
            pairs = differ & (np.abs(measure / value - 1) < NEAR)
            if "logarithm" in units and known is SHIFTS:
                pairs &= large < LOGARITHM
            found.append(Mismatch(f"{what} {value:g} ({units}?)", pairs))
    best = max(found, key=lambda m: int(m.pairs.sum()))
    count = int(best.pairs.sum())
    return best if count >= LEAST and 2 * count >= int(differ.sum()) else None
