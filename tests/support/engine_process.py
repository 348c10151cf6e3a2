"""A real engine process, as the supervisor starts it and a front end asks it."""

from __future__ import annotations

import contextlib
import os
import select
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


class _Messages:
    """The messages of a socket."""

    def __init__(self, end, decoder):
        self._end, self._decoder = end, decoder
        self._frames = frames.FrameReader()
        self._received = []

    def next(self):
        """The next one; EOFError where there will be none."""
        while not self._received:
            self._read()
        return self._received.pop(0)

    def rest(self):
        """All, until there are no more: then EOFError."""
        while True:
            self.next()

    def arrived(self):
        """Those that are there."""
        while select.select([self._end], [], [], 0)[0]:
            self._read()
        messages, self._received = self._received, []
        return messages

    def _read(self):
        data = self._end.recv(1 << 16)
        if not data:
            raise EOFError
        self._received += map(self._decoder.decode, self._frames.feed(data))


def outputs_of(answers):
    """What a step brought, the tokens that came in columns too."""
    columns = answers.next_tokens
    if columns is None:
        return answers.outputs
    tokens = [wire.Tokens(id=id, sample=sample, token_ids=[token]) for id, sample, token in columns.rows()]
    return [*tokens, *answers.outputs]


class EngineProcess:
    """Speaks `wire` with one engine."""

    def __init__(self, **changes):
        # A Unix socket's path is short: pytest's folders may be too deep.
        self._folder = tempfile.mkdtemp(prefix="tercet-")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(Path(self._folder) / frames.CONTROL))
            listener.listen(1)
            listener.settimeout(TIMEOUT)
            text = msgspec.json.encode(settings(**changes)).decode()
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tercet.server.engine", self._folder, text],
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stderr=subprocess.PIPE,
            )
            self.socket, _ = listener.accept()
        self.socket.settimeout(TIMEOUT)
        self._reports = _Messages(self.socket, frames.from_engine_decoder)
        self._answers = self._requests = None

    def front_end(self):
        """A front end's connection: the socket, what comes over it, and the first id for requests."""
        requests = socket.socket(socket.AF_UNIX)
        requests.settimeout(TIMEOUT)
        requests.connect(str(Path(self._folder) / frames.REQUESTS))
        answers = _Messages(requests, frames.to_front_end_decoder)
        return requests, answers, answers.next().first_id

    def send(self, *messages):
        """Sends all requests at once, from a front end of its own."""
        if self._requests is None:
            self._requests, self._answers, _ = self.front_end()
        self._requests.sendall(b"".join(map(frames.encode, messages)))

    def stop(self):
        """Tells the engine to end."""
        self.socket.sendall(frames.encode(wire.Stop()))

    def receive(self):
        """The next message to the supervisor; EOFError when the engine has gone."""
        return self._reports.next()

    def started(self):
        """Everything until the engine is ready, that included."""
        messages = [self.receive()]
        while isinstance(messages[-1], wire.Loading):
            messages.append(self.receive())
        return messages

    def outputs(self):
        """What the next step with answers brought."""
        return outputs_of(self._answers.next())

    def answers(self, *messages, count):
        """Sends requests; what came of them once `count` have ended, each sample by itself, and the steps till then."""
        self.send(*messages)
        answers = Answers()
        while len(answers.reasons) + len(answers.vectors) + len(answers.rejected) < count:
            answers.take(self.outputs())
        answers.steps += self._reports.arrived()
        return answers

    def exit_code(self, timeout=TIMEOUT):
        """Waits for the end of the process."""
        return self.process.wait(timeout)

    def close(self):
        """Ends whatever is left."""
        for end in (self.socket, self._requests):
            if end is not None:
                end.close()
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
