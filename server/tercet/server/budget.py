"""Divides the machine among the models, device memory and CPU threads, and the queues among the front ends."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import msgspec

from tercet.server import machine, wire
from tercet.server.control import FrontEndSettings
from tercet.server.sources import weight_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tercet.server.config import ModelSettings, Settings

_GIB = 1 << 30

# A front end keeps a core busy at some thousands of calls a second, and its tokenizers keep two; fewer cores than these
# are better left to the engines, and to more front ends clients would need many connections to be spread over all.
_CORES_PER_FRONT_END, _MOST_FRONT_ENDS = 8, 4


class BudgetError(ValueError):
    """The models don't fit a device; one line with the numbers."""


def plan(
    settings: Settings, checkpoints: Mapping[str, Path], adapters: Mapping[str, Path | None]
) -> list[wire.EngineSettings]:
    """What each engine may use, before any of them starts.

    Shares are fixed at the start, so that engines load at the same time and one that is started again has the room it
    had. A model gets what its settings say, else the size of its weights and an equal part of what is then left of its
    device. Raises BudgetError and machine.DeviceError.
    """
    devices = {model.name: machine.resolve_device(model.device) for model in settings.models}
    on_device: defaultdict[str, list[ModelSettings]] = defaultdict(list)
    for model in settings.models:
        on_device[devices[model.name]].append(model)
    memory: dict[str, int] = {}
    for device, models in on_device.items():
        memory |= _divide_memory(device, int(machine.free_memory(device) * settings.memory), models, checkpoints)
    threads = settings.threads or machine.cores()
    own = [model.threads for model in settings.models if model.threads is not None]
    sharing = len(settings.models) - len(own)
    return [
        msgspec.convert(
            asdict(model)
            | {
                "source": str(checkpoints[model.name]),
                "adapter": str(adapter) if (adapter := adapters[model.name]) else None,
                "incarnation": 0,
                "device": devices[model.name],
                "memory": memory[model.name],
                "max_batch_tokens": model.max_batch_tokens or 0,
                "threads": model.threads or max(1, (threads - sum(own)) // sharing),
            },
            wire.EngineSettings,
        )
        for model in settings.models
    ]


def plan_front_ends(
    settings: Settings, checkpoints: Mapping[str, Path], addresses: list[str], metrics: Path
) -> list[FrontEndSettings]:
    """What each front end is told. In sum, no more waits in them than the server's limits."""
    count = settings.front_ends or min(max(1, machine.cores() // _CORES_PER_FRONT_END), _MOST_FRONT_ENDS)
    limits = {name: getattr(settings, name) for name in ("max_queue", "max_queue_tokens", "max_queue_chars")}
    own = replace(settings, **{name: max(1, limit // count) for name, limit in limits.items()})
    sources = {name: str(path) for name, path in checkpoints.items()}
    return [
        FrontEndSettings(number=number, settings=own, checkpoints=sources, addresses=addresses, metrics=str(metrics))
        for number in range(count)
    ]


def _divide_memory(
    device: str, budget: int, models: list[ModelSettings], checkpoints: Mapping[str, Path]
) -> dict[str, int]:
    """Bytes for each model of one device."""
    least = {
        model.name: weight_bytes(checkpoints[model.name]) if model.memory_gib is None else int(model.memory_gib * _GIB)
        for model in models
    }
    left = budget - sum(least.values())
    if left < 0:
        needs = ", ".join(f"{name} {_gib(size)}" for name, size in least.items())
        raise BudgetError(f"memory: {device} has {_gib(budget)} for models, which need more: {needs}")
    sharing = [model.name for model in models if model.memory_gib is None]
    return {name: size + (left // len(sharing) if name in sharing else 0) for name, size in least.items()}


def _gib(size: int) -> str:
    return f"{size / _GIB:.2f} GiB"
