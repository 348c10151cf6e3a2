"""Rows of the open loop: latency at a steady rate, the highest rate that holds a goal, and models beside each other.

Rates are shares of what this machine's own closed loop gives, found first, so that the rows mean the same on any
machine. Goals are MLPerf's: Llama-3.1-8B's (TTFT 2000 ms, TPOT 100 ms) for generation, BERT's 130 ms for embeddings.
"""

from __future__ import annotations

import random
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from benchmarks import checkpoints
from benchmarks.rows import Result
from benchmarks.serving.latency import Goal, percentile, summary
from benchmarks.serving.openloop import Load, Request, run
from benchmarks.serving.server import serve
from tercet.client import Client

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from benchmarks.rows import Settings
    from benchmarks.serving.latency import Timeline
    from benchmarks.serving.openloop import Question

SHARE = 0.6  # of the closed loop's rate
SECONDS = 10  # of arrivals in each round
LONG_SECONDS = 30  # of arrivals where all loads take equally long, so that slow models are asked something at all
LEAST_REQUESTS, MOST_REQUESTS = 50, 4000
PROBES = 6  # runs of the search
SHOWN = (
    "request_throughput", "request_goodput", "output_throughput", "total_token_throughput", "max_output_tokens_per_s",
    "max_concurrent_requests", "median_ttft_ms", "p99_ttft_ms", "median_tpot_ms", "p99_tpot_ms", "median_itl_ms",
    "p99_itl_ms", "median_e2el_ms", "p99_e2el_ms",
)  # fmt: skip


@dataclass(frozen=True)
class Workload:
    """Requests of one model."""

    model: str
    question: Question
    goal: Goal
    median_tokens: int
    """Of prompts: log-normal, σ 0.8, at least 4, at most `longest`."""
    longest: int
    median_new_tokens: int = 0
    """Log-normal too, σ 0.8."""
    longest_new: int = 0
    words: range = range(1000, 2000)
    """Token ids to draw from."""

    def requests(self, count: int, seed: int = 0) -> list[Request]:
        """Seeded requests."""
        chance = random.Random(seed)

        def length(median: int, longest: int) -> int:
            return min(max(round(median * chance.lognormvariate(0, 0.8)), 4), longest)

        return [
            Request(
                [chance.choice(self.words) for _ in range(length(self.median_tokens, self.longest))],
                length(self.median_new_tokens, self.longest_new) if self.median_new_tokens else 0,
            )
            for _ in range(count)
        ]


ENCODER = Workload("minilm", "embed", Goal(e2el=130), median_tokens=50, longest=250)
DECODER = Workload(
    "smollm2", "stream", Goal(ttft=2000, tpot=100), median_tokens=50, longest=250, median_new_tokens=24, longest_new=64
)


def _sources() -> dict[str, Path]:
    return {"minilm": checkpoints.minilm(), "smollm2": checkpoints.smollm2()}


def _closed_loop_rate(address: str, workload: Workload, callers: int = 16) -> float:
    """Requests a second where each of some callers asks again once it is answered."""
    requests = workload.requests(4 * callers, seed=1)
    with Client(address, timeout=600) as client, ThreadPoolExecutor(callers) as pool:

        def ask(request: Request) -> None:
            if workload.question == "embed":
                client.embed([request.token_ids], model=workload.model)
            else:
                client.generate(
                    request.token_ids, model=workload.model, max_new_tokens=request.new_tokens, temperature=0,
                    repetition_penalty=1, ignore_eos=True,
                )  # fmt: skip

        list(pool.map(ask, requests[:callers]))
        start = time.perf_counter()
        list(pool.map(ask, requests))
        return len(requests) / (time.perf_counter() - start)


def _load(address: str, workload: Workload, rate: float, *, burstiness: float = 1.0, seed: int = 0) -> Load:
    count = min(max(round(rate * SECONDS), LEAST_REQUESTS), MOST_REQUESTS)
    return Load(address, workload.model, workload.question, workload.requests(count, seed), rate, burstiness, seed)


def _felt(timelines: Sequence[Timeline], goal: Goal) -> dict[str, float]:
    figures = summary(timelines, goal)
    return {name: figures[name] for name in SHOWN if name in figures} | {"failed": figures["failed"]}


def steady(workload: Workload, settings: Settings) -> Result:
    """Latency at `SHARE` of the closed loop's rate: Poisson arrivals, and bursts (gamma, shape 0.25)."""
    kinds = {"Poisson": 1.0, "bursts": 0.25}
    with serve({workload.model: _sources()[workload.model]}, "--threads", str(settings.threads)) as server:
        rate = SHARE * _closed_loop_rate(server.address, workload)
        rounds = [
            {
                name: run(_load(server.address, workload, rate, burstiness=shape, seed=seed))[0]
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
        f"{workload.model}: requests arrive at {SHARE:.0%} of the closed loop's rate, answered or not",
        facts=facts, missed=missed,
    )  # fmt: skip


def _rounds(settings: Settings) -> int:
    return max(1, settings.rounds // 3)  # a round is some seconds and thousands of latencies


def _medians(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = [name for name in SHOWN if not name.endswith("_ms")]
    return {
        name: statistics.median(one[name] for one in figures) for name in names if all(name in one for one in figures)
    }


def highest_rate(workload: Workload, settings: Settings) -> Result:
    """The highest Poisson rate at which 99 % of the requests hold the goal: bisection."""
    with serve({workload.model: _sources()[workload.model]}, "--threads", str(settings.threads)) as server:
        closed = _closed_loop_rate(server.address, workload)
        low, high = 0.0, 1.5 * closed
        for probe in range(PROBES):
            rate = (low + high) / 2
            [timelines] = run(_load(server.address, workload, rate, seed=probe))
            held = sum(map(workload.goal.held, timelines)) / len(timelines)
            low, high = (rate, high) if held >= 0.99 else (low, rate)
    return Result(
        f"{workload.model}: the highest Poisson rate at which 99 % of the requests hold {workload.goal}",
        unit="requests/s", rates={"open loop": low},
        facts={"closed loop": closed, "found within": high - low, "seconds a probe": SECONDS},
    )  # fmt: skip


def together(settings: Settings) -> Result:
    """Five models of one machine: the 99th percentile of each alone and while the others are asked too, as long."""
    spelled = Workload(
        "pronounce", "stream", Goal(e2el=2000), median_tokens=12, longest=40, median_new_tokens=12, longest_new=24,
        words=range(5, 95),
    )  # fmt: skip
    models = {
        "minilm": (checkpoints.minilm(), ENCODER), "minilm-2": (checkpoints.minilm(), ENCODER),
        "smollm2": (checkpoints.smollm2(), replace(DECODER, median_new_tokens=8, longest_new=16)),
        "pronounce": (checkpoints.pronounce(), spelled), "pronounce-2": (checkpoints.pronounce(), spelled),
    }  # fmt: skip
    workloads = {name: replace(workload, model=name) for name, (_, workload) in models.items()}
    facts: dict[str, float | int | str] = {}
    with serve({name: source for name, (source, _) in models.items()}, "--threads", str(settings.threads)) as server:
        rates = {name: _closed_loop_rate(server.address, one) / (2 * len(models)) for name, one in workloads.items()}
        loads: dict[str, Load] = {}
        for name, one in workloads.items():
            requests = one.requests(max(1, round(rates[name] * LONG_SECONDS)))
            loads[name] = Load(server.address, name, one.question, requests, rates[name])
        alone = {name: _p99(run(load)[0]) for name, load in loads.items()}
        beside = dict(zip(loads, map(_p99, run(*loads.values())), strict=True))
    for name in models:
        facts[f"{name} requests"] = len(loads[name].requests)
        facts |= {f"{name} alone p99_e2el_ms": alone[name], f"{name} beside p99_e2el_ms": beside[name]}
    return Result(
        f"five models on one device, each asked at a tenth of its closed loop's rate (Poisson) for {LONG_SECONDS} s",
        facts=facts,
    )


def _p99(timelines: Sequence[Timeline]) -> float:
    return percentile([1000 * one.duration for one in timelines if one.error is None], 99)
