"""Decode steps that are replayed: every row reads its last token and draws the next, all by what is in the lanes.

A graph is of a bucket of rows, which are the first lanes; those that take no part in a step are empty rows of it. The
host tells what is new of lanes, if anything is; inputs are made on the device.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import partial
from typing import TYPE_CHECKING

import torch

from tercet.server.engine.beam import BeamSearch
from tercet.server.engine.sampler import CLASSES, SamplingRows, draw
from tercet.server.engine.tuning import decode_buckets
from tercet.server.models import DecoderBatch, Rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from tercet.server.engine.graphs import Graphs
    from tercet.server.engine.lanes import Lanes
    from tercet.server.engine.scheduler import Chunk
    from tercet.server.models import KVCache, Model


class DecodeSteps:
    """The graphs of one model's decode steps."""

    def __init__(self, model: Model, cache: KVCache, lanes: Lanes, graphs: Graphs) -> None:
        self._model, self._cache, self._lanes, self._graphs = model, cache, lanes, graphs
        self._buckets = decode_buckets(lanes.count)
        self._every = torch.arange(self._buckets[-1], dtype=torch.int32, device=model.device)

    def capture(self) -> None:
        """Records the steps, while no row runs: the largest first, in whose memory the others find room."""
        captured: list[int] = []
        for rows in reversed(self._buckets):
            run = partial(self._read, rows)
            if self._graphs.capture(("decode", rows), run) and all(
                self._graphs.capture(("draw", rows, likeliest), partial(self._draw, rows, likeliest))
                for likeliest in CLASSES
            ):
                captured.append(rows)
        self._buckets = tuple(reversed(captured))

    def bucket(self, chunks: Sequence[Chunk]) -> int | None:
        """The rows of the step that has all of these; None if there is none."""
        last = 0
        for sequence, _ in chunks:
            if sequence.length - sequence.computed != 1 or isinstance(sequence, BeamSearch):
                return None
            lane = sequence.lanes[0]
            last = max(last, lane)
        place = bisect_left(self._buckets, last + 1)
        return self._buckets[place] if place < len(self._buckets) else None

    def read(self, rows: int) -> Tensor:
        """The final hidden states [rows, hidden] of each active row's last token."""
        return self._graphs.replay(("decode", rows))

    def draw(self, rows: int, likeliest: int | None) -> Tensor:
        """The next token of each active row, int64 [rows], by what was just read; `likeliest` is of `CLASSES`."""
        return self._graphs.replay(("draw", rows, likeliest))

    def _read(self, rows: int) -> Tensor:
        lanes, page_size = self._lanes, self._cache.page_size
        active, table = lanes.active[:rows], lanes.page_table[:rows]
        positions = lanes.length[:rows] * active
        kv_length = positions + active
        page = table.gather(1, (positions // page_size).long()[:, None])[:, 0]
        crossed = self._model.family == "seq2seq"
        batch = DecoderBatch(
            token_ids=lanes.last_token[:rows],
            positions=positions,
            rows=Rows(start=self._every[:rows], length=active, longest=1, tokens=rows),
            slots=torch.where(active > 0, page * page_size + positions % page_size, -1),
            kv_length=kv_length,
            page_table=table,
            longest_kv=table.shape[1] * page_size,
            cross_page_table=lanes.cross_page_table[:rows] if crossed else None,
            cross_length=lanes.cross_length[:rows] * active if crossed else None,
            longest_cross=lanes.cross_page_table.shape[1] * page_size,
        )
        hidden = self._model.decode(batch, self._cache)
        lanes.length[:rows] += active
        return hidden

    def _draw(self, rows: int, likeliest: int | None) -> Tensor:
        lanes, vocabulary = self._lanes, self._model.target_vocab_size
        draws = lanes.draws(rows)
        how = SamplingRows(draws.filters, draws.seed, draws.sample, lanes.length[:rows], likeliest=likeliest)
        tokens = draw(self._model, self._graphs.output(("decode", rows)), how).tokens
        last = lanes.last_token[:rows]
        last.copy_(torch.where(lanes.active[:rows] > 0, tokens.clamp(max=vocabulary - 1).int(), last))
        return tokens
