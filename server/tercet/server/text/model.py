"""Everything a checkpoint's files say about text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tercet.server.text.errors import ChatTemplateError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tercet.server.text.chat import ChatTemplate
    from tercet.server.text.defaults import EmbeddingDefaults, GenerationDefaults
    from tercet.server.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class TextModel:
    """A checkpoint's tokenizer, chat template and defaults."""

    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    generation: GenerationDefaults
    embedding: EmbeddingDefaults

    def render_chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt of a conversation, its special tokens spelled out: encode it with add_special_tokens=False.

        Raises ChatTemplateError: no template, or one that refuses these messages.
        """
        if self.chat_template is None:
            raise ChatTemplateError("the checkpoint has no chat template")
        return self.chat_template.render(messages)


def load_text_model(source: Path) -> TextModel:
    """Reads a Hugging Face folder or a .gguf file. Raises CheckpointTextError, which names the file and the key."""
    raise NotImplementedError
