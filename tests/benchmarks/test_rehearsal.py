"""Every comparison that only a GPU measures, in small and on a CPU: its inputs, its contestants and their answers.

What no CPU runs (SDPA by cuDNN, varlen_attn, compiled code and graphs) is not rehearsed.
"""

import dataclasses
import time
import warnings

import pytest
import torch
from benchmarks.kernels import attention, attention_contestants, decoding
from benchmarks.limits import Chip
from benchmarks.models import decoders, encoders, generators, host, translators
from benchmarks.rows import Settings

from benchmarks import kernels, models

SETTINGS = Settings(
    rounds=1, threads=1, settle=0, seconds=0, rehearsal=True,
    chips={"calibrated": Chip(1e12, 1e10, 1e-6), "datasheet": Chip(2e12, 2e10)},
)  # fmt: skip
ROWS = [row for row in kernels.TIER.rows if row.device == "cuda"]
ALIKE = {"models/gpu/GPT-2 8 rows", "models/gpu/GPT-2 64 rows 1k", "models/gpu/Qwen3-0.6B 1 row"}
ALIKE.add("models/gpu/Llama-1B-like 1 row")  # but for sizes, as others are
MODEL_ROWS = [row for row in models.TIER.rows if row.device == "cuda" and row.name not in ALIKE]


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


@pytest.mark.parametrize("row", MODEL_ROWS, ids=lambda row: row.name)
def test_every_way_to_run_a_model_runs_and_answers_alike(row):
    result = row.small(SETTINGS)
    assert result.not_measured is None, result.not_measured
    assert not [fact for fact in result.facts if fact.endswith(":")], result.facts
    assert len(result.rates) >= 3
    assert {ratio.against for ratio in result.ratios} == set(result.rates) - {"tercet"}
    assert set(result.limits) == {"calibrated", "datasheet"}


def test_the_hosts_steps_are_replayed_and_counted():
    result = host.step(SETTINGS)
    assert result.facts["1 rows, steady"] == "1.0 tokens a step, 100% of them replayed"
    assert [goal.what for goal in result.goals] == ["µs of CPU a steady step of 1 rows"]
    assert all(times[0] > 0 for times in result.seconds.values())


def test_a_wrong_answer_has_no_figures(monkeypatch):
    engine = encoders.InProcess
    right = engine.embed_ids
    monkeypatch.setattr(engine, "embed_ids", lambda self, ids, pooling: right(self, ids[::-1], pooling))
    row = next(row for row in MODEL_ROWS if "MiniLM" in row.name)
    result = row.small(SETTINGS)
    assert result.missed == ["correctness"]
    assert not result.rates


def test_every_bar_is_on_a_contestant_that_exists():
    known = {*attention_contestants.BACKENDS, attention_contestants.VARLEN, attention_contestants.WITHOUT_BIAS}
    known |= {decoding.GATHER, generators.EAGER, generators.CONTINUOUS, generators.STATIC, generators.CTRANSLATE2}
    known.add(encoders.ARRIVAL)
    for case in (*attention.CASES, *decoding.CASES, *encoders.CASES, *decoders.CASES, *translators.CASES):
        assert {against for against, _ in case.bars} <= known


def test_preparing_runs_each_contestant_and_times_none():
    row = next(row for row in ROWS if "rms_norm" in row.name)
    result = row.small(dataclasses.replace(SETTINGS, only_warm=True))
    assert (result.not_measured, result.seconds) == ("only warmed", {})


def test_past_the_deadline_no_peer_is_prepared():
    row = next(row for row in ROWS if "rms_norm" in row.name)
    result = row.small(dataclasses.replace(SETTINGS, deadline=time.monotonic()))
    assert result.facts["torch can't run:"] == "the budget was spent"
