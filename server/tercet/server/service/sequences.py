"""From the inputs of a request to sequences of token ids that fit a model."""

from __future__ import annotations

import time
from array import array
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeVar

import msgspec
import numpy as np

from tercet.server import wire
from tercet.server.service.errors import InvalidArgumentError, ServiceError, attempt
from tercet.server.service.languages import surrounded
from tercet.server.service.threads import TextThreads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from tercet.server.config import Settings
    from tercet.server.metrics import Metrics
    from tercet.server.service.registry import ServedModel, Target
    from tercet.server.text import Cut, Encoded, Tokenizer, Translation
    from tercet.v1.types_pb2 import TextInput, TokenIds

T = TypeVar("T")
ID_BYTES = 4  # bytes of a packed token id
_HIGHEST = 0xFFFFFFFF  # id in uint32
_ALL = slice(None)
_DIRECT_CHARS = 2000  # texts up to this in all are tokenized where they are: a thread would cost more than it frees


class TokenSequence(msgspec.Struct, frozen=True, gc=False):
    """What a model reads for one input."""

    token_ids: wire.TokenIds
    type_ids: wire.TokenIds | None
    truncated: bool


@dataclass(frozen=True, slots=True)
class Limit:
    """The longest sequence that is let through, and what happens to longer ones."""

    tokens: int
    truncate: bool
    cut_to: int
    """Tokens that are kept of a longer one."""
    keep: Literal["start", "end"] = "start"
    cut: Cut = "longest"
    """Which text of a pair is cut."""


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

    async def run(self, size: int, work: Callable[[], T], *, patient: bool = False) -> T:
        """Runs work on `size` characters or tokens where it disturbs no one.

        Raises OverloadedError where too much waits; patient work waits too.
        """
        return work() if size <= _DIRECT_CHARS else await self.threads.run(size, work, patient=patient)

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
        """Tokenizes texts. Raises as `run`."""

        def by_one() -> list[Encoded]:
            return [tokenizer.encode(text, special, spans) for text in texts]

        def together() -> list[Encoded]:
            return tokenizer.encode_batch(texts, special, spans)

        return await self._timed(model, sum(map(len, texts)), by_one, together, patient=patient)

    async def encode_pairs(
        self, model: ServedModel, tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]], *, spans: bool = False
    ) -> list[Encoded]:
        """Tokenizes pairs of texts. Raises as `run`."""

        def by_one() -> list[Encoded]:
            return [tokenizer.encode_pair(first, second, spans) for first, second in pairs]

        def together() -> list[Encoded]:
            return tokenizer.encode_pairs(pairs, spans)

        return await self._timed(model, sum(len(first) + len(second) for first, second in pairs), by_one, together)

    async def _timed(
        self,
        model: ServedModel,
        chars: int,
        by_one: Callable[[], list[Encoded]],
        together: Callable[[], list[Encoded]],
        *,
        patient: bool = False,
    ) -> list[Encoded]:
        """Tokenizes in threads of the tokenizer's own, or, where that would cost more than it brings, one by one."""
        if not chars:
            return by_one()
        start = time.monotonic()
        encode = by_one if chars <= _DIRECT_CHARS else together
        encoded = await self.run(chars, encode, patient=patient)
        self._metrics.tokenize.labels(model.name).observe(time.monotonic() - start)
        return encoded

    async def sequences(
        self,
        target: Target,
        inputs: Sequence[TextInput],
        fields: Sequence[str],
        limit: Limit,
        *,
        tokenizer: Tokenizer | None = None,
        vocab_size: int | None = None,
        respell: Callable[[str], str] = str,
        around: Translation | None = None,
        patient: bool = False,
    ) -> list[TokenSequence | ServiceError]:
        """For each input its sequence, or why it is refused; `fields`: their paths.

        `respell` gives what is tokenized for a text, `tokenizer` and `vocab_size` are those that are not the model's
        own, and `around` has special tokens to put around texts in place of the tokenizer's. Raises as `run`.
        """
        size = vocab_size or target.info.vocab_size
        given = [self._given(item, field, limit) for item, field in zip(inputs, fields, strict=True)]
        if not all_below(size, (one.token_ids for one in given if isinstance(one, TokenSequence))):
            given = [self._given(item, field, limit, size) for item, field in zip(inputs, fields, strict=True)]
        texts = {i: respell(one) for i, one in enumerate(given) if isinstance(one, str)}
        by = tokenizer or target.text.tokenizer
        plain = around is None
        encoded = []
        if texts:
            encoded = await self.encode(target.model, by, list(texts.values()), special=plain, patient=patient)
        if around is not None:
            encoded = [surrounded(one, around) for one in encoded]
        read = {
            i: attempt(partial(fit, f"{fields[i]}.text", one, limit)) for i, one in zip(texts, encoded, strict=True)
        }
        return [read[i] if isinstance(one, str) else one for i, one in enumerate(given)]

    def _given(
        self, item: TextInput, field: str, limit: Limit, vocab_size: int | None = None
    ) -> str | TokenSequence | ServiceError:
        """The text of an input, or its sequence where it has token ids, or why it is refused."""
        try:
            match item.WhichOneof("input"):
                case "token_ids":
                    return fit_ids(f"{field}.token_ids", item.token_ids, limit, vocab_size)
                case "text":
                    self.check_text(f"{field}.text", item.text)
                    return item.text
                case _:
                    return InvalidArgumentError(field, "must have text or token_ids")
        except InvalidArgumentError as error:
            return error

    async def pairs(
        self, target: Target, pairs: Sequence[tuple[str, str]], fields: Sequence[str], limit: Limit
    ) -> list[TokenSequence | ServiceError]:
        """For each pair of texts its sequence, or why it is refused; `fields`: their paths. Raises as `run`."""
        encoded = await self.encode_pairs(target.model, target.text.tokenizer, pairs)
        return [attempt(partial(fit, field, one, limit)) for field, one in zip(fields, encoded, strict=True)]


def id_count(given: TokenIds) -> int:
    """How many token ids there are, in either form."""
    return len(given.values) or -(-len(given.packed) // ID_BYTES)


def take_ids(field: str, given: TokenIds, kept: slice = _ALL) -> wire.TokenIds:
    """Token ids in whichever form they came, or those of them that are kept; those past int32 come out negative.

    Raises InvalidArgumentError where there are none.
    """
    if not given.packed:
        values = given.values[kept]  # a slice of protobuf's is read twice as fast as its elements are
        ids = wire.token_ids(array("I", values).tobytes())
    elif given.values:
        raise InvalidArgumentError(field, "must have values or packed, not both")
    elif len(given.packed) % ID_BYTES:
        raise InvalidArgumentError(
            f"{field}.packed", f"has {len(given.packed)} bytes, which {ID_BYTES} does not divide"
        )
    else:
        ids = wire.token_ids(given.packed)[kept]
    if not ids:
        raise InvalidArgumentError(field, "must have at least one id")
    return ids


def check_ids(field: str, given: TokenIds, vocab_size: int, kept: slice = _ALL) -> wire.TokenIds:
    """The same. Raises InvalidArgumentError, too, where one is not in the vocabulary."""
    ids = take_ids(field, given, kept)
    if not all_below(vocab_size, [ids]):
        at, id = next((at, id & _HIGHEST) for at, id in enumerate(ids) if id & _HIGHEST >= vocab_size)
        place = f"{'packed' if given.packed else 'values'}[{(kept.start or 0) + at}]"
        raise InvalidArgumentError(f"{field}.{place}", f"{id} is not below the vocabulary size, {vocab_size}")
    return ids


def all_below(vocab_size: int, texts: Iterable[wire.TokenIds]) -> bool:
    """Whether all ids are in the vocabulary: of many texts at once, since of each it would cost as much."""
    ids = b"".join(texts)
    if len(ids) <= ID_BYTES * wire.FEW_IDS:
        return max(array("I", ids), default=0) < vocab_size
    return bool(np.frombuffer(ids, np.uint32).max() < vocab_size)


def fit(field: str, encoded: Encoded, limit: Limit) -> TokenSequence:
    """A tokenized text within a limit; its special tokens stay. Raises InvalidArgumentError."""
    if len(encoded.ids) <= limit.tokens:
        return _sequence(encoded.ids, encoded.type_ids, truncated=False)
    if not limit.truncate:
        raise _too_long(field, len(encoded.ids), limit)
    try:
        cut = encoded.truncated(limit.cut_to, limit.cut)
    except ValueError as error:
        raise InvalidArgumentError(field, f"can't be cut to {limit.cut_to} tokens: {error}") from None
    if limit.keep == "start":
        return _sequence(cut.ids, cut.type_ids, truncated=True)
    first = encoded.added_before
    rest = len(encoded) - (limit.cut_to - first)
    return _sequence(
        encoded.ids[:first] + encoded.ids[rest:], encoded.type_ids[:first] + encoded.type_ids[rest:], truncated=True
    )


def fit_ids(field: str, given: TokenIds, limit: Limit, vocab_size: int | None = None) -> TokenSequence:
    """Token ids within a limit; those that are cut off are not looked at, the others if a vocabulary is named.

    Raises InvalidArgumentError.
    """
    take = take_ids if vocab_size is None else partial(check_ids, vocab_size=vocab_size)
    count = id_count(given)
    if count <= limit.tokens:
        return TokenSequence(take(field, given), None, truncated=False)
    if not limit.truncate:
        raise _too_long(field, count, limit)
    first = 0 if limit.keep == "start" else count - limit.cut_to
    return TokenSequence(take(field, given, kept=slice(first, first + limit.cut_to)), None, truncated=True)


def _sequence(ids: list[int], type_ids: list[int], *, truncated: bool) -> TokenSequence:
    types = wire.token_ids(type_ids) if any(type_ids) else None
    return TokenSequence(wire.token_ids(ids), types, truncated)


def _too_long(field: str, length: int, limit: Limit) -> InvalidArgumentError:
    return InvalidArgumentError(field, f"has {length} tokens, the limit is {limit.tokens}; truncate=true would cut it")
