"""Requests and the sequences they consist of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from tercet.server.engine.pages import pages_of
from tercet.server.engine.processors import is_plain, is_processed
from tercet.server.wire import Embed, FillMask, Sampling, Score, token_ids

if TYPE_CHECKING:
    from tercet.server.engine.reading import Reading
    from tercet.server.wire import Family, FinishReason, Generate, TokenIds

NO_SAMPLING = Sampling(max_new_tokens=0)
NO_IDS = token_ids()


@dataclass(slots=True, eq=False)
class Request:
    """One message of the front end, and what its sequences have in common."""

    id: int
    arrival: int
    """Counts up; a smaller number is older."""
    deadline: float | None
    source: TokenIds
    """What is read whole: of seq2seq models what the encoder reads; empty for generations of decoders."""
    prompt: TokenIds
    """What the decoder starts from; empty for readings."""
    limit: int
    """Tokens of a sequence, prompt included, at which it is cut off."""
    sampling: Sampling = NO_SAMPLING
    salt: str = ""
    """Whose pages it may find: those of requests with the same one."""
    processed: bool = False
    """Whether anything is done to scores before a token is chosen."""
    plain: bool = True
    """Whether its filters are all that a token is drawn by, and nothing but the token is told."""
    eos_ids: frozenset[int] = frozenset()
    stop_ids: frozenset[int] = frozenset()
    reading: Reading | None = None
    """What is asked of a sequence that is only read; None for generations."""
    target: TokenIds = field(default_factory=token_ids)
    """What a seq2seq decoder reads whole against the source."""
    type_ids: TokenIds | None = None

    sequences: list[Sequence] = field(default_factory=list)
    """Those that are not finished."""
    cross_pages: list[int] = field(default_factory=list)
    """Keys and values of the source for cross-attention: held while one of the sequences runs."""
    encoded: bool = False
    """Set by the engine once `cross_pages` are written, by the scheduler where they were found, and taken back with the
    pages."""
    read: int = 0
    """Tokens of source and prompt that some sequence has read, to tell first reads from others."""
    cached: int | None = None
    """Tokens of the source or else the prompt that were found in pages; None before the first sequence has started."""
    longest: int = field(init=False)
    """Tokens of the source or the target, whichever is longer: the room a row that is read whole takes."""
    root: bytes = b""
    """This and the keys of pages that follow from it belong to `PageCache`."""
    prompt_keys: list[bytes] = field(default_factory=list)
    source_keys: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.longest = max(len(self.source), len(self.target))

    @property
    def must_encode(self) -> bool:
        """Whether what is read whole comes next."""
        return bool(self.source) and not self.encoded

    def end(self, token: int) -> FinishReason | None:
        """Why a text ends with `token`, however long it is; None if it goes on."""
        if token in self.eos_ids:
            return "eos"
        return "stop" if token in self.stop_ids else None


@dataclass(slots=True, eq=False)
class Sequence:
    """What is scheduled as one: a text to read, or one sample of a generation; `BeamSearch` is all beams of one."""

    request: Request
    sample: int
    tokens: list[int]
    """Prompt and generated tokens."""
    computed: int = 0
    """Leading tokens whose keys and values are in pages."""
    read: int = 0
    """The most that `computed` ever was: what comes below is recomputed."""
    pages: list[int] = field(default_factory=list)
    room: int = 0
    """Tokens that its pages hold."""
    lanes: list[int] = field(default_factory=list)
    """Its places in the tables on the device while it runs, one for each row."""
    head: int = -1
    """The first lane of the search that it is a beam of."""
    drawn: int = 0
    """Tokens drawn on the device that the next steps read before the host knows them."""
    state: Literal["waiting", "running", "finished"] = "waiting"
    """Set by the scheduler."""
    keys: list[bytes] = field(default_factory=list)
    """Of its full pages; these three belong to `PageCache`."""
    kept: int = 0
    """Leading pages that were found, or can be."""
    expected: bytes = b""
    """The key of a page that it waits for another sequence to compute."""
    order: tuple[int, int] = field(init=False)
    """Older sequences come first."""
    _seen: set[int] = field(default_factory=set)
    _seen_ids: TokenIds = field(default_factory=token_ids)
    _looked_at: int = 0
    """Leading tokens that are in `_seen`."""

    def __post_init__(self) -> None:
        self.order = self.request.arrival, self.sample

    @property
    def length(self) -> int:
        """Tokens there are, known to the host or not."""
        return len(self.tokens) + self.drawn

    @property
    def remaining(self) -> int:
        """Tokens to compute before the next can be chosen; 1 for a row that decodes, 0 while it waits for the host."""
        return len(self.tokens) + self.drawn - self.computed

    @property
    def generated(self) -> int:
        """Tokens chosen so far."""
        return len(self.tokens) - len(self.request.prompt)

    @property
    def awaited(self) -> bool:
        """Whether the host has to know its last token before another can be chosen."""
        return self.request.processed

    @property
    def common(self) -> int:
        """Leading tokens that are the same in all of its rows, and in pages that all have in common."""
        return len(self.tokens)

    @property
    def widest(self) -> int:
        """The most rows of a batch that it takes."""
        return 1

    @property
    def width(self) -> int:
        """The rows that it takes of the next batch, all equally long."""
        return 1

    @property
    def stretch(self) -> int:
        """The most tokens that each of these rows can read at once."""
        return self.remaining

    def rows(self) -> list[Sequence]:
        """The rows of the next batch, with the pages of each."""
        return [self]

    def page_count(self, page_size: int) -> int:
        """Pages that hold all tokens."""
        return pages_of(self.length, page_size)

    def restart(self, computed: int) -> None:
        """Starts with the keys and values of so many leading tokens in pages."""
        self.computed = computed
        self.read = max(self.read, computed)

    def seen(self) -> TokenIds:
        """The tokens so far, each once; owned by the sequence. Only tokens new since the last call cost time."""
        for token in self.tokens[self._looked_at :]:
            if token not in self._seen:
                self._seen.add(token)
                self._seen_ids.append(token)
        self._looked_at = len(self.tokens)
        return self._seen_ids

    def rewrite(self, tokens: list[int]) -> None:
        """Makes it another text."""
        self.tokens = tokens
        if self._looked_at:
            self._seen, self._seen_ids, self._looked_at = set(), token_ids(), 0

    def draw(self) -> bool:
        """Counts a token that is being chosen, unless it is the last; False if the host has to know it first."""
        if self.awaited:
            return False
        if len(self.tokens) + self.drawn + 1 < self.request.limit:
            self.drawn += 1
        return True

    def accept(self, token: int) -> FinishReason | None:
        """Appends a chosen token; says why the sequence ends with it, if it does."""
        self.tokens.append(token)
        if self.drawn:
            self.drawn -= 1
        return self.request.end(token) or ("length" if len(self.tokens) >= self.request.limit else None)


def reading_request(message: Reading, arrival: int) -> Request:
    """A request of one sequence that is read whole, and done."""
    request = Request(
        id=message.id,
        arrival=arrival,
        deadline=message.deadline,
        source=message.token_ids,
        prompt=NO_IDS,
        limit=0,
        reading=message,
        target=NO_IDS if isinstance(message, Embed | FillMask) else message.decoder_ids,
        type_ids=None if isinstance(message, Score) else message.type_ids,
    )
    request.sequences.append(Sequence(request, 0, []))
    return request


def generation_request(message: Generate, arrival: int, family: Family, max_length: int) -> Request:
    """A request of `n` sequences, none longer than `max_length`."""
    source, prompt = (message.token_ids, message.decoder_ids) if family == "seq2seq" else (NO_IDS, message.token_ids)
    request = Request(
        id=message.id,
        arrival=arrival,
        deadline=message.deadline,
        source=source,
        prompt=prompt,
        limit=min(len(prompt) + message.sampling.max_new_tokens, max_length),
        sampling=message.sampling,
        salt=message.cache_salt,
        processed=is_processed(message.sampling),
        plain=is_plain(message.sampling),
        eos_ids=frozenset(message.eos_ids),
        stop_ids=frozenset(message.stop_ids),
    )
    request.sequences.extend(Sequence(request, sample, list(prompt)) for sample in range(message.n))
    return request
