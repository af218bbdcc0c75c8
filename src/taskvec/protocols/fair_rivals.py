"""What fairness is had without any task vector: fairlearn's post-processing and reduction, on the base's frozen features."""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import missing_extra
from ..models.forward import Forward
from ..models.functional import bind, device_of, tensors
from ..tasks.lazy import batches
from ..tasks.task import Split, Task
from ..weights import Checkpoint

if TYPE_CHECKING:
    import torch

MOST = 4000  # training samples for the reduction, which fits tens of classifiers
ROUNDS = 20


def fair_rivals(
    model: torch.nn.Module, base: Checkpoint, task: Task, forward: Forward, *, positive: int = 1, at_most: float = 0.05, seed: int = 0,
) -> list[tuple[str, np.ndarray, str]]:  # fmt: skip
    """Rows "logistic regression", "threshold optimiser" and "exponentiated gradient" on the features of the base.

    fairlearn takes one group for each person: the smallest of theirs, "none" for those in none. The threshold optimiser is fitted
    on validation data and needs a person's group to decide; the others do not. A group without both classes
    leaves the row out. Decisions are drawn, with `seed`, where fairlearn's are random.

    Returns:
        name, decisions on the test split ``[n]``, and a note, for each.
    Raises:
        MissingExtra: fairlearn or scikit-learn is not installed.
    """
    try:
        linear = importlib.import_module("sklearn.linear_model")
        reductions = importlib.import_module("fairlearn.reductions")
        post = importlib.import_module("fairlearn.postprocessing")
    except ImportError:
        raise missing_extra("fairlearn", "fairness", "comparing with fairlearn's methods") from None
    f, weights = bind(model), tensors(base, like=model, device=device_of(model))
    sizes = {n: int(m.sum()) for n, m in task.train.groups.items()}

    def seen(split: Split) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        import torch

        with torch.no_grad():
            z = torch.cat([f(weights, x.to(device_of(model))).cpu() for x in batches(split.inputs, 128)])
        return z.double().numpy(), (split.labels == positive).numpy().astype(int), one_group(split, sizes)

    (x, y, g), (vx, vy, vg), (tx, _, tg) = map(seen, (task.train, task.validation, task.test))
    mean, scale = x.mean(0), x.std(0) + 1e-9
    x, vx, tx = ((z - mean) / scale for z in (x, vx, tx))
    plain: Any = linear.LogisticRegression(max_iter=300, C=0.1).fit(x, y)
    out = [("logistic regression", plain.predict(tx) > 0, "on the base's frozen features; no fairness asked for")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of scikit-learn's and pandas' coming changes, which our callers cannot act on
        both = all(len(set(vy[vg == name])) == 2 for name in set(tg.tolist()) | set(vg.tolist()))
        if both:
            fixed = post.ThresholdOptimizer(estimator=plain, constraints="demographic_parity", objective="accuracy_score", prefit=True)  # fmt: skip
            fixed.fit(vx, vy, sensitive_features=vg)
            told = (
                "fairlearn's ThresholdOptimizer on frozen features: equal selection rates; decides by a person's group"
            )
            out.append(("threshold optimiser", fixed.predict(tx, sensitive_features=tg, random_state=seed) > 0, told))
        rows = np.random.default_rng(seed).permutation(len(x))[:MOST]
        if all(len(set(y[rows][g[rows] == name])) == 2 for name in set(g[rows].tolist())):
            reduced = reductions.ExponentiatedGradient(
                linear.LogisticRegression(max_iter=300, C=0.1), reductions.DemographicParity(difference_bound=at_most), max_iter=ROUNDS
            )  # fmt: skip
            reduced.fit(x[rows], y[rows], sensitive_features=g[rows])
            told = f"fairlearn's ExponentiatedGradient on frozen features: parity within {at_most:g}, {len(rows):,} samples"
            out.append(("exponentiated gradient", np.asarray(reduced.predict(tx, random_state=seed)) > 0, told))
    return out


def one_group(split: Split, sizes: dict[str, int]) -> np.ndarray:
    """For each person, the smallest of their groups by `sizes`, "none" for those in none."""
    names = sorted(split.groups, key=lambda n: sizes[n])
    found = np.full(len(split), "none", dtype=object)
    for n in reversed(names):  # the smallest last, so that it stays
        found[split.groups[n].numpy()] = n
    return found.astype(str)
