"""GenerationService's ways of decoding, over gRPC with an engine that counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
import pytest

from support.status import refused
from tercet.v1.generation_pb2 import (
    Chat,
    ChatMessage,
    EarlyStopping,
    GenerateRequest,
    GenerateStreamResponse,
    SamplingParameters,
)
from tercet.v1.types_pb2 import Strings, TextInput, TokenIds

if TYPE_CHECKING:
    from conftest import Stubs

nan, inf = float("nan"), float("inf")


def generate(*ids: int, model: str = "decoder", **sampling: object) -> GenerateRequest:
    """A request with token ids as the prompt."""
    tokens = TextInput(token_ids=TokenIds(values=ids))
    return GenerateRequest(model=model, input=tokens, sampling=SamplingParameters(**sampling))


def shouted(task: str | None = "shout", **sampling: object) -> GenerateRequest:
    return GenerateRequest(
        model="seq2seq", input=TextInput(text="w5"), task=task, sampling=SamplingParameters(**sampling)
    )


class TestLogprobs:
    """How likely tokens were."""

    def test_one_a_token_and_the_likeliest_beside_it(self, able: Stubs):
        [output] = able.generation.Generate(generate(5, max_new_tokens=3, logprobs=True, top_logprobs=2)).outputs
        assert [token.logprob for token in output.logprobs] == pytest.approx([-0.6, -0.7, -0.8])
        assert [[top.token_id for top in token.top] for token in output.logprobs] == [[0, 1]] * 3
        [output] = able.generation.Generate(generate(5, max_new_tokens=3)).outputs
        assert not output.logprobs

    def test_a_stop_string_leaves_one_for_each_token_that_is_kept(self, able: Stubs):
        request = generate(5, max_new_tokens=9, logprobs=True, stop=Strings(values=["w8"]))
        for pieces in (able.generation.Generate(request).outputs, list(able.generation.GenerateStream(request))):
            assert sum(len(piece.logprobs) for piece in pieces) == sum(len(piece.token_ids) for piece in pieces) == 3

    def test_echo(self, able: Stubs):
        request = generate(5, 6, 7, max_new_tokens=2, echo=True, logprobs=True, top_logprobs=1, n=2)
        response = able.generation.Generate(request)
        assert [output.text for output in response.outputs] == ["w5 w6 w7 w8 w9", "w5 w6 w7 w9 w10"]
        assert [list(output.token_ids) for output in response.outputs] == [[8, 9], [9, 10]]
        assert list(response.prompt_token_ids) == [5, 6, 7]
        assert [token.logprob for token in response.prompt_logprobs] == pytest.approx([-0.6, -0.7])
        assert [len(token.top) for token in response.prompt_logprobs] == [1, 1]
        assert response.usage.prompt_tokens == 3
        pieces: list[GenerateStreamResponse] = list(able.generation.GenerateStream(request))
        assert [list(piece.prompt_token_ids) for piece in pieces] == [[5, 6, 7]] + [[]] * (len(pieces) - 1)
        assert [len(piece.prompt_logprobs) for piece in pieces] == [2] + [0] * (len(pieces) - 1)
        assert "".join(piece.text for piece in pieces if piece.index == 1) == "w5 w6 w7 w9 w10"

    def test_stop_strings_are_not_looked_for_in_the_echo(self, able: Stubs):
        request = generate(5, 6, max_new_tokens=2, echo=True, stop=Strings(values=["w5", "w8"]))
        response = able.generation.Generate(request)
        assert response.outputs[0].text == "w5 w6 w7 "
        assert not response.prompt_logprobs
        assert list(able.generation.Generate(generate(5, max_new_tokens=1, echo=True)).prompt_token_ids) == [5]


class TestBeams:
    """Beam search: the fake answers with each beam whole at its end."""

    def test_the_best_n_with_their_scores(self, able: Stubs):
        response = able.generation.Generate(generate(5, num_beams=4, n=2, max_new_tokens=3))
        assert [(output.index, list(output.token_ids), output.score) for output in response.outputs] == [
            (0, [6, 7, 8], 0.0),
            (1, [7, 8, 9], -0.5),
        ]
        assert response.outputs[0].text == "w6 w7 w8"

    def test_a_stream_brings_them_at_the_end(self, able: Stubs):
        pieces = list(able.generation.GenerateStream(generate(5, num_beams=2, n=2, max_new_tokens=3)))
        assert [list(piece.token_ids) for piece in pieces] == [[6, 7, 8], [7, 8, 9]]
        assert [piece.score for piece in pieces] == [0.0, -0.5]
        assert not next(iter(able.generation.GenerateStream(generate(5, max_new_tokens=1)))).HasField("score")


class TestTasks:
    """A checkpoint's own tasks: "shout" puts "w9 w8 " before the text, and has two beams of four tokens in all."""

    def test_prefix_and_values(self, able: Stubs):
        response = able.generation.Generate(shouted())
        assert response.usage.prompt_tokens == 3
        assert [len(output.token_ids) for output in response.outputs] == [3]  # and the start token
        assert response.outputs[0].HasField("score")
        assert able.generation.Generate(shouted(None, max_new_tokens=1)).usage.prompt_tokens == 1

    def test_the_request_comes_first(self, able: Stubs):
        [output] = able.generation.Generate(shouted(num_beams=1, max_new_tokens=7)).outputs
        assert len(output.token_ids) == 7
        assert not output.HasField("score")

    @pytest.mark.parametrize(
        ("request_", "field"),
        [
            (shouted("whisper"), "task"),
            (GenerateRequest(model="seq2seq", input=TextInput(token_ids=TokenIds(values=[5])), task="shout"), "task"),
            (GenerateRequest(model="decoder", input=TextInput(text="w5"), task="shout"), "task"),
            (GenerateRequest(model="seq2seq", input=TextInput(text="w5"), source_lang="en"), "source_lang"),
            (GenerateRequest(model="seq2seq", input=TextInput(text="w5"), target_lang="en"), "target_lang"),
            (shouted(stop=Strings(values=["w5"])), "sampling.stop"),
            (shouted(n=3), "sampling.n"),
        ],
    )
    def test_what_does_not_go_together(self, able: Stubs, request_: GenerateRequest, field: str):
        error = refused(lambda: able.generation.Generate(request_))
        assert (error.code, error.field) == (grpc.StatusCode.INVALID_ARGUMENT, field)


def test_a_forced_first_token(able: Stubs):
    [output] = able.generation.Generate(generate(5, max_new_tokens=3, forced_bos_token_id=20)).outputs
    assert list(output.token_ids) == [20, 21, 22]


@pytest.mark.parametrize(
    ("values", "field"),
    [
        *(({"typical_p": v}, "typical_p") for v in (0.0, 1.1, nan)),
        *(({name: v}, name) for name in ("presence_penalty", "frequency_penalty") for v in (-2.1, 2.1, nan, inf)),
        ({"logit_bias": {5: nan}}, "logit_bias[5]"),
        ({"logit_bias": {5: 100.5}}, "logit_bias[5]"),
        ({"logit_bias": {60: 1.0}}, "logit_bias[60]"),
        ({"logit_bias": dict.fromkeys(range(1025), 1.0)}, "logit_bias"),
        *(({"num_beams": v}, "num_beams") for v in (0, 33)),
        *(({"length_penalty": v}, "length_penalty") for v in (-5.1, nan, inf)),
        ({"early_stopping": 9}, "early_stopping"),
        ({"bad_words": Strings(values=["w5", ""])}, "bad_words.values[1]"),
        ({"bad_words": Strings(values=[" "])}, "bad_words.values[0]"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"forced_bos_token_id": 60}, "forced_bos_token_id"),
        ({"forced_eos_token_id": 60}, "forced_eos_token_id"),
        ({"num_beams": 2, "n": 3}, "n"),
        ({"num_beams": 2, "temperature": 0.5}, "temperature"),
        ({"num_beams": 2, "stop": Strings(values=["w5"])}, "stop"),
        ({"num_beams": 2, "logprobs": True}, "logprobs"),
        ({"num_beams": 32, "max_new_tokens": 32}, "num_beams"),  # the fake has 64 pages of 16 tokens, one the prompt's
    ],
    ids=str,
)
def test_values_that_cannot_be_used_are_named(able: Stubs, values: dict[str, object], field: str):
    for method in (able.generation.Generate, lambda request: list(able.generation.GenerateStream(request))):
        error = refused(lambda method=method: method(generate(5, **values)))
        assert (error.code, error.field) == (grpc.StatusCode.INVALID_ARGUMENT, f"sampling.{field}")


@pytest.mark.parametrize(
    "values",
    [
        {"typical_p": 1.0},
        {"presence_penalty": -2.0, "frequency_penalty": 2.0},
        {"logit_bias": {0: -100.0, 59: 100.0}},
        {"no_repeat_ngram_size": 0},
        {"num_beams": 32},
        {"num_beams": 2, "temperature": 0.0, "n": 2, "length_penalty": -5.0},
        {"num_beams": 2, "early_stopping": EarlyStopping.EARLY_STOPPING_NEVER},
        {"bad_words": Strings(values=["w5", "w6 w7"])},
        {"bad_words": Strings()},
        {"logprobs": True, "top_logprobs": 20},
        {"forced_eos_token_id": 0},
    ],
    ids=str,
)
def test_values_at_the_edge_are_taken(able: Stubs, values: dict[str, object]):
    assert able.generation.Generate(generate(5, **{"max_new_tokens": 2} | values)).outputs


def test_echo_is_of_decoders_prompts_alone(able: Stubs, stubs: Stubs):
    assert refused(lambda: able.generation.Generate(generate(5, model="seq2seq", echo=True))).field == "sampling.echo"
    chat = Chat(messages=[ChatMessage(role="user", content="w5")])
    request = GenerateRequest(model="decoder", chat=chat, sampling=SamplingParameters(echo=True))
    assert refused(lambda: stubs.generation.Generate(request)).field == "sampling.echo"
