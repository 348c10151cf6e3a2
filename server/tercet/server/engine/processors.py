"""What is done to the scores of tokens before any is chosen, as the logits processors of transformers do it.

On the host, `pack_processors` finds the tokens of each row that something is done to, from what is written so far, and
puts them into the batch's buffer; on the device, `process` changes the scores of all rows in at most five steps and
waits for nothing. Rows that sample and beams are treated alike. The order is transformers' (`_get_logits_processor`):

1. biases are added (logit_bias),
2. tokens seen are penalised (repetition_penalty; Keskar et al., CTRL, 2019, section 4.1),
3. tokens generated are penalised (presence_penalty and frequency_penalty, as the OpenAI API defines them),
4. where a token is forced (forced_bos_id, forced_eos_ids), nothing else is possible,
5. tokens are forbidden: by what is written (n-grams, bad words, ends before min_new_tokens), unless one is forced, and
   always (suppressed_ids, first_suppressed_ids).
"""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Protocol

import torch

from tercet.server.wire import Sampling

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from torch import Tensor

    from tercet.server.engine.sequence import Request

    Put = Callable[..., None]

PROCESSING = (
    "logit_bias", "repetition_penalty", "presence_penalty", "frequency_penalty", "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size", "bad_words", "min_new_tokens", "suppressed_ids", "first_suppressed_ids",
    "forced_bos_id", "forced_eos_ids",
)  # fmt: skip
"""The fields of `Sampling` that processors read."""

_PLAIN = Sampling(max_new_tokens=0)


class Writing(Protocol):
    """A text that is written: a sample or a beam."""

    request: Request
    tokens: list[int]
    """Prompt and generated tokens; of seq2seq models the decoder's."""

    def seen(self) -> array[int]:
        """The tokens so far, each once."""
        ...


def is_processed(sampling: Sampling) -> bool:
    """Whether anything is done to scores by these settings."""
    return any(getattr(sampling, name) != getattr(_PLAIN, name) for name in PROCESSING)


def is_typical(sampling: Sampling) -> bool:
    """Whether typical tokens alone are drawn."""
    return sampling.typical_p < 1 and sampling.temperature > 0


def is_plain(sampling: Sampling) -> bool:
    """Whether tokens are drawn by temperature, top_k, top_p and min_p alone, and told without their likelihood."""
    return not (sampling.logprobs or is_typical(sampling) or is_processed(sampling))


@dataclass
class _Changes:
    """Tokens of rows, and a value for each where there is one."""

    rows: array[int] = field(default_factory=lambda: array("i"))
    ids: array[int] = field(default_factory=lambda: array("i"))
    values: array[float] = field(default_factory=lambda: array("f"))

    def add(self, row: int, ids: Iterable[int], values: Iterable[float] = ()) -> None:
        known = len(self.ids)
        self.ids.extend(ids)
        self.rows.extend([row] * (len(self.ids) - known))
        self.values.extend(values)


@dataclass(frozen=True)
class Change:
    """The same, on the device."""

    rows: Tensor
    """int32 [C]: rows of the scores; an id is of a row once."""
    ids: Tensor
    """int32 [C]"""
    values: Tensor
    """float32 [C], or nothing"""


Processors = dict[str, Change]
"""What `process` does, by the name of the step; without those that concern no row."""

STEPS = ("biased", "seen", "generated", "forced", "forbidden")


def pack_processors(put: Put, writings: Sequence[Writing], name: str = "") -> None:
    """Puts what is done to the scores of `writings`, a row each, into a batch's buffer; `name` begins its fields."""
    processed = [(row, writing) for row, writing in enumerate(writings) if writing.request.processed]
    if not processed:
        return
    changes = {step: _Changes() for step in STEPS}
    for row, writing in processed:
        _add(changes, row, writing)
    for step, found in changes.items():
        if found.rows:
            put(f"{name}{step}_rows", found.rows)
            put(f"{name}{step}_ids", found.ids)
            put(f"{name}{step}_values", found.values, "f")


def unpack_processors(views: dict[str, Tensor], name: str = "") -> Processors:
    """What `pack_processors` put there, on the device."""
    return {
        step: Change(*(views[f"{name}{step}_{part}"] for part in ("rows", "ids", "values")))
        for step in STEPS
        if f"{name}{step}_rows" in views
    }


def process(scores: Tensor, processors: Processors) -> None:
    """Changes scores, float32 [N, vocabulary], in place: logits, or of beams their log softmax."""
    if change := processors.get("biased"):
        scores[change.rows, change.ids] += change.values
    if change := processors.get("seen"):
        found = scores[change.rows, change.ids]
        scores[change.rows, change.ids] = torch.where(found < 0, found * change.values, found / change.values)
    if change := processors.get("generated"):
        scores[change.rows, change.ids] -= change.values
    # A plain number would be brought to the device by a copy that waits for it.
    if change := processors.get("forced"):
        scores.index_put_((change.rows,), scores.new_full((), -torch.inf))
        scores.index_put_((change.rows, change.ids), scores.new_zeros(()))
    if change := processors.get("forbidden"):
        scores.index_put_((change.rows, change.ids), scores.new_full((), -torch.inf))


def _add(changes: dict[str, _Changes], row: int, writing: Writing) -> None:
    sampling, prompt = writing.request.sampling, writing.request.prompt
    if sampling.logit_bias:
        changes["biased"].add(row, sampling.logit_bias.keys(), sampling.logit_bias.values())
    if sampling.repetition_penalty != 1:
        seen = writing.seen()
        changes["seen"].add(row, seen, [sampling.repetition_penalty] * len(seen))
    if sampling.presence_penalty or sampling.frequency_penalty:
        counts = Counter(writing.tokens[len(prompt) :])
        penalties = (sampling.presence_penalty + count * sampling.frequency_penalty for count in counts.values())
        changes["generated"].add(row, counts.keys(), penalties)
    forced = _forced(writing)
    changes["forced"].add(row, forced)
    forbidding = _ALWAYS if forced else _ALWAYS + _BY_WHAT_IS_WRITTEN
    changes["forbidden"].add(row, set(chain.from_iterable(forbid(writing) for forbid in forbidding)))


def _forced(writing: Writing) -> Iterable[int]:
    """The ids that alone can be next. As in transformers, the first can be forced where the decoder starts from one."""
    request, sampling, length = writing.request, writing.request.sampling, len(writing.tokens)
    if length == request.limit - 1 and sampling.forced_eos_ids:
        return sampling.forced_eos_ids
    if length == 1 and sampling.forced_bos_id is not None:
        return [sampling.forced_bos_id]
    return []


def _ends_too_early(writing: Writing) -> Iterable[int]:
    """An end may not come before `min_new_tokens`, whoever named it."""
    request = writing.request
    early = len(writing.tokens) < len(request.prompt) + request.sampling.min_new_tokens
    return chain(request.eos_ids, request.stop_ids) if early else ()


def _repeating(writing: Writing) -> Iterable[int]:
    return _continuations(writing.tokens, writing.tokens, writing.request.sampling.no_repeat_ngram_size)


def _repeating_the_source(writing: Writing) -> Iterable[int]:
    request = writing.request
    return _continuations(writing.tokens, list(request.source), request.sampling.encoder_no_repeat_ngram_size)


def _continuations(tokens: list[int], text: list[int], size: int) -> Iterator[int]:
    """What would make an n-gram of `text` of the last of `tokens` and one more."""
    if size == 1:
        yield from text
    if size < 2 or len(tokens) < size - 1:
        return
    prefix = tokens[1 - size :]
    end = size - 2  # of an n-gram's prefix in `text`
    try:
        while True:
            end = text.index(prefix[-1], end, len(text) - 1) + 1
            if text[end + 1 - size : end] == prefix:
                yield text[end]
    except ValueError:
        return


def _bad_words(writing: Writing) -> Iterator[int]:
    """The last tokens of sequences of which all others are the last written. An end is never bad by itself."""
    tokens, ends = writing.tokens, writing.request.eos_ids
    for *prefix, last in writing.request.sampling.bad_words:
        if tokens[len(tokens) - len(prefix) :] == prefix if prefix else last not in ends:
            yield last


def _suppressed(writing: Writing) -> Iterable[int]:
    return writing.request.sampling.suppressed_ids


def _suppressed_first(writing: Writing) -> Iterable[int]:
    """Of the first token that is not forced."""
    prompt, sampling = writing.request.prompt, writing.request.sampling
    first = len(prompt) + (len(prompt) == 1 and sampling.forced_bos_id is not None)
    return sampling.first_suppressed_ids if len(writing.tokens) == first else ()


_BY_WHAT_IS_WRITTEN = (_ends_too_early, _repeating, _repeating_the_source, _bad_words)
_ALWAYS = (_suppressed, _suppressed_first)
