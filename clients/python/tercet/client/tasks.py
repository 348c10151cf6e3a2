"""What clients ask of models with heads: methods of `Client`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

from tercet.client import understanding

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Unpack

    from tercet.client.calls import Errors
    from tercet.client.errors import TercetError
    from tercet.client.requests import Prompt
    from tercet.client.results import Answers, Fill, Label, Ranked, Score, Span
    from tercet.client.transport import Transport
    from tercet.client.understanding import (
        AnswerOptions,
        ClassifyOptions,
        FillMaskOptions,
        Pair,
        RerankOptions,
        ScoreOptions,
        TagOptions,
    )


class Tasks:
    """Reranks, classifies, tags, fills masks, answers and scores.

    What else each method takes is in its options: `ClassifyOptions` and so on. Of a list, `errors="return"` puts the
    error of an input where its result would be, "raise" raises the first, with its position in `index`.
    """

    _transport: Transport

    def rerank(self, query: str, texts: Iterable[str], **options: Unpack[RerankOptions]) -> list[Ranked]:
        """Texts in the order of their relevance to a query, by a cross-encoder."""
        deadline = self._transport.deadline(options.pop("timeout", None))
        return self._transport.one(understanding.rerank(query, texts, **options), deadline)

    @overload  # a str is an Iterable[str] too
    def classify(  # pyright: ignore[reportOverlappingOverload]
        self, inputs: str | Pair, *, errors: Errors = "raise", **options: Unpack[ClassifyOptions]
    ) -> list[Label]: ...
    @overload
    def classify(
        self, inputs: Iterable[Prompt | Pair], *, errors: Literal["raise"] = "raise", **options: Unpack[ClassifyOptions]
    ) -> list[list[Label]]: ...
    @overload
    def classify(
        self, inputs: Iterable[Prompt | Pair], *, errors: Literal["return"], **options: Unpack[ClassifyOptions]
    ) -> list[list[Label] | TercetError]: ...
    def classify(self, inputs: Any, *, errors: Errors = "raise", **options: Any) -> Any:
        """The labels of a text, or of each of a list, the best first.

        An input is text, token ids, or a pair of texts as a tuple. With `labels` they are yours, and the model one that
        was trained on entailment.
        """
        deadline = self._transport.deadline(options.pop("timeout", None))
        return self._transport.many(understanding.classify(inputs, errors=errors, **options), deadline)

    @overload  # a str is an Iterable[str] too
    def tag(  # pyright: ignore[reportOverlappingOverload]
        self, texts: str, *, errors: Errors = "raise", **options: Unpack[TagOptions]
    ) -> list[Span]: ...
    @overload
    def tag(
        self, texts: Iterable[str], *, errors: Literal["raise"] = "raise", **options: Unpack[TagOptions]
    ) -> list[list[Span]]: ...
    @overload
    def tag(
        self, texts: Iterable[str], *, errors: Literal["return"], **options: Unpack[TagOptions]
    ) -> list[list[Span] | TercetError]: ...
    def tag(self, texts: Any, *, errors: Errors = "raise", **options: Any) -> Any:
        """The labelled spans of a text, or of each of a list, such as named entities."""
        deadline = self._transport.deadline(options.pop("timeout", None))
        return self._transport.many(understanding.tag(texts, errors=errors, **options), deadline)

    @overload  # a str is an Iterable[str] too
    def fill_mask(  # pyright: ignore[reportOverlappingOverload]
        self, inputs: str, *, errors: Errors = "raise", **options: Unpack[FillMaskOptions]
    ) -> list[list[Fill]]: ...
    @overload
    def fill_mask(
        self, inputs: Iterable[Prompt], *, errors: Literal["raise"] = "raise", **options: Unpack[FillMaskOptions]
    ) -> list[list[list[Fill]]]: ...
    @overload
    def fill_mask(
        self, inputs: Iterable[Prompt], *, errors: Literal["return"], **options: Unpack[FillMaskOptions]
    ) -> list[list[list[Fill]] | TercetError]: ...
    def fill_mask(self, inputs: Any, *, errors: Errors = "raise", **options: Any) -> Any:
        """For each mask of a text, or of each of a list, the likeliest candidates; see `ModelInfo.mask_token`."""
        deadline = self._transport.deadline(options.pop("timeout", None))
        return self._transport.many(understanding.fill_mask(inputs, errors=errors, **options), deadline)

    @overload  # a str is an Iterable[str] too
    def answer(  # pyright: ignore[reportOverlappingOverload]
        self, question: str, context: str, *, errors: Errors = "raise", **options: Unpack[AnswerOptions]
    ) -> Answers: ...
    @overload
    def answer(
        self,
        question: str | Iterable[str],
        context: str | Iterable[str],
        *,
        errors: Literal["raise"] = "raise",
        **options: Unpack[AnswerOptions],
    ) -> list[Answers]: ...
    @overload
    def answer(
        self,
        question: str | Iterable[str],
        context: str | Iterable[str],
        *,
        errors: Literal["return"],
        **options: Unpack[AnswerOptions],
    ) -> list[Answers | TercetError]: ...
    def answer(self, question: Any, context: Any, *, errors: Errors = "raise", **options: Any) -> Any:
        """The spans of a context that answer a question, the best first.

        Lists of questions and contexts are matched one to one; a single one of either serves all of the other.
        """
        deadline = self._transport.deadline(options.pop("timeout", None))
        return self._transport.many(understanding.answer(question, context, errors=errors, **options), deadline)

    @overload  # a str is an Iterable[str] too
    def score(  # pyright: ignore[reportOverlappingOverload]
        self, text: str, target: str | None = None, *, errors: Errors = "raise", **options: Unpack[ScoreOptions]
    ) -> Score: ...
    @overload
    def score(
        self,
        text: Prompt | Iterable[Prompt],
        target: Prompt | Iterable[Prompt] | None = None,
        *,
        errors: Literal["raise"] = "raise",
        **options: Unpack[ScoreOptions],
    ) -> list[Score]: ...
    @overload
    def score(
        self,
        text: Prompt | Iterable[Prompt],
        target: Prompt | Iterable[Prompt] | None = None,
        *,
        errors: Literal["return"],
        **options: Unpack[ScoreOptions],
    ) -> list[Score | TercetError]: ...
    def score(self, text: Any, target: Any = None, *, errors: Errors = "raise", **options: Any) -> Any:
        """How likely a text is to a decoder or a masked model; to a seq2seq model a target after a source.

        `score(text)`, or `score(source, target)`; each a text or the token ids of one, or a list of either.
        """
        deadline = self._transport.deadline(options.pop("timeout", None))
        return self._transport.many(understanding.score(text, target, errors=errors, **options), deadline)
