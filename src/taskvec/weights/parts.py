"""Parts of a network by the names of its tensors: what a checkpoint file shows without its module.

`taskvec.models.parts` tells the same from the module itself, by its classes; on the networks of
`tests/test_name_parts.py` both agree, but for cross-attention, which counts as attention here and as none there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

PARTS = ("attention", "mlp", "norm", "embedding", "head")
NORM = re.compile(r"norm|layrnorm|(^|_)ln(_|\d|$)|^bn\d*$", re.I)  # the module that holds it (CLIP has a pre_layrnorm)
HEADS = {
    "lm_head", "head", "heads", "classifier", "pre_classifier", "score", "cls", "embed_out", "proj_out", "qa_outputs",
    "vocab_projector", "vocab_transform", "predictions",
}  # fmt: skip
OTHER = re.compile(r"^(attn_?pool|router|gate|shared_expert_gate)$|rotary|inv_freq", re.I)
EMBEDDING = re.compile(r"embed|^(wte|wpe|shared)$|_tokens?$|relative_(attention|position)|rel_pos", re.I)
STEM = re.compile(r"(^|\.)(visual|encoder)\.conv\d\.")  # patches of open_clip, frames of Whisper
ATTENTION = re.compile(r"attn|attention|^mhs?a$", re.I)
MLP = re.compile(r"mlp|feed_?forward|ffn|dense_?relu_?dense|expert|moe", re.I)
DENSE = re.compile(r"^(fc\d?|lin(ear)?_?\d|ff|intermediate|output)$")  # MLPs that have no module of their own


def part(name: str) -> str:
    """The part a tensor belongs to: attention, mlp, norm, embedding, head, or other.

    The first rule that fits decides; names are cut at the dots.

    1. norm: the module that holds the tensor is called so (`norm`, `LayerNorm`, `ln_1`, `bn2`), wherever it lies.
    2. head: `lm_head`, `classifier`, `head`, `score`, `cls` or the like comes before any number.
    3. other: routers of experts, rotary frequencies, attention pooling.
    4. embedding: a name holds `embed`, is `wte`, `wpe` or `shared`, ends in `_token`, or says relative positions.
    5. mlp: in numbered blocks, a name holds `mlp`, `ffn`, `feed_forward`, `DenseReluDense`, `expert`; attention: a name holds
       `attn` or `attention`, cross-attention included; mlp: in numbered blocks, `fc1`, `linear1`, `intermediate`, `output`.

    Example:
        >>> [part(f"h.0.{n}.weight") for n in ("attn.c_proj", "mlp.c_proj", "ln_1")], part("wte.weight"), part("lm_head.weight")
        (['attention', 'mlp', 'norm'], 'embedding', 'head')
    """
    words = name.split(".")
    number = next((i for i, w in enumerate(words) if w.isdecimal()), len(words))
    repeated = number < len(words)
    if any(NORM.search(w) for w in words[-2:]):
        return "norm"
    if HEADS.intersection(words[:number]):
        return "head"
    if any(OTHER.search(w) for w in words):
        return "other"
    if any(EMBEDDING.search(w) for w in words) or STEM.search(name):
        return "embedding"
    if repeated and any(MLP.search(w) for w in words):
        return "mlp"
    if any(ATTENTION.search(w) for w in words):
        return "attention"
    return "mlp" if repeated and any(DENSE.search(w) for w in words) else "other"


def parts(names: Iterable[str]) -> dict[str, list[str]]:
    """The tensors of every part that there is.

    Example:
        >>> parts(["wte.weight", "h.0.mlp.c_fc.weight", "h.0.mlp.c_fc.bias"])
        {'mlp': ['h.0.mlp.c_fc.weight', 'h.0.mlp.c_fc.bias'], 'embedding': ['wte.weight']}
    """
    found: dict[str, list[str]] = {p: [] for p in (*PARTS, "other")}
    for name in names:
        found[part(name)].append(name)
    return {p: held for p, held in found.items() if held}
