"""One engine process for each model, front-end processes before them, and what there is one of.

An engine that dies loses its requests (they get UNAVAILABLE), a front end its connections, and neither anything else.
The supervisor tells every front end how the engines are; requests never pass through it.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from functools import partial
from typing import TYPE_CHECKING, Literal

import msgspec

from tercet.server import control, frames, wire
from tercet.server.child import Child, StartError, kill
from tercet.server.control import EngineState, State
from tercet.server.logs import fields
from tercet.server.server_metrics import EngineMetrics

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tercet.server.control import FrontEndSettings
    from tercet.server.server_metrics import ServerMetrics

ENGINE_COMMAND: Sequence[str] = (sys.executable, "-m", "tercet.server.engine")
FRONT_END_COMMAND: Sequence[str] = (sys.executable, "-m", "tercet.server.front_end")
# Seconds for which an engine's reports are left unread after one: each would else take time of the call it tells of.
_REST = 0.2
_LAST_ANSWERS = 5.0  # seconds that a front end gets which is hurried

log = logging.getLogger(__name__)


class EngineProcess(Child):
    """One model's engine."""

    kind = "engine"

    def __init__(
        self,
        settings: wire.EngineSettings,
        folder: Path,
        metrics: ServerMetrics,
        unanswered: Callable[[], int],
        on_change: Callable[[EngineProcess], None],
    ) -> None:
        """`unanswered` tells the sequences that the engine was asked and has not answered."""
        super().__init__(folder, model=settings.name)
        metrics.before_scrape.append(self._wake)
        self.name = settings.name
        self.state = State.LOADING
        self.progress: wire.Loading | None = None
        self.info: wire.ModelInfo | None = None
        """Of the newest incarnation that got ready."""
        self._settings = settings
        self._metrics = EngineMetrics(metrics, self.name, unanswered)
        self._on_change = on_change
        self._reports: list[wire.StepResult] = []  # that are not counted yet

    @property
    def title(self) -> str:
        """What users are told it is."""
        return f"{self.name}: the engine"

    @property
    def told(self) -> EngineState:
        """What front ends know of it."""
        return EngineState(
            name=self.name, state=self.state, incarnation=self.incarnation, info=self.info, folder=str(self.home)
        )

    def _command(self) -> Sequence[str]:
        settings = msgspec.structs.replace(self._settings, incarnation=self.incarnation)
        return (*ENGINE_COMMAND, str(self.home), msgspec.json.encode(settings).decode())

    def _decoder(self) -> msgspec.msgpack.Decoder[wire.FromEngine]:
        return frames.from_engine_decoder

    def _connected(self) -> None:
        """It speaks first."""

    def _hear(self, message: wire.FromEngine) -> None:
        if message.incarnation != self.incarnation:
            raise ValueError(f"incarnation {message.incarnation} is not {self.incarnation}")
        if isinstance(message, wire.StepResult):
            if not self._reports:
                asyncio.get_running_loop().call_soon(self._count)
            self._reports.append(message)
            if self.link is not None:
                self.link.rest(_REST)
        elif isinstance(message, wire.Loading):
            self.progress = message
            self._on_change(self)
        elif isinstance(message, wire.Failed):
            self._refusal = f"{self.name}: {message.message}"
        else:
            self.info = message.model
            self._ready()
            self._metrics.ready(message.model)
            log.info(
                "model ready", extra=fields(model=self.name, memory=message.model.memory, pages=message.model.pages)
            )
            self._change(State.READY)

    def _count(self) -> None:
        """Counts what was reported, all that was read at once together."""
        if self._reports:
            self._metrics.steps(self._reports)
            self._reports = []

    def _wake(self) -> None:
        """Reads what it has reported."""
        if self.link is not None:
            self.link.wake()

    def _end(self, process: asyncio.subprocess.Process) -> None:
        if self.link is not None and self.state is State.READY:
            self.link.send(wire.Stop())
        else:
            kill(process)  # it loads: there is nothing to finish

    def _lost(self) -> None:
        self._count()
        self._metrics.lost()
        if not self._stopping:
            self._change(State.LOADING if self.info is None else State.RESTARTING)

    def _restarted(self, reason: Literal["signal", "exit"]) -> None:
        self._metrics.restarted(reason)

    def _given_up(self) -> None:
        self._change(State.FAILED)

    def _change(self, state: State) -> None:
        self.state = state
        self._on_change(self)


class FrontEndProcess(Child):
    """One front end. It hears of every change of an engine."""

    kind = "front end"

    def __init__(
        self, settings: FrontEndSettings, folder: Path, metrics: ServerMetrics, engines: Sequence[EngineProcess]
    ) -> None:
        super().__init__(folder, front_end=settings.number)
        self.pending: dict[str, int] = {}
        """Sequences of each model that wait for answers, as of late."""
        self.serving = asyncio.Event()
        """Set once every model was ready."""
        self._settings = settings
        self._metrics = metrics
        self._engines = engines

    @property
    def title(self) -> str:
        """What users are told it is."""
        return f"front end {self._settings.number}"

    def tell(self, message: control.ToFrontEnd) -> None:
        """Sends it a message, where it lives."""
        if self.link is not None:
            self.link.send(message)

    async def drain(self) -> None:
        """Lets what runs finish; returns once the process has ended."""
        self._stopping = True
        if self._process is not None:
            self.tell(control.Drain())
            if self.link is None:
                kill(self._process)  # it starts: there is nothing to finish
            await self._process.wait()

    def _command(self) -> Sequence[str]:
        return (*FRONT_END_COMMAND, str(self.home), msgspec.json.encode(self._settings).decode())

    def _decoder(self) -> msgspec.msgpack.Decoder[control.ToSupervisor]:
        return control.to_supervisor_decoder

    def _connected(self) -> None:
        for engine in self._engines:
            self.tell(engine.told)

    def _hear(self, message: control.ToSupervisor) -> None:
        match message:
            case control.Load():
                self.pending = message.pending
            case control.Refused():
                self._refusal = message.message
            case control.Serving():
                self._ready()
                self.serving.set()

    def _lost(self) -> None:
        self.pending = {}

    def _given_up(self) -> None:
        """The others go on."""

    def _restarted(self, reason: Literal["signal", "exit"]) -> None:
        self._metrics.front_end_restarts.labels(reason).inc()


class Supervisor:
    """The engines of every model, and the front ends before them."""

    def __init__(
        self,
        engines: Sequence[wire.EngineSettings],
        front_ends: Sequence[FrontEndSettings],
        folder: Path,
        metrics: ServerMetrics,
    ) -> None:
        """`folder`: of mode 0700, for the sockets of every process. Starts nothing before `start`."""
        self.engines: dict[str, EngineProcess] = {}
        for number, settings in enumerate(engines):
            self.engines[settings.name] = EngineProcess(
                settings, folder / f"e{number}", metrics, partial(self._unanswered, settings.name), self._tell
            )
        self.front_ends = [
            FrontEndProcess(settings, folder / f"f{settings.number}", metrics, tuple(self.engines.values()))
            for settings in front_ends
        ]
        self._watchers: list[Callable[[EngineProcess], None]] = []
        self._told: dict[str, EngineState] = {}
        self._lives: list[asyncio.Future[None]] = []

    def watch(self, watcher: Callable[[EngineProcess], None]) -> None:
        """`watcher` will hear of every change of an engine's state or progress."""
        self._watchers.append(watcher)

    async def start(self) -> None:
        """Starts every process."""
        self._lives = [asyncio.ensure_future(child.run()) for child in self._children]
        spawned = asyncio.gather(*(child.spawned.wait() for child in self._children))
        await asyncio.wait({*self._lives, spawned}, return_when=asyncio.FIRST_COMPLETED)
        spawned.cancel()

    async def run(self) -> None:
        """Waits until every process stays down.

        Raises StartError of the first that does not start, and where no front end is left.
        """
        engines, front_ends = self._lives[: len(self.engines)], self._lives[len(self.engines) :]
        await asyncio.gather(*engines, self._last_of(front_ends))

    async def serving(self) -> None:
        """Waits until every front end serves every model."""
        await asyncio.gather(*(front_end.serving.wait() for front_end in self.front_ends))

    async def drain(self, hurried: asyncio.Event, timeout: float) -> None:
        """Lets the front ends finish what runs, but hurries them after so many seconds, or once that is asked for."""
        drained = asyncio.gather(*(front_end.drain() for front_end in self.front_ends))
        hurry = asyncio.ensure_future(hurried.wait())
        await asyncio.wait({drained, hurry}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        for front_end in self.front_ends:
            front_end.tell(control.Hurry())
        await asyncio.wait({drained}, timeout=_LAST_ANSWERS)
        drained.cancel()
        hurry.cancel()

    async def stop(self) -> None:
        """Ends every process; where that is done, does nothing."""
        await asyncio.gather(*(child.stop() for child in self._children))
        await asyncio.gather(*self._lives, return_exceptions=True)

    @property
    def _children(self) -> list[Child]:
        return [*self.engines.values(), *self.front_ends]

    async def _last_of(self, front_ends: Sequence[asyncio.Future[None]]) -> None:
        if front_ends:
            await asyncio.gather(*front_ends)
            raise StartError("every front end died too often", refused=False)

    def _unanswered(self, model: str) -> int:
        """Sequences that wait for a model's answers. May be called from any thread."""
        return sum(front_end.pending.get(model, 0) for front_end in self.front_ends)

    def _tell(self, engine: EngineProcess) -> None:
        """Tells the watchers of a change, and the front ends where it is one of state."""
        for watcher in self._watchers:
            watcher(engine)
        if self._told.get(engine.name) != engine.told:
            self._told[engine.name] = engine.told
            for front_end in self.front_ends:
                front_end.tell(engine.told)
