"""Whether the models of an edit agree on what their rows stand for, and what was done where they do not."""

from __future__ import annotations

import filecmp
from collections.abc import Iterable, Iterator

from ..errors import InputError, UsageError, plain, some
from ..files import exists
from . import graph
from .aligned import Rows, origin, rows_of, vocabulary_of, vocabulary_tensors
from .gather import MEAN, PADDING, ZERO
from .graph import Node
from .vocabulary import PLAIN, Vocabulary, apart


def plain_vocabulary(node: Node, label: str) -> Vocabulary | None:
    """As `vocabulary_of`, and None where there is no tokenizer, a damaged one, or one that needs a library to be read: for
    looking whether models agree, which must not stop an edit that does not ask for it."""
    there = origin(node)
    try:
        folder = there.source.described() if there.source is not None else None
        if there.op is not graph.ALIGN and (folder is None or not any(exists(folder / n) for n in PLAIN)):
            return None
        return vocabulary_of(node, label)
    except InputError:
        return None


def alignment_notes(node: Node) -> Iterable[str]:
    """What was brought together: where the rows of each aligned model come from."""
    from .text import source_names

    names = source_names(node)
    for n in graph.walk(node):
        if n.op is not graph.ALIGN:
            continue
        rows: Rows = n.params["rows"]
        labels = {i: names.get(origin(m).key, "another") for i, m in enumerate(n.inputs)}
        labels |= {ZERO: "zeros", MEAN: "means of several models", PADDING: "padding"}
        said = ", ".join(
            f"{c:,} {labels[i]}" for i, c in sorted(rows.counts().items(), key=lambda p: (p[0] < 0, abs(p[0])))
        )
        yield plain(
            f"{labels[0]} in {len(rows.which):,} rows for {len(rows.vocabulary.tokens):,} tokens ({some(sorted(rows.tensors))}): {said}."
        )
        other = [
            m
            for m, s in n.spec.items()
            if m not in rows.tensors and s.shape[:1] == (rows_of(n.inputs[0].spec[min(rows.tensors)]),)
        ]
        if other:
            yield plain(
                f"{labels[0]}: {some(other)} has as many rows as the embedding; its name is not known and it stays as it is."
            )


def tokens_apart(a: Node, b: Node, a_label: str, b_label: str) -> str:
    """For an error about shapes: how the vocabularies of two points differ, if tokenizers lie beside both; else empty."""
    names = set(vocabulary_tensors(a.spec)) & set(vocabulary_tensors(b.spec))
    if not any(a.spec[n].shape != b.spec[n].shape for n in names):
        return ""
    try:
        found = apart(vocabulary_of(a, a_label).tokens, vocabulary_of(b, b_label).tokens)
    except (InputError, UsageError):
        return ""
    if not found.tokens:
        return f"\nThe tokenizers of {a_label} and {b_label} are the same, their embeddings are padded differently: aligned({a_label}, {b_label})."
    return (
        f"\nThe tokenizers of {a_label} and {b_label} differ in {found}. Say which one counts: aligned({a_label}, {b_label}) "
        f"brings the rows of {a_label} into the vocabulary of {b_label} token by token; `taskvec edit --tokenizer {b_label}` "
        "(or union) does so for all inputs."
    )


def _same_file(a: Node, b: Node) -> bool:
    """Whether two files have the same tokenizer.json, byte by byte: most fine-tuned models have, and reading it takes longer."""
    folders = [n.source.folder for n in (a, b) if n.op is graph.READ and n.source is not None]  # what is here already
    paths = [f / "tokenizer.json" for f in folders if f is not None and (f / "tokenizer.json").is_file()]
    return len(paths) == 2 and filecmp.cmp(*paths, shallow=False)


def check_vocabularies(node: Node) -> None:
    """Refuse an edit of embeddings, or a vector of them, whose models give a row different tokens, and for which no
    vocabulary was chosen.

    Raises:
        InputError: with how many tokens differ, and some of them.
    """
    for edit, names in _edits(node, vocabulary_tensors(node.spec)):
        if said := _clash(edit, names):
            raise InputError(
                f"{said[0]} Say which vocabulary counts with --tokenizer {said[1]} (or union, or another input), which aligns "
                "them token by token; with --tokenizer none rows are combined by their number."
            )


def clash_notes(node: Node) -> Iterable[str]:
    """What `check_vocabularies` refuses, as remarks."""
    for edit, names in _edits(node, vocabulary_tensors(node.spec)):
        if said := _clash(edit, names):
            yield plain(f"{said[0]} `taskvec edit` with aligned() or --tokenizer brings them together token by token.")


def _edits(node: Node, names: Iterable[str]) -> Iterator[tuple[Node, list[str]]]:
    """The sums and differences that an expression comes down to, with their tensors of tokens that it keeps."""
    held = [n for n in names if n in node.spec]
    if not held or node.op is graph.READ:
        return
    if node.op in (graph.RESTRICT, graph.REBASE, graph.AS_VECTOR):
        yield from _edits(node.inputs[0], held)
    elif node.op is graph.RENAME:
        yield from _edits(node.inputs[0], [node.params["old"][n] for n in held])
    elif node.op is graph.STACK:
        for i, inner in enumerate(node.inputs):
            yield from _edits(inner, [old for at, old in (node.params["old"][n] for n in held) if at == i])
    elif node.op is graph.ALIGN:
        for inner in node.inputs:
            yield from _edits(inner, held)
    else:
        yield node, held


def _clash(node: Node, names: list[str]) -> tuple[str, str] | None:
    """How the models of a sum or difference differ about the rows of some tensors, and whose rows the first ones are."""
    names = [n for n in names if node.op is not graph.MOVE or graph.untouched(node, n) is None]
    points: dict[str, tuple[Node, str]] = {}
    aligned: list[Node] = []

    def visit(n: Node) -> None:
        if n.op in (graph.ALIGN, graph.READ):
            source = origin(n.inputs[0] if n.op is graph.ALIGN else n).source
            if any(m in n.spec for m in names):
                points.setdefault(n.key, (n, source.label if source is not None else "a model"))
                aligned.extend(n.inputs)
        elif n.op is not graph.RESTRICT or any(m in n.spec for m in names):
            for m in (n.expansion,) if n.expansion is not None else n.inputs:
                visit(m)

    if not names:
        return None
    visit(node)
    for inner in aligned:  # each in itself
        for edit, held in _edits(inner, names):
            if said := _clash(edit, held):
                return said
    (first, base), *others = list(points.values()) or [(node, "")]
    for other, label in others:
        if _same_file(first, other):
            continue
        mine, theirs = plain_vocabulary(first, base), plain_vocabulary(other, label)
        if mine is None or theirs is None:
            continue
        found = apart(mine.tokens, theirs.tokens)
        if found.clashes:
            return (
                f"the tokenizers of {base} and {label} differ in {found}, so that rows of {some(names)} stand for different tokens.",
                base,
            )
    return None
