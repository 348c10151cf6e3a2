"""The outputs of a generation on their way from the engine's tokens to a reader."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from tercet.server import wire
from tercet.server.service.answers import engine_lost, refusal
from tercet.server.service.errors import InternalError, ServiceError
from tercet.server.text import IncrementalDecoder, StopMatcher

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tercet.server.channel import Channel
    from tercet.server.metrics import Metrics
    from tercet.server.service.rpc import Exchange
    from tercet.server.text import Tokenizer


class Piece:
    """What is new of one output since it was last taken."""

    __slots__ = ("finish_reason", "logprobs", "score", "text", "token_ids")

    def __init__(self) -> None:
        self.text = ""
        self.token_ids: list[int] = []
        self.logprobs: list[wire.TokenLogprob] = []
        """One a token, where asked for."""
        self.finish_reason: wire.FinishReason | None = None
        self.score: float | None = None
        """Of a beam."""

    def __bool__(self) -> bool:
        return bool(self.text or self.token_ids or self.finish_reason)


class _Sample:
    """One output as its tokens come."""

    def __init__(
        self, tokenizer: Tokenizer, stop: Sequence[str], echo: Sequence[int], *, skip_special_tokens: bool
    ) -> None:
        """`echo`: tokens whose text comes first, in which no stop string is looked for."""
        self._decoder = IncrementalDecoder(tokenizer, skip_special_tokens)
        self._matcher = StopMatcher(stop) if stop else None
        self.piece = Piece()
        self.piece.text = self._decoder.push(echo)
        self.tokens = 0
        self.first_at = self.last_at = 0.0
        self.finished = False

    def push(self, output: wire.Tokens) -> bool:
        """Takes tokens. True where a stop string ended the output before the engine did."""
        piece = self.piece
        finish_reason = output.finish_reason
        stopped = False
        for place, id in enumerate(output.token_ids):
            piece.token_ids.append(id)
            piece.logprobs += (output.logprobs or ())[place : place + 1]
            self.tokens += 1
            stopped = self._append(self._decoder.push([id]))
            if stopped:
                break
        if finish_reason is not None and not stopped:
            stopped = self._append(self._decoder.finish())
            if self._matcher is not None and not stopped:
                piece.text += self._matcher.finish()
        if stopped or finish_reason is not None:
            piece.finish_reason = "stop" if stopped else finish_reason
            piece.score = output.score
            self.finished = True
        return stopped and finish_reason is None

    def _append(self, text: str) -> bool:
        stopped = False
        if self._matcher is not None:
            text, stopped = self._matcher.push(text)
        self.piece.text += text
        return stopped


class Outputs:
    """The n outputs of one generation. What its reader does not take yet is kept together, so that tokens behind a slow
    reader arrive in one piece.
    """

    def __init__(
        self,
        message: wire.Generate,
        channel: Channel,
        exchange: Exchange,
        metrics: Metrics,
        *,
        field: str,
        tokenizer: Tokenizer,
        stop: Sequence[str],
        echo: Sequence[int],
        skip_special_tokens: bool,
        news: Callable[[], None] | None = None,
    ) -> None:
        """`field`: the path of the prompt, for errors; `echo`: tokens whose text every output begins with; `news` is
        called whenever there is something to take, where nobody waits for `pieces` or `whole`.
        """
        self.id = message.id
        self.cached_tokens = 0
        """Of the prompt or source, those that the engine did not read."""
        self._channel = channel
        self._exchange = exchange
        self._metrics = metrics
        self._field = field
        self._samples = [
            _Sample(tokenizer, stop, echo, skip_special_tokens=skip_special_tokens) for _ in range(message.n)
        ]
        self._left = message.n
        self._news = asyncio.Event()
        self._tell = news or self._news.set
        self._error: ServiceError | None = None

    @property
    def generated_tokens(self) -> int:
        """Over all outputs, so far."""
        return sum(sample.tokens for sample in self._samples)

    @property
    def finished(self) -> bool:
        """Whether every output has ended."""
        return self._left == 0

    def receive(self, output: wire.Output) -> bool:
        """New tokens of one output, or why there are no more."""
        if isinstance(output, wire.Tokens):
            self._push(output)
        elif isinstance(output, wire.Cached):
            self.cached_tokens = output.tokens
            return False
        elif isinstance(output, wire.Rejected):
            self._error = refusal(output, self._field)
        else:
            self._error = InternalError(f"the engine answered with {type(output).__name__}")
        self._tell()
        return self.finished or self._error is not None

    def lose(self) -> None:
        """The engine died."""
        sent = sum(sample.tokens - len(sample.piece.token_ids) for sample in self._samples)
        self._error = engine_lost(tokens_sent=str(sent))
        self._tell()

    async def pieces(self) -> list[tuple[int, Piece]]:
        """Waits for news, and takes them. Raises ServiceError."""
        await self._news.wait()
        self._news.clear()
        return self.take()

    def take(self) -> list[tuple[int, Piece]]:
        """Index and piece of every output that has news. Raises ServiceError."""
        if self._error is not None:
            raise self._error
        news = [(index, sample.piece) for index, sample in enumerate(self._samples) if sample.piece]
        for index, _ in news:
            self._samples[index].piece = Piece()
        return news

    async def whole(self) -> list[Piece]:
        """Waits until every output has ended. Raises ServiceError."""
        while not self.finished and self._error is None:
            await self._news.wait()
            self._news.clear()
        if self._error is not None:
            raise self._error
        return [sample.piece for sample in self._samples]

    def close(self) -> None:
        """Stops what still runs, and counts the outputs that have ended."""
        self._channel.cancel([self.id])
        model = self._exchange.model
        for sample in self._samples:
            if sample.finished:
                self._metrics.request_generated_tokens.labels(model).observe(sample.tokens)
            if sample.finished and sample.tokens > 1:
                mean = (sample.last_at - sample.first_at) / (sample.tokens - 1)
                self._metrics.output_token.labels(model).observe(mean)

    def _push(self, output: wire.Tokens) -> None:
        sample = self._samples[output.sample]
        if sample.finished:  # a stop string ended it while these were on their way
            return
        self._time(sample, len(output.token_ids))
        if sample.push(output):
            self._channel.cancel_sample(self.id, output.sample)
        if sample.finished:
            self._left -= 1

    def _time(self, sample: _Sample, tokens: int) -> None:
        now = time.monotonic()
        model = self._exchange.model
        if not sample.tokens:
            self._exchange.stage = "decode"
            self._metrics.first_token.labels(model).observe(now - self._exchange.started)
            sample.first_at = now
        elif tokens:
            self._metrics.inter_token.labels(model).observe((now - sample.last_at) / tokens)
        sample.last_at = now
