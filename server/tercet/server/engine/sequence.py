"""Requests and the sequences they consist of."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from tercet.server.wire import Sampling

if TYPE_CHECKING:
    from tercet.server.wire import Embed, Family, FinishReason, Generate, Pooling

NO_SAMPLING = Sampling(max_new_tokens=0)


class PoolingKind(NamedTuple):
    """How hidden states become one vector."""

    pooling: Pooling
    normalize: bool


@dataclass(slots=True, eq=False)
class Request:
    """One message of the front end, and what its sequences have in common."""

    id: int
    arrival: int
    """Counts up; a smaller number is older."""
    deadline: float | None
    source: list[int]
    """What the encoder reads; empty for decoders."""
    prompt: list[int]
    """What the decoder starts from; empty for embeddings."""
    limit: int
    """Tokens of a sequence, prompt included, at which it is cut off."""
    sampling: Sampling = NO_SAMPLING
    eos_ids: frozenset[int] = frozenset()
    stop_ids: frozenset[int] = frozenset()
    pooling: PoolingKind | None = None
    """Of an embedding; None for generations."""
    type_ids: list[int] | None = None

    sequences: list[Sequence] = field(default_factory=list["Sequence"])
    """Those that are not finished."""
    cross_pages: list[int] = field(default_factory=list[int])
    """Keys and values of the source for cross-attention: held while one of the sequences runs."""
    encoded: bool = False
    """Set by the engine once `cross_pages` are written, taken back by the scheduler with the pages."""
    read: int = 0
    """Tokens of source and prompt that some sequence has read, to tell first reads from others."""

    @property
    def must_encode(self) -> bool:
        """Whether the encoder comes next."""
        return bool(self.source) and not self.encoded


@dataclass(slots=True, eq=False)
class Sequence:
    """One row of work: an embedding, or one sample of a generation."""

    request: Request
    sample: int
    tokens: list[int]
    """Prompt and generated tokens."""
    computed: int = 0
    """Leading tokens whose keys and values are in pages."""
    read: int = 0
    """The most that `computed` ever was: what comes below is recomputed."""
    pages: list[int] = field(default_factory=list[int])
    state: Literal["waiting", "running", "finished"] = "waiting"
    """Set by the scheduler."""
    _seen: set[int] = field(default_factory=set[int])
    _seen_ids: array[int] = field(default_factory=lambda: array("i"))
    _looked_at: int = 0
    """Leading tokens that are in `_seen`."""

    @property
    def order(self) -> tuple[int, int]:
        """Older sequences come first."""
        return self.request.arrival, self.sample

    @property
    def remaining(self) -> int:
        """Tokens to compute before the next can be chosen; 1 for a row that decodes."""
        return len(self.tokens) - self.computed

    @property
    def generated(self) -> int:
        """Tokens chosen so far."""
        return len(self.tokens) - len(self.request.prompt)

    def seen(self) -> array[int]:
        """The tokens so far, each once; owned by the sequence. Only tokens new since the last call cost time."""
        for token in self.tokens[self._looked_at :]:
            if token not in self._seen:
                self._seen.add(token)
                self._seen_ids.append(token)
        self._looked_at = len(self.tokens)
        return self._seen_ids

    def accept(self, token: int) -> FinishReason | None:
        """Appends a chosen token; says why the sequence ends with it, if it does."""
        self.tokens.append(token)
        if token in self.request.eos_ids:
            return "eos"
        if token in self.request.stop_ids:
            return "stop"
        return "length" if len(self.tokens) >= self.request.limit else None


def embedding_request(message: Embed, arrival: int) -> Request:
    """A request of one sequence that the encoder alone reads."""
    request = Request(
        id=message.id,
        arrival=arrival,
        deadline=message.deadline,
        source=message.token_ids,
        prompt=[],
        limit=0,
        pooling=PoolingKind(message.pooling, message.normalize),
        type_ids=message.type_ids,
    )
    request.sequences.append(Sequence(request, 0, []))
    return request


def generation_request(message: Generate, arrival: int, family: Family, max_length: int) -> Request:
    """A request of `n` sequences, none longer than `max_length`."""
    source, prompt = (message.token_ids, message.decoder_ids) if family == "seq2seq" else ([], message.token_ids)
    request = Request(
        id=message.id,
        arrival=arrival,
        deadline=message.deadline,
        source=source,
        prompt=prompt,
        limit=min(len(prompt) + message.sampling.max_new_tokens, max_length),
        sampling=message.sampling,
        eos_ids=frozenset(message.eos_ids),
        stop_ids=frozenset(message.stop_ids),
    )
    request.sequences.extend(Sequence(request, sample, list(prompt)) for sample in range(message.n))
    return request
