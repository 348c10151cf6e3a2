"""The search for the highest rate, its probes, and how much is asked of slow machines and fast ones."""

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from benchmarks.load.latency import UNANSWERED, Goal, Timeline
from benchmarks.load.openloop import Limit, Load
from benchmarks.load.search import CLOSE, Search
from benchmarks.rows import Settings
from benchmarks.serving import arrivals
from benchmarks.serving.traffic import LONGEST_SECONDS, MOST, SECONDS, Workload

WORKLOAD = Workload("m", "embed", Goal(e2el=100), median_tokens=50, longest=250)


def searched(highest: float, first: float, least: float = 0.1) -> tuple[Search, int]:
    """The search where every rate up to the highest holds, and its probes."""
    search, probes = Search(first, least), 0
    while not search.ended:
        assert search.rate >= least
        search.learn(search.rate <= highest)
        probes += 1
    return search, probes


@pytest.mark.parametrize("first", [0.5, 30.0, 700.0, 9000.0])
@pytest.mark.parametrize("highest", [0.7, 40.0, 1234.5])
def test_the_search_ends_close_below_the_highest_rate_wherever_it_begins(highest: float, first: float) -> None:
    search, probes = searched(highest, first)
    assert search.held <= highest < search.missed <= CLOSE * search.held
    doublings = abs(math.log2(highest / first))
    assert probes <= math.ceil(doublings) + 1 + math.ceil(math.log2(math.log(2) / math.log(CLOSE)))


def test_the_search_gives_up_at_the_least_rate() -> None:
    search, probes = searched(0.0, first=1.0, least=0.3)
    assert (search.held, search.missed, probes) == (0.0, 0.3, 3)  # 1, 0.5 and 0.3
    search, _ = searched(0.3, first=0.3, least=0.3)
    assert search.held == 0.3


def test_loads_last_longer_where_little_arrives_and_have_an_end() -> None:
    assert len(WORKLOAD.load("", 20).requests) == 20 * SECONDS
    assert len(WORKLOAD.load("", 4).requests) == 50
    assert len(WORKLOAD.load("", 0.5).requests) == 0.5 * LONGEST_SECONDS
    assert len(WORKLOAD.load("", 0.001).requests) == 1
    assert len(WORKLOAD.load("", 1e6).requests) == MOST


class Machine:
    """Holds the goal up to a rate, and is cut short above it."""

    def __init__(self, highest: float) -> None:
        self.highest = highest
        self.address = ""
        self.steps: list[float | str] = []

    def wait_idle(self) -> None:
        self.steps.append("idle")

    def run(self, load: Load, *, limit: Limit) -> list[list[Timeline]]:
        self.steps.append(load.rate)
        assert limit.misses == len(load.requests) // 100
        late, count = limit.misses, len(load.requests)
        quick = [Timeline(i / load.rate, 50, [(i / load.rate + 0.05, 0)]) for i in range(count - late)]
        slow = [Timeline(0.0, 50, [(0.2, 0)])] * late
        if load.rate > self.highest:
            return [[*quick[: count // 2], *slow, Timeline(9.0, 50, error=UNANSWERED)]]
        return [quick + slow]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Takes the place of a server."""
    machine = Machine(highest=33.0)

    @contextmanager
    def served(*_: object) -> Iterator[Machine]:
        yield machine

    monkeypatch.setattr(arrivals, "_serve", served)
    monkeypatch.setattr(arrivals, "run", machine.run)
    monkeypatch.setattr(Workload, "closed_loop_rate", lambda *_: 100.0)
    return machine


def test_the_row_reports_what_was_felt_at_the_highest_rate_that_held(machine: Machine) -> None:
    result = arrivals.highest_rate(lambda: WORKLOAD, Settings(rounds=1, threads=1))
    rate = result.rates["open loop"]
    assert rate <= 33 < result.facts["missed at"] <= CLOSE * rate
    assert machine.steps[:4] == ["idle", 50, "idle", 25]  # half of the closed loop's, and a half of that
    assert machine.steps[::2] == ["idle"] * result.facts["probes"]
    assert result.facts["requests asked at it"] == round(rate * SECONDS)
    assert result.facts["median_e2el_ms"] == pytest.approx(50)  # of the probe that held, of which all was answered
    assert (result.facts["failed"], result.flags) == (0, [])


def test_a_row_where_no_rate_holds_reports_no_latency(machine: Machine) -> None:
    machine.highest = 0.0
    result = arrivals.highest_rate(lambda: WORKLOAD, Settings(rounds=1, threads=1))
    assert result.rates == {"open loop": 0.0}
    assert result.facts == {"closed loop": 100.0, "probes": 9, "missed at": arrivals.LEAST_RATE}


def test_a_search_that_runs_out_of_time_says_so(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(step=0.4 * arrivals.PROBING_SECONDS)  # so two probes begin in time
    monkeypatch.setattr(arrivals, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    result = arrivals.highest_rate(lambda: WORKLOAD, Settings(rounds=1, threads=1))
    assert result.rates == {"open loop": 25.0}
    assert result.facts["missed at"] == 50.0
    assert result.flags == ["the search ran out of time"]
    assert arrivals.highest_rate(lambda: WORKLOAD, Settings(rounds=1, threads=1, deadline=0)).not_measured
