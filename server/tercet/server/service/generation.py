"""GenerationService: text to text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tercet.server.service.many import Many
from tercet.server.service.pieces import fields
from tercet.server.service.starting import Starter
from tercet.v1.generation_pb2 import GenerateResponse, GenerateStreamResponse, Generation

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tercet.server.config import Settings
    from tercet.server.metrics import Metrics
    from tercet.server.service.registry import Registry
    from tercet.server.service.rpc import Broken, Call
    from tercet.server.service.sequences import Sequencer
    from tercet.v1.generation_pb2 import GenerateManyRequest, GenerateRequest


class GenerationServicer:
    """The methods of tercet.v1.GenerationService."""

    def __init__(self, registry: Registry, sequencer: Sequencer, settings: Settings, metrics: Metrics) -> None:
        self._starter = Starter(registry, sequencer, settings, metrics)
        self._settings = settings
        self._metrics = metrics

    async def generate(self, request: GenerateRequest, call: Call) -> GenerateResponse:
        """Answers once everything is generated."""
        started = await self._starter.start(request, call)
        try:
            echoed = await self._starter.echoed(started)
            pieces = await started.outputs.whole()
        finally:
            started.outputs.close()
        return GenerateResponse(
            model=started.target.model.name,
            outputs=[Generation(index=index, **fields(piece)) for index, piece in enumerate(pieces)],
            usage=started.usage,
            **started.common,
            **echoed,
        )

    async def generate_stream(self, request: GenerateRequest, call: Call) -> None:
        """Answers as tokens come."""
        started = await self._starter.start(request, call)
        try:
            first = await self._starter.echoed(started)
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
                            **fields(piece),
                            **started.common,
                            **first,
                        )
                    )
                    first = {}
        finally:
            started.outputs.close()

    async def generate_many(self, requests: AsyncIterator[GenerateManyRequest | Broken], call: Call) -> None:
        """Answers many requests on one stream."""
        await Many(self._starter, call, self._metrics, most=self._settings.max_streams).serve(requests)
