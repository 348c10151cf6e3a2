"""Text to tokens and back, and what a checkpoint's files say of both; never imports torch.

model = load_text_model(Path("checkpoint"))     # a Hugging Face folder or a .gguf file
ids = model.tokenizer.encode("Hello").ids
decoder = IncrementalDecoder(model.tokenizer, skip_special_tokens=True)
pieces = [decoder.push([token_id]) for token_id in ids] + [decoder.finish()]
"""

from tercet.server.text.chat import ChatTemplate
from tercet.server.text.embedding import EmbeddingDefaults
from tercet.server.text.encoded import Cut, Encoded
from tercet.server.text.errors import ChatTemplateError, CheckpointTextError
from tercet.server.text.generation import GenerationDefaults, TaskDefaults
from tercet.server.text.incremental import IncrementalDecoder
from tercet.server.text.languages import LanguageError, Languages, Translation
from tercet.server.text.model import TextModel, load_text_model
from tercet.server.text.stop import StopMatcher
from tercet.server.text.tokenizer import Tokenizer

__all__ = [
    "ChatTemplate",
    "ChatTemplateError",
    "CheckpointTextError",
    "Cut",
    "EmbeddingDefaults",
    "Encoded",
    "GenerationDefaults",
    "IncrementalDecoder",
    "LanguageError",
    "Languages",
    "StopMatcher",
    "TaskDefaults",
    "TextModel",
    "Tokenizer",
    "Translation",
    "load_text_model",
]
