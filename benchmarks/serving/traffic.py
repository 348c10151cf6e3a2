"""What the rows of the open loop ask, and how much of it: in proportion to what the machine does."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks import environment
from benchmarks.load.closedloop import closed_loop_rate
from benchmarks.load.latency import Goal
from benchmarks.load.openloop import Load, Request
from benchmarks.models.decoding import dtype

if TYPE_CHECKING:
    from benchmarks.load.openloop import Question

SECONDS, LONGEST_SECONDS = 10, 30  # of arrivals in a run; it is longer than the first where few would arrive
FEW, MOST = 50, 10_000  # requests of a run
SPREAD = 0.8  # σ of the log-normal lengths
SHORTEST = 4  # tokens


@dataclass(frozen=True)
class Workload:
    """Requests of one model."""

    model: str
    question: Question
    goal: Goal
    median_tokens: int
    """Of prompts: log-normal, at least `SHORTEST`, at most `longest`."""
    longest: int
    median_new_tokens: int = 0
    """Log-normal too."""
    longest_new: int = 0
    words: range = range(1000, 2000)
    """Token ids to draw from."""
    dtype: str = "auto"
    """That the server computes in."""

    def requests(self, count: int, seed: int = 0) -> list[Request]:
        """Seeded requests."""
        chance = random.Random(seed)

        def length(median: int, longest: int) -> int:
            return min(max(round(median * chance.lognormvariate(0, SPREAD)), SHORTEST), longest)

        return [
            Request(
                [chance.choice(self.words) for _ in range(length(self.median_tokens, self.longest))],
                length(self.median_new_tokens, self.longest_new) if self.median_new_tokens else 0,
            )
            for _ in range(count)
        ]

    def load(self, address: str, rate: float, *, burstiness: float = 1.0, seed: int = 0) -> Load:
        """What arrives in `SECONDS`; where that is fewer than `FEW` requests, in up to `LONGEST_SECONDS`."""
        count = min(max(rate * SECONDS, min(FEW, rate * LONGEST_SECONDS)), MOST)
        requests = self.requests(max(1, round(count)), seed)
        senders = max(1, environment.cores() // 4)
        return Load(address, self.model, self.question, requests, rate, burstiness, seed, senders)

    def closed_loop_rate(self, address: str) -> float:
        """Requests a second that are answered where some callers ask again and again."""
        return closed_loop_rate(address, self.model, self.question, self.requests(MOST // 10, seed=1))

    def __str__(self) -> str:
        name = self.model if self.dtype == "auto" else f"{self.model} in {self.dtype}"
        lengths = f"prompts of {self.median_tokens} tokens (at most {self.longest})"
        if self.median_new_tokens:
            lengths += f" and {self.median_new_tokens} new ones (at most {self.longest_new})"
        return f"{name}, {lengths}, log-normal around these medians"


def embeddings() -> Workload:
    """Of MiniLM."""
    return Workload("minilm", "embed", Goal(e2el=130), median_tokens=50, longest=250)


def generations() -> Workload:
    """Of SmolLM2: a third as long on a CPU, and in bfloat16 where it has it."""
    goal = Goal(ttft=2000, tpot=100)
    if environment.gpu_name():
        return Workload("smollm2", "stream", goal, 50, 250, median_new_tokens=24, longest_new=64)
    return Workload("smollm2", "stream", goal, 50, 250, median_new_tokens=8, longest_new=16, dtype=dtype())
