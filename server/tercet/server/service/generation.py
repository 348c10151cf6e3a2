"""GenerationService: text to text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tercet.server import wire
from tercet.server.service.answers import Generation as Answer
from tercet.server.service.answers import Piece
from tercet.server.service.errors import InvalidArgumentError
from tercet.server.service.sampling import check_ranges, resolve, wanted_tokens
from tercet.server.service.sequences import Limit, Sequencer, TokenSequence, check_ids, fit
from tercet.server.text import ChatTemplateError
from tercet.v1.generation_pb2 import (
    FinishReason,
    GenerateRequest,
    GenerateResponse,
    GenerateStreamResponse,
    Generation,
    SamplingParameters,
)
from tercet.v1.types_pb2 import Usage

if TYPE_CHECKING:
    from tercet.server.config import Settings
    from tercet.server.metrics import Metrics
    from tercet.server.service.registry import Registry, ServedModel
    from tercet.server.service.rpc import Call
    from tercet.server.text import TextModel

_FINISH_REASONS: dict[wire.FinishReason | None, FinishReason] = {
    None: FinishReason.FINISH_REASON_UNSPECIFIED,
    "eos": FinishReason.FINISH_REASON_EOS,
    "stop": FinishReason.FINISH_REASON_STOP,
    "length": FinishReason.FINISH_REASON_LENGTH,
}


@dataclass(frozen=True, slots=True)
class _Started:
    """A generation that the engine works on."""

    model: str
    prompt: TokenSequence
    seed: int
    answer: Answer

    @property
    def usage(self) -> Usage:
        return Usage(prompt_tokens=len(self.prompt.token_ids), generated_tokens=self.answer.generated_tokens)


class GenerationServicer:
    """The methods of tercet.v1.GenerationService."""

    def __init__(self, registry: Registry, sequencer: Sequencer, settings: Settings, metrics: Metrics) -> None:
        self._registry = registry
        self._sequencer = sequencer
        self._settings = settings
        self._metrics = metrics

    async def generate(self, request: GenerateRequest, call: Call) -> GenerateResponse:
        """Answers once everything is generated."""
        started = await self._start(request, call)
        try:
            pieces = await started.answer.outputs()
        finally:
            started.answer.close()
        outputs = [
            Generation(index=index, text=piece.text, token_ids=piece.token_ids, finish_reason=_reason(piece))
            for index, piece in enumerate(pieces)
        ]
        return GenerateResponse(
            model=started.model,
            outputs=outputs,
            usage=started.usage,
            truncated=started.prompt.truncated,
            seed=started.seed,
        )

    async def generate_stream(self, request: GenerateRequest, call: Call) -> None:
        """Answers as tokens come."""
        started = await self._start(request, call)
        try:
            ended = False
            while not ended:
                pieces = await started.answer.pieces()
                ended = started.answer.finished
                for index, piece in pieces:
                    last = ended and index == pieces[-1][0]
                    await call.write(
                        GenerateStreamResponse(
                            index=index,
                            text=piece.text,
                            token_ids=piece.token_ids,
                            finish_reason=_reason(piece),
                            usage=started.usage if last else None,
                            truncated=started.prompt.truncated,
                            seed=started.seed,
                        )
                    )
        finally:
            started.answer.close()

    async def _start(self, request: GenerateRequest, call: Call) -> _Started:
        """Checks a request and hands it to the engine. Raises ServiceError."""
        task = "chat" if request.WhichOneof("prompt") == "chat" else "generate"
        model = self._registry.find(request.model, task)
        call.model = model.name
        text, info, channel = model.require(task)
        sampling = request.sampling
        self._check(sampling, info)
        prompt = await self._prompt(request, model, text, info)
        start_ids = list(text.generation.decoder_start_ids) if info.family == "seq2seq" else []
        read = start_ids if info.family == "seq2seq" else prompt.token_ids  # what generated tokens follow
        message = wire.Generate(
            id=channel.reserve(1),
            token_ids=prompt.token_ids,
            decoder_ids=start_ids,
            sampling=resolve(
                sampling,
                text.generation.after(len(read)),
                wanted=wanted_tokens(sampling, text.generation, len(read)),
                room=model.max_length - len(read),
            ),
            n=sampling.n if sampling.HasField("n") else 1,
            eos_ids=[] if sampling.ignore_eos else list(text.generation.eos_ids),
            stop_ids=list(sampling.stop_token_ids.values),
            deadline=call.deadline,
        )
        model.admit(channel, message.n, len(prompt.token_ids))
        self._metrics.request_prompt_tokens.labels(model.name).observe(len(prompt.token_ids))
        answer = Answer(
            message,
            channel,
            call,
            self._metrics,
            field=_prompt_path(request),
            tokenizer=text.tokenizer,
            stop=sampling.stop.values,
            skip_special_tokens=sampling.skip_special_tokens if sampling.HasField("skip_special_tokens") else True,
        )
        channel.submit([message], answer)
        return _Started(model.name, prompt, message.sampling.seed, answer)

    def _check(self, sampling: SamplingParameters, info: wire.ModelInfo) -> None:
        """Raises InvalidArgumentError for values out of range, lists too long, strings empty, ids unknown."""
        check_ranges(sampling)
        settings = self._settings
        if sampling.HasField("n") and not 1 <= sampling.n <= settings.max_outputs:
            raise InvalidArgumentError("sampling.n", f"{sampling.n} is not in [1, {settings.max_outputs}]")
        for name, values in (("stop", sampling.stop.values), ("stop_token_ids", sampling.stop_token_ids.values)):
            if len(values) > settings.max_stops:
                problem = f"has {len(values)} elements, the limit is {settings.max_stops}"
                raise InvalidArgumentError(f"sampling.{name}", problem)
        for i, stop in enumerate(sampling.stop.values):
            if not 1 <= len(stop) <= settings.max_stop_chars:
                problem = f"has {len(stop)} characters, must have at least 1 and at most {settings.max_stop_chars}"
                raise InvalidArgumentError(f"sampling.stop.values[{i}]", problem)
        if sampling.stop_token_ids.values:
            check_ids("sampling.stop_token_ids", sampling.stop_token_ids.values, info.vocab_size)

    async def _prompt(
        self, request: GenerateRequest, model: ServedModel, text: TextModel, info: wire.ModelInfo
    ) -> TokenSequence:
        """What the model reads. Raises InvalidArgumentError."""
        limit = _limit(request, model, text, info)
        match request.WhichOneof("prompt"):
            case "chat":
                rendered = await self._render(request, text)
                [encoded] = await self._sequencer.encode(model, text.tokenizer, [rendered], special=False)
                prompt = fit("chat", encoded, limit)
            case "input":
                [sequence] = await self._sequencer.sequences(
                    model, text.tokenizer, [request.input], info.vocab_size, limit, lambda _: "input"
                )
                if isinstance(sequence, InvalidArgumentError):
                    raise sequence
                prompt = sequence
            case _:
                raise InvalidArgumentError("prompt", "must have input or chat")
        if not prompt.token_ids:
            raise InvalidArgumentError(_prompt_path(request), "has no tokens")
        return prompt

    async def _render(self, request: GenerateRequest, text: TextModel) -> str:
        """The prompt of a conversation. Raises InvalidArgumentError."""
        messages = request.chat.messages
        if not 1 <= len(messages) <= self._settings.max_messages:
            problem = f"has {len(messages)} elements, must have at least 1 and at most {self._settings.max_messages}"
            raise InvalidArgumentError("chat.messages", problem)
        for i, message in enumerate(messages):
            if not message.role:
                raise InvalidArgumentError(f"chat.messages[{i}].role", "must not be empty")
            self._sequencer.check_text(f"chat.messages[{i}].role", message.role)
            self._sequencer.check_text(f"chat.messages[{i}].content", message.content)
        chars = sum(len(message.role) + len(message.content) for message in messages)
        self._sequencer.check_chars("chat.messages", chars)
        spoken = [{"role": message.role, "content": message.content} for message in messages]
        try:
            rendered = await self._sequencer.threads.run(chars, lambda: text.render_chat(spoken))
        except ChatTemplateError as error:
            raise InvalidArgumentError("chat", str(error)) from None
        self._sequencer.check_text("chat", rendered)
        return rendered


def _prompt_path(request: GenerateRequest) -> str:
    """The path of the prompt."""
    if request.WhichOneof("prompt") == "chat":
        return "chat"
    return f"input.{request.input.WhichOneof('input')}"


def _limit(request: GenerateRequest, model: ServedModel, text: TextModel, info: wire.ModelInfo) -> Limit:
    """How long a prompt may be. A decoder's leaves room for one token, and is cut so that what is wanted fits."""
    if info.family == "seq2seq":
        return Limit(model.max_length, request.truncate, cut_to=model.max_length)
    longest = model.max_length - 1
    wanted = wanted_tokens(request.sampling, text.generation, longest)
    keep = model.max_length - (model.max_length // 2 if wanted is None else wanted)
    return Limit(longest, request.truncate, cut_to=min(max(keep, 1), longest), keep="end")


def _reason(piece: Piece) -> FinishReason:
    return _FINISH_REASONS[piece.finish_reason]
