"""Other tools' files: mergekit configs read as recipes, PEFT's LoRA adapters read and written; outputs pushed to a hub."""

from .adapters import Written, adapter, write_adapter
from .evaluation import add_results
from .mergekit import Config
from .push import Push, push
from .reading import read_configs, recognises
from .translate import Translation, translate

__all__ = [
    "Config", "Push", "Translation", "Written", "adapter", "add_results", "push", "read_configs", "recognises", "translate", "write_adapter",
]  # fmt: skip
