"""The model card of a written folder: README.md as the Hugging Face hub reads it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from ..address import parse_address
from ..errors import plain
from .graph import Node, walk
from .lineage import root
from .source import Source

CARD = "README.md"
MARK = "<!-- written by taskvec -->"  # a card without it is someone's own, and is kept when the folder is replaced


def model_card(node: Node, info: Mapping[str, Any], beside: Iterable[str], config: bytes | None) -> str:
    """Metadata (base_model, tags, library_name), the recipe, and the inputs with their sha256. Equal edits have equal cards: the
    folder's name is not in it.

    Args:
        node: what was computed.
        info: its recipe, as `taskvec.json` holds it.
        beside: names of the files that lie beside the weights.
        config: config.json, if there is one.
    """
    import yaml

    inputs = {id(n.source): n.source for n in walk(node) if n.source is not None}
    models = [_published(s) for s in inputs.values() if s.metadata.get("taskvec.kind") != "vector"]
    origin = root(node).source
    first = [_published(origin)] if origin is not None else []
    library = _library(set(beside), config)
    head: dict[str, Any] = {"base_model": list(dict.fromkeys([*first, *models])) or None}
    head |= {"base_model_relation": "merge" if len(models) > 1 or len(inputs) > 1 else "finetune"}
    head |= {"library_name": library, "tags": ["task-arithmetic", "merge", "taskvec"]}
    said = yaml.safe_dump({k: v for k, v in head.items() if v}, sort_keys=False, allow_unicode=True)
    rows = "".join(
        f"| {_cell(who)} | {_cell(entry['read'] or 'in memory')} | {_cell(_hashes(entry['sha256']))} |\n"
        for who, entry in info["inputs"].items()
    )
    form = f", in {_cell(info['dtype'])}" if info.get("dtype") else ""
    return (
        f"---\n{said}---\n{MARK}\n# {' and '.join(map(plain, head['base_model'] or ['a model']))}, edited\n\nMade by arithmetic on the weights of the models below, with taskvec "
        f"{info['taskvec']}{form}:\n\n```\n{plain(info['expression']).replace('```', '')}\n```\n\n"
        f"| input | read from | sha256 |\n|---|---|---|\n{rows}\n"
        "`taskvec verify`, given this folder, computes it again from these inputs and compares every byte.\n"
    )


def _published(source: Source) -> str:
    """The hub's name of a model that lies in its cache (models--org--name/snapshots/...), else the folder's name."""
    if source.origin is not None:
        return parse_address(source.origin).repo
    place = source.folder or (source.files[0] if source.files else None)
    if place is None:
        return source.label
    for part in reversed(place.absolute().parts):
        if part.startswith("models--"):
            return part.removeprefix("models--").replace("--", "/")
    return place.name


def _library(beside: set[str], config: bytes | None) -> str | None:
    if "open_clip_config.json" in beside:
        return "open_clip"
    if "modules.json" in beside:
        return "sentence-transformers"
    try:
        table = json.loads(config) if config else {}
    except (ValueError, RecursionError):
        table = {}
    if not isinstance(table, dict):
        return None
    return "timm" if "pretrained_cfg" in table else "transformers" if "model_type" in table else None


def _hashes(table: Mapping[str, str]) -> str:
    return ", ".join(f"{file} {digest}" for file, digest in table.items()) or "-"


def _cell(text: str) -> str:
    return plain(text).replace("|", "\\|").replace("`", "'")
