"""What a head says of tokens, as spans of the text: labelled spans, and answers.

Labelled spans are those of transformers' TokenClassificationPipeline (5.23), answers those of its
QuestionAnsweringPipeline (4.57, the last to have it; the search after Chen et al., 2017, arXiv:1704.00051).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from tercet.server.text.scores import softmax

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from numpy.typing import NDArray

    from tercet.server.text.scores import Floats
    from tercet.server.text.tokenizer import Encoded

Aggregation = Literal["none", "simple", "first", "average", "max"]
_OF_WORDS = ("first", "average", "max")


class LabelledSpan(NamedTuple):
    """A part of a text and its label."""

    label: str
    start: int
    end: int
    """In code points of the text, exclusive."""
    score: float


class AnswerSpan(NamedTuple):
    """A part of a context that may answer a question; an empty one is "no answer"."""

    start: int
    end: int
    """In code points of the context, exclusive."""
    score: float


class Subwords(NamedTuple):
    """How a tokenizer shows that a token continues a word."""

    marked: bool
    """Whether the vocabulary marks such tokens ("##ing"); else a token that no space comes before continues a word."""
    unknown_id: int | None
    """The unknown token, which never does."""

    def __call__(self, text: str, encoded: Encoded, token: int) -> bool:
        """Whether a token of a text continues the word of the token before it."""
        start, end = encoded.starts[token], encoded.ends[token]
        if encoded.ids[token] == self.unknown_id:
            return False
        if self.marked:
            return len(encoded.tokens[token]) != end - start
        return start > 0 and " " not in text[start - 1 : start + 1]


def label_spans(
    text: str,
    windows: Sequence[tuple[Encoded, Floats]],
    labels: Sequence[str],
    aggregation: Aggregation,
    ignore: Collection[str],
    subwords: Subwords,
) -> list[LabelledSpan]:
    """The spans of a text, in its order.

    `windows` are parts of the text as tokens (with spans), and the head's outputs for them, [tokens, labels]; spans of
    several windows that overlap compete: the longest wins, of equally long ones the most probable. `ignore` names
    labels whose spans are left out, without B- and I- where the aggregation merges tokens.
    """
    found: list[LabelledSpan] = []
    for encoded, outputs in windows:
        scores = softmax(outputs)
        own = [token for token, sequence in enumerate(encoded.sequence) if sequence is not None]
        groups = _words(text, encoded, own, subwords) if aggregation in _OF_WORDS else [[token] for token in own]
        spans = [_labelled(encoded, group, scores[group], labels, aggregation) for group in groups]
        if aggregation != "none":
            spans = list(_merged(spans))
        found += (span for span in spans if span.label not in ignore)
    return found if len(windows) == 1 else _without_overlaps(found)


def _words(text: str, encoded: Encoded, own: Sequence[int], subwords: Subwords) -> list[list[int]]:
    """The tokens of each word."""
    words: list[list[int]] = []
    for token in own:
        if words and subwords(text, encoded, token):
            words[-1].append(token)
        else:
            words.append([token])
    return words


def _labelled(
    encoded: Encoded, tokens: Sequence[int], scores: Floats, labels: Sequence[str], aggregation: Aggregation
) -> LabelledSpan:
    """The span of some tokens with the label that they agree upon; `scores`: [tokens, labels]."""
    match aggregation:
        case "average":
            agreed = scores.mean(axis=0)
        case "max":
            agreed = scores[scores.max(axis=1).argmax()]
        case _:
            agreed = scores[0]
    best = int(agreed.argmax())
    return LabelledSpan(labels[best], encoded.starts[tokens[0]], encoded.ends[tokens[-1]], float(agreed[best]))


def _merged(spans: Iterable[LabelledSpan]) -> Iterable[LabelledSpan]:
    """Neighbours of one label become one span; a B- label begins another. Their scores are averaged."""
    group: list[LabelledSpan] = []
    for span in spans:
        if group and (span.label.startswith("B-") or _kind(span.label) != _kind(group[-1].label)):
            yield _whole(group)
            group = []
        group.append(span)
    if group:
        yield _whole(group)


def _kind(label: str) -> str:
    return label[2:] if label.startswith(("B-", "I-")) else label


def _whole(group: Sequence[LabelledSpan]) -> LabelledSpan:
    label = group[0].label.split("-", 1)[-1]  # whatever the prefix
    return LabelledSpan(label, group[0].start, group[-1].end, sum(span.score for span in group) / len(group))


def _without_overlaps(spans: Iterable[LabelledSpan]) -> list[LabelledSpan]:
    kept: list[LabelledSpan] = []
    for span in sorted(spans, key=lambda span: span.start):
        if not kept or span.start >= kept[-1].end:
            kept.append(span)
        elif (span.end - span.start, span.score) > (kept[-1].end - kept[-1].start, kept[-1].score):
            kept[-1] = span
    return kept


def answer_spans(
    context: str,
    windows: Sequence[tuple[Encoded, Floats]],
    *,
    top_k: int,
    max_tokens: int,
    start_id: int | None,
) -> tuple[list[AnswerSpan], float]:
    """The likeliest answers, best first, and the least probability over the windows that there is none.

    `windows` are pairs of the question and a part of the context as tokens (with spans), and the head's outputs for
    them, [tokens, 2]: start and end. A span's score is the product of its start's and its end's probability within its
    window; a span has at most `max_tokens` tokens and is widened to whole words. Spans that read the same but for case
    are one answer with the sum of their scores. The probability that there is no answer is that of the first token as
    start and end, where that is `start_id` ([CLS], whose tokens are among those that probabilities are over).
    """
    answers: dict[str, AnswerSpan] = {}
    no_answer = 1.0
    for encoded, outputs in windows:
        of_context = np.array([sequence == 1 for sequence in encoded.sequence])
        readable = of_context | (np.array(encoded.ids) == start_id)
        probabilities = softmax(np.where(readable[:, None], outputs, -np.inf), axis=0)
        no_answer = min(no_answer, float(probabilities[0].prod()))
        probabilities[~of_context] = 0.0
        first, last = _word_edges(encoded)
        for start, end, score in _likeliest(probabilities, 2 * top_k + 10, max_tokens):
            span = AnswerSpan(*_widened(encoded, first, last, start, end), score)
            text = context[span.start : span.end].lower()
            same = answers.get(text)
            answers[text] = span if same is None else same._replace(score=same.score + score)
    return sorted(answers.values(), key=lambda answer: -answer.score)[:top_k], no_answer


def _likeliest(probabilities: Floats, count: int, max_tokens: int) -> list[tuple[int, int, float]]:
    """First and last token and probability of the `count` likeliest spans, likeliest first, by their first on ties."""
    start, end = probabilities[:, 0], probabilities[:, 1]
    found: list[tuple[NDArray[np.intp], int, Floats]] = []
    for length in range(min(max_tokens, len(start))):  # less 1
        scores = start[: len(start) - length] * end[length:]
        best = np.flatnonzero(scores)
        if len(best) > count:
            best = best[np.argpartition(scores[best], -count)[-count:]]
        found.append((best, length, scores[best]))
    spans = [
        (int(i), int(i) + length, float(s)) for best, length, scores in found for i, s in zip(best, scores, strict=True)
    ]
    return sorted(spans, key=lambda span: (-span[2], span[0], span[1]))[:count]


def _word_edges(encoded: Encoded) -> tuple[list[int], list[int]]:
    """For each token the first and the last token of its word; the token itself where there are no words."""
    first, last = list(range(len(encoded))), list(range(len(encoded)))

    def same_word(a: int, b: int) -> bool:
        word = encoded.words[a]
        return word is not None and word == encoded.words[b] and encoded.sequence[a] == encoded.sequence[b]

    for token in range(1, len(encoded)):
        if same_word(token - 1, token):
            first[token] = first[token - 1]
    for token in reversed(range(len(encoded) - 1)):
        if same_word(token, token + 1):
            last[token] = last[token + 1]
    return first, last


def _widened(encoded: Encoded, first: Sequence[int], last: Sequence[int], start: int, end: int) -> tuple[int, int]:
    """Start and end, in code points, of the words from token to token, or of the tokens where one is in no word."""
    if encoded.words[start] is None or encoded.words[end] is None:
        return encoded.starts[start], encoded.ends[end]
    return encoded.starts[first[start]], encoded.ends[last[end]]
