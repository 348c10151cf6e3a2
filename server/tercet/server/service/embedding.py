"""EmbeddingService: text to vectors."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from tercet.server import wire
from tercet.server.service.answers import Vectors
from tercet.server.service.errors import InvalidArgumentError, ServiceError, to_status
from tercet.server.service.rpc import Broken, count_refusal
from tercet.server.service.sequences import Limit, Sequencer, TokenSequence
from tercet.v1.embedding_pb2 import EmbedItem, EmbedRequest, EmbedResponse, EmbedStreamResponse, Pooling
from tercet.v1.types_pb2 import DTYPE_FLOAT32, Tensor, Usage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence

    from tercet.server.channel import Channel
    from tercet.server.config import Settings
    from tercet.server.metrics import Metrics
    from tercet.server.service.registry import Registry, ServedModel
    from tercet.server.service.rpc import Call

_T = TypeVar("_T")
_POOLINGS: dict[int, wire.Pooling] = {
    Pooling.POOLING_MEAN: "mean",
    Pooling.POOLING_CLS: "cls",
    Pooling.POOLING_LAST: "last",
    Pooling.POOLING_MAX: "max",
}


class EmbeddingServicer:
    """The methods of tercet.v1.EmbeddingService."""

    def __init__(self, registry: Registry, sequencer: Sequencer, settings: Settings, metrics: Metrics) -> None:
        self._registry = registry
        self._sequencer = sequencer
        self._settings = settings
        self._metrics = metrics

    async def embed(self, request: EmbedRequest, call: Call) -> EmbedResponse:
        """Embeds a list of inputs."""
        model = self._registry.find(request.model, "embed")
        call.model = model.name
        return await self._embed(request, model, call, patient=False)

    async def embed_stream(self, requests: AsyncIterator[EmbedRequest | Broken], call: Call) -> None:
        """Embeds list after list, working on some ahead of the one whose turn it is."""
        room = asyncio.Semaphore(self._settings.read_ahead)
        ahead: asyncio.Queue[asyncio.Task[EmbedStreamResponse] | None] = asyncio.Queue()
        tasks: set[asyncio.Task[object]] = set()

        def start(work: Coroutine[object, object, _T]) -> asyncio.Task[_T]:
            task = asyncio.ensure_future(work)
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            return task

        async def read() -> None:
            try:
                async for request in requests:
                    await room.acquire()
                    ahead.put_nowait(start(self._embed_one(request, call)))
            finally:
                ahead.put_nowait(None)

        reading = start(read())
        try:
            while (task := await ahead.get()) is not None:
                await call.write(await task)
                room.release()
            await reading
        finally:
            for task in list(tasks):
                task.cancel()

    async def _embed_one(self, request: EmbedRequest | Broken, call: Call) -> EmbedStreamResponse:
        name = ""
        try:
            if isinstance(request, Broken):
                raise request.error
            model = self._registry.find(request.model, "embed")
            name = model.name
            call.model = call.model or name  # of a stream, its first
            return EmbedStreamResponse(response=await self._embed(request, model, call, patient=True))
        except ServiceError as error:
            count_refusal(self._metrics, name, error)
            return EmbedStreamResponse(error=to_status(error))

    async def _embed(self, request: EmbedRequest, model: ServedModel, call: Call, *, patient: bool) -> EmbedResponse:
        """Answers one request. Where a queue is full, a patient one waits for its turn."""
        text, info, channel = model.require("embed")
        pooling, normalize = _pooling(request) or text.embedding.pooling, text.embedding.normalize
        if request.HasField("normalize"):
            normalize = request.normalize
        self._sequencer.check_count("inputs", len(request.inputs))
        self._sequencer.check_chars("inputs", sum(len(item.text) for item in request.inputs))
        sequences = await self._sequencer.sequences(
            model,
            text.tokenizer,
            request.inputs,
            info.vocab_size,
            Limit(model.max_length, request.truncate, cut_to=model.max_length),
            _path,
            lowercase=text.embedding.lowercase,
            patient=patient,
        )
        fitting = {i: sequence for i, sequence in enumerate(sequences) if isinstance(sequence, TokenSequence)}
        first = channel.reserve(len(fitting))
        messages = [
            wire.Embed(
                id=id,
                token_ids=sequence.token_ids,
                type_ids=sequence.type_ids,
                pooling=pooling,
                normalize=normalize,
                deadline=call.deadline,
            )
            for id, sequence in enumerate(fitting.values(), first)
        ]
        vectors = await self._run(model, channel, messages, [_path(i) for i in fitting], patient=patient)
        return _response(model.name, info.embedding_size or 0, sequences, iter(vectors))

    async def _run(
        self,
        model: ServedModel,
        channel: Channel,
        messages: Sequence[wire.Embed],
        paths: Sequence[str],
        *,
        patient: bool,
    ) -> list[bytes | ServiceError]:
        """The engine's answers, in order."""
        if not messages:
            return []
        tokens = [len(message.token_ids) for message in messages]
        if patient and model.can_wait(len(messages), sum(tokens)):
            while not model.has_room(channel, len(messages), sum(tokens)):
                await channel.pending.change()
        model.admit(channel, len(messages), sum(tokens))
        vectors = Vectors(messages[0].id, paths)
        channel.submit(messages, vectors)
        try:
            return await vectors.wait()
        finally:
            channel.cancel(range(messages[0].id, messages[0].id + len(messages)))
            prompt_tokens = self._metrics.request_prompt_tokens.labels(model.name)
            for count in tokens:
                prompt_tokens.observe(count)


def _pooling(request: EmbedRequest) -> wire.Pooling | None:
    """The request's own pooling. Raises InvalidArgumentError where there is none of its number."""
    if not request.pooling:
        return None
    if request.pooling not in _POOLINGS:
        raise InvalidArgumentError("pooling", f"{request.pooling} is not a Pooling, 0 to {max(_POOLINGS)}")
    return _POOLINGS[request.pooling]


def _path(place: int) -> str:
    return f"inputs[{place}]"


def _response(
    model: str,
    size: int,
    sequences: Sequence[TokenSequence | InvalidArgumentError],
    answers: Iterator[bytes | ServiceError],
) -> EmbedResponse:
    """The vectors that there are, and what became of each input. `answers` are those to the inputs that were read."""
    rows: list[bytes] = []
    items: list[EmbedItem] = []
    for sequence in sequences:
        answer = sequence
        item = EmbedItem()
        if isinstance(sequence, TokenSequence):
            answer = next(answers)
            item.prompt_tokens = len(sequence.token_ids)
            item.truncated = sequence.truncated
        if isinstance(answer, bytes):
            item.row = len(rows)
            rows.append(answer)
        elif isinstance(answer, ServiceError):
            item.error.CopyFrom(to_status(answer))
        items.append(item)
    return EmbedResponse(
        model=model,
        embeddings=Tensor(dtype=DTYPE_FLOAT32, shape=[len(rows), size], data=b"".join(rows)),
        items=items,
        usage=Usage(prompt_tokens=sum(item.prompt_tokens for item in items)),
    )
