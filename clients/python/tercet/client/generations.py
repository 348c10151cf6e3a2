"""Many generations on one stream: which wait, run and have ended, whatever becomes of the stream."""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from copy import copy
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, NamedTuple

from tercet.client import responses
from tercet.client.calls import RESUMES
from tercet.client.errors import Internal, TercetError, Unavailable
from tercet.client.results import Generation, Output, Piece, TokenLogprob
from tercet.client.statuses import from_status
from tercet.v1.generation_pb2 import GenerateManyRequest, PieceDetails

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tercet.client.channel import Deadline
    from tercet.v1.generation_pb2 import GenerateManyEnd, GenerateManyResponse, GenerateRequest

_NO_DETAILS = PieceDetails()


class Outcome(NamedTuple):
    """A piece or a result of one generation, or why there is none."""

    key: Any
    """The caller's."""
    value: Piece | Generation | TercetError


class _Output:
    """What has come of one output."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.finish_reason: Any = None
        self.score: float | None = None


class _Generation:
    """One generation, from its request to its end."""

    def __init__(self, key: Any, request: GenerateRequest) -> None:
        self.key = key
        self.request = request
        self.failures = 0
        self.begun = False
        """Whether the caller has pieces of it: then it can't be started again."""
        self.forget()

    def forget(self) -> None:
        """Drops what has come."""
        self.first: PieceDetails | None = None
        self.outputs: defaultdict[int, _Output] = defaultdict(_Output)

    def add(self, text: str, token_ids: list[int], index: int, details: PieceDetails) -> None:
        """One more piece, kept for the result."""
        output = self.outputs[index]
        output.texts.append(text)
        output.token_ids += token_ids
        if details is not _NO_DETAILS:
            self.first = self.first or details
            output.logprobs += responses.logprobs(details.logprobs)
            output.finish_reason = responses.finish_reason(details.finish_reason)
            output.score = details.score if details.HasField("score") else None

    def piece(self, text: str, token_ids: list[int], index: int, details: PieceDetails, end: Any) -> Piece:
        """One more piece, for the caller; `end` where it is the last one."""
        self.begun = True
        self.first = self.first or details
        return Piece(
            text=text,
            token_ids=token_ids,
            index=index,
            finish_reason=responses.finish_reason(details.finish_reason),
            usage=responses.usage(end.usage) if end else None,
            truncated=self.first.truncated,
            seed=self.first.seed,
            logprobs=responses.logprobs(details.logprobs),
            score=details.score if details.HasField("score") else None,
            prompt_token_ids=list(details.prompt_token_ids),
            prompt_logprobs=responses.logprobs(details.prompt_logprobs),
        )

    def result(self, end: GenerateManyEnd) -> Generation:
        """All of it."""
        first = self.first or _NO_DETAILS
        return Generation(
            model=end.model,
            outputs=[
                Output(index, "".join(o.texts), o.token_ids, o.finish_reason, o.logprobs, o.score)
                for index, o in sorted(self.outputs.items())
            ],
            usage=responses.usage(end.usage),
            truncated=first.truncated,
            seed=first.seed,
            prompt_token_ids=list(first.prompt_token_ids),
            prompt_logprobs=responses.logprobs(first.prompt_logprobs),
        )


class Generations:
    """The generations of one call: some run on a stream, others wait for room on it, or to be started again."""

    def __init__(
        self,
        requests: Iterator[tuple[Any, GenerateRequest | TercetError]],
        *,
        pieces: bool,
        most: int,
        deadline: Deadline,
    ) -> None:
        """Reads requests as there is room.

        Args:
            requests: each with the caller's key; or why it can't be sent.
            pieces: whether the caller gets pieces as they come, or results when they are complete.
            most: how many run at once.
            deadline: when all must be over.
        """
        if most < 1:
            raise ValueError(f"concurrency must be at least 1, got {most}")
        self._requests = requests
        self._pieces = pieces
        self._most = most
        self._deadline = deadline
        self._numbers = itertools.count(1)
        self._running: dict[int, _Generation] = {}
        self._again: list[tuple[float, int, _Generation]] = []  # when it is due, a tie-break
        self._unsent: list[Outcome] = []
        self._exhausted = False
        self._failures = 0

    @property
    def finished(self) -> bool:
        """Whether all have ended."""
        return self._exhausted and not self._running and not self._again

    @property
    def pause(self) -> float:
        """Seconds in which nothing will come: where nothing runs, until one is to be started again."""
        return max(0.0, self._again[0][0] - time.monotonic()) if self._again and not self._running else 0.0

    def start(self) -> list[GenerateManyRequest]:
        """What there is room for."""
        starts: list[GenerateManyRequest] = []
        while len(self._running) < self._most and (generation := self._next()) is not None:
            number = next(self._numbers)
            self._running[number] = generation
            starts.append(GenerateManyRequest(key=number, generate=generation.request))
        return starts

    def refused(self) -> list[Outcome]:
        """Of requests that were not sent: why."""
        refused, self._unsent = self._unsent, []
        return refused

    def take(self, message: GenerateManyResponse) -> list[Outcome]:
        """What a message brings."""
        self._failures = 0
        outcomes: list[Outcome] = []
        details = {one.piece: one for one in message.details}
        ends = {end.key: end for end in message.ends}
        last = {key: piece for piece, key in enumerate(message.keys)} if ends and self._pieces else {}
        at = 0
        for piece, number in enumerate(message.keys):
            count = message.token_counts[piece] if message.token_counts else 1
            index = message.indexes[piece] if message.indexes else 0
            text = message.texts[piece] if message.texts else ""
            ids = message.token_ids[at : at + count]
            at += count
            generation = self._running[number]
            said = details.get(piece, _NO_DETAILS)
            if self._pieces:
                end = ends.get(number) if last.get(number) == piece else None
                outcomes.append(Outcome(generation.key, generation.piece(text, ids, index, said, end)))
            else:
                generation.add(text, ids, index, said)
        for number, end in ends.items():
            outcomes += self._end(self._running.pop(number), end)
        return outcomes

    def broken(self, error: TercetError) -> list[Outcome]:
        """The stream broke: what it carried is started again on another, but for what the caller has pieces of.

        Raises `error` where that would be in vain.
        """
        seconds = self._seconds(error, self._failures)
        if seconds is None:
            raise error
        self._failures += 1
        outcomes: list[Outcome] = []
        for generation in self._running.values():
            if generation.begun:
                outcomes.append(Outcome(generation.key, _about(generation, error)))
            else:
                self._put_off(generation, seconds)
        self._running.clear()
        return outcomes

    def ended(self) -> Internal:
        """The server ended the stream too early."""
        return Internal(f"the server ended the stream while {len(self._running)} generations ran on it")

    def _next(self) -> _Generation | None:
        if self._again and self._again[0][0] <= time.monotonic():
            return heappop(self._again)[-1]
        for key, request in self._requests:
            if not isinstance(request, TercetError):
                return _Generation(key, request)
            self._unsent.append(Outcome(key, request))
        self._exhausted = True
        return None

    def _end(self, generation: _Generation, end: GenerateManyEnd) -> list[Outcome]:
        if not end.HasField("error"):
            return [] if self._pieces else [Outcome(generation.key, generation.result(end))]
        error = from_status(end.error)
        seconds = None if generation.begun else self._seconds(error, generation.failures)
        if seconds is None:
            return [Outcome(generation.key, _about(generation, error))]
        generation.failures += 1
        self._put_off(generation, seconds)
        return []

    def _put_off(self, generation: _Generation, seconds: float) -> None:
        generation.forget()
        heappush(self._again, (time.monotonic() + seconds, next(self._numbers), generation))

    def _seconds(self, error: TercetError, failures: int) -> float | None:
        """Until what failed may be started again: when the server says, and RESUMES times where it has no say."""
        seconds = error.retry_after
        if seconds is None and isinstance(error, Unavailable) and failures < RESUMES:
            seconds = 0.1 * 2**failures
        left = self._deadline.left()
        return None if seconds is None or (left is not None and seconds >= left) else seconds


def _about(generation: _Generation, error: TercetError) -> TercetError:
    """The error of one generation."""
    error = copy(error)
    error.index = generation.key if isinstance(generation.key, int) else None
    return error
