"""What signals ask of the server."""

from __future__ import annotations

import asyncio
import signal


class Shutdown:
    """SIGTERM and SIGINT ask for a drain; SIGINT during a drain asks for its end. Further SIGTERMs change nothing."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.hurried = asyncio.Event()

    def listen(self) -> None:
        """Takes the signals, until the event loop ends."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.asked.set)
        loop.add_signal_handler(signal.SIGINT, self._interrupt)

    def _interrupt(self) -> None:
        (self.hurried if self.asked.is_set() else self.asked).set()
