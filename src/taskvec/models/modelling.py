"""Language modelling with a text base, its head over the vocabulary kept as it is: filling in masked tokens, or telling the next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import KeyMismatch
from ..weights import Checkpoint
from .functional import adopt, require_torch, tensors
from .texts import TextBase

if TYPE_CHECKING:
    import torch


def vocabulary_head(opened: TextBase) -> torch.nn.Module:
    r"""A head over the vocabulary, tied to the input embeddings E, as BERT's: :math:`E\,\mathrm{LN}(\mathrm{GELU}(W h + b)) + c`.

    W starts as the identity, b and c as zero. E is a copy, no parameter: it learns neither here nor with the encoder.

    Args:
        opened: the encoder, whose embeddings are as wide as its states.
    Raises:
        KeyMismatch: they are not.
    Reference: Devlin et al. 2018, arXiv:1810.04805; tying: Press and Wolf 2016, arXiv:1608.05859.
    """
    torch = require_torch("Filling in masked tokens")
    config = opened.whole._inner.config
    table = opened.whole._inner.get_input_embeddings().weight.detach().clone()
    if table.shape[1] != config.hidden_size:
        raise KeyMismatch(
            f"{opened.base.label} has embeddings {table.shape[1]} wide and states {config.hidden_size} wide; a head over its vocabulary "
            "is tied to embeddings of the same width."
        )

    class VocabularyHead(torch.nn.Module):
        """States [..., d] -> logits [..., vocabulary]."""

        def __init__(self) -> None:
            super().__init__()
            with torch.random.fork_rng(devices=[]):
                self.transform = torch.nn.Linear(table.shape[1], table.shape[1])
            torch.nn.init.eye_(self.transform.weight)
            torch.nn.init.zeros_(self.transform.bias)
            self.norm = torch.nn.LayerNorm(table.shape[1], eps=getattr(config, "layer_norm_eps", 1e-12))
            self.bias = torch.nn.Parameter(torch.zeros(len(table)))

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            hidden = self.norm(torch.nn.functional.gelu(self.transform(states)))
            return hidden @ table.to(states.device).T + self.bias

    return VocabularyHead().eval()


def with_weights(head: torch.nn.Module, weights: Checkpoint) -> torch.nn.Module:
    """The head with these weights, which do not learn."""
    head.load_state_dict(tensors(weights, like=head))
    return head.requires_grad_(False)


def filling(opened: TextBase, head: torch.nn.Module | None = None) -> torch.nn.Module:
    """The encoder as a function of texts with masked tokens, and of where they are.

    Rows are ``[n, length + k]``: token ids, then k positions, below 0 where a text has fewer. Outputs are the logits
    ``[n, vocabulary, k]`` of the tokens there, or without a head the states ``[n, d, k]``. Parameters are the encoder's, under its names.

    Args:
        opened: the encoder; where it has frozen layers they are not computed again.
        head: states -> logits; kept as it is, and no part of the parameters.
    """
    torch = require_torch("Filling in masked tokens")
    length, pad = opened.prepare.most, opened.pad

    class Filling(torch.nn.Module):
        _inner: Any

        def __init__(self) -> None:
            super().__init__()
            adopt(self, opened.whole)

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            ids, places = rows[:, :length], rows[:, length:]
            kept = ids != pad
            longest = max(1, int(kept.sum(1).max()))
            ids, kept = ids[:, :longest], kept[:, :longest]
            if opened.below is None:
                states = self._inner._inner(input_ids=ids, attention_mask=kept.long()).last_hidden_state
            else:
                states = self._inner._through(opened.below(ids), kept, opened.frozen, None)
            at = places.clamp(min=0)[..., None].expand(-1, -1, states.shape[-1])
            there = states.gather(1, at)
            return (there if head is None else head(there)).transpose(1, 2)

    return Filling().eval()


def causal(opened: TextBase) -> bool:
    """Whether it is a decoder, which tells the next token: its tokenizer has none that hides another."""
    return opened.prepare.tokenizer().mask_token_id is None


def own_head(opened: TextBase) -> torch.nn.Module:
    """The head over the vocabulary that a causal model comes with, which does not learn.

    Raises:
        InputError, KeyMismatch: the folder is not that of a whole causal language model.
    """
    torch = require_torch("Telling the next token")
    from .language import language_model

    found: Any = language_model(opened.prepare.folder, kind="causal").module
    given = found.get_output_embeddings()
    weight = given.weight.detach().clone()
    head = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=given.bias is not None, device="meta")
    head.weight = torch.nn.Parameter(weight)
    if given.bias is not None:
        head.bias = torch.nn.Parameter(given.bias.detach().clone())
    return head.requires_grad_(False)


def telling(opened: TextBase, head: torch.nn.Module) -> torch.nn.Module:
    """A decoder as a function of token ids ``[n, length]``: the logits ``[n, vocabulary, length]`` of the tokens that follow.

    Parameters are the encoder's, under its names; the head is no part of them.
    """
    torch = require_torch("Telling the next token")
    pad = opened.pad

    class Telling(torch.nn.Module):
        _inner: Any

        def __init__(self) -> None:
            super().__init__()
            adopt(self, opened.whole)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            states = self._inner._inner(input_ids=ids, attention_mask=(ids != pad).long()).last_hidden_state
            return head(states).transpose(1, 2)

    return Telling().eval()
