"""`tercet serve` with the fake engine in place of the real one: `python fake_server.py serve …`."""

import sys
from pathlib import Path

from tercet.server import cli, supervisor

supervisor.ENGINE_COMMAND = (sys.executable, str(Path(__file__).with_name("fake_engine.py")))
cli.main()
