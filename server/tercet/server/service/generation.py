"""GenerationService: text to text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tercet.server import wire
from tercet.server.service.answers import Work, ask
from tercet.server.service.errors import InvalidArgumentError, unless_error
from tercet.server.service.outputs import Outputs, Piece
from tercet.server.service.prompts import Prompt, Prompter
from tercet.server.service.sampling import check, check_beams, resolve, wanted_tokens
from tercet.v1.generation_pb2 import (
    FinishReason,
    GenerateRequest,
    GenerateResponse,
    GenerateStreamResponse,
    Generation,
    TokenLogprob,
    TopLogprob,
)
from tercet.v1.types_pb2 import Usage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tercet.server.config import Settings
    from tercet.server.metrics import Metrics
    from tercet.server.service.registry import Registry, Target
    from tercet.server.service.rpc import Call
    from tercet.server.service.sequences import Sequencer

_FINISH_REASONS: dict[wire.FinishReason | None, FinishReason] = {
    None: FinishReason.FINISH_REASON_UNSPECIFIED,
    "eos": FinishReason.FINISH_REASON_EOS,
    "stop": FinishReason.FINISH_REASON_STOP,
    "length": FinishReason.FINISH_REASON_LENGTH,
}


@dataclass(frozen=True, slots=True)
class _Started:
    """A generation that the engine works on."""

    target: Target
    prompt: Prompt
    message: wire.Generate
    outputs: Outputs
    echo: bool

    @property
    def usage(self) -> Usage:
        return Usage(prompt_tokens=len(self.message.token_ids), generated_tokens=self.outputs.generated_tokens)

    @property
    def common(self) -> dict[str, Any]:
        """What every message of the answer says."""
        return {"truncated": self.prompt.tokens.truncated, "seed": self.message.sampling.seed}


class GenerationServicer:
    """The methods of tercet.v1.GenerationService."""

    def __init__(self, registry: Registry, sequencer: Sequencer, settings: Settings, metrics: Metrics) -> None:
        self._registry = registry
        self._prompter = Prompter(sequencer, settings)
        self._settings = settings
        self._metrics = metrics

    async def generate(self, request: GenerateRequest, call: Call) -> GenerateResponse:
        """Answers once everything is generated."""
        started = await self._start(request, call)
        try:
            echoed = await self._echoed(started, call)
            pieces = await started.outputs.whole()
        finally:
            started.outputs.close()
        return GenerateResponse(
            model=started.target.model.name,
            outputs=[Generation(index=index, **_fields(piece)) for index, piece in enumerate(pieces)],
            usage=started.usage,
            **started.common,
            **echoed,
        )

    async def generate_stream(self, request: GenerateRequest, call: Call) -> None:
        """Answers as tokens come."""
        started = await self._start(request, call)
        try:
            first = await self._echoed(started, call)
            ended = False
            while not ended:
                pieces = await started.outputs.pieces()
                ended = started.outputs.finished
                for index, piece in pieces:
                    last = ended and index == pieces[-1][0]
                    await call.write(
                        GenerateStreamResponse(
                            index=index,
                            usage=started.usage if last else None,
                            **_fields(piece),
                            **started.common,
                            **first,
                        )
                    )
                    first = {}
        finally:
            started.outputs.close()

    async def _start(self, request: GenerateRequest, call: Call) -> _Started:
        """Checks a request and hands it to the engine. Raises ServiceError."""
        target = self._registry.target(
            request.model, "chat" if request.WhichOneof("prompt") == "chat" else "generate", call
        )
        model, text, info, channel = target
        sampling = request.sampling
        check(sampling, self._settings, info.target_vocab_size)
        seq2seq = info.family == "seq2seq"
        if sampling.echo and (seq2seq or request.HasField("chat")):
            what = "a seq2seq model" if seq2seq else "a conversation"
            raise InvalidArgumentError("sampling.echo", f"must not be set: outputs of {what} don't begin with it")
        prompt = await self._prompter.prompt(request, target)
        read = prompt.tokens.token_ids
        start_ids = list(prompt.defaults.decoder_start_ids) if seq2seq else []
        before = len(start_ids if seq2seq else read)  # what generated tokens follow
        message = wire.Generate(
            id=channel.new_id(),
            token_ids=read,
            decoder_ids=start_ids,
            sampling=resolve(
                sampling,
                prompt.defaults.after(before),
                text.target_tokenizer,
                wanted=wanted_tokens(sampling, prompt.defaults, before),
                room=model.max_length - before,
                forced_bos_id=prompt.forced_bos_id,
            ),
            n=sampling.n if sampling.HasField("n") else 1,
            eos_ids=[] if sampling.ignore_eos else list(prompt.defaults.eos_ids),
            stop_ids=list(sampling.stop_token_ids.values),
            deadline=call.deadline,
        )
        fitting = info.pages - _pages(len(read), info) - _pages(len(start_ids), info)
        fitting //= _pages(message.sampling.max_new_tokens, info)
        check_beams(sampling, message.sampling, message.n, rows=model.max_rows, fitting=fitting)
        model.admit(channel, max(message.n, message.sampling.num_beams), len(read))
        self._metrics.request_prompt_tokens.labels(model.name).observe(len(read))
        outputs = Outputs(
            message,
            channel,
            call,
            self._metrics,
            field=prompt.field,
            tokenizer=text.target_tokenizer,
            stop=sampling.stop.values,
            echo=read if sampling.echo else (),
            skip_special_tokens=sampling.skip_special_tokens if sampling.HasField("skip_special_tokens") else True,
        )
        channel.submit([message], outputs)
        return _Started(target, prompt, message, outputs, sampling.echo)

    async def _echoed(self, started: _Started, call: Call) -> dict[str, Any]:
        """What a response says of the prompt. Raises ServiceError."""
        if not started.echo:
            return {}
        read, target = started.message.token_ids, started.target
        echoed: dict[str, Any] = {"prompt_token_ids": read}
        sampling = started.message.sampling
        if sampling.logprobs and len(read) > 1:
            question = wire.Score(
                id=target.channel.new_id(),
                token_ids=read,
                top_logprobs=sampling.top_logprobs,
                deadline=call.deadline,
            )
            [scored] = await ask(target, [Work(started.prompt.field, [question])], wire.Scored, self._metrics)
            echoed["prompt_logprobs"] = _logprobs(unless_error(scored)[0].logprobs)
        return echoed


def _pages(tokens: int, info: wire.ModelInfo) -> int:
    """That so many tokens take."""
    return -(-tokens // info.page_size)


def _fields(piece: Piece) -> dict[str, Any]:
    """What outputs and pieces of them have in common."""
    return {
        "text": piece.text,
        "token_ids": piece.token_ids,
        "finish_reason": _FINISH_REASONS[piece.finish_reason],
        "logprobs": _logprobs(piece.logprobs),
        "score": piece.score,
    }


def _logprobs(tokens: Sequence[wire.TokenLogprob]) -> list[TokenLogprob]:
    return [
        TokenLogprob(
            logprob=token.logprob,
            top=[TopLogprob(token_id=i, logprob=p) for i, p in zip(token.top_ids, token.top_logprobs, strict=True)],
        )
        for token in tokens
    ]
