"""Making calls over a channel and waiting for their answers: what `Client` and `AsyncClient` do differently."""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import grpc

from tercet.client import calls
from tercet.client.channel import Deadline, Stubs, call_metadata, channel_options
from tercet.client.errors import DeadlineExceeded, TercetError, Unavailable
from tercet.client.statuses import from_rpc_error

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator, Iterator
    from typing import Self

    from tercet.client.calls import Call, ListCall
    from tercet.client.results import Piece

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

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

    def __init__(
        self, target: str, token: str | None, credentials: grpc.ChannelCredentials | None, timeout: float | None
    ) -> None:
        self.metadata = call_metadata(target, token, credentials)
        self._target = target
        self._credentials = credentials
        self._timeout = timeout

    def connect(self, grpc_or_aio: Any) -> Any:
        """A channel of the kind that the module makes; it connects when first used."""
        options = channel_options(self._target)
        if self._credentials is None:
            return grpc_or_aio.insecure_channel(self._target, options)
        return grpc_or_aio.secure_channel(self._target, self._credentials, options)

    def deadline(self, timeout: float | None) -> Deadline:
        """The end of a call with this timeout."""
        return Deadline(timeout, self._timeout)

    def not_ready(self, model: str | None, deadline: Deadline, status: str) -> DeadlineExceeded:
        """What waiting in vain ends with."""
        what = self._target if model is None else f"{model} at {self._target}"
        return DeadlineExceeded(f"{what} was not ready within {deadline.timeout:g} s: {status}")


class Transport(_Server):
    """Synchronous; threads may share it."""

    def __init__(
        self, target: str, token: str | None, credentials: grpc.ChannelCredentials | None, timeout: float | None
    ) -> None:
        super().__init__(target, token, credentials, timeout)
        self.channel: grpc.Channel = self.connect(grpc)
        self._stubs = Stubs(self.channel)

    def start(self, call: Call[Any] | ListCall, request: Any, deadline: Deadline, **options: Any) -> Any:
        """The answer to `request`: a message, or a stream of them."""
        method = call.method(self._stubs)
        return method(request, timeout=deadline.left(), metadata=self.metadata, **options)

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

    @cached_property
    def channel(self) -> grpc.aio.Channel:
        """Made when first used, since a client may be made before its event loop."""
        return self.connect(grpc.aio)

    @cached_property
    def _stubs(self) -> Stubs:
        return Stubs(self.channel)

    def start(self, call: Call[Any] | ListCall, request: Any, deadline: Deadline, **options: Any) -> Any:
        """The call with `request`, None where requests are written to it: to be awaited, or iterated over."""
        method = call.method(self._stubs)
        return method(request, timeout=deadline.left(), metadata=self.metadata, **options)

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


class Stream:
    """The pieces of a generation, as they come. Leaving the loop, or the `with` block, cancels what is left."""

    def __init__(self, call: Call[Piece], answers: Any) -> None:
        self._read = call.read
        self._answers = answers
        self._closed = False

    def __iter__(self) -> Iterator[Piece]:
        # A generator of the loop's own: however the loop is left, it drops the generator, and that cancels.
        try:
            while not self._closed:
                yield self._read(next(self._answers))
        except StopIteration:
            return
        except grpc.RpcError as error:
            if not self._closed:
                raise from_rpc_error(error) from error
        finally:
            self.close()

    def close(self) -> None:
        """Cancels what is left. Does nothing to a stream that has ended."""
        self._closed = True
        self._answers.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncStream:
    """As `Stream`, for `async for` and `async with`."""

    def __init__(self, call: Call[Piece], answers: Any) -> None:
        self._read = call.read
        self._answers = answers
        self._closed = False

    def __aiter__(self) -> AsyncIterator[Piece]:
        return Pieces(self)

    async def close(self) -> None:
        """Cancels what is left. Does nothing to a stream that has ended."""
        self.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()

    def cancel(self) -> None:
        """As `close`, for where nothing can be awaited."""
        self._closed = True
        self._answers.cancel()

    async def next(self) -> Piece:
        """The next piece. Raises StopAsyncIteration after the last, or once closed."""
        if self._closed:
            raise StopAsyncIteration
        try:
            with typed_errors():
                answer = await self._answers.read()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closed and task and not task.cancelling():
                raise StopAsyncIteration from None
            raise
        if answer is grpc.aio.EOF:  # pyright: ignore[reportAttributeAccessIssue] compiled, without types
            raise StopAsyncIteration
        return self._read(answer)


class _Stream(Protocol[R_co]):
    async def next(self) -> R_co: ...

    def cancel(self) -> None: ...


class Pieces(Generic[R_co]):
    """An iterator of the loop's own: however the loop is left, it drops the iterator, and that cancels.

    An asynchronous generator would do so some time later, when the event loop closes it.
    """

    def __init__(self, stream: _Stream[R_co]) -> None:
        self._stream = stream

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> R_co:
        return await self._stream.next()

    def __del__(self) -> None:
        self._stream.cancel()
