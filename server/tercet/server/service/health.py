"""grpc.health.v1: "" for the server, "model/NAME" for each model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpc_health.v1 import health
from grpc_health.v1.health_pb2 import HealthCheckResponse

if TYPE_CHECKING:
    from tercet.server.service.registry import Registry

_Status = HealthCheckResponse.ServingStatus


class Health:
    """Keeps the health service in step with the models.

    The server is SERVING once every model was ready, until it drains or while none is ready.
    """

    def __init__(self, registry: Registry) -> None:
        self.servicer = health.aio.HealthServicer()  # pyright: ignore[reportAttributeAccessIssue]  set at import
        self._registry = registry
        self._was_ready: set[str] = set()
        self._reported: dict[str, _Status] = {}

    @property
    def started(self) -> bool:
        """Whether every model was ready."""
        return len(self._was_ready) == len(self._registry.models)

    async def update(self) -> None:
        """Reports what changed."""
        ready = {name for name, model in self._registry.models.items() if model.ready}
        self._was_ready |= {name for name, model in self._registry.models.items() if model.was_ready}
        serving = {f"model/{name}": name in ready for name in self._registry.models}
        serving[""] = self.started and bool(ready)
        for service, serves in serving.items():
            status = _Status.SERVING if serves and not self._registry.draining else _Status.NOT_SERVING
            if self._reported.get(service) != status:
                self._reported[service] = status
                await self.servicer.set(service, status)
