"""Linear probes: logistic regression that has converged."""

import numpy as np
import pytest
import torch
from torch import nn

from taskvec.errors import UsageError
from taskvec.tasks import Split, Task
from taskvec.training import TrainSpec, probe
from taskvec.training.probe import probe_features
from taskvec.weights import Checkpoint

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def seen():
    g = torch.Generator().manual_seed(0)
    y = torch.randint(3, (200,), generator=g)
    z = torch.randn(200, 6, generator=g) + 0.8 * torch.eye(6)[y]
    return Split(z, y)


def objective(head, seen, ridge=1.0):
    scale = seen.inputs.square().mean().sqrt()
    loss = nn.functional.cross_entropy(head(seen.inputs), seen.labels, reduction="sum")
    return float(loss + ridge / 2 * (head.weight * scale).square().sum())


def test_it_is_the_minimum(seen):
    head = probe_features(seen, "abc")
    least = objective(head, seen)
    for name in ("weight", "bias"):
        t = getattr(head, name)
        for i in range(t.numel()):
            for step in (-0.05, 0.05):
                t.view(-1)[i] += step
                assert objective(head, seen) > least
                t.view(-1)[i] -= step
    trained = probe_features(seen, "abc", spec=TrainSpec(steps=200, lr=1e-3, batch=64))
    assert objective(trained, seen) > 1.02 * least  # what a short training leaves


def test_it_is_that_of_scikit_learn(seen):
    linear = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is not installed (extra: eval)")
    scale = float(seen.inputs.square().mean().sqrt())
    other = linear.LogisticRegression(C=1.0, tol=1e-8, max_iter=10_000).fit(
        seen.inputs.numpy() / scale, seen.labels.numpy()
    )
    head = probe_features(seen, "abc")
    assert np.abs(other.coef_ / scale - head.weight.numpy()).max() < 2e-4
    ours = head(seen.inputs).softmax(1).numpy()  # biases are known up to a common number
    assert np.abs(ours - other.predict_proba(seen.inputs.numpy() / scale)).max() < 1e-4


def test_units_of_the_features_do_not_matter(seen):
    head, large = (probe_features(Split(seen.inputs * c, seen.labels), "abc") for c in (1.0, 1000.0))
    torch.testing.assert_close(head(seen.inputs), large(seen.inputs * 1000), rtol=1e-3, atol=1e-3)


def test_of_a_model(seen):
    model = nn.Linear(6, 6)
    base = Checkpoint.of(model, label="base")
    task = Task("t", seen, seen, seen, None, ("a", "b", "c"))
    head = probe(model, base, task)
    with torch.no_grad():
        expected = probe_features(Split(model(seen.inputs), seen.labels), "abc")
    torch.testing.assert_close(head.weight, expected.weight)


def test_what_makes_no_sense_is_refused(seen):
    with pytest.raises(UsageError, match="ridge is 0"):
        probe_features(seen, "abc", ridge=0)
    with pytest.raises(UsageError, match="labels go up to 2"):
        probe_features(seen, "ab")
    one = probe_features(Split(seen.inputs[:5], torch.zeros(5, dtype=torch.long)), "abc")  # a class alone
    assert one.weight.isfinite().all() and (one(seen.inputs).argmax(1) == 0).all()
