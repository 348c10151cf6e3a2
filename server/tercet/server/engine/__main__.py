"""The engine process: `python -m tercet.server.engine FOLDER SETTINGS_JSON`, started by the supervisor.

It connects to the supervisor's socket in the folder, loads its model, and serves the front ends that connect to its own
until it is told to stop or the supervisor is gone. Exit codes: 0 after that, 2 when the model can't be served (`Failed`
says why), 1 when the engine itself has failed.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tercet.server.engine.connection import Connections, Gone, exit_at_once
from tercet.server.engine.reports import Reports
from tercet.server.garbage import settle
from tercet.server.logs import configure, fields
from tercet.server.wire import Cancel, EngineSettings, Failed, Ready, Stop

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tercet.server.engine.engine import Engine

FAILED = 2

log = logging.getLogger("tercet.server.engine")


def main(arguments: Sequence[str]) -> int:
    """Runs an engine; returns the exit code."""
    # OpenMP's threads would else spin for milliseconds while they wait, on the cores of the front end and of the other
    # engines; without any spinning, they would fall asleep in the short gaps between the ops of a batch.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    for number in (signal.SIGINT, signal.SIGTERM):  # some send them to every process, but requests finish first
        signal.signal(number, signal.SIG_IGN)
    folder, settings_json = arguments
    settings = msgspec.json.decode(settings_json, type=EngineSettings)
    configure(f"engine {settings.name}")
    connections = Connections(Path(folder), settings.incarnation)
    connections.end_process_with_supervisor()
    try:
        return _run(settings, connections)
    except EOFError:
        return 0
    except Exception:
        log.exception("engine failed", extra=fields(model=settings.name, incarnation=settings.incarnation))
        return 1


def _run(settings: EngineSettings, connections: Connections) -> int:
    # Imported here, after the sockets: torch takes its time.
    from tercet.kernels.dispatch import UnsupportedError
    from tercet.server.engine.loading import StartError, load_engine
    from tercet.server.engine.memory import TooLargeError
    from tercet.server.models import CheckpointError

    try:
        engine, info = load_engine(settings, connections.report)
    except (CheckpointError, StartError, TooLargeError, UnsupportedError) as error:
        connections.exit_code = FAILED  # the supervisor may hang up as soon as it has heard
        connections.report(Failed(incarnation=settings.incarnation, message=" ".join(str(error).split())))
        return FAILED
    settle()
    connections.report(Ready(incarnation=settings.incarnation, model=info))
    serve(engine, connections)
    return 0


def serve(engine: Engine, connections: Connections) -> None:
    """Steps while there is work, and waits for messages while there is none. Returns on Stop."""
    reports = Reports(connections.report)
    while True:
        for message in connections.receive(wait=not engine.busy):
            match message:
                case Stop():
                    return
                case Cancel():
                    engine.cancel(message.id, message.sample)
                case Gone():
                    engine.cancel_all(message.ids)
                case _:
                    engine.submit(message)
        if engine.busy:
            result = engine.step()
            reports.add(result, last=not engine.busy)
            connections.answer(result.outputs, result.next_tokens)


if __name__ == "__main__":
    exit_at_once(main(sys.argv[1:]))
