"""What task addition is held against, with the same labels, splits, sizes of network and rules for stopping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import missing_extra
from ..weights import Checkpoint, TaskVector
from . import losses as terms
from .inputs import Inputs, Rows
from .losses import Losses
from .model import BATCH, Perceptron, Shape, embedding_of, seeded
from .molecules import labelled
from .train import GateSpec, Ran, Shuffled, learn, rmse, scale

BASELINES = ("single task", "multi-task", "fine-tuned", "random forest", "weight addition")
SUPERVISED = Losses(autoencoding=0, consistency=0, mapping=0, displacement=0)
COEFFICIENTS = tuple(i / 10 for i in range(11))


class Trunk(nn.Module):
    """One embedding and one encoder for all properties, and a head for each: the usual multi-task network."""

    def __init__(self, shape: Shape, scales: Mapping[str, tuple[float, float]]) -> None:
        super().__init__()
        self.shape, self.scales = shape, dict(scales)
        self.embedding = embedding_of(shape)
        self.encoder = Perceptron(shape.width, shape.width, shape.latent)
        self.heads = nn.ModuleList(Perceptron(shape.latent, shape.latent, 1) for _ in scales)

    def latent(self, inputs: Inputs) -> torch.Tensor:
        return self.encoder(self.embedding(inputs))

    def head(self, name: str) -> nn.Module:
        return self.heads[list(self.scales).index(name)]

    def shared(self) -> dict[str, torch.Tensor]:
        """The weights that all properties share: what task vectors are of."""
        return {n: t.detach() for n, t in self.state_dict().items() if not n.startswith("heads.")}


def fit_trunk(
    inputs: Inputs, targets: Mapping[str, np.ndarray], train: np.ndarray, validation: np.ndarray, *, shape: Shape, spec: GateSpec,
    start: Trunk | None = None, few: Sequence[str] = (),
) -> tuple[Trunk, Ran]:  # fmt: skip
    """Learn a trunk and heads on these targets: one target is the single-task network, several the multi-task one.

    Args:
        start: a trunk to go on from (fine-tuning): its embedding and encoder; heads are new.
        few: targets with few labels beside others with many. Half as many molecules again with labels of these join every batch, in which
            they would hardly occur, and their validation error alone chooses when to stop.
        inputs, targets, train, validation, shape, spec: as of `taskvec.gate.pretrain`.
    """
    scales = {n: scale(n, v, train, validation) for n, v in targets.items()}
    trunk = seeded(spec.seed, lambda: Trunk(shape, scales))
    if start is not None:
        trunk.load_state_dict(start.shared(), strict=False)
    labels = {n: standardised(v, scales[n]) for n, v in targets.items()}
    some = np.any(np.isfinite(np.stack(list(targets.values()))), axis=0)
    every = torch.stack(list(labels.values()))
    rare = np.any(np.isfinite(np.stack([targets[n] for n in few or targets])), axis=0)
    drawn = Shuffled(train[rare[train]], max(1, spec.batch // 2), torch.Generator().manual_seed(spec.seed + 2))

    def loss(rows: torch.Tensor) -> dict[str, torch.Tensor]:
        rows = torch.cat([rows, drawn.next()]) if few else rows
        z = trunk.latent(inputs.take(rows))
        said = torch.stack([head(z)[:, 0] for head in trunk.heads])
        return {"regression": terms.regression(said, every[:, rows])}

    judged = validation[rare[validation]]
    held = inputs.take(judged)

    def look() -> float:
        with torch.inference_mode():
            z = latents(trunk, held)
            return float(np.mean([rmse(trunk.head(n)(z)[:, 0], labels[n][judged]) for n in few or labels]))

    return trunk, learn(list(trunk.parameters()), loss, look, train[some[train]], losses=SUPERVISED, spec=spec)


def predict_trunk(trunk: Trunk, inputs: Inputs, name: str) -> np.ndarray:
    """Predictions in own units."""
    with torch.inference_mode():
        out = trunk.head(name)(latents(trunk, inputs))[:, 0]
    mean_, std = trunk.scales[name]
    return out.double().numpy() * std + mean_


def latents(trunk: Trunk, inputs: Inputs) -> torch.Tensor:
    at = range(0, len(inputs), BATCH)
    return torch.cat([trunk.latent(inputs.take(range(i, min(i + BATCH, len(inputs))))) for i in at])


def standardised(values: np.ndarray, scaled: tuple[float, float]) -> torch.Tensor:
    return torch.from_numpy(((values - scaled[0]) / scaled[1]).astype(np.float32))


def forest(
    rows: Rows, labels: np.ndarray, train: np.ndarray, test: np.ndarray, *, seed: int, trees: int = 100
) -> np.ndarray:
    """A random forest of regression trees on fingerprints (scikit-learn)."""
    try:
        from sklearn.ensemble import RandomForestRegressor
    except ImportError as error:
        raise missing_extra("scikit-learn", "molecules", "the random-forest baseline") from error
    x = rows.values.numpy()
    found: Any = RandomForestRegressor(trees, max_features=1 / 3, random_state=seed, n_jobs=1)
    return np.asarray(found.fit(x[train], labels[train]).predict(x[test]), np.float64)


@dataclass(frozen=True, eq=False)
class Summed:
    """One trunk for all targets: base plus a multiple of the sum of their task vectors. `looks` has the mean validation RMSE over
    targets, in standard deviations, by coefficient."""

    trunk: Trunk
    coefficient: float
    looks: Mapping[float, float]


def weight_addition(
    base: Trunk, tuned: Mapping[str, Trunk], inputs: Inputs, targets: Mapping[str, np.ndarray],
    validation: Mapping[str, np.ndarray], *, coefficients: Sequence[float] = COEFFICIENTS,
) -> Summed:  # fmt: skip
    r"""Task arithmetic on the shared trunk: :math:`\theta_0 + \alpha \sum_t (\theta_t - \theta_0)`, each target with its own head.

    :math:`\theta_0` is the trunk pre-trained on the sources, :math:`\theta_t` that trunk fine-tuned on t. One coefficient for all, with the
    least mean validation RMSE. This is the other meaning of "task addition" (arXiv:2212.04089), as a rival.
    """
    start = Checkpoint.of(base.shared(), label="trunk")
    total: TaskVector = sum(Checkpoint.of(t.shared(), label=n) - start for n, t in tuned.items())  # type: ignore[assignment]
    merged = seeded(0, lambda: Trunk(base.shape, {n: t.scales[n] for n, t in tuned.items()}))
    for name, trunk in tuned.items():
        merged.head(name).load_state_dict(trunk.head(name).state_dict())
    labels = {n: standardised(targets[n], merged.scales[n]) for n in tuned}

    def put(coefficient: float) -> None:
        point = start + coefficient * total
        merged.load_state_dict({n: torch.from_numpy(np.array(point.array(n))) for n in start.names}, strict=False)

    looks = {}
    for c in coefficients:
        put(c)
        errors = []
        for n in tuned:
            rows = labelled(targets[n], validation[n])
            with torch.inference_mode():
                errors.append(rmse(merged.head(n)(latents(merged, inputs.take(rows)))[:, 0], labels[n][rows]))
        looks[float(c)] = float(np.mean(errors))
    best = min(looks, key=lambda c: looks[c])
    put(best)
    return Summed(merged, best, looks)
