"""Decides what runs next: rows read whole, chunks of prompts and decoding rows, from one queue by one policy.

1. Every running sequence goes on, oldest first: those that decode by one token, then those that still read their prompt
   by as many tokens as the batch has room for.
2. What waits is admitted, oldest first, as long as there are rows and pages. What is read whole, in a batch of its own,
   is taken by length around the oldest one, so that little of the batch is padding and none starves.
3. What has been computed before is not computed again while it is in pages (`PageCache`): a sequence starts behind the
   pages that it finds, and waits for those that another one is about to fill.
4. When a sequence needs a page and none is free, the youngest one gives up its pages and waits to be recomputed, as far
   as others take them. The oldest can always take every page there is, so that it ends.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

from tercet.server.engine.page_cache import PageCache
from tercet.server.engine.pages import LanePool, pages_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tercet.server.engine.pages import PagePool
    from tercet.server.engine.sequence import Request, Sequence

LOOKAHEAD = 8  # batches of rows among which sources of similar length are looked for

_order = attrgetter("order")


Chunk = tuple["Sequence", int]
"""The next tokens of each row of a sequence, from `computed` on: how many. A plain tuple, since every row has one in
every step."""


class Plan(NamedTuple):
    """What one step runs, in this order; each list is one batch."""

    encode: list[Sequence]
    decode: list[Chunk]
    found: list[Request]
    """Those that start and have found some of their tokens in pages."""


class Budget:
    """The room of one batch. A padded batch pays for its longest row in every row."""

    def __init__(self, max_tokens: int, max_rows: int, *, padded: bool) -> None:
        self.tokens = 0
        self._rows = 0
        self._longest = 0
        self._max_tokens, self._max_rows, self._padded = max_tokens, max_rows, padded

    @property
    def room(self) -> int:
        """The longest row that can be added; 0 if none."""
        return self.room_for(1)

    def room_for(self, rows: int) -> int:
        """The longest that so many rows of equal length can be; 0 if they can't be added."""
        if self._rows + rows > self._max_rows:
            return 0
        if not self._padded:
            return (self._max_tokens - self.tokens) // rows
        widest = self._max_tokens // (self._rows + rows)
        return widest if widest >= self._longest else 0

    def take(self, length: int, rows: int = 1) -> None:
        """Adds rows of equal length; the caller has looked at the room for them."""
        self._rows += rows
        self._longest = max(self._longest, length)
        self.tokens = self._rows * self._longest if self._padded else self.tokens + rows * length


class Scheduler:
    """Holds every unfinished sequence, in `waiting` or in `running`, both from old to young."""

    def __init__(
        self,
        pool: PagePool,
        *,
        page_size: int,
        max_batch_tokens: int,
        max_rows: int,
        padded: bool = False,
        prefix_cache: bool = True,
    ) -> None:
        """`max_rows` bounds what runs at once, and so does `max_batch_tokens`: each decoding row is in every batch."""
        self.cache = PageCache(pool, page_size, shared=prefix_cache)
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.preemptions = 0
        self.rows = 0
        """Of all that runs longer than a step, beams counted one by one."""
        self._pool = pool
        self._page_size = page_size
        self._max_batch_tokens = max_batch_tokens
        self._max_rows = min(max_rows, max_batch_tokens)
        self._lanes = LanePool(self._max_rows)
        self._padded = padded

    def add(self, request: Request) -> None:
        """Queues the sequences of a request."""
        for sequence in request.sequences:
            insort(self.waiting, sequence, key=_order)

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out, wherever it is, and frees what it holds; one that is finished already is left alone."""
        if sequence.state == "finished":
            return
        if sequence.state == "running":
            self._stop(sequence)
        else:
            _discard(self.waiting, sequence)
        sequence.state = "finished"
        sequence.request.sequences.remove(sequence)

    @property
    def must_preempt(self) -> bool:
        """Whether the next step has too few pages for the rows that decode."""
        if self._pool.free >= self.rows:
            return False
        missing = sum(s.page_count(self._page_size) - len(s.pages) for s in self.running if s.remaining == 1)
        return missing > self._pool.free

    @property
    def idle(self) -> bool:
        """Whether nothing waits, and nothing runs longer than the step it is in: there is nothing to schedule."""
        return not self.waiting and not self.rows

    def schedule(self) -> Plan:
        """The batches of the next step; both are empty only if nothing is queued."""
        plan = Plan([], [], [])
        budget = self._budget()
        self._continue(plan, budget)
        self._admit(plan, budget)
        return plan

    def _budget(self) -> Budget:
        return Budget(self._max_batch_tokens, self._max_rows, padded=self._padded)

    def _continue(self, plan: Plan, budget: Budget) -> None:
        position = rows = 0
        reading: list[Sequence] = []
        while position < len(self.running):  # `_grow` takes sequences from the end
            sequence = self.running[position]
            length = sequence.length
            remaining = length - sequence.computed
            if remaining > 1:
                reading.append(sequence)
            elif remaining == 1 and (length <= sequence.room or self._grow(sequence)):
                rows += sequence.width
                plan.decode.append((sequence, 1))
            position += 1
        if rows:
            budget.take(1, rows)
        for sequence in reading:
            if sequence.state == "running" and budget.room_for(sequence.width):
                _read(sequence, plan, budget)

    def _admit(self, plan: Plan, budget: Budget) -> None:
        whole: list[Sequence] = []
        blocked = self.rows == self._max_rows
        for sequence in self.waiting[: LOOKAHEAD * self._max_rows]:
            if sequence.request.reading is not None:
                whole.append(sequence)
            elif blocked or self.cache.is_coming(sequence):
                continue
            elif sequence.request.must_encode and not self.cache.source(sequence.request):
                whole.append(sequence)
            elif budget.room_for(sequence.width) and self._start(sequence, plan):
                _read(sequence, plan, budget)
            else:
                blocked = True
        encoder_budget = self._budget()
        for sequence in _by_length(whole):
            # What is only read needs neither pages nor a row for longer than this step, and so overtakes.
            if sequence.request.reading is None and (blocked or self.cache.is_coming(sequence)):
                continue
            length = sequence.request.longest
            if length > encoder_budget.room:
                return
            if not self._start(sequence, plan):
                blocked = True
                continue
            encoder_budget.take(length)
            plan.encode.append(sequence)

    def _start(self, sequence: Sequence, plan: Plan) -> bool:
        """Gives a waiting sequence its rows and the pages of all its tokens, if there are as many."""
        if sequence.request.reading is None:
            if not self._take_pages(sequence):
                return False
            if self.cache.start(sequence):
                plan.found.append(sequence.request)
        _discard(self.waiting, sequence)
        insort(self.running, sequence, key=_order)
        sequence.state = "running"
        return True

    def _take_pages(self, sequence: Sequence) -> bool:
        request = sequence.request
        found = self.cache.beginning(sequence)
        own = sequence.page_count(self._page_size) - len(found)
        source = self.cache.source(request) if request.must_encode else []
        cross = pages_of(len(request.source), self._page_size) if request.must_encode and not source else 0
        # Each running row may need one more page soon: admitting must not lead to preempting.
        wanted = own + cross + self._pool.count_free(found + source) + self.rows
        if self._pool.free < wanted or self.rows + sequence.widest > self._max_rows:
            return False
        self._pool.share(found + source)
        sequence.pages = found + self._pool.take(own)
        sequence.room = pages_of(sequence.length, self._page_size) * self._page_size
        sequence.restart(len(found) * self._page_size)
        if request.must_encode:
            request.cross_pages, request.encoded = source or self._pool.take(cross), bool(source)
        sequence.lanes = self._lanes.take(sequence.widest)
        self.rows += sequence.widest
        return True

    def _grow(self, sequence: Sequence) -> bool:
        """Makes sure of the pages of the last tokens; False if they have to wait for older sequences to free some."""
        missing = sequence.page_count(self._page_size) - len(sequence.pages)
        while self._pool.free < missing:
            youngest = self.running[-1]
            if youngest is sequence:
                return False
            self._preempt(youngest)
        sequence.pages += self._pool.take(missing)
        sequence.room = pages_of(sequence.length, self._page_size) * self._page_size
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self._stop(sequence)
        sequence.restart(0)
        sequence.state = "waiting"
        insort(self.waiting, sequence, key=_order)
        self.preemptions += 1

    def _stop(self, sequence: Sequence) -> None:
        """Frees the rows and pages of a running sequence, and those of its source after the last of its request."""
        _discard(self.running, sequence)
        if sequence.request.reading is None:
            self.rows -= sequence.widest
            self.cache.stop(sequence)
        self._lanes.release(sequence.lanes)
        self._pool.release(sequence.pages)
        sequence.lanes, sequence.pages = [], []
        request = sequence.request
        if request.cross_pages and not any(s.state == "running" and s is not sequence for s in request.sequences):
            self._pool.release(request.cross_pages)
            request.cross_pages, request.encoded = [], False


def _by_length(sources: Iterable[Sequence]) -> Iterable[Sequence]:
    """The oldest first, then those nearest to it in length."""
    ordered = list(sources)
    if not ordered:
        return ordered
    length = ordered[0].request.longest
    return sorted(ordered, key=lambda sequence: abs(sequence.request.longest - length))


def _read(sequence: Sequence, plan: Plan, budget: Budget) -> None:
    """Plans as much of what a sequence has to read as there is room for."""
    length = min(sequence.stretch, budget.room_for(sequence.width))
    budget.take(length, sequence.width)
    plan.decode.append((sequence, length))


def _discard(ordered: list[Sequence], sequence: Sequence) -> None:
    del ordered[bisect_left(ordered, sequence.order, key=_order)]
