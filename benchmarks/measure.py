"""Interleaved timing of contestants and the ratio between them, with its uncertainty."""

from __future__ import annotations

import random
import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benchmarks.rows import Ratio, Result

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from benchmarks.rows import Fact, Goal, Settings

    Timer = Callable[[Callable[[], object]], float]

SEED = 0
RESAMPLES = 10_000
UNSTEADY = 0.03  # of the median: clocks that moved further, or an interval of such a half width, are told
FEWEST_ROUNDS = 3  # a budget that is spent ends the rounds after these


@dataclass
class Timings:
    """Seconds of each contestant by round, and what makes them doubtful."""

    seconds: dict[str, list[float]]
    flags: list[str] = field(default_factory=list[str])


def wall_clock(run: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def repeated(least_seconds: float) -> Timer:
    """A timer for short calls on the CPU: repeats until `least_seconds` have passed and gives seconds a call."""

    def timer(run: Callable[[], object]) -> float:
        calls, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < least_seconds or not calls:
            run()
            calls += 1
        return elapsed / calls

    return timer


def interleave(
    contestants: Mapping[str, Callable[[], object]], settings: Settings, *, timer: Timer = wall_clock
) -> Timings:
    """Times every contestant once a round: ABBA, so that what drifts with time meets all alike.

    Even rounds take a random order and odd rounds the reverse of the one before. Contestants must be warm. Past the
    deadline of `settings` no round begins, once there are `FEWEST_ROUNDS`. The clock is read after each timing, while
    the chip is still at work's speed, and compared with that of the same contestant's other rounds.
    """
    chance = random.Random(SEED)
    order = list(contestants)
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    clocks: dict[str, list[float]] = {name: [] for name in contestants}
    flags: list[str] = []
    for index in range(settings.rounds):
        if index >= FEWEST_ROUNDS and time.monotonic() > settings.deadline:
            flags.append(f"only {index} of {settings.rounds} rounds: the budget was spent")
            break
        if index % 2:
            order.reverse()
        else:
            chance.shuffle(order)
        for name in order:
            time.sleep(settings.settle)
            seconds[name].append(timer(contestants[name]))
            if settings.clock:
                clocks[name].append(settings.clock())
    return Timings(seconds, flags + _unsteady(clocks))


def _unsteady(clocks: Mapping[str, Sequence[float]]) -> list[str]:
    """The contestant whose clock moved most between rounds, if that is much."""
    moved = {name: (max(mhz) - min(mhz)) / statistics.median(mhz) for name, mhz in clocks.items() if mhz}
    worst = max(moved, key=moved.__getitem__, default="")
    return [f"clocks moved by {moved[worst]:.1%} ({worst})"] if worst and moved[worst] > UNSTEADY else []


def ratio(seconds: Mapping[str, Sequence[float]], ours: str, against: str, bar: float | None = None) -> Ratio:
    """Median over rounds of their time over ours, with a percentile bootstrap over the rounds (Efron 1979)."""
    rounds = [theirs / own for theirs, own in zip(seconds[against], seconds[ours], strict=True)]
    chance = random.Random(SEED)
    medians = sorted(statistics.median(chance.choices(rounds, k=len(rounds))) for _ in range(RESAMPLES))
    low, high = medians[int(0.025 * RESAMPLES)], medians[int(0.975 * RESAMPLES)]
    return Ratio(against, statistics.median(rounds), low, high, bar)


def compare(
    title: str,
    timings: Timings,
    *,
    ours: str,
    amount: float,
    unit: str,
    bars: Mapping[str, float | None],
    facts: Mapping[str, Fact],
    limits: Mapping[str, float] | None = None,
    goals: Sequence[Goal] = (),
) -> Result:
    """The row of contestants that all did the same `amount` of work; `bars` names those to compare with.

    `limits` are the most that the machine could give, in `unit`.
    """
    rates = {name: amount / statistics.median(times) for name, times in timings.seconds.items()}
    ratios = [ratio(timings.seconds, ours, against, bar) for against, bar in bars.items()]
    wide = {each.against: (each.high - each.low) / 2 / each.median for each in ratios}
    flags = [f"interval of ± {width:.1%} ({name})" for name, width in wide.items() if width > UNSTEADY]
    limits = limits or {}
    return Result(
        title, unit, timings.seconds, rates, ratios, facts, goals=goals, limits=limits,
        fractions={name: rates[ours] / limit for name, limit in limits.items()}, flags=[*timings.flags, *flags],
    )  # fmt: skip
