"""Tensors that are known as products of two thin matrices: what LoRA adapters and their sums hold."""

from __future__ import annotations

import math

import numpy as np

from . import graph
from .adapter import AdapterSource
from .graph import Node

Pair = tuple[np.ndarray, np.ndarray]


def factors(node: Node, name: str, shape: tuple[int, ...]) -> Pair | None:
    """Two matrices in float64, ``[rows, r]`` and ``[r, columns]``, whose product is a tensor (a matrix of its first axis).

    Of a sum of adapters they are stacked, without cross terms; of a tensor that is not there r is zero. None where the tensor
    is no such sum.
    """
    found = _pairs(node, name)
    if found is None:
        return None
    if not found:
        return np.zeros((shape[0], 0)), np.zeros((0, math.prod(shape[1:])))
    return np.concatenate([a for a, _ in found], axis=1), np.concatenate([b for _, b in found], axis=0)


def rank(node: Node, name: str) -> int | None:
    """The rank of a tensor's factors, from headers; None where `factors` gives None."""
    if node.expansion is not None:
        return rank(node.expansion, name)
    if name not in node.spec:
        return 0
    if node.op in (graph.RESTRICT, graph.REBASE):
        return rank(node.inputs[0], name)
    if node.op is graph.RENAME:
        return rank(node.inputs[0], node.params["old"][name])
    if node.op is graph.COMBINE:
        parts = [rank(inner, name) for inner in node.inputs]
        return None if None in parts else sum(p for p in parts if p is not None)
    source = node.source
    return source.factors[name].rank if isinstance(source, AdapterSource) and name in source.factors else None


def _pairs(node: Node, name: str) -> list[Pair] | None:
    """The pairs whose products add up to the tensor: none for a zero; None if it is no sum of products."""
    if node.expansion is not None:
        return _pairs(node.expansion, name)
    if name not in node.spec:
        return []
    if node.op in (graph.RESTRICT, graph.REBASE):
        return _pairs(node.inputs[0], name)
    if node.op is graph.RENAME:
        return _pairs(node.inputs[0], node.params["old"][name])
    if node.op is graph.COMBINE:
        out: list[Pair] = []
        for inner, c in graph.terms(node):
            found = _pairs(inner, name)
            if found is None:
                return None
            out += [(c * left, right) for left, right in found]
        return out
    source = node.source
    return [source.matrices(name)] if isinstance(source, AdapterSource) and name in source.factors else None
