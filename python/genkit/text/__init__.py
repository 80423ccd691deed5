"""Text to token ids and back: tokenizer, chat templates, incremental detokenizing."""

from genkit.text.tokenizer import Tokenizer
from genkit.text.utf8 import TextStream

__all__ = ["TextStream", "Tokenizer"]
