"""Stop strings in text that arrives in pieces."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def open_match(text: str, patterns: Sequence[str]) -> int:
    """Where `text` begins a match of one of `patterns` that only text to come can complete; else the end of `text`."""
    longest = max(map(len, patterns), default=0)
    for start in range(max(0, len(text) - longest + 1), len(text)):
        rest = text[start:]
        if any(pattern.startswith(rest) for pattern in patterns):
            return start
    return len(text)


class StopMatcher:
    """Passes text through until one of `stop` occurs in it, wherever the pieces are cut.

    The match that completes first ends the text; of matches that complete at the same character, the longest. So the
    outcome depends on the text alone, and generation can end with the token that completed the match. Text that may
    be the beginning of a match is held back until it is known not to be.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        if not all(stop):
            raise ValueError("stop strings must not be empty")
        self._stop = tuple(dict.fromkeys(stop))
        self._held = ""
        self._stopped = False

    def push(self, text: str) -> tuple[str, bool]:
        """Takes the next piece; returns the text that is now certain, and whether a stop string ended it for good."""
        if self._stopped:
            return "", True
        text = self._held + text
        found = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self._held, self._stopped = "", True
            return text[: min(found)[1]], True
        certain = open_match(text, self._stop)
        self._held = text[certain:]
        return text[:certain], False

    def finish(self) -> str:
        """The text still held back, once no more can come."""
        held, self._held = self._held, ""
        return held
