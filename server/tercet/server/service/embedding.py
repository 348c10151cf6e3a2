"""EmbeddingService: text to vectors."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from tercet.server import wire
from tercet.server.service.answers import ask_at_once, refusal
from tercet.server.service.columns import batch_columns, columns_of, inputs_of, packed_columns
from tercet.server.service.errors import InvalidArgumentError, ServiceError, to_status
from tercet.server.service.fields import choice, number, unknown
from tercet.server.service.rpc import Broken, count_refusal
from tercet.server.service.sequences import Limit, Sequencer
from tercet.v1.embedding_pb2 import EmbedRequest, EmbedResponse, EmbedStreamResponse, Pooling
from tercet.v1.types_pb2 import DTYPE_FLOAT32

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Sequence

    from tercet.server.config import Settings
    from tercet.server.metrics import Metrics
    from tercet.server.service.columns import Columns
    from tercet.server.service.registry import Registry, Target
    from tercet.server.service.rpc import Call
    from tercet.server.text import TextModel
    from tercet.v1.types_pb2 import TextInput

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
        size = _dimensions(request, target)
        pooling = _pooling(request) or text.embedding.pooling
        columns = await self._columns(request, target, patient=patient)
        answer = wire.Embeddings(id=0, data=b"", rejected={})
        if rows := len(columns.lengths):
            embeds = wire.Embeds(
                id=channel.new_id(rows),
                lengths=columns.lengths,
                token_ids=columns.token_ids,
                type_ids=columns.type_ids,
                pooling=pooling,
                normalize=request.normalize if request.HasField("normalize") else text.embedding.normalize,
                dimensions=request.dimensions if request.HasField("dimensions") else None,
                deadline=call.deadline,
            )
            answer = await ask_at_once(target, embeds, self._metrics, patient=patient)
        response.model = model.name
        _fill(response, columns, answer, size=size, each_token=pooling == "none")

    async def _columns(self, request: EmbedRequest, target: Target, *, patient: bool) -> Columns:
        """What the model reads for the inputs. Raises ServiceError."""
        embedding, longest = target.text.embedding, target.model.longest_read
        prompt = _prompt(request, target.text)
        limit, vocab_size = Limit(longest, request.truncate, cut_to=longest), target.info.vocab_size
        inputs: Sequence[TextInput] = request.inputs
        if request.HasField("token_batch"):
            if inputs:
                raise InvalidArgumentError("token_batch", "must not be given beside inputs")
            self._sequencer.check_count("token_batch.lengths", len(request.token_batch.lengths))
            if columns := batch_columns(request.token_batch, limit, vocab_size):
                return columns
            inputs = inputs_of(request.token_batch)
        self._sequencer.check_count("inputs", len(inputs))
        if columns := packed_columns(inputs, limit, vocab_size):
            return columns
        self._sequencer.check_chars("inputs", sum(len(item.text) for item in inputs))
        sequences = await self._sequencer.sequences(
            target,
            inputs,
            [f"inputs[{i}]" for i in range(len(inputs))],
            limit,
            respell=lambda own: (prompt + own).lower() if embedding.lowercase else prompt + own,
            patient=patient,
        )
        return columns_of(sequences)


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


def _fill(response: EmbedResponse, columns: Columns, answer: wire.Embeddings, *, size: int, each_token: bool) -> None:
    """Adds the vectors, and what became of each input. `size` is a vector's where there are none."""
    add = response.items.add
    read = enumerate(columns.lengths)
    rows = 0
    for i in range(len(columns.lengths) + len(columns.refused)):
        item = add()
        if i in columns.refused:
            item.error.CopyFrom(to_status(columns.refused[i]))
            continue
        place, tokens = next(read)
        item.prompt_tokens = tokens
        if i in columns.truncated:
            item.truncated = True
        if place in answer.rejected:
            item.error.CopyFrom(to_status(refusal(answer.rejected[place], f"inputs[{i}]")))
            continue
        item.row = rows
        item.rows = own = tokens if each_token else 1
        rows += own
    width = len(answer.data) // (_FLOAT * rows) if rows else size
    # Field by field: a message that is merged into another is copied twice.
    embeddings = response.embeddings
    embeddings.dtype = DTYPE_FLOAT32
    embeddings.shape.extend((rows, width))
    embeddings.data = answer.data
    response.usage.prompt_tokens = len(columns.token_ids)
