"""A readable vision transformer for small images; parameter names follow timm's (`blocks.0.attn.qkv.weight`, ...)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import UsageError


def small_vit(
    *,
    image: int = 8,
    channels: int = 1,
    patch: int = 2,
    width: int = 64,
    depth: int = 3,
    heads: int = 4,
    mlp_ratio: float = 2.0,
    pool: Literal["class", "mean"] = "class",
    generator: torch.Generator,
) -> VisionTransformer:
    """A pre-norm vision transformer encoder: images ``[n, channels, image, image]`` -> features ``[n, width]``.

    The feature is the class token after the last norm, or the mean of the patch tokens there (`pool`); there is no head.
    Weights are drawn from `generator` alone.

    Raises:
        UsageError: sizes below 1, `image` no multiple of `patch`, `width` no multiple of `heads`, or an unknown `pool`.
    Reference: Dosovitskiy et al. 2020, arXiv:2010.11929, section 3.1.
    Example:
        >>> vit = small_vit(width=32, depth=1, generator=torch.Generator().manual_seed(0))
        >>> vit(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 32])
    """
    whole = (image, channels, patch, width, depth, heads)
    if not all(isinstance(n, int) and n >= 1 for n in whole) or not mlp_ratio > 0 or image % patch or width % heads:
        raise UsageError(
            f"small_vit: image {image} must be a multiple of patch {patch}, and width {width} of heads {heads}; channels "
            f"({channels}), depth ({depth}) and mlp_ratio ({mlp_ratio}) must be positive."
        )
    if pool not in ("class", "mean"):
        raise UsageError(f"small_vit: pool is {pool!r}; it must be 'class' or 'mean'.")
    with torch.device("meta"):  # building there draws nothing from the global generator
        vit = VisionTransformer(image, channels, patch, width, depth, heads, mlp_ratio, pool)
    draw(vit, generator)
    nn.init.normal_(vit.cls_token, std=0.02, generator=generator)
    nn.init.normal_(vit.pos_embed, std=0.1, generator=generator)
    return vit


def draw(module: nn.Module, generator: torch.Generator) -> None:
    r"""Give a module that was built on the meta device memory and initial weights, from `generator` alone.

    Linear and convolutional weights are uniform on :math:`\pm 1/\sqrt{fan_{in}}`, biases zero; parameters of other kinds are left
    to the caller.
    """
    module.to_empty(device="cpu")
    for part in module.modules():
        if isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Linear | nn.Conv2d):
            bound = 1 / math.sqrt(part.weight[0].numel())
            nn.init.uniform_(part.weight, -bound, bound, generator=generator)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


class VisionTransformer(nn.Module):
    """Made by `small_vit`; the sizes are there as attributes."""

    def __init__(
        self, image: int, channels: int, patch: int, width: int, depth: int, heads: int, mlp_ratio: float, pool: str
    ) -> None:
        super().__init__()
        self.image, self.channels, self.patch, self.width = image, channels, patch, width
        self.depth, self.heads, self.mlp_ratio, self.pool = depth, heads, mlp_ratio, pool
        self.patch_embed = _PatchEmbed(channels, patch, width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, (image // patch) ** 2 + 1, width))
        self.blocks = nn.Sequential(*(Block(width, heads, round(mlp_ratio * width)) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(x)
        return x[:, 0] if self.pool == "class" else x[:, 1:].mean(1)

    def tokens(self, x: Tensor, kept: Tensor | None = None) -> Tensor:
        """The class token and the patch tokens after the last norm, ``[n, 1 + patches, width]``.

        Args:
            x: images.
            kept: ``[n, k]``, the patches of each image that are seen (row by row from the top left); the others take no
                part in the computation, and the result is ``[n, 1 + k, width]``.
        """
        x = self.patch_embed(x)  # [n, patches, width]
        if kept is None:
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        else:
            x = x + self.pos_embed[:, 1:]
            x = x.gather(1, kept[:, :, None].expand(-1, -1, x.shape[2]))
            x = torch.cat([(self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1), x], dim=1)
        return self.norm(self.blocks(x))


class _PatchEmbed(nn.Module):
    def __init__(self, channels: int, patch: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class Block(nn.Module):
    """Attention and MLP, each on normalised tokens and added to them: ``[n, length, width]`` -> the same."""

    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = _Mlp(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        # Written out, not a fused kernel: those lack the forward-mode derivative that linearised models need.
        share = (q @ k.transpose(-2, -1) / math.sqrt(width // self.heads)).softmax(dim=-1)
        return self.proj((share @ v).transpose(1, 2).reshape(n, length, width))


class _Mlp(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))
