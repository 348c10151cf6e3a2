"""Many generations at once, over one stream."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from contextlib import suppress
from operator import attrgetter
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

import grpc

from tercet.client import calls
from tercet.client.calls import Call
from tercet.client.errors import TercetError
from tercet.client.generations import Generations, Outcome
from tercet.client.requests import Sampling
from tercet.client.streams import Pieces
from tercet.client.transport import typed_errors

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
    from typing import Self, Unpack

    from tercet.client.calls import Errors
    from tercet.client.channel import Deadline
    from tercet.client.requests import ChatMessage, Prompt
    from tercet.client.results import Generation, Piece
    from tercet.client.transport import AsyncTransport, Transport

    Asked = Prompt | Iterable[ChatMessage] | Mapping[str, Any]
    Requests = Iterable[Asked] | Mapping[Any, Asked]

T = TypeVar("T")
_CONCURRENCY = 64
_METHOD: Call[Any] = Call(attrgetter("generation.GenerateMany"), None, lambda message: message)


class ManyOptions(Sampling, total=False):
    """What all requests have in common."""

    model: str | None
    """May be left out where one model alone can generate."""
    truncate: bool | None
    """Whether a prompt that is too long is cut; else it is refused."""
    task: str | None
    """One of the checkpoint's own."""
    source_lang: str | None
    target_lang: str | None
    cache_salt: str | None
    """Whose cache of prompts and sources is shared."""
    concurrency: int
    """How many run at once; 64. The rest is read as there is room."""
    timeout: float | None
    """Seconds for all of them."""


class _Outcomes:
    """What both kinds of iterator know."""

    def __init__(self, generations: Generations, deadline: Deadline, errors: Errors) -> None:
        if errors not in ("raise", "return"):
            raise ValueError(f'errors must be "raise" or "return", got {errors!r}')
        self._generations = generations
        self._deadline = deadline
        self._raises = errors == "raise"
        self._answers: Any = None
        """The stream, while there is one."""
        self._closed = False

    def _given(self, outcome: Outcome) -> tuple[Any, Any]:
        """An outcome as the caller sees it. Raises its error, unless errors are to be returned."""
        if self._raises and isinstance(outcome.value, TercetError):
            raise outcome.value
        return outcome.key, outcome.value

    def _hang_up(self) -> None:
        """Drops the stream. Does nothing to one that has ended."""
        answers, self._answers = self._answers, None
        if answers is not None:
            answers.cancel()


class ManyStream(_Outcomes, Generic[T]):
    """Key and result, or piece, of each generation, as they come. Leaving the loop, or the `with` block, cancels the
    rest.
    """

    def __init__(self, transport: Transport, generations: Generations, deadline: Deadline, errors: Errors) -> None:
        super().__init__(generations, deadline, errors)
        self._transport = transport
        self._requests: SimpleQueue[Any] = SimpleQueue()

    def __iter__(self) -> Iterator[tuple[Any, T]]:
        try:
            while not self._closed and not self._generations.finished:
                for outcome in self._round():
                    yield self._given(outcome)
            self._finish()
        finally:
            self.close()

    def close(self) -> None:
        """Cancels what is left. Does nothing where all have ended."""
        self._closed = True
        self._hang_up()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _round(self) -> list[Outcome]:
        """Starts what there is room for, and gives what the next message brings, which may be nothing."""
        for request in self._generations.start():
            if self._answers is None:
                self._answers = self._transport.start(_METHOD, iter(self._requests.get, None), self._deadline)
            self._requests.put(request)
        outcomes = self._generations.refused()
        if outcomes or self._generations.finished:
            return outcomes
        if pause := self._generations.pause:
            time.sleep(pause)
            return []
        try:
            with typed_errors():
                message = next(self._answers, None)
        except TercetError as error:
            self._hang_up()
            return [] if self._closed else self._generations.broken(error)
        if message is None:
            raise self._generations.ended()
        return self._generations.take(message)

    def _finish(self) -> None:
        """Ends a stream that has nothing more to bring."""
        if self._answers is not None:
            self._requests.put(None)
            with suppress(grpc.RpcError):
                next(self._answers, None)

    def _hang_up(self) -> None:
        super()._hang_up()
        self._requests.put(None)  # ends the thread that reads them
        self._requests = SimpleQueue()


class AsyncManyStream(_Outcomes, Generic[T]):
    """As `ManyStream`, for `async for` and `async with`."""

    def __init__(self, transport: AsyncTransport, generations: Generations, deadline: Deadline, errors: Errors) -> None:
        super().__init__(generations, deadline, errors)
        self._transport = transport
        self._ready: deque[Outcome] = deque()

    def __aiter__(self) -> AsyncIterator[tuple[Any, T]]:
        return Pieces(self)

    async def close(self) -> None:
        """Cancels what is left. Does nothing where all have ended."""
        self.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()

    def cancel(self) -> None:
        """As `close`, for where nothing can be awaited."""
        self._closed = True
        self._hang_up()

    async def next(self) -> tuple[Any, T]:
        """The next outcome. Raises StopAsyncIteration after the last, or once closed."""
        while not self._ready:
            if self._closed or self._generations.finished:
                await self._finish()
                raise StopAsyncIteration
            self._ready += await self._round()
        return self._given(self._ready.popleft())

    async def _round(self) -> list[Outcome]:
        """As `ManyStream._round`."""
        try:
            with typed_errors():
                for request in self._generations.start():
                    if self._answers is None:
                        self._answers = self._transport.start(_METHOD, None, self._deadline)
                    with suppress(asyncio.InvalidStateError):  # it has ended: reading tells why
                        await self._answers.write(request)
                outcomes = self._generations.refused()
                if outcomes or self._generations.finished:
                    return outcomes
                if pause := self._generations.pause:
                    await asyncio.sleep(pause)
                    return []
                message = await self._answers.read()
        except TercetError as error:
            self._hang_up()
            return [] if self._closed else self._generations.broken(error)
        if message is grpc.aio.EOF:  # pyright: ignore[reportAttributeAccessIssue] compiled, without types
            raise self._generations.ended()
        return self._generations.take(message)

    async def _finish(self) -> None:
        """Ends a stream that has nothing more to bring."""
        if self._answers is not None:
            with suppress(grpc.RpcError):
                await self._answers.done_writing()
                await self._answers.read()


class Many:
    """Many generations at once, with a client that waits."""

    _transport: Transport

    @overload
    def generate_many(
        self, requests: Requests, *, errors: Literal["raise"] = "raise", **options: Unpack[ManyOptions]
    ) -> ManyStream[Generation]: ...
    @overload
    def generate_many(
        self, requests: Requests, *, errors: Literal["return"], **options: Unpack[ManyOptions]
    ) -> ManyStream[Generation | TercetError]: ...
    def generate_many(self, requests: Any, *, errors: Errors = "raise", **options: Any) -> Any:
        """Results of many requests, as they are complete, each with the key of its request.

        All of them share one stream, whose messages bring the tokens of every one: a server does many more so than by
        calls of their own.

        Args:
            requests: prompts as of `generate`, or conversations as of `chat`: a mapping by keys of yours, else they are
                numbered. One that is a mapping itself has options of its own: {"prompt": "Once", "seed": 3}. They are
                read as there is room, so there may be any number.
            errors: "raise" raises the error of the first request that fails, with its number in `index`; "return" puts
                each error where the result would be. What concerns the whole call is raised.
            options: what the requests have in common, `concurrency` and `timeout`; see `ManyOptions` and `Sampling`.
        """
        return self._many(requests, errors, options, pieces=False)

    @overload
    def stream_many(
        self, requests: Requests, *, errors: Literal["raise"] = "raise", **options: Unpack[ManyOptions]
    ) -> ManyStream[Piece]: ...
    @overload
    def stream_many(
        self, requests: Requests, *, errors: Literal["return"], **options: Unpack[ManyOptions]
    ) -> ManyStream[Piece | TercetError]: ...
    def stream_many(self, requests: Any, *, errors: Errors = "raise", **options: Any) -> Any:
        """As `generate_many`, but piece by piece, each with the key of its request."""
        return self._many(requests, errors, options, pieces=True)

    def _many(self, requests: Any, errors: Errors, options: dict[str, Any], *, pieces: bool) -> ManyStream[Any]:
        deadline = self._transport.deadline(options.pop("timeout", None))
        return ManyStream(self._transport, _generations(requests, options, deadline, pieces=pieces), deadline, errors)


class AsyncMany:
    """As `Many`, to await."""

    _transport: AsyncTransport

    @overload
    def generate_many(
        self, requests: Requests, *, errors: Literal["raise"] = "raise", **options: Unpack[ManyOptions]
    ) -> AsyncManyStream[Generation]: ...
    @overload
    def generate_many(
        self, requests: Requests, *, errors: Literal["return"], **options: Unpack[ManyOptions]
    ) -> AsyncManyStream[Generation | TercetError]: ...
    def generate_many(self, requests: Any, *, errors: Errors = "raise", **options: Any) -> Any:
        """As `Client.generate_many`."""
        return self._many(requests, errors, options, pieces=False)

    @overload
    def stream_many(
        self, requests: Requests, *, errors: Literal["raise"] = "raise", **options: Unpack[ManyOptions]
    ) -> AsyncManyStream[Piece]: ...
    @overload
    def stream_many(
        self, requests: Requests, *, errors: Literal["return"], **options: Unpack[ManyOptions]
    ) -> AsyncManyStream[Piece | TercetError]: ...
    def stream_many(self, requests: Any, *, errors: Errors = "raise", **options: Any) -> Any:
        """As `Client.stream_many`."""
        return self._many(requests, errors, options, pieces=True)

    def _many(self, requests: Any, errors: Errors, options: dict[str, Any], *, pieces: bool) -> AsyncManyStream[Any]:
        deadline = self._transport.deadline(options.pop("timeout", None))
        generations = _generations(requests, options, deadline, pieces=pieces)
        return AsyncManyStream(self._transport, generations, deadline, errors)


def _generations(requests: Any, options: dict[str, Any], deadline: Deadline, *, pieces: bool) -> Generations:
    most = options.pop("concurrency", _CONCURRENCY)
    return Generations(calls.many(requests, options), pieces=pieces, most=most, deadline=deadline)
