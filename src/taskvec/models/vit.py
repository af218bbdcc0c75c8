"""A readable vision transformer for small images; parameter names follow timm's (`blocks.0.attn.qkv.weight`, ...)."""

from __future__ import annotations

import math

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
    generator: torch.Generator,
) -> nn.Module:
    """A pre-norm vision transformer encoder: images ``[n, channels, image, image]`` -> features ``[n, width]``.

    The class token after the last norm is the feature; there is no head. Weights are drawn from `generator` alone.

    Raises:
        UsageError: `image` is no multiple of `patch`, or `width` no multiple of `heads`.
    Reference: Dosovitskiy et al. 2020, arXiv:2010.11929, section 3.1.
    Example:
        >>> vit = small_vit(width=32, depth=1, generator=torch.Generator().manual_seed(0))
        >>> vit(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 32])
    """
    if image % patch or width % heads:
        raise UsageError(
            f"small_vit: image {image} must be a multiple of patch {patch}, and width {width} of heads {heads}."
        )
    with torch.device("meta"):  # building there draws nothing from the global generator
        vit = _VisionTransformer(image, channels, patch, width, depth, heads, round(mlp_ratio * width))
    vit.to_empty(device="cpu")
    for module in vit.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear | nn.Conv2d):
            bound = 1 / math.sqrt(module.weight[0].numel())
            nn.init.uniform_(module.weight, -bound, bound, generator=generator)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    nn.init.normal_(vit.cls_token, std=0.02, generator=generator)
    nn.init.normal_(vit.pos_embed, std=0.1, generator=generator)
    return vit


class _VisionTransformer(nn.Module):
    def __init__(self, image: int, channels: int, patch: int, width: int, depth: int, heads: int, hidden: int):
        super().__init__()
        self.patch_embed = _PatchEmbed(channels, patch, width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, (image // patch) ** 2 + 1, width))
        self.blocks = nn.Sequential(*(_Block(width, heads, hidden) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)  # [n, patches, width]
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        return self.norm(self.blocks(x))[:, 0]


class _PatchEmbed(nn.Module):
    def __init__(self, channels: int, patch: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class _Block(nn.Module):
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
