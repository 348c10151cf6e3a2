"""Batches: one packed buffer is filled on the host, moved once, and all else is made of it on the device."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch

from tercet.kernels import pad
from tercet.server.engine.sampler import SamplingRows, pack_sampling, unpack_sampling
from tercet.server.models import DecoderBatch, EncoderBatch, Rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

    from tercet.server.engine.scheduler import Chunk
    from tercet.server.engine.sequence import PoolingKind
    from tercet.server.engine.sequence import Sequence as Row

_DTYPES = {"i": torch.int32, "f": torch.float32, "Q": torch.int64}  # array type codes; Q is moved as its bit pattern
_ALIGNMENT = 16  # bytes, what Triton loads at once


class PackedBuffer:
    """Arrays of one batch behind one another in host memory."""

    def __init__(self) -> None:
        self.copies = 0
        """Moves to the device, for the statistics."""
        self._bytes = bytearray()
        self._fields: dict[str, tuple[int, int, torch.dtype]] = {}

    def put(self, name: str, values: Iterable[int] | Iterable[float], code: Literal["i", "f", "Q"] = "i") -> None:
        """Appends a field: int32, float32 or unsigned 64-bit values."""
        data = array(code, values)
        self._bytes += bytes(-len(self._bytes) % _ALIGNMENT)
        self._fields[name] = len(self._bytes), len(data) * data.itemsize, _DTYPES[code]
        self._bytes += data.tobytes()

    def upload(self, device: torch.device) -> dict[str, Tensor]:
        """Moves everything at once; each field is a view of what arrived."""
        host = torch.frombuffer(self._bytes, dtype=torch.uint8)
        if device.type == "cuda":
            host = host.pin_memory()
        buffer = host.to(device, non_blocking=True)
        self.copies += 1
        return {name: buffer[start : start + size].view(dtype) for name, (start, size, dtype) in self._fields.items()}


class Pool(NamedTuple):
    """Neighbouring rows of an encoder batch that are pooled alike."""

    first: int
    last: int
    kind: PoolingKind


@dataclass(frozen=True)
class EncoderWork:
    """An encoder batch and what follows it."""

    batch: EncoderBatch
    pools: list[Pool]
    cross_slots: Tensor | None
    """int32 [T]: where each source token's keys and values go; -1 for padding. None for embeddings."""
    copies: int


@dataclass(frozen=True)
class DecoderWork:
    """A decoder batch and the rows of it that choose a token."""

    batch: DecoderBatch
    sampling: SamplingRows | None
    """None if no row has reached its last token."""
    copies: int


def encoder_work(rows: Sequence[Row], *, page_size: int, padded: bool, device: torch.device) -> EncoderWork:
    """One batch of whole sources. Rows of equal pooling should be neighbours; the order is kept."""
    requests = [row.request for row in rows]
    buffer = PackedBuffer()
    lengths = [len(request.source) for request in requests]
    _put_rows(buffer, lengths)
    buffer.put("token_ids", (token for request in requests for token in request.source))
    typed = any(request.type_ids for request in requests)
    if typed:
        types = (request.type_ids or [0] * len(request.source) for request in requests)
        buffer.put("type_ids", (kind for ids in types for kind in ids))
    crossed = any(request.cross_pages for request in requests)
    if crossed:
        _put_table(buffer, "cross_page_table", [request.cross_pages for request in requests])
    views = buffer.upload(device)

    flat = _Flat(views["start"], views["length"], lengths, padded=padded)
    cross_slots = None
    if crossed:
        table = views["cross_page_table"].view(len(rows), -1)
        cross_slots = flat.place(flat.slots(table, flat.index, page_size), padding=-1)
    batch = EncoderBatch(
        token_ids=flat.place(views["token_ids"]),
        positions=flat.place(flat.index),
        rows=flat.rows,
        type_ids=flat.place(views["type_ids"]) if typed else None,
    )
    return EncoderWork(batch, [] if crossed else _pools(rows), cross_slots, buffer.copies)


def decoder_work(chunks: Sequence[Chunk], *, page_size: int, padded: bool, device: torch.device) -> DecoderWork:
    """One batch of decoding rows and chunks of prompts alike: each row is the next tokens of a sequence."""
    buffer = PackedBuffer()
    lengths = [chunk.length for chunk in chunks]
    ends = [sequence.computed + length for sequence, length in chunks]
    sources = [len(sequence.request.source) for sequence, _ in chunks]
    _put_rows(buffer, lengths)
    buffer.put("kv_length", ends)
    ids = array("i")
    for (sequence, length), end in zip(chunks, ends, strict=True):
        ids.extend(sequence.tokens[end - length : end])
    buffer.put("token_ids", ids)
    _put_table(buffer, "page_table", [sequence.pages for sequence, _ in chunks])
    crossed = any(sources)
    if crossed:
        _put_table(buffer, "cross_page_table", [sequence.request.cross_pages for sequence, _ in chunks])
        buffer.put("cross_length", sources)
    chosen = [row for row, (sequence, length) in enumerate(chunks) if length == sequence.remaining]
    if chosen:
        pack_sampling(buffer.put, [chunks[row].sequence for row in chosen], chosen)
    views = buffer.upload(device)

    flat = _Flat(views["start"], views["length"], lengths, padded=padded)
    table = views["page_table"].view(len(chunks), -1)
    positions = flat.index + (views["kv_length"] - views["length"])[flat.row]
    batch = DecoderBatch(
        token_ids=flat.place(views["token_ids"]),
        positions=flat.place(positions),
        rows=flat.rows,
        slots=flat.place(flat.slots(table, positions, page_size), padding=-1),
        kv_length=views["kv_length"],
        page_table=table,
        longest_kv=max(ends),
        cross_page_table=views["cross_page_table"].view(len(chunks), -1) if crossed else None,
        cross_length=views["cross_length"] if crossed else None,
        longest_cross=max(sources),
    )
    return DecoderWork(batch, unpack_sampling(views) if chosen else None, buffer.copies)


class _Flat:
    """The tokens of a batch on the device: where each is in its row, and their place in padded or packed storage."""

    def __init__(self, start: Tensor, length: Tensor, lengths: list[int], *, padded: bool) -> None:
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


def _put_rows(buffer: PackedBuffer, lengths: list[int]) -> None:
    buffer.put("length", lengths)
    buffer.put("start", accumulate(lengths[:-1], initial=0))


def _put_table(buffer: PackedBuffer, name: str, pages: list[list[int]]) -> None:
    width = max(map(len, pages))
    table = array("i")
    for row in pages:
        table.extend(row)
        table.extend([0] * (width - len(row)))
    buffer.put(name, table)


def _pools(rows: Sequence[Row]) -> list[Pool]:
    pools: list[Pool] = []
    for kind, alike in groupby(row.request.pooling for row in rows):
        first = pools[-1].last if pools else 0
        if kind is not None:
            pools.append(Pool(first, first + len(list(alike)), kind))
    return pools
