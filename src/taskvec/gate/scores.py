"""Errors of regression over molecules and runs, with intervals that keep pairs together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from ..errors import UsageError
from ..results import CurvePoint, GateResult, GateRun, GateTarget, OwnUnits, RegressionError, Relative
from ..results.gate import GATE, SINGLE
from .losses import TERMS

DRAWS = 1000  # of the bootstrap
ALONE = "regression alone"
ABLATIONS = (*(f"without {term}" for term in TERMS), ALONE)


def pooled(results: Sequence[GateResult]) -> GateResult:
    """Several runs (seeds, folds) of one experiment as one result: intervals are over molecules, each drawn with all its runs.

    Raises:
        UsageError: none, or results that differ in split, embedding, methods, properties or settings.
    """
    if not results:
        raise UsageError("no results to pool.")
    first = results[0]
    for other in results[1:]:
        for what in ("split", "embedding", "methods", "targets", "sources"):
            if getattr(other, what) != getattr(first, what):
                raise UsageError(
                    f"results of different experiments: {what} is {getattr(first, what)!r} and {getattr(other, what)!r}."
                )
        if other.provenance.settings != first.provenance.settings:
            raise UsageError("results of different experiments: their settings differ.")
    runs = tuple(r for found in results for r in found.runs)
    made = first.provenance.model_copy(update={"seed": None})
    return first.model_copy(update={"runs": runs, "provenance": made, **over_runs(runs, first.methods)})


def over_runs(runs: Sequence[GateRun], methods: Sequence[str]) -> dict[str, Any]:
    """The fields of a `GateResult` that are over all runs."""
    out: dict[str, dict[str, Any]] = {"relative": {}, "errors": {}, "curves": {}, "against": {}, "ablation": {}}
    for name in (t.name for t in runs[0].targets):
        found = [r.target(name) for r in runs]
        out["relative"][name] = relative(found, methods)
        out["errors"][name] = own_units(found, methods)
        rivals = [m for m in methods if m not in (GATE, SINGLE)]
        out["against"][name] = {m: relative(found, [GATE], to=m)[GATE] for m in rivals}
        ablated = [t for t in found if ALONE in t.predictions]
        if ablated:
            left_out = [a for a in ABLATIONS if all(a in t.predictions for t in ablated)]
            out["ablation"][name] = relative(ablated, left_out, to=GATE)
        sizes: dict[int, list[GateTarget]] = {}
        for r in runs:
            for t in (r.target(name), *r.curve) if any(t.name == name for t in r.curve) else ():
                if t.name == name:
                    sizes.setdefault(t.most, []).append(t)
        if sizes:  # of the numbers of labels that all runs with a curve have
            most = max(len(at) for at in sizes.values())
            points = (_point(at, methods) for at in sizes.values() if len(at) == most)
            out["curves"][name] = tuple(sorted(points, key=lambda p: p.labels))
    return out


def _point(found: Sequence[GateTarget], methods: Sequence[str]) -> CurvePoint:
    there = [m for m in methods if all(m in t.predictions for t in found)]
    labels = round(float(np.mean([t.train + t.validation for t in found])))
    return CurvePoint(labels=labels, errors=own_units(found, there), relative=relative(found, there))


def relative(found: Sequence[GateTarget], methods: Sequence[str], *, to: str = SINGLE) -> dict[str, Relative]:
    r"""RMSE over all runs against that of the method `to`, with the interval of the pairs.

    Residuals of a run are divided by the RMSE of that run's `to` first, so that every run counts alike.

    Args:
        found: one target, by run.
    """
    scales = [float(np.mean(np.square(np.subtract(t.predictions[to], t.truth)))) or 1.0 for t in found]
    sums = _summed(found, [*methods, to], scales)
    return dict(
        zip(methods, paired([sums.squares[m] for m in methods], sums.squares[to], runs=len(found)), strict=True)
    )


def paired(squares: Sequence[np.ndarray], below: np.ndarray, *, runs: int = 1) -> list[Relative]:
    """Root of the sum of each of `squares` over that of `below`, with the interval of the pairs: a molecule is drawn with all its squares.

    Args:
        squares: for each method ``[n]``, one number a molecule.
        below: ``[n]``, of the reference.
    Example:
        >>> below = np.array([1.0, 4.0, 9.0])
        >>> str(paired([4 * below], below)[0])
        '2.000 [2.000, 2.000]'
    """
    drawn = _drawn(len(below), 0)
    more = (
        np.array(squares).reshape(-1, len(below)).T - below[:, None]
    )  # by the difference: equal errors give 1, to the bit
    total, under = below.sum(), (drawn @ below)[:, None]
    ratios = np.sqrt(np.maximum(under + drawn @ more, 0) / np.where(under > 0, under, 1.0))
    if under.any():  # a draw of molecules that the reference has no error on says nothing
        ratios = ratios[under[:, 0] > 0]
    low, high = np.quantile(ratios, [0.025, 0.975], axis=0)
    whole = np.sqrt(np.maximum(total + more.sum(0), 0) / (total or 1.0))
    made = {"n": len(below), "runs": runs}
    return [
        Relative(ratio=r, low=a, high=b, **made)
        for r, a, b in zip(*(x.tolist() for x in (whole, low, high)), strict=True)
    ]


def own_units(found: Sequence[GateTarget], methods: Sequence[str]) -> dict[str, OwnUnits]:
    """RMSE and MAE of one target over all its runs, each run counting alike."""
    sums = _summed(found, methods, [1.0] * len(found))
    drawn = _drawn(len(sums.shares), 0)
    seen = np.maximum(drawn @ sums.shares, 1e-12)
    out = {}
    for m in methods:
        rmse = np.quantile(np.sqrt((drawn @ sums.squares[m]) / seen), [0.025, 0.975])
        mae = np.quantile((drawn @ sums.absolutes[m]) / seen, [0.025, 0.975])
        out[m] = OwnUnits(
            rmse=float(np.sqrt(sums.squares[m].sum())), rmse_low=float(rmse[0]), rmse_high=float(rmse[1]),
            mae=float(sums.absolutes[m].sum()), mae_low=float(mae[0]), mae_high=float(mae[1]), n=len(sums.shares), runs=len(found),
        )  # fmt: skip
    return out


def error(residuals: np.ndarray, *, seed: int = 0) -> RegressionError:
    """RMSE with a bootstrap interval over molecules.

    Example:
        >>> error(np.array([3.0, -3.0])).rmse
        3.0
    """
    squares = np.square(residuals)
    means = _drawn(len(squares), seed) @ squares / len(squares)
    low, high = np.sqrt(np.quantile(means, [0.025, 0.975]))
    return RegressionError(rmse=rmse(residuals), low=float(low), high=float(high), n=len(squares))


def rmse(residuals: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(residuals))))


@dataclass(frozen=True, eq=False)
class _Sums:
    """By molecule, summed over the runs that tested it: shares of the whole (they sum to 1), squares and absolutes by method."""

    shares: np.ndarray
    squares: Mapping[str, np.ndarray]
    absolutes: Mapping[str, np.ndarray]


def _summed(found: Sequence[GateTarget], methods: Sequence[str], scales: Sequence[float]) -> _Sums:
    place = {s: i for i, s in enumerate(dict.fromkeys(s for t in found for s in t.molecules))}
    shares = np.zeros(len(place))
    squares, absolutes = ({m: np.zeros(len(place)) for m in methods} for _ in range(2))
    for t, scale in zip(found, scales, strict=True):
        at, share = np.array([place[s] for s in t.molecules]), 1 / len(t.truth) / len(found)
        shares[at] += share
        for m in squares:
            off = np.subtract(t.predictions[m], t.truth)
            squares[m][at] += share * np.square(off) / scale
            absolutes[m][at] += share * np.abs(off)
    return _Sums(shares, squares, absolutes)


@lru_cache(maxsize=1)  # the targets of one table have, as a rule, as many labels each
def _drawn(n: int, seed: int) -> np.ndarray:
    """How often each of n is drawn, in each of the bootstrap's draws: ``[DRAWS, n]``."""
    drawn = np.random.default_rng([seed, n]).multinomial(n, np.full(n, 1 / n), size=DRAWS).astype(np.float32)
    drawn.flags.writeable = False
    return drawn
