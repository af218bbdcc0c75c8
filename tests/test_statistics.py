"""Fisher information and Gram matrices: closed forms and definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from taskvec.errors import UsageError
from taskvec.methods import regmean
from taskvec.models.vit import small_vit
from taskvec.tasks import Head, Split, Task
from taskvec.training.statistics import fisher, gradient_gram, gram, grams_in_sequence
from taskvec.weights import Checkpoint

torch.set_num_threads(1)


def task(inputs, labels, head):
    split = Split(inputs, labels)
    return Task("t", split, split, split, head, tuple("abc")[: len(head.weight)])


def test_fisher_of_logistic_regression():
    """E (d log p / dW_ki)^2 = p_k (1 - p_k) x_i^2."""
    g = torch.Generator().manual_seed(0)
    model = nn.Linear(4, 3)
    x = torch.randn(30, 4, generator=g)
    found = fisher(
        model, Checkpoint.of(model), task(x, torch.zeros(30, dtype=torch.long), Head(torch.eye(3), torch.zeros(3)))
    )
    p = torch.softmax(model(x).detach(), 1)
    np.testing.assert_allclose(found.array("weight"), torch.einsum("nk,ni->ki", p * (1 - p), x**2) / 30, rtol=1e-4)
    np.testing.assert_allclose(found.array("bias"), (p * (1 - p)).mean(0), rtol=1e-4)


def test_empirical_fisher_is_the_mean_square_of_gradients():
    g = torch.Generator().manual_seed(0)
    model = small_vit(width=8, depth=1, heads=2, generator=g)
    x, y = torch.rand(6, 1, 8, 8, generator=g), torch.randint(3, (6,), generator=g)
    own = task(x, y, Head.random(3, 8, generator=g))
    found = fisher(model, Checkpoint.of(model), own, labels="given")
    expected = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for i in range(6):
        model.zero_grad()
        nn.functional.cross_entropy(own.head(model(x[i : i + 1])), y[i : i + 1]).backward()
        for n, p in model.named_parameters():
            expected[n] += p.grad**2 / 6
    for n, e in expected.items():
        np.testing.assert_allclose(found.array(n), e, rtol=1e-3, atol=1e-9)
    few = [fisher(model, Checkpoint.of(model), own, samples=3, seed=s).array("norm.weight") for s in (0, 0, 1)]
    assert np.array_equal(few[0], few[1]) and not np.array_equal(few[0], few[2])
    with pytest.raises(UsageError, match="choose 'model'"):
        fisher(model, Checkpoint.of(model), own, labels="mine")


def test_gram_is_that_of_the_layers_inputs(tmp_path):
    g = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    x = torch.randn(100, 2, 4, generator=g).reshape(200, 4)
    own = task(x, torch.zeros(200, dtype=torch.long), Head(torch.eye(3), torch.zeros(3)))
    found = gram(model, Checkpoint.of(model), own, batch=33)
    assert found.names == ("0.weight", "2.weight")
    np.testing.assert_allclose(found.array("0.weight"), x.T @ x / 200, rtol=1e-4, atol=1e-5)
    hidden = model[:2](x).detach()
    np.testing.assert_allclose(found.array("2.weight"), hidden.T @ hidden / 200, rtol=1e-4, atol=1e-5)
    assert Checkpoint.read(found.save(tmp_path / "gram.safetensors")).array("0.weight").shape == (4, 4)
    vit = small_vit(width=8, depth=2, heads=2, generator=g)
    images = task(torch.rand(5, 1, 8, 8, generator=g), torch.zeros(5, dtype=torch.long), Head.random(3, 8, generator=g))
    assert len(gram(vit, Checkpoint.of(vit), images).names) == 8
    with pytest.raises(UsageError, match="no linear layer"):
        conv = nn.Sequential(nn.Conv2d(1, 3, 8), nn.Flatten())
        gram(conv, Checkpoint.of(conv), images)


def test_statistics_files_merge_models(tmp_path):
    """Two linear models on inputs of their own: RegMean of what `gram` saves is the joint least squares solution, and
    Fisher merging follows the model whose inputs an entry sees."""
    from taskvec.recipe import parse

    g = torch.Generator().manual_seed(0)
    model = nn.Linear(4, 3, bias=False)
    base = Checkpoint.of(model, label="base")
    names, inputs, tuned = {"base": base}, [], []
    for label, scale in (("a", [3.0, 3.0, 0.1, 1.0]), ("b", [0.1, 0.1, 3.0, 1.0])):
        x = torch.randn(80, 4, generator=g) * torch.tensor(scale)
        point = Checkpoint.of({"weight": torch.randn(3, 4, generator=g)}, label=label)
        own = task(x, torch.zeros(80, dtype=torch.long), Head(torch.eye(3), torch.zeros(3)))
        names[label] = point
        for kind, made in (("g", gram(model, point, own, samples=80)), ("f", fisher(model, point, own, samples=80))):
            names[f"{kind}_{label}"] = Checkpoint.read(made.save(tmp_path / f"{kind}_{label}.safetensors"))
        inputs.append(x.double().numpy())
        tuned.append(point.array("weight").astype(np.float64))
    got = parse("base + regmean([a - base, b - base], grams=[g_a, g_b], shrink=1)", names).array("weight")
    y = np.concatenate([x @ w.T for x, w in zip(inputs, tuned, strict=True)])
    best = np.linalg.lstsq(np.concatenate(inputs), y, rcond=None)[0].T
    np.testing.assert_allclose(got, best, atol=1e-4)
    got = parse("base + fisher([a - base, b - base], information=[f_a, f_b])", names).array("weight")
    a, b = tuned
    assert (np.abs(got - a) < np.abs(got - b))[:, :2].all() and (np.abs(got - b) < np.abs(got - a))[:, 2].all()


class Block(nn.Module):
    """x + up(relu(down(x))): two linear layers, of which the second sees what the block's own first one makes."""

    def __init__(self, width, inner):
        super().__init__()
        self.down, self.up = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x):
        return x + self.up(torch.relu(self.down(x)))


class Net(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(3))  # comes before the blocks and is no linear layer
        self.layers = nn.ModuleList([Block(3, 5) for _ in range(depth)])
        self.last = nn.Linear(3, 2)

    def forward(self, x):
        x = x + self.shift
        for layer in self.layers:
            x = layer(x)
        return self.last(x)


def several(model, seed, *, count=3, n=60):
    """A base, task vectors on all of its weights, and a task of its own inputs for each."""
    g = torch.Generator().manual_seed(seed)
    base = Checkpoint.of({k: torch.randn(v.shape, generator=g) for k, v in model.state_dict().items()}, label="base")
    tuned = [
        Checkpoint.of(
            {k: torch.from_numpy(x) + 0.5 * torch.randn(x.shape, generator=g) for k, x in base.arrays().items()}
        )
        for _ in range(count)
    ]
    width = 3 if isinstance(model, Net) else 4
    tasks = [
        task(
            torch.randn(n, width, generator=g) * torch.rand(width, generator=g) * 3,
            torch.zeros(n, dtype=torch.long),
            Head(torch.eye(2), torch.zeros(2)),
        )
        for _ in range(count)
    ]
    return base, tuned, tasks


def regression(weights, grams, shrink):
    """RegMean of one layer, from the equation, in float64."""
    grams = [shrink * g + (1 - shrink) * np.diag(np.diag(g)) for g in grams]
    return np.linalg.solve(sum(grams), sum(g @ w.T for w, g in zip(weights, grams, strict=True))).T


def plus_plus(tuned, tasks, depth, shrink):
    """RegMean++ written out for `Net`: merge what is no linear layer, then block after block."""
    models = [{n: x.astype(np.float64) for n, x in t.arrays().items()} for t in tuned]
    merged = {n: np.mean([m[n] for m in models], axis=0) for n in models[0]}
    xs = [t.train.inputs[:].double().numpy() + merged["shift"] for t in tasks]

    def inner(x, m, i):
        return np.maximum(x @ m[f"layers.{i}.down.weight"].T + m[f"layers.{i}.down.bias"], 0)

    def mean_gram(x):
        return x.T @ x / len(x)

    for i in range(depth):
        inside = [inner(x, m, i) for x, m in zip(xs, models, strict=True)]  # by each task's own block
        for name, seen in ((f"layers.{i}.down.weight", xs), (f"layers.{i}.up.weight", inside)):
            merged[name] = regression([m[name] for m in models], [mean_gram(x) for x in seen], shrink)
        up = f"layers.{i}.up"
        xs = [x + inner(x, merged, i) @ merged[f"{up}.weight"].T + merged[f"{up}.bias"] for x in xs]
    merged["last.weight"] = regression([m["last.weight"] for m in models], [mean_gram(x) for x in xs], shrink)
    return merged


@pytest.mark.parametrize("shrink", [1.0, 0.6])
def test_regmean_plus_plus_is_its_equation_block_by_block(shrink):
    model = Net(2)
    base, tuned, tasks = several(model, 0)
    vectors = [t - base for t in tuned]
    with torch.no_grad():
        grams = grams_in_sequence(model, base, vectors, tasks, shrink=shrink, batch=17)
        plain = [gram(model, t, own) for t, own in zip(tuned, tasks, strict=True)]
    merged = base + regmean(vectors, grams=grams, shrink=shrink)
    want = plus_plus(tuned, tasks, 2, shrink)
    for n in base.names:
        np.testing.assert_allclose(merged.array(n), want[n], rtol=0, atol=2e-4, err_msg=n)
    other = (base + regmean(vectors, grams=plain, shrink=shrink)).array("last.weight")
    assert np.abs(other - want["last.weight"]).max() > 0.05  # RegMean itself is something else here


def test_regmean_plus_plus_of_one_layer_is_regmean():
    model = nn.Linear(4, 2)
    base, tuned, tasks = several(model, 1)
    vectors = [t - base for t in tuned]
    grams = grams_in_sequence(model, base, vectors, tasks, batch=60)
    for g, t, own in zip(grams, tuned, tasks, strict=True):
        np.testing.assert_array_equal(g.array("weight"), gram(model, t, own, batch=60).array("weight"))


def test_regmean_plus_plus_on_a_transformer_and_partial_vectors():
    g = torch.Generator().manual_seed(0)
    model = small_vit(width=8, depth=2, heads=2, generator=g)
    base = Checkpoint.of(model, label="base")
    tuned = [
        Checkpoint.of(
            {n: torch.from_numpy(x) + 0.1 * torch.randn(x.shape, generator=g) for n, x in base.arrays().items()}
        )
        for _ in range(2)
    ]
    vectors = [tuned[0] - base, (tuned[1] - base).restrict("blocks.*")]
    tasks = [
        task(torch.rand(9, 1, 8, 8, generator=g), torch.zeros(9, dtype=torch.long), Head.random(3, 8, generator=g))
        for _ in range(2)
    ]
    grams = grams_in_sequence(model, base, vectors, tasks)
    assert all(g.names == gram(model, base, tasks[0]).names for g in grams)
    assert (base + regmean(vectors, grams=grams)).names == base.names
    with pytest.raises(UsageError, match="2 vectors, 1 tasks"):
        grams_in_sequence(model, base, vectors, tasks[:1])


def test_gradient_gram_of_logistic_regression_is_the_covariance_of_the_labels():
    g = torch.Generator().manual_seed(0)
    model = nn.Linear(4, 3)
    x = torch.randn(30, 4, generator=g)
    labels = torch.randint(3, (30,), generator=g)
    own = task(x, labels, Head(torch.eye(3), torch.zeros(3)))
    p = torch.softmax(model(x).detach(), 1)
    found = gradient_gram(model, Checkpoint.of(model), own).array("weight")
    np.testing.assert_allclose(found, (torch.diag_embed(p) - p[:, :, None] * p[:, None, :]).mean(0), atol=1e-6)
    apart = torch.nn.functional.one_hot(labels, 3) - p
    given = gradient_gram(model, Checkpoint.of(model), own, labels="given").array("weight")
    np.testing.assert_allclose(given, apart.T @ apart / 30, atol=1e-6)
    vit = small_vit(width=8, depth=1, heads=2, generator=g)
    images = task(torch.rand(3, 1, 8, 8, generator=g), torch.zeros(3, dtype=torch.long), Head.random(3, 8, generator=g))
    shapes = {n: s.shape for n, s in gradient_gram(vit, Checkpoint.of(vit), images).spec.items()}
    weights = Checkpoint.of(vit).spec
    assert shapes == {n: (weights[n].shape[0],) * 2 for n in gram(vit, Checkpoint.of(vit), images).names}
