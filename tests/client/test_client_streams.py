"""Streams end on the server when their reader leaves, however it leaves."""

import asyncio
import threading
import time

import pytest

from tercet.client import AsyncClient, Client

PIECES = 2000
FEW = 50  # far fewer than all, and more than can be sent before a cancellation arrives


@pytest.fixture(autouse=True)
def slow(fake):
    fake.delay = 0.01


@pytest.fixture
def client(fake):
    with Client(fake.address) as client:
        yield client


def start(client):
    return client.stream("a b c", max_new_tokens=PIECES)


def wait_for_arrival(fake):
    while not fake.attempts("GenerateStream"):
        time.sleep(0.01)


def assert_cancelled(fake):
    assert fake.stream_ended.wait(5)
    assert fake.pieces_sent < FEW


def test_break(fake, client):
    for piece in start(client):
        assert piece.text == "a "
        break
    assert_cancelled(fake)


def test_break_while_the_stream_has_a_name(fake, client):
    stream = start(client)
    for _ in stream:
        break
    assert_cancelled(fake)
    assert list(stream) == []


def test_return(fake, client):
    def first(stream):
        for piece in stream:
            return piece
        return None

    assert first(start(client)).token_ids == [0]
    assert_cancelled(fake)


def test_exception_in_the_loop(fake, client):
    def fail():
        for _ in start(client):
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    assert_cancelled(fake)


def test_end_of_the_with_block(fake, client):
    with start(client) as stream:
        pieces = iter(stream)
        assert next(pieces).text == "a "
    assert_cancelled(fake)
    assert list(pieces) == []


def test_close_from_another_thread_ends_the_loop(fake, client):
    stream = start(client)
    threading.Timer(0.1, stream.close).start()
    assert len(list(stream)) < FEW
    assert_cancelled(fake)


def test_dropping_a_stream_that_nobody_reads(fake, client):
    stream = start(client)
    wait_for_arrival(fake)
    del stream
    assert_cancelled(fake)


def test_closing_the_client(fake, client):
    stream = start(client)
    wait_for_arrival(fake)
    client.close()
    assert_cancelled(fake)
    stream.close()


def test_a_stream_read_to_its_end_is_complete_and_can_be_closed(fake, client):
    stream = client.stream("a b c")
    assert "".join(piece.text for piece in stream) == "a b c"
    stream.close()
    assert fake.pieces_sent == 3


def test_many_streams_of_one_client_at_once(fake, client):
    streams = [client.stream(f"{i} b c") for i in range(8)]
    texts = ["".join(piece.text for piece in stream) for stream in streams]
    assert texts == [f"{i} b c" for i in range(8)]


async def awaited(fake):
    """Waits for the end of the stream on the server, without the event loop's help to whatever would be collected."""
    assert await asyncio.to_thread(fake.stream_ended.wait, 5)
    assert fake.pieces_sent < FEW


async def test_async_break(fake):
    async with AsyncClient(fake.address) as client:
        async for piece in start(client):
            assert piece.text == "a "
            break
        await awaited(fake)


async def test_async_break_while_the_stream_has_a_name(fake):
    async with AsyncClient(fake.address) as client:
        stream = start(client)
        async for _ in stream:
            break
        await awaited(fake)
        assert [piece async for piece in stream] == []


async def test_async_exception_in_the_loop(fake):
    async def fail(client):
        async for _ in start(client):
            raise LookupError

    async with AsyncClient(fake.address) as client:
        with pytest.raises(LookupError):
            await fail(client)
        await awaited(fake)


async def test_async_end_of_the_with_block(fake):
    async with AsyncClient(fake.address) as client:
        async with start(client) as stream:
            pieces = aiter(stream)
            assert (await anext(pieces)).text == "a "
        await awaited(fake)
        assert [piece async for piece in pieces] == []


async def test_async_close_from_another_task_ends_the_loop(fake):
    async with AsyncClient(fake.address) as client:
        stream = start(client)

        async def close():
            await asyncio.sleep(0.1)
            await stream.close()

        closing = asyncio.create_task(close())
        assert len([piece async for piece in stream]) < FEW
        await closing
        await awaited(fake)


async def test_cancelling_the_task_that_reads(fake):
    async with AsyncClient(fake.address) as client:
        seen = []

        async def read():
            async for piece in start(client):
                seen.append(piece)

        task = asyncio.create_task(read())
        while not seen:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await awaited(fake)


async def test_async_timeout_around_the_loop(fake):
    async with AsyncClient(fake.address) as client:

        async def read():
            return [piece async for piece in start(client)]

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(read(), 0.2)
        await awaited(fake)


async def test_many_async_streams_at_once(fake):
    async def text(stream):
        return "".join([piece.text async for piece in stream])

    async with AsyncClient(fake.address) as client:
        texts = await asyncio.gather(*(text(client.stream(f"{i} b c")) for i in range(8)))
        assert texts == [f"{i} b c" for i in range(8)]


def test_an_async_client_made_before_its_event_loop(fake):
    client = AsyncClient(fake.address)

    async def use():
        async with client:
            return [piece.text async for piece in client.stream("a b")]

    assert asyncio.run(use()) == ["a ", "b"]
