"""A chat template at work in a process of its own (`sandbox.py`), whose time and memory are bounded."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import threading
import weakref
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_TEXT = 16 << 20  # characters of a prompt
MAX_SECONDS = 5.0  # for compiling a template, and for each render
MAX_MEMORY = 512 << 20  # bytes of the process


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """What comes of a message to the process."""

    text: str = ""
    error: str | None = None


class RenderError(Exception):
    """Why a template can't be compiled or rendered, in one line."""


class Renderer:
    """One template. Its process lives as long as this object; one that a render has cost its life is replaced."""

    def __init__(self, source: str) -> None:
        """Raises RenderError where `source` is not a template."""
        self._source = source
        self._lock = threading.Lock()
        self._process = _Process(source)

    def render(self, variables: dict[str, object]) -> str:
        """The template's text. Raises RenderError: it refuses, fails, or exceeds a limit."""
        with self._lock:
            if not self._process.alive:
                self._process = _Process(self._source)
            return self._process.ask(variables)


class _Process:
    """The process, from its start with a template to its end with this object or by a limit."""

    def __init__(self, source: str) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            command = [sys.executable, "-m", "tercet.server.text.sandbox", str(MAX_SECONDS), str(MAX_MEMORY)]
            process = subprocess.Popen(
                command,
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is the server's: requests finish first
            )
            self._stream = ours.makefile("rwb")
        self._process = process
        self._end = weakref.finalize(self, _end, process, self._stream.close)
        try:
            self.ask(source)
        except RenderError:
            self._end()
            raise

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, message: object) -> str:
        """The answer's text. Raises RenderError."""
        try:
            self._stream.write(msgspec.json.encode(message) + b"\n")
            self._stream.flush()
            line = self._stream.readline()
        except UnicodeEncodeError:
            raise RenderError("it holds half a surrogate pair") from None
        except OSError:
            line = b""
        if not line.endswith(b"\n"):
            code = self._process.wait()
            self._end()
            slow = code == -signal.SIGALRM
            raise RenderError(f"it takes more than {MAX_SECONDS} seconds" if slow else "its process died")
        answer = msgspec.json.decode(line, type=Answer)
        if answer.error is not None:
            raise RenderError(answer.error)
        return answer.text


def _end(process: subprocess.Popen[bytes], hang_up: Callable[[], None]) -> None:
    with contextlib.suppress(OSError):  # what could not be sent
        hang_up()
    process.kill()
    process.wait()
