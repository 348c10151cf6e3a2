"""GenerateMany over gRPC, with an engine that counts: every generation is answered as if it were alone."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import grpc
import pytest

from support.many_stream import ManyStream
from support.server import wait_until
from support.status import refused
from tercet.v1.generation_pb2 import (
    FinishReason,
    GenerateManyRequest,
    GenerateRequest,
    SamplingParameters,
)
from tercet.v1.models_pb2 import GetModelRequest, ModelState
from tercet.v1.types_pb2 import Strings, TextInput, TokenIds

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Stubs
    from support.server import RunningServer

LENGTH = FinishReason.FINISH_REASON_LENGTH
HELD_ID, POISON_ID, INVALID_ID = 52, 50, 51
CANCELLED = grpc.StatusCode.CANCELLED


def generate(*ids: int, model: str = "decoder", truncate: bool | None = None, **sampling: object) -> GenerateRequest:
    """A request with token ids as the prompt."""
    prompt = TextInput(token_ids=TokenIds(values=ids))
    return GenerateRequest(model=model, input=prompt, sampling=SamplingParameters(**sampling), truncate=truncate)


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory, start, make_checkpoint) -> Iterator[RunningServer]:
    """A server whose engine takes 20 ms a step, with a stream's limit of 4."""
    checkpoint = make_checkpoint(tmp_path_factory.mktemp("slow") / "decoder", "gpt2", step=0.02)
    with start({"decoder": checkpoint}, "--max-length", "100000", "--max-streams", "4") as server:
        yield server


KINDS = {
    "greedy": generate(5, 6, max_new_tokens=7),
    "eos": generate(37),
    "n": generate(30, n=3, max_new_tokens=9, seed=2**64 - 1),
    "stop": generate(5, stop=Strings(values=["7 w8"]), max_new_tokens=6),
    "held back": generate(5, stop=Strings(values=["w9 w10 w12"]), max_new_tokens=6),
    "stop tokens": generate(5, stop_token_ids=TokenIds(values=[8])),
    "logprobs": generate(5, logprobs=True, top_logprobs=2, max_new_tokens=4, n=2),
    "echo": generate(5, 6, echo=True, max_new_tokens=4, n=2),
    "echo, logprobs": generate(9, 8, 7, echo=True, logprobs=True, max_new_tokens=2),
    "truncated": generate(*range(4, 44), truncate=True, max_new_tokens=5),
    "special tokens": generate(0, max_new_tokens=4, skip_special_tokens=False),
    "beams": generate(5, num_beams=3, n=2, max_new_tokens=3),
    "seq2seq": generate(5, 6, model="seq2seq", max_new_tokens=5),
    "seq2seq, beams": generate(5, model="seq2seq", num_beams=2, n=2, max_new_tokens=3),
    "text": GenerateRequest(
        model="decoder", input=TextInput(text="w5 w6"), sampling=SamplingParameters(max_new_tokens=2)
    ),
}


def test_each_is_answered_as_alone(able: Stubs):
    for request in KINDS.values():
        request.sampling.seed = request.sampling.seed or 5
    stream = ManyStream(able.generation)
    for key, request in enumerate([*KINDS.values()] * 3):
        stream.start(7 * key, request)
    stream.read_all()
    assert len(stream.ends) == 3 * len(KINDS)
    for place, (name, request) in enumerate(KINDS.items()):
        alone = able.generation.Generate(request)
        for turn in range(3):
            assert stream.same(7 * (place + turn * len(KINDS)), alone), name


def test_a_step_is_one_message_of_bare_columns(slow: RunningServer, connect):
    with connect(slow) as stubs:
        stream = ManyStream(stubs.generation)
        for key in range(4):
            stream.start(key, generate(10 + key, max_new_tokens=12))
        stream.read_all()
    together = [message for message in stream.messages if len(message.keys) == 4 and not message.details]
    assert len(together) >= 8  # all but where they began, perhaps one after the other, and the last
    for message in together:
        assert not any((message.indexes, message.token_counts, message.ends))
        assert len(message.token_ids) == len(message.texts) == 4


def test_one_that_fails_leaves_its_neighbours_alone(stubs: Stubs):
    stream = ManyStream(stubs.generation)
    bad = {
        1: generate(POISON_ID),
        2: generate(INVALID_ID),
        3: generate(5, temperature=-1),
        4: generate(5, model="nobody"),
        5: generate(5, model="encoder"),
        6: GenerateRequest(model="decoder"),
        7: generate(*[5] * 40),
    }
    stream.start(0, generate(5, max_new_tokens=20))
    for key, request in bad.items():
        stream.start(key, request)
    stream.start(8, generate(6, max_new_tokens=20))
    stream.read_all()
    for key, request in bad.items():
        alone = refused(lambda request=request: stubs.generation.Generate(request))
        error = stream.error(key)
        assert (error.code, error.message, error.field, error.reason) == (
            alone.code,
            alone.message,
            alone.field,
            alone.reason,
        )
        assert stream.ends[key].model == ""
    assert [stream.outputs[key, 0][1] for key in (0, 8)] == [[*range(6, 26)], [*range(7, 27)]]


def test_what_is_given_up_ends_and_frees_its_pages(slow: RunningServer, connect):
    def used() -> float:
        return slow.metrics()['tercet_kv_cache_blocks{model="decoder",state="used"}']

    ended = 'tercet_request_generated_tokens_count{model="decoder"}'
    before = slow.metrics().get(ended, 0)
    with connect(slow) as stubs:
        stream = ManyStream(stubs.generation)
        stream.start(1, generate(5, ignore_eos=True, n=2, stop_token_ids=TokenIds(values=[6])))  # ends the first alone
        stream.start(2, generate(HELD_ID))
        stream.start(3, generate(9, ignore_eos=True))
        while (3, 0) not in stream.outputs:
            stream.read()
        stream.cancel(1)
        stream.cancel(2)
        stream.cancel(1)  # once more does nothing
        while len(stream.ends) < 2:
            stream.read()
        assert [stream.error(key).code for key in (1, 2)] == [CANCELLED, CANCELLED]
        wait_until(lambda: used() == 1)
        stream.start(4, generate(5, max_new_tokens=3))
        stream.cancel(3)
        stream.read_all()
        assert stream.error(3).code is CANCELLED
        assert stream.outputs[4, 0][1] == [6, 7, 8]
    stages = {
        stage: f'tercet_requests_cancelled_total{{model="decoder",stage="{stage}"}}' for stage in ("decode", "queued")
    }
    assert (slow.metrics()[stages["decode"]], slow.metrics()[stages["queued"]]) == (2, 1)
    assert slow.metrics()[ended] - before == 2


def test_cancelling_what_has_ended_does_nothing(stubs: Stubs):
    stream = ManyStream(stubs.generation)
    stream.start(1, generate(5, max_new_tokens=1))
    while not stream.ends:
        stream.read()
    stream.cancel(1)
    stream.start(2, generate(5, max_new_tokens=2))
    stream.read_all()
    assert stream.outputs[2, 0][1] == [6, 7]


def test_a_client_that_leaves_cancels_all(slow: RunningServer, connect):
    def used() -> float:
        return slow.metrics()['tercet_kv_cache_blocks{model="decoder",state="used"}']

    with connect(slow) as stubs:
        stream = ManyStream(stubs.generation)
        for key in range(3):
            stream.start(key, generate(5 + key, ignore_eos=True, n=2))
        while len(stream.outputs) < 6:
            stream.read()
        wait_until(lambda: used() == 6)
        stream.call.cancel()
        wait_until(lambda: used() == 0, timeout=1)
        stream = ManyStream(stubs.generation, timeout=0.2)
        stream.start(0, generate(5, ignore_eos=True))
        error = refused(stream.read_all)
        assert error.code is grpc.StatusCode.DEADLINE_EXCEEDED
        wait_until(lambda: used() == 0, timeout=1)


@pytest.mark.parametrize(
    ("requests", "field", "message"),
    [
        ([(5, True), (5, True)], "key", "5 is not above the one before, 5"),
        ([(5, True), (3, True)], "key", "3 is not above the one before, 5"),
        ([(5, True), (6, False)], "key", "no generation 6 was started"),
        ([(0, False)], "key", "no generation 0 was started"),
    ],
)
def test_keys_out_of_order_end_the_stream(stubs: Stubs, requests: list[tuple[int, bool]], field: str, message: str):
    stream = ManyStream(stubs.generation)
    for key, begins in requests:
        stream.start(key, generate(HELD_ID)) if begins else stream.cancel(key)
    error = refused(stream.read_on)
    assert (error.code, error.field) == (grpc.StatusCode.INVALID_ARGUMENT, field)
    assert message in error.message


@pytest.mark.parametrize(
    ("request_", "field"),
    [(GenerateManyRequest(key=1), "action"), (GenerateManyRequest(key=1, cancel=False), "cancel")],
)
def test_a_request_that_asks_nothing_ends_the_stream(stubs: Stubs, request_: GenerateManyRequest, field: str):
    error = refused(lambda: list(stubs.generation.GenerateMany(iter([request_]))))
    assert (error.code, error.field) == (grpc.StatusCode.INVALID_ARGUMENT, field)


def test_a_stream_without_requests_ends(stubs: Stubs):
    assert list(stubs.generation.GenerateMany(iter(()))) == []


def test_too_many_at_once_are_told_when_to_come_again(slow: RunningServer, connect):
    with connect(slow) as stubs:
        stream = ManyStream(stubs.generation)
        for key in range(6):
            stream.start(key, generate(5 + key, ignore_eos=True, max_new_tokens=5))
        while len(stream.ends) < 2:
            stream.read()
        error = stream.error(4)
        assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
        assert error.retry_after
        assert "4 generations run on the stream, the limit is 4" in error.message
        stream.read_all()
        assert sorted(key for key, _ in stream.outputs) == [0, 1, 2, 3]


def test_a_full_queue_refuses_one_alone(checkpoints: dict[str, Path], start, connect):
    with start({"decoder": checkpoints["decoder"]}, "--max-queue", "2") as server, connect(server) as stubs:
        stream = ManyStream(stubs.generation)
        stream.start(1, generate(HELD_ID))
        stream.start(2, generate(HELD_ID, n=3))
        stream.start(3, generate(5, max_new_tokens=3))
        while len(stream.ends) < 2:
            stream.read()
        assert stream.error(2).code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert stream.outputs[3, 0][1] == [6, 7, 8]
        stream.cancel(1)
        stream.read_all()


def test_an_engine_that_dies_ends_its_generations_and_not_the_stream(slow_decoder: Path, checkpoints, start, connect):
    models = {"decoder": slow_decoder, "seq2seq": checkpoints["seq2seq"]}
    with start(models) as server, connect(server) as stubs:
        stream = ManyStream(stubs.generation)
        stream.start(1, generate(5, ignore_eos=True))
        stream.start(2, generate(HELD_ID, model="seq2seq"))
        while len(stream.outputs.get((1, 0), ("", []))[1]) < 3:
            stream.read()
        os.kill(server.engine_pid("decoder"), signal.SIGKILL)
        while 1 not in stream.ends:
            stream.read()
        error = stream.error(1)
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "ENGINE_RESTARTED")
        assert int(error.metadata["tokens_sent"]) == len(stream.outputs[1, 0][1])
        assert error.retry_after
        stream.start(3, generate(5))
        while 3 not in stream.ends:
            stream.read()
        assert (stream.error(3).code, stream.error(3).reason) == (grpc.StatusCode.UNAVAILABLE, "MODEL_UNAVAILABLE")
        wait_until(lambda: stubs.models.Get(GetModelRequest(name="decoder")).state == ModelState.MODEL_STATE_READY)
        stream.start(4, generate(5, max_new_tokens=2))
        stream.cancel(2)
        stream.read_all()
        assert stream.outputs[4, 0][1] == [6, 7]


def test_a_drain_lets_what_runs_finish_and_ends_the_stream(slow_decoder: Path, start, connect):
    with start({"decoder": slow_decoder}) as server, connect(server) as stubs:
        idle, stream = ManyStream(stubs.generation), ManyStream(stubs.generation)
        idle.start(0, generate(5, max_new_tokens=1))
        while not idle.ends:
            idle.read()
        stream.start(1, generate(5, ignore_eos=True))  # 31 tokens, about 1.6 s
        stream.read()
        server.process.send_signal(signal.SIGTERM)
        error = refused(idle.read)  # its client has not closed it: it would hold the server up
        assert error.code is grpc.StatusCode.UNAVAILABLE
        assert "shutting down" in error.message
        stream.start(2, generate(5))
        assert refused(stream.read_on).code is grpc.StatusCode.UNAVAILABLE
        assert stream.error(2).code is grpc.StatusCode.UNAVAILABLE
        assert len(stream.outputs[1, 0][1]) == 31
        assert not stream.ends[1].HasField("error")
        assert server.process.wait(5) == 0


def test_what_is_cut_off_says_how_many_tokens_it_sent(slow_decoder: Path, start, connect):
    with start({"decoder": slow_decoder}, "--grace", "0.3", "--max-length", "9999") as server, connect(server) as stubs:
        stream = ManyStream(stubs.generation)
        stream.start(1, generate(5, ignore_eos=True))
        stream.read()
        server.process.send_signal(signal.SIGTERM)
        assert refused(stream.read_on).code is grpc.StatusCode.UNAVAILABLE
        error = stream.error(1)
        assert error.code is grpc.StatusCode.UNAVAILABLE
        assert "shut down" in error.message
        assert int(error.metadata["tokens_sent"]) == len(stream.outputs[1, 0][1])
        assert server.process.wait(10) == 0


def test_tokens_behind_a_slow_reader_come_together(checkpoints: dict[str, Path], start, connect):
    """The reader stops for a while; what the transport can't hold is merged, and nothing is lost or doubled."""
    small_windows = (("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0))
    count = 5_000
    model = {"decoder": checkpoints["decoder"]}
    with start(model, "--max-length", "100000") as server, connect(server, *small_windows) as stubs:
        stream = ManyStream(stubs.generation)
        for key in range(4):
            stream.start(key, generate(5 + key, ignore_eos=True, max_new_tokens=count))
        stream.read()
        generated = 'tercet_generated_tokens_total{model="decoder"}'
        wait_until(lambda: server.metrics()[generated] == 4 * count)  # the engine does not wait for the reader
        time.sleep(0.2)
        stream.read_all()
    for key in range(4):
        text, ids, reason, *_ = stream.outputs[key, 0]
        assert ids == [(6 + key + i) % 60 for i in range(count)]
        assert text == " ".join(f"w{id}" for id in ids if id > 3)
        assert reason == LENGTH
    assert max(len(message.token_ids) for message in stream.messages) > count / 2
    assert all(len(message.token_ids) < (1 << 14) + count for message in stream.messages)
