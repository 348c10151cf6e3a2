"""Whatever a client sends gets a clear error that names the field, and the server lives."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, NamedTuple

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass

from support.status import Refusal, refused
from tercet.server.service.malformed import diagnose
from tercet.v1 import embedding_pb2, generation_pb2, models_pb2, scoring_pb2, text_pb2, understanding_pb2
from tercet.v1.embedding_pb2 import EmbedRequest, EmbedStreamResponse
from tercet.v1.generation_pb2 import Chat, ChatMessage, GenerateRequest, SamplingParameters
from tercet.v1.models_pb2 import GetModelRequest
from tercet.v1.text_pb2 import DetokenizeRequest, TokenizeRequest
from tercet.v1.types_pb2 import Strings, TextInput, TokenIds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

    from conftest import Stubs

METHODS: list[MethodDescriptor] = [
    method
    for module in (models_pb2, embedding_pb2, generation_pb2, scoring_pb2, text_pb2, understanding_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]
NOT_UTF8 = b"ab\xff\xfe"


class Leaf(NamedTuple):
    """A field somewhere in a message: its path, and the fields on the way to it."""

    path: str
    fields: tuple[FieldDescriptor, ...]

    def encode(self, value: bytes) -> bytes:
        """A message with the field alone, its value as it stands on the wire."""
        for field in reversed(self.fields):
            value = varint(field.number << 3 | 2) + varint(len(value)) + value
        return value


def varint(value: int) -> bytes:
    parts = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def leaves(descriptor: Descriptor, prefix: str = "", way: tuple[FieldDescriptor, ...] = ()) -> Iterator[Leaf]:
    """Every string and every nested message of a request type."""
    for field in descriptor.fields:
        path = f"{prefix}{field.name}{'[0]' if field.is_repeated else ''}"
        if field.message_type is not None:
            yield Leaf(path, (*way, field))
            yield from leaves(field.message_type, f"{path}.", (*way, field))
        elif field.type == field.TYPE_STRING:
            yield Leaf(path, (*way, field))


def cases() -> Iterator[object]:
    for method in METHODS:
        for leaf in leaves(method.input_type):
            yield pytest.param(method, leaf, id=f"{method.name}-{leaf.path}")


def call(stubs: Stubs, method: MethodDescriptor, data: bytes) -> Refusal:
    """Sends raw bytes as a request; the error that it brings, as status or in the stream."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    if method.name == "GenerateMany":
        return refused(lambda: list(stubs.channel.stream_stream(path)(iter([data]))))
    if method.client_streaming:
        [answer] = stubs.channel.stream_stream(path)(iter([data]))
        return Refusal(EmbedStreamResponse.FromString(answer).error)
    if method.server_streaming:
        return refused(lambda: list(stubs.channel.unary_stream(path)(data)))
    return refused(lambda: stubs.channel.unary_unary(path)(data))


@pytest.mark.parametrize(("method", "leaf"), list(cases()))
def test_bytes_that_are_no_message_name_the_field(stubs: Stubs, method: MethodDescriptor, leaf: Leaf):
    """Invalid UTF-8 in every string, and a field of every message that is cut short."""
    is_string = leaf.fields[-1].message_type is None
    data = leaf.encode(NOT_UTF8 if is_string else varint(1 << 3 | 2) + varint(100) + b"short")
    error = call(stubs, method, data)
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.field is not None
    if is_string:
        assert error.field == leaf.path
        assert "not UTF-8" in error.message
    else:
        assert error.field.startswith(leaf.path)
        assert "cut short" in error.message


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_garbage_is_an_invalid_argument(stubs: Stubs, method: MethodDescriptor):
    for data in (b"\xff" * 20, b"\x0a\xff\xff\xff\xff\x0f", b"\x07", b"\x0a"):
        assert call(stubs, method, data).code is grpc.StatusCode.INVALID_ARGUMENT


def test_the_diagnosis_agrees_with_protobuf():
    """Of random damage: where protobuf refuses a message, the walk finds the fault."""
    rng = random.Random(0)
    request = GenerateRequest(
        model="m",
        chat=Chat(messages=[ChatMessage(role="ü", content="x" * 200)]),
        sampling=SamplingParameters(stop=Strings(values=["a", "é"]), temperature=0.5, seed=2**63, n=3),
    )
    good = request.SerializeToString()
    refusals = 0
    for _ in range(3000):
        data = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        data = bytes(data[: rng.choice([len(data), rng.randrange(len(data))])])
        fault = diagnose(GenerateRequest.DESCRIPTOR, data)
        found = fault.problem != "is not a protobuf message of its type"
        try:
            GetMessageClass(GenerateRequest.DESCRIPTOR).FromString(data)
        except Exception:
            refusals += 1
            assert found, data
    assert refusals > 500


def sampling(**values: object) -> GenerateRequest:
    return GenerateRequest(model="decoder", input=TextInput(text="w5"), sampling=SamplingParameters(**values))


def ids(*values: int) -> TextInput:
    return TextInput(token_ids=TokenIds(values=values))


def packed(data: bytes) -> TextInput:
    return TextInput(token_ids=TokenIds(packed=data))


nan, inf = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("values", "field"),
    [
        *(({"temperature": v}, "temperature") for v in (-0.1, 1e-45, 9e-5, 100.5, nan, inf, -inf)),
        *(({"top_p": v}, "top_p") for v in (0.0, -1.0, 1.01, nan)),
        *(({"min_p": v}, "min_p") for v in (-0.01, 1.01, nan)),
        *(({"repetition_penalty": v}, "repetition_penalty") for v in (0.0, 9e-3, -2.0, 101.0, nan, inf)),
        *(({"n": v}, "n") for v in (0, 65, 2**32 - 1)),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 3, "min_new_tokens": 4}, "min_new_tokens"),
        ({"min_new_tokens": 32}, "min_new_tokens"),
        ({"stop": Strings(values=[""])}, "stop.values[0]"),
        ({"stop": Strings(values=["a", "b" * 257])}, "stop.values[1]"),
        ({"stop": Strings(values=["a"] * 17)}, "stop"),
        ({"stop_token_ids": TokenIds(values=[3] * 17)}, "stop_token_ids"),
        ({"stop_token_ids": TokenIds(values=[3, 60])}, "stop_token_ids.values[1]"),
        ({"stop_token_ids": TokenIds(packed=b"\3\0\0\0" * 17)}, "stop_token_ids"),
        ({"stop_token_ids": TokenIds(packed=b"\3\0\0\0\3\0\0\x80")}, "stop_token_ids.packed[1]"),
        ({"stop_token_ids": TokenIds(packed=b"\3")}, "stop_token_ids.packed"),
        ({"stop_token_ids": TokenIds(values=[3], packed=b"\3\0\0\0")}, "stop_token_ids"),
    ],
    ids=str,
)
def test_sampling_values_out_of_range_are_named(stubs: Stubs, values: dict[str, object], field: str):
    for method in (stubs.generation.Generate, lambda request: list(stubs.generation.GenerateStream(request))):
        error = refused(lambda method=method: method(sampling(**values)))
        assert (error.code, error.field) == (grpc.StatusCode.INVALID_ARGUMENT, f"sampling.{field}")
        assert error.trailers["grpc-retry-pushback-ms"] == "-1"


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": 0.0},
        {"temperature": 1e-4},
        {"temperature": 100.0},
        {"top_p": 1.0},
        {"top_p": 1e-6},
        {"min_p": 0.0},
        {"min_p": 1.0},
        {"top_k": 0},
        {"top_k": 2**32 - 1},
        {"repetition_penalty": 1e-2},
        {"repetition_penalty": 100.0},
        {"n": 64},
        {"max_new_tokens": 2**32 - 1},
        {"min_new_tokens": 2, "max_new_tokens": 2},
        {"seed": 0},
        {"stop": Strings()},
        {"stop_token_ids": TokenIds()},
        {"stop_token_ids": TokenIds(packed=b"\3\0\0\0" * 16)},
        {"stop": Strings(values=["b" * 256] * 16)},
    ],
    ids=str,
)
def test_sampling_values_at_the_edge_are_taken(stubs: Stubs, values: dict[str, object]):
    assert stubs.generation.Generate(sampling(**{"max_new_tokens": 2} | values)).outputs


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (GenerateRequest(model="decoder"), "prompt"),
        (GenerateRequest(model="decoder", input=TextInput()), "input"),
        (GenerateRequest(model="decoder", input=TextInput(text="")), "input.text"),
        (GenerateRequest(model="decoder", input=ids()), "input.token_ids"),
        (GenerateRequest(model="decoder", input=ids(60)), "input.token_ids.values[0]"),
        (GenerateRequest(model="decoder", input=packed(b"\xff\xff\xff\xff")), "input.token_ids.packed[0]"),
        (GenerateRequest(model="decoder", input=packed(b"\5\0")), "input.token_ids.packed"),
        (GenerateRequest(model="decoder", chat=Chat()), "chat.messages"),
        (GenerateRequest(model="decoder", chat=Chat(messages=[ChatMessage(content="w5")])), "chat.messages[0].role"),
        (GenerateRequest(input=TextInput(text="w5")), "model"),
        (EmbedRequest(inputs=[TextInput(text="w5")], pooling=9), "pooling"),  # type: ignore[arg-type]
        (EmbedRequest(inputs=[TextInput(text="w5")], pooling=-1), "pooling"),  # type: ignore[arg-type]
        (TokenizeRequest(model="encoder"), "texts"),
        (TokenizeRequest(texts=["w5"]), "model"),
        (DetokenizeRequest(model="encoder"), "sequences"),
        (GetModelRequest(), "name"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_requests_that_lack_or_overdo_something_name_the_field(stubs: Stubs, request_: object, field: str):
    error = refused(lambda: method_of(stubs, request_)(request_))
    assert (error.code, error.field) == (grpc.StatusCode.INVALID_ARGUMENT, field)
    assert error.reason == "INVALID_ARGUMENT"


def method_of(stubs: Stubs, request: object):
    return {
        GenerateRequest: stubs.generation.Generate,
        EmbedRequest: stubs.embedding.Embed,
        TokenizeRequest: stubs.text.Tokenize,
        DetokenizeRequest: stubs.text.Detokenize,
        GetModelRequest: stubs.models.Get,
    }[type(request)]


@pytest.mark.parametrize(
    "request_",
    [
        GenerateRequest(model="nobody", input=TextInput(text="w5")),
        EmbedRequest(model="nobody", inputs=[TextInput(text="w5")]),
        TokenizeRequest(model="nobody", texts=["w5"]),
        DetokenizeRequest(model="nobody", sequences=[TokenIds(values=[5])]),
        GetModelRequest(name="nobody"),
        GetModelRequest(name="no\0body" * 1000),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_unknown_model_is_not_found_and_those_there_are_named(stubs: Stubs, request_: object):
    error = refused(lambda: method_of(stubs, request_)(request_))
    assert error.code is grpc.StatusCode.NOT_FOUND
    assert all(name in error.message for name in ("decoder", "encoder", "seq2seq"))
    assert len(error.message) < 300


@pytest.mark.parametrize(
    ("request_", "can"),
    [
        (GenerateRequest(model="encoder", input=TextInput(text="w5")), "can embed"),
        (EmbedRequest(model="decoder", inputs=[TextInput(text="w5")]), "can generate and chat"),
        (GenerateRequest(model="seq2seq", chat=Chat(messages=[ChatMessage(role="u", content="w5")])), "can generate"),
    ],
    ids=["generate", "embed", "chat"],
)
def test_a_task_that_a_model_cannot_do_says_what_it_can(stubs: Stubs, request_: object, can: str):
    error = refused(lambda: method_of(stubs, request_)(request_))
    assert error.code is grpc.StatusCode.FAILED_PRECONDITION
    assert can in error.message


def test_a_message_beyond_the_limit_is_refused(stubs: Stubs):
    huge = EmbedRequest(inputs=[TextInput(text="x" * (17 << 20))])
    assert refused(lambda: stubs.embedding.Embed(huge)).code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert stubs.embedding.Embed(EmbedRequest(inputs=[TextInput(text="w5")])).items[0].row == 0


def test_request_ids_are_the_servers_and_the_clients_is_echoed(stubs: Stubs):
    def trailers(*metadata: tuple[str, str]) -> dict[str, str]:
        request = EmbedRequest(inputs=[TextInput(text="w5")])
        _, call = stubs.embedding.Embed.with_call(request, metadata=metadata)
        return dict(call.trailing_metadata())

    first, second = trailers(("x-request-id", "mine_1-2")), trailers(("x-request-id", "no spaces"))
    assert first["x-client-request-id"] == "mine_1-2"
    assert "x-client-request-id" not in second
    assert "x-client-request-id" not in trailers(("x-request-id", "x" * 65))
    assert first["x-request-id"] not in (second["x-request-id"], "mine_1-2")
    assert refused(lambda: stubs.models.Get(GetModelRequest(name="x"))).trailers["x-request-id"]
