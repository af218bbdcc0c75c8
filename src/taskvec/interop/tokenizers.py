"""Tokenizers of merged models: whose vocabulary the output has, where rows come from, and the chat template."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, TaskvecError, UnknownName, UsageError, nearest, quoted
from ..weights import Checkpoint
from ..weights.agreement import plain_vocabulary
from ..weights.aligned import rows_of, vocabulary_of, vocabulary_tensors
from ..weights.lineage import root
from ..weights.output import side_files
from ..weights.vocabulary import TOKENIZER_FILES, apart, has_tokenizer

if TYPE_CHECKING:
    from .mergekit import Config
    from .models import Names

KEYS = ("source", "tokens", "pad_to_multiple_of")
TEMPLATES = ("alpaca", "chatml", "exaone", "llama3", "mistral")  # that mergekit carries under these names


@dataclass(frozen=True)
class Token:
    """What the config says of one token: a model, (a model, its token or row), 0 for zeros, None for the rule."""

    source: str | tuple[str, str | int] | int | None = None
    force: bool = False


@dataclass(frozen=True)
class Tokenizer:
    """`tokenizer_source`, or the table `tokenizer`."""

    source: str
    tokens: Mapping[str, Token] = field(default_factory=dict)
    pad: int | None = None


Wrong = Callable[..., None]


def read_tokenizer(table: Mapping[str, Any], wrong: Wrong) -> Tokenizer | None:
    """What a config says of its tokenizer; mistakes go to `wrong`."""
    given, source = table.get("tokenizer"), table.get("tokenizer_source")
    if given is None:
        if isinstance(source, (str, type(None))):
            return None if source is None else Tokenizer(source)
        wrong(f"tokenizer_source must be `base`, `union` or a model, got {source!r}.")
        return None
    if source is not None:
        wrong("tokenizer_source and tokenizer cannot both be given.")
    if not isinstance(given, dict):
        wrong(f"`tokenizer` must be a table with {', '.join(KEYS)}, got {given!r}.")
        return None
    for key in given:
        if key not in KEYS:
            wrong(
                f"tokenizer has the unknown key {key!r}; it has {', '.join(KEYS)}.{nearest(str(key), KEYS)}",
                UnknownName,
            )
    source, pad, tokens = given.get("source", "union"), given.get("pad_to_multiple_of"), given.get("tokens") or {}
    if not isinstance(source, str):
        wrong(f"tokenizer.source must be `base`, `union` or a model, got {source!r}.")
        source = "base"
    if pad is not None and (type(pad) is not int or pad < 1):
        wrong(f"tokenizer.pad_to_multiple_of must be a positive whole number, got {pad!r}.")
        pad = None
    if not isinstance(tokens, dict):
        wrong(f"tokenizer.tokens must be a table of tokens, got {tokens!r}.")
        tokens = {}
    return Tokenizer(source, {t: _token(t, entry, wrong) for t, entry in tokens.items()}, pad)


def _token(token: str, entry: Any, wrong: Wrong) -> Token:
    where = f"tokenizer.tokens[{quoted(token)}]"
    if not isinstance(entry, dict):
        wrong(f"{where} must be a table with source and force, got {entry!r}.")
        return Token()
    for key in entry:
        if key not in ("source", "force"):
            wrong(f"{where} has the unknown key {key!r}; it has source and force.", UnknownName)
    source, force = entry.get("source"), entry.get("force", False)
    if not isinstance(force, bool):
        wrong(f"{where}.force must be true or false, got {force!r}.")
    if source is None or isinstance(source, str):
        if source is None and force:
            wrong(f"{where} forces a row and names no source.")
        return Token(source, bool(force))
    kind = source.get("kind") if isinstance(source, dict) else None
    if kind == "zero" and set(source) == {"kind"}:
        return Token(0, bool(force))
    if (
        kind == "model_token"
        and set(source) <= {"kind", "model", "token", "token_id"}
        and isinstance(source.get("model"), str)
    ):
        like = [source[k] for k in ("token", "token_id") if source.get(k) is not None]
        if len(like) == 1 and type(like[0]) is (str if source.get("token") is not None else int):
            return Token((source["model"], like[0]), bool(force))
        wrong(f"{where}.source needs either `token`, a text, or `token_id`, a number.")
        return Token()
    wrong(
        f"{where}.source must be a model, {{kind: zero}}, or {{kind: model_token, model: ..., token: ...}} (or token_id), got {source!r}."
    )
    return Token()


def check_template(template: Any, wrong: Wrong) -> str | None:
    """`auto` or the text of a template; mistakes go to `wrong`."""
    if template is None or template == "auto":
        return template
    if not isinstance(template, str):
        wrong(f"`chat_template` must be auto or the text of a Jinja template, got {template!r}.")
    elif "{" in template and len(template) >= 20:
        return template
    elif template in TEMPLATES:
        wrong(
            f"`chat_template: {template}` names a template of mergekit, whose texts are not carried here; put the Jinja text there."
        )
    else:
        wrong(f"`chat_template` must be auto or the text of a Jinja template, and {quoted(template)} is neither.")
    return None


def align(config: Config, names: Names, here: Path, notes: list[str]) -> dict[str, bytes]:
    """Bring the models of a document into one vocabulary: `names` then gives their aligned forms.

    Returns:
        the tokenizer files of the output, where no row moves and the tokenizer is not the origin's.
    Raises:
        InputError: tokenizers that differ while the config does not say whose counts.
    """
    models = list(config.models)
    points = {m: _point(names, m) for m in models}
    chosen = config.tokenizer
    if chosen is None:
        found = {m: v.tokens for m, p in points.items() if (v := plain_vocabulary(p.node, m)) is not None}
        _same(points, found, notes)
        return {}
    # Without a tokenizer: whether one is needed shows below.
    tables = {m: vocabulary_of(p.node, m).tokens for m, p in points.items() if has_tokenizer(_folder(p))}
    first = models[0]
    if chosen.source == "base" and config.base is None:
        raise UsageError("the tokenizer source `base` needs `base_model`.")
    source = {"base": config.base, "union": None}.get(chosen.source, chosen.source)
    owner = None if source is None else points[source] if source in points else _elsewhere(names, source, here)
    if owner is not None:
        tables.setdefault(source or "", vocabulary_of(owner.node, source or "").tokens)
    sizes = {rows_of(p.spec[n]) for p in points.values() for n in vocabulary_tensors(p.spec)}
    like = tables[source] if source else tables.get(first)
    if not chosen.tokens and chosen.pad is None and len(sizes) <= 1 and all(t == like for t in tables.values()):
        silent = [m for m in models if m not in tables]
        if silent:
            notes.append(
                f"{', '.join(silent)} has no tokenizer; its rows are taken to stand for the tokens of the others."
            )
        folder = _folder(owner) if owner is not None else None
        return (
            {} if folder is None else {f: (folder / f).read_bytes() for f in TOKENIZER_FILES if (folder / f).is_file()}
        )
    every = [names.said[m] for m in models]
    to = f"[{', '.join(every)}]" if source is None else names.said[source]
    given = f", donors=[{', '.join(every)}]" if source is not None else ""
    if config.base is None:
        given += ", missing='mean'"
    if chosen.tokens:
        said = {t: _donor(t, token, names, points) for t, token in chosen.tokens.items()}
        given += f", tokens={{{', '.join(f'{t!r}: {d}' for t, d in said.items())}}}"
    forced = [t for t, token in chosen.tokens.items() if token.force]
    given += f", force={forced!r}" if forced else ""
    given += f", pad_to_multiple_of={chosen.pad or 1}"  # rows that no token has are cut off
    aligned = {m: names.give(f"{names.said[m]}_aligned", f"aligned({names.said[m]}, {to}{given})") for m in models}
    names.said.update(aligned)
    return {}


def _point(names: Names, model: str) -> Checkpoint:
    value = names.values[names.of(model)]
    assert isinstance(value, Checkpoint)
    return value


def _elsewhere(names: Names, source: str, here: Path) -> Checkpoint:
    """A model or tokenizer that the config names for its vocabulary alone."""
    try:
        return _point(names, source)
    except TaskvecError as error:
        raise InputError(
            f"the tokenizer source {source!r} is neither base, union, a model nor a folder with a tokenizer: {error}"
        ) from None


def _same(points: Mapping[str, Checkpoint], tables: Mapping[str, Mapping[str, int]], notes: list[str]) -> None:
    """Refuse tokenizers that number tokens differently, where the config is silent."""
    sizes = {m: max((rows_of(p.spec[n]) for n in vocabulary_tensors(p.spec)), default=0) for m, p in points.items()}
    first = next(iter(tables), None)
    for m, table in tables.items():
        assert first is not None
        found = apart(tables[first], table)
        if found.clashes or (found.tokens and sizes[m] != sizes[first]):
            raise InputError(
                f"the tokenizers of {first} and {m} differ in {found}, and the config does not say whose counts. Add "
                "`tokenizer_source: base`, `union` or a model; embeddings are then matched token by token."
            )
        if found.tokens:
            notes.append(
                f"{first} and {m} differ in {found}, at rows that only one of them uses; rows are combined by number."
            )


def _donor(token: str, said: Token, names: Names, points: Mapping[str, Checkpoint]) -> str:
    """Whose row a token gets, as an expression says it."""
    if said.source is None or said.source == 0:
        return repr(said.source)
    model, like = said.source if isinstance(said.source, tuple) else (said.source, None)
    if model not in points:
        raise InputError(
            f"tokenizer.tokens[{quoted(token)}] names the model {model!r}, which is not merged here.{nearest(str(model), points)}"
        )
    return names.said[str(model)] if like is None else f"[{names.said[str(model)]}, {like!r}]"


def template_files(config: Config, names: Names, value: Checkpoint, beside: Mapping[str, bytes]) -> dict[str, bytes]:
    """The chat template that a config asks for, and a tokenizer_config.json that does not contradict it.

    `auto` is the template that most models have, the first of them where several are as frequent.
    """
    template = config.template
    if template is None:
        return {}
    if template == "auto":
        found = [t.strip() for m in config.models if (t := _template(_folder(_point(names, m))))]
        if not found:
            return {}
        template = Counter(found).most_common(1)[0][0]
    out = {"chat_template.jinja": template.encode()}
    files = {**side_files(value.node, dtype=None), **beside}
    tokenizer = _json(files.get("tokenizer_config.json"))
    if "chat_template" in tokenizer:
        left = {k: v for k, v in tokenizer.items() if k != "chat_template"}
        out["tokenizer_config.json"] = (json.dumps(left, indent=2, ensure_ascii=False) + "\n").encode()
    if "chat_template.json" in files:
        out["chat_template.json"] = (json.dumps({"chat_template": template}, indent=2) + "\n").encode()
    return out


def _folder(point: Checkpoint) -> Path | None:
    node = root(point.node)
    while node.inputs:
        node = root(node.inputs[0])
    return node.source.described() if node.source is not None else None


def _template(folder: Path | None) -> str | None:
    """The chat template of a model: of its own file, else of its tokenizer's config."""
    if folder is None:
        return None
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8", errors="replace")
    for name in ("chat_template.json", "tokenizer_config.json"):
        found = _json((folder / name).read_bytes() if (folder / name).is_file() else None).get("chat_template")
        if isinstance(found, list):  # several by name
            found = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}
        found = found.get("default") if isinstance(found, dict) else found
        if isinstance(found, str) and found:
            return found
    return None


def _json(content: bytes | None) -> dict[str, Any]:
    try:
        table = json.loads(content) if content else {}
    except (ValueError, RecursionError):
        return {}
    return table if isinstance(table, dict) else {}
