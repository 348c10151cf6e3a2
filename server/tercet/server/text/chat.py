"""Conversations to prompts, by the checkpoint's own chat template."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tercet.server.text.errors import ChatTemplateError, CheckpointTextError
from tercet.server.text.fields import Fields, read_text
from tercet.server.text.renderer import Renderer, RenderError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

MAX_TEMPLATE_BYTES = 1 << 20


class ChatTemplate:
    """A checkpoint's Jinja template, in transformers' dialect and sandboxed; requests never bring one."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], *, file: Path, key: str | None) -> None:
        """`special_tokens`: the variables bos_token, eos_token, ... `file` and `key` are where `source` was found.

        Raises CheckpointTextError: too long, or not a template.
        """
        if len(source.encode(errors="replace")) > MAX_TEMPLATE_BYTES:
            raise CheckpointTextError(file, key, f"larger than the limit of {MAX_TEMPLATE_BYTES} bytes")
        try:
            self._renderer = Renderer(source)
        except RenderError as error:
            raise CheckpointTextError(file, key, f"not a chat template: {error}") from None
        self._special_tokens = dict(special_tokens)

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt up to where the assistant's answer begins.

        Raises ChatTemplateError: the template refuses the messages, fails on them, or exceeds a limit.
        """
        variables: dict[str, object] = {
            **self._special_tokens,
            "messages": [dict(message) for message in messages],
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
        }
        try:
            return self._renderer.render(variables)
        except RenderError as error:
            raise ChatTemplateError(f"the chat template failed: {error}") from None


def folder_template(folder: Path, config: Fields, special_tokens: Mapping[str, str]) -> ChatTemplate | None:
    """The default template of a Hugging Face folder: chat_template.jinja, else tokenizer_config.json's, else none."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return ChatTemplate(read_text(file, MAX_TEMPLATE_BYTES), special_tokens, file=file, key=None)
    key = "chat_template"
    source = config.values.get(key)
    if isinstance(source, list):
        source = _default(config, source)
    if source is None:
        return None
    if not isinstance(source, str):
        raise config.error(key, "must be a string or a list of named templates")
    return ChatTemplate(source, special_tokens, file=config.file, key=key)


def _default(config: Fields, templates: list[object]) -> str | None:
    named: dict[str, str] = {}
    for entry in templates:
        match entry:
            case {"name": str(name), "template": str(template)}:
                named[name] = template
            case _:
                raise config.error("chat_template", "every entry of the list must have a name and a template")
    return named.get("default")
