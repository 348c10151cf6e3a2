"""Everything that can go wrong, as exceptions:

    TercetError
    ├── InvalidArgument (ValueError)         the request can't be served as it is; `field` names what is wrong
    ├── Unauthenticated                      no token, or one that the server does not know
    ├── PermissionDenied                     the token's owner may not do this
    ├── NotFound                             no such model; the message names those there are
    ├── FailedPrecondition                   the model can't do this task; the message says what it can
    ├── ResourceExhausted                    the server is full, or a message is too large; see `retry_after`
    ├── Unavailable (ConnectionError)        no server, or it drains or restarts an engine; see `retry_after`
    ├── DeadlineExceeded (TimeoutError)      the call's timeout passed
    ├── Cancelled                            the call was cancelled, as by closing the client under it
    ├── Unimplemented                        the server is older than the SDK
    └── Internal                             a fault of the server

Wrong Python types raise TypeError before anything is sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "Cancelled",
    "DeadlineExceeded",
    "FailedPrecondition",
    "FieldViolation",
    "Internal",
    "InvalidArgument",
    "NotFound",
    "PermissionDenied",
    "ResourceExhausted",
    "TercetError",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
]


@dataclass(frozen=True)
class FieldViolation:
    """What is wrong with one field of a request."""

    field: str
    """Its path, as in the protocol: "sampling.top_p", "inputs[3].text"."""
    description: str


class TercetError(Exception):
    """The base of every error that a call raises, and the error itself for status codes without a class."""

    default_code: ClassVar[str] = "UNKNOWN"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        violations: Sequence[FieldViolation] = (),
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        retry_after: float | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        """What went wrong, in the server's words."""
        self.code = code or self.default_code
        """The gRPC status code: "INVALID_ARGUMENT"."""
        self.violations = list(violations)
        """The fields at fault, where the server named any."""
        self.reason = reason
        """google.rpc.ErrorInfo's reason, stable where the message is not: "ENGINE_RESTARTED"."""
        self.metadata = dict(metadata or {})
        """What belongs to the reason: {"tokens_sent": "12"}."""
        self.retry_after = retry_after
        """Seconds after which the server suggests to try again, None where it suggests nothing."""
        self.request_id = request_id
        """What the server's log calls this request."""
        self.index: int | None = None
        """The position of the refused item in the list that was passed; None where the whole call failed."""

    @property
    def field(self) -> str | None:
        """The path of the first field at fault."""
        return self.violations[0].field if self.violations else None

    def __str__(self) -> str:
        return f"{self.message} (request {self.request_id})" if self.request_id else self.message


class InvalidArgument(TercetError, ValueError):
    """The request can't be served as it is; `field` and `violations` say what to change."""

    default_code = "INVALID_ARGUMENT"


class Unauthenticated(TercetError):
    """No token, or one that the server does not know."""

    default_code = "UNAUTHENTICATED"


class PermissionDenied(TercetError):
    """The token's owner may not do this."""

    default_code = "PERMISSION_DENIED"


class NotFound(TercetError):
    """No model has this name; the message names those there are."""

    default_code = "NOT_FOUND"


class FailedPrecondition(TercetError):
    """The model can't do this task; the message says what it can."""

    default_code = "FAILED_PRECONDITION"


class ResourceExhausted(TercetError):
    """The server is full and stayed so through the retries, or a message is larger than it takes."""

    default_code = "RESOURCE_EXHAUSTED"


class Unavailable(TercetError, ConnectionError):
    """No server answers, it is shutting down, or the engine of the model died and is being started again."""

    default_code = "UNAVAILABLE"


class DeadlineExceeded(TercetError, TimeoutError):
    """The call's timeout passed before its answer was complete."""

    default_code = "DEADLINE_EXCEEDED"


class Cancelled(TercetError):
    """The call was cancelled from outside, as by closing the client under it."""

    default_code = "CANCELLED"


class Unimplemented(TercetError):
    """The server does not know this call: it is older than the SDK."""

    default_code = "UNIMPLEMENTED"


class Internal(TercetError):
    """A fault of the server."""

    default_code = "INTERNAL"


BY_CODE: dict[str, type[TercetError]] = {error.default_code: error for error in TercetError.__subclasses__()}
