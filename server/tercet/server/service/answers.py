"""Asking an engine for many answers at once, waiting for all of them, and making items of responses of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from tercet.server import wire
from tercet.server.channel import prompt_tokens
from tercet.server.service.errors import (
    ENGINE_PAUSE,
    DeadlineExceededError,
    EngineLostError,
    InternalError,
    InvalidArgumentError,
    ServiceError,
    to_status,
    unless_error,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from google.protobuf.message import Message

    from tercet.server.metrics import Metrics
    from tercet.server.service.registry import Target

Question = wire.Predict | wire.FillMask | wire.Score
Answer = TypeVar("Answer", bound=wire.Embeddings | wire.Prediction | wire.Candidates | wire.Scored)
Item = TypeVar("Item")


class Work(msgspec.Struct, frozen=True, gc=False):
    """What one input of a request asks of the engine: once, or once for each of its windows, hypotheses, tokens."""

    field: str
    """The path of the input, for errors."""
    questions: Sequence[Question]
    truncated: bool = False

    @property
    def tokens(self) -> int:
        """That the model reads for it."""
        return sum(map(prompt_tokens, self.questions))


def tokens_of(works: Iterable[Work | ServiceError]) -> int:
    """That the model reads for all of them."""
    return sum(work.tokens for work in works if isinstance(work, Work))


def refusal(rejected: wire.Rejected, field: str) -> ServiceError:
    """The error for a request that the engine gave up; `field` is the path of what it was asked to read."""
    match rejected.reason:
        case "deadline":
            return DeadlineExceededError("the deadline passed before the answer")
        case "invalid":
            return InvalidArgumentError(field, rejected.message)
        case "internal":
            return InternalError(rejected.message)


def engine_lost(**metadata: str) -> EngineLostError:
    """The error for a request whose engine died."""
    return EngineLostError("the model's engine died; it is being started again", retry_after=ENGINE_PAUSE, **metadata)


class Answers(Generic[Answer]):
    """The answers to questions that are answered once each."""

    def __init__(self, fields: Mapping[int, str], kind: type[Answer]) -> None:
        """`fields`: the path of what each question, by its id, is about; `kind`: what answers it."""
        self._fields = fields
        self._kind = kind
        self._results: dict[int, Answer | ServiceError] = {}
        self._lost = False
        self._done = asyncio.Event()

    def receive(self, output: wire.Output) -> bool:
        """One answer, or why there is none."""
        if isinstance(output, self._kind):
            self._results[output.id] = output
        elif isinstance(output, wire.Rejected):
            self._results[output.id] = refusal(output, self._fields[output.id])
        else:
            self._results[output.id] = InternalError(f"the engine answered with {type(output).__name__}")
        if len(self._results) == len(self._fields):
            self._done.set()
        return True

    def receive_token(self, sample: int, token_id: int) -> bool:
        """No question is answered with tokens."""
        raise TypeError("the engine answered with a token")

    def lose(self) -> None:
        """The engine died."""
        self._lost = True
        self._done.set()

    @property
    def missing(self) -> set[int]:
        """The ids of questions that are not answered."""
        return self._fields.keys() - self._results.keys()

    async def wait(self) -> dict[int, Answer | ServiceError]:
        """By id the answer, or its error. Raises EngineLostError."""
        await self._done.wait()
        if self._lost:
            raise engine_lost()
        return self._results


async def ask(
    target: Target,
    works: Sequence[Work | ServiceError],
    kind: type[Answer],
    metrics: Metrics,
    *,
    patient: bool = False,
) -> list[list[Answer] | ServiceError]:
    """The engine's answers to each work, in the order of its questions, or why there are none.

    Where the queue is full patient work waits for its turn, other work raises OverloadedError. Raises EngineLostError.
    What is not answered when the caller leaves is cancelled.
    """
    questions = [question for work in works if isinstance(work, Work) for question in work.questions]
    results: Mapping[int, Answer | ServiceError] = {}
    if questions:
        fields = {question.id: work.field for work in works if isinstance(work, Work) for question in work.questions}
        answers = Answers(fields, kind)
        results = await _answered(target, questions, answers, list(map(prompt_tokens, questions)), metrics, patient)
    return [work if isinstance(work, ServiceError) else _together(work, results) for work in works]


async def ask_at_once(
    target: Target, embeds: wire.Embeds, metrics: Metrics, *, patient: bool = False
) -> wire.Embeddings:
    """The engine's answer to many sequences in one message. As `ask`."""
    answers = Answers({embeds.id: "inputs"}, wire.Embeddings)
    results = await _answered(target, [embeds], answers, embeds.lengths, metrics, patient)
    return unless_error(results[embeds.id])


async def _answered(
    target: Target,
    requests: Sequence[wire.Request],
    answers: Answers[Answer],
    lengths: Sequence[int],
    metrics: Metrics,
    patient: bool,
) -> Mapping[int, Answer | ServiceError]:
    """Sends requests, of sequences of so many tokens, and waits for the answers. As `ask`."""
    model, channel = target.model, target.channel
    count, tokens = len(lengths), sum(lengths)
    if patient and model.can_wait(count, tokens):
        while not model.has_room(channel, count, tokens):
            await channel.pending.change()
    model.admit(channel, count, tokens)
    channel.submit(requests, answers)
    metrics.request_prompt_tokens.labels(model.name).observe_all(Counter(lengths))  # while the engine is at work
    try:
        return await answers.wait()
    finally:
        if missing := answers.missing:
            channel.cancel(missing)


def _together(work: Work, results: Mapping[int, Answer | ServiceError]) -> list[Answer] | ServiceError:
    """The answers to all questions of a work, or the first error."""
    answers: list[Answer] = []
    for question in work.questions:
        result = results[question.id]
        if isinstance(result, ServiceError):
            return result
        answers.append(result)
    return answers


def to_items(
    item: Callable[..., Item],
    works: Sequence[Work | ServiceError],
    answers: Sequence[list[Answer] | ServiceError],
    /,
    **outcome: Callable[[int, list[Answer]], Message],
) -> list[Item]:
    """What became of each work, as an item of a response: by the name of its field what the answers come to, made of
    the work's number and its answers; or the error.
    """
    items: list[Item] = []
    for i, (work, answer) in enumerate(zip(works, answers, strict=True)):
        fields: dict[str, Any] = {"prompt_tokens": work.tokens} if isinstance(work, Work) else {}
        if isinstance(answer, ServiceError):
            fields["error"] = to_status(answer)
        else:
            fields |= {name: make(i, answer) for name, make in outcome.items()}
        items.append(item(**fields))
    return items
