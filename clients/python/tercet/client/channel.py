"""How the SDK reaches a server: targets, credentials, retries, keepalive."""

from __future__ import annotations

import ipaddress
import json
import math
import re
import time
from typing import TYPE_CHECKING, Any

from grpc_health.v1.health_pb2_grpc import HealthStub

from tercet.v1.embedding_pb2_grpc import EmbeddingServiceStub
from tercet.v1.generation_pb2_grpc import GenerationServiceStub
from tercet.v1.models_pb2_grpc import ModelServiceStub
from tercet.v1.scoring_pb2_grpc import ScoringServiceStub
from tercet.v1.text_pb2_grpc import TextServiceStub
from tercet.v1.understanding_pb2_grpc import UnderstandingServiceStub

if TYPE_CHECKING:
    import grpc

_ADDRESS = re.compile(r"(?:dns:(?://[^/]*/)?|ipv[46]:)?(?:\[(?P<bracketed>[^]]+)\]|(?P<host>[^:/]+))(?::\d+)?")
SERVICES = (
    "ModelService",
    "EmbeddingService",
    "GenerationService",
    "ScoringService",
    "TextService",
    "UnderstandingService",
)
# gRPC itself retries, waits as long as the server's grpc-retry-pushback-ms asks, and never repeats a stream once an
# answer has begun. Nothing a model is asked leaves a trace on the server, so every call may be repeated.
RETRY_POLICY = {
    "maxAttempts": 4,
    "initialBackoff": "0.1s",
    "maxBackoff": "5s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
}
# A failure costs a token, a success brings a tenth of one: while more than half of them are spent, as in an outage,
# nothing is retried, which would only add to the load.
RETRY_THROTTLING = {"maxTokens": 100, "tokenRatio": 0.1}
OPTIONS = {
    "grpc.keepalive_time_ms": 30_000,  # pings only while a call is open; the server allows them at this rate
    "grpc.keepalive_timeout_ms": 10_000,
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 1_000,  # a restarted server is found within a second
    "grpc.max_receive_message_length": -1,
    "grpc.max_send_message_length": -1,  # the server's own limit answers with an error that names it
    "grpc.use_local_subchannel_pool": 1,  # channels to one server would else share a connection
    "grpc.primary_user_agent": "tercet-python",
}


def channel_options(target: str) -> list[tuple[str, Any]]:
    """The channel's options, retries and balancing included.

    A `dns:///name:port` target is balanced over every address of the name, and servers that are not SERVING are left
    out; other targets are one server.
    """
    service_config: dict[str, Any] = {
        "methodConfig": [
            {"name": [{"service": f"tercet.v1.{name}"} for name in SERVICES], "retryPolicy": RETRY_POLICY}
        ],
        "retryThrottling": RETRY_THROTTLING,
    }
    if target.startswith("dns:///"):
        service_config["loadBalancingConfig"] = [{"round_robin": {}}]
        service_config["healthCheckConfig"] = {"serviceName": ""}
    return [*OPTIONS.items(), ("grpc.service_config", json.dumps(service_config))]


def call_metadata(target: str, token: str | None, credentials: grpc.ChannelCredentials | None) -> list[tuple[str, str]]:
    """What every call bears. Raises ValueError for a token that would cross a network in the clear."""
    if token is None:
        return []
    if credentials is None and not is_local(target):
        raise ValueError(
            f"the token would travel to {target} unencrypted: pass credentials=grpc.ssl_channel_credentials()"
        )
    return [("authorization", f"Bearer {token}")]


def is_local(target: str) -> bool:
    """Whether `target` is a Unix socket or a loopback address."""
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    address = _ADDRESS.fullmatch(target)
    if address is None:
        return False
    host = address["bracketed"] or address["host"]
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Stubs:
    """The services of one channel, synchronous or asynchronous as the channel is."""

    def __init__(self, channel: grpc.Channel | grpc.aio.Channel) -> None:
        self.models = ModelServiceStub(channel)
        self.embedding = EmbeddingServiceStub(channel)
        self.generation = GenerationServiceStub(channel)
        self.scoring = ScoringServiceStub(channel)
        self.text = TextServiceStub(channel)
        self.understanding = UnderstandingServiceStub(channel)
        self.health = HealthStub(channel)


class Deadline:
    """When a call must be over: so many seconds from now, by its own timeout or else by the client's.

    Infinity, or None in both, is never. Raises ValueError for a timeout that is not positive.
    """

    def __init__(self, timeout: float | None, default: float | None) -> None:
        chosen = default if timeout is None else timeout
        self.timeout = math.inf if chosen is None else chosen
        if not self.timeout > 0:
            raise ValueError(f"timeout must be positive, got {chosen}")
        self._end = time.monotonic() + self.timeout

    def left(self) -> float | None:
        """Seconds left, as gRPC takes them."""
        return None if self._end == math.inf else max(0.0, self._end - time.monotonic())
