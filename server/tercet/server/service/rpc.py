"""Between grpc.aio and the servicers: every method of a service, from its descriptor.

A call gets an id that the server makes, its deadline, errors turned into statuses with details, metrics and a log line;
a message that protobuf can't read becomes an error that names the field. Servicers are plain classes with a method for
each of the descriptor's; streams are read by `async for` and written by `call.write`, so that `finally` blocks run as
soon as a client leaves.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import re
import secrets
import time
from typing import TYPE_CHECKING, Any, cast

import grpc
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from tercet.server.logs import fields
from tercet.server.service.errors import (
    EngineLostError,
    InternalError,
    InvalidArgumentError,
    OverloadedError,
    ServiceError,
    UnavailableError,
    to_code,
    to_trailers,
)
from tercet.server.service.malformed import diagnose

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from google.protobuf.descriptor import Descriptor, MethodDescriptor, ServiceDescriptor
    from google.protobuf.message import Message
    from prometheus_client import Counter

    from tercet.server.metrics import Histogram, Metrics

log = logging.getLogger(__name__)

# Seconds by which a client that keeps its deadline may seem to leave before it: its clock started earlier.
_CLOCKS = 0.1
_PROCESS = secrets.token_hex(4)  # what the ids that this process makes begin with
_numbers = itertools.count()
_ELSEWHERE = 0.1  # seconds until a client that is turned away should try another server
_CLIENT_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_REJECTED: dict[type[ServiceError], str] = {
    InvalidArgumentError: "invalid",
    OverloadedError: "queue_full",
    UnavailableError: "unavailable",
}


class Exchange:
    """One request and its answer: a call, or one of many that a stream carries."""

    __slots__ = ("deadline", "model", "stage", "started")

    def __init__(self, deadline: float | None) -> None:
        """`deadline`: time.monotonic() at which the client gives up; None is never."""
        self.model = ""
        """The name of the addressed model, for the metrics; set by the servicer once it is known to be one."""
        self.stage = "queued"
        """Of generation: "queued" until its first token, then "decode"."""
        self.started = time.monotonic()
        self.deadline = deadline


class Call(Exchange):
    """One call, as a servicer sees it."""

    __slots__ = ("_context", "client_id", "closing", "id", "method")

    def __init__(self, method: str, context: grpc.aio.ServicerContext[Any, Any], closing: asyncio.Event) -> None:
        left = cast("float | None", context.time_remaining())
        super().__init__(None if left is None else time.monotonic() + left)
        self.id = f"{_PROCESS}{next(_numbers):08x}"
        self.client_id = _client_id(context)
        """What the client calls it: echoed and logged, never used."""
        self.method = method
        self.closing = closing
        """Set once new calls are turned away: a stream that has nothing to do should end."""
        self._context = context

    async def write(self, message: Message) -> None:
        """Sends one message of a response stream, waiting while the client is slow to read."""
        await self._context.write(message)

    @property
    def trailers(self) -> tuple[tuple[str, str | bytes], ...]:
        """The trailing metadata of every call."""
        own = ("x-request-id", self.id)
        return (own, ("x-client-request-id", self.client_id)) if self.client_id else (own,)


class Gate:
    """Counts the calls that run, and turns new ones away once it is closing."""

    def __init__(self) -> None:
        self.calls = 0
        self.closing = asyncio.Event()
        """Set where new calls are turned away."""
        self._idle = asyncio.Event()
        self._idle.set()

    def enter(self) -> None:
        """A call begins. Every `enter` is followed by a `leave`."""
        self.calls += 1
        self._idle.clear()

    def leave(self) -> None:
        """A call has ended."""
        self.calls -= 1
        if self.calls == 0:
            self._idle.set()

    async def idle(self) -> None:
        """Waits until no call runs."""
        await self._idle.wait()


class Broken:
    """A request that protobuf could not read."""

    __slots__ = ("error",)

    def __init__(self, error: InvalidArgumentError) -> None:
        self.error = error


def reader(descriptor: Descriptor) -> Callable[[bytes], Message | Broken]:
    """Reads messages of one type."""
    parse = GetMessageClass(descriptor).FromString

    def read(data: bytes) -> Message | Broken:
        try:
            return parse(data)
        except DecodeError:
            fault = diagnose(descriptor, data)
            return Broken(InvalidArgumentError(fault.field or "message", fault.problem))

    return read


def count_refusal(metrics: Metrics, model: str, error: ServiceError) -> None:
    """Counts a call, or a request of a stream, that was refused before any work."""
    if type(error) in _REJECTED:
        metrics.rejected.labels(model, _REJECTED[type(error)]).inc()


def handler(service: ServiceDescriptor, servicer: object, metrics: Metrics, gate: Gate) -> grpc.GenericRpcHandler:
    """Serves every method of a service, EmbedStream by the servicer's embed_stream and so on."""
    methods = {m.name: _method_handler(m, getattr(servicer, _snake(m.name)), metrics, gate) for m in service.methods}
    return grpc.method_handlers_generic_handler(service.full_name, methods)


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def _method_handler(
    method: MethodDescriptor, behaviour: Callable[[Any, Call], Awaitable[Any]], metrics: Metrics, gate: Gate
) -> grpc.RpcMethodHandler:
    @functools.cache
    def counters(model: str, code: grpc.StatusCode) -> tuple[Counter, Histogram]:
        """Of the calls that end so: resolved once, since looking labels up costs more than counting."""
        return metrics.requests.labels(model, method.name, code.name), metrics.duration.labels(model, method.name)

    async def answer(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        call = Call(method.name, context, gate.closing)
        context.set_trailing_metadata(call.trailers)
        code = grpc.StatusCode.OK
        gate.enter()
        try:
            if gate.closing.is_set():
                raise shutting_down()
            if isinstance(request, Broken):
                raise request.error
            return await behaviour(request, call)
        except asyncio.CancelledError:
            late = call.deadline is not None and time.monotonic() >= call.deadline - _CLOCKS
            code = grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
            metrics.cancelled.labels(call.model, call.stage).inc()
            raise
        except Exception as error:
            failure = failure_of(error, call)
            code = to_code(failure)
            count_refusal(metrics, call.model, failure)
            await context.abort(code, failure.message, call.trailers + to_trailers(failure))
        finally:
            gate.leave()
            seconds = time.monotonic() - call.started
            requests, duration = counters(call.model, code)
            requests.inc()
            duration.observe(seconds)
            if log.isEnabledFor(logging.DEBUG):
                _log(call, code, seconds)

    make: Callable[..., grpc.RpcMethodHandler] = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[method.client_streaming, method.server_streaming]
    response = GetMessageClass(method.output_type)
    return make(answer, request_deserializer=reader(method.input_type), response_serializer=response.SerializeToString)


def shutting_down() -> UnavailableError:
    """What is said to those that are turned away."""
    return UnavailableError("the server is shutting down", retry_after=_ELSEWHERE)


def failure_of(error: Exception, call: Call) -> ServiceError:
    """What the client is told of an error."""
    if isinstance(error, EngineLostError) and call.closing.is_set():
        return UnavailableError("the server shut down before the answer", retry_after=_ELSEWHERE, **error.metadata)
    if isinstance(error, ServiceError):
        return error
    log.error("call failed", extra=fields(id=call.id, method=call.method, model=call.model), exc_info=error)
    return InternalError(f"the server made a mistake; its log has more on request {call.id}")


def _log(call: Call, code: grpc.StatusCode, seconds: float) -> None:
    log.debug(
        "call",
        extra=fields(
            id=call.id,
            client_id=call.client_id,
            method=call.method,
            model=call.model,
            code=code.name,
            seconds=round(seconds, 6),
        ),
    )


def _client_id(context: grpc.aio.ServicerContext[Any, Any]) -> str | None:
    for key, value in context.invocation_metadata() or ():
        if key == "x-request-id" and isinstance(value, str) and _CLIENT_ID.fullmatch(value):
            return value
    return None
