"""Pages are counted exactly, whatever is taken, shared and released."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tercet.server.engine.pages import LanePool, PagePool

PAGES = 11
KEYS = [bytes([key]) for key in range(16)]


class Holders(RuleBasedStateMachine):
    """Some holders of pages against a plain list of what each holds, and a dict of what can be found."""

    def __init__(self):
        super().__init__()
        self.pool = PagePool(PAGES)
        self.held = []
        self.known = {}
        self.cached = []  # known pages that nobody holds, let go of longest ago first
        self.evicted = 0

    def is_held(self, page):
        return any(page in pages for pages in self.held)

    @rule(count=st.integers(0, PAGES))
    def take(self, count):
        """Takes pages, if there are as many: first those in which nothing is found."""
        free = PAGES - len({page for pages in self.held for page in pages})
        if count > free:
            with pytest.raises(ValueError, match=f"{count} pages wanted, {free} free"):
                self.pool.take(count)
            return
        pages = self.pool.take(count)
        assert len(set(pages)) == count
        assert not any(map(self.is_held, pages))
        evicted = max(0, count - (free - len(self.cached)))
        gone, self.cached = self.cached[:evicted], self.cached[evicted:]
        assert [page for page in pages if page in self.known.values()] == gone
        self.known = {key: page for key, page in self.known.items() if page not in gone}
        self.evicted += evicted
        self.held.append(pages)

    @rule(data=st.data())
    def share(self, data):
        """A second holder of some of another's pages."""
        if self.held:
            pages = data.draw(st.sampled_from(self.held))
            pages = pages[: data.draw(st.integers(0, len(pages)))]
            self.pool.share(pages)
            self.held.append(pages)

    @rule(key=st.sampled_from(KEYS), data=st.data())
    def keep(self, key, data):
        """What a page holds is known under one key, and a key is of one page."""
        if self.held and (pages := data.draw(st.sampled_from(self.held))):
            page = data.draw(st.sampled_from(pages))
            self.pool.keep(page, key)
            if page not in self.known.values():
                self.known.setdefault(key, page)

    @rule(keys=st.lists(st.sampled_from(KEYS), unique=True))
    def find(self, keys):
        """A holder of what is found, up to the first that is not."""
        pages = []
        for key in keys:
            if key not in self.known:
                break
            pages.append(self.known[key])
        assert self.pool.find(keys) == pages
        assert self.pool.count_free(pages) == sum(not self.is_held(page) for page in pages)
        self.pool.share(pages)
        self.cached = [page for page in self.cached if page not in pages]
        self.held.append(pages)

    @rule(data=st.data())
    def release(self, data):
        """A holder goes."""
        if self.held:
            pages = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
            self.pool.release(pages)
            self.cached += [p for p in reversed(pages) if not self.is_held(p) and p in self.known.values()]

    @rule(pages=st.lists(st.integers(0, PAGES - 1), max_size=4))
    def forget(self, pages):
        """Nothing is found in pages, held or free."""
        self.pool.forget(pages)
        self.known = {key: page for key, page in self.known.items() if page not in pages}
        self.cached = [page for page in self.cached if page not in pages]

    @rule(page=st.integers(0, PAGES - 1))
    def misuse(self, page):
        """Nobody can release or keep what nobody holds, nor share it where nothing is found in it."""
        if self.is_held(page):
            return
        with pytest.raises(ValueError, match="free"):
            self.pool.release([page])
        with pytest.raises(ValueError, match="free"):
            self.pool.keep(page, KEYS[0])
        if page not in self.known.values():
            with pytest.raises(ValueError, match="free"):
                self.pool.share([page])

    @invariant()
    def counts(self):
        """Used, free and cached are what the holders say."""
        used = len({page for pages in self.held for page in pages})
        assert (self.pool.used, self.pool.free) == (used, PAGES - used)
        assert (self.pool.cached, self.pool.evictions) == (len(self.cached), self.evicted)


Holders.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestHolders = Holders.TestCase


def test_lanes_are_taken_from_the_lowest_on():
    lanes = LanePool(4)
    assert lanes.take(3) == [0, 1, 2]
    lanes.release([1, 0])
    assert lanes.take(2) == [0, 1]
    with pytest.raises(ValueError, match="2 lanes wanted, 1 free"):
        lanes.take(2)
    assert lanes.take(1) == [3]
