"""Image encoders from a folder: its config.json says how to open it. (Text encoders: `texts`.)"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from ..errors import InputError, KeyMismatch, some
from ..weights import Checkpoint, TaskVector
from . import hub
from .functional import adopt
from .preprocess import CLIP, INTERPOLATIONS, Preprocess
from .small import read_small_vit
from .texts import Tokens

if TYPE_CHECKING:
    import torch

# The state of the first token is the feature; their pooling layers, where they have one, are not part of what was pre-trained.
FIRST = ("vit", "deit", "vit_mae", "dinov2", "dinov2_with_registers")
# The model's own pooling: a mean over positions, and a norm.
POOLED = ("convnext", "convnextv2", "beit", "swin", "resnet")
# Pillow's numbers, which preprocessor files carry.
RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


P = TypeVar("P", bound=Preprocess | Tokens)


class Encoder(NamedTuple, Generic[P]):
    """An encoder of images, or of texts.

    Args:
        module: images ``[n, channels, size, size]``, or token ids ``[n, length]`` -> features ``[n, d]``.
        base: its weights.
        prepare: how images or texts become its inputs.
        text: texts -> embeddings ``[n, d]``, for zero-shot heads; None for models without a text encoder beside that of images.
    """

    module: torch.nn.Module
    base: Checkpoint
    prepare: P
    text: Callable[[Sequence[str]], torch.Tensor] | None


def encoder(path: str | Path) -> Encoder[Preprocess]:
    """The image encoder in a folder: a `small_vit`, a CLIP model, or a vision model of transformers (`FIRST`, `POOLED`).

    Raises:
        InputError: no such folder, no config.json, or a model of another kind.
        KeyMismatch: the file lacks parameters of the encoder.
        MissingExtra: transformers is not installed.
    """
    folder = Path(path)
    config = _json(folder / "config.json")
    if config is None:
        raise InputError(
            f"{folder} has no config.json, which says what model it is. Give the folder of an image encoder."
        )
    if "taskvec" in config:  # models of ours say so themselves
        model, base, own = read_small_vit(folder)
        prepare = Preprocess(own["image"], own["channels"], tuple(own["mean"]), tuple(own["std"]))
        return Encoder(model, base, prepare, None)
    kind = config.get("model_type")
    if kind == "clip":
        module, base, text = hub.clip(folder)
        return Encoder(module, base, _prepare(folder) or CLIP, text)
    if kind not in (*FIRST, *POOLED):
        raise InputError(
            f"{folder} is of model_type {kind!r}; image encoders are clip, {', '.join((*FIRST, *POOLED))}."
        )
    prepare = _prepare(folder)
    if prepare is None:
        raise InputError(
            f"{folder} has no preprocessor_config.json, which says how images become its inputs. Take it from where the model "
            "was published."
        )
    return Encoder(*_vision(folder, kind), prepare, None)


def displacement(path: str | Path, base: Checkpoint, *, label: str | None = None) -> tuple[TaskVector, tuple[str, ...]]:
    r"""The vector :math:`\tau = \theta_{ft} - \theta_0` of a checkpoint that somebody else fine-tuned from the base of an `encoder`.

    Names may carry a prefix that the base lacks, or lack one that it has. A part of the encoder that the file lacks as a
    whole stays where it is, such as the projection of CLIP beside a file of the vision tower alone; heads and the text tower are left out.

    Args:
        path: a folder of weights, with or without config.json, or one file.
        base: :math:`\theta_0`, as `encoder` gives it.
        label: name of the vector.
    Returns:
        the vector, and the names of the base that it leaves as they are.
    Raises:
        KeyMismatch: the file lacks some parameters of a part, or has them in another shape; says which.
    """
    folder = Path(path)
    said = (_json(folder / "config.json") or {}) if folder.is_dir() else {}
    kind = said.get("model_type")
    # As the base was opened, names that transformers changes included.
    tuned = _vision(folder, kind)[1] if kind in (*FIRST, *POOLED) else Checkpoint.read(folder)
    found = tuned.match(base)
    absent = [*found.only_base, *found.other_shape]
    parts = {n.partition(".")[0] for n in found.old}
    wrong = [n for n in absent if n.partition(".")[0] in parts or n in found.other_shape]
    if wrong or not found.old:
        shapes = "".join(
            f"; {n!r} has shape {list(base.spec[n].shape)} in the base and another one here"
            for n in found.other_shape[:1]
        )
        raise KeyMismatch(
            f"{label or folder.name} is not fine-tuned from {base.label}: of {len(base.names)} parameters, {len(wrong or absent)} do not fit "
            f"({some(wrong or absent)}){shapes}. Give a checkpoint of the same architecture and size."
        )
    vector = tuned.shared(base) - base
    return TaskVector(vector.node, vector.base, label or folder.name, vector.partial), tuple(absent)


def _vision(folder: Path, kind: str) -> tuple[torch.nn.Module, Checkpoint]:
    inner, base = hub.loaded(folder, "loading a vision model", pooling=False if kind in ("vit", "deit") else None)
    import torch

    if kind == "vit_mae":
        inner.config.mask_ratio = 0.0  # all patches are seen

    class ImageEncoder(torch.nn.Module):
        """Pixels [n, 3, size, size] -> features [n, d]."""

        _inner: Any

        def __init__(self) -> None:
            super().__init__()
            adopt(self, inner)

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            more = {}
            if kind == "vit_mae":  # shuffles patches by this noise, which it would draw from the global generator
                patches = (inner.config.image_size // inner.config.patch_size) ** 2
                more["noise"] = torch.arange(patches, device=pixels.device).expand(len(pixels), -1).float()
            out = self._inner(pixel_values=pixels, **more)
            return out.last_hidden_state[:, 0] if kind in FIRST else out.pooler_output.flatten(1)

    return ImageEncoder().eval(), base


def _prepare(folder: Path) -> Preprocess | None:
    """What preprocessor_config.json says, or processor_config.json of newer folders; None without either."""
    where = folder / "preprocessor_config.json"
    said = _json(where)
    if said is None:
        where = folder / "processor_config.json"
        said = (_json(where) or {}).get("image_processor")
    if said is None:
        return None
    try:
        return _read_prepare(said)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{where} cannot be followed: {error}") from error


def _read_prepare(said: Mapping[str, Any]) -> Preprocess:
    size = said["size"]
    asked = {"shortest_edge": size} if isinstance(size, int) else dict(size)
    crop = said.get("crop_size") if said.get("do_center_crop") else None
    crop = crop["height"] if isinstance(crop, Mapping) else crop
    squash = "shortest_edge" not in asked
    edge = asked["height"] if squash else asked["shortest_edge"]
    if squash and (asked["height"] != asked["width"]):
        raise ValueError(f"images of {asked['height']} x {asked['width']} pixels; only square ones are supported")
    if isinstance(size, int) and crop is None:
        squash = True  # the old way of writing height and width
    if "crop_pct" in said and said["crop_pct"] and not squash:  # ConvNeXt: the crop is `size`, the edge follows
        crop, edge = edge, int(edge / said["crop_pct"]) if edge < 384 else edge
        squash = edge == crop
    if said.get("do_rescale", True) and abs(255 * said.get("rescale_factor", 1 / 255) - 1) > 1e-6:
        raise ValueError(f"rescale_factor is {said['rescale_factor']}; only 1/255 is supported")
    plain = not said.get("do_normalize", True)
    resample = RESAMPLE.get(said.get("resample", 2), "")
    if resample not in INTERPOLATIONS:
        raise ValueError(f"resample is {said.get('resample')!r}; expected one of {sorted(RESAMPLE)}")
    return Preprocess(
        crop or edge,
        mean=(0.0,) if plain else tuple(said["image_mean"]),
        std=(1.0,) if plain else tuple(said["image_std"]),
        interpolation=resample,
        shorter=None if squash else edge,
        squash=squash,
    )


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} holds a {type(found).__name__}; expected an object.")
    return found
