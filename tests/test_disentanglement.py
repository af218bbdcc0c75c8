"""The disentanglement error: cases with known answers, and the definition written out."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from taskvec import report
from taskvec.errors import BaseMismatch, NonFinite, UsageError
from taskvec.methods import ties
from taskvec.models import bind, linearised, plain, tensors
from taskvec.models.vit import small_vit
from taskvec.protocols import addition, disentanglement, geometry
from taskvec.results import Score, read_result
from taskvec.tasks import Head, Split, Task
from taskvec.training import TANGENT, TrainSpec, fit
from taskvec.weights import Checkpoint, TaskVector

torch.set_num_threads(1)
GRID = (-1.0, 0.0, 0.5, 1.0)


def task(name, inputs, head):
    split = Split(inputs, torch.zeros(len(inputs), dtype=torch.long))
    return Task(name, split, split, split, head, tuple("abc"))


@pytest.fixture(scope="module")
def vit():
    g = torch.Generator().manual_seed(0)
    model = small_vit(width=8, depth=2, heads=2, generator=g)
    base = Checkpoint.of(model, label="base")
    noise = np.random.default_rng(0)
    vectors = {
        n: Checkpoint.of({m: a + 0.3 * noise.standard_normal(a.shape).astype(np.float32) for m, a in base.arrays().items()}, label=n) - base
        for n in "xyz"
    }  # fmt: skip
    tasks = [task(n, torch.rand(40, 1, 8, 8, generator=g), Head.random(3, 8, generator=g)) for n in "xyz"]
    return model, base, vectors, tasks


@pytest.mark.parametrize("forward", [plain, linearised])
def test_it_is_its_definition(vit, forward):
    model, base, vectors, tasks = vit
    found = disentanglement(model, base, vectors, tasks, coefficients=GRID, forward=forward)
    assert [p.tasks for p in found.pairs] == [("x", "y"), ("x", "z"), ("y", "z")]
    f, start = bind(model), {n: torch.from_numpy(a) for n, a in base.arrays().items()}
    deltas = {n: {m: torch.from_numpy(a) for m, a in v.arrays().items()} for n, v in vectors.items()}

    def predicted(t, a, b, x, y):
        delta = {m: a * deltas[x][m] + b * deltas[y][m] for m in start}
        with torch.no_grad():
            return t.head(forward(f, start, delta, t.validation.inputs)).argmax(1)

    pair = found.pairs[1]
    for i, a in enumerate(GRID):
        for j, b in enumerate(GRID):
            own = [predicted(tasks[0], a, 0.0, "x", "z"), predicted(tasks[2], 0.0, b, "x", "z")]
            both = [predicted(t, a, b, "x", "z") for t in (tasks[0], tasks[2])]
            xi = sum(float((p != q).float().mean()) for p, q in zip(own, both, strict=True))
            assert found.xi(pair)[i][j] == pytest.approx(xi, abs=0.026), (a, b)  # one input on an edge of two classes
    zero = GRID.index(0.0)
    assert all(pair.parts[0][i][zero] == 0 == pair.parts[1][zero][i] for i in range(4))
    value, low, high = found.at(pair, 1.0, 1.0)
    assert 0 <= low <= value <= high <= 2 and value == found.xi(pair)[3][3]
    assert found.mean(pair) == pytest.approx(np.mean([[found.xi(pair)[i][j] for j in (1, 2, 3)] for i in (1, 2, 3)]))


def test_disjoint_supports_do_not_disturb_each_other():
    """Each input sees one of two blocks of weights, each vector moves one block: the error is exactly 0."""
    model = nn.Linear(6, 3, bias=False)
    base = Checkpoint.of(model, label="base")
    weight = base.array("weight")
    left, right = np.zeros_like(weight), np.zeros_like(weight)
    left[:, :3] = right[:, 3:] = np.random.default_rng(0).standard_normal((3, 3))
    vectors = {n: Checkpoint.of({"weight": weight + d}, label=n) - base for n, d in (("l", left), ("r", right))}
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    inputs = {"l": x * (torch.arange(6) < 3), "r": x * (torch.arange(6) >= 3)}
    head = Head(torch.eye(3), torch.zeros(3))
    tasks = [task(n, inputs[n], head) for n in "lr"]
    for distance in ("prediction", "representation"):
        found = disentanglement(model, base, vectors, tasks, coefficients=GRID, distance=distance)
        assert np.allclose(found.xi(found.pairs[0]), 0, atol=1e-6)
    swapped = disentanglement(model, base, {"l": vectors["r"], "r": vectors["l"]}, tasks, coefficients=GRID)
    assert np.max(swapped.xi(swapped.pairs[0])) > 0.5


def test_representations(vit):
    model, base, vectors, tasks = vit
    found = disentanglement(model, base, vectors, tasks[:3], coefficients=GRID, distance="representation")
    table = np.array(found.xi(found.pairs[0]))
    assert (table >= 0).all() and (table <= 2).all() and table[3][3] > 0


def test_it_is_kept_and_read(vit, tmp_path):
    model, base, vectors, tasks = vit
    found = disentanglement(model, base, vectors, tasks, coefficients=GRID)
    assert read_result(found.write(tmp_path / "xi.json")) == found


def test_what_is_refused(vit):
    model, base, vectors, tasks = vit
    with pytest.raises(UsageError, match="two tasks and one vector for each"):
        disentanglement(model, base, {"x": vectors["x"]}, tasks[:1])
    with pytest.raises(UsageError, match="choose 'prediction'"):
        disentanglement(model, base, vectors, tasks, distance="l2")
    with pytest.raises(UsageError, match="box"):
        disentanglement(model, base, vectors, tasks, coefficients=GRID, box=(3, 4))
    other = Checkpoint.of({n: a + 1 for n, a in base.arrays().items()}, label="other")
    with pytest.raises(BaseMismatch):
        disentanglement(model, other, vectors, tasks)
    with pytest.raises(NonFinite):
        disentanglement(model, base, vectors, tasks, coefficients=(0, 1e38))


def test_tangent_vectors_are_scored_through_the_tangent_model(vit):
    """A protocol with the linearised function: one evaluation for each vector gives the scores of a merge at every point."""
    model, base, _, tasks = vit
    g = torch.Generator().manual_seed(5)
    labels = torch.randint(3, (48,), generator=g)
    inputs = torch.rand(48, 1, 8, 8, generator=g)
    for k in range(3):
        inputs[labels == k, :, k] += 2.0
    split = Split(inputs, labels)
    rows = Task("rows", split, split, split, tasks[0].head, tuple("abc"))
    columns = Task("columns", *[Split(inputs.transpose(2, 3), labels)] * 3, head=tasks[1].head, classes=tuple("abc"))
    spec = TrainSpec(steps=40, lr=1e-2, batch=16)
    made = {t.name: fit(model, base, t, regime=TANGENT, spec=spec).vector for t in (rows, columns)}
    found = addition(model, base, made, [rows, columns], coefficients=(0, 0.5, 1))
    assert found.provenance.settings["forward"] == "linearised"
    own = found.row("fine-tuned").scores["rows"].value
    f, start = bind(model), {n: torch.from_numpy(a) for n, a in base.arrays().items()}
    delta = {n: torch.from_numpy(a) for n, a in made["rows"].arrays().items()}
    expected = (rows.head(linearised(f, start, delta, inputs)).argmax(1) == labels).float().mean()
    assert own == pytest.approx(float(expected)) and own > 0.6
    other = addition(model, base, made, [rows, columns], coefficients=(0, 0.5, 1), forward=plain)
    assert other.row("fine-tuned").scores["rows"].value != own
    standard = {t.name: fit(model, base, t, spec=replace(spec, steps=2)).vector for t in (rows, columns)}
    with pytest.raises(UsageError, match="through different functions"):
        addition(model, base, {"rows": made["rows"], "columns": standard["columns"]}, [rows, columns])
    mixed = made["rows"] + standard["rows"]
    assert mixed.forward == "mixed" and (0.5 * made["rows"]).forward == "linearised" == ties([made["rows"]]).forward


def test_the_file_of_a_tangent_vector_says_so(vit, tmp_path, run_cli):
    _, base, _, _ = vit
    base.save(tmp_path / "base")
    base = Checkpoint.read(tmp_path / "base")
    tau = TaskVector.of({"norm.weight": np.ones(8, np.float32)}, base, label="tau", forward="linearised")
    tau.save(tmp_path / "tau.safetensors")
    assert TaskVector.read(tmp_path / "tau.safetensors").forward == "linearised"
    assert TaskVector.read((2 * tau).save(tmp_path / "two.safetensors")).forward == "linearised"
    lets = ["--let", f"base={tmp_path / 'base'}", "--let", f"tau={tmp_path / 'tau.safetensors'}"]
    code, _, err = run_cli("edit", "base + 0.5 * tau", *lets, "-o", tmp_path / "out")
    assert code == 0 and "trained through the linearised model" in err


def test_how_far_from_linear_a_step_is(vit, tmp_path):
    model, base, vectors, tasks = vit
    small = {n: 1e-3 * v for n, v in vectors.items()}

    def bent(result):
        return [s.nonlinearity for s in result.steps]

    near, far = (geometry(v, base=base, model=model, tasks=tasks) for v in (small, vectors))
    assert all(0 < a < 0.05 and b > 20 * a for a, b in zip(bent(near), bent(far), strict=True))
    assert read_result(far.write(tmp_path / "g.json")) == far
    report.write([far], tmp_path / "g.html")
    page = (tmp_path / "g.html").read_text(encoding="utf-8")
    assert "not linear" in page and "Norms by part" in page and "non-linear advantage" in page
    for step, t in zip(far.steps, tasks, strict=True):
        f, tau = bind(model), vectors[t.name]
        start, delta = tensors(base), tensors(tau)
        z = linearised(f, start, delta, t.validation.inputs)
        hits = int((t.head(z).argmax(1) == t.validation.labels).sum())
        assert step.linearised == Score.share(hits, len(t.validation))
        expected = (step.accuracy.value - step.linearised.value) / (1 - 1 / len(t.classes))
        assert step.advantage == pytest.approx(expected)
    line = nn.Linear(8, 3)
    start = Checkpoint.of(line, label="base")
    tau = Checkpoint.of({n: a + 1 for n, a in start.arrays().items()}, label="t") - start
    split = Split(torch.rand(5, 8), torch.zeros(5, dtype=torch.long))
    linear = Task("t", split, split, split, Head(torch.eye(3), torch.zeros(3)), tuple("abc"))
    assert geometry({"t": tau}, base=start, model=line, tasks=[linear]).steps[0].nonlinearity < 1e-6
    with pytest.raises(UsageError, match="a task for each of"):
        geometry(vectors, base=base, model=model, tasks=tasks[:1])


def test_norms_by_part_and_layer_make_up_the_whole(vit):
    model, base, vectors, _ = vit
    found = geometry(vectors, base=base, model=model)
    for groups in (found.parts, found.layers):
        for i, norm in enumerate(found.norms):
            assert math.sqrt(sum(line[i] ** 2 for line in groups.values())) == pytest.approx(norm)
    assert set(found.parts) == {"attention", "mlp", "norm", "embedding", "other"}  # other: the patches' convolution


def test_overlap_of_singular_directions():
    rng = np.random.default_rng(0)
    base = Checkpoint.of({"w": np.zeros((12, 20), np.float32), "b": np.zeros(12, np.float32)}, label="base")

    def vector(columns: slice, rows: slice) -> TaskVector:
        w = np.zeros((12, 20), np.float32)
        w[rows, columns] = rng.normal(size=w[rows, columns].shape)
        return TaskVector.of({"w": w, "b": rng.normal(size=12).astype(np.float32)}, base, label="t")

    here, there = vector(slice(0, 8), slice(0, 6)), vector(slice(8, 20), slice(6, 12))
    found = geometry({"here": here, "twice": 2 * here, "there": there}, subspace=3)
    np.testing.assert_allclose(found.overlap, [[1, 1, 0], [1, 1, 0], [0, 0, 1]], atol=1e-5)
    assert found.subspace_chance == pytest.approx((3 / 12 + 3 / 20) / 2)
    whole = [vector(slice(0, 20), slice(0, 12)) for _ in range(40)]
    chance = [
        geometry({"a": a, "b": b}, subspace=3).overlap[0][1] for a, b in zip(whole[::2], whole[1::2], strict=True)
    ]
    assert np.mean(chance) == pytest.approx(found.subspace_chance, abs=0.05)
    thin = TaskVector.of(
        {"w": np.outer(rng.normal(size=12), rng.normal(size=20)).astype(np.float32)}, base, label="thin"
    )
    with pytest.raises(UsageError, match="rank 3 or more, with at least 6"):  # two of its three directions are nobody's
        geometry({"here": here, "thin": thin}, subspace=3)
    with pytest.raises(UsageError, match="at least 14 rows"):
        geometry({"here": here}, subspace=7)


def test_vectors_on_the_way(vit):
    model, base, _, tasks = vit
    spec = TrainSpec(steps=20, lr=1e-3, batch=4)
    made = fit(model, base, tasks[0], spec=spec, keep=[1, 10, 20])
    found = geometry({"t": made.vector}, on_the_way={"t": made.kept})
    line = found.on_the_way["t"]
    assert list(line) == [1, 10, 20] and line[20] == pytest.approx(1) and 0 < line[1] < line[10] < 1
    assert line[10] == pytest.approx(made.kept[10].cosine(made.vector))
    assert "On the way to" in report.markdown([found])
    with pytest.raises(UsageError, match="Use the same names"):
        geometry({"t": made.vector}, on_the_way={"u": made.kept})
