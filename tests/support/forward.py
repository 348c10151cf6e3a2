"""Batches for a model, made from lists of token ids, and a cache whose pages are handed out at random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from support.checkpoints import VOCAB_SIZE
from tercet.server.models import DecoderBatch, EncoderBatch, Rows, Source

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedModel

    from tercet.server.models import Model

Ids = list[int]
PAGE_SIZE = 4


def ints(values: Sequence[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def make_rows(lengths: Sequence[int], *, padded: bool) -> Rows:
    """Packed rows, or rows padded to the longest."""
    longest = max(lengths)
    starts = [i * longest if padded else sum(lengths[:i]) for i in range(len(lengths))]
    return Rows(ints(starts), ints(lengths), longest, longest * len(lengths) if padded else sum(lengths))


def lay_out(values: Sequence[Sequence[int]], rows: Rows, *, filler: int) -> Tensor:
    """int32 [tokens]: each row's values at its start, `filler` in the padding."""
    storage = torch.full((rows.tokens,), filler, dtype=torch.int32)
    for start, row in zip(rows.start.tolist(), values, strict=True):
        storage[start : start + len(row)] = ints(row)
    return storage


def take(hidden: Tensor, rows: Rows) -> list[Tensor]:
    """Each row's part [length, ...] of flat storage."""
    return [hidden[s : s + n] for s, n in zip(rows.start.tolist(), rows.length.tolist(), strict=True)]


def encoder_batch(texts: Sequence[Ids], type_ids: Sequence[Ids] | None = None, *, padded: bool = False) -> EncoderBatch:
    rows = make_rows([len(text) for text in texts], padded=padded)
    return EncoderBatch(
        token_ids=lay_out(texts, rows, filler=0),
        positions=lay_out([range(len(text)) for text in texts], rows, filler=0),
        rows=rows,
        type_ids=None if type_ids is None else lay_out(type_ids, rows, filler=0),
    )


def encode(
    model: Model, texts: Sequence[Ids], type_ids: Sequence[Ids] | None = None, *, padded: bool = False
) -> list[Tensor]:
    """The final hidden states of each text."""
    batch = encoder_batch(texts, type_ids, padded=padded)
    return take(model.encode(batch), batch.rows)


def read(model: Model, texts: Sequence[Ids], sources: Sequence[Ids] | None, *, padded: bool = False) -> list[Tensor]:
    """The decoder's final hidden states of each text, read at once."""
    batch, source = encoder_batch(texts, padded=padded), None
    if sources:
        whole = encoder_batch(sources, padded=padded)
        source = Source(model.encode(whole), whole.rows)
    return take(model.read(batch, source), batch.rows)


class Decoding:
    """Sequences that a decoder or a seq2seq model reads piece by piece; pages that nobody wrote hold NaN."""

    def __init__(self, model: Model, count: int, *, sources: Sequence[Ids] | None = None, padded: bool = False) -> None:
        self.model = model
        self.padded = padded
        self.lengths = [0] * count
        pages = -(-model.max_length // PAGE_SIZE)
        free = torch.randperm(2 * count * pages, generator=torch.Generator().manual_seed(0)).view(2, count, pages)
        self.cache = model.new_cache(2 * count * pages, PAGE_SIZE)
        self.cache.k.fill_(torch.nan)
        self.cache.v.fill_(torch.nan)
        self.page_table, self.cross_page_table = free.to(torch.int32)
        self.sources = [len(source) for source in sources] if sources else None
        if sources:
            batch = encoder_batch(sources, padded=padded)
            slots = [self._slots(self.cross_page_table[i], range(len(source))) for i, source in enumerate(sources)]
            model.write_cross(model.encode(batch), lay_out(slots, batch.rows, filler=-1), self.cache)

    @staticmethod
    def _slots(pages: Tensor, positions: range) -> Ids:
        return [int(pages[p // PAGE_SIZE]) * PAGE_SIZE + p % PAGE_SIZE for p in positions]

    def read(self, pieces: Sequence[Ids]) -> list[Tensor]:
        """The final hidden states of each sequence's next tokens."""
        rows = make_rows([len(piece) for piece in pieces], padded=self.padded)
        positions = [range(n, n + len(piece)) for n, piece in zip(self.lengths, pieces, strict=True)]
        slots = [self._slots(self.page_table[i], places) for i, places in enumerate(positions)]
        self.lengths = [places.stop for places in positions]
        batch = DecoderBatch(
            token_ids=lay_out(pieces, rows, filler=0),
            positions=lay_out(positions, rows, filler=0),
            rows=rows,
            slots=lay_out(slots, rows, filler=-1),
            kv_length=ints(self.lengths),
            page_table=self.page_table,
            longest_kv=max(self.lengths),
            cross_page_table=self.cross_page_table if self.sources else None,
            cross_length=ints(self.sources) if self.sources else None,
            longest_cross=max(self.sources, default=0) if self.sources else 0,
        )
        return take(self.model.decode(batch, self.cache), rows)


def texts(*lengths: int, seed: int = 0) -> list[Ids]:
    """Random token ids of the tiny checkpoints."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(VOCAB_SIZE, (n,), generator=generator).tolist() for n in lengths]


def relative_error(ours: Tensor, expected: Tensor) -> float:
    """‖ours - expected‖ / ‖expected‖; infinite where anything is not finite."""
    if ours.shape != expected.shape:
        raise AssertionError(f"shape {list(ours.shape)}, not {list(expected.shape)}")
    error = (ours - expected).norm() / expected.norm()
    return error.item() if error.isfinite() else float("inf")


@dataclass(frozen=True)
class Pair:
    """One checkpoint, loaded by us and by transformers."""

    folder: Path
    ours: Model
    reference: PreTrainedModel

    def encoded(self, ids: Ids) -> Tensor:
        """The reference's final hidden states [length, hidden] of one text, read by its encoder."""
        encoder = self.reference.get_encoder() if self.ours.family == "seq2seq" else self.reference
        return encoder(torch.tensor([ids])).last_hidden_state[0]

    def decoded(self, ids: Ids, source: Ids | None) -> tuple[Tensor, Tensor]:
        """The reference's final hidden states [length, hidden] and logits [length, vocab] of one text, or target."""
        inputs = {"input_ids": torch.tensor([ids])}
        if source is not None:
            inputs = {"input_ids": torch.tensor([source]), "decoder_input_ids": torch.tensor([ids])}
        outputs = self.reference(**inputs, output_hidden_states=True)
        return outputs["hidden_states" if source is None else "decoder_hidden_states"][-1][0], outputs.logits[0]
