"""Runs batches on the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

import torch

from tercet.kernels import pooling
from tercet.server.engine.batch import decoder_work, encoder_work
from tercet.server.engine.sampler import choose

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from tercet.server.engine.batch import EncoderWork
    from tercet.server.engine.scheduler import Chunk
    from tercet.server.engine.sequence import Sequence as Row
    from tercet.server.models import KVCache, Model


Output = TypeVar("Output")


class Pass(NamedTuple, Generic[Output]):
    """What one forward pass brought."""

    outputs: list[Output]
    """Encoder: the vector of each row, or nothing for sources. Decoder: the token of each row that chose one."""
    tokens: int
    """Tokens of the batch as stored, padding included."""
    copies: int
    """Of the packed buffer to the device."""


class Runner:
    """A model, its cache and the layout of its batches. Returns when results are on the host."""

    def __init__(self, model: Model, cache: KVCache | None, *, padded: bool) -> None:
        self._model, self._cache, self._padded = model, cache, padded
        self._page_size = cache.page_size if cache else 1

    @torch.inference_mode()
    def encode(self, rows: Sequence[Row]) -> Pass[bytes]:
        """Embeds sequences, or writes the cross-attention pages of sources."""
        work = encoder_work(rows, page_size=self._page_size, padded=self._padded, device=self._model.device)
        hidden = self._model.encode(work.batch)
        if work.cross_slots is not None and self._cache is not None:
            self._model.write_cross(hidden, work.cross_slots, self._cache)
            vectors: list[bytes] = []
        else:
            vectors = [row.tobytes() for row in _pool(hidden, work).cpu().numpy()]
        return Pass(vectors, work.batch.rows.tokens, work.copies)

    @torch.inference_mode()
    def decode(self, chunks: Sequence[Chunk]) -> Pass[int]:
        """Computes the next tokens of each row and chooses one for each row that is complete."""
        if self._cache is None:
            raise ValueError("a model without a cache can't decode")
        work = decoder_work(chunks, page_size=self._page_size, padded=self._padded, device=self._model.device)
        hidden = self._model.decode(work.batch, self._cache)
        tokens: list[int] = []
        if work.sampling is not None:
            rows = work.batch.rows
            last = (rows.start + rows.length - 1)[work.sampling.rows]
            logits = self._model.logits(hidden.index_select(0, last))
            tokens = choose(logits, work.sampling).tolist()
        return Pass(tokens, work.batch.rows.tokens, work.copies)

    def recover(self) -> None:
        """Prepares for the next batch after one has failed. Raises torch.AcceleratorError if the device is lost."""
        if self._model.device.type == "cuda":
            torch.cuda.synchronize(self._model.device)  # what a kernel did wrong shows here
            torch.cuda.empty_cache()


def _pool(hidden: Tensor, work: EncoderWork) -> Tensor:
    """float32 [rows, hidden]"""
    rows = work.batch.rows
    vectors = [
        pooling(
            hidden,
            rows.start[pool.first : pool.last],
            rows.length[pool.first : pool.last],
            kind=pool.kind.pooling,
            normalize=pool.kind.normalize,
        )
        for pool in work.pools
    ]
    return torch.cat(vectors)
