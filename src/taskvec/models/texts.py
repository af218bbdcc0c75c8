"""Text encoders as bases: how texts become their inputs, and what of them stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..select import Select, matching
from ..weights import Checkpoint
from . import hub
from .functional import adopt, require_torch

if TYPE_CHECKING:
    import torch

REMEMBERED = 2**30  # bytes of states that are kept


@dataclass(frozen=True)
class Tokens:
    """From texts to token ids, as `Preprocess` is from images to pixels.

    Args:
        folder: of the tokenizer.
        most: tokens of a text, the first and last special ones included; what is longer is cut.
    """

    folder: str
    most: int = 64

    def tokenizer(self) -> Any:
        """The tokenizer of transformers.

        Raises:
            InputError: the folder holds none.
        """
        return hub.opened_tokenizer(self.folder)

    def ids(self, texts: Sequence[str]) -> torch.Tensor:
        """Token ids ``[n, most]``, int64, padded on the right."""
        return hub.tokenizer(self.folder, max_tokens=self.most)(texts)


@dataclass(frozen=True, eq=False)
class TextBase:
    """A text encoder, opened.

    Args:
        module: token ids ``[n, length]`` -> features ``[n, d]``; with frozen layers, whose outputs it remembers.
        base: its weights.
        prepare: how texts become its inputs.
        whole: the encoder with all its layers, as `hub.transformer` makes it.
        frozen: how many layers, beside the embeddings, stay as they are.
        below: token ids -> states ``[n, length, d]`` after the frozen layers; None without any.
    """

    module: torch.nn.Module
    base: Checkpoint
    prepare: Tokens
    whole: Any
    frozen: int = 0
    below: Callable[[torch.Tensor], torch.Tensor] | None = None

    @property
    def pad(self) -> int:
        """The token that fills rows up, which the encoder does not read."""
        return int(self.whole.pad)

    @property
    def learns(self) -> Select | None:
        """The names that may be in a vector: those above the frozen layers; None for all."""
        if not self.frozen:
            return None
        return matching("~embeddings.*", "~pooler.*", *(f"~encoder.layer.{i}.*" for i in range(self.frozen)))


def text_base(path: str | Path, *, tokens: int = 64, frozen: int = 0) -> TextBase:
    r"""A text encoder in a folder: mean of the last states over the tokens, scaled to length :math:`\sqrt d`.

    Args:
        path: a folder of transformers, with its tokenizer.
        tokens: most tokens of a text.
        frozen: how many of a BERT's first layers, with the embeddings, stay as they are in every vector. What they make of a text is
            computed once, by itself, so that it does not depend on its batch.
    Raises:
        UsageError: more tokens than the model has positions, or no such layers.
        InputError, KeyMismatch, MissingExtra: as `hub.transformer`.
    """
    whole, base = hub.transformer(path)
    inner: Any = whole
    positions = getattr(inner._inner.config, "max_position_embeddings", None)
    if positions is not None and tokens > positions:
        raise UsageError(f"tokens is {tokens}, and {Path(path).name} has {positions} positions. Take fewer.")
    prepare = Tokens(str(path), tokens)
    if not frozen:
        return TextBase(whole, base, prepare, whole)
    module, lower = hub.split_at(whole, frozen)
    below = _remembering(lower)
    return TextBase(_above(module, below), base, prepare, whole, frozen, below)


def _above(upper: torch.nn.Module, below: Callable[[torch.Tensor], torch.Tensor]) -> torch.nn.Module:
    """The upper part of an encoder as a function of token ids."""
    import torch

    class Above(torch.nn.Module):
        """Token ids [n, length] -> features [n, d]."""

        _inner: Any

        def __init__(self) -> None:
            super().__init__()
            adopt(self, upper)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self._inner(below(ids))

    return Above().eval()


def _remembering(lower: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """`lower`, whose outputs for each row are computed once, of that row alone, and kept as long as there is room."""
    torch = require_torch("A text encoder")
    kept: dict[bytes, torch.Tensor] = {}
    held = [0]

    def states(ids: torch.Tensor) -> torch.Tensor:
        out = []
        for row in ids:
            key = row.cpu().numpy().tobytes()
            found = kept.get(key)
            if found is None:
                # Evaluation is in inference mode, whose tensors training could not use.
                with torch.inference_mode(False), torch.no_grad():
                    made = lower(row[None].clone())[0]
                    long = int(made.any(-1).sum())  # padding is zero, and on the right
                    found = made[:long].clone()
                if held[0] + found.nbytes <= REMEMBERED:
                    kept[key] = found
                    held[0] += found.nbytes
            out.append(torch.nn.functional.pad(found, (0, 0, 0, ids.shape[1] - len(found))))
        return torch.stack(out)

    return states
