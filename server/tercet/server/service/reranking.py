"""Rerank: texts in the order of their relevance to a query."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tercet.server import wire
from tercet.server.service.answers import Work, ask
from tercet.server.service.classification import activation
from tercet.server.service.errors import InvalidArgumentError, ServiceError
from tercet.server.service.fields import number
from tercet.server.service.predictions import prediction
from tercet.server.service.sequences import Limit, Sequencer
from tercet.server.text.scores import activate, from_bytes
from tercet.v1.types_pb2 import Usage
from tercet.v1.understanding_pb2 import Ranked, RerankRequest, RerankResponse

if TYPE_CHECKING:
    from tercet.server.metrics import Metrics
    from tercet.server.service.registry import Registry
    from tercet.server.service.rpc import Call


class Reranker:
    """Rerank of tercet.v1.UnderstandingService."""

    def __init__(self, registry: Registry, sequencer: Sequencer, metrics: Metrics) -> None:
        self._registry = registry
        self._sequencer = sequencer
        self._metrics = metrics

    async def rerank(self, request: RerankRequest, call: Call) -> RerankResponse:
        """Orders texts. What is wrong with one of them is wrong with the call."""
        target = self._registry.target(request.model, "rerank", call)
        kind = activation(request) or target.text.activation or "sigmoid"
        if kind == "softmax":
            raise InvalidArgumentError("activation", "must not be softmax: of one score it is always 1")
        self._check(request)
        top_k = number(request, "top_k", len(request.texts))
        longest = target.model.longest_read
        # where texts may be cut, it is the query that leaves one no room
        fields = ["query" if request.truncate else f"texts[{i}]" for i in range(len(request.texts))]
        sequences = await self._sequencer.pairs(
            target,
            [(request.query, text) for text in request.texts],
            fields,
            Limit(longest, request.truncate, cut_to=longest, cut="second"),
        )
        works: list[Work] = []
        for i, sequence in enumerate(sequences):
            if isinstance(sequence, ServiceError):
                raise sequence
            question = prediction(target, sequence.token_ids, sequence.type_ids, call)
            works.append(Work(f"texts[{i}]", [question], sequence.truncated))
        ranked: list[Ranked] = []
        for i, answer in enumerate(await ask(target, works, wire.Prediction, self._metrics)):
            if isinstance(answer, ServiceError):
                raise answer
            score = activate(from_bytes(answer[0].data, 1), kind)
            ranked.append(Ranked(index=i, score=float(score[0]), truncated=works[i].truncated))
        ranked.sort(key=lambda text: -text.score)
        read = sum(work.tokens for work in works)
        return RerankResponse(model=target.model.name, results=ranked[:top_k], usage=Usage(prompt_tokens=read))

    def _check(self, request: RerankRequest) -> None:
        """Raises InvalidArgumentError for too many or too long texts."""
        sequencer = self._sequencer
        sequencer.check_count("texts", len(request.texts))
        sequencer.check_text("query", request.query)
        for i, text in enumerate(request.texts):
            sequencer.check_text(f"texts[{i}]", text)
        sequencer.check_chars("texts", len(request.query) * len(request.texts) + sum(map(len, request.texts)))
