"""The order of measuring and the arithmetic of ratios, on made-up times."""

import pytest
from benchmarks.measure import compare, interleave, ratio, repeated

from benchmarks import workloads


def test_every_contestant_once_a_round_and_odd_rounds_in_reverse():
    order = []
    contestants = {name: (lambda name=name: order.append(name)) for name in "abcd"}

    def timer(run):
        run()
        return float(len(order))

    seconds = interleave(contestants, rounds=6, timer=timer, settle=0)
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
    seconds = {"ours": [1.0] * 7, "theirs": [1.1] * 7}
    bars = {"theirs": 1.2}
    result = compare("title", seconds, ours="ours", amount=22, unit="texts/s", bars=bars, facts={})
    assert not result.met
    assert result.rates == pytest.approx({"ours": 22, "theirs": 20})
    assert compare("title", seconds, ours="ours", amount=1, unit="", bars={"theirs": None}, facts={}).met


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
