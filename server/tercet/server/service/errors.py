"""Everything that can be wrong with a request, and the one table from it to gRPC's status codes and details.

ServiceError
├── InvalidArgumentError      a field of the request, its limit and what it was
├── ModelNotFoundError        no model of that name; those there are
├── UnsupportedTaskError      the model can't do this, but that
├── OverloadedError           the queue is full; when to come again
├── UnavailableError          the model or server is not serving now; when to come again
├── EngineLostError           its engine died under the request; when to come again
├── DeadlineExceededError     the client's deadline passed before the answer
├── GivenUpError              the client gave it up, its stream goes on
└── InternalError             a fault of ours
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeVar

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.message import Message

T = TypeVar("T")
DOMAIN = "tercet"
ENGINE_PAUSE = 0.5  # seconds until a client should come again: about what an engine takes to start again
_LONGEST_MESSAGE = 1000  # characters; details travel in HTTP/2 headers, which are few kilobytes


class ServiceError(Exception):
    """A request, or an item of one, that is refused or failed. `message` is for the user and holds no prompt."""

    def __init__(self, message: str, *, field: str | None = None, retry_after: float | None = None, **metadata: str):
        """`field` is the path of the request's field, `retry_after` is in seconds, `metadata` goes into ErrorInfo."""
        super().__init__(message)
        self.message = self.description = message[:_LONGEST_MESSAGE]
        self.field = field
        self.retry_after = retry_after
        self.metadata = metadata


class InvalidArgumentError(ServiceError):
    """A field of the request has a value that can't be used."""

    def __init__(self, field: str, description: str):
        """The path of the field as in "inputs[3].text", and what is wrong with it."""
        super().__init__(f"{field}: {description}", field=field)
        self.description = description[:_LONGEST_MESSAGE]


class ModelNotFoundError(ServiceError):
    """No model has the name."""


class UnsupportedTaskError(ServiceError):
    """The model can't be asked that."""


class OverloadedError(ServiceError):
    """The model's queue is full."""


class UnavailableError(ServiceError):
    """The model can't answer now: it is loading, restarting or down, or the server is draining."""


class EngineLostError(ServiceError):
    """The model's engine died under the request."""


class DeadlineExceededError(ServiceError):
    """The deadline of the client passed."""


class GivenUpError(ServiceError):
    """The client gave up one request of a stream."""


class InternalError(ServiceError):
    """A fault of the server."""


def attempt(work: Callable[[], T]) -> T | ServiceError:
    """What `work` gives, or the error that refuses one of several inputs, whose neighbours are not touched."""
    try:
        return work()
    except InvalidArgumentError as error:
        return error


def unless_error(result: T | ServiceError) -> T:
    """Raises the error that a result is."""
    if isinstance(result, ServiceError):
        raise result
    return result


class _Mapping(NamedTuple):
    code: grpc.StatusCode
    reason: str


TABLE: dict[type[ServiceError], _Mapping] = {
    InvalidArgumentError: _Mapping(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT"),
    ModelNotFoundError: _Mapping(grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND"),
    UnsupportedTaskError: _Mapping(grpc.StatusCode.FAILED_PRECONDITION, "TASK_UNSUPPORTED"),
    OverloadedError: _Mapping(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL"),
    UnavailableError: _Mapping(grpc.StatusCode.UNAVAILABLE, "MODEL_UNAVAILABLE"),
    EngineLostError: _Mapping(grpc.StatusCode.UNAVAILABLE, "ENGINE_RESTARTED"),
    DeadlineExceededError: _Mapping(grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"),
    GivenUpError: _Mapping(grpc.StatusCode.CANCELLED, "CANCELLED"),
    InternalError: _Mapping(grpc.StatusCode.INTERNAL, "INTERNAL"),
}


def to_code(error: ServiceError) -> grpc.StatusCode:
    """The status code of an error."""
    return TABLE[type(error)].code


def to_status(error: ServiceError) -> Status:
    """An error with all its details, for the trailers of a call or for one item of a list."""
    code, reason = TABLE[type(error)]
    details: list[Message] = [ErrorInfo(reason=reason, domain=DOMAIN, metadata=error.metadata)]
    if error.field is not None:
        violation = BadRequest.FieldViolation(field=error.field, description=error.description)
        details.append(BadRequest(field_violations=[violation]))
    if error.retry_after is not None:
        delay = Duration()
        delay.FromMilliseconds(_milliseconds(error.retry_after))
        details.append(RetryInfo(retry_delay=delay))
    status = Status(code=code.value[0], message=error.message)
    for detail in details:
        status.details.add().Pack(detail)
    return status


def to_trailers(error: ServiceError) -> tuple[tuple[str, str | bytes], ...]:
    """The trailing metadata of a call that ends with an error: its details, and gRPC's own word on retrying (A6)."""
    pushback = -1 if error.retry_after is None else _milliseconds(error.retry_after)  # negative is never
    return (
        ("grpc-status-details-bin", to_status(error).SerializeToString()),
        ("grpc-retry-pushback-ms", str(pushback)),
    )


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
