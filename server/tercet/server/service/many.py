"""GenerateMany: one stream that carries many generations, every step's tokens in one message."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tercet.server.service.errors import (
    GivenUpError,
    InvalidArgumentError,
    OverloadedError,
    ServiceError,
    to_status,
)
from tercet.server.service.pieces import FINISH_REASONS, logprobs
from tercet.server.service.rpc import Broken, Exchange, count_refusal, failure_of, shutting_down
from tercet.v1.generation_pb2 import GenerateManyEnd, GenerateManyResponse, PieceDetails

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tercet.server.metrics import Metrics
    from tercet.server.service.pieces import Piece
    from tercet.server.service.rpc import Call
    from tercet.server.service.starting import Started, Starter
    from tercet.v1.generation_pb2 import GenerateManyRequest, GenerateRequest

_MOST_TOKENS = 1 << 14  # of one message, but for its last piece: well within what clients receive by default
_COME_AGAIN = 0.1  # seconds until there may be room for one more generation


class _Generation:
    """One generation of a stream, and the reader of its outputs."""

    __slots__ = ("_many", "changed", "error", "exchange", "first", "key", "started", "work")

    def __init__(self, many: Many, key: int, deadline: float | None) -> None:
        self._many = many
        self.key = key
        self.exchange = Exchange(deadline)
        self.work: asyncio.Future[None] | None = None
        """What starts it."""
        self.started: Started | None = None
        self.first: dict[str, Any] | None = None
        """What its first piece says beside its tokens; None until that is known, and nothing is sent before."""
        self.error: ServiceError | None = None
        self.changed = True
        """Whether it is queued to be looked at, or not yet begun: its tokens wait for that."""

    def notice(self) -> None:
        """It has pieces."""
        if not self.changed:
            self._many.queue(self)

    def give(self, index: int, token_id: int, text: str) -> bool:
        """Puts a token into the next message, unless that is full or something goes before or with the token."""
        columns = self._many.next
        if self.changed or self.first or len(columns.keys) >= _MOST_TOKENS:
            return False
        if not columns.keys:
            self._many.news.set()
        columns.keys.append(self.key)
        columns.indexes.append(index)
        columns.token_ids.append(token_id)
        columns.texts.append(text)
        return True

    def close(self) -> None:
        """Stops what still runs."""
        if self.work is not None:
            self.work.cancel()
        if self.started is not None:
            self.started.outputs.close()
            self.started = None  # its outputs are counted once


@dataclass(slots=True)
class _Columns:
    """A message in the making."""

    keys: list[int] = field(default_factory=list)
    indexes: list[int] = field(default_factory=list)
    token_counts: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    details: list[PieceDetails] = field(default_factory=list)
    ends: list[GenerateManyEnd] = field(default_factory=list)

    def add(self, key: int, index: int, piece: Piece, first: dict[str, Any]) -> None:
        """One more piece; `first`: what it says beside, where it is its generation's first."""
        if first or piece.finish_reason is not None or piece.logprobs:
            details = PieceDetails(
                piece=len(self.keys),
                finish_reason=FINISH_REASONS[piece.finish_reason],
                logprobs=logprobs(piece.logprobs),
                score=piece.score,
                **first,
            )
            self.details.append(details)
        self.keys.append(key)
        self.indexes.append(index)
        self.token_counts.append(len(piece.token_ids))
        self.token_ids += piece.token_ids
        self.texts.append(piece.text)

    def message(self) -> GenerateManyResponse:
        """The message: columns that say what is understood are left out."""
        message = GenerateManyResponse(keys=self.keys, token_ids=self.token_ids, details=self.details, ends=self.ends)
        if any(self.indexes):
            message.indexes.extend(self.indexes)
        if self.token_counts.count(1) < len(self.token_counts):
            message.token_counts.extend(self.token_counts)
        if any(self.texts):
            message.texts.extend(self.texts)
        return message


class Many:
    """The generations of one stream. What its reader does not take yet piles up in their outputs."""

    def __init__(self, starter: Starter, call: Call, metrics: Metrics, *, most: int) -> None:
        """`most`: how many may run at once."""
        self._starter = starter
        self._call = call
        self._metrics = metrics
        self._most = most
        self._running: dict[int, _Generation] = {}
        self._last_key = -1
        self._changed: deque[_Generation] = deque()
        self.next = _Columns()
        """The next message, as far as nothing but tokens goes into it."""
        self.news = asyncio.Event()
        """Set where there is something to write."""

    async def serve(self, requests: AsyncIterator[GenerateManyRequest | Broken]) -> None:
        """Takes requests and writes answers until there are no more of either. Raises ServiceError."""
        reading = asyncio.ensure_future(self._read(requests))
        closing = asyncio.ensure_future(self._call.closing.wait())
        for task in (reading, closing):
            task.add_done_callback(lambda _: self.news.set())
        try:
            while self._running or not reading.done():
                await self.news.wait()
                self.news.clear()
                if reading.done():
                    reading.result()
                while self._changed or self.next.keys:
                    if columns := self._columns():
                        await self._call.write(columns.message())
                if closing.done() and not self._running:
                    raise shutting_down()
            reading.result()
        finally:
            for task in (reading, closing):
                task.cancel()
            for generation in self._running.values():
                generation.close()

    def queue(self, generation: _Generation) -> None:
        """Has a generation looked at."""
        generation.changed = True
        self._changed.append(generation)
        self.news.set()

    async def _read(self, requests: AsyncIterator[GenerateManyRequest | Broken]) -> None:
        async for request in requests:
            if isinstance(request, Broken):
                raise request.error
            match request.WhichOneof("action"):
                case "generate":
                    self._start(request.key, request.generate)
                case "cancel":
                    self._cancel(request)
                case _:
                    raise InvalidArgumentError("action", "must have generate or cancel")

    def _start(self, key: int, request: GenerateRequest) -> None:
        """Begins a generation. Raises InvalidArgumentError for a key that is not above those before."""
        if key <= self._last_key:
            raise InvalidArgumentError("key", f"{key} is not above the one before, {self._last_key}")
        self._last_key = key
        generation = _Generation(self, key, self._call.deadline)
        if self._call.closing.is_set():
            self._fail(generation, shutting_down())
        elif len(self._running) >= self._most:
            problem = f"{len(self._running)} generations run on the stream, the limit is {self._most}"
            self._fail(generation, OverloadedError(problem, retry_after=_COME_AGAIN))
        else:
            generation.work = asyncio.ensure_future(self._begin(generation, request))
        self._running[key] = generation

    async def _begin(self, generation: _Generation, request: GenerateRequest) -> None:
        try:
            generation.started = await self._starter.start(request, generation.exchange, generation)
            self._call.model = self._call.model or generation.exchange.model  # of a stream, its first
            generation.first = generation.started.common | await self._starter.echoed(generation.started)
            self.queue(generation)
        except Exception as error:
            self._fail(generation, failure_of(error, self._call))

    def _cancel(self, request: GenerateManyRequest) -> None:
        """Gives up a generation; nothing becomes of one that has ended. Raises InvalidArgumentError."""
        if not request.cancel:
            raise InvalidArgumentError("cancel", "must be true")
        if request.key > self._last_key:
            raise InvalidArgumentError("key", f"no generation {request.key} was started")
        generation = self._running.get(request.key)
        if generation is not None and generation.error is None:
            generation.close()
            self._metrics.cancelled.labels(generation.exchange.model, generation.exchange.stage).inc()
            self._fail(generation, GivenUpError("the client gave it up"))

    def _fail(self, generation: _Generation, error: ServiceError) -> None:
        generation.error = error
        self.queue(generation)

    def _columns(self) -> _Columns | None:
        """What has changed, as much of it as goes into one message; None where there is nothing to say of it."""
        columns, self.next = self.next, _Columns()
        columns.token_counts = [1] * len(columns.keys)
        while self._changed and len(columns.token_ids) < _MOST_TOKENS:
            generation = self._changed.popleft()
            if generation.key not in self._running:  # it was queued twice, and has ended
                continue
            generation.changed = False
            if generation.error is None:
                self._take(generation, columns)
            if generation.error is not None:
                count_refusal(self._metrics, generation.exchange.model, generation.error)
                self._end(generation, columns)
        return columns if columns.keys or columns.ends else None

    def _take(self, generation: _Generation, columns: _Columns) -> None:
        started, first = generation.started, generation.first
        if started is None or first is None:
            return
        try:
            pieces = started.outputs.take()
        except ServiceError as error:
            generation.error = failure_of(error, self._call)
            return
        for index, piece in pieces:
            columns.add(generation.key, index, piece, first)
            generation.first = first = {}
        if started.outputs.finished:
            self._end(generation, columns)

    def _end(self, generation: _Generation, columns: _Columns) -> None:
        """The last that is said of a generation."""
        end = GenerateManyEnd(key=generation.key)
        if generation.error is not None:
            end.error.CopyFrom(to_status(generation.error))
        elif generation.started is not None:
            end.model = generation.exchange.model
            end.usage.CopyFrom(generation.started.usage)
        columns.ends.append(end)
        generation.close()
        del self._running[generation.key]
