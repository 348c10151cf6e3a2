"""What one call may cost: bytes that are no message, texts in all, work that waits for a thread."""

from __future__ import annotations

import asyncio
import threading
from array import array
from typing import TYPE_CHECKING

import grpc
import pytest

from support.status import refused
from tercet.server.service.errors import InvalidArgumentError, OverloadedError
from tercet.server.service.malformed import diagnose
from tercet.server.service.ranges import check_ranges
from tercet.server.service.sequences import Limit, fit_ids
from tercet.server.service.threads import TextThreads
from tercet.v1.embedding_pb2 import EmbedRequest
from tercet.v1.generation_pb2 import Chat, ChatMessage, GenerateRequest, SamplingParameters
from tercet.v1.text_pb2 import TokenizeRequest
from tercet.v1.types_pb2 import TextInput, TokenIds

if TYPE_CHECKING:
    from pathlib import Path

# The model's name; or, within a chat, a message: empty, or not what it should be.
SMALL_FIELDS, NOT_UTF8 = b"\x0a\x00", b"\x0a\x01\xff"


def as_chat(data: bytes) -> bytes:
    """A message whose field `chat` is `data`, of 2 KiB to 2 MiB."""
    length = len(data)
    return bytes([3 << 3 | 2, length & 0x7F | 0x80, length >> 7 & 0x7F | 0x80, length >> 14]) + data


def test_a_fault_behind_many_fields_is_not_looked_for():
    """The diagnosis runs on the event loop: a mebibyte of small fields would take more than a second."""
    near, far = SMALL_FIELDS * 5000 + NOT_UTF8, SMALL_FIELDS * 10_000 + NOT_UTF8
    for data in (far, as_chat(far)):
        fault = diagnose(GenerateRequest.DESCRIPTOR, data)
        assert (fault.field, fault.problem) == ("", "is not a protobuf message of its type")
    assert diagnose(GenerateRequest.DESCRIPTOR, near).problem.startswith("is not UTF-8")
    assert diagnose(GenerateRequest.DESCRIPTOR, as_chat(near)).field.startswith("chat.messages[5000]")


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"max_new_tokens": 0}, "0 is not in [1, 4294967295]"),
        ({"temperature": 100.00001}, "100.00000762939453 is not 0 or in [0.0001, 100]"),
        ({"temperature": 1e-45}, "1.401298464324817e-45 is not 0 or in [0.0001, 100]"),
        ({"repetition_penalty": 0.0}, "0.0 is not in [0.01, 100]"),
        ({"top_p": 0.0}, "0.0 is not in (0, 1]"),
    ],
    ids=str,
)
def test_a_value_out_of_its_range_is_shown_as_it_is(values: dict[str, float], problem: str):
    with pytest.raises(InvalidArgumentError) as raised:
        check_ranges(SamplingParameters(**values))
    assert raised.value.description == problem


@pytest.mark.parametrize("form", ["values", "packed"])
def test_ids_that_are_cut_off_are_not_looked_at(form):
    ids = [*range(40), 99, *range(40)]
    many = TokenIds(values=ids) if form == "values" else TokenIds(packed=array("I", ids).tobytes())
    with pytest.raises(InvalidArgumentError, match="has 81 tokens, the limit is 32"):
        fit_ids("ids", many, Limit(32, truncate=False, cut_to=32), 60)
    assert list(fit_ids("ids", many, Limit(32, truncate=True, cut_to=30), 60).token_ids) == ids[:30]
    assert list(fit_ids("ids", many, Limit(41, truncate=True, cut_to=40, keep="end"), 60).token_ids) == ids[41:]
    with pytest.raises(InvalidArgumentError, match=rf"ids\.{form}\[40\]: 99 is not below"):
        fit_ids("ids", many, Limit(42, truncate=True, cut_to=41, keep="end"), 60)


@pytest.fixture(scope="module")
def server(checkpoints: dict[str, Path], start):
    with start(checkpoints, "--max-text-chars", "50", "--max-call-chars", "100") as running:
        yield running


def say(*contents: str, role: str = "user") -> GenerateRequest:
    messages = [ChatMessage(role=role, content=content) for content in contents]
    return GenerateRequest(model="decoder", chat=Chat(messages=messages))


@pytest.mark.parametrize(
    ("method", "request_", "field", "problem"),
    [
        ("embedding.Embed", EmbedRequest(inputs=[TextInput(text="x" * 40)] * 3), "inputs", "120 characters in all"),
        ("text.Tokenize", TokenizeRequest(model="encoder", texts=["x" * 40] * 3), "texts", "120 characters in all"),
        ("generation.Generate", say(*["x" * 40] * 3), "chat.messages", "132 characters in all"),
        ("generation.Generate", say("w5", role="r" * 51), "chat.messages[0].role", "51 characters"),
        ("generation.Generate", say("x" * 30, "x" * 30), "chat", "62 characters, the limit is 50"),
    ],
    ids=["inputs", "texts", "chat", "role", "rendered"],
)
def test_the_texts_of_a_call_have_a_limit_together(stubs, method: str, request_: object, field: str, problem: str):
    service, name = method.split(".")
    error = refused(lambda: getattr(getattr(stubs, service), name)(request_))
    assert (error.code, error.field) == (grpc.StatusCode.INVALID_ARGUMENT, field)
    assert problem in error.message


class TestTextThreads:
    """The queue before the threads: two jobs run, the others wait."""

    @pytest.fixture
    async def gate(self):
        gate = threading.Event()
        yield gate
        gate.set()

    async def held(self, threads: TextThreads, gate: threading.Event, *sizes: int) -> list[asyncio.Task[bool]]:
        jobs = [asyncio.ensure_future(threads.run(size, lambda: gate.wait(20))) for size in sizes]
        await asyncio.sleep(0)
        return jobs

    async def test_a_full_queue_refuses(self, gate: threading.Event):
        threads = TextThreads(10)
        jobs = await self.held(threads, gate, 25)  # an empty queue takes anything
        with pytest.raises(OverloadedError, match="25 of 10 characters") as raised:
            await threads.run(1, list)
        assert raised.value.retry_after
        gate.set()
        assert await asyncio.gather(*jobs) == [True]
        assert await threads.run(1, list) == []

    async def test_patient_work_waits_unless_it_can_never_fit(self, gate: threading.Event):
        threads = TextThreads(10)
        await self.held(threads, gate, 5, 5)
        waiting = asyncio.ensure_future(threads.run(5, list, patient=True))
        with pytest.raises(OverloadedError):
            await threads.run(11, list, patient=True)
        assert not waiting.done()
        gate.set()
        assert await asyncio.wait_for(waiting, 10) == []

    async def test_work_whose_caller_leaves_never_starts_and_makes_room(self, gate: threading.Event):
        threads = TextThreads(10)
        running = await self.held(threads, gate, 4, 4)
        started = threading.Event()
        left = asyncio.ensure_future(threads.run(2, started.set))
        await asyncio.sleep(0)
        left.cancel()
        running[0].cancel()  # it runs on: its characters still count
        await asyncio.sleep(0.05)
        last = await self.held(threads, gate, 2)
        with pytest.raises(OverloadedError, match="10 of 10"):
            await threads.run(1, list)
        gate.set()
        await asyncio.gather(running[1], *last)
        assert not started.is_set()
