"""Every comparison that only a GPU measures, in small and on a CPU: its inputs, its contestants and their answers.

What no CPU runs (SDPA by cuDNN, varlen_attn, compiled code and graphs) is not rehearsed.
"""

import time
import warnings

import pytest
import torch
from benchmarks.limits import Chip
from benchmarks.rows import Settings

from benchmarks import kernels

SETTINGS = Settings(
    rounds=1, threads=1, settle=0, seconds=0, rehearsal=True,
    chips={"calibrated": Chip(1e12, 1e10, 1e-6), "datasheet": Chip(2e12, 2e10)},
)  # fmt: skip
ROWS = [row for row in kernels.TIER.rows if row.device == "cuda"]


@pytest.fixture(autouse=True)
def _quiet():
    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # FlexAttention warns that it is not compiled
        yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_contestant_runs_and_computes_the_same(row):
    result = row.small(SETTINGS)
    assert result.not_measured is None, result.not_measured
    assert not [fact for fact in result.facts if fact.endswith(":")], result.facts
    assert len(result.rates) >= 2
    assert set(result.fractions) == {"calibrated", "datasheet"}
    assert {ratio.against for ratio in result.ratios} == set(result.rates) - {"tercet"}


def test_every_bar_is_on_a_contestant_that_exists():
    from benchmarks.kernels import attention, attention_contestants, decoding

    known = {*attention_contestants.BACKENDS, attention_contestants.VARLEN, attention_contestants.WITHOUT_BIAS}
    known |= {decoding.GATHER}
    for case in (*attention.CASES, *decoding.CASES):
        assert {against for against, _ in case.bars} <= known


def test_preparing_runs_each_contestant_and_times_none():
    import dataclasses

    row = next(row for row in ROWS if "rms_norm" in row.name)
    result = row.small(dataclasses.replace(SETTINGS, only_warm=True))
    assert (result.not_measured, result.seconds) == ("only warmed", {})


def test_past_the_deadline_no_peer_is_prepared():
    import dataclasses

    row = next(row for row in ROWS if "rms_norm" in row.name)
    result = row.small(dataclasses.replace(SETTINGS, deadline=time.monotonic()))
    assert result.facts["torch can't run:"] == "the budget was spent"
