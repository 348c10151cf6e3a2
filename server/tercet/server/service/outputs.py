"""The outputs of a generation on their way from the engine's tokens to a reader."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from tercet.server import wire
from tercet.server.service.answers import engine_lost, refusal
from tercet.server.service.errors import InternalError, ServiceError
from tercet.server.service.pieces import Piece
from tercet.server.text import IncrementalDecoder, StopMatcher

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tercet.server.channel import Channel
    from tercet.server.metrics import Metrics, TokenGaps
    from tercet.server.service.rpc import Exchange
    from tercet.server.text import Tokenizer


class _Sample:
    """One output as its tokens come."""

    __slots__ = ("_decoder", "_matcher", "finished", "first_at", "last_at", "piece", "tokens")

    def __init__(self, decoder: IncrementalDecoder, stop: Sequence[str], echo: Sequence[int]) -> None:
        """`echo`: tokens whose text comes first, in which no stop string is looked for."""
        self._decoder = decoder
        self._matcher = StopMatcher(stop) if stop else None
        self.piece = Piece()
        if text := self._decoder.push(echo):
            self.piece.texts.append(text)
        self.tokens = 0
        self.first_at = self.last_at = 0.0
        self.finished = False

    def read(self, token_id: int) -> str:
        """The text that a token makes certain; a stop string may end the output with it."""
        self.tokens += 1
        text = self._decoder.add(token_id)
        if self._matcher is not None:
            text, self.finished = self._matcher.push(text)
            if self.finished:
                self.piece.finish_reason = "stop"
        return text

    def add(self, token_id: int, text: str) -> None:
        """Keeps a token and the text it makes certain."""
        self.piece.token_ids.append(token_id)
        if text:
            self.piece.texts.append(text)

    def push(self, output: wire.Tokens) -> bool:
        """Takes tokens. True where a stop string ended the output before the engine did."""
        before = len(self.piece.token_ids)
        for token_id in output.token_ids:
            self.add(token_id, self.read(token_id))
            if self.finished:
                break
        piece = self.piece
        if output.logprobs:
            piece.logprobs = [*piece.logprobs, *output.logprobs[: len(piece.token_ids) - before]]
        piece.score = output.score
        if output.finish_reason is None:
            return self.finished
        if not self.finished:
            self._finish(output.finish_reason)
        return False

    def _finish(self, reason: wire.FinishReason) -> None:
        """The engine ended the output: what was held back of its text is certain now."""
        text, stopped = self._decoder.finish(), False
        if self._matcher is not None:
            text, stopped = self._matcher.push(text)
            text += self._matcher.finish()
        if text:
            self.piece.texts.append(text)
        self.piece.finish_reason = "stop" if stopped else reason
        self.finished = True


class Reader(Protocol):
    """Who reads outputs without waiting for them."""

    def notice(self) -> None:
        """There is something to take."""
        ...

    def give(self, index: int, token_id: int, text: str) -> bool:
        """Takes a token that brings nothing but text, with the index of its output, or leaves it to be taken later."""
        ...


class _Lane(_Sample):
    """An output without stop strings, for a reader that does not wait: of a busy server's tokens most come this way,
    which is therefore short.
    """

    __slots__ = ("_gaps", "_index", "_reader")

    def __init__(
        self, decoder: IncrementalDecoder, echo: Sequence[int], index: int, reader: Reader, gaps: TokenGaps
    ) -> None:
        super().__init__(decoder, (), echo)
        self._index = index
        self._reader = reader
        self._gaps = gaps

    def take(self, token_id: int, arrived: float) -> bool:
        """Takes the next token, unless it is the first or comes too late."""
        if not self.tokens or self.finished:
            return False
        self.tokens += 1
        self._gaps[arrived - self.last_at] += 1
        self.last_at = arrived
        text = self._decoder.add(token_id)
        if not self._reader.give(self._index, token_id, text):
            self.add(token_id, text)
            self._reader.notice()
        return True


class Outputs:
    """The n outputs of one generation. What its reader does not take yet is kept together, so that tokens behind a slow
    reader arrive in one piece.
    """

    __slots__ = (
        "_channel", "_error", "_exchange", "_field", "_left", "_metrics", "_news", "_reader", "_samples",
        "_whole", "cached_tokens", "id", "lanes",
    )  # fmt: skip

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
        reader: Reader | None = None,
    ) -> None:
        """`field`: the path of the prompt, for errors; `echo`: tokens whose text every output begins with; `reader`:
        None where somebody waits for `pieces` or `whole`.
        """
        self.id = message.id
        self.cached_tokens = 0
        """Of the prompt or source, those that the engine did not read."""
        self._channel = channel
        self._exchange = exchange
        self._metrics = metrics.generations(exchange.model)
        self._field = field
        decoders = [IncrementalDecoder(tokenizer, skip_special_tokens) for _ in range(message.n)]
        self._samples: Sequence[_Sample]
        self.lanes: Sequence[_Lane] = ()
        """Its outputs where their tokens are mostly to be handed on."""
        if reader is None or stop:
            self._samples = [_Sample(decoder, stop, echo) for decoder in decoders]
        else:
            gaps = self._metrics.gaps
            self.lanes = tuple(_Lane(decoder, echo, i, reader, gaps) for i, decoder in enumerate(decoders))
            self._samples = self.lanes
        self._left = message.n
        self._news = asyncio.Event()
        self._whole = False
        self._reader = reader
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
            sample = self._samples[output.sample]
            if not sample.finished:  # a stop string may have ended it while these were on their way
                if output.token_ids:
                    self._time(sample, len(output.token_ids))
                self._note(output.sample, sample, cut_short=sample.push(output))
        elif isinstance(output, wire.Cached):
            self.cached_tokens = output.tokens
            return False
        elif isinstance(output, wire.Rejected):
            self._error = refusal(output, self._field)
        else:
            self._error = InternalError(f"the engine answered with {type(output).__name__}")
        self._tell()
        return self.finished or self._error is not None

    def receive_token(self, sample: int, token_id: int) -> bool:
        """The next token of one output."""
        of, reader = self._samples[sample], self._reader
        if not of.finished:
            self._time(of, 1)
            text = of.read(token_id)
            if of.finished:
                self._note(sample, of, cut_short=True)
            elif reader is not None and reader.give(sample, token_id, text):
                return False
            of.add(token_id, text)
            self._tell()
        return self._left == 0

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
        news: list[tuple[int, Piece]] = []
        for index, sample in enumerate(self._samples):
            piece = sample.piece
            if piece.token_ids or piece.texts or piece.finish_reason:
                news.append((index, piece))
                sample.piece = Piece()
        return news

    async def whole(self) -> list[Piece]:
        """Waits until every output has ended. Raises ServiceError."""
        self._news.clear()
        self._whole = True  # of tokens on the way nobody wants to hear
        self._tell()
        await self._news.wait()
        if self._error is not None:
            raise self._error
        return [sample.piece for sample in self._samples]

    def close(self) -> None:
        """Stops what still runs, and counts the outputs that have ended."""
        self._channel.cancel([self.id])
        self._metrics.gaps.flush()
        for sample in self._samples:
            if sample.finished:
                self._metrics.generated_tokens.observe(sample.tokens)
            if sample.finished and sample.tokens > 1:
                mean = (sample.last_at - sample.first_at) / (sample.tokens - 1)
                self._metrics.output_token.observe(mean)

    def _tell(self) -> None:
        if self._reader is not None:
            self._reader.notice()
        elif not self._whole or self.finished or self._error is not None:
            self._news.set()

    def _note(self, index: int, sample: _Sample, *, cut_short: bool) -> None:
        """Counts an output that has ended; `cut_short`: the engine does not know it yet."""
        if cut_short:
            self._channel.cancel_sample(self.id, index)
        if sample.finished:
            self._left -= 1

    def _time(self, sample: _Sample, tokens: int) -> None:
        """Tokens came: each counts as if it had come alone."""
        now = self._channel.arrived
        if sample.tokens:
            self._metrics.gaps[(now - sample.last_at) / tokens] += tokens
        else:
            self._exchange.stage = "decode"
            self._metrics.first_token.observe(now - self._exchange.started)
            sample.first_at = now
        sample.last_at = now
