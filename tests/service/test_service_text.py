"""TextService and ModelService over gRPC."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from support.status import Refusal, refused
from tercet.v1.models_pb2 import Family, GetModelRequest, ListModelsRequest, ModelState, Task
from tercet.v1.text_pb2 import DetokenizeRequest, TokenizeRequest
from tercet.v1.types_pb2 import TokenIds

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Stubs


def test_tokenize_gives_ids_tokens_and_offsets_in_characters(stubs: Stubs):
    response = stubs.text.Tokenize(TokenizeRequest(model="encoder", texts=["w5 ü w6", ""]))
    first, second = (item.tokenized for item in response.items)
    assert list(first.token_ids) == [2, 5, 1, 6, 3]
    assert list(first.tokens) == ["[CLS]", "w5", "[UNK]", "w6", "[SEP]"]
    assert [*zip(first.starts, first.ends, strict=True)] == [(0, 0), (0, 2), (3, 4), (5, 7), (0, 0)]
    assert list(second.token_ids) == [2, 3]
    assert response.model == "encoder"


def test_special_tokens_can_be_left_out(stubs: Stubs):
    request = TokenizeRequest(model="encoder", texts=["w5"], add_special_tokens=False)
    assert list(stubs.text.Tokenize(request).items[0].tokenized.token_ids) == [5]


def test_texts_beyond_what_is_tokenized_in_place(stubs: Stubs):
    texts = [f"w{4 + i % 56} " * 100 for i in range(50)]
    items = stubs.text.Tokenize(TokenizeRequest(model="decoder", texts=texts)).items
    assert [set(item.tokenized.token_ids) for item in items] == [{4 + i % 56} for i in range(50)]


def test_one_text_too_long_does_not_touch_its_neighbours(stubs: Stubs):
    items = stubs.text.Tokenize(TokenizeRequest(model="encoder", texts=["w5", "x" * 1_000_001, "w6"])).items
    assert [item.WhichOneof("outcome") for item in items] == ["tokenized", "error", "tokenized"]
    error = Refusal(items[1].error)
    assert (error.code, error.field) == (grpc.StatusCode.INVALID_ARGUMENT, "texts[1]")
    assert "1000001 characters, the limit is 1000000" in error.message


def test_detokenize(stubs: Stubs):
    ids = [TokenIds(packed=b"\2\0\0\0\5\0\0\0\6\0\0\0\3\0\0\0"), TokenIds(), TokenIds(values=[5, 60])]
    items = stubs.text.Detokenize(DetokenizeRequest(model="encoder", sequences=ids)).items
    assert [item.text for item in items] == ["w5 w6", "", ""]
    error = Refusal(items[2].error)
    assert (error.code, error.field) == (grpc.StatusCode.INVALID_ARGUMENT, "sequences[2].values[1]")
    request = DetokenizeRequest(model="encoder", sequences=ids[:1], skip_special_tokens=False)
    assert stubs.text.Detokenize(request).items[0].text == "[CLS] w5 w6 [SEP]"


def test_models_are_listed_by_name_with_what_they_can(stubs: Stubs):
    models = stubs.models.List(ListModelsRequest()).models
    assert [model.name for model in models] == ["decoder", "encoder", "seq2seq"]
    assert [model.family for model in models] == [Family.FAMILY_DECODER, Family.FAMILY_ENCODER, Family.FAMILY_SEQ2SEQ]
    assert [list(model.tasks) for model in models] == [
        [Task.TASK_GENERATE, Task.TASK_CHAT],
        [Task.TASK_EMBED],
        [Task.TASK_GENERATE],
    ]
    assert {model.state for model in models} == {ModelState.MODEL_STATE_READY}
    assert [model.HasField("embedding_size") for model in models] == [False, True, False]
    encoder = stubs.models.Get(GetModelRequest(name="encoder"))
    assert encoder == models[1]
    assert (encoder.max_length, encoder.vocab_size, encoder.embedding_size) == (32, 60, 4)
    assert (encoder.architecture, encoder.dtype, encoder.device, encoder.parameters) == ("bert", "float32", "cpu", 123)


def listed(stubs: Stubs) -> list[str]:
    """The services that reflection names."""
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    [answer] = reflection_pb2_grpc.ServerReflectionStub(stubs.channel).ServerReflectionInfo(iter([request]))
    return [service.name for service in answer.list_services_response.service]


def test_reflection_names_every_service_and_can_be_turned_off(
    stubs: Stubs, checkpoints: dict[str, Path], start, connect
):
    parts = ("Embedding", "Generation", "Model", "Scoring", "Text", "Understanding")
    others = {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    assert set(listed(stubs)) == {f"tercet.v1.{part}Service" for part in parts} | others
    with start({"encoder": checkpoints["encoder"]}, "--no-reflection") as server, connect(server) as bare:
        assert refused(lambda: listed(bare)).code is grpc.StatusCode.UNIMPLEMENTED
