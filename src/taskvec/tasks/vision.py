"""Vision tasks that need no download: scikit-learn's handwritten digits, seen through different domains."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from ..errors import InputError, UnknownName, UsageError, missing_extra, nearest
from ..models.functional import require_torch
from .task import Head, Split, Task

if TYPE_CHECKING:
    import torch

# 1,797 images in all; the rest, 347, is the test part. Validation is larger than the papers' 10 % of the training data,
# which would leave 5 images per class: too few to choose a coefficient on.
PARTS: Mapping[str, int] = MappingProxyType({"pretrain": 700, "train": 500, "validation": 250})

Transform = Callable[["torch.Tensor"], "torch.Tensor"]  # images [n, 1, 8, 8], values 0..1 -> the same shape

DOMAINS: Mapping[str, Transform] = MappingProxyType(
    {
        "plain": lambda x: x,
        "rotated": lambda x: x.rot90(1, (2, 3)),
        "mirrored": lambda x: x.flip(3),
        "inverted": lambda x: 1 - x,
        "faint": lambda x: 0.3 * x,
        "shifted": lambda x: x.roll(3, 3),
    }
)


def digits(
    head: Head | None = None,
    *,
    domain: str = "plain",
    keep: Collection[int] = range(10),
    part: Literal["pretrain", "train"] = "train",
    seed: int = 0,
    name: str | None = None,
) -> Task:
    """Handwritten digits (UCI "Optical Recognition of Handwritten Digits", as scikit-learn ships them), 8 x 8 pixels.

    A seeded permutation cuts the images into disjoint parts: 700 to pre-train, 500 to fine-tune, 250 for validation,
    347 for test. All tasks of one seed share the parts, so no task is tested on an image that any vector has seen.

    Args:
        head: ten rows, one per digit; None if it is still to be made.
        domain: one of `DOMAINS`, or several joined by "+", applied from left to right ("mirrored+faint").
        keep: only these digits; labels stay 0..9.
        part: which part to train on.
        seed: chooses the permutation.
        name: what tables call the task, else the domain.
    Raises:
        UnknownName: no such domain.
        UsageError: a digit outside 0..9.
        InputError: a split has no sample of the digits asked for.
    """
    torch = require_torch("The digits task")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise missing_extra("scikit-learn", "eval", "The digits task") from error
    if part not in ("pretrain", "train"):
        raise UsageError(f"digits: part is {part!r}; it must be 'pretrain' or 'train'.")
    if not keep or not set(keep) <= set(range(10)):
        raise UsageError(f"digits: keep is {sorted(keep)}; it must name digits from 0 to 9.")
    transforms = [_domain(d) for d in domain.split("+")]
    data: Any = load_digits()  # its type depends on arguments that pyright cannot follow
    images = torch.tensor(data["images"], dtype=torch.float32)[:, None] / 16  # [1797, 1, 8, 8]
    labels = torch.tensor(data["target"])
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    cuts = dict(zip([*PARTS, "test"], order.split([*PARTS.values(), len(order) - sum(PARTS.values())]), strict=True))

    def split(which: str) -> Split:
        rows = cuts[which]
        rows = rows[torch.isin(labels[rows], torch.tensor(sorted(keep)))]
        if len(rows) == 0:
            raise InputError(f"digits: the {which} part (seed {seed}) has no sample of the digits {sorted(keep)}.")
        x = images[rows]
        for transform in transforms:
            x = transform(x)
        return Split(x.contiguous(), labels[rows])

    return Task(name or domain, split(part), split("validation"), split("test"), head, tuple(str(d) for d in range(10)))


def _domain(name: str) -> Transform:
    if name not in DOMAINS:
        raise UnknownName(f"digits: no domain {name!r}; there are {', '.join(DOMAINS)}.{nearest(name, DOMAINS)}")
    return DOMAINS[name]


def jitter(
    images: torch.Tensor,
    generator: torch.Generator,
    *,
    domains: tuple[str, ...] = (),
    share: float = 0.0,
    degrees: float = 15.0,
    shift: float = 0.1,
    scale: float = 0.1,
    contrast: float = 0.2,
    noise: float = 0.05,
    brightness: float = 0.0,
    colour: float = 0.0,
    border: Literal["zeros", "border"] = "zeros",
) -> torch.Tensor:
    """Random small rotations, shifts, scalings, contrast and noise; a `share` of the images in one of `domains`.

    Args:
        images: ``[n, channels, h, w]``; not modified.
        generator: the only source of randomness.
        domains: names of `DOMAINS`; each image of the share gets one of them.
        share: between 0 and 1.
        degrees, shift, scale, contrast: half-widths of uniform draws (shift and scale relative to the image).
        noise: standard deviation of the pixel noise.
        brightness, colour: half-widths of what is added to all channels alike, and to each channel by itself.
        border: what lies outside the image: zeros, or its border continued.
    """
    torch = require_torch("Augmentation")
    n = len(images)

    def uniform(half: float) -> torch.Tensor:
        return half * (2 * torch.rand(n, generator=generator) - 1)

    angle, size = uniform(degrees * math.pi / 180), 1 + uniform(scale)
    rows = [
        torch.stack([size * angle.cos(), -size * angle.sin(), uniform(2 * shift)], dim=1),
        torch.stack([size * angle.sin(), size * angle.cos(), uniform(2 * shift)], dim=1),
    ]
    where = torch.nn.functional.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    x = torch.nn.functional.grid_sample(images, where, padding_mode=border, align_corners=False)
    x = x * (1 + uniform(contrast))[:, None, None, None] + noise * torch.randn(x.shape, generator=generator)
    if brightness:
        x = x + uniform(brightness)[:, None, None, None]
    if colour:
        x = x + colour * (2 * torch.rand(x.shape[:2], generator=generator) - 1)[:, :, None, None]
    if domains and share > 0:
        moved = torch.rand(n, generator=generator) < share
        which = torch.randint(len(domains), (n,), generator=generator)
        for i, domain in enumerate(domains):
            rows_ = moved & (which == i)
            x[rows_] = _domain(domain)(x[rows_])
    return x
