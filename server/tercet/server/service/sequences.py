"""From the inputs of a request to sequences of token ids that fit a model."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from tercet.server.service.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tercet.server.config import Settings
    from tercet.server.metrics import Metrics
    from tercet.server.service.registry import ServedModel
    from tercet.server.text import Encoded, Tokenizer
    from tercet.v1.types_pb2 import TextInput

_T = TypeVar("_T")
_DIRECT_CHARS = 2000  # texts up to this in all are tokenized where they are: a thread would cost more than it frees


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """What a model reads for one input."""

    token_ids: list[int]
    type_ids: list[int] | None
    truncated: bool


@dataclass(frozen=True, slots=True)
class Limit:
    """The longest sequence that is let through, and what happens to longer ones."""

    tokens: int
    truncate: bool
    cut_to: int
    """Tokens that are kept of a longer one."""
    keep: Literal["start", "end"] = "start"


class Sequencer:
    """Makes sequences of inputs; texts are tokenized off the event loop."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="tokenize")

    def check_count(self, field: str, count: int) -> None:
        """Raises InvalidArgumentError where a list of inputs is empty or too long."""
        if not 1 <= count <= self._settings.max_inputs:
            limit = self._settings.max_inputs
            raise InvalidArgumentError(field, f"has {count} elements, must have at least 1 and at most {limit}")

    def check_text(self, field: str, text: str) -> None:
        """Raises InvalidArgumentError where a text is too long to be tokenized at all."""
        if len(text) > self._settings.max_text_chars:
            raise InvalidArgumentError(
                field, f"has {len(text)} characters, the limit is {self._settings.max_text_chars}"
            )

    async def encode(
        self, model: ServedModel, tokenizer: Tokenizer, texts: Sequence[str], *, special: bool = True
    ) -> list[Encoded]:
        """Tokenizes texts."""
        if not texts:
            return []
        start = time.monotonic()
        if sum(map(len, texts)) <= _DIRECT_CHARS:
            encoded = [tokenizer.encode(text, special) for text in texts]
        else:
            encoded = await self.run(tokenizer.encode_batch, texts, special)
        self._metrics.tokenize.labels(model.name).observe(time.monotonic() - start)
        return encoded

    async def run(self, function: Callable[..., _T], *args: object) -> _T:
        """Runs work on text off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)

    async def sequences(
        self,
        model: ServedModel,
        tokenizer: Tokenizer,
        inputs: Sequence[TextInput],
        vocab_size: int,
        limit: Limit,
        field: Callable[[int], str],
        *,
        lowercase: bool = False,
    ) -> list[TokenSequence | InvalidArgumentError]:
        """For each input its sequence, or why it is refused. `field` gives the path of an input in the request."""
        results: list[TokenSequence | InvalidArgumentError | None] = [None] * len(inputs)
        texts: list[str] = []
        places: list[int] = []
        for i, item in enumerate(inputs):
            which = item.WhichOneof("input")
            try:
                if which == "text":
                    self.check_text(f"{field(i)}.text", item.text)
                    texts.append(item.text.lower() if lowercase else item.text)
                    places.append(i)
                elif which == "token_ids":
                    path = f"{field(i)}.token_ids"
                    ids = check_ids(path, item.token_ids.values, vocab_size)
                    results[i] = fit_ids(path, ids, limit)
                else:
                    raise InvalidArgumentError(field(i), "must have text or token_ids")
            except InvalidArgumentError as error:
                results[i] = error
        for i, encoded in zip(places, await self.encode(model, tokenizer, texts), strict=True):
            try:
                results[i] = fit(f"{field(i)}.text", encoded, limit)
            except InvalidArgumentError as error:
                results[i] = error
        return [result for result in results if result is not None]


def check_ids(field: str, values: Sequence[int], vocab_size: int) -> list[int]:
    """Token ids as a list. Raises InvalidArgumentError where there are none or one is not in the vocabulary."""
    ids = list(values)
    if not ids:
        raise InvalidArgumentError(field, "must have at least one id")
    if max(ids) >= vocab_size:
        at = next(i for i, id in enumerate(ids) if id >= vocab_size)
        raise InvalidArgumentError(f"{field}.values[{at}]", f"{ids[at]} is not below the vocabulary size, {vocab_size}")
    return ids


def fit(field: str, encoded: Encoded, limit: Limit) -> TokenSequence:
    """A tokenized text within a limit; its special tokens stay. Raises InvalidArgumentError."""
    if len(encoded.ids) <= limit.tokens:
        return _sequence(encoded.ids, encoded.type_ids, truncated=False)
    if not limit.truncate:
        raise _too_long(field, len(encoded.ids), limit)
    if encoded.added_before + encoded.added_after > limit.cut_to:
        raise InvalidArgumentError(field, f"can't be cut to {limit.cut_to} tokens: its special tokens are more")
    if limit.keep == "start":
        cut = encoded.truncated(limit.cut_to)
        return _sequence(cut.ids, cut.type_ids, truncated=True)
    first = encoded.added_before
    rest = len(encoded.ids) - (limit.cut_to - first)
    return _sequence(
        encoded.ids[:first] + encoded.ids[rest:], encoded.type_ids[:first] + encoded.type_ids[rest:], truncated=True
    )


def fit_ids(field: str, ids: list[int], limit: Limit) -> TokenSequence:
    """Token ids within a limit. Raises InvalidArgumentError."""
    if len(ids) <= limit.tokens:
        return TokenSequence(ids, None, truncated=False)
    if not limit.truncate:
        raise _too_long(field, len(ids), limit)
    cut = ids[: limit.cut_to] if limit.keep == "start" else ids[-limit.cut_to :]
    return TokenSequence(cut, None, truncated=True)


def _sequence(ids: list[int], type_ids: list[int], *, truncated: bool) -> TokenSequence:
    return TokenSequence(ids, type_ids if any(type_ids) else None, truncated)


def _too_long(field: str, length: int, limit: Limit) -> InvalidArgumentError:
    return InvalidArgumentError(field, f"has {length} tokens, the limit is {limit.tokens}; truncate=true would cut it")
