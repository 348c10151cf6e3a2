"""A closed loop: each caller asks again once it is answered, so that the server is busy and never behind."""

from __future__ import annotations

import asyncio
import itertools
import time
from contextlib import suppress
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
    """Requests answered a second, over `SECONDS` after `WARM_SECONDS`; they are asked over and over.

    Raises RuntimeError where one failed, or none was answered.
    """
    asked = asyncio.run(_ask_on(address, model, question, requests))
    if errors := {one.error for one in asked} - {None, UNANSWERED}:
        raise RuntimeError(f"{model} in a closed loop: {', '.join(map(str, errors))}")
    begun = asked[0].arrival + WARM_SECONDS
    answered = sum(one.error is None and one.end >= begun for one in asked)
    if not answered:
        raise RuntimeError(
            f"{model} answered none of {CALLERS} callers between {WARM_SECONDS:g} and {WARM_SECONDS + SECONDS:g} s"
        )
    return answered / SECONDS


async def _ask_on(address: str, model: str, question: Question, requests: Sequence[Request]) -> list[Timeline]:
    endless = itertools.cycle(requests)
    asked: list[Timeline] = []

    async def caller(client: AsyncClient) -> None:
        for request in endless:
            timeline = Timeline(time.monotonic(), len(request.token_ids), error=UNANSWERED)
            asked.append(timeline)
            await ask(client, model, question, request, timeline)
            if timeline.error:
                return

    async with AsyncClient(address, timeout=PATIENCE) as client:
        await client.wait_ready()
        with suppress(TimeoutError):
            async with asyncio.timeout(WARM_SECONDS + SECONDS), asyncio.TaskGroup() as callers:
                for _ in range(CALLERS):
                    callers.create_task(caller(client))
    return asked
