"""A front end's side of the socket to one engine: sends requests, hands each answer to who waits for it."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from typing import TYPE_CHECKING, Protocol

from tercet.server import frames, wire
from tercet.server.link import Link
from tercet.server.logs import fields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

log = logging.getLogger(__name__)
_UNREADABLE = "the server could not read the answer of the model's engine"
_RATE_SECONDS = 2.0  # over which the rate of finished sequences is averaged


def rows(request: wire.Request) -> int:
    """How many sequences a request is in the engine."""
    match request:
        case wire.Embeds():
            return len(request.lengths)
        case wire.Generate():
            return max(request.n, request.sampling.num_beams)
        case _:
            return 1


def prompt_tokens(request: wire.Request) -> int:
    """How many tokens a request gives the engine to read."""
    return len(request.token_ids) + (len(request.decoder_ids) if isinstance(request, wire.Score) else 0)


class Receiver(Protocol):
    """Who waits for the answers to one or more requests."""

    def receive(self, output: wire.Output) -> bool:
        """Takes one answer. True where the request of its id needs no more."""
        ...

    def receive_token(self, sample: int, token_id: int) -> bool:
        """Takes the next token of a sample of one request, of those in columns. True as in `receive`."""
        ...

    def lose(self) -> None:
        """The engine died; nothing more will come."""
        ...


class Lane(Protocol):
    """One sample of a request, of whose tokens most are only to be handed on."""

    def take(self, token_id: int, arrived: float) -> bool:
        """Takes the next token, which came at that time.monotonic(). False where the receiver must."""
        ...


class Pending:
    """What one model was asked and has not answered: sequences, their prompt tokens, and how fast they finish."""

    def __init__(self, on_change: Callable[[], None] = lambda: None) -> None:
        self._on_change = on_change
        self.sequences = 0
        self.tokens = 0
        self._rate = 0.0  # sequences a second
        self._since = time.monotonic()
        self._finished = 0
        self._room = asyncio.Event()

    def add(self, sequences: int, tokens: int) -> None:
        """Sequences were sent to the engine."""
        if self.sequences == 0:
            self._since = time.monotonic()  # an idle engine is not a slow one
        self.sequences += sequences
        self.tokens += tokens
        self._on_change()

    def remove(self, sequences: int, tokens: int) -> None:
        """Sequences were answered, cancelled or lost."""
        self.sequences -= sequences
        self.tokens -= tokens
        self._finished += sequences
        self._room.set()
        self._on_change()

    def step(self) -> None:
        """A step ended: averages the rate, exponentially, with `_RATE_SECONDS` as the time constant."""
        now = time.monotonic()
        elapsed = now - self._since
        if self._finished and elapsed > 0:
            weight = 1 - math.exp(-elapsed / _RATE_SECONDS) if self._rate else 1.0
            self._rate += weight * (self._finished / elapsed - self._rate)
            self._finished, self._since = 0, now

    @property
    def drain_seconds(self) -> float:
        """How long what is pending will take at the rate of late; 1 where nothing finished yet."""
        return self.sequences / self._rate if self._rate else 1.0

    async def change(self) -> None:
        """Waits until something was removed."""
        self._room.clear()
        await self._room.wait()


class Channel(Link[wire.ToFrontEnd]):
    """One connection to one incarnation of an engine."""

    def __init__(
        self,
        incarnation: int,
        on_welcome: Callable[[Channel], None],
        on_lost: Callable[[Channel], None],
        on_load: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_welcome`: the engine takes requests now; `on_load`: it has more or less to answer than before."""
        super().__init__(frames.to_front_end_decoder, self._hear, lambda: self._end(on_lost))
        self.pending = Pending(on_load)
        self.arrived = 0.0
        """time.monotonic() at which the newest answers came."""
        self._incarnation = incarnation
        self._on_welcome = on_welcome
        # id -> receiver, sequences, tokens, lanes
        self._waiting: dict[int, tuple[Receiver, int, int, Sequence[Lane]]] = {}
        self._next_id = 0

    def new_id(self, count: int = 1) -> int:
        """The first of so many ids in a row that no other request has."""
        first = self._next_id
        self._next_id += count
        return first

    def submit(self, requests: Sequence[wire.Request], receiver: Receiver, lanes: Sequence[Lane] = ()) -> None:
        """Sends requests, at least one, with ids of `new_id`; `receiver` gets their answers.

        `lanes`: one for each sample, which are asked before the receiver to take a token; or none.
        Where the engine is gone the receiver is told so at once. Raises ValueError, and sends nothing, where they
        exceed the limit of a frame.
        """
        if not self.connected:
            receiver.lose()
            return
        # First of all, so that what is noted here is noted while the engine wakes up.
        self.write(frames.encode(requests[0] if len(requests) == 1 else wire.Requests(requests=list(requests))))
        sequences = tokens = 0
        for request in requests:
            entry = self._waiting[request.id] = (receiver, rows(request), prompt_tokens(request), lanes)
            sequences += entry[1]
            tokens += entry[2]
        self.pending.add(sequences, tokens)

    def cancel(self, ids: Iterable[int]) -> None:
        """Stops those of the requests that are not answered yet; their receiver hears no more of them."""
        self.send(*(wire.Cancel(id=id) for id in ids if self._forget(id)))

    def cancel_sample(self, id: int, sample: int) -> None:
        """Stops one sample of a request."""
        self.send(wire.Cancel(id=id, sample=sample))

    def lose(self) -> None:
        """Tells everyone who waits that nothing more will come."""
        lost = {receiver for receiver, *_ in self._waiting.values()}
        for id in list(self._waiting):
            self._forget(id)
        for receiver in lost:
            receiver.lose()

    def _end(self, on_lost: Callable[[Channel], None]) -> None:
        self.lose()
        on_lost(self)

    def _hear(self, message: wire.ToFrontEnd) -> None:
        if message.incarnation != self._incarnation:
            raise ValueError(f"incarnation {message.incarnation} is not {self._incarnation}")
        if isinstance(message, wire.Welcome):
            self._next_id = message.first_id
            self._on_welcome(self)
        else:
            self.arrived = time.monotonic()
            if message.next_tokens is not None:
                self._deliver_tokens(message.next_tokens)
            self._deliver(message.outputs)
            self.pending.step()

    def _deliver(self, outputs: Sequence[wire.Output]) -> None:
        """Gives answers to their receivers. One that can't take its answer fails alone."""
        waiting = self._waiting
        sequences = tokens = 0  # answered
        for output in outputs:
            entry = waiting.get(output.id)  # None: cancelled while the answer was on its way
            try:
                if entry is not None and entry[0].receive(output):
                    del waiting[output.id]
                    sequences += entry[1]
                    tokens += entry[2]
            except Exception:
                self._give_up(output.id)
        if sequences:
            self.pending.remove(sequences, tokens)

    def _deliver_tokens(self, tokens: wire.NextTokens) -> None:
        waiting, arrived = self._waiting, self.arrived
        for id, sample, token_id in tokens.rows():
            entry = waiting.get(id)
            try:
                if entry is None or (entry[3] and entry[3][sample].take(token_id, arrived)):
                    continue
                if entry[0].receive_token(sample, token_id):
                    self._forget(id)
            except Exception:
                self._give_up(id)

    def _give_up(self, id: int) -> None:
        """An answer could not be taken."""
        log.exception("an answer can't be read", extra=fields(id=id))
        receiver, *_ = self._waiting[id]
        self.cancel([id])
        receiver.receive(wire.Rejected(id=id, reason="internal", message=_UNREADABLE))

    def _forget(self, id: int) -> bool:
        entry = self._waiting.pop(id, None)
        if entry is not None:
            self.pending.remove(*entry[1:3])
        return entry is not None
