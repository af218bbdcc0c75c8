"""Other tools' files: mergekit configs read as recipes, PEFT's LoRA adapters read and written."""

from .adapters import Written, adapter, write_adapter
from .mergekit import Config, read_configs, recognises
from .translate import Translation, translate

__all__ = [
    "Config", "Translation", "Written", "adapter", "read_configs", "recognises", "translate", "write_adapter",
]  # fmt: skip
