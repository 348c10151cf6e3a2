"""A front end: `python -m tercet.server.front_end FOLDER SETTINGS_JSON`, started by the supervisor.

It connects to the supervisor's socket in the folder, listens where its kin do too, and serves gRPC until it is told to
drain or the supervisor is gone. Exit codes: 0 after a drain, 2 where it can't serve (`Refused` says why), 1 when it has
failed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import uvloop

from tercet.server import frames, logs
from tercet.server.control import (
    Drain,
    EngineState,
    FrontEndSettings,
    Hurry,
    Load,
    Refused,
    Serving,
    ToFrontEnd,
    to_front_end_decoder,
)
from tercet.server.engines import Engine
from tercet.server.link import Link
from tercet.server.metrics import Metrics, share
from tercet.server.ports import BindError
from tercet.server.shutdown import Shutdown

if TYPE_CHECKING:
    from collections.abc import Sequence

REFUSED = 2
_LOAD_SECONDS = 0.05  # from one look at what is pending to the next

log = logging.getLogger("tercet.server.front_end")


class FrontEnd:
    """What one front end is told, and what it tells."""

    def __init__(self, settings: FrontEndSettings) -> None:
        self.changed = asyncio.Event()
        """Set where an engine's state has changed."""
        self._loaded = asyncio.Event()
        self.engines = {name: Engine(name, self.changed.set, self._loaded.set) for name in settings.checkpoints}
        self._settings = settings
        self._shutdown = Shutdown()
        self._ended = False
        self._link = Link(to_front_end_decoder, self._hear, self._abandoned)

    async def run(self, folder: Path) -> int:
        """Serves until it is told to drain; gives the exit code."""
        await asyncio.get_running_loop().create_unix_connection(lambda: self._link, str(folder / frames.CONTROL))
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its lines are not ours, and what they say we say
        from tercet.server.service.server import Server
        from tercet.server.text import CheckpointTextError

        own = self._settings
        share(Path(own.metrics), own.number)
        load = asyncio.ensure_future(self._tell_load())
        try:
            server = Server(own.settings, Metrics(), self.engines.values(), self.changed)
            checkpoints = {name: Path(path) for name, path in own.checkpoints.items()}
            await server.run(own.addresses, checkpoints, self._shutdown, lambda: self._link.send(Serving()))
        except (BindError, CheckpointTextError) as error:
            self._link.send(Refused(message=" ".join(str(error).split())))
            return REFUSED
        else:
            return 0
        finally:
            load.cancel()
            self._ended = True

    def _hear(self, message: ToFrontEnd) -> None:
        match message:
            case EngineState():
                self.engines[message.name].hear(message)
            case Drain():
                self._shutdown.asked.set()
            case Hurry():
                self._shutdown.hurried.set()

    def _abandoned(self) -> None:
        """The supervisor has gone, and with it the engines: nothing can be finished."""
        if not self._ended:
            os._exit(1)

    async def _tell_load(self) -> None:
        """Tells the supervisor what is pending, once that changes."""
        told: dict[str, int] = {}
        while True:
            await self._loaded.wait()
            self._loaded.clear()
            pending = {name: engine.unanswered for name, engine in self.engines.items()}
            if pending != told:
                told = pending
                self._link.send(Load(pending=pending))
            await asyncio.sleep(_LOAD_SECONDS)


def main(arguments: Sequence[str]) -> int:
    """Runs a front end; gives the exit code."""
    folder, settings_json = arguments
    settings = msgspec.json.decode(settings_json, type=FrontEndSettings)
    logs.configure(f"front end {settings.number}")
    for number in (signal.SIGINT, signal.SIGTERM):  # some send them to every process: the supervisor knows what to do
        signal.signal(number, signal.SIG_IGN)
    try:
        return uvloop.run(_run(Path(folder), settings))
    except Exception:
        log.exception("front end failed")
        return 1


async def _run(folder: Path, settings: FrontEndSettings) -> int:
    return await FrontEnd(settings).run(folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
