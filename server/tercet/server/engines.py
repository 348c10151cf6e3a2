"""The engines as a front end knows them: how they are, by the supervisor's word, and a connection to each."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from tercet.server import frames
from tercet.server.channel import Channel
from tercet.server.control import State

if TYPE_CHECKING:
    from collections.abc import Callable

    from tercet.server import wire
    from tercet.server.control import EngineState

_PAUSE = 0.1  # seconds between attempts to connect


class Engine:
    """One model's engine, over all its incarnations."""

    def __init__(self, name: str, on_change: Callable[[], None], on_load: Callable[[], None] = lambda: None) -> None:
        """`on_load`: there is more or less `unanswered` than before."""
        self.name = name
        self.state = State.LOADING
        """READY once this front end is connected."""
        self.info: wire.ModelInfo | None = None
        """Of the newest incarnation that got ready."""
        self.channel: Channel | None = None
        """Open while the engine is ready."""
        self._told: EngineState | None = None  # while it is said to be ready
        self._on_change = on_change
        self._on_load = on_load
        self._connecting: asyncio.Task[None] | None = None

    @property
    def unanswered(self) -> int:
        """Sequences that it was asked and has not answered."""
        return self.channel.pending.sequences if self.channel is not None else 0

    def hear(self, told: EngineState) -> None:
        """The supervisor says how it is."""
        self.info = told.info
        if told.state is State.READY:
            self._told = told
            self._connecting = asyncio.ensure_future(self._connect(told))
        else:
            self.close()
            self._change(told.state)

    def close(self) -> None:
        """Leaves the engine, until it is ready again; who waits for it is told."""
        self._told = None
        if self._connecting is not None:
            self._connecting.cancel()
        channel, self.channel = self.channel, None
        if channel is not None:
            channel.close()

    async def _connect(self, told: EngineState) -> None:
        """Tries until there is a connection, or the engine is no more what it was."""
        path = str(Path(told.folder) / frames.REQUESTS)
        connected = False
        while told is self._told and not connected:
            try:
                await asyncio.get_running_loop().create_unix_connection(
                    lambda: Channel(told.incarnation, self._welcome, self._lose, self._on_load), path
                )
                connected = True
            except OSError:  # it may have died: the supervisor will tell
                await asyncio.sleep(_PAUSE)

    def _welcome(self, channel: Channel) -> None:
        self.channel = channel
        self._change(State.READY)

    def _lose(self, channel: Channel) -> None:
        """The connection has gone: with the engine, or because this front end did not read for long."""
        if channel is self.channel:
            self.channel = None
            self._change(State.RESTARTING)
        if self._told is not None:
            self._connecting = asyncio.ensure_future(self._connect(self._told))

    def _change(self, state: State) -> None:
        self.state = state
        self._on_change()
