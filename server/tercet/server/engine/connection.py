"""The engine's ends of its Unix sockets: one to the supervisor, one to each front end.

The supervisor listens at FOLDER/control; it hears how the engine starts and what its steps were. The engine listens at
FOLDER/requests, where front ends connect; each hears the answers to what it asked itself.
"""

from __future__ import annotations

import logging
import os
import select
import selectors
import socket
import sys
import threading
from collections import defaultdict
from itertools import chain, compress
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from tercet.server import frames
from tercet.server.engine.batches import Batches
from tercet.server.logs import fields
from tercet.server.wire import Answers, Cancel, Embeds, NextTokens, Requests, Welcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from tercet.server.engine.reading import Reading
    from tercet.server.wire import FromEngine, Generate, Output, Stop, ToEngine

    Received = Reading | Generate | Cancel | Stop

_ID_BITS = 40  # of a request's id, below the number of its connection
_RECEIVE_BYTES = 1 << 18
# A reader that is slow holds the engine up; one that pauses does so for this time, once, and then is written to between
# steps. One that has paused for long with much to read is hung up on.
_COURTESY = 0.02  # seconds
_PATIENCE = 10.0  # seconds
_UNREAD = 64 << 20  # bytes

log = logging.getLogger(__name__)


class Gone(NamedTuple):
    """A front end has gone, and with it who waits for these requests."""

    ids: range


class _Connection:
    """One socket. Every method raises EOFError once the other side is gone."""

    def __init__(self, connected: socket.socket, courtesy: float = _COURTESY) -> None:
        self.socket = connected
        self.registered = selectors.EVENT_READ
        """What the selector waits for."""
        self._courtesy = courtesy
        self._frames = frames.FrameReader()
        self._unsent = bytearray()
        self._batches = Batches()
        self._writable = select.poll()
        self._writable.register(connected.fileno(), select.POLLOUT)

    def receive(self) -> list[Received]:
        """What has arrived, sequence by sequence."""
        messages: list[Received] = []
        full = True
        while full:
            try:
                data = self.socket.recv(_RECEIVE_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError as error:
                raise EOFError from error
            if not data:
                raise EOFError
            try:
                for message in map(frames.to_engine_decoder.decode, self._frames.feed(data)):
                    messages += self._singly(message)
            except (ValueError, msgspec.MsgspecError) as error:
                log.error("broken protocol", extra=fields(error=str(error)))
                raise EOFError from error
            full = len(data) == _RECEIVE_BYTES
        return messages

    def _singly(self, message: ToEngine) -> Iterable[Received]:
        """What a message consists of. Raises ValueError where it does not fit together."""
        match message:
            case Requests():
                return chain.from_iterable(map(self._singly, message.requests))
            case Embeds():
                return self._batches.open(message)
            case Cancel():
                return self._batches.close(message)
            case _:
                return (message,)

    def whole(self, outputs: Iterable[Output]) -> list[Output]:
        """Answers as they were asked for, whole; those to a part come with the last of its others."""
        return list(self._batches.answers(outputs))

    def send(self, data: bytes) -> None:
        """Sends, and leaves for later what a reader that pauses does not take."""
        courtesy = 0.0 if self._unsent else self._courtesy
        self._unsent += data
        self.flush()
        while self._unsent:
            overfull = len(self._unsent) > _UNREAD
            if not self._writable.poll(1000 * (_PATIENCE if overfull else courtesy)):
                if overfull:
                    raise EOFError
                return
            self.flush()

    def flush(self) -> None:
        """Sends what the socket takes at once of what was left."""
        try:
            if self._unsent:
                del self._unsent[: self.socket.send(self._unsent, socket.MSG_DONTWAIT)]
        except BlockingIOError:
            return
        except OSError as error:
            raise EOFError from error

    @property
    def awaited(self) -> int:
        """What the selector should wait for."""
        return selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsent else 0)


class Connections:
    """Every socket of an engine. Methods raise EOFError once the supervisor is gone."""

    def __init__(self, folder: Path, incarnation: int) -> None:
        self._incarnation = incarnation
        control = socket.socket(socket.AF_UNIX)
        control.connect(str(folder / frames.CONTROL))
        self._supervisor = _Connection(control, courtesy=0.0)  # it reads now and then
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / frames.REQUESTS))
        self._listener.listen()
        self._front_ends: dict[int, _Connection] = {}
        self._accepted = 0
        self._gone: list[Gone] = []  # noticed while sending
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self.exit_code = 0
        """What the process exits with once the supervisor is gone."""

    def report(self, message: FromEngine) -> None:
        """Sends one message to the supervisor."""
        self._supervisor.send(frames.encode(message))
        self._await(self._supervisor)

    def answer(self, outputs: Iterable[Output], next_tokens: NextTokens | None) -> None:
        """Sends each front end the answers to its requests, in one message; those of one that is gone are dropped."""
        asked: defaultdict[int, list[Output]] = defaultdict(list)
        for output in outputs:
            asked[output.id >> _ID_BITS].append(output)
        columns = _by_front_end(next_tokens) if next_tokens is not None else {}
        for number in asked.keys() | columns.keys():
            if connection := self._front_ends.get(number):
                whole, tokens = connection.whole(asked[number]), columns.get(number)
                if whole or tokens:
                    self._send(number, Answers(incarnation=self._incarnation, outputs=whole, next_tokens=tokens))

    def receive(self, *, wait: bool) -> list[Received | Gone]:
        """What has arrived since; with `wait`, an event is waited for, which may bring nothing."""
        messages: list[Received | Gone] = []
        for key, _ in self._selector.select(None if wait and not self._gone else 0):
            if key.fileobj is self._listener:
                self._accept()
            elif key.data is None:
                self._supervisor.flush()
                messages += self._supervisor.receive()
                self._await(self._supervisor)
            else:
                messages += self._attend(key.data)
        messages += self._gone
        self._gone.clear()
        return messages

    def end_process_with_supervisor(self) -> None:
        """Ends this process when the supervisor closes its socket or dies, whatever runs: a load, a long step."""

        def wait() -> None:
            poll = select.poll()
            poll.register(self._supervisor.socket.fileno(), 0)  # the hang-up is reported without being asked for
            poll.poll()
            exit_at_once(self.exit_code)

        threading.Thread(target=wait, name="supervisor", daemon=True).start()

    def _accept(self) -> None:
        connected, _ = self._listener.accept()
        number = self._accepted
        self._accepted += 1
        self._front_ends[number] = _Connection(connected)
        self._selector.register(connected, selectors.EVENT_READ, number)
        self._send(number, Welcome(incarnation=self._incarnation, first_id=number << _ID_BITS))

    def _attend(self, number: int) -> list[Received]:
        """Reads from a front end, and writes what was left."""
        connection = self._front_ends[number]
        try:
            connection.flush()
            messages = connection.receive()
        except EOFError:
            self._drop(number)
            return []
        self._await(connection, number)
        return messages

    def _send(self, number: int, message: Welcome | Answers) -> None:
        if connection := self._front_ends.get(number):
            try:
                for data in encoded(message):
                    connection.send(data)
            except EOFError:
                self._drop(number)
            else:
                self._await(connection, number)

    def _await(self, connection: _Connection, number: int | None = None) -> None:
        """Lets the selector wait for what the connection waits for."""
        if connection.registered != connection.awaited:
            connection.registered = connection.awaited
            self._selector.modify(connection.socket, connection.registered, number)

    def _drop(self, number: int) -> None:
        connection = self._front_ends.pop(number)
        self._selector.unregister(connection.socket)
        connection.socket.close()
        self._gone.append(Gone(range(number << _ID_BITS, (number + 1) << _ID_BITS)))


def encoded(message: Welcome | Answers) -> Iterator[bytes]:
    """The frames of a message: one, or where that is too long, those of its answers in halves."""
    try:
        yield frames.encode(message)
    except ValueError:
        if isinstance(message, Welcome) or len(message.outputs) < 2:
            raise
        middle = len(message.outputs) // 2
        yield from encoded(msgspec.structs.replace(message, outputs=message.outputs[:middle]))
        yield from encoded(msgspec.structs.replace(message, outputs=message.outputs[middle:], next_tokens=None))


def _by_front_end(tokens: NextTokens) -> dict[int, NextTokens]:
    """The tokens of each connection's requests."""
    numbers = [id >> _ID_BITS for id in tokens.ids]
    columns: dict[int, NextTokens] = {}
    for number in set(numbers):
        mine = [number == other for other in numbers]
        samples = list(compress(tokens.samples, mine))
        columns[number] = NextTokens(
            ids=list(compress(tokens.ids, mine)),
            samples=samples if any(samples) else [],
            token_ids=list(compress(tokens.token_ids, mine)),
        )
    return columns


def exit_at_once(code: int) -> None:
    """Ends the process without the interpreter's tidying, which may wait for what a device is doing."""
    sys.stderr.flush()
    os._exit(code)
