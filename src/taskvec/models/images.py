"""Pre-trained image encoders of timm and open_clip as (module, base checkpoint), read from local folders through them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, KeyMismatch, MissingExtra, some
from ..weights import Checkpoint
from .functional import require_torch
from .hub import PIECE, fetched

if TYPE_CHECKING:
    import torch


def timm_model(
    path: str | Path, *, download: bool = False, revision: str | None = None, label: str | None = None
) -> tuple[torch.nn.Module, Checkpoint]:
    """A timm model without its classifier as a module, and its weights as the base.

    The module maps pixels ``[n, 3, size, size]``, prepared as the model's configuration says (`timm.data`), to features ``[n, d]``.

    Args:
        path: a folder with config.json and weights, as timm's models on the Hugging Face hub; or, with `download`, an id there.
        download, revision: as in `transformer`.
        label: name of the base; the folder's name unless told.
    Raises:
        MissingExtra: timm is not installed or does not import.
        InputError: the folder does not exist or is not a timm model.
        KeyMismatch: the file lacks parameters of the encoder.
    """
    timm = _imported("timm", "timm", "loading a timm model")
    folder = fetched(path, download=download, revision=revision)
    module = _made(lambda: timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0), folder, "timm")
    return module, _base(module, folder, label)


def open_clip_model(
    path: str | Path, *, download: bool = False, revision: str | None = None, label: str | None = None
) -> tuple[torch.nn.Module, Checkpoint, Callable[[Sequence[str]], torch.Tensor]]:
    """The image encoder of an open_clip model as a module, its weights as the base, and its text encoder as a function.

    The module maps pixels ``[n, 3, size, size]``, prepared as open_clip's transform does, to image embeddings ``[n, d]`` before they
    are scaled to length 1 (`zero_shot` heads do that). Its parameters have the names of the whole model (``visual....``), so
    vectors apply to the whole checkpoint. The text encoder stays as it is.

    Args:
        path: a folder with open_clip_config.json and one file of weights, or, with `download`, an id on the Hugging Face hub.
        download, revision, label: as in `timm_model`.
    Raises:
        MissingExtra, InputError, KeyMismatch: as in `timm_model`.
    """
    open_clip = _imported("open_clip", "open_clip_torch", "loading an open_clip model")
    import torch

    folder = fetched(path, download=download, revision=revision)
    inner = _made(lambda: open_clip.create_model(f"local-dir:{folder}", require_pretrained=True), folder, "open_clip")
    read = open_clip.get_tokenizer(f"local-dir:{folder}")

    class ImageEncoder(torch.nn.Module):
        """Pixels [n, 3, size, size] -> embeddings [n, d]."""

        def __init__(self) -> None:
            super().__init__()
            self.visual = inner.visual

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.visual(pixels)

    def encode(texts: Sequence[str]) -> torch.Tensor:
        with torch.no_grad():
            return torch.cat([inner.encode_text(ids) for ids in read(list(texts)).split(PIECE)])

    module = ImageEncoder().eval()
    return module, _base(module, folder, label), encode


def _made(make: Callable[[], Any], folder: Path, library: str) -> Any:
    """The model in evaluation mode; random state is as it was."""
    torch = require_torch(f"Loading a model of {library}")
    try:
        with torch.random.fork_rng(devices=[]):
            return make().eval()
    except (OSError, ValueError, KeyError, TypeError, AssertionError, RuntimeError) as error:
        raise InputError(f"{folder} does not load as a model of {library}: {error}") from error


def _base(module: torch.nn.Module, folder: Path, label: str | None) -> Checkpoint:
    """Of the folder's weights those that the module has."""
    whole = Checkpoint.read(folder, label=label or folder.name)
    absent = [n for n, _ in module.named_parameters() if n not in whole.names]
    if absent:
        raise KeyMismatch(
            f"{folder} lacks {len(absent)} parameters of the image encoder ({some(absent)}); they would be random."
        )
    own = module.state_dict()
    return whole.restrict([n for n in whole.names if n in own])


def _imported(module: str, package: str, purpose: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(f"{purpose} needs {package}, which is not installed. Run: pip install {package}") from error
    except RuntimeError as error:  # as torchvision does that was built for another torch
        raise MissingExtra(
            f"{purpose} needs {package}, which is installed but does not import here ({str(error).splitlines()[0]}). Install the "
            "torchvision that belongs to the installed torch."
        ) from error
