"""The models that a mergekit config names: folders, adapters on them, earlier documents, and what lies in which module."""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..address import is_address, parse_address
from ..errors import InputError, nearest
from ..files import exists
from ..methods import METHODS as OURS
from ..recipe import FUNCTIONS, parse
from ..weights import Checkpoint, TaskVector, open_weights
from ..weights.source import readable


def module_of(name: str, modules: Container[str]) -> str | None:
    """The module of a network that a tensor lies in, of those that are named; None if it lies in none of them.

    Its name says so at the beginning (T5, Whisper: ``decoder.block.0...``, ``model.encoder.conv1``); networks of images and
    text have names for their modules in mergekit that are not their tensors', and what is left is the text's.

    Example:
        >>> [module_of(n, ["encoder", "decoder"]) for n in ("model.encoder.conv1.weight", "decoder.block.0.w", "lm_head.weight")]
        ['encoder', 'decoder', 'decoder']
    """
    for word in name.split(".")[:3]:
        if word in modules:
            return word
    if re.search(r"(^|\.)(multi_modal_projector|visual\.merger)\.", name):
        return "multi_modal_projector" if "multi_modal_projector" in modules else None
    if re.search(r"(^|\.)(visual|vision_tower|vision_model)\.", name):
        return next((m for m in ("vision_tower", "vision_model") if m in modules), None)
    return next((m for m in ("text_decoder", "decoder") if m in modules), None)


@dataclass
class Names:
    """The models of a config, the file they are named in, by the names they get in the recipe."""

    config: Path
    read: dict[str, Path] = field(default_factory=dict)
    define: dict[str, str] = field(default_factory=dict)
    values: dict[str, Checkpoint | TaskVector] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)  # what the config calls a model -> its name here

    def new(self, like: str) -> str:
        word = re.sub(r"\W+", "_", like).strip("_") or "model"
        word = f"_{word}" if word[0].isdecimal() else word
        unique, i = word, 2
        while unique in self.read or unique in self.define or unique in OURS or unique in FUNCTIONS:
            unique, i = f"{word}_{i}", i + 1
        return unique

    def give(self, like: str, text: str) -> str:
        """A new name for an expression; an equal one keeps its name."""
        for name, known in self.define.items():
            if known == text:
                return name
        name = self.new(like)
        value = parse(text, self.values)
        self.values[name], self.define[name] = replace(value, label=name), text
        return name

    def of(self, model: str) -> str:
        """The name of a model that a config mentions: a folder, or ``folder+adapter``."""
        if model not in self.said:
            plain, plus, adapter = model.partition("+")
            if plus and not exists(self.config.parent / model):
                base, low = self.of(plain), self._open(adapter, TaskVector)
                self.said[model] = self.give(f"{base}_{low}", f"{base} + {low}")
            else:
                self.said[model] = self._open(model, Checkpoint)
        return self.said[model]

    def _open(self, model: str, kind: type) -> str:
        folder = self.config.parent
        places = [Path(model)] if is_address(model) else [folder / model, Path(model)]
        place = next((p for p in places if readable(p)), None)
        if place is None:
            near = nearest(Path(model).name, [p.name for p in folder.iterdir()] if folder.is_dir() else [])
            raise InputError(
                f"{self.config} names the model {model!r}, and there is no such folder beside the config or here.{near} "
                f"Models of the hub are fetched only where the config says so: hf://{model}."
            )
        name = self.new(parse_address(model).name if is_address(model) else Path(model).name or model)
        value = open_weights(place, label=name, fetch=False)
        if not isinstance(value, kind):
            raise InputError(
                f"{model} is a {'task vector' if kind is Checkpoint else 'checkpoint'}, which cannot stand there."
            )
        self.read[name], self.values[name] = place, value
        return name
