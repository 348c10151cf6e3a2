"""A model that computes nothing: what is left is what the engine and the service cost.

It takes the shapes, limits and vocabulary of a real checkpoint. Its passes take as long as on a device of a stated
pace, which is busy by itself, as a GPU is: the engine goes on meanwhile, and sleeps until what it reads is there.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch

from tercet.server.engine import loading, runner
from tercet.server.engine.engine import Engine
from tercet.server.engine.transfer import Download
from tercet.server.models import load_model
from tercet.server.models.model import Model

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from tercet.server.models import DecoderBatch, EncoderBatch, KVCache, Source

TOKEN = 42  # what it always generates
LOGITS = 64  # of each row: enough to choose from, and nothing to search through


@dataclass(frozen=True)
class Pace:
    """How long a forward pass takes."""

    step: float = 0.0
    """Seconds of any pass."""
    token: float = 0.0
    """Seconds of each token more."""


class PacedDevice:
    """One pass after another."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self.free = 0.0
        """time.monotonic() at which all that was launched is done."""

    def launch(self, tokens: int) -> None:
        """A pass of so many tokens."""
        self.free = max(self.free, time.monotonic()) + self._pace.step + tokens * self._pace.token


class _Awaited(Download):
    """Results that are there once the device has done what was launched before."""

    def __init__(self, device: PacedDevice, tensors: Sequence[Tensor]) -> None:
        super().__init__(tensors)
        self._ready = device.free

    def arrays(self) -> list[NDArray[Any]]:
        if (seconds := self._ready - time.monotonic()) > 0:
            time.sleep(seconds)
        return super().arrays()


class NullModel(Model):
    """Another model's outside."""

    def __init__(self, model: Model, device: PacedDevice, most_tokens: int) -> None:
        """`most_tokens`: of a batch."""
        super().__init__(
            model.architecture, model.spec, model.transformer, model.projection,
            device=model.device, dtype=model.dtype, max_length=model.max_length,
        )  # fmt: skip
        self._paced = device
        self._hidden = torch.ones(most_tokens, model.hidden_size, dtype=model.dtype, device=model.device)
        self._logits = torch.zeros(most_tokens, LOGITS, device=model.device)
        self._logits[:, TOKEN] = 1

    def encode(self, batch: EncoderBatch) -> Tensor:
        """Ones [T, hidden]."""
        return self._pass(batch.rows.tokens)

    def read(self, batch: EncoderBatch, source: Source | None = None) -> Tensor:
        """Ones [T, hidden]."""
        return self._pass(batch.rows.tokens)

    def decode(self, batch: DecoderBatch, cache: KVCache) -> Tensor:
        """Ones [T, hidden]; nothing is written into the cache."""
        return self._pass(batch.rows.tokens)

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 [N, LOGITS], TOKEN the likeliest."""
        return self._logits[: len(hidden)].clone()  # they are changed in place

    def _pass(self, tokens: int) -> Tensor:
        self._paced.launch(tokens)
        return self._hidden[:tokens]


@contextmanager
def in_place_of_models(pace: Pace, most_tokens: int = 8192) -> Generator[None]:
    """Engines that are loaded inside get null models, and run a step ahead of their device, as on a GPU."""
    device = PacedDevice(pace)

    def load(*arguments: Any, **options: Any) -> NullModel:
        return NullModel(load_model(*arguments, **options), device, most_tokens)

    def engine(*arguments: Any, **options: Any) -> Engine:
        return Engine(*arguments, **{**options, "ahead": True})

    with (
        mock.patch.object(loading, "load_model", load),
        mock.patch.object(loading, "Engine", engine),
        mock.patch.object(runner, "Download", partial(_Awaited, device)),
    ):
        yield
