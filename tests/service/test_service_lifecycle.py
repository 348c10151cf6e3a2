"""From exec to exit: refused starts, engines that die, drains, ports in use."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from typing import TYPE_CHECKING

import grpc
import psutil
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from support.server import LAUNCHER, wait_until
from support.status import refusal_of, refused
from tercet.v1.embedding_pb2 import EmbedRequest
from tercet.v1.embedding_pb2_grpc import EmbeddingServiceStub
from tercet.v1.generation_pb2 import GenerateRequest, SamplingParameters
from tercet.v1.models_pb2 import GetModelRequest, ModelState
from tercet.v1.types_pb2 import TextInput, TokenIds

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Stubs
    from support.server import RunningServer

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
EMBED = EmbedRequest(model="encoder", inputs=[TextInput(text="w5")])
HELD = TextInput(token_ids=TokenIds(values=[52]))


def check(stubs: Stubs, service: str = "") -> int:
    return HealthStub(stubs.channel).Check(HealthCheckRequest(service=service)).status


def state(stubs: Stubs, model: str) -> int:
    return stubs.models.Get(GetModelRequest(name=model)).state


def kill_engine(server: RunningServer, model: str) -> float:
    os.kill(server.engine_pid(model), signal.SIGKILL)
    return time.monotonic()


def endless(model: str = "decoder") -> GenerateRequest:
    prompt = TextInput(token_ids=TokenIds(values=[5]))
    return GenerateRequest(model=model, input=prompt, sampling=SamplingParameters(ignore_eos=True))


class TestEngineDeath:
    """kill -9 of an engine."""

    def test_its_requests_fail_within_a_second_and_others_never_notice(
        self, checkpoints: dict[str, Path], start, connect
    ):
        with start(checkpoints) as server, connect(server) as stubs:
            held = stubs.embedding.Embed.future(EmbedRequest(model="encoder", inputs=[HELD]))
            wait_until(lambda: server.metrics()['tercet_requests_waiting{model="encoder"}'] == 1)
            killed = kill_engine(server, "encoder")
            with pytest.raises(grpc.RpcError) as raised:
                held.result(timeout=5)
            assert time.monotonic() - killed < 1
            error = refusal_of(raised.value)
            assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "ENGINE_RESTARTED")
            assert error.retry_after
            assert int(error.trailers["grpc-retry-pushback-ms"]) == round(error.retry_after * 1000)

            assert check(stubs, "model/encoder") == NOT_SERVING
            assert check(stubs, "model/decoder") == check(stubs) == SERVING
            assert state(stubs, "encoder") == ModelState.MODEL_STATE_RESTARTING
            error = refused(lambda: stubs.embedding.Embed(EMBED))
            assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "MODEL_UNAVAILABLE")
            assert error.retry_after
            assert stubs.generation.Generate(endless()).outputs

            wait_until(lambda: check(stubs, "model/encoder") == SERVING)
            assert state(stubs, "encoder") == ModelState.MODEL_STATE_READY
            assert stubs.embedding.Embed(EMBED).items[0].row == 0
            metrics = server.metrics()
            assert metrics['tercet_engine_restarts_total{model="encoder",reason="signal"}'] == 1
            assert metrics['tercet_engine_restarts_total{model="decoder",reason="signal"}'] == 0

    def test_counters_go_on(self, checkpoints: dict[str, Path], start, connect):
        with start({"encoder": checkpoints["encoder"]}) as server, connect(server) as stubs:
            name = 'tercet_kernel_launches_total{impl="cpu",model="encoder",op="attention"}'
            for _ in range(3):
                stubs.embedding.Embed(EMBED)
            assert server.metrics()[name] == 3
            kill_engine(server, "encoder")
            wait_until(lambda: check(stubs) == NOT_SERVING)  # it was the only one
            wait_until(lambda: check(stubs) == SERVING)
            stubs.embedding.Embed(EMBED)
            assert server.metrics()[name] == 4
            assert server.metrics()['tercet_prompt_tokens_total{model="encoder"}'] == 12

    def test_a_stream_says_how_many_tokens_it_sent(self, slow_decoder: Path, start, connect):
        with start({"decoder": slow_decoder}) as server, connect(server) as stubs:
            call = stubs.generation.GenerateStream(endless())
            sent = [token for _ in range(3) for token in next(call).token_ids]
            kill_engine(server, "decoder")
            with pytest.raises(grpc.RpcError) as raised:
                sent += [token for piece in call for token in piece.token_ids]
            error = refusal_of(raised.value)
            assert error.code is grpc.StatusCode.UNAVAILABLE
            assert int(error.metadata["tokens_sent"]) == len(sent)

    def test_an_engine_that_dies_three_times_stays_down(self, checkpoints: dict[str, Path], start, connect):
        models = {name: checkpoints[name] for name in ("encoder", "decoder")}
        with start(models) as server, connect(server) as stubs:
            for deaths in (1, 2, 3):
                kill_engine(server, "encoder")
                wait_until(lambda deaths=deaths: len(server.events("engine died")) == deaths)
                if deaths < 3:
                    wait_until(lambda: check(stubs, "model/encoder") == SERVING)
            wait_until(lambda: state(stubs, "encoder") == ModelState.MODEL_STATE_FAILED)
            assert check(stubs, "model/encoder") == NOT_SERVING
            error = refused(lambda: stubs.embedding.Embed(EMBED))
            assert error.code is grpc.StatusCode.UNAVAILABLE
            assert error.retry_after is None
            assert check(stubs) == SERVING
            assert stubs.generation.Generate(endless()).outputs
            assert server.metrics()['tercet_engine_restarts_total{model="encoder",reason="signal"}'] == 2
            assert server.stop() == 0

    def test_engines_die_with_a_server_that_is_killed(self, checkpoints: dict[str, Path], start):
        with start(checkpoints) as server:
            engines = [psutil.Process(server.engine_pid(name)) for name in checkpoints]
            server.process.kill()
            server.process.wait()
            _, alive = psutil.wait_procs(engines, timeout=5)
            assert not alive


class TestDrain:
    """SIGTERM."""

    def test_running_calls_finish_and_new_ones_are_turned_away(self, slow_decoder: Path, start, connect):
        with start({"decoder": slow_decoder}, "--lame-duck", "0.5") as server, connect(server) as stubs:
            health = HealthStub(stubs.channel).Watch(HealthCheckRequest())
            assert next(health).status == SERVING
            running = stubs.generation.Generate.future(endless())  # 31 tokens, about 1.6 s
            wait_until(lambda: server.metrics()['tercet_requests_running{model="decoder"}'] == 1)
            server.process.send_signal(signal.SIGTERM)
            assert next(health).status == NOT_SERVING
            assert state(stubs, "decoder") == ModelState.MODEL_STATE_DRAINING  # within the lame duck's time
            server.process.send_signal(signal.SIGTERM)  # a second one changes nothing
            wait_until(lambda: self.is_turned_away(stubs))
            assert len(running.result(timeout=10).outputs[0].token_ids) == 31
            assert server.process.wait(5) == 0
            assert all(line.startswith("{") for line in server.log.read_text().splitlines())  # no stray traceback

    def is_turned_away(self, stubs: Stubs) -> bool:
        call = stubs.models.Get.future(GetModelRequest(name="decoder"))
        error = call.exception()
        return error is not None and (error.code(), refusal_of(error).retry_after) == (grpc.StatusCode.UNAVAILABLE, 0.1)

    def test_calls_beyond_the_grace_are_cut_off(self, slow_decoder: Path, start, connect):
        with start({"decoder": slow_decoder}, "--grace", "0.3", "--max-length", "9999") as server:
            with connect(server) as stubs:
                call = stubs.generation.GenerateStream(endless())
                next(call)
                server.process.send_signal(signal.SIGTERM)
                with pytest.raises(grpc.RpcError) as raised:
                    list(call)
                error = refusal_of(raised.value)
                assert error.code is grpc.StatusCode.UNAVAILABLE
                assert "shut down" in error.message
                assert int(error.metadata["tokens_sent"]) > 0
            assert server.process.wait(10) == 0


class TestStart:
    """Starts that are refused, and what the last line of stderr says."""

    def refusal(self, start, models: dict[str, Path], *flags: str) -> tuple[int, str]:
        with pytest.raises(RuntimeError, match="exit code") as raised, start(models, *flags):
            pass
        head, *lines = str(raised.value).splitlines()
        assert not any("Traceback" in line for line in lines)
        plain = [line for line in lines if not line.startswith("{")]
        assert len(plain) == 1
        return int(head.split("exit code ")[1].split(")")[0]), plain[0]

    def test_a_checkpoint_that_the_engine_refuses(self, tmp_path: Path, checkpoints, make_checkpoint, start):
        bad = make_checkpoint(tmp_path / "bad", "bert", fail="model.safetensors: no tensor 'a.b'")
        code, line = self.refusal(start, {"good": checkpoints["encoder"], "bad": bad})
        assert (code, line) == (2, "tercet: bad: model.safetensors: no tensor 'a.b'")

    def test_a_checkpoint_without_a_tokenizer(self, tmp_path: Path, make_checkpoint, start):
        bad = make_checkpoint(tmp_path / "bad", "bert")
        (bad / "tokenizer.json").unlink()
        code, line = self.refusal(start, {"bad": bad})
        assert code == 2
        assert "has no tokenizer.json" in line

    def test_an_engine_that_never_gets_ready(self, tmp_path: Path, make_checkpoint, start):
        code, line = self.refusal(start, {"bad": make_checkpoint(tmp_path / "bad", "bert", crash=True)})
        assert code == 1
        assert "bad: the engine died 3 times: exit code 1" in line

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["a=/nowhere/at/all"], "models.a.source: /nowhere/at/all is not there"),
            (["a=nobody/nothing"], "models.a.source: nobody/nothing is no local path, and the hub can't be reached"),
            (["a=x.gguf"], "models.a.source: x.gguf is not there"),
            (["a=/etc/hostname"], "models.a.source: /etc/hostname is neither a folder nor a .gguf file"),
            (["a=/tmp", "--device", "tpu"], "device: 'tpu' is not auto, cpu, cuda or cuda:N"),
            (["a=/tmp", "--port", "65536"], "port: 65536 is above the most, 65535 (from --port)"),
            ([], "models: none given"),
        ],
    )
    def test_settings_that_cannot_be_used(self, tmp_path: Path, arguments: list[str], message: str):
        command = [*LAUNCHER, "serve", *arguments]
        done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path, timeout=60)
        assert done.returncode == 2
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1

    @pytest.mark.parametrize("flag", ["--port", "--metrics-port"])
    def test_a_port_in_use(self, checkpoints: dict[str, Path], start, flag: str):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
            code, line = self.refusal(start, {"encoder": checkpoints["encoder"]}, flag, port)
        assert code == 2
        assert f"can't listen on 127.0.0.1:{port}" in line

    def test_a_port_that_another_server_has(self, checkpoints: dict[str, Path], start):
        models = {"encoder": checkpoints["encoder"]}
        with start(models) as server:
            code, _ = self.refusal(start, models, "--port", server.address.split(":")[1])
        assert code == 2

    def test_models_that_do_not_fit_the_memory(self, tmp_path: Path, make_checkpoint, start):
        big = make_checkpoint(tmp_path / "big", "bert")
        with (big / "model.safetensors").open("wb") as file:
            file.truncate(1 << 42)  # sparse
        code, line = self.refusal(start, {"big": big})
        assert code == 2
        assert "cpu has" in line
        assert "big 4096.00 GiB" in line


def test_while_models_load_health_says_so_and_calls_are_told_to_come_again(
    tmp_path: Path, make_checkpoint, fake_launcher
):
    """The port answers before the models do."""
    gate = tmp_path / "gate"
    slow = make_checkpoint(tmp_path / "slow", "bert", gate=str(gate))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [*fake_launcher, "serve", f"slow={slow}", "--port", str(port), "--metrics-port", "0"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                grpc.channel_ready_future(channel).result(timeout=10)
                health = HealthStub(channel).Watch(HealthCheckRequest())
                assert next(health).status == NOT_SERVING
                embed = EmbeddingServiceStub(channel).Embed
                error = refused(lambda: embed(EmbedRequest(model="slow", inputs=[TextInput(text="w5")])))
                assert error.code is grpc.StatusCode.UNAVAILABLE
                assert error.retry_after
                gate.touch()
                assert next(health).status == SERVING
                assert embed(EmbedRequest(inputs=[TextInput(text="w5")])).items
        finally:
            process.terminate()
            assert process.wait(10) == 0
