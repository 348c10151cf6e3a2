"""Tag: texts to labelled spans."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from tercet.server import wire
from tercet.server.service.answers import ask, to_items, tokens_of
from tercet.server.service.errors import InvalidArgumentError, ServiceError, attempt, unless_error
from tercet.server.service.fields import choice, usage
from tercet.server.service.windows import Tally, windows, works
from tercet.server.text.scores import from_bytes
from tercet.server.text.spans import Subwords, label_spans
from tercet.v1.understanding_pb2 import Aggregation, Span, Spans, TagItem, TagRequest, TagResponse

if TYPE_CHECKING:
    from tercet.server.config import Settings
    from tercet.server.metrics import Metrics
    from tercet.server.service.registry import Registry, Target
    from tercet.server.service.rpc import Call
    from tercet.server.service.sequences import Sequencer
    from tercet.server.text import Encoded
    from tercet.server.text.spans import Aggregation as Kind

_KINDS: dict[int, Kind] = {
    Aggregation.AGGREGATION_UNSPECIFIED: "simple",
    Aggregation.AGGREGATION_NONE: "none",
    Aggregation.AGGREGATION_SIMPLE: "simple",
    Aggregation.AGGREGATION_FIRST: "first",
    Aggregation.AGGREGATION_AVERAGE: "average",
    Aggregation.AGGREGATION_MAX: "max",
}
_OUTSIDE = "O"  # the label of tokens in no span


class Tagger:
    """Tag of tercet.v1.UnderstandingService."""

    def __init__(self, registry: Registry, sequencer: Sequencer, settings: Settings, metrics: Metrics) -> None:
        self._registry = registry
        self._sequencer = sequencer
        self._settings = settings
        self._metrics = metrics

    async def tag(self, request: TagRequest, call: Call) -> TagResponse:
        """Labels spans of texts."""
        target = self._registry.target(request.model, "tag", call)
        kind = _aggregation(request)
        ignored = request.ignore_labels.values if request.HasField("ignore_labels") else (_OUTSIDE,)
        subwords = Subwords(bool(target.text.tokenizer.subword_prefix), target.text.unknown_id)
        divided = await self._windows(request, target)
        asked = works("texts", divided, target, call)
        answers = await ask(target, asked, wire.Prediction, self._metrics)

        def spans(i: int, answer: list[wire.Prediction]) -> Spans:
            text, read = request.texts[i], unless_error(divided[i])
            outputs = [from_bytes(part.data, len(window), -1) for window, part in zip(read, answer, strict=True)]
            parts = list(zip(read, outputs, strict=True))
            found = label_spans(text, parts, target.text.labels, kind, ignored, subwords)
            return Spans(spans=[Span(text=text[span.start : span.end], **span._asdict()) for span in found])

        def respond() -> TagResponse:
            items = to_items(TagItem, asked, answers, spans=spans)
            return TagResponse(model=target.model.name, items=items, usage=usage(items))

        return await self._sequencer.run(tokens_of(asked), respond)

    async def _windows(self, request: TagRequest, target: Target) -> list[list[Encoded] | ServiceError]:
        """For each text what the model reads, or why it is refused. Raises InvalidArgumentError."""
        texts, sequencer, longest = request.texts, self._sequencer, target.model.longest_read
        sequencer.check_count("texts", len(texts))
        sequencer.check_chars("texts", sum(map(len, texts)))
        tally = Tally(self._settings)

        def divide(i: int, encoded: Encoded) -> list[Encoded]:
            field = f"texts[{i}]"
            if not encoded:
                raise InvalidArgumentError(field, "has no tokens")
            if request.HasField("stride"):
                return windows(field, encoded, longest, request.stride, tally)
            if len(encoded) > longest:
                problem = f"has {len(encoded)} tokens, the limit is {longest}; with stride it is read in windows"
                raise InvalidArgumentError(field, problem)
            return [encoded]

        given = [attempt(partial(sequencer.check_text, f"texts[{i}]", text)) for i, text in enumerate(texts)]
        good = [i for i, error in enumerate(given) if error is None]
        encoded = await sequencer.encode(target.model, target.text.tokenizer, [texts[i] for i in good], spans=True)
        read = {i: attempt(partial(divide, i, one)) for i, one in zip(good, encoded, strict=True)}
        return [read[i] if error is None else error for i, error in enumerate(given)]


def _aggregation(request: TagRequest) -> Kind:
    """Raises InvalidArgumentError where there is none of its number, or it does not go with windows."""
    kind = choice("aggregation", request.aggregation, "an Aggregation", _KINDS)
    if kind == "none" and request.HasField("stride"):
        raise InvalidArgumentError("stride", "must not be set with AGGREGATION_NONE, which merges nothing")
    return kind
