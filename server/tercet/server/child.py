"""A process of the supervisor: started, listened to, and started again when it dies.

It comes back after a pause that grows; one that dies too often, or never gets ready, stays down.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import signal
import sys
import time
from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING, Any, Literal

from tercet.server import frames
from tercet.server.link import Link, readable
from tercet.server.logs import fields

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import msgspec

# Seconds before the first and the second start again; a third crash within _WINDOW, or before it is ready, is the last.
_PAUSES = (0.1, 1.0)
_WINDOW = 60.0  # seconds
_LAST_WORDS = 5.0  # seconds from the end of the connection to SIGKILL

log = logging.getLogger(__name__)


class StartError(Exception):
    """The server can't start, or not go on: the reason in one line. `refused`: by a checkpoint or settings."""

    def __init__(self, message: str, *, refused: bool):
        super().__init__(message)
        self.refused = refused


class Child(ABC):
    """One process, over all its incarnations."""

    kind: str
    """What logs call it."""

    def __init__(self, folder: Path, **label: object) -> None:
        """`folder`: is made; each incarnation gets a folder in it for its sockets. `label` tells it from its kin."""
        folder.mkdir(mode=0o700)
        self.incarnation = 0
        self.home = folder
        """The folder of the incarnation."""
        self.spawned = asyncio.Event()
        """Set once the first process runs."""
        self.link: Link[Any] | None = None
        """To the process, while it lives."""
        self._folder = folder
        self._label = label
        self._process: asyncio.subprocess.Process | None = None
        self._refusal: str | None = None
        self._was_ready = False
        self._unready = 0
        """Incarnations in a row that did not get ready."""
        self._stopping = False

    @property
    @abstractmethod
    def title(self) -> str:
        """What users are told it is."""

    @abstractmethod
    def _command(self) -> Sequence[str]:
        """What to run."""

    @abstractmethod
    def _decoder(self) -> msgspec.msgpack.Decoder[Any]:
        """Reads what the process sends."""

    @abstractmethod
    def _hear(self, message: Any) -> None:
        """The process sent a message. A ValueError ends the connection."""

    @abstractmethod
    def _connected(self) -> None:
        """The process has connected."""

    @abstractmethod
    def _lost(self) -> None:
        """The process has gone."""

    @abstractmethod
    def _restarted(self, reason: Literal["signal", "exit"]) -> None:
        """The process is started again."""

    @abstractmethod
    def _given_up(self) -> None:
        """The process stays down."""

    def _ready(self) -> None:
        """To be called where the process has started well."""
        self._was_ready = True
        self._unready = 0

    async def run(self) -> None:
        """Keeps the process alive until `stop`, or until it died too often.

        Raises StartError where it refuses to start the first time, or never gets ready.
        """
        crashes: deque[float] = deque(maxlen=len(_PAUSES) + 1)
        while True:
            self._unready += 1
            code = await self._live()
            if self._stopping:
                return
            if not self._was_ready and self._refusal is not None:
                raise StartError(self._refusal, refused=True)
            reason = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            log.error(f"{self.kind} died", extra=fields(**self._label, reason=reason, error=self._refusal))
            crashes.append(time.monotonic())
            too_often = len(crashes) > len(_PAUSES) and crashes[-1] - crashes[0] < _WINDOW
            if too_often or self._unready > len(_PAUSES):
                log.error(f"{self.kind} stays down", extra=fields(**self._label, crashes=len(crashes)))
                self._given_up()
                if not self._was_ready:
                    raise StartError(f"{self.title} died {len(crashes)} times: {reason}", refused=False)
                return
            recent = sum(crashes[-1] - crash < _WINDOW for crash in crashes)
            await asyncio.sleep(_PAUSES[min(recent, len(_PAUSES)) - 1])
            if self._stopping:
                return
            self._restarted("signal" if code < 0 else "exit")

    async def stop(self) -> None:
        """Ends the process."""
        self._stopping = True
        if self._process is not None:
            self._end(self._process)
            await self._bury(self._process)

    def _end(self, process: asyncio.subprocess.Process) -> None:
        """Asks the process to end, or kills it where there is nothing to finish."""
        kill(process)

    async def _live(self) -> int:
        """One incarnation from birth to death: its exit code."""
        self.incarnation += 1
        self._refusal = None
        self.home = self._folder / str(self.incarnation)
        self.home.mkdir(mode=0o700)
        lost = asyncio.Event()
        loop = asyncio.get_running_loop()
        listener = await loop.create_unix_server(lambda: self._connect(lost), self.home / frames.CONTROL)
        try:
            self._process = process = await asyncio.create_subprocess_exec(
                *self._command(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=sys.stderr,
                start_new_session=True,  # Ctrl-C is the supervisor's: requests finish first
            )
            self.spawned.set()
            if self._stopping:  # since before there was a process to kill
                kill(process)
            log.info(f"{self.kind} started", extra=fields(**self._label, pid=process.pid, incarnation=self.incarnation))
            exit_ = asyncio.ensure_future(process.wait())
            await asyncio.wait({exit_, end := asyncio.ensure_future(lost.wait())}, return_when=asyncio.FIRST_COMPLETED)
            end.cancel()
            await self._bury(process)
            if self.link is not None:  # its last messages
                self.link.wake()
                await readable()
            return exit_.result() if exit_.done() else await exit_
        finally:
            listener.close()
            if self.link is not None:
                self.link.close()
                self._disconnect()
            shutil.rmtree(self.home, ignore_errors=True)
            self._process = None

    async def _bury(self, process: asyncio.subprocess.Process) -> None:
        """Waits for a process that should be ending, and kills it where it does not."""
        try:
            await asyncio.wait_for(process.wait(), _LAST_WORDS)
        except TimeoutError:
            kill(process)
            await process.wait()

    def _connect(self, lost: asyncio.Event) -> asyncio.Protocol:
        if self.link is not None:
            return _Stranger()

        def on_lost() -> None:
            if link is self.link:
                self._disconnect()
                lost.set()

        self.link = link = Link(self._decoder(), self._hear, on_lost, self._connected)
        return link

    def _disconnect(self) -> None:
        self.link = None
        self._lost()


class _Stranger(asyncio.Protocol):
    """A second connection to the supervisor's socket for a process: nobody we know."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Hangs up."""
        transport.close()


def kill(process: asyncio.subprocess.Process) -> None:
    """Kills a process that may have ended."""
    with contextlib.suppress(ProcessLookupError):
        process.kill()
