"""The service over real engines with tiny checkpoints of each family."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest

from support.checkpoints import tiny_bert, tiny_llama, tiny_t5
from support.server import LAUNCHER, running_server, wait_until
from support.status import Refusal, refused
from tercet.client import Client, InvalidArgument
from tercet.v1.embedding_pb2 import EmbedRequest
from tercet.v1.generation_pb2 import GenerateRequest, SamplingParameters
from tercet.v1.types_pb2 import Strings, TextInput

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Stubs
    from support.server import RunningServer

TEXT = "the quick brown fox jumps over the lazy dog"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tiny")
    return {"bert": tiny_bert(root / "bert"), "llama": tiny_llama(root / "llama"), "t5": tiny_t5(root / "t5")}


@pytest.fixture(scope="module")
def server(folders: dict[str, Path]):
    with running_server(folders, "--lame-duck", "0") as running:
        yield running


def generate(model: str, **sampling: object) -> GenerateRequest:
    sampling = {"max_new_tokens": 24, "ignore_eos": True} | sampling
    return GenerateRequest(model=model, input=TextInput(text=TEXT), sampling=SamplingParameters(**sampling))


def vectors(stubs: Stubs, texts: list[str]) -> np.ndarray:
    response = stubs.embedding.Embed(EmbedRequest(model="bert", inputs=[TextInput(text=text) for text in texts]))
    return np.frombuffer(response.embeddings.data, "<f4").reshape(response.embeddings.shape)


def test_a_vector_does_not_depend_on_its_neighbours(stubs: Stubs):
    texts = [TEXT[: 5 * i] for i in range(9)]
    together = vectors(stubs, texts)
    assert together.shape == (9, 48)
    np.testing.assert_allclose(together, np.concatenate([vectors(stubs, [text]) for text in texts]), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)


def test_a_text_without_tokens_is_refused_alone(stubs: Stubs):
    inputs = [TextInput(text=""), TextInput(text=TEXT)]
    items = stubs.embedding.Embed(EmbedRequest(model="llama", inputs=inputs)).items
    assert [item.WhichOneof("outcome") for item in items] == ["error", "row"]
    assert Refusal(items[0].error).field == "inputs[0]"


@pytest.mark.parametrize("model", ["llama", "t5"])
def test_streamed_or_not_the_answer_is_the_same(stubs: Stubs, model: str):
    request = generate(model, temperature=1.5, top_k=50, seed=3, n=3)
    whole = stubs.generation.Generate(request)
    text, ids = dict.fromkeys(range(3), ""), {i: [] for i in range(3)}
    for piece in stubs.generation.GenerateStream(request):
        text[piece.index] += piece.text
        ids[piece.index] += piece.token_ids
    assert [(output.text, list(output.token_ids)) for output in whole.outputs] == [(text[i], ids[i]) for i in range(3)]
    assert len({output.text for output in whole.outputs}) == 3
    assert whole.usage.generated_tokens == 72


def test_a_stop_string_cuts_the_text_and_frees_the_pages(server: RunningServer, stubs: Stubs):
    [free] = stubs.generation.Generate(generate("llama", temperature=0, max_new_tokens=60)).outputs
    stop = free.text[20:24]
    [output] = stubs.generation.Generate(
        generate("llama", temperature=0, max_new_tokens=60, stop=Strings(values=[stop]))
    ).outputs
    assert output.text == free.text[: free.text.index(stop)]
    assert list(output.token_ids) == list(free.token_ids)[: len(output.token_ids)]
    wait_until(lambda: server.metrics()['tercet_kv_cache_blocks{model="llama",state="used"}'] == 0)


def test_a_client_that_goes_away_frees_its_pages(server: RunningServer, stubs: Stubs):
    used = 'tercet_kv_cache_blocks{model="llama",state="used"}'
    calls = [stubs.generation.GenerateStream(generate("llama", max_new_tokens=240, n=4)) for _ in range(3)]
    for call in calls:
        next(call)
    assert server.metrics()[used] > 0
    for call in calls:
        call.cancel()
    wait_until(lambda: server.metrics()[used] == 0, timeout=2)


def test_a_decoder_reads_whole_what_fits_a_batch_and_generates_after_more(folders: dict[str, Path]):
    with (
        running_server({"llama": folders["llama"]}, "--max-batch-tokens", "16", "--lame-duck", "0") as small,
        Client(small.address) as client,
    ):
        with pytest.raises(InvalidArgument, match="the limit is 16"):
            client.embed(TEXT * 2)
        assert client.embed(TEXT * 2, truncate=True).shape == (48,)
        long = client.generate(TEXT * 2, max_new_tokens=3, ignore_eos=True)
        assert (long.usage.prompt_tokens > 16, long.usage.generated_tokens, long.truncated) == (True, 3, False)


def test_an_engine_that_is_killed_comes_back_and_answers_as_before(server: RunningServer, stubs: Stubs):
    request = generate("t5", temperature=1.0, seed=5)
    before = stubs.generation.Generate(request).outputs[0].text
    endless = stubs.generation.GenerateStream(generate("t5", max_new_tokens=500, n=16))
    next(endless)
    killed = time.monotonic()
    os.kill(server.engine_pid("t5"), signal.SIGKILL)
    assert refused(lambda: list(endless)).code is grpc.StatusCode.UNAVAILABLE
    assert time.monotonic() - killed < 1
    assert vectors(stubs, [TEXT]).shape == (1, 48)

    def back() -> bool:
        return stubs.generation.Generate.future(request).exception() is None

    wait_until(back, timeout=60)
    assert stubs.generation.Generate(request).outputs[0].text == before


def truncate(folder: Path) -> str:
    file = folder / "model.safetensors"
    os.truncate(file, file.stat().st_size // 2)
    return "model.safetensors"


def forget_an_architecture(folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "perceiver"}))
    return "perceiver"


def absurd_number(folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 10**9}))
    return "num_hidden_layers"


def absurd_end(folder: Path) -> str:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 10**9}))
    return "generation_config.json: eos_token_id"


@pytest.mark.parametrize("damage", [truncate, forget_an_architecture, absurd_number, absurd_end])
def test_a_damaged_checkpoint_is_one_line_and_exit_code_2(tmp_path: Path, damage):
    named = damage(tiny_bert(tmp_path / "bert"))
    command = [*LAUNCHER, "serve", f"bad={tmp_path / 'bert'}", "--port", "0", "--metrics-port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    [line] = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert line.startswith("tercet: ")
    assert named in line
