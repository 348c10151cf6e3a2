"""The pages of the KV cache and the lanes of the device's tables: who holds which, counted exactly; and which pages
still hold something when nobody holds them.
"""

from __future__ import annotations

from collections import OrderedDict
from heapq import heappop, heappush
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def pages_of(tokens: int, page_size: int) -> int:
    """Pages that hold `tokens`."""
    return -(-tokens // page_size)


class PagePool:
    """The pages of one cache, how many sequences hold each, and under which key what it holds can be found.

    A page with a key that nobody holds any more is free like any other, but keeps its content until it is taken. Pages
    without content are taken first, of those the one freed last: it is the likeliest to be in a processor's cache, and
    memory that was never needed is never touched. Then what was let go of longest ago is taken.
    """

    def __init__(self, pages: int) -> None:
        self.evictions = 0
        """Pages that were taken though something could be found in them."""
        self._blank = list(range(pages - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()  # nobody holds them; let go of longest ago first
        self._holders = [0] * pages
        self._keys: list[bytes | None] = [None] * pages
        self._places: dict[bytes, int] = {}

    @property
    def free(self) -> int:
        """Pages nobody holds."""
        return len(self._blank) + len(self._cached)

    @property
    def cached(self) -> int:
        """Of the free pages those in which something can be found."""
        return len(self._cached)

    @property
    def used(self) -> int:
        """Pages held by at least one sequence."""
        return len(self._holders) - self.free

    def take(self, count: int) -> list[int]:
        """Takes `count` free pages. Raises ValueError, taking none, if there are fewer."""
        if count > self.free:
            raise ValueError(f"{count} pages wanted, {self.free} free")
        pages = [self._blank.pop() if self._blank else self._evict() for _ in range(count)]
        for page in pages:
            self._holders[page] = 1
        return pages

    def share(self, pages: Sequence[int]) -> None:
        """Adds a holder to each of `pages`. Raises ValueError on a page that nobody holds and nothing is found in."""
        for page in pages:
            if not self._holders[page] and self._keys[page] is None:
                raise ValueError(f"page {page} is free and can't be shared")
        for page in pages:
            if not self._holders[page]:
                del self._cached[page]
            self._holders[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """Takes a holder from each of `pages`; the last one frees it. Raises ValueError on a page that nobody holds.

        The last page is the first to be taken again: it is of no use without those before it.
        """
        for page in reversed(pages):
            if not self._holders[page]:
                raise ValueError(f"page {page} is already free")
            self._holders[page] -= 1
            if not self._holders[page]:
                self._let_go(page)

    def keep(self, page: int, key: bytes) -> None:
        """Makes what a page holds known under a key, unless it is so of another. Raises ValueError on a free page."""
        if not self._holders[page]:
            raise ValueError(f"page {page} is free and can't be kept")
        if self._keys[page] is None and key not in self._places:
            self._keys[page] = key
            self._places[key] = page

    def find(self, keys: Iterable[bytes]) -> list[int]:
        """The pages known under `keys`, up to the first key under which there is none; to be shared before any is
        taken.
        """
        found: list[int] = []
        for key in keys:
            page = self._places.get(key)
            if page is None:
                break
            found.append(page)
        return found

    def count_free(self, pages: Iterable[int]) -> int:
        """How many of `pages` nobody holds."""
        return sum(not self._holders[page] for page in pages)

    def forget(self, pages: Iterable[int]) -> None:
        """Makes sure that nothing is found in `pages`, whoever holds them."""
        for page in pages:
            key = self._keys[page]
            if key is None:
                continue
            self._keys[page] = None
            del self._places[key]
            if not self._holders[page]:
                del self._cached[page]
                self._blank.append(page)

    def _let_go(self, page: int) -> None:
        if self._keys[page] is None:
            self._blank.append(page)
        else:
            self._cached[page] = None

    def _evict(self) -> int:
        page, _ = self._cached.popitem(last=False)
        key = self._keys[page]
        if key is not None:
            del self._places[key]
        self._keys[page] = None
        self.evictions += 1
        return page


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
