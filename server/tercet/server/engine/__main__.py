"""The engine process: `python -m tercet.server.engine SOCKET SETTINGS_JSON`, started by the supervisor.

It connects to the socket, loads its model, and serves until it is told to stop or the socket closes. Exit codes: 0
after that, 2 when the model can't be served (`Failed` says why), 1 when the engine itself has failed.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING

import msgspec

from tercet.server.engine.connection import Connection, exit_at_once
from tercet.server.logs import configure, fields
from tercet.server.wire import Cancel, EngineSettings, Failed, Ready, Stop

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tercet.server.engine.engine import Engine

FAILED = 2

log = logging.getLogger("tercet.server.engine")


def main(arguments: Sequence[str]) -> int:
    """Runs an engine; returns the exit code."""
    configure()
    # OpenMP's threads would else spin for milliseconds while they wait, on the cores of the front end and of the other
    # engines; without any spinning, they would fall asleep in the short gaps between the ops of a batch.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to us too, but the front end drains first
    path, settings_json = arguments
    settings = msgspec.json.decode(settings_json, type=EngineSettings)
    connection = Connection(path)
    connection.end_process_with_peer()
    try:
        return _run(settings, connection)
    except EOFError:
        return 0
    except Exception:
        log.exception("engine failed", extra=fields(model=settings.name, incarnation=settings.incarnation))
        return 1


def _run(settings: EngineSettings, connection: Connection) -> int:
    # Imported here, after the socket: torch takes its time.
    from tercet.kernels.dispatch import UnsupportedError
    from tercet.server.engine.loading import StartError, load_engine
    from tercet.server.engine.memory import TooLargeError
    from tercet.server.models import CheckpointError

    try:
        engine, info = load_engine(settings, connection.send)
    except (CheckpointError, StartError, TooLargeError, UnsupportedError) as error:
        connection.exit_code = FAILED  # the front end may hang up as soon as it has heard
        connection.send(Failed(incarnation=settings.incarnation, message=" ".join(str(error).split())))
        return FAILED
    # What was loaded lives as long as the process: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    connection.send(Ready(incarnation=settings.incarnation, model=info))
    serve(engine, connection)
    return 0


def serve(engine: Engine, connection: Connection) -> None:
    """Steps while there is work, and waits for messages while there is none. Returns on Stop."""
    while True:
        for message in connection.receive(wait=not engine.busy):
            if isinstance(message, Stop):
                return
            if isinstance(message, Cancel):
                engine.cancel(message.id, message.sample)
            else:
                engine.submit(message)
        if engine.busy:
            connection.send(engine.step())


if __name__ == "__main__":
    exit_at_once(main(sys.argv[1:]))
