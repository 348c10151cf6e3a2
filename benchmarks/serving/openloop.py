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
    from multiprocessing.synchronize import Barrier

Question = Literal["embed", "stream"]
START_SECONDS = 120.0  # at most, until all senders are connected

_moment: Barrier


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


def run(*loads: Load) -> list[list[Timeline]]:
    """Sends the loads, all from one moment on, and waits for every answer; gives the requests of each load."""
    senders = sum(load.processes for load in loads)
    context = multiprocessing.get_context("spawn")  # gRPC does not bear a fork
    moment = context.Barrier(senders, timeout=START_SECONDS)
    with ProcessPoolExecutor(senders, mp_context=context, initializer=_meet_at, initargs=(moment,)) as pool:
        parts = [[pool.submit(_send, load, first) for first in range(load.processes)] for load in loads]
        return [[timeline for part in own for timeline in part.result()] for own in parts]


def _meet_at(moment: Barrier) -> None:
    """Tells a sender where all of them wait until the last is connected."""
    global _moment  # noqa: PLW0603 - a process that a pool starts is told things in no other way
    _moment = moment


def _send(load: Load, first: int) -> list[Timeline]:
    share = slice(first, None, load.processes)
    return asyncio.run(_send_all(load, load.requests[share], load.arrivals()[share]))


async def _send_all(load: Load, requests: Sequence[Request], arrivals: Sequence[float]) -> list[Timeline]:
    async with AsyncClient(load.address, timeout=600) as client:
        await client.wait_ready()
        _moment.wait()
        start = time.monotonic()
        running: list[asyncio.Task[Timeline]] = []
        for request, after in zip(requests, arrivals, strict=True):
            arrival = start + after
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
