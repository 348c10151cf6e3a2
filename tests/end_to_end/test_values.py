"""Any value of any field of a request is answered or refused for what it is, by every kind of model, and no engine
suffers: nothing ends as INTERNAL or UNKNOWN, and no number of an answer is NaN.
"""

from __future__ import annotations

import math
import random
import re
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor

from support.checkpoints import tiny
from support.server import RunningServer, running_server
from tercet.v1.embedding_pb2 import EmbedRequest
from tercet.v1.embedding_pb2_grpc import EmbeddingServiceStub
from tercet.v1.generation_pb2 import GenerateRequest, SamplingParameters
from tercet.v1.generation_pb2_grpc import GenerationServiceStub
from tercet.v1.scoring_pb2 import ScoreInput, ScoreRequest
from tercet.v1.scoring_pb2_grpc import ScoringServiceStub
from tercet.v1.types_pb2 import TextInput
from tercet.v1.understanding_pb2 import (
    AnswerRequest,
    ClassifyInput,
    ClassifyRequest,
    FillMaskRequest,
    Question,
    RerankRequest,
    TagRequest,
    ZeroShot,
)
from tercet.v1.understanding_pb2_grpc import UnderstandingServiceStub

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.message import Message

TEXT = TextInput(text="the quick brown fox")
FEW = SamplingParameters(max_new_tokens=3)
TASK = {"translation_en_to_de": {"prefix": "encoders read: "}}
# Architecture, head and what its config says.
MODELS: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "llama": ("llama", None, {}),
    "t5": ("t5", None, {"task_specific_params": TASK}),
    "bert": ("bert", "BertForMaskedLM", {}),
    "judge": ("bert", "BertForSequenceClassification", {"num_labels": 1}),
    "nli": ("bart", "BartForSequenceClassification", {"id2label": {0: "no", 1: "entailed"}, "num_labels": 2}),
    "tagger": ("bert", "BertForTokenClassification", {}),
    "reader": ("bert", "BertForQuestionAnswering", {}),
}
REQUESTS: list[tuple[Any, str, Any]] = [
    (GenerationServiceStub, "Generate", GenerateRequest(model="llama", input=TEXT, sampling=FEW)),
    (GenerationServiceStub, "Generate", GenerateRequest(model="t5", input=TEXT, sampling=FEW, task=next(iter(TASK)))),
    (EmbeddingServiceStub, "Embed", EmbedRequest(model="bert", inputs=[TEXT])),
    (ScoringServiceStub, "Score", ScoreRequest(model="llama", inputs=[ScoreInput(text=TEXT)])),
    (ScoringServiceStub, "Score", ScoreRequest(model="bert", inputs=[ScoreInput(text=TEXT)])),
    (ScoringServiceStub, "Score", ScoreRequest(model="t5", inputs=[ScoreInput(text=TEXT, source=TEXT)])),
    (UnderstandingServiceStub, "Rerank", RerankRequest(model="judge", query="fox", texts=["a dog", "the fox"])),
    (
        UnderstandingServiceStub,
        "Classify",
        ClassifyRequest(model="nli", inputs=[ClassifyInput(input=TEXT, pair="the fox")]),
    ),
    (
        UnderstandingServiceStub,
        "Classify",
        ClassifyRequest(model="nli", inputs=[ClassifyInput(input=TEXT)], zero_shot=ZeroShot(labels=["fox", "river"])),
    ),
    (UnderstandingServiceStub, "Tag", TagRequest(model="tagger", texts=["the quick brown fox"])),
    (UnderstandingServiceStub, "FillMask", FillMaskRequest(model="bert", inputs=[TextInput(text="the [MASK] fox")])),
    (
        UnderstandingServiceStub,
        "Answer",
        AnswerRequest(model="reader", questions=[Question(question="who?", context="the quick brown fox " * 9)]),
    ),
]
INTEGERS = (0, 1, 2, 33, 1001, 2**31, 2**32 - 1)
FLOATS = (math.nan, math.inf, -math.inf, 0.0, 1e-45, 0.5, 2.0, 3.4e38, -3.4e38)
STRINGS = ("", " ", "\x00", "x" * 100_000, "{}", "[MASK]", "</s> <unk>", "en", "\u200b", "\uffff😀")
VALUES: dict[int, tuple[Any, ...]] = {
    FieldDescriptor.TYPE_UINT32: INTEGERS,
    FieldDescriptor.TYPE_UINT64: (*INTEGERS, 2**64 - 1),
    FieldDescriptor.TYPE_FLOAT: FLOATS,
    FieldDescriptor.TYPE_BOOL: (False, True),
    FieldDescriptor.TYPE_STRING: STRINGS,
    FieldDescriptor.TYPE_BYTES: (b"", b"\0", bytes(4), b"\xff" * 8, bytes(9000)),
    FieldDescriptor.TYPE_ENUM: (-1, *range(7), 2**31 - 1),
}
ALLOWED = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION)
FIELD = re.compile(r"[a-z_\d.\[\]]+: ")
MOST = 120  # requests of one kind


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("values")
    models = {name: tiny(folder / name, row, head, **config) for name, (row, head, config) in MODELS.items()}
    with running_server(models, "--lame-duck", "0") as running:
        yield running


def changed(message: Any) -> Iterator[tuple[str, Message]]:
    """The message with one of its fields, however deep, absent, empty or of another value; and that field's path."""
    for field in message.DESCRIPTOR.fields:
        name, nested = field.name, field.message_type
        if name == "model":
            continue
        copy = deepcopy(message)
        copy.ClearField(name)
        yield name, deepcopy(copy)
        if nested is not None and nested.GetOptions().map_entry:
            for key in INTEGERS:
                for value in FLOATS:
                    getattr(copy, name)[key] = value
                    yield name, deepcopy(copy)
                    copy.ClearField(name)
        elif nested is not None:
            inner = (
                getattr(message, name) or [getattr(copy, name).add()] if field.is_repeated else [getattr(message, name)]
            )
            for path, other in changed(inner[0]):
                copy.ClearField(name)
                (getattr(copy, name).add() if field.is_repeated else getattr(copy, name)).CopyFrom(other)
                yield f"{name}.{path}", deepcopy(copy)
        else:
            for value in VALUES[field.type]:
                if field.is_repeated:
                    copy.ClearField(name)
                    getattr(copy, name).append(value)
                else:
                    setattr(copy, name, value)
                yield name, deepcopy(copy)


@pytest.mark.parametrize(("stub", "method", "request_"), REQUESTS, ids=range(len(REQUESTS)))
def test_any_value_of_any_field(server: RunningServer, stub: Any, method: str, request_: Any) -> None:
    with grpc.insecure_channel(server.address) as channel:
        call = getattr(stub(channel), method)
        assert "error" not in str(call(request_))
        cases = list(changed(request_))
        answered = 0
        for path, case in random.Random(0).sample(cases, min(MOST, len(cases))):
            answer = call.future(case, timeout=60)
            error = answer.exception()
            if error is not None:
                assert error.code() in ALLOWED, (path, error.details())
                named = error.code() is grpc.StatusCode.FAILED_PRECONDITION or FIELD.match(error.details())
                assert named, (path, error.details())
                continue
            answered += 1
            response = answer.result()
            for item in getattr(response, "items", ()):
                refused = item.HasField("error")
                assert not refused or item.error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0], path
                assert not refused or FIELD.match(item.error.message), (path, item.error.message)
            assert ": nan" not in str(response), path
    assert 0 < answered < len(cases)
    assert len(server.events("engine started")) == len(MODELS)
