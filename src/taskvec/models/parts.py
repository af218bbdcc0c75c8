"""Parts of a network by what they are: attention projections, MLPs, their biases. Found by module types and names.

Everything that is linear (`Linear`, GPT-2's `Conv1D`, the fused projections of `torch.nn.MultiheadAttention`) belongs to
attention if it lies in a module whose class ends in "Attention" (or "Attn"), and to an MLP if it lies in one of the
network's repeated blocks elsewhere. Cross-attention is neither. Normalisation layers, embeddings, poolers and heads are
never chosen.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..errors import UsageError, some
from ..select import Select, everything
from .functional import aliases, require_torch

if TYPE_CHECKING:
    import torch

Kind = Literal["attention", "mlp"]
ATTENTION = re.compile(
    r"(attention|attn)\d*$|^MH(S)?A$|SelfAttention(Layer|Module)$|^Attention(Module|WithRoPE|Rope|Cl|Downsample)$"
    r"|Attention(Global|PoolFirst)$|^FactorAttn|^XCA$",
    re.I,
)  # a class; the last ones are timm's
CROSS = re.compile(r"cross_?att|^x_?attn|encoder_?att|encdec|token_to_image", re.I)  # a class or a name
OTHER = re.compile(r"mlp|feed_?forward|ffn", re.I)  # a class or a name inside attention that is none of it
HEADS = {"head", "heads", "pooler", "classifier", "attn_pool", "attnpool", "lm_head", "downsample"}  # names
EMBEDDING = re.compile(r"embed|(cls|class|mask|dist|distillation|register)_tokens?$", re.I)  # a name
CLASSIFIERS = {"classifier", "head", "heads"}  # names; an LM head is none: it is edited with its model
ROUTERS = {"router", "gate", "shared_expert_gate"}  # names of what chooses among experts


@dataclass(frozen=True)
class Part:
    """Linear layers of one kind, and which of their parameters.

    Args:
        kind: of which layers.
        weights: their weights.
        biases: their biases.
        within: only parameters whose names it takes, for example those of late layers.
    Example:
        >>> import torch
        >>> block = torch.nn.TransformerEncoderLayer(8, 2, 16)
        >>> Part("attention").names(torch.nn.Sequential(block))
        ['0.self_attn.in_proj_weight', '0.self_attn.out_proj.weight']
    """

    kind: Kind
    weights: bool = True
    biases: bool = False
    within: Select = everything

    def __post_init__(self) -> None:
        if self.kind not in ("attention", "mlp") or not (self.weights or self.biases):
            raise UsageError(
                f"{self.kind!r} is no part of a network with parameters; expected 'attention' or 'mlp', with weights or biases."
            )

    def names(self, module: torch.nn.Module) -> list[str]:
        """The parameters of this part, tied ones under their first name.

        Raises:
            UsageError: the module has none; says what it does have.
        """
        require_torch("Finding the parts of a network")
        first = aliases(module)
        found = [n for kind, name, n in _linear(module) if kind == self.kind and self._takes(name) and self.within(n)]
        if not found:
            kinds = sorted({kind for kind, _, _ in _linear(module) if kind})
            has = (
                f"it has linear layers of: {', '.join(kinds)}"
                if kinds
                else "it has no linear layers in attention modules or in blocks in a list"
            )
            raise UsageError(
                f"{type(module).__name__} has no {self} ({has}; its parameters are {some(list(first))}). "
                "Choose another part, or select parameters by name."
            )
        return list(dict.fromkeys(first[n] for n in found))

    def _takes(self, name: str) -> bool:
        return self.biases if "bias" in name else self.weights

    def __str__(self) -> str:
        what = " and ".join(w for w, said in (("weights", self.weights), ("biases", self.biases)) if said)
        where = "" if self.within is everything else f" in {self.within.text}"
        return f"{what} of {'attention projections' if self.kind == 'attention' else 'MLP layers'}{where}"


def classifiers(module: torch.nn.Module) -> list[str]:
    """Parameters of linear layers that are, by their name or a parent's, the classifier of the whole network.

    Example:
        >>> import torch
        >>> net = torch.nn.ModuleDict({"body": torch.nn.Linear(2, 2), "classifier": torch.nn.Linear(2, 3)})
        >>> classifiers(net)
        ['classifier.weight', 'classifier.bias']
    """
    return [n for _, _, n in _linear(module) if CLASSIFIERS & set(n.split(".")[:-1])]


def kinds(module: torch.nn.Module) -> dict[str, str]:
    """What every parameter is of: attention, mlp (linear layers and their biases), norm, embedding, or other.

    Example:
        >>> import torch
        >>> kinds(torch.nn.Sequential(torch.nn.Embedding(4, 2), torch.nn.LayerNorm(2)))
        {'0.weight': 'embedding', '1.weight': 'norm', '1.bias': 'norm'}
    """
    torch = require_torch("Finding the parts of a network")
    found = {name: kind for kind, _, name in _linear(module) if kind}
    for path, layer in module.named_modules():
        norm = "norm" in type(layer).__name__.lower()
        embedding = isinstance(layer, torch.nn.Embedding) or bool(EMBEDDING.search(path.rpartition(".")[2]))
        for inner, _ in layer.named_parameters(recurse=False):
            kind = "norm" if norm else "embedding" if embedding or EMBEDDING.search(inner) else "other"
            found.setdefault(f"{path}.{inner}" if path else inner, kind)
    return {name: found[name] for name, _ in module.named_parameters(remove_duplicate=False)}


def blocks(module: torch.nn.Module) -> list[str]:
    """The network's repeated blocks, outermost first: members of a list of modules that share no parameter with the rest.

    Example:
        >>> import torch
        >>> layers = [torch.nn.TransformerEncoderLayer(8, 2, 16) for _ in range(2)]
        >>> blocks(torch.nn.ModuleDict({"layers": torch.nn.ModuleList(layers), "norm": torch.nn.LayerNorm(8)}))
        ['layers.0', 'layers.1']
    """
    torch = require_torch("Finding the blocks of a network")
    lists = (torch.nn.ModuleList, torch.nn.ModuleDict)  # which are never called themselves
    found: list[str] = []
    for path, layer in module.named_modules():
        inside = any(path.startswith(f"{b}.") for b in found)
        if path.rpartition(".")[2].isdecimal() and not inside and not isinstance(layer, lists):
            found.append(path)
    homes: dict[int, set[str]] = {}
    for name, p in module.named_parameters(remove_duplicate=False):
        homes.setdefault(id(p), set()).add(next((b for b in found if name.startswith(f"{b}.")), ""))
    shared = {b for at in homes.values() if len(at) > 1 for b in at}
    owned = {b for at in homes.values() for b in at}
    return [b for b in found if b in owned - shared]


def _linear(module: torch.nn.Module) -> Iterator[tuple[str, str, str]]:
    """(kind or "", name within its layer, full name) of every parameter of a linear layer."""
    import torch

    chain: dict[str, list[tuple[str, torch.nn.Module]]] = {}
    for path, layer in module.named_modules():
        parent, _, name = path.rpartition(".")
        chain[path] = above = [*chain[parent], (name, layer)] if path else [("", module)]
        kind = _kind(above)
        own = isinstance(layer, torch.nn.Linear) or type(layer).__name__ == "Conv1D"
        # Attention modules may hold projections of their own: torch's and open_clip's in_proj_weight, BEiT's q_bias.
        own |= kind == "attention" and bool(ATTENTION.search(type(layer).__name__))
        for inner, parameter in layer.named_parameters(recurse=False) if own else ():
            matrix, bias = parameter.dim() == 2 and "weight" in inner, parameter.dim() == 1 and "bias" in inner
            if (matrix or bias) and inner not in ("bias_k", "bias_v"):
                yield kind, inner, f"{path}.{inner}" if path else inner
        if own and kind and hasattr(layer, "parametrizations"):
            raise UsageError(
                f"{path} computes its weight from others (torch.nn.utils.parametrize); select the parameters by name, or remove "
                "the parametrization first."
            )


def _kind(above: list[tuple[str, torch.nn.Module]]) -> str:
    """The kind of the layer that ends this chain of (name, module)."""
    inside, parent = "", ""
    for name, module in above:
        class_ = type(module).__name__
        attends = bool(ATTENTION.search(class_))
        if name in HEADS or name in ROUTERS or CROSS.search(name) or (attends and CROSS.search(class_)):
            return ""
        if attends and name == "multihead_attn" and parent.endswith("DecoderLayer"):  # torch's name for cross-attention
            return ""
        if inside and (OTHER.search(name) or OTHER.search(class_)):
            return ""
        inside = "attention" if attends else inside
        parent = class_
    repeated = any(name.isdecimal() for name, _ in above[:-1])
    return inside or ("mlp" if repeated else "")
