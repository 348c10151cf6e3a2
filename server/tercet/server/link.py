"""One end of a Unix socket on an event loop: whole messages come in, whole messages go out."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Generic, TypeVar, cast

import msgspec

from tercet.server import frames
from tercet.server.logs import fields

if TYPE_CHECKING:
    from collections.abc import Callable

M = TypeVar("M")
log = logging.getLogger(__name__)


async def readable() -> None:
    """Lets the event loop read: what links could read when this began they have taken in when it returns, and what they
    put off to the loop's next turn is done.
    """
    for _ in range(3):
        await asyncio.sleep(0)


class Link(asyncio.Protocol, Generic[M]):
    """A connection that gives each message to `take`."""

    def __init__(
        self,
        decoder: msgspec.msgpack.Decoder[M],
        take: Callable[[M], None],
        on_lost: Callable[[], None],
        on_made: Callable[[], None] = lambda: None,
    ) -> None:
        self._on_made = on_made
        self._decoder = decoder
        self._take = take
        self._on_lost = on_lost
        self._frames = frames.FrameReader()
        self._transport: asyncio.Transport | None = None

    @property
    def connected(self) -> bool:
        """Whether what is sent may arrive."""
        return self._transport is not None

    def send(self, *messages: msgspec.Struct) -> None:
        """Sends messages; where the other side is gone, does nothing. Raises ValueError past the limit of a frame."""
        self.write(b"".join(map(frames.encode, messages)))

    def write(self, data: bytes) -> None:
        """Sends messages that are encoded."""
        if data and self._transport is not None:
            self._transport.write(data)

    def rest(self, seconds: float) -> None:
        """Reads nothing for so long, or until `wake`: what comes meanwhile is read together, and wakes nobody."""
        if self._transport is not None and self._transport.is_reading():
            self._transport.pause_reading()
            asyncio.get_running_loop().call_later(seconds, self.wake)

    def wake(self) -> None:
        """Reads again."""
        if self._transport is not None:
            self._transport.resume_reading()

    def close(self) -> None:
        """Drops the connection."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """There is another side."""
        self._transport = cast("asyncio.Transport", transport)  # what event loops have is not always its subclass
        self._on_made()

    def data_received(self, data: bytes) -> None:
        """The other side wrote. What it may not write ends the connection."""
        try:
            for body in self._frames.feed(data):
                self._take(self._decoder.decode(body))
        except (ValueError, msgspec.MsgspecError) as error:
            log.error("broken protocol", extra=fields(error=str(error)))
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """The other side is gone."""
        self._transport = None
        self._on_lost()
