"""The front end's side of an engine's socket, with the engine's side held by hand."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from tercet.server import frames, wire
from tercet.server.channel import Channel, Pending

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Recorder:
    """A receiver that keeps what it gets."""

    def __init__(self) -> None:
        self.outputs: list[object] = []
        self.lost = 0

    def receive(self, output: object) -> bool:
        self.outputs.append(output)
        return True

    def receive_token(self, sample: int, token_id: int) -> bool:
        self.outputs.append((sample, token_id))
        return token_id == 0

    def lose(self) -> None:
        self.lost += 1


class Peer:
    """The engine's side."""

    def __init__(self, end: socket.socket, channel: Channel, lost: list[Channel]) -> None:
        self.end, self.channel, self.lost = end, channel, lost
        self._frames = frames.FrameReader()

    async def received(self) -> list[wire.ToEngine]:
        """What the front end wrote since."""
        data = await asyncio.get_running_loop().sock_recv(self.end, 1 << 20)
        return [frames.to_engine_decoder.decode(body) for body in self._frames.feed(data)]

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.end, data)
        await asyncio.sleep(0.05)

    async def answer(self, *ids: int) -> None:
        """Answers requests in one step."""
        outputs = [wire.Embeddings(id=id, data=b"x", rejected={}) for id in ids]
        await self.send(frames.encode(wire.Answers(incarnation=1, outputs=outputs)))


@asynccontextmanager
async def connected() -> AsyncIterator[Peer]:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    lost: list[Channel] = []
    channel = Channel(1, lambda _: None, lost.append)
    transport, _ = await asyncio.get_running_loop().create_connection(lambda: channel, sock=ours)
    try:
        yield Peer(theirs, channel, lost)
    finally:
        transport.abort()
        theirs.close()
        await asyncio.sleep(0)


def embed(id: int, *token_ids: int) -> wire.Embeds:
    """One sequence for each token."""
    ids = wire.token_ids(token_ids or (5,))
    return wire.Embeds(id=id, lengths=wire.token_ids([1] * len(ids)), token_ids=ids, pooling="mean", normalize=True)


async def test_answers_reach_who_asked_and_pending_is_what_is_left():
    async with connected() as peer:
        first, second = Recorder(), Recorder()
        assert [peer.channel.new_id(count) for count in (2, 1, 1)] == [0, 2, 3]
        peer.channel.submit([embed(0, 1, 2), embed(2)], first)
        peer.channel.submit([embed(3)], second)
        both, last = await peer.received()  # what is asked together travels together
        assert isinstance(both, wire.Requests)
        assert [*both.requests, last] == [embed(0, 1, 2), embed(2), embed(3)]
        assert (peer.channel.pending.sequences, peer.channel.pending.tokens) == (4, 4)
        await peer.answer(3, 0)
        assert [output.id for output in first.outputs] == [0]
        assert [output.id for output in second.outputs] == [3]
        assert (peer.channel.pending.sequences, peer.channel.pending.tokens) == (1, 1)


async def test_ids_count_from_where_the_engine_says():
    async with connected() as peer:
        await peer.send(frames.encode(wire.Welcome(incarnation=1, first_id=1 << 40)))
        assert [peer.channel.new_id() for _ in range(2)] == [1 << 40, (1 << 40) + 1]


async def test_a_cancelled_requests_late_answer_is_dropped():
    async with connected() as peer:
        receiver = Recorder()
        peer.channel.submit([embed(0), embed(1)], receiver)
        await peer.received()
        await peer.answer(1)
        peer.channel.cancel([0, 1])
        assert await peer.received() == [wire.Cancel(id=0)]  # 1 is answered: nothing to cancel
        await peer.answer(0, 99)
        assert [output.id for output in receiver.outputs] == [1]
        assert peer.channel.pending.sequences == 0


async def test_the_engines_end_loses_every_request_once():
    async with connected() as peer:
        receiver = Recorder()
        peer.channel.submit([embed(0), embed(1)], receiver)
        peer.end.close()
        await asyncio.sleep(0.05)
        assert receiver.lost == 1
        assert peer.lost == [peer.channel]
        assert peer.channel.pending.sequences == 0
        late = Recorder()
        peer.channel.submit([embed(2)], late)  # nobody would ever answer
        assert late.lost == 1
        assert peer.channel.pending.sequences == 0


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 8,
        b"\x03\x00\x00\x00abc",
        frames.encode(embed(0)),
        frames.encode(wire.Answers(incarnation=2, outputs=[])),
    ],
    ids=["length", "text", "kind", "incarnation"],
)
async def test_an_engine_that_breaks_the_protocol_is_cut_off(data: bytes, caplog: pytest.LogCaptureFixture):
    async with connected() as peer:
        receiver = Recorder()
        peer.channel.submit([embed(0)], receiver)
        await peer.send(data)
        assert receiver.lost == 1
        assert peer.lost == [peer.channel]
    assert caplog.messages == ["broken protocol"]


async def test_an_answer_that_its_receiver_cannot_take_fails_alone(caplog: pytest.LogCaptureFixture):
    class Broken(Recorder):
        def receive(self, output: object) -> bool:
            super().receive(output)
            if isinstance(output, wire.Embeddings):
                raise KeyError(output.id)
            return True

    async with connected() as peer:
        broken, other = Broken(), Recorder()
        peer.channel.submit([embed(0)], broken)
        peer.channel.submit([embed(1)], other)
        await peer.received()
        await peer.answer(0, 1)
        [_, failure] = broken.outputs
        assert isinstance(failure, wire.Rejected)
        assert (failure.id, failure.reason) == (0, "internal")
        assert [output.id for output in other.outputs] == [1]
        assert await peer.received() == [wire.Cancel(id=0)]
        assert peer.channel.pending.sequences == 0
        assert not peer.lost
    assert caplog.messages == ["an answer can't be read"]


def generate(id: int) -> wire.Generate:
    return wire.Generate(id=id, token_ids=wire.token_ids([5]), sampling=wire.Sampling(max_new_tokens=9), n=2)


@pytest.mark.parametrize("samples", [[], [1, 0, 1]])
async def test_tokens_in_columns_reach_their_requests_before_other_answers(samples: list[int]):
    async with connected() as peer:
        first, second = Recorder(), Recorder()
        peer.channel.submit([generate(0)], first)
        peer.channel.submit([generate(1)], second)
        await peer.received()
        columns = wire.NextTokens(ids=[1, 9, 0], samples=samples, token_ids=[0, 7, 8])  # nobody waits for 9
        last = wire.Tokens(id=0, sample=1, token_ids=[3], finish_reason="eos")
        await peer.send(frames.encode(wire.Answers(incarnation=1, outputs=[last], next_tokens=columns)))
        assert first.outputs == [(1 if samples else 0, 8), last]
        assert second.outputs == [(1 if samples else 0, 0)]
        assert peer.channel.pending.sequences == 0  # both have said that they need no more


async def test_lanes_are_asked_for_their_tokens_before_the_receiver():
    class Lane:
        def __init__(self) -> None:
            self.taken: list[int] = []

        def take(self, token_id: int, arrived: float) -> bool:
            assert arrived == peer.channel.arrived
            self.taken += [token_id] if token_id > 7 else []
            return token_id > 7

    async with connected() as peer:
        receiver, lanes = Recorder(), [Lane(), Lane()]
        peer.channel.submit([generate(0)], receiver, lanes)
        await peer.received()
        columns = wire.NextTokens(ids=[0, 0, 0, 0], samples=[1, 0, 1, 0], token_ids=[7, 8, 9, 0])
        await peer.send(frames.encode(wire.Answers(incarnation=1, outputs=[], next_tokens=columns)))
        assert [lane.taken for lane in lanes] == [[8], [9]]
        assert receiver.outputs == [(1, 7), (0, 0)]
        assert peer.channel.pending.sequences == 0


async def test_a_token_that_its_receiver_cannot_take_fails_alone(caplog: pytest.LogCaptureFixture):
    class Broken(Recorder):
        def receive_token(self, sample: int, token_id: int) -> bool:
            raise IndexError(sample)

    async with connected() as peer:
        broken, other = Broken(), Recorder()
        peer.channel.submit([generate(0)], broken)
        peer.channel.submit([generate(1)], other)
        await peer.received()
        columns = wire.NextTokens(ids=[0, 1, 0], samples=[], token_ids=[7, 8, 9])
        await peer.send(frames.encode(wire.Answers(incarnation=1, outputs=[], next_tokens=columns)))
        [failure] = broken.outputs
        assert isinstance(failure, wire.Rejected)
        assert (failure.id, failure.reason) == (0, "internal")
        assert other.outputs == [(0, 8)]
        assert await peer.received() == [wire.Cancel(id=0)]
    assert caplog.messages == ["an answer can't be read"]


async def test_columns_of_unequal_length_break_the_protocol(caplog: pytest.LogCaptureFixture):
    async with connected() as peer:
        receiver = Recorder()
        peer.channel.submit([generate(0)], receiver)
        columns = wire.NextTokens(ids=[0, 0], samples=[], token_ids=[7])
        await peer.send(frames.encode(wire.Answers(incarnation=1, outputs=[], next_tokens=columns)))
        assert receiver.lost == 1
    assert caplog.messages == ["broken protocol"]


async def test_the_time_to_drain_follows_the_pace(monkeypatch: pytest.MonkeyPatch):
    now = 100.0
    monkeypatch.setattr("tercet.server.channel.time.monotonic", lambda: now)
    pending = Pending()
    pending.add(10, 50)
    assert pending.drain_seconds == 1  # nothing known yet
    for _ in range(4):
        now += 0.5
        pending.remove(1, 5)
        pending.step()
    assert (pending.sequences, pending.tokens) == (6, 30)
    assert pending.drain_seconds == pytest.approx(3)  # two a second
    for _ in range(5):
        now += 2.0
        pending.remove(1, 5)
        pending.step()
    assert 1.5 < pending.drain_seconds < 2.1  # one left, and slower since
    now += 1000
    pending.remove(1, 5)
    pending.add(1, 5)  # after a pause, which is no sign of slowness
    now += 0.5
    pending.remove(1, 5)
    pending.step()
    pending.add(1, 5)
    assert pending.drain_seconds < 2
