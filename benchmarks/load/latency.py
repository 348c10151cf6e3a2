"""What a reader felt of an open loop, under the names of `vllm bench serve`."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

UNANSWERED = "unanswered"


@dataclass
class Timeline:
    """One request, in seconds of one clock."""

    arrival: float
    """When it was meant to be sent: what a late sender adds to latency counts."""
    prompt_tokens: int
    arrivals: list[tuple[float, int]] = field(default_factory=list[tuple[float, int]])
    """When each message with tokens came, and how many it had; of an embedding one message with none."""
    error: str | None = None
    """`UNANSWERED` while it runs, and for good where its run was cut short."""
    new_tokens: int = 0
    """Asked for."""

    @property
    def end(self) -> float:
        """When the last message came."""
        return self.arrivals[-1][0]

    @property
    def tokens(self) -> int:
        """Tokens generated."""
        return sum(count for _, count in self.arrivals)

    @property
    def first_token(self) -> float:
        """TTFT: from arrival to the first message."""
        return self.arrivals[0][0] - self.arrival

    @property
    def duration(self) -> float:
        """E2EL: from arrival to the last message."""
        return self.end - self.arrival

    @property
    def per_token(self) -> float | None:
        """TPOT: the mean time of each token after the first."""
        return (self.end - self.arrivals[0][0]) / (self.tokens - 1) if self.tokens > 1 else None

    @property
    def gaps(self) -> list[float]:
        """ITL: the time before each message but the first."""
        times = [time for time, _ in self.arrivals]
        return [after - before for before, after in pairwise(times)]

    def if_answered(self, now: float) -> Timeline:
        """The best that can become of a request that runs: all that is left comes now."""
        left = self.new_tokens - self.tokens
        rest = [(now, left)] if left or not self.arrivals else []
        return replace(self, arrivals=self.arrivals + rest, error=None)


@dataclass(frozen=True)
class Goal:
    """What a request must hold to be a good one, in milliseconds; None is anything."""

    ttft: float | None = None
    tpot: float | None = None
    e2el: float | None = None

    def held(self, request: Timeline) -> bool:
        """Whether one request was answered within every limit."""
        if request.error is not None:
            return False
        felt = ((self.ttft, request.first_token), (self.tpot, request.per_token or 0.0), (self.e2el, request.duration))
        return all(limit is None or 1000 * seconds <= limit for limit, seconds in felt)

    def __str__(self) -> str:
        limits = {"TTFT": self.ttft, "TPOT": self.tpot, "E2EL": self.e2el}
        return ", ".join(f"{name} ≤ {limit:g} ms" for name, limit in limits.items() if limit is not None)


class Watch:
    """Sees that requests miss a goal as soon as they can't hold it any more, which is long before the last answer."""

    def __init__(self, goal: Goal, requests: Sequence[Timeline]) -> None:
        """`requests`: those sent; it may grow."""
        self._goal = goal
        self._requests = requests
        self._seen = 0
        self._running: list[Timeline] = []

    def misses(self, now: float) -> int:
        """How many have missed it since this was last asked."""
        asked = [*self._running, *self._requests[self._seen :]]
        self._seen = len(self._requests)
        running = [request for request in asked if request.error == UNANSWERED]
        self._running = [request for request in running if self._goal.held(request.if_answered(now))]
        ended = [request for request in asked if request.error != UNANSWERED]
        return len(running) - len(self._running) + sum(not self._goal.held(request) for request in ended)


def percentile(values: Sequence[float], share: float) -> float:
    """Linear between the closest ranks, as numpy's default."""
    ordered = sorted(values)
    place = share / 100 * (len(ordered) - 1)
    below = ordered[int(place)]
    above = ordered[min(int(place) + 1, len(ordered) - 1)]
    return below + (above - below) * (place - int(place))


def summary(requests: Sequence[Timeline], goal: Goal) -> dict[str, float]:
    """The figures of one run. Times are in milliseconds; rates count from the first arrival to the last message."""
    good = [request for request in requests if request.error is None]
    figures: dict[str, float] = {"completed": len(good), "failed": len(requests) - len(good)}
    if not good:
        return figures
    seconds = max(request.end for request in good) - min(request.arrival for request in requests)
    generated = sum(request.tokens for request in good)
    read = sum(request.prompt_tokens for request in good)
    figures |= {
        "duration": seconds,
        "request_throughput": len(good) / seconds,
        "request_goodput": sum(map(goal.held, requests)) / seconds,
        "output_throughput": generated / seconds,
        "total_token_throughput": (generated + read) / seconds,
        "max_output_tokens_per_s": max(_by_second(good).values(), default=0),
        "max_concurrent_requests": _most_at_once(good),
    }
    felt = {
        "ttft": [request.first_token for request in good],
        "tpot": [time for request in good if (time := request.per_token) is not None],
        "itl": [gap for request in good for gap in request.gaps],
        "e2el": [request.duration for request in good],
    }
    for name, times in felt.items():
        if times and (generated or name == "e2el"):
            milliseconds = [1000 * time for time in times]
            figures |= {
                f"mean_{name}_ms": statistics.fmean(milliseconds),
                f"median_{name}_ms": statistics.median(milliseconds),
                f"std_{name}_ms": statistics.pstdev(milliseconds),
                f"p99_{name}_ms": percentile(milliseconds, 99),
            }
    return figures


def _by_second(requests: Iterable[Timeline]) -> dict[int, int]:
    """Tokens that came in each second of the clock."""
    tokens: dict[int, int] = {}
    for request in requests:
        for time, count in request.arrivals:
            tokens[int(time)] = tokens.get(int(time), 0) + count
    return tokens


def _most_at_once(requests: Iterable[Timeline]) -> int:
    """The most requests that ran at the same time; one that ends as another begins has ended."""
    changes = sorted(change for request in requests for change in ((request.arrival, 1), (request.end, -1)))
    most = running = 0
    for _, change in changes:
        running += change
        most = max(most, running)
    return most
