"""The order of measuring and the arithmetic of ratios, on made-up times."""

import time

import pytest
from benchmarks.measure import Timings, compare, interleave, ratio, repeated
from benchmarks.rows import Goal, Settings

from benchmarks import workloads

SETTINGS = Settings(rounds=6, threads=1, settle=0)


def test_every_contestant_once_a_round_and_odd_rounds_in_reverse():
    order = []
    contestants = {name: (lambda name=name: order.append(name)) for name in "abcd"}

    def timer(run):
        run()
        return float(len(order))

    seconds = interleave(contestants, SETTINGS, timer=timer).seconds
    rounds = [order[first : first + 4] for first in range(0, 24, 4)]
    assert all(sorted(names) == list("abcd") for names in rounds)
    assert [names[::-1] for names in rounds[0::2]] == rounds[1::2]
    assert len({tuple(names) for names in rounds[0::2]}) > 1, "the order never changes"
    for index, names in enumerate(rounds):
        for place, name in enumerate(names):
            assert seconds[name][index] == 4 * index + place + 1


def test_ratio_is_taken_round_by_round():
    drifting = {"ours": [1.0, 2.0, 4.0, 8.0], "theirs": [3.0, 6.0, 12.0, 24.0]}  # the machine slows, the ratio does not
    result = ratio(drifting, "ours", "theirs", bar=3.0)
    assert (result.median, result.low, result.high, result.met) == (3.0, 3.0, 3.0, True)


def test_interval_holds_the_median_and_widens_with_noise():
    ours = [1.0] * 9
    calm = ratio({"ours": ours, "theirs": [2 + 0.01 * i for i in range(9)]}, "ours", "theirs")
    wild = ratio({"ours": ours, "theirs": [2 + 0.2 * i for i in range(9)]}, "ours", "theirs")
    assert calm.low <= calm.median <= calm.high
    assert wild.low < wild.median < wild.high
    assert wild.high - wild.low > 10 * (calm.high - calm.low)


def test_a_ratio_below_its_bar_is_missed():
    seconds = Timings({"ours": [1.0] * 7, "theirs": [1.1] * 7})
    bars = {"theirs": 1.2}
    result = compare("title", seconds, ours="ours", amount=22, unit="texts/s", bars=bars, facts={})
    assert not result.met
    assert result.rates == pytest.approx({"ours": 22, "theirs": 20})
    assert compare("title", seconds, ours="ours", amount=1, unit="", bars={"theirs": None}, facts={}).met


def test_rounds_end_with_the_budget_and_the_row_says_so():
    late = Settings(rounds=7, threads=1, settle=0, deadline=time.monotonic())
    timings = interleave({"ours": lambda: None}, late)
    assert len(timings.seconds["ours"]) == 3
    assert timings.flags == ["only 3 of 7 rounds: the budget was spent"]


@pytest.mark.parametrize(("last", "flagged"), [(1960, False), (1900, True)])
def test_a_clock_that_moves_between_rounds_is_flagged(last, flagged):
    """Contestants may run at different clocks, as long as each keeps its own."""
    clocks = {"ours": [1980.0] * 5 + [last], "theirs": [1000.0] * 6}
    ran = []
    settings = Settings(rounds=6, threads=1, settle=0, clock=lambda: clocks[ran[-1]].pop(0))
    contestants = {name: (lambda name=name: ran.append(name)) for name in clocks}
    assert bool(interleave(contestants, settings).flags) == flagged


def test_a_wide_interval_is_flagged():
    calm = Timings({"ours": [1.0] * 7, "theirs": [1.1, 1.1, 1.11, 1.1, 1.12, 1.1, 1.11]})
    wild = Timings({"ours": [1.0] * 7, "theirs": [1.0, 1.4, 0.8, 1.2, 1.1, 0.9, 1.3]}, ["clocks"])
    options = {"ours": "ours", "amount": 1, "unit": "", "bars": {"theirs": None}, "facts": {}}
    assert compare("", calm, **options).flags == []
    assert [flag.split()[0] for flag in compare("", wild, **options).flags] == ["clocks", "interval"]


def test_our_rate_is_told_as_a_share_of_each_limit():
    timings = Timings({"ours": [0.5] * 3, "theirs": [1.0] * 3})
    limits = {"calibrated": 400.0, "datasheet": 500.0}
    result = compare("", timings, ours="ours", amount=100, unit="", bars={}, facts={}, limits=limits)
    assert result.fractions == {"calibrated": 0.5, "datasheet": 0.4}


@pytest.mark.parametrize(("bar", "at_most", "met"), [(2.0, False, True), (3.0, False, False), (2.0, True, False)])
def test_goals(bar, at_most, met):
    assert Goal("ms", 2.5, bar, at_most).met == met


def test_short_calls_are_repeated():
    calls = []
    seconds = repeated(0.01)(lambda: calls.append(None))
    assert len(calls) > 1
    assert 0 < seconds < 0.01


def test_texts_are_seeded_and_within_their_limits():
    texts = workloads.texts(500)
    assert texts == workloads.texts(500) != workloads.texts(500, seed=1)
    words = sorted(len(text.split()) for text in texts)
    assert words[0] >= 4
    assert words[-1] == 250
    assert 34 <= words[250] <= 46  # the median of 500 draws


def test_fill_is_the_share_of_real_tokens():
    assert workloads.fill([1, 4, 2, 3], 2) == 10 / (8 + 6)
    assert workloads.fill([1, 2, 3], 2) == 6 / (4 + 3)
