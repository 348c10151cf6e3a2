"""Decode steps that are replayed: every row reads its last token and draws the next, all by what is in the lanes.

A graph is of a bucket of rows, which are the first lanes; those that take no part in a step are empty rows of it. The
host tells what is new of lanes, if anything is; inputs are made on the device.

Rows may be beams: those of a search that has read its prompt but for the last token, too, which then all read it. Where
any row is, keys are read where `BeamTables` says that they are, and one graph continues the searches, however many
beams each has.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import torch

from tercet.kernels import decode_inputs
from tercet.server.engine.beam import BeamSearch
from tercet.server.engine.beam_step import Searches, continue_beams
from tercet.server.engine.sampler import CLASSES, LastTokens, SamplingRows, draw, likeliest_of
from tercet.server.engine.tuning import BEAM_CANDIDATES, BEAMS, decode_buckets
from tercet.server.models import DecoderBatch, Rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

    from tercet.server.engine.beam_tables import BeamTables
    from tercet.server.engine.graphs import Graphs
    from tercet.server.engine.lanes import Lanes
    from tercet.server.engine.scheduler import Chunk
    from tercet.server.engine.sequence import Sequence as Row
    from tercet.server.models import KVCache, Model


class Bucket(NamedTuple):
    """Decode steps of one graph."""

    rows: int
    beams: bool
    """Whether any row is one."""


class Step:
    """The rows of a decode step, and what of it is replayed beside the model."""

    def __init__(self, sequences: list[Row]) -> None:
        self.sequences = sequences
        self.searches = [sequence for sequence in sequences if isinstance(sequence, BeamSearch)]
        self.singles = [s for s in sequences if not isinstance(s, BeamSearch)] if self.searches else sequences
        plain = all(sequence.request.plain for sequence in self.singles)
        self.draws = not self.singles or (plain and not self.searches)
        """Whether a graph draws the tokens of all that are no searches,"""
        self.likeliest = likeliest_of(sequence.request.sampling for sequence in self.singles)
        """among so many of the likeliest."""
        self.continues = all(map(_is_small, self.searches))
        """Whether a graph continues all searches."""

    def rows(self) -> Iterable[Row]:
        """With the pages of each."""
        if not self.searches:
            return self.sequences
        for search in self.searches:
            search.rows()
        return chain(self.singles, *(search.beams for search in self.searches))


def _is_small(search: BeamSearch) -> bool:
    """Whether a graph has room for its beams and candidates, and need not change scores."""
    return search.widest <= BEAMS and search.candidates <= BEAM_CANDIDATES and not search.request.processed


class DecodeSteps:
    """The graphs of one model's decode steps."""

    def __init__(self, model: Model, cache: KVCache, lanes: Lanes, tables: BeamTables, graphs: Graphs) -> None:
        self._model, self._cache, self._lanes, self._tables, self._graphs = model, cache, lanes, tables, graphs
        self._buckets = decode_buckets(lanes.count)
        self._beam_buckets = tuple(rows for rows in self._buckets if rows > 1)
        self._every = torch.arange(self._buckets[-1], dtype=torch.int32, device=model.device)

    def capture(self) -> None:
        """Records the steps, while no row runs: the largest first, in whose memory the others find room."""
        self._buckets = tuple(filter(self._capture, reversed(self._buckets)))[::-1]
        self._beam_buckets = tuple(filter(self._capture_beams, reversed(self._beam_buckets)))[::-1]

    def bucket(self, chunks: Sequence[Chunk]) -> Bucket | None:
        """That of the step that has all of these; None if there is none."""
        last, beams = 0, False
        for sequence, _ in chunks:
            if sequence.length - sequence.computed != 1:
                return None
            last = max(last, sequence.lanes[-1])
            beams = beams or isinstance(sequence, BeamSearch)
        buckets = self._beam_buckets if beams else self._buckets
        place = bisect_left(buckets, last + 1)
        return Bucket(buckets[place], beams) if place < len(buckets) else None

    def read(self, bucket: Bucket) -> Tensor:
        """The final hidden states [rows, hidden] of each active row's last token."""
        return self._graphs.replay(("decode", bucket))

    def draw(self, rows: int, likeliest: int | None) -> Tensor:
        """The next token of each active row, int64 [rows], by what was just read, none of it beams; `likeliest` is of
        `CLASSES`.
        """
        return self._graphs.replay(("draw", rows, likeliest))

    def continue_beams(self, rows: int) -> tuple[Tensor, Tensor]:
        """How the active searches go on by what was just read, by the first lane of each: `beam_step.continue_beams`'s
        answer.
        """
        return self._graphs.replay(("beams", rows))

    def _capture(self, rows: int) -> bool:
        return self._graphs.capture(("decode", Bucket(rows, beams=False)), partial(self._read, rows)) and all(
            self._graphs.capture(("draw", rows, likeliest), partial(self._draw, rows, likeliest))
            for likeliest in CLASSES
        )

    def _capture_beams(self, rows: int) -> bool:
        run = partial(self._read, rows, beams=True)
        return self._graphs.capture(("decode", Bucket(rows, beams=True)), run) and self._graphs.capture(
            ("beams", rows), partial(self._continue_beams, rows)
        )

    def _read(self, rows: int, *, beams: bool = False) -> Tensor:
        lanes, page_size = self._lanes, self._cache.page_size
        active, table = lanes.active[:rows], lanes.page_table[:rows]
        crossed = self._model.family == "seq2seq"
        holders = self._tables.holders[:rows] if beams else None
        inputs = decode_inputs(
            lanes.length[:rows],
            active,
            table,
            page_size=page_size,
            cross_length=lanes.cross_length[:rows] if crossed else None,
            head=lanes.head[:rows] if beams else None,
            holders=holders,
        )
        batch = DecoderBatch(
            token_ids=lanes.last_token[:rows],
            positions=inputs.positions,
            rows=Rows(start=self._every[:rows], length=active, longest=1, tokens=rows),
            slots=inputs.slots,
            kv_length=inputs.kv_length,
            page_table=table,
            longest_kv=table.shape[1] * page_size,
            key_rows=holders,  # the rows are lanes
            cross_page_table=lanes.cross_page_table[:rows] if crossed else None,
            cross_length=inputs.cross_length,
            longest_cross=lanes.cross_page_table.shape[1] * page_size,
        )
        return self._model.decode(batch, self._cache)

    def _draw(self, rows: int, likeliest: int | None) -> Tensor:
        lanes = self._lanes
        draws = lanes.draws(rows)
        how = SamplingRows(draws.filters, draws.seed, draws.sample, lanes.length[:rows], likeliest=likeliest)
        last = LastTokens(lanes.last_token, active=lanes.active[:rows])
        return draw(self._model, self._graphs.output(("decode", Bucket(rows, beams=False))), how, last).tokens

    def _continue_beams(self, rows: int) -> tuple[Tensor, Tensor]:
        every = self._every[:rows]
        searches = Searches(
            heads=every,
            active=self._lanes.active[:rows],
            row=every,
            beams=BEAMS,
            candidates=BEAM_CANDIDATES,
            ends=BEAM_CANDIDATES // 2 - 1,
            longest=self._tables.holders.shape[1],
        )
        logits = self._model.logits(self._graphs.output(("decode", Bucket(rows, beams=True))))
        return continue_beams(logits, searches, self._lanes, self._tables)
