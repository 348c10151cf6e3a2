"""A closed loop: each caller asks again once it is answered, so that the server is busy and never behind."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import TYPE_CHECKING

from benchmarks.load.latency import UNANSWERED, Timeline
from benchmarks.load.openloop import PATIENCE, ask
from tercet.client import AsyncClient

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.load.openloop import Question, Request

CALLERS = 16
WARM_SECONDS, SECONDS = 5.0, 10.0


def closed_loop_rate(address: str, model: str, question: Question, requests: Sequence[Request]) -> float:
    """Requests answered a second; they are asked over and over. Raises RuntimeError where one failed.

    Counts from `WARM_SECONDS` on, for `SECONDS` and until as many are answered as there are callers.
    """
    asked = asyncio.run(_ask_on(address, model, question, requests))
    if errors := {one.error for one in asked if one.error}:
        raise RuntimeError(f"{model} in a closed loop: {', '.join(sorted(errors))}")
    warm = asked[0].arrival + WARM_SECONDS
    ends = sorted(one.end - warm for one in asked if one.end >= warm)  # each caller's last is among them
    seconds = max(SECONDS, ends[CALLERS - 1])
    return sum(end <= seconds for end in ends) / seconds


async def _ask_on(address: str, model: str, question: Question, requests: Sequence[Request]) -> list[Timeline]:
    endless = itertools.cycle(requests)
    asked: list[Timeline] = []

    async def caller(client: AsyncClient) -> None:
        for request in endless:
            timeline = Timeline(time.monotonic(), len(request.token_ids), error=UNANSWERED)
            asked.append(timeline)
            await ask(client, model, question, request, timeline)
            if timeline.error or time.monotonic() > asked[0].arrival + WARM_SECONDS + SECONDS:
                return

    async with AsyncClient(address, timeout=PATIENCE) as client:
        await client.wait_ready()
        await asyncio.gather(*(caller(client) for _ in range(CALLERS)))
    return asked
