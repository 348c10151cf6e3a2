"""The engine: takes requests, runs steps, and lets no request harm another."""

from __future__ import annotations

import logging
import time
from heapq import heapify, heappop, heappush
from math import inf
from typing import TYPE_CHECKING, Any

import torch

from tercet.kernels import dispatch
from tercet.server.engine.beam import BeamSearch, beam_request
from tercet.server.engine.pages import PagePool
from tercet.server.engine.reading import is_finite, likeness
from tercet.server.engine.scheduler import Chunk, Scheduler
from tercet.server.engine.sequence import generation_request, reading_request
from tercet.server.logs import fields
from tercet.server.wire import Generate, Rejected, StepResult, StepStats, Tokens

if TYPE_CHECKING:
    from collections.abc import Callable

    from tercet.server.engine.beam import Continuations
    from tercet.server.engine.reading import Answer, Reading
    from tercet.server.engine.runner import Pass, Runner
    from tercet.server.engine.sampler import Choice
    from tercet.server.engine.sequence import Request, Sequence
    from tercet.server.engine.validation import Limits
    from tercet.server.wire import EngineSettings, Phase

STALE_DEADLINES = 1024  # of finished requests: past so many they are forgotten

log = logging.getLogger(__name__)


class Engine:
    """Everything between messages and the model; one thread calls it."""

    def __init__(self, runner: Runner, limits: Limits, settings: EngineSettings, *, padded: bool) -> None:
        self._runner = runner
        self._limits = limits
        self._incarnation = settings.incarnation
        self._pool = PagePool(limits.pages)
        self._scheduler = Scheduler(
            self._pool,
            page_size=limits.page_size,
            max_batch_tokens=settings.max_batch_tokens,
            max_rows=settings.max_rows,
            padded=padded,
        )
        self._requests: dict[int, Request] = {}
        self._deadlines: list[tuple[float, int]] = []  # a heap of deadline and request id, finished ones too
        self._arrivals = 0
        self._outputs: list[Answer | Tokens | Rejected] = []
        self._stats: list[StepStats] = []
        self._cancelled = False

    @property
    def busy(self) -> bool:
        """Whether a step has anything to do or to tell."""
        return bool(self._requests or self._outputs or self._cancelled)

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

    def step(self) -> StepResult:
        """Runs the next batches. Raises torch.AcceleratorError when the device is lost, and the process with it."""
        self._expire(time.monotonic())
        plan = self._scheduler.schedule()
        if plan.encode:
            # Rows that are answered alike become neighbours.
            rows = sorted(plan.encode, key=lambda row: likeness(row.request.reading))
            chunks = [Chunk(row, len(row.request.source) + len(row.request.target)) for row in rows]
            self._isolate(chunks, self._encode)
        if plan.decode:
            self._isolate(plan.decode, self._decode)
        result = StepResult(
            incarnation=self._incarnation,
            outputs=self._outputs,
            stats=self._stats,
            running=self._scheduler.rows,
            waiting=len(self._scheduler.waiting),
            pages_used=self._pool.used,
            preemptions=self._scheduler.preemptions,
            kernel_launches=dispatch.launches(),
        )
        self._outputs, self._stats, self._cancelled = [], [], False
        return result

    def _expire(self, now: float) -> None:
        while self._deadlines and self._deadlines[0][0] <= now:
            _, request_id = heappop(self._deadlines)
            if request := self._requests.get(request_id):
                self._reject(request, Rejected(id=request.id, reason="deadline", message="the deadline has passed"))
        if len(self._deadlines) > STALE_DEADLINES + 2 * len(self._requests):
            self._deadlines = [entry for entry in self._deadlines if entry[1] in self._requests]
            heapify(self._deadlines)

    def _isolate(self, chunks: list[Chunk], run: Callable[[list[Chunk]], None]) -> None:
        """Runs a batch; if that fails, its halves, until a row that fails alone is rejected.

        So one bad row costs the others nothing but time, and a batch too large for memory runs in parts. Running a row
        again is safe: it writes the same keys and values to the same places.
        """
        chunks = [chunk for chunk in chunks if chunk.sequence.state == "running"]
        if not chunks or not (failure := _failure(run, chunks)):
            return
        self._runner.recover()
        if len(chunks) == 1:
            request = chunks[0].sequence.request
            self._reject(request, Rejected(id=request.id, reason="internal", message=f"the model {failure} on it"))
            return
        middle = len(chunks) // 2
        self._isolate(chunks[:middle], run)
        self._isolate(chunks[middle:], run)

    def _encode(self, chunks: list[Chunk]) -> None:
        started = time.perf_counter()
        done = self._runner.encode([sequence for sequence, _ in chunks])
        for (sequence, _), answer in zip(chunks, done.output, strict=True):
            sequence.request.encoded = True
            if answer is None:
                continue
            if is_finite(answer):
                self._outputs.append(answer)
                self._finish(sequence)
            else:
                self._reject_not_finite(sequence.request)
        prompt = sum(_first_read(sequence.request, length) for sequence, length in chunks)
        real = sum(length for _, length in chunks)
        self._count("encode", (len(chunks), real), done, started, prompt=prompt, recomputed=real - prompt)

    def _decode(self, chunks: list[Chunk]) -> None:
        started = time.perf_counter()
        done = self._runner.decode(chunks)
        rows = real = prompt = recomputed = 0
        phase: Phase = "decode"
        for sequence, length in chunks:
            request, width, begin, end = sequence.request, sequence.width, sequence.computed, sequence.computed + length
            rows += width
            real += width * length
            if begin < len(request.prompt):
                phase = "prefill"
                prompt += _first_read(request, len(request.source) + min(end, len(request.prompt)))
            if begin < sequence.read:
                recomputed += width * (min(sequence.read, end) - begin)
            sequence.computed = end
            sequence.read = max(sequence.read, end)
        for sequence, choice in done.output.choices:
            if sequence.state == "running":  # and not rejected with another sample
                self._accept(sequence, choice)
        for search, continuations in done.output.continuations:
            self._continue(search, continuations)
        generated = len(done.output.choices) + sum(search.widest for search, _ in done.output.continuations)
        self._count(phase, (rows, real), done, started, prompt=prompt, generated=generated, recomputed=recomputed)

    def _accept(self, sequence: Sequence, choice: Choice) -> None:
        token, logprob = choice
        if not 0 <= token < self._limits.target_vocab_size:  # what sampling makes of logits that are not finite
            self._reject_not_finite(sequence.request)
            return
        reason = sequence.accept(token)
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

    def _continue(self, search: BeamSearch, continuations: Continuations) -> None:
        # The best is not a number if any is none. It is -inf where processors forbid every token: then the search ends.
        if not bool(continuations.scores[0] < inf):
            self._reject_not_finite(search.request)
        elif search.advance(continuations):
            self._outputs += search.answers()
            self._finish(search)

    def _count(
        self, phase: Phase, read: tuple[int, int], done: Pass[Any], started: float,
        *, prompt: int, recomputed: int, generated: int = 0,
    ) -> None:  # fmt: skip
        rows, real = read
        self._stats.append(
            StepStats(
                phase=phase,
                rows=rows,
                real_tokens=real,
                padding_tokens=done.tokens - real,
                seconds=time.perf_counter() - started,
                host_to_device_copies=done.copies,
                prompt_tokens=prompt,
                generated_tokens=generated,
                recomputed_tokens=recomputed,
            )
        )

    def _reject(self, request: Request, rejection: Rejected) -> None:
        if request.sequences:
            self._outputs.append(rejection)
        for sequence in list(request.sequences):
            self._finish(sequence)

    def _reject_not_finite(self, request: Request) -> None:
        message = "what the model computes is not finite"
        self._reject(request, Rejected(id=request.id, reason="internal", message=message))

    def _finish(self, sequence: Sequence) -> None:
        self._scheduler.remove(sequence)
        if not sequence.request.sequences:
            self._requests.pop(sequence.request.id, None)


def _failure(run: Callable[[list[Chunk]], None], chunks: list[Chunk]) -> str | None:
    """Runs a batch; says how it failed. The exception and the tensors it holds are gone when this returns."""
    try:
        run(chunks)
    except torch.AcceleratorError:
        raise
    except Exception as error:
        log.warning("batch failed", exc_info=True, extra=fields(rows=len(chunks)))
        memory = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in str(error)
        return "ran out of memory" if memory else "failed"
    return None


def _first_read(request: Request, end: int) -> int:
    """Counts the tokens of source and prompt up to `end` that no sequence of the request has read before."""
    fresh = max(0, end - request.read)
    request.read = max(request.read, end)
    return fresh
