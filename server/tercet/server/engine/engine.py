"""The engine: takes requests, runs steps, and lets no request harm another."""

from __future__ import annotations

import time
from collections import deque
from heapq import heapify, heappop, heappush
from math import inf
from typing import TYPE_CHECKING

from tercet.kernels import dispatch
from tercet.server.engine.beam import BeamSearch, beam_request
from tercet.server.engine.pages import PagePool
from tercet.server.engine.reading import likeness
from tercet.server.engine.scheduler import Scheduler
from tercet.server.engine.sequence import generation_request, reading_request
from tercet.server.engine.steps import Launch, advance, advance_sources, failure
from tercet.server.wire import Cached, Generate, NextTokens, Rejected, StepResult, Tokens

if TYPE_CHECKING:
    from collections.abc import Callable

    from tercet.server.engine.beam import Continuation
    from tercet.server.engine.reading import Reading
    from tercet.server.engine.runner import Runner
    from tercet.server.engine.sampler import Choice
    from tercet.server.engine.scheduler import Chunk
    from tercet.server.engine.sequence import Request, Sequence
    from tercet.server.engine.validation import Limits
    from tercet.server.wire import EngineSettings, Output, StepStats

STALE_DEADLINES = 1024  # of finished requests: past so many they are forgotten


class Engine:
    """Everything between messages and the model; one thread calls it."""

    def __init__(
        self, runner: Runner, limits: Limits, settings: EngineSettings, *, padded: bool, ahead: bool = False
    ) -> None:
        """`ahead`: each step is scheduled and launched before the host knows what the one before it brought."""
        self._runner = runner
        self._at_once = 2 if ahead else 1  # steps that may be launched and not collected
        self._launched: deque[list[Launch]] = deque()
        self._collected = 0.0  # when
        self._limits = limits
        self._incarnation = settings.incarnation
        self._pool = PagePool(limits.pages)
        self._scheduler = Scheduler(
            self._pool,
            page_size=limits.page_size,
            max_batch_tokens=settings.max_batch_tokens,
            max_rows=settings.max_rows,
            padded=padded,
            prefix_cache=settings.prefix_cache,
        )
        self._requests: dict[int, Request] = {}
        self._deadlines: list[tuple[float, int]] = []  # a heap of deadline and request id, finished ones too
        self._arrivals = 0
        self._outputs: list[Output] = []
        self._next_tokens = NextTokens(ids=[], samples=[], token_ids=[])
        self._stats: list[StepStats] = []
        self._cancelled = False

    @property
    def busy(self) -> bool:
        """Whether a step has anything to do or to tell."""
        return bool(self._requests or self._outputs or self._cancelled or self._launched)

    def submit(self, message: Reading | Generate) -> None:
        """Queues a request; one that can't be served is rejected with the next step."""
        if refusal := self._limits.refusal(message):
            self._outputs.append(Rejected(id=message.id, reason="invalid", message=refusal))
            return
        self._arrivals += 1
        if not isinstance(message, Generate):
            request = reading_request(message, self._arrivals)
        elif message.sampling.num_beams > 1:
            request = beam_request(
                message, self._arrivals, self._limits.family, self._limits.max_length, self._limits.page_size
            )
        else:
            request = generation_request(message, self._arrivals, self._limits.family, self._limits.max_length)
        self._requests[request.id] = request
        if request.deadline is not None:
            heappush(self._deadlines, (request.deadline, request.id))
        self._scheduler.add(request)

    def cancel(self, request_id: int, sample: int | None = None) -> None:
        """Drops a request, or one sample of it, and frees its pages; the next step tells the new counts.

        A beam search goes on: which of its beams would be the sample is known when it ends.
        """
        request = self._requests.get(request_id)
        for sequence in list(request.sequences) if request else []:
            if sample is None or (sequence.sample == sample and not isinstance(sequence, BeamSearch)):
                self._finish(sequence)
                self._cancelled = True

    def cancel_all(self, request_ids: range) -> None:
        """Drops the requests whose ids lie in a range: those of a front end that is gone."""
        for request_id in [request_id for request_id in self._requests if request_id in request_ids]:
            self.cancel(request_id)

    def step(self) -> StepResult:
        """Launches what can be, and takes in what the oldest step brought.

        Raises torch.AcceleratorError when the device is lost, and the process with it.
        """
        self._expire(time.monotonic())
        while len(self._launched) < self._at_once and not (self._scheduler.idle or self._must_collect):
            if not self._launch():
                break
        if self._launched:
            for launch in self._launched.popleft():
                self._collect(launch)
        result = StepResult(
            incarnation=self._incarnation,
            outputs=self._outputs,
            next_tokens=self._next_tokens if self._next_tokens.ids else None,
            stats=self._stats,
            running=self._scheduler.rows,
            waiting=len(self._scheduler.waiting),
            pages_used=self._pool.used,
            pages_cached=self._pool.cached,
            cache=self._scheduler.cache.counts,
            preemptions=self._scheduler.preemptions,
            kernel_launches=dispatch.launches(),
        )
        self._outputs, self._stats, self._cancelled = [], [], False
        self._next_tokens = NextTokens(ids=[], samples=[], token_ids=[])
        return result

    @property
    def _must_collect(self) -> bool:
        """Whether what is launched decides about the next step: by tokens that are read on the host, or by pages."""
        return bool(self._launched) and (
            any(launch.counts.awaited for launch in self._launched[-1]) or self._scheduler.must_preempt
        )

    def _launch(self) -> bool:
        """Launches a step; False if there is nothing to run."""
        plan = self._scheduler.schedule()
        self._outputs += [Cached(id=request.id, tokens=request.cached or 0) for request in plan.found]
        step: list[Launch] = []
        if plan.encode:
            # Rows that are answered alike become neighbours.
            rows = sorted(plan.encode, key=lambda row: likeness(row.request.reading))
            chunks = [(row, len(row.request.source) + len(row.request.target)) for row in rows]
            self._isolate(chunks, lambda chunks: step.append(self._encode(chunks)))
        if plan.decode:
            self._isolate(plan.decode, lambda chunks: step.append(self._decode(chunks)))
        if step:
            self._launched.append(step)
        return bool(plan.encode or plan.decode)

    def _expire(self, now: float) -> None:
        while self._deadlines and self._deadlines[0][0] <= now:
            _, request_id = heappop(self._deadlines)
            if request := self._requests.get(request_id):
                self._reject(request, Rejected(id=request.id, reason="deadline", message="the deadline has passed"))
        if len(self._deadlines) > STALE_DEADLINES + 2 * len(self._requests):
            self._deadlines = [entry for entry in self._deadlines if entry[1] in self._requests]
            heapify(self._deadlines)

    def _isolate(self, chunks: list[Chunk], run: Callable[[list[Chunk]], None]) -> None:
        """Launches a batch; if that fails, its halves, until a row that fails alone is rejected.

        So one bad row costs the others nothing but time, and a batch too large for memory runs in parts. Running a row
        again is safe: it writes the same keys and values to the same places.
        """
        chunks = [chunk for chunk in chunks if chunk[0].state == "running"]
        if not chunks or not (failed := failure(lambda: run(chunks), len(chunks))):
            return
        self._runner.recover()
        if len(chunks) == 1:
            self._reject_failed(chunks[0][0].request, failed)
            return
        middle = len(chunks) // 2
        self._isolate(chunks[:middle], run)
        self._isolate(chunks[middle:], run)

    def _encode(self, chunks: list[Chunk]) -> Launch:
        started = time.perf_counter()
        done = self._runner.encode([sequence for sequence, _ in chunks])

        def take_in() -> int:
            answers = done.output()
            self._scheduler.cache.keep_sources(sequence for sequence, _ in chunks)
            for (sequence, _), answer in zip(chunks[len(chunks) - len(answers) :], answers, strict=True):
                if sequence.state == "finished":
                    continue
                if answer is None:
                    self._reject_not_finite(sequence.request)
                else:
                    self._outputs.append(answer)
                    self._finish(sequence)
            return 0

        return Launch(chunks, done, advance_sources(chunks), started, take_in)

    def _decode(self, chunks: list[Chunk]) -> Launch:
        started = time.perf_counter()
        done = self._runner.decode(chunks)
        ends = [(sequence, sequence.computed + length) for sequence, length in chunks]

        def take_in() -> int:
            generated = 0
            chosen = done.output()
            self._scheduler.cache.keep(ends)
            # Nothing is told of what ended before this pass, or in it with another sample of its request.
            for sequence, choice in chosen.choices:
                if sequence.state != "finished":
                    generated += self._accept(sequence, choice)
            for search, continuation in chosen.continuations:
                if search.state != "finished":
                    generated += search.widest
                    self._continue(search, continuation)
            return generated

        return Launch(chunks, done, advance(chunks), started, take_in)

    def _collect(self, launch: Launch) -> None:
        """Waits for what a pass brings and takes it in."""
        generated = [0]
        if failed := failure(lambda: generated.append(launch.take_in()), launch.counts.rows):
            for sequence, _ in launch.chunks:
                self._reject_failed(sequence.request, failed)
        now = time.perf_counter()
        self._stats.append(launch.stats(generated[-1], self._collected, now))
        self._collected = now

    def _accept(self, sequence: Sequence, choice: Choice) -> bool:
        """Takes in the next token of a sequence, if it is one."""
        token, logprob = choice
        if not 0 <= token < self._limits.target_vocab_size:  # what sampling makes of logits that are not finite
            self._reject_not_finite(sequence.request)
            return False
        reason = sequence.accept(token)
        if reason is None and logprob is None:
            columns = self._next_tokens
            columns.ids.append(sequence.request.id)
            columns.samples.append(sequence.sample)
            columns.token_ids.append(token)
            return True
        self._outputs.append(
            Tokens(
                id=sequence.request.id,
                sample=sequence.sample,
                token_ids=[token],
                finish_reason=reason,
                logprobs=None if logprob is None else [logprob],
            )
        )
        if reason:
            self._finish(sequence)
        return True

    def _continue(self, search: BeamSearch, step: Continuation) -> None:
        # The best is not a number if any is none. It is -inf where processors forbid every token: then the search ends.
        if not step.best < inf:
            self._reject_not_finite(search.request)
        elif search.advance(step):
            self._outputs += search.answers()
            self._finish(search)

    def _reject(self, request: Request, rejection: Rejected) -> None:
        if request.sequences:
            self._outputs.append(rejection)
        for sequence in list(request.sequences):
            self._finish(sequence)

    def _reject_failed(self, request: Request, failed: str) -> None:
        self._reject(request, Rejected(id=request.id, reason="internal", message=f"the model {failed} on it"))

    def _reject_not_finite(self, request: Request) -> None:
        self._scheduler.cache.forget(request)
        message = "what the model computes is not finite"
        self._reject(request, Rejected(id=request.id, reason="internal", message=message))

    def _finish(self, sequence: Sequence) -> None:
        self._scheduler.remove(sequence)
        if not sequence.request.sequences:
            self._requests.pop(sequence.request.id, None)
