"""What a model reads in one forward pass, and the pages it writes to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Where each row of a batch lies in flat storage; packed and padded batches differ in `start` alone."""

    start: Tensor
    """int32 [B]"""
    length: Tensor
    """int32 [B]; 0 is an empty row."""
    longest: int
    """An upper bound of `length`."""
    tokens: int
    """Rows of flat storage, T, padding included."""


@dataclass(frozen=True)
class EncoderBatch:
    """Whole sequences, read without a cache. Padding tokens hold any id of the vocabulary."""

    token_ids: Tensor
    """int32 [T]"""
    positions: Tensor
    """int32 [T], counted from 0 in each row."""
    rows: Rows
    type_ids: Tensor | None = None
    """int32 [T]; None is all 0."""


@dataclass(frozen=True)
class Source:
    """What a seq2seq model's decoder attends to when it reads without a cache."""

    hidden: Tensor
    """[Ts, hidden], as the encoder gave it."""
    rows: Rows
    """One for each row of the batch that the decoder reads."""


@dataclass(frozen=True)
class DecoderBatch:
    """New tokens of each row, a prompt, a chunk of one or the last token, on top of what the cache holds of it."""

    token_ids: Tensor
    """int32 [T]"""
    positions: Tensor
    """int32 [T], counted from 0 at the start of the sequence."""
    rows: Rows
    """The new tokens: the queries."""
    slots: Tensor
    """int32 [T]: page * page_size + offset to write each token's key and value to; -1 for padding."""
    kv_length: Tensor
    """int32 [B]: tokens of each row in the cache once this batch's are written."""
    page_table: Tensor
    """int32 [B, P]: the pages of each row in order."""
    longest_kv: int
    """An upper bound of `kv_length`."""
    key_rows: Tensor | None = None
    """int32 [B, longest_kv]: the row of the batch in whose pages each key of a row lies; None is its own."""
    cross_page_table: Tensor | None = None
    """int32 [B, Pc]: the pages of each row's source; seq2seq alone."""
    cross_length: Tensor | None = None
    """int32 [B]: tokens of each row's source."""
    longest_cross: int = 0
    """An upper bound of `cross_length`."""


@dataclass(frozen=True)
class KVCache:
    """One pool of pages a model: a page id is of all layers, and pages of a text and of a source are alike."""

    k: Tensor
    """[layers, pages, page_size, kv_heads, head_dim]"""
    v: Tensor
    """As `k`."""
    page_size: int
    """Tokens of a page."""
