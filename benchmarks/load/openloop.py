"""An open loop: requests arrive when they arrive, answered or not, from processes of their own.

A closed loop waits for answers and so never asks a stalled server; an open one shows the queue that users would feel.
Latency counts from the moment a request was meant to be sent. A run that may end early is cut short once its limit is
passed: a server that is asked too much is asked no more, and need not work off what nobody waits for.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from benchmarks.load.latency import UNANSWERED, Timeline, Watch
from tercet.client import AsyncClient, TercetError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.sharedctypes import Synchronized
    from multiprocessing.synchronize import Barrier

    from benchmarks.load.latency import Goal

Question = Literal["embed", "stream"]
START_SECONDS = 120.0  # at most, until all senders are connected
PATIENCE = 30.0  # seconds after which a request has failed
LOOK_SECONDS = 0.05  # between two looks at who has missed the goal

_moment: Barrier
_missed: Synchronized[int]


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


@dataclass(frozen=True)
class Limit:
    """What ends a run early."""

    goal: Goal
    misses: int
    """More requests than these have missed the goal, of all loads together."""

    def held(self, timelines: Sequence[Timeline], asked: int) -> bool:
        """Whether it was not passed by a run of so many requests; those that were not sent have missed the goal."""
        return asked - sum(map(self.goal.held, timelines)) <= self.misses


def run(*loads: Load, limit: Limit | None = None) -> list[list[Timeline]]:
    """Sends the loads, all from one moment on, and waits for every answer; gives the requests of each load.

    A run that passes its limit cancels what it waits for and sends no more: those cancelled are `UNANSWERED`, and those
    not sent are missing.
    """
    senders = sum(load.processes for load in loads)
    context = multiprocessing.get_context("spawn")  # gRPC does not bear a fork
    shared = context.Barrier(senders, timeout=START_SECONDS), context.Value("i", 0)
    with ProcessPoolExecutor(senders, mp_context=context, initializer=_meet, initargs=shared) as pool:
        parts = [[pool.submit(_send, load, first, limit) for first in range(load.processes)] for load in loads]
        return [[timeline for part in own for timeline in part.result()] for own in parts]


def _meet(moment: Barrier, missed: Synchronized[int]) -> None:
    """Tells a sender where all of them wait until the last is connected, and count the misses of all."""
    global _moment, _missed  # a process that a pool starts is told things in no other way
    _moment, _missed = moment, missed


def _send(load: Load, first: int, limit: Limit | None) -> list[Timeline]:
    share = slice(first, None, load.processes)
    return asyncio.run(_send_within(limit, load, load.requests[share], load.arrivals()[share]))


async def _send_within(
    limit: Limit | None, load: Load, requests: Sequence[Request], arrivals: Sequence[float]
) -> list[Timeline]:
    sent: list[Timeline] = []
    async with AsyncClient(load.address, timeout=PATIENCE) as client:
        await client.wait_ready()
        _moment.wait()
        sending = asyncio.create_task(_send_all(client, load, requests, arrivals, sent))
        if limit and await _passed(limit, Watch(limit.goal, sent), sending):
            sending.cancel()
        with suppress(asyncio.CancelledError):
            await sending
    return sent


async def _passed(limit: Limit, watch: Watch, sending: asyncio.Task[None]) -> bool:
    """True as soon as the limit is passed, False once all is answered."""
    while not sending.done():
        await asyncio.wait([sending], timeout=LOOK_SECONDS)
        with _missed.get_lock():
            _missed.value += watch.misses(time.monotonic())
        if _missed.value > limit.misses:
            return True
    return False


async def _send_all(
    client: AsyncClient, load: Load, requests: Sequence[Request], arrivals: Sequence[float], sent: list[Timeline]
) -> None:
    start = time.monotonic()
    async with asyncio.TaskGroup() as running:
        for request, after in zip(requests, arrivals, strict=True):
            arrival = start + after
            await asyncio.sleep(max(0.0, arrival - time.monotonic()))
            timeline = Timeline(arrival, len(request.token_ids), error=UNANSWERED, new_tokens=request.new_tokens)
            sent.append(timeline)
            running.create_task(ask(client, load.model, load.question, request, timeline))


async def ask(client: AsyncClient, model: str, question: Question, request: Request, timeline: Timeline) -> None:
    """Sends one request and writes down what comes, and when."""
    try:
        if question == "embed":
            await client.embed([request.token_ids], model=model)
            timeline.arrivals.append((time.monotonic(), 0))
        else:
            pieces = client.stream(
                request.token_ids, model=model, max_new_tokens=request.new_tokens, temperature=0,
                repetition_penalty=1, ignore_eos=True,
            )  # fmt: skip
            async for piece in pieces:
                if piece.token_ids:
                    timeline.arrivals.append((time.monotonic(), len(piece.token_ids)))
        timeline.error = None if timeline.arrivals else "no answer"
    except TercetError as failure:
        timeline.error = type(failure).__name__
