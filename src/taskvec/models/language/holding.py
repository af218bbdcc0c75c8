"""A language model with other weights than its own, and as a function of one tensor."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...weights import Checkpoint
from ..functional import adopt, aliases, device_of, tensors, under_first_names
from .opening import LanguageModel, under_names

if TYPE_CHECKING:
    import torch


@contextlib.contextmanager
def holding(model: LanguageModel, weights: Checkpoint | None) -> Iterator[Any]:
    """The module with these weights in the place of its own, which come back afterwards; not copied, so memory is one
    model more. None leaves it as it is. For one thread at a time.

    Raises:
        KeyMismatch: the weights do not fit the module.
    """
    module = model.module
    if weights is None:
        yield module
        return
    new = tensors(under_names(weights, module), like=module, device=device_of(module))
    new = under_first_names(new, aliases(module))
    slots = {**dict(module.named_buffers()), **dict(module.named_parameters())}
    old = {n: slots[n].data for n in new}
    try:
        for n, t in new.items():
            slots[n].data = t.to(old[n].dtype)
        yield module
    finally:
        for n, t in old.items():
            slots[n].data = t


def loaded_with(model: LanguageModel, weights: Checkpoint | None) -> LanguageModel:
    """A model of the same form with these weights for good, in a module of its own; the model itself if there are none.

    Raises:
        KeyMismatch: the weights do not fit the module.
    """
    if weights is None:
        return model
    module = copy.deepcopy(model.module)
    twin = replace(model, module=module, name=weights.label, weights=weights)
    new = under_first_names(
        tensors(under_names(weights, module), like=module, device=device_of(module)), aliases(module)
    )
    slots = {**dict(module.named_buffers()), **dict(module.named_parameters())}
    for n, t in new.items():
        slots[n].data = t.to(slots[n].dtype)
    return twin


def next_tokens(model: LanguageModel) -> torch.nn.Module:
    r"""The model as a function of one tensor, for `fit`, protocols and whatever else takes a module.

    Of a causal model: token ids ``[n, length]`` -> logits ``[n, vocabulary, length]``, at each position those of the token
    after it. Of a sequence-to-sequence model: ids ``[n, 2 length]``, the first half what the encoder reads, the second what
    the decoder has so far. Ids below 0 are padding. Parameters have the names that they have in the checkpoint.
    """
    import torch

    inner: Any = model.module
    answers = model.kind == "seq2seq"

    class NextTokens(torch.nn.Module):
        """Token ids -> logits of the next tokens."""

        _inner: Any

        def __init__(self) -> None:
            super().__init__()
            adopt(self, inner)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            if answers:
                read, written = ids.chunk(2, dim=1)
                out = self._inner(
                    input_ids=read.clamp(min=0), attention_mask=(read >= 0).long(), decoder_input_ids=written.clamp(min=0),
                    use_cache=False,
                )  # fmt: skip
            else:  # padding comes after the text, where causal attention does not look
                out = self._inner(input_ids=ids.clamp(min=0), use_cache=False)
            return out.logits.transpose(1, 2)

    return NextTokens().eval()
