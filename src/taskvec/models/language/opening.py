"""Language models as transformers opens them: a module with its tokenizer."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ...address import is_address, parse_address
from ...errors import InputError, UsageError, missing_extra, some
from ...weights import Checkpoint
from ...weights.remote import local
from ..functional import require_torch
from ..hub import fetched, opening, require_transformers

if TYPE_CHECKING:
    import torch


Kind = Literal["causal", "seq2seq"]
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tokenizer_config.json")


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A language model and its tokenizer.

    Args:
        module: of transformers, in evaluation mode, float32.
        tokenizer: of transformers; a missing padding token is no obstacle, padding is done here.
        kind: ``"causal"`` continues its input; ``"seq2seq"`` answers it (T5).
        name: what tables call it.
        weights: the checkpoint it was read from, which task vectors are taken from; None for a module made otherwise.
    """

    module: torch.nn.Module
    tokenizer: Any
    kind: Kind
    name: str
    weights: Checkpoint | None = None

    @property
    def base(self) -> Checkpoint:
        """The weights as a point: those of the file, else a view of the module's own."""
        return self.weights or Checkpoint.of(self.module, label=self.name, copy=False)

    @property
    def longest(self) -> int | None:
        """Tokens that the model's positions allow, or None if they are relative (T5)."""
        config: Any = self.module.config
        return getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)


def language_model(path: str | Path, *, kind: Kind | None = None, gguf_file: str | None = None) -> LanguageModel:
    """Open a language model: a transformers folder, a GGUF file or a folder with one, or a model on the Hugging Face hub.

    An address or, where there is no such folder, an id is fetched into the hub client's cache. Code from a repository
    is never run.

    Args:
        path: ``"smollm2/"``, ``"model.gguf"``, ``"org/name"`` or ``"hf://org/name@revision"``.
        kind: ``"causal"`` or ``"seq2seq"``; read from the config unless told.
        gguf_file: which GGUF file of the folder or repository; needed only where there are several. Its weights are
            dequantised to float32.
    Raises:
        MissingExtra: transformers, torch, or gguf for a GGUF file, is not installed.
        InputError: nothing there, or not a language model with a tokenizer.
        KeyMismatch: the file lacks parameters that the model has, so that they would be random.
    """
    if kind not in (None, "causal", "seq2seq"):
        raise UsageError(f"kind is {kind!r}; choose 'causal' or 'seq2seq'.")
    require_torch("A language model", "language")
    transformers = require_transformers("A language model", "language")
    known = parse_address(path).name if is_address(path) else None  # the cache's folder is named by the commit
    place = local(parse_address(path)) if known else Path(path)
    if place.is_file() and place.suffix == ".gguf":
        place, gguf_file = place.parent, place.name
    if not place.is_dir() and not HUB_ID.fullmatch(str(path)):
        raise InputError(
            f"{path} is no folder, no .gguf file, and no id on the hub such as 'org/name'. Give the folder of a transformers model."
        )
    folder = fetched(place, download=True, files=[gguf_file] if gguf_file else None)
    if gguf_file is None and not (folder / "config.json").exists():
        found = sorted(f.name for f in folder.glob("*.gguf"))
        if len(found) != 1:
            what = f"{len(found)} GGUF files ({some(found)}); name one with gguf_file" if found else "no config.json"
            raise InputError(f"{path} has {what}. A language model is a transformers folder or a GGUF file.")
        gguf_file = found[0]
    name = known or (Path(gguf_file).stem if gguf_file else (folder.name if place.is_dir() else str(path)))
    options = {"gguf_file": gguf_file} if gguf_file else {}
    if options:
        _require_gguf(folder / str(gguf_file))
    elif not any((folder / n).exists() for n in TOKENIZERS):
        raise InputError(
            f"{path} has no tokenizer (none of {', '.join(TOKENIZERS)}). Put the files of the model it was made from beside the weights."
        )
    if kind is None and gguf_file:
        kind = (
            "causal"  # llama.cpp's other models are rare, and reading the config takes as long as reading the weights
        )
    if kind is None:
        with opening(folder, "a language model"):
            config = transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True)
        kind = "seq2seq" if config.is_encoder_decoder else "causal"
    auto: Any = {"causal": transformers.AutoModelForCausalLM, "seq2seq": transformers.AutoModelForSeq2SeqLM}[kind]
    import torch

    bars = contextlib.redirect_stderr(io.StringIO()) if gguf_file else contextlib.nullcontext()  # gguf has its own
    with opening(folder / (gguf_file or ""), f"a {kind} language model"), torch.random.fork_rng(devices=[]), bars:
        module, report = auto.from_pretrained(
            str(folder), dtype=torch.float32, local_files_only=True, output_loading_info=True, **options
        )
    absent = sorted(report["missing_keys"])
    if absent:
        raise _lacking(folder, absent, type(module).__name__)
    module.eval().requires_grad_(False)
    with opening(folder / (gguf_file or ""), "a tokenizer"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True, **options)
    weights = None if gguf_file else under_names(Checkpoint.read(folder, label=name), module)
    return LanguageModel(module, tokenizer, kind, name, weights)


def _lacking(folder: Path, absent: Sequence[str], kind: str) -> Exception:
    from ...errors import KeyMismatch

    return KeyMismatch(
        f"{folder} lacks {len(absent)} parameters of {kind} ({some(absent)}); they would be random. Name a whole language model."
    )


def _require_gguf(path: Path) -> None:
    if not path.exists():
        raise InputError(f"there is no GGUF file {path}.")
    for needed in ("gguf", "accelerate"):
        if importlib.util.find_spec(needed) is None:
            raise missing_extra(needed, "language", f"reading {path.name}")


def under_names(weights: Checkpoint, module: torch.nn.Module) -> Checkpoint:
    """The weights under the module's names, where a file has others (a prefix) or more (buffers of older versions)."""
    known = {n for n, _ in module.named_parameters(remove_duplicate=False)} | {n for n, _ in module.named_buffers()}
    if all(n in known for n in weights.names):
        return weights
    table = Checkpoint.of(module, label="the module", copy=False)
    if all(n in weights.names for n in table.names):
        return weights.restrict([n for n in weights.names if n in known])
    return weights.shared(table)


def padding(model: LanguageModel) -> int:
    """The token that fills rows up to one length; masked where it is read."""
    config: Any = model.module.config
    known = (model.tokenizer.pad_token_id, config.pad_token_id, model.tokenizer.eos_token_id, 0)
    return int(next(t for t in known if t is not None))
