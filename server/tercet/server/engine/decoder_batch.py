"""Batches of decoding rows and chunks of prompts: one packed buffer is moved once, all else is made on the device."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from tercet.server.engine.beam import BeamSearch
from tercet.server.engine.beam_rows import BeamRows, Placed, key_rows, pack_beams, unpack_beams
from tercet.server.engine.beam_tables import pack_started
from tercet.server.engine.lanes import ALIGNED
from tercet.server.engine.layout import Flat, put_rows
from tercet.server.engine.pages import pages_of
from tercet.server.engine.sampler import SamplingRows, pack_sampling, unpack_sampling
from tercet.server.engine.transfer import PackedBuffer
from tercet.server.models import DecoderBatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor

    from tercet.server.engine.beam_tables import BeamTables
    from tercet.server.engine.lanes import Lanes
    from tercet.server.engine.scheduler import Chunk
    from tercet.server.engine.sequence import Sequence as Row


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
    """Those that go on, since the batch has the last token of each."""
    beams: BeamRows | None
    copies: int


@dataclass(frozen=True)
class _Taken:
    """What a batch takes of its sequences, on the host."""

    rows: list[Row] = field(default_factory=list["Row"])
    lengths: list[int] = field(default_factory=list[int])
    ends: list[int] = field(default_factory=list[int])
    """Tokens in the cache once the batch's are."""
    ids: list[int] = field(default_factory=list[int])
    unknown: list[int] = field(default_factory=list[int])
    """Places among the ids of tokens that the device alone knows,"""
    unknown_lanes: list[int] = field(default_factory=list[int])
    """and the lanes where they are."""
    sampled: list[Row] = field(default_factory=list["Row"])
    sampling_rows: list[int] = field(default_factory=list[int])
    searches: list[BeamSearch] = field(default_factory=list["BeamSearch"])
    placed: list[Placed] = field(default_factory=list[Placed])
    """Those of them that go on."""
    followers: list[Row] = field(default_factory=list["Row"])
    """Beams that have no rows yet, since what they have read is the same,"""
    followed: list[int] = field(default_factory=list[int])
    """and the row that reads it for each."""


def decoder_work(
    chunks: Sequence[Chunk], tables: Lanes, beams: BeamTables, *, page_size: int, padded: bool, device: torch.device
) -> DecoderWork:
    """One batch of decoding rows and chunks of prompts alike: each row is the next tokens of a sequence."""
    taken = _take(chunks)
    rows, lengths, sampled = taken.rows, taken.lengths, taken.sampled
    sources = [len(row.request.source) for row in rows]
    buffer = PackedBuffer()
    put_rows(buffer, "", lengths)
    buffer.put("kv_length", taken.ends)
    buffer.put("token_ids", taken.ids)
    buffer.put("lanes", [row.lanes[0] for row in rows])
    tables.update(chain(rows, taken.followers))
    tables.put(buffer)
    crossed = any(sources)
    if crossed:
        buffer.put("cross_length", sources)
    pack_started(buffer, taken.searches)
    if taken.followers:
        buffer.put("followers", [row.lanes[0] for row in taken.followers])
        buffer.put("followed", taken.followed)
    if taken.placed:
        pack_beams(buffer, taken.placed)
    if sampled:
        put_sampling(buffer, sampled, taken.sampling_rows)
    if taken.unknown:
        buffer.put("unknown", taken.unknown)
        buffer.put("unknown_lanes", taken.unknown_lanes)
    views = buffer.upload(device)
    tables.take(views)
    beams.start(views)
    if taken.unknown:
        views["token_ids"][views["unknown"]] = tables.last_token[views["unknown_lanes"]]

    flat = Flat(views, "", lengths, padded=padded)
    table = _pages(tables.page_table, views["lanes"], pages_of(max(taken.ends), page_size))
    positions = flat.index + (views["kv_length"] - views["length"])[flat.row]
    batch = DecoderBatch(
        token_ids=flat.place(views["token_ids"]),
        positions=flat.place(positions),
        rows=flat.rows,
        slots=flat.place(flat.slots(table, positions, page_size), padding=-1),
        kv_length=views["kv_length"],
        page_table=table,
        longest_kv=max(taken.ends),
        key_rows=key_rows(beams, tables, views["lanes"], max(taken.ends))
        if any(search.width > 1 for search in taken.searches)
        else None,
        cross_page_table=_pages(tables.cross_page_table, views["lanes"], pages_of(max(sources), page_size))
        if crossed
        else None,
        cross_length=views["cross_length"] if crossed else None,
        longest_cross=max(sources),
    )
    _tell_lengths(tables, views)
    return DecoderWork(
        batch,
        sampled=sampled,
        sampling=sampled_rows(views, sampled, tables) if sampled else None,
        searches=[search for _, search in taken.placed],
        beams=unpack_beams(views, taken.placed) if taken.placed else None,
        copies=buffer.copies,
    )


def _pages(table: Tensor, lanes: Tensor, width: int) -> Tensor:
    """The first `width` pages of some lanes: int32 [lanes, width]."""
    return table[:, :width].index_select(0, lanes)


def _tell_lengths(tables: Lanes, views: dict[str, Tensor]) -> None:
    """Lets the lanes know how far their rows are once the batch is read, where replayed steps go on from."""
    length = views["kv_length"]
    tables.length[views["lanes"]] = length
    if "followers" in views:
        tables.length[views["followers"]] = length[views["followed"]]


def put_sampling(buffer: PackedBuffer, sampled: list[Row], rows: list[int]) -> None:
    """Puts how `rows` of a batch draw into its buffer."""
    pack_sampling(buffer.put, sampled)
    buffer.put("sampling_rows", rows)
    buffer.put("sampling_lanes", [sequence.lanes[0] for sequence in sampled] + [0] * (-len(sampled) % ALIGNED))


def sampled_rows(views: dict[str, Tensor], sampled: list[Row], tables: Lanes) -> SampledRows:
    """What `put_sampling` put there, and what the tables say of these rows."""
    draws = tables.draws_of(views["sampling_lanes"], len(sampled))
    how = unpack_sampling(views, sampled, draws)
    return SampledRows(views["sampling_rows"], views["sampling_lanes"][: len(sampled)], how)


def _take_search(taken: _Taken, search: BeamSearch, *, goes_on: bool) -> None:
    first, width = len(taken.rows), search.width
    taken.searches.append(search)
    taken.followers.extend(search.beams[width:])
    taken.followed.extend([first] * (search.widest - width))
    if goes_on:
        taken.placed.append(Placed(range(first, first + width), search))


def _take(chunks: Sequence[Chunk]) -> _Taken:
    taken = _Taken()
    rows, lengths, ends, ids = taken.rows, taken.lengths, taken.ends, taken.ids
    for sequence, length in chunks:
        end = sequence.computed + length
        if isinstance(sequence, BeamSearch):
            found = sequence.rows()
            _take_search(taken, sequence, goes_on=end == sequence.length)
            rows += found
        else:
            if end == sequence.length:
                taken.sampled.append(sequence)
                taken.sampling_rows.append(len(rows))
            rows.append(sequence)
            found = (sequence,)
        for row in found:
            lengths.append(length)
            ends.append(end)
            if end > len(row.tokens):
                taken.unknown.append(len(ids))
                taken.unknown_lanes.append(row.lanes[0])
                ids.append(0)
            elif length == 1:
                ids.append(row.tokens[end - 1])
            else:
                ids += row.tokens[end - length : end]
    return taken
