"""Models whose tokenizers differ: the rows of embeddings and output layers, gathered for another vocabulary by token."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ..errors import InputError, KeyMismatch, UnknownName, UsageError, nearest, quoted, some
from . import graph
from .algebra import Checkpoint
from .dtypes import TensorSpec
from .gather import MEAN, PADDING, ZERO
from .graph import Node
from .lineage import root
from .vocabulary import Vocabulary, read_vocabulary, union

# What networks call the tensors whose rows are tokens: input embeddings, and what follows the last layer (weights and biases).
# A model in which they differ in their number of rows is refused.
VOCABULARY = re.compile(
    r"(^|\.)(embed_tokens|wte|word_embeddings?|tok_embeddings|tokens_embed|token_embedding|embed_in|shared|embeddings)\.weight$"
    r"|(^|\.)(lm_head(\.decoder)?|embed_out|predictions(\.decoder)?|vocab_projector|output_layer|generator_lm_head|lm_loss)"
    r"\.(weight|bias)$|^(output|head|proj_out)\.weight$|(^|\.)final_logits_bias$"
)

Donor = Checkpoint | tuple[Checkpoint, str | int] | Literal[0] | None


@dataclass(frozen=True, eq=False)
class Rows:
    """Where each row of an aligned tensor comes from.

    Args:
        tensors: the names it is done to.
        which: for each row, the node's input it is copied from; ZERO, MEAN (see `means`), or PADDING (the mean of all
            rows of tokens).
        old: its place there.
        means: row -> (input, place) of the rows it is the mean of.
        vocabulary: the tokens of the rows.
        owners: the inputs whose vocabulary it is: one, or those of a union.
        said: what else was chosen, as it is printed: donors, missing, tokens, force, pad_to_multiple_of.
    """

    tensors: frozenset[str]
    which: np.ndarray
    old: np.ndarray
    means: Mapping[int, tuple[tuple[int, int], ...]]
    vocabulary: Vocabulary
    owners: tuple[int, ...]
    joined: bool
    said: Mapping[str, Any]
    padding: dict[str, np.ndarray] = field(default_factory=dict)  # name -> the mean of all rows of tokens, once known

    def __repr__(self) -> str:
        """For digests: equal texts, equal rows and tokenizers."""
        h = hashlib.blake2b(self.which.tobytes() + self.old.tobytes(), digest_size=16)
        h.update(repr((sorted(self.means.items()), sorted(self.tensors), self.owners)).encode())
        return f"Rows({h.hexdigest()} {self.vocabulary.digest()})"

    def counts(self) -> dict[int, int]:
        """Input (or ZERO, MEAN, PADDING) -> how many rows come from it."""
        which, n = np.unique(self.which, return_counts=True)
        return dict(zip(which.tolist(), n.tolist(), strict=True))


def rows_of(spec: TensorSpec) -> int:
    """The rows of a tensor of tokens; a bias of shape (1, rows) has them in its second axis."""
    return spec.shape[1] if len(spec.shape) == 2 and spec.shape[0] == 1 else spec.shape[0] if spec.shape else 0


def _with_rows(spec: TensorSpec, rows: int) -> TensorSpec:
    shape = (1, rows) if len(spec.shape) == 2 and spec.shape[0] == 1 else (rows, *spec.shape[1:])
    return TensorSpec(spec.dtype, shape)


def vocabulary_tensors(spec: Mapping[str, TensorSpec]) -> tuple[str, ...]:
    """The tensors whose rows are tokens, by name (see VOCABULARY); none if no name is known.

    Example:
        >>> spec = {"model.embed_tokens.weight": TensorSpec("F32", (9, 4)), "model.norm.weight": TensorSpec("F32", (4,))}
        >>> vocabulary_tensors(spec)
        ('model.embed_tokens.weight',)
    """
    return tuple(n for n, s in spec.items() if s.is_float and VOCABULARY.search(n) and rows_of(s) > 1)


def vocabulary_of(node: Node, label: str) -> Vocabulary:
    """The vocabulary of a point: of the tokenizer beside the file it goes back to, or the one it was aligned to.

    Raises:
        InputError: there is none.
    """
    there = origin(node)
    if there.op is graph.ALIGN:
        return there.params["rows"].vocabulary
    folder = there.source.described() if there.source is not None else None
    if folder is None:
        file = there.source.files[0].name if there.source is not None and there.source.files else ""
        if file.endswith(".gguf"):
            raise InputError(
                f"{label} is the GGUF file {file}, whose tokenizer is not looked at here. Write it as a folder first (`taskvec edit {label} --let "
                f"{label}={file} -o FOLDER`), and name that."
            )
        raise InputError(
            f"{label} was not read from a folder, so that no tokenizer lies beside it and which token a row stands for is unknown."
        )
    return read_vocabulary(folder, label)


def origin(node: Node) -> Node:
    """The file or the alignment that a point's rows go back to."""
    node = root(node)
    while node.op is graph.STACK:
        node = root(node.inputs[0])
    return node


@dataclass(frozen=True)
class _Model:
    """A checkpoint as alignment sees it."""

    place: int  # among the node's inputs
    point: Checkpoint
    tensors: tuple[str, ...]
    rows: int | None  # of its embedding; None for a folder that holds a tokenizer alone
    vocabulary: Vocabulary
    tokens: Mapping[str, int]  # those that have a row


def aligned(
    point: Checkpoint, to: Checkpoint | Sequence[Checkpoint], *, donors: Sequence[Checkpoint] | None = None,
    missing: Literal["base", "mean", "zero"] = "base", tokens: Mapping[str, Donor] | None = None, force: Sequence[str] = (),
    pad_to_multiple_of: int | None = None,
) -> Checkpoint:  # fmt: skip
    r"""A checkpoint in the vocabulary of another one, or in the union of several: rows are matched by the text of their token.

    Row :math:`r` of an embedding (and of the output layer, weight and bias) becomes the model's own row of the token that has the
    number :math:`r` in the new vocabulary. A token that the model lacks gets the row of the first donor, else the mean over
    the donors that have it, else zeros. All other tensors stay as they are. A folder written from the result carries the
    tokenizer of the new vocabulary, and a config with its size and its special tokens.

    Args:
        point: the checkpoint; a tokenizer lies in its folder.
        to: whose vocabulary: a checkpoint, or several for the union, which keeps the first one's numbers.
        donors: whose rows stand in for tokens that `point` lacks, the base first; else those of `to`.
        missing: "base" as above, "mean" without preference for the first donor, "zero" for zeros.
        tokens: token -> whose row it gets where it is lacking: a checkpoint, (a checkpoint, its token or row), 0 for zeros, or
            None for the rule above. A token that the vocabulary lacks is added to it.
        force: those of `tokens` that get that row even where `point` has one of its own.
        pad_to_multiple_of: rows of the result are a multiple of it; those beyond the tokens are the mean of all others. Without
            it a single `to` gives its number of rows, and its rows where no token is.
    Returns:
        the aligned checkpoint, lazy; `point` itself if nothing changes.
    Raises:
        InputError: no tokenizer, a damaged one, or a token that a named donor lacks.
        KeyMismatch: no tensor whose rows are tokens, or a donor's is missing or of another width.
    """
    owners = [to] if isinstance(to, Checkpoint) else list(to)
    if not owners:
        raise UsageError("aligned needs a vocabulary: a checkpoint, or a list of them for the union of theirs.")
    if pad_to_multiple_of is not None and (isinstance(pad_to_multiple_of, bool) or pad_to_multiple_of < 1):
        raise UsageError(f"aligned: pad_to_multiple_of is {pad_to_multiple_of!r}; it must be a positive whole number.")
    if missing not in ("base", "mean", "zero"):
        raise UsageError(f"aligned: missing is {missing!r}; it is 'base', 'mean' or 'zero'.")
    tokens = dict(tokens or {})
    for token in force:
        if token not in tokens:
            raise UsageError(f"aligned: force names {quoted(token)}, which tokens does not say whose row it gets.")
    models: dict[str, _Model] = {}

    def model(of: Checkpoint) -> _Model:
        if of.node.key not in models:
            models[of.node.key] = _model(len(models), of)
        return models[of.node.key]

    mine = model(point)
    if mine.rows is None:
        raise KeyMismatch(
            f"{point.label} has no tensor whose rows are known to be tokens (an embedding or an output layer, by name): it has "
            f"{some(point.names)}."
        )
    whose = [model(o) for o in owners]
    giving = [m for m in ([model(d) for d in donors] if donors is not None else whose) if m.rows is not None]
    giving = list({m.place: m for m in giving}.values())
    _one_kind(whose)
    table = union((m.vocabulary, m.rows) for m in whose) if len(whose) > 1 else dict(whose[0].tokens)
    size = 1 + max(table.values(), default=-1)
    for token in tokens:
        if token not in table:
            table[token] = size
            size += 1
    owned = whose[0].rows or 0
    total = size if pad_to_multiple_of is None else -(-size // pad_to_multiple_of) * pad_to_multiple_of
    if pad_to_multiple_of is None and len(whose) == 1:
        total = max(size, owned)
    # Rows without a token: the first owner's, where it has such a row; beyond the tokens of a new number of rows, their mean.
    which, old = np.full(total, PADDING, np.int64), np.arange(total)
    kept = min(total, owned, size if pad_to_multiple_of is not None or len(whose) > 1 else total)
    which[:kept] = whose[0].place
    means: dict[int, tuple[tuple[int, int], ...]] = {}
    named = {t: _donor(t, d, model) for t, d in tokens.items()}
    forced = set(force)
    for token, row in table.items():
        own = mine.tokens.get(token)
        chosen = named.get(token)
        if own is not None and token not in forced:
            which[row], old[row] = mine.place, own
        elif chosen is not None:
            which[row], old[row] = chosen
        else:
            _fill(
                row,
                [(m.place, m.tokens[token]) for m in giving if token in m.tokens],
                giving,
                missing,
                which,
                old,
                means,
            )
    if total == mine.rows and (which == mine.place).all() and (old == np.arange(total)).all():
        return point
    _check_tensors(mine, list(models.values()), which, means)
    said = {
        "donors": None if donors is None else tuple(model(d).place for d in donors),
        "missing": None if missing == "base" else missing,
        "tokens": {t: _said(d, model) for t, d in tokens.items()} or None,
        "force": list(force) or None,
        "pad_to_multiple_of": pad_to_multiple_of,
    }
    first = whose[0].vocabulary
    added = frozenset().union(*(m.vocabulary.added for m in whose)) | (
        table.keys() - first.tokens.keys() if tokens else set()
    )
    vocabulary = Vocabulary(first.label, table, first.folder, first.kind, added & table.keys())
    rows = Rows(
        frozenset(mine.tensors), which, old, means, vocabulary, tuple(m.place for m in whose), not isinstance(to, Checkpoint),
        {k: v for k, v in said.items() if v is not None},
    )  # fmt: skip
    spec = {n: _with_rows(s, total) if n in rows.tensors else s for n, s in point.spec.items()}
    node = graph.align([m.point.node for m in models.values()], spec, rows)
    return Checkpoint(node, point.label, point.partial)


def _fill(
    row: int, having: list[tuple[int, int]], giving: Sequence[_Model], missing: str, which: np.ndarray, old: np.ndarray,
    means: dict[int, tuple[tuple[int, int], ...]],
) -> None:  # fmt: skip
    """What a row gets whose token the model lacks."""
    if not having or missing == "zero":
        which[row] = ZERO
    elif len(having) == 1 or (missing == "base" and having[0][0] == giving[0].place):
        which[row], old[row] = having[0]
    else:
        which[row] = MEAN
        means[row] = tuple(having)


def _model(place: int, of: Checkpoint) -> _Model:
    tensors = vocabulary_tensors(of.spec)
    sizes = {rows_of(of.spec[n]) for n in tensors}
    if len(sizes) > 1:
        said = ", ".join(f"{n} has {rows_of(of.spec[n])}" for n in tensors)
        raise InputError(f"{of.label}: the tensors whose rows are tokens differ in their number of rows ({said}).")
    rows = sizes.pop() if sizes else None
    vocabulary = vocabulary_of(of.node, of.label)
    return _Model(place, of, tensors, rows, vocabulary, vocabulary.below(rows))


def _one_kind(whose: Sequence[_Model]) -> None:
    kinds = {m.vocabulary.kind: m.point.label for m in whose}
    if len(whose) > 1 and len(kinds) > 1:
        said = " and ".join(f"{label} has {kind or 'one of unknown kind'}" for kind, label in kinds.items())
        raise InputError(
            f"a union needs tokenizers of one kind: {said}. Tokens that the other kind cannot cut a text into would be rows without use; "
            "name the vocabulary of one model instead."
        )


def _donor(token: str, donor: Donor, model: Any) -> tuple[int, int] | None:
    """(input, place) of the row a token gets where it is lacking; None for the rule."""
    if donor is None:
        return None
    if donor == 0 and not isinstance(donor, (Checkpoint, tuple)):
        return ZERO, 0
    of, like = donor if isinstance(donor, tuple) else (donor, token)
    if not isinstance(of, Checkpoint) or isinstance(like, bool) or not isinstance(like, (str, int)):
        raise UsageError(
            f"aligned: {quoted(token)} gets a checkpoint's row, (a checkpoint, its token or row), 0 or None."
        )
    m = model(of)
    if m.rows is None:
        raise InputError(f"aligned: {of.label}, whose row {quoted(token)} shall get, holds no embedding.")
    if isinstance(like, int):
        if not 0 <= like < m.rows:
            raise InputError(
                f"aligned: {quoted(token)} shall get the row {like} of {of.label}, which has the rows 0 to {m.rows - 1}."
            )
        return m.place, like
    if like not in m.tokens:
        raise UnknownName(
            f"aligned: {of.label} has no token {quoted(like)}, whose row {quoted(token)} shall get.{nearest(like, m.tokens)}"
        )
    return m.place, m.tokens[like]


def _said(donor: Donor, model: Any) -> Any:
    """A donor for printing: the place of its checkpoint instead of that."""
    if isinstance(donor, tuple):
        return (model(donor[0]).place, donor[1])
    return (model(donor).place,) if isinstance(donor, Checkpoint) else donor


def _check_tensors(mine: _Model, models: Sequence[_Model], which: np.ndarray, means: Mapping[int, Any]) -> None:
    """Every donor that gives a row has the tensors, in the same width."""
    used = set(np.unique(which).tolist()) | {i for having in means.values() for i, _ in having}
    for m in models:
        if m.place not in used:
            continue
        for n in mine.tensors:
            s = m.point.spec[n] if n in m.tensors else None
            if s is None or (s.shape[1:] != mine.point.spec[n].shape[1:] and s.shape[:1] != (1,)):
                found = "has no such tensor" if s is None else f"has it as {s}"
                raise KeyMismatch(
                    f"{mine.point.label} lacks tokens that would get rows of {m.point.label} in {quoted(n)} ({mine.point.spec[n]}), "
                    f"which {found}."
                )
