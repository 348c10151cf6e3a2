"""The SDK and the command line against a real server with tiny checkpoints of each family."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from support.checkpoints import VOCAB_SIZE, tiny_bert, tiny_llama, tiny_t5
from support.server import running_server, wait_until
from tercet.client import (
    AsyncClient,
    Client,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)

TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
LONG = "the quick brown fox " * 100  # over every tiny model's limit
GREEDY = {"temperature": 0, "max_new_tokens": 12, "ignore_eos": True}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    models = {"bert": tiny_bert(root / "bert"), "llama": tiny_llama(root / "llama"), "t5": tiny_t5(root / "t5")}
    settings = models["llama"] / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"chat_template": TEMPLATE}))
    with running_server(models) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with Client(server.address) as client:
        client.wait_ready()
        yield client


def test_models(client):
    bert, llama, t5 = client.models()
    assert [model.name for model in (bert, llama, t5)] == ["bert", "llama", "t5"]
    assert [model.family for model in (bert, llama, t5)] == ["encoder", "decoder", "seq2seq"]
    assert [model.state for model in (bert, llama, t5)] == ["ready"] * 3
    assert bert.tasks == ["embed"]
    assert llama.tasks == ["embed", "generate", "chat", "score"]
    assert t5.tasks == ["embed", "generate", "score"]
    assert (bert.embedding_size, bert.max_length, bert.vocab_size) == (48, 96, VOCAB_SIZE)


def test_health(client):
    assert client.health() == "SERVING"
    assert client.health("t5") == "SERVING"
    with pytest.raises(NotFound, match="nobody"):
        client.health("nobody")


def test_embeddings_of_text_ids_and_long_lists_agree(client):
    texts = [f"river {i} sang to the stones" + " at night" * (i % 7) for i in range(600)]
    many = client.embed(texts, model="bert")
    assert many.shape == (600, 48)
    assert many.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(many, axis=1), 1, atol=1e-5)
    for index in (0, 255, 256, 599):
        np.testing.assert_allclose(client.embed(texts[index], model="bert"), many[index], atol=1e-5)
    ids = client.tokenize(texts[5], model="bert").token_ids
    np.testing.assert_allclose(client.embed(ids, model="bert"), many[5], atol=1e-5)


def test_refused_items_of_a_long_list(client):
    texts = ["night"] * 300 + [LONG] + ["stones"]
    with pytest.raises(InvalidArgument, match=r"inputs\[300\]\.text.*limit is 96") as caught:
        client.embed(texts, model="bert")
    assert (caught.value.index, caught.value.field) == (300, "inputs[300].text")
    results = client.embed(texts, model="bert", errors="return")
    assert [index for index, result in enumerate(results) if isinstance(result, InvalidArgument)] == [300]
    assert client.embed(texts, model="bert", truncate=True).shape == (302, 48)


def test_generation_and_its_stream_agree(client):
    for model in ("llama", "t5"):
        whole = client.generate("once upon a time", model=model, **GREEDY)
        pieces = list(client.stream("once upon a time", model=model, **GREEDY))
        assert [token for piece in pieces for token in piece.token_ids] == whole.token_ids
        assert "".join(piece.text for piece in pieces) == whole.text
        assert pieces[-1].finish_reason == whole.finish_reason == "length"
        assert pieces[-1].usage is not None
        assert pieces[-1].usage.prompt_tokens == whole.usage.prompt_tokens
        assert pieces[-1].usage.generated_tokens == whole.usage.generated_tokens == 12


def test_many_generations_are_those_that_calls_of_their_own_bring(client, server):
    asked = {
        (model, words): {"prompt": "night " * words, "model": model, "seed": words, "n": 1 + words % 2}
        for model in ("llama", "t5")
        for words in range(1, 20)
    }
    sampled = GREEDY | {"temperature": 0.9}
    results = dict(client.generate_many(asked, **sampled))
    assert results.keys() == asked.keys()
    for key, own in list(asked.items())[::5]:
        alone = client.generate(**own, **sampled)
        assert results[key].outputs == alone.outputs
        assert results[key].usage.generated_tokens == alone.usage.generated_tokens

    async def stream():
        texts = dict.fromkeys(asked, "")
        async with AsyncClient(server.address) as other:
            async for key, piece in other.stream_many(asked, concurrency=7, **sampled):
                texts[key] += piece.text * (piece.index == 0)
        return texts

    assert asyncio.run(stream()) == {key: result.text for key, result in results.items()}


def test_a_prompt_is_found_again_by_its_tenant_alone(client):
    for model, ids in (("llama", [7] * 40), ("t5", [9] * 40)):
        found = [
            client.generate(ids, model=model, cache_salt=salt, **GREEDY)
            for salt in (f"{model} a", f"{model} a", f"{model} b")
        ]
        assert len({tuple(one.token_ids) for one in found}) == 1
        whole = 40 if model == "t5" else 32  # full pages of 16
        assert [one.usage.cached_tokens for one in found] == [0, whole, 0]
        pieces = list(client.stream(ids, model=model, cache_salt=f"{model} a", **GREEDY))
        assert pieces[-1].usage.cached_tokens == whole
    with pytest.raises(InvalidArgument) as caught:
        client.generate("a", model="llama", cache_salt="é" * 257)
    assert caught.value.field == "cache_salt"


def test_chat_is_the_rendered_prompt(client):
    messages = [{"role": "system", "content": "sing"}, {"role": "user", "content": "café?"}]
    rendered = client.tokenize("system: sing\nuser: café?\n", model="llama", add_special_tokens=False)
    expected = client.generate(rendered.token_ids, model="llama", **GREEDY)
    assert client.chat(messages, **GREEDY).token_ids == expected.token_ids
    pieces = list(client.stream(messages, model="llama", **GREEDY))
    assert [token for piece in pieces for token in piece.token_ids] == expected.token_ids


def test_draws_repeat_by_seed(client):
    options = {"model": "llama", "max_new_tokens": 12, "temperature": 2.0, "n": 3}
    first = client.generate("night", seed=7, **options)
    assert [output.index for output in first.outputs] == [0, 1, 2]
    assert client.generate("night", seed=7, **options).outputs == first.outputs
    drawn = client.generate("night", **options)
    assert client.generate("night", seed=drawn.seed, **options).outputs == drawn.outputs


@pytest.mark.parametrize("text", ["", "naïve Zürich 🤖 नमस्ते", "a\nb\r\n \x00"])
def test_tokens_go_round(client, text):
    tokenized = client.tokenize(text, model="llama")
    assert len(tokenized.tokens) == len(tokenized.offsets) == len(tokenized.token_ids)
    assert client.detokenize(tokenized.token_ids, model="llama") == text


@pytest.mark.parametrize(
    ("ask", "error", "field", "words"),
    [
        (lambda c: c.embed("a", model="nobody"), NotFound, "model", ("bert", "llama", "t5")),
        (lambda c: c.classify("a", model="t5"), FailedPrecondition, None, ("embed", "generate")),
        (lambda c: c.generate("a", model="bert"), FailedPrecondition, None, ("embed",)),
        (lambda c: c.generate("a"), InvalidArgument, "model", ("llama", "t5")),
        (lambda c: c.generate("a", model="t5", top_p=0), InvalidArgument, "sampling.top_p", ()),
        (lambda c: c.generate("a", model="t5", max_new_tokens=0), InvalidArgument, "sampling.max_new_tokens", ()),
        (lambda c: c.generate("a", model="t5", stop=[""]), InvalidArgument, "sampling.stop.values[0]", ()),
        (lambda c: c.generate([VOCAB_SIZE], model="llama"), InvalidArgument, "input.token_ids.packed[0]", ("331",)),
        (lambda c: c.generate(LONG, model="llama"), InvalidArgument, "input.text", ("255",)),
        (lambda c: list(c.stream(LONG, model="llama")), InvalidArgument, "input.text", ("255",)),
        (lambda c: c.chat([]), InvalidArgument, "chat.messages", ()),
        (lambda c: c.detokenize([VOCAB_SIZE], model="bert"), InvalidArgument, "sequences[0].packed[0]", ("331",)),
    ],
)
def test_errors_name_the_field(client, ask, error, field, words):
    with pytest.raises(error) as caught:
        ask(client)
    if field is not None:
        assert caught.value.field == field
    for word in words:
        assert word in str(caught.value)
    if caught.value.index is None and not str(field).startswith("sequences"):
        assert caught.value.request_id
    assert client.health() == "SERVING"


def wait_for_free_pages(server):
    wait_until(lambda: server.metrics()['tercet_kv_cache_blocks{model="llama",state="used"}'] == 0)


def test_leaving_a_stream_frees_its_pages(server, client):
    options = {"model": "llama", "max_new_tokens": 250, "ignore_eos": True}
    for piece in client.stream("night", **options):
        assert piece.token_ids
        break
    wait_for_free_pages(server)

    async def leave():
        async with AsyncClient(server.address) as another:
            async for _ in another.stream("night", **options):
                break
            await asyncio.to_thread(wait_for_free_pages, server)

    asyncio.run(leave())


def test_timeouts_end_generations(server, client):
    with pytest.raises(DeadlineExceeded):
        client.generate("night", model="llama", max_new_tokens=250, n=64, ignore_eos=True, timeout=0.05)
    wait_for_free_pages(server)


async def test_many_requests_of_every_kind_at_once(server, client):
    alone = client.generate("once", model="t5", **GREEDY)
    async with AsyncClient(server.address) as everyone:
        generations = [everyone.generate("once", model="t5", **GREEDY) for _ in range(20)]
        others = [everyone.embed(["night", "stones"], model="bert") for _ in range(5)]
        *answers, vectors = await asyncio.gather(*generations, *others[:-1], others[-1])
    assert {tuple(answer.token_ids) for answer in answers[:20]} == {tuple(alone.token_ids)}
    assert vectors.shape == (2, 48)


def command(server, *arguments, stdin=None):
    return subprocess.run(
        [sys.executable, "-m", "tercet.client.cli", *arguments],
        input=stdin,
        capture_output=True,
        timeout=60,
        check=False,
        env={**os.environ, "TERCET_TARGET": server.address},
    )


def test_command_line(server, client):
    assert command(server, "health", "bert").returncode == 0
    assert command(server, "health", "nobody").returncode == 1
    generated = command(server, "generate", "once", "--model", "t5", "--max-new-tokens", "9", "--temperature", "0")
    expected = client.generate("once", model="t5", max_new_tokens=9, temperature=0)
    assert generated.stdout.decode() == expected.text + "\n"
    embedded = (
        command(server, "embed", "--model", "bert", "--json", stdin=b"night\nstones\n").stdout.decode().splitlines()
    )
    vectors = [json.loads(line)["embedding"] for line in embedded]
    np.testing.assert_allclose(vectors, client.embed(["night", "stones"], model="bert"), atol=1e-6)
    refused = command(server, "generate", LONG, "--model", "llama")
    assert refused.returncode == 2
    assert refused.stderr.startswith(b"tercet: input.text")


def test_a_long_job_outlives_the_engine(server, client):
    texts = [f"night {i} " + "stones and river " * 9 for i in range(6000)]
    expected = client.embed(texts[:1], model="bert")

    def batches():
        return server.metrics()['tercet_batch_size_count{model="bert"}']

    def kill_at_work(before):
        wait_until(lambda: batches() > before)
        os.kill(server.engine_pid("bert"), signal.SIGKILL)

    crash = threading.Thread(target=kill_at_work, args=[batches()])
    crash.start()
    vectors = client.embed(texts, model="bert", timeout=120)
    crash.join()
    assert len(server.events("engine died")) == 1
    assert vectors.shape == (6000, 48)
    np.testing.assert_allclose(vectors[:1], expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
