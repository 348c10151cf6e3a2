"""From the request for a generation to its outputs: checked, filled up, and handed to an engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tercet.server import wire
from tercet.server.service.answers import Work, ask
from tercet.server.service.errors import InvalidArgumentError, unless_error
from tercet.server.service.outputs import Outputs, Reader
from tercet.server.service.pieces import logprobs
from tercet.server.service.prompts import Prompt, Prompter
from tercet.server.service.sampling import check, check_beams, resolve, stop_ids, wanted_tokens
from tercet.v1.types_pb2 import Usage

if TYPE_CHECKING:
    from tercet.server.config import Settings
    from tercet.server.metrics import Metrics
    from tercet.server.service.registry import Registry, Target
    from tercet.server.service.rpc import Exchange
    from tercet.server.service.sequences import Sequencer
    from tercet.v1.generation_pb2 import GenerateRequest

MAX_SALT_CHARS = 256


@dataclass(frozen=True, slots=True)
class Started:
    """A generation that the engine works on."""

    target: Target
    prompt: Prompt
    message: wire.Generate
    outputs: Outputs
    echo: bool

    @property
    def usage(self) -> Usage:
        """Over all outputs, so far."""
        return Usage(
            prompt_tokens=len(self.message.token_ids),
            generated_tokens=self.outputs.generated_tokens,
            cached_tokens=self.outputs.cached_tokens,
        )

    @property
    def common(self) -> dict[str, Any]:
        """What every message of the answer says."""
        return {"truncated": self.prompt.tokens.truncated, "seed": self.message.sampling.seed}


class Starter:
    """Starts generations."""

    def __init__(self, registry: Registry, sequencer: Sequencer, settings: Settings, metrics: Metrics) -> None:
        self._registry = registry
        self._prompter = Prompter(sequencer, settings)
        self._settings = settings
        self._metrics = metrics

    async def start(
        self,
        request: GenerateRequest,
        exchange: Exchange,
        reader: Reader | None = None,
    ) -> Started:
        """Checks a request and hands it to the engine; `reader` is as in `Outputs`. Raises ServiceError."""
        target = self._registry.target(
            request.model, "chat" if request.WhichOneof("prompt") == "chat" else "generate", exchange
        )
        model, text, info, channel = target
        sampling = request.sampling
        check(sampling, self._settings, info.target_vocab_size)
        if len(request.cache_salt) > MAX_SALT_CHARS:
            problem = f"has {len(request.cache_salt)} characters, the limit is {MAX_SALT_CHARS}"
            raise InvalidArgumentError("cache_salt", problem)
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
            decoder_ids=wire.token_ids(start_ids),
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
            stop_ids=stop_ids(sampling),
            cache_salt=request.cache_salt,
            deadline=exchange.deadline,
        )
        fitting = info.pages - _pages(len(read), info) - _pages(len(start_ids), info)
        fitting //= _pages(message.sampling.max_new_tokens, info)
        check_beams(sampling, message.sampling, message.n, rows=model.max_rows, fitting=fitting)
        model.admit(channel, max(message.n, message.sampling.num_beams), len(read))
        self._metrics.generations(model.name).prompt_tokens.observe(len(read))
        outputs = Outputs(
            message,
            channel,
            exchange,
            self._metrics,
            field=prompt.field,
            tokenizer=text.target_tokenizer,
            stop=sampling.stop.values,
            echo=read if sampling.echo else (),
            skip_special_tokens=sampling.skip_special_tokens if sampling.HasField("skip_special_tokens") else True,
            reader=reader,
        )
        channel.submit([message], outputs, outputs.lanes)
        return Started(target, prompt, message, outputs, sampling.echo)

    async def echoed(self, started: Started) -> dict[str, Any]:
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
                deadline=started.message.deadline,
            )
            [scored] = await ask(target, [Work(started.prompt.field, [question])], wire.Scored, self._metrics)
            echoed["prompt_logprobs"] = logprobs(unless_error(scored)[0].logprobs)
        return echoed


def _pages(tokens: int, info: wire.ModelInfo) -> int:
    """That so many tokens take."""
    return -(-tokens // info.page_size)
