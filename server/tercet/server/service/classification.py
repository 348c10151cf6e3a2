"""Classify: texts to labels, the checkpoint's or the request's own."""

from __future__ import annotations

from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from tercet.server import wire
from tercet.server.service.answers import Work, ask, to_items
from tercet.server.service.errors import InvalidArgumentError, ServiceError, attempt
from tercet.server.service.fields import choice, number, usage
from tercet.server.service.predictions import prediction
from tercet.server.service.sequences import Limit, Sequencer, TokenSequence
from tercet.server.service.windows import Tally
from tercet.server.text.scores import activate, default_activation, entailed, from_bytes
from tercet.v1.understanding_pb2 import (
    Activation,
    ClassifyInput,
    ClassifyItem,
    ClassifyRequest,
    ClassifyResponse,
    Label,
    Labels,
    RerankRequest,
    ZeroShot,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tercet.server.config import Settings
    from tercet.server.metrics import Metrics
    from tercet.server.service.registry import Registry, Target
    from tercet.server.service.rpc import Call
    from tercet.server.text.scores import Activation as Kind
    from tercet.server.text.scores import Floats

    Works = list[Work | ServiceError]
    Score = Callable[[Sequence[wire.Prediction]], Floats]

_TEMPLATE = "This example is {}."
_KINDS: dict[int, Kind] = {
    Activation.ACTIVATION_SOFTMAX: "softmax",
    Activation.ACTIVATION_SIGMOID: "sigmoid",
    Activation.ACTIVATION_NONE: "none",
}


def activation(request: ClassifyRequest | RerankRequest) -> Kind | None:
    """The request's own activation. Raises InvalidArgumentError where there is none of its number."""
    return choice("activation", request.activation, "an Activation", _KINDS) if request.activation else None


class Classifier:
    """Classify of tercet.v1.UnderstandingService."""

    def __init__(self, registry: Registry, sequencer: Sequencer, settings: Settings, metrics: Metrics) -> None:
        self._registry = registry
        self._sequencer = sequencer
        self._settings = settings
        self._metrics = metrics

    async def classify(self, request: ClassifyRequest, call: Call) -> ClassifyResponse:
        """Labels texts, or pairs of texts."""
        zero_shot = request.HasField("zero_shot")
        target = self._registry.target(request.model, "zero_shot" if zero_shot else "classify", call)
        self._sequencer.check_count("inputs", len(request.inputs))
        labels = request.zero_shot.labels if zero_shot else target.text.labels
        top_k = number(request, "top_k", len(labels) or 1)
        if zero_shot:
            works, score = await self._entailments(request, target, call), _by_entailment(request.zero_shot, target)
        else:
            score = _by_activation(request, target)
            works = await self._readings(request, target, call)
        answers = await ask(target, works, wire.Prediction, self._metrics)
        items = to_items(ClassifyItem, works, answers, labels=lambda _, answer: _best(labels, score(answer), top_k))
        for item, work in zip(items, works, strict=True):
            item.truncated = isinstance(work, Work) and work.truncated
        return ClassifyResponse(model=target.model.name, items=items, usage=usage(items))

    async def _readings(self, request: ClassifyRequest, target: Target, call: Call) -> Works:
        """What the model reads for each input: the text, or the pair."""
        inputs, sequencer = request.inputs, self._sequencer
        sequencer.check_chars("inputs", sum(len(item.input.text) + len(item.pair) for item in inputs))
        limit = Limit(target.model.longest_read, request.truncate, cut_to=target.model.longest_read)
        single = {i: item.input for i, item in enumerate(inputs) if not item.HasField("pair")}
        given = {i: attempt(partial(self._pair, item, i)) for i, item in enumerate(inputs) if i not in single}
        pairs = {i: pair for i, pair in given.items() if isinstance(pair, tuple)}
        sequences: dict[int, TokenSequence | ServiceError] = {
            i: error for i, error in given.items() if isinstance(error, ServiceError)
        }
        fields = [f"inputs[{i}].input" for i in single]
        sequences |= zip(single, await sequencer.sequences(target, list(single.values()), fields, limit), strict=True)
        fields = [f"inputs[{i}]" for i in pairs]
        sequences |= zip(pairs, await sequencer.pairs(target, list(pairs.values()), fields, limit), strict=True)
        return [_work(target, i, [sequences[i]], call) for i in range(len(inputs))]

    async def _entailments(self, request: ClassifyRequest, target: Target, call: Call) -> Works:
        """What the model reads for each input: a pair of it and the hypothesis of each label. The text is what is cut,
        never the hypothesis.
        """
        hypotheses = self._hypotheses(request)
        inputs, sequencer = request.inputs, self._sequencer
        chars = sum(len(item.input.text) for item in inputs) * len(hypotheses)
        sequencer.check_chars("inputs", chars + len(inputs) * sum(map(len, hypotheses)))
        limit = Limit(target.model.longest_read, request.truncate, cut_to=target.model.longest_read, cut="first")
        tally = Tally(self._settings)

        def divide(i: int) -> str:
            text = self._text(inputs[i], i)
            if inputs[i].HasField("pair"):
                raise InvalidArgumentError(f"inputs[{i}].pair", "must not be set with zero_shot")
            tally.add(f"inputs[{i}]", len(hypotheses))
            return text

        given = [attempt(partial(divide, i)) for i in range(len(inputs))]
        pairs = [(text, hypothesis) for text in given if isinstance(text, str) for hypothesis in hypotheses]
        fields = [
            f"inputs[{i}].input.text" for i, text in enumerate(given) if isinstance(text, str) for _ in hypotheses
        ]
        read = iter(await sequencer.pairs(target, pairs, fields, limit))
        return [
            _work(target, i, list(islice(read, len(hypotheses))), call) if isinstance(text, str) else text
            for i, text in enumerate(given)
        ]

    def _hypotheses(self, request: ClassifyRequest) -> list[str]:
        """One for each label of the request. Raises InvalidArgumentError."""
        asked = request.zero_shot
        if request.activation:
            raise InvalidArgumentError("activation", "must not be set with zero_shot")
        self._sequencer.check_count("zero_shot.labels", len(asked.labels))
        template = asked.template if asked.HasField("template") else _TEMPLATE
        self._sequencer.check_text("zero_shot.template", template)
        if "{}" not in template:
            raise InvalidArgumentError("zero_shot.template", "must have {}, for the label")
        for i, label in enumerate(asked.labels):
            if not label:
                raise InvalidArgumentError(f"zero_shot.labels[{i}]", "must not be empty")
            self._sequencer.check_text(f"zero_shot.labels[{i}]", label)
        return [template.replace("{}", label) for label in asked.labels]

    def _pair(self, item: ClassifyInput, i: int) -> tuple[str, str]:
        """Both texts of an input. Raises InvalidArgumentError."""
        self._sequencer.check_text(f"inputs[{i}].pair", item.pair)
        return self._text(item, i), item.pair

    def _text(self, item: ClassifyInput, i: int) -> str:
        """An input's text, of those that must be text. Raises InvalidArgumentError."""
        if item.input.WhichOneof("input") != "text":
            raise InvalidArgumentError(f"inputs[{i}].input", "must be text: it is read as one of a pair")
        self._sequencer.check_text(f"inputs[{i}].input.text", item.input.text)
        return item.input.text


def _work(target: Target, i: int, sequences: Sequence[TokenSequence | ServiceError], call: Call) -> Work | ServiceError:
    """What is asked for one input, or the first error."""
    read: list[TokenSequence] = []
    for sequence in sequences:
        if isinstance(sequence, ServiceError):
            return sequence
        read.append(sequence)
    questions = [prediction(target, sequence.token_ids, sequence.type_ids, call) for sequence in read]
    return Work(f"inputs[{i}]", questions, any(sequence.truncated for sequence in read))


def _by_activation(request: ClassifyRequest, target: Target) -> Score:
    """The scores of the checkpoint's own labels."""
    own = default_activation(target.text.problem_type, target.info.labels)
    kind = activation(request) or target.text.activation or own
    return lambda answers: activate(from_bytes(answers[0].data, -1), kind)


def _by_entailment(request: ZeroShot, target: Target) -> Score:
    """The scores of the request's labels."""
    text = target.text

    def score(answers: Sequence[wire.Prediction]) -> Floats:
        outputs = from_bytes(b"".join(answer.data for answer in answers), len(answers), -1)
        return entailed(outputs, text.entailment or 0, text.contradiction, each=request.multi_label)

    return score


def _best(labels: Sequence[str], scores: Floats, top_k: int) -> Labels:
    """The best first; of equal ones the one that came first."""
    found = [Label(label=label, score=float(score)) for label, score in zip(labels, scores, strict=True)]
    return Labels(labels=sorted(found, key=lambda label: -label.score)[:top_k])
