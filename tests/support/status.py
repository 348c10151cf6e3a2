"""Reads the details of gRPC errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

if TYPE_CHECKING:
    from collections.abc import Callable


class Refusal:
    """An error as a client sees it, from the trailers of a call or from one item of a list."""

    def __init__(self, status: Status, trailers: dict[str, str | bytes] | None = None) -> None:
        self.code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
        self.message = status.message
        self.trailers = trailers or {}
        self.field: str | None = None
        self.retry_after: float | None = None
        self.reason: str | None = None
        self.metadata: dict[str, str] = {}
        for packed in status.details:
            for kind in (BadRequest, ErrorInfo, RetryInfo):
                detail = kind()
                if packed.Unpack(detail):
                    self._take(detail)

    def _take(self, detail: BadRequest | ErrorInfo | RetryInfo) -> None:
        if isinstance(detail, BadRequest):
            self.field = detail.field_violations[0].field
        elif isinstance(detail, RetryInfo):
            self.retry_after = detail.retry_delay.ToMilliseconds() / 1000
        else:
            self.reason, self.metadata = detail.reason, dict(detail.metadata)


def refused(call: Callable[[], object]) -> Refusal:
    """Calls, expects a gRPC error, and gives it with its details."""
    with pytest.raises(grpc.RpcError) as raised:
        call()
    return refusal_of(raised.value)


def refusal_of(error: grpc.RpcError) -> Refusal:
    """The error that gRPC raised."""
    trailers = dict(error.trailing_metadata() or ())
    data = trailers.get("grpc-status-details-bin")
    status = Status.FromString(data) if data else Status(code=error.code().value[0], message=error.details())
    assert status.code == error.code().value[0]
    assert status.message == error.details()
    return Refusal(status, trailers)
