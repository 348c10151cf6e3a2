"""ScoringService over gRPC, with an engine to which a token's log probability is minus its id, by tenths."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import grpc
import pytest

from support.server import wait_until
from support.status import Refusal, refused
from tercet.v1.scoring_pb2 import Score, ScoreInput, ScoreRequest
from tercet.v1.types_pb2 import TextInput, TokenIds

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Stubs

POISON_ID = 50


def text(value: str, source: str | None = None) -> ScoreInput:
    return ScoreInput(text=TextInput(text=value), source=None if source is None else TextInput(text=source))


def ids(*values: int) -> ScoreInput:
    return ScoreInput(text=TextInput(token_ids=TokenIds(values=values)))


def assert_score(score: Score, *token_ids: int) -> None:
    assert list(score.token_ids) == list(token_ids)
    assert list(score.logprobs) == pytest.approx([-id / 10 for id in token_ids])
    assert score.total == pytest.approx(-sum(token_ids) / 10)
    assert score.perplexity == pytest.approx(math.exp(sum(token_ids) / 10 / len(token_ids)))


def test_a_decoders_tokens_but_the_first(able: Stubs):
    response = able.scoring.Score(ScoreRequest(model="decoder", inputs=[text("w9 w8 w10"), ids(5, 6)]))
    assert_score(response.items[0].score, 8, 10)
    assert_score(response.items[1].score, 6)
    assert [item.prompt_tokens for item in response.items] == [3, 2]
    assert (response.usage.prompt_tokens, response.model) == (5, "decoder")


def test_a_masked_models_tokens_one_by_one(able: Stubs):
    [item] = able.scoring.Score(ScoreRequest(model="masked", inputs=[text("w9 nothing w10")])).items
    assert_score(item.score, 9, 1, 10)  # what the vocabulary lacks is text too; [CLS] and [SEP] are not
    assert item.prompt_tokens == 3 * 5


def test_a_seq2seq_models_target(able: Stubs):
    response = able.scoring.Score(ScoreRequest(model="seq2seq", inputs=[text("w9 w8", "w4 w5 w6")]))
    assert_score(response.items[0].score, 9, 8)
    assert response.items[0].prompt_tokens == 3 + 1 + 2  # the decoder starts from a token of its own


@pytest.mark.parametrize(
    ("model", "given", "field"),
    [
        ("decoder", ids(5), "inputs[0].text"),
        ("decoder", text(""), "inputs[0].text"),
        ("decoder", ScoreInput(), "inputs[0].text"),
        ("decoder", ids(60, 5), "inputs[0].text.token_ids.values[0]"),
        ("decoder", text("w5 " * 33), "inputs[0].text.text"),
        ("decoder", text("w5 w6", "w7"), "inputs[0].source"),
        ("masked", text(""), "inputs[0].text"),
        ("masked", text("w5 w6", "w7"), "inputs[0].source"),
        ("seq2seq", text("w5"), "inputs[0].source"),
        ("seq2seq", text("w5 " * 32, "w5"), "inputs[0].text.text"),
        ("seq2seq", text("", "w5"), "inputs[0].text"),
    ],
)
def test_bad_inputs_name_the_field_and_leave_their_neighbours(able: Stubs, model: str, given: ScoreInput, field: str):
    good = text("w5 w6", "w7") if model == "seq2seq" else text("w5 w6")
    items = able.scoring.Score(ScoreRequest(model=model, inputs=[given, good])).items
    error = Refusal(items[0].error)
    assert (error.code, error.field) == (grpc.StatusCode.INVALID_ARGUMENT, field)
    assert items[1].HasField("score")


def test_too_many_tokens_to_mask_are_refused(able: Stubs):
    items = able.scoring.Score(ScoreRequest(model="masked", inputs=[text("w5 " * 30)] * 140)).items
    errors = [i for i, item in enumerate(items) if item.HasField("error")]
    assert errors == [*range(4096 // 30, 140)]
    assert "the limit is 4096" in items[errors[0]].error.message


def test_an_engines_refusal_is_the_items(able: Stubs):
    items = able.scoring.Score(ScoreRequest(model="decoder", inputs=[ids(POISON_ID, 5), ids(5, 6)])).items
    assert Refusal(items[0].error).code is grpc.StatusCode.INTERNAL
    assert items[1].HasField("score")


@pytest.mark.parametrize("name", ["source_lang", "target_lang"])
def test_a_model_without_languages_is_told_none(able: Stubs, name: str):
    request = ScoreRequest(model="seq2seq", inputs=[text("w5", "w6")], **{name: "en"})
    assert refused(lambda: able.scoring.Score(request)).field == name


def test_all_that_one_text_became_is_cancelled_with_its_call(heads: dict[str, Path], start, connect):
    with start({"masked": heads["masked"]}) as server, connect(server) as stubs:

        def held() -> float:
            metrics = server.metrics()
            return sum(metrics[f'tercet_requests_{state}{{model="masked"}}'] for state in ("waiting", "running"))

        call = stubs.scoring.Score.future(
            ScoreRequest(inputs=[text("w5 w6 w52 w7")])
        )  # three have the one that is held
        wait_until(lambda: held() == 3)
        call.cancel()
        wait_until(lambda: held() == 0, timeout=2)
        name = 'tercet_requests_cancelled_total{model="masked",stage="queued"}'
        wait_until(lambda: server.metrics().get(name) == 1)
        prompts = server.metrics()['tercet_request_prompt_tokens_count{model="masked"}']
        assert prompts == 4
        error = refused(lambda: stubs.scoring.Score(ScoreRequest(inputs=[text("w5 w52 w52")]), timeout=0.3))
        assert error.code is grpc.StatusCode.DEADLINE_EXCEEDED
        wait_until(lambda: held() == 0, timeout=2)
