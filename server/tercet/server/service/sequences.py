"""From the inputs of a request to sequences of token ids that fit a model."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tercet.server.service.errors import InvalidArgumentError
from tercet.server.service.threads import TextThreads

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tercet.server.config import Settings
    from tercet.server.metrics import Metrics
    from tercet.server.service.registry import ServedModel
    from tercet.server.text import Encoded, Tokenizer
    from tercet.v1.types_pb2 import TextInput

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
    """Makes sequences of inputs. Texts are tokenized off the event loop, save few and short ones."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self.threads = TextThreads(settings.max_queue_chars)

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

    def check_chars(self, field: str, chars: int) -> None:
        """Raises InvalidArgumentError where the texts of a call are too long together."""
        if chars > self._settings.max_call_chars:
            limit = self._settings.max_call_chars
            raise InvalidArgumentError(field, f"has {chars} characters in all, the limit is {limit}")

    async def encode(
        self,
        model: ServedModel,
        tokenizer: Tokenizer,
        texts: Sequence[str],
        *,
        special: bool = True,
        spans: bool = False,
        patient: bool = False,
    ) -> list[Encoded]:
        """Tokenizes texts. Raises OverloadedError where too many wait; patient ones wait too."""
        if not texts:
            return []
        start = time.monotonic()
        chars = sum(map(len, texts))
        if chars <= _DIRECT_CHARS:
            encoded = [tokenizer.encode(text, special, spans) for text in texts]
        else:
            encoded = await self.threads.run(
                chars, lambda: tokenizer.encode_batch(texts, special, spans), patient=patient
            )
        self._metrics.tokenize.labels(model.name).observe(time.monotonic() - start)
        return encoded

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
        patient: bool = False,
    ) -> list[TokenSequence | InvalidArgumentError]:
        """For each input its sequence, or why it is refused. `field` gives the path of an input in the request.

        Raises OverloadedError where too many texts wait to be tokenized; patient ones wait too.
        """
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
                    results[i] = fit_ids(f"{field(i)}.token_ids", item.token_ids.values, vocab_size, limit)
                else:
                    raise InvalidArgumentError(field(i), "must have text or token_ids")
            except InvalidArgumentError as error:
                results[i] = error
        for i, encoded in zip(places, await self.encode(model, tokenizer, texts, patient=patient), strict=True):
            try:
                results[i] = fit(f"{field(i)}.text", encoded, limit)
            except InvalidArgumentError as error:
                results[i] = error
        return [result for result in results if result is not None]


def check_ids(field: str, values: Sequence[int], vocab_size: int, first: int = 0) -> list[int]:
    """Token ids as a list; `first` is the place of the first in its field.

    Raises InvalidArgumentError where there are none or one is not in the vocabulary.
    """
    ids = list(values)
    if not ids:
        raise InvalidArgumentError(field, "must have at least one id")
    if max(ids) >= vocab_size:
        at = next(i for i, id in enumerate(ids) if id >= vocab_size)
        raise InvalidArgumentError(
            f"{field}.values[{first + at}]", f"{ids[at]} is not below the vocabulary size, {vocab_size}"
        )
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


def fit_ids(field: str, values: Sequence[int], vocab_size: int, limit: Limit) -> TokenSequence:
    """Token ids within a limit; those that are cut off are not looked at. Raises InvalidArgumentError."""
    count = len(values)
    if count <= limit.tokens:
        return TokenSequence(check_ids(field, values, vocab_size), None, truncated=False)
    if not limit.truncate:
        raise _too_long(field, count, limit)
    first = 0 if limit.keep == "start" else count - limit.cut_to
    kept = check_ids(field, values[first : first + limit.cut_to], vocab_size, first)
    return TokenSequence(kept, None, truncated=True)


def _sequence(ids: list[int], type_ids: list[int], *, truncated: bool) -> TokenSequence:
    return TokenSequence(ids, type_ids if any(type_ids) else None, truncated)


def _too_long(field: str, length: int, limit: Limit) -> InvalidArgumentError:
    return InvalidArgumentError(field, f"has {length} tokens, the limit is {limit.tokens}; truncate=true would cut it")
