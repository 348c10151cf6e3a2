"""Batches of sequences that are read whole: one packed buffer is moved once, all else is made on the device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

from tercet.server.engine.layout import Flat, put_rows, starts
from tercet.server.engine.pages import pages_of
from tercet.server.engine.reading import parts_of
from tercet.server.engine.transfer import PackedBuffer
from tercet.server.models import EncoderBatch, Rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor

    from tercet.server.engine.reading import Part
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


class _Texts:
    """Token ids that are read whole: put into a buffer, then laid out on the device."""

    def __init__(self, buffer: PackedBuffer, name: str, texts: list[list[int]], *, padded: bool) -> None:
        self.lengths = [len(text) for text in texts]
        longest = max(self.lengths)
        self.start = [row * longest for row in range(len(texts))] if padded else starts(self.lengths)
        """Of each row in storage."""
        self._buffer, self._name, self._padded = buffer, name, padded
        self._parts: list[tuple[Part, dict[str, str]]] = []  # each with its fields and what the buffer calls them
        put_rows(buffer, f"{name}_", self.lengths)
        buffer.put(f"{name}_ids", chain.from_iterable(texts))

    def put_parts(self, parts: list[Part]) -> None:
        """Adds what becomes of the texts."""
        for index, part in enumerate(parts):
            fields = part.fields()
            names = {field: f"{self._name}_{field}_{index}" for field in fields}
            for field, values in fields.items():
                self._buffer.put(names[field], values)
            self._parts.append((part, names))

    def flat(self, views: dict[str, Tensor]) -> Flat:
        """Where the tokens are on the device."""
        views = {field: views[f"{self._name}_{field}"] for field in ("start", "length")}
        return Flat(views["start"], views["length"], self.lengths, padded=self._padded)

    def whole(self, views: dict[str, Tensor], flat: Flat, type_ids: Tensor | None = None) -> Whole:
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
