"""What the service costs where the model costs nothing: the same engine over gRPC and in process, on a null model.

The null model takes as long as a GPU of a stated pace, which the engine runs ahead of, so that throughput in process is
that pace and what is lost over gRPC is the service's.
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
from tercet.v1.generation_pb2 import GenerateManyRequest, GenerateRequest, SamplingParameters
from tercet.v1.generation_pb2_grpc import GenerationServiceStub
from tercet.v1.types_pb2 import TextInput, TokenIds

if TYPE_CHECKING:
    from benchmarks.rows import Result, Settings

OVER_GRPC, IN_PROCESS, ECHO = "over gRPC", "in process", "bare echo"
ENCODER_PACE = Pace(step=0.0003, token=1 / 3e6)
TEXTS, TEXT_TOKENS, TEXTS_A_CALL, CALLERS = 16384, 128, 512, 4
KEPT_BY_ENCODERS = 0.97
MICROSECONDS_A_TEXT = 8.0
QUICK_STEPS = Pace(step=0.0012)  # 1.3 B parameters in bfloat16 at 65 % of an H100's bandwidth
SLOW_STEPS = Pace(step=0.005)
ROWS, PROMPT_TOKENS, NEW_TOKENS = 64, 32, 256
KEPT_BY_DECODERS = 0.95
MICROSECONDS_A_TOKEN = 5.0
CALLS = 200
VOCABULARY = 1000  # ids from here on are words of any vocabulary


def _sequences(count: int, tokens: int) -> list[list[int]]:
    chance = random.Random(0)
    return [[VOCABULARY + chance.randrange(1000) for _ in range(tokens)] for _ in range(count)]


def encoder(settings: Settings) -> Result:
    """Throughput of batch calls with token ids, and the service's CPU time for each text."""
    sequences = _sequences(TEXTS, TEXT_TOKENS)
    calls = [sequences[first : first + TEXTS_A_CALL] for first in range(0, TEXTS, TEXTS_A_CALL)]
    with (
        in_place_of_models(ENCODER_PACE),
        serve(
            {"minilm": checkpoints.minilm()}, "--threads", "1", "--max-batch-tokens", "8192", pace=ENCODER_PACE
        ) as server,
        Client(server.address, timeout=600) as client,
        ThreadPoolExecutor(CALLERS) as callers,
    ):
        model = InProcess(checkpoints.minilm(), threads=1, max_batch_tokens=8192)
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


def decoder(pace: Pace, settings: Settings) -> Result:
    """Throughput of many generations on one stream, and the service's CPU time for each token."""
    prompts = _sequences(ROWS, PROMPT_TOKENS)
    sampling = SamplingParameters(temperature=0, repetition_penalty=1, max_new_tokens=NEW_TOKENS, ignore_eos=True)
    requests = [
        GenerateManyRequest(
            key=key,
            generate=GenerateRequest(
                model="smollm2", input=TextInput(token_ids=TokenIds(values=prompt)), sampling=sampling
            ),
        )
        for key, prompt in enumerate(prompts)
    ]
    with (
        in_place_of_models(pace),
        serve({"smollm2": checkpoints.smollm2()}, "--threads", "1", pace=pace) as server,
        Client(server.address) as client,
        grpc.insecure_channel(server.address) as channel,
    ):
        client.wait_ready(timeout=60)
        model = InProcess(checkpoints.smollm2(), threads=1)
        generate_many = GenerationServiceStub(channel).GenerateMany
        cpu: list[float] = []

        def over_grpc() -> None:
            before = server.service_cpu_seconds()
            tokens = sum(len(step.token_ids) for step in generate_many(iter(requests)))
            cpu.append(server.service_cpu_seconds() - before)
            if tokens != ROWS * NEW_TOKENS:
                raise RuntimeError(f"{tokens} tokens came, not {ROWS * NEW_TOKENS}")

        contestants = {OVER_GRPC: over_grpc, IN_PROCESS: lambda: model.generate(prompts, NEW_TOKENS)}
        for warm in contestants.values():
            warm()
        cpu.clear()
        seconds = interleave(contestants, settings)
    microseconds = 1e6 * sum(cpu) / len(cpu) / (ROWS * NEW_TOKENS)
    return compare(
        f"{ROWS} generations of {NEW_TOKENS} tokens on one stream, on a null model of {1000 * pace.step:g} ms "
        "a step",
        seconds, ours=OVER_GRPC, amount=ROWS * NEW_TOKENS, unit="tokens/s", bars={IN_PROCESS: KEPT_BY_DECODERS},
        facts={}, goals=[Goal("µs of the service's CPU a token", microseconds, MICROSECONDS_A_TOKEN, at_most=True)],
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
