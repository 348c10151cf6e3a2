"""The connections of one client.

The front ends of a server share its port, and the kernel spreads connections over them, not calls: a client that makes
many calls at once needs several connections to have several front ends work for it.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Generic, TypeVar

from tercet.client.channel import Stubs

if TYPE_CHECKING:
    from collections.abc import Callable

    import grpc

CONNECTIONS = 4
_CALLS = 4  # at once on every connection, before another one is opened

C = TypeVar("C", bound="grpc.Channel | grpc.aio.Channel")


class Connection(Generic[C]):
    """One connection, and how many calls run on it."""

    def __init__(self, channel: C) -> None:
        self.channel = channel
        self.stubs = Stubs(channel)
        self.calls = 0


class Connections(Generic[C]):
    """Up to `most`, opened as calls need them: who makes one call at a time has one. Threads may share it."""

    def __init__(self, connect: Callable[[], C], most: int) -> None:
        if most < 1:
            raise ValueError(f"connections must be at least 1, got {most}")
        self._connect = connect
        self._most = most
        self._open: list[Connection[C]] = []
        self._lock = threading.Lock()

    @property
    def channels(self) -> list[C]:
        """Those that are open."""
        return [connection.channel for connection in self._open]

    def enter(self) -> Connection[C]:
        """The least busy, for one more call. Every `enter` is followed by a `leave`."""
        with self._lock:
            least = min(self._open, key=lambda connection: connection.calls, default=None)
            if least is None or (least.calls >= _CALLS and len(self._open) < self._most):
                least = Connection(self._connect())
                self._open.append(least)
            least.calls += 1
            return least

    def leave(self, connection: Connection[C]) -> None:
        """A call has ended."""
        with self._lock:
            connection.calls -= 1
