"""Inputs that are read in several sequences: how many a call may have, and long texts among them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tercet.server import wire
from tercet.server.service.answers import Work
from tercet.server.service.errors import InvalidArgumentError, ServiceError
from tercet.server.service.predictions import prediction

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tercet.server.config import Settings
    from tercet.server.service.registry import Target
    from tercet.server.service.rpc import Call
    from tercet.server.text import Encoded


class Tally:
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


def windows(field: str, encoded: Encoded, max_length: int, overlap: int, tally: Tally) -> list[Encoded]:
    """A text, of a pair the second, in windows of at most `max_length` tokens that share `overlap`.

    `field`: what leaves windows no room where they have too little. Raises InvalidArgumentError.
    """
    excess = len(encoded) - max_length
    if excess <= 0:
        tally.add(field, 1, len(encoded))
        return [encoded]
    room = max_length - encoded.added_before - encoded.added_after
    if room <= overlap:
        problem = f"leaves {max(room, 0)} of {max_length} tokens to a window, which must be more than stride, {overlap}"
        raise InvalidArgumentError(field, problem)
    count = 1 - (-excess // (room - overlap))
    tally.add(field, count, count * max_length)
    return encoded.windows(max_length, overlap)


def works(
    field: str, divided: Sequence[list[Encoded] | ServiceError], target: Target, call: Call
) -> list[Work | ServiceError]:
    """What is asked of the windows of each element of a field, or why it is refused."""
    return [
        Work(
            f"{field}[{i}]",
            [prediction(target, wire.token_ids(window.ids), wire.token_ids(window.type_ids), call) for window in read],
        )
        if isinstance(read, list)
        else read
        for i, read in enumerate(divided)
    ]
