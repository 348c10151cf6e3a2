"""Batches: one packed buffer is filled on the host, moved once, and all else is made of it on the device."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from typing import TYPE_CHECKING, NamedTuple

import torch

from tercet.kernels import pad
from tercet.server.engine.beam import BeamSearch
from tercet.server.engine.beam_rows import BeamRows, Placed, key_rows, pack_beams, pack_key_rows, unpack_beams
from tercet.server.engine.lanes import ALIGNED
from tercet.server.engine.pages import pages_of
from tercet.server.engine.reading import parts_of
from tercet.server.engine.sampler import SamplingRows, pack_sampling, unpack_sampling
from tercet.server.engine.transfer import PackedBuffer
from tercet.server.models import DecoderBatch, EncoderBatch, Rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from tercet.server.engine.lanes import Lanes
    from tercet.server.engine.reading import Part
    from tercet.server.engine.scheduler import Chunk
    from tercet.server.engine.sequence import Sequence as Row
    from tercet.server.models.spec import HeadSpec


@dataclass(frozen=True)
class Whole:
    """Sequences that a stack reads whole, and what becomes of them."""

    batch: EncoderBatch
    parts: list[tuple[Part, dict[str, Tensor]]]
    """Each with its fields of the buffer."""


@dataclass(frozen=True)
class EncoderWork:
    """An encoder batch and what follows it."""

    source: Whole
    target: Whole | None
    """What a seq2seq decoder reads whole."""
    target_source: Rows
    """The rows of the source that the target is read against: the last ones."""
    cross_slots: Tensor | None
    """int32 [T]: where each source token's keys and values go; -1 where nowhere. None if there are no sources."""
    copies: int

    @property
    def tokens(self) -> int:
        """Stored ones, padding included."""
        return self.source.batch.rows.tokens + (self.target.batch.rows.tokens if self.target else 0)


class SampledRows(NamedTuple):
    """The rows of a decoder batch that choose a token, [N]."""

    rows: Tensor
    """int32: which of the batch they are."""
    lanes: Tensor
    """int32"""
    how: SamplingRows


@dataclass(frozen=True)
class DecoderWork:
    """A decoder batch and the rows of it that choose a token."""

    batch: DecoderBatch
    sampled: list[Row]
    """Sequences that choose a token, since the batch has their last one."""
    sampling: SampledRows | None
    """Theirs; None if there are none."""
    searches: list[BeamSearch]
    """Those that choose how their beams go on."""
    beams: BeamRows | None
    copies: int


def encoder_work(
    rows: Sequence[Row], *, head: HeadSpec | None, page_size: int, padded: bool, device: torch.device
) -> EncoderWork:
    """One batch of sequences that are read whole, sorted by the `likeness` of what is asked of them."""
    requests = [row.request for row in rows]
    readings = [request.reading for request in requests]
    targets = [request.target for request in requests if request.target]
    split = len(rows) - len(targets)
    buffer = PackedBuffer()
    source = _Texts(buffer, "source", [request.source for request in requests], padded=padded)
    source.put_parts(parts_of(readings[:split], source.start, source.lengths, head))
    target = _Texts(buffer, "target", targets, padded=padded) if targets else None
    if target:
        target.put_parts(parts_of(readings[split:], target.start, target.lengths, head))
    typed = any(request.type_ids for request in requests)
    if typed:
        types = (request.type_ids or [0] * len(request.source) for request in requests)
        buffer.put("type_ids", (kind for ids in types for kind in ids))
    crossed = any(request.cross_pages for request in requests)
    if crossed:
        nowhere = [[-1] * pages_of(len(request.source), page_size) for request in requests]  # for readings
        pages = [request.cross_pages or none for request, none in zip(requests, nowhere, strict=True)]
        buffer.put_table("cross_page_table", pages)
    views = buffer.upload(device)

    flat = source.flat(views)
    cross_slots = None
    if crossed:
        table = views["cross_page_table"].view(len(rows), -1)
        cross_slots = flat.place(flat.slots(table, flat.index, page_size).clamp(min=-1), padding=-1)
    return EncoderWork(
        source=source.whole(views, flat, views["type_ids"] if typed else None),
        target=target.whole(views, target.flat(views)) if target else None,
        target_source=replace(flat.rows, start=flat.rows.start[split:], length=flat.rows.length[split:]),
        cross_slots=cross_slots,
        copies=buffer.copies,
    )


def decoder_work(
    chunks: Sequence[Chunk], tables: Lanes, *, page_size: int, padded: bool, device: torch.device
) -> DecoderWork:
    """One batch of decoding rows and chunks of prompts alike: each row is the next tokens of a sequence."""
    rows: list[Row] = []
    lengths, ends, ids = array("i"), array("i"), array("i")
    sampled: list[Row] = []
    sampling_rows: list[int] = []
    searches: list[Placed] = []
    unknown, unknown_lanes = array("i"), array("i")  # of tokens that the device alone knows: their places, their rows
    for sequence, length in chunks:
        if isinstance(sequence, BeamSearch):
            searches.append(Placed(len(rows), sequence, length))
        elif length == sequence.remaining:
            sampled.append(sequence)
            sampling_rows.append(len(rows))
        end = sequence.computed + length
        for row in sequence.rows():
            rows.append(row)
            lengths.append(length)
            ends.append(end)
            if end > len(row.tokens):
                unknown.append(len(ids))
                unknown_lanes.append(row.lanes[0])
                ids.append(0)
            else:
                ids.extend(row.tokens[end - length : end])
    sources = [len(row.request.source) for row in rows]
    buffer = PackedBuffer()
    _put_rows(buffer, "", lengths)
    buffer.put("kv_length", ends)
    buffer.put("token_ids", ids)
    buffer.put("lanes", [row.lanes[0] for row in rows])
    tables.update(rows)
    tables.put(buffer)
    crossed = any(sources)
    if crossed:
        buffer.put("cross_length", sources)
    pack_key_rows(buffer, searches)
    continuing = [placed for placed in searches if placed.length == placed.search.remaining]
    if continuing:
        pack_beams(buffer, continuing)
    if sampled:
        _put_sampling(buffer, sampled, sampling_rows)
    if unknown:
        buffer.put("unknown", unknown)
        buffer.put("unknown_lanes", unknown_lanes)
    views = buffer.upload(device)
    tables.take(views)
    if unknown:
        views["token_ids"][views["unknown"]] = tables.last_token[views["unknown_lanes"]]
    tables.length[views["lanes"]] = views["kv_length"]

    flat = _Flat(views["start"], views["length"], lengths, padded=padded)
    table = _pages(tables.page_table, views["lanes"], max(len(row.pages) for row in rows))
    positions = flat.index + (views["kv_length"] - views["length"])[flat.row]
    batch = DecoderBatch(
        token_ids=flat.place(views["token_ids"]),
        positions=flat.place(positions),
        rows=flat.rows,
        slots=flat.place(flat.slots(table, positions, page_size), padding=-1),
        kv_length=views["kv_length"],
        page_table=table,
        longest_kv=max(ends),
        key_rows=key_rows(views, len(rows), max(ends)),
        cross_page_table=_pages(tables.cross_page_table, views["lanes"], pages_of(max(sources), page_size))
        if crossed
        else None,
        cross_length=views["cross_length"] if crossed else None,
        longest_cross=max(sources),
    )
    return DecoderWork(
        batch,
        sampled=sampled,
        sampling=_sampling(views, sampled, tables) if sampled else None,
        searches=[search for _, search, _ in continuing],
        beams=unpack_beams(views, continuing) if continuing else None,
        copies=buffer.copies,
    )


def _pages(table: Tensor, lanes: Tensor, width: int) -> Tensor:
    """The first `width` pages of some lanes: int32 [lanes, width]."""
    return table[:, :width].index_select(0, lanes)


def _put_sampling(buffer: PackedBuffer, sampled: list[Row], rows: list[int]) -> None:
    pack_sampling(buffer.put, sampled)
    buffer.put("sampling_rows", rows)
    buffer.put("sampling_lanes", [sequence.lanes[0] for sequence in sampled] + [0] * (-len(sampled) % ALIGNED))


def _sampling(views: dict[str, Tensor], sampled: list[Row], tables: Lanes) -> SampledRows:
    draws = tables.draws_of(views["sampling_lanes"], len(sampled))
    how = unpack_sampling(views, sampled, draws)
    return SampledRows(views["sampling_rows"], views["sampling_lanes"][: len(sampled)], how)


class _Flat:
    """The tokens of a batch on the device: where each is in its row, and their place in padded or packed storage."""

    def __init__(self, start: Tensor, length: Tensor, lengths: Sequence[int], *, padded: bool) -> None:
        rows, tokens, longest = len(lengths), sum(lengths), max(lengths)
        each = torch.arange(rows, dtype=torch.int32, device=start.device)
        self.row = torch.repeat_interleave(each, length, output_size=tokens)
        """int32 [packed tokens]: the row of each token."""
        self.index = torch.arange(tokens, dtype=torch.int32, device=start.device) - start[self.row]
        """int32 [packed tokens]: the index of each token in its row."""
        self._start, self._length, self._padded = start, length, padded
        self.rows = Rows(
            start=each * longest if padded else start,
            length=length,
            longest=longest,
            tokens=rows * longest if padded else tokens,
        )

    def slots(self, page_table: Tensor, positions: Tensor, page_size: int) -> Tensor:
        """Where each packed token's key and value go."""
        page = page_table[self.row, positions // page_size]
        return page * page_size + positions % page_size

    def place(self, packed: Tensor, padding: int = 0) -> Tensor:
        """Packed values as the batch stores them; the padding is written here, on the device."""
        if not self._padded:
            return packed
        return pad(packed, self._start, self._length, longest=self.rows.longest, value=padding)


class _Texts:
    """Token ids that are read whole: put into a buffer, then laid out on the device."""

    def __init__(self, buffer: PackedBuffer, name: str, texts: list[list[int]], *, padded: bool) -> None:
        self.lengths = [len(text) for text in texts]
        longest = max(self.lengths)
        self.start = [row * longest for row in range(len(texts))] if padded else _starts(self.lengths)
        """Of each row in storage."""
        self._buffer, self._name, self._padded = buffer, name, padded
        self._parts: list[tuple[Part, dict[str, str]]] = []  # each with its fields and what the buffer calls them
        _put_rows(buffer, f"{name}_", self.lengths)
        buffer.put(f"{name}_ids", chain.from_iterable(texts))

    def put_parts(self, parts: list[Part]) -> None:
        """Adds what becomes of the texts."""
        for index, part in enumerate(parts):
            fields = part.fields()
            names = {field: f"{self._name}_{field}_{index}" for field in fields}
            for field, values in fields.items():
                self._buffer.put(names[field], values)
            self._parts.append((part, names))

    def flat(self, views: dict[str, Tensor]) -> _Flat:
        """Where the tokens are on the device."""
        views = {field: views[f"{self._name}_{field}"] for field in ("start", "length")}
        return _Flat(views["start"], views["length"], self.lengths, padded=self._padded)

    def whole(self, views: dict[str, Tensor], flat: _Flat, type_ids: Tensor | None = None) -> Whole:
        """The texts on the device."""
        batch = EncoderBatch(
            token_ids=flat.place(views[f"{self._name}_ids"]),
            positions=flat.place(flat.index),
            rows=flat.rows,
            type_ids=None if type_ids is None else flat.place(type_ids),
        )
        return Whole(
            batch, [(part, {field: views[name] for field, name in names.items()}) for part, names in self._parts]
        )


def _starts(lengths: Sequence[int]) -> list[int]:
    """Where packed rows begin."""
    return list(accumulate(lengths[:-1], initial=0))


def _put_rows(buffer: PackedBuffer, prefix: str, lengths: Sequence[int]) -> None:
    buffer.put(f"{prefix}length", lengths)
    buffer.put(f"{prefix}start", _starts(lengths))
