"""Language models as transformers opens them: opening, other weights in their place, continuations of prompts, perplexity."""

from .generating import chat_prompt, generate
from .holding import holding, loaded_with, next_tokens
from .opening import Kind, LanguageModel, language_model
from .perplexity import Perplexity, perplexity

__all__ = [
    "Kind",
    "LanguageModel",
    "Perplexity",
    "chat_prompt",
    "generate",
    "holding",
    "language_model",
    "loaded_with",
    "next_tokens",
    "perplexity",
]
