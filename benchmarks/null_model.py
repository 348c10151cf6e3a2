"""A model that computes nothing: what is left is what the engine and the service cost.

It takes the shapes, limits and vocabulary of a real checkpoint, and instead of computing waits as long as a device of a
stated pace would, asleep, as a host waits for a GPU.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch

from tercet.server.engine import loading
from tercet.server.models import load_model
from tercet.server.models.model import Model

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

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


class NullModel(Model):
    """Another model's outside."""

    def __init__(self, model: Model, pace: Pace, most_tokens: int) -> None:
        """`most_tokens`: of a batch."""
        super().__init__(
            model.architecture, model.spec, model.transformer, model.projection,
            device=model.device, dtype=model.dtype, max_length=model.max_length,
        )  # fmt: skip
        self._pace = pace
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
        if (seconds := self._pace.step + tokens * self._pace.token) > 0:  # a sleep of none would take 80 µs, too
            time.sleep(seconds)
        return self._hidden[:tokens]


def in_place_of_models(pace: Pace, most_tokens: int = 8192) -> AbstractContextManager[object]:
    """Engines that are loaded inside get null models."""

    def load(*arguments: Any, **options: Any) -> NullModel:
        return NullModel(load_model(*arguments, **options), pace, most_tokens)

    return mock.patch.object(loading, "load_model", load)
