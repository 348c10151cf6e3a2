"""What a generation reads: text, token ids or a conversation, as its task and languages ask for it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from tercet.server.service.errors import InvalidArgumentError, unless_error
from tercet.server.service.fields import unknown
from tercet.server.service.languages import translation
from tercet.server.service.sampling import wanted_tokens
from tercet.server.service.sequences import Limit, fit, fit_ids
from tercet.server.text import ChatTemplateError

if TYPE_CHECKING:
    from tercet.server.config import Settings
    from tercet.server.service.registry import Target
    from tercet.server.service.sequences import Sequencer, TokenSequence
    from tercet.server.text import GenerationDefaults, TextModel
    from tercet.v1.generation_pb2 import GenerateRequest


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model reads, and what that says of generating."""

    field: str
    """The path of the prompt, for errors."""
    tokens: TokenSequence
    defaults: GenerationDefaults
    """The checkpoint's own values, those of the task before its general ones."""
    forced_bos_id: int | None
    """What the target's language begins with."""


class Prompter:
    """Makes prompts of requests."""

    def __init__(self, sequencer: Sequencer, settings: Settings) -> None:
        self._sequencer = sequencer
        self._settings = settings

    async def prompt(self, request: GenerateRequest, target: Target) -> Prompt:
        """Raises InvalidArgumentError."""
        text = target.text
        prefix, defaults = _task(request, text)
        around = translation(request, text)
        limit = _limit(request, target, defaults)
        which = request.WhichOneof("prompt")
        field = "chat" if which == "chat" else f"input.{request.input.WhichOneof('input')}"
        is_text = field == "input.text"
        for name in ("task", "source_lang"):
            if request.HasField(name) and not is_text:
                raise InvalidArgumentError(name, "needs a prompt of text")
        if request.HasField("target_lang") and not is_text and (around is None or around.forced_bos_id is None):
            raise InvalidArgumentError("target_lang", "needs a prompt of text")
        if which == "chat":
            rendered = await self._render(request, text)
            [encoded] = await self._sequencer.encode(target.model, text.tokenizer, [rendered], special=False)
            tokens = fit(field, encoded, limit)
        elif field == "input.token_ids":
            tokens = fit_ids(field, request.input.token_ids, limit, target.info.vocab_size)
        elif which == "input":
            [sequence] = await self._sequencer.sequences(
                target, [request.input], ["input"], limit, respell=lambda own: prefix + own, around=around
            )
            tokens = unless_error(sequence)
        else:
            raise InvalidArgumentError("prompt", "must have input or chat")
        if not tokens.token_ids:
            raise InvalidArgumentError(field, "has no tokens")
        return Prompt(field, tokens, defaults, None if around is None else around.forced_bos_id)

    async def _render(self, request: GenerateRequest, text: TextModel) -> str:
        """The prompt of a conversation. Raises InvalidArgumentError."""
        messages = request.chat.messages
        if not 1 <= len(messages) <= self._settings.max_messages:
            problem = f"has {len(messages)} elements, must have at least 1 and at most {self._settings.max_messages}"
            raise InvalidArgumentError("chat.messages", problem)
        for i, message in enumerate(messages):
            if not message.role:
                raise InvalidArgumentError(f"chat.messages[{i}].role", "must not be empty")
            self._sequencer.check_text(f"chat.messages[{i}].role", message.role)
            self._sequencer.check_text(f"chat.messages[{i}].content", message.content)
        chars = sum(len(message.role) + len(message.content) for message in messages)
        self._sequencer.check_chars("chat.messages", chars)
        spoken = [{"role": message.role, "content": message.content} for message in messages]
        try:
            rendered = await self._sequencer.threads.run(chars, partial(text.render_chat, spoken))
        except ChatTemplateError as error:
            raise InvalidArgumentError("chat", str(error)) from None
        self._sequencer.check_text("chat", rendered)
        return rendered


def _task(request: GenerateRequest, text: TextModel) -> tuple[str, GenerationDefaults]:
    """What the task puts before the text, and how it wants to generate. Raises InvalidArgumentError."""
    if not request.HasField("task"):
        return "", text.generation
    if request.task not in text.tasks:
        raise unknown("task", "task", text.tasks)
    task = text.tasks[request.task]
    return task.prefix, task.generation


def _limit(request: GenerateRequest, target: Target, defaults: GenerationDefaults) -> Limit:
    """How long a prompt may be. A decoder's leaves room for one token, and is cut so that what is wanted fits."""
    if target.info.family == "seq2seq":
        most = target.info.longest_read
        return Limit(most, request.truncate, cut_to=most)
    most = target.model.max_length
    longest = most - 1
    wanted = wanted_tokens(request.sampling, defaults, longest)
    keep = most - (most // 2 if wanted is None else wanted)
    return Limit(longest, request.truncate, cut_to=min(max(keep, 1), longest), keep="end")
