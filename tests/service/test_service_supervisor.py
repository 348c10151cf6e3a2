"""The supervisor of fake engines, within this process."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from tercet.server import child, frames, supervisor, wire
from tercet.server.child import StartError
from tercet.server.control import State
from tercet.server.server_metrics import ServerMetrics
from tercet.server.supervisor import EngineProcess, Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable

FAKE_ENGINE = (sys.executable, str(Path(__file__).with_name("fake_engine.py")))


@pytest.fixture
def metrics(tmp_path: Path) -> ServerMetrics:
    """What the supervisor tells."""
    return ServerMetrics(tmp_path / "metrics")


@pytest.fixture
def supervise(
    tmp_path: Path, make_checkpoint, monkeypatch: pytest.MonkeyPatch, metrics: ServerMetrics
) -> Callable[..., Supervisor]:
    """A supervisor of one engine, which misbehaves as it is told; its sockets are below `tmp_path`."""
    monkeypatch.setattr(supervisor, "ENGINE_COMMAND", FAKE_ENGINE)

    def supervise(**fake: object) -> Supervisor:
        settings = wire.EngineSettings(
            name="m",
            source=str(make_checkpoint(tmp_path / "m", "bert", **fake)),
            incarnation=0,
            device="cpu",
            dtype="auto",
            kernels="auto",
            layout="auto",
            memory=1 << 30,
            threads=1,
            max_length=None,
            max_rows=8,
            max_batch_tokens=64,
        )
        return Supervisor([settings], [], tmp_path, metrics)

    return supervise


async def test_a_stop_while_it_spawns(supervise, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """There is no process to kill yet, and there must be none after."""
    spawn = asyncio.create_subprocess_exec
    spawning, stopping = asyncio.Event(), asyncio.Event()
    spawned: list[asyncio.subprocess.Process] = []

    async def slowly(*command: str, **options: object) -> asyncio.subprocess.Process:
        spawning.set()
        await stopping.wait()
        spawned.append(await spawn(*command, **options))  # type: ignore[arg-type]
        return spawned[0]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", slowly)
    engines = supervise()
    start = asyncio.ensure_future(engines.start())
    await spawning.wait()
    stop = asyncio.ensure_future(engines.stop())
    await asyncio.sleep(0)
    stopping.set()
    await asyncio.wait_for(stop, 10)
    await start
    assert spawned[0].returncode is not None
    assert not list(tmp_path.glob("e0/*"))
    await engines.stop()  # a second one finds nothing to do


async def test_an_engine_that_slowly_fails_to_load(supervise, monkeypatch: pytest.MonkeyPatch):
    """Its deaths are too far apart to be too many, but it never got ready."""
    monkeypatch.setattr(child, "_WINDOW", 1e-9)
    engines = supervise(crash=True)
    await engines.start()
    with pytest.raises(StartError, match="died 3 times") as raised:
        await asyncio.wait_for(engines.run(), 20)
    assert not raised.value.refused
    await engines.stop()


async def ready(engines: Supervisor) -> EngineProcess:
    """Starts the only engine and waits for it."""
    await engines.start()
    [engine] = engines.engines.values()
    while engine.state is not State.READY:
        await asyncio.sleep(0.01)
    return engine


async def test_strangers(supervise, tmp_path: Path):
    """Who connects to the socket of an engine after it is hung up on, and harms nothing."""
    engines = supervise()
    async with asyncio.timeout(20):
        engine = await ready(engines)
        [socket] = tmp_path.glob("e0/1/control")
        reader, writer = await asyncio.open_unix_connection(socket)
        assert await reader.read() == b""
        writer.close()
        assert engine.state is State.READY
        await engines.stop()


async def answer(reader: asyncio.StreamReader) -> None:
    """Reads one message of an engine."""
    await reader.readexactly(int.from_bytes(await reader.readexactly(4), "little"))


async def test_what_a_dead_engine_has_answered_is_counted(
    supervise, metrics: ServerMetrics, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """It reports before it answers, and what lay unread when it died is read after."""
    monkeypatch.setattr(supervisor, "_REST", 3600.0)
    engines = supervise()
    async with asyncio.timeout(20):
        engine = await ready(engines)
        [socket] = tmp_path.glob("e0/1/requests")
        reader, writer = await asyncio.open_unix_connection(socket)
        await answer(reader)  # a welcome
        for id in range(3):
            question = wire.Embeds(
                id=id, lengths=wire.token_ids([2]), token_ids=wire.token_ids([1, 2]), pooling="cls", normalize=False
            )
            writer.write(frames.encode(question))
            await answer(reader)
        [process] = (child for child in psutil.Process().children() if FAKE_ENGINE[1] in child.cmdline())
        process.kill()
        while engine.state is State.READY:
            await asyncio.sleep(0.01)
        counted = metrics.registry.get_sample_value("tercet_prompt_tokens_total", {"model": "m"})
        assert counted == 6
        writer.close()
        await engines.stop()
