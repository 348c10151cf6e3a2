"""An open loop: requests arrive when they arrive, answered or not, from processes of their own.

A closed loop waits for answers and so never asks a stalled server; an open one shows the queue that users would feel.
Latency counts from the moment a request was meant to be sent.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from benchmarks.serving.latency import Timeline
from tercet.client import AsyncClient, TercetError

if TYPE_CHECKING:
    from collections.abc import Sequence

Question = Literal["embed", "stream"]
HEAD_START = 1.0  # seconds for all processes to connect before the first arrival


@dataclass(frozen=True)
class Request:
    """One request of a workload: token ids to read, and how many tokens to generate."""

    token_ids: list[int]
    new_tokens: int = 0


@dataclass(frozen=True)
class Load:
    """A workload and how it arrives."""

    address: str
    model: str
    question: Question
    requests: Sequence[Request]
    rate: float
    """Requests a second."""
    burstiness: float = 1.0
    """The shape of the gamma distribution of the gaps: 1 is Poisson, less comes in bursts, more evenly."""
    seed: int = 0
    processes: int = 1
    """That send, each every so manyth request."""

    def arrivals(self) -> list[float]:
        """Seconds from the start, one a request."""
        chance = random.Random(self.seed)
        now = 0.0
        times: list[float] = []
        for _ in self.requests:
            now += chance.gammavariate(self.burstiness, 1 / (self.rate * self.burstiness))
            times.append(now)
        return times


def run(load: Load) -> list[Timeline]:
    """Sends the load and waits for every answer."""
    arrivals = load.arrivals()
    start = time.monotonic() + HEAD_START * load.processes  # the clock is the machine's
    shares = [slice(first, None, load.processes) for first in range(load.processes)]
    context = multiprocessing.get_context("spawn")  # gRPC does not bear a fork
    with ProcessPoolExecutor(load.processes, mp_context=context) as senders:
        parts = [
            senders.submit(_send, load, load.requests[share], [start + arrival for arrival in arrivals[share]])
            for share in shares
        ]
        return [timeline for part in parts for timeline in part.result()]


def _send(load: Load, requests: Sequence[Request], arrivals: Sequence[float]) -> list[Timeline]:
    return asyncio.run(_send_all(load, requests, arrivals))


async def _send_all(load: Load, requests: Sequence[Request], arrivals: Sequence[float]) -> list[Timeline]:
    async with AsyncClient(load.address, timeout=600) as client:
        await client.wait_ready()
        running: list[asyncio.Task[Timeline]] = []
        for request, arrival in zip(requests, arrivals, strict=True):
            await asyncio.sleep(max(0.0, arrival - time.monotonic()))
            running.append(asyncio.create_task(_ask(client, load, request, arrival)))
        return [await task for task in running]


async def _ask(client: AsyncClient, load: Load, request: Request, arrival: float) -> Timeline:
    arrivals: list[tuple[float, int]] = []
    error = None
    try:
        if load.question == "embed":
            await client.embed([request.token_ids], model=load.model)
            arrivals.append((time.monotonic(), 0))
        else:
            pieces = client.stream(
                request.token_ids, model=load.model, max_new_tokens=request.new_tokens, temperature=0,
                repetition_penalty=1, ignore_eos=True,
            )  # fmt: skip
            async for piece in pieces:
                if piece.token_ids:
                    arrivals.append((time.monotonic(), len(piece.token_ids)))
    except TercetError as failure:
        error = type(failure).__name__
    return Timeline(arrival, len(request.token_ids), arrivals, error or (None if arrivals else "no answer"))
