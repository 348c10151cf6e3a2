"""What SIGINT and SIGTERM do, and what is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING

import grpc
import psutil
import pytest

from support.server import wait_until
from tercet.v1.generation_pb2 import GenerateRequest, SamplingParameters
from tercet.v1.types_pb2 import TextInput

if TYPE_CHECKING:
    from pathlib import Path


def test_a_second_sigint_cuts_the_drain_short(slow_decoder: Path, start, connect):
    request = GenerateRequest(input=TextInput(text="w5"), sampling=SamplingParameters(ignore_eos=True))
    with start({"decoder": slow_decoder}, "--grace", "60", "--max-length", "9999") as server:
        with connect(server) as stubs:
            call = stubs.generation.GenerateStream(request)
            next(call)
            server.process.send_signal(signal.SIGINT)
            wait_until(lambda: bool(server.events("draining")))
            server.process.send_signal(signal.SIGINT)
            with pytest.raises(grpc.RpcError, match="shut down"):
                list(call)
        assert server.process.wait(10) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_port_is_open_leaves_nothing_behind(
    checkpoints: dict[str, Path], fake_launcher, tmp_path: Path, number: signal.Signals
):
    command = [*fake_launcher, "serve", f"m={checkpoints['encoder']}", "--port", "0", "--metrics-port", "0"]
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=env) as process:
        wait_until(lambda: bool(list(tmp_path.iterdir())))
        process.send_signal(number)
        assert process.wait(20) == 0
    assert not list(tmp_path.iterdir())


def test_sigint_drains_too_and_nothing_is_left_behind(checkpoints: dict[str, Path], start, tmp_path: Path):
    with start(checkpoints, env={"TMPDIR": str(tmp_path)}) as server:
        engines = [psutil.Process(server.engine_pid(name)) for name in checkpoints]
        assert [path.stat().st_mode & 0o777 for path in tmp_path.iterdir()] == [0o700]
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(10) == 0
        assert not any(engine.is_running() for engine in engines)
        assert not list(tmp_path.iterdir())
