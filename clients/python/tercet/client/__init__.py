"""Tercet's Python SDK.

    from tercet.client import Client

    with Client("127.0.0.1:50051") as client:
        client.embed(["a text", "another"])  # float32 [2, embedding size]
        client.generate("Once", max_new_tokens=40, temperature=0).text
        for piece in client.stream([{"role": "user", "content": "Hello"}]):
            print(piece.text, end="", flush=True)
        client.classify("What a film!")  # [Label("positive", 0.98), ...]; so rerank, tag, fill_mask, answer, score

`AsyncClient` has the same methods to await. Errors are in a tree under `TercetError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tercet.client.errors import (
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    FieldViolation,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    TercetError,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from tercet.client.results import (
    Answer,
    Answers,
    Family,
    Fill,
    FinishReason,
    Generation,
    HealthStatus,
    Label,
    ModelInfo,
    ModelState,
    Output,
    Piece,
    Ranked,
    Score,
    Span,
    Task,
    Tokenized,
    TokenLogprob,
    Usage,
)

if TYPE_CHECKING:
    from tercet.client.aio import AsyncClient
    from tercet.client.many import AsyncManyStream, ManyStream
    from tercet.client.requests import Sampling
    from tercet.client.streams import AsyncStream, Stream
    from tercet.client.sync import Client

__all__ = [
    "Answer",
    "Answers",
    "AsyncClient",
    "AsyncManyStream",
    "AsyncStream",
    "Cancelled",
    "Client",
    "DeadlineExceeded",
    "FailedPrecondition",
    "Family",
    "FieldViolation",
    "Fill",
    "FinishReason",
    "Generation",
    "HealthStatus",
    "Internal",
    "InvalidArgument",
    "Label",
    "ManyStream",
    "ModelInfo",
    "ModelState",
    "NotFound",
    "Output",
    "PermissionDenied",
    "Piece",
    "Ranked",
    "ResourceExhausted",
    "Sampling",
    "Score",
    "Span",
    "Stream",
    "Task",
    "TercetError",
    "TokenLogprob",
    "Tokenized",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Usage",
]

# These need grpc and numpy, which the command line does without where it only parses or helps.
_LAZY = {
    "AsyncClient": "aio",
    "AsyncManyStream": "many",
    "AsyncStream": "streams",
    "Client": "sync",
    "ManyStream": "many",
    "Sampling": "requests",
    "Stream": "streams",
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    return value


def __dir__() -> list[str]:
    return __all__
