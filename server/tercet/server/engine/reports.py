"""What the supervisor hears of an engine's steps."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from tercet.server.wire import Cached, Tokens

if TYPE_CHECKING:
    from collections.abc import Callable

    from tercet.server.wire import Output, StepResult, StepStats

SECONDS = 0.2  # between reports where nothing starts or ends: the supervisor need not count every step by itself


class Reports:
    """Joins the figures of steps, and sends them before anybody has the end of what they brought.

    So who has been answered finds the answer counted; tokens of streams that go on are counted a little later.
    """

    def __init__(self, send: Callable[[StepResult], None]) -> None:
        self._send = send
        self._stats: list[StepStats] = []
        self._sent = 0.0  # when
        self._rows = 0, 0  # that ran and waited then

    def add(self, result: StepResult, *, last: bool) -> None:
        """Takes in a step; `last`: no other follows soon."""
        self._stats += result.stats
        now, rows = time.monotonic(), (result.running, result.waiting)
        if last or rows != self._rows or now - self._sent >= SECONDS or any(map(_ends, result.outputs)):
            self._send(msgspec.structs.replace(result, outputs=[], next_tokens=None, stats=self._stats))
            self._stats, self._sent, self._rows = [], now, rows


def _ends(output: Output) -> bool:
    """Whether nothing follows this answer."""
    return output.finish_reason is not None if isinstance(output, Tokens) else not isinstance(output, Cached)
