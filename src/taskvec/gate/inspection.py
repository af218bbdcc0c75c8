"""What lies in a network: latent spaces, how well the frames of properties agree, and which prediction survives which way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import InputError, NonFinite, UsageError, plain, some
from ..results import GateInspection, Place, Provenance, Relative
from .inputs import Inputs
from .losses import Losses
from .model import BATCH, Gate, Property, embed
from .scores import error, paired
from .train import COLLAPSED, perturbed

NOTHING = 1e-12  # of the squared length: variance that is rounding
FEW = 30  # labels below which bootstrap intervals are too narrow: with 3, one way in four that is as good lies beyond


def inspect(
    model: Gate,
    inputs: Inputs,
    labels: Mapping[str, np.ndarray] | None = None,
    *,
    radius: float = 0.1,
    perturbations: int = 2,
    seed: int = 0,
    title: str = "Inside a network of geometric alignment",
) -> GateInspection:
    r"""Latent spaces, alignment between properties, and predictions of each property by the way through each latent.

    With :math:`z'_t` the points of property t in the common frame, :math:`V_t = \mathrm{tr\,Var}\,z'_t` and
    :math:`\Delta_t = \lVert z'_t(x) - z'_t(x + \epsilon)\rVert`, over the molecules x:

    - alignment error :math:`A_{st} = E\lVert z'_s - z'_t\rVert^2 / (V_s + V_t)`: 0 if every molecule has one place, 1 if its two
      places are as far apart as two different molecules are (:math:`E\lVert z'_t(x) - z'_t(\tilde x)\rVert^2 = 2 V_t`), more if the
      frames are also shifted;
    - displacement error :math:`D_{st} = E(\Delta_s - \Delta_t)^2 / (E\Delta_s^2 + E\Delta_t^2)`: 0 if all small distances agree, 1 if
      one frame does not move where the other does; a factor c between the lengths gives :math:`(1 - c)^2 / (1 + c^2)`;
    - transfer :math:`\mathrm{RMSE}(h_t(T_t^{-1}(z'_s))) / \mathrm{RMSE}(h_t(z_t))` on the molecules with labels of t, with the 95 %
      interval of the pairs; for all t the disagreement of the two predictions.

    These measures are ours. Molecules that the network has learnt from flatter its errors, most of all the direct ones: inspect with
    others. The time goes into the :math:`k^2` ways between k properties, each a small pass over the frame; molecules pass embedding and
    encoders once.

    Args:
        model: with two properties or more.
        inputs: n molecules.
        labels: by property ``[n]`` in own units, NaN where there is none; properties may be left out.
        radius: of the perturbations, in standard deviations of each entry of the shared embedding.
        perturbations: of each molecule.
        seed: of the perturbations.
    Raises:
        UsageError: one property only, or as many labels as there are not molecules.
        UnknownName: labels of a property that the network does not have.
        InputError: fewer than two molecules.
        NonFinite: the network gives no numbers for them.
    """
    names, n = model.names, len(inputs)
    if len(names) < 2:
        raise UsageError(
            f"the network has {some(names) or 'no property'} alone: alignment and transfer are between properties. "
            "Pre-train on several, or add one."
        )
    if n < 2:
        raise InputError(f"{n} molecules: an inspection needs at least 2 different ones.")
    truths = _checked(model, labels or {}, n)
    step = Losses(radius=radius, perturbations=perturbations)  # which checks the two
    with torch.inference_mode():
        shared = embed(model.embedding, inputs)
        near = perturbed(shared, step, torch.Generator().manual_seed(seed))
        seen = {name: _seen(name, model.of(name), shared, near) for name in names}
        own, apart = _apart([s.frame for s in seen.values()])
        lengths = np.stack([s.moved for s in seen.values()])
        squares = lengths @ lengths.T / lengths.shape[1]
        between = np.where(_sums(own) > 0, _sums(np.diagonal(squares)), 0)
        disagreement, transfer, notes = _through(model, seen, truths)
    places = []
    for i, (t, s) in enumerate(seen.items()):
        spread = own[i] / model.shape.frame
        if spread < COLLAPSED:
            notes.append(f"{plain(t)}: all molecules are nearly at one point of the frame (variance {spread:.1e})")
        known = np.isfinite(truths[t]) if t in transfer else None
        places.append(
            Place(
                name=t, source=t in model.sources, latent=s.effective, frame=_effective(s.frame), autoencoding=s.lost, spread=spread,
                error=None if known is None else error((s.direct - truths[t])[known]),
            )
        )  # fmt: skip
    settings = {"molecules": n, "radius": radius, "perturbations": perturbations}
    return GateInspection(
        title=title, provenance=Provenance.now(seed=seed, settings=settings), molecules=n, latent=model.shape.latent,
        frame=model.shape.frame, properties=tuple(places), alignment=_ratios(apart, _sums(own)),
        displacement=_ratios(np.maximum(between - 2 * squares, 0), between), disagreement=tuple(map(tuple, disagreement)),
        transfer=transfer, notes=tuple(notes),
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Seen:
    """One property on all molecules: points in the frame float32 ``[n, frame]``, the lengths of small steps ``[m n]`` and the direct
    predictions ``[n]`` float64; of the latent the effective dimension and what is lost on the way there and back."""

    frame: torch.Tensor
    moved: np.ndarray
    direct: np.ndarray
    effective: float | None
    lost: float | None


def _seen(name: str, p: Property, shared: torch.Tensor, near: torch.Tensor) -> _Seen:
    latent = p.encoder(shared)
    frame = p.transfer(latent)
    direct = p.own_units(p.head(latent)[:, 0])
    bad = ~(torch.isfinite(frame).all(1).numpy() & np.isfinite(direct))
    if bad.any():
        raise NonFinite(
            f"{plain(name)!r}: the network gives no numbers for {bad.sum()} of {len(bad)} molecules. Its weights or the inputs are not finite."
        )
    moved = (p.transfer(p.encoder(near)) - frame).double().square().sum(-1).sqrt().reshape(-1).numpy()
    if not np.isfinite(moved).all():
        raise NonFinite(
            f"{plain(name)!r}: the network gives no numbers for perturbed molecules. Take a smaller radius."
        )
    variance = _variance(latent)
    changed = float((p.inverse(frame) - latent).double().square().sum(1).mean())
    return _Seen(frame, moved, direct, _effective(latent), changed / variance if variance else None)


def _variance(points: torch.Tensor) -> float:
    """Trace of the covariance of ``[n, width]``; 0 where it is rounding."""
    wide = points.double()
    found = float((wide - wide.mean(0)).square().sum(1).mean())
    return found if found > NOTHING * float(wide.square().sum(1).mean()) else 0.0


def _effective(points: torch.Tensor) -> float | None:
    r"""Participation ratio :math:`(\sum_i \lambda_i)^2 / \sum_i \lambda_i^2 = (\mathrm{tr}\,C)^2 / \mathrm{tr}\,C^2` of the covariance."""
    if not _variance(points):
        return None
    wide = points.double()
    wide = wide - wide.mean(0)
    covariance = wide.T @ wide / len(wide)
    return float(covariance.trace() ** 2 / covariance.square().sum())


def _apart(points: Sequence[torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """The variance of each property's points, and the mean squared distance between the points of every two: ``[k]``, ``[k, k]``.

    From inner products, block by block: what is common to all is taken off first, so that their difference is exact enough.
    """
    k, n = len(points), len(points[0])
    means = torch.stack([p.double().mean(0) for p in points])
    common, products = means.mean(0), torch.zeros(k, k, dtype=torch.float64)
    for i in range(0, n, BATCH):
        block = (torch.stack([p[i : i + BATCH] for p in points]).double() - common).reshape(k, -1)
        products += block @ block.T
    products = (products / n).numpy()
    apart = np.maximum(_sums(np.diagonal(products)) - 2 * products, 0)
    np.fill_diagonal(apart, 0)
    return np.array([_variance(p) for p in points]), apart


def _sums(values: np.ndarray) -> np.ndarray:
    return values[:, None] + values[None]


def _ratios(above: np.ndarray, below: np.ndarray) -> tuple[tuple[float | None, ...], ...]:
    """None where there is nothing below; exactly 0 on the diagonal."""
    lines = np.where(np.eye(len(above), dtype=bool), 0, above / np.where(below > 0, below, 1)).tolist()
    return tuple(
        tuple(v if b else None for v, b in zip(*x, strict=True)) for x in zip(lines, (below > 0).tolist(), strict=True)
    )


def _ways(name: str, p: Property, points: Sequence[torch.Tensor]) -> np.ndarray:
    """Predictions of one property from the frame points of each: float64 ``[k, n]`` in own units."""
    found = np.stack([p.own_units(p.head(p.inverse(z))[:, 0]) for z in points])
    if not np.isfinite(found).all():
        raise NonFinite(f"{plain(name)!r}: the way from the frame to its latent gives no numbers.")
    return found


def _through(
    model: Gate, seen: Mapping[str, _Seen], truths: Mapping[str, np.ndarray]
) -> tuple[list[list[float]], dict[str, dict[str, Relative]], list[str]]:
    """Of each property by the way through each: how far it is from the direct prediction, its error where there are labels, and notes."""
    points = [s.frame for s in seen.values()]
    disagreement, transfer, notes = [], {}, []
    for t, own in seen.items():
        ways, std = _ways(t, model.of(t), points), model.of(t).std
        disagreement.append((np.sqrt(np.mean(np.square(ways - own.direct), 1)) / std).tolist())
        if not np.ptp(own.direct) > 1e-6 * std:
            notes.append(
                f"{plain(t)}: the direct prediction is {own.direct[0]:.4g} for all molecules; its ways mean nothing"
            )
        if t in truths:
            found = _transfer(ways, own.direct, truths[t])
            if isinstance(found, str):
                notes.append(f"{plain(t)}: {found}")
                continue
            transfer[t] = dict(zip(seen, found, strict=True))
            if (held := found[0].n) < FEW:
                notes.append(f"{plain(t)}: intervals from {held} labels are too narrow; take {FEW} or more")
    return disagreement, transfer, notes


def _transfer(ways: np.ndarray, direct: np.ndarray, truth: np.ndarray) -> list[Relative] | str:
    """Errors of the ways relative to the direct one where there are labels, or why there are none."""
    known = np.isfinite(truth)
    if known.sum() < 2:
        return f"{known.sum()} labels are too few for its transfer; at least 2 are needed"
    below = np.square(direct - truth)[known]
    if not below.sum():
        return "the direct prediction has no error at all; nothing is relative to that"
    return paired(list(np.square(ways - truth)[:, known]), below)


def _checked(model: Gate, labels: Mapping[str, np.ndarray], n: int) -> dict[str, np.ndarray]:
    found = {}
    for name, values in labels.items():
        model.of(name)
        found[name] = np.asarray(values, np.float64)
        if found[name].shape != (n,):
            raise UsageError(
                f"labels of {plain(name)!r} have the shape {found[name].shape} for {n} molecules; expected ({n},)."
            )
    return found
