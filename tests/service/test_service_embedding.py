"""EmbeddingService over gRPC, with an engine whose vectors say what it was sent."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest

from support.server import wait_until
from support.status import Refusal, refused
from tercet.v1.embedding_pb2 import EmbedRequest, EmbedResponse, Pooling
from tercet.v1.models_pb2 import GetModelRequest
from tercet.v1.types_pb2 import DTYPE_FLOAT32, TextInput, TokenBatch, TokenIds

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from conftest import Stubs

HELD_ID, POISON_ID, INVALID_ID = 52, 50, 51


def text(value: str) -> TextInput:
    return TextInput(text=value)


def ids(*values: int) -> TextInput:
    return TextInput(token_ids=TokenIds(values=values))


def vectors(response: EmbedResponse) -> np.ndarray:
    assert response.embeddings.dtype == DTYPE_FLOAT32
    return np.frombuffer(response.embeddings.data, "<f4").reshape(response.embeddings.shape)


def test_text_gets_special_tokens_and_ids_do_not(stubs: Stubs):
    response = stubs.embedding.Embed(EmbedRequest(model="encoder", inputs=[text("w5 w6"), ids(5, 6)]))
    assert vectors(response).tolist() == [[4, 16, 0, 1], [2, 11, 0, 1]]  # [tokens, sum, mean, normalized]
    assert [(item.row, item.prompt_tokens, item.truncated) for item in response.items] == [(0, 4, False), (1, 2, False)]
    assert response.usage.prompt_tokens == 6
    assert response.model == "encoder"


def test_the_only_model_that_can_embed_needs_no_name(stubs: Stubs):
    assert stubs.embedding.Embed(EmbedRequest(inputs=[text("w5")])).model == "encoder"


@pytest.mark.parametrize(("pooling", "number"), [("MEAN", 0), ("CLS", 1), ("LAST", 2), ("MAX", 3), ("UNSPECIFIED", 0)])
@pytest.mark.parametrize("normalize", [True, False, None])
def test_pooling_and_normalize_reach_the_engine(stubs: Stubs, pooling: str, number: int, normalize: bool | None):
    request = EmbedRequest(inputs=[ids(5)], pooling=Pooling.Value(f"POOLING_{pooling}"), normalize=normalize)
    assert vectors(stubs.embedding.Embed(request))[0, 2:].tolist() == [number, normalize is not False]


def test_a_long_input_is_refused_alone_and_its_neighbours_answered(stubs: Stubs):
    long = " ".join(["w5"] * 31)
    response = stubs.embedding.Embed(EmbedRequest(inputs=[text("w5"), text(long), ids(*[5] * 33), text("w6")]))
    assert vectors(response)[:, 1].tolist() == [2 + 5 + 3, 2 + 6 + 3]
    assert [item.WhichOneof("outcome") for item in response.items] == ["row", "error", "error", "row"]
    assert response.items[3].row == 1
    error = Refusal(response.items[1].error)
    assert (error.code, error.field) == (grpc.StatusCode.INVALID_ARGUMENT, "inputs[1].text")
    assert "33 tokens, the limit is 32" in error.message
    assert Refusal(response.items[2].error).field == "inputs[2].token_ids"


def test_truncate_cuts_at_the_limit_and_keeps_special_tokens(stubs: Stubs):
    request = EmbedRequest(inputs=[text(" ".join(["w5"] * 40)), ids(*range(4, 40)), text("w5")], truncate=True)
    response = stubs.embedding.Embed(request)
    assert vectors(response)[:, :2].tolist() == [[32, 2 + 30 * 5 + 3], [32, sum(range(4, 36))], [3, 10]]
    assert [item.truncated for item in response.items] == [True, True, False]
    assert response.usage.prompt_tokens == 67


def packed(data: bytes, values: Sequence[int] = ()) -> TextInput:
    return TextInput(token_ids=TokenIds(packed=data, values=values))


def test_packed_ids_are_ids(stubs: Stubs):
    response = stubs.embedding.Embed(EmbedRequest(inputs=[packed(b"\5\0\0\0\6\0\0\0"), ids(5, 6)]))
    assert [item.prompt_tokens for item in response.items] == [2, 2]
    np.testing.assert_array_equal(*vectors(response))


def batch(*sequences: Sequence[int]) -> TokenBatch:
    every = np.concatenate([np.array(sequence, "<u4") for sequence in sequences])
    return TokenBatch(packed=every.tobytes(), lengths=map(len, sequences))


@pytest.mark.parametrize("truncate", [False, True])
@pytest.mark.parametrize("pooling", [Pooling.POOLING_MEAN, Pooling.POOLING_NONE])
@pytest.mark.parametrize(
    "sequences",
    [
        [[5, 6], [7], [8] * 32],
        [[5, 6], [POISON_ID, 1], [7], [INVALID_ID]],
        [[5], [], [6] * 33, [7, 60], [2**32 - 1], [8, 9]],
        [[]],
    ],
    ids=["right", "given up", "wrong", "empty"],
)
def test_a_batch_of_ids_is_what_its_inputs_are(
    stubs: Stubs, sequences: list[list[int]], pooling: Pooling, truncate: bool
):
    inputs = [packed(np.array(sequence, "<u4").tobytes()) for sequence in sequences]
    expected = stubs.embedding.Embed(EmbedRequest(inputs=inputs, pooling=pooling, truncate=truncate))
    request = EmbedRequest(token_batch=batch(*sequences), pooling=pooling, truncate=truncate)
    assert stubs.embedding.Embed(request) == expected
    assert len(expected.items) == len(sequences)


@pytest.mark.parametrize(
    ("request_", "field", "problem"),
    [
        (EmbedRequest(token_batch=TokenBatch()), "token_batch.lengths", "has 0 elements"),
        (EmbedRequest(token_batch=TokenBatch(packed=bytes(8196), lengths=[1] * 2049)), "token_batch.lengths", "2049"),
        (EmbedRequest(token_batch=TokenBatch(packed=bytes(7), lengths=[2])), "token_batch.packed", "has 7 bytes"),
        (EmbedRequest(token_batch=TokenBatch(packed=bytes(8), lengths=[1])), "token_batch.packed", "1 ids of 4"),
        (EmbedRequest(token_batch=TokenBatch(lengths=[2**32 - 1] * 9)), "token_batch.packed", "has 0 bytes"),
        (EmbedRequest(token_batch=batch([5]), inputs=[text("w5")]), "token_batch", "beside inputs"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(stubs: Stubs, request_: EmbedRequest, field: str, problem: str):
    error = refused(lambda: stubs.embedding.Embed(request_))
    assert (error.code, error.field) == (grpc.StatusCode.INVALID_ARGUMENT, field)
    assert problem in error.message


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (TextInput(), "inputs[1]"),
        (ids(), "inputs[1].token_ids"),
        (ids(5, 60), "inputs[1].token_ids.values[1]"),
        (ids(2**32 - 1), "inputs[1].token_ids.values[0]"),
        (packed(b"\5\0\0\0\x3c\0\0\0"), "inputs[1].token_ids.packed[1]"),
        (packed(b"\xff\xff\xff\xff"), "inputs[1].token_ids.packed[0]"),
        (packed(b"\5\0\0"), "inputs[1].token_ids.packed"),
        (packed(b"\5\0\0\0", values=[5]), "inputs[1].token_ids"),
        (text("w5 " * 400_000), "inputs[1].text"),
    ],
)
def test_a_bad_input_is_refused_alone(stubs: Stubs, bad: TextInput, field: str):
    response = stubs.embedding.Embed(EmbedRequest(inputs=[text("w5"), bad]))
    assert vectors(response).shape == (1, 4)
    error = Refusal(response.items[1].error)
    assert (error.code, error.field) == (grpc.StatusCode.INVALID_ARGUMENT, field)


def test_nul_is_a_character_like_any_other(stubs: Stubs):
    response = stubs.embedding.Embed(EmbedRequest(inputs=[text("w5\0w5"), text("\0"), text("")]))
    assert vectors(response)[:, 0].tolist() == [3, 3, 2]  # an unknown word; an unknown word; nothing


def test_an_engines_refusal_of_one_input_is_that_items(stubs: Stubs):
    response = stubs.embedding.Embed(EmbedRequest(inputs=[ids(5), ids(POISON_ID), ids(INVALID_ID), ids(6)]))
    assert vectors(response)[:, 1].tolist() == [5, 6]
    poison, invalid = (Refusal(response.items[i].error) for i in (1, 2))
    assert poison.code is grpc.StatusCode.INTERNAL
    assert invalid.code is grpc.StatusCode.INVALID_ARGUMENT
    assert invalid.field == "inputs[2]"


def test_a_list_where_all_is_refused_is_an_empty_tensor(stubs: Stubs):
    response = stubs.embedding.Embed(EmbedRequest(inputs=[TextInput()]))
    assert response.embeddings.shape == [0, 4]
    assert response.embeddings.data == b""


def test_lists_have_limits(stubs: Stubs):
    for inputs in ([], [text("w5")] * 2049):
        error = refused(lambda inputs=inputs: stubs.embedding.Embed(EmbedRequest(inputs=inputs)))
        assert (error.code, error.field) == (grpc.StatusCode.INVALID_ARGUMENT, "inputs")
        assert f"has {len(inputs)} elements" in error.message
    assert len(stubs.embedding.Embed(EmbedRequest(inputs=[text("w5")] * 2048)).items) == 2048


def test_a_deadline_ends_the_call_and_the_engines_work(stubs: Stubs):
    error = refused(lambda: stubs.embedding.Embed(EmbedRequest(inputs=[ids(HELD_ID)]), timeout=0.2))
    assert error.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert stubs.embedding.Embed(EmbedRequest(inputs=[ids(5)])).items[0].row == 0


class TestStream:
    """EmbedStream."""

    def test_answers_come_in_order_with_errors_in_place(self, stubs: Stubs):
        requests = [EmbedRequest(inputs=[ids(5)] * n) for n in (3, 0, 1, 2)]
        requests.append(EmbedRequest(model="nobody", inputs=[ids(5)]))
        answers = list(stubs.embedding.EmbedStream(iter(requests)))
        shapes = [list(answer.response.embeddings.shape) for answer in answers if answer.HasField("response")]
        assert shapes == [[3, 4], [1, 4], [2, 4]]
        errors = {i: Refusal(answer.error) for i, answer in enumerate(answers) if answer.HasField("error")}
        assert {i: error.code.name for i, error in errors.items()} == {1: "INVALID_ARGUMENT", 4: "NOT_FOUND"}
        assert errors[1].field == "inputs"

    def test_its_refusals_are_counted(self, checkpoints: dict[str, Path], start, connect):
        with start({"encoder": checkpoints["encoder"]}) as server, connect(server) as stubs:
            list(stubs.embedding.EmbedStream(iter([EmbedRequest(inputs=[ids(5)]), EmbedRequest(), EmbedRequest()])))
            metrics = server.metrics()
            assert metrics['tercet_requests_rejected_total{model="encoder",reason="invalid"}'] == 2
            assert metrics['tercet_requests_total{code="OK",method="EmbedStream",model="encoder"}'] == 1

    def test_a_message_that_is_no_request_is_refused_and_the_stream_goes_on(self, stubs: Stubs):
        good = EmbedRequest(inputs=[ids(5)]).SerializeToString()
        call = stubs.channel.stream_stream("/tercet.v1.EmbeddingService/EmbedStream")
        answers = list(call(iter([good, b"\x0a\x02\xff\xfe", good])))
        assert len(answers) == 3
        assert b"not UTF-8" in answers[1]

    def test_it_reads_ahead_but_not_far(self, checkpoints: dict[str, Path], start, connect):
        flags = ("--read-ahead", "3")
        with start({"encoder": checkpoints["encoder"]}, *flags) as server, connect(server) as stubs:
            requests = [EmbedRequest(inputs=[text("w5")]) for _ in range(20)]
            requests[0] = EmbedRequest(inputs=[text(f"w{HELD_ID}")])
            call = stubs.embedding.EmbedStream(iter(requests))
            count = 'tercet_tokenize_duration_seconds_count{model="encoder"}'
            wait_until(lambda: server.metrics().get(count, 0) >= 3)
            time.sleep(0.3)
            assert server.metrics()[count] == 3  # nobody takes the first answer, so a fourth is not begun
            call.cancel()
            wait_until(lambda: server.metrics()['tercet_requests_waiting{model="encoder"}'] == 0)

    def test_an_empty_stream_is_fine(self, stubs: Stubs):
        assert list(stubs.embedding.EmbedStream(iter([]))) == []


class TestQueue:
    """Admission."""

    def test_a_full_queue_refuses_and_says_when_to_come_again(self, checkpoints: dict[str, Path], start, connect):
        with start({"encoder": checkpoints["encoder"]}, "--max-queue", "3") as server, connect(server) as stubs:
            held = stubs.embedding.Embed.future(EmbedRequest(inputs=[ids(HELD_ID)] * 2))
            wait_until(lambda: server.metrics()['tercet_requests_waiting{model="encoder"}'] == 2)
            error = refused(lambda: stubs.embedding.Embed(EmbedRequest(inputs=[ids(5)] * 2)))
            assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "2 of 3 sequences" in error.message
            assert error.retry_after is not None
            assert 0.01 <= error.retry_after <= 5
            assert int(error.trailers["grpc-retry-pushback-ms"]) == round(error.retry_after * 1000)
            [answer] = stubs.embedding.EmbedStream(iter([EmbedRequest(inputs=[ids(5)] * 4)]))
            assert Refusal(answer.error).code is grpc.StatusCode.RESOURCE_EXHAUSTED  # its turn might never come
            waiting = stubs.embedding.EmbedStream(iter([EmbedRequest(inputs=[ids(5)] * 2)]))
            held.cancel()
            assert [answer.WhichOneof("outcome") for answer in waiting] == ["response"]  # a stream waits for its turn
            assert server.metrics()['tercet_requests_rejected_total{model="encoder",reason="queue_full"}'] == 2
            response = stubs.embedding.Embed(EmbedRequest(inputs=[ids(5)] * 10))
            assert len(response.items) == 10  # an empty queue takes what a call may hold
            running = 'tercet_requests_running{model="encoder"}'
            wait_until(lambda: server.metrics()[running] == 0)  # of what was given up nothing is left in the engine


def test_a_vector_for_every_token(stubs: Stubs):
    inputs = [text("w5 w6"), ids(POISON_ID), ids(5, 6, 7)]
    response = stubs.embedding.Embed(EmbedRequest(inputs=inputs, pooling=Pooling.POOLING_NONE))
    assert vectors(response)[:, 1].tolist() == [2, 5, 6, 3, 5, 6, 7]
    assert [(item.row, item.rows) for item in response.items] == [(0, 4), (0, 0), (4, 3)]
    assert stubs.embedding.Embed(EmbedRequest(inputs=inputs[::2])).items[1].rows == 1


def test_fewer_dimensions(stubs: Stubs):
    response = stubs.embedding.Embed(EmbedRequest(inputs=[ids(5), ids(6)], dimensions=2))
    assert vectors(response).tolist() == [[1, 5], [1, 6]]
    for dimensions in (0, 5, 2**32 - 1):
        request = EmbedRequest(inputs=[ids(5)], dimensions=dimensions)
        error = refused(lambda request=request: stubs.embedding.Embed(request))
        assert (error.code, error.field) == (grpc.StatusCode.INVALID_ARGUMENT, "dimensions")


def test_prompts_come_before_texts(tmp_path: Path, start, make_checkpoint, connect):
    folder = make_checkpoint(tmp_path / "encoder", "bert")
    (folder / "modules.json").write_text("[]")
    prompts = {"query": "w9 ", "passage": "w8 w7 "}
    stated = {"prompts": prompts, "default_prompt_name": "passage"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(stated))
    with start({"encoder": folder}) as server, connect(server) as stubs:
        for name, tokens in (("query", 4), ("passage", 5), (None, 5), ("", 3)):
            response = stubs.embedding.Embed(EmbedRequest(inputs=[text("w5"), ids(5)], prompt_name=name))
            assert vectors(response)[:, 0].tolist() == [tokens, 1]  # token ids are taken as they are
        error = refused(lambda: stubs.embedding.Embed(EmbedRequest(inputs=[text("w5")], prompt_name="other")))
        assert (error.field, error.message.partition("it has ")[2]) == ("prompt_name", "passage, query")
        described = stubs.models.Get(GetModelRequest(name="encoder"))
        assert list(described.prompts) == ["passage", "query"]
