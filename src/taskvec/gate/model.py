"""The network: one embedding of molecules for all properties, and for each property its way to a common flat frame and back."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import BaseMismatch, UnknownName, UsageError, nearest, some
from .inputs import ATOM_WIDTH, BITS, BOND_WIDTH, Embedding, Graphs, Inputs, Rows

BATCH = 512  # molecules at a time where nothing is learnt


@dataclass(frozen=True)
class Shape:
    """Sizes of a network.

    Args:
        embedding: what reads the molecules: "graph", "fingerprint", or "rows" of numbers.
        inputs: width of a row, for "rows" alone.
        width: of the shared embedding and of hidden layers.
        latent: of each property's latent.
        frame: of the common flat frame.
        depth: steps of message passing, or hidden layers over rows.
    """

    embedding: Embedding = "graph"
    inputs: int = 0
    width: int = 96
    latent: int = 32
    frame: int = 32
    depth: int = 3

    def __post_init__(self) -> None:
        if self.embedding not in ("graph", "fingerprint", "rows"):
            raise UsageError(f"the embedding is graph, fingerprint or rows, not {self.embedding!r}.")
        if min(self.width, self.latent, self.frame, self.depth) < 1 or (self.embedding == "rows" and self.inputs < 1):
            raise UsageError(f"all sizes of a network are at least 1; got {self}.")


class MessagePassing(nn.Module):
    r"""Directed message passing: bonds carry states that learn from the bonds that lead to them, but not from their own way back.

    :math:`h^0_{vw} = \rho(W_i [x_v, e_{vw}])`, :math:`h^{k+1}_{vw} = \rho(h^0_{vw} + W_m \sum_{u \in N(v) \setminus w} h^k_{uv})`, then
    :math:`a_v = \rho(W_o [x_v, \sum_u h_{uv}])`, and of a molecule the mean and the sum of its atoms. The network of
    arXiv:1904.01561, in its plainest form; papers on GATE use that family [recalled].
    """

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.depth = depth
        self.start = nn.Linear(ATOM_WIDTH + BOND_WIDTH, width)
        self.message = nn.Linear(width, width)
        self.atom = nn.Linear(ATOM_WIDTH + width, width)
        self.out = nn.Linear(2 * width, width)

    def forward(self, graphs: Graphs) -> torch.Tensor:
        """-> ``[n, width]``."""
        first = torch.relu(self.start(torch.cat([graphs.atoms[graphs.source], graphs.bonds], 1)))
        state, atoms, width = first, len(graphs.atoms), self.message.out_features
        for _ in range(self.depth - 1):
            arriving = state.new_zeros(atoms, width).index_add(0, graphs.goal, state)
            back = state.reshape(-1, 2, width).flip(1).reshape(-1, width)  # bond 2k and 2k + 1 change places
            state = torch.relu(first + self.message(arriving[graphs.source] - back))
        arriving = state.new_zeros(atoms, width).index_add(0, graphs.goal, state)
        each = torch.relu(self.atom(torch.cat([graphs.atoms, arriving], 1)))
        total = each.new_zeros(len(graphs), width).index_add(0, graphs.molecule, each)
        size = graphs.first_atom.diff().clamp(min=1)[:, None]
        return self.out(torch.cat([total / size, total / 20], 1))  # about 20 heavy atoms: both halves of one size


class Perceptron(nn.Sequential):
    """Linear layers with SiLU between them."""

    def __init__(self, *sizes: int) -> None:
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Linear(before, after), nn.SiLU()]
        super().__init__(*layers[:-1])


class RowEmbedding(nn.Module):
    """Rows of numbers (or fingerprints) -> ``[n, width]``."""

    def __init__(self, inputs: int, width: int, depth: int) -> None:
        super().__init__()
        self.layers = Perceptron(inputs, *[width] * depth)

    def forward(self, rows: Rows) -> torch.Tensor:
        return self.layers(rows.values)


def embedding_of(shape: Shape) -> nn.Module:
    if shape.embedding == "graph":
        return MessagePassing(shape.width, shape.depth)
    return RowEmbedding(BITS if shape.embedding == "fingerprint" else shape.inputs, shape.width, shape.depth)


class Property(nn.Module):
    """The modules of one property, and its scale: standardised labels times `std` plus `mean` are in the target's own units."""

    def __init__(self, shape: Shape, mean: float, std: float) -> None:
        super().__init__()
        self.mean, self.std = float(mean), float(std)
        self.encoder = Perceptron(shape.width, shape.width, shape.latent)
        self.transfer = Perceptron(shape.latent, shape.width, shape.frame)
        self.inverse = Perceptron(shape.frame, shape.width, shape.latent)
        self.head = Perceptron(shape.latent, shape.latent, 1)

    def standardised(self, values: np.ndarray | Sequence[float]) -> torch.Tensor:
        scaled = (np.asarray(values, np.float64) - self.mean) / self.std
        return torch.from_numpy(scaled.astype(np.float32))

    def own_units(self, outputs: torch.Tensor) -> np.ndarray:
        return outputs.double().numpy() * self.std + self.mean


class Gate(nn.Module):
    """A shared embedding and the properties that were learnt on it. `sources` were pre-trained together, the others added later.

    Args:
        shape: the sizes.
        embedding: the shared embedding.
        properties: by name, in the order in which they came.
        sources: which of them were pre-trained.
    """

    def __init__(
        self, shape: Shape, embedding: nn.Module, properties: Mapping[str, Property], sources: Sequence[str]
    ) -> None:
        super().__init__()
        self.shape, self.names, self.sources = shape, tuple(properties), tuple(sources)
        self.embedding = embedding
        self.modules_by_place = nn.ModuleList(properties.values())  # names may hold dots, which state dicts cannot

    def of(self, name: str) -> Property:
        """The modules of one property.

        Raises:
            UnknownName: the network has no such property.
        """
        if name not in self.names:
            raise UnknownName(f"no property {name!r}; there are {some(self.names, 20)}.{nearest(name, self.names)}")
        return self.modules_by_place[self.names.index(name)]  # type: ignore[return-value]

    @property
    def properties(self) -> dict[str, Property]:
        return {n: self.of(n) for n in self.names}

    def with_property(self, name: str, modules: Property) -> Gate:
        """The same network, all modules shared, and one more property.

        Raises:
            UsageError: there is a property of that name.
        """
        if name in self.names:
            raise UsageError(f"the network has a property {name!r} already. Give the new one another name.")
        return Gate(self.shape, self.embedding, {**self.properties, name: modules}, self.sources)

    def joined(self, other: Gate) -> Gate:
        """The same network with what was added to `other`, which grew from the same sources elsewhere.

        Raises:
            BaseMismatch: the embedding or a property that both have differs in a bit.
        """
        if self.shape != other.shape or not _same(self.embedding, other.embedding):
            raise BaseMismatch("cannot join two networks: their embeddings differ. Add to one pre-trained network.")
        new = {n: p for n, p in other.properties.items() if n not in self.names}
        for name in set(self.names) & set(other.names):
            a, b = self.of(name), other.of(name)
            if (a.mean, a.std) != (b.mean, b.std) or not _same(a, b):
                raise BaseMismatch(f"cannot join two networks: {name!r} differs. Give one of the two another name.")
        return Gate(self.shape, self.embedding, {**self.properties, **new}, self.sources)


def _same(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(t, theirs[n]) for n, t in ours.items())


def seeded(seed: int, make: Any) -> Any:
    """``make()`` with torch's initial weights drawn from this seed; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def embed(embedding: nn.Module, inputs: Inputs, *, batch: int = BATCH) -> torch.Tensor:
    """The shared embedding of all inputs, without gradients: ``[n, width]``."""
    with torch.inference_mode():
        parts = [embedding(inputs.take(range(i, min(i + batch, len(inputs))))) for i in range(0, len(inputs), batch)]
    return torch.cat(parts) if parts else torch.empty(0)


def predict(model: Gate, inputs: Inputs, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    r"""Predictions :math:`h_t(z_t)` in the targets' own units, float64 ``[n]`` for each property.

    A property's numbers are the same bits whatever was added after it.

    Raises:
        UnknownName: the network has no such property.
    """
    chosen = {n: model.of(n) for n in (model.names if names is None else names)}
    shared = embed(model.embedding, inputs)
    with torch.inference_mode():
        return {n: p.own_units(p.head(p.encoder(shared))[:, 0]) for n, p in chosen.items()}


def routed(model: Gate, inputs: Inputs, target: str, source: str) -> np.ndarray:
    r"""Predictions of `target` by the way through the latent of `source`: :math:`h_t(T_t^{-1}(T_s(z_s)))`, in own units."""
    t, s = model.of(target), model.of(source)
    shared = embed(model.embedding, inputs)
    with torch.inference_mode():
        return t.own_units(t.head(t.inverse(s.transfer(s.encoder(shared))))[:, 0])
