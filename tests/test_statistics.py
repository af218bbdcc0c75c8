"""Fisher information and Gram matrices: closed forms and definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from taskvec.errors import UsageError
from taskvec.models.vit import small_vit
from taskvec.tasks import Head, Split, Task
from taskvec.training.statistics import fisher, gram
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
