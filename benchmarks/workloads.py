"""Seeded texts: the same for every contestant, on every machine."""

from __future__ import annotations

import functools
import math
import random

from benchmarks import checkpoints

MEDIAN_WORDS, SIGMA = 40, 0.8
FEWEST_WORDS, MOST_WORDS = 4, 250


@functools.cache
def _vocabulary() -> list[str]:
    """Whole words of MiniLM's vocabulary: each is one token there, so that no text passes its limit of 256."""
    tokens = (checkpoints.minilm() / "vocab.txt").read_text(encoding="utf-8").split("\n")
    return [token for token in tokens if len(token) > 1 and token.isascii() and token.isalpha()]


def texts(count: int, seed: int = 0) -> list[str]:
    """Texts of log-normal length, in words: median 40, σ 0.8, at least 4, at most 250."""
    chance = random.Random(seed)
    words = _vocabulary()
    lengths = [math.exp(chance.gauss(math.log(MEDIAN_WORDS), SIGMA)) for _ in range(count)]
    return [" ".join(chance.choices(words, k=round(min(max(n, FEWEST_WORDS), MOST_WORDS)))) for n in lengths]


def fill(lengths: list[int], batch_size: int) -> float:
    """The share of real tokens when every `batch_size` texts in this order are padded to their longest."""
    batches = [lengths[first : first + batch_size] for first in range(0, len(lengths), batch_size)]
    return sum(lengths) / sum(max(batch) * len(batch) for batch in batches)
