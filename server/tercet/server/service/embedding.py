"""EmbeddingService: text to vectors."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from tercet.server import wire
from tercet.server.service.answers import Work, ask
from tercet.server.service.errors import ServiceError, to_status
from tercet.server.service.fields import choice, number, unknown
from tercet.server.service.rpc import Broken, count_refusal
from tercet.server.service.sequences import Limit, Sequencer
from tercet.v1.embedding_pb2 import EmbedRequest, EmbedResponse, EmbedStreamResponse, Pooling
from tercet.v1.types_pb2 import DTYPE_FLOAT32

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Sequence

    from tercet.server.config import Settings
    from tercet.server.metrics import Metrics
    from tercet.server.service.registry import Registry, Target
    from tercet.server.service.rpc import Call
    from tercet.server.text import TextModel

_T = TypeVar("_T")
_POOLINGS: dict[int, wire.Pooling] = {
    Pooling.POOLING_MEAN: "mean",
    Pooling.POOLING_CLS: "cls",
    Pooling.POOLING_LAST: "last",
    Pooling.POOLING_MAX: "max",
    Pooling.POOLING_NONE: "none",
}
_FLOAT = 4  # bytes


class EmbeddingServicer:
    """The methods of tercet.v1.EmbeddingService."""

    def __init__(self, registry: Registry, sequencer: Sequencer, settings: Settings, metrics: Metrics) -> None:
        self._registry = registry
        self._sequencer = sequencer
        self._settings = settings
        self._metrics = metrics

    async def embed(self, request: EmbedRequest, call: Call) -> EmbedResponse:
        """Embeds a list of inputs."""
        target = self._registry.target(request.model, "embed", call)
        response = EmbedResponse()
        await self._embed(request, target, call, response, patient=False)
        return response

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
            response = EmbedStreamResponse()
            await self._embed(request, model.require("embed"), call, response.response, patient=True)
            return response
        except ServiceError as error:
            count_refusal(self._metrics, name, error)
            return EmbedStreamResponse(error=to_status(error))

    async def _embed(
        self, request: EmbedRequest, target: Target, call: Call, response: EmbedResponse, *, patient: bool
    ) -> None:
        """Fills in the response to one request. Where a queue is full, a patient one waits for its turn."""
        model, text, _, channel = target
        size, longest = _dimensions(request, target), model.longest_read
        pooling = _pooling(request) or text.embedding.pooling
        question = partial(
            wire.Embed,
            pooling=pooling,
            normalize=request.normalize if request.HasField("normalize") else text.embedding.normalize,
            dimensions=request.dimensions if request.HasField("dimensions") else None,
            deadline=call.deadline,
        )
        prompt = _prompt(request, text)
        self._sequencer.check_count("inputs", len(request.inputs))
        self._sequencer.check_chars("inputs", sum(len(item.text) for item in request.inputs))
        fields = [f"inputs[{i}]" for i in range(len(request.inputs))]
        sequences = await self._sequencer.sequences(
            target,
            request.inputs,
            fields,
            Limit(longest, request.truncate, cut_to=longest),
            respell=lambda own: (prompt + own).lower() if text.embedding.lowercase else prompt + own,
            patient=patient,
        )
        works = [
            sequence
            if isinstance(sequence, ServiceError)
            else Work(
                field,
                [question(id=channel.new_id(), token_ids=sequence.token_ids, type_ids=sequence.type_ids)],
                sequence.truncated,
            )
            for field, sequence in zip(fields, sequences, strict=True)
        ]
        answers = await ask(target, works, wire.Embedding, self._metrics, patient=patient)
        response.model = model.name
        _fill(response, works, answers, size=size, each_token=pooling == "none")


def _pooling(request: EmbedRequest) -> wire.Pooling | None:
    """The request's own pooling. Raises InvalidArgumentError where there is none of its number."""
    return choice("pooling", request.pooling, "a Pooling", _POOLINGS) if request.pooling else None


def _dimensions(request: EmbedRequest, target: Target) -> int:
    """Components of a vector. Raises InvalidArgumentError."""
    size = target.info.embedding_size or 0
    return number(request, "dimensions", size, high=size)


def _prompt(request: EmbedRequest, text: TextModel) -> str:
    """What is put before texts. Raises InvalidArgumentError."""
    prompts = text.embedding.prompts
    name = request.prompt_name if request.HasField("prompt_name") else text.embedding.default_prompt
    if not name:
        return ""
    if name not in prompts:
        raise unknown("prompt_name", "prompt", prompts)
    return prompts[name]


def _fill(
    response: EmbedResponse,
    works: Sequence[Work | ServiceError],
    answers: Sequence[Sequence[wire.Embedding] | ServiceError],
    *,
    size: int,
    each_token: bool,
) -> None:
    """Adds the vectors that there are, and what became of each input. `size` is a vector's where there are none."""
    found: list[bytes] = []
    add = response.items.add
    rows = read = 0
    for work, answer in zip(works, answers, strict=True):
        tokens, truncated = (work.tokens, work.truncated) if isinstance(work, Work) else (0, False)
        read += tokens
        if isinstance(answer, ServiceError):
            add(prompt_tokens=tokens, truncated=truncated, error=to_status(answer))
        else:
            own = tokens if each_token else 1
            add(prompt_tokens=tokens, truncated=truncated, row=rows, rows=own)
            rows += own
            found.extend(vectors.data for vectors in answer)
    data = b"".join(found)
    width = len(data) // (_FLOAT * rows) if rows else size
    # Field by field: a message that is merged into another is copied twice.
    embeddings = response.embeddings
    embeddings.dtype = DTYPE_FLOAT32
    embeddings.shape.extend((rows, width))
    embeddings.data = data
    response.usage.prompt_tokens = read
