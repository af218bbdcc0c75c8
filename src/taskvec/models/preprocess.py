"""From an image to the numbers that a vision model was trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..errors import InputError, UsageError, missing_extra

if TYPE_CHECKING:
    import torch

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")


@dataclass(frozen=True)
class Preprocess:
    r"""Resize, crop, scale to 0..1 and normalise: pixel p becomes :math:`(p / 255 - \mathrm{mean}) / \mathrm{std}`.

    Transparent pixels lie on white; grey images are repeated over three channels; 16-bit ones are scaled to 8 bits.

    Args:
        size: height and width of the result, in pixels.
        channels: 3 for colour, 1 for grey.
        mean, std: one value per channel, or one for all, of pixels scaled to 0..1.
        interpolation: one of nearest, bilinear, bicubic, lanczos, box, hamming, as Pillow computes them.
        shorter: the shorter side before the crop; `size` unless told.
        squash: resize both sides to `size`, whatever the aspect, instead of cropping the centre.
    Raises:
        UsageError: a value that cannot mean anything.
    Example:
        >>> Preprocess(32, channels=1).mean
        (0.5,)
    """

    size: int
    channels: int = 3
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    interpolation: str = "bicubic"
    shorter: int | None = None
    squash: bool = False

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            value = getattr(self, name)
            found = (value,) if isinstance(value, int | float) else tuple(value)
            if len(found) not in (1, self.channels) or not all(math.isfinite(x) for x in found):
                raise UsageError(f"Preprocess: {name} is {value}; expected one finite value, or {self.channels}.")
            object.__setattr__(self, name, tuple(float(x) for x in found))
        shorter = self.size if self.shorter is None else self.shorter
        for name, value in (("size", self.size), ("shorter", shorter)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UsageError(f"Preprocess: {name} is {value!r}; expected a number of pixels from 1.")
        if shorter < self.size:
            raise UsageError(f"Preprocess: the shorter side, {shorter}, is less than the size, {self.size}.")
        if self.channels not in (1, 3):
            raise UsageError(f"Preprocess: channels is {self.channels!r}; expected 1 (grey) or 3 (colour).")
        if min(self.std) <= 0:
            raise UsageError(f"Preprocess: std is {self.std}; each must be above 0.")
        if self.interpolation not in INTERPOLATIONS:
            raise UsageError(
                f"Preprocess: interpolation is {self.interpolation!r}; expected one of {', '.join(INTERPOLATIONS)}."
            )

    def pixels(self, image: Any, *, mode: Literal["L", "RGB"] | None = None) -> np.ndarray:
        """A Pillow image resized and cropped: uint8 ``[channels, size, size]``, or one channel with `mode` ``"L"``.

        Raises:
            InputError: pixels without a known range.
        """
        from PIL import Image

        image = _eight_bits(image, mode or ("L" if self.channels == 1 else "RGB"))
        how = Image.Resampling[self.interpolation.upper()]
        width, height = image.size
        if self.squash:
            wide, high = self.size, self.size
        else:
            side = self.shorter or self.size
            least = min(width, height)
            wide, high = (side * width // least, side * height // least)
        if (wide, high) != (width, height):
            image = image.resize((wide, high), how)
        # Rounded as torchvision's CenterCrop does it; transformers rounds down, which is one pixel for odd margins.
        left, top = round((wide - self.size) / 2), round((high - self.size) / 2)
        if (wide, high) != (self.size, self.size):
            image = image.crop((left, top, left + self.size, top + self.size))
        found = np.asarray(image)
        return found[None] if found.ndim == 2 else np.ascontiguousarray(found.transpose(2, 0, 1))

    def normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        """Floats ``[n, channels, size, size]`` of uint8 pixels, which may have one channel only."""
        import torch

        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (self.mean, self.std))
        out = (pixels.float() / 255 - mean) / std
        return out if out.shape[1] == self.channels else out.expand(-1, self.channels, -1, -1).contiguous()


# Of CLIP's training images; Radford et al. 2021, arXiv:2103.00020.
CLIP = Preprocess(224, mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))


def _eight_bits(image: Any, mode: str) -> Any:
    """The image in mode L or RGB."""
    from PIL import Image

    if image.mode == mode:
        return image
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion cuts values at 255
        values = np.asarray(image)
        if values.size and (int(values.min()) < 0 or int(values.max()) > 65535):
            raise InputError(f"values from {values.min()} to {values.max()}; expected 8 or 16 bits")
        image = Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
    elif image.mode == "F":
        raise InputError("floating-point pixels, whose range is not known; expected 8 or 16 bits")
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        image = white.convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def require_pillow(purpose: str) -> Any:
    """Pillow's Image module.

    Raises:
        MissingExtra: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise missing_extra("Pillow", "images", purpose) from None
    return Image
