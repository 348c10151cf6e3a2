"""Making calls over a channel and waiting for their answers: what `Client` and `AsyncClient` do differently."""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from tercet.client import calls
from tercet.client.channel import Deadline, call_metadata, channel_options
from tercet.client.connections import Connections
from tercet.client.errors import DeadlineExceeded, TercetError, Unavailable
from tercet.client.statuses import from_rpc_error

if TYPE_CHECKING:
    from collections.abc import Generator

    from tercet.client.calls import Call, ListCall

R = TypeVar("R")

READY_POLL = 0.05  # seconds between two looks at a server that is not ready


@contextmanager
def typed_errors(subject: str = "the request") -> Generator[None]:
    """Errors of gRPC inside become the SDK's; they are about `subject`."""
    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc_error(error, subject) from error


class _Server:
    """What both kinds of transport know of a server."""

    _module: Any
    """Of gRPC, whose channels and calls are made."""

    def __init__(
        self,
        target: str,
        token: str | None,
        credentials: grpc.ChannelCredentials | None,
        timeout: float | None,
        connections: int,
    ) -> None:
        self.connections: Connections[Any] = Connections(self._connect, connections)
        self.metadata = call_metadata(target, token, credentials)
        self._target = target
        self._credentials = credentials
        self._timeout = timeout

    def _connect(self) -> Any:
        """A channel of the kind that the module makes; it connects when first used."""
        options = channel_options(self._target)
        if self._credentials is None:
            return self._module.insecure_channel(self._target, options)
        return self._module.secure_channel(self._target, self._credentials, options)

    def deadline(self, timeout: float | None) -> Deadline:
        """The end of a call with this timeout."""
        return Deadline(timeout, self._timeout)

    def not_ready(self, model: str | None, deadline: Deadline, status: str) -> DeadlineExceeded:
        """What waiting in vain ends with."""
        what = self._target if model is None else f"{model} at {self._target}"
        return DeadlineExceeded(f"{what} was not ready within {deadline.timeout:g} s: {status}")


class Transport(_Server):
    """Synchronous; threads may share it."""

    _module = grpc

    def close(self) -> None:
        """Cancels what still runs and hangs up."""
        for channel in self.connections.channels:
            channel.close()

    def start(self, call: Call[Any] | ListCall, request: Any, deadline: Deadline, **options: Any) -> Any:
        """The answer to `request`: a message, or a stream of them."""
        connection = self.connections.enter()
        leave = partial(self.connections.leave, connection)
        goes_on = False
        try:
            method = call.method(connection.stubs)
            answer = method(request, timeout=deadline.left(), metadata=self.metadata, **options)
            goes_on = isinstance(answer, grpc.RpcContext) and answer.add_callback(leave)
        finally:
            if not goes_on:
                leave()
        return answer

    def one(self, call: Call[R], deadline: Deadline, **options: Any) -> R:
        """The answer to one request."""
        with typed_errors(call.subject):
            return call.read(self.start(call, call.request, deadline, **options))

    def many(self, call: ListCall, deadline: Deadline) -> Any:
        """The answers to the requests of a list; a stream that breaks is taken up where it broke."""
        while call.pending:
            try:
                self._ask(call, deadline)
            except TercetError as error:
                time.sleep(call.pause(error, deadline.left()))
        return call.result()

    def _ask(self, call: ListCall, deadline: Deadline) -> None:
        """Sends what is pending: on one stream, or one after the other."""
        with typed_errors():
            if call.streamed:
                answers = self.start(call, iter(call.pending), deadline)
                try:
                    for answer in answers:
                        call.add(answer)
                finally:
                    answers.cancel()
            else:
                for request in call.pending:
                    call.add(self.start(call, request, deadline))

    def wait_ready(self, model: str | None, deadline: Deadline) -> None:
        """Asks for the health until it is SERVING."""
        status = "no answer"
        while True:
            try:
                status = self.one(calls.health(model), deadline, wait_for_ready=True)
            except Unavailable as error:
                status = error.message
            except DeadlineExceeded as error:
                raise self.not_ready(model, deadline, status) from error
            if status == "SERVING":
                return
            time.sleep(READY_POLL)


class AsyncTransport(_Server):
    """Of the event loop in which it is first used."""

    _module = grpc.aio

    async def close(self) -> None:
        """Cancels what still runs and hangs up."""
        for channel in self.connections.channels:
            await channel.close()

    def start(self, call: Call[Any] | ListCall, request: Any, deadline: Deadline, **options: Any) -> Any:
        """The call with `request`, None where requests are written to it: to be awaited, or iterated over."""
        connection = self.connections.enter()
        method = call.method(connection.stubs)
        answer = method(request, timeout=deadline.left(), metadata=self.metadata, **options)
        answer.add_done_callback(lambda _: self.connections.leave(connection))
        return answer

    async def one(self, call: Call[R], deadline: Deadline, **options: Any) -> R:
        """The answer to one request."""
        with typed_errors(call.subject):
            return call.read(await self.start(call, call.request, deadline, **options))

    async def many(self, call: ListCall, deadline: Deadline) -> Any:
        """The answers to the requests of a list; a stream that breaks is taken up where it broke."""
        while call.pending:
            try:
                await self._ask(call, deadline)
            except TercetError as error:
                await asyncio.sleep(call.pause(error, deadline.left()))
        return call.result()

    async def _ask(self, call: ListCall, deadline: Deadline) -> None:
        """Sends what is pending: on one stream, or one after the other."""
        with typed_errors():
            if call.streamed:
                answers = self.start(call, iter(call.pending), deadline)
                try:
                    async for answer in answers:
                        call.add(answer)
                finally:
                    answers.cancel()
            else:
                for request in call.pending:
                    call.add(await self.start(call, request, deadline))

    async def wait_ready(self, model: str | None, deadline: Deadline) -> None:
        """Asks for the health until it is SERVING."""
        status = "no answer"
        while True:
            try:
                status = await self.one(calls.health(model), deadline, wait_for_ready=True)
            except Unavailable as error:
                status = error.message
            except DeadlineExceeded as error:
                raise self.not_ready(model, deadline, status) from error
            if status == "SERVING":
                return
            await asyncio.sleep(READY_POLL)
