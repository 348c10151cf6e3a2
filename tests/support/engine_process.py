"""A real engine process at the other end of a Unix socket, as the supervisor starts it."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec

from support.engine import Answers, settings
from tercet.server import frames, wire

TIMEOUT = 60  # seconds; a process that imports torch beside others that do


class EngineProcess:
    """Speaks `wire` with one engine."""

    def __init__(self, **changes):
        # A Unix socket's path is short: pytest's folders may be too deep.
        self._folder = tempfile.mkdtemp(prefix="tercet-")
        path = str(Path(self._folder) / "engine")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen(1)
            listener.settimeout(TIMEOUT)
            text = msgspec.json.encode(settings(**changes)).decode()
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tercet.server.engine", path, text],
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stderr=subprocess.PIPE,
            )
            self.socket, _ = listener.accept()
        self.socket.settimeout(TIMEOUT)
        self._frames = frames.FrameReader()
        self._received = []

    def send(self, *messages):
        """Sends all messages at once."""
        self.socket.sendall(b"".join(map(frames.encode, messages)))

    def receive(self):
        """The next message; EOFError when the engine has gone."""
        while not self._received:
            data = self.socket.recv(1 << 16)
            if not data:
                raise EOFError
            self._received += map(frames.from_engine_decoder.decode, self._frames.feed(data))
        return self._received.pop(0)

    def started(self):
        """Everything until the engine is ready, that included."""
        messages = [self.receive()]
        while isinstance(messages[-1], wire.Loading):
            messages.append(self.receive())
        return messages

    def answers(self, *messages, count):
        """Sends requests; what came of them once `count` have ended, each sample by itself."""
        self.send(*messages)
        answers = Answers()
        while len(answers.reasons) + len(answers.vectors) + len(answers.rejected) < count:
            answers.add(self.receive())
        return answers

    def exit_code(self, timeout=TIMEOUT):
        """Waits for the end of the process."""
        return self.process.wait(timeout)

    def close(self):
        """Ends whatever is left."""
        self.socket.close()
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        self.process.stderr.close()
        shutil.rmtree(self._folder)


@contextlib.contextmanager
def engine_process(**changes):
    """An engine process that is gone afterwards."""
    engine = EngineProcess(**changes)
    try:
        yield engine
    finally:
        engine.close()
