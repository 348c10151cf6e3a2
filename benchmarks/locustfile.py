"""Load for a running server, with locust: embeddings, generations and streams over gRPC.

    locust -f benchmarks/locustfile.py --headless -u 16 -r 16 -t 60s --host 127.0.0.1:50051
    locust -f benchmarks/locustfile.py --headless -u 4 -r 4 -t 60s --rate 50

Each user asks again once it is answered (a closed loop), which hides a stalled server: nobody asks while it stalls.
With `--rate` that many requests a second arrive over all users, answered or not (an open loop, Poisson), and latency
counts from the intended arrival. A stream has two rows: `stream` until its end, `ttft` until its first token.
"""

from __future__ import annotations

import os
import random
from time import perf_counter
from typing import TYPE_CHECKING, Any

import gevent
import grpc.experimental.gevent
from gevent.pool import Group
from locust import User, events, task

from tercet.client import Client, TercetError

if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Callable

    from locust.env import Environment

grpc.experimental.gevent.init_gevent()

DEFAULT_TARGET = "127.0.0.1:50051"
KINDS = ("embed", "generate", "stream")
TEXT = "seven small birds watch from a stone wall as evening light falls across the open fields of grass and slow water"
WORDS = TEXT.split()


@events.init_command_line_parser.add_listener
def add_arguments(parser: ArgumentParser) -> None:
    """Our options, beside locust's."""
    parser.add_argument("--rate", type=float, default=0, help="requests a second over all users (open loop); 0: closed")
    parser.add_argument("--max-new-tokens", type=int, default=32, help="tokens to generate at most")
    parser.add_argument("--mix", default="4,1,1", help=f"weights of {', '.join(KINDS)}")


def words(rng: random.Random) -> str:
    """A text of log-normal length: median 40 words, sigma 0.8, 4 to 250."""
    count = min(max(round(40 * rng.lognormvariate(0, 0.8)), 4), 250)
    return " ".join(rng.choices(WORDS, k=count))


class TercetUser(User):
    """One connection; asks each kind of question of a random model that can answer it."""

    host = os.environ.get("TERCET_TARGET")

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        options: Any = environment.parsed_options  # locust has parsed them before it makes users
        self.rate: float = options.rate
        self.max_new_tokens: int = options.max_new_tokens
        self.rng = random.Random()
        self.client = Client(self.host or DEFAULT_TARGET)
        models = self.client.models()
        able = {
            "embed": [model.name for model in models if model.family == "encoder"],
            "generate": [model.name for model in models if "generate" in model.tasks],
        }
        able["stream"] = able["generate"]
        weights = dict(zip(KINDS, map(float, options.mix.split(",")), strict=True))
        self.models = able
        self.weights = {kind: weight for kind, weight in weights.items() if able[kind]}
        self.calls: dict[str, Callable[[str, float], int]] = {
            "embed": self.embed,
            "generate": self.generate,
            "stream": self.stream,
        }
        self.in_flight = Group()
        self.arrival = perf_counter()

    def on_stop(self) -> None:
        """Gives what is under way some time to end."""
        self.in_flight.join(timeout=10)
        self.in_flight.kill()
        self.client.close()

    @task
    def ask(self) -> None:
        """One question: answered before the next in a closed loop, left behind at its arrival in an open one."""
        kind = self.rng.choices(list(self.weights), list(self.weights.values()))[0]
        model = self.rng.choice(self.models[kind])
        if not self.rate:
            self.timed(kind, model, perf_counter())
            return
        users = self.environment.runner.target_user_count if self.environment.runner else 1
        self.arrival += self.rng.expovariate(self.rate / users)
        gevent.sleep(max(0, self.arrival - perf_counter()))
        self.in_flight.spawn(self.timed, kind, model, self.arrival)

    def timed(self, kind: str, model: str, start: float) -> None:
        """Asks, and reports one row."""
        size, error = 0, None
        try:
            size = self.calls[kind](model, start)
        except TercetError as failure:
            error = failure
        self.report(kind, model, start, size, error)

    def report(self, kind: str, model: str, start: float, size: int, error: Exception | None = None) -> None:
        """A row of locust's statistics: milliseconds since `start`, and tokens or bytes answered."""
        milliseconds = (perf_counter() - start) * 1000
        row: dict[str, Any] = {"request_type": kind, "name": model, "response_time": milliseconds}
        self.environment.events.request.fire(**row, response_length=size, exception=error, context={})

    def embed(self, model: str, start: float) -> int:
        """One embedding; its bytes."""
        return self.client.embed(words(self.rng), model=model, truncate=True).nbytes

    def generate(self, model: str, start: float) -> int:
        """One generation; its tokens."""
        answer = self.client.generate(words(self.rng), model=model, max_new_tokens=self.max_new_tokens, truncate=True)
        return len(answer.token_ids)

    def stream(self, model: str, start: float) -> int:
        """One stream, read to its end; its tokens."""
        tokens = 0
        pieces = self.client.stream(words(self.rng), model=model, max_new_tokens=self.max_new_tokens, truncate=True)
        for piece in pieces:
            if not tokens and piece.token_ids:
                self.report("ttft", model, start, len(piece.token_ids))
            tokens += len(piece.token_ids)
        return tokens
