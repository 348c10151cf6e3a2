"""What is launched and not collected yet: passes, what is counted of them, and how their rows have gone on."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from tercet.server.logs import fields
from tercet.server.wire import StepStats

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tercet.server.engine.runner import Pass
    from tercet.server.engine.scheduler import Chunk
    from tercet.server.engine.sequence import Request
    from tercet.server.wire import Phase

log = logging.getLogger(__name__)


class Counts(NamedTuple):
    """What the statistics say of a pass, known when it is launched."""

    phase: Phase
    rows: int
    real: int
    """Tokens that are no padding."""
    prompt: int
    recomputed: int
    awaited: bool = False
    """Whether the next step needs what this one brings on the host."""


@dataclass
class Launch:
    """A pass that is launched."""

    chunks: list[Chunk]
    done: Pass[Any]
    counts: Counts
    started: float
    take_in: Callable[[], int]
    """Waits for what the pass brings, takes that in and counts the tokens generated."""

    def stats(self, generated: int, collected: float, now: float) -> StepStats:
        """Of the pass, taken in now; passes before it have kept the device busy until `collected`."""
        counts = self.counts
        return StepStats(
            phase=counts.phase,
            rows=counts.rows,
            real_tokens=counts.real,
            padding_tokens=self.done.tokens - counts.real,
            seconds=now - max(self.started, collected),
            host_to_device_copies=self.done.copies,
            replayed_steps=int(self.done.replayed),
            prompt_tokens=counts.prompt,
            generated_tokens=generated,
            recomputed_tokens=counts.recomputed,
        )


def advance_sources(chunks: Sequence[Chunk]) -> Counts:
    """What a launched pass does to sequences that it reads whole."""
    prompt = real = 0
    for sequence, length in chunks:
        sequence.request.encoded = True
        prompt += _first_read(sequence.request, length)
        real += length
    return Counts("encode", len(chunks), real, prompt, real - prompt)


def advance(chunks: Sequence[Chunk]) -> Counts:
    """What a launched pass does to sequences that decode or read their prompts."""
    rows = real = prompt = recomputed = 0
    phase: Phase = "decode"
    awaited = False
    for sequence, length in chunks:
        request, width, begin, end = sequence.request, sequence.width, sequence.computed, sequence.computed + length
        rows += width
        real += width * length
        if begin < len(request.prompt):
            phase = "prefill"
            prompt += _first_read(request, len(request.source) + min(end, len(request.prompt)))
        if begin < sequence.read:
            recomputed += width * (min(sequence.read, end) - begin)
        if end == sequence.length and not sequence.draw():
            awaited = True
        sequence.computed = end
        sequence.read = max(sequence.read, end)
    return Counts(phase, rows, real, prompt, recomputed, awaited)


def failure(run: Callable[[], object], rows: int) -> str | None:
    """Runs a batch, or takes it in; says how that failed. The exception and its tensors are gone when this returns."""
    try:
        run()
    except torch.AcceleratorError:
        raise
    except Exception as error:
        log.warning("batch failed", exc_info=True, extra=fields(rows=rows))
        memory = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in str(error)
        return "ran out of memory" if memory else "failed"
    return None


def _first_read(request: Request, end: int) -> int:
    """Counts the tokens of source and prompt up to `end` that no sequence of the request has read before."""
    fresh = max(0, end - request.read)
    request.read = max(request.read, end)
    return fresh
