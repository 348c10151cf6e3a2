"""The sizes that engines choose by: which batches are replayed, in which buckets, and how batches lie in memory.

A batch runs in the smallest bucket that holds it. Every bucket is a graph: finer ones waste less, more of them take
longer to capture and more memory.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import NamedTuple

AUTO_LAYOUT = "packed"  # wastes nothing

DECODE_ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Rows of decode steps that are replayed; more rows are launched."""

BEAMS, BEAM_CANDIDATES = 8, 32
"""The most beams of a search whose steps are replayed, and the most candidates that it chooses from: as many ends as
there can be to a text times its beams, and once more. Larger ones choose by launches."""

# What is larger keeps a GPU busy for longer than its launches take.
ENCODER_TOKENS = (32, 64, 128, 256, 512, 1024, 2048)
"""Tokens, as stored, of encoder batches that are replayed,"""
ENCODER_TEXTS = (1, 16)
"""of so many texts, or of as many as there can be with `TEXT_TOKENS` each."""
TEXT_TOKENS = 16


class EncoderBucket(NamedTuple):
    """An encoder batch that is replayed."""

    tokens: int
    rows: int
    longest: int


def decode_buckets(max_rows: int) -> tuple[int, ...]:
    """Rows of the decode steps that an engine replays which runs so many at once."""
    smaller = DECODE_ROWS[: bisect_left(DECODE_ROWS, max_rows)]
    return (*smaller, max_rows) if max_rows <= DECODE_ROWS[-1] else smaller


def encoder_buckets(max_tokens: int, max_rows: int, max_length: int) -> tuple[EncoderBucket, ...]:
    """The encoder batches that an engine replays, from small to large."""
    found: list[EncoderBucket] = []
    for tokens in ENCODER_TOKENS[: bisect_left(ENCODER_TOKENS, max_tokens) + 1]:
        counts = sorted({min(rows, tokens, max_rows) for rows in (*ENCODER_TEXTS, tokens // TEXT_TOKENS)})
        found += [EncoderBucket(tokens, rows, min(tokens, max_length)) for rows in counts]
    return tuple(found)
