"""An engine as a front end knows it, with the engine's socket held by hand."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tercet.server import engines, frames, wire
from tercet.server.control import EngineState, State
from tercet.server.engines import Engine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

INFO = wire.ModelInfo(
    architecture="bert",
    family="encoder",
    tasks=["embed"],
    max_length=32,
    longest_read=32,
    vocab_size=60,
    target_vocab_size=60,
    embedding_size=4,
    dtype="float32",
    device="cpu",
    parameters=1,
    pages=0,
    page_size=16,
    memory=1,
)


class Listener:
    """The engine's side: welcomes whoever connects."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / frames.REQUESTS
        self.connections: list[asyncio.StreamWriter] = []

    async def welcome(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = len(self.connections) << 40
        self.connections.append(writer)
        writer.write(frames.encode(wire.Welcome(incarnation=1, first_id=first)))

    async def open(self) -> asyncio.Server:
        return await asyncio.start_unix_server(self.welcome, self.path)


@pytest.fixture
async def listener(tmp_path: Path) -> AsyncIterator[Listener]:
    yield (listener := Listener(tmp_path))
    for writer in listener.connections:
        writer.close()


def told(folder: Path, state: State, incarnation: int = 1) -> EngineState:
    return EngineState(name="m", state=state, incarnation=incarnation, info=INFO, folder=str(folder))


async def until(engine: Engine, state: State) -> None:
    async with asyncio.timeout(5):
        while engine.state is not state:
            await asyncio.sleep(0.005)


async def test_it_is_ready_once_connected_and_connects_again_where_it_is_hung_up_on(
    tmp_path: Path, listener: Listener, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(engines, "_PAUSE", 0.01)
    changes: list[State] = []
    engine = Engine("m", lambda: changes.append(engine.state))
    engine.hear(told(tmp_path, State.READY))  # before anybody listens
    await asyncio.sleep(0.05)
    assert (engine.state, engine.channel, engine.info) == (State.LOADING, None, INFO)
    async with await listener.open():
        await until(engine, State.READY)
        assert engine.channel
        assert engine.channel.new_id() == 0
        listener.connections[0].close()
        async with asyncio.timeout(5):
            while len(changes) < 3:
                await asyncio.sleep(0.005)
        assert engine.channel
        assert engine.channel.new_id() == 1 << 40
        engine.hear(told(tmp_path, State.RESTARTING))
        await asyncio.sleep(0.05)
        assert (engine.state, engine.channel, len(listener.connections)) == (State.RESTARTING, None, 2)
    assert changes == [State.READY, State.RESTARTING, State.READY, State.RESTARTING]


async def test_another_incarnations_welcome_is_none(tmp_path: Path, listener: Listener):
    engine = Engine("m", lambda: None)
    async with await listener.open():
        engine.hear(told(tmp_path, State.READY, incarnation=2))
        await asyncio.sleep(0.05)
        assert (engine.state, engine.channel) == (State.LOADING, None)
        engine.hear(told(tmp_path, State.FAILED, incarnation=2))
        assert engine.state is State.FAILED


async def test_who_waits_is_told_when_it_is_left(tmp_path: Path, listener: Listener):
    class Waiting:
        lost = False

        def lose(self) -> None:
            self.lost = True

    engine, waiting = Engine("m", lambda: None), Waiting()
    async with await listener.open():
        engine.hear(told(tmp_path, State.READY))
        await until(engine, State.READY)
        assert engine.channel
        one = wire.token_ids([1])
        request = wire.Embeds(id=engine.channel.new_id(), lengths=one, token_ids=one, pooling="mean", normalize=True)
        engine.channel.submit([request], waiting)  # type: ignore[arg-type]
        assert engine.unanswered == 1
        engine.close()
        assert engine.unanswered == 0
        await asyncio.sleep(0.05)
        assert waiting.lost
        assert len(listener.connections) == 1
