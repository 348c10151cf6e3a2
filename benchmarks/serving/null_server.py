"""`tercet serve` whose engines' models compute nothing: `python -m benchmarks.serving.null_server PACE serve …`.

PACE is two numbers, seconds a pass and seconds a token. The engines are this module too, started as the supervisor
starts any engine.
"""

from __future__ import annotations

import os
import sys

PACE = "TERCET_NULL_PACE"
MODULE = "benchmarks.serving.null_server"


def main(arguments: list[str]) -> None:
    """The server's command line, or an engine's where the pace is known already."""
    if PACE in os.environ:
        from benchmarks.null_model import Pace, in_place_of_models
        from tercet.server.engine.__main__ import main as engine
        from tercet.server.engine.connection import exit_at_once

        step, token = map(float, os.environ[PACE].split(","))
        with in_place_of_models(Pace(step, token)):
            exit_at_once(engine(arguments))
    else:
        from tercet.server import supervisor
        from tercet.server.cli import main as server

        os.environ[PACE] = arguments[0]
        supervisor.ENGINE_COMMAND = (sys.executable, "-m", MODULE)
        sys.argv = [MODULE, *arguments[1:]]
        server()


if __name__ == "__main__":
    main(sys.argv[1:])
