"""Batches of an encoder that are replayed: small ones, which would keep a GPU busy for less time than their launches.

A graph is of a bucket of tokens, rows and the longest row. What a batch leaves free of it are empty rows, and tokens of
no row.
"""

from __future__ import annotations

from array import array
from functools import partial
from typing import TYPE_CHECKING

import torch

from tercet.server.engine.lanes import aligned
from tercet.server.models import EncoderBatch, Rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from tercet.server.engine.graphs import Graphs
    from tercet.server.engine.sequence import Request
    from tercet.server.engine.tuning import EncoderBucket
    from tercet.server.models import KVCache, Model

NOWHERE = -1


class EncoderSteps:
    """The graphs of one model's encoder. They share their inputs, int32, which every batch fills."""

    def __init__(self, model: Model, cache: KVCache | None, graphs: Graphs, buckets: Sequence[EncoderBucket]) -> None:
        self._model, self._cache, self._graphs, self._buckets = model, cache, graphs, tuple(buckets)
        self._typed = bool(model.spec.encoder and model.spec.encoder.token_types)
        size = max((sum(self._sizes(bucket)) for bucket in self._buckets), default=0)
        self._inputs = torch.zeros(size, dtype=torch.int32, device=model.device)
        self._range = array("i", range(max((bucket.longest for bucket in self._buckets), default=0)))

    def capture(self) -> None:
        """Records the batches, the largest first, in whose memory the others find room."""
        captured = [
            bucket
            for bucket in reversed(self._buckets)
            if self._graphs.capture(("encode", bucket), partial(self._read, bucket))
        ]
        self._buckets = tuple(reversed(captured))

    def bucket(self, tokens: int, rows: int, longest: int) -> EncoderBucket | None:
        """The smallest that holds so many stored tokens and rows; None if there is none."""
        for bucket in self._buckets:
            if tokens <= bucket.tokens and rows <= bucket.rows and longest <= bucket.longest:
                return bucket
        return None

    def pack(self, bucket: EncoderBucket, requests: Sequence[Request], start: Sequence[int]) -> array[int]:
        """The inputs for the sources of `requests`, which lie in storage from `start` on."""
        starts, lengths, ids, positions, types, slots = (array("i", bytes(4 * size)) for size in self._sizes(bucket))
        slots = array("i", [NOWHERE]) * len(slots)
        for row, (request, first) in enumerate(zip(requests, start, strict=True)):
            length = len(request.source)
            last = first + length
            starts[row], lengths[row] = first, length
            ids[first:last] = request.source
            positions[first:last] = self._range[:length]
            if self._typed and request.type_ids:
                types[first:last] = request.type_ids
            if self._cache and request.cross_pages:
                size = self._cache.page_size
                places = array("i")
                for page in request.cross_pages:
                    places.extend(range(page * size, (page + 1) * size))
                slots[first:last] = places[:length]
        return starts + lengths + ids + positions + types + slots

    def fill(self, bucket: EncoderBucket, packed: Tensor) -> EncoderBatch:
        """Takes over what `pack` made, on the device now; the batch that the graph reads."""
        self._inputs[: len(packed)].copy_(packed)
        return self._batch(bucket)[0]

    def read(self, bucket: EncoderBucket) -> Tensor:
        """The final hidden states [bucket.tokens, hidden]; what a decoder attends to of them is in its pages."""
        return self._graphs.replay(("encode", bucket))

    def _sizes(self, bucket: EncoderBucket) -> tuple[int, ...]:
        """Of starts, lengths, ids, positions, types and slots."""
        rows, tokens = aligned(bucket.rows), aligned(bucket.tokens)
        return rows, rows, tokens, tokens, tokens if self._typed else 0, tokens if self._cache else 0

    def _batch(self, bucket: EncoderBucket) -> tuple[EncoderBatch, Tensor]:
        """The inputs of a bucket, and where its tokens go for cross-attention."""
        sizes = self._sizes(bucket)
        start, length, ids, positions, types, slots = self._inputs[: sum(sizes)].split(sizes)
        rows = Rows(start[: bucket.rows], length[: bucket.rows], longest=bucket.longest, tokens=bucket.tokens)
        batch = EncoderBatch(
            token_ids=ids[: bucket.tokens],
            positions=positions[: bucket.tokens],
            rows=rows,
            type_ids=types[: bucket.tokens] if self._typed else None,
        )
        return batch, slots[: bucket.tokens]

    def _read(self, bucket: EncoderBucket) -> Tensor:
        batch, slots = self._batch(bucket)
        hidden = self._model.encode(batch)
        if self._cache:
            self._model.write_cross(hidden, slots, self._cache)
        return hidden
