"""Answer: questions to the spans of their contexts that answer them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from tercet.server import wire
from tercet.server.service.answers import ask, to_items, tokens_of
from tercet.server.service.errors import InvalidArgumentError, ServiceError, attempt, unless_error
from tercet.server.service.fields import MOST_RESULTS, number, usage
from tercet.server.service.windows import Tally, windows, works
from tercet.server.text.scores import from_bytes
from tercet.server.text.spans import answer_spans
from tercet.v1.understanding_pb2 import Answer, AnswerItem, AnswerRequest, AnswerResponse, Answers, Question

if TYPE_CHECKING:
    from tercet.server.config import Settings
    from tercet.server.metrics import Metrics
    from tercet.server.service.registry import Registry, Target
    from tercet.server.service.rpc import Call
    from tercet.server.service.sequences import Sequencer
    from tercet.server.text import Encoded

_ANSWER_TOKENS = 15
_WINDOW = 384  # tokens
_STRIDE = 128  # tokens


class Answerer:
    """Answer of tercet.v1.UnderstandingService."""

    def __init__(self, registry: Registry, sequencer: Sequencer, settings: Settings, metrics: Metrics) -> None:
        self._registry = registry
        self._sequencer = sequencer
        self._settings = settings
        self._metrics = metrics

    async def answer(self, request: AnswerRequest, call: Call) -> AnswerResponse:
        """Answers questions, each of its own context."""
        target = self._registry.target(request.model, "answer", call)
        top_k = number(request, "top_k", 1, MOST_RESULTS)
        max_tokens = number(request, "max_answer_tokens", _ANSWER_TOKENS, MOST_RESULTS)
        divided = await self._windows(request, target)
        asked = works("questions", divided, target, call)
        replies = await ask(target, asked, wire.Prediction, self._metrics)

        def answers(i: int, reply: list[wire.Prediction]) -> Answers:
            context, read = request.questions[i].context, unless_error(divided[i])
            outputs = [from_bytes(part.data, len(window), 2) for window, part in zip(read, reply, strict=True)]
            parts = list(zip(read, outputs, strict=True))
            start_id = target.text.start_id
            spans, none = answer_spans(context, parts, top_k=top_k, max_tokens=max_tokens, start_id=start_id)
            found = [Answer(text=context[span.start : span.end], **span._asdict()) for span in spans]
            if request.allow_no_answer:
                found = sorted([*found, Answer(score=none)], key=lambda answer: -answer.score)[:top_k]
            return Answers(answers=found, no_answer_score=none)

        def respond() -> AnswerResponse:
            items = to_items(AnswerItem, asked, replies, answers=answers)
            return AnswerResponse(model=target.model.name, items=items, usage=usage(items))

        return await self._sequencer.run(tokens_of(asked), respond)

    async def _windows(self, request: AnswerRequest, target: Target) -> list[list[Encoded] | ServiceError]:
        """For each question what the model reads, or why it is refused. Raises InvalidArgumentError."""
        asked, sequencer, own = request.questions, self._sequencer, target.model.longest_read
        longest = number(request, "max_length", min(_WINDOW, own), own)
        stride = request.stride if request.HasField("stride") else min(_STRIDE, longest // 2)
        sequencer.check_count("questions", len(asked))
        sequencer.check_chars("questions", sum(len(each.question) + len(each.context) for each in asked))
        tally = Tally(self._settings)

        def divide(i: int, encoded: Encoded) -> list[Encoded]:
            if 1 not in encoded.sequence:
                raise InvalidArgumentError(f"questions[{i}].context", "has no tokens")
            return windows(f"questions[{i}].question", encoded, longest, stride, tally)

        given = [attempt(partial(self._pair, i, each)) for i, each in enumerate(asked)]
        pairs = {i: pair for i, pair in enumerate(given) if isinstance(pair, tuple)}
        tokenizer = target.text.tokenizer
        encoded = await sequencer.encode_pairs(target.model, tokenizer, list(pairs.values()), spans=True)
        read = {i: attempt(partial(divide, i, one)) for i, one in zip(pairs, encoded, strict=True)}
        return [read[i] if isinstance(pair, tuple) else pair for i, pair in enumerate(given)]

    def _pair(self, i: int, asked: Question) -> tuple[str, str]:
        """Question and context. Raises InvalidArgumentError where one is empty or too long."""
        for name, text in (("question", asked.question), ("context", asked.context)):
            if not text:
                raise InvalidArgumentError(f"questions[{i}].{name}", "must not be empty")
            self._sequencer.check_text(f"questions[{i}].{name}", text)
        return asked.question, asked.context
