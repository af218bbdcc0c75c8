"""Zero-shot heads: a classifier from the names of its classes, for models with a text encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..models.functional import require_torch
from .task import Head

if TYPE_CHECKING:
    import torch

Encode = Callable[[Sequence[str]], "torch.Tensor"]


def zero_shot(
    encode: Encode, classes: Sequence[str], *, templates: Sequence[str] = ("a photo of a {}.",), scale: float = 100.0
) -> Head:
    r"""The head :math:`W_k = s\,\hat u_k`, with :math:`u_k` the mean over templates of the text embeddings, each of length 1.

    Features are scaled to length 1 too, so logits are cosines times s.

    Args:
        encode: texts -> embeddings ``[n, width]``, for example the second value of `taskvec.models.hub.clip`.
        classes: names, one row each.
        templates: sentences with ``{}`` where the name goes.
        scale: s; CLIP's learnt temperature is 100.
    Raises:
        UsageError: no classes or templates, or a template without its place.
    Reference: Radford et al. 2021, arXiv:2103.00020, section 3.1.4; used as frozen heads by arXiv:2212.04089, section 2.
    """
    torch = require_torch("A zero-shot head")
    odd = [t for t in templates if t.count("{}") != 1]
    if not classes or not templates or odd:
        raise UsageError(f"zero_shot needs classes and templates with one {{}} each; got {list(odd or templates)}.")
    rows = []
    with torch.no_grad():
        for name in classes:
            found = encode([t.replace("{}", name) for t in templates])
            mean = (found / found.norm(dim=1, keepdim=True)).mean(0)
            rows.append(mean / mean.norm())
    return Head(scale * torch.stack(rows).cpu(), torch.zeros(len(rows)), normalise=True)
