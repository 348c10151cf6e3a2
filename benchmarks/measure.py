"""Interleaved timing of contestants and the ratio between them, with its uncertainty."""

from __future__ import annotations

import random
import statistics
import time
from typing import TYPE_CHECKING

from benchmarks.rows import Ratio, Result

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

SEED = 0
RESAMPLES = 10_000
SETTLE_SECONDS = 0.4  # thread pools spin for up to 200 ms after their work; the next contestant must not pay for that


def wall_clock(run: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def repeated(least_seconds: float) -> Callable[[Callable[[], object]], float]:
    """A timer for short calls on the CPU: repeats until `least_seconds` have passed and gives seconds a call."""

    def timer(run: Callable[[], object]) -> float:
        calls, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < least_seconds or not calls:
            run()
            calls += 1
        return elapsed / calls

    return timer


def interleave(
    contestants: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    timer: Callable[[Callable[[], object]], float] = wall_clock,
    settle: float = SETTLE_SECONDS,
) -> dict[str, list[float]]:
    """Times every contestant once a round: ABBA, so that what drifts with time meets all alike.

    Even rounds take a random order and odd rounds the reverse of the one before. Contestants must be warm.
    Returns the seconds of each contestant by round.
    """
    chance = random.Random(SEED)
    order = list(contestants)
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for index in range(rounds):
        if index % 2:
            order.reverse()
        else:
            chance.shuffle(order)
        for name in order:
            time.sleep(settle)
            seconds[name].append(timer(contestants[name]))
    return seconds


def ratio(seconds: Mapping[str, Sequence[float]], ours: str, against: str, bar: float | None = None) -> Ratio:
    """Median over rounds of their time over ours, with a percentile bootstrap over the rounds (Efron 1979)."""
    rounds = [theirs / own for theirs, own in zip(seconds[against], seconds[ours], strict=True)]
    chance = random.Random(SEED)
    medians = sorted(statistics.median(chance.choices(rounds, k=len(rounds))) for _ in range(RESAMPLES))
    low, high = medians[int(0.025 * RESAMPLES)], medians[int(0.975 * RESAMPLES)]
    return Ratio(against, statistics.median(rounds), low, high, bar)


def compare(
    title: str,
    seconds: Mapping[str, Sequence[float]],
    *,
    ours: str,
    amount: float,
    unit: str,
    bars: Mapping[str, float | None],
    facts: Mapping[str, float | int | str],
) -> Result:
    """The row of contestants that all did the same `amount` of work; `bars` names those to compare with."""
    rates = {name: amount / statistics.median(times) for name, times in seconds.items()}
    ratios = [ratio(seconds, ours, against, bar) for against, bar in bars.items()]
    return Result(title, unit, seconds, rates, ratios, facts)
