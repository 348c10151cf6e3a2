"""Threads for work on text, with a bounded queue before them."""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from tercet.server.service.errors import OverloadedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

_T = TypeVar("_T")
_COME_AGAIN = 1.0  # seconds until a refused client should come again


class TextThreads:
    """Runs work on text off the event loop. What it costs is counted in characters, or tokens where it reads those."""

    def __init__(self, limit: int) -> None:
        """`limit`: the most characters that may wait or run. Where none do, a job of any size is taken."""
        self._limit = limit
        self._held = 0
        self._room = asyncio.Event()
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="text")

    async def run(self, size: int, work: Callable[[], _T], *, patient: bool = False) -> _T:
        """Runs `work`, of `size` characters.

        Raises OverloadedError where the queue is full; for patient work waits instead, if it can ever fit. Work whose
        caller leaves does not start, or counts until it ends.
        """
        while self._held and self._held + size > self._limit:
            if not patient or size > self._limit:
                problem = f"too much text waits to be read: {self._held} of {self._limit} characters"
                raise OverloadedError(problem, retry_after=_COME_AGAIN)
            self._room.clear()
            await self._room.wait()
        self._held += size
        job = self._pool.submit(work)
        job.add_done_callback(partial(self._end, asyncio.get_running_loop(), size))
        return await asyncio.wrap_future(job)

    def _end(self, loop: asyncio.AbstractEventLoop, size: int, _: Future[_T]) -> None:
        """A job ended or was cancelled: tells the event loop, from whatever thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody counts any more
            loop.call_soon_threadsafe(self._leave, size)

    def _leave(self, size: int) -> None:
        self._held -= size
        self._room.set()
