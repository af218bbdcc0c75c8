"""What a pre-training minimises: one function for each way, from an encoder to an `Objective`."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ..models.vit import VisionTransformer


def _nothing(done: float) -> None:
    pass


@dataclass(frozen=True, eq=False)
class Objective:
    """What a pre-training minimises.

    Args:
        parts: what learns beside the encoder and is thrown away afterwards.
        loss: ``(views, labels, generator) -> scalar``, of one batch.
        views: how often each image is shown, every time augmented anew.
        after: called after each update with the share of the run that is done.
    """

    parts: nn.Module
    loss: Callable[[list[Tensor], Tensor | None, torch.Generator], Tensor]
    views: int = 1
    after: Callable[[float], None] = _nothing


Build = Callable[["nn.Module", "Tensor", int, "torch.Generator"], Objective]


def supervised(encoder: nn.Module, example: Tensor, classes: int, generator: torch.Generator) -> Objective:
    r"""Cross-entropy of a linear head, :math:`-\log \operatorname{softmax}(W f(x) + b)_y`.

    Args:
        encoder: inputs -> features; learns.
        example: one input ``[1, ...]``.
        classes: how many labels there are.
        generator: draws the head.
    Raises:
        UsageError: there are no labels.
    """
    from torch.nn.functional import cross_entropy

    if not classes:
        raise UsageError("supervised pre-training needs labels=..., one for each input.")
    head = _mlp([_width(encoder, example), classes], generator)

    def loss(views: list[Tensor], labels: Tensor | None, generator: torch.Generator) -> Tensor:
        assert labels is not None  # there are classes
        return cross_entropy(head(encoder(views[0])), labels)

    return Objective(head, loss)


def masked(
    encoder: nn.Module, example: Tensor, classes: int, generator: torch.Generator, *, share: float = 0.75,
    width: int = 64, depth: int = 1,
) -> Objective:  # fmt: skip
    r"""Masked auto-encoder: from the patches it sees, the encoder and a small decoder predict those it does not.

    :math:`\frac{1}{|M|} \sum_{i \in M} \lVert d(f(x_{\bar M}))_i - \hat{x}_i \rVert^2 / p`, where M are the hidden patches, drawn
    anew for each image, and :math:`\hat{x}_i` the p values of a patch, less their mean, over their standard deviation. Hidden
    patches take no part in the encoder's computation.

    Args:
        encoder: made by `small_vit`; learns.
        example: one input ``[1, ...]``.
        classes: not used.
        generator: draws the decoder.
        share: of the patches that are hidden.
        width, depth: of the decoder, a transformer with 4 heads.
    Reference: He et al. 2021, arXiv:2111.06377 (the decoder here is smaller, and its positions are learnt).
    """
    import torch
    from torch import nn

    from ..models.vit import Block, draw

    vit = _vision_transformer(encoder, "masked")
    patches = (vit.image // vit.patch) ** 2
    seen = patches - round(share * patches)
    if not 0 < seen < patches:
        raise UsageError(
            f"masked: a share of {share} of {patches} patches leaves {seen} to see; it must be 1 to {patches - 1}."
        )
    with torch.device("meta"):
        decoder = nn.ModuleDict(
            {
                "embed": nn.Linear(vit.width, width),
                "blocks": nn.Sequential(*(Block(width, 4, 2 * width) for _ in range(depth))),
                "norm": nn.LayerNorm(width),
                "pixels": nn.Linear(width, vit.channels * vit.patch**2),
            }
        )
        decoder.register_parameter("hidden", nn.Parameter(torch.empty(1, 1, width)))
        decoder.register_parameter("position", nn.Parameter(torch.empty(1, patches + 1, width)))
    draw(decoder, generator)
    hidden, position = decoder.get_parameter("hidden"), decoder.get_parameter("position")
    nn.init.normal_(hidden, std=0.02, generator=generator)
    nn.init.normal_(position, std=0.1, generator=generator)

    def loss(views: list[Tensor], labels: Tensor | None, generator: torch.Generator) -> Tensor:
        x = views[0]
        order = torch.rand(len(x), patches, generator=generator).argsort(1)
        kept, lost = order[:, :seen], order[:, seen:]
        tokens = decoder["embed"](vit.tokens(x, kept))
        filled = torch.cat([tokens, hidden.expand(len(x), patches - seen, -1)], dim=1)
        # Token i + 1 of the result is patch i again: where it went is the inverse of the permutation.
        back = torch.cat([torch.zeros(len(x), 1, dtype=torch.long), order.argsort(1) + 1], dim=1)
        filled = filled.gather(1, back[:, :, None].expand(-1, -1, width)) + position
        made = decoder["pixels"](decoder["norm"](decoder["blocks"](filled)))[:, 1:]
        wanted = patches_of(x, vit.patch)
        wanted = (wanted - wanted.mean(2, keepdim=True)) / (wanted.var(2, keepdim=True) + 1e-4).sqrt()
        wrong = (made - wanted).square().mean(2)  # [n, patches]
        return wrong.gather(1, lost).mean()

    return Objective(decoder, loss)


def self_distilled(
    encoder: nn.Module, example: Tensor, classes: int, generator: torch.Generator, *, prototypes: int = 256,
    hidden: int = 256, bottleneck: int = 64, student: float = 0.1, teacher: float = 0.04, momentum: float = 0.99,
    centring: float = 0.9, local: int = 2, window: float = 0.5,
) -> Objective:  # fmt: skip
    r"""Self-distillation without labels: a student predicts what its own slow average says of another view of the image.

    :math:`-\sum_{v \ne u} P_t(x_u) \log P_s(x_v)` with :math:`P_s = \operatorname{softmax}(g_s(x) / \tau_s)` and
    :math:`P_t = \operatorname{softmax}((g_t(x) - c) / \tau_t)`; u are two views, v those and `local` windows of patches of them.
    The teacher is :math:`\theta_t \leftarrow m \theta_t + (1 - m) \theta_s` and gets no gradient; the centre c is the running
    mean of its outputs, against collapse.

    Args:
        encoder: inputs -> features; learns.
        example: one input ``[1, ...]``.
        classes: not used.
        generator: draws the head.
        prototypes: outputs of g.
        hidden, bottleneck: widths of the head g, a perceptron whose output has length 1 before the last, linear layer.
        student, teacher: temperatures :math:`\tau_s` and :math:`\tau_t`.
        momentum: m at the start; it rises to 1 along a half cosine.
        centring: momentum of c.
        local: smaller views per image, for the student alone; none where the encoder is not made by `small_vit`.
        window: side of a local view, relative to the image.
    Reference: Caron et al. 2021, arXiv:2104.14294 (there local views are crops of the pixels; here windows of the patches).
    """
    import torch
    from torch.nn.functional import normalize

    from ..models.vit import VisionTransformer

    width = _width(encoder, example)
    head = _mlp([width, hidden, hidden, bottleneck], generator)
    last = _mlp([bottleneck, prototypes], generator, bias=False)
    parts = torch.nn.ModuleDict({"head": head, "last": last})
    slow_encoder, slow_parts = copy.deepcopy(encoder), copy.deepcopy(parts)
    for t in (*slow_encoder.parameters(), *slow_parts.parameters()):
        t.requires_grad_(False)
    centre: list[
        Tensor
    ] = []  # the first batch's mean at first: from zero, the teacher would begin with one answer for all

    def scores(parts: Any, features: Tensor) -> Tensor:
        # Prototypes of length 1, as the paper fixes the norm of its weight-normalised last layer.
        return normalize(parts["head"](features), dim=1) @ normalize(parts["last"][0].weight, dim=1).T

    def loss(views: list[Tensor], labels: Tensor | None, generator: torch.Generator) -> Tensor:
        with torch.no_grad():
            said = [scores(slow_parts, slow_encoder(v)) for v in views]
            now = torch.cat(said).mean(0, keepdim=True)
            centre[:] = centre or [now]
            sure = [((s - centre[0]) / teacher).softmax(1) for s in said]
            centre[0] = centring * centre[0] + (1 - centring) * now
        guesses = [(scores(parts, encoder(v)) / student).log_softmax(1) for v in views]
        if isinstance(encoder, VisionTransformer):
            for i in range(local):
                kept = windows(len(views[0]), encoder.image // encoder.patch, window, generator)
                tokens = encoder.tokens(views[i % len(views)], kept)
                features = tokens[:, 0] if encoder.pool == "class" else tokens[:, 1:].mean(1)
                guesses.append((scores(parts, features) / student).log_softmax(1))
        pairs = [(t, g) for i, t in enumerate(sure) for j, g in enumerate(guesses) if i != j]
        return torch.stack([-(t * g).sum(1).mean() for t, g in pairs]).mean()

    def follow(done: float) -> None:
        m = 1 - (1 - momentum) * (math.cos(math.pi * done) + 1) / 2
        fast = (*encoder.parameters(), *parts.parameters())
        with torch.no_grad():
            for s, t in zip((*slow_encoder.parameters(), *slow_parts.parameters()), fast, strict=True):
                s.mul_(m).add_(t, alpha=1 - m)

    return Objective(parts, loss, views=2, after=follow)


def contrastive(
    encoder: nn.Module, example: Tensor, classes: int, generator: torch.Generator, *, temperature: float = 0.2,
    hidden: int = 256, out: int = 64,
) -> Objective:  # fmt: skip
    r"""Contrastive learning: two views of an image are to be nearer to each other than to all others of the batch.

    NT-Xent, the mean over all 2 n views of
    :math:`-\log \frac{\exp(z_i \cdot z_j / \tau)}{\sum_{k \ne i} \exp(z_i \cdot z_k / \tau)}`, with j the other view of the same
    image and z the output of a perceptron on the features, scaled to length 1.

    Args:
        encoder: inputs -> features; learns.
        example: one input ``[1, ...]``.
        classes: not used.
        generator: draws the perceptron.
        temperature: :math:`\tau`.
        hidden, out: widths of the perceptron.
    Reference: Chen et al. 2020, arXiv:2002.05709.
    """
    import torch
    from torch.nn.functional import cross_entropy, normalize

    head = _mlp([_width(encoder, example), hidden, out], generator)

    def loss(views: list[Tensor], labels: Tensor | None, generator: torch.Generator) -> Tensor:
        n = len(views[0])
        z = normalize(head(encoder(torch.cat(views))), dim=1)
        alike = (z @ z.T / temperature).masked_fill(torch.eye(2 * n, dtype=torch.bool), -math.inf)
        return cross_entropy(alike, (torch.arange(2 * n) + n) % (2 * n))

    return Objective(head, loss, views=2)


PRETRAININGS: Mapping[str, Build] = MappingProxyType(
    {"supervised": supervised, "masked": masked, "self-distilled": self_distilled, "contrastive": contrastive}
)


def patches_of(x: Tensor, patch: int) -> Tensor:
    """Images ``[n, channels, h, w]`` -> their patches, row by row, ``[n, patches, channels * patch * patch]``."""
    n, channels, h, w = x.shape
    x = x.reshape(n, channels, h // patch, patch, w // patch, patch)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(n, (h // patch) * (w // patch), -1)


def windows(n: int, side: int, share: float, generator: torch.Generator) -> Tensor:
    """For each of n images of ``side * side`` patches, those in a square window at a random place, ``[n, k]``."""
    import torch

    size = min(side, max(1, round(share * side)))
    corner = torch.randint(side - size + 1, (n, 2), generator=generator)
    step = torch.arange(size)
    rows, columns = corner[:, :1] + step, corner[:, 1:] + step
    return (rows[:, :, None] * side + columns[:, None, :]).flatten(1)


def _mlp(widths: list[int], generator: torch.Generator, *, bias: bool = True) -> nn.Sequential:
    import torch
    from torch import nn

    from ..models.vit import draw

    with torch.device("meta"):
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(widths):
            layers += [nn.Linear(a, b, bias=bias), nn.GELU()]
        made = nn.Sequential(*layers[:-1])
    draw(made, generator)
    return made


def _width(encoder: nn.Module, example: Tensor) -> int:
    import torch

    with torch.no_grad():
        return encoder(example).shape[-1]


def _vision_transformer(encoder: nn.Module, how: str) -> VisionTransformer:
    from ..models.vit import VisionTransformer

    if not isinstance(encoder, VisionTransformer):
        raise UsageError(
            f"{how} pre-training hides patches, which takes a model of small_vit; got {type(encoder).__name__}."
        )
    return encoder
