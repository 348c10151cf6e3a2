"""Inputs that are read in several sequences: windows, hypotheses, tokens to mask."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tercet.server.service.errors import InvalidArgumentError

if TYPE_CHECKING:
    from tercet.server.config import Settings
    from tercet.server.text import Encoded


class Parts:
    """Counts the sequences that the inputs of one call become: at most as many as a queue holds."""

    def __init__(self, settings: Settings) -> None:
        self._limits = {"sequences": settings.max_queue, "tokens": settings.max_queue_tokens}
        self._counted = dict.fromkeys(self._limits, 0)

    def add(self, field: str, sequences: int, tokens: int = 0) -> None:
        """Raises InvalidArgumentError, and counts nothing, where they are too many with those before."""
        more = {"sequences": sequences, "tokens": tokens}
        counts = {name: count + more[name] for name, count in self._counted.items()}
        for name, count in counts.items():
            if count > self._limits[name]:
                problem = f"would make the call read {count} {name}, the limit is {self._limits[name]}"
                raise InvalidArgumentError(field, problem)
        self._counted = counts


def windows(field: str, encoded: Encoded, max_length: int, overlap: int, parts: Parts) -> list[Encoded]:
    """A text, of a pair the second, in windows of at most `max_length` tokens that share `overlap`.

    `field`: what leaves windows no room where they have too little. Raises InvalidArgumentError.
    """
    excess = len(encoded) - max_length
    if excess <= 0:
        parts.add(field, 1, len(encoded))
        return [encoded]
    room = max_length - encoded.added_before - encoded.added_after
    if room <= overlap:
        problem = f"leaves {max(room, 0)} of {max_length} tokens to a window, which must be more than stride, {overlap}"
        raise InvalidArgumentError(field, problem)
    count = 1 - (-excess // (room - overlap))
    parts.add(field, count, count * max_length)
    return encoded.windows(max_length, overlap)
