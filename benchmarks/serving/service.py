"""What the service costs where the model costs nothing: the same engine over gRPC and in process, on a null model.

The null model waits, asleep, as long as a GPU of a stated pace would compute, so that throughput in process is that
pace and what is lost over gRPC is the service's.
"""

from __future__ import annotations

import random
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, cast

import grpc

from benchmarks import checkpoints
from benchmarks.measure import compare, interleave
from benchmarks.models.inprocess import InProcess
from benchmarks.null_model import Pace, in_place_of_models
from benchmarks.rows import Goal
from benchmarks.serving.echo import METHOD, echo_server
from benchmarks.serving.server import serve
from tercet.client import Client
from tercet.v1.embedding_pb2 import EmbedRequest, Pooling
from tercet.v1.types_pb2 import TextInput, TokenIds

if TYPE_CHECKING:
    from benchmarks.rows import Result, Settings

OVER_GRPC, IN_PROCESS, ECHO = "over gRPC", "in process", "bare echo"
ENCODER_PACE = Pace(step=0.0003, token=1 / 3e6)
TEXTS, TEXT_TOKENS, TEXTS_A_CALL, CALLERS = 4096, 128, 512, 4
KEPT_BY_ENCODERS = 0.97
MICROSECONDS_A_TEXT = 8.0
CALLS = 200
VOCABULARY = 1000  # ids from here on are words of any vocabulary


def _sequences(count: int, tokens: int) -> list[list[int]]:
    chance = random.Random(0)
    return [[VOCABULARY + chance.randrange(1000) for _ in range(tokens)] for _ in range(count)]


def encoder(settings: Settings) -> Result:
    """Throughput of batch calls with token ids, and the service's CPU time for each text."""
    sequences = _sequences(TEXTS, TEXT_TOKENS)
    calls = [sequences[first : first + TEXTS_A_CALL] for first in range(0, TEXTS, TEXTS_A_CALL)]
    with in_place_of_models(ENCODER_PACE):
        model = InProcess(checkpoints.minilm(), threads=1)
    with (
        serve(
            {"minilm": checkpoints.minilm()}, "--threads", "1", "--max-batch-tokens", "8192", pace=ENCODER_PACE
        ) as server,
        Client(server.address, timeout=600) as client,
        ThreadPoolExecutor(CALLERS) as callers,
    ):
        cpu: list[float] = []

        def over_grpc() -> None:
            before = server.service_cpu_seconds()
            list(callers.map(lambda call: client.embed(call, model="minilm", pooling="cls"), calls))
            cpu.append(server.service_cpu_seconds() - before)

        contestants = {OVER_GRPC: over_grpc, IN_PROCESS: lambda: model.embed_ids(sequences)}
        for warm in contestants.values():
            warm()
        cpu.clear()
        seconds = interleave(contestants, settings)
    microseconds = 1e6 * sum(cpu) / len(cpu) / TEXTS
    return compare(
        f"{TEXTS} texts of {TEXT_TOKENS} token ids, {TEXTS_A_CALL} a call, {CALLERS} calls at a time, on a null model "
        f"of {1 / ENCODER_PACE.token / 1e6:g} M tokens/s",
        seconds, ours=OVER_GRPC, amount=TEXTS, unit="texts/s", bars={IN_PROCESS: KEPT_BY_ENCODERS},
        facts={}, goals=[Goal("µs of the service's CPU a text", microseconds, MICROSECONDS_A_TEXT, at_most=True)],
    )  # fmt: skip


def latency(settings: Settings) -> Result:
    """One caller, one short text, again and again, beside the least that gRPC takes for the same bytes."""
    request = EmbedRequest(
        model="minilm",
        inputs=[TextInput(token_ids=TokenIds(values=range(VOCABULARY, VOCABULARY + 10)))],
        pooling=Pooling.POOLING_CLS,
    ).SerializeToString()

    def median(address: str, method: str) -> float:
        """Seconds of the median call."""
        with grpc.insecure_channel(address) as channel:
            ask = channel.unary_unary(method)
            times: list[float] = []
            for _ in range(CALLS):
                start = time.perf_counter()
                ask(request, timeout=60)
                times.append(time.perf_counter() - start)
        return statistics.median(times)

    with (
        serve({"minilm": checkpoints.minilm()}, "--threads", "1", pace=Pace()) as server,
        Client(server.address) as client,
        echo_server() as echo,
    ):
        client.wait_ready(timeout=60)
        contestants = {
            OVER_GRPC: partial(median, server.address, "/tercet.v1.EmbeddingService/Embed"),
            ECHO: partial(median, echo, METHOD),
        }
        seconds = interleave(contestants, settings, timer=lambda run: cast("float", run()))
    return compare(
        f"median of {CALLS} calls of one caller: one text of 10 token ids, on a null model", seconds,
        ours=OVER_GRPC, amount=1, unit="calls/s", bars={ECHO: 0.5}, facts={},
    )  # fmt: skip
