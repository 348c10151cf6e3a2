"""Rows of the open loop: latency at a steady rate, the highest rate that holds a goal, and models beside each other.

Rates are shares of what this machine's own closed loop gives, found first, so that the rows mean the same on any
machine. Goals are MLPerf's: Llama-3.1-8B's (TTFT 2000 ms, TPOT 100 ms) for generation, BERT's 130 ms for embeddings.
"""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from benchmarks import checkpoints
from benchmarks.load.latency import Goal, percentile, summary
from benchmarks.load.openloop import Limit, Load, run
from benchmarks.load.search import Search
from benchmarks.rows import Result
from benchmarks.serving.server import serve
from benchmarks.serving.traffic import LONGEST_SECONDS, Workload, embeddings, generations

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from benchmarks.load.latency import Timeline
    from benchmarks.rows import Fact, Settings
    from benchmarks.serving.server import Server

SHARE = 0.6  # of the closed loop's rate
FIRST_SHARE = 0.5  # of it, where the search begins
LEAST_RATE = 10 / LONGEST_SECONDS  # that is searched for: a probe of fewer requests says nothing
PROBING_SECONDS = 120.0  # after which no probe begins
SHOWN = (
    "request_throughput", "request_goodput", "output_throughput", "total_token_throughput", "max_output_tokens_per_s",
    "max_concurrent_requests", "median_ttft_ms", "p99_ttft_ms", "median_tpot_ms", "p99_tpot_ms", "median_itl_ms",
    "p99_itl_ms", "median_e2el_ms", "p99_e2el_ms",
)  # fmt: skip


def _serve(workload: Workload, settings: Settings) -> AbstractContextManager[Server]:
    sources = {"minilm": checkpoints.minilm, "smollm2": checkpoints.smollm2}
    flags = ("--threads", str(settings.threads), "--dtype", workload.dtype)
    return serve({workload.model: sources[workload.model]()}, *flags)


def _felt(timelines: Sequence[Timeline], goal: Goal) -> dict[str, float]:
    figures = summary(timelines, goal)
    return {name: figures[name] for name in SHOWN if name in figures} | {"failed": figures["failed"]}


def steady(traffic: Callable[[], Workload], settings: Settings) -> Result:
    """Latency at `SHARE` of the closed loop's rate: Poisson arrivals, and bursts (gamma, shape 0.25)."""
    workload = traffic()
    kinds = {"Poisson": 1.0, "bursts": 0.25}
    with _serve(workload, settings) as server:
        rate = SHARE * workload.closed_loop_rate(server.address)
        rounds = [
            {
                name: run(workload.load(server.address, rate, burstiness=shape, seed=seed))[0]
                for name, shape in kinds.items()
            }
            for seed in range(_rounds(settings))
        ]
    facts: dict[str, float | int | str] = {"requests a second": rate, "goal": str(workload.goal), "rounds": len(rounds)}
    missed: list[str] = []
    for name in kinds:
        felt = _felt([timeline for one in rounds for timeline in one[name]], workload.goal)
        # a whole of several rounds has no rate of its own: those are medians over the rounds
        felt |= _medians([summary(one[name], workload.goal) for one in rounds])
        facts |= {f"{name} {figure}": value for figure, value in felt.items()}
        if felt["failed"]:
            missed.append(f"{felt['failed']:g} requests failed")
    return Result(
        f"{workload}: requests arrive at {SHARE:.0%} of the closed loop's rate, answered or not",
        facts=facts, missed=missed,
    )  # fmt: skip


def _rounds(settings: Settings) -> int:
    return max(1, settings.rounds // 3)  # a round is some seconds and thousands of latencies


def _medians(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = [name for name in SHOWN if not name.endswith("_ms")]
    return {
        name: statistics.median(one[name] for one in figures) for name in names if all(name in one for one in figures)
    }


def highest_rate(traffic: Callable[[], Workload], settings: Settings) -> Result:
    """The highest Poisson rate at which 99 % of the requests hold the goal.

    A probe is cut short once more than 1 % have missed it, and has failed. The next begins when the server is idle.
    """
    workload = traffic()
    title = f"{workload}: the highest Poisson rate at which 99 % of the requests hold {workload.goal}"
    facts: dict[str, Fact] = {}
    with _serve(workload, settings) as server:
        closed = workload.closed_loop_rate(server.address)
        search = Search(max(FIRST_SHARE * closed, LEAST_RATE), least=LEAST_RATE)
        probes, end = 0, min(time.monotonic() + PROBING_SECONDS, settings.deadline)
        while not search.ended and time.monotonic() < end:
            server.wait_idle()
            load = workload.load(server.address, search.rate, seed=probes)
            limit = Limit(workload.goal, misses=len(load.requests) // 100)
            [timelines] = run(load, limit=limit)
            if held := limit.held(timelines, asked=len(load.requests)):
                facts = {"requests asked at it": len(timelines), **_felt(timelines, workload.goal)}
            search.learn(held)
            probes += 1
    if not probes:
        return Result(title, not_measured="the budget was spent")
    facts = {
        "closed loop": closed,
        "probes": probes,
        "missed at": search.missed if math.isfinite(search.missed) else "no rate",
        **facts,
    }
    flags = [] if search.ended else ["the search ran out of time"]
    return Result(title, unit="requests/s", rates={"open loop": search.held}, facts=facts, flags=flags)


def together(settings: Settings) -> Result:
    """Five models of one machine: the 99th percentile of each alone and while the others are asked too, as long."""
    spelled = Workload(
        "pronounce", "stream", Goal(e2el=2000), median_tokens=12, longest=40, median_new_tokens=12, longest_new=24,
        words=range(5, 95),
    )  # fmt: skip
    models = {
        "minilm": (checkpoints.minilm(), embeddings()), "minilm-2": (checkpoints.minilm(), embeddings()),
        "smollm2": (checkpoints.smollm2(), replace(generations(), median_new_tokens=8, longest_new=16)),
        "pronounce": (checkpoints.pronounce(), spelled), "pronounce-2": (checkpoints.pronounce(), spelled),
    }  # fmt: skip
    workloads = {name: replace(workload, model=name) for name, (_, workload) in models.items()}
    facts: dict[str, float | int | str] = {}
    with serve({name: source for name, (source, _) in models.items()}, "--threads", str(settings.threads)) as server:
        rates = {name: one.closed_loop_rate(server.address) / (2 * len(models)) for name, one in workloads.items()}
        loads: dict[str, Load] = {}
        for name, one in workloads.items():
            requests = one.requests(max(1, round(rates[name] * LONGEST_SECONDS)))
            loads[name] = Load(server.address, name, one.question, requests, rates[name])
        alone = [run(load)[0] for load in loads.values()]
        beside = run(*loads.values())
    for name, *both in zip(models, alone, beside, strict=True):
        facts[f"{name} requests"] = len(loads[name].requests)
        facts |= {f"{name} {how} p99_e2el_ms": _p99(ones) for how, ones in zip(("alone", "beside"), both, strict=True)}
    failed = sum(one.error is not None for ones in (*alone, *beside) for one in ones)
    return Result(
        f"five models on one device, each asked at a tenth of its closed loop's rate (Poisson) for {LONGEST_SECONDS} s",
        facts=facts, missed=[f"{failed} requests failed"] if failed else [],
    )  # fmt: skip


def _p99(timelines: Sequence[Timeline]) -> float:
    return percentile([1000 * one.duration for one in timelines if one.error is None], 99)
