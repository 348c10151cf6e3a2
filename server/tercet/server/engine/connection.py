"""The engine's end of the Unix socket."""

from __future__ import annotations

import os
import select
import socket
import sys
import threading
from typing import TYPE_CHECKING

from tercet.server import frames

if TYPE_CHECKING:
    from tercet.server.wire import FromEngine, ToEngine

_RECEIVE_BYTES = 1 << 18


class Connection:
    """Frames to and from the front end. Every method raises EOFError once the front end is gone."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(path)
        self._frames = frames.FrameReader()
        self.exit_code = 0
        """What the process exits with once the front end is gone."""

    def send(self, message: FromEngine) -> None:
        """Sends one message, waiting for a front end that is slow to read."""
        try:
            self._socket.sendall(frames.encode(message))
        except OSError as error:
            raise EOFError from error

    def receive(self, *, wait: bool) -> list[ToEngine]:
        """Everything that has arrived; with `wait`, at least some bytes are waited for."""
        messages: list[ToEngine] = []
        flags = 0 if wait else socket.MSG_DONTWAIT
        while True:
            try:
                data = self._socket.recv(_RECEIVE_BYTES, flags)
            except BlockingIOError:
                return messages
            except OSError as error:
                raise EOFError from error
            if not data:
                raise EOFError
            messages += map(frames.to_engine_decoder.decode, self._frames.feed(data))
            flags = socket.MSG_DONTWAIT

    def end_process_with_peer(self) -> None:
        """Ends this process when the front end closes its socket or dies, whatever is running: a load, a long step."""

        def wait() -> None:
            poll = select.poll()
            poll.register(self._socket.fileno(), 0)  # the hang-up is reported without being asked for
            poll.poll()
            exit_at_once(self.exit_code)

        threading.Thread(target=wait, name="peer", daemon=True).start()


def exit_at_once(code: int) -> None:
    """Ends the process without the interpreter's tidying, which may wait for what a device is doing."""
    sys.stderr.flush()
    os._exit(code)
