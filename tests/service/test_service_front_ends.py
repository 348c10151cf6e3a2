"""Several front ends on one port: one server to its clients, and to who reads its metrics."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING

import grpc
import numpy as np
import psutil
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from support.metrics import metric
from support.server import wait_until
from support.status import refusal_of, refused
from tercet.v1.embedding_pb2 import EmbedRequest, EmbedResponse
from tercet.v1.generation_pb2 import GenerateRequest, SamplingParameters
from tercet.v1.models_pb2 import ListModelsRequest
from tercet.v1.types_pb2 import TextInput, TokenIds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import Stubs
    from support.server import RunningServer

ENDS = 2
OWN_CONNECTION = ("grpc.use_local_subchannel_pool", 1)
HELD = EmbedRequest(model="encoder", inputs=[TextInput(token_ids=TokenIds(values=[52]))])
ENDLESS = GenerateRequest(
    model="decoder",
    input=TextInput(token_ids=TokenIds(values=[5])),
    sampling=SamplingParameters(ignore_eos=True, max_new_tokens=25),
)


def embed(*ids: int) -> EmbedRequest:
    return EmbedRequest(model="encoder", inputs=[TextInput(token_ids=TokenIds(values=ids))])


def sums(response: EmbedResponse) -> tuple[float, float]:
    """How many tokens the only input had, and what their ids make: the first two components of the fake's vectors."""
    count, total, *_ = np.frombuffer(response.embeddings.data, "<f4")
    return float(count), float(total)


def connections(pid: int) -> set[int]:
    """The ports of the clients of a front end."""
    return {c.raddr.port for c in psutil.Process(pid).net_connections("tcp") if c.status == "ESTABLISHED"}


def serves(stubs: Stubs, service: str = "") -> bool:
    answer = HealthStub(stubs.channel).Check(HealthCheckRequest(service=service), wait_for_ready=True, timeout=20)
    return answer.status == HealthCheckResponse.SERVING


def is_turned_away(stubs: Stubs) -> bool:
    error = stubs.models.List.future(ListModelsRequest()).exception()
    return error is not None and error.code() is grpc.StatusCode.UNAVAILABLE


@pytest.fixture
def spread(connect) -> Iterator[Callable[..., list[list[Stubs]]]]:
    """Opens connections until each front end has so many: those of the first, of the second."""
    with ExitStack() as stack:

        def spread(server: RunningServer, each: int = 1) -> list[list[Stubs]]:
            found: list[list[Stubs]] = [[] for _ in range(ENDS)]
            pids = server.front_end_pids()
            while min(map(len, found)) < each:
                before = [connections(pid) for pid in pids]
                stubs = stack.enter_context(connect(server, OWN_CONNECTION))
                assert serves(stubs)
                [owner] = [i for i, pid in enumerate(pids) if connections(pid) - before[i]]
                found[owner].append(stubs)
            return [own[:each] for own in found]

        yield spread


@pytest.fixture(scope="module")
def server(checkpoints: dict[str, Path], start) -> Iterator[RunningServer]:
    """A server of two front ends that nothing happens to."""
    with start(checkpoints, "--front-ends", str(ENDS), "--max-queue", "4") as running:
        assert len(running.front_end_pids()) == ENDS
        yield running


def test_answers_are_right_and_totals_are_the_clients_at_every_scrape(server: RunningServer, spread):
    every = [stubs for own in spread(server, 2) for stubs in own]
    calls = tokens = 0
    for round_ in range(10):
        texts = [[5 + round_, *[6] * index] for index in range(len(every))]
        futures = [stubs.embedding.Embed.future(embed(*ids)) for stubs, ids in zip(every, texts, strict=True)]
        for ids, future in zip(texts, futures, strict=True):
            assert sums(future.result(timeout=20)) == (len(ids), sum(ids))
            calls += 1
            tokens += len(ids)
        assert metric(server, "tercet_requests_total", method="Embed", code="OK") == calls
        assert metric(server, "tercet_request_duration_seconds_count", method="Embed") == calls
        assert metric(server, "tercet_prompt_tokens_total", model="encoder") == tokens
        assert metric(server, "tercet_request_prompt_tokens_sum", model="encoder") == tokens


def test_the_queues_of_all_hold_no_more_than_the_limit(server: RunningServer, spread):
    first, second = spread(server)
    held = [stubs.embedding.Embed.future(HELD) for [stubs] in (first, first, second, second)]
    wait_until(lambda: metric(server, "tercet_requests_waiting", model="encoder") == 4)
    for [stubs] in (first, second):
        error = refused(lambda stubs=stubs: stubs.embedding.Embed(HELD, timeout=10))
        assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    for call in held:
        call.cancel()
    wait_until(lambda: metric(server, "tercet_requests_waiting", model="encoder") == 0)


def test_a_front_end_that_is_killed_takes_its_own_calls_alone(slow_decoder: Path, start, spread):
    with start({"decoder": slow_decoder}, "--front-ends", str(ENDS)) as server:
        [doomed], [spared] = spread(server)
        short = GenerateRequest(input=ENDLESS.input, sampling=SamplingParameters(max_new_tokens=2))
        for stubs in (doomed, spared, doomed):
            stubs.generation.Generate(short)
        calls = [stubs.generation.Generate.future(ENDLESS) for stubs in (doomed, doomed, spared, spared)]
        wait_until(lambda: metric(server, "tercet_requests_running") == 4)
        os.kill(server.front_end_pids()[0], signal.SIGKILL)
        for call in calls[:2]:
            assert call.exception(timeout=5).code() is grpc.StatusCode.UNAVAILABLE
        wait_until(lambda: metric(server, "tercet_requests_running") == 2, timeout=1)  # nobody reads the others
        for call in calls[2:]:
            assert list(call.result(timeout=10).outputs[0].token_ids) == list(range(6, 31))
        assert metric(server, "tercet_kv_cache_blocks", state="used") == 0

        wait_until(lambda: len(server.events("front end started")) == ENDS + 1)
        assert serves(doomed)  # wherever it is now
        assert metric(server, "tercet_front_end_restarts_total", reason="signal") == 1
        [first], [second] = spread(server)
        for stubs in (first, second, spared):
            assert list(stubs.generation.Generate(short).outputs[0].token_ids) == [6, 7]
        # Those of before count, and those that nobody answered don't.
        assert metric(server, "tercet_requests_total", method="Generate") == 3 + 2 + 3
        assert metric(server, "tercet_request_generated_tokens_sum") == 2 * (3 + 3) + 2 * 25


def test_an_engine_that_is_killed_comes_back_to_all(checkpoints: dict[str, Path], start, spread):
    with start({"encoder": checkpoints["encoder"]}, "--front-ends", str(ENDS)) as server:
        every = [stubs for [stubs] in spread(server)]
        held = [stubs.embedding.Embed.future(HELD) for stubs in every]
        wait_until(lambda: metric(server, "tercet_requests_waiting") == ENDS)
        os.kill(server.engine_pid("encoder"), signal.SIGKILL)
        for call in held:
            assert refusal_of(call.exception(timeout=5)).reason == "ENGINE_RESTARTED"
        for stubs in every:
            wait_until(lambda stubs=stubs: serves(stubs, "model/encoder"))
            assert sums(stubs.embedding.Embed(embed(5, 6))) == (2, 11)
        assert metric(server, "tercet_engine_restarts_total", reason="signal") == 1
        assert not server.events("front end died")


def test_one_that_dies_too_often_stays_down_and_the_last_takes_the_server_with_it(
    checkpoints: dict[str, Path], start, connect
):
    """A front end that starts late finds an engine that is down for good, and serves the others."""
    models = {name: checkpoints[name] for name in ("encoder", "decoder")}
    with start(models, "--front-ends", str(ENDS)) as server:
        for deaths in (1, 2, 3):
            os.kill(server.engine_pid("encoder"), signal.SIGKILL)
            wait_until(lambda deaths=deaths: len(server.events("engine died")) == deaths)
            if deaths < 3:
                wait_until(lambda deaths=deaths: len(server.events("model ready")) == 2 + deaths)
        wait_until(lambda: bool(server.events("engine stays down")))
        for number in range(ENDS):
            for deaths in (1, 2, 3):
                with connect(server, OWN_CONNECTION) as stubs:
                    wait_until(lambda stubs=stubs: serves(stubs))
                    assert stubs.generation.Generate(ENDLESS).outputs
                os.kill(server.front_end_pids()[number], signal.SIGKILL)
                wait_until(lambda n=3 * number + deaths: len(server.events("front end died")) == n)
                if deaths < 3:
                    wait_until(lambda n=ENDS + 2 * number + deaths: len(server.events("front end started")) == n)
        assert server.process.wait(10) == 1
        assert "every front end died too often" in server.log.read_text().splitlines()[-1]


def test_a_drain_is_everybodys(slow_decoder: Path, start, spread, tmp_path: Path):
    """Whoever else gets the signal, the supervisor says what is to be done."""
    with start({"decoder": slow_decoder}, "--front-ends", str(ENDS), env={"TMPDIR": str(tmp_path)}) as server:
        every = [stubs for [stubs] in spread(server)]
        calls = [stubs.generation.Generate.future(ENDLESS) for stubs in every]
        wait_until(lambda: metric(server, "tercet_requests_running") == ENDS)
        for pid in (*server.front_end_pids(), server.process.pid):
            os.kill(pid, signal.SIGTERM)
        for stubs in every:
            wait_until(lambda stubs=stubs: is_turned_away(stubs))
        for call in calls:
            assert len(call.result(timeout=10).outputs[0].token_ids) == 25
        assert server.process.wait(10) == 0
        assert len(server.events("draining")) == ENDS
        assert not list(tmp_path.glob("tercet-*"))


def test_nobody_outlives_a_server_that_is_killed(checkpoints: dict[str, Path], start):
    with start(checkpoints, "--front-ends", str(ENDS)) as server:
        everybody = psutil.Process(server.process.pid).children(recursive=True)
        assert len(everybody) >= ENDS + len(checkpoints)  # and those that render chat templates
        server.process.kill()
        server.process.wait()
        _, alive = psutil.wait_procs(everybody, timeout=5)
        assert not alive
