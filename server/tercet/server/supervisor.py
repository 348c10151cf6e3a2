"""One engine process for each model: starts it, watches it, and starts it again when it dies.

An engine that dies loses its requests (they get UNAVAILABLE) and nothing else. It comes back after a pause that grows;
one that dies too often, or never gets ready, stays down, and the other models never notice.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import signal
import sys
import tempfile
import time
from collections import deque
from enum import Enum, auto
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tercet.server import frames, wire
from tercet.server.channel import Channel
from tercet.server.link import Link
from tercet.server.logs import fields
from tercet.server.metrics import EngineMetrics

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tercet.server.metrics import Metrics

ENGINE_COMMAND: Sequence[str] = (sys.executable, "-m", "tercet.server.engine")
# Seconds before the first and the second start again; a third crash within _WINDOW, or before Ready, is the last.
_PAUSES = (0.1, 1.0)
_WINDOW = 60.0  # seconds
_LAST_WORDS = 5.0  # seconds from the end of the connection, or from Stop, to SIGKILL

log = logging.getLogger(__name__)


class State(Enum):
    """Where an engine is in its life."""

    LOADING = auto()
    READY = auto()
    RESTARTING = auto()
    FAILED = auto()


class StartError(Exception):
    """An engine that never got ready: the reason in one line. `refused`: by its checkpoint or settings."""

    def __init__(self, message: str, *, refused: bool):
        super().__init__(message)
        self.refused = refused


class Engine:
    """One model's engine, over all its incarnations."""

    def __init__(
        self, settings: wire.EngineSettings, folder: Path, metrics: Metrics, on_change: Callable[[Engine], None]
    ) -> None:
        self.name = settings.name
        self.state = State.LOADING
        self.progress: wire.Loading | None = None
        self.info: wire.ModelInfo | None = None
        """Of the newest incarnation that got ready."""
        self.channel: Channel | None = None
        """Open while the engine is ready."""
        self.spawned = asyncio.Event()
        """Set once the first process runs."""
        self._settings = settings
        self._folder = folder
        self._metrics = EngineMetrics(metrics, self.name, self._unanswered)
        self._on_change = on_change
        self._control: Link[wire.FromEngine] | None = None
        self._home = folder
        """Of the incarnation that lives."""
        self._process: asyncio.subprocess.Process | None = None
        self._refusal: str | None = None
        self._asking: asyncio.Future[None] | None = None
        self._unready = 0
        """Incarnations in a row that did not get ready."""
        self._stopping = False

    async def run(self) -> None:
        """Keeps the engine alive until `stop`, or until it died too often.

        Raises StartError where it refuses its checkpoint at the first start, or never gets ready.
        """
        crashes: deque[float] = deque(maxlen=len(_PAUSES) + 1)
        while True:
            self._unready += 1
            code = await self._live()
            if self._stopping:
                return
            if self.info is None and self._refusal is not None:
                raise StartError(f"{self.name}: {self._refusal}", refused=True)
            reason = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            log.error("engine died", extra=fields(model=self.name, reason=reason, error=self._refusal))
            crashes.append(time.monotonic())
            too_often = len(crashes) > len(_PAUSES) and crashes[-1] - crashes[0] < _WINDOW
            if too_often or self._unready > len(_PAUSES):
                log.error("engine stays down", extra=fields(model=self.name, crashes=len(crashes)))
                self._change(State.FAILED)
                if self.info is None:
                    raise StartError(f"{self.name}: the engine died {len(crashes)} times: {reason}", refused=False)
                return
            recent = sum(crashes[-1] - crash < _WINDOW for crash in crashes)
            await asyncio.sleep(_PAUSES[min(recent, len(_PAUSES)) - 1])
            if self._stopping:
                return
            self._metrics.restarted("signal" if code < 0 else "exit")

    async def stop(self) -> None:
        """Ends the engine."""
        self._stopping = True
        if self._control is not None and self.state is State.READY:
            self._control.send(wire.Stop())
        elif self._process is not None:
            _kill(self._process)  # it loads: there is nothing to finish
        if self._process is not None:
            await self._bury(self._process)

    async def _live(self) -> int:
        """One incarnation from birth to death: its exit code."""
        incarnation = self._settings.incarnation + 1
        self._settings = msgspec.structs.replace(self._settings, incarnation=incarnation)
        self._refusal = None
        self._home = self._folder / str(incarnation)
        self._home.mkdir(mode=0o700)
        lost = asyncio.Event()
        listener = await asyncio.get_running_loop().create_unix_server(
            lambda: self._connect(lost), self._home / frames.CONTROL
        )
        try:
            self._process = process = await asyncio.create_subprocess_exec(
                *ENGINE_COMMAND,
                str(self._home),
                msgspec.json.encode(self._settings).decode(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=sys.stderr,
                start_new_session=True,  # Ctrl-C is the supervisor's: requests finish first
            )
            self.spawned.set()
            if self._stopping:  # since before there was a process to kill
                _kill(process)
            log.info("engine started", extra=fields(model=self.name, pid=process.pid, incarnation=incarnation))
            exit_ = asyncio.ensure_future(process.wait())
            await asyncio.wait({exit_, end := asyncio.ensure_future(lost.wait())}, return_when=asyncio.FIRST_COMPLETED)
            end.cancel()
            await self._bury(process)
            return exit_.result() if exit_.done() else await exit_
        finally:
            listener.close()
            shutil.rmtree(self._home, ignore_errors=True)
            if self._control is not None:
                self._control.close()
                self._disconnect()
            self._process = None

    async def _bury(self, process: asyncio.subprocess.Process) -> None:
        """Waits for a process that should be ending, and kills it where it does not."""
        try:
            await asyncio.wait_for(process.wait(), _LAST_WORDS)
        except TimeoutError:
            _kill(process)
            await process.wait()

    def _connect(self, lost: asyncio.Event) -> asyncio.Protocol:
        if self._control is not None:
            return _Stranger()

        def on_lost() -> None:
            if control is self._control:
                self._disconnect()
                lost.set()

        self._control = control = Link(frames.from_engine_decoder, self._hear, on_lost)
        return control

    def _disconnect(self) -> None:
        if self.channel is not None:
            self.channel.close()
        self._control = self.channel = None
        self._metrics.lost()
        if not self._stopping:
            self._change(State.LOADING if self.info is None else State.RESTARTING)

    def _hear(self, message: wire.FromEngine) -> None:
        if message.incarnation != self._settings.incarnation:
            raise ValueError(f"incarnation {message.incarnation} is not {self._settings.incarnation}")
        if isinstance(message, wire.StepResult):
            self._metrics.step(message)
        elif isinstance(message, wire.Loading):
            self.progress = message
            self._on_change(self)
        elif isinstance(message, wire.Failed):
            self._refusal = message.message
        else:
            self.info = message.model
            self._unready = 0
            self._metrics.ready(message.model)
            log.info(
                "model ready", extra=fields(model=self.name, memory=message.model.memory, pages=message.model.pages)
            )
            self._asking = asyncio.ensure_future(self._ask())

    async def _ask(self) -> None:
        channel = Channel(self._settings.incarnation, self._welcome, lambda _: None)
        with contextlib.suppress(OSError):  # it died meanwhile
            await asyncio.get_running_loop().create_unix_connection(lambda: channel, str(self._home / frames.REQUESTS))

    def _welcome(self, channel: Channel) -> None:
        self.channel = channel
        self._change(State.READY)

    def _unanswered(self) -> int:
        """Sequences that the engine has not answered. May be called from any thread."""
        channel = self.channel  # read once: it may go meanwhile
        return channel.pending.sequences if channel is not None else 0

    def _change(self, state: State) -> None:
        self.state = state
        self._on_change(self)


class _Stranger(asyncio.Protocol):
    """A second connection to the socket of an engine: nobody we know."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Hangs up."""
        transport.close()


def _kill(process: asyncio.subprocess.Process) -> None:
    """Kills a process that may have ended."""
    with contextlib.suppress(ProcessLookupError):
        process.kill()


class Supervisor:
    """The engines of every model of the server."""

    def __init__(self, plan: Sequence[wire.EngineSettings], metrics: Metrics) -> None:
        """Starts nothing before `start`."""
        self.engines: dict[str, Engine] = {}
        self._watchers: list[Callable[[Engine], None]] = []
        self._folder = Path(tempfile.mkdtemp(prefix="tercet-"))  # mode 0700
        self._life: asyncio.Future[list[None]] | None = None
        for number, settings in enumerate(plan):
            folder = self._folder / str(number)
            folder.mkdir(mode=0o700)
            self.engines[settings.name] = Engine(settings, folder, metrics, self._tell)

    def watch(self, watcher: Callable[[Engine], None]) -> None:
        """`watcher` will hear of every change of an engine's state or progress."""
        self._watchers.append(watcher)

    async def start(self) -> None:
        """Starts every engine's process."""
        self._life = asyncio.gather(*(engine.run() for engine in self.engines.values()))
        spawned = asyncio.gather(*(engine.spawned.wait() for engine in self.engines.values()))
        await asyncio.wait({self._life, spawned}, return_when=asyncio.FIRST_COMPLETED)
        spawned.cancel()

    async def run(self) -> None:
        """Waits until every engine stays down. Raises the first StartError."""
        if self._life is not None:
            await self._life

    async def stop(self) -> None:
        """Ends every engine and removes the sockets; where that is done, does nothing."""
        await asyncio.gather(*(engine.stop() for engine in self.engines.values()))
        if self._life is not None:
            await asyncio.gather(self._life, return_exceptions=True)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _tell(self, engine: Engine) -> None:
        for watcher in self._watchers:
            watcher(engine)
