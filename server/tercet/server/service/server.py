"""The gRPC server of one front end, from start to drain."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from tercet.server.garbage import settle
from tercet.server.logs import fields
from tercet.server.ports import BindError
from tercet.server.service.embedding import EmbeddingServicer
from tercet.server.service.generation import GenerationServicer
from tercet.server.service.health import Health
from tercet.server.service.models import ModelServicer
from tercet.server.service.registry import Registry
from tercet.server.service.rpc import Gate, handler
from tercet.server.service.scoring import ScoringServicer
from tercet.server.service.sequences import Sequencer
from tercet.server.service.text import TextServicer
from tercet.server.service.understanding import UnderstandingServicer
from tercet.server.text import load_text_model
from tercet.v1 import embedding_pb2, generation_pb2, models_pb2, scoring_pb2, text_pb2, understanding_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping
    from pathlib import Path

    from tercet.server.config import Settings
    from tercet.server.engines import Engine
    from tercet.server.metrics import Metrics
    from tercet.server.shutdown import Shutdown

log = logging.getLogger(__name__)
_LAST_ANSWERS = 1.0  # seconds for the errors of cut-off calls to reach their clients


class Server:
    """Every service on one port."""

    def __init__(
        self, settings: Settings, metrics: Metrics, engines: Collection[Engine], changed: asyncio.Event
    ) -> None:
        """`changed` is set where an engine's state has changed."""
        self._settings = settings
        self._engines = engines
        self._registry = Registry(engines, settings)
        self._health = Health(self._registry)
        self._gate = Gate()
        self._changed = changed
        self._grpc = grpc.aio.server(options=_options(settings))
        sequencer = Sequencer(settings, metrics)
        served: list[tuple[Any, object]] = [
            (models_pb2, ModelServicer(self._registry)),
            (embedding_pb2, EmbeddingServicer(self._registry, sequencer, settings, metrics)),
            (generation_pb2, GenerationServicer(self._registry, sequencer, settings, metrics)),
            (understanding_pb2, UnderstandingServicer(self._registry, sequencer, settings, metrics)),
            (scoring_pb2, ScoringServicer(self._registry, sequencer, settings, metrics)),
            (text_pb2, TextServicer(self._registry, sequencer)),
        ]
        services = [(module.DESCRIPTOR.services_by_name.values()[0], servicer) for module, servicer in served]
        self._grpc.add_generic_rpc_handlers(
            [handler(service, servicer, metrics, self._gate) for service, servicer in services]
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health.servicer, _Unregistered(self._grpc))
        if settings.reflection:
            names = [service.full_name for service, _ in services]
            names += [health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME]
            reflector = reflection.aio.ReflectionServicer(names)
            reflection_pb2_grpc.add_ServerReflectionServicer_to_server(reflector, _Unregistered(self._grpc))

    async def run(
        self,
        addresses: Iterable[str],
        checkpoints: Mapping[str, Path],
        shutdown: Shutdown,
        on_serving: Callable[[], None],
    ) -> None:
        """Serves until it is asked to shut down, then drains. Calls `on_serving` once every model was ready.

        Raises BindError and CheckpointTextError.
        """
        work: list[asyncio.Future[None]] = []
        try:
            self._bind(addresses)
            await self._health.update()
            await self._grpc.start()
            for task in (self._load_texts(checkpoints), self._report(on_serving)):
                work.append(asyncio.ensure_future(task))
            await _first_failure(work, shutdown.asked)
            await self._drain(shutdown.hurried)
        finally:
            for engine in self._engines:
                engine.close()
            await self._grpc.stop(_LAST_ANSWERS)
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)

    def _bind(self, addresses: Iterable[str]) -> None:
        for shared in addresses:
            try:
                self._grpc.add_insecure_port(shared)
            except RuntimeError:
                raise BindError(f"port: can't listen on {shared}") from None

    async def _load_texts(self, checkpoints: Mapping[str, Path]) -> None:
        async def load(name: str, source: Path) -> None:
            self._registry.models[name].text = await asyncio.to_thread(load_text_model, source)
            self._changed.set()

        await asyncio.gather(*(load(name, source) for name, source in checkpoints.items()))

    async def _report(self, on_serving: Callable[[], None]) -> None:
        """Keeps health in step with the models, and says once that all of them were ready."""
        announced = False
        while True:
            await self._changed.wait()
            self._changed.clear()
            for model in self._registry.models.values():
                model.check_text()
            await self._health.update()
            if self._health.started and not announced:
                announced = True
                settle()
                on_serving()

    async def _drain(self, hurried: asyncio.Event) -> None:
        """Lets what runs finish: not healthy at once, closed to new calls soon after, cut off in the end or once that
        is asked for.
        """
        log.info("draining", extra=fields(calls=self._gate.calls, grace=self._settings.grace))
        self._registry.draining = True
        await self._health.update()
        lame_duck = self._settings.lame_duck if self._health.started else 0
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(hurried.wait(), lame_duck)
        self._gate.closing.set()
        waits = [asyncio.ensure_future(wait) for wait in (hurried.wait(), self._gate.idle())]
        await asyncio.wait(waits, timeout=self._settings.grace, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        log.info("stopping", extra=fields(calls=self._gate.calls))


class _Unregistered:
    """A server to which grpc's own services are added as ours are: all methods wait for calls as one.

    A method that is registered waits apart, and whenever a call of any other comes its wait is made anew.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self.add_generic_rpc_handlers = server.add_generic_rpc_handlers

    def add_registered_method_handlers(self, service: str, handlers: object) -> None:
        """Leaves it at the generic handlers."""


async def _first_failure(work: Iterable[asyncio.Future[None]], stop: asyncio.Event) -> None:
    """Waits for `stop`. Raises the exception of the first work that fails before."""
    stopped = asyncio.ensure_future(stop.wait())
    pending: set[asyncio.Future[Any]] = {stopped, *work}
    while not stopped.done():
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()


def _options(settings: Settings) -> list[tuple[str, int]]:
    interval = int(settings.keepalive * 1000)
    return [
        ("grpc.so_reuseport", 1),  # with the other front ends; the supervisor keeps everybody else away
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", settings.max_streams),
        ("grpc.http2.min_ping_interval_without_data_ms", interval),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", interval),
        ("grpc.keepalive_permit_without_calls", 1),
    ]
