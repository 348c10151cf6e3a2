"""gRPC statuses, of a call or of one item of a list, to the SDK's errors."""

from __future__ import annotations

import re
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RequestInfo, RetryInfo
from google.rpc.status_pb2 import Status

from tercet.client.errors import BY_CODE, FieldViolation, TercetError

REQUEST_ID = "x-request-id"
_DETAILS = "grpc-status-details-bin"
# What grpc.aio says, as INTERNAL, of a stream that ended while it was written to: the server's own status is lost.
_CUT_OFF = "Internal error from Core"
_ITEM = re.compile(r"\b(inputs|texts|sequences|questions)\[(\d+)\]")

D = TypeVar("D", bound=Message)


def from_status(
    status: Status, *, request_id: str | None = None, offset: int = 0, subject: str = "the request"
) -> TercetError:
    """The error that `status` stands for.

    Args:
        status: with google.rpc's BadRequest, ErrorInfo, RetryInfo and RequestInfo, all optional.
        request_id: from the call's metadata; RequestInfo's comes before it.
        offset: where the request's first item stands in the list that the caller passed; `inputs[0]` is then
            renamed to `inputs[offset]`.
        subject: what the call is about, for a status without a message.
    """

    def renumbered(text: str) -> str:
        return _ITEM.sub(lambda found: f"{found[1]}[{int(found[2]) + offset}]", text) if offset else text

    code = Code.Name(status.code) if status.code in Code.values() else "UNKNOWN"
    violations = _detail(status, BadRequest).field_violations
    info = _detail(status, ErrorInfo)
    retry = _detail(status, RetryInfo)
    return BY_CODE.get(code, TercetError)(
        renumbered(status.message) or f"{subject}: {code}",
        code=code,
        violations=[FieldViolation(renumbered(v.field), renumbered(v.description)) for v in violations],
        reason=info.reason or None,
        metadata=info.metadata,
        retry_after=retry.retry_delay.ToTimedelta().total_seconds() if retry.HasField("retry_delay") else None,
        request_id=_detail(status, RequestInfo).request_id or request_id,
    )


def from_rpc_error(error: Any, subject: str = "the request") -> TercetError:
    """The error that a failed call about `subject` stands for: a grpc.RpcError, synchronous or not."""
    metadata: dict[str, Any] = {}
    for key, value in (*(error.initial_metadata() or ()), *(error.trailing_metadata() or ())):
        metadata[key] = value
    status = Status(code=error.code().value[0], message=error.details() or "")
    if status.message == _CUT_OFF:
        status = Status(code=Code.UNAVAILABLE, message="the connection ended while the request was sent")
    try:
        status.MergeFromString(metadata.get(_DETAILS, b""))
    except DecodeError:
        status.ClearField("details")
    return from_status(status, request_id=metadata.get(REQUEST_ID), subject=subject)


def _detail(status: Status, kind: type[D]) -> D:
    """The first detail of this kind, empty where there is none."""
    detail = kind()
    for packed in status.details:
        if packed.Unpack(detail):
            break
    return detail
