"""The messages between the supervisor and a front end, and how a front end starts."""

from __future__ import annotations

from enum import Enum

import msgspec

from tercet.server import wire
from tercet.server.config import Settings


class State(Enum):
    """Where an engine is in its life."""

    LOADING = "loading"
    READY = "ready"
    RESTARTING = "restarting"
    FAILED = "failed"


class FrontEndSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a front end needs to start: `python -m tercet.server.front_end FOLDER JSON`."""

    number: int
    """Counted from 0; that of one that is started again stays."""
    settings: Settings
    """The server's, with this front end's share of the queues."""
    checkpoints: dict[str, str]
    """The local path of each model's checkpoint."""
    addresses: list[str]
    """What to listen on. The supervisor holds them; front ends share them by SO_REUSEPORT."""
    metrics: str
    """The folder of the files in which front ends count."""


class EngineState(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """How an engine is; told of every engine at first, and at each change."""

    name: str
    state: State
    incarnation: int
    info: wire.ModelInfo | None
    """Of the newest incarnation that got ready."""
    folder: str
    """Where the engine's sockets are."""


class Drain(msgspec.Struct, frozen=True, tag=True):
    """Let what runs finish, then end."""


class Hurry(msgspec.Struct, frozen=True, tag=True):
    """End the drain."""


class Serving(msgspec.Struct, frozen=True, tag=True):
    """Every model was ready."""


class Refused(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """The front end can't serve, and why, in one line for the user. It exits after."""

    message: str


class Load(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """What the front end's calls wait for; told where it changed, some times a second."""

    pending: dict[str, int]
    """Sequences of each model that its engine has not answered."""


ToFrontEnd = EngineState | Drain | Hurry
ToSupervisor = Serving | Refused | Load
to_front_end_decoder = msgspec.msgpack.Decoder(ToFrontEnd)
to_supervisor_decoder = msgspec.msgpack.Decoder(ToSupervisor)
