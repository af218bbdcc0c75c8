"""Other tools' files: mergekit configs read as recipes, PEFT adapters written from vectors."""

from .mergekit import Config, read_configs, recognises
from .translate import Translation, translate

__all__ = ["Config", "Translation", "read_configs", "recognises", "translate"]
