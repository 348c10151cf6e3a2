"""`Tasks` to await."""

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
    from tercet.client.transport import AsyncTransport
    from tercet.client.understanding import (
        AnswerOptions,
        ClassifyOptions,
        FillMaskOptions,
        Pair,
        RerankOptions,
        ScoreOptions,
        TagOptions,
    )


class AsyncTasks:
    """As `Tasks`, to await."""

    _transport: AsyncTransport

    async def rerank(self, query: str, texts: Iterable[str], **options: Unpack[RerankOptions]) -> list[Ranked]:
        """As `Client.rerank`."""
        deadline = self._transport.deadline(options.pop("timeout", None))
        return await self._transport.one(understanding.rerank(query, texts, **options), deadline)

    @overload  # a str is an Iterable[str] too
    async def classify(  # pyright: ignore[reportOverlappingOverload]
        self, inputs: str | Pair, *, errors: Errors = "raise", **options: Unpack[ClassifyOptions]
    ) -> list[Label]: ...
    @overload
    async def classify(
        self, inputs: Iterable[Prompt | Pair], *, errors: Literal["raise"] = "raise", **options: Unpack[ClassifyOptions]
    ) -> list[list[Label]]: ...
    @overload
    async def classify(
        self, inputs: Iterable[Prompt | Pair], *, errors: Literal["return"], **options: Unpack[ClassifyOptions]
    ) -> list[list[Label] | TercetError]: ...
    async def classify(self, inputs: Any, *, errors: Errors = "raise", **options: Any) -> Any:
        """As `Client.classify`."""
        deadline = self._transport.deadline(options.pop("timeout", None))
        return await self._transport.many(understanding.classify(inputs, errors=errors, **options), deadline)

    @overload  # a str is an Iterable[str] too
    async def tag(  # pyright: ignore[reportOverlappingOverload]
        self, texts: str, *, errors: Errors = "raise", **options: Unpack[TagOptions]
    ) -> list[Span]: ...
    @overload
    async def tag(
        self, texts: Iterable[str], *, errors: Literal["raise"] = "raise", **options: Unpack[TagOptions]
    ) -> list[list[Span]]: ...
    @overload
    async def tag(
        self, texts: Iterable[str], *, errors: Literal["return"], **options: Unpack[TagOptions]
    ) -> list[list[Span] | TercetError]: ...
    async def tag(self, texts: Any, *, errors: Errors = "raise", **options: Any) -> Any:
        """As `Client.tag`."""
        deadline = self._transport.deadline(options.pop("timeout", None))
        return await self._transport.many(understanding.tag(texts, errors=errors, **options), deadline)

    @overload  # a str is an Iterable[str] too
    async def fill_mask(  # pyright: ignore[reportOverlappingOverload]
        self, inputs: str, *, errors: Errors = "raise", **options: Unpack[FillMaskOptions]
    ) -> list[list[Fill]]: ...
    @overload
    async def fill_mask(
        self, inputs: Iterable[Prompt], *, errors: Literal["raise"] = "raise", **options: Unpack[FillMaskOptions]
    ) -> list[list[list[Fill]]]: ...
    @overload
    async def fill_mask(
        self, inputs: Iterable[Prompt], *, errors: Literal["return"], **options: Unpack[FillMaskOptions]
    ) -> list[list[list[Fill]] | TercetError]: ...
    async def fill_mask(self, inputs: Any, *, errors: Errors = "raise", **options: Any) -> Any:
        """As `Client.fill_mask`."""
        deadline = self._transport.deadline(options.pop("timeout", None))
        return await self._transport.many(understanding.fill_mask(inputs, errors=errors, **options), deadline)

    @overload  # a str is an Iterable[str] too
    async def answer(  # pyright: ignore[reportOverlappingOverload]
        self, question: str, context: str, *, errors: Errors = "raise", **options: Unpack[AnswerOptions]
    ) -> Answers: ...
    @overload
    async def answer(
        self,
        question: str | Iterable[str],
        context: str | Iterable[str],
        *,
        errors: Literal["raise"] = "raise",
        **options: Unpack[AnswerOptions],
    ) -> list[Answers]: ...
    @overload
    async def answer(
        self,
        question: str | Iterable[str],
        context: str | Iterable[str],
        *,
        errors: Literal["return"],
        **options: Unpack[AnswerOptions],
    ) -> list[Answers | TercetError]: ...
    async def answer(self, question: Any, context: Any, *, errors: Errors = "raise", **options: Any) -> Any:
        """As `Client.answer`."""
        deadline = self._transport.deadline(options.pop("timeout", None))
        return await self._transport.many(understanding.answer(question, context, errors=errors, **options), deadline)

    @overload  # a str is an Iterable[str] too
    async def score(  # pyright: ignore[reportOverlappingOverload]
        self, text: str, target: str | None = None, *, errors: Errors = "raise", **options: Unpack[ScoreOptions]
    ) -> Score: ...
    @overload
    async def score(
        self,
        text: Prompt | Iterable[Prompt],
        target: Prompt | Iterable[Prompt] | None = None,
        *,
        errors: Literal["raise"] = "raise",
        **options: Unpack[ScoreOptions],
    ) -> list[Score]: ...
    @overload
    async def score(
        self,
        text: Prompt | Iterable[Prompt],
        target: Prompt | Iterable[Prompt] | None = None,
        *,
        errors: Literal["return"],
        **options: Unpack[ScoreOptions],
    ) -> list[Score | TercetError]: ...
    async def score(self, text: Any, target: Any = None, *, errors: Errors = "raise", **options: Any) -> Any:
        """As `Client.score`."""
        deadline = self._transport.deadline(options.pop("timeout", None))
        return await self._transport.many(understanding.score(text, target, errors=errors, **options), deadline)
