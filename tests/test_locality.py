"""The tangent kernel against explicit Jacobians, and locality where the answer is known."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

from taskvec import report
from taskvec.errors import UsageError
from taskvec.models import bind
from taskvec.models.vit import small_vit
from taskvec.protocols import locality, tangent_kernel
from taskvec.results import read_result
from taskvec.tasks import Head, Split, Task
from taskvec.weights import Checkpoint

torch.set_num_threads(1)


@pytest.mark.parametrize("trace", [False, True])
def test_the_kernel_is_that_of_the_jacobian(trace, monkeypatch):
    import sys

    monkeypatch.setattr(sys.modules["taskvec.protocols.locality"], "HELD", 4 * 5 * 300)  # several groups of parameters
    model = small_vit(width=8, depth=1, heads=2, generator=torch.Generator().manual_seed(0))
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    base = {n: p.detach() for n, p in model.named_parameters()}
    names = [n for n in base if "attn" in n] if trace else list(base)
    found = tangent_kernel(bind(model), base, names, x, trace=trace)
    jacobian = jacrev(lambda p: functional_call(model, {**base, **p}, (x,)))({n: base[n] for n in names})
    flat = torch.cat([j.flatten(2) for j in jacobian.values()], 2).double()  # [n, d, parameters]
    if trace:
        expected = torch.einsum("ndp,mdp->nm", flat, flat) / 8
    else:
        expected = torch.einsum("np,mp->nm", flat.sum(1), flat.sum(1)) / 8
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def task(name, inputs):
    split = Split(inputs, torch.zeros(len(inputs), dtype=torch.long))
    return Task(name, split, split, split, Head(torch.eye(3), torch.zeros(3)), tuple("abc"))


def test_disjoint_inputs_are_local_and_alike_ones_are_not(tmp_path):
    model = nn.Linear(8, 3, bias=False)
    base = Checkpoint.of(model, label="base")
    x = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    left, right = task("left", x * (torch.arange(8) < 4)), task("right", x * (torch.arange(8) >= 4))
    apart = locality(model, base, [left, right], samples=20, eigenfunctions=4)
    assert apart.across < 1e-12 and apart.energy[0][1] < 1e-12 and 0.3 < apart.energy[0][0] < 3
    assert apart.similarity[0][1] < 1e-6 < apart.similarity[0][0]
    alike = locality(model, base, [left, task("again", left.validation.inputs.flip(0))], samples=20, eigenfunctions=4)
    assert 0.5 < alike.across < 2
    assert read_result(apart.write(tmp_path / "l.json")) == apart
    report.write([apart, alike], tmp_path / "l.html")
    assert "perfectly local" in (tmp_path / "l.html").read_text(encoding="utf-8")
    assert locality(model, base, [left, right], samples=20, eigenfunctions=4).energy == apart.energy


def test_what_is_refused():
    model = nn.Linear(8, 3)
    base = Checkpoint.of(model, label="base")
    few = task("few", torch.rand(10, 8))
    with pytest.raises(UsageError, match="at least two tasks"):
        locality(model, base, [few], samples=2, eigenfunctions=1)
    with pytest.raises(UsageError, match=r"too few: \['few'\]"):
        locality(model, base, [few, task("many", torch.rand(99, 8))], samples=20)
    with pytest.raises(UsageError, match="between 1 and 3 eigenfunctions"):
        locality(model, base, [few, task("x", torch.rand(10, 8))], samples=3, eigenfunctions=5)
