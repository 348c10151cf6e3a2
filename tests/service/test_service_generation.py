"""GenerationService over gRPC, with an engine that counts: after token 5 come 6, 7, 8, …; 40 is end of sequence."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import grpc
import pytest

from support.server import wait_until
from support.status import refused
from tercet.v1.generation_pb2 import (
    Chat,
    ChatMessage,
    FinishReason,
    GenerateRequest,
    GenerateStreamResponse,
    SamplingParameters,
)
from tercet.v1.types_pb2 import Strings, TextInput, TokenIds

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Stubs
    from support.server import RunningServer

EOS, STOP, LENGTH = (FinishReason.Value(f"FINISH_REASON_{name}") for name in ("EOS", "STOP", "LENGTH"))
HELD_ID, POISON_ID, INVALID_ID = 52, 50, 51


def generate(*ids: int, model: str = "decoder", truncate: bool | None = None, **sampling: object) -> GenerateRequest:
    """A request with token ids as the prompt."""
    return GenerateRequest(
        model=model,
        input=TextInput(token_ids=TokenIds(values=ids)),
        sampling=SamplingParameters(**sampling),
        truncate=truncate,
    )


def joined(pieces: list[GenerateStreamResponse]) -> dict[int, tuple[str, list[int], int]]:
    """The text, tokens and finish reason of each output of a stream."""
    outputs: dict[int, tuple[str, list[int], int]] = {}
    for piece in pieces:
        text, ids, reason = outputs.get(piece.index, ("", [], 0))
        assert not reason, "a piece after the last one"
        outputs[piece.index] = (text + piece.text, ids + list(piece.token_ids), piece.finish_reason)
    return outputs


def test_tokens_text_and_usage(stubs: Stubs):
    response = stubs.generation.Generate(generate(5, 6, max_new_tokens=3))
    [output] = response.outputs
    assert (list(output.token_ids), output.text, output.finish_reason) == ([7, 8, 9], "w7 w8 w9", LENGTH)
    assert (response.usage.prompt_tokens, response.usage.generated_tokens) == (2, 3)
    assert (response.model, response.truncated) == ("decoder", False)


def test_what_was_in_the_cache_is_told(stubs: Stubs):
    request = generate(21, 22, 23, max_new_tokens=1)
    request.cache_salt = "ours"
    assert [stubs.generation.Generate(request).usage.cached_tokens for _ in range(2)] == [0, 2]
    assert list(stubs.generation.GenerateStream(request))[-1].usage.cached_tokens == 2
    request.cache_salt = "é" * 256
    assert stubs.generation.Generate(request).usage.cached_tokens == 0
    request.cache_salt += "é"
    for method in (stubs.generation.Generate, lambda one: list(stubs.generation.GenerateStream(one))):
        refusal = refused(lambda method=method: method(request))
        assert (refusal.code, refusal.field) == (grpc.StatusCode.INVALID_ARGUMENT, "cache_salt")
        assert "257 characters, the limit is 256" in refusal.message


def test_text_is_tokenized(stubs: Stubs):
    request = GenerateRequest(
        model="decoder", input=TextInput(text="w5 w6"), sampling=SamplingParameters(max_new_tokens=1)
    )
    assert stubs.generation.Generate(request).outputs[0].token_ids == [7]


def test_end_of_sequence_ends_and_can_be_ignored(stubs: Stubs):
    [output] = stubs.generation.Generate(generate(37)).outputs
    assert (list(output.token_ids), output.finish_reason) == ([38, 39, 40], EOS)
    [output] = stubs.generation.Generate(generate(37, ignore_eos=True, max_new_tokens=4)).outputs
    assert (list(output.token_ids), output.finish_reason) == ([38, 39, 40, 41], LENGTH)


def test_unset_max_new_tokens_is_the_room_left(stubs: Stubs):
    response = stubs.generation.Generate(generate(5, 6, ignore_eos=True))
    assert len(response.outputs[0].token_ids) == 30
    more = stubs.generation.Generate(generate(5, 6, ignore_eos=True, max_new_tokens=1000))
    assert (len(more.outputs[0].token_ids), more.outputs[0].finish_reason) == (30, LENGTH)
    seq2seq = stubs.generation.Generate(generate(5, 6, model="seq2seq", ignore_eos=True))
    assert len(seq2seq.outputs[0].token_ids) == 31  # the decoder's start token takes one


def test_stop_tokens_end_and_count(stubs: Stubs):
    [output] = stubs.generation.Generate(generate(5, stop_token_ids=TokenIds(values=[8]))).outputs
    assert (list(output.token_ids), output.finish_reason) == ([6, 7, 8], STOP)


@pytest.mark.parametrize(
    ("stop", "text", "tokens"),
    [
        (["w8"], "w6 w7 ", 3),
        (["7 w8"], "w6 w", 3),  # across tokens
        (["w9", "w7"], "w6 ", 2),
        (["w6"], "", 1),
        (["w99", "w10 w12"], "w6 w7 w8 w9 w10 w11", 6),  # held back and then not a match
    ],
)
def test_stop_strings_end_the_text_before_them(stubs: Stubs, stop: list[str], text: str, tokens: int):
    request = generate(5, stop=Strings(values=stop), max_new_tokens=6)
    [output] = stubs.generation.Generate(request).outputs
    assert (output.text, len(output.token_ids)) == (text, tokens)
    assert output.finish_reason == (LENGTH if tokens == 6 else STOP)
    assert joined(list(stubs.generation.GenerateStream(request))) == {
        0: (output.text, list(output.token_ids), output.finish_reason)
    }


def test_n_outputs_end_each_for_itself(stubs: Stubs):
    request = generate(30, n=3, max_new_tokens=9)  # sample i begins with 31 + i
    response = stubs.generation.Generate(request)
    assert [list(o.token_ids) for o in response.outputs] == [[*range(31 + i, min(40 + i, 41))] for i in range(3)]
    assert [o.finish_reason for o in response.outputs] == [LENGTH, EOS, EOS]
    assert [o.index for o in response.outputs] == [0, 1, 2]
    streamed = joined(list(stubs.generation.GenerateStream(request)))
    assert streamed == {o.index: (o.text, list(o.token_ids), o.finish_reason) for o in response.outputs}


def test_a_stream_ends_with_usage_and_every_piece_has_the_seed(stubs: Stubs):
    pieces = list(stubs.generation.GenerateStream(generate(5, max_new_tokens=5, seed=2**64 - 1, n=2)))
    assert [piece.HasField("usage") for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert (pieces[-1].usage.prompt_tokens, pieces[-1].usage.generated_tokens) == (1, 10)
    assert {piece.seed for piece in pieces} == {2**64 - 1}


def test_an_unset_seed_is_chosen_and_reported(stubs: Stubs):
    seeds = {stubs.generation.Generate(generate(5, max_new_tokens=1)).seed for _ in range(4)}
    assert len(seeds) == 4


def test_skip_special_tokens(stubs: Stubs):
    for skip, text in ((True, "w4"), (False, "[UNK] [CLS] [SEP] w4")):
        [output] = stubs.generation.Generate(generate(0, max_new_tokens=4, skip_special_tokens=skip)).outputs
        assert output.text == text
        assert len(output.token_ids) == 4


def test_chat_renders_the_template(stubs: Stubs):
    messages = [ChatMessage(role="user", content="w5 w6"), ChatMessage(role="assistant", content="w20")]
    request = GenerateRequest(chat=Chat(messages=messages), sampling=SamplingParameters(max_new_tokens=1))
    response = stubs.generation.Generate(request)  # the one model with a template needs no name
    assert (response.model, response.usage.prompt_tokens, response.outputs[0].token_ids) == ("decoder", 3, [21])


@pytest.mark.parametrize(
    ("request_", "field", "message"),
    [
        (generate(*[5] * 32), "input.token_ids", "has 32 tokens, the limit is 31"),
        (GenerateRequest(model="decoder", input=TextInput(text="w5 " * 40)), "input.text", "has 40 tokens"),
        (generate(*[5] * 33, model="seq2seq"), "input.token_ids", "has 33 tokens, the limit is 32"),
        (
            GenerateRequest(model="decoder", chat=Chat(messages=[ChatMessage(role="u", content="w5 " * 32)])),
            "chat",
            "32",
        ),
    ],
)
def test_too_long_is_refused_with_field_limit_and_actual(
    stubs: Stubs, request_: GenerateRequest, field: str, message: str
):
    error = refused(lambda: stubs.generation.Generate(request_))
    assert (error.code, error.field) == (grpc.StatusCode.INVALID_ARGUMENT, field)
    assert message in error.message


def test_truncate_cuts_a_decoders_start_and_a_sources_end(stubs: Stubs):
    ids = [*range(4, 44)]
    response = stubs.generation.Generate(generate(*ids, truncate=True, max_new_tokens=5, ignore_eos=True))
    assert (response.usage.prompt_tokens, response.truncated) == (27, True)  # five fit behind it
    assert list(response.outputs[0].token_ids) == [44, 45, 46, 47, 48]
    response = stubs.generation.Generate(generate(*ids, model="seq2seq", truncate=True, max_new_tokens=1))
    assert (response.usage.prompt_tokens, response.truncated) == (32, True)
    assert list(response.outputs[0].token_ids) == [36]
    pieces = list(stubs.generation.GenerateStream(generate(*ids, truncate=True, max_new_tokens=5)))
    assert all(piece.truncated for piece in pieces)
    assert not stubs.generation.Generate(generate(5, truncate=True, max_new_tokens=1)).truncated


def test_an_engines_refusal_ends_the_call(stubs: Stubs):
    codes = {POISON_ID: grpc.StatusCode.INTERNAL, INVALID_ID: grpc.StatusCode.INVALID_ARGUMENT}
    for id, code in codes.items():
        assert refused(lambda id=id: stubs.generation.Generate(generate(id))).code is code
        assert refused(lambda id=id: list(stubs.generation.GenerateStream(generate(id)))).code is code


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory, start, make_checkpoint):
    """A server whose engine takes 20 ms a step."""
    checkpoint = make_checkpoint(tmp_path_factory.mktemp("slow") / "decoder", "gpt2", step=0.02)
    with start({"slow": checkpoint}, "--max-length", "100000") as server:
        yield server


class TestLeaving:
    """Clients that go away, and what their requests held."""

    def used(self, server: RunningServer) -> float:
        """Pages that the engine says it holds."""
        return server.metrics()['tercet_kv_cache_blocks{model="slow",state="used"}']

    def test_a_client_that_goes_away_frees_its_pages(self, slow: RunningServer, connect):
        with connect(slow) as stubs:
            call = stubs.generation.GenerateStream(generate(5, model="slow", ignore_eos=True, n=3))
            next(call)
            wait_until(lambda: self.used(slow) == 3)
            call.cancel()
            wait_until(lambda: self.used(slow) == 0, timeout=1)
        name = 'tercet_requests_cancelled_total{model="slow",stage="decode"}'
        wait_until(lambda: slow.metrics().get(name) == 1)

    def test_a_stop_string_frees_its_outputs_pages(self, slow: RunningServer, connect):
        request = generate(5, model="slow", ignore_eos=True, n=2, stop=Strings(values=["w8"]), max_new_tokens=100_000)
        with connect(slow) as stubs:
            assert len(joined(list(stubs.generation.GenerateStream(request)))) == 2
        wait_until(lambda: self.used(slow) == 0, timeout=1)

    def test_a_deadline_frees_its_pages(self, slow: RunningServer, connect):
        with connect(slow) as stubs:
            error = refused(lambda: stubs.generation.Generate(generate(5, model="slow", ignore_eos=True), timeout=0.3))
            assert error.code is grpc.StatusCode.DEADLINE_EXCEEDED
            wait_until(lambda: self.used(slow) == 0, timeout=1)
            code = 'tercet_requests_total{code="DEADLINE_EXCEEDED",method="Generate",model="slow"}'
            wait_until(lambda: slow.metrics().get(code) == 1)

    def test_tokens_come_one_by_one_to_a_reader_that_keeps_up(self, slow: RunningServer, connect):
        with connect(slow) as stubs:
            pieces = list(stubs.generation.GenerateStream(generate(5, model="slow", max_new_tokens=5)))
        assert [list(piece.token_ids) for piece in pieces] == [[6], [7], [8], [9], [10]]


def test_the_checkpoints_min_length_counts_the_prompt(tmp_path: Path, start, make_checkpoint, connect):
    checkpoint = make_checkpoint(tmp_path / "decoder", "gpt2")
    (checkpoint / "generation_config.json").write_text(json.dumps({"min_length": 6}))
    with start({"decoder": checkpoint}) as server, connect(server) as stubs:
        for prompt, wanted in (((30, 39), 4), ((7, 8, 9, 10, 11, 39), 1)):
            request = generate(*prompt, max_new_tokens=4)
            assert len(stubs.generation.Generate(request).outputs[0].token_ids) == wanted


def test_tokens_behind_a_slow_reader_come_together(checkpoints: dict[str, Path], start, connect):
    """The reader stops for a while; what the transport can't hold is merged, and nothing is lost or doubled."""
    small_windows = (("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0))
    count = 10_000
    model = {"decoder": checkpoints["decoder"]}
    with start(model, "--max-length", "100000") as server, connect(server, *small_windows) as stubs:
        call = stubs.generation.GenerateStream(generate(5, ignore_eos=True, max_new_tokens=count))
        first = next(call)
        generated = 'tercet_generated_tokens_total{model="decoder"}'
        wait_until(lambda: server.metrics().get(generated) == count)  # the engine does not wait for the reader
        time.sleep(0.2)
        pieces = [first, *call]
    [(text, ids, reason)] = joined(pieces).values()
    assert ids == [(6 + i) % 60 for i in range(count)]
    assert text == " ".join(f"w{id}" for id in ids if id > 3)
    assert reason == LENGTH
    assert max(len(piece.token_ids) for piece in pieces) > count / 4
