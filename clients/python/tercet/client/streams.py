"""The pieces of a generation as iterators."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import grpc

from tercet.client.statuses import from_rpc_error
from tercet.client.transport import typed_errors

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from typing import Self

    from tercet.client.calls import Call
    from tercet.client.results import Piece

R_co = TypeVar("R_co", covariant=True)


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
