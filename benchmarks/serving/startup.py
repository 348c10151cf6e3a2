"""How long until a server answers."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

from benchmarks import checkpoints
from benchmarks.rows import Result
from benchmarks.serving.server import serve
from tercet.client import Client

if TYPE_CHECKING:
    from benchmarks.rows import Settings

BAR_SECONDS = 6.0


def measure(settings: Settings) -> Result:
    """From exec of `tercet serve minilm=…` to SERVING, and to the first vector. A start before fills the page cache."""
    serving: list[float] = []
    answered: list[float] = []
    for start in range(settings.rounds + 1):
        with (
            serve({"minilm": checkpoints.minilm()}, "--threads", str(settings.threads)) as server,
            Client(server.address, timeout=600) as client,
        ):
            client.wait_ready()
            ready = time.perf_counter() - server.exec_time
            client.embed("the first text", model="minilm")
            if start:
                serving.append(ready)
                answered.append(time.perf_counter() - server.exec_time)
    median = statistics.median(serving)
    return Result(
        "`tercet serve minilm=…` on a CPU, seconds from exec; the files are in the page cache",
        unit="s",
        seconds={"to SERVING": serving, "to the first vector": answered},
        rates={"to SERVING": median, "to the first vector": statistics.median(answered)},
        facts={"bar": f"{BAR_SECONDS:g} s to SERVING", "slowest": max(serving)},
        missed=[f"SERVING within {BAR_SECONDS:g} s"] if median > BAR_SECONDS else [],
    )
