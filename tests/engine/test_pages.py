"""Pages are counted exactly, whatever is taken, shared and released."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tercet.server.engine.pages import LanePool, PagePool

PAGES = 11


class Holders(RuleBasedStateMachine):
    """Some holders of pages against a plain list of what each holds."""

    def __init__(self):
        super().__init__()
        self.pool = PagePool(PAGES)
        self.held = []

    @rule(count=st.integers(0, PAGES))
    def take(self, count):
        """Takes pages, if there are as many."""
        free = PAGES - len({page for pages in self.held for page in pages})
        if count > free:
            with pytest.raises(ValueError, match=f"{count} pages wanted, {free} free"):
                self.pool.take(count)
            return
        pages = self.pool.take(count)
        assert len(set(pages)) == count
        assert not {page for others in self.held for page in others} & set(pages)
        self.held.append(pages)

    @rule(data=st.data())
    def share(self, data):
        """A second holder of some of another's pages."""
        if self.held:
            pages = data.draw(st.sampled_from(self.held))
            pages = pages[: data.draw(st.integers(0, len(pages)))]
            self.pool.share(pages)
            self.held.append(pages)

    @rule(data=st.data())
    def release(self, data):
        """A holder goes."""
        if self.held:
            self.pool.release(self.held.pop(data.draw(st.integers(0, len(self.held) - 1))))

    @rule(page=st.integers(0, PAGES - 1))
    def misuse(self, page):
        """Nobody can share or release what nobody holds."""
        if not any(page in pages for pages in self.held):
            with pytest.raises(ValueError, match="free"):
                self.pool.release([page])
            with pytest.raises(ValueError, match="free"):
                self.pool.share([page])

    @invariant()
    def counts(self):
        """Used and free are what the holders say."""
        used = len({page for pages in self.held for page in pages})
        assert (self.pool.used, self.pool.free) == (used, PAGES - used)


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
