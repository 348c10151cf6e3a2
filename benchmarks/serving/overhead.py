"""What the service costs: the same engine over gRPC and in this process."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from benchmarks import checkpoints, workloads
from benchmarks.measure import compare, interleave, repeated
from benchmarks.models.embedding import TEXTS
from benchmarks.models.inprocess import InProcess
from benchmarks.serving.server import serve
from tercet.client import Client

if TYPE_CHECKING:
    from benchmarks.rows import Result, Settings

OVER_GRPC, IN_PROCESS = "over gRPC", "in process"
ONE_TEXT = "how far is it to the nearest station"


def _measure(title: str, texts: list[str], seconds_each: float, settings: Settings) -> Result:
    model = InProcess(checkpoints.minilm(), settings.threads)
    with (
        serve({"minilm": checkpoints.minilm()}, "--threads", str(settings.threads)) as server,
        Client(server.address, timeout=600) as client,
    ):
        contestants = {
            OVER_GRPC: lambda: client.embed(texts, model="minilm"),
            IN_PROCESS: server.idle_while(lambda: model.embed(texts)),
        }
        for warm in contestants.values():
            warm()
        seconds = interleave(contestants, settings, timer=repeated(seconds_each))
        facts = {f"ms {name}": 1000 * statistics.median(times) for name, times in seconds.seconds.items()}
        return compare(
            title, seconds, ours=OVER_GRPC, amount=len(texts), unit="texts/s", bars={IN_PROCESS: None},
            facts={**facts, **server.idle_facts()},
        )  # fmt: skip


def one_text(settings: Settings) -> Result:
    """Latency: one caller, one short text, again and again."""
    return _measure("one short text at a time, one caller", [ONE_TEXT], 0.5, settings)


def many_texts(settings: Settings) -> Result:
    """Throughput: the texts of the embedding row in one call."""
    return _measure(f"{TEXTS} texts in one call", workloads.texts(TEXTS), 0, settings)
