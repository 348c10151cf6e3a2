"""Rows of a GPU are measured in a process of their own, whose end is nobody else's."""

import dataclasses
import gc
import weakref

import pytest
import torch
from benchmarks.isolation import Worker, release
from benchmarks.kernels import TIER
from benchmarks.rows import Settings

from benchmarks import isolation

SETTINGS = Settings(rounds=1, threads=1, settle=0, seconds=0)
ROW = next(row for row in TIER.rows if row.name == "kernels/cpu/rms_norm")
UNKNOWN = dataclasses.replace(ROW, name="kernels/cpu/unknown")


@pytest.fixture
def worker():
    worker = Worker()
    yield worker
    worker.close()


def test_a_row_that_ends_the_process_costs_no_other_row(worker):
    assert worker.measure("kernels", UNKNOWN, SETTINGS).not_measured == "its process ended with 1"
    result = worker.measure("kernels", ROW, SETTINGS)
    assert set(result.rates) == {"tercet", "torch"}
    process = worker._running[0]
    assert process.is_alive()
    worker.close()
    assert process.exitcode is not None


def test_a_row_that_does_not_end_is_ended(worker, monkeypatch):
    monkeypatch.setattr(isolation, "LONGEST", 0)
    result = worker.measure("kernels", ROW, SETTINGS)
    assert (result.not_measured, result.missed) == ("not done after 0 s", ["the row failed"])


def test_what_is_in_cycles_is_given_back_though_an_engine_was_loaded_after_it():
    class Peer:
        def __init__(self):
            self.itself = self

    peer = Peer()
    held = weakref.ref(peer)
    gc.freeze()  # as an engine does
    del peer
    assert release()
    assert held() is None


def test_a_lost_gpu_is_noticed(monkeypatch):
    def lost():
        raise torch.AcceleratorError("an illegal memory access was encountered")

    assert release()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    assert not release()
