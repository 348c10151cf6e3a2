"""The pages of the KV cache and the lanes of the device's tables: who holds which, counted exactly."""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def pages_of(tokens: int, page_size: int) -> int:
    """Pages that hold `tokens`."""
    return -(-tokens // page_size)


class PagePool:
    """The pages of one cache and how many sequences hold each.

    The page freed last is taken first: it is the likeliest to be in a processor's cache, and memory that was never
    needed is never touched.
    """

    def __init__(self, pages: int) -> None:
        self._free = list(range(pages - 1, -1, -1))
        self._holders = [0] * pages

    @property
    def free(self) -> int:
        """Pages nobody holds."""
        return len(self._free)

    @property
    def used(self) -> int:
        """Pages held by at least one sequence."""
        return len(self._holders) - len(self._free)

    def take(self, count: int) -> list[int]:
        """Takes `count` free pages. Raises ValueError, taking none, if there are fewer."""
        if count > len(self._free):
            raise ValueError(f"{count} pages wanted, {len(self._free)} free")
        pages = [self._free.pop() for _ in range(count)]
        for page in pages:
            self._holders[page] = 1
        return pages

    def share(self, pages: Sequence[int]) -> None:
        """Adds a holder to each of `pages`. Raises ValueError on a page that nobody holds."""
        for page in pages:
            if not self._holders[page]:
                raise ValueError(f"page {page} is free and can't be shared")
        for page in pages:
            self._holders[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """Takes a holder from each of `pages`; the last one frees it. Raises ValueError on a page that nobody holds."""
        for page in pages:
            if not self._holders[page]:
                raise ValueError(f"page {page} is already free")
            self._holders[page] -= 1
            if not self._holders[page]:
                self._free.append(page)


class LanePool:
    """The lanes of the device's tables, one for each row that runs: the lowest are taken first."""

    def __init__(self, lanes: int) -> None:
        self._free = list(range(lanes))

    def take(self, count: int) -> list[int]:
        """Takes `count` lanes. Raises ValueError, taking none, if there are fewer."""
        if count > len(self._free):
            raise ValueError(f"{count} lanes wanted, {len(self._free)} free")
        return [heappop(self._free) for _ in range(count)]

    def release(self, lanes: Sequence[int]) -> None:
        """Gives lanes back."""
        for lane in lanes:
            heappush(self._free, lane)
