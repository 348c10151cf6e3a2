"""Tercet's Python SDK.

    from tercet.client import Client

    with Client("127.0.0.1:50051") as client:
        client.embed(["a text", "another"])  # float32 [2, embedding size]
        client.generate("Once", max_new_tokens=40, temperature=0).text
        for piece in client.stream([{"role": "user", "content": "Hello"}]):
            print(piece.text, end="", flush=True)

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
    Family,
    FinishReason,
    Generation,
    HealthStatus,
    ModelInfo,
    ModelState,
    Output,
    Piece,
    Task,
    Tokenized,
    Usage,
)

if TYPE_CHECKING:
    from tercet.client.aio import AsyncClient
    from tercet.client.requests import Sampling
    from tercet.client.sync import Client
    from tercet.client.transport import AsyncStream, Stream

__all__ = [
    "AsyncClient",
    "AsyncStream",
    "Cancelled",
    "Client",
    "DeadlineExceeded",
    "FailedPrecondition",
    "Family",
    "FieldViolation",
    "FinishReason",
    "Generation",
    "HealthStatus",
    "Internal",
    "InvalidArgument",
    "ModelInfo",
    "ModelState",
    "NotFound",
    "Output",
    "PermissionDenied",
    "Piece",
    "ResourceExhausted",
    "Sampling",
    "Stream",
    "Task",
    "TercetError",
    "Tokenized",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Usage",
]

# These need grpc and numpy, which the command line does without where it only parses or helps.
_LAZY = {
    "AsyncClient": "aio",
    "AsyncStream": "transport",
    "Client": "sync",
    "Sampling": "requests",
    "Stream": "transport",
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    return value


def __dir__() -> list[str]:
    return __all__
