"""A client opens as many connections as calls at once need, and no more."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from tercet.client import AsyncClient, Client, TercetError

AT_ONCE = 12


def calls_at_once(kind, fake, **options):
    """Makes many calls at once, streams among them, and then some one by one."""
    fake.delay = 0.1
    if kind.__name__ == "Caller":
        with Client(fake.address, **options) as client, ThreadPoolExecutor(AT_ONCE) as threads:
            streams = threads.map(lambda i: list(client.stream(f"{i} a b")), range(AT_ONCE // 2))
            results = threads.map(lambda i: client.generate(f"{i}"), range(AT_ONCE // 2))
            assert [len(list(results)), len(list(streams))] == [AT_ONCE // 2] * 2
            before = len(fake.peers)
            fake.delay = 0
            for _ in range(5):
                client.models()
    else:

        async def run():
            async with AsyncClient(fake.address, **options) as client:

                async def stream(i):
                    return [piece async for piece in client.stream(f"{i} a b")]

                both = [f(i) for i in range(AT_ONCE // 2) for f in (stream, lambda i: client.generate(f"{i}"))]
                await asyncio.gather(*both)
                before = len(fake.peers)
                fake.delay = 0
                for _ in range(5):
                    await client.models()
                return before

        before = asyncio.run(run())
    return fake.peers[:before], fake.peers[before:]


@pytest.mark.parametrize("connections", [1, 2, 3])
def test_calls_at_once_are_spread_over_the_connections(kind, fake, connections):
    together, after = calls_at_once(kind, fake, connections=connections)
    assert len(set(together)) == connections
    assert max(map(together.count, together)) <= AT_ONCE / connections + 1
    assert len(set(after)) == 1  # all are idle again
    assert set(after) <= set(together)


def test_calls_one_by_one_need_one_connection(fake):
    with Client(fake.address) as client:
        for i in range(10):
            client.generate(f"{i}")
            list(client.stream("a b"))
            with pytest.raises(TercetError):
                client.health("nobody")
    assert len(set(fake.peers)) == 1


def test_clients_do_not_share_connections(fake):
    with Client(fake.address) as first, Client(fake.address) as second:
        first.models()
        second.models()
    assert len(set(fake.peers)) == 2


def test_some_connection_there_must_be(kind, fake):
    with pytest.raises(ValueError, match="connections must be at least 1, got 0"):
        kind(fake.address, connections=0)("models")
