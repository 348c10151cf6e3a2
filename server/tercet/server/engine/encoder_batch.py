"""Batches of sequences that are read whole: one packed buffer is moved once, all else is made on the device."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tercet.server.engine.layout import Flat, put_rows, starts
from tercet.server.engine.pages import pages_of
from tercet.server.engine.reading import parts_of
from tercet.server.engine.transfer import PackedBuffer
from tercet.server.models import EncoderBatch, Rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import torch
    from torch import Tensor

    from tercet.server.engine.encoder_steps import EncoderSteps
    from tercet.server.engine.reading import Part
    from tercet.server.engine.sequence import Request
    from tercet.server.engine.sequence import Sequence as Row
    from tercet.server.engine.tuning import EncoderBucket
    from tercet.server.models.spec import HeadSpec
    from tercet.server.wire import TokenIds


@dataclass(frozen=True)
class Whole:
    """Sequences that a stack reads whole, and what becomes of them."""

    batch: EncoderBatch
    parts: list[tuple[Part, dict[str, Tensor]]]
    """Each with its fields of the buffer."""


@dataclass(frozen=True)
class Target(Whole):
    """What a seq2seq decoder reads whole."""

    source: Rows
    """The rows that it is read against: the last of the source."""


@dataclass(frozen=True)
class EncoderWork:
    """An encoder batch and what follows it."""

    source: Whole
    target: Target | None
    cross_slots: Tensor | None
    """int32 [T]: where each source token's keys and values go; -1 where nowhere. None if none goes anywhere,
    or if the graph writes them."""
    bucket: EncoderBucket | None
    """Of the graph that reads the source; None to launch."""
    copies: int

    @property
    def tokens(self) -> int:
        """Stored ones, padding included."""
        return self.source.batch.rows.tokens + (self.target.batch.rows.tokens if self.target else 0)


def encoder_work(
    rows: Sequence[Row],
    steps: EncoderSteps | None,
    *,
    head: HeadSpec | None,
    page_size: int,
    padded: bool,
    device: torch.device,
) -> EncoderWork:
    """One batch of sequences that are read whole, sorted by the `likeness` of what is asked of them.

    `steps`: those that can be replayed, if any can.
    """
    requests = [row.request for row in rows]
    readings = [request.reading for request in requests]
    targets = [request.target for request in requests if request.target]
    split = len(rows) - len(targets)
    buffer = PackedBuffer()
    source = _Texts("source", [request.source for request in requests], padded=padded)
    bucket = steps.bucket(source.tokens, len(rows), source.longest) if steps else None
    if steps and bucket:
        buffer.put("bucket", steps.pack(bucket, requests, source.start))
    else:
        _put_sources(buffer, source, requests, page_size)
    source.put_parts(buffer, parts_of(readings[:split], source.start, source.lengths, head))
    target = _Texts("target", targets, padded=padded) if targets else None
    if target:
        target.put(buffer)
        target.put_parts(buffer, parts_of(readings[split:], target.start, target.lengths, head))
    views = buffer.upload(device)

    if steps and bucket:
        batch, cross_slots = steps.fill(bucket, views["bucket"]), None
    else:
        batch, cross_slots = _sources(views, source, page_size)
    return EncoderWork(
        source=Whole(batch, source.parts(views)),
        target=_target(views, target, _between(batch.rows, split, len(rows))) if target else None,
        cross_slots=cross_slots,
        bucket=bucket,
        copies=buffer.copies,
    )


def _put_sources(buffer: PackedBuffer, source: _Texts, requests: Sequence[Request], page_size: int) -> None:
    source.put(buffer)
    if any(request.type_ids for request in requests):
        buffer.put("type_ids", _joined(request.type_ids or [0] * len(request.source) for request in requests))
    if any(request.cross_pages for request in requests):
        nowhere = [[-1] * pages_of(len(request.source), page_size) for request in requests]  # for readings
        pages = [request.cross_pages or none for request, none in zip(requests, nowhere, strict=True)]
        buffer.put_table("cross_page_table", pages)


def _sources(views: dict[str, Tensor], source: _Texts, page_size: int) -> tuple[EncoderBatch, Tensor | None]:
    """The sources on the device, and where their tokens go for cross-attention."""
    flat = source.flat(views)
    batch = source.batch(views, flat, views.get("type_ids"))
    if "cross_page_table" not in views:
        return batch, None
    table = views["cross_page_table"].view(len(source.lengths), -1)
    return batch, flat.place(flat.slots(table, flat.index, page_size).clamp(min=-1), padding=-1)


def _joined(texts: Iterable[Iterable[int]]) -> array[int]:
    """Int32 values behind one another; of arrays their memory is copied."""
    values = array("i")
    for text in texts:
        values.extend(text)
    return values


def _target(views: dict[str, Tensor], target: _Texts, source: Rows) -> Target:
    return Target(target.batch(views, target.flat(views)), target.parts(views), source)


def _between(rows: Rows, first: int, last: int) -> Rows:
    return replace(rows, start=rows.start[first:last], length=rows.length[first:last])


class _Texts:
    """Token ids that are read whole: put into a buffer, then laid out on the device."""

    def __init__(self, name: str, texts: Sequence[TokenIds], *, padded: bool) -> None:
        self.lengths = [len(text) for text in texts]
        self.longest = max(self.lengths)
        self.start = [row * self.longest for row in range(len(texts))] if padded else starts(self.lengths)
        """Of each row in storage."""
        self.tokens = self.longest * len(texts) if padded else sum(self.lengths)
        """Of storage."""
        self._name, self._texts, self._padded = name, texts, padded
        self._parts: list[tuple[Part, dict[str, str]]] = []  # each with its fields and what the buffer calls them

    def put(self, buffer: PackedBuffer) -> None:
        """Adds the ids, and where they lie."""
        put_rows(buffer, f"{self._name}_", self.lengths)
        buffer.put(f"{self._name}_ids", _joined(self._texts))

    def put_parts(self, buffer: PackedBuffer, parts: list[Part]) -> None:
        """Adds what becomes of the texts."""
        for index, part in enumerate(parts):
            fields = part.fields()
            names = {field: f"{self._name}_{field}_{index}" for field in fields}
            for field, values in fields.items():
                buffer.put(names[field], values)
            self._parts.append((part, names))

    def flat(self, views: dict[str, Tensor]) -> Flat:
        """Where the tokens are on the device."""
        return Flat(views, f"{self._name}_", self.lengths, padded=self._padded)

    def batch(self, views: dict[str, Tensor], flat: Flat, type_ids: Tensor | None = None) -> EncoderBatch:
        """The texts on the device."""
        return EncoderBatch(
            token_ids=flat.place(views[f"{self._name}_ids"]),
            positions=flat.place(flat.index),
            rows=flat.rows,
            type_ids=None if type_ids is None else flat.place(type_ids),
        )

    def parts(self, views: dict[str, Tensor]) -> list[tuple[Part, dict[str, Tensor]]]:
        """What becomes of them, on the device."""
        return [(part, {field: views[name] for field, name in names.items()}) for part, names in self._parts]
