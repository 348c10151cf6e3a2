"""The calls of heads: reranking, classifying, tagging, filling masks, answering and scoring; see `calls`."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from tercet.client import requests, responses
from tercet.client.calls import Call, Errors, ListCall
from tercet.client.errors import FieldViolation, InvalidArgument
from tercet.v1.scoring_pb2 import ScoreInput, ScoreRequest
from tercet.v1.types_pb2 import Strings
from tercet.v1.understanding_pb2 import (
    Activation,
    Aggregation,
    AnswerRequest,
    ClassifyInput,
    ClassifyRequest,
    FillMaskRequest,
    Question,
    RerankRequest,
    TagRequest,
    ZeroShot,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tercet.client.requests import Prompt
    from tercet.client.results import Ranked

Pair = tuple[str, str]
"""Two texts that a model reads as one input."""


class Options(TypedDict, total=False):
    """What all of these calls take."""

    model: str | None
    """May be left out where one model alone can do the task."""
    timeout: float | None
    """Seconds for the whole call."""


class RerankOptions(Options, total=False):
    """How texts are ordered."""

    top_k: int | None
    """The most texts to return; None is all."""
    activation: Literal["sigmoid", "none"] | None
    """What makes scores of the model's outputs; None is the checkpoint's own, else sigmoid."""
    truncate: bool | None
    """Whether a text that is too long is cut; else the call is refused."""


class ClassifyOptions(Options, total=False):
    """How inputs are labelled."""

    labels: Iterable[str] | None
    """Labels of your own, judged by a model trained on entailment; None is the checkpoint's."""
    template: str | None
    """With labels: the hypothesis, with {} for the label; None is "This example is {}.\""""
    multi_label: bool | None
    """With labels: whether each is judged by itself; else their scores sum to 1."""
    activation: Literal["softmax", "sigmoid", "none"] | None
    """What makes scores of the model's outputs; None is the checkpoint's own. Not with labels."""
    top_k: int | None
    """The most labels to return; None is all."""
    truncate: bool | None
    """Whether an input that is too long is cut; else it is refused."""


class TagOptions(Options, total=False):
    """How spans are found."""

    aggregation: Literal["none", "simple", "first", "average", "max"] | None
    """How tokens become spans: each by itself, or merged by B- and I- labels, a word having the label of its first
    token, of the best mean or of the most certain; None is simple."""
    ignore_labels: Iterable[str] | None
    """Labels whose spans are left out; None is "O"."""
    stride: int | None
    """Reads long texts in windows that share so many tokens; None refuses them."""


class FillMaskOptions(Options, total=False):
    """Which candidates are returned."""

    top_k: int | None
    """The most for each mask; None is 5."""
    targets: str | Iterable[str] | None
    """The candidates, each a token; None is the whole vocabulary."""


class AnswerOptions(Options, total=False):
    """How answers are found."""

    top_k: int | None
    """The most for each question; None is 1."""
    max_answer_tokens: int | None
    """The most tokens of an answer; None is 15."""
    max_length: int | None
    """Tokens of the windows that a long context is read in; None is 384, or the model's limit."""
    stride: int | None
    """Tokens that neighbouring windows share; None is 128, or half a window."""
    allow_no_answer: bool | None
    """Whether "no answer", an empty text, may be among them; None is False."""


class ScoreOptions(Options, total=False):
    """Which languages texts are in, for models with languages."""

    source_lang: str | None
    target_lang: str | None


def rerank(query: str, texts: Iterable[str], *, activation: str | None = None, **options: Any) -> Call[list[Ranked]]:
    """Texts in order of their relevance."""
    kind = requests.enum(Activation, "ACTIVATION_", activation, "activation")
    if isinstance(texts, str):
        raise TypeError("texts: a list of texts is expected, got str")
    items = [requests.text(value, f"texts[{index}]").text for index, value in enumerate(texts)]
    question = requests.text(query, "query").text
    request = requests.build(RerankRequest, query=question, texts=items, activation=kind, **options)
    return Call(attrgetter("understanding.Rerank"), request, responses.ranked)


def classify(
    inputs: Any,
    *,
    labels: Iterable[str] | None = None,
    template: str | None = None,
    multi_label: bool | None = None,
    activation: str | None = None,
    errors: Errors,
    **options: Any,
) -> ListCall:
    """Labels of texts, of token ids or of pairs of texts."""
    values, single = ([inputs], True) if _is_pair(inputs) else requests.listed(inputs, "inputs")
    items = [_classified(value, f"inputs[{index}]") for index, value in enumerate(values)]
    zero_shot = None
    if labels is not None:
        names = [labels] if isinstance(labels, str) else [*labels]
        zero_shot = requests.build(ZeroShot, labels=names, template=template, multi_label=multi_label)
    elif template is not None or multi_label is not None:
        raise InvalidArgument("labels: must be given with template and multi_label", violations=[_unset("labels")])
    kind = requests.enum(Activation, "ACTIVATION_", activation, "activation")
    request = requests.build(ClassifyRequest, zero_shot=zero_shot, activation=kind, **options)
    return ListCall(
        "understanding.Classify",
        [*requests.batches(items)],
        lambda batch: requests.filled(request, inputs=batch),
        responses.labels,
        single=single,
        errors=errors,
    )


def tag(
    texts: str | Iterable[str],
    *,
    aggregation: str | None = None,
    ignore_labels: Iterable[str] | None = None,
    errors: Errors,
    **options: Any,
) -> ListCall:
    """Spans of texts."""
    values, single = requests.listed(texts, "texts")
    items = [requests.text(value, f"texts[{index}]") for index, value in enumerate(values)]
    kind = requests.enum(Aggregation, "AGGREGATION_", aggregation, "aggregation")
    request = requests.build(TagRequest, aggregation=kind, ignore_labels=_strings(ignore_labels), **options)
    return ListCall(
        "understanding.Tag",
        [*requests.batches(items)],
        lambda batch: requests.filled(request, texts=[item.text for item in batch]),
        responses.spans,
        single=single,
        errors=errors,
    )


def fill_mask(
    inputs: Prompt | Iterable[Prompt], *, targets: str | Iterable[str] | None = None, errors: Errors, **options: Any
) -> ListCall:
    """Candidates for the masks of texts."""
    values, single = requests.listed(inputs, "inputs")
    items = [requests.text_input(value, f"inputs[{index}]") for index, value in enumerate(values)]
    request = requests.build(FillMaskRequest, targets=_strings(targets), **options)
    return ListCall(
        "understanding.FillMask",
        [*requests.batches(items)],
        lambda batch: requests.filled(request, inputs=batch),
        responses.fills,
        single=single,
        errors=errors,
    )


def answer(question: str | Iterable[str], context: str | Iterable[str], *, errors: Errors, **options: Any) -> ListCall:
    """Answers to questions, each of its own context or of one that all share."""
    questions, contexts, single = _matched(question, context, "question", "context")
    items: list[Question] = []
    for index, (asked, read) in enumerate(zip(questions, contexts, strict=True)):
        path = f"questions[{index}]"
        items.append(
            Question(
                question=requests.text(asked, f"{path}.question").text,
                context=requests.text(read, f"{path}.context").text,
            )
        )
    request = requests.build(AnswerRequest, **options)
    return ListCall(
        "understanding.Answer",
        [*requests.batches(items)],
        lambda batch: requests.filled(request, questions=batch),
        responses.answers,
        single=single,
        errors=errors,
    )


def score(
    text: Prompt | Iterable[Prompt], target: Prompt | Iterable[Prompt] | None, *, errors: Errors, **options: Any
) -> ListCall:
    """How likely texts are, or targets after their sources."""
    if target is None:
        texts, single = requests.listed(text, "inputs")
        sources: list[Any] = [None] * len(texts)
    else:
        sources, texts, single = _matched(text, target, "text", "target")
    items = [
        ScoreInput(
            text=requests.text_input(scored, f"inputs[{index}].text"),
            source=None if source is None else requests.text_input(source, f"inputs[{index}].source"),
        )
        for index, (scored, source) in enumerate(zip(texts, sources, strict=True))
    ]
    request = requests.build(ScoreRequest, **options)
    return ListCall(
        "scoring.Score",
        [*requests.batches(items)],
        lambda batch: requests.filled(request, inputs=batch),
        responses.scores,
        single=single,
        errors=errors,
    )


def _is_pair(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(isinstance(text, str) for text in value)


def _classified(value: Any, field: str) -> ClassifyInput:
    if not _is_pair(value):
        return ClassifyInput(input=requests.text_input(value, field))
    first, second = value
    return ClassifyInput(input=requests.text(first, field), pair=requests.text(second, field).text)


def _matched(first: Any, second: Any, *names: str) -> tuple[list[Any], list[Any], bool]:
    """Two lists of equal length, of which one may be a single value that the other's all share."""
    (left, one_left), (right, one_right) = requests.listed(first, names[0]), requests.listed(second, names[1])
    count = max(len(left), len(right))
    left, right = (values * count if one else values for values, one in ((left, one_left), (right, one_right)))
    if len(left) != len(right):
        problem = f"has {len(right)} elements for {len(left)} of {names[0]}"
        raise InvalidArgument(f"{names[1]}: {problem}", violations=[FieldViolation(names[1], problem)])
    return left, right, one_left and one_right


def _strings(values: str | Iterable[str] | None) -> Strings | None:
    """A list of strings, or none at all, which is not the same as an empty one."""
    return None if values is None else Strings(values=[values] if isinstance(values, str) else values)


def _unset(field: str) -> FieldViolation:
    return FieldViolation(field, "must be given")
