"""What an engine refuses before it runs, so that no request reaches a kernel that could read beyond a table.

The service checks the same with the names of its own fields; here it is the last line of defence.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from math import inf
from typing import TYPE_CHECKING

import numpy as np

from tercet.server.engine.beam_tables import MAX_ENDS
from tercet.server.engine.memory import longest_read, longest_sequence
from tercet.server.engine.pages import pages_of
from tercet.server.wire import FEW_IDS, Embed, FillMask, Generate, Predict, Score

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tercet.server.engine.reading import Reading
    from tercet.server.models import Model
    from tercet.server.wire import EngineSettings, Family, TokenIds

TASKS = {
    Embed: ("embed",),
    Predict: ("classify", "tag", "answer"),
    FillMask: ("fill_mask",),
    Score: ("generate",),
    Generate: ("generate",),
}
"""What a model must be able to do to take a message, one of these."""

MAX_SAMPLES = 1 << 16
MAX_LENGTH_PENALTY = 5.0  # to this power lengths up to 2**19 keep scores of beams finite in float32
MAX_LIKELIEST = 1 << 10  # tokens told of one place
MAX_CANDIDATES = 1 << 20  # tokens asked for in one request, over all its places
SEED_LIMIT = 1 << 64
FLOAT_MIN, FLOAT_MAX = 2.0**-126, 2.0**127  # what float32 holds, sums of it too

RANGES: dict[str, tuple[float, float]] = {
    "max_new_tokens": (1, inf),
    "min_new_tokens": (0, inf),
    "temperature": (0, FLOAT_MAX),
    "top_k": (0, inf),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "typical_p": (FLOAT_MIN, 1),
    "repetition_penalty": (FLOAT_MIN, FLOAT_MAX),
    "presence_penalty": (-FLOAT_MAX, FLOAT_MAX),
    "frequency_penalty": (-FLOAT_MAX, FLOAT_MAX),
    "no_repeat_ngram_size": (0, inf),
    "encoder_no_repeat_ngram_size": (0, inf),
    "seed": (0, SEED_LIMIT - 1),
    "top_logprobs": (0, MAX_LIKELIEST),
    "length_penalty": (-MAX_LENGTH_PENALTY, MAX_LENGTH_PENALTY),
}
"""The values of `Sampling` that are numbers; nothing that is not a number is in any range."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What an engine can take."""

    family: Family
    tasks: tuple[str, ...]
    vocab_size: int
    """Of what is read first: texts, prompts, sources."""
    target_vocab_size: int
    """Of what a decoder reads and writes."""
    token_types: int
    """Type ids of the encoder; 0 if it has none."""
    hidden_size: int
    """Of the features of a token."""
    embedding_size: int
    max_length: int
    """Tokens of the longest sequence there can be."""
    longest_read: int
    """Tokens of a sequence that is read whole."""
    max_rows: int
    """Of a decoder's batch."""
    pages: int
    page_size: int

    def refusal(self, message: Reading | Generate) -> str | None:
        """Why `message` can't be served, or None. What these limits allow fits the pages: there are enough for that."""
        tasks = TASKS[type(message)]
        if not set(tasks) & set(self.tasks):
            return f"this {self.family} does not {' or '.join(tasks)}"
        return next(self._errors(message), None)

    def _errors(self, message: Reading | Generate) -> Iterator[str]:
        if isinstance(message, Generate):
            yield from self._generate_errors(message)
            return
        read, size, name = message.token_ids, self.vocab_size, "token_ids"
        yield from _text_errors(name, read, self.longest_read, size)
        if isinstance(message, Predict | Score):
            if self.family == "seq2seq":
                read, size, name = message.decoder_ids, self.target_vocab_size, "decoder_ids"
                yield from _text_errors(name, read, self.longest_read, size)
            elif message.decoder_ids:
                yield f"decoder_ids are for seq2seq models, not for a {self.family}"
        if not isinstance(message, Score):
            yield from self._type_errors(message.type_ids, len(message.token_ids))
        match message:
            case Embed():
                size = self.hidden_size if message.pooling == "none" else self.embedding_size
                yield from _number_errors("dimensions", message.dimensions, 1, size)
            case Predict():
                yield from _number_errors("last", message.last, 0, len(read) - 1)
            case FillMask():
                yield from _ids_errors("positions", message.positions, len(read))
                yield from _ids_errors("targets", message.targets, self.target_vocab_size)
                yield from _number_errors("top_k", message.top_k, 1, MAX_LIKELIEST)
                candidates = len(message.positions) * len(message.targets)
                yield from _number_errors("targets times positions", candidates, 0, MAX_CANDIDATES)
                if not message.positions:
                    yield "positions is empty"
            case Score():
                yield from _number_errors("first", message.first, 1, len(read) - 1)
                yield from _number_errors("top_logprobs", message.top_logprobs, 0, MAX_LIKELIEST)

    def _type_errors(self, types: TokenIds | None, tokens: int) -> Iterator[str]:
        if types is not None and len(types) != tokens:
            yield f"type_ids has {len(types)} elements for {tokens} token_ids"
        elif types and self.token_types:
            yield from _ids_errors("type_ids", types, self.token_types)

    def _generate_errors(self, message: Generate) -> Iterator[str]:
        sampling = message.sampling
        for name, (low, high) in RANGES.items():
            if not low <= getattr(sampling, name) <= high:  # a look costs less than a generator
                yield from _number_errors(name, getattr(sampling, name), low, high)
        yield from _number_errors("n", message.n, 1, MAX_SAMPLES)
        if self.family == "seq2seq":
            yield from _text_errors("token_ids", message.token_ids, self.longest_read, self.vocab_size)
            yield from _text_errors("decoder_ids", message.decoder_ids, self.max_length - 1, self.target_vocab_size)
        else:
            yield from _text_errors("token_ids", message.token_ids, self.max_length - 1, self.vocab_size)
        for name, ids in (
            ("eos_ids", message.eos_ids),
            ("stop_ids", message.stop_ids),
            ("logit_bias", sampling.logit_bias),
            ("bad_words", chain.from_iterable(sampling.bad_words)),
            ("suppressed_ids", sampling.suppressed_ids),
            ("first_suppressed_ids", sampling.first_suppressed_ids),
            ("forced_bos_id", [] if sampling.forced_bos_id is None else [sampling.forced_bos_id]),
            ("forced_eos_ids", sampling.forced_eos_ids),
        ):
            yield from _ids_errors(name, ids, self.target_vocab_size)
        for bias in sampling.logit_bias.values():
            yield from _number_errors("logit_bias", bias, -FLOAT_MAX, FLOAT_MAX)
        if not all(sampling.bad_words):
            yield "bad_words has an empty sequence"
        if sampling.num_beams != 1:
            yield from self._beam_errors(message)

    def _beam_errors(self, message: Generate) -> Iterator[str]:
        sampling, beams = message.sampling, message.sampling.num_beams
        yield from _number_errors("num_beams", beams, 1, self.max_rows)
        yield from _number_errors("n", message.n, 1, beams)
        if sampling.temperature > 0:
            yield f"temperature is {sampling.temperature}, but beam search does not sample"
        if sampling.logprobs:
            yield "logprobs are not reported of beams"
        yield from _number_errors("eos_ids and stop_ids", len({*message.eos_ids, *message.stop_ids}), 0, MAX_ENDS)
        source, prompt = [], message.token_ids
        if self.family == "seq2seq":
            source, prompt = message.token_ids, message.decoder_ids
        longest = min(len(prompt) + sampling.max_new_tokens, self.max_length)
        shared = len(prompt) // self.page_size
        pages = pages_of(len(source), self.page_size) + shared
        pages += beams * (pages_of(longest, self.page_size) - shared)
        if pages > self.pages:
            yield f"num_beams is {beams}: so many of {longest} tokens need {pages} pages, there are {self.pages}"


def limits_of(model: Model, settings: EngineSettings, pages: int) -> Limits:
    """The limits of a model with so many pages."""
    return Limits(
        family=model.family,
        tasks=tasks_of(model),
        vocab_size=model.vocab_size,
        target_vocab_size=model.target_vocab_size,
        token_types=model.spec.encoder.token_types if model.spec.encoder else 0,
        hidden_size=next(iter(model.spec.stacks.values())).hidden_size,
        embedding_size=model.embedding_size,
        max_length=longest_sequence(model, settings),
        longest_read=longest_read(model, settings),
        max_rows=min(settings.max_rows, settings.max_batch_tokens),
        pages=pages,
        page_size=settings.page_size,
    )


def tasks_of(model: Model) -> tuple[str, ...]:
    """What a model can be asked, by its head."""
    if model.spec.head is None:
        return ("embed",)
    task = model.spec.head.task
    return ("embed", task, "score") if task in ("generate", "fill_mask") else ("embed", task)


def _text_errors(name: str, ids: TokenIds, longest: int, vocab_size: int) -> Iterator[str]:
    if not 1 <= len(ids) <= longest:
        yield f"{name} has {len(ids)} tokens, the model takes 1 to {longest}"
    elif not _all_below(vocab_size, ids):
        yield f"{name} must lie in 0..{vocab_size - 1}"


def _all_below(vocab_size: int, ids: TokenIds) -> bool:
    """Whether all ids, at least one, are in the vocabulary."""
    if len(ids) <= FEW_IDS:
        return 0 <= min(ids) <= max(ids) < vocab_size
    return bool(np.asarray(ids, np.int32).view(np.uint32).max() < vocab_size)  # where a negative id is a large one


def _ids_errors(name: str, ids: Iterable[int], limit: int) -> Iterator[str]:
    ids = list(ids)
    if ids and not 0 <= min(ids) <= max(ids) < limit:
        yield f"{name} must lie in 0..{limit - 1}"


def _number_errors(name: str, value: float | None, low: float, high: float) -> Iterator[str]:
    if value is not None and not low <= value <= high:  # NaN is in no range
        yield f"{name} is {value}, the model takes {low} to {high}"
