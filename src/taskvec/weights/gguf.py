"""GGUF files (llama.cpp) as sources: quantised tensors in float32, under the names that transformers gives them.

The `gguf` package reads the header and dequantises. llama.cpp stores the rows of a Llama's queries and keys in another
order (pairs of the rotary embedding side by side); they are put back. Architectures that it changes in other ways keep
their GGUF names, so that they are not mistaken for what they are not.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, NotACheckpoint, missing_extra
from ..files import exists
from .dtypes import DTYPES, TensorSpec
from .source import SIDE_FILES, Source

NAMES = {
    "token_embd": "model.embed_tokens", "output": "lm_head", "output_norm": "model.norm", "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
PERMUTED = {"llama": True, "qwen2": False, "qwen3": False}  # architecture -> whether queries and keys are reordered
DERIVED = ("rope_freqs.weight",)  # follows from the config
STORED = ("F64", "F32", "F16", "BF16", "I8", "I16", "I32", "I64")  # formats that are kept; all others are quantised
TENSOR = re.compile(r"(?:blk\.(\d+)\.)?([a-z_]+)\.(weight|bias)")


class GgufSource(Source):
    """One GGUF file. `architecture` is its own word; `mapped` says whether the names are those of transformers."""

    def __init__(self, path: Path, label: str):
        try:
            import gguf
        except ImportError:
            raise missing_extra("gguf", "gguf", f"reading {path}") from None
        if not path.is_file():
            raise InputError(f"{path} does not exist." if not exists(path) else f"{path} is not a regular file.")
        try:
            reader = gguf.GGUFReader(path)
            fields = {n: f.contents() for n, f in reader.fields.items() if not n.startswith("tokenizer.")}
            self.architecture = str(fields["general.architecture"])
            found = {t.name: t for t in reader.tensors}
            self._at = {n: (int(t.data_offset), int(t.n_bytes), t.tensor_type) for n, t in found.items()}
            shapes = {n: tuple(int(k) for k in reversed(t.shape)) for n, t in found.items()}
        except (ValueError, KeyError, IndexError, TypeError, OverflowError, OSError, MemoryError) as error:
            said = " ".join(str(error).split())
            raise NotACheckpoint(f"{path} is not a sound GGUF file ({type(error).__name__}: {said}).") from None
        self.label, self.files = label, (path,)
        if int(fields.get("split.count", 1) or 1) > 1:
            raise NotACheckpoint(
                f"{path} is one of {fields['split.count']} parts; join them first (llama-gguf-split --merge)."
            )
        names = _names(self.architecture, list(found))
        self.mapped = names is not None
        self._old = names or {n: n for n in found}
        self._heads = _heads(self.architecture, fields) if self.mapped else {}
        kinds = {n: t.tensor_type.name for n, t in found.items()}
        self.spec = {
            new: TensorSpec(kinds[old] if kinds[old] in STORED else "F32", shapes[old])
            for new, old in self._old.items()
        }
        for name, old in self._old.items():
            heads = next((h for part, h in self._heads.items() if f".{part}." in old), 1)
            if shapes[old] and heads > 1 and shapes[old][0] % (2 * heads):
                raise NotACheckpoint(
                    f"{path}: {name} has {shapes[old][0]} rows, which are not those of {heads} heads, whose rows come in pairs."
                )
        self._tell(path, Counter(k for k in kinds.values() if k not in STORED))

    def _tell(self, path: Path, quantised: Counter[str]) -> None:
        if quantised:
            said = ", ".join(f"{k} in {n} tensor{'s' if n > 1 else ''}" for k, n in quantised.most_common())
            warnings.warn(
                f"{path.name} is quantised ({said}): its weights are read as they dequantise, in float32, with the rounding "
                "errors of the quantisation in them. Edit the model it was made from where you have it.",
                stacklevel=4,
            )
        if not self.mapped:
            warnings.warn(
                f"{path.name} is of the architecture {self.architecture!r}, whose names are not translated (those of "
                f"{', '.join(PERMUTED)} are): its tensors keep their GGUF names.",
                stacklevel=4,
            )

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        if stop <= start:
            return np.empty(0, DTYPES[self.spec[name].dtype])
        old, shape = self._old[name], self.spec[name].shape
        heads = next((h for part, h in self._heads.items() if f".{part}." in old), 0)
        # A row is what is dequantised at once. Where rows are reordered, all of a head's are read.
        width = (shape[-1] if len(shape) > 1 else 1) if len(shape) > 1 or heads else self.spec[name].size
        rows = self.spec[name].size // width
        first, last = start // width, -(-stop // width)
        per = rows // heads if heads else 1
        low, high = first // per * per, -(-last // per) * per
        offset, size, kind = self._at[old]
        raw = self._bytes(offset + low * (size // rows), (high - low) * (size // rows)).reshape(high - low, -1)
        if heads:
            k = np.arange(first, last)
            raw = raw[k // per * per + k % per % (per // 2) * 2 + k % per // (per // 2) - low]
        else:
            raw = raw[first - low : last - low]
        return self._values(raw, kind, self.spec[name].dtype)[start - first * width : stop - first * width]

    def _values(self, raw: np.ndarray, kind: Any, dtype: str) -> np.ndarray:
        if kind.name in STORED:
            return np.ascontiguousarray(raw).reshape(-1).view(DTYPES[dtype])
        from gguf import quants

        try:
            return quants.dequantize(raw, kind).reshape(-1)
        except NotImplementedError:
            raise InputError(f"{self.files[0]}: gguf cannot dequantise {kind.name} yet.") from None

    def _bytes(self, offset: int, size: int) -> np.ndarray:
        path = self.files[0]
        out = np.empty(size, np.uint8)
        try:
            with path.open("rb", buffering=0) as file, io.BufferedReader(file, 1 << 20) as reader:
                reader.seek(offset)
                got = reader.readinto(out.data)
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}.") from error
        if got != size:
            raise InputError(f"{path} became shorter while it was read.")
        return out

    def derived(self) -> dict[str, bytes]:
        """Config and tokenizer as transformers derives them from the file's own words; nothing, with a warning, if it cannot."""
        path = self.files[0]
        if not self.mapped:
            return {}
        try:
            found = _through_transformers(path)
        except Exception as error:  # transformers raises many kinds; all mean that there is no config
            said = " ".join(str(error).split())
            warnings.warn(
                f"no config.json could be derived from {path.name} ({type(error).__name__}: {said[:300]}): the output has weights "
                "alone. Copy config.json and the tokenizer of the model it was made from into it.",
                stacklevel=2,
            )
            return {}
        return found


def _names(architecture: str, old: list[str]) -> dict[str, str] | None:
    """transformers' name -> GGUF name; None where one of them is not known."""
    if architecture not in PERMUTED:
        return None
    names: dict[str, str] = {}
    for name in old:
        match = TENSOR.fullmatch(name)
        if name in DERIVED:
            continue
        if match is None or match[2] not in NAMES:
            return None
        within = f"model.layers.{match[1]}." if match[1] is not None else ""
        names[f"{within}{NAMES[match[2]]}.{match[3]}"] = name
    return names


def _heads(architecture: str, fields: dict[str, Any]) -> dict[str, int]:
    """Of reordered tensors, how many heads they have."""
    if not PERMUTED[architecture]:
        return {}
    heads = fields.get(f"{architecture}.attention.head_count")
    shared = fields.get(f"{architecture}.attention.head_count_kv", heads)
    if not isinstance(heads, int) or not isinstance(shared, int) or heads < 1 or shared < 1:
        raise NotACheckpoint(f"a GGUF file of {architecture} needs its numbers of heads, got {heads!r} and {shared!r}.")
    return {"attn_q": heads, "attn_k": shared}


def _through_transformers(path: Path) -> dict[str, bytes]:
    import transformers
    from transformers.models.auto import modeling_auto

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        where = {"gguf_file": path.name, "local_files_only": True}
        config = transformers.AutoConfig.from_pretrained(str(path.parent), **where)
        config.save_pretrained(folder)
        try:
            transformers.AutoTokenizer.from_pretrained(str(path.parent), **where).save_pretrained(folder)
        except Exception as error:
            warnings.warn(
                f"no tokenizer could be derived from {path.name} ({type(error).__name__}): copy that of the model it was made "
                "from into the output.",
                stacklevel=3,
            )
        found = {n: (Path(folder) / n).read_bytes() for n in SIDE_FILES if (Path(folder) / n).is_file()}
    table = json.loads(found["config.json"])
    kind = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(table.get("model_type"))
    table |= {"dtype": "float32"} | ({"architectures": [kind]} if isinstance(kind, str) else {})
    return found | {"config.json": (json.dumps(table, indent=2, ensure_ascii=False) + "\n").encode()}
