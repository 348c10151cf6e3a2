"""The front end's side of the socket to one engine: sends requests, hands each answer to who waits for it."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from typing import TYPE_CHECKING, Protocol

import msgspec

from tercet.server import frames, wire
from tercet.server.logs import fields

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Request = wire.Embed | wire.Predict | wire.FillMask | wire.Score | wire.Generate
Output = wire.Embedding | wire.Prediction | wire.Candidates | wire.Scored | wire.Tokens | wire.Rejected
log = logging.getLogger(__name__)
_UNREADABLE = "the server could not read the answer of the model's engine"
_RATE_SECONDS = 2.0  # over which the rate of finished sequences is averaged


def rows(request: Request) -> int:
    """How many sequences a request is in the engine."""
    return max(request.n, request.sampling.num_beams) if isinstance(request, wire.Generate) else 1


def prompt_tokens(request: Request) -> int:
    """How many tokens a request gives the engine to read."""
    return len(request.token_ids) + (len(request.decoder_ids) if isinstance(request, wire.Score) else 0)


class Receiver(Protocol):
    """Who waits for the answers to one or more requests."""

    def receive(self, output: Output) -> bool:
        """Takes one answer. True where the request of its id needs no more."""
        ...

    def lose(self) -> None:
        """The engine died; nothing more will come."""
        ...


class Pending:
    """What one model was asked and has not answered: sequences, their prompt tokens, and how fast they finish."""

    def __init__(self) -> None:
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

    def remove(self, sequences: int, tokens: int) -> None:
        """Sequences were answered, cancelled or lost."""
        self.sequences -= sequences
        self.tokens -= tokens
        self._finished += sequences
        self._room.set()

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


class Channel(asyncio.Protocol):
    """One connection to one incarnation of an engine."""

    def __init__(self, on_message: Callable[[wire.FromEngine], None], on_lost: Callable[[Channel], None]) -> None:
        self.pending = Pending()
        self._on_message = on_message
        self._on_lost = on_lost
        self._frames = frames.FrameReader()
        self._waiting: dict[int, tuple[Receiver, int, int]] = {}  # id -> receiver, sequences, tokens
        self._ids = itertools.count()
        self._transport: asyncio.Transport | None = None

    def new_id(self) -> int:
        """An id that no other request has."""
        return next(self._ids)

    def submit(self, requests: Sequence[Request], receiver: Receiver) -> None:
        """Sends requests with ids of `new_id`; `receiver` gets their answers.

        Where the engine is gone the receiver is told so at once. Raises ValueError, and sends nothing, where a request
        exceeds the limit of a frame.
        """
        if self._transport is None:
            receiver.lose()
            return
        data = b"".join(map(frames.encode, requests))
        for request in requests:
            entry = self._waiting[request.id] = (receiver, rows(request), prompt_tokens(request))
            self.pending.add(*entry[1:])
        self._write(data)

    def cancel(self, ids: Sequence[int]) -> None:
        """Stops those of the requests that are not answered yet; their receiver hears no more of them."""
        late = [id for id in ids if self._forget(id)]
        self._write(b"".join(frames.encode(wire.Cancel(id=id)) for id in late))

    def cancel_sample(self, id: int, sample: int) -> None:
        """Stops one sample of a request."""
        self._write(frames.encode(wire.Cancel(id=id, sample=sample)))

    def stop(self) -> None:
        """Asks the engine to end."""
        self._write(frames.encode(wire.Stop()))

    def lose(self) -> None:
        """Tells everyone who waits that nothing more will come."""
        lost = {receiver for receiver, _, _ in self._waiting.values()}
        for id in list(self._waiting):
            self._forget(id)
        for receiver in lost:
            receiver.lose()

    def close(self) -> None:
        """Drops the connection, and whoever waits."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The engine connected."""
        if isinstance(transport, asyncio.Transport):
            self._transport = transport

    def data_received(self, data: bytes) -> None:
        """The engine wrote. What it may not write ends the connection."""
        try:
            for body in self._frames.feed(data):
                message = frames.from_engine_decoder.decode(body)
                self._on_message(message)
                if isinstance(message, wire.StepResult):
                    self._deliver(message.outputs)
        except (ValueError, msgspec.MsgspecError) as error:
            log.error("engine broke the protocol", extra=fields(error=str(error)))
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """The engine is gone."""
        self._transport = None
        self.lose()
        self._on_lost(self)

    def _deliver(self, outputs: Sequence[Output]) -> None:
        for output in outputs:
            entry = self._waiting.get(output.id)  # None: cancelled while the answer was on its way
            if entry is not None:
                self._hand(output, entry[0])
        self.pending.step()

    def _hand(self, output: Output, receiver: Receiver) -> None:
        """Gives an answer to its receiver. One that can't take it fails alone."""
        try:
            if receiver.receive(output):
                self._forget(output.id)
        except Exception:
            log.exception("an answer can't be read", extra=fields(id=output.id))
            self.cancel([output.id])
            receiver.receive(wire.Rejected(id=output.id, reason="internal", message=_UNREADABLE))

    def _forget(self, id: int) -> bool:
        entry = self._waiting.pop(id, None)
        if entry is not None:
            self.pending.remove(*entry[1:])
        return entry is not None

    def _write(self, data: bytes) -> None:
        if data and self._transport is not None:
            self._transport.write(data)
