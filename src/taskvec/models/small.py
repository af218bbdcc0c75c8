"""Small vision transformers as folders: weights, and a config that says how to build the module and prepare images."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, UsageError, plain
from ..weights import Checkpoint
from ..weights.output import checkpoint_output
from ..weights.write import write
from .functional import check_names, require_torch, tensors

if TYPE_CHECKING:
    from .vit import VisionTransformer

KIND = "small_vit"
SIZES = ("image", "channels", "patch", "width", "depth", "heads")
LARGEST = 65536  # of a size in a config: what is beyond was not written by us


def save_small_vit(
    folder: str | Path, model: VisionTransformer, checkpoint: Checkpoint, *, mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None, pretraining: Mapping[str, Any] | None = None, overwrite: bool = False,
) -> Path:  # fmt: skip
    """Write weights of a `small_vit` as a folder: model.safetensors, and config.json with its sizes.

    Checkpoints edited from the folder and saved as folders keep the config, and open with `read_small_vit` too.

    Args:
        folder: where; it appears whole or not at all.
        model: gives the sizes; its own weights do not matter.
        checkpoint: the weights.
        mean, std: one for each channel: images are prepared as ``(pixels - mean) / std`` with pixels from 0 to 1. 0 and 1
            unless told.
        pretraining: what is to be known of how the weights were made, of what JSON can hold.
        overwrite: replace a folder that was written so before.
    Raises:
        KeyMismatch: the checkpoint does not fit the model.
        UsageError: mean or std is not one number for each channel, or the folder's name is that of a file.
        StorageError: the folder exists, or the disk fails.
    """
    folder = Path(folder)
    if folder.suffix in (".safetensors", ".pt", ".bin"):
        raise UsageError(
            f"cannot write {plain(folder)}: a small_vit is a folder of weights and config. Leave {folder.suffix} out."
        )
    check_names({n: s.shape for n, s in checkpoint.spec.items()}, model, checkpoint.label)
    mean = [0.0] * model.channels if mean is None else [float(v) for v in mean]
    std = [1.0] * model.channels if std is None else [float(v) for v in std]
    config = {
        "taskvec": KIND, **{n: getattr(model, n) for n in SIZES}, "mlp_ratio": model.mlp_ratio, "pool": model.pool,
        "mean": mean, "std": std, "pretraining": dict(pretraining or {}),
    }  # fmt: skip
    faults = _faults(config)
    if faults:
        raise UsageError(f"cannot write {plain(folder)}: {'; '.join(faults)}.")
    text = json.dumps(config, indent=2, allow_nan=False) + "\n"
    output = replace(checkpoint_output(checkpoint, folder), beside={"config.json": text.encode()})
    return write(output, overwrite=overwrite)


def read_small_vit(
    folder: str | Path, *, label: str | None = None
) -> tuple[VisionTransformer, Checkpoint, dict[str, Any]]:
    """A folder of `save_small_vit`, or one edited from it: the module with its weights, the base, and the config.

    The config has ``image``, ``channels``, ``mean`` and ``std`` (how to prepare images), the other sizes, and ``pretraining``.

    Raises:
        InputError: no such folder, or its config.json is missing, damaged or of another model.
        KeyMismatch: the weights do not fit the config.
    """
    torch = require_torch("Reading a small_vit")
    from .vit import VisionTransformer

    folder = Path(folder)
    config = _config(folder)
    base = Checkpoint.read(folder, label=label or folder.name)
    if config["depth"] > len(base.names):
        raise InputError(
            f"{plain(folder)}: config.json says depth {config['depth']}, the weights are {len(base.names)} tensors."
        )
    with torch.device("meta"):  # no memory, and no random number, before the weights are known to fit
        model = VisionTransformer(*(config[n] for n in (*SIZES, "mlp_ratio", "pool")))
    check_names({n: s.shape for n, s in base.spec.items()}, model, base.label)
    model.load_state_dict(tensors(base), assign=True)
    return model.eval(), base, config


def _config(folder: Path) -> dict[str, Any]:
    """The folder's config, checked."""
    path = folder / "config.json"
    remedy = "Name a folder that `taskvec pretrain` or save_small_vit wrote, or one edited from it."
    if not folder.is_dir():
        raise InputError(f"{plain(folder)} is not a folder. {remedy}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{plain(folder)} has no config.json that can be read ({error.strerror}). {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{plain(path)} is not JSON: {error}. {remedy}") from error
    if not isinstance(config, dict) or config.get("taskvec") != KIND:
        said = config.get("taskvec", config.get("model_type")) if isinstance(config, dict) else type(config).__name__
        raise InputError(f'{plain(path)} is not of a small_vit: expected "taskvec": "{KIND}", got {said!r}. {remedy}')
    faults = _faults(config)
    if faults:
        raise InputError(f"{plain(path)}: {'; '.join(faults)}. {remedy}")
    return config


def _faults(config: Mapping[str, Any]) -> list[str]:
    """What is wrong with a config, each said in a few words."""
    faults = [
        f"{n} must be a whole number from 1 to {LARGEST}, got {config.get(n)!r}"
        for n in SIZES
        if not (isinstance(config.get(n), int) and not isinstance(config[n], bool) and 1 <= config[n] <= LARGEST)
    ]
    if not _number(config.get("mlp_ratio")) or not 0 < config["mlp_ratio"] <= 64:
        faults.append(f"mlp_ratio must be above 0 and at most 64, got {config.get('mlp_ratio')!r}")
    if config.get("pool") not in ("class", "mean"):
        faults.append(f"pool must be 'class' or 'mean', got {config.get('pool')!r}")
    if not isinstance(config.get("pretraining", {}), dict):
        faults.append("pretraining must be a table")
    if faults:
        return faults
    if config["image"] % config["patch"] or config["width"] % config["heads"]:
        faults.append("image must be a multiple of patch, and width of heads")
    for name in ("mean", "std"):
        values = config.get(name)
        if not (isinstance(values, list) and len(values) == config["channels"] and all(map(_number, values))):
            faults.append(f"{name} must be {config['channels']} numbers, one for each channel, got {values!r}")
        elif name == "std" and min(values) <= 0:
            faults.append(f"std must be above 0, got {values}")
    return faults


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
